//! Tasks between leader and agent: comparing sets, desired state, statuses.
//!
//! Invariants: desired state is derived from the rows each time; nothing is desired while the sets are
//! being compared; an agent is told that a status is safe only after it committed.

use super::pace::Held;
use super::{Desk, Pending};
use crate::commands::reconcile_agent::verdict;
use crate::limits::{COMMAND_BYTES_MAX, STATUSES_IN_FLIGHT_MAX, STATUSES_MAX, TASK_SET_MAX};
use super::sessions::InstanceKey;
use crate::state::{Framework, Task};
use prost::Message;
use std::collections::BTreeMap;
use tessera_types::{AgentId, Digest, FrameworkId, TaskId, TaskState, TaskStatus};
use tessera_wire::v1::{self, master_message::Message as Out};
use tessera_wire::WireError;

impl Desk<'_> {
    /// The agent's whole set, because the hashes differed.
    pub(super) fn on_task_set(
        &mut self,
        session: u64,
        agent: AgentId,
        set: v1::TaskSet,
    ) -> Result<(), WireError> {
        if !self.leader.links.get(&agent).is_some_and(|link| link.comparing) {
            return Err(WireError::new("task_set", "was not asked for"));
        }
        if set.tasks.len() > TASK_SET_MAX {
            return Err(WireError::new("task_set.tasks", format!("at most {TASK_SET_MAX}")));
        }
        let mut theirs = BTreeMap::new();
        for entry in set.tasks {
            let state = TaskState::try_from(entry.state())?;
            let task = TaskId::try_from(entry.task)
                .map_err(|error| WireError::new("task_set.task", error.to_string()))?;
            let charge = entry.charge.unwrap_or_default();
            theirs.insert((FrameworkId(entry.framework), task), (state, entry.attempt, charge));
        }
        let noted = self.compare_strangers(session, agent, &theirs)?;
        let Some(row) = self.state.agents.get(&agent) else { return Ok(()) };
        let mut tasks = Vec::new();
        for (framework, id) in &row.tasks {
            let Some(task) = self.state.task(*framework, id) else { continue };
            let reported = theirs.get(&(*framework, id.clone())).map(|(state, attempt, _)| (*state, *attempt));
            if verdict(task, reported.map(|(state, _)| state)).is_none() {
                continue;
            }
            let (state, attempt) = reported.map_or((v1::TaskState::Unspecified, 0), |(state, attempt)| {
                (state.into(), attempt)
            });
            tasks.push(v1::ReconciledTask {
                framework: framework.0,
                task: id.to_string(),
                state: state.into(),
                attempt,
            });
        }
        // After strangers are noted, and not before, the sets agree.
        if tasks.is_empty() && !noted {
            self.compared(session);
            return Ok(());
        }
        let command = v1::ReconcileAgent { agent: agent.0, tasks };
        let command = v1::command::Command::ReconcileAgent(command);
        self.propose("", command, Pending::Reconcile { session });
        Ok(())
    }

    /// The sets agree, as far as they ever will: now the agent may be told what is desired.
    pub(crate) fn compared(&mut self, session: u64) {
        let Some(agent) = self.leader.sessions.get(&session).and_then(|s| s.agent) else { return };
        let Some(link) = self.leader.links.get_mut(&agent) else { return };
        if link.session != Some(session) {
            return;
        }
        link.comparing = false;
        self.leader.dirty_links.insert(agent);
        self.leader.offers.look_at(agent);
        self.leader.allocate = true;
    }

    pub(super) fn on_statuses(
        &mut self,
        session: u64,
        agent: AgentId,
        updates: v1::StatusUpdates,
    ) -> Result<(), WireError> {
        if updates.updates.len() > STATUSES_MAX {
            return Err(WireError::new("statuses", format!("at most {STATUSES_MAX} in a message")));
        }
        let (mut known, mut stale) = (Vec::new(), Vec::new());
        let mut ended = Vec::new();
        let mut acks = Vec::new();
        for update in updates.updates {
            let status = update.status.ok_or_else(|| WireError::missing("statuses.status"))?;
            let status = TaskStatus::try_from(status)?;
            if status.state == TaskState::Unknown || status.state == TaskState::Unreachable {
                return Err(WireError::new("statuses.state", "is not an agent's to report"));
            }
            if update.sequence == 0 {
                return Err(WireError::new("statuses.sequence", "counts from 1"));
            }
            let framework = FrameworkId(update.framework);
            let ack = v1::StatusAck {
                framework: framework.0,
                task: status.task.to_string(),
                sequence: update.sequence,
            };
            let task = self.state.live_task(framework, &status.task);
            let news = task.is_some_and(|t| t.agent == agent && t.agent_sequence < update.sequence);
            if news {
                known.push(v1::AgentStatus {
                    framework: framework.0,
                    sequence: update.sequence,
                    status: Some((&status).into()),
                });
                acks.push(ack);
            } else {
                if status.state.is_terminal() {
                    ended.push((framework, status.task));
                }
                stale.push(ack);
            }
        }
        self.strangers_ended(agent, ended);
        if !stale.is_empty() {
            self.send(session, Out::StatusAcks(v1::StatusAcks { acks: stale }));
        }
        let Some(record) = self.leader.sessions.get(&session) else { return Ok(()) };
        let admitted = record.statuses_in_flight < STATUSES_IN_FLIGHT_MAX;
        while admitted && !known.is_empty() {
            let Some(record) = self.leader.sessions.get_mut(&session) else { return Ok(()) };
            record.statuses_in_flight += 1;
            let rest = known.split_off(first_bytes(&known));
            let acks_rest = acks.split_off(known.len());
            let (statuses, acks) = (
                std::mem::replace(&mut known, rest),
                std::mem::replace(&mut acks, acks_rest),
            );
            self.hold_statuses(Held { session, agent, statuses, acks });
        }
        Ok(())
    }

    /// Send what changed since the agent was last told, or everything to a new session.
    pub(super) fn send_desired(&mut self, agent: AgentId) {
        let keys = self.instance_keys(agent);
        let ahead = self.leader.standbys.components(agent);
        let state = self.state;
        let term = self.leader.term;
        let Some(link) = self.leader.links.get_mut(&agent) else { return };
        let Some(session) = link.session else {
            link.changed.clear();
            return;
        };
        if link.comparing {
            return;
        }
        let mut desired =
            v1::Desired { generation: 0, full: link.full, tasks: vec![], removed: vec![], instances: vec![], ..Default::default() };
        let changed = std::mem::take(&mut link.changed);
        if link.full {
            link.sent.clear();
            let tasks = state.agents.get(&agent).into_iter().flat_map(|row| row.tasks.iter());
            for (framework, id) in tasks {
                let Some(task) = state.live_task(*framework, id) else { continue };
                desired.tasks.extend(desired_task(state, *framework, task));
                link.sent.insert((*framework, id.clone()), task.kill.map(|kill| kill.grace_ms));
            }
            let strangers = state.agents.get(&agent).into_iter().flat_map(|row| row.strangers.keys());
            for (framework, id) in strangers {
                desired.strangers.push(v1::TaskKey { framework: framework.0, task: id.to_string() });
                // So that it is told when they are to go.
                link.sent.insert((*framework, id.clone()), None);
            }
        } else {
            for (framework, id) in changed {
                let key = (framework, id);
                match state.live_task(framework, &key.1).filter(|task| task.agent == agent) {
                    Some(task) => {
                        let kill = task.kill.map(|kill| kill.grace_ms);
                        if link.sent.get(&key) != Some(&kill) {
                            desired.tasks.extend(desired_task(state, framework, task));
                            link.sent.insert(key, kill);
                        }
                    }
                    None if link.sent.remove(&key).is_some() => desired
                        .removed
                        .push(v1::TaskKey { framework: framework.0, task: key.1.to_string() }),
                    None => {}
                }
            }
        }
        if !link.full
            && desired.tasks.is_empty()
            && desired.removed.is_empty()
            && keys == link.sent_instances
            && link.sent_limits == self.leader.limits_generation
            && ahead == link.sent_ahead
        {
            return;
        }
        link.full = false;
        link.sent_instances.clone_from(&keys);
        link.sent_limits = self.leader.limits_generation;
        let components = ahead.iter().map(|digest| digest.0.to_vec()).collect();
        desired.compile_ahead = Some(v1::CompileAhead { components });
        link.sent_ahead = ahead;
        // Above every generation of an older leader.
        link.generation = (link.generation + 1).max((term << super::TERM_SHIFT) + 1);
        desired.generation = link.generation;
        desired.instances = self.desired_instances(keys);
        desired.limits = self.desired_limits();
        self.send(session, Out::Desired(desired));
    }

    /// What the agent is to host.
    fn instance_keys(&self, agent: AgentId) -> Vec<InstanceKey> {
        let here = |f: &&Framework| f.agent == Some(agent) && !f.removing;
        let frameworks = self.state.frameworks.iter().filter(|(_, f)| here(f));
        frameworks
            .map(|(id, framework)| (*id, framework.epoch, framework.config_version))
            .collect()
    }

    fn desired_instances(&self, keys: Vec<InstanceKey>) -> Vec<v1::DesiredInstance> {
        let instance = |(id, ..): InstanceKey| {
            let framework = self.state.frameworks.get(&id)?;
            let upgrade = framework.upgrade.as_ref();
            Some(v1::DesiredInstance {
                framework: id.0,
                name: framework.name.to_string(),
                role: framework.role.to_string(),
                epoch: framework.epoch.0,
                component: framework.component.0.to_vec(),
                config: crate::codec::pairs(&framework.config),
                seed: seed(&self.state.meta.cluster, id, framework.epoch.0),
                limits: super::limits::changed(&self.state.limits_of(&framework.role)),
                migrate_from: upgrade.filter(|u| u.migrating).map(|u| u.migrate_from),
            })
        };
        keys.into_iter().filter_map(instance).collect()
    }
}

