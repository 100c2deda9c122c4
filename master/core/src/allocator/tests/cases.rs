//! What people asked for, each with the smallest cluster that shows it.

use super::histories::Dice;
use super::small::{Small, amounts, want};
use crate::allocator::{Lack, REGULAR, REVOCABLE, Vector, Want};
use crate::limits::SHORTAGE_LOOKS_MAX;
use std::collections::BTreeSet;
use std::sync::Arc;
use tessera_types::{AgentId, FrameworkId};

fn cores(cpus: i64) -> Vector {
    Vector::of(cpus * 1_000, cpus * 1_000, 0)
}

fn used(small: &Small, id: FrameworkId) -> i64 {
    small.frameworks[&id].uses[REGULAR].get(0) / 1_000
}

#[test]
fn a_role_with_twice_the_weight_gets_twice_as_much_and_its_frameworks_share_it() {
    let mut small = Small::new(12, 1);
    small.role("heavy", |policy| policy.weight_milli = 2_000);
    let ids = [(1, "heavy"), (2, "heavy"), (3, "light"), (4, "light/below")];
    let ids = ids.map(|(id, role)| small.framework(id, role, Vec::new()));
    assert_eq!(small.round().len(), 12);
    // A role's own frameworks stand beside the roles below it.
    assert_eq!(ids.map(|id| used(&small, id)), [4, 4, 2, 2]);
}

#[test]
fn offers_are_cut_to_what_a_quota_limit_leaves_and_the_rest_goes_to_others() {
    let mut small = Small::new(1, 8);
    small.role("a", |policy| policy.limit = amounts(&[("cpus", 3_000)]));
    let limited = small.framework(1, "a/below", Vec::new());
    let other = small.framework(2, "b", Vec::new());
    let grants = small.round();
    let of = |id| grants.iter().find(|grant| grant.framework == id).map(|grant| grant.amounts.get(0));
    assert_eq!((of(limited), of(other)), (Some(3_000), Some(5_000)));
    let verdict = small.engine.verdict(limited, None).unwrap();
    assert_eq!((verdict.agents, verdict.nothing_free), (1, 1));
    small.decline(&grants[1], 60_000);
    assert_eq!(small.engine.verdict(limited, None).unwrap().limits.get("a"), Some(&1));
    assert_eq!(small.engine.at_limit("a"), Some(("cpus", 3_000, 3_000)));
}

#[test]
fn guarantees_are_met_first_by_priority_and_kept_from_others() {
    let mut small = Small::new(4, 2);
    small.role("first", |policy| (policy.guarantee, policy.priority) = (amounts(&[("cpus", 2_000)]), 9));
    small.role("second", |policy| policy.guarantee = amounts(&[("cpus", 2_000)]));
    let greedy = small.framework(1, "greedy", Vec::new());
    // Nobody of those with a guarantee wants anything yet.
    let grants = small.round();
    assert_eq!((grants.len(), used(&small, greedy)), (2, 4));
    assert!(small.engine.verdict(greedy, None).unwrap().headroom == 2);
    let second = small.framework(2, "second", Vec::new());
    let first = small.framework(3, "first", Vec::new());
    let grants = small.round();
    assert_eq!(grants.iter().map(|grant| grant.framework).collect::<Vec<_>>(), [first, second]);
    assert_eq!((used(&small, first), used(&small, second)), (2, 2));
}

#[test]
fn what_guarantees_keep_is_offered_to_be_taken_back_and_named_when_it_stands_in_the_way() {
    let mut small = Small::new(2, 4);
    small.role("due", |policy| policy.guarantee = amounts(&[("cpus", 4_000), ("mem", 4_000)]));
    let greedy = small.framework(1, "greedy", Vec::new());
    let lent = small.framework(2, "lent", vec![Want { revocable: true, ..want(2, 4) }]);
    let grants = small.round();
    let revocable: Vec<_> = grants.iter().filter(|grant| grant.revocable).collect();
    assert_eq!(used(&small, greedy), 4);
    assert_eq!(revocable.iter().map(|grant| (grant.framework, grant.amounts.get(0))).collect::<Vec<_>>(), [(lent, 4_000)]);
    let (agent, grant) = (revocable[0].agent, revocable[0].clone());
    small.launch(&grant, &cores(4));
    assert!(small.round().is_empty());
    assert!(small.engine.lacks().is_empty(), "nobody waits");
    let due = small.framework(3, "due", Vec::new());
    assert!(small.round().is_empty());
    let lack = Lack { role: "due".into(), agent, amounts: cores(4), by_priority: false };
    assert_eq!(small.engine.lacks(), [lack.clone()]);
    small.engine.refuse(agent, due, &cores(1), small.now_ms + 1_000);
    assert!(small.engine.lacks().is_empty(), "it has nothing to do now");
    small.now_ms += 1_000;
    assert!(small.round().is_empty());
    assert_eq!(small.engine.lacks(), [lack]);
    small.end(lent, agent, &cores(4), REVOCABLE);
    let grants = small.round();
    assert_eq!(grants.iter().map(|grant| (grant.framework, grant.agent)).collect::<Vec<_>>(), [(due, agent)]);
    assert!(small.engine.lacks().is_empty());
}

