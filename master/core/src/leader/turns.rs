//! Turns: fenced, proposed or read, answered.
//!
//! Invariants: a turn counts only from the agent that hosts its framework under its epoch; a repeated
//! turn is answered as the first time; what a plan takes from offers is either charged or given back;
//! an answer leaves only after its commit or after a read that proves that nothing was overtaken.

use super::http::opened;
use super::limits::validate_operations;
use super::plan::After;
use super::throttle::Submission;
use super::{Desk, Pending, TERM_SHIFT};
use crate::api::Output;
use crate::commands::validate_turn;
use crate::effect::CommandResult;
use crate::limits::COMMAND_BYTES_MAX;
use crate::open;
use crate::tally::TurnTally;
use crate::trace::TurnTrace;
use prost::Message;
use std::collections::BTreeSet;
use tessera_types::limits::BATCH_EVENTS_MAX;
use tessera_types::{
    AgentId, Digest, Epoch, FrameworkId, HttpAnswer, Operation, Turn, TurnHeader, TurnNumber,
    TurnOutcome, TurnRefusal,
};
use tessera_wire::WireError;
use tessera_wire::v1::{self, master_message::Message as Out};

/// A turn that waits for its commit, or for a read.
#[derive(Debug)]
pub(crate) struct PendingTurn {
    /// The session in which it came.
    session: u64,
    framework: FrameworkId,
    epoch: Epoch,
    number: TurnNumber,
    /// Requests that its batch delivered.
    http: Vec<u64>,
    /// How many it has.
    operations: u64,
    trace: Option<TurnTrace>,
    after: After,
    /// For a turn that is only read.
    answers: Vec<(u64, HttpAnswer)>,
}

