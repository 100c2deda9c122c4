//! What clients did and saw. Owns operations, their form as JSON lines, and the recorder that makes
//! them while a test runs.
//!
//! Invariants: an operation returns no earlier than it was called; a process has one operation at a time
//! that returns. Instants are of any clock that all operations share; those that are equal count as
//! simultaneous, which excuses more, never less.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Operations of one history: a test of some hours. More would be a file that was put together wrongly.
pub const OPERATIONS_MAX: usize = 4_000_000;

/// What a client asked for and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Line<I, O>", into = "Line<I, O>")]
#[serde(bound(
    serialize = "I: Clone + Serialize, O: Clone + Serialize",
    deserialize = "I: Deserialize<'de>, O: Deserialize<'de>"
))]
pub struct Operation<I, O> {
    /// Who asked; a process waits for an answer, or gives up, before it asks again.
    pub process: u64,
    /// What it was about; operations on different keys do not depend on each other.
    pub key: String,
    /// When it was asked.
    pub call: u64,
    /// What was asked.
    pub input: I,
    /// What came of it.
    pub outcome: Outcome<O>,
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<O> {
    /// It may have happened at any time since the call, may still happen, or never will.
    Unknown,
    /// It was answered.
    Returned {
        /// When the answer was there.
        at: u64,
        /// The answer.
        output: O,
    },
}

impl<O> Outcome<O> {
    /// When the answer was there.
    pub fn returned_at(&self) -> Option<u64> {
        match self {
            Self::Unknown => None,
            Self::Returned { at, .. } => Some(*at),
        }
    }

    /// The answer.
    pub fn output(&self) -> Option<&O> {
        match self {
            Self::Unknown => None,
            Self::Returned { output, .. } => Some(output),
        }
    }
}

/// An operation as it stands in a file; `null` twice where the outcome is unknown.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<I, O> {
    process: u64,
    key: String,
    call: u64,
    #[serde(rename = "return")]
    returned: Option<u64>,
    input: I,
    output: Option<O>,
}

impl<I, O> From<Operation<I, O>> for Line<I, O> {
    fn from(operation: Operation<I, O>) -> Self {
        let Operation {
            process,
            key,
            call,
            input,
            outcome,
        } = operation;
        let (returned, output) = match outcome {
            Outcome::Unknown => (None, None),
            Outcome::Returned { at, output } => (Some(at), Some(output)),
        };
        Self {
            process,
            key,
            call,
            returned,
            input,
            output,
        }
    }
}

impl<I, O> TryFrom<Line<I, O>> for Operation<I, O> {
    type Error = &'static str;

    fn try_from(line: Line<I, O>) -> Result<Self, Self::Error> {
        let Line {
            process,
            key,
            call,
            returned,
            input,
            output,
        } = line;
        let outcome = match (returned, output) {
            (None, None) => Outcome::Unknown,
            (Some(at), Some(output)) => Outcome::Returned { at, output },
            _ => return Err("return and output are both there, or both null"),
        };
        Ok(Self {
            process,
            key,
            call,
            input,
            outcome,
        })
    }
}

/// Why something is not a history.
#[derive(Debug)]
pub enum HistoryError {
    /// The file cannot be read or written.
    Io(io::Error),
    /// A line, counted from 1, is not an operation.
    Line(usize, serde_json::Error),
    /// More operations than [`OPERATIONS_MAX`].
    TooLong,
    /// An operation returned before its call.
    Backwards {
        /// Whose operation.
        process: u64,
        /// When it was called.
        call: u64,
        /// When it returned.
        returned: u64,
    },
    /// A process called while its last operation, which was answered later, was under way.
    Overlap {
        /// Whose operations.
        process: u64,
        /// When it called again.
        call: u64,
    },
}

impl fmt::Display for HistoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "the history cannot be read or written: {error}"),
            Self::Line(line, error) => {
                write!(f, "line {line} of the history is not an operation: {error}")
            }
            Self::TooLong => write!(
                f,
                "a history has at most {OPERATIONS_MAX} operations: save it in several files"
            ),
            Self::Backwards {
                process,
                call,
                returned,
            } => write!(
                f,
                "process {process} called at {call} and had its answer at {returned}: \
                 take both from one clock that never goes back"
            ),
            Self::Overlap { process, call } => write!(
                f,
                "process {process} called at {call} before its last operation returned: \
                 give what runs at the same time processes of its own"
            ),
        }
    }
}

impl std::error::Error for HistoryError {}

impl From<io::Error> for HistoryError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Operations that fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History<I, O>(Vec<Operation<I, O>>);

