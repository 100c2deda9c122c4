//! The functions that an executor may call, beside its log.
//!
//! Invariants: every function only reads, or enqueues into the turn's draft; none waits, and none
//! fails in a way that the contract does not name. This file must never touch anything outside of the
//! instance.

use crate::bindings::executor::tessera::framework::{executor_driver, executor_events, executor_state};
use crate::bindings::tessera::framework::types::{Error, TaskSpec, TaskState};
use crate::convert;
use crate::executor_convert;
use crate::guest::Guest;

impl executor_events::Host for Guest {}

impl executor_driver::Host for Guest {
    fn status(
        &mut self,
        task: String,
        state: TaskState,
        message: String,
        data: Vec<u8>,
    ) -> Result<(), Error> {
        let state = executor_convert::task_state(state);
        Ok(self.executor.status(&task, state, message, data)?)
    }

    fn send(&mut self, data: Vec<u8>) -> Result<(), Error> {
        Ok(self.executor.send(data)?)
    }

    fn start_child(&mut self, child: String, spec: TaskSpec) -> Result<(), Error> {
        Ok(self.executor.start_child(&child, &convert::task_spec(spec)?)?)
    }

    fn stop_child(&mut self, child: String, grace_ms: u32) -> Result<(), Error> {
        Ok(self.executor.stop_child(&child, grace_ms)?)
    }

    fn set_timer(&mut self, id: String, after_ms: u64) -> Result<(), Error> {
        Ok(self.executor.set_timer(id, after_ms)?)
    }

    fn cancel_timer(&mut self, id: String) -> Result<(), Error> {
        Ok(self.executor.cancel_timer(id)?)
    }

    fn call_again(&mut self) {
        // The contract gives this call no way to fail; a turn that is full of operations is called
        // again by the events that answer them.
        let _ = self.executor.call_again();
    }

    fn finish(&mut self) {
        // Likewise: who floods is asked to end by the agent in any case.
        let _ = self.executor.finish();
    }
}

impl executor_state::Host for Guest {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        self.state.get(&key).map(<[u8]>::to_vec)
    }

    fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), Error> {
        Ok(self.state.write(&key, Some(value))?)
    }

    fn delete(&mut self, key: String) -> Result<(), Error> {
        Ok(self.state.write(&key, None)?)
    }

    fn scan(&mut self, prefix: String, after: Option<String>, limit: u32) -> Vec<(String, Vec<u8>)> {
        self.state.scan(&prefix, after.as_deref(), limit)
    }
}
