//! The turn while it is being made: driver calls are checked here and enqueued.
//!
//! Invariants: what is refused has enqueued nothing; a draft never exceeds the limits of a turn, so
//! that whatever it becomes fits into one message and one log entry; a launch names a spec that this
//! instance has defined. This file must never know the contract's generated types, and never decides
//! what becomes of an operation.

use crate::limits::{LimitPassed, Limits};
use std::collections::{BTreeMap, BTreeSet};
use tessera_types::{
    AgentId, Digest, ExecutorId, ExecutorMessage, Filters, HttpAnswer, InvalidSpec, Launch, LimitName,
    Member, OfferId, Operation, ResourceRequest, ResourcesError, TaskId, TaskSpec, TimeMs, limits, validate_launch,
    validate_requests, validate_spec,
};

/// Why a call was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// An argument breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// The thing named does not exist.
    #[error("{0}")]
    NotFound(String),
    /// It may not be called now.
    #[error("{0}")]
    Denied(String),
    /// A limit would be passed.
    #[error(transparent)]
    Limit(#[from] LimitPassed),
    /// This version does not have it.
    #[error("{0} is not supported by this version")]
    Unsupported(String),
}

impl From<InvalidSpec> for Refused {
    fn from(invalid: InvalidSpec) -> Self {
        match invalid {
            InvalidSpec::Resources(ResourcesError::Unsupported { name, what }) => {
                Self::Unsupported(format!("resource {name:?}: {what}"))
            }
            other => Self::Invalid(other.to_string()),
        }
    }
}

pub(crate) fn invalid<T>(field: &str, rule: &str) -> Result<T, Refused> {
    Err(Refused::Invalid(format!("{field}: {rule}")))
}

/// A limit with a row in the table.
pub(crate) fn limit<T>(name: LimitName, max: usize) -> Result<T, Refused> {
    Err(LimitPassed::of(name, format!("at most {max}")).into())
}

/// A limit that is the same for everybody.
pub(crate) fn fixed<T>(name: &'static str, max: usize) -> Result<T, Refused> {
    Err(LimitPassed::new(name, format!("at most {max}")).into())
}

/// Places among a turn's operations that are kept for answers to open requests: who floods must still
/// be able to say so.
const ANSWERS_RESERVED: usize = 64;

#[derive(Debug)]
struct Defined {
    spec: TaskSpec,
    encoded: Vec<u8>,
    /// Turn in which it was defined or launched last.
    used: u64,
}

/// Task specs that an instance has defined, the least lately used ones forgotten when there are too
/// many.
#[derive(Debug, Default)]
pub(crate) struct SpecBook {
    specs: BTreeMap<Digest, Defined>,
    bytes: usize,
    turn: u64,
}

impl SpecBook {
    fn contains(&mut self, digest: &Digest) -> bool {
        let known = self.specs.get_mut(digest);
        known.map(|defined| defined.used = self.turn).is_some()
    }

    /// Make room for one more spec. A quarter of the book goes at once, so that the search for the
    /// oldest is paid rarely; what this turn used stays, which is a small part by the limits of turns.
    fn make_room(&mut self, encoded: usize, limits: &Limits) {
        if self.specs.len() < limits.specs && self.bytes + encoded <= limits.spec_bytes {
            return;
        }
        let old = self
            .specs
            .iter()
            .filter(|(_, defined)| defined.used < self.turn);
        let mut oldest: Vec<(u64, Digest)> = old.map(|(digest, d)| (d.used, *digest)).collect();
        oldest.sort_unstable();
        let (specs, bytes) = (limits.specs / 4 * 3, limits.spec_bytes / 4 * 3);
        for (_, digest) in oldest {
            if self.specs.len() < specs && self.bytes + encoded <= bytes {
                return;
            }
            if let Some(gone) = self.specs.remove(&digest) {
                self.bytes -= gone.encoded.len();
            }
        }
    }
}

