//! The demo's executor: counts the words of a task's data twice, with a native child and with a Wasm
//! child, and ends the task with the counts only if both are the same.
//!
//! Configuration: `wasm-task` is the digest of the component `wordcount-task`; `pace-ms` makes each child
//! wait so long before it counts, so that there is time to disturb it.
//!
//! State, which outlives the instance, its worker and its agent: `task/ID` how far a task is, `counts/ID`
//! what its first child counted. A child that was lost with its worker is started again under another
//! name, at most [`MAX_TRIES`] times.

use serde::{Deserialize, Serialize};
use tessera_sdk::executor::{ChildStatus, Event, Executor, Turn, state};
use tessera_sdk::{Config, Error, TaskSpec, TaskState};

/// Starts of one child: bounds what a machine that loses everything can cost.
const MAX_TRIES: u32 = 10;
/// Memory of a child, in MiB: what `sort` or a small component needs.
const CHILD_MEM_MIB: u64 = 32;
/// Time that a child has to end by itself.
const GRACE_MS: u32 = 1_000;

/// Who counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Native,
    Wasm,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Native, Self::Wasm];

    const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Wasm => "wasm",
        }
    }
}

/// How far one child is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Child {
    /// How often it was started.
    tries: u32,
    ended: bool,
}

/// How far a task is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Task {
    native: Child,
    wasm: Child,
    /// Why the task ends without counts, once that is certain.
    given_up: Option<String>,
    killed: bool,
}

impl Task {
    const fn child(&mut self, side: Side) -> &mut Child {
        match side {
            Side::Native => &mut self.native,
            Side::Wasm => &mut self.wasm,
        }
    }

    const fn is_over(&self) -> bool {
        self.native.ended && self.wasm.ended
    }
}

struct Twice {
    wasm_task: String,
    pace_ms: u64,
}

tessera_sdk::executor!(Twice);

impl Executor for Twice {
    fn init(config: &Config) -> Result<Self, Error> {
        Ok(Self {
            wasm_task: config.require("wasm-task")?.to_owned(),
            pace_ms: config.parse_or("pace-ms", 0)?,
        })
    }

    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
        match event {
            Event::Launch(launch) => self.launch(turn, &launch.task, launch.data()),
            Event::LaunchGroup(launches) => launches
                .iter()
                .try_for_each(|launch| self.launch(turn, &launch.task, launch.data())),
            Event::Kill(kill) => kill_children(turn, &kill.task),
            Event::Child(child) if child.status.state.is_terminal() => self.on_ended(turn, child),
            _ => Ok(()),
        }
    }
}

impl Twice {
    fn launch(&self, turn: &mut Turn, task: &str, input: &[u8]) -> Result<(), Error> {
        state::set_bytes(&input_key(task), input)?;
        let mut record = Task::default();
        for side in Side::BOTH {
            self.start(turn, task, &mut record, side, input)?;
        }
        state::set(&task_key(task), &record)?;
        turn.status(task, TaskState::Running, "")
    }

    fn start(
        &self,
        turn: &mut Turn,
        task: &str,
        record: &mut Task,
        side: Side,
        input: &[u8],
    ) -> Result<(), Error> {
        let child = record.child(side);
        child.tries += 1;
        let spec = match side {
            Side::Native => {
                // A pipeline ends as its last command does, so what could fail first is tested.
                let sleep = format!("sleep {}.{:03}", self.pace_ms / 1000, self.pace_ms % 1000);
                TaskSpec::shell(format!(
                    "export LC_ALL=C && {sleep} && test -s input && \
                     tr -cs 'A-Za-z' '\\n' < input | tr 'A-Z' 'a-z' | sort -S 4M | uniq -c > counts"
                ))
            }
            Side::Wasm => TaskSpec::wasm(&self.wasm_task, ["input", "counts"])
                .env("PACE_MS", self.pace_ms.to_string()),
        };
        let spec = spec
            .cpus(0.05)
            .mem_mib(CHILD_MEM_MIB)
            .file("input", input)
            .result_file("counts");
        turn.start_child(&child_name(side, child.tries, task), spec)
    }

