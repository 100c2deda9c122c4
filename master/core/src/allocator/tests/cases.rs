//! What people asked for, each with the smallest cluster that shows it.

use super::histories::Dice;
use super::small::{Small, amounts, want};
use crate::allocator::{Lack, REGULAR, REVOCABLE, Vector, Want};
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
    assert_eq!(of(asks), [6_000], "the other agent goes to who has less by then");
    assert_eq!(of(other), [2_000, 8_000]);
    let back = grants.iter().find(|grant| grant.amounts.get(0) == 8_000).cloned().unwrap();
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
fn by_priority_alone_only_where_a_request_fits_nowhere_else() {
    let mut small = Small::new(2, 4);
    small.role("kept", |policy| policy.guarantee = amounts(&[("cpus", 8_000)]));
    small.role("urgent", |policy| policy.priority = 5);
    let lent = small.framework(1, "lent", vec![Want { revocable: true, ..want(4, 2) }]);
    for grant in small.round() {
        assert_eq!(grant.framework, lent);
        small.launch(&grant, &cores(4));
    }
    small.framework(2, "urgent", vec![want(2, 1)]);
    assert!(small.round().is_empty());
    let lacks = small.engine.lacks();
    assert_eq!(lacks, [Lack { role: "urgent".into(), agent: AgentId(1), amounts: cores(2), by_priority: true }]);
}
