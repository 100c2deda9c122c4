//! The thread that waits for the disk, so that the node's thread never does.
//!
//! Owns: the newest job that is asked for, and the newest that is done. Invariants: one job is asked for
//! at a time, as each stands for all before it, so that nothing queues here and whatever was written during
//! a sync shares the next one; what is durable is told before space is given back; after a failure nothing more
//! is done. Must never touch the node, or keep a process that ends for longer than [`LAST_SYNC_MAX`].

use crate::metrics::Metrics;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tessera_replica::{DiskError, DiskSync, WriteJob};
use tokio::sync::Notify;

/// How long a process that ends waits for a sync under way: an ordinary one takes milliseconds, and a disk that hangs
/// may do so for ever. What is not synced was promised to nobody.
const LAST_SYNC_MAX: Duration = Duration::from_secs(2);

/// How long a failed write waits for the failed sync that may be its cause.
const FAILS_WITHIN: Duration = Duration::from_millis(200);

#[derive(Default)]
struct State {
    asked: Option<WriteJob>,
    done: Option<Result<WriteJob, DiskError>>,
    stop: bool,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    asked: Condvar,
    done: Notify,
    ended: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, or none when there will be no more.
    fn next(&self) -> Option<WriteJob> {
        let idle = |state: &mut State| state.asked.is_none() && !state.stop;
        let waited = self.asked.wait_while(self.state(), idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.stop { None } else { state.asked.take() }
    }

    fn finish(&self, result: Result<WriteJob, DiskError>) {
        self.state().done = Some(result);
        self.done.notify_one();
    }
}

/// Tells the node's thread if this one ends before it was told to.
struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.ended = true;
        self.0.ended.notify_one();
        if !state.stop && !matches!(state.done, Some(Err(_))) {
            drop(state);
            self.0.finish(Err(ended("the thread that syncs has ended".to_owned())));
        }
    }
}

const fn ended(detail: String) -> DiskError {
    DiskError::Io { operation: "sync the log", detail }
}

/// The thread, which ends with this.
pub struct LogWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    last_sync_max: Duration,
}

impl LogWriter {
    /// A thread that syncs this disk.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(mut disk: Box<dyn DiskSync>, metrics: Arc<Metrics>) -> Result<Self, DiskError> {
        let shared = Arc::new(Shared::default());
        let ends = Ends(Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("log-writer".into()).spawn(move || {
            while let Some(job) = ends.0.next() {
                let began = Instant::now();
                let told = |job| {
                    metrics.syncs.took(began.elapsed());
                    ends.0.finish(Ok(job));
                };
                if let Err(failure) = job.run_and_tell(&mut *disk, told) {
                    ends.0.finish(Err(failure));
                    return;
                }
            }
        });
        let thread = thread.map_err(|error| ended(format!("no thread for it: {error}")))?;
        Ok(Self { shared, thread: Some(thread), last_sync_max: LAST_SYNC_MAX })
    }

    /// Asks for a job.
    pub fn ask(&self, job: WriteJob) {
        self.shared.state().asked = Some(job);
        self.shared.asked.notify_one();
    }

    /// Waits until a job may be done; see [`LogWriter::take`].
    pub async fn done(&self) {
        self.shared.done.notified().await;
    }

    /// The newest job that is done, if one is since the last call.
    ///
    /// # Errors
    /// The disk failed: the process must end.
    pub fn take(&self) -> Result<Option<WriteJob>, DiskError> {
        self.shared.state().done.take().transpose()
    }

    /// Why it failed, if it has or does in this moment: after a sync that failed the database refuses writes, too,
    /// and no longer says why.
    pub fn failure(&self) -> Option<DiskError> {
        let goes_on = |state: &mut State| !state.ended;
        let waited = self.shared.ended.wait_timeout_while(self.shared.state(), FAILS_WITHIN, goes_on);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.done.as_ref().and_then(|done| done.as_ref().err().cloned())
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.shared.state().stop = true;
        self.shared.asked.notify_one();
        let hangs = |state: &mut State| !state.ended;
        let waited = self.shared.ended.wait_timeout_while(self.shared.state(), self.last_sync_max, hangs);
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            tracing::warn!("the disk does not finish a sync; it is not waited for, as nobody was promised what it has not got");
            return;
        }
        // The database is closed in order only when nobody holds it any more.
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread that syncs the log did not end in order");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;
    use tessera_replica::{
        ClusterId, ElectionTimeout, Identity, Limits, MemDisk, Replica, ReplicaConfig,
    };

    /// A disk of which every sync, and every reclaiming, waits for its result.
    struct Slow {
        begun: Sender<()>,
        end: Receiver<Result<(), DiskError>>,
    }

    impl DiskSync for Slow {
        fn sync(&mut self) -> Result<(), DiskError> {
            // The test may be over.
            let _ = self.begun.send(());
            self.end.recv().unwrap_or(Ok(()))
        }

        fn reclaim_log(&mut self, _below: u64) -> Result<(), DiskError> {
            self.sync()
        }
    }

    /// Whether this job gives space back.
    fn reclaims(job: &WriteJob) -> bool {
        struct Recorder(bool);
        impl DiskSync for Recorder {
            fn sync(&mut self) -> Result<(), DiskError> {
                Ok(())
            }

            fn reclaim_log(&mut self, _below: u64) -> Result<(), DiskError> {
                self.0 = true;
                Ok(())
            }
        }
        let mut recorder = Recorder(false);
        job.run(&mut recorder).unwrap();
        recorder.0
    }

