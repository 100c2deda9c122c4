//! Changes of the members: growing, promoting, replacing, removing, and what is refused.

use tessera_replica::{
    ChangeError, Disk, FatalError, JoinId, Limits, MAX_ATTRIBUTES_BYTES, MAX_JOIN_IDS, MemDisk,
    MemberChange, MemberRole, Replica, Role, Standing,
};

use crate::sim::{Sim, attributes, join_id};
use crate::support::{CLUSTER, add, config, identity};

/// A group of these voters with a leader.
fn led(voters: &[u64]) -> (Sim, u64) {
    let mut sim = Sim::with(Limits::default(), voters, config);
    sim.run_until("a leader", |sim| sim.leader().is_some());
    let leader = sim.leader().expect("there is one");
    (sim, leader)
}

fn voters(sim: &Sim, node: u64) -> Vec<u64> {
    sim.nodes[&node].replica.membership().voters().collect()
}

/// Adds a node and waits until it has caught up.
fn grow(sim: &mut Sim, leader: u64) -> u64 {
    let node = sim.add_learner(leader).expect("the leader takes it");
    sim.run_until("the learner catches up", |sim| {
        let last = sim.nodes[&leader].replica.status().last_index;
        let peers = sim.nodes[&leader].replica.status().peers;
        let caught_up = peers
            .iter()
            .any(|peer| peer.node == node && peer.recently_active && peer.matched == last);
        caught_up
    });
    node
}

/// Makes the change and waits until it is finished everywhere.
fn change(sim: &mut Sim, leader: u64, change: &MemberChange) {
    let id = sim.change(leader, change).expect("the leader takes it");
    sim.run_until("the change", |sim| {
        sim.changed.contains(&id) && !sim.nodes[&leader].replica.membership().changing
    });
}

#[test]
fn one_grows_to_three_and_survives_the_first() {
    let (mut sim, _) = led(&[1]);
    for n in 0..20 {
        sim.propose(1, add(&[b'a' + n % 5])).expect("it leads");
    }
    sim.round();
    for node in [2, 3] {
        assert_eq!(grow(&mut sim, 1), node);
        let member = sim.nodes[&node].replica.membership().get(node).cloned();
        let member = member.expect("it knows itself");
        assert_eq!(
            (member.role, member.attributes),
            (MemberRole::Learner, attributes(node))
        );
        change(&mut sim, 1, &MemberChange::Promote { node });
    }
    assert_eq!(voters(&sim, 1), [1, 2, 3]);
    assert!(sim.restored >= 2, "a joiner starts from a snapshot");
    let membership = sim.nodes[&1].replica.membership();
    assert_eq!(membership.next_node, 4);
    assert_eq!(membership.node_of(join_id(3)), Some(3));
    assert_eq!(membership.node_of(JoinId([99; 16])), None);
    sim.crash(1, 0);
    sim.run_until("another leader", |sim| {
        sim.leader().is_some_and(|new| new != 1)
    });
    sim.heal_and_compare();
}

/// Changes that a group of three with one learner refuses; `next` is the id of the next node.
fn refusals(leader: u64, other: u64, learner: u64, next: u64) -> Vec<(MemberChange, ChangeError)> {
    let add_learner = |node, attributes: Vec<u8>| MemberChange::AddLearner {
        node,
        attributes,
        join: join_id(9),
    };
    let bytes = MAX_ATTRIBUTES_BYTES + 1;
    vec![
        (
            add_learner(9, Vec::new()),
            ChangeError::WrongNodeId { node: 9, next },
        ),
        (
            add_learner(2, Vec::new()),
            ChangeError::WrongNodeId { node: 2, next },
        ),
        (
            add_learner(next, vec![0; bytes]),
            ChangeError::AttributesTooLarge { bytes },
        ),
        (
            MemberChange::Promote { node: other },
            ChangeError::AlreadyVoter(other),
        ),
        (
            MemberChange::Promote { node: 7 },
            ChangeError::NotAMember(7),
        ),
        (MemberChange::Remove { node: 7 }, ChangeError::NotAMember(7)),
        (
            MemberChange::Remove { node: leader },
            ChangeError::RemovesLeader(leader),
        ),
        (
            MemberChange::Replace {
                remove: leader,
                promote: learner,
            },
            ChangeError::RemovesLeader(leader),
        ),
        (
            MemberChange::Replace {
                remove: learner,
                promote: learner,
            },
            ChangeError::NotAVoter(learner),
        ),
        (
            MemberChange::Replace {
                remove: other,
                promote: other,
            },
            ChangeError::AlreadyVoter(other),
        ),
        (
            MemberChange::Update {
                node: 7,
                attributes: Vec::new(),
            },
            ChangeError::NotAMember(7),
        ),
        (
            MemberChange::Update {
                node: other,
                attributes: vec![0; bytes],
            },
            ChangeError::AttributesTooLarge { bytes },
        ),
    ]
}

