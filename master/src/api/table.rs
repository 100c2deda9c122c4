//! Every route there is: what it does, who may, and what it takes and answers.
//!
//! Invariants: routes are made here and nowhere else, and the document of the API is made of the same rows and of the
//! same types that handlers read and write, so that neither can do without the other.

use super::audit::Record;
use super::codes::{ALREADY_EXISTS, CONFLICT, INVALID_ARGUMENT, NOT_FOUND, PRECONDITION_FAILED, TOO_LARGE};
use super::components::{ComponentsQuery, Removal, RemoveQuery, Source, UploadQuery};
use super::dry_run::{DryRun, DryRunJson};
use super::endpoint::{Endpoint, endpoint};
use super::events::{EventJson, EventsQuery};
use super::explain::{ExplainJson, ExplainQuery};
use super::frameworks::{Create, FrameworksQuery};
use super::lifecycle::{Changed, ConfigJson, NewConfig, RollBack, Upgrade};
use super::limits::{Change as LimitsChange, ChangeQuery as LimitsChangeQuery, LimitsJson, LimitsQuery};
use super::paging::List;
use super::roles::{RoleJson, RolePut, RolesQuery};
use super::task_views::TaskJson;
use super::tasks::{Kill, TasksQuery};
use super::views::{AgentJson, ComponentJson, FrameworkJson, RangeQuery};
use super::{
    agents, audit_list, components, events, executors, explain, frameworks, health, lifecycle, limits, masters, offers,
    operations, proxy, recordings, roles, state, tasks, version,
};
use axum::http::Method;
use axum::routing::{any, delete, get, patch, post, put};
use tessera_master_core::{Action, Object};

const GET: Option<Method> = Some(Method::GET);
const POST: Option<Method> = Some(Method::POST);
const PUT: Option<Method> = Some(Method::PUT);
const PATCH: Option<Method> = Some(Method::PATCH);
const DELETE: Option<Method> = Some(Method::DELETE);

/// A framework, before it is known which.
const fn framework() -> Object {
    Object::Framework { role: None }
}

/// Every route there is.
pub fn endpoints() -> Vec<Endpoint> {
    let parts = [
        masters_part(),
        cluster_part(),
        components_part(),
        agents_part(),
        roles_part(),
        frameworks_part(),
        lifecycle_part(),
        executors_part(),
        tasks_part(),
        state_part(),
        doors_part(),
    ];
    parts.into_iter().flatten().collect()
}

fn masters_part() -> Vec<Endpoint> {
    use Action::{Change, Read};
    let cluster = || Object::Cluster;
    vec![
        endpoint(GET, "/v1/masters", Read, cluster(), get(masters::list))
            .about("listMasters", "masters", "Who the masters are, who leads, how they are, and what the cluster bears.", "/v1/masters")
            .answers::<masters::MastersJson>(200),
        endpoint(DELETE, "/v1/masters/{node}", Change, cluster(), delete(masters::remove))
            .about("removeMaster", "masters", "Remove a master for good; a leader hands over first. Also done when it was removed before.", "/v1/masters/3")
            .query::<DryRun>()
            .answers_nothing(204)
            .answers::<DryRunJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND, CONFLICT]),
        endpoint(POST, "/v1/masters/{node}/promote", Change, cluster(), post(masters::promote))
            .about("promoteMaster", "masters", "Make a learner a voter now; by itself that happens once it has everything.", "/v1/masters/3/promote")
            .query::<DryRun>()
            .answers_nothing(204)
            .answers::<DryRunJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND, CONFLICT]),
        endpoint(POST, "/v1/masters/transfer", Change, cluster(), post(masters::transfer))
            .about("transferLeadership", "masters", "Hand leadership to another master; answered when it leads.", "/v1/masters/transfer")
            .query::<DryRun>()
            .takes::<masters::Transfer>(r#"{"to": 2}"#)
            .answers::<masters::Transferred>(200)
            .answers::<DryRunJson>(200)
            .refuses(&[INVALID_ARGUMENT, CONFLICT]),
        // It holds everything that tenants keep, and not only what is shown.
        endpoint(GET, "/v1/snapshot", Change, cluster(), get(masters::save))
            .about("saveSnapshot", "masters", "The whole state with its component files, as `tessera operator snapshot` reads it.", "/v1/snapshot")
            .answers_bytes(200, "application/octet-stream"),
    ]
}

