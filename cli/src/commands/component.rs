//! `tessera component`: add, list, inspect and fetch components. Removing them is in `component_end`.
//!
//! Invariants: a component is named by the digest of its bytes, computed here too, so that a
//! transfer that went wrong is noticed. Must never judge a component.

use crate::api::{Component, read};
use crate::client::{Client, Request};
use crate::commands::component_end::{self, PruneArgs, RmArgs, digest_of};
use crate::error::{CliError, Kind, io_error};
use crate::list::{self, List, WatchArgs};
use crate::output::{Column, col, text};
use crate::{Context, dry, output};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tessera_types::{Digest, LimitName};

/// How a source in a registry begins.
const OCI_SCHEME: &str = "oci://";

/// How long a pull and its judgement may take: as long as the master waits for both.
const PULL_TIMEOUT: Duration = Duration::from_secs(200);

/// Most bytes that any operator can allow; the master holds what this one does.
const COMPONENT_BYTES_MAX: u64 = LimitName::ComponentBytes.row().max;

/// What to do with components.
#[derive(Debug, clap::Subcommand)]
pub enum ComponentCommand {
    /// Add a component from a file or a registry; one that is known already is not stored twice
    #[command(
        visible_alias = "push",
        after_help = "Examples:\n  tessera component add wordcount.wasm\n  tessera component add wordcount.wasm --dry-run   # judged, and not kept\n  tessera component add oci://ghcr.io/example/wordcount:v1\n  tessera component add oci://127.0.0.1:5000/wordcount@sha256:0f3a… --plain-http\n\nA registry is asked by the master, and has to be one that its operator listed with --component-registry.\nA tag is resolved once: the component keeps the digest that it had then."
    )]
    Add {
        /// A .wasm file, or oci://HOST/REPOSITORY:TAG or @sha256:…
        #[arg(value_name = "FILE|oci://…")]
        source: String,
        /// Ask the registry without TLS; only for one on the master's machine
        #[arg(long)]
        plain_http: bool,
        /// Only have it judged, and say what would be added
        #[arg(long)]
        dry_run: bool,
    },
    /// List the components that the cluster has
    #[command(after_help = "Examples:\n  tessera component ls\n  tessera component ls --unused -o wide")]
    Ls {
        /// Only those that no framework, task or executor uses
        #[arg(long)]
        unused: bool,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Show what a component is, what it asks for, who uses it, and where it came from
    #[command(after_help = "Example:\n  tessera component inspect 0f3a")]
    Inspect {
        /// Its digest, or how it begins
        digest: String,
    },
    /// Remove components that nothing uses
    Rm(RmArgs),
    /// Remove schedulers that nothing uses, and with --all other components too
    Prune(PruneArgs),
    /// Fetch the bytes of a component
    #[command(after_help = "Example:\n  tessera component get sha256:0f3a… wordcount.wasm")]
    Get {
        /// Its digest, or how it begins
        digest: String,
        /// Where to write them
        file: PathBuf,
    },
}

/// A component on the command line of what runs it.
#[derive(Clone, Debug, clap::Args)]
pub struct ComponentArg {
    /// Digest of a component, or a file, which is uploaded, or oci://…
    #[arg(value_name = "COMPONENT|FILE", required_unless_present = "component")]
    positional: Option<String>,
    /// The same as a flag
    #[arg(long, value_name = "DIGEST|FILE", conflicts_with = "positional")]
    component: Option<String>,
}

impl ComponentArg {
    /// What was named.
    pub fn named(&self) -> &str {
        // One of them is required.
        self.component.as_deref().or(self.positional.as_deref()).unwrap_or_default()
    }
}

