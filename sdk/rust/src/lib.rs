//! Write Tessera schedulers, and the executors of their tasks, as WebAssembly components.
//!
//! A scheduler is a type that handles events. The cluster calls it with batches of them; what it
//! asks for in return, and what it writes to its state, commits as one transaction: the *turn*.
//! The cluster runs it, limits it, moves it to another agent when one fails, and delivers task
//! updates until they were handled. There is no leader election, no acknowledgement and no
//! reconciliation to write.
//!
//! ```
//! use tessera_sdk::http::Response;
//! use tessera_sdk::{Config, Error, Event, Pending, REFUSE_MS, Scheduler, TaskSpec, Turn, state};
//!
//! /// Runs `date` once, and answers requests with what became of it.
//! struct Once {
//!     launched: bool,
//! }
//!
//! impl Scheduler for Once {
//!     fn init(_config: &Config) -> Result<Self, Error> {
//!         Ok(Self { launched: state::get("launched")?.unwrap_or(false) })
//!     }
//!
//!     fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error> {
//!         match event {
//!             Event::Offers(offers) if !self.launched => {
//!                 let date = TaskSpec::shell("date > now").cpus(0.1).mem_mib(16).result_file("now");
//!                 let placed = turn.place(offers, [Pending::new("date", date)], REFUSE_MS)?;
//!                 self.launched = !placed.launched.is_empty();
//!                 state::set("launched", &self.launched)?;
//!             }
//!             Event::Offers(offers) => turn.decline(&offers, REFUSE_MS)?,
//!             Event::Update(status) if status.state.is_terminal() => {
//!                 state::set("outcome", &status.describe())?;
//!             }
//!             Event::Http(request) => {
//!                 let outcome: Option<String> = state::get("outcome")?;
//!                 request.respond(Response::json(&outcome))?;
//!             }
//!             _ => {}
//!         }
//!         Ok(())
//!     }
//! }
//!
//! tessera_sdk::scheduler!(Once, state_version = 1);
//! # fn main() {}
//! ```
//!
//! Build it as a `cdylib` with `cargo build --release --target wasm32-wasip2`, upload it with
//! `tessera component push`, and create a framework from it.
//!
//! Two rules follow from the turn. Memory is a cache of the state: whatever must not be lost is
//! written to [`state`] in the turn that learned it. And an error returned from a handler undoes
//! the turn and rebuilds the instance, so bad requests are answered, not returned as errors.

// The expansion of the generated macros names this crate as authors do.
extern crate self as tessera_sdk;

#[doc(hidden)]
#[allow(unsafe_code, missing_docs, clippy::all)]
pub mod bindings;
mod config;
mod error;
pub mod event;
pub mod executor;
mod host;
pub mod http;
pub mod jobs;
pub mod log;
mod request;
pub mod resources;
#[doc(hidden)]
pub mod runtime;
pub mod state;
mod task;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
mod turn;

pub use config::Config;
pub use error::Error;
pub use event::Event;
pub use request::{Predicate, Request};
pub use resources::{Offer, Resources};
pub use task::{Pending, TaskSpec, TaskState, TaskStatus};
pub use turn::{MAX_LAUNCHES_PER_PLACE, MAX_MISSES_PER_PLACE, Placed, REFUSE_MS, Turn};

/// A framework's scheduler. Export it with [`scheduler!`].
pub trait Scheduler: Sized + 'static {
    /// Make an instance from the configuration and the committed state. What it enqueues or writes
    /// commits with the first turn. An error drops the instance; it is rebuilt with back-off.
    fn init(config: &Config) -> Result<Self, Error>;

    /// Handle one event. An error drops the instance and the whole turn.
    fn handle(&mut self, turn: &mut Turn, event: Event) -> Result<(), Error>;

    /// Called after the last event of each turn: the place to write what several events changed.
    fn end_turn(&mut self, turn: &mut Turn) -> Result<(), Error> {
        let _ = turn;
        Ok(())
    }
}

/// Carries the state of an older version to this one, over as many turns as it takes. Export it with
/// [`migration!`], beside the scheduler, which names the versions that it starts from in `reads`.
///
/// While a framework migrates it gets no events. What is written is kept apart from the old state until
/// the new version has proved itself: an error, a trap or a limit drops it, and the old component goes
/// on with the old state. So does an error in the new version's first turns.
pub trait Migration {
    /// Migrate a part of the state, within the limits of a turn; true when nothing is left. Each call
    /// sees what the ones before wrote, and nothing else is remembered between them: it may run in
    /// another instance. Only [`state`] and [`log`] can be used.
    fn step(from: u32) -> Result<bool, Error>;
}

/// Export a [`Migration`] beside a [`scheduler!`].
///
/// ```ignore
/// tessera_sdk::scheduler!(WordCount, state_version = 3, reads = [2]);
/// tessera_sdk::migration!(WordCount);
/// ```
#[macro_export]
macro_rules! migration {
    ($migration:ty) => {
        const _: () = {
            struct Component;

            impl $crate::bindings::migration::exports::tessera::framework::migration::Guest for Component {
                fn step(from: u32) -> ::std::result::Result<bool, ::std::string::String> {
                    $crate::runtime::step::<$migration>(from)
                }
            }

            const _: fn() = $crate::runtime::assert_migrates::<Component>;

            // Only a component has the symbols; unit tests run on the machine itself.
            #[cfg(target_family = "wasm")]
            $crate::bindings::migration::export!(Component with_types_in $crate::bindings::migration);
        };
    };
}

/// Export a [`Scheduler`] as the component's scheduler.
///
/// `state_version` is the version of the state that it writes; `reads` lists older versions that
/// its `init` can start from, if there are any.
///
/// ```ignore
/// tessera_sdk::scheduler!(WordCount, state_version = 1);
/// tessera_sdk::scheduler!(WordCount, state_version = 3, reads = [2]);
/// ```
#[macro_export]
macro_rules! scheduler {
    ($scheduler:ty, state_version = $version:literal $(, reads = [$($older:literal),* $(,)?])? $(,)?) => {
        const _: () = {
            ::std::thread_local! {
                static INSTANCE: ::std::cell::RefCell<::std::option::Option<$scheduler>> =
                    const { ::std::cell::RefCell::new(::std::option::Option::None) };
            }

            struct Component;

            impl $crate::bindings::exports::tessera::framework::scheduler::Guest for Component {
                fn describe() -> $crate::bindings::exports::tessera::framework::scheduler::Description {
                    $crate::runtime::describe($version, &[$version $($(, $older)*)?])
                }

                fn init(
                    config: ::std::vec::Vec<(::std::string::String, ::std::string::String)>,
                ) -> ::std::result::Result<(), ::std::string::String> {
                    INSTANCE.with_borrow_mut(|slot| $crate::runtime::init(slot, config))
                }

                fn handle(
                    turn: $crate::bindings::exports::tessera::framework::scheduler::TurnInfo,
                    batch: ::std::vec::Vec<$crate::bindings::tessera::framework::events::Event>,
                ) -> ::std::result::Result<(), ::std::string::String> {
                    INSTANCE.with_borrow_mut(|slot| $crate::runtime::handle(slot, turn, batch))
                }
            }

            const _: fn() = $crate::runtime::assert_exported::<Component>;

            // Only a component has the symbols; unit tests run on the machine itself.
            #[cfg(target_family = "wasm")]
            $crate::bindings::export!(Component with_types_in $crate::bindings);
        };
    };
}
