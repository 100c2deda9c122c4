//! Prints what replicas with RocksDB commit per second. Run by hand:
//! `cargo test -p tessera-replica throughput -- --ignored --nocapture`.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tessera_replica::{
    Applied, EntryId, Machine, MachineError, Outlet, Replica, RocksDisk, Role, RowChange, RowReader,
    WriteJob,
};

use crate::support::{config, identity};

/// One row of the size of the entry per entry, as a task status would write.
struct OneRow;

impl Machine for OneRow {
    type Effect = ();

    fn apply(
        &mut self,
        id: EntryId,
        entry: &[u8],
        _rows: &dyn RowReader,
    ) -> Result<Applied<()>, MachineError> {
        let key = (id.index % 10_000).to_be_bytes().to_vec();
        let row = RowChange::Put {
            table: 1,
            key,
            value: entry.to_vec(),
        };
        Ok(Applied {
            rows: vec![row],
            effects: vec![()],
        })
    }

    fn restore(&mut self, _id: EntryId, _rows: &dyn RowReader) -> Result<(), MachineError> {
        Ok(())
    }
}

#[test]
#[ignore = "a measurement, not a check"]
fn throughput_of_one() {
    // On memory the numbers are the CPU's alone.
    for (place, outstanding) in [
        (".", 1u64),
        (".", 64),
        (".", 1_000),
        ("/dev/shm", 1),
        ("/dev/shm", 64),
    ] {
        let dir = tempfile::tempdir_in(place).expect("a directory can be made there");
        let mut disk = RocksDisk::open(dir.path()).expect("the database opens");
        Replica::bootstrap(&mut disk, identity(1), Vec::new()).expect("an empty disk");
        let mut replica = Replica::open(config(1), disk).expect("a sound disk");
        let mut machine = OneRow;
        replica.process(&mut machine).expect("the disk works");
        let (start, syncs) = (Instant::now(), replica.status().syncs);
        let mut worst = Duration::ZERO;
        let mut commits = 0u64;
        while start.elapsed() < Duration::from_secs(3) {
            let turn = Instant::now();
            for _ in 0..outstanding {
                replica.propose(vec![7; 256]).expect("the leader takes it");
            }
            let progress = replica.process(&mut machine).expect("the disk works");
            assert_eq!(progress.applied.len() as u64, outstanding);
            commits += outstanding;
            worst = worst.max(turn.elapsed());
        }
        let seconds = start.elapsed().as_secs_f64();
        let syncs = replica.status().syncs - syncs;
        println!(
            "{place:8} {outstanding:5} outstanding, 256-byte entries: {:8.0} syncs/s, {:8.0} proposals/s, worst batch {worst:?}",
            syncs as f64 / seconds,
            commits as f64 / seconds,
        );
    }
}

const TICK: Duration = Duration::from_millis(50);
const MEASURED: Duration = Duration::from_secs(3);

/// What arrives at a master's thread.
enum Note {
    Message(Vec<u8>),
    Written(WriteJob),
}

/// One master's thread of three.
struct Runner {
    replica: Replica<RocksDisk>,
    inbox: Receiver<Note>,
    out: Channels,
    outstanding: usize,
    open: BTreeMap<EntryId, Instant>,
    latencies: Vec<Duration>,
    syncs: u64,
}

/// To the others, and to the thread that syncs.
struct Channels {
    peers: BTreeMap<u64, Sender<Note>>,
    writer: Sender<WriteJob>,
}

impl Outlet for Channels {
    fn send(&mut self, peer: u64, message: Vec<u8>) {
        let _ = self.peers[&peer].send(Note::Message(message));
    }

    fn write(&mut self, job: WriteJob) {
        let _ = self.writer.send(job);
    }
}

impl Runner {
    fn turn(&mut self, machine: &mut OneRow, deadline: Instant) {
        let status = self.replica.status();
        // While the disk writes, the next entries are collected, as a master does.
        let may = status.role == Role::Leader && self.replica.unwritten().is_none();
        if may && Instant::now() < deadline {
            while self.open.len() < self.outstanding {
                let id = self.replica.propose(vec![7; 256]).expect("it leads");
                self.open.insert(id, Instant::now());
            }
        }
        let progress = self
            .replica
            .process_sending(machine, &mut self.out)
            .expect("the disk works");
        for (id, _) in progress.applied {
            let waited = self.open.remove(&id).map(|since| since.elapsed());
            self.latencies.extend(waited);
        }
    }