#[test]
fn requests_get_what_fits_together_and_leave_the_rest_to_others() {
    let mut small = Small::new(2, 8);
    let asks = small.framework(1, "a", vec![want(3, 3)]);
    let other = small.framework(2, "b", Vec::new());
    let grants = small.round();
    let of = |id| grants.iter().filter(|grant| grant.framework == id).map(|grant| grant.amounts.get(0)).collect::<Vec<_>>();
    assert_eq!(of(asks), [3_000, 3_000], "a piece, and then whoever has less by then");
    assert_eq!(of(other), [5_000, 5_000]);
    let back = grants.iter().find(|grant| grant.amounts.get(0) == 5_000).cloned().unwrap();
    small.decline(&back, 60_000);
    // Two pieces are being offered already.
    let grants = small.round();
    assert_eq!(grants.iter().map(|grant| (grant.framework, grant.amounts.get(0))).collect::<Vec<_>>(), [(asks, 3_000)]);
}

/// Tasks of others, of one core for so many rounds each, on agents of eight, and one who needs all eight at once: after how many
/// rounds it has them, if it does.
fn big_on_a_fragmented_cluster(hold_back: bool) -> Option<u32> {
    let mut small = Small::new(8, 8);
    small.role("big", |policy| {
        policy.guarantee = amounts(&[("cpus", 8_000), ("mem", 8_000)]);
        policy.hold_back = hold_back;
    });
    let many: Vec<FrameworkId> = (1..=4).map(|id| small.framework(id, "many", vec![want(1, 64)])).collect();
    let mut tasks = Vec::new();
    let mut dice = Dice::new(5);
    let mut big = None;
    for round in 0..400_u32 {
        small.now_ms += 250;
        if round == 20 {
            big = Some(small.framework(9, "big", vec![want(8, 1)]));
        }
        for grant in small.round() {
            if Some(grant.framework) == big {
                assert_eq!(grant.amounts, cores(8));
                return Some(round - 20);
            }
            // Each scheduler launches as much as fits; tasks end one after the other.
            let count = grant.amounts.fits(&cores(1));
            small.launch(&grant, &cores(count));
            for _ in 0..count {
                let rounds = 5 + u32::try_from(dice.below(8)).unwrap();
                tasks.push((round + rounds, grant.framework, grant.agent));
            }
        }
        let (ended, left): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|(at, _, _)| *at <= round);
        tasks = left;
        for (_, id, agent) in ended {
            assert!(many.contains(&id));
            small.end(id, agent, &cores(1), REGULAR);
        }
        if let Some(big) = big {
            let verdict = small.engine.verdict(big, Some(0)).unwrap();
            assert_eq!(verdict.held > 0, hold_back && verdict.would_fit > 0 && verdict.held == 1);
            assert_eq!(verdict.would_fit, 8);
        }
    }
    None
}

#[test]
fn a_big_request_is_placed_in_bounded_time_where_agents_are_held_for_it() {
    assert_eq!(big_on_a_fragmented_cluster(false), None);
    let rounds = big_on_a_fragmented_cluster(true).expect("it is placed");
    // A second until the next look, and until the longest task of the agent has ended.
    assert!(rounds <= 4 + 12, "{rounds} rounds");
}

#[test]
fn small_frameworks_get_offers_among_those_who_hoard() {
    // Forty schedulers never answer; one that has something to do comes last, with a cluster that is all offered.
    let mut small = Small::new(20, 4);
    for id in 1..=40 {
        small.framework(id, "hoards", Vec::new());
    }
    let mut offers: Vec<(u64, _)> = small.round().into_iter().map(|grant| (0, grant)).collect();
    assert_eq!(offers.len(), 20);
    let modest = small.framework(50, "hoards", vec![want(1, 100)]);
    let mut first_ms = None;
    for at_ms in (0..60_000).step_by(100) {
        small.now_ms = at_ms;
        let (expired, left): (Vec<_>, Vec<_>) = offers.into_iter().partition(|(made, _)| made + 5_000 <= at_ms);
        offers = left;
        for (_, grant) in expired {
            small.decline(&grant, 1_000);
            small.tell(grant.framework, |facts| facts.wasted += 1);
        }
        for grant in small.round() {
            if grant.framework == modest {
                first_ms.get_or_insert(at_ms);
                small.launch(&grant, &grant.amounts.clone());
            } else {
                offers.push((at_ms, grant));
            }
        }
    }
    // Each of them keeps an offer once until its timeout, twenty at a time; then they come last.
    assert_eq!(first_ms, Some(10_000));
    assert!(used(&small, modest) >= 20, "it goes on: {}", used(&small, modest));
}

