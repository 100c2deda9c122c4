//! The user: uploads components, creates frameworks, talks to them, upgrades them, rolls them back,
//! replaces their configuration, releases those that are quarantined, and drains agents.
//!
//! Invariants: whatever was refused for the moment is asked again; a name that is taken was created by
//! an earlier request whose reply was lost. Must never look into the cluster, but for what it lists.

use crate::builds::Build;
use crate::calls::Ask;
use crate::files::SIZE_MAX;
use crate::model::{self, ASKS_KEY, NOTE_KEY, OUTSIDE_PREFIX};
use crate::mutation::Mutation;
use crate::operator::{Limited, policy};
use crate::queue::Event;
use crate::shares::Shares;
use crate::world::World;
use tessera_master_core::{
    Expected, FrameworkView, Reply, Request, RequestError, StateVersions, TaskFilter, World as ComponentWorld,
};
use tessera_types::{Digest, FrameworkId, HttpRequest, LimitName};

/// Keys of state that users write: few, so that they are written again and again.
const OUTSIDE_KEYS: u64 = 3;

/// Requests that one user has under way: more would only wait for each other.
const OPEN_MAX: usize = 8;

/// What is still to be done.
#[derive(Debug)]
pub(crate) struct User {
    steps: Vec<Request>,
    /// The call by which the step at hand was asked for.
    asked: Option<u64>,
    /// The step at hand was refused before; what was asked then may be done late.
    again: bool,
    /// Frameworks that exist.
    pub(crate) frameworks: u64,
    wanted: u64,
    /// Replacements of configurations so far: each has a number of its own.
    notes: u64,
    base: Vec<(String, String)>,
    /// It also uploads components that nothing uses, and removes them.
    extras: bool,
    /// A limit that the operator has set for now.
    pub(crate) limited: Option<Limited>,
    /// A framework to be removed in the middle of its work, and the request that was made.
    pub(crate) removes: Option<FrameworkId>,
}

/// Digest of the component of Wasm tasks.
pub(crate) fn command_component() -> Digest {
    Digest::of(COMMAND)
}

/// Bytes of these components.
const COMMAND: &[u8] = b"command";
const EXECUTOR: &[u8] = b"executor";

/// Components that nothing uses.
const EXTRAS: u64 = 3;

fn extra(number: u64) -> Vec<u8> {
    format!("extra {number}").into_bytes()
}

fn upload(digest: Digest, world: ComponentWorld, state: StateVersions) -> Request {
    Request::AddComponent {
        digest,
        size_bytes: SIZE_MAX,
        world,
        state,
        source: String::new(),
        report: String::new(),
    }
}

/// Digest of the component of executors.
pub(crate) fn executor_component() -> Digest {
    Digest::of(EXECUTOR)
}

impl User {
    pub(crate) fn new(
        (frameworks, tasks): (u64, u64),
        first_policy: u64,
        extras: bool,
        shares: Option<&Shares>,
    ) -> Self {
        let mut config =
            vec![("command".to_owned(), command_component().to_string()), ("tasks".to_owned(), tasks.to_string())];
        if shares.is_some() {
            config.push((ASKS_KEY.to_owned(), "1".to_owned()));
        }
        let role = |n| shares.map_or_else(|| format!("tenant{n}"), |shares| shares.role(n).to_owned());
        let mut steps: Vec<Request> = (0..frameworks)
            .filter_map(|n| {
                Some(Request::CreateFramework {
                    name: format!("work{n}").try_into().ok()?,
                    role: role(n).try_into().ok()?,
                    component: Build::First.component(),
                    config: config.clone(),
                    unreachable: policy(n + first_policy),
                })
            })
            .collect();
        steps.push(upload(command_component(), ComponentWorld::Command, StateVersions::default()));
        steps.push(upload(executor_component(), ComponentWorld::Executor, StateVersions::default()));
        for build in Build::ALL {
            steps.push(upload(build.component(), ComponentWorld::Scheduler, build.states()));
        }
        steps.extend(shares.map(|shares| Request::SetLimits {
            role: None,
            set: vec![(LimitName::PreemptionGraceMs, shares.grace_ms)],
            unset: Vec::new(),
            expected: None,
        }));
        Self {
            steps,
            asked: None,
            again: false,
            frameworks: 0,
            wanted: frameworks,
            notes: 0,
            base: config,
            extras,
            limited: None,
            removes: None,
        }
    }

    /// The bytes of a component.
    pub(crate) fn bytes_of(&self, digest: &Digest) -> Vec<u8> {
        let builds = Build::ALL.into_iter().map(Build::bytes);
        let others = [COMMAND.to_vec(), EXECUTOR.to_vec()].into_iter().chain((0..EXTRAS).map(extra));
        builds.chain(others).find(|bytes| Digest::of(bytes) == *digest).unwrap_or_default()
    }

