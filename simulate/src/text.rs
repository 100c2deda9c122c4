//! The report as people read it.
//!
//! Invariants: text of guests never reaches a terminal with control characters in it. Must never leave out
//! a limit, a failure or a quarantine that the document has.

use crate::duration::show;
use crate::report::{FrameworkReport, Report, Sample, Times};
use std::fmt::Write as _;

/// Lines of the table of moments.
const MOMENTS: usize = 12;

fn percent(ppm: u64) -> String {
    format!("{}.{} %", ppm / 10_000, ppm % 10_000 / 1_000)
}

fn index(ppm: u64) -> String {
    format!("{}.{:03}", ppm / 1_000_000, ppm % 1_000_000 / 1_000)
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn times(times: &Times) -> String {
    let Times { count, p50_ms, p99_ms, max_ms } = times;
    format!("p50 {}, p99 {}, longest {} ({count})", show(*p50_ms), show(*p99_ms), show(*max_ms))
}

fn us(us: u64) -> String {
    if us < 1_000 { format!("{us} us") } else { format!("{}.{} ms", us / 1_000, us % 1_000 / 100) }
}

/// The whole report.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    let setting = &report.setting;
    let line = |out: &mut String, text: String| {
        let _ = writeln!(out, "{text}");
    };
    let (agents, seed, size) = (setting.agents, setting.seed, setting.agent_size);
    line(&mut out, format!(
        "{} of {agents} agents with {} CPU and {} MiB each, seed {seed}{}",
        show(setting.simulated_ms),
        index(size.cpus_milli.unsigned_abs() * 1_000),
        size.mem_mib,
        if report.stopped { format!("; stopped, {} were asked for", show(setting.for_ms)) } else { String::new() },
    ));
    let cluster = &report.cluster;
    line(&mut out, format!(
        "placements   {}\nCPU used     {} (highest {})\nmemory used  {} (highest {})",
        cluster.placements,
        percent(cluster.cpus_used_ppm),
        percent(cluster.cpus_used_max_ppm),
        percent(cluster.mem_used_ppm),
        percent(cluster.mem_used_max_ppm),
    ));
    if let (Some(mean), Some(min)) = (cluster.fairness_ppm, cluster.fairness_min_ppm) {
        let samples = cluster.fairness_samples;
        line(&mut out, format!(
            "fairness     {} (lowest {}): Jain's index of dominant shares of those that want offers, {samples} samples",
            index(mean),
            index(min),
        ));
    }
    if cluster.agents_lost > 0 {
        line(&mut out, format!("agents lost  {}, of which {} came back", cluster.agents_lost, cluster.agents_back));
    }
    for framework in &report.frameworks {
        of_framework(&mut out, framework);
    }
    moments(&mut out, report);
    if !report.notes.is_empty() {
        line(&mut out, "\nwhat the master would have said".to_owned());
        for note in &report.notes {
            line(&mut out, format!("  {}", clean(note)));
        }
    }
    real(&mut out, report);
    out
}

