//! Write custom executors: components that run a framework's own tasks on each agent.
//!
//! An executor is a type that handles events, as a scheduler is. Its agent starts it with its first task
//! there, gives it tasks to run, and keeps what it asked for and what it wrote to its [`state`] in one
//! step, the *turn*. It does little work itself: it starts *children*, native commands or Wasm tasks,
//! inside the resources that it and its tasks are charged for, and reports how its tasks fare.
//!
//! ```
//! use tessera_sdk::executor::{Event, Executor, Turn};
//! use tessera_sdk::{Config, Error, TaskSpec, TaskState};
//!
//! /// Runs the data of each task as a shell command.
//! struct Shell;
//!
//! impl Executor for Shell {
//!     fn init(_config: &Config) -> Result<Self, Error> {
//!         Ok(Self)
//!     }
//!
//!     fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
//!         match event {
//!             Event::Launch(launch) => {
//!                 let command = String::from_utf8_lossy(launch.data()).into_owned();
//!                 turn.start_child(&launch.task, TaskSpec::shell(command))?;
//!                 turn.status(&launch.task, TaskState::Running, "")?;
//!             }
//!             Event::Child(child) if child.status.state.is_terminal() => {
//!                 turn.end_task(&child.child, child.status.state, "", child.status.data)?;
//!             }
//!             Event::Kill(kill) => turn.stop_child(&kill.task, kill.grace_ms)?,
//!             _ => {}
//!         }
//!         Ok(())
//!     }
//! }
//!
//! tessera_sdk::executor!(Shell);
//! # fn main() {}
//! ```
//!
//! The instance is rebuilt from its state when it fails, or its agent or worker does: whatever must not
//! be lost is written to [`state`] in the turn that learned it. Children go on meanwhile, and the first
//! event of an instance tells of them.

mod runtime;
pub mod state;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
mod turn;

#[doc(hidden)]
pub use runtime::{assert_exported, handle, init};
pub use turn::Turn;

use crate::bindings::executor::tessera::framework::executor_events as host;
pub use crate::bindings::executor::tessera::framework::executor_events::{
    ChildStatus, ExecutorInfo, TaskKill, TaskLaunch,
};
use crate::bindings::tessera::framework::types::{Ext, TaskBody};
use crate::{Config, Error};

/// Everything that can happen to an executor.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// First event of an instance: where it runs, and the children that outlived the last instance.
    Started(ExecutorInfo, Vec<ChildStatus>),
    /// Run a task.
    Launch(TaskLaunch),
    /// Run all of these or none.
    LaunchGroup(Vec<TaskLaunch>),
    /// End a task, within this time; the agent ends it 5 s after that.
    Kill(TaskKill),
    /// Bytes from the scheduler.
    Message(Vec<u8>),
    /// What became of a child. Comes until a turn that received it is on record.
    Child(ChildStatus),
    /// A timer came due.
    Timer(String),
    /// End within this time, in ms.
    Shutdown(u32),
    /// Answers [`Turn::call_again`].
    Again,
    /// For later versions; ignore what is not known.
    Other(Ext),
}

impl From<host::ExecutorEvent> for Event {
    fn from(event: host::ExecutorEvent) -> Self {
        match event {
            host::ExecutorEvent::Started((info, children)) => Self::Started(info, children),
            host::ExecutorEvent::Launch(launch) => Self::Launch(launch),
            host::ExecutorEvent::LaunchGroup(launches) => Self::LaunchGroup(launches),
            host::ExecutorEvent::Kill(kill) => Self::Kill(kill),
            host::ExecutorEvent::Message(data) => Self::Message(data),
            host::ExecutorEvent::Child(child) => Self::Child(child),
            host::ExecutorEvent::Timer(id) => Self::Timer(id),
            host::ExecutorEvent::Shutdown(within_ms) => Self::Shutdown(within_ms),
            host::ExecutorEvent::Again => Self::Again,
            host::ExecutorEvent::Other(ext) => Self::Other(ext),
        }
    }
}

impl TaskLaunch {
    /// What the scheduler wrote for the executor.
    pub fn data(&self) -> &[u8] {
        match &self.spec.body {
            TaskBody::Executor(task) => &task.data,
            _ => &[],
        }
    }
}

/// A framework's custom executor. Export it with [`executor!`](crate::executor!).
pub trait Executor: Sized + 'static {
    /// Make an instance from the configuration that its tasks name and its durable state. What it
    /// enqueues or writes belongs to the first turn. An error drops the instance; it is rebuilt with
    /// back-off.
    fn init(config: &Config) -> Result<Self, Error>;

    /// Handle one event. An error drops the instance and the whole turn.
    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error>;

    /// Called after the last event of each turn: the place to write what several events changed.
    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        let _ = turn;
        Ok(())
    }
}

/// Export an [`Executor`](crate::executor::Executor) as the component's executor.
///
/// ```ignore
/// tessera_sdk::executor!(Shell);
/// ```
#[macro_export]
macro_rules! executor {
    ($executor:ty $(,)?) => {
        const _: () = {
            ::std::thread_local! {
                static INSTANCE: ::std::cell::RefCell<::std::option::Option<$executor>> =
                    const { ::std::cell::RefCell::new(::std::option::Option::None) };
            }

            struct Component;

            impl $crate::bindings::executor::exports::tessera::framework::executor::Guest for Component {
                fn init(
                    config: ::std::vec::Vec<(::std::string::String, ::std::string::String)>,
                ) -> ::std::result::Result<(), ::std::string::String> {
                    INSTANCE.with_borrow_mut(|slot| $crate::executor::init(slot, config))
                }

                fn handle(
                    time_ms: u64,
                    batch: ::std::vec::Vec<
                        $crate::bindings::executor::tessera::framework::executor_events::ExecutorEvent,
                    >,
                ) -> ::std::result::Result<(), ::std::string::String> {
                    INSTANCE.with_borrow_mut(|slot| $crate::executor::handle(slot, time_ms, batch))
                }
            }

            const _: fn() = $crate::executor::assert_exported::<Component>;

            // Only a component has the symbols; unit tests run on the machine itself.
            #[cfg(target_family = "wasm")]
            $crate::bindings::executor::export!(Component with_types_in $crate::bindings::executor);
        };
    };
}
