//! Conversions of events, operations and turns.

use crate::common::{pairs_from_wire, pairs_to_wire, same_enum};
use crate::error::at;
use crate::{WireError, v1};
use tessera_types::limits::{
    HTTP_ANSWER_BYTES_MAX, HTTP_HEADER_BYTES_MAX, HTTP_HEADERS_MAX, KEY_BYTES_MAX,
    MESSAGE_DATA_BYTES_MAX, TURN_OPERATIONS_MAX, VALUE_BYTES_MAX,
};
use tessera_types::{
    AgentId, Consumed, Digest, Epoch, Event, ExecutorMessage, Filters, FrameworkId, HttpAnswer,
    HttpRequest, KeyWrite, LogLevel, LogLine, Member, MigrationStep, OfferId, Operation, Subscription, Turn, TurnHeader, TurnNumber, TurnOutcome,
    TurnRefusal,
};

impl From<&Subscription> for v1::Subscription {
    fn from(s: &Subscription) -> Self {
        Self {
            framework: s.framework.0,
            name: s.name.clone(),
            role: s.role.clone(),
            epoch: s.epoch.0,
        }
    }
}

impl From<v1::Subscription> for Subscription {
    fn from(s: v1::Subscription) -> Self {
        Self {
            framework: FrameworkId(s.framework),
            name: s.name,
            role: s.role,
            epoch: Epoch(s.epoch),
        }
    }
}

impl From<&HttpRequest> for v1::HttpRequest {
    fn from(r: &HttpRequest) -> Self {
        Self {
            id: r.id,
            method: r.method.clone(),
            path: r.path.clone(),
            query: r.query.clone(),
            headers: pairs_to_wire(&r.headers),
            body: r.body.clone(),
            principal: r.principal.clone(),
            idempotency_key: r.idempotency_key.clone(),
        }
    }
}

impl From<v1::HttpRequest> for HttpRequest {
    fn from(r: v1::HttpRequest) -> Self {
        Self {
            id: r.id,
            method: r.method,
            path: r.path,
            query: r.query,
            headers: pairs_from_wire(r.headers),
            body: r.body,
            principal: r.principal,
            idempotency_key: r.idempotency_key,
        }
    }
}

impl From<&HttpAnswer> for v1::HttpAnswer {
    fn from(a: &HttpAnswer) -> Self {
        Self {
            status: a.status.into(),
            headers: pairs_to_wire(&a.headers),
            body: a.body.clone(),
        }
    }
}

impl TryFrom<v1::HttpAnswer> for HttpAnswer {
    type Error = WireError;
    fn try_from(a: v1::HttpAnswer) -> Result<Self, WireError> {
        let status = u16::try_from(a.status).ok().filter(|s| (200..600).contains(s));
        if a.body.len() > HTTP_ANSWER_BYTES_MAX {
            return Err(WireError::new("answer.body", format!("at most {HTTP_ANSWER_BYTES_MAX} bytes")));
        }
        let long = |h: &v1::Pair| h.key.len() + h.value.len() > HTTP_HEADER_BYTES_MAX;
        if a.headers.len() > HTTP_HEADERS_MAX || a.headers.iter().any(long) {
            return Err(WireError::new(
                "answer.headers",
                format!("at most {HTTP_HEADERS_MAX} of at most {HTTP_HEADER_BYTES_MAX} bytes"),
            ));
        }
        Ok(Self {
            status: status.ok_or_else(|| WireError::new("answer.status", "200 to 599"))?,
            headers: pairs_from_wire(a.headers),
            body: a.body,
        })
    }
}

