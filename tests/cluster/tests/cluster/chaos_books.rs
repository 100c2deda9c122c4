//! Afterwards: every acknowledged change is there, every task ran exactly once, what clients saw could have
//! come from one machine, and all masters, agents and schedulers agree.

use crate::chaos_load::Load;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tessera_cluster::cluster::PATIENCE;
use tessera_cluster::rest::Rest;
use tessera_cluster::site::Site;
use tessera_cluster::wait::{pass, until};
use tessera_cluster::{Outcome, ensure, failure};
use tessera_linear::{Register, check};

/// Statuses of agents that were away arrive again within this, and the last tasks end.
const TASKS_END_WITHIN: Duration = Duration::from_secs(90);

/// So long a settled cluster is looked at: longer than anything that is done again and again.
const QUIET: Duration = Duration::from_millis(1_500);

/// What a round came to, for people.
pub struct Balance {
    pub text: String,
}

/// Looks at everything once all faults are over. The history is saved first, wherever this ends.
///
/// # Errors
/// When anything is missing, doubled, or does not agree in time.
pub async fn balance(site: &mut Site, load: &mut Load, history: &Path) -> Outcome<Balance> {
    let stopped = load.stop().await;
    let settled = settle(site, load).await;
    books(&site.clients()?, load, history, stopped.and(settled)).await
}

/// The same of any masters, of which the first one answers for all, with what was wrong before.
///
/// # Errors
/// When anything is missing, doubled, or does not agree in time.
pub async fn books(masters: &[Rest], load: &Load, history: &Path, before: Outcome) -> Outcome<Balance> {
    let noted = load.history()?;
    noted.write(std::io::BufWriter::new(std::fs::File::create(history)?))?;
    before?;
    let verdict = check(&Register, &noted);
    ensure(verdict.is_linearizable(), || format!("{verdict}\nhistory: {}", history.display()))?;
    let tasks = tasks(&masters[0], load).await?;
    load.schedulers_agree().await?;
    masters_agree(masters, load).await?;
    agents_agree(&masters[0]).await?;
    nothing_is_written(&masters[0]).await?;
    let text = format!(
        "{verdict}; {tasks}; {} terms; longest time without an acknowledged change {:.1} s",
        load.terms(),
        load.longest_gap().as_secs_f64()
    );
    Ok(Balance { text })
}

async fn settle(site: &mut Site, load: &Load) -> Outcome {
    site.voters(site.masters.len()).await?;
    site.connected().await?;
    let ended = site.ended()?;
    ensure(ended.is_empty(), || format!("after the faults these ended: {ended:?}"))?;
    load.read_all().await
}

/// How often each task ran, by what they wrote themselves.
fn runs(ran: &Path) -> Outcome<BTreeMap<String, usize>> {
    let mut runs = BTreeMap::new();
    for line in std::fs::read_to_string(ran)?.lines() {
        *runs.entry(line.to_owned()).or_default() += 1;
    }
    Ok(runs)
}