fn cluster_part() -> Vec<Endpoint> {
    use Action::{Change, Read};
    let cluster = || Object::Cluster;
    let limits_of = || Object::Limits { role: None };
    vec![
        endpoint(GET, "/health", Action::Health, cluster(), get(health::health))
            .about("health", "cluster", "200 when this master leads, or knows who does and passes requests on; 503 otherwise.", "/health")
            .answers::<health::HealthJson>(200)
            .answers::<health::HealthJson>(503),
        endpoint(GET, "/metrics", Read, cluster(), get(health::metrics))
            .about("metrics", "cluster", "Numbers of this master in Prometheus's text format.", "/metrics")
            .answers_bytes(200, "text/plain"),
        endpoint(GET, "/v1/version", Read, cluster(), get(version::version))
            .about("version", "cluster", "What the master that is asked is.", "/v1/version")
            .answers::<version::SoftwareJson>(200),
        endpoint(GET, "/v1/openapi.json", Read, cluster(), get(version::document))
            .about("openapi", "cluster", "This document.", "/v1/openapi.json")
            .answers::<serde_json::Value>(200),
        endpoint(GET, "/v1/limits", Read, limits_of(), get(limits::list))
            .about("getLimits", "roles", "The limits in force for a role, or for the whole cluster.", "/v1/limits?role=eng/search")
            .query::<LimitsQuery>()
            .answers::<LimitsJson>(200)
            .conditional()
            .refuses(&[INVALID_ARGUMENT]),
        endpoint(PATCH, "/v1/limits", Change, limits_of(), patch(limits::change))
            .about("setLimits", "roles", "Set some limits and unset some, all or nothing. A role has what its parent has where it sets nothing.", "/v1/limits?role=eng/search")
            .query::<LimitsChangeQuery>()
            .takes::<LimitsChange>(r#"{"set": {"state-bytes": 1048576}, "unset": ["timers"]}"#)
            .answers::<LimitsJson>(200)
            .answers::<DryRunJson>(200)
            .conditional()
            .refuses(&[INVALID_ARGUMENT, CONFLICT, PRECONDITION_FAILED]),
        endpoint(GET, "/v1/events", Read, cluster(), get(events::stream))
            .about("watchEvents", "cluster", "Follow events as the master that is asked applies them. `Last-Event-ID` goes on after an event; an event `gap` says that older ones are no longer there, or that this cluster has not written what was seen.", "/v1/events?kind=task.&framework=run")
            .query::<EventsQuery>()
            .answers_events::<EventJson>()
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(GET, "/v1/operations", Read, cluster(), get(operations::list))
            .about("listOperations", "cluster", "What is under way, and what each waits for.", "/v1/operations?kind=drain")
            .query::<operations::OperationsQuery>()
            .answers::<List<operations::OperationJson>>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(GET, "/v1/explain", Read, cluster(), get(explain::explain))
            .about("explain", "cluster", "Why a role, a framework, a request or a task has not got what it waits for.", "/v1/explain?framework=run")
            .query::<ExplainQuery>()
            .answers::<ExplainJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(GET, "/v1/audit", Read, cluster(), get(audit_list::list))
            .about("listAudit", "cluster", "Who did what through the master that is asked, oldest first.", "/v1/audit?principal=admin&newest=true")
            .query::<audit_list::AuditQuery>()
            .answers::<List<Record>>(200)
            .refuses(&[INVALID_ARGUMENT]),
        endpoint(GET, "/v1/offers", Read, framework(), get(offers::list))
            .about("listOffers", "cluster", "Offers that schedulers have not answered.", "/v1/offers?agent=a1")
            .query::<offers::OffersQuery>()
            .answers::<List<offers::OfferJson>>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(DELETE, "/v1/offers/{offer}", Change, framework(), delete(offers::rescind))
            .about("rescindOffer", "cluster", "Take an offer back; its scheduler is told.", "/v1/offers/o12")
            .query::<DryRun>()
            .answers_nothing(204)
            .answers::<DryRunJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
    ]
}

fn components_part() -> Vec<Endpoint> {
    use Action::{Create as Add, Read, Remove};
    const ONE: &str = "/v1/components/{digest}";
    const EXAMPLE: &str = "/v1/components/sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let component = || Object::Component;
    vec![
        endpoint(GET, "/v1/components", Read, component(), get(components::list))
            .about("listComponents", "components", "What is known.", "/v1/components?limit=100")
            .query::<ComponentsQuery>()
            .answers::<List<ComponentJson>>(200)
            .refuses(&[INVALID_ARGUMENT]),
        endpoint(POST, "/v1/components", Add, component(), post(components::add))
            .about("addComponent", "components", "Take a component: its bytes, or, as JSON, where they are. It is judged before it is accepted; 200 when it was known.", "/v1/components")
            .query::<UploadQuery>()
            .takes::<Source>(r#"{"source": "oci://ghcr.io/example/scheduler:1.0"}"#)
            .takes_bytes()
            .answers::<ComponentJson>(201)
            .answers::<ComponentJson>(200)
            .answers::<DryRunJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND, TOO_LARGE, CONFLICT]),
        endpoint(GET, ONE, Read, component(), get(components::inspect))
            .about("getComponent", "components", "A component, with what its judgement found.", EXAMPLE)
            .answers::<ComponentJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(DELETE, ONE, Remove, component(), delete(components::remove))
            .about("removeComponent", "components", "Forget a component that nothing uses. A dry run is always 200: `uses` is 0 for what would be removed.", EXAMPLE)
            .query::<RemoveQuery>()
            .answers::<Removal>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND, CONFLICT]),
        endpoint(GET, "/v1/components/{digest}/content", Read, component(), get(components::content))
            .about("getComponentContent", "components", "The bytes of a component.", "/v1/components/sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08/content")
            .answers_bytes(200, "application/wasm")
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
    ]
}

