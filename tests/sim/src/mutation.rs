//! Bugs that can be planted, to prove that the seeds would find them.
//!
//! Invariant: none is active unless asked for by name. Must never be known outside this crate.

use std::fmt;
use std::str::FromStr;

macro_rules! mutations {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// A bug in the surroundings of the cores, of a kind that real shells have had.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutation {
            $($(#[$doc])* $name,)+
        }

        impl Mutation {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its name on a command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

mutations! {
    /// The master's disk says that a batch is on stable storage while it is not.
    SyncedBatchLost = "synced-batch-lost",
    /// The rows of one batch do not reach the disk.
    RowsDropped = "rows-dropped",
    /// An agent is told that its statuses are committed when they have only arrived.
    StatusesAcknowledgedEarly = "statuses-acknowledged-early",
    /// A scheduler is told that its turn committed when it has only arrived.
    TurnAnsweredEarly = "turn-answered-early",
    /// The turn of a fenced instance is passed on under the epoch in force.
    StaleEpochRelabelled = "stale-epoch-relabelled",
    /// An agent starts tasks before its record of them is on stable storage.
    ActsBeforeCheckpoint = "acts-before-checkpoint",
    /// An agent begins with an empty checkpoint after a restart.
    CheckpointForgotten = "checkpoint-forgotten",
    /// An agent runs every task of a message, whether it has it already or not.
    DesiredRunAgain = "desired-run-again",
    /// A worker forgets the turn that it waits for when a session ends, and keeps its memory.
    OutstandingTurnForgotten = "outstanding-turn-forgotten",
    /// Launches reach the master without their task groups and gangs.
    UnitsTornApart = "units-torn-apart",
    /// Tasks reach an agent without the number of their task group.
    GroupsForgotten = "groups-forgotten",
    /// A worker builds the instance of a new epoch from the memory of the one before.
    StateKeptOverEpochs = "state-kept-over-epochs",
    /// A worker counts what users wrote, and does not put all of it into its copy of the state.
    OutsideWritesPassedOver = "outside-writes-passed-over",
    /// Kept turns of executors are missing in an agent's checkpoint.
    ExecutorTurnsForgotten = "executor-turns-forgotten",
    /// An agent passes what executors say on twice.
    MessagesDoubled = "messages-doubled",
    /// An agent that finds a shim dead leaves what that ran alone.
    OrphansLeft = "orphans-left",
    /// Whoever sees a scheduler quarantined ends its tasks.
    QuarantineEndsTasks = "quarantine-ends-tasks",
    /// Some synced writes of a master's disk are not synced.
    FsyncSkipped = "fsync-skipped",
    /// What a follower promises with a write leaves while the sync is still to be done.
    PromisedBeforeSync = "promised-before-sync",
    /// A leader takes a write for durable while the sync is still to be done.
    WrittenBeforeSync = "written-before-sync",
    /// A user is told that a request is done when it has only arrived.
    AcknowledgedBeforeCommit = "acknowledged-before-commit",
    /// A master answers reads without asking the others whether it still leads.
    ReadWithoutIndex = "read-without-index",
    /// After a failover instances are started under the epoch before theirs.
    EpochReused = "epoch-reused",
    /// After a failover nobody remembers who wants no offers.
    SuppressForgotten = "suppress-forgotten",
    /// What a batch of entries changed is kept, and that it was applied is not.
    BatchAppliedTwice = "batch-applied-twice",
    /// An agent that comes back is not told which of its tasks are to end.
    KillIntentDropped = "kill-intent-dropped",
    /// A request is repeated as if it were another one.
    RepeatedWithoutKey = "repeated-without-key",
    /// A master sends a request again under another number.
    NumberedAnew = "numbered-anew",
    /// The sessions of the other masters are forgotten when one is opened.
    SessionsForgotten = "sessions-forgotten",
    /// A master says that a request is answered when it has passed it on.
    AnsweredTooSoon = "answered-too-soon",
    /// The version of the cluster is raised before all masters understand it.
    VersionRaisedEarly = "version-raised-early",
    /// An agent that comes back goes on with tasks that were given up meanwhile.
    GivenUpTasksKept = "given-up-tasks-kept",
    /// An agent that was declared gone takes it for a refusal like others.
    GonePassedOver = "gone-passed-over",
    /// A leader has revocable tasks ended that nobody needs room of.
    TakenForNothing = "taken-for-nothing",
    /// An agent kills at once what was given time to end.
    GraceIgnored = "grace-ignored",
    /// An agent that makes room ends a task that is not revocable as well.
    NeighbourEnded = "neighbour-ended",
    /// A master that starts does not count what roles use.
    RoleUsesForgotten = "role-uses-forgotten",
    /// A saved state is restored without what is said of roles.
    RolesNotRestored = "roles-not-restored",
    /// A member that lost its disk comes back under its old number.
    NodeReused = "node-reused",
    /// Component files and their names are not synced.
    FileSyncSkipped = "file-sync-skipped",
    /// Component files are given and taken without a look at their bytes.
    FileServedUnchecked = "file-served-unchecked",
    /// A damaged component file is refused, and kept.
    FileDamageIgnored = "file-damage-ignored",
    /// Component files that the state does not name go at once.
    FileCollectedEarly = "file-collected-early",
    /// A component file goes that the state names.
    FileCollectedInUse = "file-collected-in-use",
    /// A command names a component that the leader alone keeps.
    FileNamedEarly = "file-named-early",
    /// A learner becomes a voter before it has all component files.
    LearnerWithoutFiles = "learner-without-files",
}

impl Mutation {
    /// Whether it shows itself only where roles share what there is.
    pub(crate) const fn is_of_roles(self) -> bool {
        use Mutation as M;
        matches!(
            self,
            M::TakenForNothing | M::GraceIgnored | M::NeighbourEnded | M::RoleUsesForgotten | M::RolesNotRestored
        )
    }
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mutation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|mutation| mutation.name() == text);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|mutation| mutation.name()).collect();
            format!("there is no mutation {text}; there are {}", names.join(", "))
        })
    }
}