/// The launches of one accept, in order, with the task groups that they are in.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    members: Vec<Member>,
    /// Groups so far.
    count: u32,
}

impl Groups {
    /// A launch of its own.
    pub(crate) fn single(&mut self, launch: Launch) {
        self.members.push(launch.into());
    }

    /// Launches that are launched all or none, and end together.
    pub(crate) fn together(&mut self, launches: Vec<Launch>) -> Result<(), Refused> {
        if launches.is_empty() {
            return invalid("operations.launch-group", "at least one launch");
        }
        self.count += 1;
        let group = self.count;
        let members = launches.into_iter();
        self.members.extend(members.map(|launch| Member { launch, group }));
        Ok(())
    }
}

/// One turn under construction, and what the instance carries from turn to turn for it.
#[derive(Debug)]
pub(crate) struct Draft {
    limits: Limits,
    book: SpecBook,
    open_requests: BTreeSet<u64>,
    /// Added to `after` by `set_timer`; zero during `init`, whose turn has no time yet.
    time_ms: TimeMs,
    /// Nothing may be enqueued: the instance migrates.
    closed: bool,
    /// Task groups so far.
    groups: u32,
    /// Gangs so far.
    gangs: u32,
    /// The last gang is open: every accept belongs to it.
    in_gang: bool,
    operations: Vec<Operation>,
    /// Operations, with each launch of an accept counted.
    count: usize,
    bytes: usize,
    calls_again: bool,
    defined: usize,
    defined_bytes: usize,
    named: BTreeSet<Digest>,
    named_bytes: usize,
}

/// Operations of a finished turn, and the specs that its launches name.
pub(crate) type Finished = (Vec<Operation>, Vec<(Digest, Vec<u8>)>);