fn agents_part() -> Vec<Endpoint> {
    use Action::{Change, Kill as End, Read, Remove};
    const MAINTENANCE: &str = "/v1/agents/{agent}/maintenance";
    const ERRORS: &[&str] = &[INVALID_ARGUMENT, NOT_FOUND];
    let agent = |method, path, action, handlers| endpoint(method, path, action, Object::Agent, handlers);
    vec![
        agent(GET, "/v1/agents", Read, get(agents::list))
            .about("listAgents", "agents", "What each agent has, uses and hosts.", "/v1/agents?limit=100")
            .query::<agents::AgentsQuery>()
            .answers::<List<AgentJson>>(200)
            .refuses(&[INVALID_ARGUMENT]),
        agent(GET, "/v1/agents/{agent}", Read, get(agents::inspect))
            .about("getAgent", "agents", "One agent.", "/v1/agents/a1")
            .answers::<AgentJson>(200)
            .refuses(ERRORS),
        agent(GET, "/v1/agents/{agent}/caches", Read, get(agents::caches))
            .about("getAgentCaches", "agents", "What an agent keeps of components on its disk, as it says itself.", "/v1/agents/a1/caches")
            .answers::<serde_json::Value>(200)
            .refuses(ERRORS),
        agent(POST, "/v1/agents/{agent}/deactivate", Change, post(agents::deactivate))
            .about("deactivateAgent", "agents", "Place nothing new on an agent.", "/v1/agents/a1/deactivate")
            .query::<DryRun>()
            .answers::<AgentJson>(200)
            .answers::<DryRunJson>(200)
            .refuses(ERRORS),
        agent(POST, "/v1/agents/{agent}/activate", Change, post(agents::activate))
            .about("activateAgent", "agents", "Put an agent to use again; a drain is called off.", "/v1/agents/a1/activate")
            .query::<DryRun>()
            .answers::<AgentJson>(200)
            .answers::<DryRunJson>(200)
            .refuses(ERRORS),
        agent(POST, "/v1/agents/{agent}/drain", Change, post(agents::drain))
            .about("drainAgent", "agents", "Have everything leave an agent: schedulers move, and tasks that are still there in the end are killed.", "/v1/agents/a1/drain")
            .query::<DryRun>()
            .takes::<agents::Drain>(r#"{"within_ms": 600000}"#)
            .answers::<AgentJson>(200)
            .answers::<DryRunJson>(200)
            .refuses(ERRORS),
        agent(POST, "/v1/agents/{agent}/end-strangers", End, post(agents::end_strangers))
            .about("endStrangers", "agents", "Have the tasks on an agent end that the restored state does not know.", "/v1/agents/a1/end-strangers")
            .query::<DryRun>()
            .answers::<AgentJson>(200)
            .answers::<DryRunJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND, CONFLICT]),
        agent(POST, "/v1/agents/{agent}/gone", Remove, post(agents::gone))
            .about("markAgentGone", "agents", "Give an agent up for good: its tasks are `TASK_GONE_BY_OPERATOR`.", "/v1/agents/a1/gone")
            .query::<DryRun>()
            .answers::<agents::Gone>(200)
            .answers::<DryRunJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND, CONFLICT]),
        agent(POST, MAINTENANCE, Change, post(agents::maintain))
            .about("announceMaintenance", "agents", "Say when an agent will be worked on; frameworks get an inverse offer.", "/v1/agents/a1/maintenance")
            .query::<DryRun>()
            .takes::<agents::Window>(r#"{"start_ms": 1760000000000, "end_ms": 1760003600000}"#)
            .answers::<AgentJson>(200)
            .answers::<DryRunJson>(200)
            .refuses(ERRORS),
        agent(DELETE, MAINTENANCE, Change, delete(agents::cancel_maintenance))
            .about("cancelMaintenance", "agents", "Call maintenance off.", "/v1/agents/a1/maintenance")
            .query::<DryRun>()
            .answers::<AgentJson>(200)
            .answers::<DryRunJson>(200)
            .refuses(ERRORS),
    ]
}

