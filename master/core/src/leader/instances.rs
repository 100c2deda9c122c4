//! Instances of schedulers: whether they are ready, and the batches that they get.
//!
//! Invariants: at most one batch or turn of a framework is under way; durable events come from rows and
//! before all others; nothing goes to an instance of another epoch.

use super::executors::ExecutorEvents;
use super::lifecycle::Care;
use super::pace::Pace;
use super::{Desk, Pending};
use crate::api::{FetchRefusal, Fetched};
use crate::lifecycle::{IMAGE_DAMAGED, WORKER_FULL};
use crate::limits::{AGENTS_AT_ONCE, EVENTS_OF_AGENT_MAX, FAILURE_RECORD_MS, NOTICES_MAX, OFFERS_OF_EVENT_MAX, REPEAT_WAIT_MS};
use crate::state::{Agent, Framework};
use crate::upkeep::{inverse_ids, inverse_offers};
use prost::Message;
use std::collections::{BTreeSet, VecDeque};
use tessera_types::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use tessera_types::{
    AgentId, Epoch, Event, FrameworkId, Offer, OfferId, Reason, Subscription, TaskId, TaskState,
    TaskStatus, TurnNumber,
};
use tessera_wire::v1::{self, master_message::Message as Out};
use tessera_wire::WireError;

/// What an instance is told first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    Subscribed,
    Resumed,
}

/// A batch that was sent and not answered.
///
/// What it carried is kept, in case it turns out that the worker never handled it.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    /// The batch's time, by which its turn is recognised.
    pub(super) time_ms: u64,
    pub(super) http: Vec<u64>,
    first: Option<First>,
    agents: Vec<AgentId>,
    not_wanted_back: Vec<OfferId>,
    rescinded: Vec<OfferId>,
    offers: Vec<Offer>,
    notices: Vec<TaskStatus>,
    executor_events: Vec<Event>,
    again: bool,
    /// Writes from outside that it brings, in their order.
    pub(super) outside: Vec<(u64, String)>,
}

/// What the leader knows of a framework's scheduler under one epoch.
#[derive(Debug, Default)]
pub(crate) struct Instance {
    pub(super) epoch: Epoch,
    pub(super) agent: Option<AgentId>,
    pub(crate) ready: bool,
    /// It was told of this leader's offers and events before.
    introduced: bool,
    first: Option<First>,
    /// The state was fetched for a new instance.
    pub(super) fetched: bool,
    pub(super) outstanding: Option<Outstanding>,
    /// The turn that is about to commit.
    pub(super) in_flight: Option<(TurnNumber, Vec<u8>)>,
    /// The number that its worker was told to go on with, in this session.
    pub(super) told: Option<(u64, TurnNumber)>,
    /// Time of the last turn that changed nothing and was taken in this session: its number comes
    /// again, so that only the time tells a copy of it from the next turn.
    pub(super) taken: Option<(u64, u64)>,
    /// Until when it may repeat a turn that is committed already.
    pub(super) repeat_by_ms: Option<u64>,
    /// It does not continue where the state is; it has to be placed anew.
    pub(super) out_of_step: bool,
    pub(super) given_up_ms: Option<u64>,
    /// Where it is being placed.
    pub(super) placing: Option<AgentId>,
    last_batch_ms: u64,
    pub(super) pace: Pace,
    /// Writes from outside that it has for sure.
    pub(super) outside: u64,
    /// When it was last told of some.
    pub(super) outside_sent_ms: Option<u64>,

    pub(super) again: bool,
    /// Durable events alone fill a batch.
    full: bool,
    pub(super) offers: Vec<Offer>,
    pub(super) rescinded: Vec<OfferId>,
    pub(super) agents: BTreeSet<AgentId>,
    /// Under which ids it may have been asked for agents back.
    wanted_back: BTreeSet<OfferId>,
    pub(super) notices: VecDeque<TaskStatus>,
    pub(super) executor_events: ExecutorEvents,
    /// Tasks after this one are still to be reported: a question for all.
    pub(super) reconcile_all: Option<Option<TaskId>>,
    pub(super) http: VecDeque<u64>,
    /// Requests that it had taken in and not answered when it was built anew: nobody will.
    pub(super) lost_requests: BTreeSet<u64>,

