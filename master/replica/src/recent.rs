//! Rows that were read lately, kept so that reading them again costs no search of the disk.
//!
//! Owns: the copies, in two generations. Invariants: a copy is what the disk would give, because every batch that
//! changes rows is told here; only what was read is kept, so that rows that are written and never read take no room;
//! both generations together stay near [`RECENT_BYTES`]. Must never: decide what is read or written.

use std::collections::BTreeMap;

use crate::machine::RowChange;

/// Bytes of all copies: some ten thousand small rows, a part of what the database keeps in memory anyway.
const RECENT_BYTES: usize = 4 * 1024 * 1024;
/// A larger row is not kept: copying it costs more than looking for it.
const ROW_BYTES_MAX: usize = 4 * 1024;
/// What an entry of a map takes besides its key and value, about.
const ENTRY_BYTES: usize = 96;

/// What the disk has under a key.
type Value = Option<Vec<u8>>;

/// Copies of one generation.
#[derive(Debug, Default)]
struct Generation {
    tables: BTreeMap<u8, BTreeMap<Vec<u8>, Value>>,
    bytes: usize,
}

fn bytes_of(key: &[u8], value: Option<&[u8]>) -> usize {
    ENTRY_BYTES + key.len() + value.map_or(0, <[u8]>::len)
}

impl Generation {
    fn get(&self, table: u8, key: &[u8]) -> Option<&Value> {
        self.tables.get(&table)?.get(key)
    }

    fn take(&mut self, table: u8, key: &[u8]) -> Option<(Vec<u8>, Value)> {
        let (key, value) = self.tables.get_mut(&table)?.remove_entry(key)?;
        self.bytes -= bytes_of(&key, value.as_deref());
        Some((key, value))
    }

    fn put(&mut self, table: u8, key: Vec<u8>, value: Value) {
        self.bytes += bytes_of(&key, value.as_deref());
        self.tables.entry(table).or_default().insert(key, value);
    }
}

/// Rows that were read lately. What is used moves to the newer generation; when that has half of the room, the older
/// one goes.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    newer: Generation,
    older: Generation,
}

impl Recent {
    /// What the disk has under this key, if it is known here.
    pub(crate) fn get(&mut self, table: u8, key: &[u8]) -> Option<Value> {
        if let Some(value) = self.newer.get(table, key) {
            return Some(value.clone());
        }
        let (key, value) = self.older.take(table, key)?;
        let copy = value.clone();
        self.add(table, key, value);
        Some(copy)
    }

    /// The disk was read.
    pub(crate) fn note(&mut self, table: u8, key: &[u8], value: Option<&[u8]>) {
        if value.is_none_or(|value| value.len() <= ROW_BYTES_MAX) {
            self.add(table, key.to_vec(), value.map(<[u8]>::to_vec));
        }
    }

    fn add(&mut self, table: u8, key: Vec<u8>, value: Value) {
        self.newer.put(table, key, value);
        if self.newer.bytes > RECENT_BYTES / 2 {
            self.older = std::mem::take(&mut self.newer);
        }
    }

    /// A batch is about to change rows on the disk; what is kept of them changes alike.
    pub(crate) fn change(&mut self, changes: &[RowChange]) {
        for change in changes {
            match change {
                RowChange::Put { table, key, value } => self.replace(*table, key, Some(value)),
                RowChange::Delete { table, key } => self.replace(*table, key, None),
                // Rare, and of many rows.
                RowChange::DeletePrefix { .. } => self.clear(),
            }
        }
    }

    fn replace(&mut self, table: u8, key: &[u8], value: Option<&[u8]>) {
        let taken = self.newer.take(table, key).or_else(|| self.older.take(table, key));
        let Some((key, old)) = taken else { return };
        match value {
            None => self.add(table, key, None),
            Some(value) if value.len() <= ROW_BYTES_MAX => {
                let mut room = old.unwrap_or_default();
                room.clear();
                room.extend_from_slice(value);
                self.add(table, key, Some(room));
            }
            Some(_) => {}
        }
    }

