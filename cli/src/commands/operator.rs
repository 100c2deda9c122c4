//! `tessera operator`: making a cluster, and looking after its masters.
//!
//! Must never decide what is sensible: the masters refuse what is not.

use crate::client::{Client, Request};
use crate::commands::master::{bin_dir, kind, with_causes};
use crate::error::{CliError, Kind, io_error};
use crate::output::{col, text, wide};
use crate::wait::YesArgs;
use crate::{Context, dry, output};
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tessera_master::{COMPONENT_GRACE, REQUESTS_PER_S, TraceConfig, MasterConfig, Summary};

/// What to do with masters.
#[derive(Debug, clap::Subcommand)]
pub enum OperatorCommand {
    /// Make a cluster of one master in an empty data directory
    #[command(
        after_help = "Example:\n  tessera operator init --data-dir /var/lib/tessera/master --peer-address 10.0.0.1:5051 --rest-address 10.0.0.1:5050\n\nOnce per cluster. Every other master joins: tessera master --join 10.0.0.1:5051. Give the master the same\naddresses when it is started; they may be changed later, by starting it with others."
    )]
    Init(InitArgs),
    /// List, add, remove masters, and choose who leads
    #[command(subcommand, after_help = "Examples:\n  tessera operator raft list\n  tessera operator raft remove 2 --dry-run")]
    Raft(RaftCommand),
    /// Save the cluster's state, look into what was saved, make a cluster of it
    #[command(subcommand, after_help = "Examples:\n  tessera operator snapshot save tessera.tsr\n  tessera operator snapshot inspect tessera.tsr")]
    Snapshot(SnapshotCommand),
    /// How the masters are, and what the cluster can bear
    #[command(after_help = "Example:\n  tessera operator autopilot")]
    Autopilot,
}

/// Arguments of `tessera operator init`.
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// Directory of state, components and token; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// What the master is called where masters are listed [default: its peer address]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub name: String,
    /// Where agents and other masters reach it
    #[arg(long, default_value = "127.0.0.1:5051", value_name = "HOST:PORT")]
    pub peer_address: String,
    /// Where its REST is reached
    #[arg(long, default_value = "127.0.0.1:5050", value_name = "HOST:PORT")]
    pub rest_address: String,
}

/// What to do with saved snapshots.
#[derive(Debug, clap::Subcommand)]
pub enum SnapshotCommand {
    /// Save the state and all component files to a file, and check it
    #[command(
        after_help = "Examples:\n  tessera operator snapshot save tessera-2026-11-21.tsr\n  tessera --address http://10.0.0.1:5050 operator snapshot save --stale left.tsr"
    )]
    Save {
        /// The file; it must not be there yet
        file: PathBuf,
        /// Take what the master that is asked has, also when nobody leads: it may lack the last changes
        #[arg(long)]
        stale: bool,
    },
    /// Check a file and say what it holds
    #[command(after_help = "Example:\n  tessera operator snapshot inspect tessera-2026-11-21.tsr")]
    Inspect {
        /// The file
        file: PathBuf,
    },
    /// Make a new cluster of one master from a file, in an empty data directory
    #[command(
        after_help = "Example:\n  tessera operator snapshot restore saved.tsr --data-dir /var/lib/tessera/master --peer-address 10.0.0.1:5051 --rest-address 10.0.0.1:5050\n\nStop all masters of the old cluster before. The new one has another id, so that none of them can join it with\nits old directory. Agents find it at the old addresses and keep what they run. What was launched after the snapshot is shown by
`tessera agent inspect`, and goes on until `tessera agent end-strangers`."
    )]
    Restore {
        /// The file
        file: PathBuf,
        #[command(flatten)]
        master: InitArgs,
    },
}

