//! Placeholder while the crate is being laid out.

mod checkpoint;
mod components;
mod file_lane;
mod images;
mod sandbox;
mod scheduler_log;
mod session;
mod worker_link;
