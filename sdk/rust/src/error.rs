//! The one error type of the SDK.
//!
//! An error returned from a scheduler's `init` or `handle` drops the instance and everything the
//! turn had enqueued; the instance is then rebuilt from its last committed state. Return one when
//! going on would be wrong; answer bad requests with a [`Response`](crate::http::Response) instead.

use thiserror::Error as ThisError;

use crate::bindings::tessera::framework::types;

/// Why something could not be done.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// The component has not been granted this.
    #[error("denied: {0}")]
    Denied(String),
    /// An argument breaks a rule; the text names both.
    #[error("invalid: {0}")]
    Invalid(String),
    /// The thing named does not exist.
    #[error("not found: {0}")]
    NotFound(String),
    /// A limit of the turn or of the framework would be passed; the text names it.
    #[error("limit: {0}")]
    Limit(String),
    /// The contract has it, this version of the host does not.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// A value in the framework's state is not what this version of the component writes.
    #[error("state key `{key}` cannot be read: {source}")]
    State {
        /// Key of the value.
        key: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A value of the configuration breaks a rule.
    #[error("configuration key `{key}` {rule}")]
    Config {
        /// Key of the value.
        key: String,
        /// The rule, in words that follow the key.
        rule: String,
    },
    /// A value could not be turned into JSON.
    #[error("cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// What the scheduler itself calls an error.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// An error of the scheduler's own.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }
}

impl From<types::Error> for Error {
    fn from(error: types::Error) -> Self {
        match error {
            types::Error::Denied(text) => Self::Denied(text),
            types::Error::Invalid(text) => Self::Invalid(text),
            types::Error::NotFound(text) => Self::NotFound(text),
            types::Error::Limit(text) => Self::Limit(text),
            types::Error::Unsupported(text) => Self::Unsupported(text),
            types::Error::Other(text) => Self::Failed(text),
        }
    }
}
