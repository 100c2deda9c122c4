//! Roles: what they use is what their tasks sum up to, no launch passes a quota limit, and only what may be taken back is taken
//! back, when somebody lacks it, and with the time that it was given.
//!
//! Invariant: sums are made anew of all tasks; what is revocable is learnt from schedulers. Must never change the run.

use super::{Oracle, TaskName};
use crate::model::{self, EXECUTOR_NEEDS, Shape};
use crate::shares::lineage;
use std::collections::{BTreeMap, BTreeSet};
use tessera_master_core::{Core, FrameworkView, RoleView, TaskView};
use tessera_types::{AgentId, Digest, Reason, ResourceRequest, Resources, RolePolicy, TaskState, Turn};
use tessera_wire::{decode_spec, v1};

/// Between the look of a leader and the end of its command so many steps may pass.
const WINDOW_STEPS: u64 = 64;
/// Requests of a framework that are remembered: offers may be older than the last.
const ASKED_KEPT: usize = 64;
/// A leader takes in changes of requests at a pace, and offers by the last ones meanwhile; and an offer may be on its way, or
/// wait for the commit of a turn, for as long as offers stand.
const PACED_US: u64 = 6_000_000;
/// Tasks that may be taken back once nothing breaks any more, beside some for each launch for good: what is taken is for
/// somebody.
const TAKEN_MAX: u64 = 8;
const TAKEN_PER_LAUNCH: u64 = 3;
/// The time that a task has begins when its agent writes that down, and it is told when that is synced: so much later.
const SYNC_US: u64 = 40_000;
/// Roles read at a time: more than there are.
const ROLES_MAX: usize = 100;

/// What is known of roles.
#[derive(Debug, Default)]
pub(super) struct Roles {
    /// Specs that were made, and whether their tasks may be taken back.
    specs: BTreeMap<Digest, bool>,
    /// What was said at the last look.
    said: BTreeMap<String, RolePolicy>,
    /// The last steps in which a role's guarantee lacked something, priorities were others, and a framework wanted offers.
    lacked: BTreeMap<String, u64>,
    ranked: u64,
    awake: BTreeMap<u64, u64>,
    /// Tasks that live or did.
    launched: BTreeSet<TaskName>,
    /// Tasks that were taken back, and the time that they were given, in ms.
    taken: BTreeMap<TaskName, u64>,
    /// Of those, for whom, and not looked into yet.
    fresh: Vec<(TaskName, String)>,
    /// Tasks that somebody wanted ended for another reason.
    unwanted: BTreeSet<TaskName>,
    /// When they were told to end, in us.
    told_us: BTreeMap<TaskName, u64>,
    /// How many were taken back since nothing breaks, and how many were launched for good.
    settling: Option<(u64, u64)>,
    /// When a framework was last offered something for good, in us.
    offered_us: BTreeMap<u64, u64>,
}

/// What a framework waited for after which turn.
pub(super) type Asked = Vec<(u64, u64, Vec<ResourceRequest>)>;

/// What a framework waited for after a turn, and what it had waited for shortly before now.
fn asked_after(asked: &Asked, turn: u64, now_us: u64) -> impl Iterator<Item = &Vec<ResourceRequest>> {
    let ends = asked.iter().skip(1).map(|(_, since_us, _)| *since_us).chain([now_us]);
    let after = asked.iter().rposition(|(at, _, _)| *at <= turn);
    let known = asked.iter().zip(ends).enumerate();
    known.filter(move |(at, (_, end_us))| Some(*at) == after || end_us + PACED_US >= now_us).map(|(_, ((_, _, requests), _))| requests)
}

/// Whether a task is one of a group, which end together.
fn is_of_group(name: &TaskName) -> bool {
    model::number_of(&name.1).is_some_and(|number| model::Job::of(number).shape == Shape::Group)
}

impl Oracle {
    /// Nothing breaks any more.
    pub(crate) fn on_healed(&mut self) {
        self.roles.settling = Some((0, 0));
    }

