//! `tessera agent deactivate`, `activate`, `drain`, `end-strangers`, `gone` and `maintenance`: taking agents
//! out of use.
//!
//! Must never decide what may be taken out of use.

use crate::api::{Agent, read};
use crate::client::Client;
use crate::error::{CliError, Kind};
use crate::wait::{Step, Waiting, YesArgs, parse_seconds, until};
use crate::{Context, dry, names, output};
use serde_json::{Value, json};
use std::time::Duration;
use tessera_types::parse_duration;

/// After the deadline of a drain killed tasks may still take their grace time, and agents their time to tell.
const AFTER_DEADLINE: Duration = Duration::from_secs(300);

/// An agent of the cluster.
#[derive(Debug, clap::Args)]
pub struct AgentArg {
    /// Its id, for example a1, or its host's name, or how that begins
    agent: String,
    /// Only say what would happen
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    yes: YesArgs,
}

/// How an agent is emptied.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera agent drain a1 --dry-run\n  tessera agent drain a1 --deadline 30m --wait"
)]
pub struct DrainArgs {
    /// Its id, for example a1, or its host's name, or how that begins
    agent: String,
    /// What is still there then is killed, with its grace time
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10m")]
    deadline: u64,
    /// Only say what would have to go
    #[arg(long)]
    dry_run: bool,
    /// Wait until it is empty
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// Wait so long [default: the deadline and five minutes]
    #[arg(long, value_name = "TIME", value_parser = parse_seconds, requires = "wait")]
    timeout: Option<u64>,
    #[command(flatten)]
    yes: YesArgs,
}

/// When an agent will be worked on.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera agent maintenance a1 --in 2h --for 30m --dry-run\n  tessera agent maintenance a1 --cancel"
)]
pub struct MaintenanceArgs {
    /// Its id, for example a1, or its host's name, or how that begins
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
    /// Only say what would be announced
    #[arg(long)]
    dry_run: bool,
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
    let id = names::agent(client, &arg.agent, names::Say::All).await?;
    let request = client.post(&["v1", "agents", &id, verb]);
    if arg.dry_run {
        return dry::rehearse(context, client, request).await;
    }
    tell(context, &client.json(request).await?)
}

/// Have everything leave an agent.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn drain(context: &Context, client: &Client, args: &DrainArgs) -> Result<(), CliError> {
    let id = names::agent(client, &args.agent, names::Say::All).await?;
    let request = client.post(&["v1", "agents", &id, "drain"]).json(json!({"within_ms": args.deadline}));
    if args.dry_run {
        return dry::rehearse(context, client, request).await;
    }
    let seconds = args.deadline / 1_000;
    args.yes.confirm(&format!("{id} is emptied; what is left after {seconds} s is killed."))?;
    let mut value = client.json(request).await?;
    if args.wait {
        let within = match args.timeout {
            Some(seconds) => Duration::from_secs(seconds),
            None => Duration::from_millis(args.deadline) + AFTER_DEADLINE,
        };
        let waiting = Waiting {
            what: format!("{id} is empty"),
            go_on: format!("tessera agent inspect {id} --watch"),
            within,
        };
        value = until(waiting, async || {
            let value = client.json(client.get(&["v1", "agents", &id])).await?;
            let agent: Agent = read(&value)?;
            Ok(match (agent.mode.as_str(), agent.tasks, agent.schedulers) {
                ("drained", ..) => Step::Done(value),
                ("draining", tasks, schedulers) => {
                    Step::Going(format!("{tasks} tasks and {schedulers} schedulers are left"))
                }
                (mode, ..) => {
                    let text = format!("the drain of {id} was called off: it is {mode}");
                    return Err(CliError::new(Kind::Refused, text));
                }
            })
        })
        .await?;
    }
    tell(context, &value)
}

/// Have the tasks on an agent end that the restored state does not know.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn end_strangers(context: &Context, client: &Client, arg: &AgentArg) -> Result<(), CliError> {
    let id = names::agent(client, &arg.agent, names::Say::All).await?;
    let request = client.post(&["v1", "agents", &id, "end-strangers"]);
    if arg.dry_run {
        return dry::rehearse(context, client, request).await;
    }
    arg.yes.confirm(&format!("Tasks on {id} that the cluster does not know are ended."))?;
    let value = client.json(request).await?;
    if context.is_data() {
        return output::document(&value);
    }
    output::line(&format!("{id} ends what the cluster does not know; see `tessera agent inspect {id}`"))
}

/// Give an agent up for good.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn gone(context: &Context, client: &Client, arg: &AgentArg) -> Result<(), CliError> {
    let id = names::agent(client, &arg.agent, names::Say::All).await?;
    let request = client.post(&["v1", "agents", &id, "gone"]);
    if arg.dry_run {
        return dry::rehearse(context, client, request).await;
    }
    arg.yes.confirm(&format!("{id} is given up for good: its tasks are TASK_GONE_BY_OPERATOR, and others may run in their place."))?;
    let value = client.json(request).await?;
    if context.is_data() {
        return output::document(&value);
    }
    output::line(&format!("{id} is gone"))
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
    let id = names::agent(client, &args.agent, names::Say::All).await?;
    let segments = ["v1", "agents", &id, "maintenance"];
    let request = match args.takes {
        _ if args.cancel => client.delete(&segments),
        None => return Err(CliError::new(Kind::Usage, "--for TIME or --cancel is needed")),
        Some(takes) => {
            let start = output::now_ms().saturating_add(args.begins_in);
            let window = json!({"start_ms": start, "end_ms": start.saturating_add(takes)});
            client.post(&segments).json(window)
        }
    };
    if args.dry_run {
        return dry::rehearse(context, client, request).await;
    }
    tell(context, &client.json(request).await?)
}

fn tell(context: &Context, value: &Value) -> Result<(), CliError> {
    if context.is_data() {
        return output::document(value);
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
