//! Disks that take their time: what goes on meanwhile, and what must not.

use std::collections::BTreeMap;

use prost_raft::Message as _;
use raft::eraftpb::{Message, MessageType};
use tessera_replica::{Limits, MemberChange, Role, WriteJob};

use crate::sim::{NODES, Packet, Sim};
use crate::support::{add, config};

/// A group whose syncs take ticks; everything else takes no time.
struct Slow {
    sim: Sim,
    sync_ticks: BTreeMap<u64, usize>,
    begun: BTreeMap<u64, (WriteJob, usize)>,
    now: usize,
}

impl Slow {
    /// Three nodes with a leader that was elected while the disks were fast.
    fn new(sync_ticks: impl Fn(u64, u64) -> usize) -> (Self, u64) {
        Slow::with(Limits::default(), sync_ticks)
    }

    fn with(limits: Limits, sync_ticks: impl Fn(u64, u64) -> usize) -> (Self, u64) {
        let mut sim = Sim::new(limits);
        sim.run_until("a leader", |sim| sim.leader().is_some());
        let leader = sim.leader().expect("there is one");
        sim.slow_disks = true;
        sim.record = Some(Vec::new());
        let slow = Slow {
            sim,
            sync_ticks: NODES.map(|id| (id, sync_ticks(id, leader))).into(),
            begun: BTreeMap::new(),
            now: 0,
        };
        (slow, leader)
    }

    fn deliver(&mut self) {
        while self.sim.deliver(0) {
            for id in NODES {
                self.sim.process(id).expect("no fault is injected");
            }
        }
    }

    fn tick(&mut self) {
        self.now += 1;
        for id in NODES {
            self.sim.tick(id);
            self.sim.process(id).expect("no fault is injected");
            let Some((job, _)) = self.sim.writing.get(&id) else {
                continue;
            };
            let begun = self.begun.get(&id).filter(|(known, _)| known == job);
            let since = begun.map_or(self.now, |(_, since)| *since);
            self.begun.insert(id, (*job, since));
            if self.now - since >= self.sync_ticks[&id] {
                self.sim.written(id).expect("no fault is injected");
            }
        }
        self.deliver();
    }

    /// How many messages of a kind were sent from one node to another.
    fn sent(&self, kind: MessageType) -> BTreeMap<(u64, u64), usize> {
        let mut counts = BTreeMap::new();
        for (from, to, bytes) in self.sim.record.iter().flatten() {
            let message = Message::decode(bytes.as_slice()).expect("a message of raft");
            if message.msg_type == kind as i32 {
                *counts.entry((*from, *to)).or_default() += 1;
            }
        }
        counts
    }
}

/// 20 seconds.
const TICKS: usize = 400;

#[test]
fn heartbeats_and_leadership_do_not_wait_for_disks() {
    // Ticks of 50 ms: 200 ms, and one and a half seconds, longer than any election timeout.
    type Ticks = fn(u64, u64) -> usize;
    let cases: [(&str, Ticks, usize); 4] = [
        ("all disks take 200 ms", |_, _| 4, 300),
        ("one follower takes 1.5 s", |id, leader| if id == leader % 3 + 1 { 30 } else { 0 }, 390),
        ("the leader takes 200 ms", |id, leader| if id == leader { 4 } else { 0 }, 300),
        ("both followers take 1.5 s", |id, leader| if id == leader { 0 } else { 30 }, 200),
    ];
    for (what, sync_ticks, least) in cases {
        let (mut slow, leader) = Slow::new(sync_ticks);
        let (terms, committed) = (slow.sim.leaders.clone(), slow.sim.committed.len());
        for _ in 0..TICKS {
            slow.sim.propose(leader, add(b"x")).expect("it leads");
            slow.tick();
        }
        assert_eq!(slow.sim.leaders, terms, "{what}: another election");
        assert_eq!(slow.sim.leader(), Some(leader), "{what}");
        let beats = slow.sent(MessageType::MsgHeartbeat);
        let answers = slow.sent(MessageType::MsgHeartbeatResponse);
        for id in NODES.into_iter().filter(|id| *id != leader) {
            let (beats, answers) = (beats[&(leader, id)], answers[&(id, leader)]);
            assert!(beats >= TICKS / 2 - 1, "{what}: {beats} heartbeats to node {id}");
            assert_eq!(answers, beats, "{what}: answers of node {id}");
        }
        let committed = slow.sim.committed.len() - committed;
        println!("{what}: {committed} entries applied, heartbeats {beats:?}");
        assert!(committed >= least, "{what}: {committed} entries");
        slow.sim.heal_and_compare();
    }
}

