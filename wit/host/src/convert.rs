//! Between the contract's generated types and the nouns: the only file that knows both.
//!
//! Invariants: what the contract has and this version does not is refused as `unsupported` by name,
//! never ignored. This file must never hold a rule that `tessera_types` could hold.

use crate::bindings::exports::tessera::framework::scheduler as exported;
use crate::bindings::tessera::framework::{events as ev, http, types as wit};
use crate::draft::{Refused, task_id};
use crate::state::WriteRefused;
use tessera_types::{
    AgentInfo, Constraint, Digest, Event, ExecutorTask, FileSpec, HttpAnswer, HttpRequest, InverseOffer, KeyWrite, Launch, LogLevel, NativeCommand,
    Offer, Quantities, Predicate, ResourceItem, ResourceKey, ResourceRequest, Resources, ResourcesError, Selector, Subscription, TaskBody, TaskSpec, TaskState, TaskStatus, TurnHeader,
};

fn unsupported<T>(what: &str) -> Result<T, Refused> {
    Err(Refused::Unsupported(what.to_owned()))
}

impl From<Refused> for wit::Error {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::Invalid(_) => Self::Invalid(text),
            Refused::NotFound(_) => Self::NotFound(text),
            Refused::Denied(_) => Self::Denied(text),
            Refused::Limit(_) => Self::Limit(text),
            Refused::Unsupported(_) => Self::Unsupported(text),
        }
    }
}

impl From<WriteRefused> for wit::Error {
    fn from(refused: WriteRefused) -> Self {
        let text = refused.to_string();
        match refused {
            WriteRefused::Key(_) => Self::Invalid(text),
            WriteRefused::Limit(_) => Self::Limit(text),
        }
    }
}

pub(crate) fn turn_info(header: &TurnHeader) -> exported::TurnInfo {
    exported::TurnInfo {
        number: header.number.0,
        epoch: header.epoch.0,
        time_ms: header.time_ms,
    }
}

/// The key of the event, one for each key of state, that tells of a write from outside.
const STATE_CHANGED: &str = "state-changed";

/// What the contract calls an event: several where one names several keys.
pub(crate) fn events(event: Event) -> Vec<ev::Event> {
    match event {
        Event::StateChanged { writes, .. } => {
            let changed = |write: KeyWrite| {
                let (key, value) = (STATE_CHANGED.to_owned(), write.key.into_bytes());
                ev::Event::Other(wit::Ext { key, value })
            };
            writes.into_iter().map(changed).collect()
        }
        event => one(event).into_iter().collect(),
    }
}

/// The same for what is one event there, too.
fn one(event: Event) -> Option<ev::Event> {
    Some(match event {
        Event::Subscribed(s) => ev::Event::Subscribed(subscription(s)),
        Event::Resumed(s) => ev::Event::Resumed(subscription(s)),
        Event::Agent(info) => ev::Event::Agent(agent_info(info)),
        Event::Offers(offers) => ev::Event::Offers(offers.into_iter().map(offer).collect()),
        Event::Rescinded(ids) => ev::Event::Rescinded(ids.into_iter().map(|id| id.0).collect()),
        Event::InverseOffers(offers) => {
            ev::Event::InverseOffers(offers.into_iter().map(inverse_offer).collect())
        }
        Event::InverseRescinded(ids) => {
            ev::Event::InverseRescinded(ids.into_iter().map(|id| id.0).collect())
        }
        Event::Update { status, .. } => ev::Event::Update(task_status(status)),
        Event::Timer { id, due_ms } => ev::Event::Timer(ev::TimerFired { id, due_ms }),
        Event::Http(request) => ev::Event::Http(http_request(request)),
        Event::Again => ev::Event::Again,
        Event::ConfigChanged { config, .. } => ev::Event::ConfigChanged(config),
        Event::Message(message) => ev::Event::Message(ev::Message {
            agent: message.agent.0,
            executor: message.executor.into(),
            data: message.data,
        }),
        Event::ExecutorFailed {
            agent,
            executor,
            message,
        } => ev::Event::ExecutorFailed(ev::ExecutorFailure {
            agent: agent.0,
            executor: executor.into(),
            message,
        }),
        Event::StateChanged { .. } => return None,
    })
}

fn subscription(s: Subscription) -> ev::Subscription {
    ev::Subscription {
        framework: s.framework.0,
        name: s.name,
        role: s.role,
        epoch: s.epoch.0,
    }
}

