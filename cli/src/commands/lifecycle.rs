//! `tessera framework upgrade`, `rollback`, `config` and `release`: changing a framework that runs.
//!
//! Must never decide whether a change is possible; waiting ends with what the master says of the version.

use crate::api::{Config, Framework, Quarantine, Version, read};
use crate::client::{Client, Request};
use crate::commands::component;
use crate::commands::framework::{UnreachableArgs, parse_pair};
use crate::error::{CliError, Kind};
use crate::output::{col, text, wide};
use crate::wait::{Step, Waiting, parse_seconds, until};
use crate::{Context, dry, names, output};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// How often a change of single values is tried again when somebody else changes them meanwhile.
const CONFIG_ATTEMPTS: usize = 5;

/// How long an upgrade may take with `--wait` when nothing is said.
pub const WAIT_SECONDS: u64 = 300;

/// Arguments of `tessera framework upgrade`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera framework upgrade words wordcount.wasm --wait\n  tessera framework upgrade words sha256:0f3a…\n\nThe new component must read the state of the old one. It is on trial until its first turn that launches,\nanswers or consumes something; if it fails before, the old one is back with the old state."
)]
pub struct UpgradeArgs {
    /// Name or id
    framework: String,
    #[command(flatten)]
    component: component::ComponentArg,
    /// Only say whether it could be upgraded
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Arguments of `tessera framework rollback`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera framework rollback words\n  tessera framework rollback words 3 --wait"
)]
pub struct RollbackArgs {
    /// Name or id
    framework: String,
    /// Version of its history, as `inspect` shows it [default: the one before]
    #[arg(value_name = "VERSION")]
    number: Option<u64>,
    /// The same as a flag
    #[arg(long, visible_alias = "version", value_name = "VERSION", conflicts_with = "number")]
    to: Option<u64>,
    /// Only say what it would go back to
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Whether to wait until a version is final.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct WaitArgs {
    /// Wait until the change is final; ends with exit code 4 when it was given up, 7 when the time is over
    #[arg(long)]
    wait: bool,
    /// Wait so long
    #[arg(long, value_name = "TIME", value_parser = parse_seconds, default_value_t = WAIT_SECONDS, requires = "wait")]
    timeout: u64,
}

/// What to do with a configuration.
#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Show the configuration
    #[command(after_help = "Example:\n  tessera framework config get words")]
    Get {
        /// Name or id
        framework: String,
    },
    /// Set some values; the others stay
    #[command(
        after_help = "Examples:\n  tessera framework config set words pace-ms=50\n  tessera framework config set words pace-ms=50 --unset wasm-task\n  tessera framework config set words --replace a=1 b=2"
    )]
    Set {
        /// Name or id
        framework: String,
        /// Values to set
        #[arg(value_name = "KEY=VALUE", value_parser = parse_pair)]
        values: Vec<(String, String)>,
        /// A value to remove; may be repeated
        #[arg(long, value_name = "KEY", conflicts_with = "replace")]
        unset: Vec<String>,
        /// Remove everything that is not named
        #[arg(long)]
        replace: bool,
        /// Only check it
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        unreachable: UnreachableArgs,
    },
}

async fn get(client: &Client, framework: &str) -> Result<Value, CliError> {
    client
        .json(client.get(&["v1", "frameworks", framework]))
        .await
}

/// Change the component.
///
/// # Errors
/// When it is refused, or with `--wait` given up or not final in time.
pub async fn upgrade(
    context: &Context,
    client: &Client,
    args: UpgradeArgs,
) -> Result<(), CliError> {
    let framework = names::framework(client, &args.framework, names::Say::All).await?;
    let request = |digest: &str| {
        let request = client.post(&["v1", "frameworks", &framework, "upgrade"]);
        request.json(json!({"component": digest}))
    };
    if args.dry_run {
        return component::rehearse_with(context, client, args.component.named(), request).await;
    }
    let digest = component::resolve(client, args.component.named()).await?;
    change(context, client, &framework, request(&digest), args.wait).await
}

