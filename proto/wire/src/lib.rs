//! Wire messages: generated from `proto/*.proto`, and their conversions to and from the nouns.
//!
//! Invariants: a conversion from the wire checks everything that the type promises and names the field
//! that breaks a rule; a conversion to the wire cannot fail. Encodings of rows, commands, checkpoints
//! and specs are stable: prost writes fields in order of their numbers, and no message has a map. This
//! crate must never hold rules about state, defaults or IO beyond reading and writing one frame.

mod common;
mod error;
pub mod frame;
pub mod recording;
mod request;
mod role;
mod tasks_hash;
mod turn;

pub use common::{decode_spec, effective_limits, encode_spec};
pub use error::WireError;
pub use tasks_hash::tasks_hash;

/// The generated messages and services.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("tessera.v1");
}

/// Version of the session's protocol that this crate speaks.
pub const SESSION_PROTOCOL: u32 = 1;

/// Version of what masters say to each other.
pub const PEER_PROTOCOL: u32 = 1;

/// Whether two protocols, of the session or of masters, go together: one and the next do, so that a cluster is
/// upgraded one process at a time. What is newer says nothing that the version before it must understand.
#[must_use]
pub const fn go_together(ours: u32, theirs: u32) -> bool {
    // Who says none does not say it in this language.
    theirs != 0 && ours.abs_diff(theirs) <= 1
}

#[cfg(test)]
mod tests {
    use super::go_together;

    #[test]
    fn versions_that_follow_each_other_go_together() {
        let spoken = |ours| (0..9).filter(|theirs| go_together(ours, *theirs)).collect::<Vec<u32>>();
        assert_eq!(spoken(1), [1, 2]);
        assert_eq!(spoken(4), [3, 4, 5]);
    }
}
