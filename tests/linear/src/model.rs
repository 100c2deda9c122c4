//! What one machine that does one thing at a time would answer. Owns the trait and the models of a
//! register and of a list; a model knows one key and nothing of time.

use std::fmt::Debug;
use std::hash::Hash;

use serde::{Deserialize, Serialize};

/// The sequential meaning of operations on one key.
pub trait Model {
    /// What the key holds.
    type State: Clone + Eq + Hash;
    /// What is asked.
    type Input: Clone + Eq + Debug;
    /// What is answered.
    type Output: Clone + Eq + Debug;

    /// What every key holds at first.
    fn initial(&self) -> Self::State;

    /// The state after an operation, or none if it could not have had this answer. Without an output the
    /// answer is not known, and whatever it would have been is allowed.
    fn step(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Option<Self::State>;

    /// Whether an operation with this answer leaves every state as it is in which it fits.
    fn is_read(&self, input: &Self::Input, output: Option<&Self::Output>) -> bool;

    /// What is known of an operation without its place in an order. It only makes the search shorter, by
    /// never leaving a state that is still needed and cannot come back.
    fn hint(&self, _: &Self::Input, _: Option<&Self::Output>) -> Hint<Self::State> {
        Hint {
            fits_only_in: None,
            makes: Makes::Anything,
        }
    }

    /// An operation in words, such as `read 4`.
    fn describe(&self, input: &Self::Input, output: Option<&Self::Output>) -> String;

    /// A state in words.
    fn describe_state(&self, state: &Self::State) -> String;
}

/// What is known of an operation without its place in an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint<S> {
    /// The state before it, if there is only one that it can have had.
    pub fits_only_in: Option<S>,
    /// The state after it.
    pub makes: Makes<S>,
}

/// The state after an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Makes<S> {
    /// The one before it.
    Nothing,
    /// The one before it, or this.
    Only(S),
    /// Not known.
    Anything,
}

/// A key that holds one value, or none, which it does at first. A key that can be set once only is one
/// where nothing but [`RegisterCall::Cas`] from none is asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Register;

/// What is asked of a register. Tests that write each value once are found out soonest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum RegisterCall {
    /// What it holds.
    Read,
    /// To hold this from now on.
    Write {
        /// None removes the value.
        value: Option<String>,
    },
    /// The same, if it holds `from`.
    Cas {
        /// What it must hold.
        from: Option<String>,
        /// What it then holds.
        to: Option<String>,
    },
}

/// What a register answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case", deny_unknown_fields)]
pub enum RegisterAnswer {
    /// To a read.
    Value {
        /// None if it holds nothing.
        value: Option<String>,
    },
    /// To a write, and to a compare-and-swap that found what it asked for.
    Done,
    /// To a compare-and-swap that found something else.
    Differs,
}

impl Model for Register {
    type State = Option<String>;
    type Input = RegisterCall;
    type Output = RegisterAnswer;

    fn initial(&self) -> Self::State {
        None
    }

    fn step(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Option<Self::State> {
        use RegisterAnswer::{Differs, Done, Value};
        use RegisterCall::{Cas, Read, Write};
        match (input, output) {
            (Read, None) => Some(state.clone()),
            (Read, Some(Value { value })) => (value == state).then(|| state.clone()),
            (Write { value }, None | Some(Done)) => Some(value.clone()),
            (Cas { from, to }, None) => Some(if from == state { to } else { state }.clone()),
            (Cas { from, to }, Some(Done)) => (from == state).then(|| to.clone()),
            (Cas { from, .. }, Some(Differs)) => (from != state).then(|| state.clone()),
            (Read, Some(Done | Differs))
            | (Write { .. }, Some(Value { .. } | Differs))
            | (Cas { .. }, Some(Value { .. })) => None,
        }
    }

    fn is_read(&self, input: &Self::Input, output: Option<&Self::Output>) -> bool {
        *input == RegisterCall::Read || output == Some(&RegisterAnswer::Differs)
    }

    fn hint(&self, input: &Self::Input, output: Option<&Self::Output>) -> Hint<Self::State> {
        let fits_only_in = match (input, output) {
            (RegisterCall::Read, Some(RegisterAnswer::Value { value })) => Some(value.clone()),
            (RegisterCall::Cas { from, .. }, Some(RegisterAnswer::Done)) => Some(from.clone()),
            _ => None,
        };
        let makes = match input {
            RegisterCall::Write { value: to } | RegisterCall::Cas { to, .. }
                if !self.is_read(input, output) =>
            {
                Makes::Only(to.clone())
            }
            _ => Makes::Nothing,
        };
        Hint {
            fits_only_in,
            makes,
        }
    }

    fn describe(&self, input: &Self::Input, output: Option<&Self::Output>) -> String {
        let asked = match input {
            RegisterCall::Read => "read".to_owned(),
            RegisterCall::Write { value: None } => "remove".to_owned(),
            RegisterCall::Write { value } => format!("write {}", self.describe_state(value)),
            RegisterCall::Cas { from, to } => {
                format!(
                    "swap {} for {}",
                    self.describe_state(from),
                    self.describe_state(to)
                )
            }
        };
        match output {
            None => asked,
            Some(RegisterAnswer::Value { value }) => {
                format!("{asked}, got {}", self.describe_state(value))
            }
            Some(RegisterAnswer::Done) => format!("{asked}, done"),
            Some(RegisterAnswer::Differs) => format!("{asked}, refused: it held another value"),
        }
    }

    fn describe_state(&self, state: &Self::State) -> String {
        state
            .as_ref()
            .map_or_else(|| "nothing".to_owned(), |value| format!("\"{value}\""))
    }
}

/// A key that holds a list, which is empty at first. Its reads show the order of all appends, so that a
/// batch that was applied twice or half is seen at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct AppendList;

/// What is asked of a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Append {
    /// Everything that it holds.
    Read,
    /// To hold this as well, at its end.
    Append {
        /// What is appended.
        value: String,
    },
}

/// What a list answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case", deny_unknown_fields)]
pub enum AppendAnswer {
    /// To a read.
    Values {
        /// Oldest first.
        values: Vec<String>,
    },
    /// To an append.
    Done,
}

impl Model for AppendList {
    type State = Vec<String>;
    type Input = Append;
    type Output = AppendAnswer;

    fn initial(&self) -> Self::State {
        Vec::new()
    }

    fn step(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Option<Self::State> {
        match (input, output) {
            (Append::Read, None) => Some(state.clone()),
            (Append::Read, Some(AppendAnswer::Values { values })) => {
                (values == state).then(|| state.clone())
            }
            (Append::Append { value }, None | Some(AppendAnswer::Done)) => {
                Some(state.iter().chain([value]).cloned().collect())
            }
            (Append::Read, Some(AppendAnswer::Done))
            | (Append::Append { .. }, Some(AppendAnswer::Values { .. })) => None,
        }
    }

    fn is_read(&self, input: &Self::Input, _: Option<&Self::Output>) -> bool {
        *input == Append::Read
    }

    fn describe(&self, input: &Self::Input, output: Option<&Self::Output>) -> String {
        let asked = match input {
            Append::Read => "read".to_owned(),
            Append::Append { value } => format!("append \"{value}\""),
        };
        match output {
            None => asked,
            Some(AppendAnswer::Values { values }) => {
                format!("{asked}, got {}", self.describe_state(values))
            }
            Some(AppendAnswer::Done) => format!("{asked}, done"),
        }
    }

    fn describe_state(&self, state: &Self::State) -> String {
        format!("{state:?}")
    }
}
