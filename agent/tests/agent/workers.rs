//! Real workers under a real agent: users, groups, networks, sizes; their end; another engine; recordings.
//! The work directory stands in one that other users may not pass through.

use super::{Cluster, built, skip, spec, task, wait_for};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use tessera_types::{Digest, Quantities, TaskBody, TaskSpec};
use tessera_wire::v1;
use v1::TaskState as S;

pub(crate) fn guest(name: &str) -> Vec<u8> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
    let path = target.join(format!("guests/wasm32-wasip2/release/{name}.wasm"));
    let missing = format!("{}: run scripts/build-guests first", path.display());
    std::fs::read(path).expect(&missing)
}

fn instance(framework: u64, role: &str, component: Digest) -> v1::DesiredInstance {
    v1::DesiredInstance {
        framework,
        name: format!("w{framework}"),
        role: role.into(),
        epoch: 1,
        component: component.0.to_vec(),
        seed: 1,
        ..Default::default()
    }
}

/// A Wasm task that waits for so long and ends well; of the guest `task-spin`, whose time is its rounds.
fn wasm(component: Digest, args: &[&str]) -> TaskSpec {
    TaskSpec {
        body: TaskBody::Wasm {
            component,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        },
        resources: Quantities { cpus_milli: 50, mem_mib: 40, disk_mib: 0 }.into(),
        pids_limit: None,
        env: vec![],
        ..spec("")
    }
}

/// A process that serves as a worker of this cluster.
#[derive(Clone, Debug)]
struct Process {
    pid: i32,
    /// Its socket's name without the directory: tenant, kind and engine.
    name: String,
}

impl Process {
    fn status(&self, field: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    }

    fn uid(&self) -> u32 {
        let ids = self.status("Uid");
        let ids: BTreeSet<&str> = ids.split_ascii_whitespace().collect();
        assert_eq!(ids.len(), 1, "real, effective and saved are one: {ids:?}");
        ids.first().unwrap().parse().unwrap()
    }

    fn network(&self) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/ns/net", self.pid)).unwrap()
    }
}

impl Cluster {
    pub(crate) fn hosting() -> Self {
        Self::with_worker(&built("tessera-worker"), 0o700)
    }

    fn workers(&self) -> Vec<Process> {
        let run = self.home.path().join("work/run/");
        let run = run.to_str().unwrap();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let (Some(pid), Ok(line)) = (pid, std::fs::read(entry.path().join("cmdline"))) else {
                continue;
            };
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut words = line.split('\0').filter(|word| word.ends_with(".sock"));
            if let Some(name) = words.find_map(|word| word.strip_prefix(run)) {
                let name = name.trim_end_matches(".sock").to_owned();
                found.push(Process { pid, name });
            }
        }
        found.sort_by_key(|process| process.pid);
        found
    }

    /// The worker of this kind; there is one.
    fn worker(&self, kind: &str) -> Process {
        let mut workers = self.workers();
        workers.retain(|worker| worker.name.contains(kind));
        assert_eq!(workers.len(), 1, "{workers:?}");
        workers.remove(0)
    }

    /// `kill -9` of the worker of this kind.
    pub(crate) fn kill_worker(&self, kind: &str) {
        let pid = nix::unistd::Pid::from_raw(self.worker(kind).pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    fn desire_all(&mut self, instances: Vec<v1::DesiredInstance>, tasks: Vec<v1::DesiredTask>) {
        self.generation += 1;
        let desired = v1::Desired {
            generation: self.generation,
            instances,
            tasks,
            ..v1::Desired::default()
        };
        self.master
            .send(v1::master_message::Message::Desired(desired));
    }

    fn ready(&self, framework: u64) -> v1::InstanceReady {
        wait_for("a ready scheduler", || self.master.instance(framework))
    }

    /// The limit of memory of a worker's group; none where there are no groups.
    fn limit(&self, worker: &Process) -> Option<u64> {
        self.memory_limit(&format!("worker-{}", worker.name))
    }

    /// The limit of memory of a group; none where there are no groups.
    pub(crate) fn memory_limit(&self, name: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.home.path().join("work/agent.json")).unwrap();
        let (_, key) = text.split_once("\"key\":\"").unwrap();
        let group = format!("tessera/{}/{name}", &key[..16]);
        [
            "/sys/fs/cgroup/memory/GROUP/memory.limit_in_bytes",
            "/sys/fs/cgroup/GROUP/memory.max",
            "/sys/fs/cgroup/unified/GROUP/memory.max",
        ]
        .iter()
        .find_map(|path| std::fs::read_to_string(path.replace("GROUP", &group)).ok())
        .and_then(|text| text.trim().parse().ok())
    }
}

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

