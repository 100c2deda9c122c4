//! Groups of three: election, replication, crashes, conflicts, snapshots, reads, transfer.

use tessera_replica::{Limits, ProposeError, ReadError, Role, StepError, TransferError};

use crate::sim::{NODES, Packet, Sim};
use crate::support::{add, wipe};

fn led() -> (Sim, u64) {
    led_with(Limits::default())
}

fn led_with(limits: Limits) -> (Sim, u64) {
    let mut sim = Sim::new(limits);
    sim.run_until("a leader", |sim| sim.leader().is_some());
    let leader = sim.leader().expect("there is one");
    (sim, leader)
}

fn others(leader: u64) -> [u64; 2] {
    let mut others = NODES.into_iter().filter(|id| *id != leader);
    [
        others.next().expect("three nodes"),
        others.next().expect("three nodes"),
    ]
}

#[test]
fn three_nodes_elect_one_and_apply_the_same() {
    let (mut sim, leader) = led();
    for n in 0..50 {
        sim.propose(leader, add(&[b'a' + n % 5]))
            .expect("the leader takes it");
    }
    sim.propose(leader, wipe(b"c"))
        .expect("the leader takes it");
    sim.heal_and_compare();
    let [follower, _] = others(leader);
    let refused = sim
        .nodes
        .get_mut(&follower)
        .map(|node| node.replica.propose(add(b"x")));
    assert_eq!(
        refused,
        Some(Err(ProposeError::NotLeader {
            leader: Some(leader)
        }))
    );
}

#[test]
fn the_others_go_on_after_a_leader_crash_and_it_comes_back() {
    let (mut sim, leader) = led();
    sim.propose(leader, add(b"before"))
        .expect("the leader takes it");
    sim.round();
    sim.crash(leader, 0);
    sim.run_until("another leader", |sim| {
        sim.leader().is_some_and(|new| new != leader)
    });
    let new = sim.leader().expect("there is one");
    sim.propose(new, add(b"after"))
        .expect("the leader takes it");
    sim.round();
    sim.heal_and_compare();
    assert_eq!(sim.nodes[&leader].machine.value(b"before"), 1);
    assert_eq!(sim.nodes[&leader].machine.value(b"after"), 1);
}

#[test]
fn entries_of_an_isolated_leader_are_truncated_and_reported_lost() {
    let (mut sim, leader) = led();
    sim.isolated.insert(leader);
    let ids: Vec<_> = (0..3)
        .map(|_| {
            sim.propose(leader, add(b"doomed"))
                .expect("it still thinks it leads")
        })
        .collect();
    sim.process(leader).expect("the disk works");
    let old_last = sim.nodes[&leader].replica.status().last_index;
    sim.run_until("another leader", |sim| {
        sim.leader().is_some_and(|new| new != leader)
    });
    sim.run_until("the old one finds that it has no quorum", |sim| {
        sim.nodes[&leader].replica.status().role != Role::Leader
    });
    let new = sim.leader().expect("there is one");
    sim.propose(new, add(b"kept")).expect("the leader takes it");
    sim.round();
    sim.heal_and_compare();
    assert_eq!(sim.lost.iter().copied().collect::<Vec<_>>(), ids);
    assert!(old_last >= ids[2].index);
    assert_eq!(sim.nodes[&leader].machine.value(b"doomed"), 0);
    sim.crash(leader, 0);
    sim.heal_and_compare();
}

#[test]
fn a_follower_behind_the_cut_log_gets_a_snapshot() {
    let limits = Limits {
        log_compact_after_entries: 20,
        log_keep_entries: 5,
        ..Limits::default()
    };
    let (mut sim, leader) = led_with(limits);
    let [away, _] = others(leader);
    sim.crash(away, 0);
    for n in 0..60 {
        sim.propose(leader, add(&[b'a' + n % 7]))
            .expect("the leader takes it");
        sim.round();
    }
    assert!(sim.nodes[&leader].replica.status().first_index > 20);
    sim.heal_and_compare();
    assert_eq!(sim.restored, 1);
    sim.crash(away, 0);
    sim.heal_and_compare();
}

