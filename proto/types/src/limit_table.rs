//! The one table of limits: names, defaults, bounds, and what each is for.
//!
//! Invariants: every limit that an operator may set per role has one row here and nowhere else; a value
//! of [`RoleLimits`] is within its bounds; resolving never depends on order. This file must never enforce
//! anything.

use crate::limits as fixed;
use crate::RoleName;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What the number of a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitUnit {
    /// Bytes.
    Bytes,
    /// Milliseconds.
    Ms,
    /// Pieces.
    Count,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LimitRow {
    /// The name that guests, operators and logs see.
    pub name: &'static str,
    /// What it counts.
    pub unit: LimitUnit,
    /// In force where nothing is set.
    pub default: u64,
    /// Smallest value that can be set.
    pub min: u64,
    /// Largest value that can be set.
    pub max: u64,
    /// What it bounds, and what happens to who passes it.
    pub what: &'static str,
}

macro_rules! limit_table {
    ($($name:ident $text:literal $unit:ident $default:expr, $min:expr, $max:expr; $what:literal)+) => {
        /// A limit that an operator may set per role.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum LimitName {
            $(#[doc = $what] $name,)+
        }

        impl LimitName {
            /// Every limit, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its row.
            #[must_use]
            pub const fn row(self) -> LimitRow {
                match self {
                    $(Self::$name => LimitRow {
                        name: $text,
                        unit: LimitUnit::$unit,
                        default: $default,
                        min: $min,
                        max: $max,
                        what: $what,
                    },)+
                }
            }
        }
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const DAY_MS: u64 = 86_400_000;

limit_table! {
    // Components: judged at upload, so that only values set for the whole cluster count.
    ComponentBytes "component-bytes" Bytes fixed::COMPONENT_BYTES_MAX, KIB, 256 * MIB; "bytes of a component; larger uploads are refused"
    ComponentFunctions "component-functions" Count 50_000, 1, 1_000_000; "functions of all modules of a component; more are refused at upload"
    FunctionBytes "function-bytes" Bytes MIB, KIB, 16 * MIB; "bytes of the body of one function; larger ones are refused at upload"
    FunctionLocals "function-locals" Count 5_000, 1, 50_000; "locals of one function, parameters included; more are refused at upload"
    CompileCpuMs "compile-cpu-ms" Ms 60_000, 1_000, 600_000; "CPU time of judging and compiling a component; used up, it is refused"
    CompileBytes "compile-bytes" Bytes 4_096 * MIB, 256 * MIB, 65_536 * MIB; "address space of judging and compiling a component; used up, it is refused"
    // One instance.
    MemoryBytes "memory-bytes" Bytes 64 * MIB, 64 * KIB, 4_096 * MIB; "all linear memories of a scheduler's instance together (executors and Wasm tasks have what they are charged for); growth beyond is refused to the guest"
    TableElements "table-elements" Count 100_000, 1, 10_000_000; "elements of all tables of an instance together; growth beyond is refused to the guest"
    Instances "instances" Count 64, 1, 1_000; "core instances of a component; more cannot be instantiated"
    Tables "tables" Count 64, 1, 1_000; "tables of an instance; more cannot be instantiated"
    Memories "memories" Count 16, 1, 100; "linear memories of an instance; more cannot be instantiated"
    Handles "handles" Count 4_096, 16, 1_000_000; "live resource handles of an instance; more end it"
    HostcallBytes "hostcall-bytes" Bytes 4 * MIB, 2 * MIB, 128 * MIB; "bytes that one call carries from guest to host; more end the instance"
    HostCalls "host-calls" Count 1_000_000, 1_000, 1_000_000_000; "calls of the host in one turn; more end the instance"
    RandomBytes "random-bytes" Bytes 64 * KIB, 16, 16 * MIB; "bytes of one request for randomness; more end the instance"
    InitCpuMs "init-cpu-ms" Ms 1_000, 10, 60_000; "CPU time of instantiation and `init` together; used up, the instance is dropped"
    InitWallMs "init-wall-ms" Ms 5_000, 100, 300_000; "wall time of instantiation and `init` together; passed, the instance is dropped"
    ErrorBytes "error-bytes" Bytes 2 * KIB, 256, 64 * KIB; "bytes of a guest's error text; the rest is cut"
    // One turn.
    TurnCpuMs "turn-cpu-ms" Ms 1_000, 10, 60_000; "CPU time of one turn; used up, the turn is discarded"
    TurnWallMs "turn-wall-ms" Ms 5_000, 100, 300_000; "wall time of one turn; passed, the turn is discarded"
    MinuteCpuMs "minute-cpu-ms" Ms 30_000, 100, 60_000; "CPU time of a scheduler's turns in a minute; used up, its next turn waits for the next minute"
    TurnOperations "turn-operations" Count fixed::TURN_OPERATIONS_MAX as u64, 10, 10_000; "operations of one turn; a call beyond is refused to the guest"
    TurnOperationBytes "turn-operation-bytes" Bytes MIB, 64 * KIB, 2 * MIB; "bytes of all operations of one turn; a call beyond is refused to the guest"
    TurnKeys "turn-keys" Count fixed::TURN_KEYS_MAX as u64, 10, 10_000; "keys written by one turn; a write beyond is refused to the guest"
    TurnStateBytes "turn-state-bytes" Bytes fixed::TURN_STATE_BYTES_MAX as u64, 64 * KIB, 2 * MIB; "bytes of state written by one turn; a write beyond is refused to the guest"
    TurnSpecs "turn-specs" Count fixed::TURN_SPECS_MAX as u64, 1, 1_000; "task specs defined by one turn; more are refused to the guest"
    TurnSpecBytes "turn-spec-bytes" Bytes fixed::TURN_SPEC_BYTES_MAX as u64, 64 * KIB, 2 * MIB; "bytes of task specs defined by one turn; more are refused to the guest"
    LogLines "log-lines" Count fixed::TURN_LOG_LINES_MAX as u64, 1, 10_000; "log lines kept of one turn; the rest is counted and dropped"
    LogBytes "log-bytes" Bytes fixed::TURN_LOG_BYTES_MAX as u64, KIB, 16 * MIB; "bytes of log kept of one turn; the rest is counted and dropped"
    LogLineBytes "log-line-bytes" Bytes fixed::LOG_LINE_BYTES_MAX as u64, 64, 64 * KIB; "bytes of one log line; the rest is cut"
    // One framework.
    StateBytes "state-bytes" Bytes fixed::STATE_BYTES_MAX, 64 * KIB, 256 * MIB; "bytes of a framework's state; a turn that would pass it is refused"
    StateKeys "state-keys" Count fixed::STATE_KEYS_MAX, 10, 1_000_000; "keys of a framework's state; a turn that would pass it is refused"
    Timers "timers" Count fixed::TIMERS_MAX, 1, 100_000; "timers of a framework; one more is refused"
    Specs "specs" Count 4_096, 1, 65_536; "task specs that an instance remembers; the ones used least recently are forgotten"
    SpecBytes "spec-bytes" Bytes 16 * MIB, 512 * KIB, 256 * MIB; "bytes of the task specs that an instance remembers; likewise"
    OpenRequests "open-requests" Count 1_024, 1, 65_536; "HTTP requests without an answer that an instance remembers; the oldest are forgotten"
    LiveTasks "live-tasks" Count fixed::TASKS_LIVE_MAX as u64, 1, 1_000_000; "tasks of a framework that have not ended; a launch beyond is dropped"
    TurnsPerSecond "turns-per-second" Count 2_000, 1, 100_000; "turns of a tenant's schedulers in a second, with a burst of as many; further turns wait"
    TurnBytesPerSecond "turn-bytes-per-second" Bytes 16 * MIB, 64 * KIB, 1_024 * MIB; "bytes of a tenant's turns in a second, with a burst of as many; further turns wait"
    // One tenant. The default is what 1,024 schedulers with default limits may take.
    TenantMemoryBytes "tenant-memory-bytes" Bytes 147_456 * MIB, 0, 1_024 * 1_024 * 1_024 * MIB; "what a tenant's schedulers may take together, each counted with its `memory-bytes`, `state-bytes` and `spec-bytes`; only what is set for the tenant, the first part of a role, or for the cluster counts. One more than fits waits for a place; one that has a place keeps it"
    PreemptionGraceMs "preemption-grace-ms" Ms 30_000, 0, 3_600_000; "time that revocable tasks of a role have between TERM and KILL when others need what they use"
    // One role.
    Frameworks "frameworks" Count 1_000, 0, 100_000; "frameworks of a role; one more is refused"
    // Failure.
    Failures "failures" Count 5, 1, 1_000; "failures of a scheduler in a row, without a committed turn between, after which it is quarantined"
    FailuresPerWindow "failures-per-window" Count 20, 1, 1_000; "failures of a scheduler within `failure-window-ms` after which it is quarantined, whatever it committed between"
    FailureWindowMs "failure-window-ms" Ms 600_000, 1_000, DAY_MS; "the time in which `failures-per-window` are counted"
    // Replay.
    RecordingBytes "recording-bytes" Bytes 16 * MIB, 0, 1_024 * MIB; "bytes of the recording of one instance's life; at the limit recording stops and says so; 0 records nothing"
    Recordings "recordings" Count 4, 1, 64; "recordings kept per framework on its agent; the oldest are deleted"
    // Executors.
    ExecutorsPerAgent "executors" Count 16, 0, 1_000; "custom executors of one framework on one agent; a launch that needs one more ends as TASK_ERROR"
    ExecutorStateBytes "executor-state-bytes" Bytes fixed::STATE_BYTES_MAX / 10, 64 * KIB, 64 * MIB; "bytes of an executor's durable state; a write beyond is refused to the guest"
    ExecutorStateKeys "executor-state-keys" Count fixed::STATE_KEYS_MAX / 10, 10, 100_000; "keys of an executor's durable state; a write beyond is refused to the guest"
    ExecutorChildren "executor-children" Count 64, 0, 10_000; "children of one executor that have not ended; one more is refused to the guest"
}

impl fmt::Display for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

/// Why a limit was not set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Not in the table.
    #[error("there is no limit {0:?}; `tessera role limits` lists them")]
    Unknown(String),
    /// Outside of its bounds.
    #[error("limit {name} is {min} to {max}, not {value}")]
    Bounds {
        /// Which.
        name: LimitName,
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
        /// What was asked for.
        value: u64,
    },
}

impl FromStr for LimitName {
    type Err = LimitError;
    fn from_str(text: &str) -> Result<Self, LimitError> {
        let known = Self::ALL.iter().find(|name| name.row().name == text);
        known.copied().ok_or_else(|| LimitError::Unknown(text.to_owned()))
    }
}

/// What an operator has set for one role, or for the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleLimits(BTreeMap<LimitName, u64>);

impl RoleLimits {
    /// Set one.
    ///
    /// # Errors
    /// When the value is outside of the limit's bounds; nothing has changed.
    pub fn set(&mut self, name: LimitName, value: u64) -> Result<(), LimitError> {
        let LimitRow { min, max, .. } = name.row();
        if !(min..=max).contains(&value) {
            return Err(LimitError::Bounds { name, min, max, value });
        }
        self.0.insert(name, value);
        Ok(())
    }

    /// Fall back to what the parent role says.
    pub fn unset(&mut self, name: LimitName) {
        self.0.remove(&name);
    }

    /// What is set for this limit here.
    #[must_use]
    pub fn get(&self, name: LimitName) -> Option<u64> {
        self.0.get(&name).copied()
    }

    /// Everything that is set, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (LimitName, u64)> {
        self.0.iter().map(|(name, value)| (*name, *value))
    }

    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The limits in force for one role: a value for every row of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EffectiveLimits([u64; LimitName::ALL.len()]);

/// What holds where nobody has a say: made once, because it is asked for at every launch.
const DEFAULTS: EffectiveLimits = {
    let mut values = [0; LimitName::ALL.len()];
    let mut at = 0;
    while at < values.len() {
        let name = LimitName::ALL[at];
        values[name as usize] = name.row().default;
        at += 1;
    }
    EffectiveLimits(values)
};

impl Default for EffectiveLimits {
    fn default() -> Self {
        DEFAULTS
    }
}

impl fmt::Debug for EffectiveLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.changed()).finish()
    }
}

