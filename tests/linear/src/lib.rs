//! Judges whether what clients saw could have come from one machine that did one thing at a time.
//!
//! A [`Recorder`] notes calls and answers while a test runs; the [`History`] is saved as JSON lines and
//! loaded again; [`check`] looks for an order of the operations, key by key, that a [`Model`] allows and
//! that never puts an operation before one that had returned when it was called.
//!
//! Invariants: a verdict is a function of history, model and bound; a search that runs into its bound
//! never says that a history is good, and an
//! order that was found is checked once more before it is believed. Must never use time, randomness or the cluster: it judges records.

mod bits;
mod check;
mod history;
mod links;
mod model;
mod needs;
mod proof;
mod search;
mod verdict;

pub use check::{STEPS_MAX, check, check_within};
pub use history::{
    History, HistoryError, OPERATIONS_MAX, Operation, OperationId, Outcome, Recorder,
};
pub use model::{
    Append, AppendAnswer, AppendList, Hint, Makes, Model, Register, RegisterAnswer, RegisterCall,
};
pub use verdict::{Verdict, Violation};