#[test]
fn a_limit_is_not_used_up_beside_a_guarantee_that_is_a_part_of_it() {
    let mut small = Small::new(8, 2);
    small.role("a", |policy| policy.limit = amounts(&[("cpus", 10_000)]));
    small.role("a/due", |policy| policy.guarantee = amounts(&[("cpus", 6_000)]));
    let greedy = small.framework(1, "a/greedy", Vec::new());
    let other = small.framework(2, "b", Vec::new());
    small.round();
    assert_eq!(used(&small, greedy), 4, "the rest of the limit is kept for the guarantee");
    assert_eq!(used(&small, other), 6, "and as much of the cluster");
    assert!(small.engine.verdict(greedy, None).unwrap().limits.contains_key("a"));
    let due = small.framework(3, "a/due/below", Vec::new());
    small.round();
    assert_eq!((used(&small, due), used(&small, greedy)), (6, 4));
}

#[test]
fn a_limit_below_a_guarantee_is_not_used_up_either_when_that_is_met() {
    let mut small = Small::new(8, 2);
    small.role("p", |policy| policy.guarantee = amounts(&[("cpus", 14_000)]));
    small.role("p/a", |policy| policy.limit = amounts(&[("cpus", 10_000)]));
    small.role("p/a/due", |policy| policy.guarantee = amounts(&[("cpus", 6_000)]));
    let greedy = small.framework(1, "p/a/greedy", Vec::new());
    small.round();
    assert_eq!(used(&small, greedy), 4);
    let due = small.framework(2, "p/a/due", Vec::new());
    small.round();
    assert_eq!((used(&small, due), used(&small, greedy)), (6, 4));
}

#[test]
fn more_of_the_same_request_looks_again_and_fewer_does_not_and_declines_stay() {
    let mut small = Small::new(50, 4);
    let asks = small.framework(1, "a", vec![want(1, 1)]);
    let counts = |small: &mut Small, count: u32| {
        small.tell(asks, |facts| facts.wants = vec![want(1, count)].into());
        small.engine.take_looks();
        let grants = small.round();
        (grants, small.engine.take_looks())
    };
    let grants = small.round();
    assert_eq!(grants.len(), 1);
    small.decline(&grants[0], 60_000);
    let declined = grants[0].agent;
    let grants = small.round();
    assert_eq!(grants.len(), 1);
    let (more, looks) = counts(&mut small, 3);
    assert!(looks > 0 && !more.is_empty());
    assert!(more.iter().all(|grant| grant.agent != declined), "what was declined is not offered again: {more:?}");
    assert_eq!(counts(&mut small, 2), (Vec::new(), 0), "nobody is looked at for less");
}

/// What runs to be taken back: whose, where, how much.
type Lent = Vec<(FrameworkId, AgentId, Vector)>;

/// For so many seconds whoever is lent something launches on all of it, whoever is offered something for good does so too, and
/// revocable work is ended where it has been in the way for two seconds. How much of it was.
fn ended_in(small: &mut Small, seconds: u64, lent: &mut Lent) -> usize {
    let (mut before, mut ended) = (BTreeSet::new(), 0);
    for _ in 0..seconds {
        small.now_ms += 1_000;
        for grant in small.round() {
            if grant.revocable {
                lent.push((grant.framework, grant.agent, grant.amounts.clone()));
            }
            small.launch(&grant, &grant.amounts.clone());
            let counts = grant.pieces;
            small.tell(grant.framework, |facts| facts.wants = fewer(&facts.wants, &counts, grant.revocable));
        }
        let lacks = small.engine.lacks();
        let agents: BTreeSet<AgentId> = lacks.iter().map(|lack| lack.agent).collect();
        small.engine.clear(&agents);
        for lack in lacks.iter().filter(|lack| lack.amounts.any() && before.contains(&lack.agent)) {
            let (there, rest): (Lent, Lent) = lent.drain(..).partition(|(_, agent, _)| *agent == lack.agent);
            *lent = rest;
            assert!(!there.is_empty(), "nothing is lent there: {lack:?}");
            for (id, agent, task) in there {
                small.end(id, agent, &task, REVOCABLE);
                ended += 1;
            }
        }
        before = agents;
    }
    ended
}

