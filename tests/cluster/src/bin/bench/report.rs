//! The rows of docs/benchmarks.md.
//!
//! Must never leave out a row because its target was missed.

use crate::machine;
use std::path::{Path, PathBuf};

/// What a number should be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// No more than this.
    AtMost(f64),
}

/// One number.
#[derive(Clone, Debug)]
pub struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    target: Option<Target>,
}

impl Row {
    /// A number without a target.
    pub fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            value,
            unit,
            target: None,
        }
    }

    /// The same with a target.
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    fn line(&self) -> String {
        let (target, verdict) = match self.target {
            Some(Target::AtMost(most)) => (
                format!("≤ {} {}", number(most), self.unit),
                if self.value <= most {
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
            number(self.value),
            self.unit
        )
    }
}

fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        format!("{value:.1}").trim_end_matches(".0").to_owned()
    } else {
        format!("{value:.0}")
    }
}

/// All numbers of a run.
#[derive(Debug)]
pub struct Report {
    rows: Vec<Row>,
    load: String,
}

impl Report {
    /// An empty one; the machine's load is what it is now.
    pub fn new() -> Self {
        Self {
            rows: Vec::new(),
            load: machine::load(),
        }
    }

    /// Add a number.
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// The document.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# Benchmarks\n\nWritten by `make bench`, from one run on a real cluster of `tessera dev`; nothing is \
             edited by hand.\n\n- date: {}\n- machine: {}; load average before: {}\n- version: {}, built as by `make build`\n\n\
             | what | measured | target | |\n|---|---|---|---|\n",
            machine::date(),
            machine::describe(),
            self.load,
            env!("CARGO_PKG_VERSION"),
        );
        text.push_str(&self.rows());
        text.push_str(NOTES);
        text
    }

    /// The numbers alone.
    pub fn rows(&self) -> String {
        self.rows.iter().map(Row::line).collect()
    }

    /// Write the document; its path.
    pub fn write(&self) -> std::io::Result<PathBuf> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks.md");
        std::fs::write(&path, self.markdown())?;
        path.canonicalize()
    }
}

const NOTES: &str = "
How it is measured:

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
- *Private memory*: `Private_Clean` and `Private_Dirty` of `/proc/<pid>/smaps_rollup`.
";
