//! `tessera operation`: what is under way in the cluster, and what it waits for.
//!
//! Must never decide when something is over.

use crate::api::{Operation, read};
use crate::error::CliError;
use crate::list::{self, List, WatchArgs};
use crate::output::{Column, col, text};
use crate::{Context, names, output};
use serde_json::Value;
use std::process::ExitCode;

/// What to do with operations.
#[derive(Debug, clap::Subcommand)]
pub enum OperationCommand {
    /// List what is under way: kills, drains, upgrades, migrations, removals, placements
    #[command(
        after_help = "Examples:\n  tessera operation ls\n  tessera operation ls --kind drain -w\n  tessera operation ls --framework words -o json"
    )]
    Ls {
        /// Only those of this framework
        #[arg(long, value_name = "FRAMEWORK")]
        framework: Option<String>,
        /// Only of this kind: kill, drain, upgrade, migration, removal, placement, maintenance or preemption
        #[arg(long, value_name = "KIND")]
        kind: Option<String>,
        #[command(flatten)]
        watch: WatchArgs,
    },
}

const COLUMNS: [Column; 5] = [col("ID"), col("KIND"), text("ABOUT"), text("WAITS-FOR"), col("AGE")];

/// Run it.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn run(context: &Context, command: OperationCommand) -> Result<ExitCode, CliError> {
    let OperationCommand::Ls { framework, kind, watch } = command;
    let client = context.client()?;
    let mut request = client.get(&["v1", "operations"]);
    if let Some(framework) = framework {
        request = request.query("framework", names::framework(&client, &framework, names::Say::Enough).await?);
    }
    if let Some(kind) = kind {
        request = request.query("kind", kind);
    }
    let list = List { columns: &COLUMNS, row: &row, keep: &|_| true, empty: "nothing is under way" };
    names::known(list::show(context, &client, request, &list, watch).await, "/v1/operations")?;
    Ok(ExitCode::SUCCESS)
}

fn row(value: &Value, now: u64) -> Result<Vec<String>, CliError> {
    let o: Operation = read(value)?;
    let about = match (o.framework_name.or(o.framework), o.task, o.agent) {
        (Some(framework), Some(task), _) => format!("{framework}/{task}"),
        (Some(framework), None, Some(agent)) => format!("{framework} on {agent}"),
        (Some(one), None, None) | (None, _, Some(one)) => one,
        (None, task, None) => task.unwrap_or_default(),
    };
    Ok(vec![o.id, o.kind, about, output::with_times(&o.waits_for.join("; ")), output::age(o.since_ms.unwrap_or_default(), now)])
}

#[cfg(test)]
mod tests {
    use super::row;
    use serde_json::json;

    #[test]
    fn operations_say_what_they_are_about() {
        for (value, about) in [
            (json!({"kind": "kill", "framework": "f1", "task": "t", "agent": "a1"}), "f1/t"),
            (json!({"kind": "kill", "framework": "f1", "framework_name": "words", "task": "t"}), "words/t"),
            (json!({"kind": "placement", "framework": "f1", "agent": "a1"}), "f1 on a1"),
            (json!({"kind": "drain", "agent": "a1"}), "a1"),
            (json!({"kind": "upgrade", "framework": "f1"}), "f1"),
        ] {
            assert_eq!(row(&value, 0).unwrap()[2], about);
        }
    }
}