    fn on_ended(&self, turn: &mut Turn, ended: ChildStatus) -> Result<(), Error> {
        let Some((side, tries, task)) = parse_child_name(&ended.child) else {
            return Ok(());
        };
        let Some(mut record) = state::get::<Task>(&task_key(task))? else {
            return Ok(());
        };
        let child = record.child(side).clone();
        if child.tries != tries || child.ended {
            return Ok(());
        }
        let lost = ended.status.state == TaskState::Lost || ended.status.reason == "WORKER_LOST";
        if lost && child.tries < MAX_TRIES && record.given_up.is_none() && !record.killed {
            let input = state::get_bytes(&input_key(task)).unwrap_or_default();
            self.start(turn, task, &mut record, side, &input)?;
            return state::set(&task_key(task), &record);
        }
        record.child(side).ended = true;
        if ended.status.state == TaskState::Finished {
            match (state::get_bytes(&counts_key(task)), normal(&ended.status.data)) {
                (None, counts) => state::set_bytes(&counts_key(task), counts.as_bytes())?,
                (Some(first), second) if first == second.as_bytes() => {}
                (Some(_), _) => record.given_up = Some("the two children count differently".into()),
            }
        } else if record.given_up.is_none() {
            let status = &ended.status;
            record.given_up = Some(format!(
                "the {} child ended {:?} {}: {}",
                side.name(),
                status.state,
                status.reason,
                status.message
            ));
            let other = if side == Side::Native { Side::Wasm } else { Side::Native };
            let child = record.child(other);
            if !child.ended {
                turn.stop_child(&child_name(other, child.tries, task), GRACE_MS)?;
            }
        }
        if record.is_over() { finish(turn, task, &record) } else { state::set(&task_key(task), &record) }
    }
}

/// Both children have ended: so does the task.
fn finish(turn: &mut Turn, task: &str, record: &Task) -> Result<(), Error> {
    let counts = state::get_bytes(&counts_key(task)).unwrap_or_default();
    for key in [task_key(task), input_key(task), counts_key(task)] {
        state::delete(&key)?;
    }
    match &record.given_up {
        _ if record.killed => turn.status(task, TaskState::Killed, ""),
        Some(reason) => turn.status(task, TaskState::Failed, reason),
        None => turn.end_task(task, TaskState::Finished, "", counts),
    }
}

/// Stop what runs of a task; it ends with its children.
fn kill_children(turn: &mut Turn, task: &str) -> Result<(), Error> {
    let Some(mut record) = state::get::<Task>(&task_key(task))? else {
        return Ok(());
    };
    record.killed = true;
    for side in Side::BOTH {
        let child = record.child(side);
        if !child.ended {
            turn.stop_child(&child_name(side, child.tries, task), GRACE_MS)?;
        }
    }
    state::set(&task_key(task), &record)
}

/// Lines `<count> <word>` sorted by word, without the blanks and the empty word of coreutils.
fn normal(output: &[u8]) -> String {
    let output = String::from_utf8_lossy(output);
    let mut lines: Vec<(&str, &str)> = output
        .lines()
        .filter_map(|line| line.trim_start().split_once(' '))
        .filter(|(_, word)| !word.is_empty())
        .collect();
    lines.sort_by_key(|(_, word)| *word);
    lines
        .iter()
        .map(|(count, word)| format!("{count} {word}\n"))
        .collect()
}

fn child_name(side: Side, tries: u32, task: &str) -> String {
    format!("{}.{tries}.{task}", side.name())
}

fn parse_child_name(name: &str) -> Option<(Side, u32, &str)> {
    let (side, rest) = name.split_once('.')?;
    let (tries, task) = rest.split_once('.')?;
    let side = Side::BOTH.into_iter().find(|known| known.name() == side)?;
    Some((side, tries.parse().ok()?, task))
}

fn task_key(task: &str) -> String {
    format!("task/{task}")
}

fn input_key(task: &str) -> String {
    format!("input/{task}")
}

fn counts_key(task: &str) -> String {
    format!("counts/{task}")
}

#[cfg(test)]
mod tests {
    use super::{GRACE_MS, Side, Twice, child_name, normal, parse_child_name};
    use tessera_sdk::TaskState;
    use tessera_sdk::executor::testing::{Call, Harness, launch};
    use tessera_sdk::executor::{ChildStatus, Event, TaskKill};
    use tessera_sdk::testing::status;

    const TASK: &str = "chunk-12.3";

    #[test]
    fn counts_are_compared_without_what_coreutils_add() {
        assert_eq!(normal(b"      1 \n      2 b\n     10 a\n"), "10 a\n2 b\n");
        assert_eq!(normal(b"10 a\n2 b\n"), "10 a\n2 b\n");
    }

