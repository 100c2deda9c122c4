//! `tessera agent`: runs an agent until it is told to stop; `agent ls` and `agent inspect` show the
//! agents that the masters know.
//!
//! Invariants: a flag wins over the configuration file, which wins over what is found on the machine;
//! an unknown key in the file is refused. Must never contain decisions of an agent.

use crate::api::{Agent, Caches, Resources, read, read_items};
use crate::client::Client;
use crate::commands::framework::parse_pair;
use crate::commands::master::{bin_dir, shutdown_on_signals, start_logging, with_causes};
use crate::commands::upkeep::{self, AgentArg, DrainArgs, MaintenanceArgs};
use crate::connection::{default_dev_dir, token_path};
use crate::error::{CliError, Kind, io_error};
use crate::{Context, output};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tessera_agent::{AgentConfig, IdentityError, RunError};

/// Where a master listens for agents when nothing is said.
pub const DEFAULT_MASTER: &str = "127.0.0.1:5051";

/// Arguments of `tessera agent`.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  tessera agent --work-dir /var/lib/tessera/agent --master 127.0.0.1:5051\n  tessera agent --config /etc/tessera/agent.toml\n  tessera agent ls\n\nThe file has the names of the flags, with underscores:\n  work_dir = \"/var/lib/tessera/agent\"\n  mem_mib = 4096\n  attributes = { rack = \"r7\" }"
)]
pub struct AgentArgs {
    #[command(subcommand)]
    command: Option<AgentCommand>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// What to do with agents of the cluster.
#[derive(Debug, clap::Subcommand)]
pub enum AgentCommand {
    /// List agents
    Ls,
    /// Show everything about an agent
    Inspect {
        /// Its id, for example a1
        agent: String,
    },
    /// Place nothing new on an agent; what runs there goes on
    Deactivate(AgentArg),
    /// Put an agent to use again; a drain is called off
    Activate(AgentArg),
    /// Move schedulers away from an agent, ask for the end of its tasks, and kill what is left
    Drain(DrainArgs),
    /// End the tasks on an agent that the cluster does not know, because it was restored from a saved snapshot
    EndStrangers(AgentArg),
    /// Declare that an agent will not come back: its tasks are TASK_GONE_BY_OPERATOR
    Gone(AgentArg),
    /// Say when an agent will be worked on; schedulers are told
    Maintenance(MaintenanceArgs),
}

#[derive(Debug, clap::Args)]
struct SettingsArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of checkpoints, sandboxes and components; made if it is not there
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Where a master listens for agents [default: 127.0.0.1:5051]
    #[arg(long, value_name = "HOST:PORT")]
    master: Option<String>,
    /// Directory of tessera-shim and tessera-worker [default: that of this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// What it calls itself [default: the machine's name]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Thousandths of a core [default: those of this machine]
    #[arg(long, value_name = "MILLI")]
    cpus_milli: Option<i64>,
    /// MiB of memory [default: those of this machine, less a part for the system]
    #[arg(long, value_name = "MIB")]
    mem_mib: Option<i64>,
    /// MiB of that memory that are kept for schedulers and never offered [default: 5 %, at least 256]
    #[arg(long, value_name = "MIB")]
    scheduler_mem_mib: Option<i64>,
    /// MiB of disk [default: what is free below the work directory, less a part]
    #[arg(long, value_name = "MIB")]
    disk_mib: Option<i64>,
    /// A named value that schedulers see; may be repeated
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = parse_pair)]
    attributes: Vec<(String, String)>,
    /// User of native tasks that name none [default: one per framework when the agent is root, else
    /// its own]
    #[arg(long, value_name = "USER")]
    task_user: Option<String>,
    /// A user that tasks may name; may be repeated. With root, each such task owns this machine
    #[arg(long = "allow-task-user", value_name = "USER")]
    allow_task_users: Vec<String>,
    /// Seconds for which a worker is kept without anything to run [default: 60]
    #[arg(long, value_name = "SECONDS")]
    worker_idle_s: Option<u64>,
    /// First of the users that are set aside for workers, when the agent is root [default: the last
    /// numbers before 2147483648]
    #[arg(long, value_name = "UID")]
    worker_uid_first: Option<u32>,
    /// MiB that components and their images may take on disk; those in use always stay [default: 1024]
    #[arg(long, value_name = "MIB")]
    cache_mib: Option<u64>,
    /// Stop when standard input ends, that is when the supervisor does
    #[arg(long, hide = true)]
    supervised: bool,
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsFile {
    work_dir: Option<PathBuf>,
    master: Option<String>,
    token_file: Option<PathBuf>,
    bin_dir: Option<PathBuf>,
    hostname: Option<String>,
    cpus_milli: Option<i64>,
    mem_mib: Option<i64>,
    scheduler_mem_mib: Option<i64>,
    disk_mib: Option<i64>,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    task_user: Option<String>,
    #[serde(default)]
    allow_task_users: Vec<String>,
    worker_idle_s: Option<u64>,
    worker_uid_first: Option<u32>,
    cache_mib: Option<u64>,
}

