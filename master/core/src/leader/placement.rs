//! Where schedulers run: on the slice that each agent keeps for them.
//!
//! Level-triggered: a framework without a place gets one as soon as there is room; one whose agent is
//! away for too long, or gave it up, gets another. Must never place beside a placement in flight.

use super::tenant_memory::Lack;
use super::{Desk, Pending};
use crate::api::Waiting;
use crate::limits::{REPLACE_AFTER_MS, SCHEDULER_MEM_MIB};
use tessera_types::{AgentId, FrameworkId, LimitName};
use tessera_wire::v1;

impl Desk<'_> {
    /// See to it that the framework has an instance record for its epoch, and a place.
    pub(super) fn settle_framework(&mut self, id: FrameworkId) {
        let Some(framework) = self.state.frameworks.get(&id).filter(|f| !f.removing) else {
            self.drop_instance(id);
            return;
        };
        self.align_instance(id, framework);
        self.settle_lifecycle(id);
        if self.needs_place(id) {
            self.place(id);
        }
    }

    fn needs_place(&self, id: FrameworkId) -> bool {
        let (Some(framework), Some(instance)) =
            (self.state.frameworks.get(&id), self.leader.instances.get(&id))
        else {
            return false;
        };
        if instance.placing.is_some() || framework.quarantine.is_some() {
            return false;
        }
        let Some(agent) = framework.agent else { return true };
        if instance.given_up_ms.is_some_and(|at| self.now.mono_ms >= at + REPLACE_AFTER_MS) {
            return true;
        }
        if instance.out_of_step {
            return true;
        }
        let draining = self.state.agents.get(&agent).is_some_and(|row| row.drain.is_some());
        if draining && self.choose(id).is_some() {
            return true;
        }
        let Some(link) = self.leader.links.get(&agent) else { return true };
        link.session.is_none()
            && self.now.mono_ms.saturating_sub(link.since_ms) > self.config.scheduler_grace_ms
    }

    fn place(&mut self, id: FrameworkId) {
        let Some(framework) = self.state.frameworks.get(&id) else { return };
        if self.tenant_lacks(id).is_some() {
            return;
        }
        let Some(agent) = self.choose(id) else { return };
        let command =
            v1::PlaceScheduler { framework: id.0, agent: agent.0, epoch: framework.epoch.0 };
        if let Some(instance) = self.leader.instances.get_mut(&id) {
            instance.placing = Some(agent);
        }
        let command = v1::command::Command::PlaceScheduler(command);
        self.propose("", command, Pending::Place { framework: id });
    }

    /// Where it is, if it can stay there under another epoch; else its standby, which has the code compiled;
    /// else the agent whose slice is least taken. Each only if it has room.
    fn choose(&self, id: FrameworkId) -> Option<AgentId> {
        let framework = self.state.frameworks.get(&id)?;
        let instances = self.leader.instances.values();
        let coming: Vec<AgentId> = instances.filter_map(|instance| instance.placing).collect();
        let given_up = self.leader.instances.get(&id).is_some_and(|i| i.given_up_ms.is_some());
        let stays = framework.agent.filter(|_| !given_up);
        let mut first = stays.into_iter().chain(self.standby_to_use(id));
        let first = first.find(|agent| self.share_taken(id, *agent, &coming).is_some());
        first.or_else(|| {
            let agents = self.leader.links.keys();
            let rooms = agents.filter_map(|agent| Some((self.share_taken(id, *agent, &coming)?, *agent)));
            rooms.min().map(|(_, agent)| agent)
        })
    }

    /// How much of its slice others have taken on an agent that answers and has room for it: a number by
    /// which agents compare.
    fn share_taken(&self, id: FrameworkId, agent: AgentId, coming: &[AgentId]) -> Option<u128> {
        self.session_of(agent)?;
        let row = self.state.agents.get(&agent).filter(|row| !row.deactivated)?;
        let own = self.state.frameworks.get(&id).is_some_and(|f| f.agent == Some(agent));
        let taken = self.state.schedulers_on(agent) - usize::from(own)
            + coming.iter().filter(|other| **other == agent).count();
        let mem_mib = row.resources.reserved.mem_mib;
        let need = i64::try_from(taken + 1).unwrap_or(i64::MAX);
        let room = mem_mib >= need.saturating_mul(SCHEDULER_MEM_MIB);
        // Shares of slices compare as taken / memory.
        room.then_some(((taken as u128) << 32) / u128::from(mem_mib.unsigned_abs().max(1)))
    }

    /// An agent came: whoever waits for room is looked at again.
    pub(super) fn touch_unplaced(&mut self) {
        let unplaced = self.state.frameworks.iter().filter(|(_, f)| match f.agent {
            None => true,
            Some(agent) => self.session_of(agent).is_none(),
        });
        let unplaced: Vec<FrameworkId> = unplaced.map(|(id, _)| *id).collect();
        self.leader.dirty_frameworks.extend(unplaced);
    }

    /// Why a framework's scheduler, or something else of it, is not running.
    pub(crate) fn explain(&self, id: FrameworkId) -> Vec<Waiting> {
        let mut waits = Vec::new();
        let mut wait = |what: &str, why: String| waits.push(Waiting { what: what.into(), why });
        let Some(framework) = self.state.frameworks.get(&id) else { return waits };
        let instance = self.leader.instances.get(&id);
        if framework.removing {
            wait("removal", format!("{} tasks have not ended yet", framework.live));
            return waits;
        }
        if let Some(quarantine) = &framework.quarantine {
            let (rule, name) = (&quarantine.rule, &framework.name);
            wait("scheduler", format!("quarantined by limit {rule}; `tessera framework release {name}` lets it run again"));
            return waits;
        }
        if framework.migrating() {
            wait("events and offers", "the state is being migrated to another version".into());
        }
        let drain = framework.agent.and_then(|agent| self.state.agents.get(&agent)?.drain);
        if let (Some(agent), Some(_)) = (framework.agent, drain) {
            wait("move of the scheduler", format!("{agent} is drained, and no other agent has room for it"));
        }
        match (framework.agent, instance) {
            (None, _) => {
                let connected = self.leader.links.values().filter(|l| l.session.is_some()).count();
                let why = if connected == 0 {
                    "no agent is connected".to_owned()
                } else if let Some(Lack { needs, taken, max }) = self.tenant_lacks(id) {
                    let (tenant, name) = (framework.role.tenant(), LimitName::TenantMemoryBytes);
                    format!(
                        "it may take {needs} bytes, and tenant {tenant}'s other schedulers may take {taken}; limit {name}: at most {max} together"
                    )
                } else if instance.is_some_and(|instance| instance.placing.is_some()) || self.choose(id).is_some() {
                    "an agent has room for it; the placement is being committed".to_owned()
                } else {
                    format!(
                        "none of {connected} connected agents has {SCHEDULER_MEM_MIB} MiB left of its slice for schedulers"
                    )
                };
                wait("placement of the scheduler", why);
            }
            (Some(agent), _) if self.session_of(agent).is_none() => {
                let why = format!("{agent} is not connected; after a grace it is placed elsewhere");
                wait("scheduler", why);
            }
            (Some(agent), Some(instance)) if !instance.ready => {
                let why = match &instance.last_error {
                    Some(error) => format!("{agent} starts it again after: {error}"),
                    None => format!("{agent} is starting it"),
                };
                wait("scheduler", why);
            }
            (Some(_), _) => {}
        }
        if let Some(lack) = self.leader.throttle.waits(framework.role.tenant(), id) {
            wait("turn", format!("tenant {} has used up its {lack}", framework.role.tenant()));
        }
        if framework.suppressed {
            wait("offers", "the scheduler suppressed them".into());
        } else if instance.is_some_and(|i| i.ready)
            && !framework.migrating()
            && self.leader.offers.held_by(id).is_empty() {
            wait("offers", "nothing is free that it has not declined for now".into());
        }
        let staging = framework.tasks.values();
        let staging = staging.filter(|task| task.state == tessera_types::TaskState::Staging).count();
        if staging > 0 {
            wait("tasks", format!("{staging} wait for their agent to start them"));
        }
        waits
    }
}
