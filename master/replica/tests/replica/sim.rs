//! Groups on simulated disks and a lossy network, all choices from a seed.
//!
//! Owns: the network, the disks, and what all replicas together may never do.
//! Invariants checked after every step: one leader per term; the same entry at the same index
//! everywhere; nothing reported as applied is ever replaced; rows rebuilt at a restart equal
//! the replay of the committed entries; an id never has two disks.
//! Must never: use a clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tessera_replica::{
    ChangeError, EntryId, FatalError, JoinId, Limits, MemDisk, MemberChange, Membership, Progress,
    Replica, ReplicaConfig, Role, RoleChange, SnapshotToSend, Staging, StepError, WriteJob,
};

use crate::support::{Counters, Node, config, identity};

/// The first voters of most groups.
pub const NODES: [u64; 3] = [1, 2, 3];

/// What is on its way to a node.
pub enum Packet {
    Message(Vec<u8>),
    /// Several chunks are sent one by one; the staging is kept by the receiver's transport.
    Snapshot(Box<SnapshotToSend>, Option<Box<Staging>>),
}

pub struct Sim {
    pub nodes: BTreeMap<u64, Node<MemDisk>>,
    pub disks: BTreeMap<u64, MemDisk>,
    pub network: VecDeque<(u64, u64, Packet)>,
    /// Syncs that have begun: what each is for, and how many writes of the disk it makes durable.
    pub writing: BTreeMap<u64, (WriteJob, u64)>,
    /// Whether syncs end when a test says so, and not at once.
    pub slow_disks: bool,
    /// Nodes cut off from all others.
    pub isolated: BTreeSet<u64>,
    /// Nodes that ended because they were removed.
    pub ended: BTreeSet<u64>,
    /// Committed entries by index: what some replica applied.
    pub committed: BTreeMap<u64, (u64, Vec<u8>)>,
    pub leaders: BTreeMap<u64, u64>,
    /// How many applied entries of each running node were compared.
    checked: BTreeMap<u64, usize>,
    /// Proposals whose fate is open, with their proposer.
    pub open: BTreeMap<EntryId, u64>,
    pub lost: BTreeSet<EntryId>,
    /// Changes of the members that were reported as applied by their proposer.
    pub changed: BTreeSet<EntryId>,
    pub reads: Vec<u64>,
    pub restored: usize,
    /// Every message in the order in which it was sent, if it is recorded.
    pub record: Option<Vec<(u64, u64, Vec<u8>)>>,
    limits: Limits,
    configure: fn(u64) -> ReplicaConfig,
}

impl Sim {
    pub fn new(limits: Limits) -> Self {
        Sim::with(limits, &NODES, config)
    }

    pub fn with(limits: Limits, voters: &[u64], configure: fn(u64) -> ReplicaConfig) -> Self {
        let mut sim = Sim {
            nodes: BTreeMap::new(),
            disks: BTreeMap::new(),
            network: VecDeque::new(),
            writing: BTreeMap::new(),
            slow_disks: false,
            isolated: BTreeSet::new(),
            ended: BTreeSet::new(),
            committed: BTreeMap::new(),
            leaders: BTreeMap::new(),
            checked: BTreeMap::new(),
            open: BTreeMap::new(),
            lost: BTreeSet::new(),
            changed: BTreeSet::new(),
            reads: Vec::new(),
            restored: 0,
            record: None,
            limits,
            configure,
        };
        let list: Vec<_> = voters
            .iter()
            .map(|node| (*node, attributes(*node)))
            .collect();
        for node in voters {
            let mut disk = MemDisk::new();
            Replica::bootstrap_voters(&mut disk, identity(*node), &list).expect("an empty disk");
            sim.disks.insert(*node, disk);
            sim.start(*node);
        }
        sim
    }

    /// All nodes that ever were and have not ended.
    pub fn ids(&self) -> Vec<u64> {
        let left = self.disks.keys().filter(|id| !self.ended.contains(id));
        left.copied().collect()
    }

    pub fn start(&mut self, id: u64) {
        let config = ReplicaConfig {
            limits: self.limits,
            ..(self.configure)(id)
        };
        let node = Node::open(config, self.disks[&id].clone());
        let applied = node.replica.status().applied;
        assert_eq!(
            node.machine.values,
            self.replay(applied.index),
            "node {id} at boot"
        );
        self.checked.remove(&id);
        self.nodes.insert(id, node);
    }

