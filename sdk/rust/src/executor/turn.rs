//! The turn: what an executor can ask of its agent while it handles events.
//!
//! Every function only enqueues. All of it, and everything written to the state, takes effect together
//! when the executor returns and the agent has it on record, or not at all.

use crate::Error;
use crate::host::executor_driver as driver;
use crate::task::{TaskSpec, TaskState};

/// The turn in which events are handled.
#[derive(Debug)]
pub struct Turn {
    time_ms: u64,
}

impl Turn {
    pub(crate) const fn new(time_ms: u64) -> Self {
        Self { time_ms }
    }

    /// Time of the turn, in ms since the Unix epoch.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Report a state of a task, with at most 1,024 bytes for people.
    pub fn status(&mut self, task: &str, state: TaskState, message: &str) -> Result<(), Error> {
        Ok(driver::status(task, state, message, &[])?)
    }

    /// Report how a task ended, with at most 256 KiB for the scheduler.
    pub fn end_task(
        &mut self,
        task: &str,
        state: TaskState,
        message: &str,
        data: impl AsRef<[u8]>,
    ) -> Result<(), Error> {
        Ok(driver::status(task, state, message, data.as_ref())?)
    }

    /// Send bytes to the scheduler, at most once, at most 64 KiB.
    pub fn send(&mut self, data: impl AsRef<[u8]>) -> Result<(), Error> {
        Ok(driver::send(data.as_ref())?)
    }

    /// Start a native command or a Wasm task inside this executor's resources, under a name of its own:
    /// 1 to 64 bytes of `A-Z a-z 0-9 . _ -`, never used before. Answered by
    /// [`Event::Child`](super::Event::Child). Starting one that was started changes nothing.
    pub fn start_child(&mut self, child: &str, spec: TaskSpec) -> Result<(), Error> {
        Ok(driver::start_child(child, &spec.into_contract())?)
    }

    /// End a child, with this time between TERM and KILL.
    pub fn stop_child(&mut self, child: &str, grace_ms: u32) -> Result<(), Error> {
        Ok(driver::stop_child(child, grace_ms)?)
    }

    /// Have [`Event::Timer`](super::Event::Timer) after this time (at least 10 ms). Setting an id again
    /// replaces the timer. Timers are durable.
    pub fn set_timer(&mut self, id: &str, after_ms: u64) -> Result<(), Error> {
        Ok(driver::set_timer(id, after_ms)?)
    }

    /// Forget a timer; no error if there is none.
    pub fn cancel_timer(&mut self, id: &str) -> Result<(), Error> {
        Ok(driver::cancel_timer(id)?)
    }

    /// Be called again at once after this turn, with [`Event::Again`](super::Event::Again).
    pub fn call_again(&mut self) {
        driver::call_again();
    }

    /// End this executor once its last task has ended.
    pub fn finish(&mut self) {
        driver::finish();
    }
}