/// Go back to an earlier component.
///
/// # Errors
/// As [`upgrade`].
pub async fn roll_back(
    context: &Context,
    client: &Client,
    args: RollbackArgs,
) -> Result<(), CliError> {
    let document = args
        .number
        .or(args.to)
        .map_or_else(|| json!({}), |version| json!({"version": version}));
    let framework = names::framework(client, &args.framework, names::Say::All).await?;
    let request = client
        .post(&["v1", "frameworks", &framework, "rollback"])
        .json(document);
    if args.dry_run {
        return dry::rehearse(context, client, request).await;
    }
    change(context, client, &framework, request, args.wait).await
}

async fn change(
    context: &Context,
    client: &Client,
    name: &str,
    request: Request,
    wait: WaitArgs,
) -> Result<(), CliError> {
    let mut value = client.json(request).await?;
    let framework: Framework = read(&value)?;
    let version = value
        .get("version")
        .and_then(Value::as_u64)
        .unwrap_or_default();
    if wait.wait {
        value = wait_until_final(client, &framework.id, version, wait.timeout).await?;
    }
    if context.is_data() {
        return output::document(&value);
    }
    let shown: Framework = read(&value)?;
    let found = shown.versions.iter().find(|found| found.version == version);
    let outcome = found.map_or("unknown", |found| found.outcome.as_str());
    output::line(&format!(
        "{name} is {}, version {version} is {outcome}",
        shown.state
    ))
}

async fn wait_until_final(
    client: &Client,
    framework: &str,
    version: u64,
    seconds: u64,
) -> Result<Value, CliError> {
    let waiting = Waiting {
        what: format!("version {version} is final"),
        go_on: format!("tessera framework inspect {framework} --watch"),
        within: Duration::from_secs(seconds),
    };
    until(waiting, async || {
        let value = get(client, framework).await?;
        let now: Framework = read(&value)?;
        let found = now.versions.iter().find(|found| found.version == version);
        match found.map(|found| found.outcome.as_str()) {
            Some(outcome @ ("trial" | "migrating")) => {
                Ok(Step::Going(format!("it is {outcome}, {} is {}", now.name, now.state)))
            }
            Some("running" | "replaced") => Ok(Step::Done(value)),
            Some(failed) => {
                let text = format!("version {version} was given up: {failed}");
                Err(CliError::new(Kind::Refused, text)
                    .hint("the component and the state of before are in force; `tessera framework replay` shows what it did"))
            }
            None => {
                let text = format!("version {version} is no longer in the history");
                Err(CliError::failed(text))
            }
        }
    })
    .await
}

/// Start a quarantined scheduler again.
///
/// # Errors
/// When it is refused.
pub async fn release(context: &Context, client: &Client, framework: &str, dry_run: bool) -> Result<(), CliError> {
    let request = client
        .post(&["v1", "frameworks", framework, "release"])
        .repeatable();
    if dry_run {
        return dry::rehearse(context, client, request).await;
    }
    let value = client.json(request).await?;
    if context.is_data() {
        return output::document(&value);
    }
    let shown: Framework = read(&value)?;
    output::line(&format!("{framework} is {}", shown.state))
}

/// Show or change the configuration.
///
/// # Errors
/// When it is refused, or others keep changing it.
pub async fn config(
    context: &Context,
    client: &Client,
    command: ConfigCommand,
) -> Result<(), CliError> {
    let value = match command {
        ConfigCommand::Get { framework } => {
            get_config(client, &names::framework(client, &framework, names::Say::Enough).await?).await?
        }
        ConfigCommand::Set {
            framework,
            values,
            unset,
            replace,
            dry_run,
            unreachable,
        } => {
            if values.is_empty() && unset.is_empty() && !replace && unreachable.is_empty() {
                return Err(CliError::new(
                    Kind::Usage,
                    "nothing to set: name KEY=VALUE or --unset KEY",
                ));
            }
            let change = ConfigChange {
                values,
                unset,
                replace,
                unreachable: unreachable.document(),
            };
            let framework = names::framework(client, &framework, names::Say::All).await?;
            if dry_run {
                let request = config_request(client, &framework, &change).await?;
                return dry::rehearse(context, client, request).await;
            }
            set_config(client, &framework, &change).await?
        }
    };
    if context.is_data() {
        return output::document(&value);
    }
    let shown: Config = read(&value)?;
    for (key, value) in &shown.config {
        output::line(&output::clean(&format!("{key}={value}")))?;
    }
    output::note(&config_state(shown.config_version, shown.config_seen));
    Ok(())
}

