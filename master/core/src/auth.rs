//! Who may do what: the one function that every request passes.
//!
//! Invariant: nothing is decided anywhere else. The identity is proven by the transport and comes in
//! as an argument.

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Shown in records.
    pub name: String,
    /// What was proven.
    pub kind: PrincipalKind,
}

/// What is known of who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrincipalKind {
    /// Holds the administrator's token.
    Administrator,
    /// Proved nothing.
    Anonymous,
}

impl Principal {
    /// The holder of the administrator's token.
    #[must_use]
    pub fn administrator() -> Self {
        Self { name: "admin".into(), kind: PrincipalKind::Administrator }
    }

    /// Somebody without a token.
    #[must_use]
    pub fn anonymous() -> Self {
        Self { name: String::new(), kind: PrincipalKind::Anonymous }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask whether the master lives.
    Health,
    /// Read.
    Read,
    /// Read files of tasks and logs.
    ReadLogs,
    /// Create.
    Create,
    /// Remove.
    Remove,
    /// Change what is there: limits, components, configurations.
    Change,
    /// End a task.
    Kill,
    /// Call a scheduler.
    Call,
    /// Take part as an agent.
    Serve,
}

impl Action {
    const fn verb(self) -> &'static str {
        match self {
            Self::Health => "ask for the health of",
            Self::Read => "read",
            Self::ReadLogs => "read the logs of",
            Self::Create => "create",
            Self::Remove => "remove",
            Self::Change => "change",
            Self::Kill => "kill",
            Self::Call => "call",
            Self::Serve => "serve",
        }
    }
}

/// What it is done to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The cluster as a whole.
    Cluster,
    /// Agents.
    Agent,
    /// Components.
    Component,
    /// The limits of a role.
    Limits {
        /// The role; none is the cluster.
        role: Option<String>,
    },
    /// A role: its weight and its quota.
    Role {
        /// Which; none when it is not known yet.
        role: Option<String>,
    },
    /// A framework, its tasks included.
    Framework {
        /// Its role; none when it is not known yet.
        role: Option<String>,
    },
}

impl Object {
    const fn noun(&self) -> &'static str {
        match self {
            Self::Cluster => "the cluster",
            Self::Agent => "agents",
            Self::Component => "components",
            Self::Limits { .. } => "limits",
            Self::Role { .. } => "roles",
            Self::Framework { .. } => "frameworks",
        }
    }
}

/// Refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{principal} may not {verb} {noun}")]
pub struct Forbidden {
    /// Who asked.
    pub principal: String,
    /// What for.
    pub verb: &'static str,
    /// Of what.
    pub noun: &'static str,
}

/// Decide. In this version the administrator may do everything, and others may ask for the health.
///
/// # Errors
/// When the principal may not.
pub fn authorize(principal: &Principal, action: Action, object: &Object) -> Result<(), Forbidden> {
    match (principal.kind, action) {
        (PrincipalKind::Administrator, _) | (PrincipalKind::Anonymous, Action::Health) => Ok(()),
        (
            PrincipalKind::Anonymous,
            Action::Read
            | Action::ReadLogs
            | Action::Create
            | Action::Remove
            | Action::Change
            | Action::Kill
            | Action::Call
            | Action::Serve,
        ) => Err(Forbidden {
            principal: if principal.name.is_empty() {
                "a caller without a token".into()
            } else {
                principal.name.clone()
            },
            verb: action.verb(),
            noun: object.noun(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_administrator_may_and_health_is_open() {
        let actions = [
            Action::Read,
            Action::ReadLogs,
            Action::Create,
            Action::Remove,
            Action::Change,
            Action::Kill,
            Action::Call,
            Action::Serve,
        ];
        for action in actions {
            assert_eq!(authorize(&Principal::administrator(), action, &Object::Cluster), Ok(()));
            let error = authorize(&Principal::anonymous(), action, &Object::Agent).unwrap_err();
            assert!(error.to_string().contains("without a token"), "{error}");
        }
        assert_eq!(authorize(&Principal::anonymous(), Action::Health, &Object::Cluster), Ok(()));
    }
}