impl From<&Event> for v1::Event {
    fn from(event: &Event) -> Self {
        use v1::event::Event as E;
        let event = match event {
            Event::Subscribed(s) => E::Subscribed(s.into()),
            Event::Resumed(s) => E::Resumed(s.into()),
            Event::Agent(info) => E::Agent(info.into()),
            Event::Offers(offers) => {
                E::Offers(v1::Offers { offers: offers.iter().map(Into::into).collect() })
            }
            Event::Rescinded(ids) => {
                E::Rescinded(v1::OfferIds { ids: ids.iter().map(|id| id.0).collect() })
            }
            Event::InverseOffers(offers) => {
                let offers = offers.iter().map(Into::into).collect();
                E::InverseOffers(v1::InverseOffers { offers })
            }
            Event::InverseRescinded(ids) => {
                E::InverseRescinded(v1::OfferIds { ids: ids.iter().map(|id| id.0).collect() })
            }
            Event::Update { sequence, status } => {
                E::Update(v1::UpdateEvent { sequence: *sequence, status: Some(status.into()) })
            }
            Event::Timer { id, due_ms } => {
                E::Timer(v1::TimerEvent { id: id.clone(), due_ms: *due_ms })
            }
            Event::Http(request) => E::Http(request.into()),
            Event::Again => E::Again(v1::Empty {}),
            Event::ConfigChanged { version, config } => E::ConfigChanged(v1::ConfigChanged {
                version: *version,
                config: pairs_to_wire(config),
            }),
            Event::StateChanged { count, writes } => E::StateChanged(v1::StateChanged {
                count: *count,
                writes: writes.iter().map(Into::into).collect(),
            }),
            Event::Message(message) => E::Message(message.into()),
            Event::ExecutorFailed { agent, executor, message } => {
                E::ExecutorFailed(v1::ExecutorFailed {
                    agent: agent.0,
                    executor: executor.to_string(),
                    message: message.clone(),
                })
            }
        };
        Self { event: Some(event) }
    }
}

impl TryFrom<v1::Event> for Event {
    type Error = WireError;
    fn try_from(event: v1::Event) -> Result<Self, WireError> {
        use v1::event::Event as E;
        Ok(match event.event.ok_or_else(|| WireError::missing("event"))? {
            E::Subscribed(s) => Self::Subscribed(s.into()),
            E::Resumed(s) => Self::Resumed(s.into()),
            E::Agent(info) => Self::Agent(info.into()),
            E::Offers(o) => Self::Offers(o.offers.into_iter().map(Into::into).collect()),
            E::Rescinded(o) => Self::Rescinded(o.ids.into_iter().map(OfferId).collect()),
            E::InverseOffers(o) => {
                Self::InverseOffers(o.offers.into_iter().map(Into::into).collect())
            }
            E::InverseRescinded(o) => {
                Self::InverseRescinded(o.ids.into_iter().map(OfferId).collect())
            }
            E::Update(update) => Self::Update {
                sequence: update.sequence,
                status: update
                    .status
                    .ok_or_else(|| WireError::missing("event.update.status"))?
                    .try_into()?,
            },
            E::Timer(timer) => Self::Timer { id: timer.id, due_ms: timer.due_ms },
            E::Http(request) => Self::Http(request.into()),
            E::Again(v1::Empty {}) => Self::Again,
            E::ConfigChanged(changed) => Self::ConfigChanged {
                version: changed.version,
                config: pairs_from_wire(changed.config),
            },
            E::StateChanged(changed) => {
                let writes = changed.writes.into_iter().map(TryInto::try_into);
                Self::StateChanged {
                    count: changed.count,
                    writes: writes.collect::<Result<_, WireError>>()?,
                }
            }
            E::Message(message) => Self::Message(message.try_into()?),
            E::ExecutorFailed(failed) => Self::ExecutorFailed {
                agent: AgentId(failed.agent),
                executor: failed.executor.try_into().map_err(at("event.executor"))?,
                message: failed.message,
            },
        })
    }
}

impl From<&ExecutorMessage> for v1::ExecutorMessage {
    fn from(message: &ExecutorMessage) -> Self {
        Self {
            agent: message.agent.0,
            executor: message.executor.to_string(),
            data: message.data.clone(),
        }
    }
}

impl TryFrom<v1::ExecutorMessage> for ExecutorMessage {
    type Error = WireError;
    fn try_from(message: v1::ExecutorMessage) -> Result<Self, WireError> {
        if message.data.len() > MESSAGE_DATA_BYTES_MAX {
            let rule = format!("at most {MESSAGE_DATA_BYTES_MAX} bytes");
            return Err(WireError::new("message.data", rule));
        }
        Ok(Self {
            agent: AgentId(message.agent),
            executor: message.executor.try_into().map_err(at("message.executor"))?,
            data: message.data,
        })
    }
}

/// The launches of an accept, each with its group.
fn members(launches: Vec<v1::Launch>, groups: &[u32]) -> Result<Vec<Member>, WireError> {
    if !groups.is_empty() && groups.len() != launches.len() {
        return Err(WireError::new("accept.groups", "one for each launch, or none at all"));
    }
    let member = |(at, launch): (usize, v1::Launch)| {
        Ok(Member { launch: launch.try_into()?, group: groups.get(at).copied().unwrap_or(0) })
    };
    launches.into_iter().enumerate().map(member).collect()
}

