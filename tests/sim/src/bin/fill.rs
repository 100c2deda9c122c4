//! Fills a data directory with the state of a large cluster, as masters make it: agents register, schedulers
//! are placed and take offers, tasks are reported as running.
//! `fill DATA_DIR COMPONENT AGENTS TASKS FRAMEWORKS`
//!
//! Everything goes through the node of a master and its log. The agents are those of `tessera sim-agents` with
//! its defaults, without their sessions. The directory was made by `tessera operator init`; COMPONENT is the
//! scheduler of all frameworks. Prints how long each part took.
//!
//! Must never write a row by itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};
use tessera_master::node::Node;
use tessera_master_core::{Config, Now, Output, Principal, Request, StateVersions, UnreachablePolicy, World};
use tessera_replica::{Replica, ReplicaConfig, RocksDisk};
use tessera_types::{
    Consumed, Digest, Epoch, Event, Filters, FrameworkId, Launch, LimitName, Member, NativeCommand, Offer, Operation,
    Quantities, TaskBody, TaskSpec, Turn, TurnHeader, TurnNumber, TurnOutcome,
};
use tessera_wire::encode_spec;
use tessera_wire::v1::{self, agent_message::Message as In, master_message::Message as Out};

/// Inputs between two writes.
const ROUND: usize = 500;
/// Tasks on each agent, and offers that are accepted in one turn, which may launch 1,000.
const EACH_OFFER: u64 = 10;
const OFFERS: usize = 80;
/// Nothing may wait longer for the log.
const PATIENCE: Duration = Duration::from_secs(600);
/// As masters call it.
const DATABASE: &str = "db";
const _: () = assert!(EACH_OFFER as usize * OFFERS <= LAUNCHES_MAX, "a turn launches more than it may");
/// What one turn may launch.
const LAUNCHES_MAX: usize = 1_000;
/// What each task needs.
const NEEDS: Quantities = Quantities { cpus_milli: 50, mem_mib: 32, disk_mib: 0 };
/// What each agent has.
const EACH: Quantities = Quantities { cpus_milli: 8_000, mem_mib: 32_768, disk_mib: 131_072 };

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Arguments {
    dir: PathBuf,
    component: PathBuf,
    agents: u64,
    tasks: u64,
    frameworks: u64,
}

impl Arguments {
    fn read() -> Option<Self> {
        let mut words = std::env::args().skip(1);
        let (dir, component) = (words.next()?.into(), words.next()?.into());
        let mut number = || words.next()?.parse().ok().filter(|number| *number > 0);
        Some(Self { dir, component, agents: number()?, tasks: number()?, frameworks: number()? })
    }

    /// What could never be reached is refused before anything is written.
    fn check(&self) -> std::result::Result<(), String> {
        let room = (EACH.cpus_milli / NEEDS.cpus_milli).min(EACH.mem_mib / NEEDS.mem_mib);
        let room = self.agents.saturating_mul(u64::try_from(room).unwrap_or(0));
        let live = LimitName::LiveTasks.row().default;
        let rules = [
            ("FRAMEWORKS", self.frameworks, LimitName::Frameworks.row().default, "they are of one role"),
            ("TASKS", self.tasks, room, "there is no room for more on so many agents"),
            ("TASKS", self.tasks, self.frameworks.saturating_mul(live), "so many frameworks cannot have more"),
        ];
        for (name, given, most, why) in rules {
            if given > most {
                return Err(format!("{name}: {given} is more than {most}: {why}"));
            }
        }
        match self.tasks % self.frameworks {
            0 => Ok(()),
            _ => Err(format!("TASKS: a multiple of FRAMEWORKS ({}), as all get as many", self.frameworks)),
        }
    }
}

struct Fill {
    node: Node<RocksDisk>,
    began: Instant,
    tickets: u64,
    /// Session of the agent that hosts the schedulers; the others follow it.
    host: u64,
    sequence: u64,
    spec: (Digest, Vec<u8>),
    wanted: BTreeMap<FrameworkId, u64>,
    held: BTreeMap<FrameworkId, Vec<Offer>>,
    suppressed: BTreeSet<FrameworkId>,
    launched: u64,
    running: u64,
    inbox: VecDeque<(u64, v1::MasterMessage)>,
}

