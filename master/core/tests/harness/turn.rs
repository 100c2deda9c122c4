//! Turns as scripts write them: `turn web: accept o1 t1=small; decline o2 refuse=5s; put k v`.
//! `t1=small@2` is a member of task group 2, `accept o1 gang=1 t1=small` a part of gang 1.

use super::{Cluster, Words, duration_ms, resources};
use tessera_types::{
    Constraint, Digest, Epoch, ExecutorMessage, ExecutorTask, Filters, HttpAnswer, KeyWrite, Launch, Member,
    MigrationStep,
    NativeCommand, OfferId, Operation, Predicate, Quantities, ResourceRequest, Selector, TaskBody, TaskSpec, Turn, TurnHeader, TurnNumber,
};
use tessera_wire::encode_spec;
use tessera_wire::v1::{self, agent_message::Message as In};

/// `t1..3=small` is `t1=small`, `t2=small`, `t3=small`; any other word is itself.
pub(super) fn expand(word: &str) -> Vec<String> {
    let Some((before, rest)) = word.split_once("..") else { return vec![word.to_owned()] };
    let digits = before.len() - before.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (stem, first) = before.split_at(before.len() - digits);
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (last, rest) = rest.split_at(end);
    let range = first.parse::<u64>().expect("a number")..=last.parse().expect("a number");
    range.map(|n| format!("{stem}{n}{rest}")).collect()
}

/// `big cpus=4 gpus=1 count=3 zone=a|b + small mem=64 revocable` is two requests; nothing is none.
fn requests(text: &str) -> Vec<ResourceRequest> {
    let requests = text.split(" + ").filter(|text| !text.is_empty()).map(|text| {
        let words = Words::of(text);
        let on = |name: &str| {
            let values = words.named.get(name)?.split('|').map(str::to_owned);
            let predicate = Predicate::OneOf(values.collect());
            Some(Constraint { selector: Selector::Attribute(name.into()), predicate })
        };
        ResourceRequest {
            id: words.plain(0).into(),
            resources: resources(&words).into(),
            count: u32::try_from(words.number("count", 1)).expect("a count"),
            constraints: ["rack", "region", "zone"].into_iter().filter_map(on).collect(),
            revocable: words.plain.contains(&"revocable"),
        }
    });
    requests.collect()
}

