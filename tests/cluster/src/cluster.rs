//! A real cluster in a directory of its own: `tessera dev`, or master and agent one by one.
//!
//! Invariants: when a cluster is dropped, its processes have ended, whatever happened; its directory
//! is removed only after [`Cluster::finish`]. Must never use a port of the ephemeral range.

use crate::guests::{guest, program, target_for_everybody};
use crate::rest::{Answer, Rest};
use crate::wait::until;
use crate::{Outcome, ensure, failure, procfs};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How long a start, a placement or a recovery may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long a process may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(40);

/// In place of a flag of `dev`: tasks outlive it. A cluster that is finished must not have it.
pub const KEEP_TASKS: &str = "keep-tasks";

/// One cluster at a time, or several that do not mind each other.
static TURNS: RwLock<()> = RwLock::const_new(());

/// What belongs to a test: its directory, and the right to be the only one, or one of those that do not mind.
pub struct Scene {
    dir: PathBuf,
    keep: bool,
    _alone: Option<RwLockWriteGuard<'static, ()>>,
    _beside: Option<RwLockReadGuard<'static, ()>>,
}

impl Scene {
    /// A new directory for this test, while no other one runs.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn new(name: &str) -> Outcome<Self> {
        Self::make(name, Some(TURNS.write().await), None)
    }

    /// The same for a test that waits more than it works and measures nothing: it may run beside others like it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn beside(name: &str) -> Outcome<Self> {
        Self::make(name, None, Some(TURNS.read().await))
    }

    fn make(
        name: &str,
        alone: Option<RwLockWriteGuard<'static, ()>>,
        beside: Option<RwLockReadGuard<'static, ()>>,
    ) -> Outcome<Self> {
        // Short, because socket paths below it are bounded by the kernel.
        let dir = tempfile::Builder::new()
            .prefix(&format!("tsr-{name}-"))
            .tempdir()?
            .keep();
        // Tasks run as a user of their own and must be able to pass through.
        std::fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
        Ok(Self {
            dir,
            keep: true,
            _alone: alone,
            _beside: beside,
        })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// An empty file that tasks, whoever they run as, can write to.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open_file(&self, name: &str) -> Outcome<PathBuf> {
        let path = self.dir.join(name);
        std::fs::write(&path, "")?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o666))?;
        Ok(path)
    }

    /// All went well: the directory is removed.
    pub fn finish(mut self) {
        self.keep = false;
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Whatever was left behind by a test that failed in between.
        let found = ["tessera", "tessera-shim", "tessera-worker"]
            .iter()
            .flat_map(|name| procfs::find(name, &self.dir));
        for pid in procfs::with_descendants(found.collect()) {
            let _ = procfs::kill_9(pid);
        }
        procfs::remove_groups(&self.dir);
        if self.keep {
            eprintln!("logs and state are kept in {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// A started process that is stopped when it is dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Start a program of ours; its output goes to a file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(log: &Path, args: &[String]) -> Outcome<Self> {
        Self::start_in(log, args, None, &[])
    }

    /// The same as an ordinary user, when one is named, and with these variables.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_in(
        log: &Path,
        args: &[String],
        uid: Option<u32>,
        env: &[(&str, &str)],
    ) -> Outcome<Self> {
        let mut command = match uid {
            None => Command::new(program("tessera")?),
            Some(uid) => {
                let target = target_for_everybody(log.parent().unwrap_or(log))?;
                let mut command = Command::new(target.join("debug/tessera"));
                // Without supplementary groups, as root's are dropped with its user.
                command.uid(uid).gid(uid);
                command
            }
        };
        command.args(args).envs(env.iter().copied());
        Self::spawn(log, command)
    }

    /// Start a command; its output goes to a file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(log: &Path, mut command: Command) -> Outcome<Self> {
        let out = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        Ok(Self { child })
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// `kill -9`, and its end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill_9(&mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// TERM, and its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> Outcome<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        procfs::signal(self.pid(), Signal::SIGTERM)?;
        let deadline = Instant::now() + STOP_WITHIN;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.kill_9()?;
                return Err(failure("it did not stop and was killed"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn ended(&mut self) -> Outcome<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("stopping process {}: {error}", self.pid());
        }
    }
}

/// Run `tessera` to its end.
///
/// # Errors
/// When it cannot be started.
pub async fn tessera(args: &[&str], env: &[(&str, String)]) -> Outcome<Output> {
    let output = command(args, env)?.output();
    match tokio::time::timeout(PATIENCE * 3, output).await {
        Ok(output) => Ok(output?),
        Err(_) => Err(failure(format!("tessera {} did not end", args.join(" ")))),
    }
}

