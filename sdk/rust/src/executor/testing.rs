//! Unit tests of executors, on the machine itself: turns against a state in memory.
//!
//! A [`Harness`] holds one executor. It keeps the writes of a turn that ends well, forgets those of one
//! that fails, and returns what the executor asked for as [`Call`]s. It starts nothing by itself: the test
//! plays the agent. Not part of components.

use std::collections::BTreeMap;

pub use calls::Call;

use super::{Event, Executor, ExecutorInfo, TaskLaunch, Turn};
use crate::task::TaskSpec;
use crate::{Config, Error, Resources};

/// Time of the first turn, in ms since the Unix epoch.
const START_MS: u64 = 1_700_000_000_000;
/// Time between turns, in ms.
const STEP_MS: u64 = 10;

/// An executor and its state.
///
/// One at a time per thread: it stands in for the host of its thread.
pub struct Harness<E> {
    executor: E,
    config: Config,
    turns: u64,
}

impl<E: Executor> Harness<E> {
    /// An executor with an empty state, started. Fails as its `init` or first turn does.
    pub fn new(config: &[(&str, &str)]) -> Result<Self, Error> {
        calls::reset();
        let pairs = config
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let config = Config::from(pairs.collect::<Vec<_>>());
        let mut harness = Self {
            executor: E::init(&config)?,
            config,
            turns: 0,
        };
        harness.turn([started()])?;
        Ok(harness)
    }

    /// Drop the instance and rebuild it from its state, as after a crash.
    pub fn restart(&mut self) -> Result<Vec<Call>, Error> {
        calls::roll_back();
        self.executor = E::init(&self.config)?;
        self.turn([started()])
    }

    /// Run one turn with these events. When it fails its writes are forgotten, and the instance must be
    /// rebuilt with [`restart`](Self::restart).
    pub fn turn(&mut self, events: impl IntoIterator<Item = Event>) -> Result<Vec<Call>, Error> {
        self.turns += 1;
        let mut turn = Turn::new(START_MS + self.turns * STEP_MS);
        let mut outcome = Ok(());
        for event in events {
            outcome = outcome.and_then(|()| self.executor.handle(&mut turn, event));
        }
        match outcome.and_then(|()| self.executor.end_turn(&mut turn)) {
            Ok(()) => Ok(calls::commit()),
            Err(error) => {
                calls::roll_back();
                Err(error)
            }
        }
    }

    /// The state on record.
    pub fn state(&self) -> BTreeMap<String, Vec<u8>> {
        calls::committed()
    }
}

fn started() -> Event {
    let info = ExecutorInfo {
        framework: 1,
        executor: "test".to_owned(),
        agent: 1,
        hostname: "localhost".to_owned(),
        resources: Resources::new(1.0, 128),
    };
    Event::Started(info, Vec::new())
}

/// A task with this data for the executor.
pub fn launch(task: &str, data: &[u8]) -> TaskLaunch {
    let spec = TaskSpec::executor("test", format!("sha256:{}", "0".repeat(64))).data(data);
    TaskLaunch {
        task: task.to_owned(),
        spec: spec.into_contract(),
        args: Vec::new(),
        env: Vec::new(),
        attempt: 1,
    }
}

pub(crate) mod calls {
    //! The recorder that stands in for the host.

    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use crate::bindings::tessera::framework::types::{TaskSpec, TaskState};

