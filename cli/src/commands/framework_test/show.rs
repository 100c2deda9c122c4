//! What a turn did, as lines that people read and scripts expect.
//!
//! Invariants: one thing is one line, and a line begins with a word that names its kind. Must never look at
//! anything but the turn.

use crate::output;
use std::collections::BTreeMap;
use tessera_types::{
    Event, KeyWrite, Launch, LogLine, NativeCommand, Operation, Resources, TaskBody, TaskSpec, TimeMs,
};

/// Bytes of a value that are shown.
const VALUE_BYTES: usize = 300;

/// Whether a line begins as a pattern says, in which `*` stands for anything.
pub fn matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    true
}

/// A duration: `5s`, `1500ms`.
pub fn span(ms: u64) -> String {
    match ms % 1_000 {
        0 if ms > 0 => format!("{}s", ms / 1_000),
        _ => format!("{ms}ms"),
    }
}

/// Amounts: `0.5 cpu, 64 MiB, 2 gpus`.
pub fn amounts(resources: &Resources) -> String {
    let quantities = &resources.quantities;
    let mut parts = vec![format!("{} cpu", output::cpus(quantities.cpus_milli)), format!("{} MiB", quantities.mem_mib)];
    if quantities.disk_mib != 0 {
        parts.push(format!("{} MiB disk", quantities.disk_mib));
    }
    parts.extend(resources.items.iter().map(|(key, amount)| format!("{} {}", output::cpus(*amount), key.name)));
    parts.join(", ")
}

fn cut(text: &str) -> String {
    let text = output::clean(text);
    let mut end = text.len().min(VALUE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    match text.get(..end) {
        Some(head) if end < text.len() => format!("{head}… ({} bytes)", text.len()),
        _ => text,
    }
}

/// Bytes, as text where they are one.
pub fn bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => cut(text.trim_end()),
        Err(_) => format!("{} bytes", bytes.len()),
    }
}

/// What happens, in a few words.
pub fn event(event: &Event) -> String {
    match event {
        Event::Subscribed(_) => "subscribed".to_owned(),
        Event::Resumed(_) => "resumed".to_owned(),
        Event::Agent(agent) if agent.reachable => format!("agent {}", agent.id),
        Event::Agent(agent) => format!("agent {} is unreachable", agent.id),
        Event::Offers(offers) => {
            let each = offers.iter().map(|offer| {
                let revocable = if offer.revocable { ", revocable" } else { "" };
                format!("{} of {} ({}{revocable})", offer.id.0, offer.agent, amounts(&offer.available))
            });
            format!("offer {}", each.collect::<Vec<_>>().join(", "))
        }
        Event::Rescinded(offers) => format!("rescinded {}", ids(offers.iter().map(|offer| offer.0))),
        Event::Update { status, .. } => format!("{} {}", status.task, status.state),
        Event::Timer { id, .. } => format!("timer {id}"),
        Event::Http(request) => format!("{} {}", request.method, request.path),
        Event::Again => "again".to_owned(),
        Event::ConfigChanged { .. } => "config changed".to_owned(),
        Event::StateChanged { .. } => "state written from outside".to_owned(),
        Event::Message(message) => format!("message of {}", message.executor),
        other => format!("{other:?}"),
    }
}

fn ids(ids: impl Iterator<Item = u64>) -> String {
    ids.map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
}

/// A launch, and what it runs.
pub fn launch(launch: &Launch, specs: &BTreeMap<String, TaskSpec>) -> String {
    let Some(spec) = specs.get(&launch.spec.to_string()) else {
        return "a spec that was not sent".to_owned();
    };
    let runs = match &spec.body {
        TaskBody::Native(NativeCommand::Shell(command)) => format!("sh -c {command:?}"),
        TaskBody::Native(NativeCommand::Argv(argv)) => argv.join(" "),
        TaskBody::Wasm { component, args } => format!("{component} {}", args.join(" ")),
        TaskBody::Executor(task) => format!("executor {}", task.executor),
    };
    let mut text = format!("{}: {}", amounts(&spec.resources), runs.trim_end());
    for arg in &launch.args {
        text.push_str(&format!(" {arg}"));
    }
    for (name, value) in &launch.env {
        text.push_str(&format!(" {name}={value}"));
    }
    cut(&text)
}

/// An operation that launches nothing.
pub fn operation(operation: &Operation, now: TimeMs) -> String {
    match operation {
        Operation::Accept { offers, filters, .. } => {
            format!("accept {}, the rest refused for {}", ids(offers.iter().map(|id| id.0)), span(filters.refuse_ms))
        }
        Operation::Decline { offers, filters } => {
            format!("decline {} for {}", ids(offers.iter().map(|id| id.0)), span(filters.refuse_ms))
        }
        Operation::Revive => "revive".to_owned(),
        Operation::Suppress => "suppress".to_owned(),
        Operation::Kill { task, .. } => format!("kill {task}"),
        Operation::Reconcile { tasks } if tasks.is_empty() => "reconcile all".to_owned(),
        Operation::Reconcile { tasks } => {
            format!("reconcile {}", tasks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
        Operation::SetTimer { id, due_ms } => format!("timer {id} in {}", span(due_ms.saturating_sub(now))),
        Operation::CancelTimer { id } => format!("cancel timer {id}"),
        Operation::Respond { answer, .. } => format!("answer {} {}", answer.status, bytes(&answer.body)),
        Operation::CallAgain => "call again".to_owned(),
        Operation::SendMessage(message) => {
            format!("message to {} on {}: {}", message.executor, message.agent, bytes(&message.data))
        }
        Operation::ShutdownExecutor { agent, executor } => format!("shut down {executor} on {agent}"),
        // Of later versions: shown as they are.
        #[allow(unreachable_patterns, reason = "the contract grows")]
        other => format!("{other:?}"),
    }
}

/// A change of state.
pub fn write(write: &KeyWrite) -> String {
    match &write.value {
        Some(value) => format!("write {} = {}", write.key, bytes(value)),
        None => format!("delete {}", write.key),
    }
}

/// The lines of a log; empty ones are left out.
pub fn logs(lines: &[LogLine]) -> Vec<String> {
    let said = lines.iter().filter(|line| !line.text.trim().is_empty() || !line.fields.is_empty());
    said.map(log).collect()
}

fn log(line: &LogLine) -> String {
    let level = format!("{:?}", line.level).to_uppercase();
    let fields: String = line.fields.iter().map(|(name, value)| format!(" {name}={value}")).collect();
    cut(&format!("log {level} {}: {}{fields}", line.target, line.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_beginnings_with_stars() {
        for (pattern, line, fits) in [
            ("launch a", "launch a on a1", true),
            ("launch *: 0.1 cpu", "launch a on a1: 0.1 cpu", true),
            ("*on a1", "launch a on a1: 0.1 cpu", true),
            ("launch *b*a1", "launch a on a1", false),
            ("launch b", "launch a", false),
            ("aunch", "launch a", false),
            ("", "anything", true),
        ] {
            assert_eq!(matches(pattern, line), fits, "{pattern} {line}");
        }
    }

    #[test]
    fn times_and_values_are_short() {
        assert_eq!([span(0), span(5_000), span(1_500)], ["0ms", "5s", "1500ms"]);
        assert_eq!(bytes(b"a\nb\n"), "a b");
        assert_eq!(bytes(&[0xff, 0]), "2 bytes");
        assert!(bytes(&[b'x'; 400]).ends_with("… (400 bytes)"));
    }
}
