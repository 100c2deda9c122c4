//! A cluster on machines of its own: masters and agents, each in a network namespace, each master with a
//! small disk.
//!
//! Invariants: addresses, ports and directories stay with a machine whatever happens to its process; a
//! process that ended although nobody ended it is noticed ([`Site::ended`]). When a site is dropped, its
//! processes, mounts and network are gone, whatever happened before.

use crate::cluster::{PATIENCE, Process, Scene, tessera};
use crate::disk::Disk;
use crate::guests::program;
use crate::net::Net;
use crate::rest::Rest;
use crate::wait::until;
use crate::{Outcome, ensure, failure, procfs};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where each master serves REST.
const REST_PORT: u16 = 5050;
/// Where each master is reached by agents and other masters.
const PEER_PORT: u16 = 5051;
/// Of a master's disk: log, state and components of a test take a tenth.
const DISK_MIB: u64 = 256;
/// A master that does not answer within this says nothing about who leads.
const GLANCE: Duration = Duration::from_millis(500);

/// A process with a machine of its own.
pub struct Host {
    /// What it is called: `m1`, `a1`.
    pub name: String,
    /// The number of its machine.
    pub machine: usize,
    /// Its directory.
    pub dir: PathBuf,
    /// While it runs.
    pub process: Option<Process>,
    /// Its disk, where loop devices can be had.
    pub disk: Option<Disk>,
    log: PathBuf,
}

impl Host {
    fn new(scene: &Path, name: String, machine: usize) -> Self {
        Self {
            machine,
            dir: scene.join(&name),
            process: None,
            disk: None,
            log: scene.join(format!("{name}.log")),
            name,
        }
    }

    /// Its pid, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(Process::pid)
    }

    /// `kill -9`, and its end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill_9(&mut self) -> Outcome {
        match self.process.take() {
            Some(mut process) => process.kill_9(),
            None => Ok(()),
        }
    }

    /// Send it a signal, if it runs.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn signal(&self, signal: Signal) -> Outcome {
        self.pid().map_or(Ok(()), |pid| procfs::signal(pid, signal))
    }

    /// The end of what it has written.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

/// The masters and agents of one cluster.
pub struct Site {
    /// The masters; the first one made the cluster.
    pub masters: Vec<Host>,
    /// The agents.
    pub agents: Vec<Host>,
    /// What connects them.
    pub net: Net,
    /// The cluster's token.
    pub token: String,
    /// Flags of every agent.
    pub agent_flags: Vec<String>,
    // Dropped last: processes and mounts end before their directory goes.
    /// Its directory.
    pub scene: Scene,
}

impl Site {
    /// So many masters that vote, and so many agents that are connected.
    ///
    /// # Errors
    /// Without root, or when they do not come together in time.
    pub async fn start(name: &str, masters: usize, agents: usize, agent_flags: &[&str]) -> Outcome<Self> {
        let scene = Scene::new(name).await?;
        let net = Net::new(masters + agents)?;
        let host = |prefix: &str, number: usize, machine: usize| {
            Host::new(scene.dir(), format!("{prefix}{}", number + 1), machine)
        };
        let mut site = Self {
            masters: (0..masters).map(|n| host("m", n, n)).collect(),
            agents: (0..agents).map(|n| host("a", n, masters + n)).collect(),
            net,
            token: String::new(),
            agent_flags: agent_flags.iter().map(|flag| (*flag).to_owned()).collect(),
            scene,
        };
        for master in &mut site.masters {
            match Disk::mount(&master.dir, DISK_MIB) {
                Ok(disk) => master.disk = Some(disk),
                Err(error) => eprintln!("no disk of its own for {}: {error}", master.name),
            }
        }
        site.init().await?;
        for index in 0..masters {
            site.run_master(index)?;
            site.voters(index + 1).await?;
        }
        for index in 0..agents {
            site.run_agent(index)?;
        }
        site.connected().await?;
        Ok(site)
    }

    async fn init(&mut self) -> Outcome {
        let dir = self.masters[0].dir.clone();
        let (data, peer, rest) = (dir.display().to_string(), self.peer(0), self.rest_address(0));
        let args = ["operator", "init", "--data-dir", &data, "--peer-address", &peer, "--rest-address", &rest];
        let made = tessera(&args, &[]).await?;
        ensure(made.status.success(), || String::from_utf8_lossy(&made.stderr).into_owned())?;
        self.token = std::fs::read_to_string(dir.join("admin.token"))?.trim().to_owned();
        Ok(std::fs::write(self.token_file(), &self.token)?)
    }