fn agent_info(info: AgentInfo) -> wit::AgentInfo {
    wit::AgentInfo {
        id: info.id.0,
        hostname: info.hostname,
        attributes: info.attributes,
        reachable: info.reachable,
    }
}

fn inverse_offer(offer: InverseOffer) -> wit::InverseOffer {
    wit::InverseOffer {
        id: offer.id.0,
        agent: offer.agent.0,
        start_ms: offer.start_ms,
        duration_ms: offer.duration_ms,
    }
}

fn offer(offer: Offer) -> wit::Offer {
    let (available, items) = listed(&offer.available, offer.revocable);
    wit::Offer { id: offer.id.0, agent: offer.agent.0, available, items }
}

/// Resources as the contract lists them: what may be taken back at any time has no fields, only items.
pub(crate) fn listed(resources: &Resources, revocable: bool) -> (wit::Quantities, Vec<wit::ResourceItem>) {
    let (q, items) = resources.clamped().to_items(revocable);
    let quantities = wit::Quantities {
        cpus_milli: q.cpus_milli.unsigned_abs(),
        mem_mib: q.mem_mib.unsigned_abs(),
        disk_mib: q.disk_mib.unsigned_abs(),
    };
    let item = |ResourceItem { key, amount_milli }| wit::ResourceItem {
        name: key.name,
        reservation: key.reservation,
        volume: key.volume,
        revocable: key.revocable,
        shared: key.shared,
        amount_milli: i64::unsigned_abs(amount_milli),
    };
    (quantities, items.into_iter().map(item).collect())
}

/// The reverse: resources, and whether they are revocable.
pub(crate) fn resources(
    q: wit::Quantities,
    items: Vec<wit::ResourceItem>,
) -> Result<(Resources, bool), Refused> {
    let item = |item: wit::ResourceItem| {
        let amount_milli = amount(&item.name, item.amount_milli)?;
        let (reservation, volume, shared) = (item.reservation, item.volume, item.shared);
        let key = ResourceKey { name: item.name, reservation, volume, revocable: item.revocable, shared };
        Ok(ResourceItem { key, amount_milli })
    };
    let items: Vec<ResourceItem> = items.into_iter().map(item).collect::<Result<_, Refused>>()?;
    Resources::from_items(quantities(q)?, &items).map_err(|error| match error {
        ResourcesError::Unsupported { .. } => Refused::Unsupported(format!("items: {error}")),
        _ => Refused::Invalid(format!("resources: {error}")),
    })
}

/// What a framework waits for.
pub(crate) fn resource_request(request: wit::ResourceRequest) -> Result<ResourceRequest, Refused> {
    let (resources, revocable) = resources(request.resources, request.items)?;
    if revocable {
        let rule = "requests.items: say `revocable` once, in the request, and list what it needs as usual";
        return Err(Refused::Invalid(rule.into()));
    }
    Ok(ResourceRequest {
        id: request.id,
        resources,
        count: request.count,
        constraints: request.constraints.into_iter().map(constraint).collect(),
        revocable: request.revocable,
    })
}

fn constraint(constraint: wit::Constraint) -> Constraint {
    let selector = match constraint.selector {
        wit::Selector::Hostname => Selector::Hostname,
        wit::Selector::Attribute(name) => Selector::Attribute(name),
    };
    let predicate = match constraint.predicate {
        wit::Predicate::Exists => Predicate::Exists,
        wit::Predicate::NotExists => Predicate::NotExists,
        wit::Predicate::Equals(text) => Predicate::Equals(text),
        wit::Predicate::NotEquals(text) => Predicate::NotEquals(text),
        wit::Predicate::OneOf(texts) => Predicate::OneOf(texts),
        wit::Predicate::NoneOf(texts) => Predicate::NoneOf(texts),
        wit::Predicate::Matches(pattern) => Predicate::Matches(pattern),
        wit::Predicate::NotMatches(pattern) => Predicate::NotMatches(pattern),
    };
    Constraint { selector, predicate }
}

