//! The user: uploads components, creates frameworks, talks to them, upgrades them, rolls them back,
//! replaces their configuration, releases those that are quarantined, and drains agents.
//!
//! Invariants: whatever was refused for the moment is asked again; a name that is taken was created by
//! an earlier request whose reply was lost. Must never look into the cluster, but for what it lists.

use crate::builds::Build;
use crate::master::Inbound;
use crate::model::{self, NOTE_KEY};
use crate::mutation::Mutation;
use crate::queue::Event;
use crate::world::World;
use tessera_master_core::{
    Keep, Reply, Request, RequestError, StateVersions, TaskFilter, UnreachablePolicy,
    World as ComponentWorld,
};
use tessera_types::{Digest, FrameworkId, HttpRequest};

/// Time after which a request without a reply is made again, in us.
const REPEAT_US: u64 = 1_500_000;

/// What is still to be done.
#[derive(Debug)]
pub(crate) struct User {
    steps: Vec<Request>,
    /// The step at hand was asked for at that time.
    asked_us: Option<u64>,
    /// Frameworks that exist.
    pub(crate) frameworks: u64,
    wanted: u64,
    /// Replacements of configurations so far: each has a number of its own.
    notes: u64,
    base: Vec<(String, String)>,
    /// A framework to be removed in the middle of its work, and the request that was made.
    pub(crate) removes: Option<FrameworkId>,
}

/// Digest of the component of Wasm tasks.
pub(crate) fn command_component() -> Digest {
    Digest::of(b"command")
}

/// After so long the schedulers are told that they may replace a task; they wait all the same.
const REPLACE_AFTER_MS: u64 = 2_000;

/// Digest of the component of executors.
pub(crate) fn executor_component() -> Digest {
    Digest::of(b"executor")
}

impl User {
    pub(crate) fn new(frameworks: u64, tasks: u64) -> Self {
        let config =
            vec![("command".to_owned(), command_component().to_string()), ("tasks".to_owned(), tasks.to_string())];
        let mut steps: Vec<Request> = (0..frameworks)
            .filter_map(|n| {
                Some(Request::CreateFramework {
                    name: format!("work{n}").try_into().ok()?,
                    role: format!("tenant{n}").try_into().ok()?,
                    component: Build::First.component(),
                    config: config.clone(),
                    // The last one does not wait for ever, and takes its tasks up again.
                    unreachable: UnreachablePolicy {
                        replace_after_ms: (n > 0).then_some(REPLACE_AFTER_MS),
                        keep: Keep::First,
                    },
                })
            })
            .collect();
        let upload = |digest, world, state| Request::AddComponent {
            digest,
            size_bytes: 100,
            world,
            state,
            source: String::new(),
            report: String::new(),
        };
        steps.push(upload(command_component(), ComponentWorld::Command, StateVersions::default()));
        steps.push(upload(executor_component(), ComponentWorld::Executor, StateVersions::default()));
        for build in Build::ALL {
            steps.push(upload(build.component(), ComponentWorld::Scheduler, build.states()));
        }
        Self {
            steps,
            asked_us: None,
            frameworks: 0,
            wanted: frameworks,
            notes: 0,
            base: config,
            removes: None,
        }
    }

    /// A configuration that differs from all before.
    fn config(&mut self, traps: bool) -> Vec<(String, String)> {
        self.notes += 1;
        let mut config = self.base.clone();
        config.push((NOTE_KEY.to_owned(), self.notes.to_string()));
        config.push(("trap".to_owned(), u8::from(traps).to_string()));
        config
    }

    /// Whether everything that it wants exists.
    pub(crate) const fn is_done(&self) -> bool {
        self.frameworks >= self.wanted
    }

    pub(crate) const fn on_master_crash(&mut self) {
        self.asked_us = None;
    }

    pub(crate) fn on_reply(&mut self, request: &Request, result: &Result<Reply, RequestError>) {
        if self.steps.last() != Some(request) {
            return;
        }
        self.asked_us = None;
        let done = match result {
            Ok(_) | Err(RequestError::Conflict { .. }) => true,
            Err(_) => false,
        };
        if done {
            self.steps.pop();
            self.frameworks += u64::from(matches!(request, Request::CreateFramework { .. }));
        }
    }
}

/// No framework is removed before, in us.
const REMOVE_AFTER_US: u64 = 8_000_000;

