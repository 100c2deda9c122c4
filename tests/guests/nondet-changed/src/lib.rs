//! The guest `nondet` after a change of its code that shows from turn 4 on: a recording of `nondet` is
//! equal up to there.

#[path = "../../nondet/src/report.rs"]
mod report;

use serde_json::json;
use tessera_sdk::{Config, Error, state};

tessera_sdk::scheduler!(report::Nondet, state_version = 1);

/// From turn 4 on it also writes to the state.
fn remark(turn: u64, config: &Config) -> Result<serde_json::Value, Error> {
    if turn >= 4 {
        state::set("changed", &turn)?;
    }
    Ok(json!(config.get("remark")))
}
