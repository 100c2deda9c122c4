//! `tessera audit`: who did what, as the master that is asked wrote it down.
//!
//! Must never judge what was done.

use crate::api::{AuditEntry, read};
use crate::error::CliError;
use crate::output::{Column, col, text, wide};
use crate::{Context, names, output};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Entries of one page of a master.
const PAGE: usize = 1_000;
/// Pages that are read at most: a master's file is bounded.
const PAGES_MAX: usize = 1_000;

/// Arguments of `tessera audit`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera audit --last 20\n  tessera audit --principal admin -o json\n\nEach master writes down what it was asked to change. Name the one that is meant with --address."
)]
pub struct AuditArgs {
    /// Only what this principal did
    #[arg(long, value_name = "PRINCIPAL")]
    principal: Option<String>,
    /// Only after the entry with this cursor
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// Only the newest so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    last: usize,
}

const COLUMNS: [Column; 9] = [
    col("TIME"),
    col("PRINCIPAL"),
    wide("REMOTE"),
    wide("METHOD"),
    text("OPERATION"),
    text("OBJECT"),
    wide("STATUS"),
    col("OUTCOME"),
    wide("REQUEST"),
];

/// Run it.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn run(context: &Context, args: AuditArgs) -> Result<ExitCode, CliError> {
    let client = context.client()?;
    let mut after = args.after;
    let mut items: Vec<Value> = Vec::new();
    for _ in 0..PAGES_MAX {
        let mut request = client.get(&["v1", "audit"]).query("limit", PAGE);
        if let Some(principal) = &args.principal {
            request = request.query("principal", principal);
        }
        if let Some(after) = &after {
            request = request.query("after", after);
        }
        let page = names::known(client.json(request).await, "/v1/audit")?;
        items.extend(page["items"].as_array().cloned().unwrap_or_default());
        // Only the newest ones are shown, and so only those are kept.
        let over = items.len().saturating_sub(args.last);
        items.drain(..over);
        after = match &page["next"] {
            Value::String(next) => Some(next.clone()),
            Value::Number(next) => Some(next.to_string()),
            _ => break,
        };
    }
    let list = json!({ "items": items });
    if context.is_data() {
        output::document(&list)?;
    } else {
        let rows = items.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        output::table(&COLUMNS, rows, "nothing was changed as far as this master remembers")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(value: &Value) -> Result<Vec<String>, CliError> {
    let entry: AuditEntry = read(value)?;
    let dry = if entry.dry_run { " (dry run)" } else { "" };
    let times = match value["times"].as_u64() {
        Some(times) if times > 1 => format!(" {times} times"),
        _ => String::new(),
    };
    Ok(vec![
        output::time(entry.at_ms),
        entry.principal,
        entry.remote,
        entry.method,
        entry.operation,
        entry.object,
        entry.status.to_string(),
        format!("{}{}{times}{dry}", entry.outcome, entry.code.map_or_else(String::new, |code| format!(" {code}"))),
        entry.request_id,
    ])
}
