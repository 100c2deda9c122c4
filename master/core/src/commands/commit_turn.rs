//! Commit a scheduler's turn as one transaction.
//!
//! Invariants: refused as a whole only for the framework, the epoch, the number or a limit; then nothing
//! has changed. Otherwise every operation has its own outcome. A turn that was committed is recognised
//! by its hash and answered the same way again. Specs without live tasks are dropped only here, so that
//! a leader that leaves out known specs from the next turn can rely on them.

use super::kill_task::{grace_ms, intend};
use super::launch;
use super::upgrade_framework::restart;
use crate::apply::{Apply, ApplyError, Dirty};
use crate::codec;
use crate::effect::{CommandResult, Effect};
use crate::generation::{self, Layer};
use crate::lifecycle::VersionOutcome;
use crate::limits::{ANSWERS_MAX, SPECS_BYTES_MAX, SPECS_MAX, TURN_STEPS_MAX};
use crate::rows::{self, RowsError};
use crate::state::{AnswerKey, Framework, Spec};
use tessera_types::TraceId;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tessera_types::limits::{BATCH_EVENTS_MAX, DURATION_MAX_MS, KEY_BYTES_MAX};
use tessera_types::{
    AgentId, Consumed, Digest, EffectiveLimits, Epoch, ExecutorId, FrameworkId, HttpAnswer,
    KeyWrite, LimitName, Reason, ResourceRequest, TaskId, TaskSpec, TaskState, TaskStatus, TurnNumber,
    TurnOutcome, TurnRefusal,
};
use tessera_wire::v1::planned_operation::Operation as Planned;
use tessera_wire::{WireError, decode_spec, v1};

fn limit(name: &str, text: impl Into<String>) -> TurnRefusal {
    TurnRefusal::Limit { name: name.to_owned(), text: text.into() }
}

fn malformed(error: &WireError) -> TurnRefusal {
    limit(error.field, error.rule.clone())
}

/// Check what needs no state: the bounds of one turn. The leader calls it before it proposes.
pub(crate) fn validate(
    turn: &v1::CommitTurn,
    limits: &EffectiveLimits,
) -> Result<(), TurnRefusal> {
    let bound = |name: &str, found: usize, max: usize| {
        if found > max {
            return Err(limit(name, format!("at most {max} per turn, not {found}")));
        }
        Ok(())
    };
    let table = |name: LimitName, found| bound(name.row().name, found, limits.size(name));
    table(LimitName::TurnKeys, turn.writes.len())?;
    let bytes = turn.writes.iter().map(|w| w.key.len() + w.value.as_ref().map_or(0, Vec::len));
    table(LimitName::TurnStateBytes, bytes.sum())?;
    table(LimitName::TurnSpecs, turn.specs.len())?;
    let bytes = turn.specs.iter().map(|spec| spec.encoded.len()).sum();
    table(LimitName::TurnSpecBytes, bytes)?;
    bound("TURN_STEPS_MAX", turn.operations.len(), TURN_STEPS_MAX)?;
    bound("BATCH_EVENTS_MAX", turn.consumed.len(), BATCH_EVENTS_MAX)?;
    bound("BATCH_EVENTS_MAX", turn.opened.len(), BATCH_EVENTS_MAX)?;
    let keys: BTreeSet<&str> = turn.writes.iter().map(|write| write.key.as_str()).collect();
    if keys.len() != turn.writes.len() {
        return Err(limit("writes.key", "each key stands once in a turn"));
    }
    Ok(())
}

/// A turn whose content has the right form.
struct Checked {
    id: FrameworkId,
    number: TurnNumber,
    epoch: Epoch,
    hash: Vec<u8>,
    consumed: Vec<Consumed>,
    operations: Vec<Step>,
    writes: Vec<KeyWrite>,
    specs: Vec<(Digest, Vec<u8>, TaskSpec)>,
    /// It is the last one of a migration.
    migrated: bool,
    opened: Vec<v1::OpenedRequest>,
    closed: Vec<u64>,
    trace: Option<TraceId>,
}

enum Step {
    /// Launches that stand or fall together.
    Launch(Vec<launch::Planned>),
    EndExecutor { agent: AgentId, executor: ExecutorId },
    Kill { task: TaskId, grace_ms: Option<u64> },
    Suppress(bool),
    Request(Vec<ResourceRequest>),
    SetTimer { id: String, due_ms: u64 },
    CancelTimer(String),
    Answer { request: u64, answer: HttpAnswer, key: Option<(AnswerKey, Vec<u8>)> },
}

