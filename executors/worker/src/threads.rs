//! Threads that run one job after the other, so that a short one does not pay for a thread of its own:
//! its stack, its signal stack and their removal, for each of which all cores are interrupted.
//!
//! Invariants: a job never waits for another one to end; a thread that nobody needed for [`IDLE_FOR`]
//! ends, and no more than [`IDLE_MAX`] wait. This file must never know what a job is.

use std::ffi::CString;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Threads that wait for jobs. Each may keep the pages of its stack that were written to, which a worker's
/// own share of memory has room for.
const IDLE_MAX: usize = 16;
/// How long one waits: longer than the pause between the tasks of a busy scheduler.
const IDLE_FOR: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

struct Idle {
    number: u64,
    jobs: SyncSender<Job>,
}

#[derive(Default)]
struct State {
    idle: Vec<Idle>,
    started: u64,
}

/// The threads of one kind of job.
pub struct Threads {
    stack_bytes: usize,
    state: Mutex<State>,
}

impl Threads {
    /// None yet.
    #[must_use]
    pub fn new(stack_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            stack_bytes,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Run a job at once, on a thread that waits or on a new one. The thread has this name meanwhile.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn run(
        self: &Arc<Self>,
        name: String,
        job: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let mut job: Job = Box::new(move || {
            let name = CString::new(name).unwrap_or_default();
            // Only for whoever looks at the machine.
            let _ = nix::sys::prctl::set_name(&name);
            job();
        });
        // The last one that became idle is the one that is warm.
        while let Some(idle) = { self.state().idle.pop() } {
            match idle.jobs.send(job) {
                Ok(()) => return Ok(()),
                Err(refused) => job = refused.0,
            }
        }
        let number = {
            let mut state = self.state();
            state.started += 1;
            state.started
        };
        let threads = Arc::clone(self);
        std::thread::Builder::new()
            .stack_size(self.stack_bytes)
            .spawn(move || threads.serve(number, job))?;
        Ok(())
    }

    fn serve(&self, number: u64, first: Job) {
        let (jobs, mine) = sync_channel(1);
        let mut job = Some(first);
        while let Some(now) = job.take() {
            now();
            let mut state = self.state();
            if state.idle.len() >= IDLE_MAX {
                return;
            }
            let jobs = jobs.clone();
            state.idle.push(Idle { number, jobs });
            drop(state);
            job = self.wait(number, &mine);
        }
    }

    fn wait(&self, number: u64, mine: &Receiver<Job>) -> Option<Job> {
        match mine.recv_timeout(IDLE_FOR) {
            Ok(job) => Some(job),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                let mut state = self.state();
                let waiting = state.idle.len();
                state.idle.retain(|idle| idle.number != number);
                let taken = state.idle.len() == waiting;
                drop(state);
                // Whoever took it off the list sends a job.
                taken.then(|| mine.recv().ok()).flatten()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::thread::{self, ThreadId};
    use std::time::Instant;

    const WITHIN: Duration = Duration::from_secs(20);

    fn until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + WITHIN;
        while !condition() {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
    }

    #[test]
    fn jobs_share_a_thread_one_after_the_other_and_never_wait_for_each_other() {
        let threads = Threads::new(256 << 10);
        let (sender, ran) = channel::<ThreadId>();
        let run = |threads: &Arc<Threads>| {
            let sender = sender.clone();
            let job = move || sender.send(thread::current().id()).unwrap();
            threads.run("job".into(), job).unwrap();
            ran.recv_timeout(WITHIN).unwrap()
        };
        let first = run(&threads);
        // A thread is on the list only when its job is over.
        until(|| threads.state().idle.len() == 1);
        assert_eq!(run(&threads), first);
        until(|| threads.state().idle.len() == 1);
        // Two that need each other both run.
        let (here, there) = (channel::<()>(), channel::<()>());
        let (done, ended) = channel::<()>();
        let both = [(here.0, there.1), (there.0, here.1)];
        for (tell, hear) in both {
            let done = done.clone();
            let job = move || {
                tell.send(()).unwrap();
                hear.recv_timeout(WITHIN).unwrap();
                done.send(()).unwrap();
            };
            threads.run("pair".into(), job).unwrap();
        }
        for _ in 0..2 {
            ended.recv_timeout(WITHIN).unwrap();
        }
    }

    #[test]
    fn no_more_wait_than_are_kept() {
        let threads = Threads::new(256 << 10);
        let (sender, ended) = channel::<()>();
        let gate = Arc::new(std::sync::Barrier::new(2 * IDLE_MAX));
        for _ in 0..2 * IDLE_MAX {
            let (sender, gate) = (sender.clone(), Arc::clone(&gate));
            let job = move || {
                gate.wait();
                sender.send(()).unwrap();
            };
            threads.run("job".into(), job).unwrap();
        }
        for _ in 0..2 * IDLE_MAX {
            ended.recv_timeout(WITHIN).unwrap();
        }
        // Each thread holds on to the list that it is on.
        until(|| Arc::strong_count(&threads) == 1 + IDLE_MAX);
        assert_eq!(threads.state().idle.len(), IDLE_MAX);
    }
}
