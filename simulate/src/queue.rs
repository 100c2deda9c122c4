//! Everything that can happen at a moment of virtual time.
//!
//! Invariant: what is here says what happens, and to which life of whom. Must never decide anything.

use crate::trace::Lost;
use tessera_agent_core::{TaskKey, WorkerKey};
use tessera_types::Digest;
use tessera_wire::v1;

/// Something that happens at its time. Numbers named `life` say of which life of an agent it is: in another
/// one it is nothing.
#[derive(Debug)]
pub(crate) enum Event {
    /// The master's tick.
    Tick,
    /// The agents' signs of life arrive.
    Beats,
    /// An entry is on stable storage.
    Commit,
    /// An agent tries to reach the master.
    Connect { agent: usize, life: u32 },
    /// Its first message arrives.
    Register { agent: usize, life: u32, register: Box<v1::Register> },
    /// A message to the master arrives.
    FromAgent { session: u64, message: v1::AgentMessage },
    /// A message to an agent arrives.
    ToAgent { agent: usize, session: u64, message: v1::MasterMessage },
    /// The master has ended a session.
    Closed { agent: usize, session: u64 },
    /// An agent's core wanted to look at the time.
    Wake { agent: usize },
    /// What an agent asked of its surroundings is done.
    Later { agent: usize, life: u32, what: Later },
    /// A task ends by itself, or after a signal.
    TaskEnds { process: u64, signal: Option<i32> },
    /// An instance is to be built.
    Build { agent: usize, framework: u64, serial: u64 },
    /// What came of a turn leaves its worker.
    Turned { agent: usize, framework: u64, serial: u64 },
    /// A line of the trace is due, for the n-th time.
    Line { line: usize, n: u64 },
    /// A request that was told to come later is sent again.
    Ask { call: u64 },
    /// An agent is lost because of `--faults`.
    Fault,
    /// A lost agent comes back.
    Back { agent: usize, life: u32, how: Lost },
    /// The figures of the moment are taken.
    Sample,
}

/// Delayed results of an agent's own doings.
#[derive(Debug)]
pub(crate) enum Later {
    /// A component's bytes have come.
    Component(Digest),
    /// A component is compiled.
    Image(Digest, String),
    /// A component is compiled ahead.
    Ahead(Digest),
    /// A worker is there.
    Worker(WorkerKey),
    /// A worker has ended.
    WorkerEnded(WorkerKey),
    /// The sandbox of a member of a task group is there.
    Prepared(TaskKey, u32),
    /// A task's process starts.
    Spawn(u64),
    /// The state of an instance is fetched.
    Fetch(u64),
    /// An executor's instance is there, or has handled a batch.
    Executor(WorkerKey, v1::from_worker::Message),
}

/// The queue.
pub(crate) type Queue = tessera_virtual::Queue<Event>;
