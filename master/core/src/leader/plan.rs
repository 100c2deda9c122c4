//! Planning: what a turn's operations mean for the log, for offers, and for what is done once it stands.
//!
//! Invariants: a launch that is planned fits into what is left of its accept's offers, counted with the
//! executor that it begins; a task group is counted as a whole. Nothing is promised: the commit judges
//! again. Must never send anything.

use super::http::opened;
use super::Desk;
use super::offers::Standing;
use crate::tally::OfferEnd;
use std::collections::BTreeSet;
use tessera_types::limits::TIMER_MIN_MS;
use tessera_types::{
    AgentId, ExecutorId, ExecutorMessage, Filters, FrameworkId, HttpAnswer, Launch, Member, OfferId,
    Operation, Reason, Resources, TaskBody, TaskId, TaskSpec, Turn,
};
use tessera_wire::v1::{self, planned_operation::Operation as Planned};
use tessera_wire::decode_spec;
use std::sync::Arc;

/// What is done once the turn stands.
#[derive(Debug, Default)]
pub(super) struct After {
    pub(super) declines: Vec<(OfferId, u64)>,
    pub(super) rests: Vec<(AgentId, Resources, u64)>,
    pub(super) revive: bool,
    pub(super) again: bool,
    pub(super) reconcile: Vec<TaskId>,
    pub(super) reconcile_all: bool,
    pub(super) messages: Vec<ExecutorMessage>,
    /// Agents on which tasks of executors are launched: what those take depends on who lives there
    /// when the turn commits.
    pub(super) executors_on: BTreeSet<AgentId>,
}

#[derive(Default)]
pub(super) struct Plan {
    pub(super) operations: Vec<v1::PlannedOperation>,
    pub(super) accepted: Vec<Standing>,
    pub(super) answers: Vec<(u64, HttpAnswer)>,
    pub(super) after: After,
    /// Executors that this turn begins.
    executors: BTreeSet<(AgentId, ExecutorId)>,
    groups: u32,
}

/// What an accept has left while its launches are counted.
#[derive(Clone)]
struct Left {
    quantities: Resources,
    revocable: bool,
    executors: BTreeSet<(AgentId, ExecutorId)>,
}

/// An accept, as its operation says.
#[derive(Clone, Copy)]
struct Accept<'a> {
    offers: &'a [OfferId],
    launches: &'a [Member],
    filters: Filters,
    gang: u32,
}