    /// When a framework was last offered something for good.
    pub(crate) fn last_offered_us(&self, framework: u64) -> u64 {
        self.roles.offered_us.get(&framework).copied().unwrap_or(0)
    }

    /// A scheduler made specs.
    pub(super) fn note_specs(&mut self, turn: &Turn) {
        for (digest, encoded) in &turn.specs {
            if let Ok(spec) = decode_spec(encoded) {
                self.roles.specs.insert(*digest, spec.revocable);
            }
        }
    }

    /// Somebody wants the end of a task.
    pub(super) fn note_end_wanted(&mut self, name: TaskName, reason: &str) {
        if reason != Reason::Preempted.code() {
            self.roles.unwanted.insert(name);
        }
    }

    /// A task is taken back.
    pub(super) fn note_taken(&mut self, name: TaskName, text: &str) {
        let said = text.strip_prefix("for role ").and_then(|text| text.split_once(", KILL "));
        let said = said.and_then(|(role, rest)| Some((role, rest.split_once(" ms")?.0.parse().ok()?)));
        let Some((role, grace_ms)) = said else {
            return self.violate(format!("nobody knows for whom f{}/{} is taken back: {text}", name.0, name.1));
        };
        self.saw("a task is taken back");
        self.roles.taken.insert(name.clone(), grace_ms);
        self.roles.fresh.push((name, role.to_owned()));
        if let Some((taken, launched)) = &mut self.roles.settling {
            *taken += 1;
            let (taken, launched) = (*taken, *launched);
            self.ensure(taken <= TAKEN_MAX + TAKEN_PER_LAUNCH * launched, || {
                format!("nothing breaks any more, and {taken} tasks are taken back for {launched} launches")
            });
        }
    }

    /// Whether somebody wanted the end of a task.
    pub(super) fn is_end_wanted(&self, name: &TaskName) -> bool {
        self.is_restored()
            || is_of_group(name)
            || self.leaving.contains(&name.0)
            || self.roles.unwanted.contains(name)
            || self.roles.taken.contains_key(name)
    }

    /// Whether a task was taken back.
    pub(super) fn is_taken(&self, name: &TaskName) -> bool {
        self.roles.taken.contains_key(name)
    }

    /// An agent tells a task to end, by force or not. Its time is exact where the agent's disk is not slow.
    pub(crate) fn on_told_to_end(&mut self, name: &TaskName, force: bool, exact: bool) {
        let now_us = self.now_us;
        if !force {
            self.roles.told_us.entry(name.clone()).or_insert(now_us);
            return;
        }
        let gone = self.placed.get(name).is_some_and(|agent| self.wishes.gone.contains(agent));
        let only = !gone
            && !is_of_group(name)
            && !self.is_restored()
            && !self.leaving.contains(&name.0)
            && !self.roles.unwanted.contains(name)
            && !self.wishes.is_given_up(name)
            && !self.wishes.is_usurped(name);
        let Some(grace_ms) = self.roles.taken.get(name).copied().filter(|_| only) else { return };
        let told_us = self.roles.told_us.get(name).copied();
        let due_us = told_us.map(|told_us| (told_us + grace_ms * 1_000).saturating_sub(SYNC_US));
        self.saw("a task that is taken back is killed");
        self.ensure(grace_ms == 0 || told_us.is_some() && !exact || due_us.is_some_and(|due_us| now_us >= due_us), || {
            format!("f{}/{} is killed before the {grace_ms} ms are over that it was given: told at {told_us:?}", name.0, name.1)
        });
    }

    pub(super) fn check_roles(&mut self, core: &Core, tasks: &[TaskView], frameworks: &[FrameworkView]) {
        let views = core.roles(None, ROLES_MAX);
        let role_of: BTreeMap<u64, &str> = frameworks.iter().map(|view| (view.id.0, view.role.as_str())).collect();
        let uses = sums(tasks, &role_of);
        for view in &views {
            let [used, revocable] = uses.get(view.role.as_str()).cloned().unwrap_or_default();
            let (counted, lent) = (&view.used, &view.revocable);
            self.ensure(*counted == used && *lent == revocable, || {
                format!("role {} is said to use {counted} and {lent}, its tasks {used} and {revocable}", view.role)
            });
        }
        let said: BTreeMap<String, RolePolicy> =
            views.iter().filter(|view| view.set).map(|view| (view.role.clone(), view.policy.clone())).collect();
        self.check_quota(tasks, &role_of, &uses, &said);
        self.note_needs(&views, frameworks, &said);
        self.check_taken(tasks, frameworks, &role_of, &said);
        self.roles.said = said;
    }