    /// A turn stood since it failed last, even one that changed nothing and left no trace in the log.
    pub(super) after_turn: bool,
    /// It failed, and has not been ready since.
    pub(crate) failed: bool,
    pub(crate) last_error: Option<String>,
    pub(crate) failures: u64,
    recorded_ms: Option<u64>,
    pub(super) care: Care,
}

impl Instance {
    /// Whether new offers would reach it soon.
    pub(super) fn may_be_offered(&self) -> bool {
        self.ready && !self.out_of_step && !self.full && self.offers.is_empty()
    }

    /// Whether it wants offers as soon as they can reach it.
    pub(super) const fn wants_offers(&self) -> bool {
        self.ready && !self.out_of_step
    }

    /// Whether what waits for it is more than news: somebody waits for its answer, it goes on with work of its own,
    /// or it would fall behind.
    pub(super) fn is_urgent(&self) -> bool {
        self.first.is_some() || !self.http.is_empty() || self.again || self.full || self.executor_events.front().is_some()
    }

    fn idle(&self) -> bool {
        self.ready
            && !self.out_of_step
            && self.outstanding.is_none()
            && self.in_flight.is_none()
            && self.repeat_by_ms.is_none()
    }

    /// Tell what is to be said of an agent: what is known of it, and whether it is wanted back.
    fn push_agent(
        &mut self,
        agent: AgentId,
        row: Option<&Agent>,
        batch: &mut BatchBuilder,
        not_wanted_back: &mut Vec<OfferId>,
    ) -> bool {
        let wanted = row.map(|row| inverse_offers(agent, row.drain, row.maintenance));
        let wanted = wanted.unwrap_or_default();
        let ids: BTreeSet<OfferId> = wanted.iter().map(|offer| offer.id).collect();
        let told = inverse_ids(agent).into_iter().filter(|id| self.wanted_back.contains(id));
        let ended: Vec<OfferId> = told.filter(|id| !ids.contains(id)).collect();
        let mut events: Vec<Event> = row.map(|row| Event::Agent(row.info(agent))).into_iter().collect();
        if !wanted.is_empty() {
            events.push(Event::InverseOffers(wanted));
        }
        if !ended.is_empty() {
            events.push(Event::InverseRescinded(ended.clone()));
        }
        if !batch.push_all(&events) {
            return false;
        }
        self.wanted_back.extend(ids);
        self.wanted_back.retain(|id| !ended.contains(id));
        not_wanted_back.extend(ended);
        true
    }

    /// Offer the first of what is to be offered, as far as it fits; the rest comes with the next batch.
    fn push_offers(&mut self, mut count: usize, batch: &mut BatchBuilder, carried: &mut Outstanding) {
        while count > 0 {
            let rest = self.offers.split_off(count.min(OFFERS_OF_EVENT_MAX));
            let some = std::mem::replace(&mut self.offers, rest);
            if !batch.push(&Event::Offers(some.clone())) {
                self.offers.splice(0..0, some);
                return;
            }
            count -= some.len();
            carried.offers.extend(some);
        }
    }

    pub(super) fn notice(&mut self, status: TaskStatus) {
        if self.notices.len() < NOTICES_MAX {
            self.notices.push_back(status);
        }
    }
}

