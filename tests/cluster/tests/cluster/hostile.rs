//! Hostile uploads, schedulers and tasks against one real cluster, with a neighbour beside them.
//!
//! Each has its verdict in a table. While it lasts, the master and the agent keep their pids, no
//! worker ends, and the neighbour commits at least half of the turns that it committed in a quiet
//! window of the same length just before. Turns are counted in the master, never timed.
//!
//! TESSERA_HOSTILE=name,name runs only these.

mod modules;
mod table;
mod uploads;

use crate::launcher::Launcher;
use serde_json::{Value, json};
use std::time::Duration;
use table::{Attack, By, EXECUTORS, MODULES, SCHEDULERS, TASKS, UPLOADS, Verdict};
use tessera_cluster::cluster::{Cluster, PATIENCE, Pids};
use tessera_cluster::rest::Answer;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure};
use tokio::time::Instant;

/// Length of a quiet window, and the least that is watched of an attack.
const WINDOW: Duration = Duration::from_millis(500);
/// Attacks between two quiet windows: load of other programs comes and goes.
const GROUP: usize = 6;
/// How long a verdict may take: the longest is one of failures in a row, each with its back-off.
const VERDICT_WITHIN: Duration = Duration::from_secs(20);
/// Role of the attackers, and so their tenant.
const ATTACKER: &str = "attacker";
/// Role and name of the neighbour.
const NEIGHBOUR: &str = "neighbour";
/// Longest error of a guest that is shown, with what the host says around it.
const ERROR_BYTES_MAX: usize = 4 << 10;

/// Bytes that are looked at of the end of each of a task's files.
const TAIL: u64 = 4_096;

/// A cluster with a neighbour in it.
struct Stage {
    cluster: Cluster,
    pids: Pids,
    workers: Vec<i32>,
    quiet: u64,
}

impl Stage {
    async fn new(name: &str) -> Outcome<Self> {
        let cluster = Cluster::start(name, &["--cpus-milli", "4000", "--mem-mib", "4096"]).await?;
        // Less than the defaults, so that what has to reach them does so sooner.
        let less = json!({"set": {"compile-cpu-ms": 4_000, "compile-bytes": 2_u64 << 30}});
        change_limits(&cluster, "", &less).await?;
        let less = json!({"set": {"state-bytes": 4 << 20}});
        change_limits(&cluster, &format!("?role={ATTACKER}"), &less).await?;
        let digest = cluster.push("echo").await?;
        let config = json!({"tick-ms": "10"});
        create(&cluster, NEIGHBOUR, NEIGHBOUR, &digest, config).await?;
        let shell = json!({"name": "victim", "shell": "sleep 3600", "mem_mib": 16, "cpus": 0.1});
        let run = cluster.push("run").await?;
        create(&cluster, "run", NEIGHBOUR, &run, json!({})).await?;
        cluster
            .rest
            .post("/frameworks/run/tasks", &shell)
            .await?
            .ok()?;
        let pids = cluster.pids()?;
        let stage = Self {
            cluster,
            pids,
            workers: Vec::new(),
            quiet: 0,
        };
        stage.victim_runs().await?;
        Ok(stage)
    }

    async fn turns(&self) -> Outcome<u64> {
        let found = view(&self.cluster, NEIGHBOUR).await?;
        found["turns"]
            .as_u64()
            .ok_or_else(|| failure(format!("no turns in {found}")))
    }

    /// The neighbour's turns in a window without an attack.
    async fn measure_quiet(&mut self) -> Outcome {
        let (before, began) = (self.turns().await?, Instant::now());
        tokio::time::sleep_until(began + WINDOW).await;
        self.quiet = self.turns().await? - before;
        ensure(self.quiet >= 4, || {
            format!(
                "the neighbour took {} turns when nothing else went on",
                self.quiet
            )
        })
    }

