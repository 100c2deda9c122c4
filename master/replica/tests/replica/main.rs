//! Tests of the replica through its public interface, in one binary.
//!
//! Owns: the module list. Invariants: every random choice comes from a printed seed.
//! Must never: sleep.

mod boot;
mod crash;
mod damage;
mod elections;
mod group;
mod members;
mod random;
mod rocks;
mod sim;
mod single;
mod snapshots;
mod support;
mod throughput;
mod writes;
