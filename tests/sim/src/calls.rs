//! Requests of users on their way: to any master, on to the leader, and back; again until there is an
//! answer.
//!
//! Invariants: a change keeps its key over all its attempts; what only asks is asked once; its first answer counts, and any other one
//! must say the same. What was asked of configurations is noted for the check of linearizability. Must
//! never decide what is asked.

use crate::mutation::Mutation;
use crate::numbered::{Home, Way};
use crate::queue::Event;
use crate::world::World;
use std::collections::BTreeMap;
use tessera_linear::{
    OperationId, Recorder, Register, RegisterAnswer, RegisterCall, Verdict, check,
};
use tessera_master_core::{HttpFailure, Known, Now, Principal, Reply, Request, RequestError};
use tessera_types::{Digest, FrameworkId, HttpAnswer, HttpRequest};

/// Time after which a request without an answer is sent again, in us.
const REPEAT_US: u64 = 1_500_000;
/// The same when a master said that there is no leader.
const NO_LEADER_US: u64 = 300_000;
/// Of 100 requests or answers so many are lost, while things break.
const LOSS: u64 = 6;

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// A change.
    Change(Request),
    /// The configuration of a framework.
    Read(FrameworkId),
    /// A key of a framework's state.
    ReadKey(FrameworkId, String),
    /// Something of a scheduler.
    Http(FrameworkId, HttpRequest),
}

/// What is answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    /// To a change.
    Reply(Result<Reply, RequestError>),
    /// To a read of a configuration or a key: none if there is no such framework.
    Config(Option<String>),
    /// To something that was asked of a scheduler.
    Http(Result<HttpAnswer, HttpFailure>),
    /// There is no leader, or it was lost meanwhile.
    NoLeader,
}

/// A request that was made.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) ask: Ask,
    pub(crate) key: String,
    /// It has no key of its user.
    pub(crate) without_key: bool,
    /// The number that a master gave it, and which process of which master.
    pub(crate) known: Option<Known>,
    pub(crate) home: Option<Home>,
    attempts: u64,
    noted: Option<OperationId>,
    /// The framework counted so far when this was asked, and so often its upgrades had been given up.
    floor: (u64, u64),
    pub(crate) answer: Option<Answer>,
}

/// The number of what no user asks for.
pub(crate) const NOBODY: u64 = 0;

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    calls: BTreeMap<u64, Call>,
    history: Recorder<RegisterCall, RegisterAnswer>,
    /// A saved state was restored.
    others: bool,
}

impl Calls {
    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Call> {
        self.calls.get_mut(&id)
    }

    /// Changes that were not answered.
    pub(crate) fn open(&self) -> usize {
        let waits = |call: &&Call| call.answer.is_none() && matches!(call.ask, Ask::Change(_));
        self.calls.values().filter(waits).count()
    }

    /// The masters are others, with a state of before: what is under way comes to nothing, and what is seen from now
    /// on is not compared with what was seen before.
    pub(crate) fn nobody_waits(&mut self) {
        self.others = true;
        for call in self.calls.values_mut() {
            call.answer.get_or_insert(Answer::NoLeader);
        }
    }

    /// What was not answered, in words.
    pub(crate) fn waiting(&self) -> String {
        let open = self.calls.iter().filter(|(_, call)| call.answer.is_none());
        let open = open.filter(|(_, call)| matches!(call.ask, Ask::Change(_)));
        open.map(|(id, call)| format!("; {id} asks {:?} for time {}", call.ask, call.attempts)).collect()
    }

    /// Whether something like this is asked now.
    pub(crate) fn asks(&self, what: impl Fn(&Request) -> bool) -> bool {
        self.calls.values().any(|call| match &call.ask {
            Ask::Change(request) => call.answer.is_none() && what(request),
            Ask::Read(_) | Ask::ReadKey(..) | Ask::Http(..) => false,
        })
    }

