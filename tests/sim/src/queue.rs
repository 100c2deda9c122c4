//! Everything that can happen at a moment of virtual time.
//!
//! Invariant: what is here says what happens, and to which life of whom. Must never decide anything.

use crate::calls::Answer;
use crate::executor::Name;
use crate::files::FileEvent;
use crate::network::ConnId;
use tessera_agent_core::{TaskKey, WorkerKey};
use tessera_types::Digest;
use tessera_wire::v1;

/// Something that happens at its time. Numbers named `life` say of which life of a process it is: in
/// another one it is nothing.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A master's process begins.
    MasterStart { master: usize },
    /// It takes what waits for it.
    MasterTake { master: usize, life: u64 },
    /// It writes, applies and performs.
    MasterSettle { master: usize, life: u64 },
    /// What it wrote reached stable storage.
    MasterWritten { master: usize, life: u64 },
    /// Its tick.
    MasterTick { master: usize, life: u64 },
    /// A message among masters arrives; nodes have slots, and may lose them.
    Raft { letter: Letter },
    /// A snapshot among masters makes its next step.
    Snapshot { transfer: u64 },
    /// Somebody looks after the members.
    Steward,
    /// Something goes on with a component file.
    File(FileEvent),
    /// A user's request arrives at a master.
    Ask { master: usize, call: u64, forwarded: bool },
    /// The answer to one arrives at the user, or the news that there is none.
    Answer { call: u64, answer: Box<Answer> },
    /// A request without an answer is sent again.
    AskAgain { call: u64, attempt: u64 },
    /// An agent's process begins.
    AgentStart { agent: usize },
    /// An agent's tick.
    AgentTick { agent: usize, life: u64 },
    /// A write to an agent's checkpoint reached stable storage.
    AgentSynced { agent: usize, life: u64, write: u64 },
    /// An agent tries to reach the master.
    Connect { agent: usize, life: u64 },
    /// A message to the master arrives.
    ToMaster { conn: ConnId, message: Up },
    /// A message to an agent arrives.
    ToAgent { conn: ConnId, message: Down },
    /// The master's end of a connection finds that it is gone.
    MasterSideGone { conn: ConnId },
    /// The agent's end finds it.
    AgentSideGone { conn: ConnId },
    /// A scheduler's instance has been built.
    Built { agent: usize, framework: u64, serial: u64 },
    /// A scheduler's instance has handled its batch.
    Handled { agent: usize, framework: u64, serial: u64 },
    /// An executor's instance has been built, or has handled its batch.
    ExecutorGoesOn { agent: usize, name: Name, serial: u64 },
    /// A task ends by itself, or after a signal.
    TaskEnds { agent: usize, process: u64, code: Option<i32>, signal: Option<i32> },
    /// What an agent asked of its surroundings is done.
    AgentLater { agent: usize, life: u64, what: Later },
    /// The user's part.
    User,
    /// Something breaks.
    Fault,
    /// A master that was told to stop has another one lead first, or stops then.
    StopsInOrder { master: usize, life: u64, until_us: u64 },
    /// A master finds that the process of another one has ended.
    MasterFindsEnded { master: usize, number: u64 },
    /// A master is cut off from the others until then.
    Flap { master: usize, until_us: u64 },
    /// The state is saved.
    Save,
    /// What was saved is restored.
    Restore,
    /// From now on nothing breaks any more.
    Heal,
}

/// A message of one master to another.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    /// Slot and node of the sender.
    pub(crate) from: (usize, u64),
    /// Slot and node of the addressee.
    pub(crate) to: (usize, u64),
    pub(crate) bytes: Vec<u8>,
}

/// What a fetch of a state began with: all of its pages belong to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) next_turn: u64,
    /// Writes from outside that were there.
    pub(crate) outside: u64,
}

/// From agents to the master.
#[derive(Clone, Debug)]
pub(crate) enum Up {
    /// The first message of a session.
    Register(v1::Register),
    /// Control lane.
    Control(v1::AgentMessage),
    /// Liveness lane.
    Beat,
    /// Bulk lane: the state of a framework is wanted, from this key on.
    Fetch { framework: u64, epoch: u64, serial: u64, after: Option<String>, asked: Option<Asked> },
}

/// From the master to agents.
#[derive(Clone, Debug)]
pub(crate) enum Down {
    /// Control lane.
    Control(v1::MasterMessage),
    /// Liveness lane.
    Beat,
    /// It does not lead; another one may.
    Elsewhere { leader: Option<usize> },
    /// Bulk lane: a part of a framework's state; the last one has the number of the next turn.
    State { serial: u64, chunk: Option<v1::StateChunk>, asked: Option<Asked> },
}

/// Delayed results of an agent's own doings.
#[derive(Clone, Debug)]
pub(crate) enum Later {
    /// Ask for the state of an instance.
    Fetch(u64),
    /// A native process starts.
    Spawn(u64),
    /// The connection to a shim breaks.
    ShimGone(TaskKey, u32),
    /// The sandbox of a member of a task group is there, or not.
    Prepared(TaskKey, u32),
    /// A component's bytes have come, or not.
    Component(Digest),
    /// A component is compiled.
    Image(Digest, String),
    /// A component is compiled ahead of need.
    Ahead(Digest),
    /// A worker is there.
    Worker(WorkerKey),
    /// A worker ends.
    StopWorker(WorkerKey),
}

/// The queue.
pub(crate) type Queue = tessera_virtual::Queue<Event>;
