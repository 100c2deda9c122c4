//! `tessera task`: list, inspect, kill, and read output.
//!
//! Must never decide whether a task may be killed.

use crate::api::{Task, read, read_items};
use crate::client::Client;
use crate::error::CliError;
use crate::follow::{Pace, Patience, Tail};
use crate::{Context, output};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Tasks in one answer of the master.
const LIST_LIMIT: u32 = 1_000;

/// What to do with tasks.
#[derive(Debug, clap::Subcommand)]
pub enum TaskCommand {
    /// List tasks that have not ended
    Ls {
        /// Only those of this framework (name or id)
        #[arg(long, value_name = "FRAMEWORK")]
        framework: Option<String>,
        /// Those that ended, too
        #[arg(long)]
        all: bool,
    },
    /// Show everything about a task
    Inspect {
        /// Name or id of its framework
        framework: String,
        /// Its id
        task: String,
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
        /// Name or id of its framework
        framework: String,
        /// Its id
        task: String,
    },
    /// End a task: TERM, then KILL after the grace time
    Kill {
        /// Time between TERM and KILL in seconds [default: what the task says, or 3]
        #[arg(long, value_name = "SECONDS")]
        grace: Option<u32>,
        /// Name or id of its framework
        framework: String,
        /// Its id
        task: String,
    },
}

/// Run it.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn run(context: &Context, command: TaskCommand) -> Result<ExitCode, CliError> {
    let client = context.client()?;
    match command {
        TaskCommand::Ls { framework, all } => list(context, &client, framework, all).await?,
        TaskCommand::Inspect { framework, task } => {
            let value = get(&client, &framework, &task).await?;
            if context.is_json() {
                output::json(&value)?
            } else {
                inspect(&read(&value)?)?
            }
        }
        TaskCommand::Logs {
            follow,
            stderr,
            file,
            framework,
            task,
        } => {
            let path = file
                .as_deref()
                .unwrap_or(if stderr { "stderr" } else { "stdout" });
            logs(&client, &framework, &task, path, follow).await?;
        }
        TaskCommand::Kill {
            grace,
            framework,
            task,
        } => {
            kill(
                &client,
                &framework,
                &task,
                grace.map(|seconds| u64::from(seconds) * 1_000),
            )
            .await?;
            if context.is_json() {
                output::json(&get(&client, &framework, &task).await?)?;
            } else {
                output::line(&format!("{task} is being killed"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
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
    let document = grace_ms.map_or_else(|| json!({}), |grace_ms| json!({"grace_ms": grace_ms}));
    let request = client
        .post(&["v1", "tasks", framework, task, "kill"])
        .json(document)
        .repeatable();
    client.send(request).await.map(drop)
}

async fn list(
    context: &Context,
    client: &Client,
    framework: Option<String>,
    all: bool,
) -> Result<(), CliError> {
    let mut request = client.get(&["v1", "tasks"]).query("limit", LIST_LIMIT);
    if let Some(framework) = framework {
        request = request.query("framework", framework);
    }
    let mut list = client.json(request).await?;
    if let Some(Value::Array(items)) = list.get_mut("items").filter(|_| !all) {
        items.retain(|item| {
            !item
                .get("state")
                .and_then(Value::as_str)
                .is_some_and(crate::api::is_terminal)
        });
    }
    if context.is_json() {
        return output::json(&list);
    }
    let now = output::now_ms();
    let rows = read_items::<Task>(&list)?
        .into_iter()
        .map(|t| {
            let framework = if t.framework_name.is_empty() {
                t.framework.clone()
            } else {
                t.framework_name.clone()
            };
            let told = [
                t.outcome(),
                t.reason.clone().unwrap_or_default(),
                t.why.join("; "),
            ];
            let told: Vec<String> = told.into_iter().filter(|text| !text.is_empty()).collect();
            let agent = t.agent.unwrap_or_default();
            let (what, age) = (
                output::resources(&t.resources),
                output::age(t.updated_ms, now),
            );
            vec![
                framework,
                t.task,
                t.name,
                t.state,
                agent,
                what,
                age,
                told.join(", "),
            ]
        })
        .collect();
    let header = [
        "FRAMEWORK",
        "TASK",
        "NAME",
        "STATE",
        "AGENT",
        "RESOURCES",
        "CHANGED",
        "WHY",
    ];
    output::table(
        &header,
        rows,
        if all {
            "no tasks"
        } else {
            "no tasks that have not ended; --all lists the others too"
        },
    )
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
        ("launched", output::time(t.launched_ms)),
        ("changed", output::time(t.updated_ms)),
    ])
}

async fn logs(
    client: &Client,
    framework: &str,
    task: &str,
    path: &str,
    follow: bool,
) -> Result<(), CliError> {
    // Tells an unknown task from one that has not written yet.
    get(client, framework, task).await?;
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
