//! `tessera framework state`: the keys of a framework's state, read and written from outside of its scheduler.
//!
//! Must never change a value on its way: what is read is written out byte for byte.

use crate::api::{StateKey, read_items};
use crate::client::{Client, Request};
use crate::error::{CliError, Kind};
use crate::output::{col, text};
use crate::wait::YesArgs;
use crate::{Context, dry, names, output};
use serde_json::json;
use std::io::Read as _;

/// Keys that are asked for at once.
const PAGE: usize = 1_000;

/// What to do with a framework's state.
#[derive(Debug, clap::Subcommand)]
pub enum StateCommand {
    /// List keys, in byte order
    #[command(after_help = "Examples:\n  tessera framework state ls words\n  tessera framework state ls words --prefix job/")]
    Ls {
        /// Name or id
        framework: String,
        /// Only keys that begin so
        #[arg(long, value_name = "TEXT")]
        prefix: Option<String>,
    },
    /// Write the value of a key to stdout, byte for byte
    #[command(after_help = "Example:\n  tessera framework state get words table > table.bin")]
    Get {
        /// Name or id
        framework: String,
        /// The key
        key: String,
    },
    /// Write a key; the scheduler is told, and a turn that writes the key after this one wins
    #[command(
        after_help = "Examples:\n  tessera framework state put words pace 50\n  tessera framework state put words table --file table.bin\n  tessera framework state put words pace 60 --if-tag '\"0f3a…\"'   # only if nobody else wrote it meanwhile"
    )]
    Put(PutArgs),
    /// Delete keys; one that is not there is no error
    #[command(after_help = "Examples:\n  tessera framework state rm words job/7 --dry-run\n  tessera framework state rm words job/7 job/8 --yes")]
    Rm {
        /// Name or id
        framework: String,
        /// Which
        #[arg(required = true)]
        keys: Vec<String>,
        /// Only say what would be deleted
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        yes: YesArgs,
    },
}

/// Arguments of `tessera framework state put`.
#[derive(Debug, clap::Args)]
pub struct PutArgs {
    /// Name or id
    framework: String,
    /// The key, 1 to 255 bytes
    key: String,
    /// The value
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    value: Option<String>,
    /// The value is what stands in this file; `-` is stdin
    #[arg(long, value_name = "FILE")]
    file: Option<String>,
    /// Only if the key has no value yet
    #[arg(long, conflicts_with = "if_tag")]
    if_absent: bool,
    /// Only if the key still has the value with this tag, as `ls` shows it
    #[arg(long, value_name = "TAG")]
    if_tag: Option<String>,
    /// Only say what would be written
    #[arg(long)]
    dry_run: bool,
}

/// Run it.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn run(context: &Context, client: &Client, command: StateCommand) -> Result<(), CliError> {
    match command {
        StateCommand::Ls { framework, prefix } => {
            let framework = names::framework(client, &framework, names::Say::Enough).await?;
            list(context, client, &framework, prefix).await
        }
        StateCommand::Get { framework, key } => {
            let framework = names::framework(client, &framework, names::Say::Enough).await?;
            get(context, client, &framework, &key).await
        }
        StateCommand::Put(mut args) => {
            args.framework = names::framework(client, &args.framework, names::Say::All).await?;
            put(context, client, args).await
        }
        StateCommand::Rm { framework, keys, dry_run, yes } => {
            let framework = names::framework(client, &framework, names::Say::All).await?;
            if dry_run {
                let requests = keys.iter().map(|key| Ok(client.delete(&path(&framework, key)?)));
                return dry::rehearse_all(context, client, requests.collect::<Result<_, CliError>>()?).await;
            }
            yes.confirm(&format!("{} keys of the state of {framework} are deleted.", keys.len()))?;
            for key in &keys {
                client.send(client.delete(&path(&framework, key)?)).await?;
            }
            if context.is_data() { output::document(&json!({})) } else { Ok(()) }
        }
    }
}

/// The path of a key. A part that is `.` or `..` would be taken for a step.
fn path<'a>(framework: &'a str, key: &'a str) -> Result<[&'a str; 5], CliError> {
    if matches!(key, "" | "." | "..") {
        return Err(CliError::new(Kind::Usage, format!("{key:?} cannot be a key here")));
    }
    Ok(["v1", "frameworks", framework, "state", key])
}

async fn list(
    context: &Context,
    client: &Client,
    framework: &str,
    prefix: Option<String>,
) -> Result<(), CliError> {
    let mut items: Vec<serde_json::Value> = Vec::new();
    let mut keys: Vec<StateKey> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let mut request = client.get(&["v1", "frameworks", framework, "state"]).query("limit", PAGE);
        if let Some(prefix) = &prefix {
            request = request.query("prefix", prefix);
        }
        if let Some(after) = &after {
            request = request.query("after", after);
        }
        let page = client.json(request).await?;
        keys.extend(read_items::<StateKey>(&page)?);
        items.extend(page["items"].as_array().cloned().unwrap_or_default());
        after = page["next"].as_str().map(str::to_owned);
        if after.is_none() {
            break;
        }
    }
    if context.is_data() {
        return output::document(&json!({ "items": items }));
    }
    let rows = keys.into_iter().map(|key| vec![key.key, output::bytes(key.bytes), key.etag]);
    output::table(&[text("KEY"), col("SIZE"), col("TAG")], rows.collect(), "no keys")
}

async fn get(context: &Context, client: &Client, framework: &str, key: &str) -> Result<(), CliError> {
    let response = client.send(client.get(&path(framework, key)?)).await?;
    let tag = response.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(str::to_owned);
    let value = client.body(response).await?;
    if !context.is_data() {
        return output::write(&value);
    }
    let text = std::str::from_utf8(&value).map_err(|_| {
        CliError::failed(format!("the value of {key:?} is no text")).hint("leave out -o json: it is written byte for byte")
    })?;
    output::document(&json!({ "key": key, "etag": tag, "bytes": value.len(), "value": text }))
}

fn read_file(name: &str) -> Result<Vec<u8>, CliError> {
    let read = match name {
        "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
        }
        name => std::fs::read(name),
    };
    read.map_err(|error| CliError::new(Kind::Usage, format!("cannot read {name}: {error}")))
}

async fn put(context: &Context, client: &Client, args: PutArgs) -> Result<(), CliError> {
    let value = match (&args.value, &args.file) {
        (_, Some(file)) => read_file(file)?,
        (value, None) => value.clone().unwrap_or_default().into_bytes(),
    };
    let request = conditions(client.put(&path(&args.framework, &args.key)?).bytes(value), &args);
    if args.dry_run {
        return dry::rehearse(context, client, request).await;
    }
    let response = client.send(request).await?;
    let tag = response.headers().get("etag").and_then(|tag| tag.to_str().ok()).unwrap_or_default();
    if context.is_data() { output::document(&json!({ "key": args.key, "etag": tag })) } else { Ok(()) }
}

fn conditions(request: Request, args: &PutArgs) -> Request {
    match &args.if_tag {
        Some(tag) => request.header("if-match", tag),
        None if args.if_absent => request.header("if-none-match", "*"),
        None => request,
    }
}
