//! What tests of the core share: an agent that is driven by hand, and actions as lines of text.
#![allow(dead_code, reason = "each test binary uses a part")]

use tessera_agent_core::{
    Action, Core, CoreConfig, NativeExit, NativeObservation as Seen, Now, TaskKey,
    WorkerHello, WorkerKey, WorkerKind,
};
use tessera_types::{
    AgentId, Digest, FrameworkId, Launch, NativeCommand, Quantities, Resources, TaskBody, TaskSpec,
};
use tessera_wire::v1;
use v1::TaskState as S;
use v1::to_worker::Message as ToWorker;
use v1::agent_message::Message;

pub const CONFIG: CoreConfig = CoreConfig::new(Resources::of(Quantities {
    cpus_milli: 1_000,
    mem_mib: 1_000,
    disk_mib: 0,
}));

/// A core, its checkpoint and a clock.
pub struct Agent {
    pub core: Core,
    pub records: Vec<v1::CheckpointRecord>,
    pub now: Now,
}

pub fn spec(body: TaskBody) -> TaskSpec {
    TaskSpec {
        name: "n".into(),
        body,
        resources: Quantities { cpus_milli: 100, mem_mib: 10, disk_mib: 0 }.into(),
        revocable: false,
        cpus_limit_milli: None,
        pids_limit: None,
        user: None,
        env: vec![],
        files: vec![],
        result_file: None,
        grace_ms: None,
        restarts: 0,
        labels: vec![],
    }
}

pub fn native() -> TaskSpec {
    spec(TaskBody::Native(NativeCommand::Shell("true".into())))
}

pub fn wasm() -> TaskSpec {
    spec(TaskBody::Wasm {
        component: Digest::of(b"wasm"),
        args: vec![],
    })
}

pub fn key(task: &str) -> TaskKey {
    TaskKey::of(FrameworkId(1), task.parse().unwrap())
}

pub fn desired_task(task: &str, spec: &TaskSpec) -> v1::DesiredTask {
    let encoded = tessera_wire::encode_spec(spec);
    let launch = Launch {
        task: task.parse().unwrap(),
        spec: Digest::of(&encoded),
        args: vec![],
        env: vec![],
    };
    v1::DesiredTask {
        framework: 1,
        role: "eng/web".into(),
        launch: Some((&launch).into()),
        spec: encoded,
        kill_grace_ms: None, ..Default::default() }
}

pub fn kill(task: &str, spec: &TaskSpec, grace_ms: u64) -> v1::DesiredTask {
    v1::DesiredTask {
        kill_grace_ms: Some(grace_ms),
        ..desired_task(task, spec)
    }
}

pub fn tasks_worker() -> WorkerKey {
    WorkerKey::new("eng", WorkerKind::Tasks)
}

pub fn schedulers_worker() -> WorkerKey {
    WorkerKey::new("eng", WorkerKind::Schedulers)
}

pub fn hello(process: &str) -> WorkerHello {
    WorkerHello {
        process: process.into(),
        engine: "E".into(),
        instances: vec![],
        tasks: vec![],
        executors: vec![],
    }
}

pub fn wasm_state(task: &str, state: S) -> v1::WasmTaskState {
    v1::WasmTaskState {
        framework: 1,
        task: task.into(),
        attempt: 1,
        state: state.into(),
        ..Default::default()
    }
}

impl Agent {
    pub fn new() -> Self {
        let now = Now {
            mono_ms: 1_000,
            wall_ms: 1_000_000,
        };
        let mut agent = Self {
            core: Core::new(CONFIG, AgentId(0)),
            records: vec![],
            now,
        };
        agent.register();
        agent
    }

    pub fn register(&mut self) -> Vec<String> {
        let actions = self.core.on_registered(AgentId(1), true, self.now);
        self.take(actions)
    }

    /// Keep records; everything else as text, one line per action.
    pub fn take(&mut self, actions: Vec<Action>) -> Vec<String> {
        let mut lines = Vec::new();
        for (index, action) in actions.into_iter().enumerate() {
            if let Action::Checkpoint { records, sync } = action {
                assert_eq!(index, 0, "a checkpoint comes first");
                lines.push(format!(
                    "checkpoint {}{}",
                    records.len(),
                    if sync { " sync" } else { "" }
                ));
                self.records.extend(records);
            } else if !matches!(action, Action::SizeWorker { .. }) {
                // Sizes follow from what workers have, which the other lines say.
                lines.push(show(&action));
            }
        }
        assert!(
            self.core.wake_ms().is_none_or(|at| at > self.now.mono_ms),
            "nothing is overdue: {lines:?}"
        );
        lines
    }

