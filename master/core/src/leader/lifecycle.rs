//! Upgrades, rollbacks and merges as the leader sees to them.
//!
//! Level-triggered: what a framework's row asks for is proposed until it is done. Invariants: an upgrade
//! that failed is rolled back whatever else happens; of each kind at most one command is under way. Must
//! never decide that an upgrade is final, which only a committed turn does.

use super::{Desk, Pending};
use crate::limits::{MIGRATION_TURNS_MAX, TRIAL_PREPARE_MS, TRIAL_READY_MS};
use crate::state::Framework;
use tessera_types::FrameworkId;
use tessera_wire::v1::{self, command::Command};

/// What the leader has in hand for a framework's upgrade.
#[derive(Debug, Default)]
pub(crate) struct Care {
    /// Why the upgrade is to be rolled back.
    pub(super) failed: Option<String>,
    /// Since when the new component has not been ready, on an agent that answers.
    waiting_ms: Option<u64>,
    /// Since when it is being built there: it is compiled, and its state was asked for.
    building_ms: Option<u64>,
    pub(super) rolling_back: bool,
    pub(super) merging: bool,
}

impl Care {
    /// What outlives the instance: commands that are under way.
    pub(super) fn under_way(&self) -> Self {
        Self { rolling_back: self.rolling_back, merging: self.merging, ..Self::default() }
    }

    /// There was no room for the new component where it was to be built: its time has not begun.
    pub(super) fn no_room(&mut self) {
        self.building_ms = None;
    }

    /// Why the new component is too late, if it is. It `builds` when its agent has all that it needs.
    fn too_late(&mut self, builds: bool, now_ms: u64) -> Option<String> {
        let since = |begun: &mut Option<u64>| now_ms.saturating_sub(*begun.get_or_insert(now_ms));
        if builds && since(&mut self.building_ms) >= TRIAL_READY_MS {
            return Some(format!("not ready within {TRIAL_READY_MS} ms"));
        }
        let late = since(&mut self.waiting_ms) >= TRIAL_PREPARE_MS;
        late.then(|| format!("its agent could not begin to build it within {TRIAL_PREPARE_MS} ms"))
    }
}

impl Desk<'_> {
    /// See to what the framework's upgrade, or its end, asks for.
    pub(super) fn settle_lifecycle(&mut self, id: FrameworkId) {
        let Some(framework) = self.state.frameworks.get(&id) else { return };
        if framework.merging {
            self.merge(id);
        }
        if framework.upgrade.is_some() {
            self.watch_upgrade(id, framework);
        }
        if framework.quarantine.is_some() {
            self.fail_queued_http(id, "QUARANTINED", "the scheduler failed too often and was quarantined");
        } else if framework.migrating() {
            self.fail_queued_http(id, "MIGRATING", "the scheduler's state is being migrated");
        }
    }

    fn merge(&mut self, id: FrameworkId) {
        let Some(instance) = self.leader.instances.get_mut(&id) else { return };
        if !std::mem::replace(&mut instance.care.merging, true) {
            let command = Command::MergeState(v1::MergeState { framework: id.0 });
            self.propose("", command, Pending::Merge { framework: id });
        }
    }

    fn watch_upgrade(&mut self, id: FrameworkId, framework: &Framework) {
        let answers = framework.agent.is_some_and(|agent| self.session_of(agent).is_some());
        let now_ms = self.now.mono_ms;
        let Some(upgrade) = &framework.upgrade else { return };
        let Some(instance) = self.leader.instances.get_mut(&id) else { return };
        let care = &mut instance.care;
        let late = if instance.ready || !answers {
            (care.waiting_ms, care.building_ms) = (None, None);
            None
        } else {
            care.too_late(instance.fetched, now_ms)
        };
        let turns = framework.next_turn().0.saturating_sub(upgrade.first_turn.0);
        let reason = if let Some(failed) = &care.failed {
            failed.clone()
        } else if upgrade.migrating && turns >= MIGRATION_TURNS_MAX {
            format!("the migration took {MIGRATION_TURNS_MAX} turns and was not done")
        } else if let Some(late) = late {
            match instance.last_error.as_ref().filter(|_| instance.failed) {
                Some(error) => format!("{late}: {error}"),
                None => late,
            }
        } else {
            return;
        };
        if !std::mem::replace(&mut care.rolling_back, true) {
            let command = Command::RollBackFramework(v1::RollBackFramework {
                framework: id.0,
                version: 0,
                failed_version: framework.version(),
                reason,
            });
            self.propose("", command, Pending::RollBack { framework: id });
        }
    }

    /// A command for a framework's upgrade was applied, or was not taken.
    pub(super) fn lifecycle_done(&mut self, id: FrameworkId, release: fn(&mut Care)) {
        if let Some(instance) = self.leader.instances.get_mut(&id) {
            release(&mut instance.care);
        }
        self.leader.dirty_frameworks.insert(id);
    }
}
