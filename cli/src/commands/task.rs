//! `tessera task`: list, inspect, kill, and read output.
//!
//! Must never decide whether a task may be killed.

use crate::api::{Task, is_terminal, read};
use crate::client::{Client, Request};
use crate::error::{CliError, Kind};
use crate::follow::{Pace, Patience, Tail};
use crate::list::{self, List, WatchArgs};
use crate::names::{self, TaskArg, closest};
use crate::output::{Column, col, text, wide};
use crate::wait::{Step, Waiting, YesArgs, parse_seconds, until};
use crate::{Context, dry, output};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;
use tessera_types::TaskState;

/// Tasks in one answer of the master.
pub const LIST_LIMIT: u32 = 1_000;

/// How long the end of a task is waited for when nothing is said.
const WAIT_SECONDS: u64 = 300;

/// What to do with tasks.
#[derive(Debug, clap::Subcommand)]
pub enum TaskCommand {
    /// List tasks that have not ended
    #[command(
        after_help = "Examples:\n  tessera task ls\n  tessera task ls --framework words --state TASK_RUNNING,TASK_STARTING -w\n  tessera task ls --all --agent a3 -o json\n  tessera task ls -o name | xargs -n 1 tessera task kill"
    )]
    Ls(LsArgs),
    /// Show everything about a task, and what it went through
    #[command(
        after_help = "Examples:\n  tessera task inspect words count-7\n  tessera task inspect words/count-7 -w"
    )]
    Inspect {
        #[command(flatten)]
        task: TaskArg,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Show what a task wrote
    #[command(
        after_help = "Examples:\n  tessera task logs run run-1\n  tessera task logs -f --stderr words count-7"
    )]
    Logs {
        /// Wait for more until it ends
        #[arg(short, long)]
        follow: bool,
        /// stderr instead of stdout
        #[arg(long, conflicts_with = "file")]
        stderr: bool,
        /// Another file of its sandbox instead of stdout
        #[arg(long, value_name = "PATH")]
        file: Option<String>,
        #[command(flatten)]
        task: TaskArg,
    },
    /// End a task: TERM, then KILL after the grace time
    #[command(
        after_help = "Examples:\n  tessera task kill words count-7\n  tessera task kill words/count-7 --grace 30 --wait"
    )]
    Kill(KillArgs),
}

