//! Time from the failure of the leader until a write succeeds again: ours beside etcd, all settings their
//! defaults.
//!
//! A client of each other member writes as fast as it is answered, gives an attempt up after a while, and tries
//! again; the first write that was begun after the failure and acknowledged counts. Must never count one that
//! was under way before.

use crate::etcd::{self, Etcd};
use crate::machine::quantile;
use crate::masters::{self, Client, Masters};
use crate::report::{Report, Row, Target};
use crate::writes::{MEMBERS, Writer as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};
use tessera_cluster::cluster::PATIENCE;
use tessera_cluster::wait::pass;
use tessera_cluster::{Outcome, failure};

/// An attempt is given up after this, so that one that hangs is not what is measured.
const ATTEMPT: Duration = Duration::from_millis(200);
/// Between attempts that were refused.
const PAUSE: Duration = Duration::from_millis(2);
/// What becomes of the leader. One that was stopped goes on once a write has succeeded without it.
pub const FAILURES: [(&str, Signal); 2] = [("kill -9", Signal::SIGKILL), ("SIGSTOP", Signal::SIGSTOP)];

/// What p50 and p99 of our own should be at most, in s.
const TARGETS: [f64; 2] = [0.7, 1.5];

/// Writes through one member until it succeeds.
async fn succeeds<T, F>(since: Instant, mut attempt: T) -> Outcome<Duration>
where
    T: FnMut() -> F,
    F: Future<Output = Outcome>,
{
    let mut last = failure("not tried");
    while since.elapsed() < PATIENCE {
        match tokio::time::timeout(ATTEMPT, attempt()).await {
            Ok(Ok(())) => return Ok(since.elapsed()),
            Ok(Err(error)) => last = error,
            Err(_) => last = failure("no answer"),
        }
        pass(PAUSE).await;
    }
    Err(last)
}

/// Those that go on.
pub fn others(leader: usize) -> [usize; 2] {
    [(leader + 1) % MEMBERS, (leader + 2) % MEMBERS]
}

/// One round with our masters.
async fn ours(masters: &mut Masters, round: usize, signal: Signal) -> Outcome<Duration> {
    let group = &mut masters.group;
    group.voters(MEMBERS).await?;
    let leader = group.leader().await?;
    let ports = others(leader).map(|at| group.members[at].port);
    let token = group.token.clone();
    let process = group.members[leader].process.as_mut().ok_or_else(|| failure("no leader runs"))?;
    let pid = Pid::from_raw(process.pid());
    let began = Instant::now();
    kill(pid, signal)?;
    let through = |port: u16| {
        let token = token.clone();
        succeeds(began, move || {
            let token = token.clone();
            async move { Client::connect(port, &token, round).await?.write(0).await }
        })
    };
    let first = tokio::select! {
        done = through(ports[0]) => done,
        done = through(ports[1]) => done,
    };
    if signal == Signal::SIGKILL {
        process.kill_9()?;
        group.members[leader].process = None;
        group.run(leader)?;
    } else {
        kill(pid, Signal::SIGCONT)?;
    }
    first
}

/// One round with etcd.
async fn theirs(etcd: &mut Etcd, round: usize, signal: Signal) -> Outcome<Duration> {
    let leader = etcd.leader().await?;
    let clients = others(leader).map(|at| etcd.client_of(at, round));
    let child = etcd.child(leader).ok_or_else(|| failure("no leader runs"))?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let began = Instant::now();
    kill(pid, signal)?;
    let [first, second] = clients;
    let (mut first, mut second) = (first?, second?);
    let through = async |client: &mut etcd::Client| -> Outcome<Duration> {
        let mut last = failure("not tried");
        while began.elapsed() < PATIENCE {
            match tokio::time::timeout(ATTEMPT, client.put(0)).await {
                Ok(Ok(())) => return Ok(began.elapsed()),
                Ok(Err(error)) => last = error,
                Err(_) => last = failure("no answer"),
            }
            pass(PAUSE).await;
        }
        Err(last)
    };
    let done = tokio::select! {
        done = through(&mut first) => done,
        done = through(&mut second) => done,
    };
    if signal == Signal::SIGKILL {
        if let Some(child) = etcd.child(leader) {
            child.wait()?;
        }
        etcd.run(leader)?;
    } else {
        kill(pid, Signal::SIGCONT)?;
    }
    done
}

/// Both, so many times each.
pub async fn measure(report: &mut Report, rounds: usize) -> Outcome {
    let mut masters = Masters::start().await?;
    for (how, signal) in FAILURES {
        let mut times = Vec::new();
        for round in 0..rounds {
            let took = ours(&mut masters, round, signal).await?;
            eprintln!("bench: leader {how}, {}, {round}: {} ms", masters::NAME, took.as_millis());
            times.push(took.as_secs_f64());
        }
        add(report, &until_a_write(how, masters::NAME), times, &TARGETS);
    }
    masters.finish()?;
    if let Some(missing) = etcd::missing() {
        report.add(Row::missing(format!("leader fails, {}", etcd::NAME), &missing));
        return Ok(());
    }
    let mut etcd = Etcd::start().await?;
    for (how, signal) in FAILURES {
        let mut times = Vec::new();
        for round in 0..rounds {
            let took = theirs(&mut etcd, round, signal).await?;
            eprintln!("bench: leader {how}, {}, {round}: {} ms", etcd::NAME, took.as_millis());
            times.push(took.as_secs_f64());
        }
        add(report, &until_a_write(how, etcd::NAME), times, &[]);
    }
    Ok(())
}

fn until_a_write(how: &str, name: &str) -> String {
    format!("leader {how}, until a write succeeds, {name}")
}

/// Half of the times, nearly all, and all; with what they should be, as far as that is said.
pub fn add(report: &mut Report, what: &str, mut times: Vec<f64>, targets: &[f64]) {
    let rounds = times.len();
    for (at, (share, title)) in [(0.5, "p50"), (0.99, "p99"), (1.0, "most")].into_iter().enumerate() {
        let row = Row::new(format!("{what}, {rounds} rounds, {title}"), quantile(&mut times, share), "s").places(3);
        report.add(match targets.get(at) {
            Some(most) => row.target(Target::AtMost(*most)),
            None => row,
        });
    }
}