impl Desk<'_> {
    /// Specs that the state does not hold yet. Those that break a rule are left out; their launches are
    /// dropped by the plan.
    pub(super) fn new_specs(&self, id: FrameworkId, turn: &Turn) -> Vec<v1::SpecBytes> {
        let known = self.state.frameworks.get(&id);
        let mut seen = BTreeSet::new();
        turn.specs
            .iter()
            .filter(|(digest, encoded)| {
                !known.is_some_and(|framework| framework.specs.contains_key(digest))
                    && seen.insert(*digest)
                    && decode_spec(encoded).is_ok()
            })
            .map(|(digest, encoded)| v1::SpecBytes {
                digest: digest.0.to_vec(),
                encoded: encoded.clone(),
            })
            .collect()
    }

    /// `logged` says whether the turn takes a log entry.
    pub(super) fn plan(&mut self, turn: &Turn, logged: bool) -> Plan {
        let mut plan = Plan::default();
        for operation in &turn.operations {
            match operation {
                Operation::Accept { offers, launches, filters, gang } => {
                    let accept = Accept { offers, launches, filters: *filters, gang: *gang };
                    self.plan_accept(turn, &mut plan, accept);
                }
                Operation::Decline { offers, filters } => {
                    let declines = offers.iter().map(|offer| (*offer, filters.refuse_ms));
                    plan.after.declines.extend(declines);
                }
                Operation::Revive => {
                    plan.after.revive = true;
                    plan.push(Planned::Suppress(false));
                }
                Operation::Suppress => plan.push(Planned::Suppress(true)),
                // A master that does not know of requests would not read the command.
                Operation::Request { .. } if !self.state.knows_kinds() => {}
                Operation::Request { requests } => plan.push(Planned::Request(requests.as_slice().into())),
                Operation::Kill { task, grace_ms } => plan.push(Planned::Kill(v1::Kill {
                    task: task.to_string(),
                    grace_ms: *grace_ms,
                })),
                Operation::Reconcile { tasks } if tasks.is_empty() => {
                    plan.after.reconcile_all = true;
                }
                Operation::Reconcile { tasks } => plan.after.reconcile.extend(tasks.iter().cloned()),
                Operation::SetTimer { id, due_ms } => plan.push(Planned::SetTimer(v1::TimerEvent {
                    id: id.clone(),
                    due_ms: (*due_ms).max(turn.header.time_ms.saturating_add(TIMER_MIN_MS)),
                })),
                Operation::CancelTimer { id } => plan.push(Planned::CancelTimer(id.clone())),
                Operation::Respond { request, answer } => {
                    self.plan_answer(turn, &mut plan, logged, *request, answer);
                }
                Operation::CallAgain => plan.after.again = true,
                Operation::SendMessage(message) => plan.after.messages.push(message.clone()),
                Operation::ShutdownExecutor { agent, executor } => {
                    plan.push(Planned::EndExecutor(v1::PlannedExecutorEnd {
                        agent: agent.0,
                        executor: executor.to_string(),
                    }));
                }
            }
        }
        plan
    }

    fn plan_answer(
        &self,
        turn: &Turn,
        plan: &mut Plan,
        logged: bool,
        request: u64,
        answer: &HttpAnswer,
    ) {
        let id = turn.header.framework;
        let waiter = self.leader.waiters.by_request.get(&request).filter(|w| w.framework == id);
        // Also for a former leader's callers, who may come again.
        let open = self.state.open_request(id, request);
        if waiter.is_none() && open.is_none() {
            return;
        }
        if !logged {
            plan.answers.push((request, answer.clone()));
            return;
        }
        let asked = match (open, waiter.map(|waiter| &waiter.request)) {
            (Some(open), _) => open.asked(request),
            (None, Some(asked)) => opened(asked),
            (None, None) => return,
        };
        plan.push(Planned::Answer(v1::PlannedAnswer {
            request,
            answer: Some(answer.into()),
            principal: asked.principal,
            request_hash: asked.request_hash,
            idempotency_key: asked.idempotency_key,
        }));
    }

    fn plan_accept(&mut self, turn: &Turn, plan: &mut Plan, accept: Accept<'_>) {
        let id = turn.header.framework;
        let Accept { offers, launches, filters, gang } = accept;
        if launches.is_empty() {
            plan.after.declines.extend(offers.iter().map(|offer| (*offer, filters.refuse_ms)));
            return;
        }
        let units = units(launches);
        let (agent, taken) = match self.take_offers(id, offers) {
            Ok(taken) => taken,
            Err(message) => {
                for unit in units {
                    let group = plan.group_of(&unit);
                    for member in unit {
                        let dropped = Some((Reason::InvalidOffer, message.clone()));
                        plan.launch(&member.launch, AgentId(0), (group, gang), dropped);
                    }
                }
                // Whatever of them does stand is given back.
                plan.after.declines.extend(offers.iter().map(|offer| (*offer, 0)));
                return;
            }
        };
        let quantities = taken.iter().fold(Resources::ZERO, |sum, offer| sum.plus(&offer.quantities));
        let revocable = taken.iter().any(|offer| offer.revocable);
        plan.accepted.extend(taken);
        let mut left = Left { quantities, revocable, executors: std::mem::take(&mut plan.executors) };
        for unit in units {
            let before = left.clone();
            let group = plan.group_of(&unit);
            let mut fits = true;
            for member in unit {
                let dropped = self.count(turn, plan, agent, &mut left, &member.launch).err();
                fits &= dropped.is_none();
                plan.launch(&member.launch, agent, (group, gang), dropped);
            }
            if !fits {
                left = before;
            }
        }
        plan.executors = left.executors;
        plan.after.rests.push((agent, left.quantities, filters.refuse_ms));
    }

    /// Take what a launch needs from what is left, if it is enough.
    fn count(
        &self,
        turn: &Turn,
        plan: &mut Plan,
        agent: AgentId,
        left: &mut Left,
        launch: &Launch,
    ) -> Result<(), (Reason, String)> {
        let spec = self.spec_of(turn, launch).map_err(|message| (Reason::InvalidSpec, message))?;
        // One that is not known will be found by the commit.
        let Some(spec) = spec else { return Ok(()) };
        if !self.state.knows_kinds() && (spec.revocable || !spec.resources.items.is_empty()) {
            let message = "resources: beside cpus, mem and disk, and revocable ones, they wait until every master runs this version";
            return Err((Reason::InvalidSpec, message.into()));
        }
        if spec.revocable != left.revocable {
            let is = |revocable: bool| if revocable { "revocable" } else { "not revocable" };
            let message = format!("the task is {}, and the offer is {}", is(spec.revocable), is(left.revocable));
            return Err((Reason::Revocable, message));
        }
        let mut needs = spec.resources.clone();
        let mut begins = None;
        if let TaskBody::Executor(task) = &spec.body {
            plan.after.executors_on.insert(agent);
            let lives = self.state.executor(turn.header.framework, agent, &task.executor).is_some();
            let key = (agent, task.executor.clone());
            if !lives && !left.executors.contains(&key) {
                needs.add(&task.resources);
                begins = Some(key);
            }
        }
        if !left.quantities.contains(&needs) {
            let message = format!("{needs} are needed, {} are left of the offer", left.quantities);
            return Err((Reason::NotEnough, message));
        }
        left.quantities.take(&needs);
        left.executors.extend(begins);
        Ok(())
    }

    /// Take offers of one agent off the table: the agent, and those offers.
    fn take_offers(&mut self, framework: FrameworkId, offers: &[OfferId]) -> Result<(AgentId, Vec<Standing>), String> {
        let standing = self.leader.offers.standing();
        let mut first: Option<&Standing> = None;
        let mut seen = BTreeSet::new();
        for offer in offers {
            let found = standing.get(offer).filter(|found| found.framework == framework);
            let Some(found) = found else {
                return Err(format!("offer {offer} is unknown, was used before, or has expired"));
            };
            if !seen.insert(*offer) {
                return Err(format!("offer {offer} is named twice"));
            }
            let first = *first.get_or_insert(found);
            if first.agent != found.agent {
                return Err(format!("offer {offer} is of {}, another one of {}", found.agent, first.agent));
            }
            if first.revocable != found.revocable {
                return Err(format!("offer {offer} differs from another one in whether it is revocable"));
            }
        }
        let agent = first.map(|first| first.agent).ok_or_else(|| "no offer is named".to_owned())?;
        let taken: Vec<Standing> = offers.iter().filter_map(|offer| self.leader.offers.remove(*offer)).collect();
        for _ in &taken {
            self.leader.tally.offer_ended(OfferEnd::Accepted);
        }
        Ok((agent, taken))
    }

    /// The spec of a launch, if it is known.
    fn spec_of(&self, turn: &Turn, launch: &Launch) -> Result<Option<Arc<TaskSpec>>, String> {
        let known = self.state.frameworks.get(&turn.header.framework);
        if let Some(spec) = known.and_then(|framework| framework.specs.get(&launch.spec)) {
            return Ok(Some(Arc::clone(&spec.spec)));
        }
        let Some((_, encoded)) = turn.specs.iter().find(|(digest, _)| *digest == launch.spec) else {
            return Ok(None);
        };
        decode_spec(encoded).map(|spec| Some(Arc::new(spec))).map_err(|error| error.to_string())
    }
}