/// Carry it out.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: v1::CommitTurn,
) -> Result<CommandResult, ApplyError> {
    let outcome = match commit(apply, command)? {
        Ok(next) => TurnOutcome::Committed { next },
        Err(refusal) => TurnOutcome::Refused(refusal),
    };
    Ok(CommandResult::Turn(outcome))
}

fn commit(
    apply: &mut Apply<'_>,
    command: v1::CommitTurn,
) -> Result<Result<TurnNumber, TurnRefusal>, ApplyError> {
    let id = FrameworkId(command.framework);
    let Some(framework) = apply.state.frameworks.get(&id).filter(|f| !f.removing) else {
        return Ok(Err(TurnRefusal::NoFramework));
    };
    let (epoch, number) = (Epoch(command.epoch), TurnNumber(command.number));
    if epoch != framework.epoch {
        return Ok(Err(TurnRefusal::WrongEpoch { given: epoch, current: framework.epoch }));
    }
    let expected = framework.next_turn();
    if epoch == framework.last_turn_epoch
        && number == framework.last_turn
        && command.turn_hash == framework.last_turn_hash
    {
        return Ok(Ok(expected));
    }
    if number != expected {
        return Ok(Err(TurnRefusal::WrongNumber { given: number, expected }));
    }
    let limits = apply.state.limits_of(&framework.role);
    if let Err(refusal) = validate(&command, &limits) {
        return Ok(Err(refusal));
    }
    if let Err(refusal) = check_migration(framework, &command) {
        return Ok(Err(refusal));
    }
    let turn = match check(id, command) {
        Ok(turn) => turn,
        Err(error) => return Ok(Err(malformed(&error))),
    };
    if let Err(refusal) = check_specs(apply, &turn).and_then(|()| check_operations(apply, &turn, &limits))
    {
        return Ok(Err(refusal));
    }
    let sizes = match check_writes(apply, &turn, &limits)? {
        Ok(sizes) => sizes,
        Err(refusal) => return Ok(Err(refusal)),
    };
    perform(apply, turn, sizes)?;
    Ok(Ok(TurnNumber(expected.0 + 1)))
}

/// A turn of a migration changes state and nothing else, and there is no other turn while one is under
/// way.
fn check_migration(framework: &Framework, turn: &v1::CommitTurn) -> Result<(), TurnRefusal> {
    match (framework.migrating(), &turn.migration) {
        (true, None) => Err(limit("migration", "the state is being migrated; only that is done")),
        (false, Some(_)) => Err(limit("migration", "none is under way")),
        (true, Some(_)) if !turn.operations.is_empty() || !turn.consumed.is_empty() => {
            Err(limit("migration", "its turns have no operations and consume nothing"))
        }
        (true, Some(_)) | (false, None) => Ok(()),
    }
}

fn check(id: FrameworkId, command: v1::CommitTurn) -> Result<Checked, WireError> {
    if command.turn_hash.len() != 32 {
        return Err(WireError::new("turn_hash", "32 bytes"));
    }
    let mut operations = Vec::with_capacity(command.operations.len());
    for operation in command.operations {
        let operation = operation.operation.ok_or_else(|| WireError::missing("operations"))?;
        operations.push(step(id, operation)?);
    }
    let operations = joined(operations);
    let mut specs = Vec::with_capacity(command.specs.len());
    for spec in command.specs {
        let digest = Digest::from_slice(&spec.digest)
            .map_err(|error| WireError::new("specs.digest", error.to_string()))?;
        if Digest::of(&spec.encoded) != digest {
            return Err(WireError::new("specs.digest", "is not that of the bytes"));
        }
        let decoded = decode_spec(&spec.encoded)?;
        specs.push((digest, spec.encoded, decoded));
    }
    let consumed = command.consumed.into_iter().map(TryInto::try_into);
    let writes = command.writes.into_iter().map(TryInto::try_into);
    Ok(Checked {
        id,
        migrated: command.migration.is_some_and(|step| step.done),
        opened: command.opened,
        closed: command.closed,
        trace: TraceId::of_bytes(&command.trace),
        number: TurnNumber(command.number),
        epoch: Epoch(command.epoch),
        hash: command.turn_hash,
        consumed: consumed.collect::<Result<_, WireError>>()?,
        operations,
        writes: writes.collect::<Result<_, WireError>>()?,
        specs,
    })
}

