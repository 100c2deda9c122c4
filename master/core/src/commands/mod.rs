//! The closed set of commands: one file each, checks first, then the change, then its effects.
//!
//! Invariant: a command that is refused has changed nothing.

mod add_component;
mod commit_turn;
mod create_framework;
mod end_drain;
mod end_strangers;
pub(crate) mod give_up_tasks;
mod hold_expiry;
mod init_cluster;
mod kill_task;
mod launch;
mod mark_gone;
mod mark_unreachable;
mod merge_state;
mod note_strangers;
mod place_scheduler;
mod preempt_tasks;
pub(crate) mod reconcile_agent;
mod record_failure;
mod refuse_boot;
mod register_agent;
mod release_framework;
mod remove_component;
mod remove_framework;
mod roll_back_framework;
mod set_agent_mode;
mod set_cluster_version;
mod set_config;
mod set_limits;
mod set_maintenance;
mod set_role;
mod update_statuses;
mod upgrade_framework;
mod write_state;

pub(crate) use commit_turn::validate as validate_turn;
pub(crate) use create_framework::{new as new_framework, validate_config};
pub use write_state::{TAG_BYTES, value_tag};
pub(crate) use roll_back_framework::before as version_before;
pub(crate) use set_limits::tag as limits_tag;

use crate::api::RequestError;
use crate::apply::{Apply, ApplyError};
use crate::effect::CommandResult;
use crate::{numbered, roles};
use tessera_wire::v1::command::Command as C;

/// What every build understands.
pub(crate) const FIRST_VERSION: u32 = 1;

/// What a state is at that says that it was restored.
pub(crate) const RESTORE_VERSION: u32 = 3;

/// Run one command.
pub(crate) fn run(apply: &mut Apply<'_>, command: C) -> Result<CommandResult, ApplyError> {
    let result = match command {
        C::InitCluster(command) => init_cluster::run(apply, command),
        C::RegisterAgent(command) => register_agent::run(apply, command),
        C::MarkUnreachable(command) => mark_unreachable::run(apply, command),
        C::ReconcileAgent(command) => reconcile_agent::run(apply, command),
        C::UpdateStatuses(command) => update_statuses::run(apply, command),
        C::AddComponent(command) => add_component::run(apply, command),
        C::RemoveComponent(command) => remove_component::run(apply, &command),
        C::CreateFramework(command) => create_framework::run(apply, command),
        C::RemoveFramework(command) => remove_framework::run(apply, command),
        C::PlaceScheduler(command) => place_scheduler::run(apply, command),
        C::CommitTurn(command) => return commit_turn::run(apply, command),
        C::KillTask(command) => kill_task::run(apply, command),
        C::RecordFailure(command) => record_failure::run(apply, command),
        C::SetLimits(command) => set_limits::run(apply, command),
        C::UpgradeFramework(command) => upgrade_framework::run(apply, command),
        C::RollBackFramework(command) => roll_back_framework::run(apply, command),
        C::SetConfig(command) => set_config::run(apply, command),
        C::ReleaseFramework(command) => release_framework::run(apply, command),
        C::SetAgentMode(command) => set_agent_mode::run(apply, command),
        C::EndDrain(command) => end_drain::run(apply, command),
        C::NoteStrangers(command) => note_strangers::run(apply, command)?,
        C::EndStrangers(command) => end_strangers::run(apply, command),
        C::MarkGone(command) => mark_gone::run(apply, command),
        C::SetMaintenance(command) => set_maintenance::run(apply, command),
        C::GiveUpTasks(command) => give_up_tasks::run(apply, command),
        C::RefuseBoot(command) => refuse_boot::run(apply, command),
        C::HoldExpiry(command) => hold_expiry::run(apply, command),
        C::SetClusterVersion(command) => set_cluster_version::run(apply, &command),
        C::OpenSession(command) => apply.open_session(&command),
        C::SetRole(command) => set_role::run(apply, command),
        C::PreemptTasks(command) => preempt_tasks::run(apply, command),
        C::MergeState(command) => return Ok(merge_state::run(apply, command)?),
        C::WriteState(command) => write_state::run(apply, command)?,
    };
    Ok(result.unwrap_or_else(CommandResult::Refused))
}

/// The cluster version that a command needs: it is proposed only once every voting master understands it.
/// A new command, or one whose meaning changes, gets the next number here.
pub(crate) fn since(command: &C) -> u32 {
    match command {
        C::SetLimits(command) => set_limits::since(command),
        C::InitCluster(_)
        | C::RegisterAgent(_)
        | C::MarkUnreachable(_)
        | C::ReconcileAgent(_)
        | C::UpdateStatuses(_)
        | C::AddComponent(_)
        | C::CreateFramework(_)
        | C::RemoveFramework(_)
        | C::PlaceScheduler(_)
        | C::CommitTurn(_)
        | C::KillTask(_)
        | C::RecordFailure(_)
        | C::UpgradeFramework(_)
        | C::RollBackFramework(_)
        | C::SetConfig(_)
        | C::ReleaseFramework(_)
        | C::MergeState(_)
        | C::SetAgentMode(_)
        | C::EndDrain(_)
        | C::MarkGone(_)
        | C::SetMaintenance(_)
        | C::GiveUpTasks(_)
        | C::HoldExpiry(_)
        | C::RefuseBoot(_)
        | C::SetClusterVersion(_) => FIRST_VERSION,
        C::RemoveComponent(_) | C::WriteState(_) => 2,
        C::NoteStrangers(_) | C::EndStrangers(_) => RESTORE_VERSION,
        C::OpenSession(_) => numbered::SINCE,
        C::SetRole(_) | C::PreemptTasks(_) => roles::SINCE,
    }
}

fn invalid<T>(field: &'static str, rule: impl Into<String>) -> Result<T, RequestError> {
    Err(RequestError::Invalid { field, rule: rule.into() })
}

fn not_found<T>(what: &'static str, name: impl ToString) -> Result<T, RequestError> {
    Err(RequestError::NotFound { what, name: name.to_string() })
}
