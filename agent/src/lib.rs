//! Placeholder while the crate is being laid out.

mod checkpoint;
mod components;
mod images;
mod session;
mod worker_link;