fn roles_part() -> Vec<Endpoint> {
    use Action::{Change, Read};
    const ONE: &str = "/v1/roles/{*role}";
    let of = || Object::Limits { role: None };
    vec![
        endpoint(GET, "/v1/roles", Read, of(), get(roles::list))
            .about("listRoles", "roles", "Roles that have frameworks, or of which something is said, and those above them.", "/v1/roles")
            .query::<RolesQuery>()
            .answers::<List<RoleJson>>(200)
            .refuses(&[INVALID_ARGUMENT]),
        endpoint(GET, ONE, Read, of(), get(roles::inspect))
            .about("getRole", "roles", "One role, also when nothing is said of it.", "/v1/roles/eng/search")
            .answers::<RoleJson>(200)
            .conditional()
            .refuses(&[INVALID_ARGUMENT]),
        endpoint(PUT, ONE, Change, of(), put(roles::put))
            .about("setRole", "roles", "Say something of a role. What is absent stays, null goes back to the default.", "/v1/roles/eng/search")
            .query::<DryRun>()
            .takes::<RolePut>(r#"{"weight": 2, "guarantee": {"cpus": 4.5, "mem_mib": 8192}, "limit": null}"#)
            .answers::<RoleJson>(200)
            .answers::<DryRunJson>(200)
            .conditional()
            .refuses(&[INVALID_ARGUMENT, CONFLICT, PRECONDITION_FAILED]),
        endpoint(DELETE, ONE, Change, of(), delete(roles::reset))
            .about("resetRole", "roles", "Back to the defaults; its frameworks stay.", "/v1/roles/eng/search")
            .query::<DryRun>()
            .answers::<RoleJson>(200)
            .answers::<DryRunJson>(200)
            .conditional()
            .refuses(&[INVALID_ARGUMENT, CONFLICT, PRECONDITION_FAILED]),
    ]
}

fn frameworks_part() -> Vec<Endpoint> {
    use Action::{Create as Add, Read, ReadLogs, Remove};
    vec![
        endpoint(GET, "/v1/frameworks", Read, framework(), get(frameworks::list))
            .about("listFrameworks", "frameworks", "All frameworks.", "/v1/frameworks?role=eng")
            .query::<FrameworksQuery>()
            .answers::<List<FrameworkJson>>(200)
            .refuses(&[INVALID_ARGUMENT]),
        endpoint(POST, "/v1/frameworks", Add, framework(), post(frameworks::create))
            .about("createFramework", "frameworks", "Create a framework; 200 when exactly this one exists.", "/v1/frameworks")
            .query::<DryRun>()
            .takes::<Create>(r#"{"name": "run", "role": "default", "component": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "config": {"greeting": "hello"}}"#)
            .answers::<FrameworkJson>(201)
            .answers::<FrameworkJson>(200)
            .answers::<DryRunJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, CONFLICT]),
        endpoint(GET, "/v1/frameworks/{framework}", Read, framework(), get(frameworks::inspect))
            .about("getFramework", "frameworks", "One framework.", "/v1/frameworks/run")
            .answers::<FrameworkJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(DELETE, "/v1/frameworks/{framework}", Remove, framework(), delete(frameworks::remove))
            .about("removeFramework", "frameworks", "End a framework: its tasks are killed, then it vanishes.", "/v1/frameworks/run")
            .query::<DryRun>()
            .answers_nothing(202)
            .answers::<DryRunJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(GET, "/v1/frameworks/{framework}/log", ReadLogs, framework(), get(frameworks::log))
            .about("getFrameworkLog", "frameworks", "A range of the scheduler's log, one JSON object per line; `X-Tessera-Offset` and `X-Tessera-Size` say where.", "/v1/frameworks/run/log?offset=0&length=4096")
            .query::<RangeQuery>()
            .answers_bytes(200, "application/octet-stream")
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
    ]
}

