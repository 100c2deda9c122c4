//! A snapshot on its way in: bytes are checked, and their rows staged beside those in use.
//!
//! Owns: how far the bytes came, and the unfinished row at their end. Invariants: nothing in use
//! changes here; only a snapshot that arrived whole, with the checksum of its trailer, becomes a
//! [`Staged`]. Must never: allocate what a damaged length claims.

use super::{ROW, SnapshotHeader, SnapshotId, TRAILER, TRAILER_BYTES};
use crate::codec::{Crc, Fields};
use crate::config::{MAX_ROW_BYTES, MAX_SNAPSHOT_HEADER_BYTES};
use crate::disk::{Row, StageId, StageWriter};
use crate::error::SnapshotError;

/// Rows are given to the disk when they reach this size.
const BATCH_BYTES: usize = 1024 * 1024;
/// Tables end below this number.
const RESERVED_TABLE: u8 = 255;

/// Takes the bytes of one snapshot, on any thread.
pub struct Staging {
    expected: SnapshotHeader,
    target: Option<(StageId, Box<dyn StageWriter>)>,
    offset: u64,
    header_seen: bool,
    ended: bool,
    /// Bytes of a part that is not complete yet.
    rest: Vec<u8>,
    rows: Vec<Row>,
    rows_bytes: usize,
    row_count: u64,
    crc: Crc,
}

/// A snapshot whose rows are staged and checked as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Staged {
    pub(crate) header: SnapshotHeader,
    pub(crate) stage: Option<StageId>,
    /// How many rows.
    pub rows: u64,
    /// Size of the snapshot.
    pub bytes: u64,
}

impl Staged {
    /// What the snapshot is of.
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }
}

impl std::fmt::Debug for Staging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Staging({} at {})", self.expected.id, self.offset)
    }
}

impl Staging {
    pub(crate) fn new(
        expected: SnapshotHeader,
        target: Option<(StageId, Box<dyn StageWriter>)>,
    ) -> Self {
        Staging {
            expected,
            target,
            offset: 0,
            header_seen: false,
            ended: false,
            rest: Vec::new(),
            rows: Vec::new(),
            rows_bytes: 0,
            row_count: 0,
            crc: Crc::EMPTY,
        }
    }

    /// Checks a saved snapshot without keeping its rows.
    pub fn only_check(header: SnapshotHeader) -> Self {
        Staging::new(header, None)
    }

    /// Which snapshot.
    pub fn id(&self) -> SnapshotId {
        self.expected.id
    }

