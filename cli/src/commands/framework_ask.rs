//! `tessera framework ask`: a request to a framework's own HTTP API, and its answer.
//!
//! Must never interpret either.

use crate::client::Client;
use crate::error::{CliError, Kind};
use crate::{Context, names, output};
use serde_json::Value;

/// Arguments of `tessera framework ask`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera framework ask hello\n  tessera framework ask words '/counts?top=10'\n  tessera framework ask run /tasks --json '{\"shell\":\"date\"}'"
)]
pub struct AskArgs {
    /// Name or id
    framework: String,
    /// What to ask for, with a query if there is one
    #[arg(default_value = "/")]
    path: String,
    /// GET, POST, PUT, PATCH or DELETE [default: GET, and POST with --json]
    #[arg(short = 'X', long)]
    method: Option<String>,
    /// Send this JSON
    #[arg(long, value_name = "JSON")]
    json: Option<String>,
}

/// Ask, and show the answer.
///
/// # Errors
/// When the scheduler refuses, or the cluster.
pub async fn run(context: &Context, client: &Client, args: &AskArgs) -> Result<(), CliError> {
    let usage = |text: String| CliError::new(Kind::Usage, text);
    let framework = names::framework(client, &args.framework, names::Say::Enough).await?;
    let (path, query) = args.path.split_once('?').unwrap_or((&args.path, ""));
    let mut segments = vec!["frameworks", framework.as_str()];
    segments.extend(path.split('/').filter(|part| !part.is_empty()));
    if segments.len() == 2 {
        // What the scheduler knows as `/`.
        segments.push("");
    }
    let method = args.method.as_deref().unwrap_or(if args.json.is_some() { "POST" } else { "GET" });
    let mut request = match method.to_ascii_uppercase().as_str() {
        "GET" => client.get(&segments),
        "POST" => client.post(&segments),
        "PUT" => client.put(&segments),
        "PATCH" => client.patch(&segments),
        "DELETE" => client.delete(&segments),
        other => return Err(usage(format!("--method {other}: GET, POST, PUT, PATCH or DELETE"))),
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        request = request.query(name, value);
    }
    if let Some(text) = &args.json {
        let value: Value = serde_json::from_str(text).map_err(|error| usage(format!("--json: {error}")))?;
        request = request.json(value);
    }
    let answer = client.send(request).await.map_err(|error| match error.status {
        // The cluster was reached; its scheduler could not answer.
        Some(502) => CliError { kind: Kind::Failed, ..error },
        _ => error,
    })?;
    let body = client.body(answer).await?;
    if context.is_data()
        && let Ok(value) = serde_json::from_slice(&body)
    {
        return output::document(&value);
    }
    output::write(&body)?;
    match body.last() {
        None | Some(b'\n') => Ok(()),
        Some(_) => output::write(b"\n"),
    }
}
