//! The rows of docs/benchmarks.md.
//!
//! Must never leave out a row because its target was missed.

use crate::headings::Heading;
use crate::machine;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a number should be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// One number.
#[derive(Clone, Debug)]
pub struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    target: Option<Target>,
    /// Why there is no number.
    missing: Option<String>,
    places: usize,
}

impl Row {
    /// A number without a target.
    pub fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            value,
            unit,
            target: None,
            missing: None,
            places: 1,
        }
    }

    /// What could not be measured here, and why.
    pub fn missing(what: impl Into<String>, why: &str) -> Self {
        Self {
            missing: Some(why.to_owned()),
            ..Self::new(what, f64::NAN, "")
        }
    }

    /// With so many decimal places.
    pub fn places(mut self, places: usize) -> Self {
        self.places = places;
        self
    }

    /// The same with a target.
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    fn line(&self) -> String {
        if let Some(why) = &self.missing {
            return format!("| {} | {why} |  |  |\n", self.what);
        }
        let (target, verdict) = match self.target {
            Some(Target::AtMost(most)) => (
                format!("≤ {} {}", number(most, self.places), self.unit),
                if self.value <= most {
                    "met"
                } else {
                    "**missed**"
                },
            ),
            Some(Target::AtLeast(least)) => (
                format!("≥ {} {}", number(least, self.places), self.unit),
                if self.value >= least {
                    "met"
                } else {
                    "**missed**"
                },
            ),
            None => (String::new(), ""),
        };
        format!(
            "| {} | {} {} | {target} | {verdict} |\n",
            self.what,
            number(self.value, self.places),
            self.unit
        )
    }
}

fn number(value: f64, places: usize) -> String {
    if value.abs() < 100.0 {
        format!("{value:.places$}").trim_end_matches(".0").to_owned()
    } else {
        format!("{value:.0}")
    }
}

/// Where curves are drawn.
pub fn charts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks")
}

/// Numbers that belong together.
#[derive(Debug)]
struct Section {
    heading: Option<&'static Heading>,
    rows: Vec<Row>,
}

/// All numbers of a run.
#[derive(Debug)]
pub struct Report {
    sections: Vec<Section>,
    load: String,
    began: Instant,
}

impl Report {
    /// An empty one; the machine's load is what it is now.
    pub fn new() -> Self {
        Self { sections: Vec::new(), load: machine::load(), began: Instant::now() }
    }

    /// What follows belongs here.
    pub fn section(&mut self, heading: &'static Heading) {
        eprintln!("bench: {}, after {:.0} s", heading.title, self.began.elapsed().as_secs_f64());
        self.sections.push(Section { heading: Some(heading), rows: Vec::new() });
    }

    /// Add a number.
    pub fn add(&mut self, row: Row) {
        match self.sections.last_mut() {
            Some(section) => section.rows.push(row),
            None => self.sections.push(Section { heading: None, rows: vec![row] }),
        }
    }

    /// The document.
    pub fn markdown(&self, full: bool) -> String {
        let mut text = format!(
            "# Benchmarks\n\nWritten by `make bench{}`, from one run with real processes on one machine; nothing is \
             edited by hand.\n\n- date: {}\n- machine: {}; load average before: {}\n- version: {}, built as by `make build`\n\
             - the run took {:.0} min\n",
            if full { " FULL=1" } else { "" },
            machine::date(),
            machine::describe(),
            self.load,
            env!("CARGO_PKG_VERSION"),
            self.began.elapsed().as_secs_f64() / 60.0,
        );
        for section in &self.sections {
            if let Some(Heading { title, shares }) = section.heading {
                text += &format!("\n## {title}\n\nOn the machine: {shares}\n");
            }
            text += "\n| what | measured | target | |\n|---|---|---|---|\n";
            text.extend(section.rows.iter().map(Row::line));
        }
        text.push_str(NOTES);
        text
    }

    /// The numbers alone.
    pub fn rows(&self) -> String {
        self.sections.iter().flat_map(|section| &section.rows).map(Row::line).collect()
    }

    /// Write the document; its path.
    pub fn write(&self, full: bool) -> std::io::Result<PathBuf> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks.md");
        std::fs::write(&path, self.markdown(full))?;
        path.canonicalize()
    }
}

const NOTES: &str = "
## How it is measured

- *A turn in the worker*: `tessera-worker bench-turn`, from a decoded batch with 100 offers to the encoded turn.
- *Turns committed*: a client per framework asks the guest `trap` as fast as it is answered; counted is what
  `turns` of the framework grew by. Each has written state, and each entry was synced.
