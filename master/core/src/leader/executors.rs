//! Messages between schedulers and their executors, and word of executors that failed.
//!
//! Invariants: everything here is delivered at most once; what waits for a scheduler is bounded, the
//! oldest goes first, and what went is counted. Must never decide about tasks: their statuses do.

use super::Desk;
use crate::limits::{EXECUTOR_EVENTS_BYTES_MAX, EXECUTOR_EVENTS_MAX};
use std::collections::VecDeque;
use tessera_types::limits::{MESSAGE_BYTES_MAX, MESSAGE_DATA_BYTES_MAX};
use tessera_types::{AgentId, Event, ExecutorId, ExecutorMessage, FrameworkId};
use tessera_wire::WireError;
use tessera_wire::v1::{self, master_message::Message as Out};

/// Events of executors that wait for one scheduler.
#[derive(Debug, Default)]
pub(super) struct ExecutorEvents {
    queue: VecDeque<Event>,
    bytes: usize,
}

fn size(event: &Event) -> usize {
    match event {
        Event::Message(message) => message.data.len(),
        Event::ExecutorFailed { message, .. } => message.len(),
        _ => 0,
    }
}

impl ExecutorEvents {
    fn fits(&self, event: &Event) -> bool {
        self.queue.len() < EXECUTOR_EVENTS_MAX && self.bytes + size(event) <= EXECUTOR_EVENTS_BYTES_MAX
    }

    /// Add the newest; returns how many of the oldest had to go.
    pub(super) fn push(&mut self, event: Event) -> u64 {
        let mut dropped = 0;
        while !self.fits(&event) && self.pop().is_some() {
            dropped += 1;
        }
        self.bytes += size(&event);
        self.queue.push_back(event);
        dropped
    }

    /// Put back the oldest; returns whether there was room.
    pub(super) fn push_front(&mut self, event: Event) -> bool {
        let fits = self.fits(&event);
        if fits {
            self.bytes += size(&event);
            self.queue.push_front(event);
        }
        fits
    }

    pub(super) fn front(&self) -> Option<&Event> {
        self.queue.front()
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        let event = self.queue.pop_front()?;
        self.bytes = self.bytes.saturating_sub(size(&event));
        Some(event)
    }
}

impl Desk<'_> {
    /// An executor speaks to its scheduler.
    pub(super) fn on_from_executor(
        &mut self,
        agent: AgentId,
        message: v1::FromExecutor,
    ) -> Result<(), WireError> {
        let executor = name("from_executor.executor", message.executor)?;
        if message.data.len() > MESSAGE_DATA_BYTES_MAX {
            let rule = format!("at most {MESSAGE_DATA_BYTES_MAX} bytes");
            return Err(WireError::new("from_executor.data", rule));
        }
        let framework = FrameworkId(message.framework);
        if self.state.executor(framework, agent, &executor).is_some() {
            let message = ExecutorMessage { agent, executor, data: message.data };
            self.executor_event(framework, Event::Message(message));
        }
        Ok(())
    }

    /// An executor ended before its tasks did. Their statuses may be here already, or come later.
    pub(super) fn on_executor_lost(
        &mut self,
        agent: AgentId,
        lost: v1::ExecutorLost,
    ) -> Result<(), WireError> {
        let executor = name("executor_lost.executor", lost.executor)?;
        let message = lost.message.chars().take(MESSAGE_BYTES_MAX).collect();
        let event = Event::ExecutorFailed { agent, executor, message };
        self.executor_event(FrameworkId(lost.framework), event);
        Ok(())
    }

    fn executor_event(&mut self, framework: FrameworkId, event: Event) {
        let Some(instance) = self.leader.instances.get_mut(&framework) else { return };
        let dropped = instance.executor_events.push(event);
        self.leader.messages_dropped += dropped;
        self.leader.dirty_frameworks.insert(framework);
    }

    /// A scheduler speaks to an executor, if that lives and its agent is connected.
    pub(super) fn send_to_executor(&mut self, framework: FrameworkId, message: &ExecutorMessage) {
        let lives = self.state.executor(framework, message.agent, &message.executor).is_some();
        let session = self.session_of(message.agent).filter(|_| lives);
        let Some(session) = session else {
            self.leader.messages_dropped += 1;
            return;
        };
        let message = v1::ToExecutor {
            framework: framework.0,
            executor: message.executor.to_string(),
            data: message.data.clone(),
        };
        self.send(session, Out::ToExecutor(message));
    }
}

fn name(field: &'static str, text: String) -> Result<ExecutorId, WireError> {
    ExecutorId::try_from(text).map_err(|error| WireError::new(field, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u8, bytes: usize) -> Event {
        let executor = "e".parse().unwrap();
        Event::Message(ExecutorMessage { agent: AgentId(1), executor, data: vec![n; bytes] })
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_or_too_large() {
        let mut events = ExecutorEvents::default();
        let dropped: u64 = (0..70).map(|n| events.push(event(n, 1))).sum();
        assert_eq!((dropped, events.queue.len(), events.bytes), (6, EXECUTOR_EVENTS_MAX, EXECUTOR_EVENTS_MAX));
        assert_eq!(events.front(), Some(&event(6, 1)));
        assert!(!events.push_front(event(5, 1)), "there is no room for what is older still");
        let large = EXECUTOR_EVENTS_BYTES_MAX;
        assert_eq!(events.push(event(9, large)), EXECUTOR_EVENTS_MAX as u64);
        assert_eq!((events.queue.len(), events.bytes), (1, large));
        assert_eq!(events.pop(), Some(event(9, large)));
        assert_eq!((events.pop(), events.bytes), (None, 0));
    }
}
