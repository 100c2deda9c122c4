//! Waiting for a condition with a deadline.
//!
//! Must never wait for time to pass in the hope that something has happened: that is what [`until`] is for.

use crate::{Outcome, failure};
use std::time::{Duration, Instant};

/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// Looks again and again until there is a value; `Err` is what is still missing.
///
/// # Errors
/// When the deadline passes; the text holds what was missing at the last look.
pub async fn until<T, F>(what: &str, within: Duration, mut look: F) -> Outcome<T>
where
    F: AsyncFnMut() -> Result<T, String>,
{
    let deadline = Instant::now() + within;
    loop {
        match look().await {
            Ok(value) => return Ok(value),
            Err(missing) if Instant::now() > deadline => {
                return Err(failure(format!(
                    "{what}: not within {} s; at the end: {missing}",
                    within.as_secs()
                )));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Passes time that is part of what is tested: how long a fault lasts, how often something is asked.
pub async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}
