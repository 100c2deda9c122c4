//! Structured log lines. Shown by `tessera framework logs NAME`.
//!
//! The host cuts lines at 8 KiB and keeps at most 1,000 of them, or 1 MiB, per turn.

pub use crate::bindings::tessera::framework::types::Level;
use crate::host::log as host;
use std::cell::Cell;

thread_local! {
    /// What the guest is, where it does not say which part of it speaks.
    static TARGET: Cell<&'static str> = const { Cell::new("scheduler") };
}

/// The guest is this.
pub(crate) fn set_target(target: &'static str) {
    TARGET.set(target);
}

/// Write one line with named values beside its text. `target` names the part that speaks.
pub fn write(level: Level, target: &str, text: &str, fields: &[(&str, String)]) {
    if host::enabled(level) {
        let fields: Vec<(String, String)> = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        host::write(level, target, text, &fields);
    }
}

/// Write a line for developers.
pub fn debug(text: impl AsRef<str>) {
    write(Level::Debug, TARGET.get(), text.as_ref(), &[]);
}

/// Write a line about something that is as it should be.
pub fn info(text: impl AsRef<str>) {
    write(Level::Info, TARGET.get(), text.as_ref(), &[]);
}

/// Write a line about something that may need attention.
pub fn warn(text: impl AsRef<str>) {
    write(Level::Warn, TARGET.get(), text.as_ref(), &[]);
}

/// Write a line about something that is wrong.
pub fn error(text: impl AsRef<str>) {
    write(Level::Error, TARGET.get(), text.as_ref(), &[]);
}
