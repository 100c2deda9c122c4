//! What masters do about themselves without being asked: the members' list, and component files.

pub(crate) mod components;
pub mod plan;
pub mod rules;
pub(crate) mod steward;
