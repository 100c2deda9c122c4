//! Custom executors in a worker: what a guest would do, in plain Rust, and the instance around it.
//!
//! Owns: what the data of a task makes its executor do. Invariants: an instance remembers nothing but its
//! durable state; every turn adds one to `count`; one turn is outstanding at most, and its writes count
//! only when it is kept. Must never know which life of its executor it is.

use crate::model::{Hosted, child_spec};
use std::collections::BTreeMap;
use tessera_types::{TaskBody, TaskSpec, TaskState};
use tessera_wire::v1::{self, executor_event::Event, executor_operation::Operation};

/// Key of the number of turns that were kept.
const COUNT_KEY: &str = "count";
/// Key of the last message that came.
const GOT_KEY: &str = "got";
/// Prefix of the keys of tasks.
const TASK_PREFIX: &str = "task/";
/// Prefix of the ids of children: the rest is the task for which one works.
pub(crate) const CHILD_PREFIX: &str = "c-";

/// What is noted of a task that a timer ends.
const TIMER: &str = "timer";
/// Of one that its child's end ends.
const CHILD: &str = "child";
/// Of one whose child was told to end.
const KILLED: &str = "killed";

/// Names an executor on an agent.
pub(crate) type Name = (u64, String);

/// The name in a message.
pub(crate) fn name_of(key: Option<v1::ExecutorKey>) -> Name {
    let key = key.unwrap_or_default();
    (key.framework, key.executor)
}

/// What an instance is doing.
#[derive(Debug)]
pub(crate) enum Phase {
    /// It is being built.
    Building,
    /// It waits for a batch.
    Idle,
    /// It handles one.
    Handling(v1::ExecutorBatch),
    /// Its turn waits until it is kept.
    Outstanding(v1::ExecutorTurn),
}

/// One instance.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) phase: Phase,
    state: BTreeMap<String, Vec<u8>>,
    pub(crate) next_turn: u64,
    /// Of the thing that is waited for.
    pub(crate) serial: u64,
}

/// A turn while it is made.
struct Draft {
    time_ms: u64,
    state: BTreeMap<String, Vec<u8>>,
    writes: BTreeMap<String, Option<Vec<u8>>>,
    operations: Vec<Operation>,
    wrong: Option<String>,
}

impl Instance {
    /// What begins with this message, or what is wrong with it.
    pub(crate) fn new(start: v1::StartExecutor, serial: u64) -> Result<Self, String> {
        let entries = start.state.into_iter();
        let state: BTreeMap<String, Vec<u8>> =
            entries.filter_map(|write| Some((write.key, write.value?))).collect();
        let kept = number(&state, COUNT_KEY);
        if kept + 1 != start.next_turn {
            let next = start.next_turn;
            return Err(format!("an executor begins with the state of {kept} turns and turn {next}"));
        }
        Ok(Self { phase: Phase::Building, state, next_turn: start.next_turn, serial })
    }

    /// Handle the batch at hand.
    pub(crate) fn handle(&mut self, key: &Name) -> Result<v1::ExecutorTurn, String> {
        let Phase::Handling(batch) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Err("an executor has no batch to handle".to_owned());
        };
        let mut draft = Draft {
            time_ms: batch.time_ms,
            state: self.state.clone(),
            writes: BTreeMap::new(),
            operations: Vec::new(),
            wrong: None,
        };
        for event in batch.events.into_iter().filter_map(|event| event.event) {
            draft.event(event);
        }
        let count = number(&draft.state, COUNT_KEY) + 1;
        draft.write(COUNT_KEY, Some(count.to_string()));
        if let Some(wrong) = draft.wrong {
            return Err(wrong);
        }
        let operations = draft.operations.into_iter();
        let turn = v1::ExecutorTurn {
            key: Some(v1::ExecutorKey { framework: key.0, executor: key.1.clone() }),
            number: batch.number,
            operations: operations
                .map(|operation| v1::ExecutorOperation { operation: Some(operation) })
                .collect(),
            writes: draft.writes.into_iter().map(|(key, value)| v1::KeyWrite { key, value }).collect(),
        };
        self.phase = Phase::Outstanding(turn.clone());
        Ok(turn)
    }

    /// A turn is kept. Returns whether it is the outstanding one.
    pub(crate) fn on_kept(&mut self, number: u64) -> bool {
        let Phase::Outstanding(turn) = &self.phase else { return false };
        if turn.number != number {
            return false;
        }
        for write in &turn.writes {
            match &write.value {
                Some(value) => self.state.insert(write.key.clone(), value.clone()),
                None => self.state.remove(&write.key),
            };
        }
        self.next_turn = number + 1;
        self.phase = Phase::Idle;
        true
    }
}