#[test]
fn changes_that_do_not_fit_are_refused_and_change_nothing() {
    let (mut sim, leader) = led(&[1, 2, 3]);
    let learner = grow(&mut sim, leader);
    let other = [1, 2, 3].into_iter().find(|id| *id != leader);
    let other = other.expect("three nodes");
    let next = 5;
    let before = sim.nodes[&leader].replica.membership().clone();
    for (change, error) in refusals(leader, other, learner, next) {
        assert_eq!(sim.change(leader, &change), Err(error), "{change:?}");
    }
    let not_leader = Err(ChangeError::NotLeader {
        leader: Some(leader),
    });
    assert_eq!(
        sim.change(other, &MemberChange::Remove { node: leader }),
        not_leader
    );
    sim.heal_and_compare();
    assert_eq!(*sim.nodes[&leader].replica.membership(), before);
    let update = MemberChange::Update {
        node: other,
        attributes: b"moved".to_vec(),
    };
    change(&mut sim, leader, &update);
    change(&mut sim, leader, &MemberChange::Remove { node: learner });
    let again = MemberChange::Promote { node: learner };
    assert_eq!(
        sim.change(leader, &again),
        Err(ChangeError::Removed(learner))
    );
    let membership = sim.nodes[&leader].replica.membership();
    assert_eq!(membership.standing(learner), Standing::Removed);
    assert_eq!(membership.standing(next), Standing::Unknown);
    let moved = membership.get(other).expect("a member");
    assert_eq!(
        (moved.role, moved.attributes.as_slice()),
        (MemberRole::Voter, &b"moved"[..])
    );
    sim.heal_and_compare();
}

#[test]
fn the_only_voter_stays() {
    let (mut sim, _) = led(&[1]);
    let learner = grow(&mut sim, 1);
    let remove = MemberChange::Remove { node: 1 };
    assert_eq!(sim.change(1, &remove), Err(ChangeError::LastVoter(1)));
    change(&mut sim, 1, &MemberChange::Remove { node: learner });
    sim.heal_and_compare();
}

#[test]
fn one_change_at_a_time() {
    let (mut sim, leader) = led(&[1, 2, 3]);
    sim.add_learner(leader).expect("the leader takes it");
    assert_eq!(sim.add_learner(leader), Err(ChangeError::InProgress));
    sim.run_until("the first change", |sim| sim.changed.len() == 1);
    sim.add_learner(leader).expect("the next one");
    sim.heal_and_compare();
}

#[test]
fn no_change_leaves_fewer_answering_voters_than_a_quorum() {
    let (mut sim, leader) = led(&[1, 2, 3]);
    let learner = grow(&mut sim, leader);
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    sim.crash(others[0], 0);
    // Silent for longer than an election takes.
    for _ in 0..15 {
        sim.round();
    }
    let needs_two = ChangeError::NoQuorum {
        voters: 2,
        active: 1,
        needed: 2,
    };
    let remove = |node| MemberChange::Remove { node };
    assert_eq!(sim.change(leader, &remove(others[1])), Err(needs_two));
    // The one that is gone can be removed, or better replaced.
    let replace = MemberChange::Replace {
        remove: others[0],
        promote: learner,
    };
    change(&mut sim, leader, &replace);
    let mut expected = vec![leader, others[1], learner];
    expected.sort_unstable();
    assert_eq!(voters(&sim, leader), expected);
    sim.heal_and_compare();
}

#[test]
fn a_learner_that_is_silent_or_behind_is_not_promoted() {
    let (mut sim, leader) = led(&[1, 2, 3]);
    let learner = grow(&mut sim, leader);
    let promote = MemberChange::Promote { node: learner };
    sim.isolated.insert(learner);
    let start = sim.nodes[&leader].replica.status().last_index;
    for n in 0..100 {
        sim.propose(leader, add(&[n])).expect("it leads");
    }
    sim.round();
    let error = ChangeError::NotCaughtUp {
        node: learner,
        matched: start,
        last: start + 100,
    };
    assert_eq!(sim.change(leader, &promote), Err(error));
    for _ in 0..15 {
        sim.round();
    }
    assert_eq!(
        sim.change(leader, &promote),
        Err(ChangeError::NotActive(learner))
    );
    sim.isolated.clear();
    sim.run_until("the promotion", |sim| {
        let peers = sim.nodes[&leader].replica.status().peers;
        peers
            .iter()
            .any(|peer| peer.node == learner && peer.matched == start + 100)
    });
    change(&mut sim, leader, &promote);
    sim.heal_and_compare();
}

