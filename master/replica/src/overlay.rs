//! Row changes of entries that are applied but not written yet, and reads through them.
//!
//! Owns: the changes of one apply batch, each row kept once. Invariants: reading through an
//! [`Overlay`] gives what the disk would give if the changes were written; the changes it
//! yields have that effect. Must never: write.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;

use crate::error::DiskError;
use crate::machine::{RowChange, RowReader};

type Row = (Vec<u8>, Vec<u8>);
type Changed<'a> = (&'a Vec<u8>, &'a Option<Vec<u8>>);

/// Changes of one batch.
#[derive(Debug, Default)]
pub(crate) struct PendingRows {
    /// Prefixes emptied before the changes below take effect.
    cleared: Vec<(u8, Vec<u8>)>,
    /// New value, or `None` for a removed row, by table and key.
    changed: BTreeMap<u8, BTreeMap<Vec<u8>, Option<Vec<u8>>>>,
}

impl PendingRows {
    pub(crate) fn add(&mut self, change: RowChange) {
        match change {
            RowChange::Put { table, key, value } => {
                self.changed
                    .entry(table)
                    .or_default()
                    .insert(key, Some(value));
            }
            RowChange::Delete { table, key } => {
                self.changed.entry(table).or_default().insert(key, None);
            }
            RowChange::DeletePrefix { table, prefix } => {
                if let Some(rows) = self.changed.get_mut(&table) {
                    rows.retain(|key, _| !key.starts_with(&prefix));
                }
                let covered =
                    |(other, by): &(u8, Vec<u8>)| *other == table && prefix.starts_with(by);
                if !self.cleared.iter().any(covered) {
                    self.cleared.push((table, prefix));
                }
            }
        }
    }

    /// The changes as the disk shall do them.
    pub(crate) fn into_changes(self) -> Vec<RowChange> {
        let cleared = self
            .cleared
            .into_iter()
            .map(|(table, prefix)| RowChange::DeletePrefix { table, prefix });
        let changed = self.changed.into_iter().flat_map(|(table, rows)| {
            rows.into_iter().map(move |(key, value)| match value {
                Some(value) => RowChange::Put { table, key, value },
                None => RowChange::Delete { table, key },
            })
        });
        cleared.chain(changed).collect()
    }

    fn is_cleared(&self, table: u8, key: &[u8]) -> bool {
        self.cleared
            .iter()
            .any(|(of, prefix)| *of == table && key.starts_with(prefix))
    }
}

/// The rows of `base` with `pending` on top.
pub(crate) struct Overlay<'a> {
    pub base: &'a dyn RowReader,
    pub pending: &'a PendingRows,
}

impl Overlay<'_> {
    /// Changed keys of the scan, in order.
    fn changed_after<'b>(
        &'b self,
        table: u8,
        prefix: &'b [u8],
        after: Option<&'b [u8]>,
    ) -> impl Iterator<Item = Changed<'b>> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.pending
            .changed
            .get(&table)
            .into_iter()
            .flat_map(move |rows| rows.range::<[u8], _>((start, Bound::Unbounded)))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Merges one page of the base with the changes that sort up to its end.
    fn merge<'b>(
        &self,
        table: u8,
        page: Vec<Row>,
        changed: &mut Peekable<impl Iterator<Item = Changed<'b>>>,
        last_page: bool,
        out: &mut Vec<Row>,
    ) {
        let present = |(key, value): Changed<'_>| value.clone().map(|value| (key.clone(), value));
        for (key, value) in page {
            while let Some(earlier) = changed.next_if(|(other, _)| **other < key) {
                out.extend(present(earlier));
            }
            match changed.next_if(|(other, _)| **other == key) {
                Some(newer) => out.extend(present(newer)),
                None if self.pending.is_cleared(table, &key) => {}
                None => out.push((key, value)),
            }
        }
        if last_page {
            out.extend(changed.filter_map(present));
        }
    }
}

