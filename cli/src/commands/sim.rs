//! `tessera sim`: try schedulers against a simulated cluster, in a process of its own on this machine.
//!
//! Must never run a guest, nor know what a simulation is: that is the business of `tessera-simulate`, whose
//! report is passed on.

use crate::commands::framework::parse_pair;
use crate::commands::master::bin_dir;
use crate::error::{CliError, Kind, io_error};
use crate::{Context, output};
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use tessera_types::parse_duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The program that simulates.
const PROGRAM: &str = "tessera-simulate";
/// Its exit code when it refuses.
const REFUSED: i32 = 2;
/// Bytes of a report: a few KiB for each of 64 schedulers are far less.
const REPORT_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a file with configuration.
const CONFIG_BYTES_MAX: usize = 1 << 20;

/// Arguments of `tessera sim`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera sim --scheduler run.wasm --agents 10000 --trace load.jsonl\n  tessera sim --scheduler a=a.wasm,role=eng --scheduler b=b.wasm,role=ops,config=b.conf --for 1h -o json\n  tessera sim --scheduler a=a.wasm --component task.wasm --faults 20 --seed 7\n\nThe trace is a file of JSON Lines; lines that begin with # are passed over. Times count from the start:\n  {\"event\":\"request\",\"at\":\"5s\",\"framework\":\"run\",\"path\":\"/tasks\",\"body\":{\"shell\":\"true\"},\n   \"times\":1000,\"every\":\"50ms\",\"tasks\":1}       # {n} in path and body is the number of the request\n  {\"event\":\"run-time\",\"framework\":\"run\",\"task\":\"run-*\",\"exponential\":\"30s\",\"failing_percent\":2}\n                                                # or \"fixed\":\"10s\", or \"uniform\":[\"10s\",\"1m\"]\n  {\"event\":\"agents-lost\",\"at\":\"10m\",\"count\":50,\"for\":\"5m\",\"how\":\"crash\"}     # or \"how\":\"partition\"\n  {\"event\":\"config\",\"at\":\"20m\",\"framework\":\"run\",\"config\":{\"pace\":\"slow\"}}\n\nMaster, agents and engine are the real ones with the real limits; machines and networks are models, and\ncommands of tasks are not run: without a line of the trace they take 1m on average, exponentially\ndistributed. The same seed, trace and components give the same report, apart from what it says of this\nmachine. Ctrl-C ends with the report so far; a second one ends without."
)]
pub struct SimArgs {
    /// A scheduler: its component, then, if wanted, ,role=ROLE and ,config=FILE with KEY=VALUE lines; may be
    /// repeated. Its framework has the file's name, or NAME
    #[arg(long, required = true, value_name = "[NAME=]FILE,…", value_parser = parse_scheduler)]
    scheduler: Vec<SchedulerArg>,
    /// Another component that tasks name, by its digest: a Wasm task or an executor; may be repeated
    #[arg(long, value_name = "FILE")]
    component: Vec<PathBuf>,
    /// How many agents there are
    #[arg(long, value_name = "N", default_value_t = 100)]
    agents: u32,
    /// What each of them offers
    #[arg(long, value_name = "AMOUNTS", default_value = "cpus=8,mem=32GiB,disk=128GiB", value_parser = parse_size)]
    agent_size: Size,
    /// For how long, in virtual time
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    duration: u64,
    /// Everything that is drawn follows from it
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// What happens, and when
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Agents that are lost in an hour, each for 2 to 10 minutes; half of them crash, the others cannot be
    /// reached
    #[arg(long, value_name = "N", default_value_t = 0)]
    faults: u64,
    /// Directory of tessera-simulate [default: that of this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

/// A scheduler as it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SchedulerArg {
    name: String,
    file: PathBuf,
    role: String,
    config: Option<PathBuf>,
}

/// What an agent offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    cpus_milli: i64,
    mem_mib: i64,
    disk_mib: i64,
}

/// The name of a framework that is called after its component: letters, digits and hyphens.
fn name_of_file(file: &str) -> String {
    let stem = Path::new(file).file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    stem.replace(|c: char| !c.is_ascii_alphanumeric(), "-").trim_matches('-').to_owned()
}

