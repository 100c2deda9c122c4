//! Every operation of the document of the API is asked for at a master, and everything that it answers is as the
//! document says; every code of a refusal is provoked.

use crate::harness::{FakeAgent, Master, an_offer, config, launching_turn, report};
use crate::schema::misfit;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};
use tessera_types::TaskState;
use tessera_wire::v1::agent_message::Message as Up;

/// Operations that are only refused here; that they are done is tried where there are several masters, or agents with
/// files: `members`, `replay`, `executors`, `first_steps` of the cluster tests.
const REFUSED_HERE: &[&str] = &[
    "removeMaster",
    "promoteMaster",
    "transferLeadership",
    "getAgentCaches",
    "getFrameworkLog",
    "listRecordings",
    "getRecording",
    "getChildFile",
    "getTaskFile",
];

/// Codes that need several masters, or a fault: `masters`, `members`, `chaos_deadlines` of the cluster tests have them.
const ELSEWHERE: &[&str] = &["INTERNAL", "NO_LEADER", "OUTCOME_UNKNOWN", "JOINING"];

struct Walk<'a> {
    master: &'a Master,
    document: Value,
    done: BTreeSet<String>,
    refused: BTreeSet<String>,
    /// What was asked for as a dry run.
    rehearsed: BTreeSet<String>,
    codes: BTreeSet<String>,
    /// What the document does not say.
    wrong: Vec<String>,
}

/// An answer.
struct Said {
    status: u16,
    body: Value,
    tag: Option<String>,
}

/// Whether a path is one of a template, whose last part may take the rest.
fn fits(template: &str, path: &str) -> bool {
    let (mut parts, rest) = (path.split('/').peekable(), template.split('/').collect::<Vec<_>>());
    for (at, part) in rest.iter().enumerate() {
        let taken = parts.next();
        let open = part.starts_with('{');
        let last = at + 1 == rest.len();
        match taken {
            Some(taken) if open && !taken.is_empty() => {
                if last && ["{path}", "{key}", "{role}"].contains(part) {
                    return true;
                }
            }
            Some(taken) if taken == *part => {}
            _ => return false,
        }
    }
    parts.peek().is_none()
}

impl<'a> Walk<'a> {
    async fn of(master: &'a Master) -> Self {
        let document = master.get("/v1/openapi.json").await;
        Self {
            master,
            document,
            done: BTreeSet::new(),
            refused: BTreeSet::new(),
            rehearsed: BTreeSet::new(),
            codes: BTreeSet::new(),
            wrong: Vec::new(),
        }
    }

    fn operation(&self, method: &Method, path: &str) -> &Value {
        let method = method.as_str().to_ascii_lowercase();
        let paths = self.document["paths"].as_object().unwrap();
        // The one with the fewest open parts.
        let mut found: Vec<&String> = paths.iter().filter(|(template, of)| fits(template, path) && !of[&method].is_null()).map(|(template, _)| template).collect();
        found.sort_by_key(|template| template.matches('{').count());
        let template = found.first().unwrap_or_else(|| panic!("{method} {path} is not in the document"));
        &self.document["paths"][template.as_str()][&method]
    }