    async fn victim_runs(&self) -> Outcome {
        until("the neighbour's task runs", PATIENCE, async || {
            let path = "/v1/tasks/run/run-1";
            let task = self.cluster.rest.document(path).await;
            match task {
                Ok(task) if task["state"] == "TASK_RUNNING" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    /// Nobody ended who should not have.
    fn check_processes(&mut self) -> Outcome {
        let pids = self.cluster.pids()?;
        ensure(pids == self.pids, || {
            format!("{:?} have become {pids:?}", self.pids)
        })?;
        let workers = self.cluster.workers();
        for pid in &self.workers {
            ensure(workers.contains(pid), || format!("worker {pid} has ended"))?;
        }
        self.workers = workers;
        Ok(())
    }

    /// Run these, with quiet windows between.
    async fn run(&mut self, attacks: &[Attack]) -> Outcome {
        let mut failed = Vec::new();
        for group in attacks.chunks(GROUP) {
            self.measure_quiet().await?;
            for attack in group {
                let (before, began) = (self.turns().await?, Instant::now());
                let outcome = self.attack(attack).await;
                tokio::time::sleep_until(began + WINDOW).await;
                let turns = self.turns().await? - before;
                let took = began.elapsed();
                let windows = took.as_millis() / WINDOW.as_millis();
                let expected = self.quiet * u64::try_from(windows)? / 2;
                let quiet = self.quiet;
                let goes_on = ensure(turns >= expected, || {
                    format!(
                        "the neighbour took {turns} turns in {took:?}, {quiet} in {WINDOW:?} before"
                    )
                });
                let name = attack.name;
                for outcome in [outcome, goes_on, self.check_processes()] {
                    if let Err(error) = outcome {
                        eprintln!("{:?} {name}: {error}", attack.by);
                        failed.push(format!("{:?} {name}: {error}", attack.by));
                    }
                }
            }
        }
        ensure(failed.is_empty(), || {
            format!(
                "{} of {}:\n{}",
                failed.len(),
                attacks.len(),
                failed.join("\n")
            )
        })
    }

    async fn attack(&self, attack: &Attack) -> Outcome {
        match attack.by {
            By::Upload => self.upload(attack).await,
            By::Scheduler => {
                let digest = self.cluster.push("hostile").await?;
                let config = json!({"attack": attack.name, "victim": "run-1"});
                self.host(attack, &digest, config).await
            }
            By::Module => {
                let module =
                    modules::named(attack.name).ok_or_else(|| failure("no such module"))?;
                let answer = self
                    .cluster
                    .rest
                    .send("POST", "/v1/components", &[], module.component()?)
                    .await?
                    .ok()?;
                let digest = answer.json()["digest"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                self.host(attack, &digest, json!({"some": "configuration"}))
                    .await
            }
            By::Task => {
                let (scheduler, task) = (
                    self.cluster.push("hostile").await?,
                    self.cluster.push("hostile-task").await?,
                );
                let config = json!({"attack": "task", "task": task, "argument": attack.name});
                self.host(attack, &scheduler, config).await
            }
            By::Executor => {
                let scheduler = self.cluster.push("launcher").await?;
                self.host(attack, &scheduler, json!({})).await
            }
        }
    }

    /// A task for an executor that does what the attack's name says.
    async fn give_task(&self, attack: &Attack, name: &str) -> Outcome {
        let executor = self.cluster.push("executor-basic").await?;
        let launcher = Launcher {
            rest: &self.cluster.rest,
            name,
        };
        let task =
            json!([{"id": "t", "run": executor, "executor": "hostile", "data": attack.name}]);
        launcher.job("single", task).await
    }

    async fn upload(&self, attack: &Attack) -> Outcome {
        let Verdict::Refused(status, text) = attack.verdict else {
            return Err(failure("an upload is refused"));
        };
        if attack.name == "giant" {
            // Refused before anything of it is sent.
            let announced = self.cluster.rest.announce("/v1/components", 33 << 20);
            let (found, said) = announced.await?;
            return ensure(found == status && said.contains(text), || said);
        }
        let (path, bytes) = (uploads::path(attack.name), uploads::bytes(attack.name)?);
        let answer = self.cluster.rest.send("POST", &path, &[], bytes).await?;
        let message = answer.json()["error"]["message"].to_string();
        ensure(answer.status == status && message.contains(text), || {
            format!("{} {message}", answer.status)
        })
    }

    /// A framework of the attacker from its beginning to its end.
    async fn host(&self, attack: &Attack, component: &str, config: Value) -> Outcome {
        let cluster = &self.cluster;
        let by = format!("{:?}", attack.by).to_lowercase();
        let name = format!("{by}-{}", attack.name.replace(' ', "-"));
        let document = json!({
            "name": name, "role": ATTACKER, "component": component, "config": config,
        });
        cluster.rest.post("/v1/frameworks", &document).await?.ok()?;
        if attack.by == By::Executor {
            self.give_task(attack, &name).await?;
        }
        let verdict = match attack.verdict {
            Verdict::Refused(..) => Err(failure("only uploads are refused")),
            Verdict::Contained(text) => self.contained(attack.name, &name, text).await,
            Verdict::Harmless => harmless(cluster, &name).await,
            Verdict::Fails(text) => self.fails(attack.by, &name, text).await,
            Verdict::Quarantined(text) => self.quarantined(&name, text).await,
            Verdict::Ends(state, text) => ends(cluster, &name, state, text).await,
            Verdict::Killed => killed(cluster, &name).await,
        };
        let path = format!("/v1/frameworks/{name}");
        cluster
            .rest
            .send("DELETE", &path, &[], Vec::new())
            .await?
            .ok()?;
        until("the attacker is gone", PATIENCE, async || {
            match cluster.rest.get(&path).await {
                Ok(answer) if answer.status == 404 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        verdict
    }

    async fn contained(&self, attack: &str, name: &str, text: &str) -> Outcome {
        let cluster = &self.cluster;
        let told = until(
            &format!("an answer with {text:?}"),
            VERDICT_WITHIN,
            async || {
                let answer = cluster.rest.get(&format!("/frameworks/{name}/")).await;
                match answer {
                    Ok(answer) if answer.status == 200 && answer.text().contains(text) => {
                        Ok(framed_by_the_host(&answer))
                    }
                    Ok(answer) if answer.status == 200 => Err(answer.text()),
                    Ok(answer) => Ok(Err(format!("{}: {}", answer.status, answer.text()))),
                    Err(error) => Err(error.to_string()),
                }
            },
        )
        .await??;
        ensure(!told.contains("ESCAPED"), || told.clone())?;
        if ["wasi-print", "log-flood", "log-escapes"].contains(&attack) {
            self.log_is_clean(name).await?;
        }
        let found = view(cluster, name).await?;
        ensure(found["last_error"].is_null(), || found.to_string())
    }

    /// What a guest wrote is bounded, one JSON object per line, and free of control characters.
    async fn log_is_clean(&self, name: &str) -> Outcome {
        let path = format!("/v1/frameworks/{name}/log");
        let log = until("the log is there", PATIENCE, async || {
            let log = self
                .cluster
                .rest
                .get(&path)
                .await
                .map_err(|e| e.to_string())?;
            if log.status == 200 && !log.body.is_empty() {
                Ok(log)
            } else {
                Err(log.text())
            }
        })
        .await?;
        let text = log.text();
        ensure(text.chars().all(|c| c == '\n' || !c.is_control()), || {
            "control characters in the log".to_owned()
        })?;
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        for line in whole.lines() {
            let line: Value = serde_json::from_str(line)?;
            ensure(line["forged"].is_null(), || {
                format!("a forged line: {line}")
            })?;
        }
        Ok(())
    }

    async fn fails(&self, by: By, name: &str, text: &str) -> Outcome {
        let cluster = &self.cluster;
        if by == By::Scheduler {
            // The request starts the attack; what it is answered with does not matter here.
            let _ = cluster.rest.get(&format!("/frameworks/{name}/")).await?;
        }
        let error = until(
            &format!("an error with {text:?}"),
            VERDICT_WITHIN,
            async || {
                let found = view(cluster, name).await.map_err(|e| e.to_string())?;
                match found["last_error"].as_str() {
                    Some(error) if error.contains(text) => Ok(error.to_owned()),
                    _ => Err(found.to_string()),
                }
            },
        )
        .await?;
        ensure(error.len() <= ERROR_BYTES_MAX, || {
            format!("an error of {} bytes", error.len())
        })
    }

    async fn quarantined(&self, name: &str, text: &str) -> Outcome {
        let cluster = &self.cluster;
        until(
            &format!("quarantine for {text:?}"),
            VERDICT_WITHIN,
            async || {
                // Some attack when they are asked; an answer does not matter here.
                let path = format!("/frameworks/{name}/");
                let _ = tokio::time::timeout(WINDOW, cluster.rest.get(&path)).await;
                let found = view(cluster, name).await.map_err(|e| e.to_string())?;
                let told = found["quarantine"].to_string();
                if found["state"] == "quarantined" && told.contains(text) {
                    Ok(())
                } else {
                    Err(found.to_string())
                }
            },
        )
        .await
    }
}

/// The text of an answer, if nothing of a guest has framed it.
fn framed_by_the_host(answer: &Answer) -> Result<String, String> {
    let length = answer.headers.get("content-length");
    let whole = length.is_none_or(|length| *length == answer.body.len().to_string());
    if whole && !answer.headers.contains_key("transfer-encoding") {
        Ok(answer.text())
    } else {
        Err(format!("a guest framed this: {:?}", answer.headers))
    }
}

async fn view(cluster: &Cluster, name: &str) -> Outcome<Value> {
    cluster
        .rest
        .document(&format!("/v1/frameworks/{name}"))
        .await
}

async fn change_limits(cluster: &Cluster, query: &str, change: &Value) -> Outcome {
    let path = format!("/v1/limits{query}");
    let json = [("content-type", "application/json")];
    let body = change.to_string().into_bytes();
    cluster.rest.send("PATCH", &path, &json, body).await?.ok()?;
    Ok(())
}

async fn create(cluster: &Cluster, name: &str, role: &str, digest: &str, config: Value) -> Outcome {
    let document = json!({"name": name, "role": role, "component": digest, "config": config});
    cluster.rest.post("/v1/frameworks", &document).await?.ok()?;
    until(&format!("{name} runs"), PATIENCE, async || {
        let found = view(cluster, name).await.map_err(|e| e.to_string())?;
        if found["state"] == "running" {
            Ok(())
        } else {
            Err(found.to_string())
        }
    })
    .await
}

async fn harmless(cluster: &Cluster, name: &str) -> Outcome {
    until("turns of the attacker", VERDICT_WITHIN, async || {
        let found = view(cluster, name).await.map_err(|e| e.to_string())?;
        if !found["last_error"].is_null() {
            Ok(Err(failure(found.to_string())))
        } else if found["turns"].as_u64().is_some_and(|turns| turns > 0) {
            Ok(Ok(()))
        } else {
            Err(found.to_string())
        }
    })
    .await?
}

async fn task(cluster: &Cluster, name: &str, state: &str) -> Outcome<Value> {
    let path = format!("/v1/tasks/{name}/t");
    until(
        &format!("the task is {state}"),
        VERDICT_WITHIN,
        async || {
            let found = cluster
                .rest
                .document(&path)
                .await
                .map_err(|e| e.to_string())?;
            if found["state"] == state {
                Ok(found)
            } else {
                Err(found.to_string())
            }
        },
    )
    .await
}

async fn ends(cluster: &Cluster, name: &str, state: &str, text: &str) -> Outcome {
    let ended = task(cluster, name, state).await?;
    let mut said = ended.to_string();
    for file in ["stdout", "stderr", "result", "link"] {
        let path = format!("/v1/tasks/{name}/t/files/{file}");
        let first = cluster.rest.get(&format!("{path}?length=1")).await?;
        let size = first.headers.get("x-tessera-size");
        let size: u64 = size.and_then(|size| size.parse().ok()).unwrap_or(0);
        let path = format!("{path}?offset={}&length={TAIL}", size.saturating_sub(TAIL));
        let answer = cluster.rest.get(&path).await?;
        said = format!("{said}\n{file} {}: {}", answer.status, answer.text());
    }
    ensure(said.contains(text) && !said.contains("ESCAPED"), || {
        said.clone()
    })?;
    ensure(!said.contains("root:"), || {
        format!("a file of the host: {said}")
    })
}

async fn killed(cluster: &Cluster, name: &str) -> Outcome {
    task(cluster, name, "TASK_RUNNING").await?;
    let path = format!("/v1/tasks/{name}/t/kill");
    cluster
        .rest
        .post(&path, &json!({"grace_ms": 0}))
        .await?
        .ok()?;
    task(cluster, name, "TASK_KILLED").await.map(|_| ())
}

/// Those that TESSERA_HOSTILE names, separated by commas, or all.
fn chosen(attacks: &[Attack]) -> Vec<Attack> {
    let names = std::env::var("TESSERA_HOSTILE").unwrap_or_default();
    let names: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
    let chosen = |attack: &&Attack| names.is_empty() || names.contains(&attack.name);
    attacks.iter().filter(chosen).copied().collect()
}

#[tokio::test]
async fn hostile_guests_hurt_nobody_else() -> Outcome {
    let mut stage = Stage::new("hostile").await?;
    let attacks = [UPLOADS, SCHEDULERS, MODULES, TASKS, EXECUTORS].concat();
    stage.run(&chosen(&attacks)).await?;
    stage.victim_runs().await?;
    stage.cluster.finish().await
}

/// The page has a row for each attack that says what the table says, and no others.
#[test]
fn the_page_lists_every_attack() -> Outcome {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/security.md");
    let page = std::fs::read_to_string(page)?;
    for (by, attacks) in [
        ("upload", UPLOADS),
        ("scheduler", SCHEDULERS),
        ("module", MODULES),
        ("task", TASKS),
        ("executor", EXECUTORS),
    ] {
        for Attack {
            name,
            verdict,
            proves,
            ..
        } in attacks
        {
            let row = format!("| {by} | `{name}` | {} | {proves} |", verdict.words());
            ensure(page.lines().any(|line| line == row), || {
                format!("docs/security.md lacks the row\n{row}")
            })?;
        }
    }
    let rows = page.lines().filter(|line| {
        [
            "| upload | ",
            "| scheduler | ",
            "| module | ",
            "| task | ",
            "| executor | ",
        ]
        .iter()
        .any(|start| line.starts_with(start))
    });
    let all = [UPLOADS, SCHEDULERS, MODULES, TASKS, EXECUTORS]
        .concat()
        .len();
    let rows = rows.count();
    ensure(rows == all, || format!("{rows} rows for {all} attacks"))
}