/// Every acknowledged job became one task that ran once; no other job became more.
async fn tasks(rest: &Rest, load: &Load) -> Outcome<String> {
    let jobs = load.jobs();
    let path = format!("/frameworks/{}/", load.scheduler);
    let page = until("all tasks have ended", TASKS_END_WITHIN, async || {
        let answer = rest.get(&path).await.and_then(|answer| answer.ok());
        let page = answer.map_err(|error| error.to_string())?.json();
        let state = |id: &String| page["tasks"][id]["state"].as_str().unwrap_or("").to_owned();
        let open: Vec<String> = jobs
            .iter()
            .filter(|(id, acknowledged)| **acknowledged || !page["tasks"][*id].is_null())
            .filter(|(id, _)| !is_terminal(&state(id)))
            .map(|(id, _)| format!("{id} {}", page["tasks"][id]))
            .collect();
        match open.is_empty() && page["waiting"] == 0 {
            true => Ok(page),
            false => Err(format!("{} waiting, {} open: {}", page["waiting"], open.len(), open[..open.len().min(4)].join("; "))),
        }
    })
    .await?;
    let mut runs = runs(&load.ran)?;
    let mut dropped = 0;
    for (id, acknowledged) in &jobs {
        let record = &page["tasks"][id];
        let times = runs.remove(id).unwrap_or(0);
        if record.is_null() {
            ensure(!acknowledged && times == 0, || format!("{id} is not known and ran {times} times"))?;
            continue;
        }
        told_once(id, record)?;
        match record["state"].as_str() {
            Some("TASK_FINISHED") => {
                ensure(times == 1, || format!("{id} ran {times} times: {record}"))?;
            }
            // Its agent went away before the launch: it was never started, and its scheduler knows.
            Some("TASK_DROPPED") => {
                ensure(times == 0, || format!("{id} was dropped and ran {times} times: {record}"))?;
                dropped += 1;
            }
            _ => return Err(failure(format!("{id} ran {times} times and ended so: {record}"))),
        }
    }
    ensure(runs.is_empty(), || format!("these ran, and nobody asked for them: {runs:?}"))?;
    let acknowledged = jobs.values().filter(|acknowledged| **acknowledged).count();
    Ok(format!("{} jobs, {acknowledged} acknowledged, {dropped} dropped before they started", jobs.len()))
}

fn is_terminal(state: &str) -> bool {
    const ENDS: [&str; 9] = [
        "TASK_FINISHED",
        "TASK_FAILED",
        "TASK_KILLED",
        "TASK_ERROR",
        "TASK_LOST",
        "TASK_DROPPED",
        "TASK_GONE",
        "TASK_GONE_BY_OPERATOR",
        "TASK_UNKNOWN",
    ];
    ENDS.contains(&state)
}

/// A final state was received once, and only one.
fn told_once(id: &str, record: &Value) -> Outcome {
    let received = record["received"].as_object().cloned().unwrap_or_default();
    let mut finals = received.iter().filter(|(state, _)| is_terminal(state));
    let (one, more) = (finals.next(), finals.next());
    ensure(more.is_none() && one.is_some_and(|(_, times)| times == 1), || {
        format!("{id} ended more than once: {record}")
    })
}

/// All masters have the same tasks, configurations and limits in their own state.
async fn masters_agree(masters: &[Rest], load: &Load) -> Outcome {
    until("all masters have the same state", PATIENCE, async || {
        let mut seen: Vec<String> = Vec::new();
        for rest in masters {
            let mut all = String::new();
            for path in load.documents() {
                let document = rest.document(&format!("{path}consistency=stale")).await;
                let mut document = document.map_err(|error| error.to_string())?;
                // How far each has applied is another matter: something may be written all the time.
                if let Some(fields) = document.as_object_mut() {
                    fields.remove("index");
                }
                all += &document.to_string();
            }
            seen.push(all);
        }
        match seen.windows(2).all(|pair| pair[0] == pair[1]) {
            true => Ok(()),
            false => Err(seen.join("\n")),
        }
    })
    .await
}

/// No agent is charged for anything, or runs anything.
async fn agents_agree(rest: &Rest) -> Outcome {
    until("nothing is charged any more", PATIENCE, async || {
        let agents = rest.document("/v1/agents").await.map_err(|error| error.to_string())?;
        let items = agents["items"].as_array().cloned().unwrap_or_default();
        let free = |agent: &&Value| agent["used"]["cpus_milli"] == 0 && agent["tasks"] == 0;
        match items.iter().all(|agent| free(&agent)) {
            true => Ok(()),
            false => Err(agents.to_string()),
        }
    })
    .await
}

/// When all is done, nobody proposes anything any more: an entry for nothing would be one each beat, for ever.
async fn nothing_is_written(rest: &Rest) -> Outcome {
    let index = async || {
        let view = rest.document("/v1/masters").await.map_err(|error| error.to_string())?;
        view["index"].as_u64().ok_or_else(|| view.to_string())
    };
    until("the cluster writes nothing", PATIENCE, async || {
        let before = index().await?;
        pass(QUIET).await;
        match index().await? - before {
            0 => Ok(()),
            entries => Err(format!("{entries} entries in {QUIET:?}")),
        }
    })
    .await
}
