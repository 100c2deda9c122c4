//! `tessera framework recordings` and `replay`: fetch what an agent recorded of a scheduler's instance, and
//! run it again on this machine, in a process of its own.
//!
//! Must never run a guest: that is the worker's business, whose verdict is shown in words here.

use crate::api::{Recording, read, read_items};
use crate::client::Client;
use crate::commands::component;
use crate::commands::master::bin_dir;
use crate::error::{CliError, Kind, io_error};
use crate::output::{col, text};
use crate::{Context, names, output};
use serde::Deserialize;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tessera_types::Digest;
use tessera_wire::recording::{Unsealed, Unsealer};
use tessera_wire::v1::recording_item::Item;

/// Exit code of the worker when the replay goes another way.
const WORKER_DIVERGED: i32 = 3;
/// Exit code of `tessera framework replay` then: none of those that other failures have.
const DIVERGED: u8 = 6;

/// Arguments of `tessera framework recordings`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tessera framework recordings words")]
pub struct RecordingsArgs {
    /// Name or id
    framework: String,
    /// Only those of this agent [default: the one that hosts the scheduler; all if none does]
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
}

/// Arguments of `tessera framework replay`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera framework replay words\n  tessera framework replay words --recording e3-1 --keep /tmp/words\n  tessera framework replay words --component fixed.wasm   # where would this one have acted otherwise?\n\nTurns are compared byte for byte up to the first that differs. What could not be compared is said: a\nrecording that stopped at its limit, and turns that ended for want of time.\n\nExit codes: 0 no compared turn differs, 6 one does, or the recording was altered, 1 it could not be\nreplayed; others as for every command."
)]
pub struct ReplayArgs {
    /// Name or id
    framework: String,
    /// Which recording, as `recordings` lists them [default: the newest]
    #[arg(long, value_name = "ID")]
    recording: Option<String>,
    /// The agent that has it [default: the one that hosts the scheduler; any if none does]
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// Another component than the recorded one
    #[arg(long, value_name = "FILE")]
    component: Option<PathBuf>,
    /// Keep recording and component in this directory
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Directory of tessera-worker [default: that of this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// What the worker found.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Verdict {
    turns: u64,
    equal: bool,
    divergence: Option<Divergence>,
    /// Digest of the recorded component.
    component: String,
    /// Another one was run.
    component_changed: bool,
    /// Recording stopped before this turn.
    stopped: Option<u64>,
    unreplayed: Option<Unreplayed>,
}

/// What ended the replay early without being a difference.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Unreplayed {
    turn: u64,
    why: String,
}

/// The first difference.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Divergence {
    turn: u64,
    kind: String,
    expected: Value,
    got: Value,
}

async fn find(client: &Client, framework: &str, agent: Option<&str>) -> Result<Value, CliError> {
    let request = client.get(&["v1", "frameworks", framework, "recordings"]);
    let request = match agent {
        Some(agent) => request.query("agent", agent),
        None => request,
    };
    client.json(request).await
}

/// List recordings.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn recordings(
    context: &Context,
    client: &Client,
    args: &RecordingsArgs,
) -> Result<(), CliError> {
    let framework = names::framework(client, &args.framework, names::Say::Enough).await?;
    let list = find(client, &framework, args.agent.as_deref()).await?;
    if context.is_data() {
        return output::document(&list);
    }
    let rows = read_items::<Recording>(&list)?
        .into_iter()
        .map(|r| {
            let turns = match (r.first_turn, r.last_turn) {
                (Some(first), Some(last)) => format!("{first} to {last}"),
                _ => "none".to_owned(),
            };
            let state = match (r.stopped, r.live) {
                (true, _) => "stopped at its limit",
                (false, true) => "goes on",
                (false, false) => "ended",
            };
            vec![
                r.id,
                r.agent,
                output::bytes(r.bytes),
                turns,
                state.to_owned(),
            ]
        })
        .collect();
    output::table(
        &[col("RECORDING"), col("AGENT"), col("SIZE"), col("TURNS"), text("STATE")],
        rows,
        "no recordings; the limit recording-bytes of the role may be 0",
    )
}

