//! What masters and agents tell of themselves: each documented metric is there, the text is what Prometheus reads, a
//! launch is one trace, and logs are objects.
//!
//! Must never know a metric but from the table.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tessera_cluster::cluster::{Cluster, PATIENCE, Process, free_port, tessera};
use tessera_cluster::guests::guest;
use tessera_cluster::masters::Group;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure};
use tessera_telemetry::{Family, METRICS, Name, Who, parse};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A page of metrics, as long as nothing is wrong with it.
pub async fn read(rest: &Rest) -> Outcome<Vec<Family>> {
    let answer = rest.get("/metrics").await?.ok()?;
    let kind = answer.headers.get("content-type").cloned().unwrap_or_default();
    ensure(kind == "text/plain; version=0.0.4", || kind.clone())?;
    parse(&answer.text()).map_err(failure)
}

/// The value with these labels, 0 when there is none.
pub fn value(page: &[Family], name: Name, labels: &[&str]) -> f64 {
    let family = page.iter().find(|family| family.name == name.row().name);
    let samples = family.into_iter().flat_map(|family| &family.samples);
    let mut fitting = samples.filter(|(of, with, _)| {
        !of.ends_with("_bucket") && !of.ends_with("_sum") && labels.iter().all(|label| with.iter().any(|(_, value)| value == label))
    });
    fitting.next().and_then(|(_, _, text)| text.parse().ok()).unwrap_or(0.0)
}

/// Every metric of the table is there, and those that this cluster must have moved have.
fn check(page: &[Family], who: Who, moved: &[(Name, &[&str])]) -> Outcome {
    let there: Vec<&str> = page.iter().map(|family| family.name.as_str()).collect();
    let table: Vec<&str> = METRICS.iter().filter(|row| row.who.contains(&who)).map(|row| row.name).collect();
    ensure(there == table, || format!("{who:?}: {there:?} is not {table:?}"))?;
    for (name, labels) in moved {
        ensure(value(page, *name, labels) > 0.0, || format!("{} {labels:?} is 0", name.row().name))?;
    }
    Ok(())
}

