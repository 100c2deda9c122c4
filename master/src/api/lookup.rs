//! Finding what a path names.

use super::error::ApiError;
use crate::node_handle::NodeHandle;
use tessera_master_core::{Core, LookupError};
use tessera_types::{AgentId, FrameworkId, NameError, RoleName, TaskId};

/// Bytes of what names a framework: two names of 255 and a colon. More is not worth repeating.
const REFERENCE_BYTES_MAX: usize = 511;

/// A framework by id (`f1`), name, or `tenant:name`.
pub fn framework_in(core: &Core, text: &str) -> Result<FrameworkId, LookupError> {
    if let Ok(id) = text.parse::<FrameworkId>()
        && core.framework(id).is_some()
    {
        return Ok(id);
    }
    match text.split_once(':') {
        Some((tenant, name)) => core.framework_by_name(Some(tenant), name),
        None => core.framework_by_name(None, text),
    }
}

/// The same, asked of the node.
pub async fn framework(node: &NodeHandle, text: String) -> Result<FrameworkId, ApiError> {
    if text.len() > REFERENCE_BYTES_MAX {
        return Err(ApiError::invalid(
            "framework",
            format!("at most {REFERENCE_BYTES_MAX} bytes"),
        ));
    }
    let asked = text.clone();
    match node.query(move |core, _| framework_in(core, &asked)).await? {
        // A master that led until a moment ago may not know of it yet: that it is not there is said only
        // by one that still leads.
        Err(LookupError::NotFound(_)) => {
            node.barrier().await?;
            Ok(node.query(move |core, _| framework_in(core, &text)).await??)
        }
        found => Ok(found?),
    }
}

/// The same of what this master knows, which may not lead.
pub async fn framework_here(node: &NodeHandle, text: String) -> Result<FrameworkId, ApiError> {
    if text.len() > REFERENCE_BYTES_MAX {
        return Err(ApiError::invalid("framework", format!("at most {REFERENCE_BYTES_MAX} bytes")));
    }
    Ok(node.query(move |core, _| framework_in(core, &text)).await??)
}

/// A framework that may be named.
pub async fn some_framework(node: &NodeHandle, text: Option<String>) -> Result<Option<FrameworkId>, ApiError> {
    match text {
        Some(text) => Ok(Some(framework(node, text).await?)),
        None => Ok(None),
    }
}

/// A task's id as a path names it.
pub fn task(text: &str) -> Result<TaskId, ApiError> {
    text.parse().map_err(|error: NameError| ApiError::invalid("task", error.to_string()))
}

/// An agent's id.
pub fn agent(text: &str) -> Result<AgentId, ApiError> {
    text.parse().map_err(|error: NameError| ApiError::invalid("agent", error.to_string()))
}

/// A role's name.
pub fn role(text: &str) -> Result<RoleName, ApiError> {
    text.parse().map_err(|error: NameError| ApiError::invalid("role", error.to_string()))
}
