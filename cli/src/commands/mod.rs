//! One file per command. Each reads its arguments, asks the cluster, and prints what it was told.
//!
//! Must never contain rules of the cluster: what is allowed is decided by masters.

pub mod agent;
pub mod audit;
pub mod complete;
pub mod component;
pub mod component_end;
pub mod context;
pub mod debug;
pub mod dev;
pub mod doctor;
pub mod events;
pub mod executor;
pub mod explain;
pub mod framework;
pub mod framework_ask;
pub mod framework_build;
pub mod framework_dev;
pub mod framework_new;
pub mod framework_test;
pub mod lifecycle;
pub mod logging;
pub mod man;
pub mod master;
pub mod offer;
pub mod operation;
pub mod operator;
pub mod replay;
pub mod role;
pub mod run;
pub mod sim;
pub mod sim_agents;
pub mod state;
pub mod task;
pub mod top;
pub mod upkeep;
pub mod version;