#[tokio::test]
async fn masters_and_agents_serve_every_metric_of_the_table() -> Outcome {
    let mut group = Group::start("metrics", 3).await?;
    let port = free_port()?;
    let arguments = group.agent_args("a1", &["--metrics-listen", &format!("127.0.0.1:{port}")]);
    let log = group.scene.dir().join("a1.log");
    group.agents.push(Process::start_in(&log, &arguments, None, &[("TESSERA_LOG_FORMAT", "json")])?);
    group.connected(1).await?;
    let ran = tessera(&["run", "--", "sh", "-c", "echo hello"], &group.env()).await?;
    ensure(ran.status.success(), || String::from_utf8_lossy(&ran.stderr).into_owned())?;

    let leader = group.leader().await?;
    for member in 0..3 {
        // The first request for a page is counted in the second.
        let _ = read(&group.rest(member)?).await?;
        let all: &[(Name, &[&str])] = &[
            (Name::BuildInfo, &[]), (Name::ProcessCpu, &[]), (Name::ProcessMemory, &[]), (Name::ProcessFds, &[]),
            (Name::NodeInputs, &[]), (Name::NodeRoundSeconds, &[]), (Name::ApplySeconds, &[]), (Name::SyncSeconds, &[]),
            (Name::LogSyncs, &[]), (Name::LogBytes, &[]), (Name::LogEntries, &[]), (Name::LeaderKnown, &[]), (Name::Term, &[]),
            (Name::CommitIndex, &[]), (Name::AppliedIndex, &[]), (Name::LastIndex, &[]), (Name::Voters, &[]), (Name::Events, &[]),
            (Name::Components, &[]), (Name::HttpRequests, &["/metrics", "GET", "2xx"]),
        ];
        let page = read(&group.rest(member)?).await?;
        check(&page, Who::Master, all)?;
        let of_leader: &[(Name, &[&str])] = &[
            (Name::Leader, &[]), (Name::LeadsBegun, &[]), (Name::CommitSeconds, &[]), (Name::AllocationRounds, &[]),
            (Name::OffersMade, &[]), (Name::OffersEnded, &["accepted"]), (Name::Turns, &["committed"]), (Name::TurnOperations, &[]),
            (Name::TasksEnded, &["TASK_FINISHED"]), (Name::Agents, &["connected"]), (Name::Sessions, &[]), (Name::Cpus, &["total"]),
            (Name::Memory, &["total"]), (Name::Frameworks, &["running"]), (Name::PeerActive, &[]), (Name::RoleFairShare, &[]),
            (Name::AllocationSeconds, &[]), (Name::AllocationAgents, &[]), (Name::TurnCpu, &["default:run"]), (Name::TurnWall, &["default:run"]),
        ];
        if member == leader {
            check(&page, Who::Master, of_leader)?;
        } else {
            for (name, labels) in of_leader.iter().filter(|(name, _)| !matches!(name, Name::LeadsBegun | Name::Cpus | Name::Memory | Name::RoleFairShare)) {
                let here = value(&page, *name, labels);
                ensure(here == 0.0, || format!("{} {labels:?} of a follower is {here}", name.row().name))?;
            }
        }
    }
    let rest = Rest::new(&format!("http://127.0.0.1:{port}"), Some(&group.token))?;
    let of_agent: &[(Name, &[&str])] = &[
        (Name::BuildInfo, &[]), (Name::AgentInfo, &["a1"]), (Name::AgentConnected, &[]), (Name::AgentSessions, &[]),
        (Name::AgentRoundSeconds, &[]), (Name::AgentSyncSeconds, &[]), (Name::AgentCheckpoint, &[]), (Name::AgentCpus, &[]),
        (Name::AgentMemory, &[]), (Name::AgentGroupCpu, &[]), (Name::Workers, &["schedulers"]), (Name::WorkerInstances, &[]),
        (Name::WorkerTurns, &[]), (Name::WorkerTurnSeconds, &[]), (Name::WorkerCpu, &["schedulers"]), (Name::WorkerMemory, &["schedulers"]),
    ];
    check(&read(&rest).await?, Who::Agent, of_agent)?;
    let stranger = rest.with_token(None).get("/metrics").await?;
    ensure(stranger.status == 401, || stranger.text())?;
    check_log(&std::fs::read_to_string(&log)?, "tessera-agent", "agent", "a1")?;
    // What a framework was counted goes with it.
    let removed = tessera(&["framework", "rm", "run", "--yes", "--wait"], &group.env()).await?;
    ensure(removed.status.success(), || String::from_utf8_lossy(&removed.stderr).into_owned())?;
    let leader = group.rest(group.leader().await?)?;
    let text = leader.get("/metrics").await?.ok()?.text();
    ensure(!text.contains("default:run"), || text.clone())?;
    group.finish()
}

/// Each line is an object, and those after it knew who it is say so.
fn check_log(text: &str, process: &str, kind: &str, id: &str) -> Outcome {
    let mut named = 0;
    for line in text.lines() {
        let read: Value = serde_json::from_str(line).map_err(|error| failure(format!("{error}: {line}")))?;
        let has = |key: &str| read[key].as_str().is_some_and(|text| !text.is_empty());
        let whole = has("time") && has("level") && has("target") && has("message");
        ensure(whole && read["process"] == process, || format!("not a line of the log: {line}"))?;
        named += usize::from(read[kind] == id);
    }
    ensure(named > 0, || format!("no line has {kind} {id}: {text}"))
}

#[tokio::test]
async fn everything_of_a_small_cluster_logs_as_json_when_it_is_asked_to() -> Outcome {
    let cluster = Cluster::start("jsonlog", &["--log-format", "json"]).await?;
    let ran = tessera(&["run", "--", "true"], &cluster.env()).await?;
    ensure(ran.status.success(), || String::from_utf8_lossy(&ran.stderr).into_owned())?;
    let logs = cluster.agent_dir().with_file_name("logs");
    check_log(&std::fs::read_to_string(logs.join("master.log"))?, "tessera-master", "node", "1")?;
    check_log(&std::fs::read_to_string(logs.join("agent.log"))?, "tessera-agent", "agent", "a1")?;
    let mut workers = 0;
    for entry in std::fs::read_dir(cluster.agent_dir().join("run"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "log") {
            check_log(&std::fs::read_to_string(&path)?, "tessera-worker", "tenant", "default")?;
            workers += 1;
        }
    }
    ensure(workers > 0, || "no worker has a log".to_owned())?;
    cluster.finish().await
}