#[test]
fn workers_have_users_networks_and_groups_of_their_own() {
    let mut cluster = Cluster::hosting();
    let echo = cluster.master.has_component(guest("echo"));
    let exit = cluster.master.has_component(guest("task-exit"));
    let task_spec = wasm(exit, &["0", "sleep", "300"]);
    let instances = vec![instance(1, "eng/a", echo), instance(2, "ops", echo)];
    cluster.desire_all(instances, vec![task("t", &task_spec)]);
    cluster.ready(1);
    cluster.ready(2);
    cluster.status("t", S::TaskFinished);
    assert!(
        cluster.output("t", "stdout").starts_with("args: 0"),
        "its sandbox is its own"
    );
    let workers = cluster.workers();
    assert_eq!(workers.len(), 3, "{workers:?}");
    let description = cluster.master.last_register().description.unwrap();
    assert!(description.engine.starts_with("wasmtime-"), "{description:?}");
    for worker in &workers {
        assert_eq!(worker.status("NoNewPrivs"), "1");
    }
    if !is_root() {
        let missing: Vec<_> = description.missing.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(missing, ["users", "network", "limits"]);
        skip("users, networks and groups of workers, which only root gives them");
        return;
    }
    let users: BTreeSet<u32> = workers.iter().map(Process::uid).collect();
    assert_eq!(users.len(), 3, "{users:?}");
    let sandbox = cluster.sandbox("t").metadata().unwrap();
    assert_eq!(sandbox.uid(), cluster.worker("tasks").uid());
    assert!(users.iter().all(|uid| *uid >= 2_147_352_576), "{users:?}");
    for worker in &workers {
        assert_eq!(worker.status("CapEff"), "0000000000000000");
        assert_eq!(worker.status("Groups"), "");
    }
    if description.missing.is_empty() {
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let networks: BTreeSet<PathBuf> = workers.iter().map(Process::network).chain([own]).collect();
        assert_eq!(networks.len(), 4, "{networks:?}");
        assert!(workers.iter().all(|worker| cluster.limit(worker).is_some()));
    } else {
        skip(&format!("networks and limits of workers: {:?}", description.missing));
    }
}

/// What of a worker's arguments is about files.
fn about_files(worker: &Process) -> Vec<String> {
    let line = std::fs::read_to_string(format!("/proc/{}/cmdline", worker.pid)).unwrap();
    let mut words = line.split('\0');
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "--own-files" | "--reach-links" => found.push(word.to_owned()),
            "--reach" | "--reach-write" => found.extend([word, words.next().unwrap()].map(str::to_owned)),
            _ => {}
        }
    }
    found
}

/// Error numbers of reading these files in a work directory, as the worker's binary tries it.
fn reading(work: &Path, arguments: &[String], files: &[String]) -> Vec<i64> {
    let tries = files.iter().map(|file| format!("read:{file}"));
    let said = std::process::Command::new(built("tessera-worker"))
        .current_dir(work)
        .arg("probe-reach")
        .args(arguments)
        .args(tries)
        .output()
        .unwrap();
    let tried: serde_json::Value = serde_json::from_slice(&said.stdout).expect(&format!("{said:?}"));
    let tried = tried.as_array().unwrap().iter();
    tried.map(|row| row["errno"].as_i64().unwrap()).collect()
}