    /// Gives a disk to every member that has none: it has just learned its id.
    fn start_joiners(&mut self, membership: &Membership) {
        for member in &membership.members {
            if !self.disks.contains_key(&member.node) {
                let mut disk = MemDisk::new();
                Replica::prepare_joiner(&mut disk, identity(member.node)).expect("an empty disk");
                self.disks.insert(member.node, disk);
                self.start(member.node);
            }
        }
    }

    /// The counters after all committed entries up to `index`.
    fn replay(&self, index: u64) -> BTreeMap<Vec<u8>, u64> {
        let mut values: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for (_, entry) in self.committed.range(..=index).map(|(_, entry)| entry) {
            let (verb, key) = entry.split_first().expect("entries are not empty");
            if *verb == b'+' {
                *values.entry(key.to_vec()).or_default() += 1;
            } else {
                values.retain(|other, _| !other.starts_with(key));
            }
        }
        values
    }

    pub fn crash(&mut self, id: u64, survivors: usize) {
        self.nodes.remove(&id);
        self.writing.remove(&id);
        self.open.retain(|_, proposer| *proposer != id);
        let (kept, gone) = std::mem::take(&mut self.network)
            .into_iter()
            .partition(|(_, to, _)| *to != id);
        self.network = kept;
        self.lose(gone);
        self.disks
            .get_mut(&id)
            .expect("every node has a disk")
            .crash(survivors);
    }

