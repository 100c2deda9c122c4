//! The book of one-shot commands: what was submitted, what waits, runs and has ended.
//!
//! Invariants: a number is in `waiting` if and only if its task has neither been launched nor
//! ended; `ended` holds exactly the tasks that have an end time. Pure: no call to the host, no
//! clock. The caller writes what the methods say has changed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Ended tasks that are remembered: enough to look up what ran lately, and a small state.
pub const MAX_ENDED: usize = 200;
/// Tasks that wait or run at a time; bounds memory and state.
pub const MAX_ACTIVE: usize = 500;
/// Launches of a task that never started because its offer was gone; after that it is given up.
pub const MAX_DROPS: u32 = 5;
/// Bytes of a status message that are kept, so that a full batch of updates fits into one turn.
pub const MAX_MESSAGE_BYTES: usize = 512;

/// What a client asks to run, as the body of `POST /tasks`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// Program and arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Command for `/bin/sh -c`, instead of `argv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Cores.
    #[serde(default = "default_cpus")]
    pub cpus: f64,
    /// MiB.
    #[serde(default = "default_mem_mib")]
    pub mem_mib: u64,
    /// Environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// A name for people; the command otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

fn default_cpus() -> f64 {
    0.1
}

fn default_mem_mib() -> u64 {
    32
}

impl Submission {
    /// Check what only this framework can know; the host checks the rest when the task is launched.
    pub fn validate(&self) -> Result<(), String> {
        match (&self.argv, &self.shell) {
            (Some(argv), None) if argv.first().is_none_or(String::is_empty) => {
                return Err("`argv` must begin with a program".to_owned());
            }
            (None, Some(shell)) if shell.trim().is_empty() => {
                return Err("`shell` must not be empty".to_owned());
            }
            (Some(_), None) | (None, Some(_)) => {}
            _ => return Err("exactly one of `argv` and `shell` must be given".to_owned()),
        }
        /// No machine has more cores; keeps the conversion to milli-cores exact.
        const MAX_CPUS: f64 = 1_000_000.0;
        if !(self.cpus >= 0.001 && self.cpus <= MAX_CPUS) {
            return Err(format!("`cpus` must be between 0.001 and {MAX_CPUS}"));
        }
        if self.mem_mib == 0 {
            return Err("`mem_mib` must be at least 1".to_owned());
        }
        if self
            .name
            .as_ref()
            .is_some_and(|name| name.is_empty() || name.len() > 255)
        {
            return Err("`name` must have 1 to 255 bytes".to_owned());
        }
        Ok(())
    }

    /// The name for people.
    pub fn display_name(&self) -> String {
        let first = self.argv.as_ref().and_then(|argv| argv.first());
        let name = self.name.as_ref().or(first).or(self.shell.as_ref());
        cut(name.map_or("command", String::as_str), 64)
    }
}

/// The state of a task as it was last heard of, in the form that clients see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Mesos's name of the state, or `PENDING` before a launch.
    pub state: String,
    /// Exit code, when the command exited by itself.
    pub exit_code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// Upper-case reason; may be empty.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Agent that it was launched on, once known.
    pub agent: Option<u64>,
}

impl Status {
    fn pending() -> Self {
        Self {
            state: "PENDING".to_owned(),
            ..Self::default()
        }
    }
}

/// One command, as it is kept in the state under `task/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// For people.
    pub name: String,
    /// Who submitted it.
    pub principal: String,
    /// CPU in thousandths of a core.
    pub cpus_milli: u64,
    /// Memory in MiB.
    pub mem_mib: u64,
    /// When it was submitted.
    pub submitted_ms: u64,
    /// Whether it was handed to the cluster and nothing said yet that it did not start.
    pub launched: bool,
    /// Launches that never started.
    pub drops: u32,
    /// Whether somebody wants it to end.
    pub kill_requested: bool,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// What was last heard of it.
    pub status: Status,
}

/// What became of a task by an update.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Its status is new.
    Updated,
    /// It never started and waits again.
    Requeued,
    /// It ended.
    Ended,
}

/// All tasks by number.
#[derive(Debug, Default)]
pub struct Book {
    tasks: BTreeMap<u64, Task>,
    waiting: BTreeSet<u64>,
    ended: BTreeSet<(u64, u64)>,
}

impl Book {
    /// Add a task read from the state, or a new one.
    pub fn insert(&mut self, number: u64, task: Task) {
        match task.ended_ms {
            Some(ended_ms) => drop(self.ended.insert((ended_ms, number))),
            None if !task.launched => drop(self.waiting.insert(number)),
            None => {}
        }
        self.tasks.insert(number, task);
    }

    /// Look up a task.
    pub fn get(&self, number: u64) -> Option<&Task> {
        self.tasks.get(&number)
    }

