//! Lists and events of a large state: how long a page takes, and whether many watchers see every event.
//!
//! Must be the last that is done to a state: agents are given up to make events.

use crate::report::{Report, Row, Target};
use futures::future::try_join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tessera_cluster::rest::Rest;
use tessera_cluster::wait::{pass, until};
use tessera_cluster::{Outcome, ensure, procfs};

/// Pages of 1,000 tasks.
const PAGES: usize = 100;
/// What a page should take at most, in ms.
const PAGE_MAX_MS: f64 = 20.0;
/// Watchers of all events.
const WATCHERS: usize = 100;
/// How long events are made.
const EVENTS_FOR: Duration = Duration::from_secs(10);
/// Agents given up in a second; each has ten tasks, and each of those is an event.
const GONE_PER_S: u32 = 500;
/// Requests for that at once.
const AT_ONCE: usize = 8;
/// How long the last event may take to reach the last watcher.
const WITHIN: Duration = Duration::from_secs(60);

/// All of it, with the process of the master that answers.
pub async fn measure(report: &mut Report, rest: &Rest, pid: i32) -> Outcome {
    pages(report, rest).await?;
    watchers(report, rest, pid).await
}

async fn pages(report: &mut Report, rest: &Rest) -> Outcome {
    let mut path = "/v1/tasks?limit=1000".to_owned();
    let mut times = Vec::new();
    for _ in 0..PAGES {
        let began = Instant::now();
        let list = rest.document(&path).await?;
        times.push(began.elapsed().as_secs_f64() * 1_000.0);
        let Some(next) = list["next"].as_str() else { break };
        path = format!("/v1/tasks?limit=1000&after={next}");
    }
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times.get((times.len() * part / 100).min(times.len() - 1)).copied().unwrap_or_default();
    report.add(Row::new(format!("a page of 1,000 tasks, {} pages, p50", times.len()), at(50), "ms"));
    report.add(Row::new("the same, p99", at(99), "ms").target(Target::AtMost(PAGE_MAX_MS)));
    Ok(())
}

/// What one watcher has seen.
#[derive(Default)]
struct Seen {
    events: AtomicU64,
    gaps: AtomicU64,
}

async fn watch(rest: Rest, seen: Arc<Seen>) -> Outcome {
    let mut stream = rest.stream("/v1/events", None).await?;
    let mut rest: Vec<u8> = Vec::new();
    while let Some(piece) = stream.chunk().await? {
        // Pieces end anywhere: what is behind the last end of a line goes with the next.
        rest.extend_from_slice(&piece);
        let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
        let lines: Vec<u8> = rest.drain(..=end).collect();
        let count = |word: &[u8]| lines.split(|byte| *byte == b'\n').filter(|line| line.starts_with(word)).count() as u64;
        seen.events.fetch_add(count(b"data: "), Ordering::Relaxed);
        seen.gaps.fetch_add(count(b"event: gap"), Ordering::Relaxed);
    }
    Ok(())
}

async fn give_up(rest: &Rest, agents: &[String], first: usize) -> Outcome {
    let began = Instant::now();
    for (n, agent) in agents.iter().enumerate().skip(first).step_by(AT_ONCE) {
        let due = Duration::from_secs(1) * u32::try_from(n)? / GONE_PER_S;
        pass(due.saturating_sub(began.elapsed())).await;
        if began.elapsed() >= EVENTS_FOR {
            break;
        }
        rest.send("POST", &format!("/v1/agents/{agent}/gone"), &[], Vec::new()).await?.ok()?;
    }
    Ok(())
}

async fn watchers(report: &mut Report, rest: &Rest, pid: i32) -> Outcome {
    let list = rest.document("/v1/agents").await?;
    let items = list["items"].as_array().into_iter().flatten();
    let away = items.filter(|agent| agent["state"] != "connected" && agent["tasks"].as_u64() > Some(0));
    let agents: Vec<String> = away.filter_map(|agent| agent["id"].as_str().map(str::to_owned)).collect();
    let before = procfs::private_kib(pid);
    let all: Vec<Arc<Seen>> = (0..WATCHERS).map(|_| Arc::default()).collect();
    let tasks: Vec<_> = all.iter().map(|seen| tokio::spawn(watch(rest.clone(), Arc::clone(seen)))).collect();
    let events = |seen: &Arc<Seen>| seen.events.load(Ordering::Relaxed);
    // An event that everybody sees: all of them follow from then on.
    rest.send("PATCH", "/v1/limits?role=watched", &[], br#"{"set": {"timers": 7}}"#.to_vec()).await?.ok()?;
    until("all watchers follow", WITHIN, async || {
        let late = all.iter().filter(|seen| events(seen) == 0).count();
        if late == 0 { return Ok(()) }
        let again = rest.send("PATCH", "/v1/limits?role=watched", &[], br#"{"set": {"timers": 7}}"#.to_vec()).await;
        again.map_err(|error| error.to_string())?;
        Err(format!("{late} see nothing"))
    })
    .await?;
    let start: Vec<u64> = all.iter().map(events).collect();
    let began = Instant::now();
    try_join_all((0..AT_ONCE).map(|first| give_up(rest, &agents, first))).await?;
    let took = began.elapsed().as_secs_f64();
    let seen = until("all watchers have seen the same", WITHIN, async || {
        let now: Vec<u64> = all.iter().zip(&start).map(|(seen, start)| events(seen) - start).collect();
        let most = now.iter().copied().max().unwrap_or(0);
        let least = now.iter().copied().min().unwrap_or(0);
        if most == least && most > 0 { Ok(most) } else { Err(format!("{least} to {most} events")) }
    })
    .await?;
    let gaps: u64 = all.iter().map(|seen| seen.gaps.load(Ordering::Relaxed)).sum();
    let grown = procfs::private_kib(pid).saturating_sub(before);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    ensure(seen > 0, || "no events".to_owned())?;
    report.add(Row::new(format!("events a second that {WATCHERS} watchers each saw"), seen as f64 / took, "/s"));
    report.add(Row::new("gaps that they were told of", gaps as f64, "").target(Target::AtMost(0.0)));
    report.add(Row::new("private memory that the master took for that", grown as f64 / 1_024.0, "MiB"));
    Ok(())
}