impl Desk<'_> {
    pub(super) fn on_turn(
        &mut self,
        session: u64,
        agent: AgentId,
        mut turn: v1::Turn,
    ) -> Result<(), WireError> {
        let header = turn.header();
        let (id, epoch, number) = (header.framework, header.epoch, header.number);
        // No part of what a repeated turn is known by.
        let cost = turn.cost.take();
        let encoded = turn.encode_to_vec();
        let hash = Digest::of(&encoded).0.to_vec();
        let outside = self.leader.instances.get(&id).filter(|i| i.epoch == epoch).map_or(0, |i| i.outside);
        let result = |outcome: TurnOutcome| turn_result(id, epoch, number, &outcome, outside);
        let Some(framework) = self.state.frameworks.get(&id).filter(|f| !f.removing) else {
            self.send(session, result(TurnOutcome::Refused(TurnRefusal::NoFramework)));
            return Ok(());
        };
        let current = framework.epoch;
        if epoch != current {
            let refusal = TurnRefusal::WrongEpoch { given: epoch, current };
            self.send(session, result(TurnOutcome::Refused(refusal)));
            return Ok(());
        }
        if framework.agent != Some(agent) {
            return Err(WireError::new("turn", format!("{agent} does not host {id} under {epoch}")));
        }
        self.align_instance(id, framework);
        let expected = framework.next_turn();
        let Some(instance) = self.leader.instances.get_mut(&id) else { return Ok(()) };
        instance.repeat_by_ms = None;
        if framework.last_turn_epoch == epoch
            && framework.last_turn == number
            && framework.last_turn_hash == hash
        {
            instance.told = Some((session, expected));
            self.leader.dirty_frameworks.insert(id);
            self.send(session, result(TurnOutcome::Committed { next: expected }));
            return Ok(());
        }
        if let Some((flying, flying_hash)) = &instance.in_flight
            && *flying == number
            && *flying_hash == hash
        {
            return Ok(());
        }
        let overtaken = instance.in_flight.is_some()
            || instance.outstanding.as_ref().is_some_and(|sent| sent.time_ms != header.time_ms);
        if overtaken && instance.taken == Some((session, header.time_ms)) {
            return Ok(());
        }
        if number < expected {
            // A copy of an older turn. Whoever still waits for its fate builds the instance anew and
            // says so; an instance that has gone on passes over this.
            let refusal = TurnRefusal::WrongNumber { given: number, expected };
            self.send(session, result(TurnOutcome::Refused(refusal)));
            return Ok(());
        }
        if number != expected || instance.in_flight.is_some() {
            let refusal = TurnRefusal::WrongNumber { given: number, expected };
            self.refuse_turn(header, session, TurnOutcome::Refused(refusal), &[]);
            return Ok(());
        }
        let sent = instance.outstanding.take();
        if let Some(cost) = cost {
            let tally = self.leader.tally.of(id);
            tally.cpu_us = tally.cpu_us.saturating_add(cost.cpu_us);
            tally.wall_us = tally.wall_us.saturating_add(cost.wall_us);
        }
        let first = sent.as_ref().is_some_and(|sent| sent.time_ms == header.time_ms);
        let brought = sent.as_ref().and_then(|sent| sent.outside.last()).map(|(count, _)| *count);
        if let Some(count) = brought.filter(|_| first) {
            self.outside_arrived(id, count);
        }
        let http = match sent {
            Some(sent) if first => sent.http,
            // A repeated turn: the worker passes over the batch that was sent meanwhile.
            Some(sent) => {
                self.take_back(id, sent);
                Vec::new()
            }
            None => Vec::new(),
        };
        let (http, former) = self.delivered(id, http, std::mem::take(&mut turn.requests));
        let malformed = |error: WireError| TurnRefusal::Limit {
            name: error.field.into(),
            text: error.rule,
        };
        let limits = self.state.limits_of(&framework.role);
        let checked = validate_operations(&turn, &limits);
        match checked.and_then(|()| Turn::try_from(turn).map_err(malformed)) {
            Ok(turn) => {
                let bytes = encoded.len() as u64;
                self.pace(Submission { session, first, turn, hash, http, former, bytes });
            }
            Err(refusal) => {
                self.refuse_turn(header, session, TurnOutcome::Refused(refusal), &http);
            }
        }
        Ok(())
    }

    /// Carry a turn that was admitted to its proposal or its read, or refuse it.
    pub(super) fn go_on(&mut self, submission: Submission) {
        let (header, session) = (submission.turn.header, submission.session);
        let http = submission.http.clone();
        if let Err(refusal) = self.submit(submission) {
            self.refuse_turn(header, session, TurnOutcome::Refused(refusal), &http);
        }
    }

    /// What is counted of a framework; nothing of one that is gone, which would be kept for good.
    fn counted(&mut self, id: FrameworkId) -> Option<&mut TurnTally> {
        self.state.frameworks.contains_key(&id).then(|| self.leader.tally.of(id))
    }

    /// Tell a worker that its turn is refused; it rebuilds the instance.
    pub(super) fn refuse_turn(
        &mut self,
        header: TurnHeader,
        session: u64,
        outcome: TurnOutcome,
        http: &[u64],
    ) {
        let id = header.framework;
        if let Some(tally) = self.counted(id) {
            tally.refused += 1;
        }
        self.fail_http(http, 502, "TURN_REFUSED", "the scheduler's turn was refused");
        let instance = self.leader.instances.get_mut(&id);
        if let Some(instance) = instance.filter(|instance| instance.epoch == header.epoch) {
            instance.ready = false;
            self.withdraw_framework(id);
        }
        self.send(session, turn_result(id, header.epoch, header.number, &outcome, 0));
    }

    fn submit(&mut self, submission: Submission) -> Result<(), TurnRefusal> {
        let Submission { session, first, turn, hash, http, former, bytes: _ } = submission;
        let id = turn.header.framework;
        let mut command = v1::CommitTurn {
            framework: id.0,
            epoch: turn.header.epoch.0,
            number: turn.header.number.0,
            turn_hash: hash.clone(),
            consumed: turn.consumed.iter().map(Into::into).collect(),
            operations: Vec::new(),
            writes: turn.writes.iter().map(Into::into).collect(),
            specs: self.new_specs(id, &turn),
            migration: turn.migration.map(|step| v1::MigrationStep { done: step.done }),
            opened: self.left_open(&turn, &http),
            closed: self.lost_requests(id),
            trace: Vec::new(),
        };
        let role = self.state.frameworks.get(&id).map(|framework| &framework.role);
        let limits = role.map(|role| self.state.limits_of(role)).unwrap_or_default();
        validate_turn(&command, &limits)?;
        // What is left open is noted, so that nothing follows from a request whose key is not known.
        let answered = answered(&turn);
        let noted = answered.iter().any(|request| self.state.open_request(id, *request).is_some());
        let logged = turn.changes_state() || noted || !command.opened.is_empty();
        if !former.is_empty() && (turn.changes_state() || self.leaves_open(&turn, &former))
            || !first && turn.changes_state() && self.answers_former_leaders(&turn)
        {
            // Under which keys its requests came is not known any more, and they may come again. Nothing of
            // it was committed, so the instance is built anew, and handles them then.
            return Err(TurnRefusal::FormerLeader { number: turn.header.number });
        }
        let mut plan = self.plan(&turn, logged);
        if !first && !logged {
            // Nothing tells whether its messages were sent already, and they are sent at most once.
            let messages = std::mem::take(&mut plan.after.messages);
            self.leader.messages_dropped += messages.len() as u64;
        }
        command.operations = plan.operations;
        let offers = plan.accepted.iter().map(|held| (held.agent.to_string(), held.made_ms));
        let offers: Vec<_> = if self.config.traced.on { offers.collect() } else { Vec::new() };
        let header = turn.header;
        let trace = self.trace_turn(id, (header.epoch, header.number), header.time_ms, &offers);
        command.trace = trace.map_or_else(Vec::new, |trace| trace.id.to_bytes());
        if command.encoded_len() > COMMAND_BYTES_MAX {
            let text = format!("a turn takes at most {COMMAND_BYTES_MAX} bytes of the log");
            return Err(TurnRefusal::Limit { name: "COMMAND_BYTES_MAX".into(), text });
        }
        let mut pending = PendingTurn {
            session,
            framework: id,
            epoch: turn.header.epoch,
            number: turn.header.number,
            http,
            operations: turn.operations.len() as u64,
            trace: None,
            after: plan.after,
            answers: Vec::new(),
        };
        if logged {
            pending.trace = trace;
            let command = v1::command::Command::CommitTurn(command);
            let principal = format!("framework/{id}");
            let role = self.state.frameworks.get(&id).map(|framework| framework.role.to_string());
            let role = role.unwrap_or_default();
            let pending = Pending::Turn(Box::new(pending));
            let ticket = self.propose_as(&principal, &role, command, pending);
            if !plan.accepted.is_empty() {
                self.leader.offers.accept(ticket, id, plan.accepted);
            }
        } else if plan.answers.is_empty() && pending.after.messages.is_empty() {
            self.leader.tally.of(id).read += 1;
            self.note_taken(session, &turn);
            self.turn_stands(&pending, pending.number);
            return Ok(());
        } else {
            self.leader.tally.of(id).read += 1;
            pending.answers = plan.answers;
            let ticket = self.leader.fresh();
            self.leader.pending.insert(ticket, Pending::Turn(Box::new(pending)));
            self.leader.out.push(Output::ReadIndex { ticket });
            self.note_taken(session, &turn);
        }
        if let Some(instance) = self.leader.instances.get_mut(&id) {
            instance.in_flight = Some((turn.header.number, hash));
        }
        Ok(())
    }

    /// Whether a turn answers requests that came to another leader.
    fn answers_former_leaders(&self, turn: &Turn) -> bool {
        turn.operations.iter().any(|operation| match operation {
            Operation::Respond { request, .. } => self.is_former(turn.header.framework, *request),
            _ => false,
        })
    }

    /// Whether a request came to another leader, and nobody noted it.
    fn is_former(&self, id: FrameworkId, request: u64) -> bool {
        request >> TERM_SHIFT != self.leader.term && self.state.open_request(id, request).is_none()
    }

    /// Of the requests that a turn's batch delivered, those that wait here and those of former leaders.
    fn delivered(
        &mut self,
        id: FrameworkId,
        mut http: Vec<u64>,
        requests: Vec<u64>,
    ) -> (Vec<u64>, Vec<u64>) {
        let mut former = Vec::new();
        for request in requests.into_iter().take(BATCH_EVENTS_MAX) {
            let waiter = self.leader.waiters.by_request.get(&request);
            if waiter.is_some_and(|waiter| waiter.framework == id) {
                if !http.contains(&request) {
                    http.push(request);
                }
            } else if self.is_former(id, request) {
                former.push(request);
            }
        }
        // One that was to be delivered again, as nobody knew that the turn had it.
        if let Some(instance) = self.leader.instances.get_mut(&id) {
            instance.http.retain(|request| !http.contains(request));
        }
        (http, former)
    }

    fn leaves_open(&self, turn: &Turn, requests: &[u64]) -> bool {
        let answered = answered(turn);
        self.notes_open() && requests.iter().any(|request| !answered.contains(request))
    }

    /// Requests with a key that a turn takes in and does not answer.
    fn left_open(&self, turn: &Turn, http: &[u64]) -> Vec<v1::OpenedRequest> {
        if !self.notes_open() {
            return Vec::new();
        }
        let answered = answered(turn);
        let left = http.iter().filter(|request| !answered.contains(request));
        let waiters = left.filter_map(|request| self.leader.waiters.by_request.get(request));
        waiters
            .filter(|waiter| waiter.request.idempotency_key.is_some())
            .map(|waiter| opened(&waiter.request))
            .collect()
    }

    /// Requests that are noted as open and will not be answered.
    fn lost_requests(&self, id: FrameworkId) -> Vec<u64> {
        let lost = self.leader.instances.get(&id).map(|instance| &instance.lost_requests);
        let lost = lost.into_iter().flatten().copied();
        lost.filter(|request| self.state.open_request(id, *request).is_some()).collect()
    }

    fn notes_open(&self) -> bool {
        self.cluster_version() >= open::SINCE
    }

    fn note_taken(&mut self, session: u64, turn: &Turn) {
        if let Some(instance) = self.leader.instances.get_mut(&turn.header.framework) {
            instance.taken = Some((session, turn.header.time_ms));
        }
    }

    /// A turn was committed or refused.
    pub(super) fn turn_done(&mut self, ticket: u64, pending: &PendingTurn, result: CommandResult) {
        if self.leader.offers.accepted(ticket) {
            self.leader.allocate = true;
        }
        for agent in &pending.after.executors_on {
            self.withdraw_excess(*agent);
        }
        let outcome = match result {
            CommandResult::Turn(outcome) => outcome,
            CommandResult::Refused(error) => TurnOutcome::Refused(TurnRefusal::Limit {
                name: "command".into(),
                text: error.to_string(),
            }),
            CommandResult::Done
            | CommandResult::Agent(_)
            | CommandResult::Component { .. }
            | CommandResult::Framework(_)
            | CommandResult::Version(_)
            | CommandResult::Placed(_) => return,
        };
        if let Some(trace) = pending.trace {
            self.trace_commit(pending.framework, trace, matches!(outcome, TurnOutcome::Committed { .. }));
        }
        match outcome {
            TurnOutcome::Committed { next } => {
                if let Some(tally) = self.counted(pending.framework) {
                    tally.committed += 1;
                    tally.operations += pending.operations;
                }
                self.turn_stands(pending, next);
            }
            TurnOutcome::Refused(refusal) => self.turn_fails(pending, refusal),
        }
    }

    /// This is still the leader: a turn that changed nothing may be answered, unless it was overtaken.
    pub(crate) fn read_ready(&mut self, ticket: u64) {
        let Some(Pending::Turn(mut pending)) = self.leader.pending.remove(&ticket) else { return };
        let Some(framework) = self.state.frameworks.get(&pending.framework).filter(|f| !f.removing)
        else {
            return self.turn_fails(&pending, TurnRefusal::NoFramework);
        };
        let (current, expected) = (framework.epoch, framework.next_turn());
        if current != pending.epoch {
            let refusal = TurnRefusal::WrongEpoch { given: pending.epoch, current };
            return self.turn_fails(&pending, refusal);
        }
        if expected != pending.number {
            let refusal = TurnRefusal::WrongNumber { given: pending.number, expected };
            return self.turn_fails(&pending, refusal);
        }
        for (request, answer) in std::mem::take(&mut pending.answers) {
            self.answer(request, Ok(answer));
        }
        self.turn_stands(&pending, expected);
    }

    fn turn_stands(&mut self, pending: &PendingTurn, next: TurnNumber) {
        let id = pending.framework;
        self.land(pending);
        let after = &pending.after;
        for (offer, refuse_ms) in &after.declines {
            self.decline(id, *offer, *refuse_ms);
        }
        for (agent, rest, refuse_ms) in &after.rests {
            let back = self.leader.given_back.iter().filter(|(of, at, _)| *of == id && at == agent);
            let rest = back.fold(rest.clone(), |sum, (_, _, resources)| sum.plus(resources));
            self.refuse_rest(id, *agent, rest, *refuse_ms);
        }
        if after.revive {
            self.revive(id);
        }
        for message in &after.messages {
            self.send_to_executor(id, message);
        }
        let named: Vec<_> = after
            .reconcile
            .iter()
            .map(|task| self.reconcile_named(id, task.clone()))
            .collect();
        if let Some(instance) = self.leader.instances.get_mut(&id) {
            instance.again |= after.again;
            instance.after_turn = true;
            if after.reconcile_all {
                instance.reconcile_all = Some(None);
            }
            for status in named {
                instance.notice(status);
            }
        }
        self.turn_result(pending, &TurnOutcome::Committed { next });
        // Now that it has answered, it may be offered something again.
        self.leader.allocate = true;
    }

    fn turn_fails(&mut self, pending: &PendingTurn, refusal: TurnRefusal) {
        self.land(pending);
        if let Some(tally) = self.counted(pending.framework) {
            tally.refused += 1;
        }
        self.fail_http(&pending.http, 502, "TURN_REFUSED", "the scheduler's turn was refused");
        let current = self.leader.instances.get_mut(&pending.framework);
        if let Some(instance) = current.filter(|instance| instance.epoch == pending.epoch) {
            instance.ready = false;
            self.withdraw_framework(pending.framework);
        }
        self.turn_result(pending, &TurnOutcome::Refused(refusal));
    }

    /// The turn is no longer under way.
    fn land(&mut self, pending: &PendingTurn) {
        let instance = self.leader.instances.get_mut(&pending.framework);
        if let Some(instance) = instance.filter(|instance| instance.epoch == pending.epoch) {
            instance.in_flight = None;
        }
        self.leader.dirty_frameworks.insert(pending.framework);
    }

    fn turn_result(&mut self, pending: &PendingTurn, outcome: &TurnOutcome) {
        let framework = self.state.frameworks.get(&pending.framework);
        let agent = framework.filter(|f| f.epoch == pending.epoch).and_then(|f| f.agent);
        let Some(session) = agent.and_then(|agent| self.session_of(agent)) else { return };
        // An agent that did not send the turn in this session may not know the instance yet, and then
        // passes over its result.
        if let (TurnOutcome::Committed { next }, Some(instance)) =
            (outcome, self.leader.instances.get_mut(&pending.framework))
            && pending.session == session
        {
            instance.told = Some((session, *next));
        }
        let instance = self.leader.instances.get(&pending.framework);
        let outside = instance.filter(|i| i.epoch == pending.epoch).map_or(0, |i| i.outside);
        let mut result = turn_result(pending.framework, pending.epoch, pending.number, outcome, outside);
        // Its agent knows how long the guest took.
        if let (Out::TurnResult(result), Some(trace)) = (&mut result, pending.trace) {
            result.trace = trace.id.to_bytes();
        }
        self.send(session, result);
    }

    /// A turn's command was not taken: the worker has to submit it again, in a new session.
    pub(super) fn turn_lost(&mut self, ticket: u64, pending: &PendingTurn) {
        self.leader.offers.accepted(ticket);
        self.leader.allocate = true;
        self.land(pending);
        let agent = self.state.frameworks.get(&pending.framework).and_then(|f| f.agent);
        if let Some(session) = agent.and_then(|agent| self.session_of(agent)) {
            self.close(session, "a turn could not be proposed; it is to be submitted again");
        }
    }
}

