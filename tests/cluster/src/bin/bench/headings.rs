//! What the parts of the document are called, and what shares the machine's cores in each.
//!
//! Must never leave out a process that runs while a part is measured.

/// A part of the document.
#[derive(Debug)]
pub struct Heading {
    /// What it is about.
    pub title: &'static str,
    /// What runs on the machine meanwhile, and what is offered.
    pub shares: &'static str,
}

pub const ALLOCATOR: Heading = Heading {
    title: "Who is offered what",
    shares: "one process with the allocator alone, on one thread. Of a cycle with all agents free the middle one of \
             five, of small changes the mean of 2,000.",
};

pub const CLI: Heading = Heading {
    title: "The command line",
    shares: "one process after the other, each of which ends before the next is started.",
};

pub const WORKER: Heading = Heading {
    title: "A worker alone",
    shares: "one worker process, with one thread that works.",
};

pub const AGENT: Heading = Heading {
    title: "One agent",
    shares: "`tessera dev` with a master, an agent and its workers, and the client that measures. Turns: each \
             client asks as soon as it was answered, so that what is offered is what is achieved. Launches: one \
             at a time. CPU per placement: as many as the scheduler may have at once.",
};

pub const CROWDS: Heading = Heading {
    title: "Many schedulers",
    shares: "a master, an agent and its workers, and the client that measures.",
};

pub const WRITES: Heading = Heading {
    title: "Replicated writes",
    shares: "the three members of one system and all clients, which are one process. Each client writes as soon \
             as its last write was acknowledged: what is offered is what is achieved.",
};

pub const FAILOVER: Heading = Heading {
    title: "The leader fails: writes",
    shares: "the three members of one system, and two clients.",
};

pub const RECOVERY: Heading = Heading {
    title: "The leader or a machine fails: placements",
    shares: "three masters, two agents with their workers, and two clients.",
};

pub const FLEET: Heading = Heading {
    title: "Many agents",
    shares: "one master (three where its leader fails), one process with all simulated agents, one real agent \
             with a worker for the scheduler, and the client that measures. What is offered and what is achieved \
             stands in the rows.",
};

pub const LARGE: Heading = Heading {
    title: "A large state",
    shares: "one master, then two and three, one process with 20 simulated agents, one real agent with its \
             worker, and the client that measures; 100 tasks are offered per second, and what is achieved stands \
             in the rows.",
};