    /// Numbers and tasks, newest first, from below `before`.
    pub fn newest_first(&self, before: u64) -> impl Iterator<Item = (u64, &Task)> {
        self.tasks
            .range(..before)
            .rev()
            .map(|(number, task)| (*number, task))
    }

    /// Numbers of the tasks that wait for an offer, oldest first.
    pub fn waiting(&self) -> impl Iterator<Item = u64> {
        self.waiting.iter().copied()
    }

    /// Whether any task waits for an offer.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether no more tasks are taken for now.
    pub fn is_full(&self) -> bool {
        self.tasks.len().saturating_sub(self.ended.len()) >= MAX_ACTIVE
    }

    /// A new task that waits.
    pub fn submit(
        &mut self,
        number: u64,
        submission: &Submission,
        cpus_milli: u64,
        principal: &str,
        now_ms: u64,
    ) {
        let task = Task {
            name: submission.display_name(),
            principal: principal.to_owned(),
            cpus_milli,
            mem_mib: submission.mem_mib,
            submitted_ms: now_ms,
            launched: false,
            drops: 0,
            kill_requested: false,
            ended_ms: None,
            status: Status::pending(),
        };
        self.insert(number, task);
    }

    /// A waiting task was launched.
    pub fn on_launched(&mut self, number: u64) {
        let was_waiting = self.waiting.remove(&number);
        if let Some(task) = self.tasks.get_mut(&number).filter(|_| was_waiting) {
            task.launched = true;
            task.status.state = "TASK_STAGING".to_owned();
        }
    }

    /// Somebody wants the task to end: true if it must be killed, false if it waited and has ended
    /// by this, nothing if it is unknown or had ended before.
    pub fn on_kill(&mut self, number: u64, now_ms: u64) -> Option<bool> {
        let task = self
            .tasks
            .get_mut(&number)
            .filter(|task| task.ended_ms.is_none())?;
        task.kill_requested = true;
        if task.launched {
            return Some(true);
        }
        let status = Status {
            state: "TASK_KILLED".to_owned(),
            message: "killed before it was launched".to_owned(),
            ..Status::default()
        };
        self.end(number, status, now_ms);
        Some(false)
    }

    /// News of the launch `launched_as` of a task. Nothing changes when it is about an older launch
    /// or a task that is unknown or has ended.
    pub fn on_update(
        &mut self,
        launched_as: &str,
        status: Status,
        terminal: bool,
        now_ms: u64,
    ) -> Option<(u64, Change)> {
        let (number, drops) = parse_launch_id(launched_as)?;
        let task = self.tasks.get_mut(&number)?;
        if !task.launched || task.drops != drops || task.ended_ms.is_some() {
            return None;
        }
        let dropped = status.state == "TASK_DROPPED";
        if dropped && !task.kill_requested && task.drops.saturating_add(1) < MAX_DROPS {
            task.drops += 1;
            task.launched = false;
            task.status = Status {
                message: status.message,
                reason: status.reason,
                ..Status::pending()
            };
            self.waiting.insert(number);
            return Some((number, Change::Requeued));
        }
        if terminal {
            self.end(number, status, now_ms);
            return Some((number, Change::Ended));
        }
        task.status = status;
        Some((number, Change::Updated))
    }

    /// End a task with this status.
    pub fn end(&mut self, number: u64, status: Status, now_ms: u64) {
        if let Some(task) = self
            .tasks
            .get_mut(&number)
            .filter(|task| task.ended_ms.is_none())
        {
            task.status = status;
            task.ended_ms = Some(now_ms);
            self.waiting.remove(&number);
            self.ended.insert((now_ms, number));
        }
    }

    /// Forget the oldest ended task if there are too many; call again until there is none.
    pub fn forget_one(&mut self) -> Option<u64> {
        if self.ended.len() <= MAX_ENDED {
            return None;
        }
        let (_, number) = self.ended.pop_first()?;
        self.tasks.remove(&number);
        Some(number)
    }
}

/// The id of a task that clients see.
pub fn task_id(number: u64) -> String {
    format!("run-{number}")
}

/// The number in an id that clients see.
pub fn parse_task_id(id: &str) -> Option<u64> {
    let number = id.strip_prefix("run-")?.parse().ok()?;
    (task_id(number) == id).then_some(number)
}

/// The cluster's id of a launch: the task's own, and a suffix after launches that never started.
pub fn launch_id(number: u64, drops: u32) -> String {
    match drops {
        0 => task_id(number),
        _ => format!("{}.{}", task_id(number), drops.saturating_add(1)),
    }
}

fn parse_launch_id(id: &str) -> Option<(u64, u32)> {
    match id.split_once('.') {
        None => Some((parse_task_id(id)?, 0)),
        Some((task, launch)) => Some((
            parse_task_id(task)?,
            launch.parse::<u32>().ok()?.checked_sub(1)?,
        )),
    }
}

