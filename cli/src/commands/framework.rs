//! `tessera framework`: create, list, inspect, remove, and read the scheduler's log. What changes a
//! framework that runs is in `lifecycle`, its recordings in `replay`, its executors in `executor`.
//!
//! Must never decide whether a change is possible.

use crate::api::{Framework, ResourceRequest, read};
use crate::client::{Client, Request};
use crate::commands::{
    component, executor, framework_ask, framework_build, framework_dev, framework_new, framework_test, lifecycle, replay,
    state,
};
use crate::error::{CliError, Kind};
use crate::follow::{Pace, Patience, Tail};
use crate::list::{self, List, WatchArgs};
use crate::output::{Column, col, text, wide};
use crate::wait::{Step, Waiting, YesArgs, parse_seconds, until};
use crate::scheduler_log::{self, Lines};
use crate::{Context, dry, names, output};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;
use tessera_types::parse_duration;

/// What to do with frameworks.
#[derive(Debug, clap::Subcommand)]
pub enum FrameworkCommand {
    /// Write the project of a scheduler, with the SDK in it
    New(framework_new::NewArgs),
    /// Build the component of a project
    Build(framework_build::BuildArgs),
    /// Give a scheduler what a script says, without a cluster, and show what it does
    Test(framework_test::TestArgs),
    /// Build a project and run it on the cluster, again whenever a file of it is saved
    Dev(framework_dev::DevArgs),
    /// Ask a framework's own HTTP API
    Ask(framework_ask::AskArgs),
    /// Create a framework from a component; the cluster starts its scheduler
    #[command(
        after_help = "Examples:\n  tessera framework create words --component wordcount.wasm --config pace-ms=100\n  tessera framework create words --component sha256:0f3a… --role eng/search"
    )]
    Create {
        /// Its name: a-z 0-9 -
        name: String,
        #[command(flatten)]
        component: component::ComponentArg,
        /// Whose share of the cluster it uses
        #[arg(long, default_value = "default", value_parser = names::parse_role)]
        role: String,
        /// An entry of its configuration; may be repeated
        #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
        config: Vec<(String, String)>,
        #[command(flatten)]
        unreachable: UnreachableArgs,
        /// Only say what would be made
        #[arg(long)]
        dry_run: bool,
        /// Wait until its scheduler runs
        #[arg(long, conflicts_with = "dry_run")]
        wait: bool,
        /// Wait so long
        #[arg(long, value_name = "TIME", value_parser = parse_seconds, default_value_t = lifecycle::WAIT_SECONDS, requires = "wait")]
        timeout: u64,
    },
    /// List frameworks
    #[command(after_help = "Examples:\n  tessera framework ls\n  tessera framework ls -o wide -w")]
    Ls {
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Show everything about a framework
    #[command(after_help = "Examples:\n  tessera framework inspect words\n  tessera framework inspect words -w")]
    Inspect {
        /// Name or id, or how the name begins
        framework: String,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Show the log of a framework's scheduler; with -o json as it was written, one document per line
    #[command(after_help = "Examples:\n  tessera framework logs words\n  tessera framework logs -f words\n  tessera framework logs words -o json | jq -r .text")]
    Logs {
        /// Wait for more
        #[arg(short, long)]
        follow: bool,
        /// Name or id
        framework: String,
    },
    /// Remove a framework: its tasks are killed, its state is deleted
    #[command(
        after_help = "Examples:\n  tessera framework rm words\n  tessera framework rm words --dry-run\n  tessera framework rm words --yes --wait"
    )]
    Rm(RmArgs),
    /// Change the component of a framework; its state and its tasks stay
    Upgrade(lifecycle::UpgradeArgs),
    /// Go back to an earlier component; while an upgrade is not final, give it up
    Rollback(lifecycle::RollbackArgs),
    /// Show or change the configuration of a framework; its scheduler is told
    #[command(subcommand, after_help = "Examples:\n  tessera framework config get words\n  tessera framework config set words pace-ms=50")]
    Config(lifecycle::ConfigCommand),
    /// Start a quarantined scheduler again
    #[command(after_help = "Examples:\n  tessera framework release words --dry-run\n  tessera framework release words")]
    Release {
        /// Name or id
        framework: String,
        /// Only say what would be started
        #[arg(long)]
        dry_run: bool,
    },
    /// Read and write keys of a framework's state
    #[command(subcommand, after_help = "Examples:\n  tessera framework state ls words\n  tessera framework state get words table > table.bin")]
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

