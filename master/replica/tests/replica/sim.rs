//! A group of three on simulated disks and a lossy network, all choices from a seed.
//!
//! Owns: the network, the disks, and what all replicas together may never do.
//! Invariants checked after every step: one leader per term; the same entry at the same index
//! everywhere; nothing reported as applied is ever replaced; rows rebuilt at a restart equal
//! the replay of the committed entries.
//! Must never: use a clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tessera_replica::{
    EntryId, FatalError, Limits, MemDisk, Progress, Replica, ReplicaConfig, Role, RoleChange,
};

use crate::support::{Counters, Node, Seeded, config, identity};

pub const NODES: [u64; 3] = [1, 2, 3];

pub struct Sim {
    pub nodes: BTreeMap<u64, Node<MemDisk>>,
    pub disks: BTreeMap<u64, MemDisk>,
    pub network: VecDeque<(u64, u64, Vec<u8>)>,
    /// Nodes cut off from all others.
    pub isolated: BTreeSet<u64>,
    /// Committed entries by index: what some replica applied.
    pub committed: BTreeMap<u64, (u64, Vec<u8>)>,
    pub leaders: BTreeMap<u64, u64>,
    /// How many applied entries of each running node were compared.
    checked: BTreeMap<u64, usize>,
    /// Proposals whose fate is open, with their proposer.
    pub open: BTreeMap<EntryId, u64>,
    pub lost: BTreeSet<EntryId>,
    pub reads: Vec<u64>,
    pub restored: usize,
    limits: Limits,
}

impl Sim {
    pub fn new(limits: Limits) -> Self {
        let mut sim = Sim {
            nodes: BTreeMap::new(),
            disks: BTreeMap::new(),
            network: VecDeque::new(),
            isolated: BTreeSet::new(),
            committed: BTreeMap::new(),
            leaders: BTreeMap::new(),
            checked: BTreeMap::new(),
            open: BTreeMap::new(),
            lost: BTreeSet::new(),
            reads: Vec::new(),
            restored: 0,
            limits,
        };
        for node in NODES {
            let mut disk = MemDisk::new();
            Replica::bootstrap(&mut disk, identity(node), &NODES).expect("an empty disk");
            sim.disks.insert(node, disk);
            sim.start(node);
        }
        sim
    }

    pub fn start(&mut self, id: u64) {
        let config = ReplicaConfig {
            limits: self.limits,
            ..config(id)
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
        self.open.retain(|_, proposer| *proposer != id);
        self.network.retain(|(_, to, _)| *to != id);
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

    /// Delivers the message at `position` of the network; false if there is none.
    pub fn deliver(&mut self, position: usize) -> bool {
        let Some((from, to, bytes)) = self.network.remove(position) else {
            return false;
        };
        let cut = self.isolated.contains(&from) || self.isolated.contains(&to);
        let snapshot = Replica::<MemDisk>::is_snapshot(&bytes);
        let reached = match self.nodes.get_mut(&to) {
            Some(node) if !cut => {
                node.replica
                    .step(&bytes)
                    .unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
                true
            }
            _ => false,
        };
        if let Some(sender) = self.nodes.get_mut(&from) {
            if snapshot {
                sender.replica.report_snapshot(to, reached);
            }
            if !reached {
                sender.replica.report_unreachable(to);
            }
        }
        true
    }

    /// Processes a node and checks what it reports. An injected disk fault comes back.
    pub fn process(&mut self, id: u64) -> Result<(), FatalError> {
        let Some(node) = self.nodes.get_mut(&id) else {
            return Ok(());
        };
        let result = node.replica.process(&mut node.machine);
        // What was applied before a fault is committed as well, though not reported.
        self.check_applied(id);
        self.check(id, result?);
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
        self.restored += usize::from(progress.restored.is_some());
        self.reads.extend(progress.reads);
        let sent = progress
            .messages
            .into_iter()
            .map(|(to, bytes)| (id, to, bytes));
        self.network.extend(sent);
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
        for id in NODES {
            self.tick(id);
            self.process(id)
                .expect("no fault is injected in a quiet round");
        }
        for _ in 0..10_000 {
            if !self.deliver(0) {
                return;
            }
            for id in NODES {
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
        for id in NODES {
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
            let caught_up = |node: &Node<MemDisk>| node.replica.status().applied.index >= id.index;
            sim.nodes.values().all(caught_up)
        });
        let rows = self.disks[&leader].all_rows();
        for (id, node) in &self.nodes {
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
        assert!(self.open.is_empty(), "still open: {:?}", self.open);
    }
}

/// Crashes `id`; how much of what it did not sync survives is drawn.
fn random_crash(sim: &mut Sim, random: &mut Seeded, id: u64) {
    let survivors = random.below(sim.disks[&id].unsynced_batches() as u64 + 1);
    sim.crash(id, survivors as usize);
}

/// One random input. Probabilities are out of 1,000.
fn random_step(sim: &mut Sim, random: &mut Seeded) {
    let id = NODES[random.below(3) as usize];
    match random.below(1_000) {
        0..600 => {
            let position = random.below(sim.network.len().min(4) as u64) as usize;
            sim.deliver(position);
        }
        600..750 => sim.tick(id),
        750..950 => {
            let key = [b'a' + random.below(4) as u8];
            let verb = if random.below(7) == 0 { b"-" } else { b"+" };
            sim.propose(id, [verb, key.as_slice()].concat());
        }
        950..965 => {
            let lost = sim.network.len().min(1 + random.below(4) as usize);
            sim.network.drain(..lost);
        }
        965..980 => sim.network.extend(sim.network.front().cloned()),
        980..982 => drop(sim.isolated.insert(id)),
        982..986 => sim.isolated.clear(),
        986..988 => {
            if let Some(disk) = sim.disks.get_mut(&id) {
                disk.fail_next_sync();
            }
        }
        988..990 => random_crash(sim, random, id),
        _ => {
            if !sim.nodes.contains_key(&id) {
                sim.start(id);
            }
        }
    }
}

/// One run of random steps, then quiet until all replicas are equal.
pub fn run_seed(seed: u64, steps: u64, limits: Limits) -> Sim {
    let mut random = Seeded::new(seed);
    let mut sim = Sim::new(limits);
    for _ in 0..steps {
        random_step(&mut sim, &mut random);
        // Inputs pile up before a node processes them, as they do under load.
        for id in NODES {
            if random.below(3) != 0 && sim.process(id).is_err() {
                random_crash(&mut sim, &mut random, id);
            }
        }
    }
    // A fault that was never met must not surprise the quiet end.
    sim.disks.values_mut().for_each(MemDisk::clear_faults);
    sim.heal_and_compare();
    sim
}
