//! `tessera sim` as users call it: schedulers as they are uploaded, against a simulated cluster. No cluster
//! is started.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tessera_cluster::cluster::tessera;
use tessera_cluster::guests::{guest, program};
use tessera_cluster::{Outcome, ensure, failure, procfs};
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// A directory of one test, with the files that it writes.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Outcome<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn write(&self, name: &str, text: &str) -> Outcome<String> {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// A trace of these lines.
    fn trace(&self, lines: &[Value]) -> Outcome<String> {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        self.write("trace.jsonl", &lines.join("\n"))
    }

    /// A scheduler of a guest, with configuration.
    fn scheduler(&self, name: &str, of: &str, role: &str, config: &str) -> Outcome<String> {
        let conf = self.write(&format!("{name}.conf"), config)?;
        Ok(format!("{name}={},role={role},config={conf}", guest(of)?.display()))
    }
}

/// Simulate, and read the report.
async fn sim(args: &[&str]) -> Outcome<Value> {
    let mut all = vec!["sim", "-o", "json"];
    all.extend(args);
    let output = tessera(&all, &[]).await?;
    ensure(output.status.success(), || {
        format!("{}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr))
    })?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Tasks of the scheduler of `tessera run`.
fn tasks(times: u64) -> Value {
    json!({"event": "request", "at": "5s", "framework": "run", "path": "/tasks", "body": {"shell": "true"},
        "times": times, "every": "50ms", "tasks": 1})
}

#[tokio::test]
async fn a_scheduler_is_tried_and_a_seed_gives_the_same_report() -> Outcome {
    let desk = Desk::new()?;
    let scheduler = desk.scheduler("run", "run", "default", "")?;
    let trace = desk.trace(&[
        tasks(200),
        json!({"event": "run-time", "framework": "run", "exponential": "20s", "failing_percent": 10}),
        json!({"event": "agents-lost", "at": "30s", "count": 5, "for": "30s"}),
        // They are back before the master has noticed.
        json!({"event": "agents-lost", "at": "1m", "count": 3, "for": "1s"}),
        json!({"event": "agents-lost", "at": "1m", "count": 3, "for": "1s", "how": "partition"}),
    ])?;
    let args = |seed| {
        ["--scheduler", &scheduler, "--agents", "40", "--for", "4m", "--trace", &trace, "--faults", "60", "--seed", seed]
            .map(str::to_owned)
    };
    let mut reports = Vec::new();
    for seed in ["7", "7", "8"] {
        let args = args(seed);
        let mut report = sim(&args.each_ref().map(String::as_str)).await?;
        let real = report["real"].take();
        ensure(count(&real["turns"][0]["turns"]) > 100, || real.to_string())?;
        reports.push(report);
    }
    let run = &reports[0]["frameworks"][0];
    ensure(
        run["phase"] == "running"
            && count(&run["placements"]) >= 200
            && count(&run["states"]["TASK_FINISHED"]) > 100
            && count(&run["states"]["TASK_FAILED"]) > 5
            && run["requests"]["answered"]["201"] == 200
            && count(&run["launch_to_running"]["p50_ms"]) > 0
            // One or the other is lost with its agent before it runs.
            && count(&run["asked_to_running"]["count"]) >= 190
            && count(&run["turns"]["discarded"]) == 0,
        || run.to_string(),
    )?;
    let cluster = &reports[0]["cluster"];
    ensure(
        count(&cluster["agents_lost"]) >= 6 && count(&cluster["cpus_used_max_ppm"]) > 0,
        || cluster.to_string(),
    )?;
    ensure(reports[0].to_string() == reports[1].to_string(), || {
        format!("one seed, two reports:\n{}\n{}", reports[0], reports[1])
    })?;
    ensure(reports[0] != reports[2], || "another seed changes nothing".to_owned())
}

#[tokio::test]
async fn the_demo_runs_with_its_wasm_tasks_and_its_executor() -> Outcome {
    let desk = Desk::new()?;
    let (task, executor) = (guest("wordcount-task")?, guest("wordcount-executor")?);
    let digest = |path: &Path| -> Outcome<String> {
        let digest = ring::digest::digest(&ring::digest::SHA256, &std::fs::read(path)?);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("sha256:{hex}"))
    };
    let config = format!("wasm-task={}\nexecutor={}\nchunk-kib=4\n", digest(&task)?, digest(&executor)?);
    let scheduler = desk.scheduler("words", "wordcount", "default", &config)?;
    let trace = desk.trace(&[
        json!({"event": "request", "at": "5s", "framework": "words", "method": "PUT", "path": "/texts/t{n}",
            "body": "some words ".repeat(2_000), "times": 3, "every": "100ms"}),
        json!({"event": "request", "at": "6s", "framework": "words", "path": "/start"}),
        json!({"event": "run-time", "fixed": "2s"}),
    ])?;
    let (task, executor) = (task.display().to_string(), executor.display().to_string());
    let args = ["--scheduler", &scheduler, "--agents", "3", "--for", "1m", "--trace", &trace];
    let report = sim(&[&args[..], &["--component", &task, "--component", &executor]].concat()).await?;
    let words = &report["frameworks"][0];
    let (running, finished) = (&words["states"]["TASK_RUNNING"], &words["states"]["TASK_FINISHED"]);
    ensure(
        count(running) >= 18 && running == finished && words["states"]["TASK_DROPPED"].is_null(),
        || words.to_string(),
    )?;
    // Without the components that its tasks name, none of those can be placed.
    let report = sim(&args).await?;
    let words = &report["frameworks"][0];
    ensure(
        count(&words["states"]["TASK_DROPPED"]) + count(&words["states"]["TASK_ERROR"]) > 0,
        || words.to_string(),
    )
}

#[tokio::test]
async fn limits_failures_and_quarantine_are_told() -> Outcome {
    let desk = Desk::new()?;
    let trace = desk.trace(&[
        json!({"event": "request", "at": "5s", "framework": "h", "path": "/", "times": 2, "every": "1s"}),
    ])?;
    // Attack, limit, what followed, quarantined.
    for (attack, limit, effect, is_quarantined) in [
        ("timer-loop", "turn-cpu-ms", "the turn was discarded", true),
        ("init-loop", "init-cpu-ms", "the instance could not be built", true),
        ("state-full", "state-bytes", "calls were refused to the guest", false),
        ("trap-storm", "", "", true),
    ] {
        let scheduler = desk.scheduler("h", "hostile", "default", &format!("attack={attack}"))?;
        let args = ["--scheduler", &scheduler, "--agents", "3", "--for", "30s", "--trace", &trace];
        let report = sim(&args).await?;
        let hostile = &report["frameworks"][0];
        let hits = hostile["limits"].as_array().cloned().unwrap_or_default();
        let hit = hits.iter().find(|hit| hit["limit"] == limit);
        let said = |hit: &Value| hit["effect"] == effect && count(&hit["times"]) > 0;
        ensure(limit.is_empty() || hit.is_some_and(said), || format!("{attack}: {hostile}"))?;
        let quarantined = hostile["quarantined_by"] == "failures" && hostile["phase"] == "quarantined";
        ensure(quarantined == is_quarantined, || format!("{attack}: {hostile}"))?;
        let failures = hostile["failures"].as_array().map_or(0, Vec::len);
        ensure((failures > 0) == is_quarantined, || format!("{attack}: {hostile}"))?;
        // People are told the same.
        let shown = tessera(&[&["sim"], &args[..]].concat(), &[]).await?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let told = [limit, effect].iter().all(|text| shown.contains(text));
        ensure(told && shown.contains("quarantined     by failures") == is_quarantined, || shown.clone())?;
    }
    Ok(())
}

#[tokio::test]
async fn two_roles_share_a_full_cluster() -> Outcome {
    let desk = Desk::new()?;
    let ask = |name: &str| {
        let body = json!({"shell": "true", "cpus": 2.0});
        json!({"event": "request", "at": "5s", "framework": name, "path": "/tasks", "body": body,
            "times": 100, "every": "20ms", "tasks": 1})
    };
    let trace = desk.trace(&[ask("a"), ask("b"), json!({"event": "run-time", "exponential": "10s"})])?;
    let (a, b) = (desk.scheduler("a", "run", "x", "")?, desk.scheduler("b", "run", "y", "")?);
    let report = sim(&["--scheduler", &a, "--scheduler", &b, "--agents", "10", "--for", "40s", "--trace", &trace,
        "--agent-size", "cpus=4,mem=8GiB"])
    .await?;
    let cluster = &report["cluster"];
    let shares = report["frameworks"].as_array().cloned().unwrap_or_default();
    ensure(
        count(&cluster["fairness_ppm"]) > 900_000
            && count(&cluster["fairness_samples"]) > 10
            && shares.len() == 2
            && shares.iter().all(|of| count(&of["share_ppm"]) > 350_000)
            && count(&cluster["cpus_used_max_ppm"]) > 900_000,
        || format!("{cluster} {}", json!(shares)),
    )
}

#[tokio::test]
async fn what_cannot_be_simulated_is_refused_with_a_way_out() -> Outcome {
    let desk = Desk::new()?;
    let run = guest("run")?.display().to_string();
    let good = format!("run={run}");
    let task = format!("t={}", guest("wordcount-task")?.display());
    let twice = desk.write("twice.jsonl", "\n{\"event\":\"request\",\"at\":\"1s\",\"framework\":\"wob\",\"path\":\"/\"}")?;
    let text = desk.write("text.wasm", "(component)")?;
    let text = format!("t={text}");
    let cases: [(&[&str], &str); 9] = [
        (&["--scheduler", &task], "its world is command, not scheduler"),
        (&["--scheduler", "t=/bin/true"], "a native program"),
        (&["--scheduler", &text], "WebAssembly text"),
        (&["--scheduler", "t=/nowhere/t.wasm"], "cannot read /nowhere/t.wasm"),
        (&["--scheduler", &good, "--scheduler", &good], "run is there twice"),
        (&["--scheduler", &good, "--agents", "50001"], "--agents: 1 to 50000"),
        (&["--scheduler", &good, "--for", "10ms"], "--for: 1s to 30d"),
        (&["--scheduler", &good, "--trace", &twice], "line 2 of the trace: framework: there is no \"wob\", but run"),
        (&["--scheduler", &good, "--component", "/bin/true"], "a native program"),
    ];
    for (args, why) in cases {
        let output = tessera(&[&["sim"], args].concat(), &[]).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure(output.status.code() == Some(4) && said.contains(why) && output.stdout.is_empty(), || {
            format!("{}: {:?} {said}", args.join(" "), output.status)
        })?;
    }
    Ok(())
}

#[tokio::test]
async fn an_interrupted_simulation_reports_what_it_has() -> Outcome {
    let desk = Desk::new()?;
    let scheduler = desk.scheduler("run", "run", "default", "")?;
    let trace = desk.trace(&[tasks(10_000_000)])?;
    let args = ["sim", "-o", "json", "--scheduler", &scheduler, "--agents", "200", "--for", "30d", "--trace", &trace];
    let mut child = tokio::process::Command::new(program("tessera")?)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stderr = child.stderr.take().ok_or("no stderr")?;
    let mut lines = BufReader::new(stderr).lines();
    let progress = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await??;
    ensure(progress.as_deref().is_some_and(|line| line.contains("simulated")), || format!("{progress:?}"))?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or("it has ended")?;
    procfs::signal(pid, nix::sys::signal::Signal::SIGINT)?;
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await??;
    let report: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| failure(format!("{error}: {:?}", output.status)))?;
    let setting = &report["setting"];
    ensure(
        output.status.success()
            && report["stopped"] == true
            && count(&setting["simulated_ms"]) > 1_000
            && count(&setting["simulated_ms"]) < count(&setting["for_ms"]),
        || setting.to_string(),
    )
}
