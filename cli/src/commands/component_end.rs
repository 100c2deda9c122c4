//! `tessera component rm` and `prune`: components come to an end. The masters say who uses one, and refuse
//! to remove it as long as anybody does.
//!
//! Must never decide what is used.

use crate::api::{Component, ComponentUse, read, read_items};
use crate::client::Client;
use crate::error::{CliError, Kind};
use crate::list::all_items;
use crate::wait::YesArgs;
use crate::{Context, output};
use serde_json::{Value, json};
use tessera_types::{Digest, parse_duration};

/// Digits that the beginning of a digest has at least: fewer are a slip more often than meant.
const DIGITS_MIN: usize = 4;

/// What to remove.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera component rm sha256:0f3a…\n  tessera component rm 0f3a 77b1 --dry-run\n\nOne that a framework runs or may go back to, a live task or an executor uses is refused, and they are named.\nThe masters keep its file for a day (--component-grace-s), then it is gone."
)]
pub struct RmArgs {
    /// Their digests, or how they begin
    #[arg(required = true, value_name = "DIGEST")]
    digests: Vec<String>,
    /// Only say what would be removed, and what is used by whom
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    yes: YesArgs,
}

/// What to tidy up.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera component prune --dry-run\n  tessera component prune --older-than 7d\n  tessera component prune --all\n\nCommands and executors are used only while their tasks live: a framework that starts such tasks now and then\nneeds its component between them too. They go with --all only."
)]
pub struct PruneArgs {
    /// Only those that were added so long ago
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1d")]
    older_than: u64,
    /// Commands and executors too
    #[arg(long)]
    all: bool,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    yes: YesArgs,
}

/// The one digest that begins so; a whole one is not looked for.
///
/// # Errors
/// When none begins so, or several do.
pub async fn digest_of(client: &Client, text: &str) -> Result<String, CliError> {
    if text.parse::<Digest>().is_ok() {
        return Ok(text.to_owned());
    }
    let list = all_items(client, client.get(&["v1", "components"])).await?;
    let digests: Vec<String> = read_items::<Component>(&list)?.into_iter().map(|c| c.digest).collect();
    beginning(text, &digests)
}

fn beginning(text: &str, digests: &[String]) -> Result<String, CliError> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    if digits.len() < DIGITS_MIN || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        let text = format!("{text:?} is no digest: sha256: and 64 hexadecimal digits, or the first {DIGITS_MIN} or more of them");
        return Err(CliError::new(Kind::Usage, text));
    }
    let begins = |digest: &&String| digest.strip_prefix("sha256:").is_some_and(|hex| hex.starts_with(digits));
    let found: Vec<&String> = digests.iter().filter(begins).collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let text = format!("there is no component sha256:{digits}…");
            Err(CliError::new(Kind::NotFound, text).hint("`tessera component ls` lists them"))
        }
        [first, second, ..] => {
            let text = format!("{} components begin with {digits}: {first}, {second}…", found.len());
            Err(CliError::new(Kind::Refused, text).hint("write more of the digest"))
        }
    }
}

/// Who uses a component, as fields.
pub fn uses_of(component: &Component) -> Vec<(&'static str, String)> {
    let mut lines: Vec<String> = component.used_by.iter().map(told).collect();
    match component.uses.saturating_sub(lines.len()) {
        0 if lines.is_empty() => lines.push("nothing".to_owned()),
        0 => {}
        more => lines.push(format!("and {more} more")),
    }
    let names = std::iter::once("used by").chain(std::iter::repeat(""));
    names.zip(lines).collect()
}

fn told(used: &ComponentUse) -> String {
    let what = match (used.used_as.as_str(), used.tasks, &used.executor) {
        ("current", ..) => "the version in force".to_owned(),
        ("next", ..) => "the version on trial".to_owned(),
        ("previous", ..) => "the version that a rollback goes back to".to_owned(),
        (_, Some(1), _) => "1 live task".to_owned(),
        (_, Some(tasks), _) => format!("{tasks} live tasks"),
        (_, None, Some(executor)) => {
            format!("executor {executor} on {}", used.agent.as_deref().unwrap_or("an agent"))
        }
        (other, None, None) => other.to_owned(),
    };
    format!("framework {}: {what}", used.name)
}

/// Ask for the end of one component; what the master answers.
async fn end(client: &Client, digest: &str, dry_run: bool) -> Result<Value, CliError> {
    let mut request = client.delete(&["v1", "components", digest]);
    if dry_run {
        request = request.query("dry_run", true);
    }
    client.json(request).await
}

