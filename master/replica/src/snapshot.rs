//! The whole state as the bytes of one raft snapshot, and back.
//!
//! Owns: the snapshot encoding. Invariants: rows are in disk order; the checksum covers all of
//! them; equal states give equal bytes.
//! Must never: build more than the given limit.

use crate::codec::{Fields, seal, unseal};
use crate::error::DiskError;
use crate::machine::{RowChange, RowReader};

const SNAPSHOT_VERSION: u8 = 1;
/// Bound into the checksum, so that no other record passes for a snapshot.
const BOUND: &[u8] = b"snapshot";
/// Rows fetched from the disk at a time.
const PAGE_ROWS: usize = 1_024;
/// Tables that may hold rows.
const TABLES: std::ops::Range<u8> = 0..255;

/// All rows as `[version]([table][key length][key][value length][value])*[crc]`, or `None` if
/// that takes more than `max_bytes`.
pub(crate) fn encode(rows: &dyn RowReader, max_bytes: usize) -> Result<Option<Vec<u8>>, DiskError> {
    let mut bytes = vec![SNAPSHOT_VERSION];
    for table in TABLES {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = rows.scan(table, &[], after.as_deref(), PAGE_ROWS)?;
            let full = page.len() == PAGE_ROWS;
            after = page.last().map(|(key, _)| key.clone());
            for (key, value) in page {
                let lengths = (u32::try_from(key.len()), u32::try_from(value.len()));
                let (Ok(key_len), Ok(value_len)) = lengths else {
                    return Ok(None);
                };
                if bytes.len() + key.len() + value.len() + 13 > max_bytes {
                    return Ok(None);
                }
                bytes.push(table);
                bytes.extend_from_slice(&key_len.to_le_bytes());
                bytes.extend_from_slice(&key);
                bytes.extend_from_slice(&value_len.to_le_bytes());
                bytes.extend_from_slice(&value);
            }
            if !full {
                break;
            }
        }
    }
    Ok(Some(seal(bytes, BOUND)))
}

/// Whether `bytes` are a whole, undamaged snapshot of a version this build reads.
pub(crate) fn is_intact(bytes: &[u8]) -> bool {
    unseal(bytes, BOUND).is_some_and(|body| body.first() == Some(&SNAPSHOT_VERSION))
}

/// The rows of a snapshot, or `None` if the bytes are not one.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<RowChange>> {
    let mut fields = Fields::new(unseal(bytes, BOUND)?);
    if fields.u8()? != SNAPSHOT_VERSION {
        return None;
    }
    let mut rows = Vec::new();
    while let Some(table) = fields.u8() {
        let key_len = usize::try_from(fields.u32()?).ok()?;
        let key = fields.bytes(key_len)?.to_vec();
        let value_len = usize::try_from(fields.u32()?).ok()?;
        let value = fields.bytes(value_len)?.to_vec();
        if !TABLES.contains(&table) {
            return None;
        }
        rows.push(RowChange::Put { table, key, value });
    }
    Some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, DiskBatch, Durability, MemDisk};

    fn filled() -> MemDisk {
        let mut disk = MemDisk::new();
        let rows = (0..3_000u32)
            .map(|n| RowChange::Put {
                table: (n % 3) as u8,
                key: n.to_be_bytes().to_vec(),
                value: vec![7; (n % 5) as usize],
            })
            .collect();
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
        disk
    }

    #[test]
    fn a_snapshot_rebuilds_the_same_rows() {
        let disk = filled();
        let bytes = encode(&disk, 1 << 20).ok().flatten().unwrap_or_default();
        let rows = decode(&bytes).unwrap_or_default();
        let mut copy = MemDisk::new();
        assert!(
            copy.write(
                DiskBatch {
                    rows,
                    ..DiskBatch::default()
                },
                Durability::Synced
            )
            .is_ok()
        );
        assert_eq!(copy.all_rows(), disk.all_rows());
        assert_eq!(encode(&copy, 1 << 20), Ok(Some(bytes)));
    }

    #[test]
    fn a_state_over_the_limit_is_refused() {
        assert_eq!(encode(&filled(), 1_000), Ok(None));
    }

    #[test]
    fn damage_is_found() {
        let mut bytes = encode(&filled(), 1 << 20)
            .ok()
            .flatten()
            .unwrap_or_default();
        assert!(is_intact(&bytes));
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        assert!(!is_intact(&bytes));
        assert_eq!(decode(&bytes), None);
    }
}
