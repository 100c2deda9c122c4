//! Bytes of everything this crate stores: log records, meta records, checksums.
//!
//! Owns: the on-disk format and its version. Invariants: every record ends with a CRC-32C; a
//! log record's checksum covers its index, so a record under a wrong key is damage; golden
//! bytes in the tests below pin the format.
//! Must never: change what an existing version means.

use std::collections::BTreeMap;

use prost_raft::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType};

use crate::config::{ClusterId, Identity};
use crate::error::DiskError;
use crate::machine::EntryId;
use crate::membership::{Group, JoinId, Membership};

/// Format of the data directory as a whole, checked at boot. Version 2 added the members record;
/// a directory of version 1 is read as one whose members say nothing of themselves.
pub(crate) const FORMAT_VERSION: u32 = 2;
const OLDEST_FORMAT_VERSION: u32 = 1;
/// Version byte of each record.
const RECORD_VERSION: u8 = 1;

/// Table `n` holds the effect of a byte that is followed by `n` others, so that eight bytes are
/// taken at once.
const CRC_TABLES: [[u32; 256]; 8] = crc_tables();

const fn crc_tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut follow = 1;
    while follow < 8 {
        let mut byte = 0;
        while byte < 256 {
            let crc = tables[follow - 1][byte];
            tables[follow][byte] = (crc >> 8) ^ tables[0][(crc & 0xff) as usize];
            byte += 1;
        }
        follow += 1;
    }
    tables
}

/// A CRC-32C that grows piece by piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crc(u32);

impl Crc {
    pub(crate) const EMPTY: Crc = Crc(!0);

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let (eights, rest) = bytes.as_chunks::<8>();
        for eight in eights {
            let mixed = u64::from_le_bytes(*eight) ^ u64::from(self.0);
            self.0 = (0..8).fold(0, |crc, n| {
                crc ^ CRC_TABLES[7 - n][((mixed >> (8 * n)) & 0xff) as usize]
            });
        }
        for &byte in rest {
            self.0 = (self.0 >> 8) ^ CRC_TABLES[0][((self.0 ^ u32::from(byte)) & 0xff) as usize];
        }
    }

    pub(crate) fn value(self) -> u32 {
        !self.0
    }
}

/// CRC-32C of the parts as if they were one string.
pub(crate) fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut crc = Crc::EMPTY;
    parts.iter().for_each(|part| crc.add(part));
    crc.value()
}

/// The applied record: written with the rows of the entries it counts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AppliedRecord {
    pub applied: EntryId,
    /// Known to be committed when this was written; not below `applied`.
    pub commit: EntryId,
    pub conf: ConfState,
}

/// The vote and the commit index, as raft hands them out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct HardStateRecord {
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
}

/// Reads little-endian fields off the front of a record.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Fields { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.bytes(1).and_then(|bytes| bytes.first().copied())
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

/// Appends the checksum of `bound` and `record` to `record`.
pub(crate) fn seal(mut record: Vec<u8>, bound: &[u8]) -> Vec<u8> {
    let crc = crc32c(&[bound, &record]);
    record.extend_from_slice(&crc.to_le_bytes());
    record
}

/// Splits the checksum off and compares it.
pub(crate) fn unseal<'a>(sealed: &'a [u8], bound: &[u8]) -> Option<&'a [u8]> {
    let (record, crc) = sealed.split_at_checked(sealed.len().checked_sub(4)?)?;
    let crc = u32::from_le_bytes(crc.try_into().ok()?);
    (crc32c(&[bound, record]) == crc).then_some(record)
}

fn corrupt(what: &str, detail: &'static str) -> DiskError {
    DiskError::Corrupt {
        what: what.to_owned(),
        detail: detail.into(),
    }
}

fn open_meta<'a>(sealed: &'a [u8], what: &str) -> Result<Fields<'a>, DiskError> {
    let record =
        unseal(sealed, what.as_bytes()).ok_or_else(|| corrupt(what, "checksum mismatch"))?;
    let mut fields = Fields::new(record);
    match fields.u8() {
        Some(RECORD_VERSION) => Ok(fields),
        _ => Err(corrupt(what, "unknown record version")),
    }
}

