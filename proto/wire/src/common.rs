//! Conversions of the nouns: resources, specs, launches, statuses, agents, offers.

use crate::error::at;
use crate::{WireError, v1};
use prost::Message;
use tessera_types::{
    AgentId, AgentInfo, AgentResources, Digest, EffectiveLimits, ExecutorTask, FileSpec, Launch,
    InverseOffer, LimitName, NativeCommand, Offer, OfferId,
    Quantities, Reason, ResourceKey, Resources, TaskBody, TaskSpec, TaskState, TaskStatus, validate_spec,
};

pub(crate) fn pairs_to_wire(pairs: &[(String, String)]) -> Vec<v1::Pair> {
    pairs.iter().map(|(key, value)| v1::Pair { key: key.clone(), value: value.clone() }).collect()
}

pub(crate) fn pairs_from_wire(pairs: Vec<v1::Pair>) -> Vec<(String, String)> {
    pairs.into_iter().map(|pair| (pair.key, pair.value)).collect()
}

impl From<Vec<(String, String)>> for v1::PairList {
    fn from(pairs: Vec<(String, String)>) -> Self {
        Self { pairs: pairs_to_wire(&pairs) }
    }
}

impl From<v1::PairList> for Vec<(String, String)> {
    fn from(list: v1::PairList) -> Self {
        pairs_from_wire(list.pairs)
    }
}

impl From<&Quantities> for v1::Quantities {
    fn from(q: &Quantities) -> Self {
        Self { cpus_milli: q.cpus_milli, mem_mib: q.mem_mib, disk_mib: q.disk_mib }
    }
}

impl From<v1::Quantities> for Quantities {
    fn from(q: v1::Quantities) -> Self {
        Self { cpus_milli: q.cpus_milli, mem_mib: q.mem_mib, disk_mib: q.disk_mib }
    }
}

impl From<&Resources> for v1::Resources {
    fn from(resources: &Resources) -> Self {
        let q = resources.quantities;
        let item = |(key, amount): (&ResourceKey, &i64)| v1::ResourceItem {
            name: key.name.clone(),
            amount_milli: *amount,
        };
        Self {
            cpus_milli: q.cpus_milli,
            mem_mib: q.mem_mib,
            disk_mib: q.disk_mib,
            items: resources.items.iter().map(item).collect(),
        }
    }
}

impl From<&Quantities> for v1::Resources {
    fn from(q: &Quantities) -> Self {
        Self { cpus_milli: q.cpus_milli, mem_mib: q.mem_mib, disk_mib: q.disk_mib, items: Vec::new() }
    }
}

impl From<v1::Resources> for Resources {
    fn from(r: v1::Resources) -> Self {
        let quantities = Quantities { cpus_milli: r.cpus_milli, mem_mib: r.mem_mib, disk_mib: r.disk_mib };
        r.items.iter().fold(Self::of(quantities), |sum, item| sum.with(&item.name, item.amount_milli))
    }
}

impl From<&TaskSpec> for v1::TaskSpec {
    fn from(spec: &TaskSpec) -> Self {
        use v1::task_spec::Body;
        Self {
            name: spec.name.clone(),
            body: Some(match &spec.body {
                TaskBody::Native(NativeCommand::Shell(text)) => Body::Shell(text.clone()),
                TaskBody::Native(NativeCommand::Argv(words)) => {
                    Body::Argv(v1::Argv { words: words.clone() })
                }
                TaskBody::Wasm { component, args } => Body::Wasm(v1::WasmCommand {
                    component: component.0.to_vec(),
                    args: args.clone(),
                }),
                TaskBody::Executor(task) => Body::Executor(v1::ExecutorTask {
                    executor: task.executor.to_string(),
                    component: task.component.0.to_vec(),
                    resources: Some((&task.resources).into()),
                    config: pairs_to_wire(&task.config),
                    data: task.data.clone(),
                }),
            }),
            resources: Some((&spec.resources).into()),
            cpus_limit_milli: spec.cpus_limit_milli,
            pids_limit: spec.pids_limit,
            user: spec.user.clone(),
            env: pairs_to_wire(&spec.env),
            files: spec
                .files
                .iter()
                .map(|file| v1::File {
                    path: file.path.clone(),
                    mode: file.mode,
                    content: file.content.clone(),
                })
                .collect(),
            result_file: spec.result_file.clone(),
            grace_ms: spec.grace_ms,
            restarts: spec.restarts,
            labels: pairs_to_wire(&spec.labels),
            revocable: spec.revocable,
        }
    }
}

