//! `tessera framework`: create, list, inspect, remove, and read the scheduler's log. What changes a
//! framework that runs is in `lifecycle`, its recordings in `replay`, its executors in `executor`.
//!
//! Must never decide whether a change is possible.

use crate::api::{Framework, read, read_items};
use crate::client::Client;
use crate::commands::{component, executor, lifecycle, replay, state};
use crate::error::{CliError, Kind};
use crate::follow::{Pace, Patience, Tail};
use crate::{Context, output};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use tessera_types::parse_duration;

/// What to do with frameworks.
#[derive(Debug, clap::Subcommand)]
pub enum FrameworkCommand {
    /// Create a framework from a component; the cluster starts its scheduler
    #[command(
        after_help = "Examples:\n  tessera framework create words --component wordcount.wasm --config pace-ms=100\n  tessera framework create words --component sha256:0f3a… --role eng/search"
    )]
    Create {
        /// Its name: a-z 0-9 -
        name: String,
        /// Digest of a component, or a file, which is uploaded
        #[arg(long, value_name = "DIGEST|FILE")]
        component: String,
        /// Whose share of the cluster it uses
        #[arg(long, default_value = "default")]
        role: String,
        /// An entry of its configuration; may be repeated
        #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
        config: Vec<(String, String)>,
        #[command(flatten)]
        unreachable: UnreachableArgs,
    },
    /// List frameworks
    Ls,
    /// Show everything about a framework
    Inspect {
        /// Name or id
        framework: String,
    },
    /// Show the log of a framework's scheduler
    Logs {
        /// Wait for more
        #[arg(short, long)]
        follow: bool,
        /// Name or id
        framework: String,
    },
    /// Remove a framework: its tasks are killed, its state is deleted
    Rm {
        /// Name or id
        framework: String,
    },
    /// Change the component of a framework; its state and its tasks stay
    Upgrade(lifecycle::UpgradeArgs),
    /// Go back to an earlier component; while an upgrade is not final, give it up
    Rollback(lifecycle::RollbackArgs),
    /// Show or change the configuration of a framework; its scheduler is told
    #[command(subcommand)]
    Config(lifecycle::ConfigCommand),
    /// Start a quarantined scheduler again
    Release {
        /// Name or id
        framework: String,
    },
    /// Read and write keys of a framework's state
    #[command(subcommand)]
    State(state::StateCommand),
    /// List custom executors and their children
    Executors(executor::ExecutorsArgs),
    /// Show what a child of an executor wrote
    ChildLogs(executor::ChildLogsArgs),
    /// List what was recorded of a scheduler's instances
    Recordings(replay::RecordingsArgs),
    /// Run a recording again on this machine, and say where it goes another way
    Replay(replay::ReplayArgs),
}

/// What becomes of tasks whose agent does not answer.
#[derive(Debug, clap::Args)]
pub struct UnreachableArgs {
    /// Tasks whose agent does not answer are to be replaced after so long, or `never`, which is what holds
    /// for a new framework
    #[arg(long, value_name = "TIME", value_parser = parse_wait)]
    replace_unreachable_after: Option<Wait>,
    /// Which copy stays when the agent of the first one returns after that
    #[arg(long, value_name = "COPY", value_enum, default_value = "last", requires = "replace_unreachable_after")]
    keep: Keep,
}

/// Which copy of a task stays.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Keep {
    /// The first one goes on, and its scheduler chooses
    First,
    /// The first one is stopped
    Last,
}

/// For how long something is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Endless,
    Ms(u64),
}

/// Reads a duration of at least a millisecond, or `never`.
fn parse_wait(text: &str) -> Result<Wait, String> {
    match text {
        "never" => Ok(Wait::Endless),
        text => match parse_duration(text)? {
            0 => Err("at least 1ms, or `never`".to_owned()),
            ms => Ok(Wait::Ms(ms)),
        },
    }
}