fn push_id(record: &mut Vec<u8>, id: EntryId) {
    record.extend_from_slice(&id.term.to_le_bytes());
    record.extend_from_slice(&id.index.to_le_bytes());
}

fn take_id(fields: &mut Fields<'_>) -> Option<EntryId> {
    Some(EntryId {
        term: fields.u64()?,
        index: fields.u64()?,
    })
}

/// `[version][kind][term][data][crc]`, the checksum covering the index as well.
pub(crate) fn encode_entry(entry: &Entry) -> Vec<u8> {
    let mut record = Vec::with_capacity(entry.data.len() + 14);
    record.push(RECORD_VERSION);
    record.push(entry.entry_type as u8);
    record.extend_from_slice(&entry.term.to_le_bytes());
    record.extend_from_slice(&entry.data);
    seal(record, &entry.index.to_be_bytes())
}

pub(crate) fn decode_entry(index: u64, sealed: &[u8]) -> Result<Entry, DiskError> {
    let what = || format!("log entry {index}");
    let record = unseal(sealed, &index.to_be_bytes())
        .ok_or_else(|| corrupt(&what(), "checksum mismatch"))?;
    let mut fields = Fields::new(record);
    if fields.u8() != Some(RECORD_VERSION) {
        return Err(corrupt(&what(), "unknown record version"));
    }
    let kind = fields
        .u8()
        .and_then(|kind| EntryType::from_i32(i32::from(kind)))
        .ok_or_else(|| corrupt(&what(), "unknown entry type"))?;
    let term = fields.u64().ok_or_else(|| corrupt(&what(), "cut short"))?;
    let mut entry = Entry {
        index,
        term,
        data: fields.rest().to_vec(),
        ..Entry::default()
    };
    entry.set_entry_type(kind);
    Ok(entry)
}

const IDENTITY: &str = "identity record";
const HARD_STATE: &str = "hard state record";
const APPLIED: &str = "applied record";
const TRUNCATED: &str = "truncated record";
const MEMBERS: &str = "members record";

/// The format version comes first and is read before anything else is trusted.
pub(crate) fn encode_identity(identity: &Identity) -> Vec<u8> {
    let mut record = FORMAT_VERSION.to_le_bytes().to_vec();
    record.extend_from_slice(&identity.cluster.0);
    record.extend_from_slice(&identity.node.to_le_bytes());
    seal(record, IDENTITY.as_bytes())
}

/// The format version, and the identity if that version is one this build knows.
pub(crate) fn decode_identity(sealed: &[u8]) -> Result<(u32, Option<Identity>), DiskError> {
    let version = Fields::new(sealed)
        .u32()
        .ok_or_else(|| corrupt(IDENTITY, "cut short"))?;
    if !(OLDEST_FORMAT_VERSION..=FORMAT_VERSION).contains(&version) {
        return Ok((version, None));
    }
    let record = unseal(sealed, IDENTITY.as_bytes())
        .ok_or_else(|| corrupt(IDENTITY, "checksum mismatch"))?;
    let mut fields = Fields::new(record);
    let identity = fields.u32().and_then(|_| {
        let cluster = ClusterId(fields.bytes(16)?.try_into().ok()?);
        Some(Identity {
            cluster,
            node: fields.u64()?,
        })
    });
    Ok((
        version,
        Some(identity.ok_or_else(|| corrupt(IDENTITY, "cut short"))?),
    ))
}

pub(crate) fn encode_hard_state(state: &HardStateRecord) -> Vec<u8> {
    let mut record = vec![RECORD_VERSION];
    for field in [state.term, state.vote, state.commit] {
        record.extend_from_slice(&field.to_le_bytes());
    }
    seal(record, HARD_STATE.as_bytes())
}

pub(crate) fn decode_hard_state(sealed: &[u8]) -> Result<HardStateRecord, DiskError> {
    let mut fields = open_meta(sealed, HARD_STATE)?;
    let mut read = || {
        Some(HardStateRecord {
            term: fields.u64()?,
            vote: fields.u64()?,
            commit: fields.u64()?,
        })
    };
    read().ok_or_else(|| corrupt(HARD_STATE, "cut short"))
}

