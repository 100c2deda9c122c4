//! A worker process, and the agent's side of its link, played by the test.
//!
//! Invariants: everything waits on a condition with a deadline; a worker never outlives its test. This
//! file must never assert what a test is about.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};
use tessera_types::{Digest, Epoch, Event, FrameworkId, HttpRequest, Subscription, TimeMs};
use tessera_wire::frame;
use tessera_wire::v1::{self, FromWorker, ToWorker, from_worker, to_worker};

/// Longest wait for anything.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub const WORKER: &str = env!("CARGO_BIN_EXE_tessera-worker");

/// The bytes of a guest of tests/guests.
pub fn guest(name: &str) -> PathBuf {
    let folder = std::env::var_os("TESSERA_GUESTS")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let target = std::env::var_os("CARGO_TARGET_DIR")
                .map(PathBuf::from)
                .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
            target.join("guests/wasm32-wasip2/release")
        });
    let path = folder.join(format!("{name}.wasm"));
    assert!(
        path.is_file(),
        "{} is missing: run scripts/build-guests first",
        path.display()
    );
    path
}

/// Run a mode of the binary to its end.
pub fn run(arguments: &[&str]) -> Output {
    Command::new(WORKER)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .unwrap()
}

/// A compiled guest.
pub struct Image {
    pub path: PathBuf,
    pub digest: Digest,
}

/// Held for reading by every worker, and for writing by one whose test measures time.
static MACHINE: RwLock<()> = RwLock::new(());

