//! A cluster of one master's core in a test: entries commit at once (unless held), agents and schedulers
//! are spoken for by the script, and everything that goes out is written down.

mod lifecycle;
mod restore;
mod show;
mod standby;
mod turn;
mod upkeep;
mod why;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use tessera_master_core::testing::MemRows;
use tessera_master_core::{Config, Core, Effect, Now, Output, Principal, Request, StateVersions, World};
use tessera_types::{AgentId, Consumed, Digest, Epoch, FrameworkId, HttpRequest, TaskSpec};
use tessera_wire::v1::{self, agent_message::Message as In};

/// Everything that a script acts on.
pub struct Cluster {
    core: Core,
    rows: MemRows,
    /// As it was saved.
    saved: MemRows,
    now: Now,
    term: u64,
    index: u64,
    sessions: u64,
    tickets: u64,
    agents: BTreeMap<String, Agent>,
    frameworks: BTreeMap<String, Framework>,
    components: BTreeMap<String, Digest>,
    specs: BTreeMap<String, TaskSpec>,
    offers: Vec<u64>,
    requests: Vec<u64>,
    held: Option<Vec<v1::Command>>,
    /// What was proposed, since somebody began to count.
    proposed: Vec<String>,
    last_turn: Option<(String, v1::Turn)>,
    out: String,
}

#[derive(Default)]
struct Agent {
    register: v1::Register,
    session: u64,
    /// The agent's own count of updates per task.
    sequences: BTreeMap<(u64, String), u64>,
}

#[derive(Default)]
struct Framework {
    id: u64,
    number: u64,
    time_ms: u64,
    consumed: Vec<Consumed>,
    /// Requests that the last batch delivered.
    delivered: Vec<u64>,
}

/// `name=value` words of a command.
struct Words<'a> {
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn of(text: &'a str) -> Self {
        let mut words = Self { plain: Vec::new(), named: BTreeMap::new() };
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some((name, value)) => {
                    words.named.insert(name, value);
                }
                None => words.plain.push(word),
            }
        }
        words
    }

    fn plain(&self, at: usize) -> &'a str {
        self.plain.get(at).unwrap_or_else(|| panic!("word {at} is missing in {:?}", self.plain))
    }

    fn number(&self, name: &str, default: i64) -> i64 {
        self.named.get(name).map_or(default, |text| text.parse().expect("a number"))
    }
}

/// Places that `agent n1 zone=a rack=r1` names.
fn attributes(words: &Words<'_>) -> Vec<v1::Pair> {
    let of = |name: &str| Some(v1::Pair { key: name.into(), value: (*words.named.get(name)?).into() });
    ["rack", "region", "zone"].into_iter().filter_map(of).collect()
}

fn duration_ms(text: &str) -> u64 {
    match text.strip_suffix("ms") {
        Some(text) => text.parse().expect("milliseconds"),
        None => text.strip_suffix('s').expect("s or ms").parse::<u64>().expect("seconds") * 1000,
    }
}

fn resources(words: &Words<'_>) -> v1::Resources {
    let gpus = words.number("gpus", 0);
    let items = (gpus != 0).then(|| v1::ResourceItem { name: "gpus".into(), amount_milli: gpus * 1000 });
    v1::Resources {
        cpus_milli: words.number("cpus", 0) * 1000 + words.number("milli", 0),
        mem_mib: words.number("mem", 0),
        disk_mib: 0,
        items: items.into_iter().collect(),
    }
}

impl Cluster {
    pub fn new() -> Self {
        let rows = MemRows::default();
        let core = Core::load(&rows, Config::default()).expect("empty rows load");
        let mut cluster = Self {
            core,
            rows,
            saved: MemRows::default(),
            now: Now { wall_ms: 1_000_000, mono_ms: 5_000 },
            term: 0,
            index: 0,
            sessions: 0,
            tickets: 0,
            agents: BTreeMap::new(),
            frameworks: BTreeMap::new(),
            components: BTreeMap::new(),
            specs: BTreeMap::new(),
            offers: Vec::new(),
            requests: Vec::new(),
            held: None,
            proposed: Vec::new(),
            last_turn: None,
            out: String::new(),
        };
        cluster.lead();
        cluster.out.clear();
        cluster
    }

    fn lead(&mut self) {
        self.term += 1;
        let outputs = self.core.lead(self.term, "cluster-1", self.now);
        self.process(outputs);
    }