fn command(args: &[&str], env: &[(&str, String)]) -> Outcome<tokio::process::Command> {
    let mut command = tokio::process::Command::new(program("tessera")?);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    for name in ["TESSERA_TOKEN", "TESSERA_TOKEN_FILE", "TESSERA_ADDRESS", "TESSERA_CONTEXT"] {
        command.env_remove(name);
    }
    // Contexts of whoever runs the tests are not meant.
    command.env("TESSERA_CONFIG", "/nonexistent/tessera.toml");
    command.envs(env.iter().map(|(name, value)| (*name, value.as_str())));
    Ok(command)
}

/// The pids of a `tessera dev`, 0 for one that is just being started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pids {
    /// The supervisor.
    pub dev: i32,
    /// The master.
    pub master: i32,
    /// The agent.
    pub agent: i32,
}

/// A cluster under `tessera dev`.
pub struct Cluster {
    // Dropped in this order: the processes end before their directory goes.
    dev: Process,
    /// To speak to its master.
    pub rest: Rest,
    address: String,
    /// Whom it runs as, when that is not this process's user.
    uid: Option<u32>,
    /// Its directory.
    pub scene: Scene,
}

impl Cluster {
    /// Start one, with further flags for `dev`.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub async fn start(name: &str, flags: &[&str]) -> Outcome<Self> {
        Self::start_as(name, flags, None).await
    }

    /// The same under an ordinary user, when one is named.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub async fn start_as(name: &str, flags: &[&str], uid: Option<u32>) -> Outcome<Self> {
        let scene = Scene::new(name).await?;
        if uid.is_some() {
            std::os::unix::fs::chown(scene.dir(), uid, uid)?;
        }
        let (dev, rest, address) = start_dev(scene.dir(), flags, uid).await?;
        Ok(Self {
            scene,
            dev,
            rest,
            address,
            uid,
        })
    }

    /// Stop the processes in order, and start them again on the same state.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub async fn restart(&mut self, flags: &[&str]) -> Outcome {
        self.dev.stop()?;
        let (dev, rest, address) = start_dev(self.scene.dir(), flags, self.uid).await?;
        self.dev = dev;
        self.rest = rest;
        self.address = address;
        Ok(())
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.scene.dir()
    }

    /// The agent's work directory.
    #[must_use]
    pub fn agent_dir(&self) -> PathBuf {
        data_dir(self.dir()).join("agent")
    }

    /// Its REST address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its processes, as far as they run now.
    ///
    /// # Errors
    /// When they are not known.
    pub fn pids(&self) -> Outcome<Pids> {
        let record = record(self.dir())?;
        let pid = |name: &str| {
            record["pids"][name]
                .as_i64()
                .and_then(|pid| i32::try_from(pid).ok())
                .unwrap_or(0)
        };
        Ok(Pids {
            dev: pid("dev"),
            master: pid("master"),
            agent: pid("agent"),
        })
    }

    /// Pids of the workers that host schedulers or tasks.
    #[must_use]
    pub fn workers(&self) -> Vec<i32> {
        procfs::find("tessera-worker", &self.agent_dir())
    }

    /// Environment for `tessera` to find it.
    #[must_use]
    pub fn env(&self) -> Vec<(&'static str, String)> {
        let token = data_dir(self.dir()).join("master/admin.token");
        vec![
            ("TESSERA_ADDRESS", self.address.clone()),
            ("TESSERA_TOKEN_FILE", token.display().to_string()),
        ]
    }

    /// Run `tessera` on it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn tessera(&self, args: &[&str]) -> Outcome<Output> {
        tessera(args, &self.env()).await
    }

    /// Start `tessera` on it, with its output kept.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn tessera_in_background(&self, args: &[&str]) -> Outcome<tokio::process::Child> {
        let mut command = command(args, &self.env())?;
        Ok(command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?)
    }

    /// Upload a guest; its digest.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn push(&self, name: &str) -> Outcome<String> {
        push(&self.rest, name).await
    }

    /// Create a framework from a guest and wait until its scheduler runs.
    ///
    /// # Errors
    /// When it is refused or does not run in time.
    pub async fn framework(
        &self,
        name: &str,
        guest: &str,
        config: &[(&str, &str)],
    ) -> Outcome<Value> {
        framework(&self.rest, name, guest, config).await
    }

    /// Ask a scheduler until it answers with success: it may be away for a moment.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn ask(&self, path: &str) -> Outcome<Answer> {
        until(&format!("an answer to {path}"), PATIENCE, async || {
            let answer = self
                .rest
                .get(path)
                .await
                .map_err(|error| error.to_string())?;
            answer.ok().map_err(|error| error.to_string())
        })
        .await
    }

    /// All went well: stops everything and removes the directory.
    ///
    /// # Errors
    /// When it does not stop in order, or leaves processes behind.
    pub async fn finish(mut self) -> Outcome {
        let status = self.dev.stop()?;
        if !status.success() {
            return Err(failure(format!("dev ended with {status}")));
        }
        let left: Vec<i32> = ["tessera-shim", "tessera-worker"]
            .iter()
            .flat_map(|name| procfs::find(name, self.dir()))
            .collect();
        if !left.is_empty() {
            return Err(failure(format!("dev left processes behind: {left:?}")));
        }
        self.scene.finish();
        Ok(())
    }
}

