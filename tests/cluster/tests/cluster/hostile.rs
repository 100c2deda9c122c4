//! Hostile uploads, schedulers and tasks against one real cluster, with neighbours beside them: one of
//! another tenant, and one of the attacker's own, in the same worker.
//!
//! Each has its verdict in a table. While it lasts, the master and the agent keep their pids, no
//! worker ends, and each neighbour commits at least half of the turns that it committed in a quiet
//! window of the same length just before. Turns are counted in the master, never timed. An attack that
//! ends by its verdict is counted from its beginning to that; one that does not end, for a whole
//! window after its verdict, in which it is seen to go on. Uploads are repeated for a window.
//!
//! TESSERA_HOSTILE=name,name runs only these.

mod logs;
pub mod modules;
mod table;
mod uploads;
mod watch;

use crate::launcher::Launcher;
use serde_json::{Value, json};
use std::time::Duration;
use table::{Attack, By, EXECUTORS, MODULES, SCHEDULERS, TASKS, UPLOADS, Verdict};
use tessera_cluster::cluster::{Cluster, PATIENCE, Pids};
use tessera_cluster::rest::Answer;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure};
use tokio::time::Instant;
use watch::{NEIGHBOUR, Quiet, SIBLING};

/// Length of a quiet window, and the least that is watched of an attack.
const WINDOW: Duration = Duration::from_millis(500);
/// Attacks between two quiet windows: load of other programs comes and goes.
const GROUP: usize = 6;
/// How long a verdict may take: the longest is one of failures in a row, each with its back-off.
const VERDICT_WITHIN: Duration = Duration::from_secs(20);
/// Role of the attackers, and so their tenant.
const ATTACKER: &str = "attacker";
/// Longest error of a guest that is shown, with what the host says around it.
const ERROR_BYTES_MAX: usize = 4 << 10;

/// Bytes that are looked at of the end of each of a task's files.
const TAIL: u64 = 4_096;

/// A cluster with two neighbours in it.
struct Stage {
    cluster: Cluster,
    pids: Pids,
    workers: Vec<i32>,
    quiet: Quiet,
    /// The sibling as it was at the beginning.
    sibling: Value,
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
        // Who keeps offers is not what is tried here, and would have tasks of attackers wait.
        let config = json!({"tick-ms": "10", "offers": "0"});
        create(&cluster, NEIGHBOUR, NEIGHBOUR, &digest, config.clone()).await?;
        create(&cluster, SIBLING, ATTACKER, &digest, config).await?;
        let sibling = view(&cluster, SIBLING).await?;
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
            quiet: Quiet::default(),
            sibling,
        };
        stage.victim_runs().await?;
        Ok(stage)
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
                let begin = self.count().await?;
                let outcome = self.attack(attack, begin.at).await;
                tokio::time::sleep_until(begin.at + WINDOW).await;
                let end = self.count().await?;
                let goes_on = self.check_share("beside it", &begin, &end);
                let sibling = self.check_sibling().await;
                let name = attack.name;
                for outcome in [outcome, goes_on, sibling, self.check_processes()] {
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

    async fn attack(&self, attack: &Attack, began: Instant) -> Outcome {
        match attack.by {
            By::Upload => {
                self.upload(attack).await?;
                while began.elapsed() < WINDOW {
                    self.upload(attack).await?;
                }
                Ok(())
            }
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
            Verdict::Harmless | Verdict::Storms => harmless(cluster, &name).await,
            Verdict::Fails(text) => self.fails(attack.by, &name, text).await,
            Verdict::Quarantined(text) => self.quarantined(&name, text).await,
            Verdict::Ends(state, text) => self.ends(attack, &name, state, text).await,
            Verdict::Killed | Verdict::Computes => {
                task(cluster, &name, "TASK_RUNNING").await.map(|_| ())
            }
        };
        let verdict = match verdict {
            Ok(()) => self.stays(attack, &name).await,
            failed => failed,
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

    /// What is there after its verdict does no harm either, and ends when it is killed.
    async fn stays(&self, attack: &Attack, name: &str) -> Outcome {
        let killed = matches!(attack.verdict, Verdict::Killed | Verdict::Computes);
        if killed || attack.verdict == Verdict::Storms {
            self.lasts(attack, name).await?;
        }
        if killed {
            kill(&self.cluster, name).await?;
        }
        Ok(())
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
        if let Some(written) = logs::written(false, attack) {
            self.log_is_bounded(name, written).await?;
        }
        let found = view(cluster, name).await?;
        ensure(found["last_error"].is_null(), || found.to_string())
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

    async fn ends(&self, attack: &Attack, name: &str, state: &str, text: &str) -> Outcome {
        let cluster = &self.cluster;
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
        if attack.by == By::Task {
            // What its scheduler was told of it.
            let told = cluster.ask(&format!("/frameworks/{name}/")).await?;
            said = format!("{said}\n{}", told.text());
        }
        ensure(said.contains(text) && !said.contains("ESCAPED"), || {
            said.clone()
        })?;
        ensure(!said.contains("root:"), || {
            format!("a file of the host: {said}")
        })?;
        match logs::written(true, attack.name) {
            Some(written) => self.log_is_bounded(name, written).await,
            None => Ok(()),
        }
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

async fn kill(cluster: &Cluster, name: &str) -> Outcome {
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
