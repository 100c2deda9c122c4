//! How soon another node leads, with the election timeouts of production.

use tessera_replica::{Limits, ReplicaConfig};

use crate::sim::Sim;
use crate::support::{add, identity};

/// Rounds that a vote and the first entry take at most in this network, after somebody stood.
const VOTE_ROUNDS: usize = 2;

fn production(node: u64) -> ReplicaConfig {
    ReplicaConfig::new(identity(node))
}

/// So many voters, and who leads them.
fn led(voters: u64) -> (Sim, u64) {
    let ids: Vec<u64> = (1..=voters).collect();
    let mut sim = Sim::with(Limits::default(), &ids, production);
    sim.run_until("a leader", |sim| sim.leader().is_some());
    let leader = sim.leader().expect("there is one");
    // Everybody has heard of it.
    sim.round();
    sim.round();
    (sim, leader)
}

/// Rounds until there is a leader; fails beyond `most`.
fn rounds_until_led(sim: &mut Sim, most: usize, when: &str) -> usize {
    for rounds in 0..=most {
        if sim.leader().is_some() {
            return rounds;
        }
        sim.round();
    }
    panic!("{when}: nobody leads after {most} rounds");
}

#[test]
fn after_a_leader_fell_silent_the_first_in_line_is_elected_and_no_two_stand_together() {
    let election = production(1).election_ticks;
    for voters in [3, 5] {
        let (mut sim, _) = led(voters);
        for time in 0..12 {
            let leader = sim.leader().expect("it was waited for");
            let term = sim.nodes[&leader].replica.term();
            sim.crash(leader, 0);
            let when = format!("{voters} voters, time {time}");
            let rounds = rounds_until_led(&mut sim, election + 1 + VOTE_ROUNDS, &when);
            assert!(rounds >= election - production(1).heartbeat_ticks, "{when}: after {rounds} rounds");
            let new = sim.leader().expect("it was found");
            assert_eq!(sim.nodes[&new].replica.term(), term + 1, "{when}: a vote was split");
            sim.start(leader);
            sim.propose(new, add(b"x")).expect("it leads");
            sim.round();
            sim.round();
        }
        sim.heal_and_compare();
    }
}

#[test]
fn a_leader_that_is_known_to_be_gone_is_not_waited_for() {
    for voters in [3, 5] {
        let (mut sim, leader) = led(voters);
        sim.crash(leader, 0);
        for node in sim.nodes.values_mut() {
            node.replica.report_gone(leader);
        }
        rounds_until_led(&mut sim, 2 + VOTE_ROUNDS, &format!("{voters} voters"));
        sim.heal_and_compare();
    }
}

#[test]
fn one_that_takes_its_leader_for_gone_alone_unseats_nobody() {
    let (mut sim, leader) = led(3);
    let term = sim.nodes[&leader].replica.term();
    for time in 0..40 {
        for other in (1..=3).filter(|node| *node != leader) {
            sim.nodes.get_mut(&other).expect("it runs").replica.report_gone(other);
        }
        let wrong = leader % 3 + 1;
        sim.nodes.get_mut(&wrong).expect("it runs").replica.report_gone(leader);
        sim.round();
        assert_eq!(sim.leader(), Some(leader), "time {time}");
        assert_eq!(sim.nodes[&leader].replica.term(), term, "time {time}");
    }
}

#[test]
fn one_that_gave_the_leader_up_before_the_others_did_asks_again() {
    let election = production(1).election_ticks;
    let (mut sim, leader) = led(3);
    sim.crash(leader, 0);
    let others = || (1..=3).filter(|node| *node != leader);
    // Whose turn is first, as the other one never stands before it.
    let mut first = sim;
    rounds_until_led(&mut first, election + 1 + VOTE_ROUNDS, "in line");
    let first = first.leader().expect("it was found");
    let (mut sim, leader_again) = led(3);
    assert_eq!((leader_again, others().any(|node| node == first)), (leader, true));
    sim.crash(leader, 0);
    // It has heard of the leader longer ago than the other one.
    for _ in 0..3 {
        sim.tick(first);
    }
    let rounds = rounds_until_led(&mut sim, election + 1 + VOTE_ROUNDS, "asked again");
    assert_eq!(sim.leader(), Some(first), "after {rounds} rounds");
}