fn number(state: &BTreeMap<String, Vec<u8>>, key: &str) -> u64 {
    let text = state.get(key).and_then(|value| std::str::from_utf8(value).ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl Draft {
    fn write(&mut self, key: &str, value: Option<String>) {
        let value = value.map(String::into_bytes);
        match &value {
            Some(value) => self.state.insert(key.to_owned(), value.clone()),
            None => self.state.remove(key),
        };
        self.writes.insert(key.to_owned(), value);
    }

    /// What it noted of a task that it has.
    fn task(&self, task: &str) -> Option<String> {
        let text = self.state.get(&format!("{TASK_PREFIX}{task}"))?;
        String::from_utf8(text.clone()).ok()
    }

    fn note(&mut self, task: &str, text: Option<&str>) {
        self.write(&format!("{TASK_PREFIX}{task}"), text.map(str::to_owned));
    }

    fn say(&mut self, task: &str, state: TaskState) {
        self.operations.push(Operation::Status(v1::ExecutorStatus {
            task: task.to_owned(),
            state: v1::TaskState::from(state).into(),
            ..v1::ExecutorStatus::default()
        }));
        if state.is_terminal() {
            self.note(task, None);
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Started(started) => {
                started.children.into_iter().for_each(|child| self.child(child));
            }
            Event::Launch(launch) => self.launch(launch),
            Event::LaunchGroup(group) => {
                group.launches.into_iter().for_each(|launch| self.launch(launch));
            }
            Event::Kill(kill) => self.kill(&kill),
            Event::Message(data) => self.message(data),
            Event::Child(child) => self.child(child),
            Event::Timer(id) => {
                if self.task(&id).is_some() {
                    self.say(&id, TaskState::Finished);
                }
            }
            Event::ShutdownMs(_) => self.operations.push(Operation::Finish(v1::Empty {})),
            Event::Again(_) => {}
        }
    }

    fn launch(&mut self, launch: v1::ExecutorLaunch) {
        let task = launch.task;
        let spec = launch.spec.and_then(|spec| TaskSpec::try_from(spec).ok());
        let hosted = spec.and_then(|spec| match spec.body {
            TaskBody::Executor(task) => Hosted::parse(&task.data),
            TaskBody::Native(_) | TaskBody::Wasm { .. } => None,
        });
        let Some(hosted) = hosted else {
            self.wrong = Some(format!("{task} is no task for an executor"));
            return;
        };
        if self.task(&task).is_some() {
            self.wrong = Some(format!("{task} is launched twice in one life of its executor"));
            return;
        }
        self.say(&task, TaskState::Running);
        match child_spec(hosted) {
            None => {
                self.note(&task, Some(TIMER));
                let due_ms = self.time_ms + hosted.run_ms;
                self.operations.push(Operation::SetTimer(v1::ExecutorTimer { id: task, due_ms, ..v1::ExecutorTimer::default() }));
            }
            Some(spec) => {
                self.note(&task, Some(CHILD));
                let child = format!("{CHILD_PREFIX}{task}");
                self.operations.push(Operation::StartChild(v1::StartChild { child, spec }));
            }
        }
    }

    fn kill(&mut self, kill: &v1::ExecutorKill) {
        match self.task(&kill.task).as_deref() {
            Some(TIMER) => {
                self.operations.push(Operation::CancelTimer(kill.task.clone()));
                self.say(&kill.task, TaskState::Killed);
            }
            Some(_) => {
                let child = format!("{CHILD_PREFIX}{}", kill.task);
                let grace_ms = kill.grace_ms;
                self.operations.push(Operation::StopChild(v1::StopChild { child, grace_ms }));
                self.note(&kill.task, Some(KILLED));
            }
            None => {}
        }
    }

    fn child(&mut self, child: v1::ChildStatus) {
        let Some(task) = child.child.strip_prefix(CHILD_PREFIX).map(str::to_owned) else { return };
        let status = child.status.unwrap_or_default();
        let Ok(state) = TaskState::try_from(status.state()) else { return };
        let Some(noted) = self.task(&task).filter(|_| state.is_terminal()) else { return };
        self.say(
            &task,
            match state {
                TaskState::Finished => TaskState::Finished,
                _ if noted == KILLED => TaskState::Killed,
                _ => TaskState::Failed,
            },
        );
    }

    fn message(&mut self, data: Vec<u8>) {
        let text = String::from_utf8_lossy(&data).into_owned();
        let sent: u64 = text.parse().unwrap_or(0);
        let got = number(&self.state, GOT_KEY);
        if sent <= got {
            self.wrong = Some(format!("message {sent} reaches an executor after message {got}"));
            return;
        }
        self.write(GOT_KEY, Some(sent.to_string()));
        self.operations.push(Operation::Send(data));
    }
}