    fn token_file(&self) -> PathBuf {
        self.scene.dir().join("token")
    }

    /// Where agents and other masters reach a master.
    #[must_use]
    pub fn peer(&self, master: usize) -> String {
        format!("{}:{PEER_PORT}", self.net.address(self.masters[master].machine))
    }

    /// Where clients reach a master.
    #[must_use]
    pub fn rest_address(&self, master: usize) -> String {
        format!("{}:{REST_PORT}", self.net.address(self.masters[master].machine))
    }

    fn peers(&self, but: Option<usize>) -> String {
        let others = (0..self.masters.len()).filter(|index| Some(*index) != but);
        others.map(|index| self.peer(index)).collect::<Vec<_>>().join(",")
    }

    /// Start a master that does not run.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_master(&mut self, index: usize) -> Outcome {
        let (rest, peer) = (self.rest_address(index), self.peer(index));
        let master = &self.masters[index];
        let mut command = self.net.command(master.machine, &program("tessera")?);
        command.args(["master", "--insecure-listen-without-tls", "--name", &master.name]);
        command.arg("--data-dir").arg(&master.dir);
        command.args(["--listen", &rest, "--agent-listen", &peer]);
        if index > 0 {
            command.args(["--join", &self.peers(Some(index))]);
            command.arg("--token-file").arg(self.token_file());
        }
        self.masters[index].process = Some(Process::spawn(&master.log, command)?);
        Ok(())
    }

    /// Start an agent that does not run.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_agent(&mut self, index: usize) -> Outcome {
        let agent = &self.agents[index];
        let mut command = self.net.command(agent.machine, &program("tessera")?);
        command.arg("agent").arg("--work-dir").arg(&agent.dir);
        command.args(["--master", &self.peers(None), "--hostname", &agent.name]);
        command.arg("--token-file").arg(self.token_file());
        command.args(&self.agent_flags);
        self.agents[index].process = Some(Process::spawn(&agent.log, command)?);
        Ok(())
    }

    /// A client of one master.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn rest(&self, master: usize) -> Outcome<Rest> {
        Rest::new(&format!("http://{}", self.rest_address(master)), Some(&self.token))
    }

    /// Clients of all masters.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn clients(&self) -> Outcome<Vec<Rest>> {
        (0..self.masters.len()).map(|index| self.rest(index)).collect()
    }

    /// Which master says that it leads, the newest term first; none while none does.
    ///
    /// # Errors
    /// When there is no client.
    pub async fn leader_now(&self) -> Outcome<Option<usize>> {
        let mut found = None;
        for (index, rest) in self.clients()?.into_iter().enumerate() {
            let Ok(Ok(answer)) = tokio::time::timeout(GLANCE, rest.get("/health")).await else {
                continue;
            };
            let health = answer.json();
            let term = health["term"].as_u64().unwrap_or(0);
            if health["leader"] == true && found.is_none_or(|(newest, _)| term > newest) {
                found = Some((term, index));
            }
        }
        Ok(found.map(|(_, index)| index))
    }

    /// Wait until one leads; which.
    ///
    /// # Errors
    /// When none does in time.
    pub async fn leader(&self) -> Outcome<usize> {
        until("a master leads", PATIENCE, async || {
            let leader = self.leader_now().await.map_err(|error| error.to_string())?;
            leader.ok_or_else(|| "none says so".to_owned())
        })
        .await
    }

    /// What a master says of all masters, if so many vote and are in health; else what is missing.
    async fn voters_now(&self, count: usize) -> Result<Value, String> {
        let leader = self.leader_now().await.map_err(|error| error.to_string())?;
        let rest = self.rest(leader.unwrap_or(0)).map_err(|error| error.to_string())?;
        let view = tokio::time::timeout(GLANCE * 4, rest.document("/v1/masters")).await;
        match view {
            Ok(Ok(view)) if view["healthy_voters"] == count && view["voters"] == count => Ok(view),
            Ok(Ok(view)) => Err(view.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Wait until so many masters vote and are in health.
    ///
    /// # Errors
    /// When they are not in time.
    pub async fn voters(&self, count: usize) -> Outcome<Value> {
        until(&format!("{count} masters vote"), PATIENCE, async || self.voters_now(count).await).await
    }

    /// Start whatever does not run, and wait until all masters vote: one that failed on its full disk may take a
    /// moment to end, and is started again then.
    ///
    /// # Errors
    /// When they do not in time, or one ends that is not among these.
    pub async fn whole(&mut self, may_end: &[String]) -> Outcome {
        let count = self.masters.len();
        let done = until("all masters vote again", PATIENCE, async || {
            for (name, words) in self.ended().map_err(|error| error.to_string())? {
                if !may_end.contains(&name) {
                    return Ok(Err(failure(format!("{name} ended by itself: {words}"))));
                }
            }
            self.heal().map_err(|error| error.to_string())?;
            self.voters_now(count).await.map(|_| Ok(()))
        });
        done.await?
    }

    /// Wait until all agents have a session.
    ///
    /// # Errors
    /// When they have not in time.
    pub async fn connected(&self) -> Outcome {
        until("all agents are connected", PATIENCE, async || {
            let leader = self.leader_now().await.map_err(|error| error.to_string())?;
            let rest = self.rest(leader.unwrap_or(0)).map_err(|error| error.to_string())?;
            let agents = rest.document("/v1/agents").await.map_err(|error| error.to_string())?;
            let items = agents["items"].as_array().cloned().unwrap_or_default();
            let connected = items.iter().filter(|agent| agent["state"] == "connected").count();
            match connected == self.agents.len() && items.len() == connected {
                true => Ok(()),
                false => Err(agents.to_string()),
            }
        })
        .await
    }

    /// Masters and agents that ended by themselves: their names and last words. They no longer count as
    /// running.
    ///
    /// # Errors
    /// When a process cannot be asked.
    pub fn ended(&mut self) -> Outcome<Vec<(String, String)>> {
        let mut found = Vec::new();
        for host in self.masters.iter_mut().chain(&mut self.agents) {
            let Some(process) = &mut host.process else { continue };
            if let Some(status) = process.ended()? {
                host.process = None;
                found.push((host.name.clone(), format!("{status}: {}", host.last_words())));
            }
        }
        Ok(found)
    }

    /// Start whatever does not run, and let it reach everything.
    ///
    /// # Errors
    /// When something cannot be started.
    pub fn heal(&mut self) -> Outcome {
        self.net.heal()?;
        for index in 0..self.masters.len() {
            if let Some(disk) = &self.masters[index].disk {
                disk.free()?;
                if Disk::can_be_slow() {
                    disk.set_writes_per_second(None)?;
                }
            }
            match self.masters[index].pid() {
                Some(_) => self.masters[index].signal(Signal::SIGCONT)?,
                None => self.run_master(index)?,
            }
        }
        for index in 0..self.agents.len() {
            match self.agents[index].pid() {
                Some(_) => self.agents[index].signal(Signal::SIGCONT)?,
                None => self.run_agent(index)?,
            }
        }
        Ok(())
    }

    /// Wait until nothing that agents started is left: no process, no control group below theirs.
    ///
    /// # Errors
    /// When something is left for too long.
    pub async fn idle(&self) -> Outcome {
        until("nothing runs any more", PATIENCE, async || {
            let processes = ["tessera-shim", "tessera-worker"]
                .map(|name| procfs::find(name, self.scene.dir()))
                .concat();
            // What an agent keeps for its shims is its own as long as it runs; what is below is not.
            let groups = procfs::groups(self.scene.dir());
            let inner = groups.iter().flat_map(|group| procfs::below(group)).flat_map(|path| {
                match path.ends_with("shims") {
                    true => procfs::below(&path),
                    false => vec![path],
                }
            });
            let inner: Vec<PathBuf> = inner.filter(|path| path.is_dir()).collect();
            match processes.is_empty() && inner.is_empty() {
                true => Ok(()),
                false => Err(format!("processes {processes:?}, groups {inner:?}")),
            }
        })
        .await
    }

    /// All went well: stops everything, and finds nothing of it left on this machine.
    ///
    /// # Errors
    /// When something does not stop in time or leaves anything behind.
    pub fn finish(mut self) -> Outcome {
        for host in self.agents.iter_mut().chain(&mut self.masters) {
            if let Some(mut process) = host.process.take() {
                process.stop()?;
            }
        }
        let Self { net, scene, masters, agents, .. } = self;
        let owner = net.owner();
        drop((masters, agents, net));
        let names = Net::left_over(owner);
        ensure(names.is_empty(), || format!("these are left: {names:?}"))?;
        let dir = scene.dir().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let left: Vec<&str> = mounts.lines().filter(|line| line.contains(&dir)).collect();
        ensure(left.is_empty(), || format!("these mounts are left: {left:?}"))?;
        scene.finish();
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Not asked to stop: it may be paused, and its work is over.
        if let Err(error) = self.kill_9() {
            eprintln!("ending {}: {error}", self.name);
        }
    }
}
