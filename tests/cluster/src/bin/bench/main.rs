//! Measures a real cluster on this machine and writes docs/benchmarks.md. Called with names of parts, it
//! measures those and only prints what it found.
//!
//! Invariants: every number in the document was measured in the run that wrote it; a target that was
//! missed is shown as missed, and does not fail the run. Must never run beside tests: it takes the
//! machine for itself.

mod allocator;
mod chart;
mod cli;
mod commits;
mod etcd;
mod failover;
mod fleet;
mod headings;
mod large;
mod launches;
mod lists;
mod machine;
mod masters;
mod recovery;
mod report;
mod scale;
mod turns;
mod writes;
mod zookeeper;

use report::{Report, Row, Target};
use std::process::ExitCode;
use std::time::Duration;
use tessera_cluster::cluster::{Cluster, Parts};
use tessera_cluster::{Outcome, procfs};

/// Tasks of which the launch is measured, per kind.
const LAUNCHES: usize = 60;
/// Tasks over which CPU time is shared out, per kind: its clock has a step of 10 ms, which is 5 µs of each.
const PLACEMENTS: usize = 2_000;
/// Tasks that are launched at once.
const TASKS_AT_ONCE: usize = 1_000;
/// Schedulers of one tenant.
const SCHEDULERS: usize = 1_000;
/// Tenants with one scheduler each.
const TENANTS: usize = 200;
/// Schedulers over which memory is shared out.
const IDLE_SCHEDULERS: u64 = 10;

/// Parts that can be asked for by name, in the order in which they are measured.
const PARTS: [&str; 15] = [
    "allocator",
    "cli",
    "worker",
    "turns",
    "latency",
    "cpu-wasm",
    "cpu-native",
    "memory",
    "at-once",
    "crowds",
    "writes",
    "failover",
    "recovery",
    "fleet",
    "large",
];

/// Measures more, and for longer.
const FULL: &str = "--full";
/// How long writes are counted, in all and in a short run.
const WRITES_FOR: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3));
/// How often the leader fails, of each kind.
const FAILOVERS: (usize, usize) = (30, 5);

/// What to measure: everything, unless parts are named.
struct Wanted {
    parts: Vec<String>,
    full: bool,
}

