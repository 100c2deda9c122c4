//! `tessera component`: upload and list components.
//!
//! Invariants: a component is named by the digest of its bytes, computed here too, so that a
//! transfer that went wrong is noticed. Must never judge a component.

use crate::api::{Component, read, read_items};
use crate::client::Client;
use crate::error::{CliError, Kind, io_error};
use crate::{Context, output};
use serde_json::Value;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tessera_types::{Digest, limits};

/// What to do with components.
#[derive(Debug, clap::Subcommand)]
pub enum ComponentCommand {
    /// Upload a component; one that is known already is not stored twice
    #[command(after_help = "Example:\n  tessera component push wordcount.wasm")]
    Push {
        /// The component, a .wasm file
        file: PathBuf,
    },
    /// List the components that the cluster has
    Ls,
}

/// Run it.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn run(context: &Context, command: ComponentCommand) -> Result<ExitCode, CliError> {
    let client = context.client()?;
    match command {
        ComponentCommand::Push { file } => {
            let value = push(&client, &file).await?;
            if context.is_json() {
                output::json(&value)?;
            } else {
                let component: Component = read(&value)?;
                let what = if component.created {
                    "uploaded"
                } else {
                    "was there already"
                };
                output::note(&format!(
                    "{} ({}, {}) {what}",
                    file.display(),
                    component.world,
                    output::bytes(component.size)
                ));
                output::line(&component.digest)?;
            }
        }
        ComponentCommand::Ls => {
            let list = client.json(client.get(&["v1", "components"])).await?;
            if context.is_json() {
                output::json(&list)?;
            } else {
                let now = output::now_ms();
                let rows = read_items::<Component>(&list)?
                    .into_iter()
                    .map(|c| {
                        vec![
                            c.digest,
                            c.world,
                            output::bytes(c.size),
                            output::age(c.uploaded_ms, now),
                        ]
                    })
                    .collect();
                output::table(
                    &["DIGEST", "WORLD", "SIZE", "AGE"],
                    rows,
                    "no components; `tessera component push FILE` uploads one",
                )?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Upload a file; the answer of the master.
///
/// # Errors
/// When it cannot be read, is too large, or is refused.
pub async fn push(client: &Client, file: &Path) -> Result<Value, CliError> {
    // The length that a file has says nothing of what a device or a pipe would give.
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|open| {
            open.take(limits::COMPONENT_BYTES_MAX + 1)
                .read_to_end(&mut bytes)
        })
        .map_err(|error| io_error("read", file, &error))?;
    if bytes.len() as u64 > limits::COMPONENT_BYTES_MAX {
        return Err(CliError::new(
            Kind::Refused,
            format!(
                "{} has more than {}, which is what a component has at most",
                file.display(),
                output::bytes(limits::COMPONENT_BYTES_MAX)
            ),
        )
        .hint("build in release mode and strip it: opt-level = \"s\", strip = true"));
    }
    let digest = Digest::of(&bytes).to_string();
    let request = client
        .post(&["v1", "components"])
        .query("digest", digest)
        .bytes(bytes)
        .repeatable();
    client.json(request).await
}

/// The digest that is meant: a digest as it is, or that of a file, which is uploaded.
///
/// # Errors
/// When it is neither, or the upload fails.
pub async fn resolve(client: &Client, component: &str) -> Result<String, CliError> {
    if component.parse::<Digest>().is_ok() {
        return Ok(component.to_owned());
    }
    let path = Path::new(component);
    if !path.is_file() {
        return Err(CliError::new(
            Kind::Usage,
            format!("{component:?} is neither a digest (sha256:…) nor a file"),
        )
        .hint("`tessera component ls` lists the digests that the cluster has"));
    }
    let pushed: Component = read(&push(client, path).await?)?;
    Ok(pushed.digest)
}