    async fn ask(&mut self, request: reqwest::RequestBuilder) -> Said {
        let request = request.build().unwrap();
        let (method, path) = (request.method().clone(), request.url().path().to_owned());
        let dry = request.url().query_pairs().any(|(name, value)| name == "dry_run" && value == "true");
        let answer = self.master.client.execute(request).await.unwrap();
        let status = answer.status().as_u16();
        let what = format!("{method} {path}: {status}");
        assert!(answer.headers().contains_key("x-request-id"), "{what}");
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let (kind, tag) = (header("content-type").unwrap_or_default(), header("etag"));
        let limited = status == 429;
        for name in ["retry-after", "ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"] {
            assert!(!limited || answer.headers().contains_key(name), "{what}: {name}");
        }
        let bytes = answer.bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let operation = self.operation(&method, &path);
        let id = operation["operationId"].as_str().unwrap().to_owned();
        let response = &operation["responses"][status.to_string()];
        assert!(response.is_object(), "{what} is not in the document: {body}");
        let known = operation["x-codes"].clone();
        let shared = response["$ref"].as_str().and_then(|to| self.document.pointer(&to[1..]));
        let response = shared.unwrap_or(response);
        let schema = &response["content"]["application/json"]["schema"];
        if schema.is_object() || schema.is_boolean() {
            assert!(kind.starts_with("application/json"), "{what}: {kind}");
            let wrong = misfit(&self.document, schema, &body, "");
            self.wrong.extend(wrong.map(|wrong| format!("{what}: {wrong}: {body}")));
        }
        if dry && (status == 200 || REFUSED_HERE.contains(&id.as_str())) {
            assert!(status != 200 || body["dry_run"] == true, "{what}: {body}");
            self.rehearsed.insert(id.clone());
        }
        if status < 400 && !dry {
            self.done.insert(id);
        } else if status < 400 {
        } else {
            let code = body["error"]["code"].as_str().unwrap_or_default().to_owned();
            assert!(known.as_array().expect("codes").contains(&Value::from(code.as_str())), "{what}: {code} is not in the document");
            self.refused.insert(id);
            self.codes.insert(code);
        }
        Said { status, body, tag }
    }

    async fn get(&mut self, path: &str, status: u16) -> Said {
        let said = self.ask(self.master.request(Method::GET, path)).await;
        assert_eq!(said.status, status, "GET {path}: {}", said.body);
        said
    }

    async fn send(&mut self, method: Method, path: &str, body: Value, status: u16) -> Said {
        let request = self.master.request(method.clone(), path);
        // A document that says nothing is none: there are routes that take none.
        let request = if body == json!({}) { request } else { request.json(&body) };
        let said = self.ask(request).await;
        assert_eq!(said.status, status, "{method} {path}: {}", said.body);
        said
    }

    /// Everything in the document was asked for.
    fn complete(&self) {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
        for (path, methods) in self.document["paths"].as_object().unwrap().iter().filter(|(path, _)| path.starts_with("/v1/")) {
            for (method, operation) in methods.as_object().unwrap().iter().filter(|(method, of)| *method != "get" && of.is_object()) {
                let parameters = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
                let known = parameters.iter().any(|parameter| parameter["name"] == "dry_run");
                let tried = operation["operationId"].as_str().is_some_and(|id| self.rehearsed.contains(id));
                assert!(known && tried, "{method} {path}: a dry run is known: {known}, and was tried: {tried}");
            }
        }
        let paths = self.document["paths"].as_object().unwrap().values();
        let all = paths.flat_map(|methods| methods.as_object().unwrap().values());
        let all: BTreeSet<&str> = all.filter_map(|operation| operation["operationId"].as_str()).collect();
        // Schedulers' own, which other tests call.
        let ours = all.into_iter().filter(|id| !id.starts_with("call") && *id != "watchEvents");
        for id in ours {
            let enough = self.done.contains(id) || REFUSED_HERE.contains(&id) && self.refused.contains(id);
            assert!(enough, "no test asks for {id}");
        }
    }
}