    /// A component whose file was lost everywhere is to be uploaded once more.
    pub(crate) fn sends_again(&mut self, digest: Digest) {
        let build = Build::ALL.into_iter().find(|build| build.component() == digest);
        let (world, states) = match build {
            Some(build) => (ComponentWorld::Scheduler, build.states()),
            None if digest == executor_component() => (ComponentWorld::Executor, StateVersions::default()),
            None => (ComponentWorld::Command, StateVersions::default()),
        };
        // The last one may be under way.
        self.steps.insert(0, upload(digest, world, states));
    }

    /// A configuration that differs from all before.
    fn config(&mut self, traps: bool) -> Vec<(String, String)> {
        self.notes += 1;
        let mut config = self.base.clone();
        config.push((NOTE_KEY.to_owned(), self.notes.to_string()));
        config.push(("trap".to_owned(), u8::from(traps).to_string()));
        config
    }

    /// The cluster has a state of before.
    pub(crate) fn begins_again(&mut self, limited: Option<Limited>) {
        self.again |= self.asked.take().is_some();
        self.limited = limited;
    }

    /// Whether everything that it wants exists.
    pub(crate) const fn is_done(&self) -> bool {
        self.frameworks >= self.wanted
    }

    /// A request was answered. Returns what cannot be.
    pub(crate) fn on_reply(
        &mut self,
        call: u64,
        request: &Request,
        result: &Result<Reply, RequestError>,
    ) -> Option<String> {
        if self.asked != Some(call) {
            return None;
        }
        self.asked = None;
        if matches!(result, Err(RequestError::Conflict { field: "cluster_version", .. })) {
            // Not every master is known to know of it yet: it is asked again.
            return None;
        }
        let taken = matches!(result, Err(RequestError::Conflict { .. }));
        if result.is_err() && !taken {
            self.again = true;
            return None;
        }
        let again = std::mem::take(&mut self.again);
        self.steps.pop();
        self.frameworks += u64::from(matches!(request, Request::CreateFramework { .. }));
        (taken && !again).then(|| format!("what was asked once is said to be there: {request:?}"))
    }
}

/// No framework is removed before, in us.
const REMOVE_AFTER_US: u64 = 8_000_000;

impl World {
    fn change(&mut self, request: Request) {
        self.ask(Ask::Change(request), None);
    }

    /// The user uploads a component that nothing uses, or removes one.
    fn user_tries_components(&mut self) {
        let digest = Digest::of(&extra(self.rng.below(EXTRAS)));
        let request = if self.rng.chance(50) {
            upload(digest, ComponentWorld::Command, StateVersions::default())
        } else {
            Request::RemoveComponent { digest }
        };
        self.change(request);
    }

    /// The user ends some task of a framework; its scheduler has to see to a replacement.
    fn user_kills(&mut self, framework: FrameworkId) {
        let Some(node) = self.leading() else { return };
        let filter = TaskFilter {
            framework: Some(framework),
            live_only: true,
            ..TaskFilter::default()
        };
        let tasks = node.core().tasks(&filter);
        if tasks.is_empty() {
            return;
        }
        let task = tasks[self.rng.index(tasks.len())].launch.task.clone();
        self.oracle.on_user_kill(framework.0, &task);
        let grace_ms = self.rng.chance(50).then_some(200);
        let request = Request::KillTask { framework, task, grace_ms };
        self.change(request);
    }

    /// The user changes what a framework runs.
    fn user_changes(&mut self, framework: FrameworkId) {
        let seen = self.leading().and_then(|node| node.core().framework(framework));
        if let Some(view) = seen.filter(|_| self.rng.chance(30)) {
            return self.user_swaps(&view, false);
        }
        let request = match self.rng.below(20) {
            0..8 => {
                let component = Build::ALL[self.rng.index(Build::ALL.len())].component();
                Request::UpgradeFramework { framework, component }
            }
            8..12 => Request::RollBackFramework { framework, version: None },
            12..17 => {
                let config = self.user.config(false);
                let unreachable = self.another_policy(framework);
                Request::SetConfig { framework, config, expected_version: None, unreachable }
            }
            _ => {
                let config = self.user.config(true);
                Request::SetConfig { framework, config, expected_version: None, unreachable: None }
            }
        };
        self.change(request);
    }

    /// The user replaces a configuration, if it is still the one that was seen.
    fn user_swaps(&mut self, view: &FrameworkView, traps: bool) {
        let request = Request::SetConfig {
            framework: view.id,
            config: self.user.config(traps),
            expected_version: Some(view.config_version),
            unreachable: None,
        };
        self.ask(Ask::Change(request), Some(&view.config));
    }