/// Requests that a turn answers.
fn answered(turn: &Turn) -> BTreeSet<u64> {
    let responds = turn.operations.iter().filter_map(|operation| match operation {
        Operation::Respond { request, .. } => Some(*request),
        _ => None,
    });
    responds.collect()
}

fn turn_result(
    id: FrameworkId,
    epoch: Epoch,
    number: TurnNumber,
    outcome: &TurnOutcome,
    outside: u64,
) -> Out {
    Out::TurnResult(v1::TurnResult {
        key: Some(v1::InstanceKey { framework: id.0, epoch: epoch.0 }),
        number: number.0,
        outcome: Some(outcome.into()),
        outside,
        trace: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemRows;
    use crate::{Config, Core, Now};

    #[test]
    fn nothing_is_counted_of_a_framework_that_is_gone() {
        let mut core = Core::load(&MemRows::default(), Config::default()).unwrap();
        let now = Now { mono_ms: 1, wall_ms: 1 };
        let _ = core.lead(1, "cluster", now);
        let (gone, header) = (FrameworkId(7), TurnHeader { framework: FrameworkId(7), epoch: Epoch(1), number: TurnNumber(1), time_ms: 1 });
        core.with(now, |desk| {
            desk.leader.tally.of(gone).committed = 1;
            desk.drop_instance(gone);
            assert!(desk.leader.tally.turns.is_empty(), "it goes with its framework");
            // What was held back until then.
            desk.refuse_turn(header, 1, TurnOutcome::Refused(TurnRefusal::NoFramework), &[]);
            assert!(desk.leader.tally.turns.is_empty());
        });
    }
}