#[test]
fn an_entry_is_one_message_and_one_answer_per_follower_and_heartbeats_say_that_it_is_committed() {
    let (mut slow, leader) = Slow::new(|_, _| 0);
    slow.sim.slow_disks = false;
    let id = slow.sim.propose(leader, add(b"x")).expect("it leads");
    slow.sim.process(leader).expect("no fault is injected");
    slow.deliver();
    assert!(slow.sim.committed.contains_key(&id.index), "the leader has applied it");
    let (appends, answers) = (slow.sent(MessageType::MsgAppend), slow.sent(MessageType::MsgAppendResponse));
    for node in NODES.into_iter().filter(|node| *node != leader) {
        assert_eq!((appends[&(leader, node)], answers[&(node, leader)]), (1, 1), "node {node}");
    }
    for _ in 0..config(leader).heartbeat_ticks {
        slow.sim.round();
    }
    for node in NODES {
        let applied = slow.sim.nodes[&node].replica.status().applied;
        assert_eq!(applied, id, "node {node}");
    }
}

#[test]
fn a_leader_whose_disk_stands_still_is_replaced_without_an_election_timeout() {
    let (mut slow, leader) = Slow::new(|id, leader| if id == leader { usize::MAX } else { 0 });
    let timeout = config(leader).election_ticks;
    slow.sim.propose(leader, add(b"x")).expect("it leads");
    let mut ticks = 0;
    while slow.sim.leader().is_none_or(|new| new == leader) {
        slow.tick();
        ticks += 1;
        // Votes and the first entry have to be written as well.
        assert!(ticks <= timeout + 6, "it goes on leading");
    }
    assert!(ticks >= timeout, "a slow sync is no reason yet");
    let asked = slow.sent(MessageType::MsgRequestPreVote);
    assert!(asked.is_empty(), "somebody took the leader for gone");
    let new = slow.sim.leader().expect("it was found");
    let id = slow.sim.propose(new, add(b"y")).expect("it leads");
    for _ in 0..4 {
        slow.tick();
    }
    assert!(slow.sim.committed.contains_key(&id.index), "two disks are enough");
    slow.sim.heal_and_compare();
}

#[test]
fn a_leader_whose_disk_stands_still_over_a_cut_of_the_log_is_replaced_too() {
    let limits = Limits { log_compact_after_entries: 20, log_keep_entries: 5, ..Limits::default() };
    let (mut slow, leader) = Slow::with(limits, |id, leader| if id == leader { usize::MAX } else { 0 });
    // Until a write is left that brings no entry.
    for proposed in 0.. {
        assert!(proposed < 50, "the log is never cut");
        let id = slow.sim.propose(leader, add(b"x")).expect("it leads");
        while slow.sim.nodes[&leader].replica.status().applied.index < id.index {
            slow.tick();
            if slow.sim.nodes[&leader].replica.status().applied.index < id.index {
                slow.sim.written(leader).expect("no fault is injected");
                slow.deliver();
            }
        }
        if slow.sim.writing.contains_key(&leader) {
            break;
        }
    }
    let timeout = config(leader).election_ticks;
    let mut ticks = 0;
    while slow.sim.leader().is_none_or(|new| new == leader) {
        slow.tick();
        ticks += 1;
        assert!(ticks <= timeout + 6, "it goes on leading, and its owner proposes nothing");
    }
    slow.sim.heal_and_compare();
}