pub(crate) fn encode_applied(applied: &AppliedRecord) -> Vec<u8> {
    let mut record = vec![RECORD_VERSION];
    push_id(&mut record, applied.applied);
    push_id(&mut record, applied.commit);
    record.extend_from_slice(&applied.conf.encode_to_vec());
    seal(record, APPLIED.as_bytes())
}

pub(crate) fn decode_applied(sealed: &[u8]) -> Result<AppliedRecord, DiskError> {
    let mut fields = open_meta(sealed, APPLIED)?;
    let ids = take_id(&mut fields).zip(take_id(&mut fields));
    let (applied, commit) = ids.ok_or_else(|| corrupt(APPLIED, "cut short"))?;
    let conf = ConfState::decode(fields.rest())
        .map_err(|_| corrupt(APPLIED, "the member list cannot be decoded"))?;
    Ok(AppliedRecord {
        applied,
        commit,
        conf,
    })
}

pub(crate) fn encode_truncated(id: EntryId) -> Vec<u8> {
    let mut record = vec![RECORD_VERSION];
    push_id(&mut record, id);
    seal(record, TRUNCATED.as_bytes())
}

pub(crate) fn decode_truncated(sealed: &[u8]) -> Result<EntryId, DiskError> {
    let mut fields = open_meta(sealed, TRUNCATED)?;
    take_id(&mut fields).ok_or_else(|| corrupt(TRUNCATED, "cut short"))
}

/// `[next node][members: node, length, attributes][join ids: id, node]`, without raft's list.
pub(crate) fn push_members(record: &mut Vec<u8>, membership: &Membership) {
    record.extend_from_slice(&membership.next_node.to_le_bytes());
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    record.extend_from_slice(&count(membership.members.len()));
    for member in &membership.members {
        record.extend_from_slice(&member.node.to_le_bytes());
        record.extend_from_slice(&count(member.attributes.len()));
        record.extend_from_slice(&member.attributes);
    }
    record.extend_from_slice(&count(membership.joins.len()));
    for (join, node) in &membership.joins {
        record.extend_from_slice(&join.0);
        record.extend_from_slice(&node.to_le_bytes());
    }
}

/// Reads what [`push_members`] wrote, and joins it with raft's list of the same moment.
pub(crate) fn take_members(fields: &mut Fields<'_>, conf: ConfState) -> Option<Group> {
    let next_node = fields.u64()?;
    let mut attributes = BTreeMap::new();
    for _ in 0..fields.u32()? {
        let node = fields.u64()?;
        let len = usize::try_from(fields.u32()?).ok()?;
        attributes.insert(node, fields.bytes(len)?.to_vec());
    }
    let mut joins = Vec::new();
    for _ in 0..fields.u32()? {
        joins.push((JoinId(fields.bytes(16)?.try_into().ok()?), fields.u64()?));
    }
    let membership = Membership {
        next_node,
        joins,
        ..Membership::default()
    };
    let known = |node: u64| attributes.get(&node).cloned().unwrap_or_default();
    let group = Group::new(conf, membership, &known);
    let named = group.membership.members.iter().map(|member| member.node);
    (named.eq(attributes.keys().copied()) && group.is_sound()).then_some(group)
}

pub(crate) fn encode_members(membership: &Membership) -> Vec<u8> {
    let mut record = vec![RECORD_VERSION];
    push_members(&mut record, membership);
    seal(record, MEMBERS.as_bytes())
}