/// A share in the machine, held for as long as a worker lives.
#[allow(dead_code, reason = "held, not read")]
enum Share {
    WithOthers(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// A worker with a directory of its own.
pub struct Worker {
    _share: Share,
    dir: tempfile::TempDir,
    child: Child,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Worker {
    /// Start a worker beside those of other tests.
    pub fn start() -> Self {
        let share = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        Self::start_with(Share::WithOthers(share))
    }

    /// Start a worker while no other test of this binary has one.
    pub fn start_alone() -> Self {
        let share = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
        Self::start_with(Share::Alone(share))
    }

    fn start_with(share: Share) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let child = Command::new(WORKER)
            .args([
                "serve",
                "--tenant",
                "test",
                "--kind",
                "schedulers",
                "--socket",
            ])
            .arg(&socket)
            .args(["--own-files", "--reach-links", "--reach-write"])
            .arg(dir.path())
            .spawn()
            .unwrap();
        Self {
            _share: share,
            dir,
            child,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn compile(&self, name: &str) -> Image {
        self.compile_file(name, guest(name))
    }

    /// Compile a component that is given as text.
    pub fn compile_text(&self, name: &str, text: &str) -> Image {
        self.compile_bytes(name, &wat::parse_str(text).unwrap())
    }

    pub fn compile_bytes(&self, name: &str, bytes: &[u8]) -> Image {
        let input = self.dir.path().join(format!("{name}.wasm"));
        std::fs::write(&input, bytes).unwrap();
        self.compile_file(name, input)
    }

    fn compile_file(&self, name: &str, input: PathBuf) -> Image {
        let path = self.dir.path().join(format!("{name}.image"));
        let output = run(&[
            "compile",
            "--in",
            input.to_str().unwrap(),
            "--out",
            path.to_str().unwrap(),
        ]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        Image {
            digest: Digest::of(&std::fs::read(input).unwrap()),
            path,
        }
    }

    pub fn sandbox(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }

    /// Connect as the agent, and hear the greeting.
    pub fn connect(&self) -> (Agent, v1::Hello) {
        let socket = self.dir.path().join("socket");
        let until = Instant::now() + DEADLINE;
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(
                    Instant::now() < until,
                    "the worker does not listen: {error}"
                ),
            }
            std::thread::yield_now();
        };
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut agent = Agent {
            stream,
            logs: Vec::new(),
            skipped: Vec::new(),
            extra: Extra::default(),
        };
        match agent.next() {
            from_worker::Message::Hello(hello) => (agent, hello),
            other => panic!("not a greeting: {other:?}"),
        }
    }

    pub fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

/// The agent's side of a link. Logs that come in between are kept aside.
pub struct Agent {
    pub stream: UnixStream,
    pub logs: Vec<v1::GuestLog>,
    skipped: Vec<from_worker::Message>,
    /// What instances and tasks that are started from here on get beside the usual.
    pub extra: Extra,
}

/// What only some tests give to an instance.
#[derive(Clone, Default)]
pub struct Extra {
    /// Limits that differ from the defaults.
    pub limits: Vec<(&'static str, u64)>,
    /// Where its lives are recorded.
    pub recordings: Option<PathBuf>,
    /// It migrates from this version.
    pub migrate_from: Option<u32>,
}

impl Extra {
    pub fn wire_limits(&self) -> Vec<v1::Limit> {
        let limit = |(name, value): &(&str, u64)| v1::Limit {
            name: (*name).to_owned(),
            value: *value,
        };
        self.limits.iter().map(limit).collect()
    }
}

/// An instance as the test knows it.
#[derive(Clone, Copy)]
pub struct Instance {
    pub framework: u64,
    pub epoch: u64,
    pub next_turn: u64,
    pub time_ms: TimeMs,
}

impl Instance {
    pub fn key(&self) -> Option<v1::InstanceKey> {
        Some(v1::InstanceKey {
            framework: self.framework,
            epoch: self.epoch,
        })
    }

    pub fn subscription(&self) -> Subscription {
        Subscription {
            framework: FrameworkId(self.framework),
            name: "test".into(),
            role: "test".into(),
            epoch: Epoch(self.epoch),
        }
    }
}

pub fn get(id: u64, path: &str) -> Event {
    let (method, path) = ("GET".into(), path.into());
    Event::Http(HttpRequest {
        id,
        method,
        path,
        principal: "test".into(),
        ..HttpRequest::default()
    })
}

/// The body of the answer to a request in a turn.
pub fn answer(turn: &v1::Turn, request: u64) -> Option<String> {
    turn.operations
        .iter()
        .find_map(|operation| match operation.operation.as_ref()? {
            v1::operation::Operation::Respond(respond) if respond.request == request => {
                Some(String::from_utf8_lossy(&respond.answer.as_ref()?.body).into_owned())
            }
            _ => None,
        })
}

impl Agent {
    pub fn send(&mut self, message: to_worker::Message) {
        frame::write(
            &mut self.stream,
            &ToWorker {
                message: Some(message),
            },
        )
        .unwrap();
    }

    /// The next message, logs apart.
    pub fn next(&mut self) -> from_worker::Message {
        loop {
            let message = frame::read::<FromWorker>(&mut self.stream)
                .expect("the worker says nothing")
                .expect("the worker has closed the link");
            match message.message.expect("a message of an unknown kind") {
                from_worker::Message::Log(log) => self.logs.push(log),
                other => return other,
            }
        }
    }

    /// The first message that `pick` takes; others are kept for later calls.
    pub fn wait<T>(&mut self, mut pick: impl FnMut(&from_worker::Message) -> Option<T>) -> T {
        if let Some(at) = self
            .skipped
            .iter()
            .position(|message| pick(message).is_some())
        {
            let message = self.skipped.remove(at);
            return pick(&message).unwrap();
        }
        let until = Instant::now() + DEADLINE;
        loop {
            assert!(
                Instant::now() < until,
                "not what was waited for: {:?}",
                self.skipped
            );
            let message = self.next();
            if let Some(found) = pick(&message) {
                return found;
            }
            self.skipped.push(message);
        }
    }

    pub fn start_instance(
        &mut self,
        framework: u64,
        image: &Image,
        config: &[(&str, &str)],
        state: Vec<v1::KeyWrite>,
    ) -> Instance {
        self.start_instance_with(framework, image, config, state, Some(1))
    }

    /// Start an instance and send one chunk of its state, the last one if it has a next turn.
    pub fn start_instance_with(
        &mut self,
        framework: u64,
        image: &Image,
        config: &[(&str, &str)],
        state: Vec<v1::KeyWrite>,
        next_turn: Option<u64>,
    ) -> Instance {
        let instance = Instance {
            framework,
            epoch: 1,
            next_turn: 1,
            time_ms: 1_700_000_000_000,
        };
        self.say_start(&instance, image, config);
        self.send(to_worker::Message::InstanceState(v1::InstanceState {
            key: instance.key(),
            chunk: Some(v1::StateChunk {
                entries: state,
                next_turn,
                outside: 0,
            }),
        }));
        instance
    }

    /// Start an instance, or say again what holds for one that is there.
    pub fn say_start(&mut self, instance: &Instance, image: &Image, config: &[(&str, &str)]) {
        let pair = |(key, value): &(&str, &str)| v1::Pair {
            key: (*key).into(),
            value: (*value).into(),
        };
        let recordings = self.extra.recordings.as_ref();
        self.send(to_worker::Message::StartInstance(v1::StartInstance {
            instance: Some(v1::DesiredInstance {
                framework: instance.framework,
                name: "test".into(),
                role: "test".into(),
                epoch: instance.epoch,
                component: image.digest.0.to_vec(),
                config: config.iter().map(pair).collect(),
                seed: 7,
                limits: self.extra.wire_limits(),
                migrate_from: self.extra.migrate_from,
            }),
            image: image.path.to_str().unwrap().to_owned(),
            recordings: recordings.map(|path| path.to_str().unwrap().to_owned()).unwrap_or_default(),
        }));
    }

    /// Wait for a line of a guest's log.
    pub fn log_line(&mut self, text: &str) -> String {
        let has = |log: &v1::GuestLog| {
            let mut lines = log.lines.iter();
            lines.find(|line| line.text.contains(text)).map(|line| line.text.clone())
        };
        loop {
            if let Some(found) = self.logs.iter().find_map(has) {
                return found;
            }
            let message = frame::read::<FromWorker>(&mut self.stream)
                .expect("the worker says nothing")
                .expect("the worker has closed the link");
            match message.message.expect("a message of an unknown kind") {
                from_worker::Message::Log(log) => self.logs.push(log),
                other => self.skipped.push(other),
            }
        }
    }

    /// Stop an instance, and wait until that was heard: messages of a link are heard in order.
    pub fn stop(&mut self, instance: &Instance) {
        let key = instance.key();
        self.send(to_worker::Message::StopInstance(v1::StopInstance { key }));
        self.sync(instance);
    }

    /// Wait until everything that was sent before is heard.
    pub fn sync(&mut self, instance: &Instance) {
        self.start_without_image(&format!("after-{}", instance.framework));
    }

    /// A task without an image is refused at once.
    pub fn start_without_image(&mut self, task: &str) {
        let start = v1::StartWasmTask {
            task: task.to_owned(),
            ..v1::StartWasmTask::default()
        };
        self.send(to_worker::Message::StartTask(start));
        self.wait(|message| match message {
            from_worker::Message::TaskState(said) if said.task == task && said.reason == "IMAGE_DAMAGED" => Some(()),
            _ => None,
        });
    }

    pub fn ready(&mut self, instance: &Instance) -> v1::InstanceReady {
        let key = instance.key();
        self.wait(|message| match message {
            from_worker::Message::InstanceReady(ready) if ready.key == key => Some(*ready),
            _ => None,
        })
    }

    pub fn failed(&mut self, instance: &Instance) -> v1::InstanceFailed {
        let key = instance.key();
        self.wait(|message| match message {
            from_worker::Message::InstanceFailed(failed) if failed.key == key => {
                Some(failed.clone())
            }
            _ => None,
        })
    }

    pub fn send_batch(&mut self, instance: &mut Instance, events: &[Event]) {
        instance.time_ms += 100;
        self.send(to_worker::Message::Batch(v1::Batch {
            key: instance.key(),
            number: instance.next_turn,
            time_ms: instance.time_ms,
            events: events.iter().map(Into::into).collect(),
        }));
    }

    pub fn turn(&mut self, instance: &Instance) -> v1::Turn {
        let framework = instance.framework;
        self.wait(|message| match message {
            from_worker::Message::Turn(turn) if turn.framework == framework => Some(turn.clone()),
            _ => None,
        })
    }

    pub fn commit(&mut self, instance: &mut Instance) {
        let next = v1::turn_outcome::Outcome::Next(instance.next_turn + 1);
        self.outcome(instance, next);
        instance.next_turn += 1;
    }

    /// Say what became of the turn that is outstanding.
    pub fn outcome(&mut self, instance: &Instance, outcome: v1::turn_outcome::Outcome) {
        self.send(to_worker::Message::TurnResult(v1::TurnResult {
            key: instance.key(),
            number: instance.next_turn,
            outcome: Some(v1::TurnOutcome {
                outcome: Some(outcome),
            }),
            ..v1::TurnResult::default()
        }));
    }

    /// One whole turn, committed.
    pub fn committed_turn(&mut self, instance: &mut Instance, events: &[Event]) -> v1::Turn {
        self.send_batch(instance, events);
        let turn = self.turn(instance);
        self.commit(instance);
        turn
    }

    pub fn start_task(
        &mut self,
        task: &str,
        image: &Image,
        sandbox: &Path,
        args: &[&str],
        mem_mib: u64,
    ) {
        self.send(to_worker::Message::StartTask(v1::StartWasmTask {
            framework: 1,
            task: task.into(),
            attempt: 1,
            image: image.path.to_str().unwrap().into(),
            sandbox: sandbox.to_str().unwrap().into(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec![v1::Pair {
                key: "COLOUR".into(),
                value: "blue".into(),
            }],
            mem_bytes: mem_mib << 20,
            name: "program".into(),
            limits: self.extra.wire_limits(),
        }));
    }

    /// Wait until a task is in this state.
    pub fn task_state(&mut self, task: &str, state: v1::TaskState) -> v1::WasmTaskState {
        self.wait(|message| match message {
            from_worker::Message::TaskState(said) if said.task == task && said.state() == state => {
                Some(said.clone())
            }
            _ => None,
        })
    }
}