impl Draft {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            book: SpecBook::default(),
            open_requests: BTreeSet::new(),
            time_ms: 0,
            closed: false,
            groups: 0,
            gangs: 0,
            in_gang: false,
            operations: Vec::new(),
            count: 0,
            bytes: 0,
            calls_again: false,
            defined: 0,
            defined_bytes: 0,
            named: BTreeSet::new(),
            named_bytes: 0,
        }
    }

    /// From here on these limits hold; what is enqueued already stays.
    pub(crate) const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// From here on nothing may be enqueued.
    pub(crate) const fn close(&mut self) {
        self.closed = true;
    }

    /// The turn with this time begins. What `init` enqueued stays and gets the turn's time.
    pub(crate) fn begin(&mut self, time_ms: TimeMs) {
        for operation in &mut self.operations {
            if let Operation::SetTimer { due_ms, .. } = operation {
                *due_ms = due_ms.saturating_add(time_ms);
            }
        }
        self.time_ms = time_ms;
    }

    /// A request arrived; the oldest one without an answer is forgotten when there are too many.
    pub(crate) fn open_request(&mut self, id: u64) {
        self.open_requests.insert(id);
        while self.open_requests.len() > self.limits.open_requests {
            self.open_requests.pop_first();
        }
    }

    /// The turn has ended.
    pub(crate) fn finish(&mut self) -> Finished {
        (self.count, self.bytes, self.calls_again) = (0, 0, false);
        // A gang that was left open ends with its turn.
        (self.groups, self.gangs, self.in_gang) = (0, 0, false);
        (self.defined, self.defined_bytes, self.named_bytes) = (0, 0, 0);
        let operations = std::mem::take(&mut self.operations);
        let specs = std::mem::take(&mut self.named)
            .into_iter()
            .filter_map(|digest| {
                let defined = self.book.specs.get_mut(&digest)?;
                defined.used = self.book.turn;
                Some((digest, defined.encoded.clone()))
            })
            .collect();
        self.book.turn += 1;
        (operations, specs)
    }

    fn push(&mut self, operation: Operation) -> Result<(), Refused> {
        self.check_open()?;
        let count = self.count
            + match &operation {
                Operation::Accept { launches, .. } => launches.len().max(1),
                _ => 1,
            };
        let max = self.limits.turn_operations;
        let reserved = match &operation {
            Operation::Respond { .. } => 0,
            _ => self.open_requests.len().min(ANSWERS_RESERVED).min(max / 2),
        };
        if count > max - reserved {
            return limit(LimitName::TurnOperations, max);
        }
        let bytes = self.bytes + size(&operation);
        if bytes > self.limits.turn_operation_bytes {
            return limit(LimitName::TurnOperationBytes, self.limits.turn_operation_bytes);
        }
        (self.count, self.bytes) = (count, bytes);
        self.operations.push(operation);
        Ok(())
    }

    fn check_open(&self) -> Result<(), Refused> {
        if self.closed {
            let text = "a migration may use nothing but state and log";
            return Err(Refused::Denied(text.to_owned()));
        }
        Ok(())
    }

    /// Check a spec, and remember it under its digest.
    pub(crate) fn define(&mut self, spec: TaskSpec) -> Result<Digest, Refused> {
        self.check_open()?;
        validate_spec(&spec)?;
        let encoded = tessera_wire::encode_spec(&spec);
        if encoded.len() > limits::SPEC_BYTES_MAX {
            return fixed("task-spec-bytes", limits::SPEC_BYTES_MAX);
        }
        let digest = Digest::of(&encoded);
        if self.book.contains(&digest) {
            return Ok(digest);
        }
        if self.defined >= self.limits.turn_specs {
            return limit(LimitName::TurnSpecs, self.limits.turn_specs);
        }
        if self.defined_bytes + encoded.len() > self.limits.turn_spec_bytes {
            return limit(LimitName::TurnSpecBytes, self.limits.turn_spec_bytes);
        }
        self.book.make_room(encoded.len(), &self.limits);
        if self.book.specs.len() >= self.limits.specs {
            return limit(LimitName::Specs, self.limits.specs);
        }
        if self.book.bytes + encoded.len() > self.limits.spec_bytes {
            return limit(LimitName::SpecBytes, self.limits.spec_bytes);
        }
        self.defined += 1;
        self.defined_bytes += encoded.len();
        self.book.bytes += encoded.len();
        let used = self.book.turn;
        let defined = Defined {
            spec,
            encoded,
            used,
        };
        self.book.specs.insert(digest, defined);
        Ok(digest)
    }

    pub(crate) fn accept(
        &mut self,
        offers: Vec<OfferId>,
        groups: Groups,
        filters: Filters,
    ) -> Result<(), Refused> {
        check_offers(&offers)?;
        check_filters(filters)?;
        let mut named = BTreeSet::new();
        let mut named_bytes = self.named_bytes;
        let mut tasks = BTreeSet::new();
        for Member { launch, .. } in &groups.members {
            let Some(defined) = self.book.specs.get(&launch.spec) else {
                let text = format!(
                    "launch.spec: {} is not defined by this instance",
                    launch.spec
                );
                return Err(Refused::NotFound(text));
            };
            validate_launch(launch, &defined.spec)?;
            if !tasks.insert(&launch.task) {
                return invalid("launch.task", "each task is launched once");
            }
            if !self.named.contains(&launch.spec) && named.insert(launch.spec) {
                named_bytes += defined.encoded.len();
            }
        }
        if self.named.len() + named.len() > self.limits.turn_specs {
            return limit(LimitName::TurnSpecs, self.limits.turn_specs);
        }
        if named_bytes > self.limits.turn_spec_bytes {
            return limit(LimitName::TurnSpecBytes, self.limits.turn_spec_bytes);
        }
        // Groups are numbered over the whole turn.
        let mut launches = groups.members;
        for member in launches.iter_mut().filter(|member| member.group > 0) {
            member.group += self.groups;
        }
        let gang = if self.in_gang { self.gangs } else { 0 };
        self.push(Operation::Accept {
            offers,
            launches,
            filters,
            gang,
        })?;
        self.groups += groups.count;
        self.named.append(&mut named);
        self.named_bytes = named_bytes;
        Ok(())
    }

    pub(crate) fn decline(
        &mut self,
        offers: Vec<OfferId>,
        filters: Filters,
    ) -> Result<(), Refused> {
        check_offers(&offers)?;
        check_filters(filters)?;
        self.push(Operation::Decline { offers, filters })
    }

    pub(crate) fn revive(&mut self) -> Result<(), Refused> {
        self.push(Operation::Revive)
    }

    pub(crate) fn suppress(&mut self) -> Result<(), Refused> {
        self.push(Operation::Suppress)
    }

    pub(crate) fn request(&mut self, requests: Vec<ResourceRequest>) -> Result<(), Refused> {
        validate_requests(&requests).map_err(|error| Refused::Invalid(error.to_string()))?;
        self.push(Operation::Request { requests })
    }

    pub(crate) fn kill(&mut self, task: &str, grace_ms: Option<u64>) -> Result<(), Refused> {
        if grace_ms.is_some_and(|grace| grace > limits::GRACE_MAX_MS) {
            return invalid("grace-ms", &format!("at most {}", limits::GRACE_MAX_MS));
        }
        let task = task_id("task", task)?;
        self.push(Operation::Kill { task, grace_ms })
    }

    pub(crate) fn reconcile(&mut self, tasks: &[String]) -> Result<(), Refused> {
        let tasks = tasks
            .iter()
            .map(|task| task_id("tasks", task))
            .collect::<Result<_, _>>()?;
        self.push(Operation::Reconcile { tasks })
    }

    /// From here on every accept belongs to one gang.
    pub(crate) fn begin_gang(&mut self) -> Result<(), Refused> {
        self.check_open()?;
        if self.in_gang {
            return invalid("begin-group", "the group before has not ended; groups do not nest");
        }
        self.gangs += 1;
        self.in_gang = true;
        Ok(())
    }

    /// The gang is complete.
    pub(crate) fn end_gang(&mut self) -> Result<(), Refused> {
        if !std::mem::take(&mut self.in_gang) {
            return invalid("end-group", "no group has begun");
        }
        Ok(())
    }

    pub(crate) fn send(&mut self, agent: AgentId, executor: &str, data: Vec<u8>) -> Result<(), Refused> {
        let executor = executor_id(executor)?;
        if data.len() > limits::MESSAGE_DATA_BYTES_MAX {
            return fixed("message-bytes", limits::MESSAGE_DATA_BYTES_MAX);
        }
        self.push(Operation::SendMessage(ExecutorMessage {
            agent,
            executor,
            data,
        }))
    }

    pub(crate) fn shutdown_executor(&mut self, agent: AgentId, executor: &str) -> Result<(), Refused> {
        let executor = executor_id(executor)?;
        self.push(Operation::ShutdownExecutor { agent, executor })
    }

    /// "Call me again" once per turn; saying it again changes nothing.
    pub(crate) fn call_again(&mut self) -> Result<(), Refused> {
        if !self.calls_again {
            self.push(Operation::CallAgain)?;
            self.calls_again = true;
        }
        Ok(())
    }

    pub(crate) fn set_timer(&mut self, id: String, after_ms: u64) -> Result<(), Refused> {
        let due_ms = timer_due(&id, after_ms, self.time_ms)?;
        self.push(Operation::SetTimer { id, due_ms })
    }

    pub(crate) fn cancel_timer(&mut self, id: String) -> Result<(), Refused> {
        check_timer_id(&id)?;
        self.push(Operation::CancelTimer { id })
    }

    pub(crate) fn respond(&mut self, request: u64, answer: HttpAnswer) -> Result<(), Refused> {
        if !self.open_requests.contains(&request) {
            let text = format!("id: request {request} is not open in this instance");
            return Err(Refused::NotFound(text));
        }
        check_answer(&answer)?;
        self.push(Operation::Respond { request, answer })?;
        self.open_requests.remove(&request);
        Ok(())
    }
}