    pub fn tick(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.replica.tick();
        }
    }

    pub fn propose(&mut self, id: u64, entry: Vec<u8>) -> Option<EntryId> {
        let entry_id = self.nodes.get_mut(&id)?.replica.propose(entry).ok()?;
        assert!(
            self.open.insert(entry_id, id).is_none(),
            "{entry_id} was given out twice"
        );
        Some(entry_id)
    }

    pub fn change(&mut self, id: u64, change: &MemberChange) -> Result<EntryId, ChangeError> {
        let node = self.nodes.get_mut(&id).expect("it runs");
        let entry_id = node.replica.propose_change(change)?;
        assert!(
            self.open.insert(entry_id, id).is_none(),
            "{entry_id} was given out twice"
        );
        Ok(entry_id)
    }

    /// Proposes to take in one more node; its id.
    pub fn add_learner(&mut self, leader: u64) -> Result<u64, ChangeError> {
        let node = self.nodes[&leader].replica.membership().next_node;
        let change = MemberChange::AddLearner {
            node,
            attributes: attributes(node),
            join: join_id(node),
        };
        self.change(leader, &change).map(|_| node)
    }

    /// Lets packets get lost; the transport tells the sender of a snapshot.
    pub fn lose(&mut self, packets: VecDeque<(u64, u64, Packet)>) {
        for (from, to, packet) in packets {
            if let (Packet::Snapshot(..), Some(sender)) = (packet, self.nodes.get_mut(&from)) {
                sender.replica.report_snapshot(to, false);
            }
        }
    }

    /// Delivers the packet at `position` of the network; false if there is none. Of a snapshot one
    /// chunk is delivered, and the rest stays where it is.
    pub fn deliver(&mut self, position: usize) -> bool {
        let Some((from, to, packet)) = self.network.remove(position) else {
            return false;
        };
        let cut = self.isolated.contains(&from) || self.isolated.contains(&to);
        let Some(node) = self.nodes.get_mut(&to).filter(|_| !cut) else {
            if let Some(sender) = self.nodes.get_mut(&from) {
                sender.replica.report_unreachable(to);
            }
            self.lose(VecDeque::from([(from, to, packet)]));
            return true;
        };
        let stepped = match packet {
            Packet::Message(bytes) => node.replica.step(&bytes),
            Packet::Snapshot(mut snapshot, staging) => {
                match deliver_chunk(node, &mut snapshot, staging) {
                    Ok(Some(staging)) => {
                        let rest = Packet::Snapshot(snapshot, Some(staging));
                        self.network.insert(position, (from, to, rest));
                        return true;
                    }
                    delivered => {
                        let ok = delivered.is_ok();
                        if let Some(sender) = self.nodes.get_mut(&from) {
                            sender.replica.report_snapshot(to, ok);
                        }
                        delivered.map(|_| ())
                    }
                }
            }
        };
        match stepped {
            Ok(()) => {}
            Err(StepError::RemovedPeer(peer)) => {
                assert_eq!(peer, from);
                if let Some(sender) = self.nodes.get_mut(&from) {
                    sender.replica.on_told_removed(to);
                }
            }
            // An answer to what was asked while it was a member, or a snapshot overtaken by the log
            // or by a newer one.
            Err(
                StepError::UnknownPeer(_)
                | StepError::NotNeeded { .. }
                | StepError::NotStaged
                | StepError::Installing,
            ) => {}
            Err(error) => panic!("{from} to {to}: {error}"),
        }
        true
    }

    /// Processes a node until its disk is the only thing it waits for, and checks what it reports. An
    /// injected disk fault comes back.
    pub fn process(&mut self, id: u64) -> Result<(), FatalError> {
        self.process_once(id)?;
        while !self.slow_disks && self.written(id)? {}
        Ok(())
    }

    /// The sync of a node's disk that has begun is done; says whether there was one.
    pub fn written(&mut self, id: u64) -> Result<bool, FatalError> {
        let Some((job, mark)) = self.writing.remove(&id) else {
            return Ok(false);
        };
        let disk = self.disks.get_mut(&id).expect("every node has a disk");
        disk.sync_to(mark)?;
        let node = self.nodes.get_mut(&id).expect("only running nodes write");
        node.replica.on_written(job);
        self.process_once(id)?;
        Ok(true)
    }

    fn process_once(&mut self, id: u64) -> Result<(), FatalError> {
        let Some(node) = self.nodes.get_mut(&id) else {
            return Ok(());
        };
        // Messages leave at once, so they are on their way even if the disk fails after that.
        let mut sent = Vec::new();
        let result = node.replica.process_sending(&mut node.machine, &mut sent);
        for (to, bytes) in sent {
            if let Some(record) = &mut self.record {
                record.push((id, to, bytes.clone()));
            }
            self.network.push_back((id, to, Packet::Message(bytes)));
        }
        // What was applied before a fault is committed as well, though not reported.
        self.check_applied(id);
        if matches!(result, Err(FatalError::Removed { .. })) {
            self.nodes.remove(&id);
            self.writing.remove(&id);
            self.ended.insert(id);
            self.open.retain(|_, proposer| *proposer != id);
            return Ok(());
        }
        self.check(id, result?);
        let job = self.nodes[&id].replica.unwritten();
        if let Some(job) = job
            && !self.writing.contains_key(&id)
        {
            self.writing.insert(id, (job, self.disks[&id].writes()));
        }
        Ok(())
    }

    fn check_applied(&mut self, id: u64) {
        let applied = &self.nodes[&id].machine.applied;
        let checked = self.checked.insert(id, applied.len()).unwrap_or(0);
        for (entry_id, entry) in &applied[checked..] {
            let fact = (entry_id.term, entry.clone());
            let known = self
                .committed
                .entry(entry_id.index)
                .or_insert_with(|| fact.clone());
            assert_eq!(
                *known, fact,
                "node {id} applied something else at {entry_id}"
            );
            assert!(
                !self.lost.contains(entry_id),
                "{entry_id} was reported lost, then applied"
            );
            self.open.remove(entry_id);
        }
    }

    fn check(&mut self, id: u64, progress: Progress<(Vec<u8>, u64)>) {
        for change in &progress.role_changes {
            if let RoleChange::BecameLeader { term } = change {
                let other = self.leaders.insert(*term, id).filter(|other| *other != id);
                assert_eq!(other, None, "two leaders in term {term}");
            }
        }
        for lost in &progress.lost {
            let fact = self
                .committed
                .get(&lost.index)
                .filter(|(term, _)| *term == lost.term);
            assert_eq!(fact, None, "{lost} is committed, yet reported lost");
            self.lost.insert(*lost);
            self.open.remove(lost);
        }
        for unknown in &progress.unknown {
            self.open.remove(unknown);
        }
        for changed in progress.changed {
            assert!(self.open.remove(&changed).is_some(), "{changed} is unknown");
            self.changed.insert(changed);
        }
        self.restored += usize::from(progress.restored.is_some());
        self.reads.extend(progress.reads);
        for snapshot in progress.snapshots {
            let (to, packet) = (snapshot.peer, Packet::Snapshot(Box::new(snapshot), None));
            self.network.push_back((id, to, packet));
        }
        if let Some(membership) = progress.membership {
            self.start_joiners(&membership);
        }
    }

    pub fn leader(&self) -> Option<u64> {
        let leads = |node: &Node<MemDisk>| node.replica.status().role == Role::Leader;
        let leaders = self
            .nodes
            .iter()
            .filter(|(id, node)| !self.isolated.contains(id) && leads(node));
        leaders
            .max_by_key(|(_, node)| node.replica.status().term)
            .map(|(id, _)| *id)
    }

    /// One tick everywhere and everything delivered.
    pub fn round(&mut self) {
        for id in self.ids() {
            self.tick(id);
            self.process(id)
                .expect("no fault is injected in a quiet round");
        }
        for _ in 0..10_000 {
            if !self.deliver(0) {
                return;
            }
            for id in self.ids() {
                self.process(id)
                    .expect("no fault is injected in a quiet round");
            }
        }
        panic!("the network never becomes quiet");
    }

    /// Runs quiet rounds until `done`, or fails.
    pub fn run_until(&mut self, what: &str, done: impl Fn(&Sim) -> bool) {
        for _ in 0..400 {
            if done(self) {
                return;
            }
            self.round();
        }
        let status: Vec<_> = self
            .nodes
            .values()
            .map(|node| node.replica.status())
            .collect();
        panic!("not reached: {what}; {status:#?}");
    }

    /// Everybody up and connected agrees on everything within bounded rounds.
    pub fn heal_and_compare(&mut self) {
        self.isolated.clear();
        self.slow_disks = false;
        for id in self.ids() {
            if !self.nodes.contains_key(&id) {
                self.start(id);
            }
        }
        // Long enough for a deposed leader to learn of it.
        for _ in 0..40 {
            self.round();
        }
        self.run_until("a leader", |sim| sim.leader().is_some());
        let leader = self.leader().expect("there is one");
        let id = self
            .propose(leader, b"+end".to_vec())
            .expect("a quiet leader takes it");
        self.run_until("equal replicas", |sim| {
            let membership = sim.nodes[&leader].replica.membership();
            let caught_up = |(node, running): (&u64, &Node<MemDisk>)| {
                membership.get(*node).is_none()
                    || running.replica.status().applied.index >= id.index
            };
            // A node that was removed without hearing of it is told, and ends.
            let unaware = |(node, running): (&u64, &Node<MemDisk>)| {
                let status = running.replica.status();
                membership.get(*node).is_none() && !status.removed && status.voters.contains(node)
            };
            !membership.changing
                && sim.nodes.iter().all(caught_up)
                && !sim.nodes.iter().any(unaware)
        });
        let rows = self.disks[&leader].all_rows();
        let membership = self.nodes[&leader].replica.membership().clone();
        let is_member = |id: &u64| membership.get(*id).is_some();
        for (id, node) in self.nodes.iter().filter(|(id, _)| is_member(id)) {
            assert_eq!(
                *node.replica.membership(),
                membership,
                "members of node {id}"
            );
            assert_eq!(self.disks[id].all_rows(), rows, "rows of node {id}");
            assert_eq!(
                Counters::from_rows(node.replica.rows()).values,
                node.machine.values
            );
            assert_eq!(
                node.machine.values,
                self.replay(u64::MAX),
                "memory of node {id}"
            );
            assert_eq!(
                node.replica.status().open_proposals,
                0,
                "open proposals of node {id}"
            );
        }
        let proposers: Vec<_> = self
            .open
            .values()
            .filter_map(|id| self.nodes.get(id))
            .map(|node| node.replica.status())
            .take(1)
            .collect();
        assert!(
            self.open.is_empty(),
            "still open: {:?} of {proposers:#?}, leader {leader}, {membership:?}",
            self.open
        );
    }
}

/// What a node says of itself in these tests.
pub fn attributes(node: u64) -> Vec<u8> {
    format!("node {node}").into_bytes()
}

pub fn join_id(node: u64) -> JoinId {
    JoinId([node as u8; 16])
}

/// Gives the next chunk to the receiver. `Some` if more follow.
fn deliver_chunk(
    node: &mut Node<MemDisk>,
    snapshot: &mut SnapshotToSend,
    staging: Option<Box<Staging>>,
) -> Result<Option<Box<Staging>>, StepError> {
    let mut staging = match staging {
        Some(staging) => staging,
        None => Box::new(node.replica.begin_install(&snapshot.message)?),
    };
    let chunk = snapshot.source.next_chunk().expect("the disk can be read");
    if let Some(chunk) = chunk
        && staging.write(chunk.offset, &chunk.bytes).is_err()
    {
        return Err(StepError::NotStaged);
    }
    match staging.finish() {
        Ok(staged) => node
            .replica
            .step_snapshot(&snapshot.message, staged)
            .map(|()| None),
        Err((_, staging)) => Ok(Some(staging)),
    }
}
