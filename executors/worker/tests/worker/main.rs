//! A real worker process with real guests: what it promises to agents, guests and neighbours.
//!
//! Invariants: guests are those of tests/guests, built by scripts/build-guests. This file must never
//! reach into the worker other than through its link, its modes and its files.

mod damaged;
mod executors;
mod filtering;
mod harness;
mod http;
mod judging;
mod limits;
mod many;
mod migrating;
mod playing;
mod reaching;
mod replaying;
mod schedulers;
mod task_limits;
mod tasks;