/// What an operation costs in a message, roughly.
fn size(operation: &Operation) -> usize {
    let pairs = |pairs: &[(String, String)]| -> usize {
        pairs
            .iter()
            .map(|(key, value)| key.len() + value.len() + 8)
            .sum()
    };
    16 + match operation {
        Operation::Accept {
            offers, launches, ..
        } => {
            let words = |args: &[String]| args.iter().map(|arg| arg.len() + 4).sum::<usize>();
            let one = |Member { launch, .. }: &Member| {
                launch.task.as_str().len() + words(&launch.args) + pairs(&launch.env) + 48
            };
            offers.len() * 10 + launches.iter().map(one).sum::<usize>()
        }
        Operation::Decline { offers, .. } => offers.len() * 10,
        Operation::Kill { task, .. } => task.as_str().len(),
        Operation::Reconcile { tasks } => tasks.iter().map(|task| task.as_str().len() + 4).sum(),
        Operation::Request { requests } => requests.iter().map(|request| request.text_bytes() + 128).sum(),
        Operation::SetTimer { id, .. } | Operation::CancelTimer { id } => id.len(),
        Operation::Respond { answer, .. } => answer.body.len() + pairs(&answer.headers),
        Operation::SendMessage(message) => message.executor.as_str().len() + message.data.len(),
        Operation::ShutdownExecutor { executor, .. } => executor.as_str().len(),
        Operation::Revive | Operation::Suppress | Operation::CallAgain => 0,
    }
}