    /// Bytes taken so far: where the next piece must start.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the piece at `offset`.
    ///
    /// # Errors
    /// When it does not follow, or makes no sense. After anything but
    /// [`SnapshotError::WrongOffset`] the snapshot must be sent anew.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SnapshotError> {
        if offset != self.offset {
            let expected = self.offset;
            return Err(SnapshotError::WrongOffset { offset, expected });
        }
        self.offset += bytes.len() as u64;
        self.rest.extend_from_slice(bytes);
        let mut used = 0;
        loop {
            let rest = self.rest.split_off(used);
            self.rest = rest;
            used = self.take_part()?;
            if used == 0 {
                return Ok(());
            }
        }
    }

    /// Takes as many complete parts off the front of `rest` as one batch of rows holds; says how
    /// many bytes they were.
    fn take_part(&mut self) -> Result<usize, SnapshotError> {
        if self.rest.is_empty() {
            return Ok(0);
        }
        if self.ended {
            return Err(SnapshotError::Damaged("bytes after its end"));
        }
        if !self.header_seen {
            return self.take_header();
        }
        let mut used = 0;
        while self.rows_bytes < BATCH_BYTES
            && let Some(rest) = self.rest.get(used..).filter(|rest| !rest.is_empty())
        {
            match rest.first() {
                Some(&ROW) => {
                    let Some((row, len)) = decode_row(rest)? else {
                        break;
                    };
                    self.rows_bytes += len;
                    self.row_count += 1;
                    self.rows.push(row);
                    used += len;
                }
                Some(&TRAILER) => {
                    let Some(trailer) = rest.get(..TRAILER_BYTES) else {
                        break;
                    };
                    let trailer = trailer.to_vec();
                    let before = self.rest.get(..used).unwrap_or_default();
                    self.crc.add(before);
                    self.flush()?;
                    self.check_trailer(&trailer, used)?;
                    self.ended = true;
                    return Ok(used + TRAILER_BYTES);
                }
                _ => return Err(SnapshotError::Damaged("a part of an unknown kind")),
            }
        }
        self.crc.add(self.rest.get(..used).unwrap_or_default());
        if self.rows_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(used)
    }

    fn take_header(&mut self) -> Result<usize, SnapshotError> {
        let Some((header, used)) = SnapshotHeader::decode(&self.rest)? else {
            return if self.rest.len() > MAX_SNAPSHOT_HEADER_BYTES + 64 {
                Err(SnapshotError::Damaged("the header is too long"))
            } else {
                Ok(0)
            };
        };
        if header != self.expected {
            return Err(SnapshotError::Damaged("it is another snapshot"));
        }
        self.crc.add(self.rest.get(..used).unwrap_or_default());
        self.header_seen = true;
        Ok(used)
    }

    fn flush(&mut self) -> Result<(), SnapshotError> {
        let rows = std::mem::take(&mut self.rows);
        self.rows_bytes = 0;
        let Some((_, writer)) = self.target.as_mut().filter(|_| !rows.is_empty()) else {
            return Ok(());
        };
        if writer.put(rows)? {
            Ok(())
        } else {
            Err(SnapshotError::Superseded)
        }
    }

    fn check_trailer(&mut self, trailer: &[u8], before: usize) -> Result<(), SnapshotError> {
        let (counted, crc) = trailer.split_at(TRAILER_BYTES - 4);
        self.crc.add(counted);
        if crc != self.crc.value().to_le_bytes() {
            return Err(SnapshotError::Damaged("it does not match its checksum"));
        }
        let mut fields = Fields::new(counted);
        fields.u8();
        if fields.u64() != Some(self.row_count) {
            return Err(SnapshotError::Damaged("the number of rows is another one"));
        }
        let end = self.offset - (self.rest.len() - before - TRAILER_BYTES) as u64;
        if fields.u64() != Some(end) {
            return Err(SnapshotError::Damaged("its length is another one"));
        }
        Ok(())
    }

    /// The snapshot as a whole.
    ///
    /// # Errors
    /// [`SnapshotError::Incomplete`] when its end has not come yet; [`Staging`] is given back then.
    pub fn finish(self) -> Result<Staged, (SnapshotError, Box<Staging>)> {
        if !self.ended {
            let staged = self.offset;
            return Err((SnapshotError::Incomplete { staged }, Box::new(self)));
        }
        Ok(Staged {
            header: self.expected,
            stage: self.target.map(|(stage, _)| stage),
            rows: self.row_count,
            bytes: self.offset,
        })
    }
}

/// The row at the front of `bytes` and its length, or `None` if it is not complete.
fn decode_row(bytes: &[u8]) -> Result<Option<(Row, usize)>, SnapshotError> {
    let mut fields = Fields::new(bytes);
    fields.u8();
    let mut seen = 0u64;
    let Some(table) = fields.u8() else {
        return Ok(None);
    };
    if table >= RESERVED_TABLE {
        return Err(SnapshotError::Damaged("a row of a reserved table"));
    }
    let mut part = || -> Result<Option<Vec<u8>>, SnapshotError> {
        let Some(len) = fields.u32() else {
            return Ok(None);
        };
        seen += u64::from(len);
        if seen > MAX_ROW_BYTES as u64 {
            return Err(SnapshotError::RowTooLarge { bytes: seen });
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        Ok(fields.bytes(len).map(<[u8]>::to_vec))
    };
    let Some(key) = part()? else {
        return Ok(None);
    };
    let Some(value) = part()? else {
        return Ok(None);
    };
    let len = 10 + key.len() + value.len();
    Ok(Some(((table, key, value), len)))
}
