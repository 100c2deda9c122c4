//! `tessera agent deactivate`, `activate`, `drain`, `end-strangers`, `gone` and `maintenance`: taking agents
//! out of use.
//!
//! Must never decide what may be taken out of use.

use crate::api::{Agent, read};
use crate::client::Client;
use crate::error::{CliError, Kind};
use crate::{Context, output};
use serde_json::{Value, json};
use tessera_types::parse_duration;

/// An agent of the cluster.
#[derive(Debug, clap::Args)]
pub struct AgentArg {
    /// Its id, for example a1
    agent: String,
}

/// How an agent is emptied.
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// Its id, for example a1
    agent: String,
    /// What is still there then is killed, with its grace time
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10m")]
    deadline: u64,
}

/// When an agent will be worked on.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera agent maintenance a1 --in 2h --for 30m\n  tessera agent maintenance a1 --cancel"
)]
pub struct MaintenanceArgs {
    /// Its id, for example a1
    agent: String,
    /// It begins so long from now
    #[arg(long = "in", value_name = "TIME", value_parser = parse_duration, default_value = "0s")]
    begins_in: u64,
    /// It takes so long
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration, required_unless_present = "cancel")]
    takes: Option<u64>,
    /// There will be none
    #[arg(long, conflicts_with_all = ["begins_in", "takes"])]
    cancel: bool,
}

/// Place nothing new on an agent, or do so again.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn set_active(
    context: &Context,
    client: &Client,
    arg: &AgentArg,
    active: bool,
) -> Result<(), CliError> {
    let verb = if active { "activate" } else { "deactivate" };
    let request = client.post(&["v1", "agents", &arg.agent, verb]);
    tell(context, &client.json(request).await?)
}

/// Have everything leave an agent.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn drain(context: &Context, client: &Client, args: &DrainArgs) -> Result<(), CliError> {
    let request = client.post(&["v1", "agents", &args.agent, "drain"]);
    let request = request.json(json!({"within_ms": args.deadline}));
    tell(context, &client.json(request).await?)
}

/// Have the tasks on an agent end that the restored state does not know.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn end_strangers(context: &Context, client: &Client, arg: &AgentArg) -> Result<(), CliError> {
    let request = client.post(&["v1", "agents", &arg.agent, "end-strangers"]);
    let value = client.json(request).await?;
    if context.is_json() {
        return output::json(&value);
    }
    output::line(&format!("{} ends what the cluster does not know; see `tessera agent inspect {}`", arg.agent, arg.agent))
}

/// Give an agent up for good.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn gone(context: &Context, client: &Client, arg: &AgentArg) -> Result<(), CliError> {
    let request = client.post(&["v1", "agents", &arg.agent, "gone"]);
    let value = client.json(request).await?;
    if context.is_json() {
        return output::json(&value);
    }
    output::line(&format!("{} is gone", arg.agent))
}

/// Announce maintenance, or call it off.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn maintenance(
    context: &Context,
    client: &Client,
    args: &MaintenanceArgs,
) -> Result<(), CliError> {
    let segments = ["v1", "agents", &args.agent, "maintenance"];
    let request = match args.takes {
        _ if args.cancel => client.delete(&segments),
        None => return Err(CliError::new(Kind::Usage, "--for TIME or --cancel is needed")),
        Some(takes) => {
            let start = output::now_ms().saturating_add(args.begins_in);
            let window = json!({"start_ms": start, "end_ms": start.saturating_add(takes)});
            client.post(&segments).json(window)
        }
    };
    tell(context, &client.json(request).await?)
}

fn tell(context: &Context, value: &Value) -> Result<(), CliError> {
    if context.is_json() {
        return output::json(value);
    }
    let agent: Agent = read(value)?;
    let mut text = format!("{} is {}", agent.id, agent.mode);
    if let Some(drain) = &agent.drain {
        text += &format!("; what is left at {} is killed", output::time(drain.deadline_ms));
    }
    if let Some(window) = &agent.maintenance {
        let (start, end) = (output::time(window.start_ms), output::time(window.end_ms));
        text += &format!("; maintenance from {start} to {end}");
    }
    output::line(&text)
}
