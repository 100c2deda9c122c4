//! `tessera explain`: why a role, a framework, a request or a task gets nothing, in the masters' words.
//!
//! Must never guess: what is shown is what the allocator decided by.

use crate::api::{Explanation, read};
use crate::client::Request;
use crate::error::CliError;
use crate::list::{self, WatchArgs};
use crate::names::TaskArg;
use crate::{Context, names, output};
use serde_json::Value;
use std::process::ExitCode;

/// What is to be explained.
#[derive(Debug, clap::Subcommand)]
pub enum ExplainCommand {
    /// Why a role gets what it gets
    #[command(after_help = "Example:\n  tessera explain role eng/search")]
    Role {
        /// The role
        #[arg(value_parser = names::parse_role)]
        role: String,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Why a framework gets what it gets, or one of its requests
    #[command(after_help = "Examples:\n  tessera explain framework words\n  tessera explain framework words --request big")]
    Framework {
        /// Name or id, or how the name begins
        framework: String,
        /// Id of one of its requests
        #[arg(long, value_name = "REQUEST")]
        request: Option<String>,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Why a task is not running
    #[command(after_help = "Examples:\n  tessera explain task words count-7\n  tessera explain task words/count-7")]
    Task {
        #[command(flatten)]
        task: TaskArg,
        #[command(flatten)]
        watch: WatchArgs,
    },
}

/// Run it.
///
/// # Errors
/// When there is nothing of that name, or the cluster cannot be reached.
pub async fn run(context: &Context, command: ExplainCommand) -> Result<ExitCode, CliError> {
    let client = context.client()?;
    let about: Request = client.get(&["v1", "explain"]);
    let (request, watch) = match command {
        ExplainCommand::Role { role, watch } => (about.query("role", role), watch),
        ExplainCommand::Framework { framework, request, watch } => {
            let about = about.query("framework", names::framework(&client, &framework, names::Say::Enough).await?);
            let about = match request {
                Some(request) => about.query("request", request),
                None => about,
            };
            (about, watch)
        }
        ExplainCommand::Task { task, watch } => {
            let (framework, task) = names::task(&client, &task, names::Say::Enough).await?;
            (about.query("framework", framework).query("task", task), watch)
        }
    };
    let shown = list::show_one(context, &client, request, watch, async |value| show(value)).await;
    names::known(shown, "/v1/explain")?;
    Ok(ExitCode::SUCCESS)
}

fn show(value: &Value) -> Result<(), CliError> {
    told(&read(value)?).iter().try_for_each(|line| output::line(line))
}

/// The summary, then each reason with the way out below it.
fn told(explanation: &Explanation) -> Vec<String> {
    let mut lines = vec![output::clean(&explanation.summary)];
    for reason in &explanation.reasons {
        let agents = match reason.agents {
            0 => String::new(),
            1 => " (1 agent)".to_owned(),
            many => format!(" ({many} agents)"),
        };
        lines.push(output::clean(&format!("{:<14} {}{agents}", reason.code, reason.text)));
        if !reason.hint.is_empty() {
            lines.push(output::clean(&format!("{:<14} way out: {}", "", reason.hint)));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::told;
    use crate::api::read;
    use serde_json::json;

    #[test]
    fn reasons_stand_below_the_summary_with_their_way_out() {
        let value = json!({"about": "framework words", "summary": "words is offered nothing", "reasons": [
            {"code": "QUOTA_LIMIT", "text": "eng is at its quota limit of 4 cpus", "hint": "raise it", "agents": 0},
            {"code": "DECLINED", "text": "it declined", "hint": null, "agents": 3}]});
        assert_eq!(
            told(&read(&value).unwrap()),
            [
                "words is offered nothing",
                "QUOTA_LIMIT    eng is at its quota limit of 4 cpus",
                "               way out: raise it",
                "DECLINED       it declined (3 agents)",
            ]
        );
    }
}