impl Wanted {
    fn from_args() -> Result<Self, String> {
        let (flags, parts): (Vec<String>, Vec<String>) =
            std::env::args().skip(1).partition(|arg| arg == FULL);
        match parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
            Some(part) => Err(format!("no part {part:?}; there are {}, and {FULL}", PARTS.join(", "))),
            None => Ok(Self { parts, full: !flags.is_empty() }),
        }
    }

    fn all(&self) -> bool {
        self.parts.is_empty()
    }

    fn has(&self, part: &str) -> bool {
        self.all() || self.parts.iter().any(|wanted| wanted == part)
    }

    /// The first of these in a full run, else the second.
    fn of<T>(&self, (full, short): (T, T)) -> T {
        if self.full { full } else { short }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let wanted = match Wanted::from_args() {
        Ok(wanted) => wanted,
        Err(error) => {
            eprintln!("bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (report, whole) = measure(&wanted).await;
    // Some parts only are for whoever changes them: the document is of one whole run.
    if !wanted.all() {
        println!("{}", report.rows());
    } else {
        match report.write(wanted.full) {
            Ok(path) => println!("{}\nwritten to {}", report.markdown(wanted.full), path.display()),
            Err(error) => {
                eprintln!("bench: cannot write the report: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All that is wanted, and whether everything of it could be measured. A part that breaks off is named in
/// the report, which the others are in all the same.
async fn measure(wanted: &Wanted) -> (Report, bool) {
    let mut report = Report::new();
    let mut whole = true;
    let mut note = |report: &mut Report, part: &str, outcome: Outcome| {
        if let Err(error) = outcome {
            eprintln!("bench: {part}: {error}");
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            report.add(Row::missing(format!("the rest of the part `{part}`"), &format!("broke off: {first}")));
            whole = false;
        }
    };
    if wanted.has("allocator") {
        report.section(&headings::ALLOCATOR);
        let outcome = allocator::measure(&mut report);
        note(&mut report, "allocator", outcome);
    }
    if wanted.has("cli") {
        report.section(&headings::CLI);
        let outcome = cli::measure(&mut report).await;
        note(&mut report, "cli", outcome);
    }
    if wanted.has("worker") {
        report.section(&headings::WORKER);
        let outcome = in_the_worker(&mut report);
        note(&mut report, "worker", outcome);
    }
    if PARTS[3..9].iter().any(|part| wanted.has(part)) {
        report.section(&headings::AGENT);
        let outcome = on_a_cluster(&mut report, wanted).await;
        note(&mut report, "turns to at-once", outcome);
    }
    if wanted.has("crowds") {
        report.section(&headings::CROWDS);
        let outcome = many(&mut report).await;
        note(&mut report, "crowds", outcome);
    }
    if wanted.has("writes") {
        report.section(&headings::WRITES);
        let outcome = writes::measure(&mut report, wanted.of(WRITES_FOR)).await;
        note(&mut report, "writes", outcome);
    }
    if wanted.has("failover") {
        report.section(&headings::FAILOVER);
        let outcome = failover::measure(&mut report, wanted.of(FAILOVERS)).await;
        note(&mut report, "failover", outcome);
    }
    if wanted.has("recovery") {
        report.section(&headings::RECOVERY);
        let outcome = recovery::measure(&mut report, wanted.of(FAILOVERS)).await;
        note(&mut report, "recovery", outcome);
    }
    if wanted.has("fleet") {
        report.section(&headings::FLEET);
        // Curves are of a full run, as the document that shows them.
        let charts = (wanted.full && wanted.all()).then(report::charts);
        let scale = wanted.of((fleet::FULL, fleet::SHORT));
        let outcome = fleet::measure(&mut report, scale, charts.as_deref()).await;
        note(&mut report, "fleet", outcome);
    }
    if wanted.has("large") {
        report.section(&headings::LARGE);
        let outcome = large::measure(&mut report, wanted.of((large::FULL, large::SHORT))).await;
        note(&mut report, "large", outcome);
    }
    (report, whole)
}

/// Turns in a worker alone.
fn in_the_worker(report: &mut Report) -> Outcome {
    eprintln!("bench: turns in the worker");
    let turn = turns::in_the_worker()?;
    report.add(
        Row::new(
            "a turn with 100 offers, in the worker, p50",
            turn.p50_us,
            "µs",
        )
        .target(Target::AtMost(200.0)),
    );
    report.add(Row::new("the same, p99", turn.p99_us, "µs"));
    report.add(
        Row::new(
            "private memory of each of 1,000 idle schedulers, in the worker alone",
            turn.idle_kib,
            "KiB",
        )
        .target(Target::AtMost(1_024.0)),
    );
    report.add(Row::new(
        "of a turn: counting the guest's time",
        turn.limits_us(),
        "µs",
    ));
    report.add(Row::new(
        "beside a turn: recording it, p50",
        turn.recording_us,
        "µs",
    ));
    report.add(
        Row::new(
            "an instance built anew with 1 MiB of state, its first turn included, p50",
            turn.rebuild_us / 1e3,
            "ms",
        )
        .target(Target::AtMost(20.0)),
    );
    Ok(())
}

/// What a cluster with one agent does.
async fn on_a_cluster(report: &mut Report, wanted: &Wanted) -> Outcome {
    let cluster = Cluster::start("bench", &["--cpus-milli", "2100", "--mem-mib", "24000"]).await?;
    if wanted.has("turns") {
        committed(report, &cluster).await?;
    }
    if wanted.has("latency") {
        latency(report, &cluster).await?;
    }
    for kind in [launches::Kind::Wasm, launches::Kind::Native] {
        if wanted.has(&format!("cpu-{}", kind.name())) {
            cpu(report, &cluster, kind).await?;
        }
    }
    if wanted.has("memory") {
        memory(report, &cluster).await?;
    }
    if wanted.has("at-once") {
        eprintln!("bench: {TASKS_AT_ONCE} Wasm tasks at once");
        report.add(
            Row::new(
                "1,000 Wasm tasks on one agent, from the first accept until all run",
                scale::tasks_at_once(&cluster, TASKS_AT_ONCE).await?,
                "s",
            )
            .target(Target::AtMost(2.0)),
        );
    }
    let pids = cluster.pids()?;
    for (name, pid) in [("the master", pids.master), ("the agent", pids.agent)] {
        report.add(Row::new(
            format!("private memory of {name} after all this"),
            procfs::private_kib(pid) as f64,
            "KiB",
        ));
    }
    cluster.finish().await
}

async fn committed(report: &mut Report, cluster: &Cluster) -> Outcome {
    eprintln!("bench: committed turns");
    let committed = turns::committed(cluster).await?;
    report.add(Row::new(
        "turns committed per second, one framework, each synced to disk",
        committed.alone,
        "/s",
    ));
    report.add(Row::new(
        "the same, 8 frameworks at once",
        committed.together,
        "/s",
    ));
    report.add(Row::new(
        "a synced write of 4 KiB to the same disk, p50, for comparison",
        machine::sync_us(cluster.dir())?,
        "µs",
    ));
    Ok(())
}

async fn latency(report: &mut Report, cluster: &Cluster) -> Outcome {
    for kind in [launches::Kind::Wasm, launches::Kind::Native] {
        eprintln!("bench: launches, {}", kind.name());
        let times = launches::latency(cluster, kind, LAUNCHES).await?;
        let what = format!("accept to TASK_RUNNING, {}", kind.title());
        report.add(
            Row::new(format!("{what}, p50"), times.p50_ms, "ms")
                .target(Target::AtMost(kind.target_ms())),
        );
        report.add(Row::new(format!("{what}, p90"), times.p90_ms, "ms"));
    }
    report.add(Row::new(
        "a shim's start to the execution of its command, p50",
        launches::exec_us(cluster)?,
        "µs",
    ));
    Ok(())
}

async fn cpu(report: &mut Report, cluster: &Cluster, kind: launches::Kind) -> Outcome {
    eprintln!("bench: CPU per placement, {}", kind.name());
    let cpu = launches::cpu(cluster, kind, PLACEMENTS).await?;
    let what = format!("CPU per placement, {}", kind.title());
    for (process, us) in &cpu.per_process_us {
        report.add(Row::new(format!("{what}, {process}"), *us, "µs"));
    }
    report.add(
        Row::new(format!("{what}, all of them"), cpu.total_us(), "µs").target(Target::AtMost(400.0)),
    );
    Ok(())
}

async fn memory(report: &mut Report, cluster: &Cluster) -> Outcome {
    eprintln!("bench: memory");
    report.add(Row::new(
        "private memory of a shim",
        launches::shim_kib(cluster).await?,
        "KiB",
    ));
    report.add(Row::new(
        "private memory per idle scheduler in a shared worker",
        turns::idle_kib(cluster, IDLE_SCHEDULERS).await?,
        "KiB",
    ));
    Ok(())
}

/// What many schedulers take, on an agent with a slice for that many.
async fn many(report: &mut Report) -> Outcome {
    let mut parts = Parts::new("many").await?;
    parts.agent_flags = ["--mem-mib", "24000", "--scheduler-mem-mib", "5200"]
        .map(str::to_owned)
        .to_vec();
    let rest = parts.start_master("m").await?;
    parts.start_agent(&rest, "a", "m").await?;
    for (prefix, count, what) in [
        ("one", SCHEDULERS, "1,000 schedulers of one tenant"),
        ("each", TENANTS, "200 tenants with one scheduler each"),
    ] {
        eprintln!("bench: {what}");
        let role = |number: usize| match prefix {
            "one" => "one".to_owned(),
            _ => format!("tenant-{number}"),
        };
        let crowd = scale::schedulers(&parts, &rest, prefix, count, role).await?;
        report.add(Row::new(
            format!("{what}: until all run"),
            crowd.seconds,
            "s",
        ));
        report.add(Row::new(
            format!("{what}: private memory of workers, each"),
            crowd.kib_each,
            "KiB",
        ));
        report.add(Row::new(
            format!("{what}: workers started for them"),
            crowd.workers as f64,
            "",
        ));
    }
    parts.finish()
}
