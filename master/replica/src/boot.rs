//! From a data directory to a log store: first use, identity, and every check before raft runs.
//!
//! Owns: bootstrap, the disk of a joiner, and the boot checks. Invariants: opening changes nothing on the disk; what
//! was acknowledged and is missing means the node lost its vote, and is refused.
//! Must never: repair.

use std::collections::VecDeque;

use crate::codec::{self, AppliedRecord, FORMAT_VERSION, HardStateRecord};
use crate::config::{Identity, Limits, MAX_ATTRIBUTES_BYTES};
use crate::disk::{Disk, DiskBatch, Durability, MetaKey};
use crate::error::{BootstrapError, DiskError, OpenError};
use crate::machine::EntryId;
use crate::membership::{Group, Membership, nodes_of};
use crate::storage::{Loaded, LogStore, Slot};

/// Where every log begins: above zero, so that an empty disk can never pass for a member's.
pub(crate) const BOOTSTRAP_ID: EntryId = EntryId { term: 5, index: 5 };
/// Log bytes read at a time while checking it.
const CHECK_CHUNK_BYTES: u64 = 4 * 1024 * 1024;

/// Whose disk this is, or `None` if it was never bootstrapped.
pub(crate) fn identity<D: Disk>(disk: &D) -> Result<Option<Identity>, OpenError> {
    let Some(record) = disk.meta(MetaKey::Identity)? else {
        return Ok(None);
    };
    match codec::decode_identity(&record)? {
        (_, Some(identity)) => Ok(Some(identity)),
        (found, None) => Err(OpenError::NewerFormat {
            found,
            supported: FORMAT_VERSION,
        }),
    }
}

pub(crate) fn refuse_used<D: Disk>(disk: &D) -> Result<(), BootstrapError> {
    let Some(record) = disk.meta(MetaKey::Identity)? else {
        return Ok(());
    };
    Err(match codec::decode_identity(&record)?.1 {
        Some(Identity { cluster, node }) => BootstrapError::AlreadyBootstrapped { cluster, node },
        None => BootstrapError::NewerFormat,
    })
}

/// The records of a disk whose state is complete up to `at`.
pub(crate) fn first_records(identity: &Identity, at: EntryId, group: &Group) -> DiskBatch {
    let hard = HardStateRecord {
        term: at.term,
        vote: 0,
        commit: at.index,
    };
    let applied = AppliedRecord {
        applied: at,
        commit: at,
        conf: group.conf.clone(),
    };
    let members = codec::encode_members(&group.membership);
    DiskBatch {
        meta: vec![
            (MetaKey::Identity, codec::encode_identity(identity)),
            (MetaKey::HardState, codec::encode_hard_state(&hard)),
            (MetaKey::Applied, codec::encode_applied(&applied)),
            (MetaKey::Truncated, codec::encode_truncated(at)),
            (MetaKey::Members, members),
        ],
        ..DiskBatch::default()
    }
}

/// The group of the first voters.
pub(crate) fn first_group(node: u64, voters: &[(u64, Vec<u8>)]) -> Result<Group, BootstrapError> {
    let mut sorted: Vec<u64> = voters.iter().map(|(voter, _)| *voter).collect();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() != voters.len() || sorted.contains(&0) || !sorted.contains(&node) {
        let voters = voters.iter().map(|(voter, _)| *voter).collect();
        return Err(BootstrapError::BadVoters { node, voters });
    }
    let longest = voters.iter().map(|(_, attributes)| attributes.len()).max();
    if let Some(bytes) = longest.filter(|bytes| *bytes > MAX_ATTRIBUTES_BYTES) {
        return Err(BootstrapError::AttributesTooLarge { bytes });
    }
    Ok(Group::of_voters(voters.to_vec()))
}

/// Makes an empty disk that of `identity`, a member of the first `voters`.
pub(crate) fn bootstrap<D: Disk>(
    disk: &mut D,
    identity: Identity,
    voters: &[(u64, Vec<u8>)],
) -> Result<(), BootstrapError> {
    refuse_used(disk)?;
    let group = first_group(identity.node, voters)?;
    disk.write(
        first_records(&identity, BOOTSTRAP_ID, &group),
        Durability::Synced,
    )?;
    Ok(())
}

/// Makes an empty disk that of a node which the group takes in. It has no log: everything comes
/// with a snapshot, and until then it belongs to nobody and never stands for election.
pub(crate) fn prepare_joiner<D: Disk>(
    disk: &mut D,
    identity: Identity,
) -> Result<(), BootstrapError> {
    refuse_used(disk)?;
    if identity.node == 0 {
        let voters = Vec::new();
        return Err(BootstrapError::BadVoters { node: 0, voters });
    }
    let nothing = first_records(&identity, EntryId::default(), &Group::default());
    disk.write(nothing, Durability::Synced)?;
    Ok(())
}