impl World {
    /// The user ends some task of a framework; its scheduler has to see to a replacement.
    fn user_kills(&mut self, framework: FrameworkId) {
        let Some(node) = &self.master.node else { return };
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
        self.master_inbound(Inbound::Request { request });
    }

    /// The user changes what a framework runs.
    fn user_changes(&mut self, framework: FrameworkId) {
        let request = match self.rng.below(20) {
            0..8 => {
                let component = Build::ALL[self.rng.index(Build::ALL.len())].component();
                Request::UpgradeFramework { framework, component }
            }
            8..12 => Request::RollBackFramework { framework, version: None },
            12..17 => {
                let config = self.user.config(false);
                Request::SetConfig { framework, config, expected_version: None, unreachable: None }
            }
            _ => {
                let config = self.user.config(true);
                Request::SetConfig { framework, config, expected_version: None, unreachable: None }
            }
        };
        self.master_inbound(Inbound::Request { request });
    }

    /// The user lets schedulers that were told to trap work again. Returns whether there was one.
    fn user_repairs(&mut self) -> bool {
        let Some(node) = &self.master.node else { return false };
        let held = node.core().frameworks().into_iter().find(|view| {
            let traps = model::tells_to_trap(&view.config);
            !view.removing && (view.quarantine.is_some() || (traps && !self.faults_on))
        });
        let Some(view) = held else { return false };
        if self.mutation == Some(Mutation::QuarantineEndsTasks) && self.rng.chance(50) {
            let filter = TaskFilter { framework: Some(view.id), live_only: true, ..TaskFilter::default() };
            let tasks = node.core().tasks(&filter);
            if let Some(task) = tasks.first().map(|task| task.launch.task.clone()) {
                let request = Request::KillTask { framework: view.id, task, grace_ms: None };
                self.master_inbound(Inbound::Request { request });
            }
            return true;
        }
        if self.faults_on && self.rng.chance(60) {
            return false;
        }
        let framework = view.id;
        let request = if model::tells_to_trap(&view.config) {
            let config = self.user.config(false);
            Request::SetConfig {
                framework,
                config,
                expected_version: Some(view.config_version),
                unreachable: None,
            }
        } else {
            Request::ReleaseFramework { framework }
        };
        self.master_inbound(Inbound::Request { request });
        true
    }

    /// The user takes agents out of use, has them emptied, and puts them to use again; all of them at the
    /// end. Returns whether there was something to do.
    fn user_tends_agents(&mut self) -> bool {
        let Some(node) = &self.master.node else { return false };
        let agents = node.core().agents();
        let out = agents.iter().find(|view| view.deactivated).map(|view| view.id);
        let request = match out {
            Some(agent) if !self.faults_on || self.rng.chance(20) => {
                Request::SetAgentMode { agent, deactivated: false, drain_ms: None }
            }
            None if self.faults_on && !agents.is_empty() && self.rng.chance(5) => {
                let agent = agents[self.rng.index(agents.len())].id;
                let drain_ms = self.rng.chance(50).then(|| self.rng.range(0, 4_000));
                Request::SetAgentMode { agent, deactivated: true, drain_ms }
            }
            Some(_) | None => return false,
        };
        self.master_inbound(Inbound::Request { request });
        true
    }

    pub(crate) fn user_acts(&mut self) {
        let now_us = self.now_us;
        self.queue.at(now_us + self.rng.range(100_000, 500_000), Event::User);
        let due = self.user.asked_us.is_none_or(|asked| now_us >= asked + REPEAT_US);
        if let Some(request) = self.user.steps.last().filter(|_| due).cloned() {
            if self.master.node.is_some() {
                self.user.asked_us = Some(now_us);
                self.master_inbound(Inbound::Request { request });
            }
        } else if self.user.is_done() && self.faults_on {
            let framework = FrameworkId(1 + self.rng.below(self.user.frameworks));
            if self.rng.chance(10) {
                return self.user_kills(framework);
            }
            if self.rng.chance(12) {
                return self.user_changes(framework);
            }
            if self.user.removes.is_none() && self.now_us > REMOVE_AFTER_US && self.rng.chance(2) {
                self.user.removes = Some(framework);
            }
        }
        if let Some(framework) = self.user.removes
            && self.oracle.removed() == 0
        {
            // Asked again until it is done: asking twice is harmless.
            return self.master_inbound(Inbound::Request { request: Request::RemoveFramework { framework } });
        }
        if self.user.is_done() && (self.user_repairs() || self.user_tends_agents()) {
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
            self.master_inbound(Inbound::Http { framework, request });
        }
    }
}