#[test]
fn a_follower_whose_disk_stands_still_takes_no_more_than_it_may_hold() {
    let (mut slow, leader) = Slow::new(|id, leader| if id == leader % 3 + 1 { usize::MAX } else { 0 });
    let slow_one = leader % 3 + 1;
    // Its leader's window is full before what it may hold is; heartbeats would open that again and again.
    let entry = vec![b'x'; 320 << 10];
    for _ in 0..500 {
        slow.sim.propose(leader, add(&entry)).expect("it leads");
        slow.tick();
    }
    let last = |id: u64| slow.sim.nodes[&id].replica.status().last_index;
    let (held, all) = (last(slow_one), last(leader));
    assert!(held < 300 && all >= 500, "{held} entries of {all}");
    slow.sim.heal_and_compare();
}

#[test]
fn a_lone_voter_tells_nobody_of_its_term_before_its_disk_has_it() {
    let mut sim = Sim::with(Limits::default(), &[1], config);
    sim.run_until("a leader", |sim| sim.leader() == Some(1));
    let learner = sim.add_learner(1).expect("it leads");
    sim.run_until("a learner", |sim| sim.nodes.contains_key(&learner));
    sim.run_until("all of the log", |sim| {
        let status = sim.nodes[&1].replica.status();
        status.peers.iter().all(|peer| peer.matched == status.last_index)
    });
    sim.crash(1, 0);
    sim.slow_disks = true;
    sim.start(1);
    sim.process(1).expect("no fault is injected");
    let from_one = |sim: &Sim| {
        let to_learner = |packet: &&(u64, u64, Packet)| packet.0 == 1;
        sim.network.iter().filter(to_learner).count()
    };
    let status = sim.nodes[&1].replica.status();
    assert_eq!(status.role, Role::LeaderElect, "it asks nobody");
    assert_eq!(from_one(&sim), 0, "its vote is not durable");
    assert_eq!(sim.written(1), Ok(true));
    assert!(from_one(&sim) > 0);
    sim.heal_and_compare();
}

#[test]
fn a_lone_voter_does_not_stand_before_its_disk_has_its_log() {
    let mut sim = Sim::with(Limits::default(), &[1, 2], config);
    sim.run_until("a leader", |sim| sim.leader().is_some());
    sim.round();
    let first = sim.leader().expect("there is one");
    let second = 3 - first;
    sim.slow_disks = true;
    let settle = |sim: &mut Sim| {
        for _ in 0..4 {
            for id in [first, second] {
                sim.process(id).expect("no fault is injected");
            }
            while sim.deliver(0) {}
        }
    };
    // The leader begins to remove the other one, which then leads and finds that in its log.
    let removal = sim.change(first, &MemberChange::Remove { node: second });
    let removal = removal.expect("it leads");
    settle(&mut sim);
    assert_eq!(sim.written(second), Ok(true), "the removal");
    settle(&mut sim);
    let replica = &mut sim.nodes.get_mut(&first).expect("it runs").replica;
    replica.transfer_leadership(second).expect("it leads");
    settle(&mut sim);
    for (id, what) in [(second, "its vote"), (first, "the removal"), (first, "its vote")] {
        assert_eq!(sim.written(id), Ok(true), "{what}");
        settle(&mut sim);
    }
    assert_eq!(sim.written(second), Ok(true), "the first entry of its term");
    let last = sim.propose(second, add(b"x")).expect("it leads");
    settle(&mut sim);
    assert_eq!(sim.written(first), Ok(true), "the first entry of the new term");
    settle(&mut sim);
    // With the news that it is the only voter came an entry that its disk has not got.
    let alone = |sim: &Sim| {
        let status = sim.nodes[&first].replica.status();
        (status.voters, status.applied.index, status.last_index, status.role)
    };
    let expected = (vec![first], removal.index + 1, last.index, Role::Follower);
    assert_eq!(alone(&sim), expected);
    for _ in 0..4 * config(first).election_ticks {
        sim.tick(first);
        sim.process(first).expect("no fault is injected");
    }
    assert_eq!(alone(&sim), expected, "its log is not durable yet");
    sim.slow_disks = false;
    sim.written(first).expect("no fault is injected");
    sim.run_until("the only voter leads", |sim| sim.leader() == Some(first));
    assert!(sim.committed.contains_key(&last.index));
}
