//! What stands between the exports of a component and the author's [`Executor`].
//!
//! Used by the expansion of [`executor!`](crate::executor!) only. Holds no state of its own: the instance
//! lives in a thread-local that the macro declares.

use super::{Event, Executor, Turn};
use crate::bindings::executor::exports::tessera::framework::executor::Guest;
use crate::bindings::executor::tessera::framework::executor_events::ExecutorEvent;
use crate::{Config, log};

/// Tells the compiler that the exports are used, also where they are not exported.
pub fn assert_exported<G: Guest>() {}

/// Make an instance.
pub fn init<E: Executor>(
    slot: &mut Option<E>,
    config: Vec<(String, String)>,
) -> Result<(), String> {
    log::set_target("executor");
    *slot = Some(E::init(&Config::from(config)).map_err(|error| error.to_string())?);
    Ok(())
}

/// Handle one batch: each event, then the end of the turn.
pub fn handle<E: Executor>(
    slot: &mut Option<E>,
    time_ms: u64,
    batch: Vec<ExecutorEvent>,
) -> Result<(), String> {
    let executor = slot.as_mut().ok_or("handle was called before init")?;
    let mut turn = Turn::new(time_ms);
    for event in batch {
        executor
            .handle(&mut turn, Event::from(event))
            .map_err(|error| error.to_string())?;
    }
    executor
        .end_turn(&mut turn)
        .map_err(|error| error.to_string())
}