impl Desk<'_> {
    /// Let the record follow the placement.
    pub(super) fn align_instance(&mut self, id: FrameworkId, framework: &Framework) {
        let instance = self.leader.instances.entry(id).or_default();
        if instance.epoch == framework.epoch && instance.agent == framework.agent {
            return;
        }
        let old = std::mem::take(instance);
        *instance = Instance {
            epoch: framework.epoch,
            agent: framework.agent,
            placing: old.placing,
            http: old.http,
            last_error: old.last_error,
            failures: old.failures,
            recorded_ms: old.recorded_ms,
            care: old.care.under_way(),
            ..Instance::default()
        };
        if let Some(outstanding) = old.outstanding {
            self.fail_http(&outstanding.http, 502, "SCHEDULER_MOVED", "the scheduler was moved");
        }
        self.withdraw_framework(id);
    }

    /// The framework is going or gone.
    pub(super) fn drop_instance(&mut self, id: FrameworkId) {
        if self.leader.instances.contains_key(&id) {
            self.withdraw_framework(id);
            self.forget_filters(id);
            self.fail_all_http(id);
            self.leader.instances.remove(&id);
            self.leader.room_came = true;
        }
        if !self.state.frameworks.contains_key(&id) {
            self.leader.tally.turns.remove(&id);
        }
        self.forget_outside(id);
    }

    /// The framework's record, if the agent hosts this epoch of it.
    fn hosted(&mut self, agent: AgentId, key: Option<v1::InstanceKey>) -> Option<FrameworkId> {
        let key = key?;
        let id = FrameworkId(key.framework);
        let framework = self.state.frameworks.get(&id).filter(|f| !f.removing)?;
        if framework.agent != Some(agent) || framework.epoch.0 != key.epoch {
            return None;
        }
        self.align_instance(id, framework);
        Some(id)
    }

    pub(super) fn on_instance_ready(
        &mut self,
        agent: AgentId,
        ready: &v1::InstanceReady,
    ) -> Result<(), WireError> {
        if ready.key.is_none() {
            return Err(WireError::missing("instance_ready.key"));
        }
        let Some(id) = self.hosted(agent, ready.key) else { return Ok(()) };
        let Some(framework) = self.state.frameworks.get(&id) else { return Ok(()) };
        let next = framework.next_turn().0;
        let began = framework.last_turn_epoch == framework.epoch;
        let now_ms = self.now.mono_ms;
        let session = self.session_of(agent);
        let Some(instance) = self.leader.instances.get_mut(&id) else { return Ok(()) };
        let anew = ready.rebuilt || (instance.introduced && instance.fetched);
        let lost = instance.outstanding.take();
        instance.ready = true;
        instance.failed = false;
        instance.given_up_ms = None;
        instance.repeat_by_ms = None;
        instance.out_of_step = false;
        if anew {
            // Until a turn of the epoch has committed, nobody has handled its beginning.
            instance.first = Some(if began { First::Resumed } else { First::Subscribed });
            instance.out_of_step = ready.next_turn != next;
        } else {
            // Not processed, as far as is known: if it was, the worker repeats the turn, before or
            // after this.
            let told = session.is_some_and(|it| instance.told == Some((it, TurnNumber(next))));
            if ready.next_turn + 1 == next && told {
                instance.repeat_by_ms = None;
            } else if ready.next_turn + 1 == next {
                instance.repeat_by_ms = Some(now_ms + REPEAT_WAIT_MS);
            } else if ready.next_turn != next {
                instance.out_of_step = true;
            }
            if !instance.introduced {
                instance.first = Some(if began { First::Resumed } else { First::Subscribed });
            }
        }
        instance.fetched = false;
        // An agent hears what its instance got only with the result of a turn.
        let outside = if anew { ready.outside } else { ready.outside.max(instance.outside) };
        let covered = self.outside_of_ready(id, outside);
        if let Some(instance) = self.leader.instances.get_mut(&id) {
            instance.out_of_step |= !covered;
        }
        let lost = match lost {
            Some(mut lost) if !anew => {
                // It may have been handled after all, and messages are delivered once.
                lost.executor_events.retain(|event| !matches!(event, Event::Message(_)));
                self.take_back(id, lost);
                None
            }
            lost => lost,
        };
        let Some(instance) = self.leader.instances.get_mut(&id) else { return Ok(()) };
        if instance.first.is_some() {
            instance.introduced = true;
            instance.agents = self.state.agents.keys().copied().collect();
        }
        if anew {
            self.withdraw_framework(id);
            self.lose_requests(id);
            if let Some(lost) = lost {
                let text = "the scheduler was started again while it had the request";
                self.fail_http(&lost.http, 502, "SCHEDULER_RESTARTED", text);
            }
        }
        self.leader.dirty_frameworks.insert(id);
        self.leader.allocate = true;
        Ok(())
    }

    /// An instance was built anew, and what the one before it had taken in is answered by nobody.
    fn lose_requests(&mut self, id: FrameworkId) {
        let lost: Vec<u64> = self.state.open_requests(id).map(|(request, _)| request).collect();
        if let Some(instance) = self.leader.instances.get_mut(&id) {
            instance.lost_requests.extend(&lost);
        }
        let text = "the scheduler was started again after it had taken in the request";
        self.fail_http(&lost, 502, "SCHEDULER_RESTARTED", text);
    }

    /// The worker did not handle this batch: what it carried is to be sent again, as far as it stands.
    pub(super) fn take_back(&mut self, id: FrameworkId, lost: Outstanding) {
        let leader = &mut *self.leader;
        let Some(instance) = leader.instances.get_mut(&id) else { return };
        for request in lost.http.into_iter().rev() {
            if leader.waiters.by_request.contains_key(&request) {
                instance.http.push_front(request);
            }
        }
        for status in lost.notices.into_iter().rev() {
            instance.notices.push_front(status);
        }
        let events = lost.executor_events.into_iter().rev();
        let room = events.map(|event| instance.executor_events.push_front(event));
        leader.messages_dropped += room.filter(|room| !room).count() as u64;
        instance.first = instance.first.or(lost.first);
        instance.again |= lost.again;
        instance.wanted_back.extend(lost.not_wanted_back);
        instance.agents.extend(lost.agents);
        let offers = lost.offers.into_iter();
        let standing = offers.filter(|offer| leader.offers.standing().contains_key(&offer.id));
        instance.offers.extend(standing);
        instance.rescinded.extend(lost.rescinded);
        // The guest never heard of offers that went with the batch and are withdrawn by now.
        self.leader.dirty_frameworks.insert(id);
    }

    pub(super) fn on_instance_failed(
        &mut self,
        agent: AgentId,
        failed: v1::InstanceFailed,
    ) -> Result<(), WireError> {
        if failed.key.is_none() {
            return Err(WireError::missing("instance_failed.key"));
        }
        let Some(id) = self.hosted(agent, failed.key) else { return Ok(()) };
        let upgrading = self.state.frameworks.get(&id).is_some_and(|f| f.upgrade.is_some());
        let now_ms = self.now.mono_ms;
        let Some(instance) = self.leader.instances.get_mut(&id) else { return Ok(()) };
        let message: String =
            failed.message.chars().take(tessera_types::limits::MESSAGE_BYTES_MAX).collect();
        let reason: String = failed.reason.chars().take(64).collect();
        let limit: String = failed.limit.chars().take(64).collect();
        let text = match limit.as_str() {
            "" => format!("{reason}: {message}"),
            limit => format!("{reason}: limit {limit}: {message}"),
        };
        instance.ready = false;
        instance.failed = true;
        if reason == WORKER_FULL || reason == IMAGE_DAMAGED {
            // It is built anew, with its state, when there is room, or its image again.
            instance.fetched = false;
            instance.care.no_room();
        }
        let after_turn = std::mem::take(&mut instance.after_turn);
        instance.failures += 1;
        self.leader.tally.of(id).failures += 1;
        instance.given_up_ms = (!failed.will_retry).then_some(now_ms);
        instance.last_error = Some(text.clone());
        let lost = instance.outstanding.take();
        // What the guest is to blame for is counted, and its number bounded by the quarantine.
        let record =
            failed.guest || instance.recorded_ms.is_none_or(|at| now_ms >= at + FAILURE_RECORD_MS);
        if failed.guest && upgrading {
            instance.care.failed = Some(text.clone());
            self.leader.dirty_frameworks.insert(id);
        }
        let epoch = instance.epoch.0;
        if record {
            instance.recorded_ms = Some(now_ms);
        }
        if let Some(lost) = lost {
            self.fail_http(&lost.http, 502, "SCHEDULER_FAILED", &format!("the scheduler failed: {text}"));
        }
        self.withdraw_framework(id);
        if record {
            let command = v1::RecordFailure {
                framework: id.0,
                epoch,
                reason,
                message,
                limit,
                turn: failed.turn,
                guest: failed.guest,
                after_turn,
            };
            let command = v1::command::Command::RecordFailure(command);
            self.propose("", command, Pending::Nobody);
        }
        Ok(())
    }

    /// The session of these instances is over; they may live on.
    pub(super) fn instances_cut_off(&mut self) {
        let hosted: Vec<FrameworkId> = self
            .leader
            .instances
            .iter()
            .filter(|(_, i)| i.agent.is_some_and(|agent| self.session_of(agent).is_none()))
            .map(|(id, _)| *id)
            .collect();
        for id in hosted {
            if let Some(instance) = self.leader.instances.get_mut(&id) {
                instance.ready = false;
            }
            self.leader.offers.look_at_framework(id);
        }
    }

    /// Send what there is to an instance that is free for it.
    pub(super) fn dispatch(&mut self, id: FrameworkId) {
        let Some(framework) = self.state.frameworks.get(&id).filter(|f| !f.removing) else { return };
        let idle = self.leader.instances.get(&id).is_some_and(Instance::idle);
        let Some(session) = framework.agent.and_then(|agent| self.session_of(agent)) else { return };
        if !idle {
            return;
        }
        let Some(instance) = self.leader.instances.get_mut(&id) else { return };
        // Each batch has a time of its own.
        let last_ms = instance.last_batch_ms;
        let time_ms = self.time_ms().max(last_ms + 1);
        let Some(instance) = self.leader.instances.get_mut(&id) else { return };
        if framework.migrating() {
            // An empty batch calls for the next step.
            let carried = Outstanding { time_ms, ..Outstanding::default() };
            return self.send_batch(id, framework, session, carried, Vec::new());
        }
        let urgent = instance.is_urgent();
        if self.rests(id) {
            return;
        }
        let Some(instance) = self.leader.instances.get_mut(&id) else { return };
        let first = instance.first.take();
        let mut batch = BatchBuilder { kept: self.leader.outside.next_len(id), ..BatchBuilder::default() };
        if let Some(first) = first {
            batch.push(&introduction(id, framework, first));
        }
        durable(framework, time_ms, &mut batch);
        let mut carried = Outstanding { time_ms, first, ..Outstanding::default() };
        self.ephemeral(id, framework, &mut batch, &mut carried);
        let Some(instance) = self.leader.instances.get_mut(&id) else { return };
        // The backlog is gone: offers may be made again.
        self.leader.allocate |= instance.full && !batch.full;
        instance.full = batch.full;
        if batch.kept > 0 && (!batch.events.is_empty() || instance.outside_due(self.now.mono_ms)) {
            instance.outside_sent_ms = Some(self.now.mono_ms);
            carried.outside = self.leader.outside.next(id);
            batch.events.push(state_changed(&carried.outside));
        }
        if batch.events.is_empty() {
            return;
        }
        self.count_turn(id, urgent);
        self.send_batch(id, framework, session, carried, batch.events);
    }

    fn send_batch(
        &mut self,
        id: FrameworkId,
        framework: &Framework,
        session: u64,
        carried: Outstanding,
        events: Vec<v1::Event>,
    ) {
        let Some(instance) = self.leader.instances.get_mut(&id) else { return };
        let time_ms = carried.time_ms;
        instance.outstanding = Some(carried);
        instance.last_batch_ms = time_ms;
        let batch = v1::Batch {
            key: Some(v1::InstanceKey { framework: id.0, epoch: framework.epoch.0 }),
            number: framework.next_turn().0,
            time_ms,
            events,
        };
        self.send(session, Out::Batch(batch));
    }

    /// Add what is not stored, and note it.
    fn ephemeral(
        &mut self,
        id: FrameworkId,
        framework: &Framework,
        batch: &mut BatchBuilder,
        carried: &mut Outstanding,
    ) {
        let Some(instance) = self.leader.instances.get_mut(&id) else { return };
        if instance.agents.len() > AGENTS_AT_ONCE {
            // There are more than fit: those that something is offered of come first, with what is offered.
            let of_offers = instance.offers.iter().take(AGENTS_AT_ONCE).map(|offer| offer.agent);
            let first: BTreeSet<AgentId> = of_offers.filter(|agent| instance.agents.contains(agent)).collect();
            for agent in first {
                let row = self.state.agents.get(&agent);
                if !batch.room_for_more() || !instance.push_agent(agent, row, batch, &mut carried.not_wanted_back) {
                    break;
                }
                instance.agents.remove(&agent);
                carried.agents.push(agent);
            }
            let told = |offer: &Offer| !instance.agents.contains(&offer.agent);
            let told = instance.offers.iter().take_while(|offer| told(offer)).count();
            instance.push_offers(told, batch, carried);
        }
        while let Some(agent) = instance.agents.first().copied() {
            let row = self.state.agents.get(&agent);
            if !instance.push_agent(agent, row, batch, &mut carried.not_wanted_back) {
                break;
            }
            carried.agents.extend(instance.agents.pop_first());
        }
        if !instance.rescinded.is_empty() && batch.room() {
            carried.rescinded = std::mem::take(&mut instance.rescinded);
            batch.push(&Event::Rescinded(carried.rescinded.clone()));
        }
        if instance.agents.is_empty() {
            instance.push_offers(instance.offers.len(), batch, carried);
        }
        while let Some(status) = instance.notices.front() {
            if !batch.push(&Event::Update { sequence: 0, status: status.clone() }) {
                break;
            }
            carried.notices.extend(instance.notices.pop_front());
        }
        while let Some(after) = instance.reconcile_all.clone() {
            let mut rest = match &after {
                Some(after) => framework
                    .tasks
                    .range::<TaskId, _>((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded)),
                None => framework.tasks.range::<TaskId, _>(..),
            };
            let Some((task, row)) = rest.next() else {
                instance.reconcile_all = None;
                break;
            };
            let status = row.status.clone().because(Reason::Reconciliation, &row.status.message);
            if !batch.push(&Event::Update { sequence: 0, status }) {
                break;
            }
            instance.reconcile_all = Some(Some(task.clone()));
        }
        while let Some(event) = instance.executor_events.front() {
            if !batch.push(event) {
                break;
            }
            carried.executor_events.extend(instance.executor_events.pop());
        }
        while let Some(request) = instance.http.front().copied() {
            if let Some(waiter) = self.leader.waiters.by_request.get(&request) {
                if !batch.push(&Event::Http(waiter.request.clone())) {
                    break;
                }
                carried.http.push(request);
            }
            instance.http.pop_front();
        }
        if instance.again && batch.push(&Event::Again) {
            instance.again = false;
            carried.again = true;
        }
    }

    pub(super) fn tick_instances(&mut self) {
        let wall_ms = self.time_ms();
        let now_ms = self.now.mono_ms;
        let due = self.state.frameworks.iter().filter(|(id, framework)| {
            let timer = framework.due.first().is_some_and(|(due, _)| *due <= wall_ms);
            timer || self.leader.instances.get(id).is_none_or(|i| !i.ready)
        });
        let due: Vec<FrameworkId> = due.map(|(id, _)| *id).collect();
        self.leader.dirty_frameworks.extend(due);
        self.leader.dirty_frameworks.extend(self.leader.outside.waiting());
        for (id, instance) in &mut self.leader.instances {
            if instance.repeat_by_ms.is_some_and(|by| now_ms >= by) {
                instance.repeat_by_ms = None;
                instance.out_of_step = true;
                self.leader.dirty_frameworks.insert(*id);
            }
        }
    }

    /// An agent wants the state for a new instance.
    pub(crate) fn state_fetch(
        &mut self,
        agent: AgentId,
        session: u64,
        id: FrameworkId,
        epoch: Epoch,
    ) -> Result<Fetched, FetchRefusal> {
        if self.session_of(agent) != Some(session) {
            return Err(FetchRefusal::NoSession);
        }
        let key = v1::InstanceKey { framework: id.0, epoch: epoch.0 };
        self.hosted(agent, Some(key)).ok_or(FetchRefusal::NotHosting)?;
        let instance = self.leader.instances.get_mut(&id).ok_or(FetchRefusal::NotHosting)?;
        if instance.in_flight.is_some() {
            return Err(FetchRefusal::Busy);
        }
        instance.fetched = true;
        let framework = self.state.frameworks.get(&id).ok_or(FetchRefusal::NotHosting)?;
        Ok(Fetched { next: framework.next_turn(), outside: framework.outside_writes })
    }

    /// The answer to a question for a task that is not stored.
    pub(super) fn reconcile_named(&self, framework: FrameworkId, task: TaskId) -> TaskStatus {
        match self.state.task(framework, &task) {
            Some(row) => row.status.clone().because(Reason::Reconciliation, &row.status.message),
            None => TaskStatus::new(task, AgentId(0), TaskState::Unknown, self.time_ms())
                .because(Reason::Reconciliation, "the task is not known, or has ended"),
        }
    }
}

