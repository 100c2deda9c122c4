//! A snapshot on its way out: chunks of bytes from the rows of one moment.
//!
//! Owns: the view and where reading it stands. Invariants: the bytes do not depend on where reading
//! was taken up again; at most one page of rows is in memory.
//! Must never: be kept for ever, as the view holds disk space.

use super::{ROW, SnapshotHeader, TRAILER, TRAILER_BYTES};
use crate::codec::{Crc, crc32c};
use crate::config::SNAPSHOT_CHUNK_BYTES;
use crate::disk::{DiskView, Row};
use crate::error::DiskError;

/// Bytes of rows read from the disk at a time.
const PAGE_BYTES: usize = SNAPSHOT_CHUNK_BYTES;

/// A piece of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where in the snapshot it starts.
    pub offset: u64,
    /// At most [`SNAPSHOT_CHUNK_BYTES`].
    pub bytes: Vec<u8>,
    /// CRC-32C of the bytes, for the way.
    pub crc32c: u32,
    /// Nothing follows it.
    pub last: bool,
}

/// Where a page of rows begins, and what was counted before it.
#[derive(Debug, Clone)]
struct Mark {
    offset: u64,
    after: Option<(u8, Vec<u8>)>,
    rows: u64,
    crc: Crc,
}

/// Yields the bytes of one snapshot, from any offset on that was reached before.
pub struct SnapshotSource {
    header: SnapshotHeader,
    header_bytes: Vec<u8>,
    view: Box<dyn DiskView>,
    /// One for each page that was read.
    marks: Vec<Mark>,
    /// What comes after the bytes in `ready`.
    next: Mark,
    /// Bytes made and not handed out yet, from `offset` on.
    ready: Vec<u8>,
    offset: u64,
    ended: bool,
}

impl std::fmt::Debug for SnapshotSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SnapshotSource({} at {})", self.header.id, self.offset)
    }
}

impl SnapshotSource {
    pub(crate) fn new(header: SnapshotHeader, view: Box<dyn DiskView>) -> Self {
        let header_bytes = header.encode();
        let mut crc = Crc::EMPTY;
        crc.add(&header_bytes);
        let next = Mark {
            offset: header_bytes.len() as u64,
            after: None,
            rows: 0,
            crc,
        };
        SnapshotSource {
            header,
            ready: header_bytes.clone(),
            header_bytes,
            view,
            marks: Vec::new(),
            next,
            offset: 0,
            ended: false,
        }
    }

    /// What the snapshot is of.
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// The first bytes of the snapshot.
    pub fn header_bytes(&self) -> &[u8] {
        &self.header_bytes
    }

    /// Where the next chunk starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next piece, or `None` after the last one.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, DiskError> {
        while self.ready.len() < SNAPSHOT_CHUNK_BYTES && !self.ended {
            self.read_page()?;
        }
        if self.ready.is_empty() {
            return Ok(None);
        }
        let len = self.ready.len().min(SNAPSHOT_CHUNK_BYTES);
        let rest = self.ready.split_off(len);
        let bytes = std::mem::replace(&mut self.ready, rest);
        let chunk = Chunk {
            offset: self.offset,
            crc32c: crc32c(&[&bytes]),
            bytes,
            last: self.ended && self.ready.is_empty(),
        };
        self.offset += len as u64;
        Ok(Some(chunk))
    }

    /// Makes the next chunk start at `offset`, because the receiver has what comes before it.
    ///
    /// # Errors
    /// When the disk cannot be read. `Ok(false)` says that the snapshot is shorter.
    pub fn seek(&mut self, offset: u64) -> Result<bool, DiskError> {
        if offset < self.offset {
            self.rewind(offset);
        }
        while self.offset < offset {
            let missing = offset - self.offset;
            let Some(skipped) = usize::try_from(missing)
                .ok()
                .filter(|skip| *skip <= self.ready.len())
            else {
                self.offset += self.ready.len() as u64;
                self.ready.clear();
                if self.ended {
                    return Ok(false);
                }
                self.read_page()?;
                continue;
            };
            self.ready.drain(..skipped);
            self.offset = offset;
        }
        Ok(true)
    }

    /// Goes back to the page that holds `offset`, or to the header.
    fn rewind(&mut self, offset: u64) {
        self.marks.retain(|mark| mark.offset <= offset);
        self.ready.clear();
        self.ended = false;
        if let Some(mark) = self.marks.pop() {
            self.offset = mark.offset;
            self.next = mark;
            return;
        }
        let mut crc = Crc::EMPTY;
        crc.add(&self.header_bytes);
        self.offset = 0;
        self.ready.extend_from_slice(&self.header_bytes);
        self.next = Mark {
            offset: self.header_bytes.len() as u64,
            after: None,
            rows: 0,
            crc,
        };
    }

    fn read_page(&mut self) -> Result<(), DiskError> {
        let after = self.next.after.as_ref();
        let page = self.view.page(
            after.map(|(table, key)| (*table, key.as_slice())),
            PAGE_BYTES,
        )?;
        self.marks.push(self.next.clone());
        let Some((table, key, _)) = page.last() else {
            self.end();
            return Ok(());
        };
        let after = Some((*table, key.clone()));
        let bytes = encode_rows(&page)?;
        self.next.crc.add(&bytes);
        self.next.offset += bytes.len() as u64;
        self.next.rows += page.len() as u64;
        self.next.after = after;
        self.ready.extend(bytes);
        Ok(())
    }

    fn end(&mut self) {
        let total = self.next.offset + TRAILER_BYTES as u64;
        let mut trailer = vec![TRAILER];
        trailer.extend_from_slice(&self.next.rows.to_le_bytes());
        trailer.extend_from_slice(&total.to_le_bytes());
        self.next.crc.add(&trailer);
        trailer.extend_from_slice(&self.next.crc.value().to_le_bytes());
        self.ready.extend(trailer);
        self.ended = true;
    }
}

fn encode_rows(rows: &[Row]) -> Result<Vec<u8>, DiskError> {
    let size = rows
        .iter()
        .map(|(_, key, value)| key.len() + value.len() + 10);
    let mut bytes = Vec::with_capacity(size.sum());
    for (table, key, value) in rows {
        let (Ok(key_len), Ok(value_len)) = (u32::try_from(key.len()), u32::try_from(value.len()))
        else {
            return Err(DiskError::Corrupt {
                what: format!("row of table {table}"),
                detail: "larger than four gigabytes".into(),
            });
        };
        bytes.extend_from_slice(&[ROW, *table]);
        bytes.extend_from_slice(&key_len.to_le_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(&value_len.to_le_bytes());
        bytes.extend_from_slice(value);
    }
    Ok(bytes)
}