    #[test]
    fn names_of_children_say_whose_they_are() {
        let name = child_name(Side::Wasm, 2, TASK);
        assert_eq!(parse_child_name(&name), Some((Side::Wasm, 2, TASK)));
        assert_eq!(parse_child_name("else"), None);
    }

    fn executor() -> Harness<Twice> {
        let mut executor = Harness::new(&[("wasm-task", "sha256:00")]).unwrap();
        let calls = executor.turn([Event::Launch(launch(TASK, b"b a b"))]).unwrap();
        assert_eq!(started(&calls), ["native.1.chunk-12.3", "wasm.1.chunk-12.3"]);
        executor
    }

    fn started(calls: &[Call]) -> Vec<&str> {
        let names = calls.iter().filter_map(|call| match call {
            Call::StartChild(name, spec) => {
                assert_eq!(spec.result_file.as_deref(), Some("counts"));
                Some(name.as_str())
            }
            _ => None,
        });
        names.collect()
    }

    fn ended(child: &str, state: TaskState, reason: &str, data: &[u8]) -> Event {
        let mut status = status(child, state);
        status.reason = reason.to_owned();
        status.data = data.to_vec();
        Event::Child(ChildStatus { child: child.to_owned(), status })
    }

    fn outcome(calls: &[Call]) -> Option<(TaskState, Vec<u8>)> {
        calls.iter().find_map(|call| match call {
            Call::Status(task, state, _, data) => {
                assert_eq!(task, TASK);
                Some((*state, data.clone()))
            }
            _ => None,
        })
    }

    #[test]
    fn a_task_is_finished_when_both_children_count_the_same() {
        let mut executor = executor();
        let native = ended("native.1.chunk-12.3", TaskState::Finished, "", b"  1 a\n  2 b\n");
        assert_eq!(outcome(&executor.turn([native]).unwrap()), None);
        // What the first child counted is not lost with the instance.
        executor.restart().unwrap();
        let wasm = ended("wasm.1.chunk-12.3", TaskState::Finished, "", b"1 a\n2 b\n");
        let calls = executor.turn([wasm.clone()]).unwrap();
        assert_eq!(outcome(&calls), Some((TaskState::Finished, b"1 a\n2 b\n".to_vec())));
        assert!(executor.state().is_empty(), "nothing is left of the task");
        assert!(executor.turn([wasm]).unwrap().is_empty(), "a child that is told of twice");
    }

    #[test]
    fn a_task_fails_when_they_differ_or_one_fails() {
        let mut differing = executor();
        let native = ended("native.1.chunk-12.3", TaskState::Finished, "", b"1 a\n");
        let wasm = ended("wasm.1.chunk-12.3", TaskState::Finished, "", b"2 a\n");
        let calls = differing.turn([native, wasm]).unwrap();
        assert_eq!(outcome(&calls), Some((TaskState::Failed, Vec::new())));
        drop(differing);

        let mut failing = executor();
        let native = ended("native.1.chunk-12.3", TaskState::Failed, "COMMAND_EXITED", b"");
        let calls = failing.turn([native]).unwrap();
        assert_eq!(calls, [Call::StopChild("wasm.1.chunk-12.3".into(), GRACE_MS)]);
        let wasm = ended("wasm.1.chunk-12.3", TaskState::Killed, "", b"");
        let calls = failing.turn([wasm]).unwrap();
        assert_eq!(outcome(&calls), Some((TaskState::Failed, Vec::new())));
    }

    #[test]
    fn a_child_that_was_lost_is_started_again() {
        let mut executor = executor();
        let lost = ended("wasm.1.chunk-12.3", TaskState::Failed, "WORKER_LOST", b"");
        let calls = executor.turn([lost.clone()]).unwrap();
        assert_eq!(started(&calls), ["wasm.2.chunk-12.3"]);
        assert!(executor.turn([lost]).unwrap().is_empty(), "a child that is told of twice");
    }

    #[test]
    fn a_killed_task_ends_with_its_children() {
        let mut executor = executor();
        let kill = TaskKill { task: TASK.to_owned(), grace_ms: 10 };
        let calls = executor.turn([Event::Kill(kill)]).unwrap();
        assert_eq!(calls.len(), 2, "{calls:?}");
        let native = ended("native.1.chunk-12.3", TaskState::Killed, "", b"");
        let wasm = ended("wasm.1.chunk-12.3", TaskState::Finished, "", b"1 a\n");
        let calls = executor.turn([native, wasm]).unwrap();
        assert_eq!(outcome(&calls), Some((TaskState::Killed, Vec::new())));
    }
}