/// Fetch a recording and run it again.
///
/// # Errors
/// When it cannot be had or run, or goes another way.
pub async fn replay(context: &Context, client: &Client, args: ReplayArgs) -> Result<(), CliError> {
    let list = find(client, &args.framework, args.agent.as_deref()).await?;
    let chosen = choose(
        read_items(&list)?,
        args.recording.as_deref(),
        &args.framework,
    )?;
    // Removed when it is dropped, at the end of this function.
    let temporary = tempfile::tempdir()
        .map_err(|error| io_error("make a directory in", &std::env::temp_dir(), &error))?;
    let dir = args.keep.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(dir).map_err(|error| io_error("make", dir, &error))?;
    let recording = dir.join(format!("{}.rec", chosen.id));
    let mut file =
        File::create(&recording).map_err(|error| io_error("write", &recording, &error))?;
    let request = client
        .get(&[
            "v1",
            "frameworks",
            &args.framework,
            "recordings",
            &chosen.id,
        ])
        .query("agent", &chosen.agent);
    client.save(request, &mut file).await?;
    drop(file);
    let component = match &args.component {
        Some(file) => file.clone(),
        None => {
            let digest = recorded_component(&recording)?;
            let file = dir.join(format!("{}.wasm", digest.hex()));
            component::fetch(client, &digest.to_string(), &file).await?;
            file
        }
    };
    let worker = bin_dir(args.bin_dir)?.join("tessera-worker");
    let value = run_worker(&worker, &recording, &component, args.component.is_some()).await?;
    if args.keep.is_some() {
        output::note(&format!(
            "kept {} and {}",
            recording.display(),
            component.display()
        ));
    }
    tell(context, &chosen, &value)
}

fn choose(found: Vec<Recording>, id: Option<&str>, framework: &str) -> Result<Recording, CliError> {
    let chosen = match id {
        Some(id) => found.into_iter().find(|recording| recording.id == id),
        None => found
            .into_iter()
            .max_by_key(|recording| (recording.epoch, recording.life)),
    };
    chosen.ok_or_else(|| {
        let text = match id {
            Some(id) => format!("there is no recording {id} of {framework}"),
            None => format!("nothing of {framework} was recorded"),
        };
        CliError::new(Kind::NotFound, text).hint(format!(
            "`tessera framework recordings {framework}` lists them; --agent names another agent"
        ))
    })
}

/// The component that a recording was made of.
fn recorded_component(recording: &Path) -> Result<Digest, CliError> {
    let unreadable =
        || CliError::failed("the recording does not begin as one: it was damaged or replaced");
    let file = File::open(recording).map_err(|error| io_error("read", recording, &error))?;
    let mut items = Unsealer::new(std::io::BufReader::new(file));
    let first = items
        .next_item()
        .map_err(|error| io_error("read", recording, &error))?;
    match first {
        Some(Unsealed::Item(Item::Header(header))) => {
            Digest::from_slice(&header.component).map_err(|_| unreadable())
        }
        _ => Err(unreadable()),
    }
}

async fn run_worker(
    worker: &Path,
    recording: &Path,
    component: &Path,
    changed: bool,
) -> Result<Value, CliError> {
    let mut command = tokio::process::Command::new(worker);
    command
        .arg("replay")
        .arg("--recording")
        .arg(recording)
        .arg("--component")
        .arg(component)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if changed {
        command.arg("--component-changed");
    }
    let answer = command
        .output()
        .await
        .map_err(|error| io_error("run", worker, &error))?;
    let told = matches!(answer.status.code(), Some(0 | WORKER_DIVERGED));
    match serde_json::from_slice(&answer.stdout) {
        Ok(value) if told => Ok(value),
        _ => {
            let said = [answer.stdout, answer.stderr].concat();
            let said = String::from_utf8_lossy(&said).trim().to_owned();
            Err(CliError::failed(format!(
                "the recording could not be replayed: {said}"
            )))
        }
    }
}