fn offer_ids(ids: Vec<u64>) -> Vec<OfferId> {
    ids.into_iter().map(OfferId).collect()
}

impl From<&Operation> for v1::Operation {
    fn from(operation: &Operation) -> Self {
        use v1::operation::Operation as O;
        let ids = |offers: &[OfferId]| offers.iter().map(|id| id.0).collect();
        let operation = match operation {
            Operation::Accept { offers, launches, filters, gang } => {
                let grouped = launches.iter().any(|member| member.group != 0);
                let groups = launches.iter().filter(|_| grouped).map(|member| member.group);
                O::Accept(v1::Accept {
                    offers: ids(offers),
                    launches: launches.iter().map(|member| (&member.launch).into()).collect(),
                    refuse_ms: filters.refuse_ms,
                    groups: groups.collect(),
                    gang: *gang,
                })
            }
            Operation::Decline { offers, filters } => {
                O::Decline(v1::Decline { offers: ids(offers), refuse_ms: filters.refuse_ms })
            }
            Operation::Revive => O::Revive(v1::Empty {}),
            Operation::Suppress => O::Suppress(v1::Empty {}),
            Operation::Request { requests } => O::Request(requests.as_slice().into()),
            Operation::Kill { task, grace_ms } => {
                O::Kill(v1::Kill { task: task.to_string(), grace_ms: *grace_ms })
            }
            Operation::Reconcile { tasks } => O::Reconcile(v1::TaskIds {
                tasks: tasks.iter().map(ToString::to_string).collect(),
            }),
            Operation::SetTimer { id, due_ms } => {
                O::SetTimer(v1::TimerEvent { id: id.clone(), due_ms: *due_ms })
            }
            Operation::CancelTimer { id } => O::CancelTimer(id.clone()),
            Operation::Respond { request, answer } => {
                O::Respond(v1::Respond { request: *request, answer: Some(answer.into()) })
            }
            Operation::CallAgain => O::CallAgain(v1::Empty {}),
            Operation::SendMessage(message) => O::SendMessage(message.into()),
            Operation::ShutdownExecutor { agent, executor } => {
                O::ShutdownExecutor(v1::ExecutorName {
                    agent: agent.0,
                    executor: executor.to_string(),
                })
            }
        };
        Self { operation: Some(operation) }
    }
}

impl TryFrom<v1::Operation> for Operation {
    type Error = WireError;
    fn try_from(operation: v1::Operation) -> Result<Self, WireError> {
        use v1::operation::Operation as O;
        Ok(match operation.operation.ok_or_else(|| WireError::missing("operation"))? {
            O::Accept(accept) => Self::Accept {
                offers: offer_ids(accept.offers),
                launches: members(accept.launches, &accept.groups)?,
                filters: Filters { refuse_ms: accept.refuse_ms },
                gang: accept.gang,
            },
            O::Decline(decline) => Self::Decline {
                offers: offer_ids(decline.offers),
                filters: Filters { refuse_ms: decline.refuse_ms },
            },
            O::Revive(v1::Empty {}) => Self::Revive,
            O::Suppress(v1::Empty {}) => Self::Suppress,
            O::Request(requests) => Self::Request { requests: requests.try_into()? },
            O::Kill(kill) => Self::Kill {
                task: kill.task.try_into().map_err(at("kill.task"))?,
                grace_ms: kill.grace_ms,
            },
            O::Reconcile(ids) => Self::Reconcile {
                tasks: ids
                    .tasks
                    .into_iter()
                    .map(|id| id.try_into().map_err(at("reconcile.tasks")))
                    .collect::<Result<_, _>>()?,
            },
            O::SetTimer(timer) => {
                Self::SetTimer { id: checked_key("timer.id", timer.id)?, due_ms: timer.due_ms }
            }
            O::CancelTimer(id) => Self::CancelTimer { id: checked_key("timer.id", id)? },
            O::Respond(respond) => Self::Respond {
                request: respond.request,
                answer: respond
                    .answer
                    .ok_or_else(|| WireError::missing("respond.answer"))?
                    .try_into()?,
            },
            O::CallAgain(v1::Empty {}) => Self::CallAgain,
            O::SendMessage(message) => Self::SendMessage(message.try_into()?),
            O::ShutdownExecutor(name) => Self::ShutdownExecutor {
                agent: AgentId(name.agent),
                executor: name.executor.try_into().map_err(at("shutdown-executor.executor"))?,
            },
        })
    }
}