async fn get_config(client: &Client, framework: &str) -> Result<Value, CliError> {
    client
        .json(client.get(&["v1", "frameworks", framework, "config"]))
        .await
}

/// What is to become of a configuration.
struct ConfigChange {
    values: Vec<(String, String)>,
    unset: Vec<String>,
    replace: bool,
    unreachable: Value,
}

async fn set_config(
    client: &Client,
    framework: &str,
    change: &ConfigChange,
) -> Result<Value, CliError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let request = config_request(client, framework, change).await?;
        match client.json(request).await {
            Err(error) if error.status == Some(409) && attempts < CONFIG_ATTEMPTS => {}
            result => return result,
        }
    }
}

/// The whole configuration as it is to be, if nobody else changes it meanwhile.
async fn config_request(client: &Client, framework: &str, change: &ConfigChange) -> Result<Request, CliError> {
    let current: Config = read(&get_config(client, framework).await?)?;
    let mut config = if change.replace { BTreeMap::new() } else { current.config };
    config.extend(change.values.iter().cloned());
    config.retain(|key, _| !change.unset.contains(key));
    let document = json!({
        "config": config,
        "expected_version": current.config_version,
        "unreachable": change.unreachable,
    });
    Ok(client.put(&["v1", "frameworks", framework, "config"]).json(document))
}

/// What the scheduler knows of its configuration.
pub fn config_state(version: u64, seen: u64) -> String {
    match version {
        0 => String::new(),
        _ if seen >= version => format!("version {version}, seen by the scheduler"),
        _ => format!("version {version}, the scheduler has seen version {seen}"),
    }
}

/// Why a scheduler is kept from running, and the way out.
pub fn quarantine(quarantine: &Quarantine) -> [(&'static str, String); 5] {
    let limit = quarantine
        .limit
        .as_ref()
        .map_or_else(String::new, |limit| format!(" (limit {limit})"));
    let reason = quarantine.reason.clone().unwrap_or_default();
    let message = quarantine.message.clone().unwrap_or_default();
    [
        ("quarantined", output::time(quarantine.since_ms)),
        ("rule", quarantine.rule.clone()),
        ("last failure", format!("{reason}{limit}: {message}")),
        ("in turn", quarantine.turn.to_string()),
        ("release with", quarantine.release.clone()),
    ]
}

/// The components that a framework has run.
///
/// # Errors
/// When stdout cannot be written to.
pub fn versions(versions: &[Version]) -> Result<(), CliError> {
    let now = output::now_ms();
    let rows = versions
        .iter()
        .map(|v| {
            vec![
                v.version.to_string(),
                v.component.clone(),
                v.writes_state.to_string(),
                v.how.clone(),
                if v.by.is_empty() {
                    "the cluster".to_owned()
                } else {
                    v.by.clone()
                },
                v.outcome.clone(),
                output::age(v.since_ms, now),
            ]
        })
        .collect();
    let columns = [col("VERSION"), text("COMPONENT"), wide("FORM"), col("HOW"), col("BY"), text("OUTCOME"), col("AGE")];
    output::table(&columns, rows, "no versions")
}

#[cfg(test)]
mod tests {
    use super::config_state;

    #[test]
    fn a_configuration_that_was_not_seen_says_so() {
        assert_eq!(config_state(0, 0), "");
        assert_eq!(config_state(2, 2), "version 2, seen by the scheduler");
        assert_eq!(
            config_state(3, 2),
            "version 3, the scheduler has seen version 2"
        );
    }
}
