//! What is in a batch for a scheduler.
//!
//! Invariants: a batch that breaks a rule is refused as a whole, with the field named. This file must never
//! change what a guest is given.

use tessera_types::limits::BATCH_EVENTS_MAX;
use tessera_types::{Epoch, Event, FrameworkId, TurnHeader, TurnNumber};
use tessera_wire::{WireError, v1};

/// The newest configuration that a batch brings.
#[must_use]
pub fn new_config(batch: &v1::Batch) -> Option<Vec<v1::Pair>> {
    use v1::event::Event as E;
    let changed = batch.events.iter().filter_map(|event| match event.event.as_ref()? {
        E::ConfigChanged(changed) => Some(changed),
        _ => None,
    });
    let newest = changed.max_by_key(|changed| changed.version);
    newest.map(|changed| changed.config.clone())
}

/// What a batch gives to a scheduler, or why it cannot be given.
///
/// # Errors
/// When the batch is larger than one may be, or holds what is no event.
pub fn open(batch: v1::Batch) -> Result<(TurnHeader, Vec<Event>), String> {
    if batch.events.len() > BATCH_EVENTS_MAX {
        return Err(format!("batch.events: at most {BATCH_EVENTS_MAX}"));
    }
    let key = batch.key.unwrap_or_default();
    let header = TurnHeader {
        framework: FrameworkId(key.framework),
        epoch: Epoch(key.epoch),
        number: TurnNumber(batch.number),
        time_ms: batch.time_ms,
    };
    let events = batch.events.into_iter().map(Event::try_from);
    let events = events.collect::<Result<Vec<_>, WireError>>();
    Ok((header, events.map_err(|error| format!("batch.{error}"))?))
}