    /// What was launched for good since the last look passes no quota limit that was in force then or is now.
    fn check_quota(
        &mut self,
        tasks: &[TaskView],
        role_of: &BTreeMap<u64, &str>,
        uses: &BTreeMap<&str, [Resources; 2]>,
        said: &BTreeMap<String, RolePolicy>,
    ) {
        for view in tasks.iter().filter(|view| !view.state.is_terminal()) {
            let name = (view.framework.0, view.launch.task.to_string());
            let known = !self.roles.launched.insert(name.clone());
            if known || view.revocable {
                continue;
            }
            if let Some((_, launched)) = &mut self.roles.settling {
                *launched += 1;
            }
            for role in role_of.get(&name.0).into_iter().flat_map(|role| lineage(role)) {
                let (Some(now), Some(before)) = (said.get(role), self.roles.said.get(role)) else { continue };
                let used = uses.get(role).map(|[used, _]| used.clone()).unwrap_or_default();
                let least = |kind: &str| Some(now.limit.get(kind)?.max(before.limit.get(kind)?));
                let passed = now.limit.iter().find_map(|(kind, _)| {
                    let most = least(kind)?;
                    (used.amount(kind) > most).then(|| format!("{kind} {} of {most}", used.amount(kind)))
                });
                self.ensure(passed.is_none(), || {
                    format!("f{}/{} is launched, and role {role} uses {passed:?}, beyond its quota limit", name.0, name.1)
                });
            }
        }
    }

    /// Who lacks something, and who waits, in this step.
    fn note_needs(&mut self, views: &[RoleView], frameworks: &[FrameworkView], said: &BTreeMap<String, RolePolicy>) {
        let steps = self.steps;
        for view in views {
            let lacks = |(kind, amount): (&str, i64)| amount > view.used.amount(kind);
            if view.policy.guarantee.iter().any(lacks) {
                self.roles.lacked.insert(view.role.clone(), steps);
            }
        }
        let ranks = |of: &BTreeMap<String, RolePolicy>| {
            of.iter().filter(|(_, of)| of.priority > 0).map(|(role, of)| (role.clone(), of.priority)).collect::<Vec<_>>()
        };
        if ranks(said) != ranks(&self.roles.said) {
            self.roles.ranked = steps;
        }
        for view in frameworks.iter().filter(|view| !view.suppressed && !view.removing) {
            self.roles.awake.insert(view.id.0, steps);
        }
    }

    /// What is taken back may be, and somebody lacks it.
    fn check_taken(
        &mut self,
        tasks: &[TaskView],
        frameworks: &[FrameworkView],
        role_of: &BTreeMap<u64, &str>,
        said: &BTreeMap<String, RolePolicy>,
    ) {
        let steps = self.steps;
        let lately = |step: &u64| step + WINDOW_STEPS >= steps;
        let rank = |role: &str| lineage(role).filter_map(|role| said.get(role)).map(|of| of.priority).max().unwrap_or(0);
        for (name, role) in std::mem::take(&mut self.roles.fresh) {
            let view = tasks.iter().find(|view| view.framework.0 == name.0 && view.launch.task.as_str() == name.1);
            let spec = view.and_then(|view| self.roles.specs.get(&view.launch.spec)).copied();
            self.ensure(spec != Some(false), || {
                format!("f{}/{} is taken back for role {role}, and is not revocable", name.0, name.1)
            });
            let lacked = lineage(&role).any(|role| self.roles.lacked.get(role).is_some_and(lately));
            let below = role_of.get(&name.0).is_none_or(|of| rank(of) < rank(&role));
            let above = below || lately(&self.roles.ranked);
            let within = |view: &&FrameworkView| lineage(view.role.as_str()).any(|above| above == role);
            let mut those = frameworks.iter().filter(within);
            let waits = those.any(|view| self.roles.awake.get(&view.id.0).is_some_and(lately));
            self.ensure((lacked || above) && waits, || {
                format!("f{}/{} is taken back for role {role}, where nobody lacks anything", name.0, name.1)
            });
        }
    }

