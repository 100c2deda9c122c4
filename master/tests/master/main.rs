//! A real master in this process, driven over its two ports: REST as a user, gRPC as an agent would.
//!
//! The judge of uploads is a script, since what a component contains is the worker's business.

mod api_walk;
mod basics;
mod components;
mod harness;
mod lifecycle;
mod on_record;
mod recordings;
mod schema;
mod told_again;