pub(crate) fn task_id(field: &str, text: &str) -> Result<TaskId, Refused> {
    text.parse()
        .map_err(|error| Refused::Invalid(format!("{field}: {error}")))
}

fn executor_id(text: &str) -> Result<ExecutorId, Refused> {
    text.parse()
        .map_err(|error| Refused::Invalid(format!("executor: {error}")))
}

fn check_offers(offers: &[OfferId]) -> Result<(), Refused> {
    if offers.is_empty() {
        return invalid("offers", "at least one");
    }
    let distinct: BTreeSet<_> = offers.iter().collect();
    if distinct.len() != offers.len() {
        return invalid("offers", "each offer is named once");
    }
    Ok(())
}

fn check_filters(filters: Filters) -> Result<(), Refused> {
    if filters.refuse_ms > limits::DURATION_MAX_MS {
        return invalid(
            "filters.refuse-ms",
            &format!("at most {}", limits::DURATION_MAX_MS),
        );
    }
    Ok(())
}

/// When a timer that is set now is due, if it may be set.
pub(crate) fn timer_due(id: &str, after_ms: u64, now_ms: TimeMs) -> Result<TimeMs, Refused> {
    check_timer_id(id)?;
    let (min, max) = (limits::TIMER_MIN_MS, limits::DURATION_MAX_MS);
    if !(min..=max).contains(&after_ms) {
        return invalid("after-ms", &format!("{min} to {max}"));
    }
    Ok(now_ms.saturating_add(after_ms))
}

pub(crate) fn check_timer_id(id: &str) -> Result<(), Refused> {
    if id.is_empty() || id.len() > limits::KEY_BYTES_MAX {
        return invalid("id", &format!("1 to {} bytes", limits::KEY_BYTES_MAX));
    }
    Ok(())
}