fn lifecycle_part() -> Vec<Endpoint> {
    use Action::{Change, Read, ReadLogs};
    const CONFIG: &str = "/v1/frameworks/{framework}/config";
    vec![
        endpoint(POST, "/v1/frameworks/{framework}/upgrade", Change, framework(), post(lifecycle::upgrade))
            .about("upgradeFramework", "frameworks", "Change the component of a framework; answered before it is final.", "/v1/frameworks/run/upgrade")
            .query::<DryRun>()
            .takes::<Upgrade>(r#"{"component": "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}"#)
            .answers::<Changed>(202)
            .answers::<DryRunJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND, CONFLICT]),
        endpoint(POST, "/v1/frameworks/{framework}/rollback", Change, framework(), post(lifecycle::roll_back))
            .about("rollBackFramework", "frameworks", "Go back to an earlier component; an upgrade that is not final is given up.", "/v1/frameworks/run/rollback")
            .query::<DryRun>()
            .takes::<RollBack>(r#"{"version": 3}"#)
            .answers::<Changed>(202)
            .answers::<DryRunJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND, CONFLICT]),
        endpoint(POST, "/v1/frameworks/{framework}/release", Change, framework(), post(lifecycle::release))
            .about("releaseFramework", "frameworks", "Let a quarantined scheduler run again.", "/v1/frameworks/run/release")
            .query::<DryRun>()
            .answers::<FrameworkJson>(200)
            .answers::<DryRunJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND, CONFLICT]),
        endpoint(GET, CONFIG, Read, framework(), get(lifecycle::config))
            .about("getConfig", "frameworks", "The configuration in force, and what the scheduler has seen of it.", "/v1/frameworks/run/config")
            .answers::<ConfigJson>(200)
            .conditional()
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(PUT, CONFIG, Change, framework(), put(lifecycle::set_config))
            .about("setConfig", "frameworks", "Replace the configuration; the scheduler is told.", "/v1/frameworks/run/config")
            .query::<DryRun>()
            .takes::<NewConfig>(r#"{"config": {"greeting": "hello"}, "expected_version": 3}"#)
            .answers::<ConfigJson>(200)
            .answers::<DryRunJson>(200)
            .conditional()
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND, CONFLICT, PRECONDITION_FAILED]),
        endpoint(GET, "/v1/frameworks/{framework}/recordings", ReadLogs, framework(), get(recordings::list))
            .about("listRecordings", "frameworks", "What agents recorded of the lives of a scheduler's instances.", "/v1/frameworks/run/recordings")
            .query::<recordings::RecordingsQuery>()
            .answers::<recordings::Recordings>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(GET, "/v1/frameworks/{framework}/recordings/{recording}", ReadLogs, framework(), get(recordings::content))
            .about("getRecording", "frameworks", "The bytes of one recording, as far as they go now.", "/v1/frameworks/run/recordings/e3-1")
            .query::<recordings::RecordingsQuery>()
            .answers_bytes(200, "application/octet-stream")
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
    ]
}

fn executors_part() -> Vec<Endpoint> {
    use Action::{Read, ReadLogs};
    const FILE: &str = "/v1/frameworks/{framework}/executors/{executor}/children/{child}/files/{*path}";
    vec![
        endpoint(GET, "/v1/frameworks/{framework}/executors", Read, framework(), get(executors::list))
            .about("listExecutors", "frameworks", "A framework's custom executors and their children.", "/v1/frameworks/run/executors")
            .query::<executors::ExecutorsQuery>()
            .answers::<List<executors::ExecutorJson>>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(GET, FILE, ReadLogs, framework(), get(executors::file))
            .about("getChildFile", "frameworks", "A range of a file in the sandbox of a child.", "/v1/frameworks/run/executors/x/children/c-1/files/stdout")
            .query::<executors::FileQuery>()
            .answers_bytes(200, "application/octet-stream")
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
    ]
}