    /// Nothing is known.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &[u8], value: &[u8]) -> RowChange {
        RowChange::Put { table: 1, key: key.to_vec(), value: value.to_vec() }
    }

    #[test]
    fn only_what_was_read_is_known_and_follows_what_is_written() {
        let mut recent = Recent::default();
        recent.change(&[put(b"a", b"1")]);
        assert_eq!(recent.get(1, b"a"), None, "it was never read");
        recent.note(1, b"a", Some(b"1"));
        recent.note(1, b"b", None);
        assert_eq!(recent.get(1, b"a"), Some(Some(b"1".to_vec())));
        assert_eq!((recent.get(1, b"b"), recent.get(2, b"a")), (Some(None), None));
        recent.change(&[put(b"b", b"2"), RowChange::Delete { table: 1, key: b"a".to_vec() }]);
        assert_eq!((recent.get(1, b"a"), recent.get(1, b"b")), (Some(None), Some(Some(b"2".to_vec()))));
        recent.change(&[put(b"b", &vec![0; ROW_BYTES_MAX + 1])]);
        assert_eq!(recent.get(1, b"b"), None, "it is too large by now");
        recent.change(&[RowChange::DeletePrefix { table: 9, prefix: Vec::new() }]);
        assert_eq!(recent.get(1, b"a"), None);
        assert_eq!(recent.newer.bytes + recent.older.bytes, 0);
    }

    /// What is known is what a disk has that every change was made on, however reads and changes come.
    #[test]
    fn what_is_known_is_what_the_disk_has() {
        for seed in 0..200_u64 {
            let mut random = seed;
            let mut below = |bound: u64| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 33) % bound
            };
            let (mut disk, mut recent) = (BTreeMap::new(), Recent::default());
            let mut known = 0;
            for _ in 0..300 {
                let (table, key) = (u8::try_from(below(2)).unwrap(), vec![u8::try_from(below(12)).unwrap()]);
                let change = match below(40) {
                    0 => RowChange::DeletePrefix { table, prefix: Vec::new() },
                    1..8 => RowChange::Delete { table, key: key.clone() },
                    // Some are too large.
                    n => {
                        let bytes = usize::try_from(below(n * ROW_BYTES_MAX as u64 / 30)).unwrap();
                        RowChange::Put { table, key: key.clone(), value: vec![7; bytes] }
                    }
                };
                recent.change(std::slice::from_ref(&change));
                match change {
                    RowChange::Put { table, key, value } => drop(disk.insert((table, key), value)),
                    RowChange::Delete { table, key } => drop(disk.remove(&(table, key))),
                    RowChange::DeletePrefix { table, .. } => disk.retain(|(of, _), _| *of != table),
                }
                let read = vec![u8::try_from(below(12)).unwrap()];
                let there = disk.get(&(table, read.clone()));
                match recent.get(table, &read) {
                    Some(value) => {
                        known += 1;
                        assert_eq!(value.as_ref(), there, "seed {seed}");
                    }
                    None => recent.note(table, &read, there.map(Vec::as_slice)),
                }
            }
            assert!(known > 50, "seed {seed}: {known}");
        }
    }

    #[test]
    fn what_is_used_stays_and_the_rest_makes_room() {
        let mut recent = Recent::default();
        recent.note(1, b"used", Some(b"v"));
        let key = |n: u32| n.to_be_bytes();
        let each = bytes_of(&key(0), Some(&[7; 1_000]));
        let count = u32::try_from(3 * RECENT_BYTES / each).unwrap();
        for n in 0..count {
            recent.note(1, &key(n), Some(&[7; 1_000]));
            assert_eq!(recent.get(1, b"used"), Some(Some(b"v".to_vec())), "after {n}");
            assert!(recent.newer.bytes + recent.older.bytes <= RECENT_BYTES + each);
        }
        assert_eq!(recent.get(1, &key(0)), None);
        assert!(recent.get(1, &key(count - 1)).is_some());
    }
}