    /// Runs until `deadline`, and a little longer for the last answers.
    fn run(mut self, deadline: Instant) -> Runner {
        let mut machine = OneRow;
        let mut tick = Instant::now() + TICK;
        self.syncs = self.replica.status().syncs;
        while Instant::now() < deadline + TICK {
            match self
                .inbox
                .recv_timeout(tick.saturating_duration_since(Instant::now()))
            {
                Ok(note) => {
                    for note in std::iter::once(note).chain(self.inbox.try_iter()) {
                        match note {
                            Note::Message(message) => drop(self.replica.step(&message)),
                            Note::Written(job) => self.replica.on_written(job),
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if Instant::now() >= tick {
                self.replica.tick();
                tick = Instant::now() + TICK;
            }
            self.turn(&mut machine, deadline);
        }
        self.syncs = self.replica.status().syncs - self.syncs;
        self
    }
}

fn three(place: &str, outstanding: usize) -> Vec<Runner> {
    let ids = [1, 2, 3];
    let voters = ids.map(|id| (id, Vec::new()));
    let channels: BTreeMap<u64, _> = ids.into_iter().map(|id| (id, channel())).collect();
    let senders: BTreeMap<u64, Sender<Note>> = channels
        .iter()
        .map(|(id, (sender, _))| (*id, sender.clone()))
        .collect();
    // Long enough for the election.
    let deadline = Instant::now() + MEASURED + Duration::from_secs(2);
    let mut threads = Vec::new();
    let mut dirs = Vec::new();
    for (id, (_, inbox)) in channels {
        let dir = tempfile::tempdir_in(place).expect("a directory can be made there");
        let mut disk = RocksDisk::open(dir.path()).expect("the database opens");
        Replica::bootstrap_voters(&mut disk, identity(id), &voters).expect("an empty disk");
        let replica = Replica::open(config(id), disk).expect("a sound disk");
        let (mut syncer, own) = (replica.syncer(), senders[&id].clone());
        let (writer, jobs) = channel::<WriteJob>();
        std::thread::spawn(move || {
            while let Ok(job) = jobs.recv() {
                let newest = jobs.try_iter().last().unwrap_or(job);
                let done = |job| drop(own.send(Note::Written(job)));
                newest.run_and_tell(&mut *syncer, done).expect("the disk works");
            }
        });
        let peers = senders.clone();
        let runner = Runner {
            replica,
            inbox,
            out: Channels { peers, writer },
            outstanding,
            open: BTreeMap::new(),
            latencies: Vec::new(),
            syncs: 0,
        };
        dirs.push(dir);
        threads.push(std::thread::spawn(move || runner.run(deadline)));
    }
    let ended = threads.into_iter().map(|thread| thread.join());
    ended.map(|runner| runner.expect("it ran")).collect()
}

#[test]
#[ignore = "a measurement, not a check"]
fn throughput_of_three() {
    for (place, outstanding) in [
        (".", 1),
        (".", 64),
        (".", 256),
        (".", 1_000),
        ("/dev/shm", 1),
        ("/dev/shm", 64),
    ] {
        let mut runners = three(place, outstanding);
        runners.sort_by_key(|runner| runner.latencies.len());
        let syncs: Vec<u64> = runners.iter().map(|runner| runner.syncs).collect();
        let leader = runners.last_mut().expect("three of them");
        leader.latencies.sort_unstable();
        let count = leader.latencies.len();
        assert!(count > 100, "no leader was elected in time");
        let at = |share: f64| leader.latencies[((count - 1) as f64 * share) as usize];
        let busy: Duration = leader.latencies.iter().sum::<Duration>() / outstanding as u32;
        println!(
            "{place:8} {outstanding:5} outstanding: {:8.0} proposals/s, p50 {:?}, p99 {:?}, syncs {syncs:?} for {count} entries",
            count as f64 / busy.as_secs_f64(),
            at(0.5),
            at(0.99),
        );
    }
}