    /// Run one command and return what came of it.
    pub fn command(&mut self, line: &str) -> String {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words = Words::of(rest);
        match verb {
            "agent" => self.agent(&words),
            "agents" | "reopen-all" => self.agents(verb, rest),
            "component" => self.component(&words),
            "remove-component" | "cluster-version" => self.components_upkeep(verb, &words),
            "spec" => self.spec(&words),
            "framework" => self.framework(&words),
            "remove" => {
                let framework = self.id(words.plain(0));
                self.request(Request::RemoveFramework { framework });
            }
            "user-kill" => {
                let framework = self.id(words.plain(0));
                let task = words.plain(1).parse().expect("a task id");
                self.request(Request::KillTask { framework, task, grace_ms: None });
            }
            "ready" => self.ready(&words),
            "compiled" => self.compiled(&words),
            "failed" => self.failed(&words),
            "fetch" => self.fetch(&words),
            "turn" => self.turn(rest),
            "turns" => self.turns(rest),
            "repeat-turn" => self.repeat_turn(&words),
            "status" => self.status(&words),
            "tasks" => self.task_set(&words),
            "from-executor" | "executor-lost" => self.executor(verb, &words),
            "http" => self.http(&words),
            "close" => self.close(words.plain(0)),
            "reopen" => self.reopen(&words),
            "advance" => self.advance(duration_ms(words.plain(0)), 500, &words),
            "creep" => self.advance(duration_ms(words.plain(0)), 50, &words),
            "settled" => self.settled(duration_ms(words.plain(0)), &words),
            "jump" => self.now.wall_ms += duration_ms(words.plain(0)),
            "hold" => self.held = Some(Vec::new()),
            "commit" => {
                let held = self.held.take().unwrap_or_default();
                self.commit(held);
            }
            "commit-first" => {
                let mut held = self.held.take().unwrap_or_default();
                let rest = held.split_off(1);
                self.held = Some(rest);
                self.commit(held);
            }
            "limits" => self.set_limits(&words),
            "role" => self.set_role(&words),
            "write" | "writes" => self.write(verb, &words),
            "upgrade" | "rollback" | "config" | "release" => self.lifecycle(verb, &words),
            "deactivate" | "activate" | "drain" | "gone" | "maintain" => self.upkeep(verb, &words),
            "impostor" => self.impostor(&words),
            "once" => self.once(&words),
            "stand-still" => self.stand_still(duration_ms(words.plain(0))),
            "lose" => self.lose(),
            "restart-master" => self.restart_master(),
            "save-state" | "restore-state" | "end-strangers" => self.restore(verb, &words),
            "show" => self.show(&words),
            "why" => self.why(&words),
            other => panic!("no such verb: {other}"),
        }
        std::mem::take(&mut self.out)
    }

    /// The self-check, and the memory against one rebuilt from rows.
    pub fn verdict(&self) -> String {
        let rebuilt = Core::load(&self.rows, Config::default()).expect("rows load");
        let check = self.core.check().and_then(|()| self.core.check_rows(&self.rows));
        match (check, self.core.diff(&rebuilt)) {
            (Ok(()), None) => "check: ok\n".into(),
            (Err(broken), _) => format!("check: {broken}\n"),
            (_, Some(difference)) => format!("rows: {difference}\n"),
        }
    }

    fn say(&mut self, text: &str) {
        // Messages name offers by their numbers, which hold the term.
        let mut text = text.replace(&format!("o{}", u64::MAX), "o?");
        for (at, id) in self.offers.iter().enumerate() {
            text = text.replace(&format!("o{id}"), &format!("o{}", at + 1));
        }
        let _ = writeln!(self.out, "{text}");
    }

    fn id(&self, framework: &str) -> FrameworkId {
        FrameworkId(self.frameworks.get(framework).map_or(999, |framework| framework.id))
    }

    fn process(&mut self, outputs: Vec<Output>) {
        let mut commands = Vec::new();
        let mut reads = Vec::new();
        for output in outputs {
            match output {
                Output::Propose(command) => {
                    let text = format!("{:?}", command.command);
                    self.proposed.extend(text.split(['(', ')', ' ']).nth(1).map(str::to_owned));
                    commands.push(command);
                }
                Output::ReadIndex { ticket } => reads.push(ticket),
                other => self.show_output(other),
            }
        }
        if !commands.is_empty() {
            match &mut self.held {
                Some(held) => held.extend(commands),
                None => self.commit(commands),
            }
        }
        for ticket in reads {
            let outputs = self.core.on_read_ready(ticket, self.now);
            self.process(outputs);
        }
    }

