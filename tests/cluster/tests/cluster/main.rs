//! Tests with real processes: what unit tests and the simulator cannot show. They need root, control
//! groups, and everything built (`make build`).
//!
//! Must never wait without a deadline, nor end a process that they did not start.

mod access;
mod agent_death;
mod api;
mod author_guide;
mod author_mistakes;
mod bad_input;
mod chaos;
mod chaos_away;
mod chaos_books;
mod chaos_deadlines;
mod chaos_disks;
mod chaos_failover;
mod chaos_faults;
mod chaos_load;
mod chaos_net;
mod chaos_places;
mod chaos_requests;
mod chaos_slow_disk;
mod chaos_snapshot;
mod chaos_versions;
mod cli_operator;
mod cli_output;
mod components;
mod components_end;
mod engine;
mod executors;
mod first_steps;
mod groups;
mod hostile;
mod launcher;
mod limits;
mod masters;
mod members;
mod observed;
mod packaging;
mod preempt;
mod quarantine;
mod replay;
mod requests;
mod restart;
mod restored;
mod rot;
mod shares;
mod simulate;
mod simulated;
mod standby;
mod state_keys;
mod steps;
mod told;
mod unprivileged;
mod upgrades;
mod upkeep;