fn introduction(id: FrameworkId, framework: &Framework, first: First) -> Event {
    let subscription = Subscription {
        framework: id,
        name: framework.name.to_string(),
        role: framework.role.to_string(),
        epoch: framework.epoch,
    };
    match first {
        First::Subscribed => Event::Subscribed(subscription),
        First::Resumed => Event::Resumed(subscription),
    }
}

/// Tell of writes from outside. The values are added when it leaves.
fn state_changed(outside: &[(u64, String)]) -> v1::Event {
    let write = |(_, key): &(u64, String)| v1::KeyWrite { key: key.clone(), value: None };
    let changed = v1::StateChanged {
        count: outside.last().map_or(0, |(count, _)| *count),
        writes: outside.iter().map(write).collect(),
    };
    v1::Event { event: Some(v1::event::Event::StateChanged(changed)) }
}

/// Add a new configuration, updates in their order, and timers.
fn durable(framework: &Framework, time_ms: u64, batch: &mut BatchBuilder) {
    if framework.config_version > framework.config_seen {
        let (version, config) = (framework.config_version, framework.config.clone());
        batch.push(&Event::ConfigChanged { version, config });
    }
    for id in framework.updates.values() {
        let Some(task) = framework.tasks.get(id) else { continue };
        for update in task.latest.iter().chain(&task.terminal) {
            let event =
                Event::Update { sequence: update.sequence, status: update.status.clone() };
            if !batch.push(&event) {
                batch.full = true;
                return;
            }
        }
    }
    for (due_ms, id) in framework.due.iter().take_while(|(due, _)| *due <= time_ms) {
        if !batch.push(&Event::Timer { id: id.clone(), due_ms: *due_ms }) {
            batch.full = true;
            return;
        }
    }
}