impl<I, O> History<I, O> {
    /// A history of these operations, in any order.
    ///
    /// # Errors
    /// When an operation returns before its call, or a process has two at a time that return.
    pub fn new(operations: Vec<Operation<I, O>>) -> Result<Self, HistoryError> {
        if operations.len() > OPERATIONS_MAX {
            return Err(HistoryError::TooLong);
        }
        let mut spans: Vec<(u64, u64, u64)> = Vec::new();
        for operation in &operations {
            let (process, call) = (operation.process, operation.call);
            let Some(returned) = operation.outcome.returned_at() else {
                continue;
            };
            if returned < call {
                return Err(HistoryError::Backwards {
                    process,
                    call,
                    returned,
                });
            }
            spans.push((process, call, returned));
        }
        spans.sort_unstable();
        for pair in spans.windows(2) {
            let ((before, _, returned), (process, call, _)) = (pair[0], pair[1]);
            if before == process && call < returned {
                return Err(HistoryError::Overlap { process, call });
            }
        }
        Ok(Self(operations))
    }

    /// The operations as they were given.
    pub fn operations(&self) -> &[Operation<I, O>] {
        &self.0
    }

    /// The operations of each key.
    pub(crate) fn by_key(&self) -> BTreeMap<&str, Vec<&Operation<I, O>>> {
        let mut keys: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for operation in &self.0 {
            keys.entry(&operation.key).or_default().push(operation);
        }
        keys
    }

    /// Parts of a history fit together as the whole did.
    pub(crate) fn part(operations: Vec<Operation<I, O>>) -> Self {
        Self(operations)
    }
}

impl<I: Clone + Serialize, O: Clone + Serialize> History<I, O> {
    /// Writes one JSON object per operation and line.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn write(&self, mut to: impl Write) -> Result<(), HistoryError> {
        for operation in &self.0 {
            serde_json::to_writer(&mut to, operation).map_err(io::Error::from)?;
            to.write_all(b"\n")?;
        }
        Ok(to.flush()?)
    }
}

impl<I: DeserializeOwned, O: DeserializeOwned> History<I, O> {
    /// Reads what [`write`](Self::write) wrote; empty lines are passed over.
    ///
    /// # Errors
    /// When the reader fails, a line is not an operation, or the operations do not fit together.
    pub fn read(from: impl BufRead) -> Result<Self, HistoryError> {
        let mut operations = Vec::new();
        for (index, line) in from.lines().enumerate() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            if operations.len() == OPERATIONS_MAX {
                return Err(HistoryError::TooLong);
            }
            let operation = serde_json::from_str(&line)
                .map_err(|error| HistoryError::Line(index + 1, error))?;
            operations.push(operation);
        }
        Self::new(operations)
    }
}

/// An operation of a [`Recorder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationId(usize);

/// Notes operations as they happen. Its instants are those that it is given, moved on where two events
/// would share one, so that it keeps the order of events even on a coarse clock.
#[derive(Debug)]
pub struct Recorder<I, O> {
    operations: Vec<Option<Operation<I, O>>>,
    last: u64,
}

impl<I, O> Default for Recorder<I, O> {
    fn default() -> Self {
        Self {
            operations: Vec::new(),
            last: 0,
        }
    }
}

impl<I, O> Recorder<I, O> {
    fn instant(&mut self, now: u64) -> u64 {
        self.last = now.max(self.last + 1);
        self.last
    }

    /// To be noted before anything is sent. What gets no answer stays of unknown outcome.
    pub fn called(&mut self, process: u64, key: &str, input: I, now: u64) -> OperationId {
        let call = self.instant(now);
        let key = key.to_owned();
        let outcome = Outcome::Unknown;
        self.operations.push(Some(Operation {
            process,
            key,
            call,
            input,
            outcome,
        }));
        OperationId(self.operations.len() - 1)
    }

    /// To be noted once the answer is there.
    pub fn returned(&mut self, id: OperationId, output: O, now: u64) {
        let at = self.instant(now);
        if let Some(Some(operation)) = self.operations.get_mut(id.0) {
            operation.outcome = Outcome::Returned { at, output };
        }
    }

    /// For what certainly never happened and never will, such as a request that was never sent. An error
    /// in the answer is no proof of that.
    pub fn never_happened(&mut self, id: OperationId) {
        if let Some(operation) = self.operations.get_mut(id.0) {
            *operation = None;
        }
    }

    /// All that was noted.
    ///
    /// # Errors
    /// As [`History::new`].
    pub fn finish(self) -> Result<History<I, O>, HistoryError> {
        History::new(self.operations.into_iter().flatten().collect())
    }
}