    /// Judges what was seen of configurations: what is wrong with it, and all of it as JSON lines.
    pub(crate) fn judge(&mut self) -> (Option<String>, Vec<u8>) {
        let mut lines = Vec::new();
        let history = std::mem::take(&mut self.history).finish();
        let verdict = history.and_then(|history| {
            history.write(&mut lines)?;
            Ok(check(&Register, &history))
        });
        let wrong = match verdict {
            Ok(Verdict::Linearizable { .. }) => None,
            Ok(verdict) => Some(format!("what users saw of configurations: {verdict}")),
            Err(error) => Some(error.to_string()),
        };
        (wrong, lines)
    }
}

fn note_in(config: &[(String, String)]) -> Option<String> {
    let note = crate::model::note_of(config);
    (!note.is_empty()).then(|| note.to_owned())
}

fn is_lasting(answer: &Answer) -> bool {
    match answer {
        Answer::Reply(Err(RequestError::NotLeader | RequestError::Unavailable(_)))
        | Answer::NoLeader => false,
        Answer::Reply(_) | Answer::Config(_) | Answer::Http(_) => true,
    }
}

impl World {
    /// The user asks for something; the number of the call.
    pub(crate) fn ask(&mut self, ask: Ask, before: Option<&[(String, String)]>) -> u64 {
        let id = self.fresh();
        let without_key = self.is_without_key(&ask);
        let (now_us, calls) = (self.now_us, &mut self.calls);
        let others = calls.others;
        let noted = match &ask {
            _ if others => None,
            Ask::Change(Request::SetConfig { framework, config, expected_version, .. }) => {
                let to = note_in(config);
                let call = match (expected_version, before) {
                    (Some(_), Some(before)) => RegisterCall::Cas { from: note_in(before), to },
                    _ => RegisterCall::Write { value: to },
                };
                Some(calls.history.called(id, &framework.to_string(), call, now_us))
            }
            Ask::Read(framework) => {
                Some(calls.history.called(id, &framework.to_string(), RegisterCall::Read, now_us))
            }
            Ask::Change(Request::WriteState { framework, key, value, .. }) => {
                let value = value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned());
                let call = RegisterCall::Write { value };
                Some(calls.history.called(id, &format!("{framework}/{key}"), call, now_us))
            }
            Ask::ReadKey(framework, key) => {
                let of = format!("{framework}/{key}");
                Some(calls.history.called(id, &of, RegisterCall::Read, now_us))
            }
            Ask::Change(_) | Ask::Http(..) => None,
        };
        let floor = match &ask {
            Ask::Http(framework, _) => self.oracle.counted(framework.0),
            Ask::Change(_) | Ask::Read(_) | Ask::ReadKey(..) => (0, 0),
        };
        let key = format!("key-{id}");
        let (known, home) = (None, None);
        let call = Call { ask, key, without_key, known, home, attempts: 0, noted, floor, answer: None };
        self.calls.calls.insert(id, call);
        self.send_call(id);
        id
    }

    /// Sends a request to some master.
    fn send_call(&mut self, id: u64) {
        let now_us = self.now_us;
        let home = match self.way_of(id) {
            Way::Nowhere => return,
            Way::Any => None,
            Way::Home(slot) => Some(slot),
        };
        let Some(call) = self.calls.calls.get_mut(&id) else { return };
        call.attempts += 1;
        if call.attempts > 1 && self.mutation == Some(Mutation::RepeatedWithoutKey) {
            call.key = format!("key-{id}-{}", call.attempts);
        }
        let again = matches!(call.ask, Ask::Change(_));
        let attempt = call.attempts;
        let master = home.unwrap_or_else(|| self.rng.index(self.masters.len()));
        if !(self.faults_on && self.rng.chance(LOSS)) {
            let at_us = self.net.soon(now_us);
            self.queue.at(at_us, Event::Ask { master, call: id, forwarded: false });
        }
        if again {
            self.queue.at(now_us + REPEAT_US, Event::AskAgain { call: id, attempt });
        }
    }

    pub(crate) fn ask_again(&mut self, id: u64, attempt: u64) {
        let waits = |call: &Call| call.answer.is_none() && call.attempts == attempt;
        if self.calls.calls.get(&id).is_some_and(waits) {
            self.send_call(id);
        }
    }

    /// A master takes a request.
    pub(crate) fn master_asked(&mut self, slot: usize, id: u64, forwarded: bool, now: Now) {
        let Some(call) = self.calls.calls.get(&id) else { return };
        let stale = self.mutation == Some(Mutation::ReadWithoutIndex);
        if !self.masters[slot].leads() {
            let leader = self.leader_known_to(slot).filter(|_| !forwarded);
            let Some(leader) = leader.filter(|leader| self.net.hears(self.now_us, slot, *leader)) else {
                return self.answer(id, Answer::NoLeader);
            };
            let at_us = self.net.soon(self.now_us);
            self.give_number(slot, id);
            return self.queue.at(at_us, Event::Ask { master: leader, call: id, forwarded: true });
        }
        let principal = Principal::administrator();
        match call.ask.clone() {
            Ask::Change(request) => {
                if self.mutation == Some(Mutation::AcknowledgedBeforeCommit) {
                    self.answer(id, Answer::Reply(Ok(Reply::Done)));
                }
                if let Request::AddComponent { digest, .. } = request {
                    self.upload_begins(slot, id, digest, request);
                } else {
                    self.request_once(slot, id, request);
                }
            }
            Ask::Read(_) | Ask::ReadKey(..) if stale => self.serve_read(slot, id),
            Ask::Read(_) | Ask::ReadKey(..) => {
                let round = self.masters[slot].number();
                let node = self.masters[slot].node.as_mut();
                if node.is_some_and(|node| node.read_index(round)) {
                    self.masters[slot].reads.insert(round, id);
                } else {
                    self.answer(id, Answer::NoLeader);
                }
            }
            Ask::Http(framework, request) => {
                let ticket = self.masters[slot].number();
                self.masters[slot].https.insert(ticket, id);
                if let Some(node) = &mut self.masters[slot].node {
                    node.input_with_rows(|core, rows| {
                        core.on_http(ticket, &principal, framework, request, rows, now)
                    });
                }
            }
        }
    }

    /// The leader's core takes a request; its ticket.
    pub(crate) fn request_once(&mut self, slot: usize, id: u64, request: Request) -> u64 {
        let now = self.masters[slot].now(self.now_us);
        let fingerprint = Digest::of(format!("{request:?}").as_bytes());
        let known = self.known(id, fingerprint);
        let ticket = self.masters[slot].number();
        self.masters[slot].requests.insert(ticket, id);
        let principal = Principal::administrator();
        self.feed(slot, |core| core.on_request_once(ticket, &principal, request, known, now));
        ticket
    }

    /// The rows hold all that was committed before the read was asked for.
    pub(crate) fn serve_read(&mut self, slot: usize, id: u64) {
        let (Some(call), Some(node)) = (self.calls.calls.get(&id), &self.masters[slot].node) else { return };
        let read = match &call.ask {
            Ask::Read(framework) => {
                let view = node.core().framework(*framework);
                view.map(|view| note_in(&view.config).unwrap_or_default())
            }
            Ask::ReadKey(framework, key) => {
                let there = node.core().framework(*framework).filter(|view| !view.removing);
                let value = node.core().state_value(*framework, key, &node.rows()).ok().flatten();
                there.map(|_| String::from_utf8_lossy(&value.unwrap_or_default()).into_owned())
            }
            Ask::Change(_) | Ask::Http(..) => return,
        };
        self.answer(id, Answer::Config(read));
    }

    /// An answer leaves for the user.
    pub(crate) fn answer(&mut self, id: u64, answer: Answer) {
        if self.faults_on && self.rng.chance(LOSS) {
            return;
        }
        let at_us = self.net.soon(self.now_us);
        self.queue.at(at_us, Event::Answer { call: id, answer: Box::new(answer) });
    }

    /// It arrives.
    pub(crate) fn answered(&mut self, id: u64, answer: Answer) {
        let now_us = self.now_us;
        self.look_for_forgotten(id, &answer);
        let Some(call) = self.calls.calls.get_mut(&id) else { return };
        if !is_lasting(&answer) {
            if call.answer.is_none() && matches!(call.ask, Ask::Change(_)) {
                let again = Event::AskAgain { call: id, attempt: call.attempts };
                self.queue.at(now_us + NO_LEADER_US, again);
            }
            return;
        }
        if let Some(first) = &call.answer {
            if self.mutation == Some(Mutation::AcknowledgedBeforeCommit) {
                return;
            }
            let (Answer::Reply(Ok(first)), Answer::Reply(Ok(again))) = (first, &answer) else { return };
            if !same(first, again) {
                let text = format!("a request is answered {first:?}, and then {again:?}");
                self.oracle.violate(text);
            }
            return;
        }
        call.answer = Some(answer.clone());
        if let Some(noted) = call.noted {
            let output = match (&call.ask, &answer) {
                (Ask::Read(_) | Ask::ReadKey(..), Answer::Config(Some(note))) => {
                    let value = (!note.is_empty()).then(|| note.clone());
                    Some(RegisterAnswer::Value { value })
                }
                (Ask::Change(_), Answer::Reply(Ok(_))) => Some(RegisterAnswer::Done),
                (Ask::Change(Request::WriteState { .. }), Answer::Reply(Err(_))) => None,
                (Ask::Change(_), Answer::Reply(Err(RequestError::Conflict { .. }))) => {
                    Some(RegisterAnswer::Differs)
                }
                _ => None,
            };
            match output {
                Some(output) => self.calls.history.returned(noted, output, now_us),
                // A refusal is of one attempt: an earlier one may wait at a master that stands still, and be done yet.
                None if call.attempts > 1 && matches!(call.ask, Ask::Change(_)) => {}
                None => self.calls.history.never_happened(noted),
            }
        }
        self.number_answered(id);
        self.user_hears(id, answer);
    }

    /// What comes of an answer.
    fn user_hears(&mut self, id: u64, answer: Answer) {
        let Some(call) = self.calls.calls.get(&id) else { return };
        let (ask, floor) = (call.ask.clone(), call.floor);
        let line = match &answer {
            Answer::Reply(Ok(reply)) => format!("user: {id} is done: {reply:?}"),
            Answer::Reply(Err(error)) => format!("user: {id} is refused: {error}"),
            Answer::Config(note) => format!("user: {id} reads {note:?}"),
            Answer::Http(Ok(answer)) => format!("user: {id}: a scheduler answers {}", answer.status),
            Answer::Http(Err(failure)) => format!("user: {id}: no answer of a scheduler: {failure}"),
            Answer::NoLeader => return,
        };
        self.journal.line(self.now_us, &line);
        match (ask, answer) {
            (Ask::Change(Request::OpenSession { session, .. }), Answer::Reply(Ok(_))) => self.session_opened(session),
            (Ask::Change(request @ Request::SetRole { .. }), Answer::Reply(result)) => {
                self.role_answered(&request, result.is_ok());
            }
            (Ask::Change(request), Answer::Reply(result)) => {
                if let Some(violation) = self.user.on_reply(id, &request, &result) {
                    self.oracle.violate(violation);
                }
            }
            (Ask::Http(framework, _), Answer::Http(Ok(answer))) => {
                self.oracle.on_count(framework.0, &answer.body, floor);
            }
            _ => {}
        }
    }
}

/// Whether two answers say the same; what is read beside them may have gone on.
fn same(one: &Reply, other: &Reply) -> bool {
    match (one, other) {
        (Reply::Component { view: one, .. }, Reply::Component { view: other, .. }) => {
            one.digest == other.digest
        }
        _ => one == other,
    }
}
