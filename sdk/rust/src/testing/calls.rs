//! The recorder that stands in for the host: the same functions as the bindings, on a state in
//! memory per thread.
//!
//! Invariant: `state` is `committed` and the writes of the running turn; both are equal between
//! turns. Limits are those that the contract names.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::bindings::tessera::framework::types::{Error, ResourceRequest, TaskSpec};
use crate::http::Response;
use crate::state::{MAX_TURN_BYTES, MAX_TURN_KEYS};

/// Bytes of one value.
const MAX_VALUE_BYTES: usize = 256 * 1024;
/// Bytes of an answer.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Bytes of a message to an executor.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Requests of a framework.
const MAX_REQUESTS: usize = 16;
/// Specs defined per turn.
const MAX_SPECS: usize = 256;
/// Bytes of files in the specs of one turn; the rest of a spec is not counted here.
const MAX_SPEC_BYTES: usize = 1 << 20;

/// Something that a scheduler asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Accept offers.
    Accept {
        /// Ids of the offers.
        offers: Vec<u64>,
        /// Tasks to launch on them.
        launches: Vec<Launched>,
        /// Filter for what is left over.
        refuse_ms: u64,
    },
    /// Decline offers.
    Decline {
        /// Ids of the offers.
        offers: Vec<u64>,
        /// Filter.
        refuse_ms: u64,
    },
    /// Receive offers again.
    Revive,
    /// Receive no offers.
    Suppress,
    /// Say what is waited for.
    Request(Vec<ResourceRequest>),
    /// Kill a task.
    Kill(String),
    /// Ask for the states of tasks.
    Reconcile(Vec<String>),
    /// Be called again.
    Again,
    /// Set a timer, in ms from now.
    SetTimer(String, u64),
    /// Forget a timer.
    CancelTimer(String),
    /// A gang begins: accepts from here on belong to it.
    BeginGroup,
    /// The gang is complete.
    EndGroup,
    /// Send bytes to an executor.
    Send {
        /// Where it runs.
        agent: u64,
        /// Which one.
        executor: String,
        /// The bytes.
        data: Vec<u8>,
    },
    /// End an executor on an agent.
    ShutdownExecutor(u64, String),
}

/// A task that a scheduler launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Its id.
    pub task: String,
    /// Its spec, as in the contract.
    pub spec: TaskSpec,
    /// Its own arguments.
    pub args: Vec<String>,
    /// Its own environment.
    pub env: Vec<(String, String)>,
    /// Its task group within the accept, from 1; 0 is none.
    pub group: usize,
}

#[derive(Default)]
struct Recorder {
    committed: BTreeMap<String, Vec<u8>>,
    state: BTreeMap<String, Vec<u8>>,
    written_bytes: usize,
    written_keys: usize,
    defined: usize,
    defined_bytes: usize,
    specs: BTreeMap<String, TaskSpec>,
    calls: Vec<Call>,
    in_gang: bool,
    answers: BTreeMap<u64, Response>,
}

thread_local! {
    static RECORDER: RefCell<Recorder> = RefCell::new(Recorder::default());
}

fn record(call: Call) -> Result<(), Error> {
    RECORDER.with_borrow_mut(|recorder| recorder.calls.push(call));
    Ok(())
}

pub(crate) fn reset() {
    RECORDER.set(Recorder::default());
}

/// End a turn well: its writes stay, and its calls are returned.
pub(crate) fn commit() -> Vec<Call> {
    RECORDER.with_borrow_mut(|recorder| {
        recorder.committed.clone_from(&recorder.state);
        recorder.end_turn()
    })
}

/// End a turn badly, and the life of the instance.
pub(crate) fn roll_back() {
    RECORDER.with_borrow_mut(|recorder| {
        recorder.state.clone_from(&recorder.committed);
        recorder.end_turn();
        recorder.specs.clear();
        recorder.answers.clear();
    });
}

/// Forget everything, and begin with this state.
pub(crate) fn restore(state: BTreeMap<String, Vec<u8>>) {
    RECORDER.set(Recorder {
        committed: state.clone(),
        state,
        ..Recorder::default()
    });
}

pub(crate) fn committed() -> BTreeMap<String, Vec<u8>> {
    RECORDER.with_borrow(|recorder| recorder.committed.clone())
}

pub(crate) fn take_answer(id: u64) -> Option<Response> {
    RECORDER.with_borrow_mut(|recorder| recorder.answers.remove(&id))
}