/// Checks the disk and loads what raft starts from.
pub(crate) fn load<D: Disk>(
    disk: D,
    expected: Identity,
    limits: Limits,
) -> Result<LogStore<D>, OpenError> {
    check_identity(
        identity(&disk)?.ok_or(OpenError::NotBootstrapped)?,
        expected,
    )?;
    let hard = codec::decode_hard_state(&required(&disk, MetaKey::HardState)?)?;
    let applied = codec::decode_applied(&required(&disk, MetaKey::Applied)?)?;
    let truncated = codec::decode_truncated(&required(&disk, MetaKey::Truncated)?)?;
    let group = load_group(&disk, &applied)?;
    let slots = check_log(&disk, truncated)?;
    let commit = check_records(&hard, &applied, truncated, &slots)?;
    let loaded = Loaded {
        hard: HardStateRecord { commit, ..hard },
        applied: applied.applied,
        group,
        truncated,
        slots,
    };
    Ok(LogStore::new(disk, expected, loaded, limits))
}

/// A directory of the first format has no members record: its members say nothing of themselves.
fn load_group<D: Disk>(disk: &D, applied: &AppliedRecord) -> Result<Group, OpenError> {
    if let Some(record) = disk.meta(MetaKey::Members)? {
        return Ok(codec::decode_members(&record, applied.conf.clone())?);
    }
    let next_node = nodes_of(&applied.conf).last().map_or(1, |last| last + 1);
    let membership = Membership {
        next_node,
        ..Membership::default()
    };
    Ok(Group::new(applied.conf.clone(), membership, &|_| {
        Vec::new()
    }))
}

fn check_identity(found: Identity, expected: Identity) -> Result<(), OpenError> {
    if found.cluster != expected.cluster {
        return Err(OpenError::WrongCluster {
            found: found.cluster,
            expected: expected.cluster,
        });
    }
    if found.node != expected.node {
        return Err(OpenError::WrongNode {
            found: found.node,
            expected: expected.node,
        });
    }
    Ok(())
}

fn required<D: Disk>(disk: &D, key: MetaKey) -> Result<Vec<u8>, OpenError> {
    let missing = || DiskError::Corrupt {
        what: format!("{key:?} record"),
        detail: "missing".into(),
    };
    Ok(disk.meta(key)?.ok_or_else(missing)?)
}

fn inconsistent(what: String) -> OpenError {
    OpenError::Inconsistent(what)
}

/// Reads the whole log: contiguous from the cut on, checksums right, terms never falling.
fn check_log<D: Disk>(disk: &D, truncated: EntryId) -> Result<VecDeque<Slot>, OpenError> {
    let mut slots = VecDeque::new();
    let mut last = truncated;
    loop {
        let records = disk.log_read(last.index + 1..u64::MAX, CHECK_CHUNK_BYTES)?;
        if records.is_empty() {
            return Ok(slots);
        }
        for (index, record) in records {
            if index != last.index + 1 {
                return Err(OpenError::LogGap {
                    expected: last.index + 1,
                    found: index,
                });
            }
            let term = codec::decode_entry(index, &record)?.term;
            if term < last.term {
                let what = format!("entry {index} has term {term} after term {}", last.term);
                return Err(inconsistent(what));
            }
            slots.push_back(Slot {
                term,
                bytes: record.len() as u64,
            });
            last = EntryId { term, index };
        }
    }
}

/// Compares the records with each other and with the log; returns the commit index to start
/// from, which is the larger of the two that were written.
fn check_records(
    hard: &HardStateRecord,
    applied: &AppliedRecord,
    truncated: EntryId,
    slots: &VecDeque<Slot>,
) -> Result<u64, OpenError> {
    let last = truncated.index + slots.len() as u64;
    let term_at = |index: u64| match index.checked_sub(truncated.index + 1) {
        Some(offset) => slots
            .get(usize::try_from(offset).ok()?)
            .map(|slot| slot.term),
        None => (index == truncated.index).then_some(truncated.term),
    };
    let commit = hard.commit.max(applied.commit.index);
    if commit > last {
        return Err(OpenError::LogTooShort {
            last,
            needed: commit,
        });
    }
    if applied.applied.index > commit {
        let what = format!(
            "entry {} is applied but only {commit} committed",
            applied.applied
        );
        return Err(inconsistent(what));
    }
    for (what, id) in [("applied", applied.applied), ("committed", applied.commit)] {
        if term_at(id.index) != Some(id.term) {
            return Err(inconsistent(format!(
                "the log does not hold the {what} entry {id}"
            )));
        }
    }
    let last_term = slots.back().map_or(truncated.term, |slot| slot.term);
    if last_term > hard.term {
        let what = format!(
            "the log reaches term {last_term}, the vote was of term {}",
            hard.term
        );
        return Err(inconsistent(what));
    }
    Ok(commit)
}