    type Harness = (LogWriter, Receiver<()>, Sender<Result<(), DiskError>>);

    fn slow() -> Harness {
        let (begun, begins) = channel();
        let (ends, end) = channel();
        (LogWriter::start(Box::new(Slow { begun, end }), Arc::default()).unwrap(), begins, ends)
    }

    fn replica(limits: Limits) -> Replica<MemDisk> {
        let identity = Identity { cluster: ClusterId([7; 16]), node: 1 };
        let mut disk = MemDisk::new();
        Replica::bootstrap(&mut disk, identity, Vec::new()).unwrap();
        let config = ReplicaConfig {
            election_timeout: ElectionTimeout::Fixed(10),
            limits,
            ..ReplicaConfig::new(identity)
        };
        Replica::open(config, disk).unwrap()
    }

    /// Jobs of a real replica, which alone makes them; each stands for one more write.
    fn jobs(count: usize) -> Vec<WriteJob> {
        let mut replica = replica(Limits::default());
        let mut made = Vec::new();
        while made.len() < count {
            replica.propose(vec![1]).unwrap();
            let mut out: Vec<(u64, Vec<u8>)> = Vec::new();
            replica.process_sending(&mut Nothing, &mut out).unwrap();
            made.extend(replica.unwritten());
        }
        made
    }

    /// A job that cuts the log.
    fn cut() -> WriteJob {
        let limits =
            Limits { log_compact_after_entries: 4, log_keep_entries: 1, ..Limits::default() };
        let mut replica = replica(limits);
        for _ in 0..100 {
            replica.propose(vec![1]).unwrap_or_default();
            let mut out: Vec<(u64, Vec<u8>)> = Vec::new();
            replica.process_sending(&mut Nothing, &mut out).unwrap();
            match replica.unwritten() {
                Some(job) if reclaims(&job) => return job,
                job => job.into_iter().for_each(|job| replica.on_written(job)),
            }
        }
        panic!("the log was never cut");
    }

    struct Nothing;

    impl tessera_replica::Machine for Nothing {
        type Effect = ();

        fn apply(
            &mut self,
            _id: tessera_replica::EntryId,
            _entry: &[u8],
            _rows: &dyn tessera_replica::RowReader,
        ) -> Result<tessera_replica::Applied<()>, tessera_replica::MachineError> {
            Ok(tessera_replica::Applied { rows: Vec::new(), effects: Vec::new() })
        }

        fn restore(
            &mut self,
            _id: tessera_replica::EntryId,
            _rows: &dyn tessera_replica::RowReader,
        ) -> Result<(), tessera_replica::MachineError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_is_asked_for_during_a_sync_shares_the_next_one() {
        let (writer, begins, ends) = slow();
        let jobs = jobs(3);
        writer.ask(jobs[0]);
        begins.recv().unwrap();
        writer.ask(jobs[1]);
        writer.ask(jobs[2]);
        assert_eq!(writer.take().unwrap(), None, "nothing is done before the disk says so");
        ends.send(Ok(())).unwrap();
        writer.done().await;
        assert_eq!(writer.take().unwrap(), Some(jobs[0]));
        begins.recv().unwrap();
        ends.send(Ok(())).unwrap();
        writer.done().await;
        assert_eq!(writer.take().unwrap(), Some(jobs[2]));
        drop(ends);
        drop(writer);
        assert!(begins.recv().is_err(), "the disk is let go, and was synced twice");
    }

    #[tokio::test]
    async fn what_is_durable_is_told_before_space_is_given_back() {
        let (writer, begins, ends) = slow();
        let job = cut();
        writer.ask(job);
        begins.recv().unwrap();
        ends.send(Ok(())).unwrap();
        begins.recv().unwrap();
        assert_eq!(writer.take().unwrap(), Some(job), "its space is not given back yet");
        let failure = ended("broken".into());
        ends.send(Err(failure.clone())).unwrap();
        while writer.take() != Err(failure.clone()) {
            writer.done().await;
        }
    }

    #[test]
    fn a_disk_that_hangs_does_not_keep_the_process() {
        let (mut writer, begins, ends) = slow();
        writer.last_sync_max = Duration::from_millis(50);
        writer.ask(jobs(1)[0]);
        begins.recv().unwrap();
        let begun = Instant::now();
        drop(writer);
        let waited = begun.elapsed();
        assert!((Duration::from_millis(50)..LAST_SYNC_MAX).contains(&waited), "{waited:?}");
        // It ends when the disk is done, and lets it go.
        ends.send(Ok(())).unwrap();
        assert!(begins.recv().is_err());
    }

    #[tokio::test]
    async fn a_failed_sync_is_the_last_one() {
        let (writer, begins, ends) = slow();
        let jobs = jobs(2);
        writer.ask(jobs[0]);
        begins.recv().unwrap();
        writer.ask(jobs[1]);
        let failure = ended("broken".into());
        ends.send(Err(failure.clone())).unwrap();
        writer.done().await;
        assert_eq!(writer.failure(), Some(failure.clone()), "a write that fails with it can say why");
        assert_eq!(writer.take(), Err(failure));
        assert!(begins.recv().is_err(), "nothing is synced after a failure");
    }
}
