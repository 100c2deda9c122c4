//! `tessera events`: follows what happens in the cluster, over restarts of masters.
//!
//! Invariants: no event is shown twice, and one that was missed is told as a gap. Must never keep
//! events.

use crate::api::Event;
use crate::client::Client;
use crate::error::{CliError, Kind};
use crate::follow::Patience;
use crate::sse::{Reader, ServerEvent};
use crate::{Context, names, output};
use futures::StreamExt;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

/// Pause before a stream that broke off is asked for again.
const RESUME_AFTER: Duration = Duration::from_millis(300);
/// Names of frameworks that are remembered.
const NAMES_MAX: usize = 10_000;

/// Arguments of `tessera events`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera events --kind task. --framework words\n  tessera events --after 7-0   # resume\n\nOne JSON document per line:\n  tessera events -o json | jq -r 'select(.kind == \"task.TASK_FAILED\") | .task'"
)]
pub struct EventsArgs {
    /// Start after the event with this id instead of now
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    after: Option<String>,
    /// Only kinds that begin so: `task.`, `agent`, `framework.placed`
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    kind: Vec<String>,
    /// Only those of this framework
    #[arg(long, value_name = "FRAMEWORK")]
    framework: Option<String>,
    /// Only those of this task
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// Only those of this agent
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// Only those of frameworks of this role, and of roles below
    #[arg(long, value_name = "ROLE", value_parser = names::parse_role)]
    role: Option<String>,
}

/// Reads the id of an event: two numbers.
fn parse_id(text: &str) -> Result<String, String> {
    let numbers = text.split_once('-').is_some_and(|(index, n)| index.parse::<u64>().is_ok() && n.parse::<u32>().is_ok());
    if numbers { Ok(text.to_owned()) } else { Err("an id as `tessera events -o json` shows it, for example 7-0".to_owned()) }
}

/// Run it: until the cluster is away for too long, or the reader goes.
///
/// # Errors
/// When the cluster refuses, or cannot be reached for too long.
pub async fn run(context: &Context, args: EventsArgs) -> Result<ExitCode, CliError> {
    let client = context.client()?;
    let mut last = args.after.clone();
    let filters = filters(&client, args).await?;
    let mut patience = Patience::default();
    let mut called = Called::default();
    loop {
        patience.judge(follow(context, &client, &filters, &mut last, &mut called).await)?;
        tokio::time::sleep(RESUME_AFTER).await;
    }
}

/// What masters look through themselves.
async fn filters(client: &Client, args: EventsArgs) -> Result<Vec<(&'static str, String)>, CliError> {
    let mut filters = Vec::new();
    if !args.kind.is_empty() {
        filters.push(("kind", args.kind.join(",")));
    }
    if let Some(framework) = args.framework {
        filters.push(("framework", names::framework(client, &framework, names::Say::Enough).await?));
    }
    if let Some(agent) = args.agent {
        filters.push(("agent", names::agent(client, &agent, names::Say::Enough).await?));
    }
    filters.extend([("task", args.task), ("role", args.role)].into_iter().filter_map(|(name, value)| Some((name, value?))));
    Ok(filters)
}

