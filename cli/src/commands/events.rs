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
use std::process::ExitCode;
use std::time::Duration;

/// Pause before a stream that broke off is asked for again.
const RESUME_AFTER: Duration = Duration::from_millis(300);

/// Arguments of `tessera events`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera events --kind task. --framework words\n  tessera events --after 7-0   # resume\n\nOne JSON document per line:\n  tessera events -o json | jq -r 'select(.kind == \"task.TASK_FAILED\") | .task'"
)]
pub struct EventsArgs {
    /// Start after the event with this id instead of now
    #[arg(long, value_name = "ID")]
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
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
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
    loop {
        patience.judge(follow(context, &client, &filters, &mut last).await)?;
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
        filters.push(("framework", names::framework(client, &framework).await?));
    }
    if let Some(agent) = args.agent {
        filters.push(("agent", names::agent(client, &agent).await?));
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
            show(context, &event)?;
            if event.id.is_some() {
                *last = event.id;
            }
        }
    }
    Ok(())
}

fn show(context: &Context, event: &ServerEvent) -> Result<(), CliError> {
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
    let value = parse(event)?;
    output::line(&sentence(&crate::api::read(&value)?))
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
    let parts = [
        Some(output::time(event.at_ms)),
        Some(event.kind.clone()),
        Some(object),
        on,
        event.text.clone(),
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
    use super::sentence;
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
    }
}
