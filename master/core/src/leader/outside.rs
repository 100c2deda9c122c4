//! State that users wrote, and that the instance of its scheduler may not have in its copy yet.
//!
//! Owns the outstanding keys of each framework. Level-triggered: a key stays here until an instance says,
//! or shows by its turn, that it has the write; the batch that brings it is completed with the value of that
//! moment ([`Desk::complete`]), so that an older one never goes out after a newer one. Invariant: what an
//! instance that has the first `c` writes lacks is here, unless `c` is below the base of its framework;
//! such an instance is built anew from the state. Must never hold a value.

use super::Desk;
use super::instances::Instance;
use crate::generation::{self, Layer};
use crate::limits::{
    OUTSIDE_BATCH_BYTES_MAX, OUTSIDE_BATCH_KEYS_MAX, OUTSIDE_BYTES_MAX, OUTSIDE_BYTES_TOTAL_MAX,
    OUTSIDE_EVERY_MS, OUTSIDE_KEYS_MAX,
};
use crate::rows::{self, Overlay, Rows, RowsError};
use crate::state::Framework;
use std::collections::BTreeMap;
use tessera_types::FrameworkId;
use tessera_wire::v1::{self, event::Event as E};

/// The keys of one framework.
#[derive(Debug)]
struct Keys {
    /// Of this write and those before it nothing is known.
    base: u64,
    /// The newest write of each key.
    newest: BTreeMap<String, u64>,
    /// The same by write.
    order: BTreeMap<u64, String>,
    bytes: usize,
}

/// All of them. A framework that is not here has no write that this leader knows to be outstanding.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    frameworks: BTreeMap<FrameworkId, Keys>,
    bytes: usize,
}

impl Outside {
    /// A key was written. False when there are too many: they are forgotten, and whoever lacks one of them
    /// has to be built anew.
    fn note(&mut self, id: FrameworkId, key: String, count: u64) -> bool {
        let new = || Keys {
            base: count.saturating_sub(1),
            newest: BTreeMap::new(),
            order: BTreeMap::new(),
            bytes: 0,
        };
        let keys = self.frameworks.entry(id).or_insert_with(new);
        match keys.newest.insert(key.clone(), count) {
            Some(older) => {
                keys.order.remove(&older);
            }
            None => {
                keys.bytes += key.len();
                self.bytes += key.len();
            }
        }
        keys.order.insert(count, key);
        let full = keys.newest.len() > OUTSIDE_KEYS_MAX
            || keys.bytes > OUTSIDE_BYTES_MAX
            || self.bytes > OUTSIDE_BYTES_TOTAL_MAX;
        if full {
            self.bytes -= keys.bytes;
            *keys = Keys { base: count, ..new() };
        }
        !full
    }

    /// Whether everything that an instance with so many writes lacks is here.
    fn covers(&self, id: FrameworkId, has: u64, framework: &Framework) -> bool {
        match self.frameworks.get(&id) {
            Some(keys) => has >= keys.base,
            None => has >= framework.outside_writes,
        }
    }

    /// The instance has these writes.
    fn arrived(&mut self, id: FrameworkId, has: u64) {
        let Some(keys) = self.frameworks.get_mut(&id) else { return };
        while let Some(first) = keys.order.first_entry().filter(|first| *first.key() <= has) {
            let key = first.remove();
            keys.newest.remove(&key);
            keys.bytes -= key.len();
            self.bytes -= key.len();
        }
        if keys.order.is_empty() && has >= keys.base {
            self.frameworks.remove(&id);
        }
    }

    fn forget(&mut self, id: FrameworkId) {
        if let Some(keys) = self.frameworks.remove(&id) {
            self.bytes -= keys.bytes;
        }
    }

    /// The oldest outstanding writes, as many as a batch brings.
    pub(super) fn next(&self, id: FrameworkId) -> Vec<(u64, String)> {
        let keys = self.frameworks.get(&id).into_iter().flat_map(|keys| &keys.order);
        let next = keys.take(OUTSIDE_BATCH_KEYS_MAX);
        next.map(|(count, key)| (*count, key.clone())).collect()
    }

    /// How many of them there are.
    pub(super) fn next_len(&self, id: FrameworkId) -> usize {
        let keys = self.frameworks.get(&id).map_or(0, |keys| keys.order.len());
        keys.min(OUTSIDE_BATCH_KEYS_MAX)
    }

    /// Whose writes are outstanding.
    pub(super) fn waiting(&self) -> impl Iterator<Item = FrameworkId> {
        let waiting = self.frameworks.iter().filter(|(_, keys)| !keys.order.is_empty());
        waiting.map(|(id, _)| *id)
    }
}

