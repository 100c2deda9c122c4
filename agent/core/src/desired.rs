//! What the masters want of this agent: tasks taken up, changed, and abandoned; limits; what fits.
//!
//! Invariants: a generation is acknowledged after its records; what cannot be read or does not fit is
//! refused with a status, never left out in silence. This file must never start a task.

use crate::action::{Action, Now, TaskKey};
use crate::core::Core;
use crate::killing::Why;
use crate::records::accepted;
use crate::task::{Ending, Task};
use std::collections::BTreeSet;
use std::sync::Arc;
use tessera_types::{
    Digest, EffectiveLimits, FrameworkId, Launch, Reason, Resources, RoleName, TaskSpec,
    TaskState, TaskStatus, TraceId, limits, trace, validate_launch, validate_spec,
};
use tessera_wire::v1;
use v1::agent_message::Message;
use v1::checkpoint_record::Record;

/// The status of a task that is not taken up.
type Refusal = (TaskState, Reason, String);

impl Core {
    /// What the agent is to run.
    pub fn on_desired(&mut self, desired: v1::Desired, now: Now) -> Vec<Action> {
        if !desired.full && desired.generation <= self.generation {
            self.send(Message::DesiredAck(v1::DesiredAck {
                generation: self.generation,
            }));
            return self.finish(now);
        }
        self.take_limits(desired.limits);
        let mut named = BTreeSet::new();
        let mut last = None;
        for task in desired.tasks {
            if let Some(key) = self.desire_task(task, &mut last, now) {
                named.insert(key);
            }
        }
        // A state that was restored does not know them; nobody said that they are to end.
        for stranger in desired.strangers {
            if let Ok(task) = stranger.task.parse() {
                named.insert(TaskKey::of(FrameworkId(stranger.framework), task));
            }
        }
        for removed in desired.removed {
            if let Ok(task) = removed.task.parse() {
                let key = TaskKey::of(FrameworkId(removed.framework), task);
                self.abandon(&key, now);
            }
        }
        if desired.full {
            let strangers: Vec<_> = self
                .tasks
                .keys()
                .filter(|key| key.parent.is_none() && !named.contains(*key))
                .cloned()
                .collect();
            for key in strangers {
                self.abandon(&key, now);
            }
        }
        self.generation = desired.generation;
        self.keep(Record::Generation(v1::GenerationKept {
            generation: desired.generation,
            lives: self.executors.lives,
        }));
        self.send(Message::DesiredAck(v1::DesiredAck {
            generation: desired.generation,
        }));
        self.desire_instances(desired.instances, now);
        self.desire_ahead(desired.compile_ahead, now);
        self.finish(now)
    }

    fn take_limits(&mut self, roles: Vec<v1::RoleLimits>) {
        if self.role_limits != roles {
            self.role_limits.clone_from(&roles);
            self.executors.limits_changed();
            self.keep(Record::Limits(v1::LimitsKept { roles }));
        }
    }

    /// The limits of a role as workers are told them: those that differ from their defaults.
    pub(crate) fn told_limits_of(&self, role: &RoleName) -> &[v1::Limit] {
        let said = |name: &str| self.role_limits.iter().find(|limits| limits.role == name);
        let lineage: Vec<&str> = role.lineage().collect();
        let nearest = lineage.into_iter().rev().find_map(said);
        // What was said of it, or of its nearest parent, or of the cluster.
        nearest.or_else(|| said("")).map_or(&[], |limits| &limits.limits)
    }

    /// The limits of a role.
    pub(crate) fn limits_of(&self, role: &RoleName) -> EffectiveLimits {
        tessera_wire::effective_limits(self.told_limits_of(role))
    }

    /// Take one task up, or change what is wanted of it.
    fn desire_task(
        &mut self,
        desired: v1::DesiredTask,
        last: &mut Option<Read>,
        now: Now,
    ) -> Option<TaskKey> {
        let framework = FrameworkId(desired.framework);
        let launch = match desired.launch.map(Launch::try_from) {
            Some(Ok(launch)) => launch,
            Some(Err(error)) => {
                self.actions.push(Action::Warn(format!(
                    "a task of {framework} is not readable: {error}"
                )));
                return None;
            }
            None => return None,
        };
        let key = TaskKey::of(framework, launch.task.clone());
        if !self.tasks.contains_key(&key) {
            let parts = readable(&desired.role, &launch, &desired.spec, last);
            let trace = TraceId::of_bytes(&desired.trace);
            self.accept(&key, parts, (launch, trace), &desired.spec, desired.group, now);
        }
        if let Some(grace_ms) = desired.kill_grace_ms {
            let grace_ms = grace_ms.min(limits::GRACE_MAX_MS);
            self.kill(&key, grace_ms, Why::Asked, now);
        }
        Some(key)
    }