    fn commit(&mut self, commands: Vec<v1::Command>) {
        if commands.is_empty() {
            return;
        }
        self.index += 1;
        let entry = self.core.encode_batch(commands, self.now);
        let applied =
            self.core.apply(self.index, self.term, &entry, &self.rows).expect("an entry applies");
        self.rows.write(applied.rows);
        let effects: Vec<Effect> = applied.effects;
        let outputs = self.core.perform(effects, self.now);
        self.process(outputs);
    }

    fn lose(&mut self) {
        let held = self.held.take().unwrap_or_default();
        let tickets: Vec<u64> = held.iter().map(|command| command.ticket).collect();
        let outputs = self.core.on_propose_failed(&tickets, self.now);
        self.process(outputs);
    }

    fn restart_master(&mut self) {
        self.held = None;
        self.core = Core::load(&self.rows, Config::default()).expect("rows load");
        for agent in self.agents.values_mut() {
            agent.session = 0;
        }
        self.lead();
    }

    fn agent(&mut self, words: &Words<'_>) {
        let name = words.plain(0);
        let reserved = v1::Quantities {
            cpus_milli: 100,
            mem_mib: words.number("reserved", 256),
            disk_mib: 0,
        };
        let register = v1::Register {
            cluster: String::new(),
            agent: 0,
            agent_key: format!("key-{name}"),
            boot: "boot-1".into(),
            description: Some(v1::AgentDescription {
                hostname: name.into(),
                attributes: attributes(words),
                total: Some(resources(words)),
                reserved: Some(reserved),
                version: "0.1.0".into(), ..Default::default() }),
            tasks_hash: self.hash_of(&[]),
            protocol: 1,
        };
        self.agents.entry(name.to_owned()).or_default().register = register.clone();
        self.open(name, register);
    }

    /// `agents n1..300 cpus=4` is that agent three hundred times, `reopen-all` their sessions; what came of the last
    /// one is shown.
    fn agents(&mut self, verb: &str, text: &str) {
        let (names, rest) = text.split_once(' ').unwrap_or((text, ""));
        for name in turn::expand(names) {
            self.out.clear();
            let line = format!("{name} {rest}");
            match verb {
                "agents" => self.agent(&Words::of(&line)),
                _ => self.reopen(&Words::of(&line)),
            }
        }
    }

    fn hash_of(&self, tasks: &[v1::TaskEntry]) -> Vec<u8> {
        let ids: Vec<_> = tasks
            .iter()
            .map(|entry| {
                let state = entry.state().try_into().expect("a state");
                let id = entry.task.parse().expect("a task id");
                (FrameworkId(entry.framework), id, entry.attempt, state)
            })
            .collect();
        tessera_wire::tasks_hash(ids.iter().map(|(f, id, attempt, state)| (*f, id, *attempt, *state)))
            .to_vec()
    }

    fn open(&mut self, name: &str, register: v1::Register) {
        self.sessions += 1;
        let session = self.sessions;
        self.agents.get_mut(name).expect("an agent").session = session;
        let outputs = self.core.on_session_open(session, register, self.now);
        self.process(outputs);
    }

    fn reopen(&mut self, words: &Words<'_>) {
        let name = words.plain(0);
        let entries = self.entries(&words.plain[1..]);
        let hash = self.hash_of(&entries);
        let mut register = self.agents.get(name).expect("an agent").register.clone();
        register.tasks_hash = hash;
        for (field, value) in &words.named {
            match *field {
                "cluster" => register.cluster = (*value).into(),
                "key" => register.agent_key = (*value).into(),
                "boot" => register.boot = (*value).into(),
                "id" => register.agent = value.parse().expect("a number"),
                "protocol" => register.protocol = value.parse().expect("a number"),
                "cpus" => {
                    let total = register.description.as_mut().and_then(|d| d.total.as_mut());
                    total.expect("a description").cpus_milli =
                        value.parse::<i64>().expect("a number") * 1000;
                }
                other => panic!("no such field: {other}"),
            }
        }
        self.open(name, register);
    }

    /// `web/t1:TASK_RUNNING` words.
    fn entries(&self, words: &[&str]) -> Vec<v1::TaskEntry> {
        words
            .iter()
            .map(|word| {
                let (task, state) = word.split_once(':').expect("task:state");
                let (framework, task) = task.split_once('/').expect("framework/task");
                v1::TaskEntry {
                    framework: self.id(framework).0,
                    task: task.into(),
                    attempt: 1,
                    state: v1::TaskState::from_str_name(state).expect("a state").into(),
                    charge: Some(v1::Resources { cpus_milli: 1000, mem_mib: 64, ..Default::default() }),
                }
            })
            .collect()
    }