/// Arguments of `tessera framework rm`.
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// Name or id, whole
    framework: String,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Wait until it is gone
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// Wait so long
    #[arg(long, value_name = "TIME", value_parser = parse_seconds, default_value_t = lifecycle::WAIT_SECONDS, requires = "wait")]
    timeout: u64,
    #[command(flatten)]
    yes: YesArgs,
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
    // What an author does on this machine asks no cluster, or by itself.
    let command = match command {
        FrameworkCommand::New(args) => return framework_new::run(context, &args).map(|()| ExitCode::SUCCESS),
        FrameworkCommand::Build(args) => return framework_build::run(context, &args).await.map(|()| ExitCode::SUCCESS),
        FrameworkCommand::Test(args) => return framework_test::run(context, args).await.map(|()| ExitCode::SUCCESS),
        FrameworkCommand::Dev(args) => return framework_dev::run(context, &args).await.map(|()| ExitCode::SUCCESS),
        of_cluster => of_cluster,
    };
    let client = context.client()?;
    match command {
        FrameworkCommand::Create {
            name,
            component,
            role,
            config,
            unreachable,
            dry_run,
            wait,
            timeout,
        } => {
            let (config, unreachable) = (pairs(config)?, unreachable.document());
            let document = |digest: &str| {
                json!({"name": name, "role": role, "component": digest, "config": config, "unreachable": unreachable})
            };
            if dry_run {
                let request = |digest: &str| create_request(&client, document(digest));
                component::rehearse_with(context, &client, component.named(), request).await?;
                return Ok(ExitCode::SUCCESS);
            }
            let digest = component::resolve(&client, component.named()).await?;
            let mut value = create(&client, document(&digest)).await?;
            if wait {
                value = wait_until_running(&client, &read(&value)?, timeout).await?;
            }
            if context.is_data() {
                output::document(&value)?;
            } else {
                let framework: Framework = read(&value)?;
                output::line(&format!(
                    "{} ({}) is {}",
                    framework.name, framework.id, framework.state
                ))?;
            }
        }
        FrameworkCommand::Ls { watch } => {
            let empty = "no frameworks; `tessera framework create` makes one";
            let list = List { columns: &COLUMNS, row: &row, keep: &|_| true, empty };
            list::show(context, &client, client.get(&["v1", "frameworks"]), &list, watch).await?;
        }
        FrameworkCommand::Inspect { framework, watch } => {
            let framework = names::framework(&client, &framework, names::Say::Enough).await?;
            let request = client.get(&["v1", "frameworks", &framework]);
            list::show_one(context, &client, request, watch, async |value| inspect(&read(value)?)).await?;
        }
        FrameworkCommand::Logs { follow, framework } => {
            let framework = names::framework(&client, &framework, names::Say::Enough).await?;
            logs(context, &client, &framework, follow).await?;
        }
        FrameworkCommand::Rm(args) => remove(context, &client, args).await?,
        FrameworkCommand::Upgrade(args) => lifecycle::upgrade(context, &client, args).await?,
        FrameworkCommand::Rollback(args) => lifecycle::roll_back(context, &client, args).await?,
        FrameworkCommand::Config(command) => lifecycle::config(context, &client, command).await?,
        FrameworkCommand::Release { framework, dry_run } => {
            let framework = names::framework(&client, &framework, names::Say::All).await?;
            lifecycle::release(context, &client, &framework, dry_run).await?;
        }
        FrameworkCommand::State(command) => state::run(context, &client, command).await?,
        FrameworkCommand::Executors(args) => executor::executors(context, &client, &args).await?,
        FrameworkCommand::ChildLogs(args) => executor::child_logs(&client, &args).await?,
        FrameworkCommand::Recordings(args) => replay::recordings(context, &client, &args).await?,
        FrameworkCommand::Replay(args) => replay::replay(context, &client, args).await?,
        FrameworkCommand::Ask(args) => framework_ask::run(context, &client, &args).await?,
        // Done above.
        FrameworkCommand::New(_) | FrameworkCommand::Build(_) | FrameworkCommand::Test(_) | FrameworkCommand::Dev(_) => {}
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
    client.json(create_request(client, document)).await
}

fn create_request(client: &Client, document: Value) -> Request {
    client.post(&["v1", "frameworks"]).json(document).repeatable()
}

/// Remove a framework; what goes with it is told before.
async fn remove(context: &Context, client: &Client, args: RmArgs) -> Result<(), CliError> {
    let id = names::framework(client, &args.framework, names::Say::All).await?;
    let found: Framework = read(&client.json(client.get(&["v1", "frameworks", &id])).await?)?;
    let live = live_tasks(&found);
    let what = format!(
        "{} ({}) with {live} live tasks and {} of state",
        found.name,
        found.id,
        output::bytes(found.state_bytes)
    );
    let request = client.delete(&["v1", "frameworks", &found.id]);
    if args.dry_run {
        return dry::rehearse(context, client, request).await;
    }
    args.yes.confirm(&format!("Framework {what} is removed: its tasks are killed, its state is deleted."))?;
    let response = client.send(request).await?;
    let body = client.body(response).await?;
    if args.wait {
        let waiting = Waiting {
            what: format!("{} is gone", found.name),
            go_on: "tessera framework ls".to_owned(),
            within: Duration::from_secs(args.timeout),
        };
        until(waiting, async || match client.json(client.get(&["v1", "frameworks", &found.id])).await {
            Ok(value) => {
                let now: Framework = read(&value)?;
                Ok(Step::Going(format!("it is {}, with {} live tasks", now.state, live_tasks(&now))))
            }
            Err(error) if error.kind == Kind::NotFound => Ok(Step::Done(())),
            Err(error) => Err(error),
        })
        .await?;
    }
    if context.is_data() {
        let value = serde_json::from_slice(&body).unwrap_or_else(|_| json!({"id": found.id}));
        return output::document(&value);
    }
    let stands = if args.wait { "is gone" } else { "is being removed" };
    output::line(&format!("{} {stands}", found.name))
}