impl UnreachableArgs {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.replace_unreachable_after.is_none()
    }

    /// As the API takes it.
    pub fn document(&self) -> Value {
        match self.replace_unreachable_after {
            None => Value::Null,
            Some(Wait::Endless) => json!({"replace_after_ms": null}),
            Some(Wait::Ms(ms)) => {
                let keep = match self.keep {
                    Keep::First => "first",
                    Keep::Last => "last",
                };
                json!({"replace_after_ms": ms, "keep": keep})
            }
        }
    }
}

/// Reads `KEY=VALUE`.
pub fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is expected".to_owned()),
    }
}

/// Run it.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn run(context: &Context, command: FrameworkCommand) -> Result<ExitCode, CliError> {
    let client = context.client()?;
    match command {
        FrameworkCommand::Create {
            name,
            component,
            role,
            config,
            unreachable,
        } => {
            let digest = component::resolve(&client, &component).await?;
            let document = json!({
                "name": name,
                "role": role,
                "component": digest,
                "config": pairs(config)?,
                "unreachable": unreachable.document(),
            });
            let value = create(&client, document).await?;
            if context.is_json() {
                output::json(&value)?;
            } else {
                let framework: Framework = read(&value)?;
                output::line(&format!(
                    "{} ({}) is {}",
                    framework.name, framework.id, framework.state
                ))?;
            }
        }
        FrameworkCommand::Ls => list(context, &client).await?,
        FrameworkCommand::Inspect { framework } => {
            let value = client
                .json(client.get(&["v1", "frameworks", &framework]))
                .await?;
            if context.is_json() {
                output::json(&value)?
            } else {
                inspect(&read(&value)?)?
            }
        }
        FrameworkCommand::Logs { follow, framework } => logs(&client, &framework, follow).await?,
        FrameworkCommand::Rm { framework } => {
            let response = client
                .send(client.delete(&["v1", "frameworks", &framework]))
                .await?;
            let body = client.body(response).await?;
            match serde_json::from_slice(&body) {
                Ok(value) if context.is_json() => output::json(&value)?,
                _ if context.is_json() => output::json(&json!({}))?,
                _ => output::line(&format!("{framework} is being removed"))?,
            }
        }
        FrameworkCommand::Upgrade(args) => lifecycle::upgrade(context, &client, args).await?,
        FrameworkCommand::Rollback(args) => lifecycle::roll_back(context, &client, args).await?,
        FrameworkCommand::Config(command) => lifecycle::config(context, &client, command).await?,
        FrameworkCommand::Release { framework } => {
            lifecycle::release(context, &client, &framework).await?;
        }
        FrameworkCommand::State(command) => state::run(context, &client, command).await?,
        FrameworkCommand::Executors(args) => executor::executors(context, &client, &args).await?,
        FrameworkCommand::ChildLogs(args) => executor::child_logs(&client, &args).await?,
        FrameworkCommand::Recordings(args) => replay::recordings(context, &client, &args).await?,
        FrameworkCommand::Replay(args) => replay::replay(context, &client, args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn pairs(config: Vec<(String, String)>) -> Result<BTreeMap<String, String>, CliError> {
    let mut map = BTreeMap::new();
    for (key, value) in config {
        if map.insert(key.clone(), value).is_some() {
            return Err(CliError::new(
                Kind::Usage,
                format!("--config {key} is given twice"),
            ));
        }
    }
    Ok(map)
}

/// Create a framework; the answer of the master. An identical one that is there is no error.
///
/// # Errors
/// When it is refused.
pub async fn create(client: &Client, document: Value) -> Result<Value, CliError> {
    client
        .json(
            client
                .post(&["v1", "frameworks"])
                .json(document)
                .repeatable(),
        )
        .await
}

async fn list(context: &Context, client: &Client) -> Result<(), CliError> {
    let list = client.json(client.get(&["v1", "frameworks"])).await?;
    if context.is_json() {
        return output::json(&list);
    }
    let now = output::now_ms();
    let rows = read_items::<Framework>(&list)?
        .into_iter()
        .map(|f| {
            let live: u64 = f
                .tasks
                .iter()
                .filter(|(state, _)| !crate::api::is_terminal(state))
                .map(|(_, count)| count)
                .sum();
            let agent = f.agent.unwrap_or_default();
            let age = output::age(f.created_ms, now);
            vec![
                f.id,
                f.name,
                f.role,
                f.state,
                agent,
                live.to_string(),
                f.turns.to_string(),
                age,
                f.why.join("; "),
            ]
        })
        .collect();
    let header = [
        "ID", "NAME", "ROLE", "STATE", "AGENT", "TASKS", "TURNS", "AGE", "WHY",
    ];
    output::table(
        &header,
        rows,
        "no frameworks; `tessera framework create` makes one",
    )
}

fn inspect(f: &Framework) -> Result<(), CliError> {
    let list = |map: Vec<String>| map.join(", ");
    let config = f.config.iter().map(|(key, value)| format!("{key}={value}"));
    let tasks = f
        .tasks
        .iter()
        .map(|(state, count)| format!("{count} {state}"));
    let size = output::bytes(f.state_bytes);
    output::fields(&[
        ("id", f.id.clone()),
        ("name", f.name.clone()),
        ("role", f.role.clone()),
        ("state", f.state.clone()),
        ("why", f.why.join("; ")),
        ("component", f.component.clone()),
        ("config", list(config.collect())),
        (
            "config is",
            lifecycle::config_state(f.config_version, f.config_seen),
        ),
        ("agent", f.agent.clone().unwrap_or_default()),
        ("standby", standby(f)),
        ("epoch", f.epoch.to_string()),
        ("turns", f.turns.to_string()),
        (
            "offers",
            if f.suppressed { "suppressed" } else { "wanted" }.to_owned(),
        ),
        (
            "data",
            format!(
                "{size} in {} keys of version {}, {} timers",
                f.state_keys, f.state_version, f.timers
            ),
        ),
        ("tasks", list(tasks.collect())),
        ("last error", f.last_error.clone().unwrap_or_default()),
        ("created", output::time(f.created_ms)),
    ])?;
    if let Some(quarantine) = &f.quarantine {
        output::fields(&lifecycle::quarantine(quarantine))?;
    } else if f.failures.in_a_row > 0 {
        let text = format!("{} in a row", f.failures.in_a_row);
        output::fields(&[("failures", text)])?;
    }
    if f.versions.len() > 1 {
        output::line("")?;
        lifecycle::versions(&f.versions)?;
    }
    Ok(())
}

/// Where its scheduler would go, and whether it could start there at once.
fn standby(f: &Framework) -> String {
    let Some(standby) = &f.standby else {
        return match f.agent {
            Some(_) => "none: no other agent has room for it".to_owned(),
            None => String::new(),
        };
    };
    let state = match (standby.state.as_str(), &standby.error) {
        ("waiting", _) => "to be compiled there".to_owned(),
        ("unknown", _) => "it has not said whether it is compiled".to_owned(),
        (_, Some(error)) => format!("not compiled there: {error}"),
        (state, None) => state.to_owned(),
    };
    format!("{} ({state})", standby.agent)
}

async fn logs(client: &Client, framework: &str, follow: bool) -> Result<(), CliError> {
    // Tells an unknown framework from one that has not logged yet.
    client
        .json(client.get(&["v1", "frameworks", framework]))
        .await?;
    let mut tail = Tail::new(&["v1", "frameworks", framework, "log"]);
    let (mut pace, mut patience) = (Pace::default(), Patience::default());
    loop {
        let chunk = match follow {
            true => patience.judge(tail.next(client).await)?.unwrap_or_default(),
            false => tail.next(client).await?,
        };
        output::write(&chunk)?;
        if chunk.is_empty() {
            if !follow {
                return Ok(());
            }
            pace.wait(false).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{pairs, parse_pair};

    #[test]
    fn configuration_is_read_and_names_are_given_once() {
        assert_eq!(parse_pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_pair("a="), Ok(("a".into(), String::new())));
        assert!(parse_pair("a").is_err() && parse_pair("=b").is_err());
        let twice = vec![("a".into(), "1".into()), ("a".into(), "2".into())];
        assert!(pairs(twice).is_err());
    }
}
