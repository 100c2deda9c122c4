//! Measures the allocator alone, and prints what it found, a number a line: what, value, unit, and the target.
//!
//! Invariant: every number was measured in this run.

use std::time::{Duration, Instant};
use tessera_master_core::testing::{AllocatorRun, EVEN_MEM_MIB, Fairness, hour_of_churn};

/// Changes over which the time of one is taken.
const CHANGES: u32 = 2_000;
/// Cycles of which the middle one counts.
const CYCLES: usize = 5;

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn print(what: &str, value: f64, unit: &str, target: &str) {
    println!("{what}\t{value:.3}\t{unit}\t{target}");
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The time of one cycle with all agents free.
fn all_free(agents: u64, frameworks: u64) -> Duration {
    let cycles = (0..CYCLES).map(|_| {
        let mut run = AllocatorRun::new(agents, frameworks, 20);
        let start = Instant::now();
        let offers = run.round();
        let time = start.elapsed();
        assert_eq!(offers as u64, agents, "every agent is offered");
        time
    });
    middle(cycles.collect())
}

fn main() {
    print("a cycle, 1,000 agents free, 100 frameworks", ms(all_free(1_000, 100)), "ms", "5");
    print("a cycle, 10,000 agents free, 1,000 frameworks", ms(all_free(10_000, 1_000)), "ms", "50");

    let mut run = AllocatorRun::new(10_000, 1_000, 20);
    run.round();
    run.decline_everything();
    let start = Instant::now();
    assert_eq!(run.round(), 0, "everything was declined");
    print("the same where every framework has declined every agent, all looked at", ms(start.elapsed()), "ms", "50");
    let start = Instant::now();
    (0..CHANGES).for_each(|_| {
        run.round();
    });
    print("the next cycle there, nothing having changed", us(start.elapsed() / CHANGES), "µs", "50");
    let start = Instant::now();
    (0..CHANGES).for_each(|_| {
        run.one_change();
    });
    print("a task begins or ends there, with the cycle after it", us(start.elapsed() / CHANGES), "µs", "50");
    let start = Instant::now();
    for number in 0..20 {
        run.join(10_001 + number);
        run.round();
    }
    print("an agent joins there, with the cycle after it", us(start.elapsed() / 20), "µs", "50");

    let mut run = AllocatorRun::new(10_000, 1_000, 20);
    run.keep(3_000);
    run.considered();
    let start = Instant::now();
    (0..CHANGES).for_each(|_| {
        assert_eq!(run.one_end(), 1, "what a task leaves is offered");
    });
    let time = us(start.elapsed() / CHANGES);
    let considered = run.considered() as f64 / f64::from(CHANGES);
    let what = "10,000 agents, 30 % kept for guarantees, one open revocable request, 1,000 waiting frameworks, one task ends";
    print(what, time, "µs", "50");
    print("how often a framework is considered at an agent for that", considered, "times", "");

    let mut run = AllocatorRun::new(3_000, 3_000, 3_000);
    run.give_quota(3_000);
    let start = Instant::now();
    let offers = run.round();
    print(&format!("a cycle with quota, 3,000 agents, 3,000 roles: {offers} offers"), ms(start.elapsed()), "ms", "");
    let start = Instant::now();
    (0..CHANGES).for_each(|_| {
        run.round();
    });
    print("the next cycle there, nothing having changed", us(start.elapsed() / CHANGES), "µs", "");

    for (mem_mib, tasks, target) in [(EVEN_MEM_MIB, "tasks as agents are", "2"), (100, "most memory left over", "")] {
        let furthest = hour_of_churn(mem_mib).iter().map(Fairness::error_ppm).max().unwrap_or(i64::MAX);
        let what = format!("an hour of simulated churn, weights at two levels, {tasks}: a role's use from its fair share, at most");
        print(&what, furthest as f64 / 1e4, "%", target);
    }
}