/// Launches of one unit become one step, in the place of the first.
fn joined(steps: Vec<Step>) -> Vec<Step> {
    let mut joined: Vec<Step> = Vec::with_capacity(steps.len());
    let mut places = BTreeMap::new();
    for step in steps {
        match step {
            Step::Launch(planned) => {
                let unit = planned.first().and_then(launch::Planned::unit);
                let place = unit.map_or(joined.len(), |unit| {
                    *places.entry(unit).or_insert(joined.len())
                });
                match joined.get_mut(place) {
                    Some(Step::Launch(members)) => members.extend(planned),
                    _ => joined.push(Step::Launch(planned)),
                }
            }
            step => joined.push(step),
        }
    }
    joined
}

fn step(framework: FrameworkId, operation: Planned) -> Result<Step, WireError> {
    let timer = |id: String| {
        if id.is_empty() || id.len() > KEY_BYTES_MAX {
            return Err(WireError::new("timer.id", format!("1 to {KEY_BYTES_MAX} bytes")));
        }
        Ok(id)
    };
    Ok(match operation {
        Planned::Launch(planned) => Step::Launch(vec![launch::decode(planned)?]),
        Planned::Kill(kill) => Step::Kill {
            task: TaskId::try_from(kill.task)
                .map_err(|error| WireError::new("kill.task", error.to_string()))?,
            grace_ms: kill.grace_ms,
        },
        Planned::EndExecutor(end) => Step::EndExecutor {
            agent: AgentId(end.agent),
            executor: ExecutorId::try_from(end.executor)
                .map_err(|error| WireError::new("end_executor.executor", error.to_string()))?,
        },
        Planned::Suppress(suppress) => Step::Suppress(suppress),
        Planned::Request(requests) => Step::Request(requests.try_into()?),
        Planned::SetTimer(set) => Step::SetTimer { id: timer(set.id)?, due_ms: set.due_ms },
        Planned::CancelTimer(id) => Step::CancelTimer(timer(id)?),
        Planned::Answer(planned) => Step::Answer {
            request: planned.request,
            answer: planned
                .answer
                .ok_or_else(|| WireError::missing("answer"))?
                .try_into()?,
            key: (!planned.idempotency_key.is_empty()).then_some((
                AnswerKey { framework, principal: planned.principal, key: planned.idempotency_key },
                planned.request_hash,
            )),
        },
    })
}

fn check_specs(apply: &Apply<'_>, turn: &Checked) -> Result<(), TurnRefusal> {
    let Some(owner) = apply.state.frameworks.get(&turn.id) else { return Ok(()) };
    let new = turn.specs.iter().filter(|(digest, ..)| !owner.specs.contains_key(digest));
    let (count, bytes) = new.fold((0, 0), |(n, sum), (_, encoded, _)| (n + 1, sum + encoded.len()));
    if owner.specs.len() + count > SPECS_MAX {
        return Err(limit("SPECS_MAX", format!("at most {SPECS_MAX} specs with live tasks")));
    }
    if owner.spec_bytes() + bytes > SPECS_BYTES_MAX {
        return Err(limit("SPECS_BYTES_MAX", format!("at most {SPECS_BYTES_MAX} bytes of specs")));
    }
    Ok(())
}

