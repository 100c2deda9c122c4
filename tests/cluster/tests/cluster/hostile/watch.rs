//! What is looked at while an attack lasts: turns of those who are watched, the attacker's own, and
//! the CPU time of workers of tasks.
//!
//! Must never judge by a clock alone: time only says how many turns are expected.

use super::{Stage, WINDOW, view};
use crate::hostile::table::{Attack, By, Verdict};
use std::time::Duration;
use tessera_cluster::{Outcome, ensure, failure, procfs};
use tokio::time::Instant;

/// Role and name of the neighbour.
pub const NEIGHBOUR: &str = "neighbour";
/// A scheduler of the attacker's own tenant: in the same worker.
pub const SIBLING: &str = "sibling";
/// Whose turns are counted.
const WATCHED: [&str; 2] = [NEIGHBOUR, SIBLING];
/// Least turns of a quiet window: fewer would make half of them a matter of luck.
const QUIET_MIN: u64 = 8;
/// Least turns of a scheduler that storms in one window, and so of what is stood beside. Timers are looked at
/// every 50 ms, which is nine or ten times in a window.
const STORM_MIN: u64 = 8;
/// Least CPU time of workers in one window in which a task computes.
const LOOP_MIN_US: u64 = 50_000;
/// Least bytes by which the agent's checkpoint changes in one window in which an executor takes turns:
/// ten records, each of more than the numbers in it.
const CHECKPOINT_MIN: u64 = 10 * 24;

/// Turns so far, and when they were counted.
pub struct Count {
    pub at: Instant,
    turns: [u64; 2],
}

/// Turns of a window without an attack, and how long it was.
#[derive(Default)]
pub struct Quiet {
    turns: [u64; 2],
    took: Duration,
}

impl Stage {
    /// A framework's turns so far, as the master has committed them.
    pub async fn turns(&self, name: &str) -> Outcome<u64> {
        let found = view(&self.cluster, name).await?;
        found["turns"]
            .as_u64()
            .ok_or_else(|| failure(format!("no turns in {found}")))
    }

    pub async fn count(&self) -> Outcome<Count> {
        let at = Instant::now();
        let [neighbour, sibling] = WATCHED;
        let turns = [self.turns(neighbour).await?, self.turns(sibling).await?];
        Ok(Count { at, turns })
    }

    /// Count a window without an attack.
    pub async fn measure_quiet(&mut self) -> Outcome {
        let begin = self.count().await?;
        tokio::time::sleep_until(begin.at + WINDOW).await;
        let end = self.count().await?;
        let took = end.at - begin.at;
        let turns = [0, 1].map(|whose| end.turns[whose] - begin.turns[whose]);
        self.quiet = Quiet { turns, took };
        ensure(turns.iter().all(|turns| *turns >= QUIET_MIN), || {
            format!("{WATCHED:?} took {turns:?} turns when nothing else went on")
        })
    }

    /// Those who are watched took at least half of the turns of as much quiet time. Nothing is divided,
    /// so that nothing is rounded away.
    pub fn check_share(&self, during: &str, begin: &Count, end: &Count) -> Outcome {
        let took = end.at - begin.at;
        for (whose, name) in WATCHED.iter().enumerate() {
            let (turns, quiet) = (
                end.turns[whose] - begin.turns[whose],
                self.quiet.turns[whose],
            );
            let enough = u128::from(turns) * 2 * self.quiet.took.as_micros()
                >= u128::from(quiet) * took.as_micros();
            ensure(enough, || {
                let before = self.quiet.took;
                format!(
                    "{name} took {turns} turns in {took:?} {during}, {quiet} in {before:?} before"
                )
            })?;
        }
        Ok(())
    }

    /// An attack that has no end of its own goes on for a whole window more, and is seen to, while
    /// those who are watched take their turns.
    pub async fn lasts(&self, attack: &Attack, name: &str) -> Outcome {
        let storms = attack.verdict == Verdict::Storms;
        let computes = attack.verdict == Verdict::Computes;
        let turns = self.turns(name).await?;
        let cpu = self.tasks_cpu_us();
        let checkpoint = self.checkpoint_bytes();
        let begin = self.count().await?;
        tokio::time::sleep_until(begin.at + WINDOW).await;
        let end = self.count().await?;
        self.check_share("while it went on", &begin, &end)?;
        if storms {
            let more = self.turns(name).await? - turns;
            ensure(more >= STORM_MIN, || format!("a storm of {more} turns"))?;
        }
        if computes && attack.by == By::Executor {
            // It grows with every turn, and shrinks by more when it is written anew.
            let change = self.checkpoint_bytes().abs_diff(checkpoint);
            ensure(change >= CHECKPOINT_MIN, || {
                format!("{change} bytes of turns in the checkpoint")
            })?;
        } else if computes {
            let more = self.tasks_cpu_us().saturating_sub(cpu);
            ensure(more >= LOOP_MIN_US, || format!("{more} µs of computing"))?;
        }
        if matches!(attack.by, By::Task | By::Executor) {
            let found = self
                .cluster
                .rest
                .document(&format!("/v1/tasks/{name}/t"))
                .await?;
            return ensure(found["state"] == "TASK_RUNNING", || found.to_string());
        }
        let found = view(&self.cluster, name).await?;
        ensure(found["last_error"].is_null(), || found.to_string())
    }

    /// Size of what the agent has written down.
    fn checkpoint_bytes(&self) -> u64 {
        let dir = self.cluster.agent_dir().join("checkpoint");
        let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
        files
            .filter_map(|file| file.metadata().ok().map(|meta| meta.len()))
            .sum()
    }

    /// CPU time of all workers of tasks and executors so far.
    fn tasks_cpu_us(&self) -> u64 {
        let hosts_tasks = |pid: &i32| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains("--kind\0tasks")
        };
        let workers = self.cluster.workers();
        workers
            .into_iter()
            .filter(hosts_tasks)
            .map(procfs::cpu_us)
            .sum()
    }

    /// The attacker's own tenant has lost nothing: its other scheduler never failed and was never built
    /// anew.
    pub async fn check_sibling(&self) -> Outcome {
        let found = view(&self.cluster, SIBLING).await?;
        ensure(
            found["state"] == "running"
                && found["last_error"].is_null()
                && found["epoch"] == self.sibling["epoch"],
            || format!("{} became {found}", self.sibling),
        )
    }
}
