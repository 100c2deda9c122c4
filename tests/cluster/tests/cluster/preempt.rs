//! Revocable tasks in the headroom of another role's guarantee, with real processes: they end when it is needed, with
//! their grace, and everybody who has to know is told; a leader that dies meanwhile changes nothing of it.
//!
//! Must never tell of a task but what it wrote itself, its framework heard, or REST says.

use crate::api::first_events;
use crate::launcher::Launcher;
use crate::observed::{read, value};
use crate::shares::{create, explained, set_role, understand_roles};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tessera_cluster::cluster::PATIENCE;
use tessera_cluster::masters::Group;
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::{pass, until};
use tessera_cluster::{Outcome, ensure};
use tessera_telemetry::Name;

/// What the role of the revocable tasks gives them between TERM and KILL. Long enough to look at everything meanwhile.
const GRACE_MS: u64 = 4_000;
/// The scheduler whose tasks are revocable, and the one of the role with the guarantee.
const LENDER: &str = "lender";
const OWNER: &str = "owner";
/// An agent with room for three revocable tasks in the headroom, and one core that nobody guarantees.
const ROOM: [&str; 4] = ["--cpus-milli", "4000", "--mem-mib", "2048"];
/// In which leaders look often enough for what stands in the way to end something.
const LOOKS: Duration = Duration::from_secs(4);
/// How late a KILL may come on a busy machine.
const LATE_MS: u64 = 5_000;

/// A command that goes on after TERM, and writes when that came and until when it lived.
fn stubborn(file: &Path) -> String {
    let say = |what: &str| format!("echo $TESSERA_TASK_ID {what} $(date +%s%3N) >> {}", file.display());
    format!("trap '{}' TERM; while :; do {}; sleep 0.1; done", say("term"), say("beat"))
}

/// When a task last wrote this word, in milliseconds.
fn last(text: &str, task: &str, word: &str) -> Option<u64> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(task)?.trim_start().strip_prefix(word)?.trim().parse().ok());
    lines.max()
}

/// The tasks of a scheduler's page that are in a state.
fn in_state(page: &Value, state: &str) -> Vec<String> {
    let tasks = page["tasks"].as_object().into_iter().flatten();
    tasks.filter(|(_, task)| task[0] == state).map(|(id, _)| id.clone()).collect()
}

/// Wait until so many tasks are in a state; which.
async fn until_in(of: &Launcher<'_>, count: usize, state: &str) -> Outcome<Vec<String>> {
    until(&format!("{count} tasks of {} are {state}", of.name), PATIENCE, async || {
        let page = of.page().await.map_err(|error| error.to_string())?;
        let found = in_state(&page, state);
        if found.len() == count { Ok(found) } else { Err(page.to_string()) }
    })
    .await
}

/// What its scheduler heard of a task in a state.
fn heard<'a>(page: &'a Value, task: &str, state: &str) -> Option<&'a Value> {
    page["heard"].as_array()?.iter().find(|heard| heard["task"] == task && heard["state"] == state)
}

/// Wait until a task has ended, because others need what it had.
async fn ended(lender: &Launcher<'_>, task: &str) -> Outcome {
    let ended = until("it has ended", PATIENCE, async || {
        let page = lender.page().await.map_err(|error| error.to_string())?;
        let found = page["tasks"][task].clone();
        if found[0] == "TASK_KILLED" { Ok(found) } else { Err(page.to_string()) }
    })
    .await?;
    ensure(ended[1] == "PREEMPTED", || ended.to_string())
}

/// Three revocable tasks that run where `prod` is guaranteed something, and a scheduler of `prod` that wants nothing yet.
async fn lent(group: &Group, rest: &Rest, file: &Path) -> Outcome {
    understand_roles(rest).await?;
    set_role(rest, "prod", json!({"guarantee": {"cpus": 3, "mem_mib": 1536}})).await?;
    let grace = json!({"set": {"preemption-grace-ms": GRACE_MS}});
    let path = "/v1/limits?role=batch";
    let headers = [("content-type", "application/json")];
    rest.send("PATCH", path, &headers, grace.to_string().into_bytes()).await?.ok()?;
    create(rest, LENDER, "batch", "waiting").await?;
    create(rest, OWNER, "prod", "waiting").await?;
    let lender = Launcher { rest, name: LENDER };
    // Four are wanted, and three are in the headroom: the core beside it is not lent.
    let want = json!([{"id": "lent", "cpus": 1.0, "mem_mib": 128, "count": 4, "revocable": true, "run": stubborn(file)}]);
    lender.post("wants", &want).await?;
    until_in(&lender, 3, "TASK_RUNNING").await?;
    let page = lender.page().await?;
    let all = page["offers"].as_array().cloned().unwrap_or_default();
    ensure(!all.is_empty() && all.iter().all(|offer| offer["revocable"] == true), || page.to_string())?;
    let used = rest.document("/v1/roles/batch").await?;
    ensure(used["used"] == json!({}) || used["used"]["cpus"] == 0, || used.to_string())?;
    ensure(used["revocable"]["cpus"] == 3, || used.to_string())?;
    let told = explained(group, &["role", "batch"]).await?;
    ensure(told.contains("lender:"), || told.clone())
}