/// What is still asked for when pieces have been launched; who takes back what was lent asks again and again.
fn fewer(wants: &[Want], pieces: &[(usize, u32)], again: bool) -> Arc<[Want]> {
    let launched = |at: usize| pieces.iter().filter(|(of, _)| *of == at && !again).map(|(_, count)| count).sum::<u32>();
    wants.iter().enumerate().map(|(at, want)| Want { count: want.count - launched(at), ..want.clone() }).collect()
}

fn lend(small: &mut Small, lent: &mut Lent, want: Want) {
    let id = small.framework(70, "lent", vec![Want { revocable: true, ..want }]);
    assert_eq!(ended_in(small, 1, lent), 0);
    assert!(lent.iter().all(|(of, _, _)| *of == id) && !lent.is_empty());
}

/// A framework in `role` launches a task on what it is offered, and takes no more.
fn uses(small: &mut Small, id: u64, role: &str, task: &Vector) -> FrameworkId {
    let id = small.framework(id, role, vec![Want { piece: task.clone(), ..want(1, 1) }]);
    let grants = small.round();
    let grant = grants.iter().find(|grant| grant.framework == id).expect("it is offered something");
    small.launch(grant, task);
    small.tell(id, |facts| (facts.open, facts.waits) = (false, false));
    id
}

#[test]
fn nothing_is_ended_for_a_request_that_guarantees_of_others_leave_nothing_to() {
    let (mut small, mut lent) = (Small::new(2, 4), Lent::new());
    small.role("kept", |policy| policy.guarantee = amounts(&[("cpus", 8_000)]));
    small.role("urgent", |policy| policy.priority = 5);
    lend(&mut small, &mut lent, want(4, 2));
    small.framework(2, "urgent", vec![want(2, 1)]);
    assert_eq!(ended_in(&mut small, 60, &mut lent), 0);
}

#[test]
fn by_priority_once_where_a_request_fits_nowhere_else() {
    let (mut small, mut lent) = (Small::new(3, 4), Lent::new());
    small.role("kept", |policy| policy.guarantee = amounts(&[("cpus", 4_000)]));
    small.role("urgent", |policy| policy.priority = 5);
    uses(&mut small, 1, "a", &cores(2));
    uses(&mut small, 2, "b", &cores(3));
    lend(&mut small, &mut lent, want(4, 1));
    // Three cores are free, on two agents, and not kept for anybody.
    let urgent = small.framework(3, "urgent", vec![want(3, 1)]);
    assert!(small.round().is_empty());
    let agent = lent[0].1;
    assert_eq!(small.engine.lacks(), [Lack { role: "urgent".into(), agent, amounts: cores(3), by_priority: true }]);
    assert_eq!(ended_in(&mut small, 60, &mut lent), 1);
    assert_eq!(used(&small, urgent), 3);
}

#[test]
fn nothing_is_ended_for_what_a_quota_limit_forbids() {
    // As before, but for the limit.
    let (mut small, mut lent) = (Small::new(3, 4), Lent::new());
    small.role("kept", |policy| policy.guarantee = amounts(&[("cpus", 4_000)]));
    small.role("urgent", |policy| (policy.priority, policy.limit) = (5, amounts(&[("cpus", 2_000)])));
    uses(&mut small, 1, "a", &cores(2));
    uses(&mut small, 2, "b", &cores(3));
    lend(&mut small, &mut lent, want(4, 1));
    small.framework(3, "urgent", vec![want(3, 1)]);
    assert_eq!(ended_in(&mut small, 60, &mut lent), 0);
    // A sibling has all that the limit above a guarantee allows.
    let (mut small, mut lent) = (Small::new(2, 4), Lent::new());
    small.role("team", |policy| policy.limit = amounts(&[("cpus", 4_000)]));
    uses(&mut small, 1, "team/has", &cores(4));
    small.role("team/due", |policy| policy.guarantee = amounts(&[("cpus", 4_000)]));
    lend(&mut small, &mut lent, want(4, 1));
    small.framework(2, "team/due", Vec::new());
    small.framework(3, "team/due", vec![want(2, 2)]);
    assert_eq!(ended_in(&mut small, 60, &mut lent), 0);
}