/// Show the verdict.
fn tell(context: &Context, recording: &Recording, value: &Value) -> Result<(), CliError> {
    let verdict: Verdict = read(value)?;
    if context.is_data() {
        output::document(value)?;
    } else {
        for line in in_words(&recording.id, &verdict) {
            output::line(&line)?;
        }
    }
    if verdict.equal {
        return Ok(());
    }
    let Divergence {
        turn,
        kind,
        expected,
        got,
    } = verdict.divergence.unwrap_or_default();
    if !context.is_data() {
        output::fields(&[("expected", words(&expected)), ("got", words(&got))])?;
    }
    Err(CliError::failed(format!(
        "the replay of {} diverges at turn {turn} ({kind})",
        recording.id
    ))
    .exit(DIVERGED))
}

/// The verdict, line by line, with what was not compared.
fn in_words(id: &str, verdict: &Verdict) -> Vec<String> {
    let turns = verdict.turns;
    let mut lines = vec![match &verdict.divergence {
        Some(Divergence { turn, kind, .. }) => {
            format!("{id}: {turns} turns are the same, turn {turn} is not: {kind}")
        }
        None => format!("{id}: {turns} turns, all the same byte for byte"),
    }];
    if verdict.component_changed {
        lines.push(format!(
            "another component was run than the recorded {}",
            verdict.component
        ));
    }
    if let Some(turn) = verdict.stopped {
        lines.push(format!(
            "turn {turn} and later ones are not in the recording: it had reached its limit recording-bytes"
        ));
    }
    if let Some(Unreplayed { turn, why }) = &verdict.unreplayed {
        lines.push(format!("not compared from turn {turn} on: {why}"));
    }
    lines
}

fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn recording(id: &str, epoch: u64, life: u64) -> Recording {
        Recording {
            id: id.into(),
            epoch,
            life,
            ..Recording::default()
        }
    }

    #[test]
    fn the_newest_life_is_chosen() {
        let found = || {
            vec![
                recording("e3-1", 3, 1),
                recording("e10-2", 10, 2),
                recording("e10-1", 10, 1),
            ]
        };
        assert_eq!(choose(found(), None, "w").unwrap().id, "e10-2");
        assert_eq!(choose(found(), Some("e3-1"), "w").unwrap().id, "e3-1");
        let error = choose(found(), Some("e4-1"), "w").unwrap_err();
        assert!(error.kind == Kind::NotFound && error.to_string().contains("e4-1"));
        assert_eq!(
            choose(Vec::new(), None, "w").unwrap_err().kind,
            Kind::NotFound
        );
    }

    #[test]
    fn what_was_not_compared_is_said() {
        let all = "e1-1: 7 turns, all the same byte for byte";
        let cases = [
            (json!({}), vec![all]),
            (
                json!({"component": "sha256:0f", "component_changed": true}),
                vec![all, "another component was run than the recorded sha256:0f"],
            ),
            (
                json!({"stopped": 8}),
                vec![
                    all,
                    "turn 8 and later ones are not in the recording: it had reached its limit recording-bytes",
                ],
            ),
            (
                json!({"unreplayed": {"turn": 8, "why": "it ran out of time"}}),
                vec![all, "not compared from turn 8 on: it ran out of time"],
            ),
            (
                json!({"equal": false, "divergence": {"turn": 8, "kind": "writes"}}),
                vec!["e1-1: 7 turns are the same, turn 8 is not: writes"],
            ),
        ];
        for (more, expected) in cases {
            let mut value = json!({"turns": 7, "equal": true});
            let fields = value.as_object_mut().unwrap();
            fields.extend(more.as_object().unwrap().clone());
            assert_eq!(in_words("e1-1", &read(&value).unwrap()), expected);
        }
    }

    #[test]
    fn a_recording_says_of_which_component_it_is() {
        use tessera_wire::recording::Sealer;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e1-1.rec");
        let digest = Digest::of(b"component");
        let header = tessera_wire::v1::RecordingHeader {
            component: digest.0.to_vec(),
            ..Default::default()
        };
        let mut bytes = Vec::new();
        Sealer::default().seal(Item::Header(header), &mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(recorded_component(&path).unwrap(), digest);
        bytes[10] ^= 1;
        for bad in [&bytes[..], b"", b"garbage that is long enough"] {
            std::fs::write(&path, bad).unwrap();
            assert!(recorded_component(&path).is_err());
        }
    }
}