#[derive(Default)]
struct BatchBuilder {
    events: Vec<v1::Event>,
    bytes: usize,
    full: bool,
    /// Events for which room is kept.
    kept: usize,
}

impl BatchBuilder {
    fn room(&self) -> bool {
        self.events.len() + self.kept < BATCH_EVENTS_MAX && self.bytes < BATCH_BYTES_MAX
    }

    /// Whether some more fit beside the one that is added next.
    fn room_for_more(&self) -> bool {
        self.events.len() + self.kept + EVENTS_OF_AGENT_MAX < BATCH_EVENTS_MAX && self.bytes < BATCH_BYTES_MAX / 2
    }

    /// Add events that belong together, if they fit; they do where nothing else is.
    fn push_all(&mut self, events: &[Event]) -> bool {
        let before = (self.events.len(), self.bytes);
        let all = events.iter().all(|event| self.push(event));
        if !all {
            self.events.truncate(before.0);
            self.bytes = before.1;
        }
        all
    }

    /// Add an event if it fits; a lone one always does.
    fn push(&mut self, event: &Event) -> bool {
        let event = v1::Event::from(event);
        let bytes = event.encoded_len();
        let fits = self.room() && self.bytes + bytes <= BATCH_BYTES_MAX;
        if !fits && !self.events.is_empty() {
            return false;
        }
        self.bytes += bytes;
        self.events.push(event);
        true
    }
}
