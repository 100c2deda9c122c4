//! What goes out of the core, as text. Numbers that contain a term are replaced by their order of
//! appearance: `o1` is the first offer of the script, `h1` its first request.

use super::{Cluster, Words};
use tessera_master_core::{AgentView, Output, Reply, TaskFilter};
use tessera_types::{AgentId, Consumed, Digest, Event, FrameworkId, TurnOutcome};
use tessera_wire::decode_spec;
use tessera_wire::v1::{self, master_message::Message as Out};

fn alias(known: &mut Vec<u64>, id: u64) -> usize {
    match known.iter().position(|other| *other == id) {
        Some(at) => at + 1,
        None => {
            known.push(id);
            known.len()
        }
    }
}

fn shown_limits(limits: &[v1::Limit]) -> String {
    let limits: Vec<_> = limits.iter().map(|l| format!("{}={}", l.name, l.value)).collect();
    if limits.is_empty() { String::new() } else { format!("({})", limits.join(" ")) }
}

/// What is out of the ordinary about an agent.
fn shown_agent(agent: &AgentView) -> String {
    let mut text = String::new();
    for (is_so, word) in [
        (agent.unreachable_ms.is_some(), "unreachable"),
        (agent.expiry_held, "expiry held"),
        (agent.deactivated && agent.drain.is_none(), "deactivated"),
        (agent.maintenance.is_some(), "maintenance planned"),
    ] {
        if is_so {
            text += &format!("; {word}");
        }
    }
    if let Some(drain) = agent.drain {
        text += &format!("; draining until {}{}", drain.deadline_ms, if drain.over { ", over" } else { "" });
    }
    for (framework, task, _) in &agent.strangers {
        text += &format!("; stranger {framework}/{task}");
    }
    text
}

/// Many of one kind are only counted.
fn shorten(words: Vec<String>, between: &str, kind: &str) -> String {
    let many = words.iter().filter(|word| word.starts_with(kind)).count();
    if many <= 10 {
        return words.join(between);
    }
    let mut rest: Vec<String> = words.into_iter().filter(|w| !w.starts_with(kind)).collect();
    rest.push(format!(" {many} times {}", kind.trim()));
    rest.join(between)
}

/// More than ten agents in a row, each with the number after that of the one before: `agent a1..a250`.
fn runs_of_agents(words: Vec<String>) -> Vec<String> {
    let number = |word: &String| word.strip_prefix("agent a").and_then(|number| number.parse::<u64>().ok());
    let mut shown = Vec::new();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let Some(first) = number(&word) else {
            shown.push(word);
            continue;
        };
        let mut last = first;
        while words.next_if(|next| number(next) == Some(last + 1)).is_some() {
            last += 1;
        }
        match last - first {
            0..=9 => shown.extend((first..=last).map(|number| format!("agent a{number}"))),
            _ => shown.push(format!("agent a{first}..a{last}")),
        }
    }
    shown
}

impl Cluster {
    fn name(&self, id: u64) -> String {
        let found = self.frameworks.iter().find(|(_, framework)| framework.id == id);
        found.map_or_else(|| format!("f{id}"), |(name, _)| name.clone())
    }

    fn session_name(&self, session: u64) -> String {
        let found = self.agents.iter().find(|(_, agent)| agent.session == session);
        found.map_or_else(|| "an old session".into(), |(name, _)| name.clone())
    }

    pub(super) fn show_output(&mut self, output: Output) {
        for view in self.core.frameworks() {
            self.frameworks.entry(view.name.to_string()).or_default().id = view.id.0;
        }
        let text = match output {
            Output::SendAgent { session, mut message } => {
                self.core.complete(&mut message, &self.rows).expect("rows can be read");
                let to = self.session_name(session);
                self.message(&to, message)
            }
            Output::CloseSession { session, reason } => {
                let name = self.session_name(session);
                format!("{name} closed: {reason}")
            }
            Output::Answer { answer, .. } => match answer {
                Ok(answer) => {
                    format!("answer: {} {}", answer.status, String::from_utf8_lossy(&answer.body))
                }
                Err(failure) => format!("answer: {} {}: {failure}", failure.status, failure.code),
            },
            Output::Reply { result, .. } => match result {
                Ok(Reply::Framework(id)) => format!("reply: framework {id}"),
                Ok(Reply::Component { created, .. }) => format!("reply: component created={created}"),
                Ok(Reply::Version(version)) => format!("reply: version {version}"),
                Ok(Reply::Done) => "reply: done".into(),
                Err(error) => format!("reply: refused: {error}"),
            },
            Output::Report { text } => format!("report: {text}"),
            Output::Propose(_) | Output::ReadIndex { .. } => return,
        };
        self.say(&text);
    }

