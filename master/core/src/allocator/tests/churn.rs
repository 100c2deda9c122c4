//! An hour of tasks that come and go, in simulated time: weighted roles have what their weights say.

use super::histories::Dice;
use super::small::Small;
use crate::allocator::{REGULAR, Vector};
use std::collections::BTreeMap;
use tessera_types::{AgentId, FrameworkId};

/// Name, weight in thousandths, frameworks, cores of a task, seconds that one takes on average.
const ROLES: [(&str, u32, u64, i64, u64); 6] = [
    ("a", 1_000, 4, 1, 20),
    ("b", 2_000, 2, 2, 60),
    ("c/x", 1_000, 3, 1, 300),
    ("c/y", 3_000, 3, 1, 10),
    ("d", 4_000, 1, 1, 30),
    ("e", 1_500, 8, 1, 120),
];
/// Weight of `c`, whose children share what it gets.
const OF_C: u32 = 2_000;

#[test]
fn after_an_hour_of_churn_shares_are_those_of_the_weights() {
    let mut small = Small::new(50, 16);
    let mut dice = Dice::new(11);
    let mut of: BTreeMap<FrameworkId, usize> = BTreeMap::new();
    small.role("c", |policy| policy.weight_milli = OF_C);
    for (at, (role, weight, frameworks, _, _)) in ROLES.into_iter().enumerate() {
        small.role(role, |policy| policy.weight_milli = weight);
        for _ in 0..frameworks {
            let id = small.framework(of.len() as u64 + 1, role, Vec::new());
            of.insert(id, at);
        }
    }
    let mut ends: BTreeMap<u64, Vec<(FrameworkId, AgentId, Vector)>> = BTreeMap::new();
    let mut used = [0_i64; ROLES.len()];
    let (hour, warm) = (3_600, 600);
    for second in 0..hour {
        small.now_ms = second * 1_000;
        for (id, agent, task) in ends.remove(&second).unwrap_or_default() {
            small.end(id, agent, &task, REGULAR);
        }
        // Whoever is offered something launches one task, and gets the next offer from the rest.
        loop {
            let grants = small.round();
            if grants.is_empty() {
                break;
            }
            for grant in grants {
                let (_, _, _, cores, seconds) = ROLES[of[&grant.framework]];
                let task = Vector::of(cores * 1_000, 100, 0);
                if !grant.amounts.contains(&task) {
                    small.decline(&grant, 5_000);
                    continue;
                }
                small.launch(&grant, &task);
                let end = second + 1 + dice.below(seconds * 2);
                ends.entry(end).or_default().push((grant.framework, grant.agent, task));
            }
        }
        if second >= warm {
            for (id, facts) in &small.frameworks {
                used[of[id]] += facts.uses[REGULAR].get(0);
            }
        }
    }
    let total = i64::try_from(hour - warm).unwrap() * 50 * 16 * 1_000;
    let whole: i64 = ROLES.iter().filter(|(role, ..)| !role.contains('/')).map(|(_, weight, ..)| i64::from(*weight)).sum();
    let whole = whole + i64::from(OF_C);
    for (at, (role, weight, ..)) in ROLES.into_iter().enumerate() {
        let fair = match role.split_once('/') {
            None => 1_000_000 * i64::from(weight) / whole,
            Some(_) => 1_000_000 * i64::from(OF_C) / whole * i64::from(weight) / 4_000,
        };
        let share = 1_000_000 * used[at] / total;
        println!("{role}: {share} ppm of the whole, {fair} by its weight");
        assert!((share - fair).abs() <= 20_000, "{role} has {share} ppm, and {fair} by its weight");
    }
}