/// Run it.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn run(context: &Context, command: ComponentCommand) -> Result<ExitCode, CliError> {
    let client = context.client()?;
    match command {
        ComponentCommand::Add { source, plain_http, dry_run } => {
            let request = if source.starts_with(OCI_SCHEME) {
                pull(&client, &source, plain_http)
            } else if plain_http {
                let text = "--plain-http is for oci:// only";
                return Err(CliError::new(Kind::Usage, text));
            } else {
                upload(&client, Path::new(&source))?
            };
            match dry_run {
                true => dry::rehearse(context, &client, request).await?,
                false => added(context, &source, &client.json(request).await?)?,
            }
        }
        ComponentCommand::Ls { unused, watch } => {
            let keep = |item: &Value| !unused || item.get("uses").and_then(Value::as_u64) == Some(0);
            let empty = match unused {
                true => "no component is unused",
                false => "no components; `tessera component add FILE` adds one",
            };
            let list = List { columns: &COLUMNS, row: &row, keep: &keep, empty };
            list::show(context, &client, client.get(&["v1", "components"]), &list, watch).await?;
        }
        ComponentCommand::Rm(args) => component_end::remove(context, &client, &args).await?,
        ComponentCommand::Prune(args) => component_end::prune(context, &client, &args).await?,
        ComponentCommand::Inspect { digest } => {
            let digest = digest_of(&client, &digest).await?;
            let value = client
                .json(client.get(&["v1", "components", &digest]))
                .await?;
            if context.is_data() {
                output::document(&value)?;
            } else {
                inspect(&read(&value)?)?;
            }
        }
        ComponentCommand::Get { digest, file } => {
            let digest = digest_of(&client, &digest).await?;
            fetch(&client, &digest, &file).await?;
            if context.is_data() {
                output::document(&json!({"digest": digest, "file": file}))?;
            } else {
                output::line(&format!("{}", file.display()))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn added(context: &Context, source: &str, value: &Value) -> Result<(), CliError> {
    if context.is_data() {
        return output::document(value);
    }
    let component: Component = read(value)?;
    let what = match (component.created, &component.componentized_from) {
        (false, _) => "was there already",
        (true, None) => "added",
        (true, Some(_)) => "made into a component and added",
    };
    output::note(&format!(
        "{source} ({}, {}) {what}",
        component.world,
        output::bytes(component.size)
    ));
    if let Some(source) = &component.source {
        output::note(&output::clean(source));
    }
    output::line(&component.digest)
}

const COLUMNS: [Column; 6] = [col("DIGEST"), col("WORLD"), col("SIZE"), col("USES"), text("SOURCE"), col("AGE")];

/// Hexadecimal digits that a table shows of a digest: enough to name one of 10,000 components.
const DIGITS_SHOWN: usize = 16;

/// How a digest begins, which is what commands take; the whole with `-o wide`.
fn short(digest: &str) -> String {
    match output::settings().wide() {
        true => digest.to_owned(),
        false => digest.chars().take("sha256:".len() + DIGITS_SHOWN).collect(),
    }
}

fn row(value: &Value, now: u64) -> Result<Vec<String>, CliError> {
    let c: Component = read(value)?;
    Ok(vec![
        short(&c.digest),
        c.world,
        output::bytes(c.size),
        c.uses.to_string(),
        c.source.unwrap_or_default(),
        output::age(c.uploaded_ms, now),
    ])
}

fn inspect(c: &Component) -> Result<(), CliError> {
    let state = c.state.as_ref().map_or_else(String::new, |state| {
        let reads: Vec<String> = state.reads.iter().map(ToString::to_string).collect();
        let reads = if reads.is_empty() {
            "no other".to_owned()
        } else {
            reads.join(", ")
        };
        let migrates = if state.migrates { ", migrates" } else { "" };
        format!("writes version {}, reads {reads}{migrates}", state.writes)
    });
    let mut fields = vec![
        ("digest", c.digest.clone()),
        ("world", c.world.clone()),
        ("size", output::bytes(c.size)),
        ("state", state),
        (
            "source",
            c.source.clone().unwrap_or_else(|| "uploaded".to_owned()),
        ),
        ("added", output::time(c.uploaded_ms)),
        ("by", c.uploaded_by.clone()),
    ];
    fields.extend(component_end::uses_of(c));
    output::fields(&fields)?;
    let Some(Value::Object(report)) = &c.report else {
        return Ok(());
    };
    for (name, value) in report {
        // Told above, in the component's own fields.
        if ["writes_state", "reads_state", "migrates"].contains(&name.as_str()) {
            continue;
        }
        let name = name.replace('_', " ");
        match value {
            Value::Array(items) if items.is_empty() => {}
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    let name = if at == 0 { name.as_str() } else { "" };
                    output::line(&output::clean(&format!("{name:<22} {}", told(item))))?;
                }
            }
            Value::Null => {}
            _ => output::line(&output::clean(&format!("{name:<22} {}", told(value))))?,
        }
    }
    Ok(())
}

/// A value of a report in one line.
fn told(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(grant) if grant.contains_key("granted") => {
            let text = |name: &str| grant.get(name).and_then(Value::as_str).unwrap_or_default();
            let given = match grant.get("granted") {
                Some(Value::Bool(true)) => "given",
                _ => "not given",
            };
            format!("{} {given}: {}", text("interface"), text("what"))
        }
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| format!("{name} {}", told(value)));
            fields.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

/// Fetch a component into a file; what is not of its digest is not kept.
///
/// # Errors
/// When it is not there, or the file cannot be written.
pub async fn fetch(client: &Client, digest: &str, file: &Path) -> Result<(), CliError> {
    let named: Digest = digest
        .parse()
        .map_err(|error: tessera_types::DigestError| {
            CliError::new(Kind::Usage, error.to_string())
        })?;
    // Beside its place, so that a file which was there is replaced by a whole one or not at all.
    let dir = match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut partial =
        tempfile::NamedTempFile::new_in(dir).map_err(|error| io_error("write in", dir, &error))?;
    let request = client.get(&["v1", "components", digest, "content"]);
    client.save(request, partial.as_file_mut()).await?;
    let mut bytes = Vec::new();
    File::open(partial.path())
        .and_then(|mut open| open.read_to_end(&mut bytes))
        .map_err(|error| io_error("read", partial.path(), &error))?;
    let found = Digest::of(&bytes);
    if found != named {
        let text = format!("what came has the digest {found}, not {named}");
        return Err(CliError::failed(text));
    }
    partial
        .as_file_mut()
        .flush()
        .map_err(|error| io_error("write", file, &error))?;
    partial
        .persist(file)
        .map(drop)
        .map_err(|error| io_error("write", file, &error.error))
}

fn pull(client: &Client, source: &str, plain_http: bool) -> Request {
    client
        .post(&["v1", "components"])
        .json(json!({"source": source, "plain_http": plain_http}))
        .within(PULL_TIMEOUT)
        .repeatable()
}

/// Upload a file; the answer of the master.
///
/// # Errors
/// When it cannot be read, is too large, or is refused.
pub async fn push(client: &Client, file: &Path) -> Result<Value, CliError> {
    client.json(upload(client, file)?).await
}

fn upload(client: &Client, file: &Path) -> Result<Request, CliError> {
    // The length that a file has says nothing of what a device or a pipe would give.
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|open| open.take(COMPONENT_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| io_error("read", file, &error))?;
    if bytes.len() as u64 > COMPONENT_BYTES_MAX {
        return Err(CliError::new(
            Kind::Refused,
            format!(
                "{} has more than {}, which is what a component has at most",
                file.display(),
                output::bytes(COMPONENT_BYTES_MAX)
            ),
        )
        .hint("build in release mode and strip it: opt-level = \"s\", strip = true"));
    }
    let digest = Digest::of(&bytes).to_string();
    Ok(client
        .post(&["v1", "components"])
        .query("digest", digest)
        .bytes(bytes)
        .progress(format!("uploading {}", file.display()))
        .within(PULL_TIMEOUT)
        .repeatable())
}

/// Rehearse what needs a component. Masters rehearse it with what they have only: what has to be added for it is removed
/// again, whatever they say.
///
/// # Errors
/// When it is no component, or it or the request would be refused.
pub async fn rehearse_with(
    context: &Context,
    client: &Client,
    component: &str,
    request: impl FnOnce(&str) -> Request,
) -> Result<(), CliError> {
    let path = Path::new(component);
    let added = if component.starts_with(OCI_SCHEME) {
        Some(client.json(pull(client, component, false)).await?)
    } else if component.parse::<Digest>().is_err() && path.is_file() {
        Some(push(client, path).await?)
    } else {
        None
    };
    let Some(added) = added else {
        let digest = resolve(client, component).await?;
        return dry::rehearse(context, client, request(&digest)).await;
    };
    let added: Component = read(&added)?;
    let said = dry::rehearse(context, client, request(&added.digest)).await;
    if added.created {
        match client.json(client.delete(&["v1", "components", &added.digest])).await {
            Ok(_) => output::note(&format!("{component} was uploaded for this, and is removed again")),
            // Somebody uses it by now, or nobody answers.
            Err(error) => output::note(&format!("{component} was uploaded for this, and stays: {}", error.message)),
        }
    }
    said
}

/// The digest that is meant: a digest as it is, or that of a file or of an artifact in a registry, which
/// is added.
///
/// # Errors
/// When it is none of these, or adding fails.
pub async fn resolve(client: &Client, component: &str) -> Result<String, CliError> {
    if component.parse::<Digest>().is_ok() {
        return Ok(component.to_owned());
    }
    if component.starts_with(OCI_SCHEME) {
        let pulled: Component = read(&client.json(pull(client, component, false)).await?)?;
        return Ok(pulled.digest);
    }
    let path = Path::new(component);
    if !path.is_file() {
        // How a digest begins; what cannot be one is told below.
        match digest_of(client, component).await {
            Err(error) if error.kind == Kind::Usage => {}
            found => return found,
        }
        return Err(CliError::new(
            Kind::Usage,
            format!("{component:?} is neither a digest (sha256:…) nor oci://… nor a file"),
        )
        .hint("`tessera component ls` lists the digests that the cluster has"));
    }
    let pushed: Component = read(&push(client, path).await?)?;
    Ok(pushed.digest)
}

#[cfg(test)]
mod tests {
    use super::told;
    use serde_json::json;

    #[test]
    fn reports_are_told_in_words() {
        for (value, text) in [
            (json!("a"), "a"),
            (json!(7), "7"),
            (json!({"a": 1, "b": "c"}), "a 1, b c"),
            (
                json!({"interface": "i", "granted": true, "what": "w"}),
                "i given: w",
            ),
            (
                json!({"interface": "i", "granted": false, "what": "w"}),
                "i not given: w",
            ),
        ] {
            assert_eq!(told(&value), text);
        }
    }
}