impl Recorder {
    fn end_turn(&mut self) -> Vec<Call> {
        self.written_bytes = 0;
        self.written_keys = 0;
        self.defined = 0;
        self.defined_bytes = 0;
        self.in_gang = false;
        std::mem::take(&mut self.calls)
    }

    fn count_write(&mut self, key: &str, bytes: usize) -> Result<(), Error> {
        if key.is_empty() || key.len() > 255 {
            return Err(Error::Invalid("state keys have 1 to 255 bytes".to_owned()));
        }
        if bytes > MAX_VALUE_BYTES {
            return Err(Error::Limit("bytes of a value".to_owned()));
        }
        let total = self.written_bytes + key.len() + bytes;
        if total > MAX_TURN_BYTES || self.written_keys >= MAX_TURN_KEYS {
            return Err(Error::Limit("state written per turn".to_owned()));
        }
        self.written_bytes = total;
        self.written_keys += 1;
        Ok(())
    }

    fn define(&mut self, spec: &TaskSpec) -> Result<String, Error> {
        use crate::bindings::tessera::framework::types::FileContent;
        if let Some((digest, _)) = self.specs.iter().find(|(_, known)| *known == spec) {
            return Ok(digest.clone());
        }
        let sizes = spec.files.iter().map(|file| match &file.content {
            FileContent::Inline(bytes) => bytes.len(),
            FileContent::Digest(_) => 0,
        });
        let total = self.defined_bytes + sizes.sum::<usize>();
        if self.defined >= MAX_SPECS || total > MAX_SPEC_BYTES {
            return Err(Error::Limit("specs per turn".to_owned()));
        }
        self.defined += 1;
        self.defined_bytes = total;
        let digest = format!("{:064x}", self.specs.len() + 1);
        self.specs.insert(digest.clone(), spec.clone());
        Ok(digest)
    }
}

pub(crate) mod state {
    use super::{Error, RECORDER};

    pub(crate) fn get(key: &str) -> Option<Vec<u8>> {
        RECORDER.with_borrow(|recorder| recorder.state.get(key).cloned())
    }

    pub(crate) fn set(key: &str, value: &[u8]) -> Result<(), Error> {
        RECORDER.with_borrow_mut(|recorder| {
            recorder.count_write(key, value.len())?;
            recorder.state.insert(key.to_owned(), value.to_vec());
            Ok(())
        })
    }

    pub(crate) fn delete(key: &str) -> Result<(), Error> {
        RECORDER.with_borrow_mut(|recorder| {
            recorder.count_write(key, 0)?;
            recorder.state.remove(key);
            Ok(())
        })
    }

    pub(crate) fn scan(prefix: &str, after: Option<&str>, limit: u32) -> Vec<(String, Vec<u8>)> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(1_000);
        RECORDER.with_borrow(|recorder| {
            let entries = recorder
                .state
                .iter()
                .filter(|(key, _)| key.starts_with(prefix));
            let entries = entries.filter(|(key, _)| after.is_none_or(|after| key.as_str() > after));
            entries
                .take(limit)
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()
        })
    }
}

pub(crate) mod specs {
    use super::{Error, RECORDER, TaskSpec};

    pub(crate) fn define(spec: &TaskSpec) -> Result<String, Error> {
        RECORDER.with_borrow_mut(|recorder| recorder.define(spec))
    }
}

pub(crate) mod driver {
    use super::{Call, Error, Launched, MAX_MESSAGE_BYTES, MAX_REQUESTS, RECORDER, record};
    use crate::bindings::tessera::framework::driver::{Filters, Operation};
    use crate::bindings::tessera::framework::types::{Launch, ResourceRequest};

    pub(crate) fn accept(
        offers: &[u64],
        operations: &[Operation],
        filters: Filters,
        _operation_id: Option<&str>,
    ) -> Result<(), Error> {
        let mut groups = 0;
        let mut launches = Vec::new();
        for operation in operations {
            match operation {
                Operation::Launch(launch) => launches.push(launched(launch, 0)?),
                Operation::LaunchGroup(group) if group.is_empty() => {
                    return Err(Error::Invalid("a group has at least one launch".to_owned()));
                }
                Operation::LaunchGroup(group) => {
                    groups += 1;
                    for launch in group {
                        launches.push(launched(launch, groups)?);
                    }
                }
                _ => return Err(Error::Unsupported("operation".to_owned())),
            }
        }
        record(Call::Accept {
            offers: offers.to_vec(),
            launches,
            refuse_ms: filters.refuse_ms,
        })
    }