- *Accept to TASK_RUNNING*: time between the two events `TASK_STAGING` (the commit of the accept) and
  `TASK_RUNNING` at one client of `/v1/events`, on the client's monotonic clock. One task at a time, each of
  a framework of its own and 50 ms after the last one, because an agent sends at most one message of statuses
  per 20 ms; the first ones, which find nothing warm, are left out.
- *CPU per placement*: CPU time of each process, from `/proc/<pid>/stat`, over 2,000 short tasks of one framework,
  divided by their number. It includes everything that happens to a task from its offer to the consumption of its end.
  Shims and the tasks themselves are not in it.
- *Counting the guest's time*: the difference to the same turns in code that never looks whether its time is
  up, and the two readings of the thread's clock. *Recording*: a frame each for batch, turn and outcome, written
  and not synced.
- *1,000 Wasm tasks*: of one framework, from the first `TASK_STAGING` to the last `TASK_RUNNING` at one client of
  `/v1/events`, with the image and the worker warm.
- *Schedulers of one tenant, tenants*: from the first request to create one until the last one is `running`, one
  request after the other; memory is what workers grew by. The image is compiled before.
- *8 frameworks at once* are of one tenant, which is paced at 2,000 turns a second unless its limit is raised.
- *Writes of 256 bytes*: three members of one system at a time on loopback, started for this, each with its default
  settings, which sync every write; clients are spread evenly over the members, and write 16 keys each in turn. A client
  sends its next write when the last one is acknowledged, so that what is offered is what is achieved. Members and clients
  share all cores of the machine, and nothing else runs; CPU time is of both, by write. Ours is `PUT
  /v1/frameworks/<framework>/state/<key>`, HTTP/1.1, with token, limits and idempotency as always, on a framework whose
  scheduler runs nowhere; etcd's is `KV/Put` by gRPC, ten clients to a connection; ZooKeeper's is `setData`. Targets are the
  better of the other two in this run. `make bench` counts for 3 s, `make bench FULL=1` for 10 s.
- *Leader fails*: from the signal until a write that was begun afterwards, by a client of either other member, is acknowledged;
  election time-outs are each system's default. 5 rounds, or 30 in a full run.
- *Until a task runs*: the same with a client of either other master that asks the scheduler `launcher` for a task, whose
  command writes a file: what is measured ends there, so that election, the agents' way to the new leader, the scheduler's
  turn, its commit and the start of a process are in it.
- *Until a scheduler answers elsewhere*: from SIGKILL or SIGSTOP of an agent and its workers together until a question to its
  scheduler is answered by an instance of a later epoch on the other agent. Masters place schedulers anew when they have not
  heard of their agent for 6 s, which is in the number. A third of the rounds.
- *Simulated agents*: `tessera sim-agents`, one process, each with a connection, a session and beats of its own; tasks run
  for 5 s and are not really started. One real agent hosts the one scheduler, the guest `load`, which launches up to 8 tasks
  on an offer, keeps no state, and times each task from the turn that launched it to the turn that heard that it runs, by
  the times of turns. One master, beside all others on the same cores. Each rate is kept for 15 s after 6 s (5 s in a short
  run); the first at which less than 80 % of what is offered is placed, or p99 is above 1 s, is the last. The best is the one
  at which the most were placed with a p99 of at most 1 s. CPU per placement is of whatever happens in
  that time, beats and ends of tasks included. A short run has 500 agents, a full one 5,000.
- *Agents fall silent*: SIGSTOP of a process with so many of them, until the leader calls the last one unreachable; no other
  agent may be given up meanwhile.
- *A large state* is made through a master's node and its log. Its agents have no sessions, apart from one that hosts the
  schedulers and 20 that new tasks are placed on. Until another leader has placed a task: the longest time in which the
  scheduler `load` launched a task, heard that it runs, and did so again. A short run has a hundredth of it. *Pauses* are those
  between the events of two commits of placements at a client of `/v1/events`, without a snapshot for 5 s, and then for as long
  as a snapshot is being saved or a master joins, which is sent one and takes it in on the same cores. `load` looks every
  20 ms what is due.
- *Private memory*: `Private_Clean` and `Private_Dirty` of `/proc/<pid>/smaps_rollup`.

Curves of the last full run with 5,000 simulated agents:

![from operation to TASK_RUNNING](benchmarks/placement-latency.svg)
![tasks placed per second](benchmarks/placement-rate.svg)
![CPU per placement](benchmarks/placement-cpu.svg)
";
