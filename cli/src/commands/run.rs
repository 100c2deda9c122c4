//! `tessera run -- COMMAND`: one native command through the framework `run`, which is an ordinary
//! component and is created here when it is not there yet.
//!
//! Invariants: a command is submitted once, however often the request is sent; the exit code is the
//! command's. Must never ask for what another scheduler could not ask for.

use crate::api::{Framework, Task, read};
use crate::client::{Client, idempotency_key};
use crate::commands::framework::{create, parse_pair};
use crate::commands::{component, task};
use crate::error::{CliError, EXIT_RUN_FAILED, Kind};
use crate::follow::{Pace, Patience, Tail};
use crate::wait::parse_seconds;
use crate::{Context, output};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The built-in framework.
const FRAMEWORK: &str = "run";
const COMPONENT_FILE: &str = "run.wasm";
/// How long its scheduler may take to start: the first time it is compiled.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// What a person waits for without being told why.
const QUIET: Duration = Duration::from_secs(2);
/// How often it is told why.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long a submission is tried: a scheduler that is being rebuilt answers 503 meanwhile.
const SUBMIT_FOR: Duration = Duration::from_secs(60);
/// Code when a second signal comes before the command has ended: 128 + INT, as shells have it.
const EXIT_INTERRUPTED: u8 = 130;
/// How long the last output may take after the command ended, with its agent away.
const DRAIN_FOR: Duration = Duration::from_secs(20);

/// Arguments of `tessera run`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera run -- echo hello\n  tessera run --cpus 0.5 --mem 256 --env LEVEL=9 -- sh -c 'gzip -$LEVEL < /etc/services | wc -c'\n\nEnds with the exit code of the command, 128 + the signal that ended it, or 125 when it could\nnot be run. Ctrl-C kills the command; a second one leaves without waiting for its end."
)]
pub struct RunArgs {
    /// Cores
    #[arg(long, default_value_t = 0.1, value_parser = parse_cpus)]
    cpus: f64,
    /// Memory in MiB
    #[arg(long, default_value_t = 32, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    mem: u64,
    /// A name for people [default: the command]
    #[arg(long)]
    name: Option<String>,
    /// An environment variable; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    env: Vec<(String, String)>,
    /// Kill the command after so long, in seconds or with a unit, counted from its submission
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    timeout: Option<u64>,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn parse_cpus(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(cpus) if (0.001..=1e6).contains(&cpus) => Ok(cpus),
        _ => Err("a number of at least 0.001 is expected".to_owned()),
    }
}

/// A task as the framework shows it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct View {
    launched_as: Option<String>,
    state: String,
    terminal: bool,
    exit_code: Option<i32>,
    signal: Option<i32>,
    message: String,
}

/// Reads a time that is not over at once.
fn parse_timeout(text: &str) -> Result<u64, String> {
    match parse_seconds(text)? {
        0 => Err("at least a second".to_owned()),
        seconds => Ok(seconds),
    }
}

/// Run it.
///
/// # Errors
/// When the command could not be run.
pub async fn run(context: &Context, args: RunArgs) -> Result<ExitCode, CliError> {
    let failed = |error: CliError| {
        if error.kind == Kind::Usage {
            error
        } else {
            error.exit(EXIT_RUN_FAILED)
        }
    };
    let client = context.client().map_err(failed)?;
    ensure_framework(&client).await.map_err(failed)?;
    let timeout = args.timeout.map(Duration::from_secs);
    let id = submit(&client, args).await.map_err(failed)?;
    let mut job = Job::new(&client, &id, timeout);
    let outcome = job.follow().await.map_err(failed)?;
    if context.is_data() {
        output::document(&outcome.document(&id))?;
    }
    if !outcome.message.is_empty() && outcome.exit_code.is_none() {
        output::note(&format!(
            "{id}: {} {}",
            outcome.state,
            output::clean(&outcome.message)
        ));
    }
    Ok(ExitCode::from(outcome.code()))
}