impl TryFrom<v1::TaskSpec> for TaskSpec {
    type Error = WireError;
    /// Also checks the rules of [`validate_spec`].
    fn try_from(spec: v1::TaskSpec) -> Result<Self, WireError> {
        use v1::task_spec::Body;
        let body = match spec.body.ok_or_else(|| WireError::missing("spec.body"))? {
            Body::Shell(text) => TaskBody::Native(NativeCommand::Shell(text)),
            Body::Argv(argv) => TaskBody::Native(NativeCommand::Argv(argv.words)),
            Body::Wasm(wasm) => TaskBody::Wasm {
                component: Digest::from_slice(&wasm.component).map_err(at("spec.component"))?,
                args: wasm.args,
            },
            Body::Executor(task) => TaskBody::Executor(ExecutorTask {
                executor: task.executor.try_into().map_err(at("spec.executor"))?,
                component: Digest::from_slice(&task.component).map_err(at("spec.component"))?,
                resources: task.resources.unwrap_or_default().into(),
                config: pairs_from_wire(task.config),
                data: task.data,
            }),
        };
        let spec = Self {
            name: spec.name,
            body,
            resources: spec.resources.unwrap_or_default().into(),
            revocable: spec.revocable,
            cpus_limit_milli: spec.cpus_limit_milli,
            pids_limit: spec.pids_limit,
            user: spec.user,
            env: pairs_from_wire(spec.env),
            files: spec
                .files
                .into_iter()
                .map(|f| FileSpec { path: f.path, mode: f.mode, content: f.content })
                .collect(),
            result_file: spec.result_file,
            grace_ms: spec.grace_ms,
            restarts: spec.restarts,
            labels: pairs_from_wire(spec.labels),
        };
        validate_spec(&spec).map_err(at("spec"))?;
        Ok(spec)
    }
}

/// The canonical encoding of a spec: what its digest is taken of.
#[must_use]
pub fn encode_spec(spec: &TaskSpec) -> Vec<u8> {
    v1::TaskSpec::from(spec).encode_to_vec()
}

/// Decode a spec and check its rules.
///
/// # Errors
/// When the bytes are no spec, or it breaks a rule.
pub fn decode_spec(bytes: &[u8]) -> Result<TaskSpec, WireError> {
    v1::TaskSpec::decode(bytes).map_err(at("spec"))?.try_into()
}

impl From<(LimitName, u64)> for v1::Limit {
    fn from((name, value): (LimitName, u64)) -> Self {
        Self { name: name.to_string(), value }
    }
}

/// Limits in force, from those that differ from their defaults. Names that this version does not know
/// come from a newer master and bound what this version does not have.
#[must_use]
pub fn effective_limits(changed: &[v1::Limit]) -> EffectiveLimits {
    let mut limits = EffectiveLimits::default();
    for limit in changed {
        if let Ok(name) = limit.name.parse() {
            limits.put(name, limit.value);
        }
    }
    limits
}

impl From<&Launch> for v1::Launch {
    fn from(launch: &Launch) -> Self {
        Self {
            task: launch.task.to_string(),
            spec: launch.spec.0.to_vec(),
            args: launch.args.clone(),
            env: pairs_to_wire(&launch.env),
        }
    }
}

impl TryFrom<v1::Launch> for Launch {
    type Error = WireError;
    fn try_from(launch: v1::Launch) -> Result<Self, WireError> {
        Ok(Self {
            task: launch.task.try_into().map_err(at("launch.task"))?,
            spec: Digest::from_slice(&launch.spec).map_err(at("launch.spec"))?,
            args: launch.args,
            env: pairs_from_wire(launch.env),
        })
    }
}

macro_rules! same_enum {
    ($ours:ident, $wire:ident, $field:literal, { $($name:ident = $theirs:ident,)+ }) => {
        impl From<$ours> for v1::$wire {
            fn from(value: $ours) -> Self {
                match value {
                    $($ours::$name => Self::$theirs,)+
                }
            }
        }

        impl TryFrom<v1::$wire> for $ours {
            type Error = WireError;
            fn try_from(value: v1::$wire) -> Result<Self, WireError> {
                match value {
                    $(v1::$wire::$theirs => Ok($ours::$name),)+
                    v1::$wire::Unspecified => Err(WireError::new($field, "is not set")),
                }
            }
        }
    };
}
pub(crate) use same_enum;