const fn task_state(state: TaskState) -> wit::TaskState {
    match state {
        TaskState::Staging => wit::TaskState::Staging,
        TaskState::Starting => wit::TaskState::Starting,
        TaskState::Running => wit::TaskState::Running,
        TaskState::Killing => wit::TaskState::Killing,
        TaskState::Finished => wit::TaskState::Finished,
        TaskState::Failed => wit::TaskState::Failed,
        TaskState::Killed => wit::TaskState::Killed,
        TaskState::Error => wit::TaskState::Error,
        TaskState::Dropped => wit::TaskState::Dropped,
        TaskState::Lost => wit::TaskState::Lost,
        TaskState::Gone => wit::TaskState::Gone,
        TaskState::GoneByOperator => wit::TaskState::GoneByOperator,
        TaskState::Unreachable => wit::TaskState::Unreachable,
        TaskState::Unknown => wit::TaskState::Unknown,
    }
}

pub(crate) fn task_status(status: TaskStatus) -> wit::TaskStatus {
    wit::TaskStatus {
        task: status.task.into(),
        agent: status.agent.0,
        state: task_state(status.state),
        reason: status.reason.code().to_owned(),
        message: status.message,
        exit_code: status.exit_code,
        signal: status.signal,
        data: status.data,
        attempt: status.attempt,
        at_ms: status.at_ms,
    }
}

fn http_request(request: HttpRequest) -> ev::HttpRequest {
    ev::HttpRequest {
        id: request.id,
        method: request.method,
        path: request.path,
        query: request.query,
        headers: request.headers,
        body: request.body,
        principal: request.principal,
        idempotency_key: request.idempotency_key,
    }
}

pub(crate) fn http_answer(answer: http::HttpAnswer) -> HttpAnswer {
    HttpAnswer {
        status: answer.status,
        headers: answer.headers,
        body: answer.body,
    }
}

pub(crate) const fn log_level(level: wit::Level) -> LogLevel {
    match level {
        wit::Level::Trace => LogLevel::Trace,
        wit::Level::Debug => LogLevel::Debug,
        wit::Level::Info => LogLevel::Info,
        wit::Level::Warn => LogLevel::Warn,
        wit::Level::Error => LogLevel::Error,
    }
}

fn digest(field: &str, text: &str) -> Result<Digest, Refused> {
    Digest::parse(text).map_err(|error| Refused::Invalid(format!("{field}: {error}")))
}

pub(crate) fn launch(launch: wit::Launch) -> Result<Launch, Refused> {
    Ok(Launch {
        task: task_id("launch.task", &launch.task)?,
        spec: digest("launch.spec", &launch.spec)?,
        args: launch.args,
        env: launch.env,
    })
}

fn amount(name: &str, amount: u64) -> Result<i64, Refused> {
    i64::try_from(amount)
        .map_err(|_| Refused::Invalid(format!("resources.{name}: larger than any machine")))
}

fn quantities(q: wit::Quantities) -> Result<Quantities, Refused> {
    Ok(Quantities {
        cpus_milli: amount("cpus", q.cpus_milli)?,
        mem_mib: amount("mem", q.mem_mib)?,
        disk_mib: amount("disk", q.disk_mib)?,
    })
}

fn task_body(body: wit::TaskBody) -> Result<TaskBody, Refused> {
    Ok(match body {
        wit::TaskBody::Native(wit::NativeCommand::Shell(text)) => {
            TaskBody::Native(NativeCommand::Shell(text))
        }
        wit::TaskBody::Native(wit::NativeCommand::Argv(argv)) => {
            TaskBody::Native(NativeCommand::Argv(argv))
        }
        wit::TaskBody::Wasm(command) => TaskBody::Wasm {
            component: digest("body.wasm.component", &command.component)?,
            args: command.args,
        },
        wit::TaskBody::Image(_) => return unsupported("body.image: running OCI images"),
        wit::TaskBody::Executor(task) => TaskBody::Executor(ExecutorTask {
            executor: task
                .executor
                .parse()
                .map_err(|error| Refused::Invalid(format!("body.executor: {error}")))?,
            component: digest("body.component", &task.component)?,
            resources: quantities(task.resources)?.into(),
            config: task.config,
            data: task.data,
        }),
    })
}

fn file(file: wit::File) -> Result<FileSpec, Refused> {
    match file.content {
        wit::FileContent::Inline(content) => Ok(FileSpec {
            path: file.path,
            mode: file.mode,
            content,
        }),
        wit::FileContent::Digest(_) => unsupported("files.content.digest: an uploaded file"),
    }
}