/// The group whose members raft lists as `conf`.
pub(crate) fn decode_members(sealed: &[u8], conf: ConfState) -> Result<Group, DiskError> {
    let mut fields = open_meta(sealed, MEMBERS)?;
    let group = take_members(&mut fields, conf).filter(|_| fields.rest().is_empty());
    group.ok_or_else(|| corrupt(MEMBERS, "it does not fit the applied record"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn entry() -> Entry {
        Entry {
            index: 7,
            term: 3,
            data: b"abc".to_vec(),
            ..Entry::default()
        }
    }

    #[test]
    fn crc_matches_the_published_check_value() {
        assert_eq!(crc32c(&[b"123456789"]), 0xe306_9283);
        assert_eq!(crc32c(&[b"1234", b"", b"56789"]), 0xe306_9283);
        // 32 bytes of zeros, and of ones, as published for iSCSI.
        assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(crc32c(&[&[0xff; 32]]), 0x62a8_ab43);
    }

    #[test]
    fn records_have_golden_bytes() {
        assert_eq!(hex(&encode_entry(&entry())), GOLDEN_ENTRY);
        let identity = Identity {
            cluster: ClusterId([0xab; 16]),
            node: 2,
        };
        assert_eq!(hex(&encode_identity(&identity)), GOLDEN_IDENTITY);
        let hard = HardStateRecord {
            term: 9,
            vote: 1,
            commit: 8,
        };
        assert_eq!(hex(&encode_hard_state(&hard)), GOLDEN_HARD);
        let applied = AppliedRecord {
            applied: EntryId { term: 2, index: 6 },
            commit: EntryId { term: 3, index: 7 },
            conf: ConfState {
                voters: vec![1, 2, 3],
                ..ConfState::default()
            },
        };
        assert_eq!(hex(&encode_applied(&applied)), GOLDEN_APPLIED);
        assert_eq!(
            hex(&encode_truncated(EntryId { term: 5, index: 5 })),
            GOLDEN_TRUNCATED
        );
        let members = encode_members(&group().membership);
        assert_eq!(hex(&members), GOLDEN_MEMBERS);
        assert_eq!(decode_members(&members, group().conf), Ok(group()));
        let other = ConfState {
            voters: vec![1, 3],
            ..ConfState::default()
        };
        assert!(decode_members(&members, other).is_err(), "another member");
    }

    fn group() -> Group {
        let mut group = Group::of_voters(vec![(1, b"a".to_vec()), (2, Vec::new())]);
        group.membership.joins = vec![(JoinId([0xcd; 16]), 2)];
        group
    }

    #[test]
    fn a_directory_of_the_first_format_is_read() {
        let mut record = 1u32.to_le_bytes().to_vec();
        record.extend_from_slice(&[0xab; 16]);
        record.extend_from_slice(&7u64.to_le_bytes());
        let identity = Identity {
            cluster: ClusterId([0xab; 16]),
            node: 7,
        };
        let sealed = seal(record, IDENTITY.as_bytes());
        assert_eq!(decode_identity(&sealed), Ok((1, Some(identity))));
    }

    const GOLDEN_ENTRY: &str = "01000300000000000000616263a87621bd";
    const GOLDEN_IDENTITY: &str =
        "02000000abababababababababababababababab020000000000000092a6d8eb";
    const GOLDEN_HARD: &str = "01090000000000000001000000000000000800000000000000f615b6fe";
    const GOLDEN_APPLIED: &str =
        "0102000000000000000600000000000000030000000000000007000000000000000a0301020320a2c414";
    const GOLDEN_MEMBERS: &str = "010300000000000000020000000100000000000000010000006102000000000000000000000001000000cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd02000000000000000306aa21";
    const GOLDEN_TRUNCATED: &str = "010500000000000000050000000000000021f9e58e";

    #[test]
    fn records_come_back() {
        assert_eq!(decode_entry(7, &encode_entry(&entry())), Ok(entry()));
        let identity = Identity {
            cluster: ClusterId([0xab; 16]),
            node: 2,
        };
        assert_eq!(
            decode_identity(&encode_identity(&identity)),
            Ok((FORMAT_VERSION, Some(identity)))
        );
        let hard = HardStateRecord {
            term: 9,
            vote: 1,
            commit: 8,
        };
        assert_eq!(decode_hard_state(&encode_hard_state(&hard)), Ok(hard));
        let id = EntryId { term: 5, index: 5 };
        assert_eq!(decode_truncated(&encode_truncated(id)), Ok(id));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let sealed = encode_entry(&entry());
        for at in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(decode_entry(7, &damaged).is_err(), "bit {at}");
        }
        for len in 0..sealed.len() {
            assert!(decode_entry(7, &sealed[..len]).is_err(), "length {len}");
        }
        assert!(
            decode_entry(8, &sealed).is_err(),
            "a record under another index"
        );
    }

    #[test]
    fn a_newer_format_is_told_without_trusting_the_rest() {
        let mut bytes = 3u32.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"anything");
        assert_eq!(decode_identity(&bytes), Ok((3, None)));
    }
}