fn check_operations(
    apply: &Apply<'_>,
    turn: &Checked,
    limits: &EffectiveLimits,
) -> Result<(), TurnRefusal> {
    let Some(owner) = apply.state.frameworks.get(&turn.id) else { return Ok(()) };
    let latest = apply.time_ms.saturating_add(DURATION_MAX_MS);
    let (mut new, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for consumed in &turn.consumed {
        if let Consumed::Timer { id, due_ms } = consumed
            && owner.timers.get(id) == Some(due_ms)
        {
            gone.insert(id.as_str());
        }
    }
    for step in &turn.operations {
        match step {
            Step::SetTimer { id, due_ms } => {
                if *due_ms > latest {
                    return Err(limit("DURATION_MAX_MS", "a timer fires within 365 days"));
                }
                if owner.timers.contains_key(id) {
                    gone.remove(id.as_str());
                } else {
                    new.insert(id.as_str());
                }
            }
            Step::CancelTimer(id) => {
                if owner.timers.contains_key(id) {
                    gone.insert(id.as_str());
                } else {
                    new.remove(id.as_str());
                }
            }
            Step::Launch(_)
            | Step::EndExecutor { .. }
            | Step::Kill { .. }
            | Step::Suppress(_)
            | Step::Request(_)
            | Step::Answer { .. } => {}
        }
    }
    let (name, max) = (LimitName::Timers, limits.size(LimitName::Timers));
    if new.len() > gone.len() && owner.timers.len() + new.len() - gone.len() > max {
        return Err(limit(name.row().name, format!("at most {max} timers")));
    }
    Ok(())
}

/// What the totals of the state are after the writes. A limit that was lowered below what is there
/// refuses what grows, not what shrinks.
fn check_writes(
    apply: &Apply<'_>,
    turn: &Checked,
    limits: &EffectiveLimits,
) -> Result<Result<(u64, u64), TurnRefusal>, RowsError> {
    let Some(owner) = apply.state.frameworks.get(&turn.id) else { return Ok(Ok((0, 0))) };
    let (mut bytes, mut keys) = (owner.state_bytes, owner.state_keys);
    for write in &turn.writes {
        let key = rows::owned_key(turn.id, write.key.as_bytes());
        if let Some(old) = generation::get(&apply.rows, owner.layer(), &key)? {
            bytes = bytes.saturating_sub((write.key.len() + old.len()) as u64);
            keys = keys.saturating_sub(1);
        }
        if let Some(value) = &write.value {
            bytes += (write.key.len() + value.len()) as u64;
            keys += 1;
        }
    }
    let totals = [
        (LimitName::StateBytes, bytes, owner.state_bytes, "bytes"),
        (LimitName::StateKeys, keys, owner.state_keys, "keys"),
    ];
    for (name, after, before, what) in totals {
        let max = limits.get(name);
        if after > max && after > before {
            return Ok(Err(limit(name.row().name, format!("at most {max} {what} of state"))));
        }
    }
    Ok(Ok((bytes, keys)))
}

fn perform(apply: &mut Apply<'_>, turn: Checked, sizes: (u64, u64)) -> Result<(), ApplyError> {
    let id = turn.id;
    apply.trace = turn.trace;
    let mut touched: BTreeMap<Digest, ()> = BTreeMap::new();
    if !turn.operations.is_empty() || !turn.consumed.is_empty() {
        end_trial(apply, id);
    }
    let mut layer = Layer::Values;
    if let Some(owner) = apply.state.frameworks.get_mut(&id) {
        for (digest, encoded, spec) in turn.specs {
            owner.specs.entry(digest).or_insert_with(|| Spec {
                encoded: encoded.into(),
                spec: Arc::new(spec),
                uses: 0,
            });
            touched.insert(digest, ());
        }
        owner.last_turn = turn.number;
        owner.last_turn_epoch = turn.epoch;
        owner.last_turn_hash = turn.hash;
        (owner.state_bytes, owner.state_keys) = sizes;
        owner.failures.in_a_row = 0;
        layer = owner.layer();
    }
    for digest in touched.into_keys() {
        apply.mark(Dirty::Spec(id, digest));
    }
    apply.mark(Dirty::Framework(id));
    for consumed in turn.consumed {
        match consumed {
            Consumed::Update { task, sequence } => apply.consume_update(id, &task, sequence),
            Consumed::Timer { id: timer, due_ms } => consume_timer(apply, id, timer, due_ms),
            Consumed::Config { version } => {
                if let Some(owner) = apply.state.frameworks.get_mut(&id) {
                    owner.config_seen = owner.config_seen.max(version.min(owner.config_version));
                }
            }
        }
    }
    for write in turn.writes {
        let key = rows::owned_key(id, write.key.as_bytes());
        generation::write(&mut apply.rows, layer, key, write.value);
    }
    if turn.migrated {
        begin_trial(apply, id);
    }
    for step in turn.operations {
        operate(apply, id, step)?;
    }
    for request in turn.closed {
        apply.close_request(id, request);
    }
    apply.keep_open(id, turn.opened);
    drop_specs(apply, id);
    apply.effect(Effect::Framework(id));
    Ok(())
}

/// The state is carried over: the new component begins its trial as a new instance.
fn begin_trial(apply: &mut Apply<'_>, id: FrameworkId) {
    let Some(owner) = apply.state.frameworks.get_mut(&id) else { return };
    let Some(upgrade) = &mut owner.upgrade else { return };
    upgrade.migrating = false;
    if let Some(version) = owner.versions.last_mut() {
        version.outcome = VersionOutcome::Trial;
        owner.state_version = version.writes_state;
    }
    let (agent, state) = (owner.agent, owner.state_version);
    restart(apply, id);
    let text = format!("the state has version {state}");
    apply.event("framework.migrated", Some(id), None, agent, &text);
}

/// The new component has done what cannot be taken back: the upgrade is final.
fn end_trial(apply: &mut Apply<'_>, id: FrameworkId) {
    let Some(owner) = apply.state.frameworks.get_mut(&id) else { return };
    if owner.upgrade.take_if(|upgrade| !upgrade.migrating).is_none() {
        return;
    }
    owner.merging = true;
    if let Some(version) = owner.versions.last_mut() {
        version.outcome = VersionOutcome::Running;
        owner.state_version = version.writes_state;
    }
    let (agent, version) = (owner.agent, owner.version());
    apply.event("framework.upgraded", Some(id), None, agent, &format!("version {version}"));
}

fn operate(apply: &mut Apply<'_>, framework: FrameworkId, step: Step) -> Result<(), ApplyError> {
    match step {
        Step::Launch(unit) => launch::run(apply, framework, unit)?,
        Step::EndExecutor { agent, executor } => {
            let tasks = apply.state.executor(framework, agent, &executor);
            let tasks = tasks.map(|executor| executor.tasks.clone()).unwrap_or_default();
            for task in tasks {
                let grace_ms = grace_ms(apply.state, framework, &task, None);
                intend(apply, framework, &task, grace_ms, Reason::SchedulerKill);
            }
        }
        Step::Kill { task, grace_ms: asked } => {
            if apply.state.task(framework, &task).is_none() {
                let status = TaskStatus::new(
                    task,
                    AgentId(0),
                    TaskState::Unknown,
                    apply.time_ms,
                )
                .because(Reason::Reconciliation, "the task to kill is not known, or has ended");
                apply.effect(Effect::Notice { framework, status });
                return Ok(());
            }
            let grace_ms = grace_ms(apply.state, framework, &task, asked);
            intend(apply, framework, &task, grace_ms, Reason::SchedulerKill);
        }
        Step::Suppress(suppress) => {
            if let Some(owner) = apply.state.frameworks.get_mut(&framework) {
                owner.suppressed = suppress;
            }
        }
        Step::Request(requests) => {
            if let Some(owner) = apply.state.frameworks.get_mut(&framework) {
                owner.requests = requests;
            }
        }
        Step::SetTimer { id, due_ms } => set_timer(apply, framework, id, Some(due_ms)),
        Step::CancelTimer(id) => set_timer(apply, framework, id, None),
        Step::Answer { request, answer, key } => {
            if let Some((key, request_hash)) = key {
                store_answer(apply, key, request_hash, &answer);
            }
            apply.close_request(framework, request);
            apply.effect(Effect::Answer { request, answer });
        }
    }
    Ok(())
}

fn set_timer(apply: &mut Apply<'_>, framework: FrameworkId, id: String, due_ms: Option<u64>) {
    let Some(owner) = apply.state.frameworks.get_mut(&framework) else { return };
    let before = match due_ms {
        Some(due_ms) => {
            owner.due.insert((due_ms, id.clone()));
            owner.timers.insert(id.clone(), due_ms)
        }
        None => owner.timers.remove(&id),
    };
    if let Some(before) = before.filter(|before| Some(*before) != due_ms) {
        owner.due.remove(&(before, id.clone()));
    }
    apply.mark(Dirty::Timer(framework, id));
}

fn consume_timer(apply: &mut Apply<'_>, framework: FrameworkId, id: String, due_ms: u64) {
    let set = apply.state.frameworks.get(&framework).and_then(|f| f.timers.get(&id));
    if set == Some(&due_ms) {
        set_timer(apply, framework, id, None);
    }
}

fn store_answer(apply: &mut Apply<'_>, key: AnswerKey, request_hash: Vec<u8>, answer: &HttpAnswer) {
    if apply.state.answer_numbers.contains_key(&key) {
        return;
    }
    let number = apply.state.meta.answers_next;
    apply.state.meta.answers_next += 1;
    let row = v1::AnswerRow {
        version: codec::ROW_VERSION,
        framework: key.framework.0,
        principal: key.principal.clone(),
        idempotency_key: key.key.clone(),
        request_hash,
        answer: Some(answer.into()),
    };
    apply.rows.put(rows::ANSWERS, number.to_be_bytes().to_vec(), row.encode_to_vec());
    apply.state.answer_numbers.insert(key.clone(), number);
    apply.state.answers.insert(number, key);
    while apply.state.answers.len() > ANSWERS_MAX {
        let Some(oldest) = apply.state.answers.keys().next().copied() else { break };
        apply.drop_answer(oldest);
    }
}

fn drop_specs(apply: &mut Apply<'_>, framework: FrameworkId) {
    let Some(owner) = apply.state.frameworks.get_mut(&framework) else { return };
    let unused: Vec<Digest> =
        owner.specs.iter().filter(|(_, spec)| spec.uses == 0).map(|(digest, _)| *digest).collect();
    for digest in &unused {
        owner.specs.remove(digest);
    }
    for digest in unused {
        apply.mark(Dirty::Spec(framework, digest));
    }
}