/// At most `limit` bytes of a text, without control characters.
pub fn cut(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if out.len() + character.len_utf8() > limit {
            break;
        }
        out.push(if character.is_control() {
            ' '
        } else {
            character
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{
        Book, Change, MAX_DROPS, MAX_ENDED, Status, Submission, cut, launch_id, parse_launch_id,
        parse_task_id,
    };

    fn submission(json: &str) -> Result<Submission, String> {
        let submission: Submission =
            serde_json::from_str(json).map_err(|error| error.to_string())?;
        submission.validate().map(|()| submission)
    }

    fn status(state: &str) -> Status {
        Status {
            state: state.to_owned(),
            ..Status::default()
        }
    }

    fn book_with(numbers: std::ops::RangeInclusive<u64>) -> Book {
        let mut book = Book::default();
        for number in numbers {
            book.submit(
                number,
                &submission(r#"{"shell":"true"}"#).unwrap(),
                100,
                "admin",
                1,
            );
        }
        book
    }

    #[test]
    fn submissions_are_checked() {
        assert!(submission(r#"{"argv":["ls","-l"]}"#).is_ok());
        for bad in [
            r#"{}"#,
            r#"{"argv":[]}"#,
            r#"{"argv":[""]}"#,
            r#"{"shell":" "}"#,
            r#"{"argv":["ls"],"shell":"ls"}"#,
            r#"{"shell":"ls","cpus":0}"#,
            r#"{"shell":"ls","cpus":-1}"#,
            r#"{"shell":"ls","cpus":1e9}"#,
            r#"{"shell":"ls","mem_mib":0}"#,
            r#"{"shell":"ls","surprise":1}"#,
        ] {
            assert!(submission(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_read_back_exactly() {
        assert_eq!(parse_task_id("run-17"), Some(17));
        for bad in ["run-017", "run-+1", "run-", "17", "run-1.2"] {
            assert_eq!(parse_task_id(bad), None, "{bad}");
        }
        assert_eq!(parse_launch_id(&launch_id(17, 0)), Some((17, 0)));
        assert_eq!(parse_launch_id(&launch_id(17, 2)), Some((17, 2)));
    }

    #[test]
    fn a_dropped_launch_waits_again_under_a_new_id_a_bounded_number_of_times() {
        let mut book = book_with(1..=1);
        for drops in 0..MAX_DROPS - 1 {
            book.on_launched(1);
            assert!(!book.has_waiting());
            let id = launch_id(1, drops);
            let change = book.on_update(&id, status("TASK_DROPPED"), true, 5);
            assert_eq!(change, Some((1, Change::Requeued)), "launch {id}");
            assert_eq!(
                book.on_update(&id, status("TASK_RUNNING"), false, 5),
                None,
                "news of an older launch"
            );
        }
        book.on_launched(1);
        let last = book.on_update(
            &launch_id(1, MAX_DROPS - 1),
            status("TASK_DROPPED"),
            true,
            6,
        );
        assert_eq!(last, Some((1, Change::Ended)));
        assert_eq!(book.get(1).unwrap().status.state, "TASK_DROPPED");
    }

    #[test]
    fn kills_end_what_waits_and_reach_what_runs() {
        let mut book = book_with(1..=2);
        book.on_launched(2);
        assert_eq!(book.on_kill(1, 9), Some(false));
        assert_eq!(book.on_kill(1, 9), None, "it has ended");
        assert_eq!(book.on_kill(2, 9), Some(true));
        assert_eq!(book.on_kill(3, 9), None);
        let change = book.on_update("run-2", status("TASK_DROPPED"), true, 9);
        assert_eq!(
            change,
            Some((2, Change::Ended)),
            "what is to be killed is not launched again"
        );
    }

    #[test]
    fn only_the_last_ended_tasks_are_kept() {
        let extra = 7;
        let mut book = book_with(1..=MAX_ENDED as u64 + extra);
        for number in 1..=MAX_ENDED as u64 + extra {
            book.end(number, status("TASK_FINISHED"), 1_000 - number);
        }
        let forgotten: Vec<u64> = std::iter::from_fn(|| book.forget_one()).collect();
        assert_eq!(forgotten.len() as u64, extra);
        assert_eq!(
            forgotten.first(),
            Some(&(MAX_ENDED as u64 + extra)),
            "the one that ended first"
        );
        assert_eq!(book.newest_first(u64::MAX).count(), MAX_ENDED);
    }

    #[test]
    fn messages_are_cut_at_characters() {
        assert_eq!(cut("äöü", 3), "ä");
        assert_eq!(cut("a\nb", 9), "a b");
    }
}