async fn wait_until_running(client: &Client, made: &Framework, seconds: u64) -> Result<Value, CliError> {
    let waiting = Waiting {
        what: format!("{} is running", made.name),
        go_on: format!("tessera framework inspect {} --watch", made.name),
        within: Duration::from_secs(seconds),
    };
    until(waiting, async || {
        let value = client.json(client.get(&["v1", "frameworks", &made.id])).await?;
        let now: Framework = read(&value)?;
        match now.state.as_str() {
            "running" => Ok(Step::Done(value)),
            "quarantined" => {
                let text = format!("{} is quarantined: {}", now.name, now.last_error.unwrap_or_default());
                Err(CliError::new(Kind::Refused, output::clean(&text))
                    .hint(format!("`tessera framework inspect {}` says why", now.name)))
            }
            state if now.why.is_empty() => Ok(Step::Going(format!("it is {state}"))),
            state => Ok(Step::Going(format!("it is {state}; {}", now.why.join("; ")))),
        }
    })
    .await
}

fn live_tasks(f: &Framework) -> u64 {
    let live = f.tasks.iter().filter(|(state, _)| !crate::api::is_terminal(state));
    live.map(|(_, count)| count).sum()
}

const COLUMNS: [Column; 10] = [
    col("ID"),
    text("NAME"),
    text("ROLE"),
    col("STATE"),
    col("AGENT"),
    col("TASKS"),
    col("TURNS"),
    wide("COMPONENT"),
    text("WHY"),
    col("AGE"),
];

fn row(value: &Value, now: u64) -> Result<Vec<String>, CliError> {
    let f: Framework = read(value)?;
    let live = live_tasks(&f);
    Ok(vec![
        f.id,
        f.name,
        f.role,
        f.state,
        f.agent.unwrap_or_default(),
        live.to_string(),
        f.turns.to_string(),
        f.component,
        f.why.join("; "),
        output::age(f.created_ms, now),
    ])
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
        ("revocable", output::revocable(&f.revocable)),
        ("last error", f.last_error.clone().unwrap_or_default()),
        ("created", output::time(f.created_ms)),
    ])?;
    if let Some(quarantine) = &f.quarantine {
        output::fields(&lifecycle::quarantine(quarantine))?;
    } else if f.failures.in_a_row > 0 {
        let text = format!("{} in a row", f.failures.in_a_row);
        output::fields(&[("failures", text)])?;
    }
    for wanted in &f.requests {
        output::fields(&[("request", request(wanted))])?;
    }
    if f.versions.len() > 1 {
        output::line("")?;
        lifecycle::versions(&f.versions)?;
    }
    Ok(())
}

/// What it waits to launch, in words.
fn request(wanted: &ResourceRequest) -> String {
    let mut text = format!("{}: {} of {}", wanted.id, wanted.count, output::resources(&wanted.resources));
    if wanted.revocable {
        text.push_str(", revocable");
    }
    for constraint in &wanted.constraints {
        text.push_str(&format!(", {constraint}"));
    }
    text
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

async fn logs(context: &Context, client: &Client, framework: &str, follow: bool) -> Result<(), CliError> {
    // Tells an unknown framework from one that has not logged yet.
    client.json(client.get(&["v1", "frameworks", framework])).await?;
    let mut tail = Tail::new(&["v1", "frameworks", framework, "log"]);
    let (mut pace, mut patience) = (Pace::default(), Patience::default());
    let mut lines = Lines::default();
    loop {
        let chunk = match follow {
            true => patience.judge(tail.next(client).await)?.unwrap_or_default(),
            false => tail.next(client).await?,
        };
        if chunk.is_empty() && !follow {
            // The last line may be half written.
            return lines.rest().map_or(Ok(()), |line| log_line(context, &line));
        }
        lines.push(&chunk).iter().try_for_each(|line| log_line(context, line))?;
        if chunk.is_empty() {
            pace.wait(false).await;
        }
    }
}

fn log_line(context: &Context, line: &[u8]) -> Result<(), CliError> {
    match (context.is_data(), serde_json::from_slice(line)) {
        (true, Ok(value)) => output::document_of_many(&value),
        _ => scheduler_log::sentence(line, true).map_or(Ok(()), |line| output::line(&line)),
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