impl RowReader for Overlay<'_> {
    fn get(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError> {
        match self
            .pending
            .changed
            .get(&table)
            .and_then(|rows| rows.get(key))
        {
            Some(value) => Ok(value.clone()),
            None if self.pending.is_cleared(table, key) => Ok(None),
            None => self.base.get(table, key),
        }
    }

    fn scan(
        &self,
        table: u8,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, DiskError> {
        let mut changed = self.changed_after(table, prefix, after).peekable();
        let mut out = Vec::new();
        let mut base_after = after.map(<[u8]>::to_vec);
        while out.len() < limit {
            let page = self
                .base
                .scan(table, prefix, base_after.as_deref(), limit)?;
            let last_page = page.len() < limit;
            base_after = page.last().map(|(key, _)| key.clone()).or(base_after);
            self.merge(table, page, &mut changed, last_page, &mut out);
            if last_page {
                break;
            }
        }
        out.truncate(limit);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, DiskBatch, Durability, MemDisk};

    /// A small generator, so that a failure is repeated by its seed.
    struct Seeded(u64);

    impl Seeded {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (self.0 >> 33) % bound
        }

        fn key(&mut self) -> Vec<u8> {
            let len = self.below(3) as usize;
            (0..len)
                .map(|_| {
                    if self.below(4) == 0 {
                        0xff
                    } else {
                        self.below(3) as u8
                    }
                })
                .collect()
        }

        fn change(&mut self) -> RowChange {
            let table = self.below(2) as u8;
            match self.below(8) {
                0 => RowChange::DeletePrefix {
                    table,
                    prefix: self.key(),
                },
                1 | 2 => RowChange::Delete {
                    table,
                    key: self.key(),
                },
                _ => RowChange::Put {
                    table,
                    key: self.key(),
                    value: vec![self.below(256) as u8],
                },
            }
        }
    }

    #[test]
    fn reads_through_pending_changes_equal_reads_after_writing_them() {
        for seed in 0..400 {
            let mut random = Seeded(seed);
            let mut disk = MemDisk::new();
            let rows = (0..random.below(20)).map(|_| random.change()).collect();
            assert!(
                disk.write(
                    DiskBatch {
                        rows,
                        ..DiskBatch::default()
                    },
                    Durability::Synced
                )
                .is_ok()
            );
            let changes: Vec<_> = (0..random.below(20)).map(|_| random.change()).collect();
            let mut pending = PendingRows::default();
            changes
                .iter()
                .cloned()
                .for_each(|change| pending.add(change));
            let probes: Vec<_> = (0..40)
                .map(|_| {
                    let after = (random.below(2) == 0).then(|| random.key());
                    (
                        random.below(2) as u8,
                        random.key(),
                        after,
                        random.below(5) as usize,
                    )
                })
                .collect();
            let read = |reader: &dyn RowReader| -> Vec<_> {
                probes
                    .iter()
                    .map(|(table, key, after, limit)| {
                        let scan = reader.scan(*table, key, after.as_deref(), *limit);
                        (reader.get(*table, key), scan)
                    })
                    .collect()
            };
            let through = read(&Overlay {
                base: &disk,
                pending: &pending,
            });
            let rows = pending.into_changes();
            assert!(
                disk.write(
                    DiskBatch {
                        rows,
                        ..DiskBatch::default()
                    },
                    Durability::Synced
                )
                .is_ok()
            );
            assert_eq!(through, read(&disk), "seed {seed}");
        }
    }

    #[test]
    fn merged_changes_equal_the_single_ones() {
        for seed in 0..400 {
            let mut random = Seeded(seed);
            let changes: Vec<_> = (0..30).map(|_| random.change()).collect();
            let (mut one, mut merged) = (MemDisk::new(), MemDisk::new());
            let mut pending = PendingRows::default();
            changes
                .iter()
                .cloned()
                .for_each(|change| pending.add(change));
            let write = |disk: &mut MemDisk, rows| {
                disk.write(
                    DiskBatch {
                        rows,
                        ..DiskBatch::default()
                    },
                    Durability::Synced,
                )
            };
            assert_eq!(write(&mut one, changes), Ok(()));
            assert_eq!(write(&mut merged, pending.into_changes()), Ok(()));
            assert_eq!(one.all_rows(), merged.all_rows(), "seed {seed}");
        }
    }
}