same_enum!(TaskState, TaskState, "state", {
    Staging = TaskStaging,
    Starting = TaskStarting,
    Running = TaskRunning,
    Killing = TaskKilling,
    Finished = TaskFinished,
    Failed = TaskFailed,
    Killed = TaskKilled,
    Error = TaskError,
    Dropped = TaskDropped,
    Lost = TaskLost,
    Gone = TaskGone,
    GoneByOperator = TaskGoneByOperator,
    Unreachable = TaskUnreachable,
    Unknown = TaskUnknown,
});

impl From<&TaskStatus> for v1::TaskStatus {
    fn from(status: &TaskStatus) -> Self {
        Self {
            task: status.task.to_string(),
            agent: status.agent.0,
            state: v1::TaskState::from(status.state).into(),
            reason: status.reason.code().to_owned(),
            message: status.message.clone(),
            exit_code: status.exit_code,
            signal: status.signal,
            data: status.data.clone(),
            attempt: status.attempt,
            at_ms: status.at_ms,
        }
    }
}

impl TryFrom<v1::TaskStatus> for TaskStatus {
    type Error = WireError;
    fn try_from(status: v1::TaskStatus) -> Result<Self, WireError> {
        let state = TaskState::try_from(status.state())?;
        let limits = [
            ("status.data", status.data.len(), tessera_types::limits::RESULT_BYTES_MAX),
            ("status.message", status.message.len(), tessera_types::limits::MESSAGE_BYTES_MAX),
        ];
        for (field, bytes, max) in limits {
            if bytes > max {
                return Err(WireError::new(field, format!("at most {max} bytes, not {bytes}")));
            }
        }
        Ok(Self {
            task: status.task.try_into().map_err(at("status.task"))?,
            agent: AgentId(status.agent),
            state,
            reason: Reason::of_code(&status.reason),
            message: status.message,
            exit_code: status.exit_code,
            signal: status.signal,
            data: status.data,
            attempt: status.attempt,
            at_ms: status.at_ms,
        })
    }
}

impl From<&AgentInfo> for v1::AgentInfo {
    fn from(info: &AgentInfo) -> Self {
        Self {
            id: info.id.0,
            hostname: info.hostname.clone(),
            attributes: pairs_to_wire(&info.attributes),
            reachable: info.reachable,
        }
    }
}

impl From<v1::AgentInfo> for AgentInfo {
    fn from(info: v1::AgentInfo) -> Self {
        Self {
            id: AgentId(info.id),
            hostname: info.hostname,
            attributes: pairs_from_wire(info.attributes),
            reachable: info.reachable,
        }
    }
}

impl From<&Offer> for v1::Offer {
    fn from(offer: &Offer) -> Self {
        Self {
            id: offer.id.0,
            agent: offer.agent.0,
            available: Some((&offer.available).into()),
            revocable: offer.revocable,
        }
    }
}

impl From<&InverseOffer> for v1::InverseOffer {
    fn from(offer: &InverseOffer) -> Self {
        Self {
            id: offer.id.0,
            agent: offer.agent.0,
            start_ms: offer.start_ms,
            duration_ms: offer.duration_ms,
        }
    }
}

impl From<v1::InverseOffer> for InverseOffer {
    fn from(offer: v1::InverseOffer) -> Self {
        Self {
            id: OfferId(offer.id),
            agent: AgentId(offer.agent),
            start_ms: offer.start_ms,
            duration_ms: offer.duration_ms,
        }
    }
}

impl From<v1::Offer> for Offer {
    fn from(offer: v1::Offer) -> Self {
        Self {
            id: OfferId(offer.id),
            agent: AgentId(offer.agent),
            available: offer.available.unwrap_or_default().into(),
            revocable: offer.revocable,
        }
    }
}

/// Attributes of an agent.
const ATTRIBUTES_MAX: usize = 256;