#[test]
fn nothing_is_ended_for_memory_alone_or_for_less_than_the_smallest_offer() {
    let (mut small, mut lent) = (Small::new(1, 8), Lent::new());
    small.role("due", |policy| policy.guarantee = amounts(&[("cpus", 2_000), ("mem", 4_000)]));
    small.role("kept", |policy| policy.guarantee = amounts(&[("cpus", 4_000)]));
    uses(&mut small, 1, "other", &cores(2));
    lend(&mut small, &mut lent, Want { piece: Vector::of(4_000, 3_000, 0), ..want(4, 1) });
    uses(&mut small, 2, "due", &Vector::of(2_000, 1_000, 0));
    small.framework(3, "due", Vec::new());
    assert_eq!(small.engine.lacking("due").unwrap().quantities.mem_mib, 3_000);
    assert_eq!(ended_in(&mut small, 60, &mut lent), 0);

    let (mut small, mut lent) = (Small::new(1, 8), Lent::new());
    small.role("due", |policy| {
        policy.guarantee = amounts(&[("cpus", 4_000)]);
        policy.min_offer.cpus_milli = 3_000;
    });
    uses(&mut small, 1, "other", &cores(4));
    lend(&mut small, &mut lent, want(2, 1));
    uses(&mut small, 2, "due", &cores(2));
    small.framework(3, "due", Vec::new());
    assert_eq!(small.engine.lacking("due").unwrap().quantities.cpus_milli, 2_000);
    assert_eq!(ended_in(&mut small, 60, &mut lent), 0);
}

#[test]
fn what_was_taken_back_is_kept_until_its_scheduler_has_time_and_no_more_is_ended() {
    for wants in [Vec::new(), vec![want(2, 2)]] {
        let (mut small, mut lent) = (Small::new(1, 4), Lent::new());
        small.role("due", |policy| policy.guarantee = amounts(&[("cpus", 4_000), ("mem", 4_000)]));
        lend(&mut small, &mut lent, want(4, 1));
        let due = small.framework(2, "due", wants);
        small.tell(due, |facts| facts.open = false);
        assert_eq!(ended_in(&mut small, 60, &mut lent), 1);
        assert!(lent.is_empty(), "it is lent again: {lent:?}");
        small.tell(due, |facts| facts.open = true);
        assert_eq!(ended_in(&mut small, 60, &mut lent), 0);
        assert_eq!(used(&small, due), 4);
    }
}

#[test]
fn looking_for_what_is_in_the_way_is_bounded_and_everybody_has_a_turn() {
    let (mut small, mut lent) = (Small::new(400, 4), Lent::new());
    small.role("kept", |policy| policy.guarantee = amounts(&[("cpus", 1_200_000)]));
    small.role("urgent", |policy| policy.priority = 5);
    lend(&mut small, &mut lent, want(3, 400));
    // A core is free on each agent; five are on none.
    for id in 100..200 {
        small.framework(id, "urgent", (0..8).map(|_| want(5, 1)).collect());
    }
    small.framework(200, "urgent", vec![want(2, 1)]);
    let mut looks = Vec::new();
    let found = (0..40).find(|_| {
        small.engine.considered();
        let found = !small.engine.lacks().is_empty();
        looks.push(small.engine.considered());
        found
    });
    assert!(looks.iter().all(|looks| *looks <= SHORTAGE_LOOKS_MAX as u64 + 2 * 400), "{looks:?}");
    assert!(found.is_some_and(|at| at > 1), "{found:?} {looks:?}");
    // What was found stands the next time, or nothing would ever be ended.
    let lacks = small.engine.lacks();
    assert_eq!(lacks.len(), 1);
    assert_eq!(small.engine.lacks(), lacks);
    assert_eq!(ended_in(&mut small, 60, &mut lent), 1);
    assert_eq!(used(&small, FrameworkId(200)), 2);
}

#[test]
fn on_a_single_agent_too_weights_decide_who_has_how_much() {
    for (weights, tasks) in [([3_000, 1_000], [15, 5]), ([1_000, 1_000], [10, 10])] {
        let mut small = Small::new(1, 20);
        for (name, weight_milli) in ["a", "b"].into_iter().zip(weights) {
            small.role(name, |policy| policy.weight_milli = weight_milli);
        }
        let [one, other] = [(1, "a"), (2, "b")].map(|(id, role)| small.framework(id, role, vec![want(1, 100)]));
        let grants = small.round();
        assert_eq!(grants.len(), 2, "one offer for each: {grants:?}");
        let cores = |id| grants.iter().filter(|grant| grant.framework == id).map(|grant| grant.amounts.get(0) / 1_000).sum::<i64>();
        assert_eq!([cores(one), cores(other)], tasks);
    }
}