fn checked_key(field: &'static str, key: String) -> Result<String, WireError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(WireError::new(field, format!("1 to {KEY_BYTES_MAX} bytes")));
    }
    Ok(key)
}

impl From<&Consumed> for v1::Consumed {
    fn from(consumed: &Consumed) -> Self {
        use v1::consumed::Consumed as C;
        let consumed = match consumed {
            Consumed::Update { task, sequence } => {
                C::Update(v1::ConsumedUpdate { task: task.to_string(), sequence: *sequence })
            }
            Consumed::Timer { id, due_ms } => {
                C::Timer(v1::TimerEvent { id: id.clone(), due_ms: *due_ms })
            }
            Consumed::Config { version } => C::Config(*version),
        };
        Self { consumed: Some(consumed) }
    }
}

impl TryFrom<v1::Consumed> for Consumed {
    type Error = WireError;
    fn try_from(consumed: v1::Consumed) -> Result<Self, WireError> {
        use v1::consumed::Consumed as C;
        Ok(match consumed.consumed.ok_or_else(|| WireError::missing("consumed"))? {
            C::Update(update) => Self::Update {
                task: update.task.try_into().map_err(at("consumed.task"))?,
                sequence: update.sequence,
            },
            C::Timer(timer) => {
                Self::Timer { id: checked_key("consumed.timer", timer.id)?, due_ms: timer.due_ms }
            }
            C::Config(version) => Self::Config { version },
        })
    }
}

impl From<&KeyWrite> for v1::KeyWrite {
    fn from(write: &KeyWrite) -> Self {
        Self { key: write.key.clone(), value: write.value.clone() }
    }
}

impl TryFrom<v1::KeyWrite> for KeyWrite {
    type Error = WireError;
    fn try_from(write: v1::KeyWrite) -> Result<Self, WireError> {
        if write.value.as_ref().is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
            return Err(WireError::new("writes.value", format!("at most {VALUE_BYTES_MAX} bytes")));
        }
        Ok(Self { key: checked_key("writes.key", write.key)?, value: write.value })
    }
}

impl From<&Turn> for v1::Turn {
    fn from(turn: &Turn) -> Self {
        Self {
            framework: turn.header.framework.0,
            epoch: turn.header.epoch.0,
            number: turn.header.number.0,
            time_ms: turn.header.time_ms,
            consumed: turn.consumed.iter().map(Into::into).collect(),
            operations: turn.operations.iter().map(Into::into).collect(),
            writes: turn.writes.iter().map(Into::into).collect(),
            specs: turn
                .specs
                .iter()
                .map(|(digest, encoded)| v1::SpecBytes {
                    digest: digest.0.to_vec(),
                    encoded: encoded.clone(),
                })
                .collect(),
            migration: turn.migration.map(|step| v1::MigrationStep { done: step.done }),
            requests: Vec::new(),
            cost: None,
        }
    }
}

impl v1::Turn {
    /// Which turn it is, without looking at its content.
    #[must_use]
    pub const fn header(&self) -> TurnHeader {
        TurnHeader {
            framework: FrameworkId(self.framework),
            epoch: Epoch(self.epoch),
            number: TurnNumber(self.number),
            time_ms: self.time_ms,
        }
    }
}

impl TryFrom<v1::Turn> for Turn {
    type Error = WireError;
    fn try_from(turn: v1::Turn) -> Result<Self, WireError> {
        if turn.operations.len() > TURN_OPERATIONS_MAX {
            return Err(WireError::new("operations", format!("at most {TURN_OPERATIONS_MAX}")));
        }
        let header = turn.header();
        Ok(Self {
            header,
            consumed: turn.consumed.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            operations: turn
                .operations
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
            writes: turn.writes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            specs: turn
                .specs
                .into_iter()
                .map(|spec| {
                    let digest = Digest::from_slice(&spec.digest).map_err(at("specs.digest"))?;
                    if Digest::of(&spec.encoded) != digest {
                        return Err(WireError::new("specs.digest", "is not that of the bytes"));
                    }
                    Ok((digest, spec.encoded))
                })
                .collect::<Result<_, _>>()?,
            migration: turn.migration.map(|step| MigrationStep { done: step.done }),
        })
    }
}