fn data_dir(scene: &Path) -> PathBuf {
    scene.join("d")
}

fn record(scene: &Path) -> Outcome<Value> {
    Ok(serde_json::from_slice(&std::fs::read(
        data_dir(scene).join("dev.json"),
    )?)?)
}

async fn start_dev(
    scene: &Path,
    flags: &[&str],
    uid: Option<u32>,
) -> Outcome<(Process, Rest, String)> {
    let log = scene.join("dev.log");
    let data = data_dir(scene).display().to_string();
    let mut args: Vec<String> = ["dev", "--data-dir", &data].map(str::to_owned).to_vec();
    args.extend(["--port", "0", "--agent-port", "0"].map(str::to_owned));
    if !flags.contains(&KEEP_TASKS) {
        args.push("--kill-tasks".to_owned());
    }
    let others = flags.iter().filter(|flag| **flag != KEEP_TASKS);
    args.extend(others.map(|&flag| flag.to_owned()));
    let written = std::fs::metadata(&log).map_or(0, |meta| meta.len());
    let mut dev = Process::start_in(&log, &args, uid, &[])?;
    let ready = until("the cluster is ready", PATIENCE, async || {
        let text = std::fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(
            text.get(usize::try_from(written).unwrap_or(0)..)
                .unwrap_or_default(),
        )
        .into_owned();
        match dev.ended() {
            Ok(None) if text.contains("ready after") => Ok(Ok(())),
            Ok(None) => Err(text),
            Ok(Some(status)) => Ok(Err(format!("dev ended with {status}: {text}"))),
            Err(error) => Ok(Err(error.to_string())),
        }
    })
    .await?;
    ready.map_err(failure)?;
    let record = record(scene)?;
    let text = |name: &str| {
        record[name]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| failure(format!("dev.json has no {name}")))
    };
    let address = text("address")?;
    let token = std::fs::read_to_string(text("token_file")?)?;
    let rest = Rest::new(&address, Some(token.trim()))?;
    Ok((dev, rest, address))
}

/// Upload a guest; its digest.
///
/// # Errors
/// When it is refused.
pub async fn push(rest: &Rest, name: &str) -> Outcome<String> {
    let bytes = std::fs::read(guest(name)?)?;
    let answer = rest
        .send("POST", "/v1/components", &[], bytes)
        .await?
        .ok()?;
    answer.json()["digest"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| failure("the upload was answered without a digest"))
}

/// Create a framework from a guest and wait until its scheduler runs; its document.
///
/// # Errors
/// When it is refused or does not run in time.
pub async fn framework(
    rest: &Rest,
    name: &str,
    guest: &str,
    config: &[(&str, &str)],
) -> Outcome<Value> {
    let digest = push(rest, guest).await?;
    let config: Value = config
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Value::from(*value)))
        .collect();
    let document = json!({"name": name, "role": "default", "component": digest, "config": config});
    rest.post("/v1/frameworks", &document).await?.ok()?;
    until(
        &format!("the framework {name} runs"),
        PATIENCE,
        async || {
            let found = rest
                .document(&format!("/v1/frameworks/{name}"))
                .await
                .map_err(|error| error.to_string())?;
            if found["state"] == "running" {
                Ok(found)
            } else {
                Err(found.to_string())
            }
        },
    )
    .await
}

/// Make a cluster of one master in a directory.
///
/// # Errors
/// When it is refused.
pub async fn init(dir: &Path, agent_port: u16, port: u16) -> Outcome {
    let (dir, peer, rest) = (
        dir.display().to_string(),
        format!("127.0.0.1:{agent_port}"),
        format!("127.0.0.1:{port}"),
    );
    let args = ["operator", "init", "--data-dir", &dir, "--peer-address", &peer, "--rest-address", &rest];
    let made = tessera(&args, &[]).await?;
    ensure(made.status.success(), || String::from_utf8_lossy(&made.stderr).into_owned())
}