#[test]
fn reads_wait_for_a_quorum() {
    let (mut sim, leader) = led();
    let read = |sim: &mut Sim, id: u64, context| {
        sim.nodes
            .get_mut(&id)
            .expect("it runs")
            .replica
            .read_index(context)
    };
    read(&mut sim, leader, 1).expect("the leader reads");
    sim.process(leader).expect("the disk works");
    assert!(sim.reads.is_empty(), "no quorum yet");
    sim.run_until("the read", |sim| sim.reads == [1]);
    let [follower, _] = others(leader);
    assert_eq!(
        read(&mut sim, follower, 2),
        Err(ReadError::NotLeader {
            leader: Some(leader)
        })
    );
    sim.isolated.insert(leader);
    read(&mut sim, leader, 3).expect("it still thinks it leads");
    sim.run_until("another leader", |sim| {
        sim.leader().is_some_and(|new| new != leader)
    });
    sim.heal_and_compare();
    assert_eq!(sim.reads, [1], "a deposed leader answers no read");
}

#[test]
fn leadership_is_handed_over() {
    let (mut sim, leader) = led();
    let [heir, other] = others(leader);
    let transfer = |sim: &mut Sim, id: u64, to: u64| {
        sim.nodes
            .get_mut(&id)
            .expect("it runs")
            .replica
            .transfer_leadership(to)
    };
    assert_eq!(
        transfer(&mut sim, leader, leader),
        Err(TransferError::NotAVoter(leader))
    );
    assert_eq!(
        transfer(&mut sim, leader, 9),
        Err(TransferError::NotAVoter(9))
    );
    let error = TransferError::NotLeader {
        leader: Some(leader),
    };
    assert_eq!(transfer(&mut sim, other, heir), Err(error));
    assert_eq!(transfer(&mut sim, leader, heir), Ok(()));
    sim.run_until("the heir leads", |sim| sim.leader() == Some(heir));
    sim.heal_and_compare();
}

#[test]
fn large_batches_reach_a_late_follower_in_bounded_messages() {
    let (mut sim, leader) = led();
    let [away, _] = others(leader);
    sim.isolated.insert(away);
    for _ in 0..12 {
        let entry = [b"-", [b'z'; 700_000].as_slice()].concat();
        sim.propose(leader, entry).expect("the leader takes it");
    }
    sim.process(leader).expect("the disk works");
    let size = |packet: &Packet| match packet {
        Packet::Message(bytes) => bytes.len(),
        Packet::Snapshot(..) => 0,
    };
    let largest = sim.network.iter().map(|(.., packet)| size(packet)).max();
    assert!(
        largest.is_some_and(|bytes| (700_000..800_000).contains(&bytes)),
        "{largest:?}"
    );
    sim.heal_and_compare();
}

#[test]
fn a_heartbeat_beyond_the_log_tells_of_a_lost_disk() {
    let (mut sim, leader) = led();
    let [follower, _] = others(leader);
    let term = sim.nodes[&leader].replica.status().term;
    let last = sim.nodes[&follower].replica.status().last_index;
    // type 8 (heartbeat), to, from, term, commit
    let heartbeat = [
        0x08,
        8,
        0x10,
        follower as u8,
        0x18,
        leader as u8,
        0x20,
        term as u8,
        0x40,
        last as u8 + 1,
    ];
    let error = sim
        .nodes
        .get_mut(&follower)
        .expect("it runs")
        .replica
        .step(&heartbeat);
    assert_eq!(
        error,
        Err(StepError::LostLog {
            acknowledged: last + 1,
            last
        })
    );
}

#[test]
fn no_bytes_of_a_peer_panic_a_replica() {
    let (mut sim, leader) = led();
    for n in 0..20 {
        sim.propose(leader, add(&[n])).expect("the leader takes it");
    }
    sim.process(leader).expect("the disk works");
    let mut random = crate::support::Seeded::new(5);
    let seen: Vec<_> = sim
        .network
        .iter()
        .filter_map(|(from, to, packet)| match packet {
            Packet::Message(bytes) => Some((*from, *to, bytes.clone())),
            Packet::Snapshot(..) => None,
        })
        .collect();
    assert!(!seen.is_empty());
    for _ in 0..20_000 {
        let (_, to, mut bytes) = seen[random.below(seen.len() as u64) as usize].clone();
        for _ in 0..1 + random.below(3) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.below(256) as u8;
        }
        // Most are refused; those that are not may change the follower, never break it.
        let node = sim.nodes.get_mut(&to).expect("it runs");
        let _ = node.replica.step(&bytes);
        let _ = node.replica.status();
    }
}