#[test]
fn a_lost_disk_comes_back_under_a_new_id() {
    let (mut sim, leader) = led(&[1, 2, 3]);
    for n in 0..30 {
        sim.propose(leader, add(&[b'a' + n % 5])).expect("it leads");
    }
    let wiped = [1, 2, 3].into_iter().find(|id| *id != leader);
    let wiped = wiped.expect("three nodes");
    sim.crash(wiped, 0);
    sim.ended.insert(wiped);
    let new = grow(&mut sim, leader);
    assert_eq!(new, 4);
    let replace = MemberChange::Replace {
        remove: wiped,
        promote: new,
    };
    change(&mut sim, leader, &replace);
    sim.heal_and_compare();
    assert_eq!(
        sim.nodes[&new].machine.values,
        sim.nodes[&leader].machine.values
    );
}

/// Runs a replacement, crashes the node `who` says after `steps` deliveries, and compares.
fn interrupted_replacement(steps: usize, crash_leader: bool, survivors: usize) -> Vec<u64> {
    let (mut sim, leader) = led(&[1, 2, 3]);
    let learner = grow(&mut sim, leader);
    let gone = [1, 2, 3].into_iter().find(|id| *id != leader);
    let gone = gone.expect("three nodes");
    let replace = MemberChange::Replace {
        remove: gone,
        promote: learner,
    };
    sim.change(leader, &replace).expect("the leader takes it");
    for _ in 0..steps {
        for id in sim.ids() {
            sim.process(id).expect("no fault is injected");
        }
        sim.deliver(0);
    }
    let crashed = if crash_leader { leader } else { learner };
    let survivors = survivors.min(sim.disks[&crashed].unsynced_batches());
    sim.crash(crashed, survivors);
    for _ in 0..60 {
        sim.round();
    }
    sim.heal_and_compare();
    let end = sim.leader().expect("there is one");
    let membership = sim.nodes[&end].replica.membership();
    assert!(!membership.changing);
    voters(&sim, end)
}

#[test]
fn a_replacement_is_finished_or_undone_wherever_a_crash_hits_it() {
    let mut ends = std::collections::BTreeSet::new();
    for steps in 0..16 {
        for (crash_leader, survivors) in [(true, 0), (true, 99), (false, 0), (false, 99)] {
            let voters = interrupted_replacement(steps, crash_leader, survivors);
            assert_eq!(voters.len(), 3, "after {steps} steps: {voters:?}");
            ends.insert(voters.contains(&4));
        }
    }
    assert_eq!(ends.len(), 2, "both ends must be reached");
}

#[test]
fn a_change_is_lost_with_its_leader_and_can_be_made_again() {
    let (mut sim, leader) = led(&[1, 2, 3]);
    sim.isolated.insert(leader);
    let lost = sim
        .change(
            leader,
            &MemberChange::AddLearner {
                node: 4,
                attributes: attributes(4),
                join: join_id(44),
            },
        )
        .expect("it still thinks it leads");
    sim.run_until("another leader", |sim| {
        sim.leader().is_some_and(|new| new != leader)
    });
    let new = sim.leader().expect("there is one");
    assert_eq!(grow(&mut sim, new), 4, "the id was not given out");
    sim.heal_and_compare();
    assert!(sim.lost.contains(&lost) && !sim.changed.contains(&lost));
    let membership = sim.nodes[&leader].replica.membership();
    assert_eq!(membership.node_of(join_id(4)), Some(4));
    assert_eq!(membership.node_of(join_id(44)), None);
}

#[test]
fn a_removed_node_that_did_not_hear_of_it_is_told_and_ends() {
    let (mut sim, leader) = led(&[1, 2, 3]);
    let away = [1, 2, 3].into_iter().find(|id| *id != leader);
    let away = away.expect("three nodes");
    sim.isolated.insert(away);
    change(&mut sim, leader, &MemberChange::Remove { node: away });
    sim.isolated.clear();
    sim.run_until("its end", |sim| sim.ended.contains(&away));
    sim.heal_and_compare();
}

#[test]
fn a_learner_that_was_removed_while_it_was_away_is_told_and_ends() {
    let (mut sim, leader) = led(&[1, 2, 3]);
    let learner = grow(&mut sim, leader);
    sim.crash(learner, 99);
    change(&mut sim, leader, &MemberChange::Remove { node: learner });
    sim.start(learner);
    sim.run_until("its end", |sim| sim.ended.contains(&learner));
    sim.heal_and_compare();
}