fn parse_scheduler(text: &str) -> Result<SchedulerArg, String> {
    let mut parts = text.split(',');
    let first = parts.next().unwrap_or_default();
    let (name, file) = parse_pair(first).unwrap_or_else(|_| (name_of_file(first), first.to_owned()));
    if name.is_empty() || file.is_empty() || file.starts_with('=') {
        return Err(format!("{text:?}: its component is expected first, as in run.wasm or run=run.wasm"));
    }
    let mut scheduler = SchedulerArg {
        name,
        file: file.into(),
        role: "default".to_owned(),
        config: None,
    };
    for part in parts {
        match part.split_once('=') {
            Some(("role", role)) if !role.is_empty() => role.clone_into(&mut scheduler.role),
            Some(("config", file)) if !file.is_empty() => scheduler.config = Some(file.into()),
            _ => return Err(format!("{part:?} is neither role=ROLE nor config=FILE")),
        }
    }
    Ok(scheduler)
}

/// `cpus=8`, `cpus=0.5`.
fn parse_cpus_milli(text: &str) -> Option<i64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 3 {
        return None;
    }
    let part: i64 = format!("{part:0<3}").parse().ok()?;
    whole.parse::<u32>().ok().map(|whole| i64::from(whole) * 1_000 + part)
}

fn parse_mib(text: &str) -> Option<i64> {
    let (number, unit) = match (text.strip_suffix("GiB"), text.strip_suffix("MiB")) {
        (Some(number), _) => (number, 1_024),
        (None, Some(number)) => (number, 1),
        (None, None) => return None,
    };
    number.parse::<u32>().ok().map(|number| i64::from(number) * unit)
}

fn parse_size(text: &str) -> Result<Size, String> {
    let mut size = Size::default();
    for part in text.split(',') {
        let (name, amount) = part.split_once('=').unwrap_or((part, ""));
        let (field, amount) = match name {
            "cpus" => (&mut size.cpus_milli, parse_cpus_milli(amount)),
            "mem" => (&mut size.mem_mib, parse_mib(amount)),
            "disk" => (&mut size.disk_mib, parse_mib(amount)),
            _ => return Err(format!("{part:?}: cpus, mem or disk, as in cpus=8,mem=32GiB")),
        };
        *field = amount.ok_or_else(|| format!("{part:?}: cpus=8 or cpus=0.5, mem=512MiB or mem=32GiB"))?;
    }
    Ok(size)
}

/// The configuration of a file: `KEY=VALUE` lines; those that begin with # are passed over.
fn read_config(path: &Path) -> Result<Vec<(String, String)>, CliError> {
    let text = std::fs::read_to_string(path).map_err(|error| io_error("read", path, &error))?;
    if text.len() > CONFIG_BYTES_MAX {
        let text = format!("{} has more than {CONFIG_BYTES_MAX} bytes", path.display());
        return Err(CliError::new(Kind::Usage, text));
    }
    let lines = text.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(at, line)| {
            parse_pair(line).map_err(|error| {
                let text = format!("line {} of {}: {error}", at + 1, path.display());
                CliError::new(Kind::Usage, text)
            })
        })
        .collect()
}

fn plan(args: &SimArgs, json: bool) -> Result<String, CliError> {
    let mut schedulers = Vec::new();
    for scheduler in &args.scheduler {
        let config = scheduler.config.as_deref().map(read_config).transpose()?;
        schedulers.push(json!({
            "name": scheduler.name,
            "role": scheduler.role,
            "component": scheduler.file,
            "config": config.unwrap_or_default(),
        }));
    }
    let size = args.agent_size;
    let plan = json!({
        "schedulers": schedulers,
        "components": args.component,
        "agents": args.agents,
        "agent_size": {"cpus_milli": size.cpus_milli, "mem_mib": size.mem_mib, "disk_mib": size.disk_mib},
        "for_ms": args.duration,
        "seed": args.seed,
        "trace": args.trace,
        "faults_per_hour": args.faults,
        "json": json,
    });
    Ok(format!("{plan}\n"))
}

/// Why it refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    error: String,
    hint: String,
}

