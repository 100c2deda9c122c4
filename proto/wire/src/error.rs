//! What is wrong with a message from a peer.

/// A field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct WireError {
    /// The field.
    pub field: &'static str,
    /// The rule that it breaks.
    pub rule: String,
}

impl WireError {
    /// Build one.
    pub fn new(field: &'static str, rule: impl Into<String>) -> Self {
        Self { field, rule: rule.into() }
    }

    /// A field that must be present is not.
    #[must_use]
    pub fn missing(field: &'static str) -> Self {
        Self::new(field, "is missing")
    }
}

/// Names the field of an error that only knows its rule.
pub(crate) fn at<E: std::fmt::Display>(field: &'static str) -> impl Fn(E) -> WireError {
    move |error| WireError::new(field, error.to_string())
}
