//! A state that is saved, and restored later into new masters, while agents went on.
//!
//! Invariants: what is saved is whole, and so are its component files; the old masters have ended, and no message of
//! theirs is under way, before the new ones begin; what was done after the save may be undone or done again, and
//! counts for nothing that is checked. Must never touch an agent.

use crate::calls::Ask;
use crate::files::Files;
use crate::master::{Master, attributes, identity};
use crate::mutation::Mutation;
use crate::oracle::Saved as Shadow;
use crate::operator::Limited;
use crate::queue::Event;
use crate::shares::{Roles, roles_of};
use crate::world::World;
use std::io;
use tessera_master::node::RowsOf;
use tessera_master::shelf::{Folder, file_name, temporary_name};
use tessera_master_core::rows::ROLES;
use tessera_master_core::{CLUSTER_VERSION, Config, Core, Request, RowChange as Changed, restored};
use tessera_replica::{Disk, DiskBatch, Durability, MemDisk, Replica, RowChange, SnapshotHeader};
use tessera_types::{AgentId, Digest};

/// Of 100 seeds in so many a state is saved and restored.
const SAVES: u64 = 6;
/// The same where roles share what there is: what is said of them is saved with it.
const SAVES_SHARED: u64 = 14;
/// When it is saved, in us.
const SAVED_US: (u64, u64) = (4_000_000, 11_000_000);
/// So long after that it is restored, in us.
const RESTORED_US: (u64, u64) = (300_000, 4_000_000);
/// Time before it is tried again, in us.
const AGAIN_US: u64 = 200_000;
/// The node of a restored cluster.
const FIRST_NODE: u64 = 1;

/// A saved snapshot.
pub(crate) struct Saved {
    header: SnapshotHeader,
    bytes: Vec<u8>,
    files: Vec<(Digest, Vec<u8>)>,
    shadow: Shadow,
    limited: Option<Limited>,
    roles: Roles,
}

/// The change of a row, as the replica says it.
fn row_change(change: Changed) -> RowChange {
    match change {
        Changed::Put { table, key, value } => RowChange::Put { table, key, value },
        Changed::Delete { table, key } => RowChange::Delete { table, key },
        Changed::DeletePrefix { table, prefix } => RowChange::DeletePrefix { table, prefix },
    }
}

