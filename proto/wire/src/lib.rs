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