pub(crate) fn task_spec(spec: wit::TaskSpec) -> Result<TaskSpec, Refused> {
    if spec.health.is_some() {
        return unsupported("health: a health check");
    }
    if let Some(ext) = spec.ext.first() {
        return unsupported(&format!("ext: {:?}", ext.key));
    }
    let cpus_limit_milli = spec
        .cpus_limit_milli
        .map(|milli| amount("cpus-limit", milli))
        .transpose()?;
    let (resources, revocable) = resources(spec.resources, spec.items)?;
    Ok(TaskSpec {
        name: spec.name,
        body: task_body(spec.body)?,
        resources,
        revocable,
        cpus_limit_milli,
        pids_limit: spec.pids_limit,
        user: spec.user,
        env: spec.env,
        files: spec.files.into_iter().map(file).collect::<Result<_, _>>()?,
        result_file: spec.result_file,
        grace_ms: spec.grace_ms.map(u64::from),
        restarts: spec.restarts,
        labels: spec.labels,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, amount_milli: u64) -> wit::ResourceItem {
        let name = name.to_owned();
        wit::ResourceItem { name, reservation: vec![], volume: None, revocable: false, shared: false, amount_milli }
    }

    const NONE: wit::Quantities = wit::Quantities { cpus_milli: 0, mem_mib: 0, disk_mib: 0 };

    #[test]
    fn a_revocable_offer_has_items_and_nothing_that_older_guests_would_take() {
        let available = Resources::of(Quantities { cpus_milli: 1500, mem_mib: 64, disk_mib: -1 }).with("gpus", 2000);
        let made = |revocable| {
            let available = available.clone();
            offer(Offer { id: tessera_types::OfferId(1), agent: tessera_types::AgentId(1), available, revocable })
        };
        let (plain, revocable) = (made(false), made(true));
        assert_eq!((plain.available.cpus_milli, plain.available.disk_mib, plain.items.len()), (1500, 0, 1));
        assert_eq!((revocable.available.cpus_milli, revocable.available.mem_mib), (0, 0));
        let names: Vec<_> = revocable.items.iter().map(|item| (item.name.as_str(), item.amount_milli)).collect();
        assert_eq!(names, [("cpus", 1500), ("mem", 64_000), ("gpus", 2000)]);
        for made in [plain, revocable] {
            let is_revocable = made.items.iter().all(|item| item.revocable);
            let read = resources(made.available, made.items).unwrap();
            assert_eq!(read, (available.clamped(), is_revocable), "a spec that asks for all of it is read alike");
        }
    }

    #[test]
    fn what_this_version_does_not_account_for_is_unsupported_and_the_rest_invalid() {
        type Edit = fn(&mut wit::ResourceItem);
        let cases: [(Edit, bool, &str); 6] = [
            (|item| item.reservation = vec!["eng".into()], true, "reservation"),
            (|item| item.volume = Some("v".into()), true, "volume"),
            (|item| item.shared = true, true, "shared"),
            (|item| item.name = "cpus".into(), false, "a field of its own"),
            (|item| item.name = "a b".into(), false, "a name is"),
            (|item| item.amount_milli = u64::MAX, false, "larger than any machine"),
        ];
        for (edit, is_unsupported, text) in cases {
            let mut bad = item("gpus", 1000);
            edit(&mut bad);
            let refused = resources(NONE, vec![bad]).unwrap_err();
            assert_eq!(matches!(refused, Refused::Unsupported(_)), is_unsupported, "{refused}");
            assert!(refused.to_string().contains(text), "{refused}");
        }
    }

    #[test]
    fn requests_are_read_and_say_once_that_they_are_revocable() {
        let on_zone = wit::Constraint {
            selector: wit::Selector::Attribute("zone".into()),
            predicate: wit::Predicate::OneOf(vec!["a".into()]),
        };
        let request = |item| wit::ResourceRequest {
            id: "big".into(),
            resources: wit::Quantities { cpus_milli: 4000, ..NONE },
            items: vec![item],
            count: 3,
            constraints: vec![on_zone.clone()],
            revocable: true,
        };
        let read = resource_request(request(item("gpus", 1000))).unwrap();
        assert_eq!(read.constraints[0].to_string(), "zone is one of a");
        assert!(read.revocable && read.resources.to_string().ends_with("gpus=1"));
        let twice = wit::ResourceItem { revocable: true, ..item("gpus", 1000) };
        assert!(matches!(resource_request(request(twice)), Err(Refused::Invalid(_))));
    }
}