impl EffectiveLimits {
    /// Defaults, then what is set for the cluster, then for each role from the outermost to this one:
    /// the innermost wins.
    #[must_use]
    pub fn resolve<'a>(layers: impl IntoIterator<Item = &'a RoleLimits>) -> Self {
        let mut limits = Self::default();
        for layer in layers {
            for (name, value) in layer.iter() {
                limits.0[name as usize] = value;
            }
        }
        limits
    }

    /// The value of one limit.
    #[must_use]
    pub const fn get(&self, name: LimitName) -> u64 {
        self.0[name as usize]
    }

    /// The value of one limit as a size of this machine.
    #[must_use]
    pub fn size(&self, name: LimitName) -> usize {
        usize::try_from(self.get(name)).unwrap_or(usize::MAX)
    }

    /// Replace one value; it is brought within the bounds of its row.
    pub fn put(&mut self, name: LimitName, value: u64) {
        let LimitRow { min, max, .. } = name.row();
        self.0[name as usize] = value.clamp(min, max);
    }

    /// What differs from the defaults: all that has to travel.
    pub fn changed(&self) -> impl Iterator<Item = (LimitName, u64)> {
        let all = LimitName::ALL.iter().map(|name| (*name, self.get(*name)));
        all.filter(|(name, value)| *value != name.row().default)
    }
}