impl From<&TurnOutcome> for v1::TurnOutcome {
    fn from(outcome: &TurnOutcome) -> Self {
        use v1::turn_outcome::Outcome as O;
        let outcome = match outcome {
            TurnOutcome::Committed { next } => O::Next(next.0),
            TurnOutcome::Refused(TurnRefusal::WrongEpoch { given, current }) => {
                O::WrongEpoch(v1::WrongEpoch { given: given.0, current: current.0 })
            }
            TurnOutcome::Refused(TurnRefusal::WrongNumber { given, expected }) => {
                O::WrongNumber(v1::WrongNumber {
                    given: given.0,
                    expected: expected.0,
                    former_leader: false,
                })
            }
            // Whoever does not know the mark builds the instance anew, too.
            TurnOutcome::Refused(TurnRefusal::FormerLeader { number }) => {
                O::WrongNumber(v1::WrongNumber {
                    given: number.0,
                    expected: number.0,
                    former_leader: true,
                })
            }
            TurnOutcome::Refused(TurnRefusal::Limit { name, text }) => {
                O::Limit(v1::LimitPassed { name: name.clone(), text: text.clone() })
            }
            TurnOutcome::Refused(TurnRefusal::NoFramework) => O::NoFramework(v1::Empty {}),
        };
        Self { outcome: Some(outcome) }
    }
}

impl TryFrom<v1::TurnOutcome> for TurnOutcome {
    type Error = WireError;
    fn try_from(outcome: v1::TurnOutcome) -> Result<Self, WireError> {
        use v1::turn_outcome::Outcome as O;
        let refusal = match outcome.outcome.ok_or_else(|| WireError::missing("outcome"))? {
            O::Next(next) => return Ok(Self::Committed { next: TurnNumber(next) }),
            O::WrongEpoch(wrong) => TurnRefusal::WrongEpoch {
                given: Epoch(wrong.given),
                current: Epoch(wrong.current),
            },
            O::WrongNumber(wrong) if wrong.former_leader => {
                TurnRefusal::FormerLeader { number: TurnNumber(wrong.given) }
            }
            O::WrongNumber(wrong) => TurnRefusal::WrongNumber {
                given: TurnNumber(wrong.given),
                expected: TurnNumber(wrong.expected),
            },
            O::Limit(limit) => TurnRefusal::Limit { name: limit.name, text: limit.text },
            O::NoFramework(v1::Empty {}) => TurnRefusal::NoFramework,
        };
        Ok(Self::Refused(refusal))
    }
}

same_enum!(LogLevel, LogLevel, "level", {
    Trace = Trace,
    Debug = Debug,
    Info = Info,
    Warn = Warn,
    Error = Error,
});

impl From<&LogLine> for v1::LogLine {
    fn from(line: &LogLine) -> Self {
        Self {
            at_ms: line.at_ms,
            turn: line.turn.0,
            level: v1::LogLevel::from(line.level).into(),
            target: line.target.clone(),
            text: line.text.clone(),
            fields: pairs_to_wire(&line.fields),
        }
    }
}