impl Instance {
    /// Whether a batch may be made only to bring writes from outside: not for each one of many.
    pub(super) fn outside_due(&self, now_ms: u64) -> bool {
        self.outside_sent_ms.is_none_or(|at| now_ms >= at + OUTSIDE_EVERY_MS)
    }
}

impl Desk<'_> {
    /// A user wrote state.
    pub(super) fn state_written(&mut self, id: FrameworkId, key: String, count: u64) {
        if !self.state.frameworks.get(&id).is_some_and(|framework| !framework.removing) {
            return;
        }
        let noted = self.leader.outside.note(id, key, count);
        if !noted && let Some(instance) = self.leader.instances.get_mut(&id) {
            instance.out_of_step |= instance.ready;
        }
        self.leader.dirty_frameworks.insert(id);
    }

    /// An instance is ready and has so many writes; whether it will have all of them.
    pub(super) fn outside_of_ready(&mut self, id: FrameworkId, has: u64) -> bool {
        let Some(framework) = self.state.frameworks.get(&id) else { return true };
        // It cannot have more than there are.
        let has = has.min(framework.outside_writes);
        let covered = self.leader.outside.covers(id, has, framework);
        self.outside_arrived(id, has);
        covered
    }

    /// What an instance has got.
    pub(super) fn outside_arrived(&mut self, id: FrameworkId, has: u64) {
        self.leader.outside.arrived(id, has);
        if let Some(instance) = self.leader.instances.get_mut(&id) {
            instance.outside = instance.outside.max(has);
        }
    }

    pub(super) fn forget_outside(&mut self, id: FrameworkId) {
        self.leader.outside.forget(id);
    }

    /// Write the values of now into a batch that brings writes from outside, as many as it may carry.
    pub(crate) fn complete(
        &mut self,
        batch: &mut v1::Batch,
        rows: &dyn Rows,
    ) -> Result<(), RowsError> {
        let changed = batch.events.iter_mut().find_map(|event| match &mut event.event {
            Some(E::StateChanged(changed)) => Some(changed),
            _ => None,
        });
        let Some(changed) = changed else { return Ok(()) };
        let id = FrameworkId(batch.key.map_or(0, |key| key.framework));
        let layer = self.state.frameworks.get(&id).map_or(Layer::Values, Framework::layer);
        let overlay = Overlay::new(rows);
        let mut bytes = 0;
        let mut carried = 0;
        for write in &mut changed.writes {
            let key = rows::owned_key(id, write.key.as_bytes());
            write.value = generation::get(&overlay, layer, &key)?;
            bytes += write.key.len() + write.value.as_ref().map_or(0, Vec::len);
            if bytes > OUTSIDE_BATCH_BYTES_MAX && carried > 0 {
                break;
            }
            carried += 1;
        }
        if carried == changed.writes.len() {
            return Ok(());
        }
        changed.writes.truncate(carried);
        let sent = self.leader.instances.get_mut(&id).and_then(|instance| instance.outstanding.as_mut());
        let sent = sent.filter(|sent| sent.time_ms == batch.time_ms);
        // Without a record of what was sent, nothing counts as brought.
        changed.count = sent.map_or(0, |sent| {
            sent.outside.truncate(carried);
            sent.outside.last().map_or(0, |(count, _)| *count)
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: FrameworkId = FrameworkId(1);

    fn noted(writes: &[(u64, &str)]) -> Outside {
        let mut outside = Outside::default();
        for (count, key) in writes {
            assert!(outside.note(F, (*key).to_owned(), *count));
        }
        outside
    }

    fn next(outside: &Outside) -> Vec<(u64, String)> {
        outside.next(F)
    }

    #[test]
    fn a_key_that_is_written_again_waits_once_with_its_newest_write() {
        let mut outside = noted(&[(4, "a"), (5, "b"), (6, "a")]);
        assert_eq!(next(&outside), [(5, "b".to_owned()), (6, "a".to_owned())]);
        outside.arrived(F, 5);
        assert_eq!(next(&outside), [(6, "a".to_owned())]);
        outside.arrived(F, 6);
        assert_eq!((next(&outside).len(), outside.bytes, outside.frameworks.len()), (0, 0, 0));
    }

    #[test]
    fn too_many_keys_are_forgotten_and_the_base_says_so() {
        let mut outside = Outside::default();
        let last = OUTSIDE_KEYS_MAX as u64 + 10;
        let full = (10..=last).find(|count| !outside.note(F, format!("k{count}"), *count));
        assert_eq!(full, Some(last));
        assert_eq!((next(&outside).len(), outside.bytes), (0, 0));
        assert_eq!(outside.frameworks[&F].base, last);
        outside.arrived(F, last - 1);
        assert_eq!(outside.frameworks[&F].base, last, "it lacks one of them");
        outside.arrived(F, last);
        assert!(outside.frameworks.is_empty());
    }
}