    /// A task that is taken back is told why while there is time.
    pub(super) fn check_told(&mut self, name: &TaskName, view: &TaskView) {
        if view.state == TaskState::Killing && self.is_taken(name) && !is_of_group(name) {
            let reason = view.status.reason;
            self.ensure(reason == Reason::Preempted, || {
                format!("f{}/{} is taken back, and told to end for {}", name.0, name.1, reason.code())
            });
        }
        let wrongly = view.status.reason == Reason::Preempted && !self.is_taken(name);
        self.ensure(!wrongly || self.is_restored(), || {
            format!("f{}/{} is said to be taken back, and is not", name.0, name.1)
        });
    }

    /// What a framework waits for.
    pub(super) fn note_requests(&mut self, view: &FrameworkView) {
        let Some(shadow) = self.frameworks.get_mut(&view.id.0) else { return };
        if shadow.asked.last().is_none_or(|(_, _, requests)| *requests != view.requests) {
            shadow.asked.push((view.last_turn.0, self.now_us, view.requests.clone()));
            let excess = shadow.asked.len().saturating_sub(ASKED_KEPT);
            shadow.asked.drain(..excess);
        }
    }

    /// A framework is offered what it waits for, where it says that it may be.
    pub(super) fn check_offer(
        &mut self,
        (framework, batch): (u64, u64),
        offer: &v1::Offer,
        about: impl Fn(AgentId) -> Option<(String, Vec<(String, String)>)>,
    ) {
        if !offer.revocable {
            self.roles.offered_us.insert(framework, self.now_us);
        } else {
            self.saw("what may be taken back is offered");
        }
        let Some(shadow) = self.frameworks.get(&framework) else { return };
        // What was offered before a turn was committed comes with the next batch.
        let asked: Vec<&Vec<ResourceRequest>> = asked_after(&shadow.asked, batch.saturating_sub(2), self.now_us).collect();
        let Some(now) = asked.last() else { return };
        let available: Resources = offer.available.clone().unwrap_or_default().into();
        let Some((hostname, attributes)) = about(AgentId(offer.agent)) else { return };
        let meant = |requests: &Vec<ResourceRequest>| {
            let fits = |of: &ResourceRequest| {
                of.revocable == offer.revocable
                    && available.contains(&of.resources)
                    && of.constraints.iter().all(|of| of.holds_for(&hostname, &attributes))
            };
            requests.iter().any(fits) || requests.is_empty() && !offer.revocable
        };
        let wanted = asked.iter().any(|requests| meant(requests));
        let text = format!("f{framework} waits for {now:?}, and is offered {available} of {hostname}, revocable: {}", offer.revocable);
        self.ensure(wanted, || text);
    }
}

/// What tasks that live sum up to in each role and all above it: for good, and to be taken back.
fn sums<'a>(tasks: &[TaskView], role_of: &BTreeMap<u64, &'a str>) -> BTreeMap<&'a str, [Resources; 2]> {
    let mut uses: BTreeMap<&str, [Resources; 2]> = BTreeMap::new();
    let mut executors = BTreeSet::new();
    for view in tasks.iter().filter(|view| !view.state.is_terminal()) {
        let mut all = view.resources.clone();
        if let Some(executor) = &view.executor
            && executors.insert((view.framework, view.agent, executor))
        {
            all.add(&Resources::of(EXECUTOR_NEEDS));
        }
        for role in role_of.get(&view.framework.0).into_iter().flat_map(|role| lineage(role)) {
            uses.entry(role).or_default()[usize::from(view.revocable)].add(&all);
        }
    }
    uses
}