impl TryFrom<v1::LogLine> for LogLine {
    type Error = WireError;
    fn try_from(line: v1::LogLine) -> Result<Self, WireError> {
        Ok(Self {
            at_ms: line.at_ms,
            turn: TurnNumber(line.turn),
            level: line.level().try_into()?,
            target: line.target,
            text: line.text,
            fields: pairs_from_wire(line.fields),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use tessera_types::{Launch, Offer, Quantities, TaskState, TaskStatus};

    fn message() -> ExecutorMessage {
        ExecutorMessage { agent: AgentId(1), executor: "e".parse().unwrap(), data: vec![1] }
    }

    fn turn() -> Turn {
        let spec = b"spec".to_vec();
        let digest = Digest::of(&spec);
        let task = || "t1".parse().unwrap();
        Turn {
            header: TurnHeader {
                framework: FrameworkId(1),
                epoch: Epoch(2),
                number: TurnNumber(3),
                time_ms: 4,
            },
            consumed: vec![
                Consumed::Update { task: task(), sequence: 5 },
                Consumed::Timer { id: "x".into(), due_ms: 6 },
                Consumed::Config { version: 2 },
            ],
            operations: vec![
                Operation::Accept {
                    offers: vec![OfferId(7)],
                    launches: vec![Member {
                        launch: Launch {
                            task: task(),
                            spec: digest,
                            args: vec!["a".into()],
                            env: vec![("k".into(), "v".into())],
                        },
                        group: 2,
                    }],
                    filters: Filters { refuse_ms: 8 },
                    gang: 3,
                },
                Operation::Decline { offers: vec![OfferId(9)], filters: Filters::default() },
                Operation::Revive,
                Operation::Suppress,
                Operation::Request { requests: vec![] },
                Operation::Kill { task: task(), grace_ms: Some(10) },
                Operation::Reconcile { tasks: vec![task()] },
                Operation::SetTimer { id: "y".into(), due_ms: 11 },
                Operation::CancelTimer { id: "z".into() },
                Operation::Respond {
                    request: 12,
                    answer: HttpAnswer { status: 200, headers: vec![], body: b"ok".to_vec() },
                },
                Operation::CallAgain,
                Operation::SendMessage(message()),
                Operation::ShutdownExecutor { agent: AgentId(1), executor: message().executor },
            ],
            writes: vec![
                KeyWrite { key: "k".into(), value: Some(vec![]) },
                KeyWrite { key: "gone".into(), value: None },
            ],
            specs: vec![(digest, spec)],
            migration: Some(MigrationStep { done: true }),
        }
    }

    #[test]
    fn turns_round_trip_through_bytes() {
        let bytes = v1::Turn::from(&turn()).encode_to_vec();
        assert_eq!(Turn::try_from(v1::Turn::decode(&*bytes).unwrap()), Ok(turn()));
    }

    #[test]
    fn bad_turns_are_refused_by_field() {
        type Edit = fn(&mut v1::Turn);
        let cases: [(&str, Edit); 7] = [
            ("accept.groups", |t| {
                if let Some(v1::operation::Operation::Accept(accept)) = &mut t.operations[0].operation {
                    accept.groups.push(1);
                }
            }),
            ("specs.digest", |t| t.specs[0].encoded.push(0)),
            ("writes.key", |t| t.writes[0].key.clear()),
            ("writes.value", |t| t.writes[0].value = Some(vec![0; VALUE_BYTES_MAX + 1])),
            ("operation", |t| t.operations.push(v1::Operation::default())),
            ("operations", |t| {
                let again = v1::Operation::from(&Operation::CallAgain);
                t.operations.resize(TURN_OPERATIONS_MAX + 1, again);
            }),
            ("consumed", |t| t.consumed.push(v1::Consumed::default())),
        ];
        for (field, edit) in cases {
            let mut bad = v1::Turn::from(&turn());
            edit(&mut bad);
            assert_eq!(Turn::try_from(bad).unwrap_err().field, field);
        }
    }

    #[test]
    fn events_and_outcomes_round_trip() {
        let status =
            TaskStatus::new("t".parse().unwrap(), AgentId(1), TaskState::Running, 5);
        let available = Quantities { cpus_milli: 1, mem_mib: 2, disk_mib: 3 }.into();
        for event in [
            Event::Update { sequence: 1, status },
            Event::Offers(vec![Offer { id: OfferId(1), agent: AgentId(2), available, revocable: false }]),
            Event::Rescinded(vec![OfferId(1)]),
            Event::Timer { id: "t".into(), due_ms: 1 },
            Event::Http(HttpRequest { id: 1, method: "GET".into(), ..Default::default() }),
            Event::Again,
            Event::ConfigChanged { version: 2, config: vec![("a".into(), "b".into())] },
            Event::StateChanged {
                count: 3,
                writes: vec![KeyWrite { key: "k".into(), value: None }],
            },
            Event::Message(message()),
            Event::ExecutorFailed {
                agent: AgentId(1),
                executor: message().executor,
                message: "m".into(),
            },
        ] {
            assert_eq!(Event::try_from(v1::Event::from(&event)), Ok(event));
        }
        for outcome in [
            TurnOutcome::Committed { next: TurnNumber(2) },
            TurnOutcome::Refused(TurnRefusal::NoFramework),
            TurnOutcome::Refused(TurnRefusal::FormerLeader { number: TurnNumber(7) }),
            TurnOutcome::Refused(TurnRefusal::WrongEpoch { given: Epoch(1), current: Epoch(2) }),
        ] {
            assert_eq!(TurnOutcome::try_from(v1::TurnOutcome::from(&outcome)), Ok(outcome));
        }
    }
}
