//! Several masters as real processes, started, killed and joined one by one.
//!
//! Invariants: the first master makes the cluster, every other one joins it; ports stay the same as long as
//! a group lives, so that a master that is started again is found where it was.

use crate::cluster::{PATIENCE, Process, Scene, free_port, init};
use crate::disk::Disk;
use crate::rest::Rest;
use crate::wait::until;
use crate::{Outcome, failure};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// One master, running or not.
pub struct Member {
    /// Its data directory.
    pub dir: PathBuf,
    /// Its REST port.
    pub port: u16,
    /// Where masters and agents reach it.
    pub peer_port: u16,
    /// While it runs.
    pub process: Option<Process>,
    log: PathBuf,
}

/// Masters of one cluster.
pub struct Group {
    /// All of them, in the order in which they were added.
    pub members: Vec<Member>,
    /// The cluster's token.
    pub token: String,
    /// Further flags of every master.
    pub flags: Vec<String>,
    /// Variables of every master that is started from now on.
    pub variables: Vec<(&'static str, String)>,
    /// An agent, while one runs.
    pub agents: Vec<Process>,
    // Dropped last: the processes end before their directory goes.
    /// Its directory.
    pub scene: Scene,
}

impl Member {
    /// One that does not run, in a directory of its number that is not there yet.
    ///
    /// # Errors
    /// When there is no port.
    pub fn new(scene: &Path, number: usize) -> Outcome<Self> {
        Ok(Self {
            dir: scene.join(format!("m{number}")),
            port: free_port()?,
            peer_port: free_port()?,
            process: None,
            log: scene.join(format!("m{number}.log")),
        })
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

    /// What it has written.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Group {
    /// A cluster of so many masters, all of them voters.
    ///
    /// # Errors
    /// When it does not come together in time.
    pub async fn start(name: &str, masters: usize) -> Outcome<Self> {
        Self::start_with(name, masters, &[]).await
    }

    /// The same for a test that does not mind others beside it.
    ///
    /// # Errors
    /// When it does not come together in time.
    pub async fn beside(name: &str, masters: usize) -> Outcome<Self> {
        Self::start_in(Scene::beside(name).await?, masters, &[], &[]).await
    }

    /// The same as [`Group::start`] with further flags of every master.
    ///
    /// # Errors
    /// When it does not come together in time.
    pub async fn start_with(name: &str, masters: usize, flags: &[&str]) -> Outcome<Self> {
        Self::start_as(name, masters, flags, &[]).await
    }

    /// The same with variables, too.
    ///
    /// # Errors
    /// When it does not come together in time.
    pub async fn start_as(
        name: &str,
        masters: usize,
        flags: &[&str],
        variables: &[(&'static str, &'static str)],
    ) -> Outcome<Self> {
        Self::start_in(Scene::new(name).await?, masters, flags, variables).await
    }

    /// A cluster of so many masters, in a directory that is there.
    ///
    /// # Errors
    /// When it does not come together in time.
    pub async fn start_in(
        scene: Scene,
        masters: usize,
        flags: &[&str],
        variables: &[(&'static str, &'static str)],
    ) -> Outcome<Self> {
        let first = Member::new(scene.dir(), 1)?;
        init(&first.dir, first.peer_port, first.port).await?;
        let token = std::fs::read_to_string(first.dir.join("admin.token"))?;
        let mut group = Self {
            members: vec![first],
            token: token.trim().to_owned(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            variables: variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
            agents: Vec::new(),
            scene,
        };
        group.run(0)?;
        group.leader().await?;
        for _ in 1..masters {
            group.join().await?;
        }
        Ok(group)
    }

    /// Peer addresses of all, separated by commas.
    #[must_use]
    pub fn peers(&self) -> String {
        let all = self.members.iter().map(|m| format!("127.0.0.1:{}", m.peer_port));
        all.collect::<Vec<_>>().join(",")
    }

    /// REST addresses of all, separated by commas.
    #[must_use]
    pub fn addresses(&self) -> String {
        let all = self.members.iter().map(|m| format!("http://127.0.0.1:{}", m.port));
        all.collect::<Vec<_>>().join(",")
    }

    /// Environment for `tessera` to find it.
    #[must_use]
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("TESSERA_ADDRESS", self.addresses()),
            ("TESSERA_TOKEN", self.token.clone()),
        ]
    }

    /// Start one that does not run. An empty directory joins, any other one goes on.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&mut self, index: usize) -> Outcome {
        let args = self.args(index)?;
        let variables: Vec<(&str, &str)> = self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let member = &mut self.members[index];
        member.process = Some(Process::start_in(&member.log, &args, None, &variables)?);
        Ok(())
    }

    /// With what a master is started.
    ///
    /// # Errors
    /// When the token cannot be written for it.
    pub fn args(&self, index: usize) -> Outcome<Vec<String>> {
        let token = self.scene.dir().join("token");
        // Not anew each time: another one may be reading it.
        if std::fs::read_to_string(&token).ok().as_ref() != Some(&self.token) {
            std::fs::write(&token, &self.token)?;
        }
        let member = &self.members[index];
        let mut args = vec![
            "master".to_owned(),
            "--data-dir".to_owned(),
            member.dir.display().to_string(),
            "--listen".to_owned(),
            format!("127.0.0.1:{}", member.port),
            "--agent-listen".to_owned(),
            format!("127.0.0.1:{}", member.peer_port),
            "--token-file".to_owned(),
            token.display().to_string(),
        ];
        // The same list for all, with their own address in it: one unit does for every machine.
        if index > 0 || self.members.len() > 1 {
            args.extend(["--join".to_owned(), self.peers()]);
        }
        args.extend(self.flags.iter().cloned());
        Ok(args)
    }

