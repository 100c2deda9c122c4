//! `tessera agent`: runs an agent until it is told to stop; `agent ls` and `agent inspect` show the
//! agents that the masters know.
//!
//! Invariants: a flag wins over the configuration file, which wins over what is found on the machine;
//! an unknown key in the file is refused. Must never contain decisions of an agent.

use crate::api::{Agent, Caches, Resources, read};
use crate::commands::framework::parse_pair;
use crate::commands::logging::LoggingArgs;
use crate::commands::master::{bin_dir, shutdown_on_signals, with_causes};
use crate::commands::upkeep::{self, AgentArg, DrainArgs, MaintenanceArgs};
use crate::connection::{default_dev_dir, token_path};
use crate::error::{CliError, Kind, io_error};
use crate::list::{self, List, WatchArgs};
use crate::output::{Column, col, text, wide};
use crate::{Context, names, output};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tessera_agent::{AgentConfig, Collector, IdentityError, RunError};

/// Where a master listens for agents when nothing is said.
pub const DEFAULT_MASTER: &str = "127.0.0.1:5051";

/// Arguments of `tessera agent`.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  tessera agent --work-dir /var/lib/tessera/agent --master 127.0.0.1:5051\n  tessera agent --config /etc/tessera/agent.toml\n  tessera agent ls\n\nThe file has the names of the flags, with underscores:\n  work_dir = \"/var/lib/tessera/agent\"\n  mem_mib = 4096\n  attributes = { rack = \"r7\" }\n  resources = { gpus = 2 }\n  zone = \"eu-1a\""
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
    #[command(after_help = "Examples:\n  tessera agent ls\n  tessera agent ls -o wide -w")]
    Ls {
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Show everything about an agent
    #[command(after_help = "Examples:\n  tessera agent inspect a1\n  tessera agent inspect worker-7.example -w")]
    Inspect {
        /// Its id, for example a1, or its host's name, or how that begins
        agent: String,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Place nothing new on an agent; what runs there goes on
    #[command(after_help = "Examples:\n  tessera agent deactivate a1\n  tessera agent deactivate a1 --dry-run")]
    Deactivate(AgentArg),
    /// Put an agent to use again; a drain is called off
    #[command(after_help = "Examples:\n  tessera agent activate a1\n  tessera agent activate a1 --dry-run")]
    Activate(AgentArg),
    /// Move schedulers away from an agent, ask for the end of its tasks, and kill what is left
    Drain(DrainArgs),
    /// End the tasks on an agent that the cluster does not know, because it was restored from a saved snapshot
    #[command(after_help = "Examples:\n  tessera agent end-strangers a1 --dry-run\n  tessera agent end-strangers a1 --yes")]
    EndStrangers(AgentArg),
    /// Declare that an agent will not come back: its tasks are TASK_GONE_BY_OPERATOR
    #[command(after_help = "Examples:\n  tessera agent gone a1 --dry-run\n  tessera agent gone a1 --yes")]
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
    /// So much of another resource that tasks may ask for, counted and not enforced; may be repeated
    #[arg(long = "resource", value_name = "NAME=AMOUNT", value_parser = parse_pair)]
    resources: Vec<(String, String)>,
    /// The region that it is in: its attribute `region`
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// The zone of its region that it is in: its attribute `zone`
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
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
    /// Where metrics are served, to whoever has the token [default: nowhere]
    #[arg(long, value_name = "IP:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// Where spans of traces go that masters begin: a collector that takes OTLP over HTTP [default: nowhere]
    #[arg(long, value_name = "http://HOST:PORT")]
    otlp_endpoint: Option<Collector>,
    /// Serve metrics beyond loopback although nothing is encrypted
    #[arg(long)]
    insecure_listen_without_tls: bool,
    #[command(flatten)]
    logging: LoggingArgs,
    /// Stop when standard input ends, that is when the supervisor does
    #[arg(long, hide = true)]
    supervised: bool,
}

impl AgentArgs {
    /// Whether an agent is run.
    pub fn is_server(&self) -> bool {
        self.command.is_none()
    }
}

/// Check a file of settings.
///
/// # Errors
/// When it cannot be read, or something in it is wrong.
pub fn check_file(path: &Path) -> Result<(), CliError> {
    read_file(path).map(drop)
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
    #[serde(default)]
    resources: BTreeMap<String, Amount>,
    region: Option<String>,
    zone: Option<String>,
    task_user: Option<String>,
    #[serde(default)]
    allow_task_users: Vec<String>,
    worker_idle_s: Option<u64>,
    worker_uid_first: Option<u32>,
    cache_mib: Option<u64>,
    metrics_listen: Option<SocketAddr>,
    #[serde(default, deserialize_with = "collector")]
    otlp_endpoint: Option<Collector>,
    #[serde(default)]
    insecure_listen_without_tls: bool,
}

fn collector<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Collector>, D::Error> {
    String::deserialize(from)?.parse().map(Some).map_err(serde::de::Error::custom)
}

/// An amount in the file: `2`, `0.5`, or a text that is one.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Amount {
    Whole(u64),
    Decimal(f64),
    Text(String),
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(number) => number.fmt(f),
            Self::Decimal(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
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
        Some(AgentCommand::Ls { watch }) => {
            let client = context.client()?;
            let list = List { columns: &COLUMNS, row: &row, keep: &|_| true, empty: "no agents; `tessera agent` runs one" };
            list::show(context, &client, client.get(&["v1", "agents"]), &list, watch).await?;
        }
        Some(AgentCommand::Inspect { agent, watch }) => {
            let client = context.client()?;
            let agent = names::agent(&client, &agent, names::Say::Enough).await?;
            let request = client.get(&["v1", "agents", &agent]);
            list::show_one(context, &client, request, watch, async |value| {
                inspect(&read(value)?)?;
                // Only an agent that answers can say.
                let kept = client.json(client.get(&["v1", "agents", &agent, "caches"])).await;
                match kept.and_then(|value| read(&value)) {
                    Ok(kept) => caches(&kept)?,
                    Err(error) => output::note(&format!("what it keeps of components is not known: {}", error.message)),
                }
                Ok(())
            })
            .await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(context: &Context, args: SettingsArgs) -> Result<(), CliError> {
    args.logging.start("tessera-agent")?;
    let supervised = args.supervised;
    let config = configure(args, context.connection.token_file())?;
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
    let places = [("region", args.region.or(file.region)), ("zone", args.zone.or(file.zone))];
    attributes.extend(places.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    let mut resources: BTreeMap<String, String> =
        file.resources.into_iter().map(|(name, amount)| (name, amount.to_string())).collect();
    resources.extend(args.resources);
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
        resources,
        task_user: args.task_user.or(file.task_user),
        allow_task_users: [args.allow_task_users, file.allow_task_users].concat(),
        worker_idle_s: args.worker_idle_s.or(file.worker_idle_s),
        worker_uid_first: args.worker_uid_first.or(file.worker_uid_first),
        cache_mib: args.cache_mib.or(file.cache_mib),
        metrics_listen: args.metrics_listen.or(file.metrics_listen),
        otlp_endpoint: args.otlp_endpoint.or(file.otlp_endpoint),
        insecure_listen: args.insecure_listen_without_tls || file.insecure_listen_without_tls,
    })
}

const COLUMNS: [Column; 12] = [
    col("ID"),
    text("HOST"),
    col("STATE"),
    col("CPUS"),
    col("MEM"),
    wide("TOTAL"),
    wide("OFFERED"),
    wide("FREE"),
    col("TASKS"),
    wide("SCHEDULERS"),
    wide("VERSION"),
    col("AGE"),
];

fn row(value: &Value, now: u64) -> Result<Vec<String>, CliError> {
    let a: Agent = read(value)?;
    let [total, offered, free] = [&a.total, &a.offered, &a.free].map(short);
    // What is used of all: the rest stands in wide columns.
    let cpus = format!("{}/{}", output::cpus(a.used.cpus_milli), output::cpus(a.total.cpus_milli));
    let mem = format!("{}/{}", a.used.mem_mib, a.total.mem_mib);
    let state = state(&a);
    Ok(vec![
        a.id,
        a.hostname,
        state,
        cpus,
        mem,
        total,
        offered,
        free,
        a.tasks.to_string(),
        a.schedulers.to_string(),
        a.version,
        output::age(a.registered_ms, now),
    ])
}

/// Amounts in a column: what is not there is told apart at a glance.
fn short(amounts: &Resources) -> String {
    if amounts.cpus_milli == 0 && amounts.mem_mib == 0 && amounts.disk_mib == 0 && amounts.items.is_empty() {
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
        ("revocable", output::revocable(&a.revocable)),
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
        let named = "resources = { gpus = 2, fpga = 0.5, licences = \"3\" }\nzone = \"a\"\n";
        let named = toml::from_str::<SettingsFile>(named).unwrap();
        let amounts: Vec<String> = named.resources.values().map(ToString::to_string).collect();
        assert_eq!((amounts.join(" "), named.zone.as_deref()), ("0.5 2 3".to_owned(), Some("a")));
        for bad in [
            "resources = { gpus = true }\n",
            "memory = 1\n",
            "mem_mib = \"many\"\n",
            "[attributes]\nrack = 7\n",
        ] {
            assert!(toml::from_str::<SettingsFile>(bad).is_err(), "{bad}");
        }
    }
}