fn text(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

impl Saved {
    /// A disk with this state.
    fn disk(&self, era: u8, understands: u32, mutation: Option<Mutation>) -> Result<MemDisk, String> {
        let mut disk = MemDisk::new();
        let mut staging = Replica::begin_restore(&mut disk, self.header.clone()).map_err(text)?;
        staging.write(0, &self.bytes).map_err(text)?;
        let staged = staging.finish().map_err(|(error, _)| text(error))?;
        let (own, says) = (identity(era, FIRST_NODE), attributes(0, understands));
        Replica::finish_restore(&mut disk, own, says, &staged).map_err(text)?;
        let config = Config { understands, ..Config::default() };
        let changes = restored(&RowsOf(&disk), &config).map_err(text)?;
        let mut rows: Vec<RowChange> = changes.into_iter().map(row_change).collect();
        if mutation == Some(Mutation::RolesNotRestored) {
            rows.push(RowChange::DeletePrefix { table: ROLES, prefix: Vec::new() });
        }
        disk.write(DiskBatch { rows, ..DiskBatch::default() }, Durability::Synced).map_err(text)?;
        let found = roles_of(&Core::load(&RowsOf(&disk), config).map_err(text)?);
        match found == self.roles {
            true => Ok(disk),
            false => Err(format!("of roles it holds {found:?}, and {:?} was saved", self.roles)),
        }
    }
}

impl Files {
    /// The files of a saved snapshot.
    fn fill(&self, files: &[(Digest, Vec<u8>)]) -> io::Result<()> {
        for (number, (digest, bytes)) in files.iter().enumerate() {
            let name = temporary_name(u64::try_from(number).unwrap_or(0));
            self.folder.write(&name, bytes.clone())?;
            self.folder.sync_file(&name)?;
            self.folder.rename(&name, &file_name(digest))?;
        }
        self.folder.sync()
    }
}

impl World {
    /// In some seeds a state will be saved.
    pub(crate) fn plan_save(&mut self) {
        let saves = if self.shares.is_some() { SAVES_SHARED } else { SAVES };
        if self.rng.chance(saves) {
            let at_us = self.rng.range(SAVED_US.0, SAVED_US.1);
            self.queue.at(at_us, Event::Save);
        }
    }

    pub(crate) fn save(&mut self) {
        if !self.faults_on || self.saved.is_some() {
            return;
        }
        match self.saved_state() {
            Some(saved) => {
                self.journal.line(self.now_us, &format!("the state is saved at entry {}", saved.header.position.index));
                self.saved = Some(saved);
                let at_us = self.now_us + self.rng.range(RESTORED_US.0, RESTORED_US.1);
                self.queue.at(at_us.min(self.plan.heal_us), Event::Restore);
            }
            None => self.queue.at(self.now_us + AGAIN_US, Event::Save),
        }
    }

    /// The state of the leader with its files, if all of it is there.
    fn saved_state(&self) -> Option<Saved> {
        let leader = self.leader().filter(|leader| self.masters[*leader].runs(self.now_us))?;
        let node = self.leading().filter(|_| self.user.is_done())?;
        // What is checked stands where the newest master is.
        if node.status().applied.index != self.oracle.last_applied() {
            return None;
        }
        let folder = &self.masters[leader].files.folder;
        let named = node.core().components().into_iter().map(|view| view.digest);
        let files: Option<Vec<_>> = named
            .map(|digest| {
                let bytes = folder.read(&file_name(&digest)).ok().filter(|bytes| Digest::of(bytes) == digest);
                Some((digest, bytes?))
            })
            .collect();
        let mut source = node.snapshot().ok()?;
        let mut bytes = Vec::new();
        while let Ok(Some(chunk)) = source.next_chunk() {
            bytes.extend(chunk.bytes);
        }
        let (header, shadow) = (source.header().clone(), self.oracle.saved());
        let (limited, roles) = (self.user.limited.clone(), roles_of(node.core()));
        Some(Saved { header, bytes, files: files?, shadow, limited, roles })
    }

    /// All masters are stopped, and new ones begin with the saved state.
    pub(crate) fn restore(&mut self) {
        let Some(saved) = self.saved.take() else { return };
        self.journal.line(self.now_us, "all masters are stopped, and the saved state is restored");
        self.oracle.saw("a saved state is restored");
        self.era += 1;
        let understands = self.masters.iter().map(|master| master.understands).max().unwrap_or(CLUSTER_VERSION);
        for slot in 0..self.masters.len() {
            self.master_ends(slot);
            self.master_loses_disk(slot);
            let master: &mut Master = &mut self.masters[slot];
            (master.era, master.understands, master.joins_us) = (self.era, understands, 0);
        }
        self.net.conns.clear();
        self.transfers.clear();
        self.uploads.clear();
        self.damaged.clear();
        self.named_since.clear();
        self.learners.clear();
        self.new_voters.clear();
        self.files_looked = (0, 0, 0);
        self.calls.nobody_waits();
        self.user.begins_again(saved.limited.clone());
        self.oracle.restore(saved.shadow.clone());
        match saved.disk(self.era, understands, self.mutation) {
            Ok(disk) => {
                self.masters[0].put_disk(disk, Some(FIRST_NODE));
                self.masters[0].files.folder.set(self.now_us, false);
                if let Err(error) = self.masters[0].files.fill(&saved.files) {
                    self.oracle.violate(format!("the files of a saved state cannot be restored: {error}"));
                }
                self.queue.at(self.now_us + 1_000, Event::MasterStart { master: 0 });
            }
            Err(error) => self.oracle.violate(format!("a saved state cannot be restored: {error}")),
        }
    }

    /// What agents run and the restored state does not know is ended by somebody in the end, or before.
    pub(crate) fn operator_ends_strangers(&mut self) -> bool {
        let agents = self.leading().map(|node| node.core().agents()).unwrap_or_default();
        let with: Vec<AgentId> =
            agents.iter().filter(|view| !view.strangers.is_empty()).map(|view| view.id).collect();
        let asked = self.calls.asks(|request| matches!(request, Request::EndStrangers { .. }));
        if with.is_empty() || asked || self.faults_on && !self.rng.chance(3) {
            return false;
        }
        let agent = with[self.rng.index(with.len())];
        self.oracle.saw("what a restored state does not know is ended");
        self.oracle.strangers_may_end();
        self.ask(Ask::Change(Request::EndStrangers { agent }), None);
        true
    }
}