/// How many statuses fit into one command; at least one, which always does.
fn first_bytes(statuses: &[v1::AgentStatus]) -> usize {
    let mut bytes = 0;
    let fits = statuses.iter().take_while(|status| {
        bytes += status.encoded_len();
        bytes <= COMMAND_BYTES_MAX / 2
    });
    fits.count().max(1)
}

/// The seed of an instance: the same for every master that asks.
fn seed(cluster: &str, framework: FrameworkId, epoch: u64) -> u64 {
    let mut bytes = cluster.as_bytes().to_vec();
    bytes.extend_from_slice(&framework.0.to_be_bytes());
    bytes.extend_from_slice(&epoch.to_be_bytes());
    let digest = Digest::of(&bytes).0;
    digest.first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first))
}

fn desired_task(
    state: &crate::state::State,
    framework: FrameworkId,
    task: &Task,
) -> Option<v1::DesiredTask> {
    let owner = state.frameworks.get(&framework)?;
    let spec = owner.specs.get(&task.launch.spec)?;
    let launch = v1::Launch::from(&task.launch);
    Some(v1::DesiredTask {
        framework: framework.0,
        role: owner.role.to_string(),
        launch: Some(launch),
        spec: spec.encoded.to_vec(),
        kill_grace_ms: task.kill.map(|kill| kill.grace_ms),
        group: task.group,
        trace: task.trace.as_deref().map_or_else(Vec::new, |trace| trace.to_bytes()),
    })
}