/// The launches of an accept by task group, in the order of the first of each; others alone.
fn units(launches: &[Member]) -> Vec<Vec<&Member>> {
    let mut units: Vec<Vec<&Member>> = Vec::with_capacity(launches.len());
    let mut places = std::collections::BTreeMap::new();
    for member in launches {
        let place = match member.group {
            0 => units.len(),
            group => *places.entry(group).or_insert(units.len()),
        };
        match units.get_mut(place) {
            Some(unit) => unit.push(member),
            None => units.push(vec![member]),
        }
    }
    units
}

impl Plan {
    fn push(&mut self, operation: Planned) {
        self.operations.push(v1::PlannedOperation { operation: Some(operation) });
    }

    /// The number under which a unit is planned: task groups of several accepts are never one.
    fn group_of(&mut self, unit: &[&Member]) -> u32 {
        if unit.first().is_none_or(|member| member.group == 0) {
            return 0;
        }
        self.groups += 1;
        self.groups
    }

    fn launch(
        &mut self,
        launch: &Launch,
        agent: AgentId,
        (group, gang): (u32, u32),
        dropped: Option<(Reason, String)>,
    ) {
        let (reason, drop_message) = dropped.unwrap_or((Reason::None, String::new()));
        self.push(Planned::Launch(v1::PlannedLaunch {
            launch: Some(launch.into()),
            agent: agent.0,
            drop_reason: reason.code().to_owned(),
            drop_message,
            group,
            gang,
        }));
    }
}