impl RoleName {
    /// The roles whose limits apply to this one, from the tenant to the role itself: `a`, `a/b`, `a/b/c`.
    pub fn lineage(&self) -> impl Iterator<Item = &str> {
        let text = self.as_str();
        let parents = text.match_indices('/').map(move |(at, _)| &text[..at]);
        parents.chain(std::iter::once(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_row_is_well_formed_and_named_once() {
        let mut names = BTreeSet::new();
        for (at, name) in LimitName::ALL.iter().enumerate() {
            let row = name.row();
            assert_eq!(*name as usize, at, "{name}: the table is indexed by its order");
            assert!(names.insert(row.name), "{name} is there twice");
            assert!(row.min <= row.default && row.default <= row.max, "{name}: {row:?}");
            assert!(row.name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{name}");
            assert_eq!(row.name.parse(), Ok(*name));
        }
    }

    #[test]
    fn the_innermost_role_wins_and_bounds_hold() {
        let mut cluster = RoleLimits::default();
        let mut role = RoleLimits::default();
        cluster.set(LimitName::Timers, 10).unwrap();
        cluster.set(LimitName::StateKeys, 20).unwrap();
        role.set(LimitName::Timers, 30).unwrap();
        let limits = EffectiveLimits::resolve([&cluster, &role]);
        assert_eq!((limits.get(LimitName::Timers), limits.get(LimitName::StateKeys)), (30, 20));
        assert_eq!(limits.changed().count(), 2);
        assert!(matches!(role.set(LimitName::Timers, 0), Err(LimitError::Bounds { .. })));
        assert_eq!(role.get(LimitName::Timers), Some(30));
        assert!("nonsense".parse::<LimitName>().is_err());
    }

    #[test]
    fn a_role_inherits_from_each_of_its_parents() {
        let role: RoleName = "a/b/c".parse().unwrap();
        assert_eq!(role.lineage().collect::<Vec<_>>(), ["a", "a/b", "a/b/c"]);
    }
}
