//! Calls to the host: the imports of the component, or, where the crate is compiled for the
//! machine itself, the recorder of [`testing`](crate::testing). Nothing else may differ between
//! the two.

#[cfg(target_family = "wasm")]
pub(crate) use crate::bindings::executor::tessera::framework::{executor_driver, executor_state};
#[cfg(target_family = "wasm")]
pub(crate) use crate::bindings::tessera::framework::{driver, http, log, specs, state, timers};
#[cfg(not(target_family = "wasm"))]
pub(crate) use crate::executor::testing::calls::{executor_driver, executor_state};
#[cfg(not(target_family = "wasm"))]
pub(crate) use crate::testing::calls::{driver, http, log, specs, state, timers};