    pub fn desire(&mut self, full: bool, generation: u64, tasks: Vec<v1::DesiredTask>) -> Vec<String> {
        let desired = v1::Desired {
            generation,
            full,
            tasks,
            removed: vec![],
            instances: vec![], ..Default::default() };
        let actions = self.core.on_desired(desired, self.now);
        self.take(actions)
    }

    pub fn see(&mut self, task: &str, attempt: u32, seen: Seen) -> Vec<String> {
        let actions = self.core.on_native(&key(task), attempt, seen, self.now);
        self.take(actions)
    }

    pub fn exit(&mut self, task: &str, attempt: u32, code: i32) -> Vec<String> {
        self.see(
            task,
            attempt,
            Seen::Exited(NativeExit {
                code: Some(code),
                ..NativeExit::default()
            }),
        )
    }

    pub fn pass(&mut self, ms: u64) -> Vec<String> {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
        let actions = self.core.on_tick(self.now);
        self.take(actions)
    }

    pub fn ack(&mut self, task: &str, sequence: u64) -> Vec<String> {
        let acks = vec![v1::StatusAck {
            framework: 1,
            task: task.into(),
            sequence,
        }];
        let actions = self.core.on_status_acks(acks, self.now);
        self.take(actions)
    }

    /// The process dies and a new one reads the checkpoint.
    pub fn crash(&mut self) -> Vec<String> {
        let records = self.records.clone().into_iter();
        let (core, actions) = Core::recover(CONFIG, AgentId(1), records, self.now).unwrap();
        let (again, same) =
            Core::recover(CONFIG, AgentId(1), core.compacted().into_iter(), self.now).unwrap();
        assert_eq!(
            again.compacted(),
            core.compacted(),
            "compaction loses nothing"
        );
        assert_eq!(
            actions
                .iter()
                .filter(|a| !matches!(a, Action::Checkpoint { .. }))
                .collect::<Vec<_>>(),
            same.iter()
                .filter(|a| !matches!(a, Action::Checkpoint { .. }))
                .collect::<Vec<_>>()
        );
        self.core = core;
        self.take(actions)
    }

    pub fn worker_up(&mut self, worker: &WorkerKey, hello: WorkerHello) -> Vec<String> {
        let actions = self.core.on_worker_up(worker, hello, self.now);
        self.take(actions)
    }

    pub fn supply_wasm(&mut self) -> Vec<String> {
        let actions = self
            .core
            .on_component(Digest::of(b"wasm"), Ok(()), self.now);
        self.take(actions);
        let actions = self
            .core
            .on_image(Digest::of(b"wasm"), "E".into(), Ok(()), self.now);
        self.take(actions)
    }

    pub fn wasm_says(&mut self, state: v1::WasmTaskState) -> Vec<String> {
        let actions = self
            .core
            .on_wasm(&tasks_worker(), state, Ok(vec![]), self.now);
        self.take(actions)
    }
}

pub fn show(action: &Action) -> String {
    match action {
        Action::Checkpoint { .. } => unreachable!(),
        Action::Send(message) => show_message(message),
        Action::StartNative { key, attempt, .. } => format!("start {key} {attempt}"),
        Action::InspectNative { key, attempt, .. } => format!("inspect {key} {attempt}"),
        Action::CancelNative { key, attempt, .. } => format!("cancel {key} {attempt}"),
        Action::SignalNative {
            key,
            attempt,
            force,
        } => {
            format!("{} {key} {attempt}", if *force { "kill" } else { "term" })
        }
        Action::StartWasm {
            key,
            attempt,
            worker,
            ..
        } => {
            format!(
                "start-wasm {key} {attempt} on {}/{}",
                worker.tenant,
                worker.kind.name()
            )
        }
        Action::Prepare { key, attempt, .. } => format!("prepare {key} {attempt}"),
        Action::UpdateInstance { instance, .. } => {
            format!("update f{} e{}", instance.framework, instance.epoch)
        }
        Action::LimitExecutor {
            executor,
            life,
            total,
        } => format!("limit {executor} {life} to {total}"),
        Action::StartExecutor { start, state, .. } => {
            format!("build turn {} state {}", start.next_turn, state.len())
        }
        Action::ExecutorEnded { executor, life } => format!("gone {executor} {life}"),
        Action::Forgotten { key } => format!("forgotten {key}"),
        Action::EnsureComponent { .. } => "ensure component".into(),
        Action::EnsureImage { engine, anew, .. } => {
            format!("ensure image {engine}{}", if *anew { " anew" } else { "" })
        }
        Action::CompileAhead { digest } => format!("compile ahead {}", &digest.hex()[..4]),
        Action::EnsureWorker { worker } => {
            format!("ensure worker {}/{}", worker.tenant, worker.kind.name())
        }
        Action::SizeWorker { load, .. } => format!("size worker {load:?}"),
        Action::StopWorker { worker } => {
            format!("stop worker {}/{}", worker.tenant, worker.kind.name())
        }
        Action::StartInstance { instance, .. } => {
            format!("start f{} e{}", instance.framework, instance.epoch)
        }
        Action::ToWorker {
            message: ToWorker::ExecutorBatch(batch),
            ..
        } => show_batch(batch),
        Action::ToWorker { message, .. } => {
            let name = format!("{message:?}");
            format!("to worker: {}", name.split('(').next().unwrap())
        }
        Action::Warn(text) => format!("warn {text}"),
    }
}