    fn accept(
        &mut self,
        key: &TaskKey,
        parts: Result<(RoleName, Arc<TaskSpec>), String>,
        (mut launch, trace): (Launch, Option<TraceId>),
        encoded: &[u8],
        group: u64,
        now: Now,
    ) {
        let (role, spec) = match parts {
            Ok(parts) => parts,
            Err(rule) => {
                // Without a role and a spec there is no record; asked again, it is refused again.
                self.refuse_unreadable(key, &launch, &rule, now);
                self.groups.spoil(key.framework, group);
                return;
            }
        };
        let refused = validate_spec(&spec)
            .and_then(|()| validate_launch(&launch, &spec))
            .map_err(|error| (TaskState::Error, Reason::InvalidSpec, error.to_string()))
            .and_then(|()| self.check_room(key, &spec));
        let named = launch.env.iter().chain(&spec.env).any(|(name, _)| name == trace::VARIABLE);
        if let Some(trace) = trace.filter(|_| !named) {
            // What it does may go on with the trace. It is no part of what its author said, and of no limit of that.
            launch.env.push((trace::VARIABLE.into(), trace.header()));
        }
        self.take_up(key, role, launch, spec, encoded, group);
        if let Err((state, reason, message)) = refused {
            self.end(key, Ending::new(state, reason, message, now.wall_ms), now);
        }
    }

    /// Put a task or child on record.
    pub(crate) fn take_up(
        &mut self,
        key: &TaskKey,
        role: RoleName,
        launch: Launch,
        spec: Arc<TaskSpec>,
        encoded: &[u8],
        group: u64,
    ) {
        let known = |task: &Task| task.launch.spec == launch.spec;
        if !self.tasks.values().any(known) {
            self.keep(Record::Spec(v1::SpecKept {
                encoded: encoded.to_vec(),
            }));
        }
        self.keep(accepted(key, &role, &launch, group));
        let mut task = Task::new(role, launch, spec);
        task.group = group;
        self.groups.join(key, &task);
        self.tasks.insert(key.clone(), task);
    }

    fn refuse_unreadable(&mut self, key: &TaskKey, launch: &Launch, rule: &str, now: Now) {
        let status = TaskStatus::new(
            launch.task.clone(),
            self.agent,
            TaskState::Error,
            now.wall_ms,
        )
        .because(Reason::InvalidSpec, rule);
        self.send(Message::Statuses(v1::StatusUpdates {
            updates: vec![v1::StatusUpdate {
                framework: key.framework.0,
                sequence: crate::outbox::sequence(1, TaskState::Error),
                status: Some((&status).into()),
            }],
        }));
    }

    /// The ledger: what is charged now, and whether more fits. The masters checked it already; an agent
    /// that came back smaller must still not overcommit.
    fn check_room(&self, key: &TaskKey, spec: &TaskSpec) -> Result<(), Refusal> {
        let free = self.config.total.minus(&self.used());
        let needs = spec.resources.plus(&self.new_executor_needs(key, spec));
        if free.contains(&needs) {
            return Ok(());
        }
        let message = format!("needs {needs}, the agent has {free} left");
        Err((TaskState::Dropped, Reason::NotEnough, message))
    }

    /// What tasks and executors take together now. Children take of their executors' share.
    #[must_use]
    pub fn used(&self) -> Resources {
        let of_masters = self.tasks.iter().filter(|(key, _)| key.parent.is_none());
        of_masters.fold(self.executors.charge(), |sum, (_, task)| {
            sum.plus(&task.charge())
        })
    }
}

/// The spec that was read last, and its bytes: of many tasks in one message most have the same one.
struct Read {
    encoded: Vec<u8>,
    digest: Digest,
    spec: Arc<TaskSpec>,
}

fn readable(
    role: &str,
    launch: &Launch,
    encoded: &[u8],
    last: &mut Option<Read>,
) -> Result<(RoleName, Arc<TaskSpec>), String> {
    let same = last.take().filter(|read| read.digest == launch.spec && read.encoded == encoded);
    let read = match same {
        Some(read) => read,
        None => read_spec(launch, encoded)?,
    };
    let spec = Arc::clone(&last.insert(read).spec);
    let role = role
        .parse()
        .map_err(|error: tessera_types::NameError| error.to_string())?;
    Ok((role, spec))
}

fn read_spec(launch: &Launch, encoded: &[u8]) -> Result<Read, String> {
    if Digest::of(encoded) != launch.spec {
        return Err("the spec does not have the digest that the launch names".into());
    }
    let spec = tessera_wire::decode_spec(encoded).map_err(|error| error.to_string())?;
    Ok(Read { encoded: encoded.to_vec(), digest: launch.spec, spec: Arc::new(spec) })
}
