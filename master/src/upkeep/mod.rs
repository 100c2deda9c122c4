//! What masters do about themselves without being asked: the members' list, and component files.

pub mod components;
pub mod steward;
