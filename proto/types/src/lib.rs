//! The nouns of Tessera: ids, resource arithmetic, offers, task specs, statuses, turns, and the one
//! task-state transition table.
//!
//! Invariants: pure data and pure functions; amounts are integers; nothing here depends on hash order,
//! clocks or randomness. This crate must never know a wire format, a runtime or a kernel.

mod agent;
mod digest;
mod duration;
mod ids;
mod limit_table;
pub mod limits;
mod offer;
mod request;
mod resources;
mod role;
mod spec;
mod status;
pub mod trace;
mod turn;

pub use agent::{AgentInfo, AgentResources};
pub use digest::{Digest, DigestError};
pub use duration::parse_duration;
pub use ids::{
    AgentId, Epoch, ExecutorId, FrameworkId, FrameworkName, NameError, OfferId, RoleName, TaskId, TurnNumber,
};
pub use limit_table::{
    EffectiveLimits, LimitError, LimitName, LimitRow, LimitUnit, RoleLimits,
};
pub use offer::{Filters, InverseOffer, Offer};
pub use request::{
    Constraint, InvalidRequest, Predicate, REGION, ResourceRequest, Selector, ZONE, validate_requests,
};
pub use resources::{
    AMOUNT_MAX, Quantities, RESOURCE_ITEMS_MAX, ResourceItem, ResourceKey, Resources, ResourcesError,
    parse_milli, validate_resource_name, write_milli,
};
pub use role::{
    Amounts, CPUS, DISK, MEM, PRIORITY_MAX, QUOTA_KINDS_MAX, RoleError, RolePolicy, WEIGHT_DEFAULT_MILLI, WEIGHT_MAX_MILLI,
    write_amount, write_named,
};
pub use spec::{
    ExecutorTask, FileSpec, InvalidSpec, Launch, NativeCommand, TaskBody, TaskSpec, validate_launch, validate_spec,
};
pub use status::{IllegalTransition, Reason, TaskState, TaskStatus, check_transition};
pub use trace::TraceId;
pub use turn::{
    Consumed, Event, ExecutorMessage, HttpAnswer, HttpRequest, KeyWrite, LogLevel, LogLine, Member,
    MigrationStep, Operation, Subscription, Turn, TurnHeader, TurnOutcome, TurnRefusal,
};

/// A time: milliseconds since the Unix epoch, as the leader saw it.
pub type TimeMs = u64;