pub fn show_message(message: &Message) -> String {
    match message {
        Message::Statuses(statuses) => {
            let one = |update: &v1::StatusUpdate| {
                let status = update.status.clone().unwrap();
                let state = status
                    .state()
                    .as_str_name()
                    .trim_start_matches("TASK_")
                    .to_owned();
                let reason = if status.reason.is_empty() {
                    String::new()
                } else {
                    format!(" {}", status.reason)
                };
                format!(
                    "{}#{} {state}{reason} attempt {}",
                    status.task, update.sequence, status.attempt
                )
            };
            format!(
                "send {}",
                statuses
                    .updates
                    .iter()
                    .map(one)
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        }
        Message::DesiredAck(ack) => format!("ack {}", ack.generation),
        Message::TaskSet(set) => format!("send set of {}", set.tasks.len()),
        Message::InstanceReady(ready) => {
            format!("ready rebuilt={} next={}", ready.rebuilt, ready.next_turn)
        }
        Message::InstanceFailed(failed) => {
            format!("failed {} retry={}", failed.reason, failed.will_retry)
        }
        Message::Turn(turn) => format!("turn {}", turn.number),
        Message::FromExecutor(message) => format!("from executor {}", message.executor),
        Message::ExecutorLost(lost) => format!("executor lost {}", lost.executor),
        Message::CompiledAhead(said) => {
            let one = |component: &v1::AheadComponent| {
                let state = component.state().as_str_name().trim_start_matches("AHEAD_STATE_").to_owned();
                format!(" {state} {}", component.error).trim_end().to_owned()
            };
            let all: String = said.components.iter().map(one).collect();
            format!("ahead{all}, {} compiled", said.compilations)
        }
        Message::Register(_) => "register".into(),
    }
}


/// A batch for an executor: its number and its events.
fn show_batch(batch: &v1::ExecutorBatch) -> String {
    use v1::executor_event::Event;
    let child = |child: &v1::ChildStatus| {
        let status = child.status.clone().unwrap();
        let state = status.state().as_str_name().trim_start_matches("TASK_").to_owned();
        format!("{} {state} {}", child.child, status.reason).trim_end().to_owned()
    };
    let one = |event: &v1::ExecutorEvent| match event.event.as_ref().unwrap() {
        Event::Started(started) => {
            let children: Vec<_> = started.children.iter().map(child).collect();
            let mem = started.info.clone().unwrap().resources.unwrap().mem_mib;
            format!("started mem {mem} [{}]", children.join(", "))
        }
        Event::Launch(launch) => format!("launch {}", launch.task),
        Event::LaunchGroup(group) => {
            let tasks: Vec<_> = group.launches.iter().map(|l| l.task.as_str()).collect();
            format!("launch group {}", tasks.join("+"))
        }
        Event::Kill(kill) => format!("kill {} {}", kill.task, kill.grace_ms),
        Event::Message(data) => format!("message {}", data.len()),
        Event::Child(status) => format!("child {}", child(status)),
        Event::Timer(id) => format!("timer {id}"),
        Event::ShutdownMs(ms) => format!("shutdown {ms}"),
        Event::Again(_) => "again".into(),
    };
    let events: Vec<String> = batch.events.iter().map(one).collect();
    format!("batch {}: {}", batch.number, events.join("; "))
}