fn check_answer(answer: &HttpAnswer) -> Result<(), Refused> {
    if !(200..=599).contains(&answer.status) {
        return invalid("answer.status", "200 to 599");
    }
    if answer.body.len() > limits::HTTP_ANSWER_BYTES_MAX {
        return fixed("http-answer-bytes", limits::HTTP_ANSWER_BYTES_MAX);
    }
    if answer.headers.len() > limits::HTTP_HEADERS_MAX {
        return fixed("http-headers", limits::HTTP_HEADERS_MAX);
    }
    for (name, value) in &answer.headers {
        if name.len() + value.len() > limits::HTTP_HEADER_BYTES_MAX {
            return fixed("http-header-bytes", limits::HTTP_HEADER_BYTES_MAX);
        }
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) {
            return invalid("answer.headers", "names are tokens of RFC 9110");
        }
        if value
            .bytes()
            .any(|byte| byte < 0x20 && byte != b'\t' || byte == 0x7f)
        {
            return invalid("answer.headers", "values have no control characters");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_types::{NativeCommand, Quantities, TaskBody};

    fn spec(command: &str) -> TaskSpec {
        TaskSpec {
            name: "t".into(),
            body: TaskBody::Native(NativeCommand::Shell(command.into())),
            resources: Quantities { cpus_milli: 100, mem_mib: 32, disk_mib: 0 }.into(),
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
        }
    }

    fn launch(task: &str, spec: Digest) -> Launch {
        Launch {
            task: task.parse().unwrap(),
            spec,
            args: vec![],
            env: vec![],
        }
    }

    fn draft() -> Draft {
        Draft::new(Limits::default())
    }

    fn limit_name(result: Result<(), Refused>) -> &'static str {
        match result {
            Err(Refused::Limit(limit)) => limit.name,
            other => panic!("{other:?}"),
        }
    }

    const OFFER: OfferId = OfferId(1);

    fn singles(launches: Vec<Launch>) -> Groups {
        let mut groups = Groups::default();
        launches.into_iter().for_each(|launch| groups.single(launch));
        groups
    }

    #[test]
    fn launches_carry_their_specs_once() {
        let mut draft = draft();
        let (a, b) = (
            draft.define(spec("a")).unwrap(),
            draft.define(spec("b")).unwrap(),
        );
        let launches = vec![launch("1", a), launch("2", a)];
        draft
            .accept(vec![OFFER], singles(launches), Filters::default())
            .unwrap();
        let (operations, specs) = draft.finish();
        assert_eq!(operations.len(), 1);
        assert_eq!(specs, vec![(a, tessera_wire::encode_spec(&spec("a")))]);
        draft
            .accept(vec![OFFER], singles(vec![launch("3", b)]), Filters::default())
            .unwrap();
        assert_eq!(
            draft.finish().1.len(),
            1,
            "specs of earlier turns stay defined"
        );
    }

    #[test]
    fn bad_accepts_are_refused_with_field_and_rule() {
        let mut draft = draft();
        let known = draft.define(spec("a")).unwrap();
        let unknown = Digest::of(b"other");
        let far = Filters {
            refuse_ms: limits::DURATION_MAX_MS + 1,
        };
        let with_args = Launch {
            args: vec!["x".into()],
            ..launch("t", known)
        };
        let none = Filters::default();
        for (offers, launches, filters, field) in [
            (vec![], vec![], none, "offers"),
            (vec![OFFER, OFFER], vec![], none, "offers"),
            (vec![OFFER], vec![launch("t", unknown)], none, "launch.spec"),
            (
                vec![OFFER],
                vec![launch("t", known), launch("t", known)],
                none,
                "launch.task",
            ),
            (vec![OFFER], vec![with_args], none, "launch.args"),
            (vec![OFFER], vec![], far, "filters.refuse-ms"),
        ] {
            let error = draft
                .accept(offers, singles(launches), filters)
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(field), "{field}: {error}");
        }
        assert_eq!(
            draft.finish(),
            (vec![], vec![]),
            "what is refused enqueues nothing"
        );
    }

    #[test]
    fn operations_and_their_bytes_are_limited() {
        let mut draft = draft();
        for _ in 0..limits::TURN_OPERATIONS_MAX {
            draft.revive().unwrap();
        }
        assert_eq!(limit_name(draft.suppress()), "turn-operations");
        assert_eq!(draft.finish().0.len(), limits::TURN_OPERATIONS_MAX);
        let answer = HttpAnswer {
            status: 200,
            body: vec![0; 64 << 10],
            ..HttpAnswer::default()
        };
        let refused = (0..100).find_map(|id| {
            draft.open_request(id);
            draft.respond(id, answer.clone()).err()
        });
        assert_eq!(limit_name(Err(refused.unwrap())), "turn-operation-bytes");
    }

    #[test]
    fn requests_are_taken_whole_or_refused_by_field() {
        let request = |id: &str, count| ResourceRequest {
            id: id.into(),
            resources: Quantities { cpus_milli: 100, mem_mib: 32, disk_mib: 0 }.into(),
            count,
            constraints: vec![],
            revocable: false,
        };
        let mut draft = draft();
        for (bad, field) in [
            (vec![request("", 1)], "requests.id"),
            (vec![request("a", 0)], "requests.count"),
            (vec![request("a", 1), request("a", 1)], "requests.id"),
        ] {
            let error = draft.request(bad).unwrap_err().to_string();
            assert!(error.starts_with(field), "{field}: {error}");
        }
        let good = vec![request("a", 1), request("b", 10_000)];
        draft.request(good.clone()).unwrap();
        draft.request(vec![]).unwrap();
        let asked = [good, vec![]].map(|requests| Operation::Request { requests });
        assert_eq!(draft.finish().0, asked, "the last one counts, and nothing is a request for anything");
    }

    #[test]
    fn specs_are_limited_per_turn() {
        let mut draft = draft();
        for n in 0..limits::TURN_SPECS_MAX {
            draft.define(spec(&n.to_string())).unwrap();
        }
        assert_eq!(
            limit_name(draft.define(spec("more")).map(|_| ())),
            "turn-specs"
        );
        assert!(draft.define(spec("0")).is_ok(), "what is known is free");
        draft.finish();
        assert!(draft.define(spec("more")).is_ok());
    }

    #[test]
    fn specs_that_are_not_used_any_more_make_room() {
        let mut draft = Draft::new(Limits {
            specs: 8,
            ..Limits::default()
        });
        let kept = draft.define(spec("kept")).unwrap();
        draft.finish();
        for n in 0..50 {
            draft.define(spec(&n.to_string())).unwrap();
            let launch = launch(&format!("t{n}"), kept);
            draft
                .accept(vec![OFFER], singles(vec![launch]), Filters::default())
                .unwrap();
            assert_eq!(
                draft.finish().1.len(),
                1,
                "a spec in use is never forgotten"
            );
            assert!(draft.book.specs.len() <= 8);
            let bytes: usize = draft.book.specs.values().map(|d| d.encoded.len()).sum();
            assert_eq!(draft.book.bytes, bytes);
        }
        for n in 0..8 {
            draft.define(spec(&format!("now {n}"))).unwrap();
        }
        let full = draft.define(spec("one more")).map(|_| ());
        assert_eq!(
            limit_name(full),
            "specs",
            "what this turn defined stays"
        );
    }

    #[test]
    fn timers_set_by_init_count_from_the_first_turn() {
        let mut draft = draft();
        draft.set_timer("a".into(), 50).unwrap();
        draft.begin(1_000);
        draft.set_timer("b".into(), 60).unwrap();
        let due = draft
            .finish()
            .0
            .into_iter()
            .map(|operation| match operation {
                Operation::SetTimer { due_ms, .. } => due_ms,
                other => panic!("{other:?}"),
            });
        assert_eq!(due.collect::<Vec<_>>(), [1_050, 1_060]);
        assert!(draft.set_timer("a".into(), 9).is_err());
        assert!(draft.set_timer(String::new(), 90).is_err());
    }

    #[test]
    fn a_request_is_answered_once() {
        let mut draft = draft();
        let answer = HttpAnswer {
            status: 200,
            ..HttpAnswer::default()
        };
        assert!(matches!(
            draft.respond(1, answer.clone()),
            Err(Refused::NotFound(_))
        ));
        draft.open_request(1);
        let bad = HttpAnswer {
            headers: vec![("a b".into(), String::new())],
            ..answer.clone()
        };
        assert!(matches!(draft.respond(1, bad), Err(Refused::Invalid(_))));
        let bad = HttpAnswer {
            headers: vec![("a".into(), "b\r\nc".into())],
            ..answer.clone()
        };
        assert!(matches!(draft.respond(1, bad), Err(Refused::Invalid(_))));
        assert_eq!(draft.respond(1, answer.clone()), Ok(()));
        assert!(matches!(
            draft.respond(1, answer),
            Err(Refused::NotFound(_))
        ));
    }

    #[test]
    fn groups_and_gangs_are_numbered_in_a_turn() {
        let mut draft = draft();
        let known = draft.define(spec("a")).unwrap();
        let accept = |draft: &mut Draft, tasks: [&str; 2]| {
            let mut groups = Groups::default();
            groups.together(tasks.map(|task| launch(task, known)).to_vec()).unwrap();
            groups.single(launch(&format!("{}-alone", tasks[0]), known));
            draft.accept(vec![OFFER], groups, Filters::default())
        };
        accept(&mut draft, ["a", "b"]).unwrap();
        draft.begin_gang().unwrap();
        accept(&mut draft, ["c", "d"]).unwrap();
        assert!(draft.begin_gang().is_err(), "gangs do not nest");
        draft.end_gang().unwrap();
        assert!(draft.end_gang().is_err());
        assert!(accept(&mut draft, ["e", "e"]).is_err());
        draft.begin_gang().unwrap();
        accept(&mut draft, ["f", "g"]).unwrap();
        let numbers = |operations: Vec<Operation>| -> Vec<(u32, Vec<u32>)> {
            let accepts = operations.into_iter().map(|operation| match operation {
                Operation::Accept { gang, launches, .. } => {
                    (gang, launches.iter().map(|member| member.group).collect())
                }
                other => panic!("{other:?}"),
            });
            accepts.collect()
        };
        let first = numbers(draft.finish().0);
        assert_eq!(first, [(0, vec![1, 1, 0]), (1, vec![2, 2, 0]), (2, vec![3, 3, 0])]);
        accept(&mut draft, ["h", "i"]).unwrap();
        let second = numbers(draft.finish().0);
        assert_eq!(second, [(0, vec![1, 1, 0])], "the gang that was left open has ended");
        assert!(Groups::default().together(vec![]).is_err());
    }

    #[test]
    fn messages_to_executors_are_checked() {
        let mut draft = draft();
        let agent = AgentId(7);
        let largest = vec![0; limits::MESSAGE_DATA_BYTES_MAX];
        draft.send(agent, "builder", largest.clone()).unwrap();
        let larger = [&largest[..], &[0]].concat();
        assert_eq!(limit_name(draft.send(agent, "builder", larger)), "message-bytes");
        assert!(matches!(draft.send(agent, "a/b", vec![]), Err(Refused::Invalid(_))));
        draft.shutdown_executor(agent, "builder").unwrap();
        assert!(matches!(draft.shutdown_executor(agent, ""), Err(Refused::Invalid(_))));
        assert_eq!(draft.finish().0.len(), 2);
    }

    #[test]
    fn a_migration_enqueues_nothing() {
        let mut draft = draft();
        draft.close();
        for refused in [
            draft.revive(),
            draft.call_again(),
            draft.begin_gang(),
            draft.set_timer("t".into(), 1_000),
            draft.define(spec("a")).map(|_| ()),
        ] {
            assert!(matches!(refused, Err(Refused::Denied(_))), "{refused:?}");
        }
        assert_eq!(draft.finish(), (vec![], vec![]));
    }
}
