//! A small state machine that checks its reader, and helpers to open replicas.
//!
//! Owns: `Counters`, its commands, and seeded random numbers. Invariants: memory is rebuilt
//! from rows by `restore` alone. Must never: hide a difference between memory and rows.

use std::collections::BTreeMap;

use tessera_replica::{
    Applied, ClusterId, Disk, ElectionTimeout, EntryId, Identity, Machine, MachineError, MemDisk,
    Progress, Replica, ReplicaConfig, RowChange, RowReader,
};

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
const COUNTERS: u8 = 1;
const LAST: u8 = 2;

pub fn identity(node: u64) -> Identity {
    Identity {
        cluster: CLUSTER,
        node,
    }
}

/// A configuration with the same election timeout in every run.
pub fn config(node: u64) -> ReplicaConfig {
    let election_timeout = ElectionTimeout::Fixed(10 + 3 * node as usize);
    ReplicaConfig {
        election_timeout,
        ..ReplicaConfig::new(identity(node))
    }
}

/// Adds one to a counter; an empty key is not used.
pub fn add(key: &[u8]) -> Vec<u8> {
    [b"+", key].concat()
}

/// Removes all counters with a prefix.
pub fn wipe(prefix: &[u8]) -> Vec<u8> {
    [b"-", prefix].concat()
}

/// Counters in memory and in rows, and the entries that made them.
#[derive(Default, Debug)]
pub struct Counters {
    pub values: BTreeMap<Vec<u8>, u64>,
    pub last: Option<EntryId>,
    /// Entries applied since the machine was built.
    pub applied: Vec<(EntryId, Vec<u8>)>,
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .try_into()
        .map(u64::from_le_bytes)
        .expect("a counter row holds eight bytes")
}

impl Counters {
    pub fn from_rows(rows: &dyn RowReader) -> Self {
        let page = rows
            .scan(COUNTERS, &[], None, 100_000)
            .expect("rows can be read");
        let values = page
            .into_iter()
            .map(|(key, value)| (key, number(&value)))
            .collect();
        let last = rows
            .get(LAST, b"last")
            .expect("rows can be read")
            .map(|bytes| EntryId {
                term: number(&bytes[..8]),
                index: number(&bytes[8..]),
            });
        Counters {
            values,
            last,
            applied: Vec::new(),
        }
    }

    pub fn value(&self, key: &[u8]) -> u64 {
        self.values.get(key).copied().unwrap_or(0)
    }
}

impl Machine for Counters {
    type Effect = (Vec<u8>, u64);

    fn apply(
        &mut self,
        id: EntryId,
        entry: &[u8],
        rows: &dyn RowReader,
    ) -> Result<Applied<Self::Effect>, MachineError> {
        assert!(
            self.last < Some(id),
            "entry {id} applied after {:?}",
            self.last
        );
        let seen = Counters::from_rows(rows);
        assert_eq!(
            (&seen.values, seen.last),
            (&self.values, self.last),
            "rows before {id}"
        );
        let (verb, key) = entry.split_first().expect("entries are not empty");
        let key = key.to_vec();
        let mut applied = Applied {
            rows: Vec::new(),
            effects: Vec::new(),
        };
        if *verb == b'+' {
            let value = self.value(&key) + 1;
            self.values.insert(key.clone(), value);
            let bytes = value.to_le_bytes().to_vec();
            applied.rows.push(RowChange::Put {
                table: COUNTERS,
                key: key.clone(),
                value: bytes,
            });
            applied.effects.push((key, value));
        } else {
            self.values.retain(|other, _| !other.starts_with(&key));
            applied.rows.push(RowChange::DeletePrefix {
                table: COUNTERS,
                prefix: key,
            });
        }
        let value = [id.term.to_le_bytes(), id.index.to_le_bytes()].concat();
        applied.rows.push(RowChange::Put {
            table: LAST,
            key: b"last".to_vec(),
            value,
        });
        self.last = Some(id);
        self.applied.push((id, entry.to_vec()));
        Ok(applied)
    }

    fn restore(&mut self, _id: EntryId, rows: &dyn RowReader) -> Result<(), MachineError> {
        let applied = std::mem::take(&mut self.applied);
        *self = Counters {
            applied,
            ..Counters::from_rows(rows)
        };
        Ok(())
    }
}

/// A replica with its machine.
pub struct Node<D: Disk> {
    pub replica: Replica<D>,
    pub machine: Counters,
}

impl<D: Disk> Node<D> {
    pub fn open(config: ReplicaConfig, disk: D) -> Self {
        let replica = Replica::open(config, disk).expect("the disk is sound");
        let machine = Counters::from_rows(replica.rows());
        Node { replica, machine }
    }

    pub fn process(&mut self) -> Progress<(Vec<u8>, u64)> {
        self.replica
            .process(&mut self.machine)
            .expect("no fault was injected")
    }

    /// Proposes and processes at once.
    pub fn commit(&mut self, entry: Vec<u8>) -> (EntryId, Progress<(Vec<u8>, u64)>) {
        let id = self
            .replica
            .propose(entry)
            .expect("a group of one takes proposals");
        (id, self.process())
    }
}

/// A bootstrapped disk for a group of one.
pub fn lone_disk() -> MemDisk {
    let mut disk = MemDisk::new();
    Replica::bootstrap(&mut disk, identity(1), Vec::new()).expect("an empty disk");
    disk
}

/// Elections as a seed makes them.
pub fn seeded_config(node: u64) -> ReplicaConfig {
    ReplicaConfig {
        election_timeout: ElectionTimeout::Seeded(77),
        ..config(node)
    }
}

/// Elections as raft draws them.
pub fn drawn_config(node: u64) -> ReplicaConfig {
    ReplicaConfig {
        election_timeout: ElectionTimeout::Random,
        ..config(node)
    }
}

/// Whether a random test runs the seeds it is made for, and so must reach what it is made for.
pub fn all_seeds() -> bool {
    std::env::var_os("REPLICA_SEEDS").is_none()
}

/// The seeds of a random test: `count` of them, or `first..end` from `REPLICA_SEEDS`.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    let given = std::env::var("REPLICA_SEEDS").ok();
    let range = given.as_deref().and_then(|text| {
        let (first, end) = text.split_once("..")?;
        Some(first.parse().ok()?..end.parse().ok()?)
    });
    range.unwrap_or(0..count)
}

/// Random numbers that repeat with their seed.
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Seeded(
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(0x1234_5678_9abc_def1),
        )
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound.max(1)
    }
}