    fn message(&mut self, to: &str, message: v1::MasterMessage) -> String {
        match message.message.expect("a message") {
            Out::Registered(r) => {
                let repeat = if r.repeat_statuses { " repeat-statuses" } else { "" };
                format!("{to} <- registered as a{} tasks-equal={}{repeat}", r.agent, r.tasks_equal)
            }
            Out::Masters(masters) => format!("{to} <- masters {}", masters.addresses.join(" ")),
            Out::ToExecutor(message) => format!(
                "{to} <- message to {}/{}: {}",
                self.name(message.framework),
                message.executor,
                String::from_utf8_lossy(&message.data)
            ),
            Out::Refused(refused) => format!("{to} <- refused {}: {}", refused.field, refused.rule),
            Out::Desired(desired) => self.desired(to, desired),
            Out::StatusAcks(acks) => {
                let acks = acks.acks.iter();
                let acks = acks.map(|a| format!("{}/{}#{}", self.name(a.framework), a.task, a.sequence));
                format!("{to} <- acks {}", shorten(acks.collect(), " ", "web"))
            }
            Out::Batch(batch) => self.batch(batch),
            Out::TurnResult(result) => {
                let name = self.name(result.key.map_or(0, |key| key.framework));
                let outcome = TurnOutcome::try_from(result.outcome.expect("an outcome"));
                match outcome.expect("an outcome") {
                    TurnOutcome::Committed { next } => {
                        if let Some(framework) = self.frameworks.get_mut(&name) {
                            framework.number = next.0;
                        }
                        format!("{name} <- turn {} committed, next {}", result.number, next.0)
                    }
                    TurnOutcome::Refused(refusal) => {
                        format!("{name} <- turn {} refused: {refusal}", result.number)
                    }
                }
            }
        }
    }

    fn desired(&self, to: &str, desired: v1::Desired) -> String {
        let mut changes = Vec::new();
        let mut text = format!("{to} <- desired{}:", if desired.full { " (full)" } else { "" });
        for task in &desired.tasks {
            let launch = task.launch.clone().unwrap_or_default();
            assert!(decode_spec(&task.spec).is_ok(), "a desired task has a spec that can be read");
            let kill = task.kill_grace_ms.map(|grace| format!("(kill {grace}ms)"));
            let kill = kill.unwrap_or_default();
            let group = if task.group == 0 { String::new() } else { format!("(group {})", task.group) };
            changes.push(format!(" +{}/{}{group}{kill}", self.name(task.framework), launch.task));
        }
        for task in &desired.removed {
            changes.push(format!(" -{}/{}", self.name(task.framework), task.task));
        }
        let (added, removed): (Vec<_>, Vec<_>) = changes.into_iter().partition(|c| c.starts_with(" +"));
        text += &shorten(added, "", " +");
        text += &shorten(removed, "", " -");
        let schedulers = desired.instances.iter();
        let schedulers = schedulers.map(|i| {
            let limits = shown_limits(&i.limits);
            let from = i.migrate_from.map(|from| format!("(migrate from {from})")).unwrap_or_default();
            format!("{}@e{}{from}{limits}", self.name(i.framework), i.epoch)
        });
        for task in &desired.strangers {
            text += &format!(" stranger {}/{}", self.name(task.framework), task.task);
        }
        text += &format!(" schedulers=[{}]", schedulers.collect::<Vec<_>>().join(" "));
        let ahead = desired.compile_ahead.iter().flat_map(|ahead| &ahead.components);
        let ahead: Vec<&str> = ahead
            .map(|digest| self.component_name(&Digest::from_slice(digest).expect("a digest")))
            .collect();
        if !ahead.is_empty() {
            text += &format!(" ahead=[{}]", ahead.join(" "));
        }
        for role in &desired.limits {
            let name = if role.role.is_empty() { "cluster" } else { &role.role };
            text += &format!(" {name}{}", shown_limits(&role.limits));
        }
        text
    }

