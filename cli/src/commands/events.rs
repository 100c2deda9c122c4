//! `tessera events`: follows what happens in the cluster, over restarts of masters.
//!
//! Invariants: no event is shown twice, and one that was missed is told as a gap. Must never keep
//! events.

use crate::api::Event;
use crate::client::Client;
use crate::error::{CliError, Kind};
use crate::follow::Patience;
use crate::sse::{Reader, ServerEvent};
use crate::{Context, output};
use futures::StreamExt;
use serde_json::Value;
use std::process::ExitCode;
use std::time::Duration;

/// Pause before a stream that broke off is asked for again.
const RESUME_AFTER: Duration = Duration::from_millis(300);

/// Arguments of `tessera events`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example, one JSON document per line:\n  tessera events -o json | jq -r 'select(.kind == \"task.TASK_FAILED\") | .task'"
)]
pub struct EventsArgs {
    /// Start after the event with this id instead of now
    #[arg(long, value_name = "ID")]
    after: Option<String>,
}

/// Run it: until the cluster is away for too long, or the reader goes.
///
/// # Errors
/// When the cluster refuses, or cannot be reached for too long.
pub async fn run(context: &Context, args: EventsArgs) -> Result<ExitCode, CliError> {
    let client = context.client()?;
    let mut last = args.after;
    let mut patience = Patience::default();
    loop {
        patience.judge(follow(context, &client, &mut last).await)?;
        tokio::time::sleep(RESUME_AFTER).await;
    }
}

/// Shows events until the stream ends, and remembers the last one.
async fn follow(
    context: &Context,
    client: &Client,
    last: &mut Option<String>,
) -> Result<(), CliError> {
    let mut request = client
        .get(&["v1", "events"])
        .header("accept", "text/event-stream")
        .endless();
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
    if context.is_json() {
        return output::line(&event.data.replace('\n', " "));
    }
    let value: Value = serde_json::from_str(&event.data)
        .map_err(|error| CliError::new(Kind::Failed, format!("an event is no JSON: {error}")))?;
    output::line(&sentence(&crate::api::read(&value)?))
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