/// Remove components. Those after one that is refused are removed all the same, and the command fails.
///
/// # Errors
/// When one of them is refused, or is not there.
pub async fn remove(context: &Context, client: &Client, args: &RmArgs) -> Result<(), CliError> {
    if !args.dry_run {
        args.yes.confirm(&format!("{} are removed.", args.digests.join(", ")))?;
    }
    let mut answers = Vec::new();
    let mut failed = None;
    for text in &args.digests {
        let answer = match digest_of(client, text).await {
            Ok(digest) => end(client, &digest, args.dry_run).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => {
                if !context.is_data() {
                    said(&answer)?;
                }
                answers.push(answer);
            }
            // The last one is told by the command's end.
            Err(error) => {
                if let Some(before) = failed.replace(error) {
                    output::note(&before.to_string());
                }
            }
        }
    }
    if context.is_data() {
        output::document(&json!({"items": answers}))?;
    }
    failed.map_or(Ok(()), Err)
}

/// What became of a component, or would.
fn said(answer: &Value) -> Result<(), CliError> {
    let component: Component = read(answer)?;
    let removed = answer.get("removed").and_then(Value::as_bool) == Some(true);
    match (removed, component.uses) {
        (true, _) => output::line(&format!("{} removed", component.digest)),
        (false, 0) => output::line(&format!("{} would be removed", component.digest)),
        (false, uses) => {
            let used: Vec<String> = component.used_by.iter().map(told).collect();
            let more = match uses - used.len().min(uses) {
                0 => String::new(),
                more => format!("; and {more} more"),
            };
            let text = format!("{} would be refused: used by {}{more}", component.digest, used.join("; "));
            output::line(&output::clean(&text))
        }
    }
}

/// Remove what nothing uses. What is used by the time its turn comes stays.
///
/// # Errors
/// When the cluster cannot be reached, or refuses for another reason than that.
pub async fn prune(context: &Context, client: &Client, args: &PruneArgs) -> Result<(), CliError> {
    if !args.dry_run {
        args.yes.confirm("Components that nothing uses are removed; --dry-run lists them.")?;
    }
    let list = all_items(client, client.get(&["v1", "components"])).await?;
    let before = output::now_ms().saturating_sub(args.older_than);
    let chosen = read_items::<Component>(&list)?.into_iter().filter(|c| {
        c.uses == 0 && c.uploaded_ms <= before && (args.all || c.world == "scheduler")
    });
    let (mut answers, mut bytes) = (Vec::new(), 0);
    for component in chosen {
        match end(client, &component.digest, args.dry_run).await {
            Ok(answer) => {
                if !context.is_data() {
                    said(&answer)?;
                }
                bytes += component.size;
                answers.push(answer);
            }
            // Somebody uses it by now, or was faster.
            Err(error) if matches!(error.status, Some(404 | 409)) => output::note(&error.to_string()),
            Err(error) => return Err(error),
        }
    }
    if context.is_data() {
        return output::document(&json!({"items": answers, "bytes": bytes}));
    }
    let verb = if args.dry_run { "would be removed" } else { "removed" };
    let what = match answers.len() {
        1 => "1 component".to_owned(),
        count => format!("{count} components"),
    };
    output::note(&format!("{what} {verb}, {}", output::bytes(bytes)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_found_by_how_they_begin() {
        let digest = |first: &str| format!("sha256:{first:0<64}");
        let digests = [digest("0f3a1"), digest("0f3a2"), digest("77b1")];
        for (text, found) in [
            ("77b1", Ok(2)),
            ("sha256:77b1", Ok(2)),
            ("0f3a2", Ok(1)),
            ("0f3a", Err(Kind::Refused)),
            ("0f3b", Err(Kind::NotFound)),
            ("77b", Err(Kind::Usage)),
            ("77B1", Err(Kind::Usage)),
            ("wordcount.wasm", Err(Kind::Usage)),
        ] {
            let answer = beginning(text, &digests).map_err(|error| error.kind);
            assert_eq!(answer, found.map(|at: usize| digests[at].clone()), "{text}");
        }
    }

    #[test]
    fn uses_are_told_in_words() {
        let used = |text: &str| serde_json::from_str::<ComponentUse>(text).unwrap();
        for (json, text) in [
            (r#"{"name":"w","as":"current"}"#, "framework w: the version in force"),
            (r#"{"name":"w","as":"spec","tasks":2}"#, "framework w: 2 live tasks"),
            (r#"{"name":"w","as":"executor","executor":"e","agent":"a1"}"#, "framework w: executor e on a1"),
            (r#"{"name":"w","as":"later"}"#, "framework w: later"),
        ] {
            assert_eq!(told(&used(json)), text);
        }
    }
}
