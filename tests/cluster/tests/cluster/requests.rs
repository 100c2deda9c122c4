//! What a scheduler says that it waits for, with real processes: agents with GPUs in zones are offered to who asks for
//! them, as far as they are needed; and tasks of all kinds are charged, with what is revocable apart.

use crate::launcher::Launcher;
use serde_json::{Value, json};
use tessera_cluster::cluster::{PATIENCE, Parts, Process, framework};
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure};

/// Wait until the scheduler's page is as it should be.
async fn until_page(waiting: &Launcher<'_>, what: &str, is: impl Fn(&Value) -> bool) -> Outcome<Value> {
    until(what, PATIENCE, async || {
        let page = waiting.page().await.map_err(|error| error.to_string())?;
        if is(&page) { Ok(page) } else { Err(page.to_string()) }
    })
    .await
}

async fn agents(rest: &Rest) -> Result<Vec<Value>, String> {
    let agents = rest.document("/v1/agents").await.map_err(|error| error.to_string())?;
    Ok(agents["items"].as_array().cloned().unwrap_or_default())
}

fn running(page: &Value) -> usize {
    let tasks = page["tasks"].as_object().into_iter().flatten();
    tasks.filter(|(_, task)| task[0] == "TASK_RUNNING").count()
}

#[tokio::test]
async fn requests_bring_what_is_asked_for_where_it_is_asked_for() -> Outcome {
    let mut parts = Parts::new("requests").await?;
    let rest = parts.start_master("m").await?;
    let with = |gpus: &str, zone: &str| {
        ["--cpus-milli", "4000", "--mem-mib", "2048", "--resource", gpus, "--zone", zone].map(str::to_owned).to_vec()
    };
    parts.agent_flags = with("gpus=2", "a");
    parts.start_agent(&rest, "a", "m").await?;
    parts.agent_flags = with("gpus=3", "b");
    let log = parts.dir().join("agent-b.log");
    let mut second = Process::start(&log, &parts.agent_args("b", "m"))?;
    until("both agents are there with what they have", PATIENCE, async || {
        let agents = agents(&rest).await?;
        let has = |zone: &str, milli: u64| {
            agents.iter().any(|agent| {
                agent["attributes"]["zone"] == zone
                    && agent["total"]["items"]["gpus"] == milli
                    && agent["state"] == "connected"
            })
        };
        if has("a", 2000) && has("b", 3000) { Ok(()) } else { Err(format!("{agents:?}")) }
    })
    .await?;
    let zone_b = agents(&rest).await?.into_iter().find(|agent| agent["attributes"]["zone"] == "b");
    let zone_b = zone_b.and_then(|agent| agent["id"].as_str()?.strip_prefix('a')?.parse::<u64>().ok());

    framework(&rest, "waiting", "waiting", &[]).await?;
    let waiting = Launcher { rest: &rest, name: "waiting" };
    // Four tasks with a GPU each, of which zone b has three: three run there, and the fourth waits, though zone a has two.
    let want = json!([{"id": "train", "cpus": 0.2, "mem_mib": 32, "gpus": 1, "count": 4, "zones": ["b"]}]);
    waiting.post("wants", &want).await?;
    let page = until_page(&waiting, "three run", |page| running(page) == 3 && page["left"] == 1).await?;
    let offers = page["offers"].as_array().cloned().unwrap_or_default();
    let elsewhere = offers.iter().any(|offer| offer["agent"].as_u64() != zone_b);
    ensure(!offers.is_empty() && !elsewhere, || format!("only zone b fits: {page}"))?;
    let whole = offers.iter().any(|offer| offer["cpus_milli"] == 4000);
    ensure(!whole, || format!("the rest of the agent is for others: {page}"))?;
    until("three GPUs are charged", PATIENCE, async || {
        let agents = agents(&rest).await?;
        let used = agents.iter().any(|agent| agent["used"]["items"]["gpus"] == 3000);
        if used { Ok(()) } else { Err(format!("{agents:?}")) }
    })
    .await?;

    // One ends: what it had is offered at once, and the fourth has its place.
    waiting.post("kill/train-0", &json!({})).await?;
    until_page(&waiting, "the fourth runs", |page| page["tasks"]["train-3"][0] == "TASK_RUNNING").await?;
    let page = waiting.page().await?;
    ensure(page["left"] == 0, || page.to_string())?;

    second.stop()?;
    parts.finish()
}