/// Stands in for a collector: keeps what it is sent, and answers 200.
struct Collector {
    port: u16,
    requests: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Collector {
    async fn start() -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let requests = Arc::<Mutex<Vec<(String, Value)>>>::default();
        let kept = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    loop {
                        if connection.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                            return;
                        }
                        let text = String::from_utf8_lossy(&bytes);
                        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                        let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
                        if body.len() < length.unwrap_or(0) {
                            continue;
                        }
                        let read = serde_json::from_str(body).unwrap_or(Value::Null);
                        kept.lock().unwrap().push((head.to_owned(), read));
                        let _ = connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
                        return;
                    }
                });
            }
        });
        Ok(Self { port, requests })
    }

    /// The service that a span is of.
    fn service_of(&self, span: &str) -> Option<String> {
        let requests = self.requests.lock().unwrap();
        let mut resources = requests.iter().map(|(_, body)| &body["resourceSpans"][0]);
        let found = resources.find(|resource| {
            let spans = resource["scopeSpans"][0]["spans"].as_array();
            spans.is_some_and(|spans| spans.iter().any(|one| one["spanId"] == span))
        })?;
        found["resource"]["attributes"][0]["value"]["stringValue"].as_str().map(str::to_owned)
    }

    /// Spans of a trace by name.
    fn spans(&self, trace: &str) -> BTreeMap<String, Vec<Value>> {
        let mut spans: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (_, body) in self.requests.lock().unwrap().iter() {
            let all = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().cloned().unwrap_or_default();
            for span in all.into_iter().filter(|span| span["traceId"] == trace) {
                spans.entry(span["name"].as_str().unwrap_or_default().to_owned()).or_default().push(span);
            }
        }
        spans
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

#[tokio::test]
async fn a_launch_is_one_trace_from_the_request_to_the_end_of_the_task() -> Outcome {
    let collector = Collector::start().await?;
    let endpoint = format!("http://127.0.0.1:{}", collector.port);
    let mut group = Group::start_with("traces", 1, &["--otlp-endpoint", &endpoint]).await?;
    let port = free_port()?;
    group.start_agent("a1", &["--otlp-endpoint", &endpoint, "--metrics-listen", &format!("127.0.0.1:{port}")]).await?;
    let rest = group.rest(0)?;
    let component = tessera(&["component", "push", &guest("run")?.display().to_string()], &group.env()).await?;
    let component = String::from_utf8(component.stdout)?.trim().to_owned();
    let made = rest.post("/v1/frameworks", &json!({"name": "traced", "component": component})).await?.ok()?;
    ensure(made.status < 300, || made.text())?;
    // As `tessera run` asks for a command.
    let header = format!("00-{TRACE}-{SPAN}-01");
    let seen = group.scene.open_file("seen")?;
    let order = json!({"shell": format!("echo $TRACEPARENT > {}", seen.display())});
    until("the scheduler takes the order", PATIENCE, async || {
        let headers = [("traceparent", header.as_str()), ("content-type", "application/json")];
        match rest.send("POST", "/frameworks/traced/tasks", &headers, order.to_string().into()).await {
            Ok(answer) if answer.status < 300 => Ok(()),
            Ok(answer) => Err(format!("{} {}", answer.status, answer.text())),
            Err(error) => Err(error.to_string()),
        }
    })
    .await?;
    let wanted = ["request", "turn", "offer", "commit", "launch", "running", "handle", "agent", "prepare", "start"];
    let spans = until("all spans of the trace", PATIENCE, async || {
        let spans = collector.spans(TRACE);
        let missing: Vec<_> = wanted.iter().filter(|name| !spans.contains_key(**name)).collect();
        if missing.is_empty() { Ok(spans) } else { Err(format!("{missing:?} of {:?}", spans.keys())) }
    })
    .await?;
    let given = std::fs::read_to_string(&seen)?;
    let own = format!("00-{TRACE}-{}-01", spans["turn"][0]["spanId"].as_str().unwrap_or_default());
    ensure(given.trim() == own, || format!("the task was given {given:?}, not {own}"))?;
    let of = |name: &str, field: &str| spans[name][0][field].as_str().unwrap_or_default().to_owned();
    ensure(of("request", "parentSpanId") == SPAN, || format!("{spans:?}"))?;
    let below = [
        ("turn", "request"), ("offer", "turn"), ("commit", "turn"), ("launch", "turn"), ("running", "turn"),
        // Those of the agent, which knows the leader's by what they are about.
        ("handle", "turn"), ("agent", "launch"), ("prepare", "agent"), ("start", "agent"),
    ];
    for (child, parent) in below {
        ensure(of(child, "parentSpanId") == of(parent, "spanId"), || format!("{child} is not below {parent}: {spans:?}"))?;
    }
    for (earlier, later) in [("turn", "commit"), ("commit", "launch"), ("launch", "running"), ("turn", "handle"), ("prepare", "start")] {
        let at = |name: &str| of(name, "startTimeUnixNano").parse::<u64>().unwrap_or(0);
        ensure(at(earlier) <= at(later) && at(earlier) > 0, || format!("{later} began before {earlier}: {spans:?}"))?;
    }
    // Nothing of the trace is done for what is not in it.
    let all: Vec<&Value> = spans.values().flatten().collect();
    for span in &all {
        let parent = &span["parentSpanId"];
        ensure(parent == SPAN || all.iter().any(|other| other["spanId"] == *parent), || format!("{span} has no parent"))?;
    }
    for (name, service) in [("launch", "tessera-master"), ("agent", "tessera-agent"), ("handle", "tessera-agent")] {
        let found = collector.service_of(&of(name, "spanId"));
        ensure(found.as_deref() == Some(service), || format!("{name} is of {found:?}"))?;
    }
    let agent = Rest::new(&format!("http://127.0.0.1:{port}"), Some(&group.token))?;
    let page = read(&agent).await?;
    ensure(value(&page, Name::SpansSent, &[]) >= 4.0 && value(&page, Name::SpansDropped, &[]) == 0.0, || "the agent does not count its spans".to_owned())?;
    let head = collector.requests.lock().unwrap()[0].0.clone();
    ensure(head.starts_with("POST /v1/traces HTTP/1.1"), || head.clone())?;
    let page = read(&rest).await?;
    ensure(value(&page, Name::SpansSent, &[]) >= 6.0 && value(&page, Name::SpansDropped, &[]) == 0.0, || "spans are not counted".to_owned())?;
    // Nobody else's request is traced.
    let all = collector.requests.lock().unwrap().clone();
    let text = Value::from(all.iter().map(|(_, body)| body.clone()).collect::<Vec<_>>()).to_string();
    ensure(text.matches("\"traceId\"").count() == text.matches(TRACE).count(), || "another trace was begun".to_owned())?;
    group.finish()
}

#[tokio::test]
async fn a_collector_that_is_away_costs_spans_and_nothing_else() -> Outcome {
    let endpoint = format!("http://127.0.0.1:{}", free_port()?);
    let mut group = Group::start_with("notraces", 1, &["--otlp-endpoint", &endpoint, "--trace-sample", "1"]).await?;
    group.start_agent("a1", &[]).await?;
    let ran = tessera(&["run", "--", "true"], &group.env()).await?;
    ensure(ran.status.success(), || String::from_utf8_lossy(&ran.stderr).into_owned())?;
    let rest = group.rest(0)?;
    until("spans are dropped and counted", Duration::from_secs(20), async || {
        let page = read(&rest).await.map_err(|error| error.to_string())?;
        let dropped = value(&page, Name::SpansDropped, &[]);
        if dropped > 0.0 { Ok(()) } else { Err("none was dropped".to_owned()) }
    })
    .await?;
    group.finish()
}
