//! An hour of tasks that come and go, in simulated time: what roles had of the whole, and what their weights say.
//!
//! Must never be on the way of a decision.

use super::measure::{AllocatorRun, total};
use super::{REGULAR, Vector};
use std::collections::BTreeMap;
use tessera_types::{AgentId, FrameworkId, RolePolicy};

/// A role whose frameworks always have more to do.
struct Busy {
    name: &'static str,
    weight_milli: u32,
    frameworks: u64,
    /// Cores of a task.
    cores: i64,
    /// How long one takes on average.
    seconds: u64,
}

const fn busy(name: &'static str, weight_milli: u32, frameworks: u64, cores: i64, seconds: u64) -> Busy {
    Busy { name, weight_milli, frameworks, cores, seconds }
}

const ROLES: [Busy; 6] = [
    busy("a", 1_000, 4, 1, 20),
    busy("b", 2_000, 2, 2, 60),
    busy("c/x", 1_000, 3, 1, 300),
    busy("c/y", 3_000, 3, 1, 10),
    busy("d", 4_000, 1, 1, 30),
    busy("e", 1_500, 8, 1, 120),
];
/// Weight of `c`, whose children share what it gets.
const OF_C: u32 = 2_000;
/// Agents.
const AGENTS: u64 = 50;
/// What is counted, and what goes before it: until tasks of all ages are there.
const SECONDS: std::ops::Range<u64> = 600..3_600;
/// How long a framework does not want an agent that its task does not fit on.
const REFUSED_MS: u64 = 5_000;
/// Memory of a task for each of its cores, where tasks use memory as agents have it.
pub const EVEN_MEM_MIB: i64 = 4_096;

/// What a role had, and what its weight says, in millionths of the whole.
#[derive(Clone, Copy, Debug)]
pub struct Fairness {
    /// The role.
    pub role: &'static str,
    /// Had, on average.
    pub share_ppm: i64,
    /// By its weight.
    pub fair_ppm: i64,
}

/// The same numbers in the same order each time.
struct Dice(u64);

impl Dice {
    const fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % most
    }
}

impl Fairness {
    /// How far the one is from the other, in millionths of the latter.
    #[must_use]
    pub const fn error_ppm(&self) -> i64 {
        1_000_000 * (self.share_ppm - self.fair_ppm).abs() / self.fair_ppm
    }
}

/// All roles after the hour, with tasks that need so much memory for each of their cores.
#[must_use]
pub fn hour_of_churn(mem_mib: i64) -> Vec<Fairness> {
    let mut run = AllocatorRun::new(AGENTS, 0, 0);
    let mut dice = Dice(0xD1B5_4A32_D192_ED03);
    let mut of: BTreeMap<FrameworkId, usize> = BTreeMap::new();
    let policy = |weight_milli| RolePolicy { weight_milli, version: 1, ..RolePolicy::default() };
    run.set_role("c", &policy(OF_C));
    for (at, role) in ROLES.iter().enumerate() {
        run.set_role(role.name, &policy(role.weight_milli));
        for _ in 0..role.frameworks {
            let id = FrameworkId(1 + of.len() as u64);
            run.subscribe(id, role.name);
            of.insert(id, at);
        }
    }
    let mut ends: BTreeMap<u64, Vec<(FrameworkId, AgentId, Vector)>> = BTreeMap::new();
    let mut used = [0_i64; ROLES.len()];
    for second in 0..SECONDS.end {
        for (id, agent, task) in ends.remove(&second).unwrap_or_default() {
            run.change(id, agent, &task, false);
        }
        // Whoever is offered something launches what fits on it.
        while run.round_at(second * 1_000) > 0 {
            for grant in run.take_offers() {
                let role = &ROLES[of[&grant.framework]];
                let task = Vector::of(role.cores * 1_000, role.cores * mem_mib, 0);
                if !grant.amounts.contains(&task) {
                    run.decline(&grant, second * 1_000 + REFUSED_MS);
                    continue;
                }
                let mut rest = grant.amounts.clone();
                while rest.contains(&task) {
                    rest.take(&task);
                    let end = second + 1 + dice.below(role.seconds * 2);
                    ends.entry(end).or_default().push((grant.framework, grant.agent, task.clone()));
                }
                run.change(grant.framework, grant.agent, &rest, false);
            }
        }
        if SECONDS.contains(&second) {
            of.iter().for_each(|(id, at)| used[*at] += run.uses(*id, REGULAR).get(0));
        }
    }
    let counted = i64::try_from(SECONDS.end - SECONDS.start).unwrap_or(i64::MAX);
    let whole = counted * i64::try_from(AGENTS).unwrap_or(i64::MAX) * total().get(0);
    ROLES.iter().zip(used).map(|(role, used)| fairness(role, used, whole)).collect()
}

fn fairness(role: &Busy, used: i64, whole: i64) -> Fairness {
    let sum = |weights: &mut dyn Iterator<Item = &Busy>| weights.map(|role| i64::from(role.weight_milli)).sum::<i64>();
    let top = sum(&mut ROLES.iter().filter(|role| !role.name.contains('/'))) + i64::from(OF_C);
    let below_c = sum(&mut ROLES.iter().filter(|role| role.name.starts_with("c/")));
    let weight = i64::from(role.weight_milli);
    let fair_ppm = if role.name.starts_with("c/") {
        1_000_000 * i64::from(OF_C) * weight / (top * below_c)
    } else {
        1_000_000 * weight / top
    };
    Fairness { role: role.name, share_ppm: 1_000_000 * used / whole, fair_ppm }
}

#[cfg(test)]
mod tests {
    use super::{EVEN_MEM_MIB, hour_of_churn};

    #[test]
    fn after_an_hour_of_churn_shares_are_those_of_the_weights() {
        for of in hour_of_churn(EVEN_MEM_MIB) {
            assert!(of.error_ppm() <= 20_000, "{of:?}");
        }
    }

    /// Offers count as use, and here each is of much more memory than its tasks take.
    #[test]
    fn with_memory_left_over_they_are_so_within_a_fiftieth_of_the_whole() {
        for of in hour_of_churn(100) {
            assert!((of.share_ppm - of.fair_ppm).abs() <= 20_000, "{of:?}");
        }
    }
}