#[test]
fn workers_open_the_files_of_their_tenant_and_no_others() {
    let mut cluster = Cluster::hosting();
    let echo = cluster.master.has_component(guest("echo"));
    let exit = cluster.master.has_component(guest("task-exit"));
    let instances = vec![instance(1, "eng/a", echo), instance(2, "ops", echo)];
    cluster.desire_all(instances, vec![task("t", &wasm(exit, &["0", "x"]))]);
    cluster.ready(1);
    cluster.ready(2);
    cluster.status("t", S::TaskFinished);
    let missing = cluster.master.last_register().description.unwrap().missing;
    if missing.iter().any(|pair| pair.key == "files") {
        skip(&format!("files of workers: {missing:?}"));
        return;
    }
    let work = cluster.home.path().join("work");
    let image = std::fs::read_dir(work.join("images")).unwrap().next().unwrap().unwrap();
    let image = format!("images/{}", image.file_name().to_str().unwrap());
    let output = cluster.sandbox("t").join("stdout");
    let output = output.strip_prefix(&work).unwrap().to_str().unwrap();
    let of_nobody = ["agent.json", "tenants.json", "LOCK", "../token", "/etc/passwd", "/proc/self/status"];
    let mine = [image.as_str(), output, "recordings/f1/e1-1.rec", "recordings/f2/e1-1.rec"];
    let files: Vec<String> = mine.iter().chain(&of_nobody).map(|file| (*file).to_owned()).collect();
    // Without the rule all of them can be read, by who may: this test.
    assert_eq!(reading(&work, &[], &files), vec![0; files.len()], "{files:?}");
    let mut reached = BTreeSet::new();
    for worker in cluster.workers() {
        let arguments = about_files(&worker);
        assert_eq!(arguments.contains(&"--reach-links".to_owned()), is_root(), "{arguments:?}");
        let errors = reading(&work, &arguments, &files);
        let allowed: Vec<&str> = files.iter().zip(&errors).filter(|(_, e)| **e == 0).map(|(f, _)| f.as_str()).collect();
        assert!(errors.iter().all(|errno| [0, i64::from(libc::EACCES)].contains(errno)), "{errors:?}");
        reached.insert(allowed.join(" "));
    }
    let expected = mine[1..].iter().map(|file| format!("{image} {file}"));
    assert_eq!(reached, expected.collect());
}

#[test]
fn a_worker_is_as_large_as_what_it_hosts() {
    let mut cluster = Cluster::hosting();
    if let Some(why) = cluster.cgroups().unlimited_because() {
        skip(&format!("the memory limit of a worker: {why}"));
        return;
    }
    let echo = cluster.master.has_component(guest("echo"));
    cluster.desire_all(vec![instance(1, "eng", echo)], vec![]);
    cluster.ready(1);
    let worker = cluster.worker("schedulers");
    let one = cluster.limit(&worker).unwrap();
    let all: Vec<_> = (1..=4).map(|n| instance(n, "eng", echo)).collect();
    cluster.desire_all(all, vec![]);
    cluster.ready(4);
    let four = cluster.limit(&worker).unwrap();
    // Three more of 64 MiB each with as much state and 16 MiB of specs, and what each takes beside that.
    assert!(four >= one + 3 * (144 << 20), "{one} {four}");
    assert!(four < one + 3 * (160 << 20), "{one} {four}");
    cluster.desire_all(vec![instance(1, "eng", echo)], vec![]);
    wait_for("the worker's group to be smaller", || {
        (cluster.limit(&worker)? < one + (64 << 20)).then_some(())
    });
    assert_eq!(cluster.worker("schedulers").pid, worker.pid);
}

#[test]
fn an_idle_worker_ends_and_another_is_started_on_need() {
    let mut cluster = Cluster::hosting();
    cluster.kill_agent();
    cluster.worker_idle_s = 1;
    cluster.start();
    let echo = cluster.master.has_component(guest("echo"));
    let mut before = 0;
    for _ in 0..2 {
        cluster.master.forget_instances();
        cluster.desire_all(vec![instance(1, "eng", echo)], vec![]);
        cluster.ready(1);
        let pid = cluster.worker("schedulers").pid;
        assert_ne!(pid, before);
        before = pid;
        cluster.desire_all(vec![], vec![]);
        wait_for("the end of the worker", || cluster.workers().is_empty().then_some(()));
        wait_for("the end of its group", || {
            let groups = cluster.cgroups().list();
            groups.iter().all(|name| !name.starts_with("worker-")).then_some(())
        });
    }
}