fn tasks_part() -> Vec<Endpoint> {
    use Action::{Kill as End, Read, ReadLogs};
    vec![
        endpoint(GET, "/v1/tasks", Read, framework(), get(tasks::list))
            .about("listTasks", "tasks", "Live and lately finished tasks.", "/v1/tasks?framework=run&live=true&limit=100")
            .query::<TasksQuery>()
            .answers::<List<TaskJson>>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(GET, "/v1/tasks/{framework}/{task}", Read, framework(), get(tasks::inspect))
            .about("getTask", "tasks", "One task with the states that it was in, also a finished one that is still remembered.", "/v1/tasks/run/job-1")
            .answers::<TaskJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(POST, "/v1/tasks/{framework}/{task}/kill", End, framework(), post(tasks::kill))
            .about("killTask", "tasks", "End a task.", "/v1/tasks/run/job-1/kill")
            .query::<DryRun>()
            .takes::<Kill>(r#"{"grace_ms": 3000}"#)
            .answers_nothing(202)
            .answers::<DryRunJson>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(GET, "/v1/tasks/{framework}/{task}/files/{*path}", ReadLogs, framework(), get(tasks::file))
            .about("getTaskFile", "tasks", "A range of a file in a task's sandbox; `stdout` and `stderr` are its output.", "/v1/tasks/run/job-1/files/stdout?offset=0")
            .query::<RangeQuery>()
            .answers_bytes(200, "application/octet-stream")
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
    ]
}

fn state_part() -> Vec<Endpoint> {
    use Action::{Change, Read};
    const KEY: &str = "/v1/frameworks/{framework}/state/{*key}";
    const EXAMPLE: &str = "/v1/frameworks/run/state/jobs/1";
    vec![
        endpoint(GET, "/v1/frameworks/{framework}/state", Read, framework(), get(state::list))
            .about("listState", "state", "Keys of a framework's state, in byte order.", "/v1/frameworks/run/state?prefix=jobs/")
            .query::<state::StateQuery>()
            .answers::<List<state::KeyJson>>(200)
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(GET, KEY, Read, framework(), get(state::get))
            .about("getState", "state", "The value of a key, bytes as they are.", EXAMPLE)
            .answers_bytes(200, "application/octet-stream")
            .conditional()
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND]),
        endpoint(PUT, KEY, Change, framework(), put(state::put))
            .about("putState", "state", "Write a key; the body is the value. `If-Match` and `If-None-Match` say what has to be there.", EXAMPLE)
            .query::<DryRun>()
            .takes_bytes()
            .answers_nothing(204)
            .answers::<DryRunJson>(200)
            .conditional()
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND, CONFLICT, PRECONDITION_FAILED]),
        endpoint(DELETE, KEY, Change, framework(), delete(state::delete))
            .about("deleteState", "state", "Delete a key; one that is not there is no error.", EXAMPLE)
            .query::<DryRun>()
            .answers_nothing(204)
            .answers::<DryRunJson>(200)
            .conditional()
            .refuses(&[INVALID_ARGUMENT, NOT_FOUND, CONFLICT, PRECONDITION_FAILED]),
    ]
}

fn doors_part() -> Vec<Endpoint> {
    const SUMMARY: &str = "A scheduler's own answer. Bodies are at most 1 MiB in and 64 KiB out; `Authorization` and `Cookie` never reach it.";
    let door = |path, handlers| endpoint(None, path, Action::Call, framework(), handlers);
    vec![
        door("/frameworks/{framework}", any(proxy::root)).about("callRoot", "door", SUMMARY, "/frameworks/run").answers_anything(),
        door("/frameworks/{framework}/", any(proxy::root)).about("callRootSlash", "door", SUMMARY, "/frameworks/run/").answers_anything(),
        door("/frameworks/{framework}/{*path}", any(proxy::call)).about("call", "door", SUMMARY, "/frameworks/run/jobs/1").answers_anything(),
    ]
}


