//! The whole state as a stream of bytes: for a peer that is too far behind, and for backups.
//!
//! Owns: the format `[header][row]*[trailer]`. The header is what raft carries in its message; the
//! rows never are. Invariants: rows are in disk order; the trailer counts rows and bytes and holds
//! a checksum of everything before it; the same state under the same header gives the same bytes.
//! Must never: hold more than a few chunks of the state in memory.
//!
//! Header: `[magic][length][body][crc]`, the body beginning with its version. A row is
//! `[1][table][key length][key][value length][value]`, the trailer `[0][rows][bytes][crc]`.

mod sink;
mod source;

use prost_raft::Message as _;
use raft::eraftpb::ConfState;

pub use sink::{Staged, Staging};
pub use source::{Chunk, SnapshotSource};

use crate::codec::{self, Fields};
use crate::config::{ClusterId, MAX_SNAPSHOT_HEADER_BYTES};
use crate::error::SnapshotError;
use crate::machine::EntryId;
use crate::membership::{Group, Membership};

const MAGIC: &[u8; 8] = b"TESSSNAP";
/// Version of the format.
const SNAPSHOT_VERSION: u8 = 1;
/// Bound into the header's checksum, so that no other record passes for one.
const BOUND: &[u8] = b"snapshot header";
/// Before a row, and before the trailer.
const ROW: u8 = 1;
const TRAILER: u8 = 0;
/// The trailer: its mark, rows, bytes, checksum.
const TRAILER_BYTES: usize = 1 + 8 + 8 + 4;

/// Names one snapshot for good: a term has one leader, which counts its snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId {
    /// The node that made it.
    pub node: u64,
    /// In which term.
    pub term: u64,
    /// Which one of that node since it was started.
    pub number: u64,
}

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}", self.node, self.term, self.number)
    }
}

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotHeader {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name.
    pub id: SnapshotId,
    /// The last entry that its rows contain.
    pub position: EntryId,
    pub(crate) group: Group,
}

impl SnapshotHeader {
    /// The members as of [`SnapshotHeader::position`].
    pub fn membership(&self) -> &Membership {
        &self.group.membership
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = vec![SNAPSHOT_VERSION];
        body.extend_from_slice(&self.cluster.0);
        let SnapshotId { node, term, number } = self.id;
        for field in [node, term, number, self.position.term, self.position.index] {
            body.extend_from_slice(&field.to_le_bytes());
        }
        let conf = self.group.conf.encode_to_vec();
        body.extend_from_slice(&u32::try_from(conf.len()).unwrap_or(u32::MAX).to_le_bytes());
        body.extend_from_slice(&conf);
        codec::push_members(&mut body, &self.group.membership);
        let sealed = codec::seal(body, BOUND);
        let length = u32::try_from(sealed.len()).unwrap_or(u32::MAX);
        [MAGIC.as_slice(), &length.to_le_bytes(), &sealed].concat()
    }

    /// The header at the front of a snapshot, and how many bytes it takes; `None` if `bytes` end
    /// before it does.
    ///
    /// # Errors
    /// When it is no snapshot, damaged or of a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Option<(SnapshotHeader, usize)>, SnapshotError> {
        let seen = bytes.len().min(MAGIC.len());
        if bytes.get(..seen) != MAGIC.get(..seen) {
            return Err(SnapshotError::Damaged("these bytes are no snapshot"));
        }
        let mut fields = Fields::new(bytes);
        let Some(length) = fields.bytes(MAGIC.len()).and_then(|_| fields.u32()) else {
            return Ok(None);
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_SNAPSHOT_HEADER_BYTES {
            return Err(SnapshotError::Damaged("the header is too long"));
        }
        let Some(sealed) = fields.bytes(length) else {
            return Ok(None);
        };
        let damaged = SnapshotError::Damaged("the header does not match its checksum");
        let body = codec::unseal(sealed, BOUND).ok_or(damaged)?;
        match body.first() {
            Some(&SNAPSHOT_VERSION) => {}
            Some(&found) => {
                let supported = SNAPSHOT_VERSION;
                return Err(SnapshotError::NewerFormat { found, supported });
            }
            None => return Err(SnapshotError::Damaged("the header is empty")),
        }
        let header =
            decode_body(body).ok_or(SnapshotError::Damaged("the header cannot be read"))?;
        Ok(Some((header, MAGIC.len() + 4 + length)))
    }

    /// The header that raft carries, and nothing behind it.
    pub(crate) fn decode_whole(bytes: &[u8]) -> Option<SnapshotHeader> {
        let (header, used) = SnapshotHeader::decode(bytes).ok().flatten()?;
        (used == bytes.len()).then_some(header)
    }
}

fn decode_body(body: &[u8]) -> Option<SnapshotHeader> {
    let mut fields = Fields::new(body);
    fields.u8()?;
    let cluster = ClusterId(fields.bytes(16)?.try_into().ok()?);
    let id = SnapshotId {
        node: fields.u64()?,
        term: fields.u64()?,
        number: fields.u64()?,
    };
    let position = EntryId {
        term: fields.u64()?,
        index: fields.u64()?,
    };
    let conf_len = usize::try_from(fields.u32()?).ok()?;
    let conf = ConfState::decode(fields.bytes(conf_len)?).ok()?;
    let group = codec::take_members(&mut fields, conf)?;
    fields.rest().is_empty().then_some(SnapshotHeader {
        cluster,
        id,
        position,
        group,
    })
}