#[test]
fn another_engine_takes_schedulers_over_and_leaves_tasks_where_they_are() {
    let mut cluster = Cluster::hosting();
    let echo = cluster.master.has_component(guest("echo"));
    let spin = cluster.master.has_component(guest("task-spin"));
    let exit = cluster.master.has_component(guest("task-exit"));
    let (native, endless) = (spec("echo $$ > pid; exec sleep 1000"), wasm(spin, &[]));
    let instances = || vec![instance(1, "eng", echo)];
    let running = || vec![task("native", &native), task("endless", &endless)];
    cluster.desire_all(instances(), running());
    assert!(!cluster.ready(1).rebuilt);
    cluster.status("endless", S::TaskRunning);
    cluster.status("native", S::TaskRunning);
    let old = [cluster.worker("schedulers"), cluster.worker("tasks")];
    let pid = cluster.output("native", "pid");
    let engine = cluster.master.last_register().description.unwrap().engine;
    cluster.kill_agent();
    cluster.master.forget_instances();
    cluster.engine_suffix = "next";
    cluster.start();
    let description = cluster.master.last_register().description.unwrap();
    assert_eq!(description.engine, format!("{engine}next"));
    let new = task("new", &wasm(exit, &["0"]));
    cluster.desire_all(instances(), [running(), vec![new]].concat());
    assert!(cluster.ready(1).rebuilt, "another process has it now");
    cluster.status("new", S::TaskFinished);
    wait_for("the end of the old worker of schedulers", || {
        let gone = |w: &Process| w.pid != old[0].pid;
        cluster.workers().iter().all(gone).then_some(())
    });
    let workers = cluster.workers();
    assert!(workers.iter().any(|w| w.pid == old[1].pid), "{workers:?}");
    assert_eq!(workers.len(), 3, "{workers:?}");
    for task in ["native", "endless"] {
        for ended in [S::TaskFailed, S::TaskKilled, S::TaskFinished, S::TaskLost] {
            assert_eq!(cluster.master.status(task, ended), None);
        }
    }
    assert_eq!(cluster.output("native", "pid"), pid);
    assert!(Path::new(&format!("/proc/{}", pid.trim())).exists());
    // Its kill reaches the old worker, which ends with its last task.
    let kill = v1::DesiredTask {
        kill_grace_ms: Some(0),
        ..task("endless", &endless)
    };
    cluster.desire_all(instances(), vec![kill]);
    cluster.status("endless", S::TaskKilled);
    wait_for("the end of the old worker of tasks", || {
        let gone = |w: &Process| w.pid != old[1].pid;
        cluster.workers().iter().all(gone).then_some(())
    });
    let images = std::fs::read_dir(cluster.home.path().join("work/images")).unwrap();
    assert!(images.count() >= 2);
}

#[test]
fn tasks_of_a_killed_worker_are_lost_once_and_its_schedulers_come_back() {
    let mut cluster = Cluster::hosting();
    let echo = cluster.master.has_component(guest("echo"));
    let spin = cluster.master.has_component(guest("task-spin"));
    let endless = wasm(spin, &[]);
    cluster.desire_all(vec![instance(1, "eng", echo)], vec![task("endless", &endless)]);
    cluster.ready(1);
    cluster.status("endless", S::TaskRunning);
    cluster.master.forget_instances();
    for worker in cluster.workers() {
        let pid = nix::unistd::Pid::from_raw(worker.pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    assert_eq!(cluster.status("endless", S::TaskFailed).reason, "WORKER_LOST");
    assert!(cluster.ready(1).rebuilt);
}

#[test]
fn recordings_are_listed_and_read_by_ranges() {
    let mut cluster = Cluster::hosting();
    let echo = cluster.master.has_component(guest("echo"));
    cluster.desire_all(vec![instance(1, "eng", echo)], vec![]);
    cluster.ready(1);
    let list = |cluster: &Cluster| -> serde_json::Value {
        let chunk = cluster.master.file("", "recordings", 0, 60_000);
        assert_eq!(chunk.error, "");
        assert_eq!(chunk.size, chunk.data.len() as u64);
        serde_json::from_slice(&chunk.data).unwrap()
    };
    let found = wait_for("a recording", || Some(list(&cluster)).filter(|list| !list[0].is_null()));
    assert_eq!(found[0]["id"], "e1-1");
    assert_eq!((&found[0]["live"], &found[0]["stopped"]), (&true.into(), &false.into()));
    let path = cluster.home.path().join("work/recordings/f1/e1-1.rec");
    let whole = std::fs::read(&path).unwrap();
    let part = cluster.master.file("", "recordings/e1-1", 4, 20);
    assert_eq!((part.data.as_slice(), part.error.as_str()), (&whole[4..24], ""));
    for path in ["recordings/e1-9", "recordings/../agent.json", "recordings/"] {
        let chunk = cluster.master.file("", path, 0, 10);
        assert!(chunk.data.is_empty() && !chunk.error.is_empty(), "{path}");
    }
    if is_root() {
        let (dir, worker) = (path.parent().unwrap(), cluster.worker("schedulers"));
        assert_eq!(dir.metadata().unwrap().uid(), worker.uid());
        assert_eq!(dir.metadata().unwrap().mode() & 0o777, 0o700);
    } else {
        skip("the owner of recordings, which is a worker's user only under root");
    }
    cluster.desire_all(vec![], vec![]);
    wait_for("the end of the recording", || (list(&cluster)[0]["live"] == false).then_some(()));
}