/// What to do with the group of masters.
#[derive(Debug, clap::Subcommand)]
pub enum RaftCommand {
    /// List the masters
    #[command(visible_alias = "ls", after_help = "Example:\n  tessera operator raft list -o wide")]
    List,
    /// Make a learner a voter now; by itself that happens once it has everything
    #[command(
        after_help = "Example:\n  tessera operator raft add 4\n\nA master becomes a learner by joining: tessera master --data-dir DIR --join HOST:PORT --token-file FILE"
    )]
    Add {
        /// Its number, as `list` shows it
        node: u64,
        /// Only say whether it could vote
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove a master for good; its number never comes back
    #[command(visible_alias = "rm", after_help = "Examples:\n  tessera operator raft remove 2 --dry-run\n  tessera operator raft remove 2 --yes")]
    Remove {
        /// Its number, as `list` shows it
        node: u64,
        /// Only say what would become of the others
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        yes: YesArgs,
    },
    /// Have another master lead
    #[command(after_help = "Examples:\n  tessera operator raft transfer --dry-run\n  tessera operator raft transfer 3")]
    Transfer {
        /// Its number; the one that is furthest if none is named
        node: Option<u64>,
        /// Only say who would lead
        #[arg(long)]
        dry_run: bool,
    },
}

/// A master as it is shown.
#[derive(Debug, Deserialize)]
struct Master {
    node: u64,
    name: String,
    role: String,
    leader: bool,
    healthy: bool,
    waits_for: Option<String>,
    peer_address: String,
    rest_address: String,
    version: String,
    stored_index: Option<u64>,
    last_contact_ms: Option<u64>,
}

/// All of them.
#[derive(Debug, Deserialize)]
struct Masters {
    cluster: String,
    term: u64,
    index: u64,
    leader: Option<u64>,
    voters: u64,
    healthy_voters: u64,
    quorum: u64,
    failures_tolerated: u64,
    warnings: Vec<String>,
    items: Vec<Master>,
}

