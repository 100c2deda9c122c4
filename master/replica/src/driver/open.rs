//! Ways to a replica: a new cluster, a joiner, a restart, a restored snapshot.
//!
//! Owns: what each of them writes and starts. Invariants: a disk that belongs to somebody is never
//! taken over. Must never: repair what a check refused.

use std::collections::{BTreeMap, BTreeSet};

use raft::RawNode;

use super::Replica;
use super::writes::Unwritten;
use crate::activity::Activity;
use crate::boot;
use crate::config::{Identity, ReplicaConfig};
use crate::disk::{Disk, Durability};
use crate::error::{BootstrapError, OpenError, RestoreError, SnapshotError};
use crate::logger::raft_logger;
use crate::proposals::{Proposals, Reads};
use crate::snapshot::{SnapshotHeader, Staged, Staging};

impl<D: Disk> Replica<D> {
    /// Whose disk this is, or `None` if it was never bootstrapped.
    ///
    /// # Errors
    /// When the disk cannot be read or has a newer format.
    pub fn identity(disk: &D) -> Result<Option<Identity>, OpenError> {
        boot::identity(disk)
    }

    /// Makes an empty disk that of the only voter of a new cluster, which says `attributes` of
    /// itself. Others join it.
    ///
    /// # Errors
    /// When the disk is in use or fails, or the member says too much of itself.
    pub fn bootstrap(
        disk: &mut D,
        identity: Identity,
        attributes: Vec<u8>,
    ) -> Result<(), BootstrapError> {
        boot::bootstrap(disk, identity, &[(identity.node, attributes)])
    }

    /// Makes an empty disk that of one of several first voters, given as (node, what it says of
    /// itself). Each of them must be made with the same list, so this is for simulations.
    ///
    /// # Errors
    /// When the disk is in use, the voters make no sense, or the disk fails.
    pub fn bootstrap_voters(
        disk: &mut D,
        identity: Identity,
        voters: &[(u64, Vec<u8>)],
    ) -> Result<(), BootstrapError> {
        boot::bootstrap(disk, identity, voters)
    }

    /// Makes an empty disk that of a node to which the cluster gave the id in `identity`. It has
    /// no log and never stands for election; everything comes with a snapshot of the leader.
    ///
    /// # Errors
    /// When the disk is in use or fails.
    pub fn prepare_joiner(disk: &mut D, identity: Identity) -> Result<(), BootstrapError> {
        boot::prepare_joiner(disk, identity)
    }

    /// Starts to stage the rows of a saved snapshot on an empty disk.
    ///
    /// # Errors
    /// When the disk is in use or fails.
    pub fn begin_restore(disk: &mut D, header: SnapshotHeader) -> Result<Staging, RestoreError> {
        Self::refuse_used(disk)?;
        let stage = disk.stage()?;
        Ok(Staging::new(header, Some(stage)))
    }

    /// Makes a disk with staged rows that of the only voter of a new cluster with that state. The
    /// cluster id in `identity` must be a new one: masters of the old cluster must not join.
    ///
    /// # Errors
    /// When the disk is in use or fails.
    pub fn finish_restore(
        disk: &mut D,
        identity: Identity,
        attributes: Vec<u8>,
        staged: &Staged,
    ) -> Result<(), RestoreError> {
        Self::refuse_used(disk)?;
        if identity.cluster == staged.header.cluster {
            return Err(RestoreError::SameCluster(identity.cluster));
        }
        let mut group = boot::first_group(identity.node, &[(identity.node, attributes)])?;
        let next = &mut group.membership.next_node;
        *next = (*next).max(staged.header.group.membership.next_node);
        let mut batch = boot::first_records(&identity, staged.header.position, &group);
        batch.adopt = Some(staged.stage.ok_or(SnapshotError::Superseded)?);
        disk.write(batch, Durability::Synced)?;
        Ok(())
    }

    fn refuse_used(disk: &D) -> Result<(), RestoreError> {
        match boot::refuse_used(disk) {
            Err(BootstrapError::AlreadyBootstrapped { cluster, node }) => {
                Err(RestoreError::NotEmpty { cluster, node })
            }
            other => Ok(other?),
        }
    }

    /// Checks the disk and starts the replica. The owner then builds its machine from
    /// [`Replica::rows`], which stand at [`crate::Status::applied`], before the first `process`.
    ///
    /// # Errors
    /// When the disk is empty, another node's, of a newer format, damaged or incomplete.
    pub fn open(config: ReplicaConfig, disk: D) -> Result<Self, OpenError> {
        let me = config.identity.node;
        let store = boot::load(disk, config.identity, config.limits)?;
        let raft_config = config.raft_config(store.applied().index);
        let group = store.group();
        let unwritten = Unwritten::new(store.first_vote());
        let alone = group.conf.voters == [me] && !group.is_joint();
        // A joiner has applied nothing yet.
        let removed = store.applied().index > 0 && !group.contains(me);
        let config_error = |error: raft::Error| OpenError::Config(error.to_string());
        let node = RawNode::new(&raft_config, store, &raft_logger()).map_err(config_error)?;
        let mut replica = Replica {
            node,
            config,
            led_term: None,
            proposals: Proposals::default(),
            reads: Reads::default(),
            activity: Activity::default(),
            snapshot_ticks: BTreeMap::new(),
            unwritten,
            free: Vec::new(),
            staging: None,
            staged: None,
            heard_leader: None,
            removed,
            silence: 0,
            told_by: BTreeSet::new(),
            told_ticks: 0,
            stopped: false,
        };
        if alone {
            replica.node.campaign().map_err(config_error)?;
        }
        replica.settle_timeout();
        Ok(replica)
    }
}
