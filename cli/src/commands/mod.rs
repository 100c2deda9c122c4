//! One file per command. Each reads its arguments, asks the cluster, and prints what it was told.
//!
//! Must never contain rules of the cluster: what is allowed is decided by masters.

pub mod agent;
pub mod component;
pub mod component_end;
pub mod dev;
pub mod events;
pub mod executor;
pub mod framework;
pub mod lifecycle;
pub mod master;
pub mod operator;
pub mod replay;
pub mod role;
pub mod run;
pub mod sim;
pub mod sim_agents;
pub mod state;
pub mod task;
pub mod upkeep;