    fn batch(&mut self, batch: v1::Batch) -> String {
        let name = self.name(batch.key.map_or(0, |key| key.framework));
        let mut shown: Vec<String> = Vec::new();
        let mut consumed = Vec::new();
        let mut delivered = Vec::new();
        for event in batch.events {
            let event = Event::try_from(event).expect("an event");
            match &event {
                Event::Update { sequence, status } if *sequence > 0 => consumed.push(
                    Consumed::Update { task: status.task.clone(), sequence: *sequence },
                ),
                Event::Timer { id, due_ms } => {
                    consumed.push(Consumed::Timer { id: id.clone(), due_ms: *due_ms });
                }
                Event::ConfigChanged { version, .. } => {
                    consumed.push(Consumed::Config { version: *version });
                }
                Event::Http(request) => delivered.push(request.id),
                _ => {}
            }
            shown.push(self.event(event));
        }
        if let Some(framework) = self.frameworks.get_mut(&name) {
            framework.number = batch.number;
            framework.time_ms = batch.time_ms;
            framework.consumed = consumed;
            framework.delivered = delivered;
        }
        let shown = runs_of_agents(shown);
        let of_executors = shown.iter().any(|word| word.starts_with("message "));
        let many = if of_executors { "message " } else { "update " };
        if shown.is_empty() {
            return format!("{name} <- batch {}: nothing", batch.number);
        }
        format!("{name} <- batch {}: {}", batch.number, shorten(shown, ", ", many))
    }

    fn event(&mut self, event: Event) -> String {
        match event {
            Event::Subscribed(s) => format!("subscribed {}", s.epoch),
            Event::Resumed(s) => format!("resumed {}", s.epoch),
            Event::Agent(info) => {
                format!("agent {}{}", info.id, if info.reachable { "" } else { " unreachable" })
            }
            Event::Offers(offers) => {
                let offers = offers.into_iter().map(|offer| {
                    let id = alias(&mut self.offers, offer.id.0);
                    let revocable = if offer.revocable { " revocable" } else { "" };
                    format!("offer o{id} {}{revocable} {}", offer.agent, offer.available)
                });
                offers.collect::<Vec<_>>().join(", ")
            }
            Event::Rescinded(ids) => {
                let ids = ids.into_iter().map(|id| format!("o{}", alias(&mut self.offers, id.0)));
                format!("rescinded {}", ids.collect::<Vec<_>>().join(" "))
            }
            Event::InverseOffers(offers) => {
                let offers = offers.into_iter().map(|offer| {
                    let until = match offer.duration_ms {
                        Some(ms) => format!(" for {ms}ms"),
                        None => String::new(),
                    };
                    format!("wanted back {} at {}{until}", offer.agent, offer.start_ms)
                });
                offers.collect::<Vec<_>>().join(", ")
            }
            Event::InverseRescinded(ids) => {
                let ids = ids.into_iter().map(|id| id.0.to_string());
                format!("not wanted back {}", ids.collect::<Vec<_>>().join(" "))
            }
            Event::Update { sequence, status } => {
                let mut text = format!("update {} {} #{sequence}", status.task, status.state);
                if !status.reason.code().is_empty() {
                    text += &format!(" ({}: {})", status.reason.code(), status.message);
                }
                text
            }
            Event::Timer { id, .. } => format!("timer {id}"),
            Event::Http(request) => {
                let id = alias(&mut self.requests, request.id);
                format!("http h{id} {}", request.path)
            }
            Event::Again => "again".into(),
            Event::ConfigChanged { version, .. } => format!("config-changed #{version}"),
            Event::StateChanged { count, writes } => {
                let writes = writes.into_iter().map(|write| match write.value {
                    Some(value) if value.len() > 20 => format!("{}=({} bytes)", write.key, value.len()),
                    Some(value) => format!("{}={}", write.key, String::from_utf8_lossy(&value)),
                    None => format!("{}: none", write.key),
                });
                let writes: Vec<String> = writes.collect();
                match writes.len() {
                    0..=10 => format!("state up to #{count} {}", writes.join(" ")),
                    many => format!("state up to #{count}, {many} keys"),
                }
            }
            Event::Message(message) => {
                let data = String::from_utf8_lossy(&message.data);
                let data = if data.len() > 20 { format!("{} bytes", data.len()) } else { data.into() };
                format!("message from {} on {}: {data}", message.executor, message.agent)
            }
            Event::ExecutorFailed { agent, executor, message } => {
                format!("executor-failed {executor} on {agent}: {message}")
            }
        }
    }