/// A port that nobody listens on, below the ephemeral range.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Outcome<u16> {
    let start = 10_000 + u16::try_from(std::process::id() % 8_000).unwrap_or(0);
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    for _ in 0..1_000 {
        let port = start + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 2_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(failure("no free port"))
}

/// A master and an agent that are started and killed one by one.
pub struct Parts {
    /// The agent, while it runs.
    pub agent: Option<Process>,
    /// The master, while it runs.
    pub master: Option<Process>,
    port: u16,
    agent_port: u16,
    /// Further flags of its agents.
    pub agent_flags: Vec<String>,
    // Dropped last: the processes end before their directory goes.
    /// Its directory.
    pub scene: Scene,
}

impl Parts {
    /// Nothing runs yet.
    ///
    /// # Errors
    /// When there is no directory or no port.
    pub async fn new(name: &str) -> Outcome<Self> {
        let scene = Scene::new(name).await?;
        Ok(Self {
            scene,
            port: free_port()?,
            agent_port: free_port()?,
            agent_flags: Vec::new(),
            master: None,
            agent: None,
        })
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.scene.dir()
    }

    /// The token file of the master in a subdirectory.
    #[must_use]
    pub fn token_file(&self, master_dir: &str) -> PathBuf {
        self.dir().join(master_dir).join("admin.token")
    }

    /// Start a master on a subdirectory and wait until it answers; a client of it.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn start_master(&mut self, dir: &str) -> Outcome<Rest> {
        if !self.dir().join(dir).join("db").exists() {
            init(&self.dir().join(dir), self.agent_port, self.port).await?;
        }
        let args = [
            "master".to_owned(),
            "--data-dir".to_owned(),
            self.dir().join(dir).display().to_string(),
            "--listen".to_owned(),
            format!("127.0.0.1:{}", self.port),
            "--agent-listen".to_owned(),
            format!("127.0.0.1:{}", self.agent_port),
        ];
        self.master = Some(Process::start(&self.dir().join("master.log"), &args)?);
        let address = format!("http://127.0.0.1:{}", self.port);
        let open = Rest::new(&address, None)?;
        until("the master answers", PATIENCE, async || {
            open.get("/health")
                .await
                .and_then(Answer::ok)
                .map_err(|error| error.to_string())
        })
        .await?;
        let token = std::fs::read_to_string(self.token_file(dir))?;
        Ok(open.with_token(Some(token.trim())))
    }

    /// Arguments of an agent on a subdirectory, with the token of the master in another one.
    #[must_use]
    pub fn agent_args(&self, dir: &str, master_dir: &str) -> Vec<String> {
        let mut args = vec![
            "agent".to_owned(),
            "--work-dir".to_owned(),
            self.dir().join(dir).display().to_string(),
            "--master".to_owned(),
            format!("127.0.0.1:{}", self.agent_port),
            "--token-file".to_owned(),
            self.token_file(master_dir).display().to_string(),
        ];
        args.extend(self.agent_flags.iter().cloned());
        args
    }

    /// Start an agent on a subdirectory and wait until the master sees it.
    ///
    /// # Errors
    /// When it is not connected in time.
    pub async fn start_agent(&mut self, rest: &Rest, dir: &str, master_dir: &str) -> Outcome {
        self.start_agent_in(rest, dir, master_dir, &[]).await
    }

    /// The same with these variables in its environment.
    ///
    /// # Errors
    /// When it is not connected in time.
    pub async fn start_agent_in(
        &mut self,
        rest: &Rest,
        dir: &str,
        master_dir: &str,
        env: &[(&str, &str)],
    ) -> Outcome {
        let args = self.agent_args(dir, master_dir);
        let log = self.dir().join("agent.log");
        self.agent = Some(Process::start_in(&log, &args, None, env)?);
        until("the agent is connected", PATIENCE, async || {
            let agents = rest
                .document("/v1/agents")
                .await
                .map_err(|error| error.to_string())?;
            let connected = agents["items"]
                .as_array()
                .is_some_and(|items| items.iter().any(|agent| agent["state"] == "connected"));
            if connected {
                Ok(())
            } else {
                Err(agents.to_string())
            }
        })
        .await
    }

    /// All went well: stops both and removes the directory.
    ///
    /// # Errors
    /// When one does not stop in time.
    pub fn finish(mut self) -> Outcome {
        for process in [self.agent.take(), self.master.take()].iter_mut().flatten() {
            process.stop()?;
        }
        self.scene.finish();
        Ok(())
    }
}
