//! What must hold among masters: one log, one leader for each term, nothing forgotten.
//!
//! Invariants: it looks at the disks and at what masters say of themselves; each entry is compared with
//! what any master applied there before. Must never change anything.

use crate::disk::FaultyDisk;
use std::collections::BTreeMap;
use tessera_master::node::Node;
use tessera_replica::{Disk, Role, Status};

/// The shadow of the log.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Fingerprint of each applied entry.
    entries: BTreeMap<u64, u64>,
    /// How far each master has applied in its present life.
    applied: BTreeMap<usize, u64>,
    /// Who led in each term.
    leaders: BTreeMap<u64, u64>,
}

fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Group {
    /// A master's process begins.
    pub(crate) fn on_open(&mut self, slot: usize) {
        self.applied.remove(&slot);
    }

    /// A step of a master is done; says whether it applied something, or what does not hold.
    pub(crate) fn on_settled(
        &mut self,
        slot: usize,
        node: &Node<FaultyDisk>,
        disk: &FaultyDisk,
        status: &Status,
        applied_anywhere: u64,
    ) -> Result<bool, String> {
        if node.core().is_leader() {
            self.check_leader(slot, status, applied_anywhere)?;
        }
        let index = status.applied.index;
        let before = self.applied.insert(slot, index);
        if before == Some(index) {
            return Ok(false);
        }
        if before.is_some_and(|before| index < before) {
            return Err(format!("master {slot}: the applied index falls to {index}"));
        }
        let from = before.unwrap_or(0).max(status.first_index.saturating_sub(1)) + 1;
        let records = disk.log_read(from..index + 1, u64::MAX).map_err(|error| error.to_string())?;
        for (at, record) in records {
            let found = fingerprint(&record);
            let known = *self.entries.entry(at).or_insert(found);
            if known != found {
                return Err(format!("master {slot} applied another entry {at} than others"));
            }
        }
        Ok(true)
    }

    fn check_leader(&mut self, slot: usize, status: &Status, applied: u64) -> Result<(), String> {
        let (term, node) = (status.term, status.node);
        if status.role != Role::Leader {
            return Err(format!("master {slot} serves as a leader and is {:?}", status.role));
        }
        let newest = self.leaders.last_key_value().map_or(0, |(term, _)| *term);
        let known = *self.leaders.entry(term).or_insert(node);
        if known != node {
            return Err(format!("nodes {known} and {node} both lead in term {term}"));
        }
        if term > newest && status.applied.index < applied {
            let has = status.applied.index;
            return Err(format!("node {node} leads in term {term} with {has} of {applied} applied entries"));
        }
        Ok(())
    }
}
