//! What stands between the exports of a component and the author's [`Scheduler`].
//!
//! Used by the expansion of [`scheduler!`](crate::scheduler) only. Holds no state of its own: the
//! instance lives in a thread-local that the macro declares.

use crate::bindings::exports::tessera::framework::scheduler::{Description, Guest, TurnInfo};
use crate::bindings::tessera::framework::events;
use crate::bindings::migration::exports::tessera::framework::migration;
use crate::{Config, Event, Migration, Scheduler, Turn, http, state};

/// Tells the compiler that the exports are used, also where they are not exported.
pub fn assert_exported<G: Guest>() {}

/// The same for a migration.
pub fn assert_migrates<G: migration::Guest>() {}

/// Migrate a part of the state.
pub fn step<M: Migration>(from: u32) -> Result<bool, String> {
    let done = M::step(from).map_err(|error| error.to_string())?;
    state::reset_room();
    Ok(done)
}

/// Describe the component.
pub fn describe(writes: u32, reads: &[u32]) -> Description {
    Description {
        writes_state: writes,
        reads_state: reads.to_vec(),
    }
}

/// Make an instance.
pub fn init<S: Scheduler>(
    slot: &mut Option<S>,
    config: Vec<(String, String)>,
) -> Result<(), String> {
    *slot = Some(S::init(&Config::from(config)).map_err(|error| error.to_string())?);
    Ok(())
}

/// Handle one batch: each event, then the end of the turn.
pub fn handle<S: Scheduler>(
    slot: &mut Option<S>,
    info: TurnInfo,
    batch: Vec<events::Event>,
) -> Result<(), String> {
    let scheduler = slot.as_mut().ok_or("handle was called before init")?;
    let mut turn = Turn::new(info);
    for event in batch {
        scheduler
            .handle(&mut turn, Event::from(event))
            .map_err(|error| error.to_string())?;
    }
    scheduler
        .end_turn(&mut turn)
        .map_err(|error| error.to_string())?;
    state::reset_room();
    http::reset_answered();
    Ok(())
}