    /// Something that an executor asked for.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Call {
        /// A task's state, with its message and data.
        Status(String, TaskState, String, Vec<u8>),
        /// Bytes for the scheduler.
        Send(Vec<u8>),
        /// Start a child; its spec as in the contract.
        StartChild(String, TaskSpec),
        /// Stop a child.
        StopChild(String, u32),
        /// Set a timer, in ms from now.
        SetTimer(String, u64),
        /// Forget a timer.
        CancelTimer(String),
        /// Be called again.
        Again,
        /// End with the last task.
        Finish,
    }

    #[derive(Default)]
    struct Recorder {
        committed: BTreeMap<String, Vec<u8>>,
        state: BTreeMap<String, Vec<u8>>,
        calls: Vec<Call>,
    }

    thread_local! {
        static RECORDER: RefCell<Recorder> = RefCell::new(Recorder::default());
    }

    pub(crate) fn reset() {
        RECORDER.set(Recorder::default());
    }

    /// End a turn well: its writes stay, and its calls are returned.
    pub(crate) fn commit() -> Vec<Call> {
        RECORDER.with_borrow_mut(|recorder| {
            recorder.committed.clone_from(&recorder.state);
            std::mem::take(&mut recorder.calls)
        })
    }

    /// End a turn badly, and the life of the instance.
    pub(crate) fn roll_back() {
        RECORDER.with_borrow_mut(|recorder| {
            recorder.state.clone_from(&recorder.committed);
            recorder.calls.clear();
        });
    }

    pub(crate) fn committed() -> BTreeMap<String, Vec<u8>> {
        RECORDER.with_borrow(|recorder| recorder.committed.clone())
    }

    fn record(call: Call) {
        RECORDER.with_borrow_mut(|recorder| recorder.calls.push(call));
    }

    pub(crate) mod executor_driver {
        use super::{Call, TaskSpec, TaskState, record};
        use crate::bindings::tessera::framework::types::Error;

        pub(crate) fn status(
            task: &str,
            state: TaskState,
            message: &str,
            data: &[u8],
        ) -> Result<(), Error> {
            record(Call::Status(task.to_owned(), state, message.to_owned(), data.to_vec()));
            Ok(())
        }

        pub(crate) fn send(data: &[u8]) -> Result<(), Error> {
            record(Call::Send(data.to_vec()));
            Ok(())
        }

        pub(crate) fn start_child(child: &str, spec: &TaskSpec) -> Result<(), Error> {
            record(Call::StartChild(child.to_owned(), spec.clone()));
            Ok(())
        }

        pub(crate) fn stop_child(child: &str, grace_ms: u32) -> Result<(), Error> {
            record(Call::StopChild(child.to_owned(), grace_ms));
            Ok(())
        }

        pub(crate) fn set_timer(id: &str, after_ms: u64) -> Result<(), Error> {
            record(Call::SetTimer(id.to_owned(), after_ms));
            Ok(())
        }

        pub(crate) fn cancel_timer(id: &str) -> Result<(), Error> {
            record(Call::CancelTimer(id.to_owned()));
            Ok(())
        }

        pub(crate) fn call_again() {
            record(Call::Again);
        }

        pub(crate) fn finish() {
            record(Call::Finish);
        }
    }

    pub(crate) mod executor_state {
        use super::RECORDER;
        use crate::bindings::tessera::framework::types::Error;

        pub(crate) fn get(key: &str) -> Option<Vec<u8>> {
            RECORDER.with_borrow(|recorder| recorder.state.get(key).cloned())
        }

        pub(crate) fn set(key: &str, value: &[u8]) -> Result<(), Error> {
            RECORDER.with_borrow_mut(|recorder| {
                recorder.state.insert(key.to_owned(), value.to_vec());
            });
            Ok(())
        }

        pub(crate) fn delete(key: &str) -> Result<(), Error> {
            RECORDER.with_borrow_mut(|recorder| recorder.state.remove(key));
            Ok(())
        }

        pub(crate) fn scan(prefix: &str, after: Option<&str>, limit: u32) -> Vec<(String, Vec<u8>)> {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(1_000);
            RECORDER.with_borrow(|recorder| {
                let entries = recorder.state.iter();
                entries
                    .filter(|(key, _)| key.starts_with(prefix))
                    .filter(|(key, _)| after.is_none_or(|after| key.as_str() > after))
                    .take(limit)
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect()
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Call, Harness, launch};
    use crate::executor::{Event, Executor, Turn, state};
    use crate::{Config, Error, TaskSpec, TaskState};

    /// Counts its tasks, and fails at the word `fail`.
    struct Counting;

    impl Executor for Counting {
        fn init(_config: &Config) -> Result<Self, Error> {
            Ok(Self)
        }

        fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
            let Event::Launch(launch) = event else { return Ok(()) };
            let seen = state::get::<u32>("seen")?.unwrap_or(0) + 1;
            state::set("seen", &seen)?;
            turn.start_child(&launch.task, TaskSpec::shell("true"))?;
            match launch.data() {
                b"fail" => Err(Error::failed("asked to")),
                _ => turn.status(&launch.task, TaskState::Running, &seen.to_string()),
            }
        }
    }

    #[test]
    fn a_failed_turn_leaves_nothing_and_a_rebuilt_executor_goes_on() {
        let mut harness: Harness<Counting> = Harness::new(&[]).unwrap();
        let calls = harness.turn([Event::Launch(launch("a", b""))]).unwrap();
        assert!(matches!(&calls[0], Call::StartChild(child, _) if child == "a"));
        let running = |task: &str, seen: &str| {
            Call::Status(task.into(), TaskState::Running, seen.into(), vec![])
        };
        assert_eq!(calls[1], running("a", "1"));
        assert!(harness.turn([Event::Launch(launch("b", b"fail"))]).is_err());
        assert_eq!(harness.restart().unwrap(), []);
        let calls = harness.turn([Event::Launch(launch("c", b""))]).unwrap();
        assert_eq!(calls[1], running("c", "2"));
        assert_eq!(harness.state()["seen"], b"2");
    }
}