/// Shows events until the stream ends, and remembers the last one.
async fn follow(
    context: &Context,
    client: &Client,
    filters: &[(&'static str, String)],
    last: &mut Option<String>,
    called: &mut Called,
) -> Result<(), CliError> {
    let mut request = client
        .get(&["v1", "events"])
        .header("accept", "text/event-stream")
        .endless();
    for (name, value) in filters {
        request = request.query(name, value);
    }
    if let Some(id) = last.as_ref() {
        request = request.header("last-event-id", id.as_str());
    }
    let mut stream = client.send(request).await?.bytes_stream();
    let mut reader = Reader::default();
    while let Some(chunk) = stream.next().await {
        // A stream that broke off is resumed after the last whole event.
        let Ok(chunk) = chunk else { return Ok(()) };
        for event in reader.push(&chunk)? {
            show(context, client, &event, called).await?;
            if event.id.is_some() {
                *last = event.id;
            }
        }
    }
    Ok(())
}

/// Names of frameworks by their ids, each asked for once.
#[derive(Default)]
struct Called(BTreeMap<String, String>);

impl Called {
    /// What people call it; its id when it is gone, or nobody says.
    async fn name(&mut self, client: &Client, id: &str) -> String {
        if let Some(name) = self.0.get(id) {
            return name.clone();
        }
        let found = client.json(client.get(&["v1", "frameworks", id]).retry_for(Duration::ZERO)).await;
        let name = match found {
            Ok(value) => value.get("name").and_then(Value::as_str).unwrap_or(id).to_owned(),
            Err(error) if error.kind == Kind::NotFound => id.to_owned(),
            Err(_) => return id.to_owned(),
        };
        if self.0.len() >= NAMES_MAX {
            self.0.clear();
        }
        self.0.insert(id.to_owned(), name.clone());
        name
    }
}

async fn show(context: &Context, client: &Client, event: &ServerEvent, called: &mut Called) -> Result<(), CliError> {
    if event.event.as_deref() == Some("gap") {
        output::note("events are missing here: more happened than masters keep");
        return Ok(());
    }
    if context.is_data() {
        let mut value = parse(event)?;
        // Where to resume after it.
        if let (Value::Object(fields), Some(id)) = (&mut value, &event.id) {
            fields.insert("id".to_owned(), Value::from(id.as_str()));
        }
        return output::document_of_many(&value);
    }
    let mut event: Event = crate::api::read(&parse(event)?)?;
    if let Some(id) = &event.framework {
        event.framework = Some(called.name(client, id).await);
    }
    output::line(&sentence(&event))
}

fn parse(event: &ServerEvent) -> Result<Value, CliError> {
    serde_json::from_str(&event.data)
        .map_err(|error| CliError::new(Kind::Failed, format!("an event is no JSON: {error}")))
}

fn sentence(event: &Event) -> String {
    let about = event.kind.split('.').next().unwrap_or_default();
    let object = match about {
        "task" | "launch" => [event.framework.as_deref(), event.task.as_deref()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("/"),
        "agent" => event.agent.clone().unwrap_or_default(),
        _ => event.framework.clone().unwrap_or_default(),
    };
    let on = event
        .agent
        .as_ref()
        .filter(|_| about != "agent")
        .map(|agent| format!("on {agent}"));
    // Times in texts of these are numbers.
    let timed = matches!(event.kind.as_str(), "agent.draining" | "agent.maintenance");
    let text = event.text.as_ref().map(|text| if timed { output::with_times(text) } else { text.clone() });
    let parts = [
        Some(output::time(event.at_ms)),
        Some(event.kind.clone()),
        Some(object),
        on,
        text,
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .flatten()
        .filter(|part| !part.is_empty())
        .collect();
    output::clean(&parts.join("  "))
}

#[cfg(test)]
mod tests {
    use super::{parse_id, sentence};
    use crate::api::Event;

    #[test]
    fn events_are_sentences() {
        let event = Event {
            kind: "task.TASK_FAILED".into(),
            framework: Some("f1".into()),
            task: Some("t".into()),
            agent: Some("a1".into()),
            at_ms: 1,
            ..Event::default()
        };
        assert_eq!(
            sentence(&event),
            "1970-01-01 00:00:00Z  task.TASK_FAILED  f1/t  on a1"
        );
        let text = Some("from 1735689599999 to 1735689600000".to_owned());
        let event = Event { kind: "agent.maintenance".into(), agent: Some("a1".into()), text, at_ms: 1, ..Event::default() };
        assert_eq!(
            sentence(&event),
            "1970-01-01 00:00:00Z  agent.maintenance  a1  from 2024-12-31 23:59:59Z to 2025-01-01 00:00:00Z"
        );
    }

    #[test]
    fn ids_are_two_numbers() {
        for (text, good) in [("7-0", true), ("7", false), ("x", false), ("7-", false), ("-0", false), ("7-0-1", false)] {
            assert_eq!(parse_id(text).is_ok(), good, "{text}");
        }
    }
}