/// Run it.
///
/// # Errors
/// When the agent cannot start or has to stop; for the subcommands when the cluster cannot be
/// reached.
pub async fn run(context: &Context, args: AgentArgs) -> Result<ExitCode, CliError> {
    match args.command {
        None => serve(context, args.settings).await?,
        Some(AgentCommand::Deactivate(arg)) => {
            upkeep::set_active(context, &context.client()?, &arg, false).await?;
        }
        Some(AgentCommand::Activate(arg)) => {
            upkeep::set_active(context, &context.client()?, &arg, true).await?;
        }
        Some(AgentCommand::Drain(args)) => {
            upkeep::drain(context, &context.client()?, &args).await?;
        }
        Some(AgentCommand::EndStrangers(arg)) => {
            upkeep::end_strangers(context, &context.client()?, &arg).await?;
        }
        Some(AgentCommand::Gone(arg)) => upkeep::gone(context, &context.client()?, &arg).await?,
        Some(AgentCommand::Maintenance(args)) => {
            upkeep::maintenance(context, &context.client()?, &args).await?;
        }
        Some(AgentCommand::Ls) => list(context, &context.client()?).await?,
        Some(AgentCommand::Inspect { agent }) => {
            let client = context.client()?;
            let value = client.json(client.get(&["v1", "agents", &agent])).await?;
            if context.is_json() {
                output::json(&value)?
            } else {
                inspect(&read(&value)?)?;
                // Only an agent that answers can say.
                let kept = client.json(client.get(&["v1", "agents", &agent, "caches"])).await;
                match kept.and_then(|value| read(&value)) {
                    Ok(kept) => caches(&kept)?,
                    Err(error) => output::note(&format!("what it keeps of components is not known: {}", error.message)),
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(context: &Context, args: SettingsArgs) -> Result<(), CliError> {
    start_logging();
    let supervised = args.supervised;
    let config = configure(args, context.connection.token_file.clone())?;
    let shutdown = shutdown_on_signals(supervised)?;
    tessera_agent::run(config, shutdown).await.map_err(|error| {
        let text = format!("the agent stopped: {}", with_causes(&error));
        CliError::new(kind(&error), text)
    })
}

fn kind(error: &RunError) -> Kind {
    match error {
        RunError::Config(_) => Kind::Usage,
        RunError::Identity(IdentityError::Locked(_) | IdentityError::Copied(_))
        | RunError::OtherCluster { .. }
        | RunError::Refused { .. } => Kind::Refused,
        _ => Kind::Failed,
    }
}

fn read_file(path: &Path) -> Result<SettingsFile, CliError> {
    let text = std::fs::read_to_string(path).map_err(|error| io_error("read", path, &error))?;
    toml::from_str(&text)
        .map_err(|error| CliError::new(Kind::Usage, format!("{}: {error}", path.display())))
}

fn configure(args: SettingsArgs, token_file: Option<PathBuf>) -> Result<AgentConfig, CliError> {
    let file = args
        .config
        .as_deref()
        .map(read_file)
        .transpose()?
        .unwrap_or_default();
    let work_dir = args.work_dir.or(file.work_dir).ok_or_else(|| {
        CliError::new(Kind::Usage, "an agent needs a work directory")
            .hint("--work-dir DIR, or work_dir in the file of --config")
    })?;
    let mut attributes = file.attributes;
    attributes.extend(args.attributes);
    Ok(AgentConfig {
        work_dir,
        master: args
            .master
            .or(file.master)
            .unwrap_or_else(|| DEFAULT_MASTER.to_owned()),
        token_file: token_file
            .or(file.token_file)
            .unwrap_or_else(|| token_path(&default_dev_dir())),
        bin_dir: bin_dir(args.bin_dir.or(file.bin_dir))?,
        hostname: args.hostname.or(file.hostname),
        cpus_milli: args.cpus_milli.or(file.cpus_milli),
        mem_mib: args.mem_mib.or(file.mem_mib),
        scheduler_mem_mib: args.scheduler_mem_mib.or(file.scheduler_mem_mib),
        disk_mib: args.disk_mib.or(file.disk_mib),
        attributes,
        task_user: args.task_user.or(file.task_user),
        allow_task_users: [args.allow_task_users, file.allow_task_users].concat(),
        worker_idle_s: args.worker_idle_s.or(file.worker_idle_s),
        worker_uid_first: args.worker_uid_first.or(file.worker_uid_first),
        cache_mib: args.cache_mib.or(file.cache_mib),
    })
}

async fn list(context: &Context, client: &Client) -> Result<(), CliError> {
    let list = client.json(client.get(&["v1", "agents"])).await?;
    if context.is_json() {
        return output::json(&list);
    }
    let now = output::now_ms();
    let rows = read_items::<Agent>(&list)?
        .into_iter()
        .map(|a| {
            let amounts = [&a.total, &a.used, &a.offered, &a.free].map(short);
            let age = output::age(a.registered_ms, now);
            let state = state(&a);
            let [total, used, offered, free] = amounts;
            vec![
                a.id,
                a.hostname,
                state,
                total,
                used,
                offered,
                free,
                a.tasks.to_string(),
                a.schedulers.to_string(),
                age,
            ]
        })
        .collect();
    let header = [
        "ID",
        "HOST",
        "STATE",
        "TOTAL",
        "USED",
        "OFFERED",
        "FREE",
        "TASKS",
        "SCHEDULERS",
        "AGE",
    ];
    output::table(&header, rows, "no agents; `tessera agent` runs one")
}

/// Amounts in a column: what is not there is told apart at a glance.
fn short(amounts: &Resources) -> String {
    if amounts.cpus_milli == 0 && amounts.mem_mib == 0 && amounts.disk_mib == 0 {
        return "-".to_owned();
    }
    output::resources(amounts)
}

/// What an agent is doing, with what is out of the ordinary about it.
fn state(a: &Agent) -> String {
    let mut text = a.state.clone();
    if a.mode != "active" && !a.mode.is_empty() {
        text += &format!(", {}", a.mode);
    }
    if a.expiry_held {
        text += ", silent with many others";
    }
    text
}

fn inspect(a: &Agent) -> Result<(), CliError> {
    let attributes: Vec<String> = a
        .attributes
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    output::fields(&[
        ("id", a.id.clone()),
        ("hostname", a.hostname.clone()),
        ("state", state(a)),
        ("total", output::resources(&a.total)),
        (
            "reserved",
            format!("{} (for schedulers)", output::resources(&a.reserved)),
        ),
        ("used", output::resources(&a.used)),
        ("offered", output::resources(&a.offered)),
        ("free", output::resources(&a.free)),
        ("attributes", attributes.join(", ")),
        ("tasks", a.tasks.to_string()),
        ("schedulers", a.schedulers.to_string()),
        ("standby for", a.standby_for.to_string()),
        ("compiled ahead", ahead(a)),
        ("compilations", a.compilations.map_or_else(String::new, |count| count.to_string())),
        ("version", a.version.clone()),
        ("engine", a.engine.clone()),
        ("registered", output::time(a.registered_ms)),
    ])?;
    if let Some(drain) = &a.drain {
        let over = if drain.over { " (over)" } else { "" };
        output::fields(&[("drain until", output::time(drain.deadline_ms) + over)])?;
    }
    if let Some(window) = &a.maintenance {
        let (start, end) = (output::time(window.start_ms), output::time(window.end_ms));
        output::fields(&[("maintenance", format!("{start} to {end}"))])?;
    }
    for stranger in &a.strangers {
        let took = output::resources(&stranger.resources);
        let text = format!("{}/{} ({took}): the restored state does not know it, and it goes on", stranger.framework, stranger.task);
        output::fields(&[("stranger", text)])?;
    }
    for missing in &a.missing {
        output::fields(&[("missing", format!("{}: {}", missing.name, missing.why))])?;
    }
    Ok(())
}

/// What it has compiled for schedulers of other agents.
fn ahead(a: &Agent) -> String {
    if a.ahead.is_empty() {
        return String::new();
    }
    let compiled = a.ahead.iter().filter(|ahead| ahead.state == "compiled").count();
    let failed = a.ahead.iter().filter_map(|ahead| Some((&ahead.component, ahead.error.as_ref()?)));
    let failed: String = failed.map(|(component, error)| format!("; not {component}: {error}")).collect();
    format!("{compiled} of {} components{failed}", a.ahead.len())
}

/// What an agent keeps of components.
fn caches(kept: &Caches) -> Result<(), CliError> {
    let used = kept.in_use.map_or_else(String::new, |used| format!("; {used} in use"));
    let days = kept.unused_kept_s / 86_400;
    output::fields(&[
        ("components", format!("{}, {}{used}", kept.components.count, output::bytes(kept.components.bytes))),
        ("images", format!("{}, {}", kept.images.count, output::bytes(kept.images.bytes))),
        ("kept", format!("at most {}, and {days} days without use", output::bytes(kept.bytes_max))),
    ])
}

#[cfg(test)]
mod tests {
    use super::SettingsFile;

    #[test]
    fn unknown_keys_are_refused() {
        let good = "work_dir = \"/w\"\nmem_mib = 64\nattributes = { rack = \"r7\" }\n";
        assert_eq!(
            toml::from_str::<SettingsFile>(good).unwrap().mem_mib,
            Some(64)
        );
        for bad in [
            "memory = 1\n",
            "mem_mib = \"many\"\n",
            "[attributes]\nrack = 7\n",
        ] {
            assert!(toml::from_str::<SettingsFile>(bad).is_err(), "{bad}");
        }
    }
}
