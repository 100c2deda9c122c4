//! `tessera framework executors` and `child-logs`: a framework's custom executors, their children, and what
//! those wrote.
//!
//! Must never guess on which agent a child is: the master knows, or the user says so.

use crate::api::{Executor, read_items};
use crate::client::Client;
use crate::error::CliError;
use crate::follow::Tail;
use crate::output::{col, text};
use crate::{Context, names, output};

/// Arguments of `tessera framework executors`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tessera framework executors builds\n  tessera framework executors builds --agent a3   # also those that ended there")]
pub struct ExecutorsArgs {
    /// Name or id
    framework: String,
    /// Only those on this agent, also those that have ended [default: all that live]
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
}

/// Arguments of `tessera framework child-logs`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera framework child-logs builds main job-7\n  tessera framework child-logs --stderr --agent a3 builds main job-7   # its executor has ended"
)]
pub struct ChildLogsArgs {
    /// stderr instead of stdout
    #[arg(long, conflicts_with = "file")]
    stderr: bool,
    /// Another file of its sandbox instead of stdout
    #[arg(long, value_name = "PATH")]
    file: Option<String>,
    /// The agent that has it [default: the one on which the executor lives]
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// Name or id of the framework
    framework: String,
    /// Its executor
    executor: String,
    /// The executor's child
    child: String,
}

/// List executors and their children.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn executors(
    context: &Context,
    client: &Client,
    args: &ExecutorsArgs,
) -> Result<(), CliError> {
    let framework = names::framework(client, &args.framework, names::Say::Enough).await?;
    let mut request = client.get(&["v1", "frameworks", &framework, "executors"]);
    if let Some(agent) = &args.agent {
        request = request.query("agent", agent);
    }
    let list = client.json(request).await?;
    if context.is_data() {
        return output::document(&list);
    }
    let mut rows = Vec::new();
    for executor in read_items::<Executor>(&list)? {
        if let Some(why) = &executor.children_unknown {
            output::note(&format!("children on {} are not known: {why}", executor.agent));
        }
        if executor.children_more {
            output::note(&format!("{} has more children than it lists", executor.agent));
        }
        let state = if executor.live { "lives" } else { "ended" };
        rows.push(vec![
            executor.executor.clone(),
            executor.agent.clone(),
            executor.tasks.to_string(),
            String::new(),
            state.to_owned(),
        ]);
        for child in executor.children {
            let state = child.state.unwrap_or_else(|| "forgotten".to_owned());
            rows.push(vec![
                executor.executor.clone(),
                executor.agent.clone(),
                String::new(),
                child.child,
                state,
            ]);
        }
    }
    output::table(
        &[col("EXECUTOR"), col("AGENT"), col("TASKS"), text("CHILD"), col("STATE")],
        rows,
        "no executors live; with --agent those that ended there are shown",
    )
}

/// Print what a child wrote.
///
/// # Errors
/// When there is no such child or file, or the cluster cannot be reached.
pub async fn child_logs(client: &Client, args: &ChildLogsArgs) -> Result<(), CliError> {
    let usual = if args.stderr { "stderr" } else { "stdout" };
    let path = args.file.as_deref().unwrap_or(usual);
    let framework = names::framework(client, &args.framework, names::Say::Enough).await?;
    let mut segments = vec!["v1", "frameworks", framework.as_str(), "executors"];
    segments.extend([args.executor.as_str(), "children", args.child.as_str(), "files"]);
    segments.extend(path.split('/'));
    let mut tail = Tail::new(&segments).on_agent(args.agent.as_deref());
    // Later a file that is not there has not grown; that there is none at all is told.
    tail.check(client).await?;
    loop {
        let chunk = tail.next(client).await?;
        if chunk.is_empty() {
            return Ok(());
        }
        output::write(&chunk)?;
    }
}
