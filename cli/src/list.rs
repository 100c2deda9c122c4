//! Lists and single objects as commands show them: all pages, in the format that was asked for, once or as they
//! change.
//!
//! Invariants: what is shown while watching is what a master answered, never put together from events; a watch
//! survives masters that are away as long as [`Patience`] does. Must never decide what an object means.

use crate::client::{Client, Request};
use crate::error::CliError;
use crate::follow::Patience;
use crate::sse::Reader;
use crate::{Context, output};
use futures::StreamExt as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;
use tokio::sync::watch;

/// How often a watched list is asked for when no event says that something changed: shares and offers change
/// without events.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Pause between two looks while events come without end.
const WATCH_LEAST: Duration = Duration::from_millis(250);
/// Pause before a stream of events that broke off is asked for again.
const RESUME_AFTER: Duration = Duration::from_secs(1);
/// Pages that one list has at most: 10,000,000 tasks.
const PAGES_MAX: usize = 10_000;

/// Whether to go on showing.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct WatchArgs {
    /// Go on, and show what changes; Ctrl-C ends it
    #[arg(short, long)]
    pub watch: bool,
}

/// How a list is shown.
pub struct List<'a> {
    /// Its columns.
    pub columns: &'a [output::Column],
    /// One object as cells, with the time of now.
    pub row: &'a dyn Fn(&Value, u64) -> Result<Vec<String>, CliError>,
    /// Which objects are shown.
    pub keep: &'a dyn Fn(&Value) -> bool,
    /// What is said when there is none.
    pub empty: &'a str,
}

/// All items of a list, page after page.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn all_items(client: &Client, request: Request) -> Result<Value, CliError> {
    let mut list = client.json(request.clone()).await?;
    let mut next = cursor(&list);
    for _ in 0..PAGES_MAX {
        let Some(after) = next else { break };
        let mut page = client.json(request.clone().query("after", after)).await?;
        next = cursor(&page);
        if let (Some(Value::Array(items)), Some(Value::Array(more))) = (list.get_mut("items"), page.get_mut("items")) {
            items.append(more);
        }
    }
    if let Value::Object(list) = &mut list {
        list.remove("next");
    }
    Ok(list)
}

fn cursor(list: &Value) -> Option<String> {
    match list.get("next") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    }
}

/// Show a list.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn show(
    context: &Context,
    client: &Client,
    request: Request,
    list: &List<'_>,
    watch: WatchArgs,
) -> Result<(), CliError> {
    let first = kept(all_items(client, request.clone()).await?, list);
    if !watch.watch {
        return print(context, &first, list);
    }
    let mut seen = Seen::default();
    let mut current = first;
    let mut patience = Patience::default();
    let bell = Bell::new(client);
    loop {
        seen.print(context, &current, list)?;
        current = loop {
            bell.wait().await;
            if let Some(next) = patience.judge(all_items(client, request.clone()).await)? {
                break kept(next, list);
            }
        };
    }
}

fn kept(mut value: Value, list: &List<'_>) -> Value {
    if let Some(Value::Array(items)) = value.get_mut("items") {
        items.retain(|item| (list.keep)(item));
    }
    value
}

fn print(context: &Context, value: &Value, list: &List<'_>) -> Result<(), CliError> {
    if context.is_data() {
        return output::document(value);
    }
    output::table(list.columns, rows(value, list)?, list.empty)
}

