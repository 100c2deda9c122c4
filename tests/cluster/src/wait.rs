//! Waiting for a condition with a deadline.
//!
//! Must never wait for time to pass: the only pause is the one between two looks.

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