fn of_framework(out: &mut String, framework: &FrameworkReport) {
    let counts = |map: &std::collections::BTreeMap<String, u64>| {
        let parts: Vec<String> = map.iter().map(|(name, count)| format!("{name} {count}")).collect();
        parts.join(", ")
    };
    let FrameworkReport { turns, requests, .. } = framework;
    let _ = writeln!(out, "\n{} (role {}): {}", framework.name, framework.role, framework.phase);
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "  {name:<16}{}", clean(&value));
        }
    };
    line("placements", format!("{}, {} tasks live", framework.placements, framework.tasks_live));
    line("states", counts(&framework.states));
    line("reasons", counts(&framework.reasons));
    if framework.launch_to_running.count > 0 {
        line("launch to run", times(&framework.launch_to_running));
    }
    if framework.asked_to_running.count > 0 {
        line("asked to run", times(&framework.asked_to_running));
    }
    let (mean, most) = (percent(framework.share_ppm), percent(framework.share_max_ppm));
    line("dominant share", format!("{mean} (highest {most})"));
    line("turns", format!(
        "{} committed, {} discarded, {} refused; {} events, {} offers, {} operations",
        turns.committed, turns.discarded, turns.refused, turns.events, turns.offers, turns.operations
    ));
    if requests.sent > 0 {
        let answered: Vec<String> =
            requests.answered.iter().map(|(status, count)| format!("{count} with {status}")).collect();
        line("requests", format!(
            "{} sent, {} repeated after 503, answered: {}; {} without an answer",
            requests.sent,
            requests.repeated,
            if answered.is_empty() { "none".to_owned() } else { answered.join(", ") },
            requests.unanswered
        ));
        if requests.times.count > 0 {
            line("answers", times(&requests.times));
        }
    }
    line("state", format!("{} bytes in {} keys", framework.state_bytes, framework.state_keys));
    if framework.limits.is_empty() {
        line("limits", "none was reached".to_owned());
    }
    for hit in &framework.limits {
        line("limit", format!(
            "{}: {} times, first in turn {} at {}: {}",
            hit.limit, hit.times, hit.first_turn, show(hit.first_at_ms), hit.effect
        ));
    }
    for failure in &framework.failures {
        line("failure", format!(
            "{} {} times, first in turn {} at {}: {}",
            failure.reason, failure.times, failure.first_turn, show(failure.first_at_ms), failure.message
        ));
    }
    if framework.failures_untold > 0 {
        line("failures", format!("{} more", framework.failures_untold));
    }
    if let Some(rule) = &framework.quarantined_by {
        line("quarantined", format!("by {rule}, at {}", show(framework.quarantined_at_ms.unwrap_or(0))));
    }
    for wait in &framework.waits {
        line("waits", wait.clone());
    }
    for logged in &framework.errors_logged {
        line("logged", format!(
            "{} times, first in turn {} at {}: {}",
            logged.times, logged.first_turn, show(logged.first_at_ms), logged.text
        ));
    }
}

fn moments(out: &mut String, report: &Report) {
    if report.samples.is_empty() {
        return;
    }
    let names: Vec<&str> = report.frameworks.iter().map(|framework| framework.name.as_str()).collect();
    let _ = writeln!(out, "\n{:>8} {:>7} {:>8} {:>8} {:>8}  shares of {}", "at", "agents", "tasks", "CPU", "memory", names.join(", "));
    let step = report.samples.len().div_ceil(MOMENTS);
    // Counted from the end, which is always shown.
    let shown = report.samples.iter().rev().step_by(step).collect::<Vec<&Sample>>();
    for sample in shown.into_iter().rev() {
        let shares: Vec<String> = sample.shares_ppm.iter().map(|share| percent(*share)).collect();
        let _ = writeln!(
            out,
            "{:>8} {:>7} {:>8} {:>8} {:>8}  {}",
            show(sample.at_ms),
            sample.agents,
            sample.tasks,
            percent(sample.cpus_used_ppm),
            percent(sample.mem_used_ppm),
            shares.join(", "),
        );
    }
}

fn real(out: &mut String, report: &Report) {
    let real = &report.real;
    let _ = writeln!(
        out,
        "\non this machine (differs from run to run): {} for {} of virtual time, {} of CPU",
        show(real.wall_ms),
        show(report.setting.simulated_ms),
        show(real.cpu_ms),
    );
    for turns in &real.turns {
        let _ = writeln!(
            out,
            "  {}: {} turns, CPU p50 {}, p99 {}, longest {} (turn {}), {} together, at most {} of {} in a minute",
            turns.framework,
            turns.turns,
            us(turns.p50_us),
            us(turns.p99_us),
            us(turns.max_us),
            turns.max_turn,
            show(turns.total_ms),
            show(turns.minute_max_ms),
            show(turns.minute_limit_ms),
        );
        if turns.near_limit > 0 {
            let near = turns.near_limit;
            let _ = writeln!(out, "    {near} turns took more than half of turn-cpu-ms: on a slower machine they might fail");
        }
        if turns.minute_max_ms > turns.minute_limit_ms {
            let _ = writeln!(out, "    more than minute-cpu-ms: on a cluster, turns would have waited for the next minute");
        }
    }
}