impl Cluster {
    pub(super) fn spec(&mut self, words: &Words<'_>) {
        let component = |name: &str| Digest::of(words.named.get(name).unwrap_or(&"").as_bytes());
        let body = match words.named.get("executor") {
            Some(executor) => TaskBody::Executor(ExecutorTask {
                executor: executor.parse().expect("an executor's name"),
                component: component("component"),
                resources: Quantities { cpus_milli: words.number("ex-cpus", 0) * 1000, mem_mib: words.number("ex-mem", 16), disk_mib: 0 }.into(),
                config: words.named.get("ex-config").map(|v| ("v".into(), (*v).into())).into_iter().collect(),
                data: vec![],
            }),
            None if words.named.contains_key("wasm") => {
                TaskBody::Wasm { component: component("wasm"), args: vec![] }
            }
            None => TaskBody::Native(NativeCommand::Argv(vec!["true".into()])),
        };
        let spec = TaskSpec {
            name: words.plain(0).into(),
            body,
            resources: resources(words).into(),
            revocable: words.plain.contains(&"revocable"),
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
        self.specs.insert(words.plain(0).into(), spec);
    }

    pub(super) fn turn(&mut self, text: &str) {
        let (head, operations) = text.split_once(':').unwrap_or((text, ""));
        let words = Words::of(head);
        let (agent, key) = self.instance(&words);
        let name = words.plain(0).to_owned();
        let known = self.frameworks.get_mut(&name).expect("a framework");
        let requests = std::mem::take(&mut known.delivered);
        let number = words.number("number", i64::try_from(known.number).expect("small"));
        let mut turn = Turn {
            header: TurnHeader {
                framework: tessera_types::FrameworkId(key.framework),
                epoch: Epoch(key.epoch),
                number: TurnNumber(u64::try_from(number).expect("positive")),
                time_ms: known.time_ms,
            },
            consumed: std::mem::take(&mut known.consumed),
            operations: vec![],
            writes: vec![],
            specs: vec![],
            migration: None,
        };
        for operation in operations.split(';').map(str::trim).filter(|text| !text.is_empty()) {
            self.operation(&mut turn, operation);
        }
        let turn = v1::Turn { requests, ..v1::Turn::from(&turn) };
        self.last_turn = Some((name, turn.clone()));
        self.from_agent(&agent, In::Turn(turn));
    }

    /// `turns 100 web: put k v` is that turn a hundred times; what came of the last one is shown.
    pub(super) fn turns(&mut self, text: &str) {
        let (count, text) = text.split_once(' ').expect("a number and a turn");
        for _ in 0..count.parse::<u64>().expect("a number") {
            self.out.clear();
            self.turn(text);
        }
    }

    /// The last turn, but for what it cost, by which no turn is known.
    pub(super) fn repeat_turn(&mut self, words: &Words<'_>) {
        let (_, mut turn) = self.last_turn.clone().expect("a turn");
        turn.cost = Some(v1::TurnCost { cpu_us: 1, wall_us: 2, began_us: 3 });
        self.from_agent(words.plain(0), In::Turn(turn));
    }

    fn operation(&mut self, turn: &mut Turn, text: &str) {
        let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
        let words = Words::of(rest);
        let refuse_ms = words.named.get("refuse").map_or(0, |text| duration_ms(text));
        let filters = Filters { refuse_ms };
        let operation = match verb {
            "accept" => {
                let offers = self.offer_ids(words.plain(0));
                let gang = u32::try_from(words.number("gang", 0)).expect("a gang");
                let option = |w: &&str| w.starts_with("refuse=") || w.starts_with("gang=");
                let launches = rest.split_whitespace().skip(1).filter(|w| !option(w));
                let words: Vec<String> = launches.flat_map(expand).collect();
                let launches = words.iter().map(|word| self.member(turn, word)).collect();
                Operation::Accept { offers, launches, filters, gang }
            }
            "decline" => Operation::Decline { offers: self.offer_ids(words.plain(0)), filters },
            "revive" => Operation::Revive,
            "suppress" => Operation::Suppress,
            "request" => Operation::Request { requests: requests(rest) },
            "kill" => Operation::Kill { task: words.plain(0).parse().expect("a task"), grace_ms: None },
            "reconcile" => Operation::Reconcile {
                tasks: words.plain.iter().map(|task| task.parse().expect("a task")).collect(),
            },
            "timer" => Operation::SetTimer {
                id: words.plain(0).into(),
                due_ms: turn.header.time_ms + duration_ms(words.plain(1)),
            },
            "cancel" => Operation::CancelTimer { id: words.plain(0).into() },
            "again" => Operation::CallAgain,
            "send" => Operation::SendMessage(ExecutorMessage {
                agent: words.plain(0).parse().expect("an agent"),
                executor: words.plain(1).parse().expect("an executor"),
                data: words.plain(2).into(),
            }),
            "shutdown" => Operation::ShutdownExecutor {
                agent: words.plain(0).parse().expect("an agent"),
                executor: words.plain(1).parse().expect("an executor"),
            },
            "respond" => Operation::Respond {
                request: self.request_id(words.plain(0)),
                answer: HttpAnswer {
                    status: words.plain(1).parse().expect("a status"),
                    headers: vec![],
                    body: words.plain(2).into(),
                },
            },
            "put" => {
                let size = words.number("bytes", 0);
                let value = match usize::try_from(size) {
                    Ok(0) | Err(_) => words.plain(1).into(),
                    Ok(size) => vec![b'x'; size],
                };
                turn.writes.push(KeyWrite { key: words.plain(0).into(), value: Some(value) });
                return;
            }
            "del" => {
                turn.writes.push(KeyWrite { key: words.plain(0).into(), value: None });
                return;
            }
            // `migrate` is one step of a migration, `migrate done` the last one.
            "migrate" => {
                turn.migration = Some(MigrationStep { done: words.plain.contains(&"done") });
                return;
            }
            other => panic!("no such operation: {other}"),
        };
        turn.operations.push(operation);
    }

    fn member(&self, turn: &mut Turn, word: &str) -> Member {
        let (word, group) = word.split_once('@').unwrap_or((word, "0"));
        Member { launch: self.launch(turn, word), group: group.parse().expect("a group") }
    }

    fn launch(&self, turn: &mut Turn, word: &str) -> Launch {
        let (task, spec) = word.split_once('=').expect("task=spec");
        let (defined, name) = match spec.strip_prefix("undefined-") {
            Some(name) => (false, name),
            None => (true, spec),
        };
        let encoded = encode_spec(self.specs.get(name).expect("a spec"));
        let digest = Digest::of(&encoded);
        if defined && turn.specs.iter().all(|(known, _)| *known != digest) {
            turn.specs.push((digest, encoded));
        }
        Launch { task: task.parse().expect("a task id"), spec: digest, args: vec![], env: vec![] }
    }

    fn offer_ids(&self, text: &str) -> Vec<OfferId> {
        let id = |name: &str| {
            let at: usize = name.trim_start_matches('o').parse().expect("an offer");
            OfferId(self.offers.get(at.wrapping_sub(1)).copied().unwrap_or(u64::MAX))
        };
        text.split(',').map(id).collect()
    }

    fn request_id(&self, name: &str) -> u64 {
        let at: usize = name.trim_start_matches('h').parse().expect("a request");
        self.requests.get(at.wrapping_sub(1)).copied().unwrap_or(u64::MAX)
    }
}
