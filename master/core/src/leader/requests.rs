//! Requests of users: authorised, checked, proposed.

use super::{Desk, Pending};
use crate::api::{Output, Request, RequestError};
use crate::repeats::Known;
use crate::auth::{Action, Object, Principal, authorize};
use crate::codec;
use crate::roles;
use crate::commands::{since, validate_config};
use crate::upkeep::UnreachablePolicy;
use tessera_types::FrameworkId;
use tessera_wire::v1::{self, command::Command};

impl Desk<'_> {
    /// A request comes in; its reply follows once, now or after the commit.
    pub(crate) fn request(
        &mut self,
        ticket: u64,
        principal: &Principal,
        request: Request,
        known: Option<Known>,
    ) {
        let command = self.command(principal, request).and_then(|command| self.understood(command));
        match command {
            Ok(command) => {
                let principal = principal.name.clone();
                let origin = match known {
                    Some(known) => known.origin(principal),
                    None => v1::Origin { principal, ..v1::Origin::default() },
                };
                self.propose_from(origin, command, Pending::Request { ticket });
            }
            Err(error) => {
                self.leader.out.push(Output::Reply { ticket, result: Err(error) });
            }
        }
    }

    /// The command of a request, as it would be proposed.
    pub(crate) fn rehearsed(&self, principal: &Principal, request: Request) -> Result<Command, RequestError> {
        self.command(principal, request).and_then(|command| self.understood(command))
    }

    /// What not every master understands yet is not proposed.
    fn understood(&self, command: Command) -> Result<Command, RequestError> {
        let (needed, present) = (since(&command), self.cluster_version());
        if needed > present {
            let rule = format!("it needs version {needed} and the cluster is at {present}; upgrade all masters");
            return Err(RequestError::Conflict { field: "cluster_version", rule });
        }
        Ok(command)
    }

    fn command(&self, principal: &Principal, request: Request) -> Result<Command, RequestError> {
        authorize(principal, action(&request), &self.object(&request))?;
        Ok(match request {
            Request::AddComponent { digest, size_bytes, world, state, source, report } => {
                Command::AddComponent(v1::AddComponent {
                    digest: digest.0.to_vec(),
                    size_bytes,
                    world: v1::World::from(world).into(),
                    state: Some((&state).into()),
                    source,
                    report,
                })
            }
            Request::RemoveComponent { digest } => {
                Command::RemoveComponent(v1::RemoveComponent { digest: digest.0.to_vec() })
            }
            Request::CreateFramework { name, role, component, config, unreachable } => {
                validate_config(&config)?;
                Command::CreateFramework(v1::CreateFramework {
                    name: name.to_string(),
                    role: role.to_string(),
                    component: component.0.to_vec(),
                    config: codec::pairs(&config),
                    unreachable: (unreachable != UnreachablePolicy::default())
                        .then(|| unreachable.into()),
                })
            }
            Request::RemoveFramework { framework } => {
                Command::RemoveFramework(v1::RemoveFramework { framework: framework.0 })
            }
            Request::KillTask { framework, task, grace_ms } => Command::KillTask(v1::KillTask {
                framework: framework.0,
                task: task.to_string(),
                grace_ms,
            }),
            Request::SetLimits { role, set, unset, expected } => Command::SetLimits(v1::SetLimits {
                expected,
                role: role.map(|role| role.to_string()).unwrap_or_default(),
                set: set.into_iter().map(Into::into).collect(),
                unset: unset.iter().map(ToString::to_string).collect(),
            }),
            Request::SetRole { role, change, expected_version } => {
                // So that a change that is refused takes no entry.
                self.state.changed_policy(&role, change.clone(), expected_version)?;
                Command::SetRole(roles::command(&role, change, expected_version))
            }
            Request::UpgradeFramework { framework, component } => {
                Command::UpgradeFramework(v1::UpgradeFramework {
                    framework: framework.0,
                    component: component.0.to_vec(),
                })
            }
            Request::RollBackFramework { framework, version } => {
                Command::RollBackFramework(v1::RollBackFramework {
                    framework: framework.0,
                    version: version.unwrap_or(0),
                    failed_version: 0,
                    reason: String::new(),
                })
            }
            Request::SetConfig { framework, config, expected_version, unreachable } => {
                validate_config(&config)?;
                Command::SetConfig(v1::SetConfig {
                    framework: framework.0,
                    config: codec::pairs(&config),
                    expected_version: expected_version.unwrap_or(0),
                    unreachable: unreachable.map(Into::into),
                })
            }
            Request::SetAgentMode { agent, deactivated, drain_ms } => {
                Command::SetAgentMode(v1::SetAgentMode { agent: agent.0, deactivated, drain_ms })
            }
            Request::SetClusterVersion { version } => {
                Command::SetClusterVersion(v1::SetClusterVersion { version })
            }
            Request::EndStrangers { agent } => {
                Command::EndStrangers(v1::EndStrangers { agent: agent.0, tasks: Vec::new(), all: true })
            }
            Request::OpenSession { node, session, members } => {
                Command::OpenSession(v1::OpenSession { node, session, members })
            }
            Request::MarkGone { agent } => Command::MarkGone(v1::MarkGone { agent: agent.0 }),
            Request::SetMaintenance { agent, maintenance } => {
                Command::SetMaintenance(v1::SetMaintenance {
                    agent: agent.0,
                    maintenance: maintenance.map(Into::into),
                })
            }
            Request::WriteState { framework, key, value, expected } => {
                Command::WriteState(v1::WriteState {
                    framework: framework.0,
                    key,
                    value,
                    condition: expected.condition(),
                })
            }
            Request::ReleaseFramework { framework } => {
                Command::ReleaseFramework(v1::ReleaseFramework { framework: framework.0 })
            }
        })
    }

    fn object(&self, request: &Request) -> Object {
        let of = |id: &FrameworkId| Object::Framework {
            role: self.state.frameworks.get(id).map(|framework| framework.role.to_string()),
        };
        match request {
            Request::AddComponent { .. } | Request::RemoveComponent { .. } => Object::Component,
            Request::SetClusterVersion { .. } | Request::OpenSession { .. } => Object::Cluster,
            Request::SetAgentMode { .. }
            | Request::MarkGone { .. }
            | Request::EndStrangers { .. }
            | Request::SetMaintenance { .. } => Object::Agent,
            Request::CreateFramework { role, .. } => {
                Object::Framework { role: Some(role.to_string()) }
            }
            Request::SetLimits { role, .. } => {
                Object::Limits { role: role.as_ref().map(ToString::to_string) }
            }
            Request::SetRole { role, .. } => Object::Role { role: Some(role.to_string()) },
            Request::RemoveFramework { framework }
            | Request::KillTask { framework, .. }
            | Request::UpgradeFramework { framework, .. }
            | Request::RollBackFramework { framework, .. }
            | Request::SetConfig { framework, .. }
            | Request::WriteState { framework, .. }
            | Request::ReleaseFramework { framework } => of(framework),
        }
    }
}

const fn action(request: &Request) -> Action {
    match request {
        Request::AddComponent { .. } | Request::CreateFramework { .. } => Action::Create,
        Request::RemoveComponent { .. }
        | Request::RemoveFramework { .. }
        | Request::MarkGone { .. } => Action::Remove,
        Request::EndStrangers { .. } => Action::Kill,
        Request::KillTask { .. } => Action::Kill,
        Request::SetLimits { .. }
        | Request::SetRole { .. }
        | Request::UpgradeFramework { .. }
        | Request::RollBackFramework { .. }
        | Request::SetConfig { .. }
        | Request::WriteState { .. }
        | Request::SetAgentMode { .. }
        | Request::SetMaintenance { .. }
        | Request::SetClusterVersion { .. }
        | Request::OpenSession { .. }
        | Request::ReleaseFramework { .. } => Action::Change,
    }
}