#[tokio::test]
async fn a_guarantee_takes_back_what_was_lent_and_everybody_is_told() -> Outcome {
    let mut group = Group::start("preempt", 1).await?;
    group.start_agent("a", &ROOM).await?;
    let rest = group.rest(0)?;
    let file = group.scene.open_file("written")?;
    lent(&group, &rest, &file).await?;
    let (lender, owner) = (Launcher { rest: &rest, name: LENDER }, Launcher { rest: &rest, name: OWNER });

    owner.post("wants", &json!([{"id": "big", "cpus": 2.0, "mem_mib": 256, "count": 1}])).await?;
    let ending = until_in(&lender, 1, "TASK_KILLING").await?.remove(0);
    // While the task has its grace.
    let page = lender.page().await?;
    let killing = heard(&page, &ending, "TASK_KILLING").cloned().unwrap_or_default();
    let message = killing["message"].as_str().unwrap_or_default();
    ensure(killing["reason"] == "PREEMPTED" && message.contains(&format!("after {GRACE_MS} ms")), || page.to_string())?;
    let role = explained(&group, &["role", "prod"]).await?;
    ensure(role.contains("GUARANTEE_LACKS") && role.contains("owner:"), || role.clone())?;
    let request = explained(&group, &["framework", "owner", "--request", "big"]).await?;
    ensure(request.contains("TAKEN_BACK"), || request.clone())?;
    let task = explained(&group, &["task", "lender", &ending]).await?;
    ensure(task.contains("KILLING") && task.contains("PREEMPTED") && task.contains(&format!("{GRACE_MS} ms")), || task.clone())?;
    let operations = rest.document("/v1/operations?kind=preemption").await?;
    let items = operations["items"].as_array().cloned().unwrap_or_default();
    ensure(items.len() == 1 && items[0]["task"] == ending.as_str(), || operations.to_string())?;

    ended(&lender, &ending).await?;
    until_in(&owner, 1, "TASK_RUNNING").await?;
    let written = std::fs::read_to_string(&file)?;
    let (term, beat) = (last(&written, &ending, "term"), last(&written, &ending, "beat"));
    let lived = beat.zip(term).and_then(|(beat, term)| beat.checked_sub(term));
    // It writes ten times in a second.
    let had_it = lived.is_some_and(|lived| (GRACE_MS - 1_000..GRACE_MS + LATE_MS).contains(&lived));
    ensure(had_it, || format!("{ending} lived on for {lived:?} ms: {written}"))?;
    // One was enough.
    let others = in_state(&lender.page().await?, "TASK_RUNNING");
    ensure(others.len() == 2, || format!("only {others:?} are left"))?;
    for other in &others {
        ensure(last(&written, other, "term").is_none(), || format!("{other} was told to end: {written}"))?;
    }

    let events = first_events(&rest, "/v1/events?after=0-0&kind=task.preempted", 1).await?;
    let text = events[0]["text"].as_str().unwrap_or_default();
    ensure(events[0]["task"] == ending.as_str() && text.contains("role prod") && text.contains(&GRACE_MS.to_string()), || format!("{events:?}"))?;
    let history = rest.document(&format!("/v1/tasks/lender/{ending}")).await?["history"].clone();
    let steps = history.as_array().cloned().unwrap_or_default();
    let preempted = |state: &str| steps.iter().any(|step| step["state"] == state && step["reason"] == "PREEMPTED");
    ensure(preempted("TASK_KILLING") && preempted("TASK_KILLED"), || history.to_string())?;
    // Who said what led to it stands in the audit.
    let audit = rest.document("/v1/audit?newest=true").await?;
    for (operation, object) in [("setRole", "/v1/roles/prod"), ("setLimits", "/v1/limits")] {
        let items = audit["items"].as_array().into_iter().flatten();
        let mut found = items.filter(|record| record["operation"] == operation && record["object"] == object);
        ensure(found.any(|record| record["outcome"] == "done" && record["principal"] == "admin"), || audit.to_string())?;
    }
    let page = read(&rest).await?;
    for (name, labels) in [(Name::Preemptions, &[][..]), (Name::TasksEnded, &["TASK_KILLED", "PREEMPTED"])] {
        let counted = value(&page, name, labels);
        ensure((counted - 1.0).abs() < f64::EPSILON, || format!("{} is {counted}", name.row().name))?;
    }
    group.finish()
}

#[tokio::test]
async fn a_preemption_goes_on_when_the_leader_dies_and_ends_nothing_twice() -> Outcome {
    let mut group = Group::start("preempt-died", 3).await?;
    group.start_agent("a", &ROOM).await?;
    let file = group.scene.open_file("written")?;
    lent(&group, &group.rest(0)?, &file).await?;
    let leader = group.leader().await?;
    let rest = group.rest((leader + 1) % 3)?;
    let (lender, owner) = (Launcher { rest: &rest, name: LENDER }, Launcher { rest: &rest, name: OWNER });

    owner.post("wants", &json!([{"id": "big", "cpus": 2.0, "mem_mib": 256, "count": 1}])).await?;
    let ending = until_in(&lender, 1, "TASK_KILLING").await?.remove(0);
    group.members[leader].kill_9()?;
    until_in(&owner, 1, "TASK_RUNNING").await?;
    ended(&lender, &ending).await?;
    // A new leader that took the rest for standing in the way would have said so within two looks.
    pass(LOOKS).await;
    let all = rest.document("/v1/tasks?framework=lender&state=TASK_KILLING,TASK_KILLED").await?;
    let items = all["items"].as_array().cloned().unwrap_or_default();
    ensure(items.len() == 1, || format!("one was enough: {all}"))?;
    let written = std::fs::read_to_string(&file)?;
    let terms = written.lines().filter(|line| line.contains(" term ")).count();
    ensure(terms == 1, || format!("TERM was sent {terms} times: {written}"))?;
    let others = in_state(&lender.page().await?, "TASK_RUNNING");
    ensure(others.len() == 2, || format!("only {others:?} are left"))?;
    group.finish()
}
