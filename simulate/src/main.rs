//! The binary `tessera-simulate`: the process that `tessera sim` starts, because it holds the engine.
//!
//! It reads a plan as one line of JSON from stdin, reads the files that the plan names, gives up what it no
//! longer needs, simulates, and writes the report to stdout; a refusal is a JSON object and exit code 2. The
//! end of stdin asks it for the report as far as it is. Must never read a file after the first component is
//! looked at.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tessera_simulate::report::Report;
use tessera_simulate::{File, Files, Plan, Progress, Refused, simulate, text};
use tessera_types::LimitName;
use tessera_worker::{jail, thread};

/// Nothing was simulated; why is on stdout.
const EXIT_REFUSED: u8 = 2;
/// Bytes of a plan.
const PLAN_BYTES_MAX: u64 = 16 << 20;
/// Bytes of a trace.
const TRACE_BYTES_MAX: u64 = 256 << 20;
/// Stack of the thread that simulates: guests run on it, below what the simulation itself takes.
const STACK_BYTES: usize = 16 << 20;
/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(refused) => {
            let document = serde_json::to_string(&refused).unwrap_or(refused.error);
            println!("{document}");
            ExitCode::from(EXIT_REFUSED)
        }
    }
}

fn read_plan() -> Result<Plan, Refused> {
    let mut stdin = std::io::stdin().lock();
    if stdin.is_terminal() {
        return Err(Refused::new("a plan is expected on stdin").hint("`tessera sim` starts this program"));
    }
    let mut line = String::new();
    let read = stdin.by_ref().take(PLAN_BYTES_MAX).read_line(&mut line);
    read.map_err(|error| Refused::new(format!("cannot read the plan: {error}")))?;
    Plan::parse(&line)
}

/// At most so many bytes of a file.
fn read(path: &Path, most: u64) -> Result<File, Refused> {
    let name = path.display().to_string();
    let cannot = |error: std::io::Error| Refused::new(format!("cannot read {name}: {error}"));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(cannot)?;
    // One byte more than allowed tells a larger file from one that just fits.
    file.take(most + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > most {
        return Err(Refused::new(format!("{name} has more than {most} bytes")));
    }
    Ok(File { name, bytes })
}

fn read_files(plan: &Plan) -> Result<Files, Refused> {
    let most = LimitName::ComponentBytes.row().max;
    let component = |path: &Path| read(path, most);
    let schedulers = plan.schedulers.iter().map(|scheduler| component(&scheduler.component));
    let components = plan.components.iter().map(|path| component(path));
    let trace = match &plan.trace {
        Some(path) => String::from_utf8(read(path, TRACE_BYTES_MAX)?.bytes)
            .map_err(|_| Refused::new(format!("{}: a trace is UTF-8 text", path.display())))?,
        None => String::new(),
    };
    Ok(Files { schedulers: schedulers.collect::<Result<_, _>>()?, components: components.collect::<Result<_, _>>()?, trace })
}

fn run() -> Result<(), Refused> {
    let plan = read_plan()?;
    let files = read_files(&plan)?;
    jail::enter_replay().map_err(|error| Refused::new(format!("cannot limit this process: {error}")))?;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let cannot = |error: std::io::Error| Refused::new(format!("cannot start a thread: {error}"));
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            // Whatever comes, or that nothing comes any more, asks for the end.
            let _ = std::io::stdin().lock().read(&mut [0; 1]);
            over.store(true, Ordering::Relaxed);
        })
        .map_err(cannot)?;
    let json = plan.json;
    let simulating = std::thread::Builder::new()
        .name("simulation".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || timed(&plan, &files, &is_over))
        .map_err(cannot)?;
    let report = simulating.join().map_err(|_| Refused::new("the simulation panicked: see above"))??;
    let text = if json {
        let document = serde_json::to_string_pretty(&report);
        document.map_err(|error| Refused::new(format!("the report cannot be written: {error}")))? + "\n"
    } else {
        text(&report)
    };
    // Nobody is left to be told when this fails.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(())
}

fn timed(plan: &Plan, files: &Files, is_over: &AtomicBool) -> Result<Report, Refused> {
    let started = Instant::now();
    let mut told = started;
    let mut report = simulate(plan, files, |progress| {
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            tell(plan, progress, started.elapsed());
        }
        !is_over.load(Ordering::Relaxed)
    })?;
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    report.real.wall_ms = ms(started.elapsed());
    report.real.cpu_ms = ms(thread::cpu_time());
    Ok(report)
}

fn tell(plan: &Plan, progress: Progress, elapsed: Duration) {
    let Progress { at_ms, placements } = progress;
    let (at, of) = (at_ms / 1_000, plan.for_ms / 1_000);
    let speed = u128::from(at_ms) / elapsed.as_millis().max(1);
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "tessera: {at} of {of} s simulated, {placements} placements, {speed} times as fast as the clock");
}
