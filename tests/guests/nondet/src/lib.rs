//! A scheduler that reports everything by which two lives of it could differ: clocks, sleeping,
//! random bytes, the order of a `HashMap`, floats and NaN bits, environment. `GET /` answers with JSON;
//! the same report of `init` is under `init`, and the last one is kept in the state. Each turn sets a
//! timer that the order of a `HashMap` chooses. `/trap` panics. Two instances with equal inputs must
//! answer equally.

mod report;

use serde_json::json;
use tessera_sdk::{Config, Error};

tessera_sdk::scheduler!(report::Nondet, state_version = 1);

/// What this component says of a turn, beside the report.
fn remark(_turn: u64, config: &Config) -> Result<serde_json::Value, Error> {
    Ok(json!(config.get("remark")))
}