    /// The user reads and writes configurations and state beside everything else, so that histories are dense.
    fn user_looks(&mut self, framework: FrameworkId) {
        if self.rng.chance(20) {
            let config = self.user.config(false);
            self.change(Request::SetConfig { framework, config, expected_version: None, unreachable: None });
        }
        for _ in 0..self.rng.below(4) {
            self.ask(Ask::Read(framework), None);
        }
        for _ in 0..self.rng.below(4) {
            let key = format!("{OUTSIDE_PREFIX}{}", self.rng.below(OUTSIDE_KEYS));
            if self.rng.chance(40) {
                self.ask(Ask::ReadKey(framework, key), None);
                continue;
            }
            self.user.notes += 1;
            let value = self.rng.chance(80).then(|| self.user.notes.to_string().into_bytes());
            let expected = Expected::Anything;
            self.change(Request::WriteState { framework, key, value, expected });
        }
    }

    /// The user lets schedulers that were told to trap work again. Returns whether there was one.
    fn user_repairs(&mut self) -> bool {
        let Some(node) = self.leading() else { return false };
        let held = node.core().frameworks().into_iter().find(|view| {
            let traps = model::tells_to_trap(&view.config);
            !view.removing && (view.quarantine.is_some() || (traps && !self.faults_on))
        });
        let Some(view) = held else { return false };
        let filter = TaskFilter { framework: Some(view.id), live_only: true, ..TaskFilter::default() };
        let tasks = node.core().tasks(&filter);
        if self.mutation == Some(Mutation::QuarantineEndsTasks) && self.rng.chance(50) {
            if let Some(task) = tasks.first().map(|task| task.launch.task.clone()) {
                let request = Request::KillTask { framework: view.id, task, grace_ms: None };
                self.change(request);
            }
            return true;
        }
        if self.faults_on && self.rng.chance(60) {
            return false;
        }
        let framework = view.id;
        if model::tells_to_trap(&view.config) {
            self.user_swaps(&view, false);
        } else {
            self.change(Request::ReleaseFramework { framework });
        }
        true
    }

    /// The user takes agents out of use, has them emptied, and puts them to use again; all of them at the
    /// end. Returns whether there was something to do.
    fn user_tends_agents(&mut self) -> bool {
        let Some(node) = self.leading() else { return false };
        let agents = node.core().agents();
        let out = agents.iter().find(|view| view.deactivated).map(|view| view.id);
        let request = match out {
            Some(agent) if !self.faults_on || self.rng.chance(20) => {
                Request::SetAgentMode { agent, deactivated: false, drain_ms: None }
            }
            None if self.faults_on && !agents.is_empty() && self.rng.chance(5) => {
                let agent = agents[self.rng.index(agents.len())].id;
                let drain_ms = self.rng.chance(50).then(|| self.rng.range(0, 4_000));
                self.oracle.drained.insert(agent);
                self.oracle.wishes.asked_back.insert(agent);
                Request::SetAgentMode { agent, deactivated: true, drain_ms }
            }
            Some(_) | None => return false,
        };
        self.change(request);
        true
    }

    pub(crate) fn user_acts(&mut self) {
        let now_us = self.now_us;
        self.queue.at(now_us + self.rng.range(60_000, 400_000), Event::User);
        let due = self.user.asked.is_none();
        if let Some(request) = self.user.steps.last().filter(|_| due).cloned() {
            self.user.asked = Some(self.ask(Ask::Change(request), None));
        } else if self.calls.open() > OPEN_MAX {
            return;
        } else if self.user.is_done() && self.faults_on {
            let framework = FrameworkId(1 + self.rng.below(self.user.frameworks));
            if self.user.extras && self.rng.chance(12) {
                return self.user_tries_components();
            }
            if self.rng.chance(10) {
                return self.user_kills(framework);
            }
            if self.rng.chance(15) {
                return self.user_changes(framework);
            }
            self.user_looks(framework);
            if self.user.removes.is_none() && self.now_us > REMOVE_AFTER_US && self.rng.chance(2) {
                self.user.removes = Some(framework);
            }
        }
        if let Some(framework) = self.user.removes
            && self.oracle.removed() == 0
        {
            // Asked again until it is done: asking twice is harmless.
            if !self.calls.asks(|request| matches!(request, Request::RemoveFramework { .. })) {
                self.change(Request::RemoveFramework { framework });
            }
            return;
        }
        if self.user.is_done() && (self.user_repairs() || self.user_tends_agents() || self.operator_acts()) {
            return;
        }
        if self.user.is_done() && self.faults_on && self.rng.chance(70) {
            let framework = FrameworkId(1 + self.rng.below(self.user.frameworks));
            let request = HttpRequest {
                method: "GET".to_owned(),
                path: "/count".to_owned(),
                idempotency_key: None,
                ..HttpRequest::default()
            };
            self.ask(Ask::Http(framework, request), None);
        }
    }
}
