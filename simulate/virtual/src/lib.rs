//! What simulations in virtual time have in common: what happens next, and random numbers that repeat.
//!
//! Invariants: time never goes back; the same seed gives the same numbers on every machine. Must never take
//! anything from the surroundings, and never know what is simulated.

mod queue;
mod random;

pub use queue::Queue;
pub use random::Random;
