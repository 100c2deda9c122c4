//! `tessera framework test`: give a scheduler what a script says, without a cluster, and show what it does.
//!
//! Invariants: a scheduler runs in a process of its own, under the limits of a cluster; the same script and
//! component give the same lines. Must never ask a cluster.

mod play;
mod script;
mod show;

use crate::commands::framework_build;
use crate::commands::master::bin_dir;
use crate::error::{CliError, Kind, io_error};
use crate::{Context, output};
use play::{Outcome, Play};
use script::{Expected, Script};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What happens when nobody says anything: an offer, and a request.
const DEFAULT_SCRIPT: &str = "[[step]]\noffers = [{ agent = 1, cpus = 4, mem_mib = 4096, disk_mib = 4096 }]\n\n\
                              [[step]]\nhttp = { path = \"/\" }\n";

/// Arguments of `tessera framework test`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera framework test                                  # the project here, all of tests/*.toml\n  tessera framework test hello.wasm --script first.toml\n  tessera framework test hello.wasm                       # one offer, one request, and what it does\n\nA script, in which each `expect` has to be the beginning of a line of its step (`*` is anything):\n\n  [framework]\n  config = { count = \"2\" }\n\n  [[step]]\n  offers = [{ agent = 1, cpus = 4, mem_mib = 1024 }]\n  expect = [\"launch task-1.1 on a1\"]\n  never = [\"kill\"]\n\n  [[step]]\n  after = \"5s\"                      # timers that are due fire\n  updates = [{ task = \"task-1.1\", state = \"TASK_FAILED\", exit_code = 1 }]\n\nAlso: http, config, state, rescind, timers, messages, agents, restart, fails. Exit code 1: something is not\nas expected."
)]
pub struct TestArgs {
    /// A component, or the directory of a project, which is built first
    #[arg(value_name = "COMPONENT|DIR", default_value = ".")]
    target: PathBuf,
    /// A script, TOML or JSON Lines; may be repeated [default: tests/*.toml and *.jsonl of the project]
    #[arg(long, value_name = "FILE")]
    script: Vec<PathBuf>,
    /// Directory of tessera-worker [default: that of this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// Run it.
///
/// # Errors
/// When the component does not build or cannot be used, a script cannot be read, or something is not as
/// expected.
pub async fn run(context: &Context, args: TestArgs) -> Result<(), CliError> {
    let is_project = args.target.is_dir();
    let scripts = match (args.script.is_empty(), is_project) {
        (false, _) => args.script,
        (true, true) => scripts_of(&args.target)?,
        (true, false) => Vec::new(),
    };
    // Read before anything is built, so that a mistake is told at once.
    let mut read = Vec::new();
    for path in &scripts {
        let name = path.strip_prefix(".").unwrap_or(path).display().to_string();
        read.push((name, script::read(path)?));
    }
    if read.is_empty() {
        let script = script::from_toml(DEFAULT_SCRIPT).map_err(CliError::failed)?;
        read.push(("one offer and one request".to_owned(), script));
    }
    let component = match is_project {
        true => framework_build::build(&args.target).await?,
        false => args.target,
    };
    let worker = bin_dir(args.bin_dir)?.join("tessera-worker");
    let (mut documents, mut wrong) = (Vec::new(), 0);
    for (name, script) in &read {
        let (document, differences) = one(context, &worker, &component, name, script).await?;
        documents.push(document);
        wrong += differences;
    }
    if context.is_data() {
        output::document(&Value::Array(documents))?;
    }
    match wrong {
        0 => Ok(()),
        1 => Err(CliError::failed("1 thing is not as expected")),
        _ => Err(CliError::failed(format!("{wrong} things are not as expected"))),
    }
}

fn scripts_of(dir: &Path) -> Result<Vec<PathBuf>, CliError> {
    let dir = dir.join("tests");
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("read", &dir, &error)),
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "toml" || e == "jsonl")).collect();
    paths.sort();
    Ok(paths)
}

/// Play one script; its document, and how much is not as expected.
async fn one(
    context: &Context,
    worker: &Path,
    component: &Path,
    name: &str,
    script: &Script,
) -> Result<(Value, usize), CliError> {
    let say = |text: &str| if context.is_data() { Ok(()) } else { output::line(text) };
    say(name)?;
    let at = |number: usize, error: CliError| match error.kind {
        Kind::Usage => CliError { message: format!("{name}, step {number}: {}", error.message), ..error },
        _ => error,
    };
    let mut play = Play::start(worker, component, script)?;
    let (mut steps, mut wrong) = (Vec::new(), 0);
    let begun = play.begin(script).await?;
    let mut outcomes = vec![(0, None, begun, &script.framework.expected)];
    for (number, step) in (1..).zip(&script.steps) {
        let outcome = play.step(step).await.map_err(|error| at(number, error))?;
        outcomes.push((number, step.name.as_deref(), outcome, &step.expected));
    }
    for (number, title, outcome, expected) in outcomes {
        let (document, lines, differences) = judge(number, title, &outcome, expected);
        for line in lines {
            say(&line)?;
        }
        steps.push(document);
        wrong += differences;
    }
    let unanswered = play.unanswered();
    if !unanswered.is_empty() {
        let ids = unanswered.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        output::note(&format!(
            "offers were never answered: {ids}. Accept each, decline it (turn.decline), or suppress offers: whoever \
             keeps them comes after others"
        ));
    }
    say(&match wrong {
        0 => format!("{name}: ok, {} steps", script.steps.len()),
        _ => format!("{name}: {wrong} not as expected"),
    })?;
    let document = json!({"script": name, "ok": wrong == 0, "steps": steps, "unanswered_offers": unanswered});
    Ok((document, wrong))
}

/// What a step came to: for scripts, for people, and how much is not as expected.
fn judge(number: usize, title: Option<&str>, outcome: &Outcome, expected: &Expected) -> (Value, Vec<String>, usize) {
    let differences = expected.differences(&outcome.lines, outcome.failure.as_deref());
    let events = match outcome.events.is_empty() {
        true => "nothing happens".to_owned(),
        false => outcome.events.join("; "),
    };
    let title = title.map(|title| format!("{title}: ")).unwrap_or_default();
    let mut lines = vec![format!("{number:>3}  {title}{events}")];
    lines.extend(outcome.lines.iter().map(|line| format!("       {line}")));
    lines.extend(differences.iter().map(|text| format!("     ! {text}")));
    let document = json!({
        "step": number,
        "events": outcome.events,
        "lines": outcome.lines,
        "failure": outcome.failure,
        "differences": differences,
    });
    (document, lines, differences.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_script_can_be_read() {
        assert_eq!(script::from_toml(DEFAULT_SCRIPT).unwrap().steps.len(), 2);
    }

    #[test]
    fn what_differs_is_shown_at_its_step() {
        let outcome = Outcome {
            events: vec!["offer 1".into()],
            lines: vec!["decline 1 for 5s".into()],
            failure: None,
        };
        let expected = Expected { expect: vec!["launch".into()], ..Expected::default() };
        let (document, lines, wrong) = judge(2, Some("first"), &outcome, &expected);
        assert_eq!(wrong, 1);
        assert_eq!(lines, ["  2  first: offer 1", "       decline 1 for 5s", "     ! expected, and not there: launch"]);
        assert_eq!(document["differences"][0], "expected, and not there: launch");
    }
}