#[test]
fn a_leader_that_finds_its_own_removal_in_its_log_sees_it_through() {
    let (mut sim, leader) = led(&[1, 2]);
    let other = 3 - leader;
    let remove = MemberChange::Remove { node: other };
    sim.change(leader, &remove).expect("the leader takes it");
    sim.process(leader).expect("the disk works");
    // The other one stores the removal, its answer is lost, and so is the leader.
    while sim.deliver(0) {}
    sim.process(other).expect("the disk works");
    let lost = std::mem::take(&mut sim.network);
    sim.lose(lost);
    sim.crash(leader, 0);
    sim.start(leader);
    for _ in 0..100 {
        sim.tick(other);
        for _ in 0..20 {
            for id in [leader, other] {
                sim.process(id).expect("no fault is injected");
            }
            sim.deliver(0);
        }
        if sim
            .nodes
            .get(&other)
            .is_some_and(|node| node.replica.status().role == Role::Leader)
        {
            break;
        }
    }
    sim.run_until("its end", |sim| sim.ended.contains(&other));
    sim.heal_and_compare();
    assert_eq!(voters(&sim, leader), [leader]);
}

#[test]
fn a_removed_node_ends_after_a_restart_as_well() {
    let (mut sim, leader) = led(&[1, 2, 3]);
    let gone = [1, 2, 3].into_iter().find(|id| *id != leader);
    let gone = gone.expect("three nodes");
    sim.change(leader, &MemberChange::Remove { node: gone })
        .expect("taken");
    sim.run_until("the removed node applies it", |sim| {
        sim.nodes
            .get(&gone)
            .is_some_and(|node| node.replica.status().removed)
            || sim.ended.contains(&gone)
    });
    sim.nodes.remove(&gone);
    let mut node = crate::support::Node::open(config(gone), sim.disks[&gone].clone());
    assert!(node.replica.status().removed);
    // It asks the others until most of them have told it.
    let mut asked = std::collections::BTreeSet::new();
    for _ in 0..20 {
        node.replica.tick();
        asked.extend(node.process().messages.into_iter().map(|(to, _)| to));
    }
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != gone).collect();
    assert!(asked.iter().eq(&others), "{asked:?}");
    node.replica.on_told_removed(others[0]);
    node.process();
    node.replica.on_told_removed(others[1]);
    assert_eq!(
        node.replica.process(&mut node.machine).err(),
        Some(FatalError::Removed {
            cluster: CLUSTER,
            node: gone
        })
    );
}

#[test]
fn a_joiner_waits_for_the_group_and_never_stands_for_election() {
    let mut disk = MemDisk::new();
    Replica::prepare_joiner(&mut disk, identity(7)).expect("an empty disk");
    assert!(Replica::prepare_joiner(&mut disk, identity(8)).is_err());
    for _ in 0..2 {
        let mut node = crate::support::Node::open(config(7), disk.clone());
        for _ in 0..200 {
            node.replica.tick();
            let progress = node.process();
            assert!(progress.messages.is_empty() && progress.role_changes.is_empty());
        }
        let status = node.replica.status();
        assert_eq!(
            (status.role, status.term, status.removed),
            (Role::Follower, 0, false)
        );
    }
    assert!(
        disk.meta(tessera_replica::MetaKey::Members)
            .is_ok_and(|record| record.is_some())
    );
}

#[test]
fn join_ids_are_remembered_up_to_their_bound() {
    let (mut sim, _) = led(&[1]);
    for n in 0..MAX_JOIN_IDS as u64 + 3 {
        let node = 2 + n;
        sim.add_learner(1).expect("the only voter takes it");
        sim.process(1).expect("the disk works");
        let remove = MemberChange::Remove { node };
        sim.change(1, &remove).expect("the only voter takes it");
        sim.process(1).expect("the disk works");
        // Nobody shall run on these disks.
        sim.nodes.remove(&node);
        sim.ended.insert(node);
        let lost = std::mem::take(&mut sim.network);
        sim.lose(lost);
    }
    let membership = sim.nodes[&1].replica.membership();
    assert_eq!(membership.joins.len(), MAX_JOIN_IDS);
    assert_eq!(membership.node_of(join_id(4)), None);
    assert_eq!(membership.node_of(join_id(5)), Some(5));
    sim.crash(1, 99);
    sim.start(1);
    assert_eq!(
        sim.nodes[&1].replica.membership().next_node,
        5 + MAX_JOIN_IDS as u64
    );
}

#[test]
fn the_successor_answers_and_has_the_most() {
    let (mut sim, leader) = led(&[1, 2, 3]);
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    sim.isolated.insert(others[0]);
    sim.propose(leader, add(b"x")).expect("it leads");
    sim.round();
    assert_eq!(sim.nodes[&leader].replica.best_successor(), Some(others[1]));
    sim.heal_and_compare();
    let (lone, _) = led(&[1]);
    assert_eq!(lone.nodes[&1].replica.best_successor(), None);
}