    pub(super) fn show(&mut self, words: &Words<'_>) {
        let text = match words.plain(0) {
            "agent" => {
                let id: AgentId = words.plain(1).parse().expect("an agent");
                let agent = self.core.agent(id).expect("a known agent");
                format!(
                    "{id}: used {}{}; offered {}; free {}{}",
                    agent.used,
                    shown_revocable(&agent.revocable),
                    agent.offered,
                    agent.free,
                    shown_agent(&agent)
                )
            }
            "given-up" => {
                let agents = self.core.agents().into_iter();
                let given_up = agents.filter_map(|agent| Some(format!("{}@{}", agent.id, agent.unreachable_ms?)));
                given_up.collect::<Vec<_>>().join(" ")
            }
            "framework" => match self.core.framework(self.id(words.plain(1))) {
                Some(f) => format!(
                    "{}: {} on {} turn {} state {} bytes in {} keys, {} live tasks{}{}{}",
                    f.name,
                    f.epoch,
                    f.agent.map_or_else(|| "no agent".into(), |agent| agent.to_string()),
                    f.last_turn,
                    f.state_bytes,
                    f.state_keys,
                    f.tasks_live,
                    shown_revocable(&f.revocable),
                    f.requests.iter().map(|r| format!(", waits for {}x {}", r.count, r.id)).collect::<String>(),
                    if f.removing { ", removing" } else { "" }
                ),
                None => format!("{}: is not there", words.plain(1)),
            },
            "task" => {
                let framework = self.id(words.plain(1));
                let id = words.plain(2).parse().expect("a task id");
                match self.core.task(framework, &id, &self.rows).expect("rows can be read") {
                    Some(task) => format!(
                        "{id}: {} on {}{}{}{}",
                        task.state,
                        task.agent,
                        task.group.map(|n| format!(", group {n}")).unwrap_or_default(),
                        task.executor.map(|name| format!(", executor {name}")).unwrap_or_default(),
                        task.history.map(|n| format!(", history {n}")).unwrap_or_default()
                    ),
                    None => format!("{id}: is not there"),
                }
            }
            "standby" => self.show_standby(words.plain(1)),
            "ahead" => self.show_ahead(words.plain(1)),
            "tasks" => {
                let tasks = self.core.tasks(&TaskFilter::default());
                let tasks = tasks.iter().map(|t| format!("{}/{} {}", t.framework, t.launch.task, t.state));
                tasks.collect::<Vec<_>>().join(", ")
            }
            "explain" => {
                let id: FrameworkId = self.id(words.plain(1));
                let waits = self.core.explain(id);
                waits.iter().map(|w| format!("{}: {}", w.what, w.why)).collect::<Vec<_>>().join("; ")
            }
            "limits" | "state" | "versions" => self.show_lifecycle(words),
            "messages" => format!("{} messages dropped", self.core.counts().messages_dropped),
            "events" => {
                let page = self.core.events(None, 1000, &self.rows).expect("rows can be read");
                let events = page.events.iter().map(|event| event.kind.clone());
                events.collect::<Vec<_>>().join(" ")
            }
            other => panic!("nothing to show: {other}"),
        };
        self.say(if text.is_empty() { "nothing" } else { &text });
    }
}

/// What revocable tasks take, if there are any.
fn shown_revocable(resources: &tessera_types::Resources) -> String {
    if resources.is_empty() { String::new() } else { format!(", revocable {resources}") }
}