    /// Add a master and wait until it votes.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn join(&mut self) -> Outcome {
        let number = self.members.len() + 1;
        self.members.push(Member::new(self.scene.dir(), number)?);
        self.run(number - 1)?;
        self.voters(number).await?;
        Ok(())
    }

    /// A client of one master.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn rest(&self, index: usize) -> Outcome<Rest> {
        let address = format!("http://127.0.0.1:{}", self.members[index].port);
        Rest::new(&address, Some(&self.token))
    }

    /// What a master says of all masters, as far as it knows itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn view(&self, index: usize) -> Outcome<Value> {
        self.rest(index)?.document("/v1/masters?consistency=stale").await
    }

    fn running(&self) -> Vec<usize> {
        let all = self.members.iter().enumerate();
        all.filter(|(_, m)| m.process.is_some()).map(|(index, _)| index).collect()
    }

    /// The node number of a member, as others list it by its address.
    ///
    /// # Errors
    /// When nobody lists it.
    pub async fn node(&self, index: usize) -> Outcome<u64> {
        let address = format!("127.0.0.1:{}", self.members[index].peer_port);
        for asked in self.running() {
            let Ok(view) = self.view(asked).await else { continue };
            let items = view["items"].as_array().cloned().unwrap_or_default();
            let found = items.iter().rfind(|item| item["peer_address"] == address.as_str());
            if let Some(node) = found.and_then(|item| item["node"].as_u64()) {
                return Ok(node);
            }
        }
        Err(failure(format!("no master lists {address}")))
    }

    /// Wait until one that runs leads; which.
    ///
    /// # Errors
    /// When none does in time.
    pub async fn leader(&self) -> Outcome<usize> {
        until("a master leads", PATIENCE, async || {
            let mut seen = Vec::new();
            for index in self.running() {
                let rest = self.rest(index).map_err(|error| error.to_string())?;
                match rest.get("/health").await {
                    Ok(answer) if answer.json()["leader"] == true => return Ok(index),
                    Ok(answer) => seen.push(answer.text()),
                    Err(error) => seen.push(error.to_string()),
                }
            }
            Err(seen.join("; "))
        })
        .await
    }

    /// Wait until so many vote, no others are members, and every one that runs answers and says so itself; what
    /// one of them says.
    ///
    /// # Errors
    /// When they do not in time, or none runs.
    pub async fn voters(&self, count: usize) -> Outcome<Value> {
        until(&format!("{count} masters vote"), PATIENCE, async || {
            let mut last = Err("no master runs".to_owned());
            for index in self.running() {
                let view = self.view(index).await.map_err(|error| format!("master {index}: {error}"))?;
                let all = view["items"].as_array().map_or(0, Vec::len);
                if view["voters"] != count || all != count || !view["leader"].is_u64() {
                    return Err(format!("master {index}: {view}"));
                }
                last = Ok(view);
            }
            last
        })
        .await
    }

    /// With what an agent that knows all masters is started.
    #[must_use]
    pub fn agent_args(&self, name: &str, flags: &[&str]) -> Vec<String> {
        let dir = self.scene.dir();
        let (work, token) = (dir.join(name).display().to_string(), dir.join("token").display().to_string());
        let peers = self.peers();
        let args = ["agent", "--work-dir", &work, "--master", &peers, "--token-file", &token];
        args.iter().chain(flags).map(|&arg| arg.to_owned()).collect()
    }

    /// Start an agent that knows all masters, and wait until it is connected.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn start_agent(&mut self, name: &str, flags: &[&str]) -> Outcome {
        let log = self.scene.dir().join(format!("{name}.log"));
        self.agents.push(Process::start(&log, &self.agent_args(name, flags))?);
        self.connected(self.agents.len()).await
    }

    /// Wait until so many agents have a session.
    ///
    /// # Errors
    /// When they have not in time.
    pub async fn connected(&self, count: usize) -> Outcome {
        until(&format!("{count} agents are connected"), PATIENCE, async || {
            let leader = self.leader().await.map_err(|error| error.to_string())?;
            let rest = self.rest(leader).map_err(|error| error.to_string())?;
            let agents = rest.document("/v1/agents").await.map_err(|error| error.to_string())?;
            let items = agents["items"].as_array().cloned().unwrap_or_default();
            match items.iter().filter(|agent| agent["state"] == "connected").count() >= count {
                true => Ok(()),
                false => Err(agents.to_string()),
            }
        })
        .await
    }

    /// All went well: stops everything and removes the directory.
    ///
    /// # Errors
    /// When one does not stop in time.
    pub fn finish(self) -> Outcome {
        self.finish_on(None)
    }

    /// The same with a disk of one of them, which is unmounted when all have ended and before its place is removed.
    ///
    /// # Errors
    /// When one does not stop in time.
    pub fn finish_on(mut self, disk: impl Into<Option<Disk>>) -> Outcome {
        for agent in &mut self.agents {
            agent.stop()?;
        }
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                process.stop()?;
            }
        }
        drop(disk.into());
        self.scene.finish();
        Ok(())
    }
}
