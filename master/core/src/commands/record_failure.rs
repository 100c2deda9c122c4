//! Record that a scheduler's instance failed, and quarantine a scheduler that keeps failing.
//!
//! Invariants: only failures that the guest is to blame for count; what failed on trial or in migration
//! does not, because it is rolled back instead; tasks are left alone.

use super::not_found;
use crate::api::RequestError;
use crate::apply::{Apply, Dirty};
use crate::effect::{CommandResult, Effect};
use crate::lifecycle::{Failures, Quarantine};
use tessera_types::limits::MESSAGE_BYTES_MAX;
use tessera_types::{EffectiveLimits, Epoch, FrameworkId, LimitName};
use tessera_wire::v1;

/// Bytes of a failure's code and of the name of the limit that it hit.
const CODE_BYTES_MAX: usize = 64;

fn cut(mut text: String, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// Carry it out. A failure of another epoch is no news.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::RecordFailure,
) -> Result<CommandResult, RequestError> {
    let id = FrameworkId(command.framework);
    let Some(framework) = apply.state.frameworks.get(&id) else {
        return not_found("framework", id);
    };
    if framework.epoch != Epoch(command.epoch) || framework.removing {
        return Ok(CommandResult::Done);
    }
    let counts =
        command.guest && framework.upgrade.is_none() && framework.quarantine.is_none();
    let limits = apply.state.limits_of(&framework.role);
    let agent = framework.agent;
    let failed = Failures {
        reason: cut(command.reason, CODE_BYTES_MAX),
        limit: cut(command.limit, CODE_BYTES_MAX),
        message: cut(command.message, MESSAGE_BYTES_MAX),
        turn: command.turn,
        ..Failures::default()
    };
    apply.event("framework.failed", Some(id), None, agent, &describe(&failed));
    if !counts {
        return Ok(CommandResult::Done);
    }
    let time_ms = apply.time_ms;
    let Some(framework) = apply.state.frameworks.get_mut(&id) else {
        return Ok(CommandResult::Done);
    };
    if command.after_turn {
        framework.failures.in_a_row = 0;
    }
    let rule = count(&mut framework.failures, failed, &limits, time_ms);
    apply.mark(Dirty::Framework(id));
    if let Some(rule) = rule {
        quarantine(apply, id, rule, &limits);
    }
    Ok(CommandResult::Done)
}

/// A failure in words.
pub(super) fn describe(failures: &Failures) -> String {
    let Failures { reason, limit, message, turn, .. } = failures;
    let mut text = reason.clone();
    if !limit.is_empty() {
        text += &format!(", limit {limit}");
    }
    if *turn > 0 {
        text += &format!(", in turn {turn}");
    }
    if !message.is_empty() {
        text += &format!(": {message}");
    }
    text
}

/// Count one more failure; returns the limit that it reached.
fn count(
    known: &mut Failures,
    failed: Failures,
    limits: &EffectiveLimits,
    time_ms: u64,
) -> Option<LimitName> {
    let per_window = limits.size(LimitName::FailuresPerWindow);
    let since_ms = time_ms.saturating_sub(limits.get(LimitName::FailureWindowMs));
    let mut at_ms = std::mem::take(&mut known.at_ms);
    // A new leader does not know of turns that changed nothing: a long time without failure stands for
    // them.
    let in_a_row = if at_ms.last().is_some_and(|at| *at >= since_ms) { known.in_a_row } else { 0 };
    at_ms.push(time_ms);
    at_ms.retain(|at| *at >= since_ms);
    at_ms.drain(..at_ms.len().saturating_sub(per_window));
    *known = Failures { in_a_row: in_a_row.saturating_add(1), at_ms, ..failed };
    if u64::from(known.in_a_row) >= limits.get(LimitName::Failures) {
        Some(LimitName::Failures)
    } else if known.at_ms.len() >= per_window {
        Some(LimitName::FailuresPerWindow)
    } else {
        None
    }
}

fn quarantine(apply: &mut Apply<'_>, id: FrameworkId, rule: LimitName, limits: &EffectiveLimits) {
    let time_ms = apply.time_ms;
    let Some(framework) = apply.state.frameworks.get_mut(&id) else { return };
    framework.quarantine = Some(Quarantine { since_ms: time_ms, rule: rule.to_string() });
    let agent = framework.agent.take();
    let text = format!(
        "limit {rule}: {} reached; last {}; its tasks go on; `tessera framework release {}` lets it run again",
        limits.get(rule),
        describe(&framework.failures),
        framework.name,
    );
    apply.mark(Dirty::Framework(id));
    apply.effect(Effect::Framework(id));
    if let Some(agent) = agent {
        apply.effect(Effect::Hosting(agent));
    }
    apply.event("framework.quarantined", Some(id), None, agent, &text);
}