/// Arguments of `tessera task ls`.
#[derive(Debug, Default, clap::Args)]
pub struct LsArgs {
    /// Only those of this framework (name or id)
    #[arg(long, value_name = "FRAMEWORK")]
    framework: Option<String>,
    /// Only those of frameworks of this role, and of roles below
    #[arg(long, value_name = "ROLE", value_parser = names::parse_role)]
    role: Option<String>,
    /// Only those on this agent
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// Only those in one of these states, also when they have ended
    #[arg(long, value_name = "STATE,…", value_delimiter = ',', value_parser = parse_state)]
    state: Vec<String>,
    /// Only those whose name begins so
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Only those of this task group
    #[arg(long, value_name = "NUMBER")]
    group: Option<u64>,
    /// Those that ended, too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Arguments of `tessera task kill`.
#[derive(Debug, clap::Args)]
pub struct KillArgs {
    /// Time between TERM and KILL, in seconds or with a unit [default: what the task says, or 3]
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    grace: Option<u64>,
    #[command(flatten)]
    task: TaskArg,
    /// Wait until it has ended
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// Wait so long
    #[arg(long, value_name = "TIME", value_parser = parse_seconds, default_value_t = WAIT_SECONDS, requires = "wait")]
    timeout: u64,
    /// Only say what would be killed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    yes: YesArgs,
}

/// Reads a state of a task, with or without `TASK_`.
fn parse_state(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let whole = if upper.starts_with("TASK_") { upper } else { format!("TASK_{upper}") };
    let known: Vec<&str> = TaskState::ALL.iter().map(|state| state.name()).collect();
    if known.contains(&whole.as_str()) {
        return Ok(whole);
    }
    Err(match closest(&whole, &known) {
        Some(near) => format!("{text:?} is no state of a task; did you mean {near}?"),
        None => format!("{text:?} is no state of a task; there are {}", known.join(", ")),
    })
}

const COLUMNS: [Column; 10] = [
    text("FRAMEWORK"),
    text("TASK"),
    wide("NAME"),
    col("STATE"),
    col("AGENT"),
    text("RESOURCES"),
    wide("ATTEMPT"),
    wide("STARTED"),
    text("WHY"),
    col("AGE"),
];

/// Run it.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn run(context: &Context, command: TaskCommand) -> Result<ExitCode, CliError> {
    let client = context.client()?;
    match command {
        TaskCommand::Ls(args) => list(context, &client, args).await?,
        TaskCommand::Inspect { task, watch } => {
            let (framework, task) = names::task(&client, &task, names::Say::Enough).await?;
            let request = client.get(&["v1", "tasks", &framework, &task]);
            list::show_one(context, &client, request, watch, async |value| inspect(&read(value)?)).await?;
        }
        TaskCommand::Logs { follow, stderr, file, task } => {
            let path = file.as_deref().unwrap_or(if stderr { "stderr" } else { "stdout" });
            // Tells an unknown task from one that has not written yet.
            let (framework, task) = names::task(&client, &task, names::Say::Enough).await?;
            logs(&client, &framework, &task, path, follow).await?;
        }
        TaskCommand::Kill(args) => kill_asked(context, &client, args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn kill_asked(context: &Context, client: &Client, args: KillArgs) -> Result<(), CliError> {
    let (framework, task) = names::task(client, &args.task, names::Say::All).await?;
    let grace = args.grace.map(|seconds| seconds.saturating_mul(1_000));
    if args.dry_run {
        return dry::rehearse(context, client, kill_request(client, &framework, &task, grace)).await;
    }
    args.yes.confirm(&format!("{framework}/{task} is killed."))?;
    kill(client, &framework, &task, grace).await?;
    let mut value = get(client, &framework, &task).await?;
    if args.wait {
        let waiting = Waiting {
            what: format!("{task} has ended"),
            go_on: format!("tessera task inspect {framework} {task}"),
            within: Duration::from_secs(args.timeout),
        };
        value = until(waiting, async || {
            let value = get(client, &framework, &task).await?;
            let state = read::<Task>(&value)?.state;
            Ok(if is_terminal(&state) { Step::Done(value) } else { Step::Going(state) })
        })
        .await?;
    }
    if context.is_data() {
        return output::document(&value);
    }
    let shown: Task = read(&value)?;
    match shown.is_terminal() {
        true => output::line(&format!("{task} has ended: {}", shown.state)),
        false => output::line(&format!("{task} is being killed")),
    }
}

/// The document of a task.
///
/// # Errors
/// When it is not there or the cluster cannot be reached.
pub async fn get(client: &Client, framework: &str, task: &str) -> Result<Value, CliError> {
    client
        .json(client.get(&["v1", "tasks", framework, task]))
        .await
}

/// Ask for the end of a task.
///
/// # Errors
/// When it is not there or the cluster cannot be reached.
pub async fn kill(
    client: &Client,
    framework: &str,
    task: &str,
    grace_ms: Option<u64>,
) -> Result<(), CliError> {
    client.send(kill_request(client, framework, task, grace_ms)).await.map(drop)
}

fn kill_request(client: &Client, framework: &str, task: &str, grace_ms: Option<u64>) -> Request {
    let document = grace_ms.map_or_else(|| json!({}), |grace_ms| json!({"grace_ms": grace_ms}));
    client.post(&["v1", "tasks", framework, task, "kill"]).json(document).repeatable()
}

impl LsArgs {
    /// Whether tasks that have ended are left out.
    fn only_live(&self) -> bool {
        !self.all && self.state.is_empty()
    }

    /// What masters look through themselves.
    fn filters(&self) -> Vec<(&'static str, String)> {
        let mut filters = Vec::new();
        let texts = [("role", &self.role), ("agent", &self.agent), ("name", &self.name)];
        filters.extend(texts.into_iter().filter_map(|(name, text)| Some((name, text.clone()?))));
        if !self.state.is_empty() {
            filters.push(("state", self.state.join(",")));
        }
        if let Some(group) = self.group {
            filters.push(("group", group.to_string()));
        }
        if self.only_live() {
            filters.push(("live", "true".to_owned()));
        }
        filters
    }

    /// The same, for answers of masters that do not.
    fn keeps(&self, task: &Value) -> bool {
        let text = |name: &str| task.get(name).and_then(Value::as_str).unwrap_or_default();
        let state = text("state");
        (!self.only_live() || !is_terminal(state))
            && (self.state.is_empty() || self.state.iter().any(|wanted| wanted == state))
            && self.agent.as_ref().is_none_or(|agent| text("agent") == agent)
            && self.name.as_ref().is_none_or(|name| text("name").starts_with(name.as_str()))
            && self.group.is_none_or(|group| task.get("group").and_then(Value::as_u64) == Some(group))
    }
}

async fn list(context: &Context, client: &Client, mut args: LsArgs) -> Result<(), CliError> {
    let mut plain = client.get(&["v1", "tasks"]).query("limit", LIST_LIMIT);
    if let Some(framework) = &args.framework {
        plain = plain.query("framework", names::framework(client, framework, names::Say::Enough).await?);
    }
    if let Some(agent) = &args.agent {
        args.agent = Some(names::agent(client, agent, names::Say::Enough).await?);
    }
    let filtered = args.filters().into_iter().fold(plain.clone(), |request, (name, value)| request.query(name, value));
    let keep = |task: &Value| args.keeps(task);
    let empty = match args.only_live() {
        true => "no tasks that have not ended; --all lists the others too",
        false => "no tasks",
    };
    let list = List { columns: &COLUMNS, row: &row, keep: &keep, empty };
    match list::show(context, client, filtered, &list, args.watch).await {
        // Older masters know fewer filters, and give everything.
        Err(error) if error.status == Some(400) && args.role.is_none() => {
            list::show(context, client, plain, &list, args.watch).await
        }
        Err(error) if error.status == Some(400) && error.message.contains("role") => {
            Err(CliError::new(Kind::Refused, error.message).hint("older masters do not know --role: upgrade them"))
        }
        shown => shown,
    }
}

fn row(value: &Value, now: u64) -> Result<Vec<String>, CliError> {
    let t: Task = read(value)?;
    let framework = if t.framework_name.is_empty() { t.framework.clone() } else { t.framework_name.clone() };
    let told = [t.outcome(), t.reason.clone().unwrap_or_default(), t.why.join("; ")];
    let told: Vec<String> = told.into_iter().filter(|text| !text.is_empty()).collect();
    let mut what = output::resources(&t.resources);
    if t.revocable {
        what += ", revocable";
    }
    Ok(vec![
        framework,
        t.task,
        t.name,
        t.state,
        t.agent.unwrap_or_default(),
        what,
        t.attempt.to_string(),
        output::age(t.launched_ms, now),
        told.join(", "),
        output::age(t.updated_ms, now),
    ])
}

fn inspect(t: &Task) -> Result<(), CliError> {
    output::fields(&[
        (
            "framework",
            format!("{} ({})", t.framework_name, t.framework),
        ),
        ("task", t.task.clone()),
        ("name", t.name.clone()),
        ("state", t.state.clone()),
        ("why", t.why.join("; ")),
        ("outcome", t.outcome()),
        ("reason", t.reason.clone().unwrap_or_default()),
        ("message", t.message.clone().unwrap_or_default()),
        ("agent", t.agent.clone().unwrap_or_default()),
        ("attempt", t.attempt.to_string()),
        ("group", t.group.map(|group| group.to_string()).unwrap_or_default()),
        ("executor", t.executor.clone().unwrap_or_default()),
        ("resources", output::resources(&t.resources)),
        ("revocable", if t.revocable { "yes" } else { "" }.to_owned()),
        ("launched", output::time(t.launched_ms)),
        ("changed", output::time(t.updated_ms)),
    ])?;
    if t.history.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let rows = t.history.iter().map(|past| {
        let reason = past.reason.clone().unwrap_or_default();
        vec![output::time(past.at_ms), past.state.clone(), past.attempt.to_string(), reason]
    });
    output::table(&[col("SINCE"), col("STATE"), col("ATTEMPT"), text("REASON")], rows.collect(), "")
}

async fn logs(
    client: &Client,
    framework: &str,
    task: &str,
    path: &str,
    follow: bool,
) -> Result<(), CliError> {
    let mut tail = Tail::of_task(framework, task, path);
    let (mut pace, mut patience) = (Pace::default(), Patience::default());
    if !follow {
        loop {
            let chunk = tail.next(client).await?;
            if chunk.is_empty() {
                return Ok(());
            }
            output::write(&chunk)?;
        }
    }
    loop {
        // The state is asked for first: what comes after an end is all there is.
        let ended = match patience.judge(get(client, framework, task).await)? {
            Some(value) => read::<Task>(&value)?.is_terminal(),
            None => false,
        };
        let mut happened = false;
        while let Some(chunk) = patience
            .judge(tail.next(client).await)?
            .filter(|chunk| !chunk.is_empty())
        {
            happened = true;
            output::write(&chunk)?;
        }
        if ended {
            return Ok(());
        }
        pace.wait(happened).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{LsArgs, parse_state, row};
    use serde_json::json;

    #[test]
    fn states_are_read_as_people_write_them() {
        for (text, expected) in [("TASK_RUNNING", "TASK_RUNNING"), ("running", "TASK_RUNNING"), ("Failed", "TASK_FAILED")] {
            assert_eq!(parse_state(text).as_deref(), Ok(expected));
        }
        assert!(parse_state("runing").unwrap_err().contains("did you mean TASK_RUNNING?"));
        assert!(parse_state("x").unwrap_err().contains("TASK_STAGING"));
    }

    #[test]
    fn filters_are_asked_for_and_held() {
        let args = |change: fn(&mut LsArgs)| {
            let mut args = LsArgs::default();
            change(&mut args);
            args
        };
        let running = json!({"state": "TASK_RUNNING", "agent": "a1", "name": "count-7", "group": 3});
        let failed = json!({"state": "TASK_FAILED", "agent": "a2", "name": "x"});
        type Change = fn(&mut LsArgs);
        let cases: [(Change, &str, [bool; 2]); 6] = [
            (|_| {}, "live=true", [true, false]),
            (|a| a.all = true, "", [true, true]),
            (|a| a.state = vec!["TASK_FAILED".into()], "state=TASK_FAILED", [false, true]),
            (|a| a.agent = Some("a1".into()), "agent=a1&live=true", [true, false]),
            (|a| { a.name = Some("co".into()); a.all = true; }, "name=co", [true, false]),
            (|a| { a.group = Some(3); a.all = true; }, "group=3", [true, false]),
        ];
        for (change, query, kept) in cases {
            let args = args(change);
            let asked: Vec<String> = args.filters().iter().map(|(name, value)| format!("{name}={value}")).collect();
            assert_eq!(asked.join("&"), query);
            assert_eq!([&running, &failed].map(|task| args.keeps(task)), kept, "{query}");
        }
    }

    #[test]
    fn rows_say_how_a_task_ended() {
        let task = json!({"framework": "f1", "task": "t", "state": "TASK_FAILED", "exit_code": 3, "reason": "COMMAND_FAILED",
            "resources": {"cpus_milli": 100, "mem_mib": 32}, "updated_ms": 1_000, "revocable": true});
        let cells = row(&task, 61_000).unwrap();
        assert_eq!(cells[5], "0.1 cpu, 32 MiB, revocable");
        assert_eq!(cells[8..], ["exit 3, COMMAND_FAILED", "60s"]);
    }
}