impl v1::AgentDescription {
    /// The resources, checked.
    ///
    /// # Errors
    /// When an amount is negative or too large, or attributes are too many or too long.
    pub fn resources(&self) -> Result<AgentResources, WireError> {
        let resources = AgentResources {
            total: self.total.clone().unwrap_or_default().into(),
            reserved: self.reserved.unwrap_or_default().into(),
        };
        resources.total.validate().map_err(at("description.total"))?;
        resources.reserved.validate().map_err(at("description.reserved"))?;
        if self.hostname.is_empty() || self.hostname.len() > 255 {
            return Err(WireError::new("description.hostname", "1 to 255 bytes"));
        }
        let long = |pair: &v1::Pair| pair.key.is_empty() || pair.key.len() + pair.value.len() > 1024;
        if self.attributes.len() > ATTRIBUTES_MAX || self.attributes.iter().any(long) {
            return Err(WireError::new(
                "description.attributes",
                format!("at most {ATTRIBUTES_MAX}, each with a name and at most 1024 bytes"),
            ));
        }
        Ok(resources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> TaskSpec {
        TaskSpec {
            name: "count".into(),
            body: TaskBody::Wasm { component: Digest::of(b"x"), args: vec!["a".into()] },
            resources: Quantities { cpus_milli: 100, mem_mib: 32, disk_mib: 0 }.into(),
            revocable: false,
            cpus_limit_milli: Some(500),
            pids_limit: None,
            user: None,
            env: vec![("K".into(), "v".into())],
            files: vec![FileSpec { path: "in".into(), mode: 0o644, content: b"text".to_vec() }],
            result_file: Some("out".into()),
            grace_ms: Some(10),
            restarts: 2,
            labels: vec![("l".into(), "1".into())],
        }
    }

    #[test]
    fn specs_round_trip_and_their_digest_is_fixed() {
        let bytes = encode_spec(&spec());
        assert_eq!(decode_spec(&bytes), Ok(spec()));
        assert_eq!(
            Digest::of(&bytes).hex(),
            "9b3a35e8eb2f810f59b0c9ed4ebb6a648d16e34500e25616307eefc3dee5cece",
            "the canonical encoding changed: digests of stored specs would no longer match"
        );
    }

    #[test]
    fn items_and_revocability_come_back_and_cost_nothing_when_absent() {
        let mut some = spec();
        some.resources = some.resources.with("gpus", 2000).with("fpga", 500);
        some.revocable = true;
        let bytes = encode_spec(&some);
        assert_eq!(decode_spec(&bytes), Ok(some.clone()));
        assert_eq!(
            Digest::of(&bytes).hex(),
            "a95d15454e84fc6ec7256c852defc1fbccfd11a09bd27a7e480f1dca3bf863f7",
            "the canonical encoding changed: digests of stored specs would no longer match"
        );
        let q = Quantities { cpus_milli: 100, mem_mib: -32, disk_mib: 7 };
        let before = v1::Quantities::from(&q).encode_to_vec();
        let now = v1::Resources::from(&Resources::of(q)).encode_to_vec();
        assert_eq!(before, now, "without items the bytes are those of quantities");
        assert_eq!(Resources::from(v1::Resources::decode(&*before).unwrap()), Resources::of(q));
        let golden = [8, 200, 1, 34, 9, 10, 4, 103, 112, 117, 115, 16, 160, 31];
        let with = Resources::of(Quantities { cpus_milli: 100, ..Quantities::ZERO }).with("gpus", 2000);
        assert_eq!(v1::Resources::from(&with).encode_to_vec(), golden);
        let mut offered = v1::Resources::decode(&golden[..]).unwrap();
        offered.items.push(v1::ResourceItem { name: "none".into(), amount_milli: 0 });
        assert_eq!(Resources::from(offered), with, "an amount of zero is no item");
        let offer = Offer { id: OfferId(1), agent: AgentId(2), available: with, revocable: true };
        assert_eq!(Offer::from(v1::Offer::from(&offer)), offer);
    }

    #[test]
    fn specs_from_peers_obey_the_rules() {
        let mut bad = v1::TaskSpec::from(&spec());
        bad.files[0].path = "../x".into();
        let error = TaskSpec::try_from(bad).unwrap_err();
        assert_eq!(error.field, "spec");
        assert!(TaskSpec::try_from(v1::TaskSpec::default()).is_err());
        assert!(decode_spec(&[0xff; 7]).is_err());
    }

    #[test]
    fn statuses_round_trip_and_are_bounded() {
        let mut status =
            TaskStatus::new("t1".parse().unwrap(), AgentId(3), TaskState::Failed, 17)
                .because(Reason::CommandExited, "exit code 3");
        status.exit_code = Some(3);
        status.data = vec![1, 2];
        let wire = v1::TaskStatus::from(&status);
        assert_eq!(TaskStatus::try_from(wire.clone()), Ok(status));
        let mut long = wire.clone();
        long.message = "x".repeat(2000);
        assert_eq!(TaskStatus::try_from(long).unwrap_err().field, "status.message");
        let mut unset = wire;
        unset.state = 0;
        assert_eq!(TaskStatus::try_from(unset).unwrap_err().field, "state");
    }
}