/// Run it.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn run(context: &Context, command: OperatorCommand) -> Result<ExitCode, CliError> {
    match command {
        OperatorCommand::Init(args) => init(context, args),
        OperatorCommand::Raft(command) => raft(context, command).await,
        OperatorCommand::Snapshot(command) => snapshot(context, command).await,
        OperatorCommand::Autopilot => {
            let value = masters(&context.client()?).await?;
            if context.is_data() {
                output::document(&value)?;
            } else {
                show_state(&read(&value)?)?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Makes a cluster of one; its id.
///
/// # Errors
/// When the directory belongs to a cluster already, or cannot be used.
pub fn make_cluster(args: InitArgs) -> Result<String, CliError> {
    tessera_master::init(&config(args)?).map_err(|error| {
        CliError::new(
            kind(&error),
            format!("no cluster was made: {}", with_causes(&error)),
        )
    })
}

/// Of a master that is not started now.
fn config(args: InitArgs) -> Result<MasterConfig, CliError> {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    Ok(MasterConfig {
        data_dir: args.data_dir,
        listen: anywhere,
        agent_listen: anywhere,
        name: args.name,
        peer_address: Some(args.peer_address),
        rest_address: Some(args.rest_address),
        join: Vec::new(),
        token_file: None,
        insecure_listen: false,
        bin_dir: bin_dir(None)?,
        agent_timeout_ms: 75_000,
        scheduler_grace_ms: 10_000,
        component_registries: Vec::new(),
        component_key: None,
        allow_unsigned_uploads: false,
        component_grace: COMPONENT_GRACE,
        requests_per_s: REQUESTS_PER_S,
        tracing: TraceConfig::default(),
    })
}

fn init(context: &Context, args: InitArgs) -> Result<ExitCode, CliError> {
    let data_dir = args.data_dir.clone();
    let cluster = make_cluster(args)?;
    let token = data_dir.join("admin.token");
    if context.is_data() {
        output::document(&json!({"cluster": cluster, "data_dir": data_dir, "token_file": token}))?;
    } else {
        output::fields(&[
            ("cluster", cluster),
            ("data", data_dir.display().to_string()),
            ("token", token.display().to_string()),
        ])?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn snapshot(context: &Context, command: SnapshotCommand) -> Result<ExitCode, CliError> {
    let (summary, cluster) = match command {
        SnapshotCommand::Save { file, stale } => (save(context, &file, stale).await?, None),
        SnapshotCommand::Inspect { file } => (inspect(&file)?, None),
        SnapshotCommand::Restore { file, master } => {
            let config = config(master)?;
            let restored = tessera_master::restore(&file, &config).map_err(|error| {
                let text = format!("nothing was restored from {}: {}", file.display(), with_causes(&error));
                CliError::new(kind(&error), text)
            })?;
            (restored.1, Some(restored.0))
        }
    };
    if context.is_data() {
        output::document(&summary_json(&summary, cluster.as_deref()))?;
    } else {
        show_summary(&summary, cluster)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes beside the file first: what is under its name is whole and was checked.
async fn save(context: &Context, file: &Path, stale: bool) -> Result<Summary, CliError> {
    if file.exists() {
        return Err(CliError::new(Kind::Refused, format!("{} is there already", file.display()))
            .hint("name another file, or remove it"));
    }
    let client = context.client()?;
    let part = file.with_extension("part");
    let about = |error: std::io::Error| io_error("write", &part, &error);
    let mut out = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .map_err(about)?;
    let saved = async {
        let request = client.get(&["v1", "snapshot"]);
        let request = if stale { request.query("consistency", "stale") } else { request };
        client.save(request, &mut out).await?;
        out.sync_all().map_err(about)?;
        let summary = inspect(&part)?;
        std::fs::rename(&part, file).map_err(about)?;
        Ok(summary)
    };
    let saved = saved.await;
    if saved.is_err() {
        // What is left of it is of no use.
        let _ = std::fs::remove_file(&part);
    }
    saved
}

fn inspect(file: &Path) -> Result<Summary, CliError> {
    tessera_master::inspect_snapshot(file).map_err(|error| {
        CliError::new(Kind::Refused, format!("{}: {}", file.display(), with_causes(&error)))
    })
}

fn summary_json(summary: &Summary, restored: Option<&str>) -> Value {
    let components = summary.components.iter();
    let components = components.map(|(digest, bytes)| json!({"digest": digest.to_string(), "bytes": bytes}));
    json!({
        "cluster": summary.cluster.to_string(),
        "term": summary.term,
        "index": summary.index,
        "rows": summary.rows,
        "state_bytes": summary.state_bytes,
        "masters": summary.masters,
        "components": components.collect::<Vec<_>>(),
        "restored_cluster": restored,
    })
}

fn show_summary(summary: &Summary, restored: Option<String>) -> Result<(), CliError> {
    let mut fields = vec![
        ("cluster", summary.cluster.to_string()),
        ("term, index", format!("{}, {}", summary.term, summary.index)),
        ("rows", summary.rows.to_string()),
        ("state", output::bytes(summary.state_bytes)),
        ("masters", summary.masters.to_string()),
        (
            "components",
            format!(
                "{} ({})",
                summary.components.len(),
                output::bytes(summary.components.values().sum())
            ),
        ),
    ];
    if let Some(cluster) = restored {
        fields.push(("new cluster", cluster));
    }
    output::fields(&fields)
}

/// As the leader knows them; when nobody leads, as a master knew them last.
async fn masters(client: &Client) -> Result<Value, CliError> {
    let request = || client.get(&["v1", "masters"]);
    let error = match client.json(request()).await {
        Err(error) if error.kind == Kind::Unavailable => error,
        answer => return answer,
    };
    match client.json(request().query("consistency", "stale")).await {
        Ok(value) => {
            output::note(&format!("the leader does not answer: {}", error.message));
            output::note("this is what one master knew last");
            Ok(value)
        }
        Err(_) => Err(error),
    }
}

fn read(value: &Value) -> Result<Masters, CliError> {
    Masters::deserialize(value)
        .map_err(|error| CliError::failed(format!("the list of masters cannot be read: {error}")))
}

async fn raft(context: &Context, command: RaftCommand) -> Result<ExitCode, CliError> {
    let client = context.client()?;
    if let Some(request) = command.rehearsed(&client) {
        dry::rehearse(context, &client, request).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let done = match command {
        RaftCommand::List => {
            let value = masters(&client).await?;
            if context.is_data() {
                output::document(&value)?;
            } else {
                show_list(&read(&value)?)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        RaftCommand::Add { node, .. } => {
            client.send(promotion(&client, node)).await?;
            json!({"node": node, "role": "voter"})
        }
        RaftCommand::Remove { node, yes, .. } => {
            yes.confirm(&format!("Node {node} is removed for good; its number never comes back."))?;
            client.send(removal(&client, node)).await?;
            json!({"node": node, "role": "removed"})
        }
        RaftCommand::Transfer { node, .. } => client.json(transfer(&client, node)).await?,
    };
    if context.is_data() {
        output::document(&done)?;
    } else {
        output::note(&told(&done));
    }
    Ok(ExitCode::SUCCESS)
}

impl RaftCommand {
    /// What is only to be rehearsed.
    fn rehearsed(&self, client: &Client) -> Option<Request> {
        match self {
            Self::Add { node, dry_run: true } => Some(promotion(client, *node)),
            Self::Remove { node, dry_run: true, .. } => Some(removal(client, *node)),
            Self::Transfer { node, dry_run: true } => Some(transfer(client, *node)),
            _ => None,
        }
    }
}

fn promotion(client: &Client, node: u64) -> Request {
    client.post(&["v1", "masters", &node.to_string(), "promote"]).once()
}

/// A leader that is removed hands over first, and then the next one is to be asked.
fn removal(client: &Client, node: u64) -> Request {
    client.delete(&["v1", "masters", &node.to_string()]).repeatable()
}

fn transfer(client: &Client, node: Option<u64>) -> Request {
    client.post(&["v1", "masters", "transfer"]).json(json!({"to": node})).once()
}

fn told(done: &Value) -> String {
    match (&done["to"], &done["node"]) {
        (Value::Null, node) => format!("node {node} is {} now", done["role"].as_str().unwrap_or("changed")),
        (to, _) => format!("node {to} leads now"),
    }
}

fn show_list(masters: &Masters) -> Result<(), CliError> {
    let rows = masters.items.iter().map(|master| {
        let role = if master.leader { "leader" } else { &master.role };
        let state = match (&master.waits_for, master.healthy) {
            (Some(what), _) => what.as_str(),
            (None, true) => "ok",
            (None, false) => "silent",
        };
        let number = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
        vec![
            master.node.to_string(),
            master.name.clone(),
            role.to_owned(),
            state.to_owned(),
            master.peer_address.clone(),
            master.rest_address.clone(),
            number(master.stored_index),
            master.version.clone(),
        ]
    });
    output::table(
        &[col("NODE"), text("NAME"), col("ROLE"), text("STATE"), wide("PEERS"), text("REST"), col("STORED"), col("VERSION")],
        rows.collect(),
        "no masters",
    )?;
    for warning in &masters.warnings {
        output::note(&format!("warning: {warning}"));
    }
    Ok(())
}

fn show_state(masters: &Masters) -> Result<(), CliError> {
    let leader = masters.leader.map_or("nobody".to_owned(), |node| format!("node {node}"));
    output::fields(&[
        ("cluster", masters.cluster.clone()),
        ("leader", leader),
        ("term, index", format!("{}, {}", masters.term, masters.index)),
        (
            "voters",
            format!(
                "{} of {} are well, {} are needed: {} more may fail",
                masters.healthy_voters, masters.voters, masters.quorum, masters.failures_tolerated
            ),
        ),
    ])?;
    for master in &masters.items {
        let contact = match master.last_contact_ms {
            _ if master.leader => "leads".to_owned(),
            Some(ms) => format!("heard {ms} ms ago"),
            None => "not heard yet".to_owned(),
        };
        let waits = match &master.waits_for {
            Some(what) => format!(", not a voter yet: {what}"),
            None => String::new(),
        };
        output::line(&format!("node {} ({}): {contact}{waits}", master.node, master.name))?;
    }
    for warning in &masters.warnings {
        output::note(&format!("warning: {warning}"));
    }
    Ok(())
}