fn items(value: &Value) -> &[Value] {
    value.get("items").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn rows(value: &Value, list: &List<'_>) -> Result<Vec<Vec<String>>, CliError> {
    if value.get("items").is_none() {
        return Err(CliError::failed("the master's answer is no list"));
    }
    let now = output::now_ms();
    items(value).iter().map(|item| (list.row)(item, now)).collect()
}

/// What a watch has shown.
#[derive(Default)]
struct Seen {
    objects: BTreeMap<String, Value>,
    begun: bool,
}

impl Seen {
    fn print(&mut self, context: &Context, value: &Value, list: &List<'_>) -> Result<(), CliError> {
        let terminal = !context.is_data() && std::io::stdout().is_terminal();
        let (changed, gone) = self.changes(value);
        if terminal {
            let lines = output::table_lines(list.columns, rows(value, list)?);
            let text = if items(value).is_empty() { list.empty.to_owned() } else { lines.join("\n") };
            // To the top, then what is new over what was there, then nothing below.
            return output::write(format!("\x1b[H\x1b[2J{text}\n").as_bytes());
        }
        for name in gone {
            if context.is_data() {
                output::document_of_many(&json!({"gone": name}))?;
            } else {
                output::note(&format!("{name} is gone"));
            }
        }
        if context.is_data() {
            changed.iter().try_for_each(output::document_of_many)?;
        } else if !changed.is_empty() {
            let lines = output::table_lines(list.columns, rows(&json!({"items": changed}), list)?);
            // The names of the columns stand above the first ones only.
            let skip = usize::from(self.begun && output::settings().headers);
            output::line(&lines[skip.min(lines.len())..].join("\n"))?;
            self.begun = true;
        }
        Ok(())
    }

    /// What is new or different, and what is no more.
    fn changes(&mut self, value: &Value) -> (Vec<Value>, Vec<String>) {
        let mut now = BTreeMap::new();
        let mut changed = Vec::new();
        for (at, item) in items(value).iter().enumerate() {
            let name = output::name(item).unwrap_or_else(|| at.to_string());
            if self.objects.get(&name) != Some(item) {
                changed.push(item.clone());
            }
            now.insert(name, item.clone());
        }
        let gone = self.objects.keys().filter(|name| !now.contains_key(*name)).cloned().collect();
        self.objects = now;
        (changed, gone)
    }
}

/// Show one object, once or whenever it changes.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn show_one(
    context: &Context,
    client: &Client,
    request: Request,
    watch: WatchArgs,
    print: impl AsyncFn(&Value) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut value = client.json(request.clone()).await?;
    let mut patience = Patience::default();
    let terminal = !context.is_data() && std::io::stdout().is_terminal();
    let bell = watch.watch.then(|| Bell::new(client));
    let mut again = false;
    loop {
        match (context.is_data(), watch.watch) {
            (true, false) => output::document(&value)?,
            (true, true) => output::document_of_many(&value)?,
            (false, true) if terminal => {
                output::write(b"\x1b[H\x1b[2J")?;
                print(&value).await?;
            }
            (false, _) => {
                if again {
                    output::line("")?;
                }
                print(&value).await?;
            }
        }
        let Some(bell) = &bell else { return Ok(()) };
        again = true;
        loop {
            bell.wait().await;
            match patience.judge(client.json(request.clone()).await)? {
                Some(next) if next != value => {
                    value = next;
                    break;
                }
                _ => {}
            }
        }
    }
}

/// Rings when something happened in the cluster, and every now and then.
struct Bell {
    rung: watch::Receiver<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bell {
    fn new(client: &Client) -> Self {
        let (ring, rung) = watch::channel(0);
        let client = client.clone();
        let task = tokio::spawn(async move {
            loop {
                // A cluster without events is looked at now and then all the same.
                let _ = listen(&client, &ring).await;
                tokio::time::sleep(RESUME_AFTER).await;
            }
        });
        Self { rung, task }
    }

    async fn wait(&self) {
        tokio::time::sleep(WATCH_LEAST).await;
        let mut rung = self.rung.clone();
        let _ = tokio::time::timeout(WATCH_EVERY.saturating_sub(WATCH_LEAST), rung.changed()).await;
    }
}

async fn listen(client: &Client, ring: &watch::Sender<u64>) -> Result<(), CliError> {
    let request = client.get(&["v1", "events"]).header("accept", "text/event-stream").endless();
    let mut stream = client.send(request).await?.bytes_stream();
    let mut reader = Reader::default();
    while let Some(Ok(chunk)) = stream.next().await {
        let events = reader.push(&chunk)?;
        if !events.is_empty() {
            ring.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Seen, cursor};
    use serde_json::json;

    #[test]
    fn a_watch_shows_what_changed_and_what_is_gone() {
        let mut seen = Seen::default();
        let steps = [
            (json!([{"id": "a1", "n": 1}, {"id": "a2", "n": 1}]), vec!["a1", "a2"], vec![]),
            (json!([{"id": "a1", "n": 1}, {"id": "a2", "n": 2}]), vec!["a2"], vec![]),
            (json!([{"id": "a2", "n": 2}]), vec![], vec!["a1"]),
            (json!([{"id": "a1", "n": 1}, {"id": "a2", "n": 2}]), vec!["a1"], vec![]),
        ];
        for (items, changed, gone) in steps {
            let found = seen.changes(&json!({"items": items}));
            let names: Vec<&str> = found.0.iter().filter_map(|item| item["id"].as_str()).collect();
            assert_eq!((names, found.1), (changed, gone.into_iter().map(str::to_owned).collect::<Vec<_>>()));
        }
    }

    #[test]
    fn cursors_are_texts_or_numbers() {
        for (list, expected) in [
            (json!({"next": "f1/t"}), Some("f1/t")),
            (json!({"next": 7}), Some("7")),
            (json!({"next": null}), None),
            (json!({}), None),
        ] {
            assert_eq!(cursor(&list).as_deref(), expected);
        }
    }
}