/// Simulate.
///
/// # Errors
/// When what was asked for cannot be simulated.
pub async fn run(context: &Context, args: SimArgs) -> Result<ExitCode, CliError> {
    let plan = plan(&args, context.is_data())?;
    let program = bin_dir(args.bin_dir)?.join(PROGRAM);
    // In a group of its own: Ctrl-C reaches this process only, which then asks for the report.
    let child = tokio::process::Command::new(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(|error| {
        io_error("run", &program, &error).hint(format!("{PROGRAM} stands beside tessera; --bin-dir names another directory"))
    })?;
    let about = |error: std::io::Error| CliError::failed(format!("{PROGRAM} cannot be talked to: {error}"));
    let (mut stdin, stdout) = (child.stdin.take(), child.stdout.take());
    if let Some(stdin) = &mut stdin {
        stdin.write_all(plan.as_bytes()).await.map_err(about)?;
    }
    let mut report = Vec::new();
    {
        let reading = async {
            match stdout {
                Some(stdout) => stdout.take(REPORT_BYTES_MAX).read_to_end(&mut report).await,
                None => Ok(0),
            }
        };
        tokio::pin!(reading);
        let mut is_interrupted = false;
        loop {
            tokio::select! {
                read = &mut reading => break read.map_err(about)?,
                signal = tokio::signal::ctrl_c() => {
                    signal.map_err(about)?;
                    if is_interrupted {
                        return Err(CliError::failed("interrupted twice; there is no report"));
                    }
                    is_interrupted = true;
                    // The end of its stdin asks it for what it has.
                    stdin = None;
                }
            }
        };
    }
    drop(stdin);
    let status = child.wait().await.map_err(about)?;
    if status.success() {
        output::write(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let refusal = serde_json::from_slice::<Refusal>(&report).unwrap_or_default();
    if status.code() != Some(REFUSED) || refusal.error.is_empty() {
        let said = output::clean(String::from_utf8_lossy(&report).trim());
        return Err(CliError::failed(format!("{PROGRAM} ended with {status}: {said}")));
    }
    let error = CliError::new(Kind::Refused, refusal.error);
    Err(if refusal.hint.is_empty() { error } else { error.hint(refusal.hint) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedulers_are_named_with_role_and_configuration() {
        let plain = parse_scheduler("run=a/run.wasm").unwrap();
        assert_eq!((plain.name.as_str(), plain.role.as_str(), plain.config), ("run", "default", None));
        let unnamed = parse_scheduler("a/My_Own.wasm,role=eng").unwrap();
        assert_eq!((unnamed.name.as_str(), unnamed.role.as_str()), ("my-own", "eng"));
        assert_eq!(unnamed.file, Path::new("a/My_Own.wasm"));
        let full = parse_scheduler("a=b.wasm,config=c.conf,role=eng/search").unwrap();
        assert_eq!(full.role, "eng/search");
        assert_eq!(full.config.as_deref(), Some(Path::new("c.conf")));
        for bad in ["", "...", "=run.wasm", "run=", "run=a.wasm,", "run=a.wasm,role=", "run=a.wasm,rolle=x"] {
            assert!(parse_scheduler(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_with_units() {
        let size = |cpus_milli, mem_mib, disk_mib| Size { cpus_milli, mem_mib, disk_mib };
        assert_eq!(parse_size("cpus=8,mem=32GiB"), Ok(size(8_000, 32_768, 0)));
        assert_eq!(parse_size("cpus=0.25,mem=512MiB,disk=1GiB"), Ok(size(250, 512, 1_024)));
        for bad in ["", "cpus", "cpus=-1", "cpus=1.2345", "mem=32", "mem=1TiB", "gpus=1", "cpus=1,,mem=1GiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn configuration_is_read_line_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.conf");
        std::fs::write(&file, "# what\npace=slow\n\n  k = v=w \n").unwrap();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(read_config(&file).unwrap(), [pair("pace", "slow"), pair("k ", " v=w")]);
        std::fs::write(&file, "\nnonsense\n").unwrap();
        assert!(read_config(&file).unwrap_err().to_string().contains("line 2"));
        assert_eq!(read_config(&dir.path().join("none")).unwrap_err().kind, Kind::NotFound);
    }
}