    fn task_set(&mut self, words: &Words<'_>) {
        let tasks = self.entries(&words.plain[1..]);
        self.from_agent(words.plain(0), In::TaskSet(v1::TaskSet { tasks }));
    }

    fn from_agent(&mut self, name: &str, message: In) {
        let session = self.agents.get(name).expect("an agent").session;
        let message = v1::AgentMessage { message: Some(message) };
        let outputs = self.core.on_agent_message(session, message, self.now);
        self.process(outputs);
    }

    /// `from-executor n1 web/ex hello`, `executor-lost n1 web/ex why`.
    fn executor(&mut self, verb: &str, words: &Words<'_>) {
        let (framework, executor) = words.plain(1).split_once('/').expect("framework/executor");
        let (framework, executor) = (self.id(framework).0, executor.to_owned());
        let message = words.plain(2).to_owned();
        let message = if verb == "executor-lost" {
            In::ExecutorLost(v1::ExecutorLost { framework, executor, message })
        } else {
            let bytes = usize::try_from(words.number("bytes", 0)).expect("a size");
            let data = if bytes > 0 { vec![b'x'; bytes] } else { message.into_bytes() };
            In::FromExecutor(v1::FromExecutor { framework, executor, data })
        };
        for _ in 0..words.number("times", 1) {
            self.from_agent(words.plain(0), message.clone());
        }
    }

    fn close(&mut self, name: &str) {
        let session = self.agents.get(name).expect("an agent").session;
        let outputs = self.core.on_session_closed(session, self.now);
        self.process(outputs);
    }

    fn component(&mut self, words: &Words<'_>) {
        let digest = Digest::of(words.plain(0).as_bytes());
        let world = match words.plain(1) {
            "scheduler" => World::Scheduler,
            "command" => World::Command,
            _ => World::Executor,
        };
        self.components.insert(words.plain(0).into(), digest);
        let size_bytes = u64::try_from(words.number("size", 1000)).expect("a size");
        let list = |name: &str| -> Vec<u32> {
            let text = words.named.get(name).copied().unwrap_or_default();
            text.split(',').filter_map(|n| n.parse().ok()).collect()
        };
        let state = StateVersions {
            writes: u32::try_from(words.number("writes", 1)).expect("a version"),
            reads: list("reads"),
            migrates: words.plain.contains(&"migrates"),
        };
        let (source, report) = (String::new(), String::new());
        self.request(Request::AddComponent { digest, size_bytes, world, state, source, report });
    }

    fn framework(&mut self, words: &Words<'_>) {
        let component = words.named.get("component").copied().unwrap_or("sched");
        let component =
            self.components.get(component).copied().unwrap_or(Digest::of(component.as_bytes()));
        self.frameworks.entry(words.plain(0).into()).or_default();
        self.request(Request::CreateFramework {
            name: words.plain(0).parse().expect("a name"),
            role: words.named.get("role").copied().unwrap_or("prod").parse().expect("a role"),
            component,
            config: vec![],
            unreachable: upkeep::policy(words),
        });
        for view in self.core.frameworks() {
            self.frameworks.entry(view.name.to_string()).or_default().id = view.id.0;
        }
    }

    fn request(&mut self, request: Request) {
        self.tickets += 1;
        let principal = Principal::administrator();
        let outputs = self.core.on_request(self.tickets, &principal, request, self.now);
        self.process(outputs);
    }

    fn instance(&self, words: &Words<'_>) -> (String, v1::InstanceKey) {
        let framework = self.id(words.plain(0));
        let view = self.core.framework(framework).expect("the framework is there");
        let host = view.agent.map(|agent| format!("n{}", agent.0)).unwrap_or_default();
        let epoch = u64::try_from(words.number("epoch", i64::try_from(view.epoch.0).expect("small")));
        let key = v1::InstanceKey { framework: framework.0, epoch: epoch.expect("positive") };
        (words.named.get("from").map_or(host, |from| (*from).to_owned()), key)
    }

    fn ready(&mut self, words: &Words<'_>) {
        let (agent, key) = self.instance(words);
        let view = self.core.framework(FrameworkId(key.framework)).expect("a framework");
        let next = i64::try_from(view.last_turn.0 + 1).expect("small");
        let ready = v1::InstanceReady {
            key: Some(key),
            rebuilt: words.plain.contains(&"rebuilt"),
            next_turn: u64::try_from(words.number("next", next)).expect("positive"),
            outside: u64::try_from(words.number("outside", 0)).expect("positive"),
        };
        self.from_agent(&agent, In::InstanceReady(ready));
    }

