//! From now on all masters understand newer commands.
//!
//! The leader proposes it once every voting master says that its build understands the version; a master
//! whose build does not stops instead of guessing.

use super::{FIRST_VERSION, invalid};
use crate::api::RequestError;
use crate::apply::Apply;
use crate::effect::CommandResult;
use tessera_wire::v1;

/// Carry it out; a version never goes back.
pub(super) fn run(
    apply: &mut Apply<'_>,
    command: &v1::SetClusterVersion,
) -> Result<CommandResult, RequestError> {
    let present = apply.state.meta.cluster_version;
    if command.version < FIRST_VERSION {
        return invalid("version", format!("at least {FIRST_VERSION}"));
    }
    if command.version < present {
        return invalid("version", format!("the cluster is at {present}, and never goes back"));
    }
    if command.version > present {
        apply.state.meta.cluster_version = command.version;
        let text = format!("{present} to {}", command.version);
        apply.event("cluster.version", None, None, None, &text);
    }
    Ok(CommandResult::Done)
}