/// Where `run.wasm` may stand, in the order in which it is looked for.
fn component_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    files.extend(
        std::env::var_os("TESSERA_COMPONENTS").map(|dir| PathBuf::from(dir).join(COMPONENT_FILE)),
    );
    if let Some(dir) = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(PathBuf::from))
    {
        files.push(dir.join("components").join(COMPONENT_FILE));
        files.push(
            dir.join("../guests/wasm32-wasip2/release")
                .join(COMPONENT_FILE),
        );
    }
    files
}

/// Creates the framework if it is not there, and waits until its scheduler runs.
async fn ensure_framework(client: &Client) -> Result<(), CliError> {
    let deadline = Instant::now() + START_TIMEOUT;
    let mut quiet_until = Instant::now() + QUIET;
    let mut pace = Pace::default();
    loop {
        let framework: Framework = match client
            .json(client.get(&["v1", "frameworks", FRAMEWORK]))
            .await
        {
            Ok(value) => read(&value)?,
            Err(error) if error.kind == Kind::NotFound => {
                install(client).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        if framework.state == "running" {
            return Ok(());
        }
        let why = match framework.why.is_empty() {
            true => "no reason is given".to_owned(),
            false => framework.why.join("; "),
        };
        let told = format!(
            "the framework `{FRAMEWORK}` is {}: {}",
            framework.state,
            output::clean(&why)
        );
        if Instant::now() > deadline {
            return Err(CliError::new(Kind::Unavailable, told).hint(format!(
                "`tessera framework logs {FRAMEWORK}` may tell more"
            )));
        }
        if Instant::now() > quiet_until {
            output::note(&told);
            quiet_until = Instant::now() + TELL_EVERY;
        }
        pace.wait(false).await;
    }
}

async fn install(client: &Client) -> Result<(), CliError> {
    let files = component_files();
    let Some(file) = files.iter().find(|file| file.is_file()) else {
        let looked: Vec<String> = files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        return Err(CliError::failed(format!(
            "{COMPONENT_FILE} is not there; looked for {}",
            looked.join(", ")
        ))
        .hint("build it with `make guests`, or name its directory in TESSERA_COMPONENTS"));
    };
    let pushed: crate::api::Component = read(&component::push(client, file).await?)?;
    let document = json!({"name": FRAMEWORK, "component": pushed.digest});
    match create(client, document).await {
        Ok(_) => Ok(()),
        // Somebody else was faster, perhaps with another build of it.
        Err(_)
            if client
                .json(client.get(&["v1", "frameworks", FRAMEWORK]))
                .await
                .is_ok() =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn submit(client: &Client, args: RunArgs) -> Result<String, CliError> {
    let env: BTreeMap<String, String> = args.env.into_iter().collect();
    let mut document =
        json!({"argv": args.command, "cpus": args.cpus, "mem_mib": args.mem, "env": env});
    if let (Some(name), Some(object)) = (args.name, document.as_object_mut()) {
        object.insert("name".to_owned(), Value::String(name));
    }
    let request = client
        .post(&["frameworks", FRAMEWORK, "tasks"])
        .header("idempotency-key", idempotency_key("run"))
        .json(document)
        .repeatable()
        .retry_for(SUBMIT_FOR);
    let answer = client.json(request).await?;
    match answer.get("task").and_then(Value::as_str) {
        Some(id) => Ok(id.to_owned()),
        None => Err(CliError::failed(format!(
            "the framework `{FRAMEWORK}` answered without a task id"
        ))),
    }
}

/// How a command ended.
#[derive(Clone, Debug, Default)]
struct Outcome {
    state: String,
    exit_code: Option<i32>,
    signal: Option<i32>,
    message: String,
    timed_out: bool,
}

impl Outcome {
    fn code(&self) -> u8 {
        // As coreutils' `timeout` does.
        if self.timed_out && self.state == "TASK_KILLED" {
            return 124;
        }
        match (self.exit_code, self.signal) {
            (_, Some(signal)) => u8::try_from(128_i32.saturating_add(signal)).unwrap_or(u8::MAX),
            (Some(code), None) => u8::try_from(code & 0xff).unwrap_or(1),
            (None, None) if self.state == "TASK_FINISHED" => 0,
            (None, None) => EXIT_RUN_FAILED,
        }
    }

    fn document(&self, id: &str) -> Value {
        json!({"framework": FRAMEWORK, "task": id, "state": self.state, "exit_code": self.exit_code,
            "signal": self.signal, "message": self.message})
    }
}

/// INT and TERM, none of which is missed once this is made.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| CliError::failed(format!("cannot wait for signals: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A submitted command that is followed to its end.
struct Job<'a> {
    client: &'a Client,
    id: &'a str,
    launched_as: Option<String>,
    stdout: Option<Tail>,
    stderr: Option<Tail>,
    patience: Patience,
    deadline: Option<Instant>,
    killed: bool,
    timed_out: bool,
    quiet_until: Instant,
}

impl<'a> Job<'a> {
    fn new(client: &'a Client, id: &'a str, timeout: Option<Duration>) -> Self {
        Self {
            client,
            id,
            launched_as: None,
            stdout: None,
            stderr: None,
            patience: Patience::default(),
            deadline: timeout.map(|timeout| Instant::now() + timeout),
            killed: false,
            timed_out: false,
            quiet_until: Instant::now() + QUIET,
        }
    }

    async fn follow(&mut self) -> Result<Outcome, CliError> {
        let mut pace = Pace::default();
        let mut signals = Signals::new()?;
        loop {
            tokio::select! {
                step = self.step() => match step? {
                    (Some(outcome), _) => return Ok(outcome),
                    (None, happened) => {
                        tokio::select! {
                            () = pace.wait(happened) => {}
                            () = signals.next() => self.on_interrupt().await?,
                        }
                    }
                },
                () = signals.next() => self.on_interrupt().await?,
            }
            if self
                .deadline
                .is_some_and(|deadline| Instant::now() > deadline)
            {
                self.deadline = None;
                self.timed_out = true;
                output::note(&format!("{} has taken too long and is killed", self.id));
                self.kill().await?;
            }
        }
    }

    async fn on_interrupt(&mut self) -> Result<(), CliError> {
        let id = self.id;
        if self.killed {
            output::note(&format!(
                "left {id} behind: `tessera task inspect {FRAMEWORK} {id}`"
            ));
            return Err(CliError::failed("interrupted").exit(EXIT_INTERRUPTED));
        }
        output::note(&format!(
            "killing {id}; Ctrl-C again leaves without waiting"
        ));
        self.kill().await
    }

    /// Through the framework, which also knows tasks that were not launched yet.
    async fn kill(&mut self) -> Result<(), CliError> {
        self.killed = true;
        let request = self
            .client
            .delete(&["frameworks", FRAMEWORK, "tasks", self.id])
            .repeatable();
        self.client.send(request).await.map(drop)
    }

    /// One look at the task and its output: its outcome if it has ended, and whether there was news.
    async fn step(&mut self) -> Result<(Option<Outcome>, bool), CliError> {
        let Some(launched_as) = self.launched_as.clone() else {
            return self.look_before_launch().await;
        };
        let looked = task::get(self.client, FRAMEWORK, &launched_as).await;
        let task: Task = match looked {
            // The history of tasks is bounded; the framework remembers, too.
            Err(error) if error.kind == Kind::NotFound => {
                self.launched_as = None;
                return self.look_before_launch().await;
            }
            other => match self.patience.judge(other)? {
                Some(value) => read(&value)?,
                None => return Ok((None, false)),
            },
        };
        if task.state == "TASK_DROPPED" {
            // It never started; the framework launches it again under another id.
            self.launched_as = None;
            return Ok((None, true));
        }
        let ended = task.is_terminal();
        let happened = if ended {
            self.drain().await?
        } else {
            let copied = self.copy_output().await;
            self.patience.judge(copied)?.unwrap_or(false)
        };
        if !ended && task.state != "TASK_RUNNING" && task.state != "TASK_KILLING" {
            self.tell_why(
                &task.state,
                task.why
                    .first()
                    .map_or("its agent prepares it", String::as_str),
            );
        }
        let outcome = ended.then(|| Outcome {
            state: task.state,
            exit_code: task.exit_code,
            signal: task.signal,
            message: task
                .message
                .filter(|text| !text.is_empty())
                .or(task.reason)
                .unwrap_or_default(),
            timed_out: self.timed_out,
        });
        Ok((outcome, happened))
    }

    async fn look_before_launch(&mut self) -> Result<(Option<Outcome>, bool), CliError> {
        let looked = self
            .client
            .json(
                self.client
                    .get(&["frameworks", FRAMEWORK, "tasks", self.id]),
            )
            .await;
        let Some(value) = self.patience.judge(looked)? else {
            return Ok((None, false));
        };
        let view: View = read(&value)?;
        if view.terminal {
            if let Some(launched_as) = view.launched_as {
                self.on_launched(launched_as);
                self.drain().await?;
            }
            let outcome = Outcome {
                state: view.state,
                exit_code: view.exit_code,
                signal: view.signal,
                message: view.message,
                timed_out: self.timed_out,
            };
            return Ok((Some(outcome), true));
        }
        match view.launched_as {
            Some(launched_as) => {
                self.on_launched(launched_as);
                Ok((None, true))
            }
            None => {
                self.tell_why(&view.state, &view.message);
                Ok((None, false))
            }
        }
    }

    fn on_launched(&mut self, launched_as: String) {
        self.stdout = Some(Tail::of_task(FRAMEWORK, &launched_as, "stdout"));
        self.stderr = Some(Tail::of_task(FRAMEWORK, &launched_as, "stderr"));
        self.launched_as = Some(launched_as);
    }

    fn tell_why(&mut self, state: &str, why: &str) {
        if Instant::now() > self.quiet_until {
            output::note(&format!(
                "{} waits ({state}): {}",
                self.id,
                output::clean(why)
            ));
            self.quiet_until = Instant::now() + TELL_EVERY;
        }
    }

    /// Everything that is left of the output of a task that has ended.
    async fn drain(&mut self) -> Result<bool, CliError> {
        let deadline = Instant::now() + DRAIN_FOR;
        let mut happened = false;
        loop {
            match self.copy_output().await {
                Ok(true) => happened = true,
                Ok(false) => return Ok(happened),
                Err(error) if error.kind == Kind::Unavailable && Instant::now() < deadline => {}
                Err(error) if error.kind == Kind::Unavailable => {
                    output::note(&format!("the end of the output cannot be had: {error}"));
                    return Ok(happened);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Copies what has come; whether there was anything.
    async fn copy_output(&mut self) -> Result<bool, CliError> {
        let mut happened = false;
        if let Some(tail) = self.stdout.as_mut() {
            let chunk = tail.next(self.client).await?;
            happened |= !chunk.is_empty();
            output::write(&chunk)?;
        }
        if let Some(tail) = self.stderr.as_mut() {
            let chunk = tail.next(self.client).await?;
            happened |= !chunk.is_empty();
            // Nobody is left to be told when this fails.
            let _ = std::io::stderr().lock().write_all(&chunk);
        }
        Ok(happened)
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, parse_cpus};
    use crate::client::idempotency_key;

    #[test]
    fn exit_codes_are_the_commands() {
        let outcome = |state: &str, exit_code, signal| Outcome {
            state: state.into(),
            exit_code,
            signal,
            ..Outcome::default()
        };
        let cases = [
            (outcome("TASK_FINISHED", Some(0), None), 0),
            (outcome("TASK_FAILED", Some(7), None), 7),
            (outcome("TASK_FAILED", None, Some(9)), 137),
            (outcome("TASK_KILLED", None, Some(15)), 143),
            (outcome("TASK_ERROR", None, None), 125),
            (outcome("TASK_FAILED", None, Some(1_000)), 255),
        ];
        for (outcome, code) in cases {
            assert_eq!(outcome.code(), code, "{outcome:?}");
        }
        let timed_out = Outcome {
            timed_out: true,
            ..outcome("TASK_KILLED", None, Some(15))
        };
        assert_eq!(timed_out.code(), 124);
    }

    #[test]
    fn quantities_are_checked() {
        assert!(parse_cpus("0.5").is_ok());
        for bad in ["0", "-1", "nan", "inf", "x", "1e9"] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_differ() {
        assert_ne!(idempotency_key("run"), idempotency_key("run"));
    }
}