    /// The host of a framework has its component compiled, and asks for its state.
    fn fetch(&mut self, words: &Words<'_>) {
        let (agent, key) = self.instance(words);
        let session = self.agents.get(&agent).expect("an agent").session;
        let agent = agent.trim_start_matches('n').parse().expect("a number");
        let (framework, epoch) = (FrameworkId(key.framework), Epoch(key.epoch));
        let fetched = self.core.state_fetch(AgentId(agent), session, framework, epoch);
        let fetched = fetched.expect("it is the host's to fetch");
        if fetched.outside > 0 {
            self.say(&format!("fetched for turn {}, outside {}", fetched.next, fetched.outside));
        }
    }

    fn failed(&mut self, words: &Words<'_>) {
        let (agent, key) = self.instance(words);
        let failed = v1::InstanceFailed {
            key: Some(key),
            reason: words.plain(1).into(),
            message: "as the script says".into(),
            will_retry: !words.plain.contains(&"for-good"),
            limit: words.named.get("limit").copied().unwrap_or_default().into(),
            turn: u64::try_from(words.number("turn", 0)).expect("positive"),
            guest: words.plain.contains(&"guest"),
        };
        self.from_agent(&agent, In::InstanceFailed(failed));
    }

    fn status(&mut self, words: &Words<'_>) {
        let agent = words.plain(0);
        let mut updates = Vec::new();
        for word in turn::expand(words.plain(1)) {
            let (framework, task) = word.split_once('/').expect("framework/task");
            let framework = self.id(framework).0;
            let key = (framework, task.to_owned());
            let sequences = &mut self.agents.get_mut(agent).expect("an agent").sequences;
            let next = sequences.get(&key).copied().unwrap_or(0) + 1;
            let sequence = words.number("seq", i64::try_from(next).expect("small"));
            let sequence = u64::try_from(sequence).expect("positive");
            sequences.insert(key, sequence);
            let status = v1::TaskStatus {
                task: task.into(),
                state: v1::TaskState::from_str_name(words.plain(2)).expect("a state").into(),
                reason: words.named.get("reason").copied().unwrap_or("").into(),
                attempt: 1,
                at_ms: self.now.wall_ms,
                ..v1::TaskStatus::default()
            };
            updates.push(v1::StatusUpdate { framework, sequence, status: Some(status) });
        }
        self.from_agent(agent, In::Statuses(v1::StatusUpdates { updates }));
    }

    fn http(&mut self, words: &Words<'_>) {
        self.tickets += 1;
        let framework = self.id(words.plain(0));
        let request = HttpRequest {
            method: "POST".into(),
            path: words.plain(1).into(),
            idempotency_key: words.named.get("key").map(|key| (*key).to_owned()),
            ..HttpRequest::default()
        };
        let principal = match words.named.get("as") {
            Some(_) => Principal::anonymous(),
            None => Principal::administrator(),
        };
        let (rows, now) = (self.rows.clone(), self.now);
        let outputs =
            self.core.on_http(self.tickets, &principal, framework, request, &rows, now);
        self.process(outputs);
    }

    /// `settled 30s without=n1`: what was proposed in that time although nobody did anything.
    fn settled(&mut self, ms: u64, words: &Words<'_>) {
        self.proposed.clear();
        self.advance(ms, 50, words);
        let text = std::mem::take(&mut self.proposed).join(" ");
        self.say(&format!("proposed: {}", if text.is_empty() { "nothing" } else { &text }));
    }

    fn advance(&mut self, ms: u64, step_ms: u64, words: &Words<'_>) {
        let end = self.now.mono_ms + ms;
        while self.now.mono_ms < end {
            let step = (end - self.now.mono_ms).min(step_ms);
            self.now.mono_ms += step;
            self.now.wall_ms += step;
            let silent = words.named.get("without").copied().unwrap_or("");
            let beating: Vec<u64> = self
                .agents
                .iter()
                .filter(|(name, _)| !silent.split(',').any(|silent| silent == name.as_str()))
                .map(|(_, agent)| agent.session)
                .collect();
            for session in beating {
                self.core.on_beat(session, self.now);
            }
            let outputs = self.core.on_tick(self.now);
            self.process(outputs);
        }
    }
}