fn main() -> std::process::ExitCode {
    let Some(arguments) = Arguments::read() else {
        eprintln!("usage: fill DATA_DIR COMPONENT AGENTS TASKS FRAMEWORKS");
        return std::process::ExitCode::from(2);
    };
    match fill(&arguments) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fill: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn fill(arguments: &Arguments) -> Result<()> {
    arguments.check()?;
    let bytes = std::fs::read(&arguments.component)?;
    let component = Digest::of(&bytes);
    keep_component(&arguments.dir, &component, &bytes)?;
    let mut fill = Fill::open(&arguments.dir)?;
    let mut part = Instant::now();
    let mut done = |what: &str| {
        println!("{what}: {:.2} s", part.elapsed().as_secs_f64());
        part = Instant::now();
    };
    fill.until("it leads", |fill| {
        fill.node.tick();
        fill.node.core().is_leader()
    })?;
    for number in 0..=arguments.agents {
        fill.register(number);
        if number % ROUND as u64 == 0 {
            fill.settle()?;
        }
    }
    fill.until("agents are registered", |fill| fill.node.core().counts().agents as u64 > arguments.agents)?;
    done("agents");
    let (size_bytes, world) = (bytes.len() as u64, World::Scheduler);
    let state = StateVersions { writes: 1, reads: Vec::new(), migrates: false };
    let (source, report) = (String::new(), String::new());
    fill.request(Request::AddComponent { digest: component, size_bytes, world, state, source, report });
    fill.settle()?;
    for number in 1..=arguments.frameworks {
        fill.wanted.insert(FrameworkId(number), arguments.tasks / arguments.frameworks);
        fill.request(Request::CreateFramework {
            name: format!("full-{number}").parse()?,
            role: "full".parse()?,
            component,
            config: Vec::new(),
            unreachable: UnreachablePolicy::default(),
        });
    }
    let all = arguments.tasks;
    fill.until("tasks are launched", |fill| fill.launched >= all)?;
    done("launches");
    fill.until("tasks run", |fill| fill.running >= all && fill.is_quiet())?;
    done("statuses");
    println!("{} agents, {} tasks", arguments.agents, fill.running);
    Ok(())
}

/// As masters keep it.
fn keep_component(dir: &Path, digest: &Digest, bytes: &[u8]) -> Result<()> {
    let dir = dir.join("components");
    std::fs::create_dir_all(&dir)?;
    Ok(std::fs::write(dir.join(format!("sha256-{}.wasm", digest.hex())), bytes)?)
}

fn spec() -> Result<(Digest, Vec<u8>)> {
    let spec = TaskSpec {
        name: "full".into(),
        body: TaskBody::Native(NativeCommand::Shell("sleep infinity".into())),
        resources: NEEDS.into(),
        revocable: false,
        cpus_limit_milli: None,
        pids_limit: None,
        user: None,
        env: vec![],
        files: vec![],
        result_file: None,
        grace_ms: None,
        restarts: 0,
        labels: vec![],
    };
    let encoded = encode_spec(&spec);
    Ok((Digest::of(&encoded), encoded))
}

impl Fill {
    fn open(dir: &Path) -> Result<Self> {
        let disk = RocksDisk::open(&dir.join(DATABASE))?;
        let identity = Replica::identity(&disk)?.ok_or("the directory has no cluster: tessera operator init")?;
        // Nobody beats here.
        let config = Config { session_silence_ms: u64::MAX / 4, offer_timeout_ms: u64::MAX / 4, ..Config::default() };
        Ok(Self {
            node: Node::open(config, ReplicaConfig::new(identity), disk)?,
            began: Instant::now(),
            tickets: 0,
            host: 1,
            sequence: 0,
            spec: spec()?,
            wanted: BTreeMap::new(),
            held: BTreeMap::new(),
            suppressed: BTreeSet::new(),
            launched: 0,
            running: 0,
            inbox: VecDeque::new(),
        })
    }

    fn now(&self) -> Now {
        let wall = UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis());
        Now {
            wall_ms: u64::try_from(wall).unwrap_or(u64::MAX),
            mono_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Work until something is so.
    fn until(&mut self, what: &str, mut so: impl FnMut(&mut Self) -> bool) -> Result<()> {
        let began = Instant::now();
        while !so(self) {
            if began.elapsed() > PATIENCE {
                let (launched, running) = (self.launched, self.running);
                return Err(format!("{what}: not in time; {launched} are launched, {running} run").into());
            }
            let now = self.now();
            self.node.input(|core| core.on_tick(now));
            self.settle()?;
        }
        Ok(())
    }

    fn is_quiet(&self) -> bool {
        self.inbox.is_empty() && self.node.unwritten().is_none()
    }

    /// Write, and answer for the agents until nobody says anything.
    fn settle(&mut self) -> Result<()> {
        loop {
            let now = self.now();
            let mut messages: Vec<(u64, Vec<u8>)> = Vec::new();
            let settled = self.node.settle(now, &mut messages)?;
            let written = self.node.unwritten();
            if let Some(job) = written {
                job.run(&mut *self.node.syncer())?;
                self.node.on_written(job);
            }
            for output in settled.outputs {
                match output {
                    Output::SendAgent { session, message } => self.inbox.push_back((session, message)),
                    Output::Reply { result: Err(error), .. } => return Err(error.into()),
                    Output::CloseSession { reason, .. } => return Err(reason.into()),
                    _ => {}
                }
            }
            if self.inbox.is_empty() && written.is_none() && !settled.more {
                return Ok(());
            }
            for _ in 0..ROUND {
                let Some((session, message)) = self.inbox.pop_front() else { break };
                self.on_message(session, message)?;
            }
        }
    }

    fn request(&mut self, request: Request) {
        self.tickets += 1;
        let (ticket, now) = (self.tickets, self.now());
        self.node.input(|core| core.on_request(ticket, &Principal::administrator(), request, now));
    }

    fn say(&mut self, session: u64, message: In) {
        let now = self.now();
        let message = v1::AgentMessage { message: Some(message) };
        self.node.input(|core| core.on_agent_message(session, message, now));
    }

    /// Number 0 is the host of all schedulers.
    fn register(&mut self, number: u64) {
        let hosts = number == 0;
        let reserved = if hosts { EACH } else { Quantities::ZERO };
        let total = if hosts { Quantities::ZERO } else { EACH };
        let name = if hosts { "host".to_owned() } else { format!("sim-{number}") };
        let pair = v1::Pair { key: "simulated".into(), value: "true".into() };
        let register = v1::Register {
            agent_key: format!("simulated-{name}"),
            boot: "filled".into(),
            description: Some(v1::AgentDescription {
                hostname: name,
                attributes: vec![pair],
                total: Some((&total).into()),
                reserved: Some((&reserved).into()),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..v1::AgentDescription::default()
            }),
            tasks_hash: tessera_wire::tasks_hash(std::iter::empty()).to_vec(),
            protocol: tessera_wire::SESSION_PROTOCOL,
            ..v1::Register::default()
        };
        let now = self.now();
        self.node.input(|core| core.on_session_open(self.host + number, register, now));
    }

    fn on_message(&mut self, session: u64, message: v1::MasterMessage) -> Result<()> {
        match message.message {
            Some(Out::Desired(desired)) => {
                let ack = v1::DesiredAck { generation: desired.generation };
                self.say(session, In::DesiredAck(ack));
                for instance in &desired.instances {
                    let key = v1::InstanceKey { framework: instance.framework, epoch: instance.epoch };
                    let ready = v1::InstanceReady { key: Some(key), next_turn: 1, rebuilt: true, ..Default::default() };
                    self.say(session, In::InstanceReady(ready));
                }
                self.run(session, &desired);
            }
            Some(Out::Batch(batch)) => self.turn(session, batch)?,
            Some(Out::TurnResult(result)) => {
                if let TurnOutcome::Refused(refusal) = result.outcome.ok_or("no outcome")?.try_into()? {
                    return Err(refusal.to_string().into());
                }
            }
            Some(Out::Refused(refused)) => return Err(format!("{}: {}", refused.field, refused.rule).into()),
            _ => {}
        }
        Ok(())
    }

    /// Everything that an agent is to run runs.
    fn run(&mut self, session: u64, desired: &v1::Desired) {
        let mut updates = Vec::new();
        for task in &desired.tasks {
            let Some(launch) = &task.launch else { continue };
            self.sequence += 1;
            updates.push(v1::StatusUpdate {
                framework: task.framework,
                sequence: 1,
                status: Some(v1::TaskStatus {
                    task: launch.task.clone(),
                    agent: session - self.host + 1,
                    state: v1::TaskState::TaskRunning.into(),
                    attempt: 1,
                    at_ms: self.now().wall_ms,
                    ..v1::TaskStatus::default()
                }),
            });
        }
        if !updates.is_empty() {
            self.say(session, In::Statuses(v1::StatusUpdates { updates }));
        }
    }

    /// A scheduler's turn: takes what it is offered until it has enough.
    fn turn(&mut self, session: u64, batch: v1::Batch) -> Result<()> {
        let key = batch.key.ok_or("a batch without a key")?;
        let framework = FrameworkId(key.framework);
        let (mut consumed, mut offers) = (Vec::new(), Vec::new());
        for event in batch.events {
            match Event::try_from(event)? {
                Event::Update { sequence, status } if sequence > 0 => {
                    self.running += 1;
                    consumed.push(Consumed::Update { task: status.task, sequence });
                }
                Event::Offers(some) => offers.extend(some),
                _ => {}
            }
        }
        let operations = self.accept(framework, offers)?;
        let specs = if operations.is_empty() { Vec::new() } else { vec![self.spec.clone()] };
        let turn = Turn {
            header: TurnHeader {
                framework,
                epoch: Epoch(key.epoch),
                number: TurnNumber(batch.number),
                time_ms: batch.time_ms,
            },
            consumed,
            operations,
            writes: Vec::new(),
            specs,
            migration: None,
        };
        self.say(session, In::Turn((&turn).into()));
        Ok(())
    }

    /// Takes from the offers in hand what a turn may launch. What is not needed is given back at the end.
    fn accept(&mut self, framework: FrameworkId, offers: Vec<Offer>) -> Result<Vec<Operation>> {
        let filters = Filters { refuse_ms: 0 };
        let mut operations = Vec::new();
        let mut held = self.held.remove(&framework).unwrap_or_default();
        held.extend(offers);
        let wanted = self.wanted.entry(framework).or_default();
        for _ in 0..OFFERS {
            let count = (*wanted).min(EACH_OFFER);
            let Some(offer) = held.pop_if(|_| count > 0) else { break };
            *wanted -= count;
            let launches = (0..count).map(|_| {
                self.launched += 1;
                let task = format!("t-{}", self.launched).parse()?;
                let launch = Launch { task, spec: self.spec.0, args: Vec::new(), env: Vec::new() };
                Ok(Member { launch, group: 0 })
            });
            let launches = launches.collect::<Result<Vec<_>>>()?;
            operations.push(Operation::Accept { offers: vec![offer.id], launches, filters, gang: 0 });
        }
        if *wanted > 0 {
            operations.extend(Some(Operation::CallAgain).filter(|_| !held.is_empty()));
        } else if self.suppressed.insert(framework) {
            let offers: Vec<_> = held.drain(..).map(|offer| offer.id).collect();
            operations.push(Operation::Suppress);
            operations.push(Operation::Decline { offers, filters });
        }
        self.held.insert(framework, held);
        Ok(operations)
    }
}