    fn launched(launch: &Launch, group: usize) -> Result<Launched, Error> {
        RECORDER.with_borrow(|recorder| match recorder.specs.get(&launch.spec) {
            Some(spec) => Ok(Launched {
                task: launch.task.clone(),
                spec: spec.clone(),
                args: launch.args.clone(),
                env: launch.env.clone(),
                group,
            }),
            None => Err(Error::NotFound("spec".to_owned())),
        })
    }

    pub(crate) fn begin_group() -> Result<(), Error> {
        RECORDER.with_borrow_mut(|recorder| {
            if std::mem::replace(&mut recorder.in_gang, true) {
                return Err(Error::Invalid("groups do not nest".to_owned()));
            }
            recorder.calls.push(Call::BeginGroup);
            Ok(())
        })
    }

    pub(crate) fn end_group() -> Result<(), Error> {
        RECORDER.with_borrow_mut(|recorder| {
            if !std::mem::take(&mut recorder.in_gang) {
                return Err(Error::Invalid("no group has begun".to_owned()));
            }
            recorder.calls.push(Call::EndGroup);
            Ok(())
        })
    }

    pub(crate) fn send(agent: u64, executor: &str, data: &[u8]) -> Result<(), Error> {
        if data.len() > MAX_MESSAGE_BYTES {
            return Err(Error::Limit("bytes of a message".to_owned()));
        }
        record(Call::Send {
            agent,
            executor: executor.to_owned(),
            data: data.to_vec(),
        })
    }

    pub(crate) fn shutdown_executor(agent: u64, executor: &str) -> Result<(), Error> {
        record(Call::ShutdownExecutor(agent, executor.to_owned()))
    }

    pub(crate) fn decline(offers: &[u64], filters: Filters) -> Result<(), Error> {
        record(Call::Decline {
            offers: offers.to_vec(),
            refuse_ms: filters.refuse_ms,
        })
    }

    pub(crate) fn revive() -> Result<(), Error> {
        record(Call::Revive)
    }

    pub(crate) fn suppress() -> Result<(), Error> {
        record(Call::Suppress)
    }

    /// Checks of each request only what a scheduler gets wrong while it runs: how many there are.
    pub(crate) fn request(requests: &[ResourceRequest]) -> Result<(), Error> {
        if requests.len() > MAX_REQUESTS {
            return Err(Error::Invalid(format!("requests: at most {MAX_REQUESTS}; give equal ones a count")));
        }
        record(Call::Request(requests.to_vec()))
    }

    pub(crate) fn kill(task: &str, _grace_ms: Option<u32>) -> Result<(), Error> {
        record(Call::Kill(task.to_owned()))
    }

    pub(crate) fn reconcile(tasks: &[String]) -> Result<(), Error> {
        record(Call::Reconcile(tasks.to_vec()))
    }

    pub(crate) fn call_again() {
        RECORDER.with_borrow_mut(|recorder| recorder.calls.push(Call::Again));
    }
}

pub(crate) mod timers {
    use super::{Call, Error, record};

    pub(crate) fn set(id: &str, after_ms: u64) -> Result<(), Error> {
        record(Call::SetTimer(id.to_owned(), after_ms))
    }

    pub(crate) fn cancel(id: &str) -> Result<(), Error> {
        record(Call::CancelTimer(id.to_owned()))
    }
}

pub(crate) mod http {
    use super::{Error, MAX_ANSWER_BYTES, RECORDER, Response};
    use crate::bindings::tessera::framework::events::HttpAnswer;

    pub(crate) fn respond(id: u64, answer: &HttpAnswer) -> Result<(), Error> {
        if answer.body.len() > MAX_ANSWER_BYTES {
            return Err(Error::Limit("bytes of an answer".to_owned()));
        }
        let response = Response {
            status: answer.status,
            headers: answer.headers.clone(),
            body: answer.body.clone(),
        };
        match RECORDER.with_borrow_mut(|recorder| recorder.answers.insert(id, response)) {
            None => Ok(()),
            Some(_) => Err(Error::Invalid("the request was answered before".to_owned())),
        }
    }
}

pub(crate) mod log {
    use crate::log::Level;

    pub(crate) fn enabled(_level: Level) -> bool {
        true
    }

    /// Shown by `cargo test` when the test fails.
    pub(crate) fn write(level: Level, target: &str, text: &str, fields: &[(String, String)]) {
        println!("{level:?} {target}: {text} {fields:?}");
    }
}