/// A cluster with an agent, a framework and a task that runs.
async fn furnish(master: &Master) -> (FakeAgent, String) {
    let created = master.create_framework("run").await;
    let mut agent = FakeAgent::connect(master, 0).await;
    let instance = agent.host_instance().await;
    let (batch, offer) = agent.batch_with("an offer", an_offer).await;
    agent.send(Up::Turn(launching_turn(&batch, &offer, "t1"))).await;
    master.get_until("/v1/tasks?framework=run", |tasks| tasks["items"][0]["task"] == "t1").await;
    report(&agent, instance.framework, "t1", 2, TaskState::Running).await;
    master.get_until("/v1/tasks/run/t1", |task| task["state"] == "TASK_RUNNING").await;
    (agent, created["component"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_answers_as_the_document_says() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    master.get_until("/v1/version", |version| version["cluster_version"].as_u64() >= Some(4)).await;
    let (_agent, component) = furnish(&master).await;
    let mut walk = Walk::of(&master).await;
    for path in ["/health", "/v1/masters", "/v1/version", "/v1/openapi.json", "/metrics", "/v1/snapshot"] {
        walk.get(path, 200).await;
    }
    for list in ["agents", "frameworks", "components", "tasks", "offers", "operations", "roles", "audit"] {
        walk.get(&format!("/v1/{list}"), 200).await;
        walk.get(&format!("/v1/{list}?limit=1"), 200).await;
        for bad in ["limit=0", "limit=1001", "after=nowhere", "unknown=1"] {
            walk.get(&format!("/v1/{list}?{bad}"), 400).await;
        }
    }
    walk.get("/v1/masters?consistency=stale", 200).await;
    for path in ["/v1/masters?x=1", "/v1/agents/a1?x=1", "/v1/version?x=1"] {
        walk.get(path, 400).await;
    }
    // What has no dry run must not be done because of a parameter that nobody looked at.
    walk.get("/v1/frameworks/run?dry_run=true", 400).await;
    for dry in ["", "?dry_run=true"] {
        walk.send(Method::DELETE, &format!("/v1/masters/9{dry}"), json!({}), 404).await;
        walk.send(Method::POST, &format!("/v1/masters/9/promote{dry}"), json!({}), 404).await;
        walk.send(Method::POST, &format!("/v1/masters/transfer{dry}"), json!({"to": 9}), 409).await;
        walk.send(Method::POST, &format!("/v1/masters/transfer{dry}"), json!({}), 409).await;
        walk.send(Method::DELETE, &format!("/v1/masters/1{dry}"), json!({}), 409).await;
    }
    walk.send(Method::POST, "/v1/masters/1/promote?dry_run=true", json!({}), 409).await;
    agents(&mut walk).await;
    roles(&mut walk).await;
    components(&mut walk, &component).await;
    frameworks(&mut walk, &component).await;
    tasks(&mut walk).await;
    walk.send(Method::DELETE, "/v1/frameworks/run?dry_run=true", json!({}), 200).await;
    walk.send(Method::DELETE, "/v1/frameworks/run", json!({}), 202).await;
    walk.get("/v1/operations?kind=removal", 200).await;
    walk.send(Method::POST, "/v1/agents/a1/gone", json!({}), 200).await;
    walk.complete();
    master.stop().await;
}

async fn agents(walk: &mut Walk<'_>) {
    walk.get("/v1/agents/a1", 200).await;
    walk.get("/v1/agents/a9", 404).await;
    walk.get("/v1/agents/a1/caches", 503).await;
    let post = Method::POST;
    walk.send(post.clone(), "/v1/agents/a1/drain?dry_run=true", json!({}), 200).await;
    for what in ["deactivate", "activate", "end-strangers", "gone"] {
        let plan = walk.send(post.clone(), &format!("/v1/agents/a1/{what}?dry_run=true"), json!({}), 200).await;
        assert!(plan.body["dry_run"] == true && plan.body["would"][0].is_string(), "{what}: {}", plan.body);
        walk.send(post.clone(), &format!("/v1/agents/a9/{what}?dry_run=true"), json!({}), 404).await;
    }
    let view = walk.get("/v1/agents/a1", 200).await;
    assert_eq!(view.body["mode"], "active", "a dry run changes nothing");
    walk.send(post.clone(), "/v1/agents/a1/drain", json!({"within_ms": 600_000}), 200).await;
    let under_way = walk.get("/v1/operations?kind=drain", 200).await;
    assert_eq!(under_way.body["items"][0]["id"], "drain-a1");
    walk.send(post.clone(), "/v1/agents/a1/activate", json!({}), 200).await;
    walk.send(post.clone(), "/v1/agents/a1/deactivate", json!({}), 200).await;
    walk.send(post.clone(), "/v1/agents/a1/activate", json!({}), 200).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let end_ms = u64::try_from(now.as_millis()).unwrap() + 3_600_000;
    let path = "/v1/agents/a1/maintenance";
    let dry = format!("{path}?dry_run=true");
    walk.send(post.clone(), &dry, json!({"start_ms": 2, "end_ms": 1}), 400).await;
    let plan = walk.send(post.clone(), &dry, json!({"start_ms": 1, "end_ms": end_ms}), 200).await;
    assert!(plan.body["would"][0].as_str().is_some_and(|would| would.contains("from 1970-01-01 00:00:00Z to ")), "{}", plan.body);
    let plan = walk.send(Method::DELETE, &dry, json!({}), 200).await;
    assert_eq!(plan.body["would"], json!(["nothing: it is so already"]), "nothing was announced");
    walk.send(post.clone(), path, json!({"start_ms": 1, "end_ms": end_ms}), 200).await;
    walk.send(Method::DELETE, path, json!({}), 200).await;
    walk.send(post.clone(), "/v1/agents/a1/end-strangers", json!({}), 200).await;
    walk.send(post, "/v1/agents/a9/gone", json!({}), 404).await;
}

async fn roles(walk: &mut Walk<'_>) {
    let path = "/v1/roles/eng/search";
    let before = walk.get(path, 200).await;
    assert_eq!((before.tag.as_deref(), &before.body["set"]), (Some("\"0\""), &json!(false)));
    let said = json!({"weight": 2.5, "guarantee": {"cpus": 0.5, "mem_mib": "1GiB", "gpus": 2}, "limit": {"cpus": 4}});
    walk.send(Method::PUT, &format!("{path}?dry_run=true"), said.clone(), 200).await;
    assert_eq!(walk.get(path, 200).await.body["set"], json!(false), "a dry run changes nothing");
    let set = walk.send(Method::PUT, path, said, 200).await;
    assert_eq!(set.body["guarantee"], json!({"cpus": 0.5, "mem_mib": 1024, "gpus": 2}));
    let stale = walk.master.request(Method::PUT, path).header("if-match", "\"0\"").json(&json!({"weight": 3}));
    assert_eq!(walk.ask(stale).await.status, 412);
    let tag = set.tag.expect("a tag");
    let fresh = walk.master.request(Method::PUT, path).header("if-match", tag).json(&json!({"weight": null}));
    assert_eq!(walk.ask(fresh).await.body["weight"], 1);
    walk.send(Method::PUT, path, json!({"guarantee": {"cpus": 5}}), 400).await;
    walk.send(Method::PUT, path, json!({"colour": 5}), 400).await;
    let version = walk.get(path, 200).await.body["version"].clone();
    assert_eq!(walk.send(Method::PUT, path, json!({"weight": 1}), 200).await.body["version"], version, "nothing has changed");
    walk.send(Method::DELETE, &format!("{path}?dry_run=true"), json!({}), 200).await;
    walk.send(Method::DELETE, path, json!({}), 200).await;
    let limits = walk.get("/v1/limits?role=eng", 200).await.tag.expect("a tag");
    let change = json!({"set": {"timers": 7}});
    walk.send(Method::PATCH, "/v1/limits?role=eng&dry_run=true", change.clone(), 200).await;
    for status in [200, 412] {
        let once = walk.master.request(Method::PATCH, "/v1/limits?role=eng").header("if-match", &limits).json(&change);
        assert_eq!(walk.ask(once).await.status, status);
    }
    walk.get("/v1/explain?role=eng&task=x", 400).await;
    walk.get("/v1/explain?role=default", 200).await;
    walk.get("/v1/explain?framework=run&request=nothing", 404).await;
}

async fn components(walk: &mut Walk<'_>, component: &str) {
    let path = format!("/v1/components/{component}");
    walk.get(&path, 200).await;
    walk.get(&format!("{path}/content"), 200).await;
    walk.get(&format!("/v1/components/sha256:{}", "0".repeat(64)), 404).await;
    walk.send(Method::DELETE, &path, json!({}), 409).await;
    let plans = ["add sha256:", "add sha256:"].map(Some).into_iter().chain([None]);
    let mut added = None;
    for plan in plans {
        let query = if plan.is_some() { "?dry_run=true" } else { "" };
        let upload = walk.master.request(Method::POST, &format!("/v1/components{query}")).body("another scheduler");
        let said = walk.ask(upload).await;
        match plan {
            // The second time, too: nothing was kept.
            Some(plan) => assert!(said.status == 200 && said.body["would"][0].as_str().unwrap().starts_with(plan), "{}", said.body),
            None => assert_eq!(said.status, 201),
        }
        added = Some(said);
    }
    let added = added.expect("an answer");
    let path = format!("/v1/components/{}", added.body["digest"].as_str().unwrap());
    walk.send(Method::DELETE, &format!("{path}?dry_run=true"), json!({}), 200).await;
    walk.send(Method::DELETE, &path, json!({}), 200).await;
    let source = json!({"source": "oci://registry.example/a:1"});
    walk.send(Method::POST, "/v1/components", source, 403).await;
}

async fn frameworks(walk: &mut Walk<'_>, component: &str) {
    let post = Method::POST;
    let create = json!({"name": "second", "role": "eng", "component": component});
    let plan = walk.send(post.clone(), "/v1/frameworks?dry_run=true", create.clone(), 200).await;
    assert_eq!(plan.body["events"][0]["kind"], "framework.created");
    walk.get("/v1/frameworks/second", 404).await;
    walk.send(post.clone(), "/v1/frameworks", create.clone(), 201).await;
    walk.send(post.clone(), "/v1/frameworks", create, 200).await;
    let other = json!({"name": "second", "role": "eng", "component": component, "config": {"a": "b"}});
    walk.send(post.clone(), "/v1/frameworks", other, 409).await;
    let in_role = walk.get("/v1/frameworks?role=eng", 200).await;
    assert_eq!(in_role.body["items"].as_array().map(Vec::len), Some(1));
    walk.get("/v1/frameworks/run", 200).await;
    walk.get("/v1/explain?framework=run", 200).await;
    walk.get("/v1/frameworks/run/log", 503).await;
    walk.get("/v1/frameworks/run/recordings", 503).await;
    walk.get("/v1/frameworks/run/recordings/e1-1", 503).await;
    walk.get("/v1/frameworks/run/executors", 200).await;
    walk.get("/v1/frameworks/run/executors/x/children/c/files/stdout", 404).await;
    let config = walk.get("/v1/frameworks/run/config", 200).await;
    assert_eq!(config.tag.as_deref(), Some("\"1\""));
    let path = "/v1/frameworks/run/config";
    let plan = walk.send(Method::PUT, &format!("{path}?dry_run=true"), json!({"config": {"k": "w"}}), 200).await;
    assert!(plan.body["would"][0].as_str().unwrap().starts_with("set k to \"w\""), "{}", plan.body);
    for status in [200, 412] {
        let once = walk.master.request(Method::PUT, path).header("if-match", "\"1\"").json(&json!({"config": {"k": "w"}}));
        assert_eq!(walk.ask(once).await.status, status);
    }
    let plan = walk.send(post.clone(), "/v1/frameworks/run/release?dry_run=true", json!({}), 200).await;
    assert_eq!(plan.body["would"], json!(["nothing: run is not quarantined"]));
    walk.send(post.clone(), "/v1/frameworks/run/release", json!({}), 200).await;
    let next = walk.master.request(post.clone(), "/v1/components").body("a third scheduler");
    let next = walk.ask(next).await.body["digest"].clone();
    walk.send(post.clone(), "/v1/frameworks/second/upgrade?dry_run=true", json!({"component": next}), 200).await;
    walk.send(post.clone(), "/v1/frameworks/second/upgrade", json!({"component": next}), 202).await;
    walk.get("/v1/operations?framework=second", 200).await;
    walk.send(post.clone(), "/v1/frameworks/second/rollback?dry_run=true", json!({}), 200).await;
    walk.send(post, "/v1/frameworks/second/rollback", json!({}), 202).await;
    let key = "/v1/frameworks/run/state/jobs/1";
    let put = |value: &'static str| walk.master.request(Method::PUT, key).body(value);
    let (first, again) = (put("one"), put("two").header("if-none-match", "*"));
    assert_eq!(walk.ask(first).await.status, 204);
    assert_eq!(walk.ask(again).await.status, 412);
    let dry = format!("{key}?dry_run=true");
    for (request, status, said) in [
        (walk.master.request(Method::PUT, &dry).body("two"), 200, "write the key \"jobs/1\": 3 bytes in place of 3 bytes"),
        (walk.master.request(Method::PUT, &dry).body("two").header("if-none-match", "*"), 412, ""),
        (walk.master.request(Method::DELETE, &dry), 200, "delete the key \"jobs/1\" and its 3 bytes"),
    ] {
        let plan = walk.ask(request).await;
        assert_eq!((plan.status, plan.body["would"][0].as_str().unwrap_or_default()), (status, said), "{}", plan.body);
    }
    walk.get(key, 200).await;
    walk.get("/v1/frameworks/run/state?prefix=jobs/", 200).await;
    walk.send(Method::DELETE, key, json!({}), 204).await;
}

async fn tasks(walk: &mut Walk<'_>) {
    for (filter, found) in [
        ("", 1),
        ("framework=run&state=TASK_RUNNING,TASK_LOST", 1),
        ("state=TASK_FINISHED", 0),
        ("role=default&live=true&agent=a1", 1),
        ("role=eng", 0),
        ("name=tr", 1),
        ("name=x", 0),
        ("group=1", 0),
    ] {
        let list = walk.get(&format!("/v1/tasks?{filter}"), 200).await;
        assert_eq!(list.body["items"].as_array().map(Vec::len), Some(found), "{filter}");
    }
    let task = walk.get("/v1/tasks/run/t1", 200).await;
    let states: Vec<&str> = task.body["history"].as_array().unwrap().iter().filter_map(|step| step["state"].as_str()).collect();
    assert_eq!(states, ["TASK_STAGING", "TASK_RUNNING"]);
    walk.get("/v1/tasks/run/nobody", 404).await;
    walk.get("/v1/tasks/run/t1/files/stdout", 503).await;
    walk.get("/v1/explain?framework=run&task=t1", 200).await;
    let offers = walk.master.get_until("/v1/offers?framework=run", |offers| offers["items"][0]["id"].is_string()).await;
    let offer = format!("/v1/offers/{}", offers["items"][0]["id"].as_str().unwrap());
    walk.get("/v1/offers?agent=a1&role=default", 200).await;
    let plan = walk.send(Method::DELETE, &format!("{offer}?dry_run=true"), json!({}), 200).await;
    assert!(plan.body["would"][0].as_str().unwrap().contains("an offer of a1, back from run"), "{}", plan.body);
    walk.send(Method::DELETE, &offer, json!({}), 204).await;
    walk.send(Method::DELETE, &format!("{offer}?dry_run=true"), json!({}), 404).await;
    walk.send(Method::DELETE, &offer, json!({}), 404).await;
    walk.send(Method::POST, "/v1/tasks/run/t1/kill?dry_run=true", json!({}), 200).await;
    walk.send(Method::POST, "/v1/tasks/run/t1/kill", json!({"grace_ms": 10}), 202).await;
    let under_way = walk.get("/v1/operations?kind=kill&framework=run", 200).await;
    assert_eq!(under_way.body["items"][0]["task"], "t1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_code_is_answered_where_the_document_says() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    let (_agent, component) = furnish(&master).await;
    let mut walk = Walk::of(&master).await;
    let url = |path: &str| format!("http://{}{path}", master.config.listen);
    let get = |path: &str| master.request(Method::GET, path);
    let many = (0..101).fold(get("/v1/agents"), |request, n| request.header(format!("x-{n}"), "1"));
    let big = "x".repeat(300 << 10);
    let create = json!({"name": "run", "component": component, "config": {"other": "one"}});
    let requests = [
        ("INVALID_ARGUMENT", get("/v1/agents?limit=0")),
        ("UNAUTHENTICATED", master.client.get(url("/v1/agents"))),
        ("UNAUTHENTICATED", master.client.get(url("/v1/agents")).bearer_auth("guess")),
        ("PERMISSION_DENIED", master.request(Method::POST, "/v1/components").json(&json!({"source": "oci://registry.example/a:1"}))),
        ("NOT_FOUND", get("/v1/frameworks/nobody")),
        ("ALREADY_EXISTS", master.request(Method::POST, "/v1/frameworks").json(&create)),
        ("CONFLICT", master.request(Method::DELETE, &format!("/v1/components/{component}"))),
        ("PRECONDITION_FAILED", master.request(Method::PUT, "/v1/frameworks/run/state/k").header("if-match", "*").body("v")),
        ("TOO_LARGE", master.request(Method::PUT, "/v1/frameworks/run/state/k").body(big)),
        ("HEADERS_TOO_LARGE", many),
        ("UNAVAILABLE", get("/v1/frameworks/run/log")),
    ];
    for (code, request) in requests {
        let said = walk.ask(request).await;
        assert_eq!(said.body["error"]["code"], code, "{}", said.body);
        let retryable = matches!(code, "UNAVAILABLE");
        assert_eq!(said.body["error"]["retryable"], retryable, "{code}");
    }
    for (body, status) in [("{}", 202), (r#"{"grace_ms": 5}"#, 422)] {
        let request = master.request(Method::POST, "/v1/tasks/run/t1/kill").header("idempotency-key", "one");
        assert_eq!(walk.ask(request.body(body)).await.status, status);
    }
    let named = master.client.get(url("/v1/agents/a9")).bearer_auth(&master.token).header("x-request-id", "mine-1");
    assert_eq!(walk.ask(named).await.body["error"]["request_id"], "mine-1");
    let wrong = master.request(Method::PATCH, "/v1/agents").send().await.unwrap();
    assert_eq!((wrong.status().as_u16(), wrong.headers().contains_key("allow")), (405, true));
    // Whatever is not allowed, or changes something, is on record.
    let audit = master.get("/v1/audit?newest=true").await;
    let operations: Vec<(&str, &str)> = audit["items"].as_array().unwrap().iter()
        .map(|record| (record["operation"].as_str().unwrap(), record["outcome"].as_str().unwrap())).collect();
    for known in [("createFramework", "done"), ("createFramework", "refused"), ("killTask", "done"), ("listAgents", "refused")] {
        assert!(operations.contains(&known), "{known:?}: {operations:?}");
    }
    let first = master.get("/v1/audit?principal=admin&limit=1").await;
    assert_eq!(first["items"].as_array().map(Vec::len), Some(1));
    let next = format!("/v1/audit?principal=admin&limit=1&after={}", first["next"].as_str().expect("more"));
    assert_ne!(master.get(&next).await["items"][0]["number"], first["items"][0]["number"]);
    let Walk { document, done, refused, codes, wrong, .. } = walk;
    let mut slow = master.stop().await;
    slow.requests_per_s = 1;
    let master = Master::start(slow).await;
    let mut walk = Walk { master: &master, document, done, refused, rehearsed: BTreeSet::new(), codes, wrong };
    let mut codes = BTreeSet::new();
    for _ in 0..4 {
        let said = walk.ask(master.request(Method::GET, "/v1/version")).await;
        codes.insert(said.body["error"]["code"].as_str().unwrap_or_default().to_owned());
    }
    assert_eq!(codes, ["".to_owned(), "RATE_LIMITED".to_owned()].into());
    let by_status = walk.document["components"]["responses"].as_object().unwrap().values();
    for said in by_status.flat_map(|response| response["x-codes"].as_array().unwrap()) {
        let code = said["code"].as_str().unwrap();
        // Schedulers' door has codes of its own, which the core's tests provoke.
        let enough = walk.codes.contains(code) || ELSEWHERE.contains(&code) || said["door"] == true;
        assert!(enough, "no test provokes {code}");
    }
    master.stop().await;
}
