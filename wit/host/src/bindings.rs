//! The generated host side of `wit/framework`, made once for the whole workspace.
//!
//! Invariants: plain synchronous functions; nothing generated leaves this crate, see `convert`. This
//! file must never hold code of ours.
#![allow(missing_docs, clippy::all)]

wasmtime::component::bindgen!({
    path: "../framework",
    world: "scheduler-framework",
});

/// The world of executors, whose nouns and log are those of schedulers.
pub mod executor {
    wasmtime::component::bindgen!({
        path: "../framework",
        world: "executor-framework",
        with: {
            "tessera:framework/types": crate::bindings::tessera::framework::types,
            "tessera:framework/log": crate::bindings::tessera::framework::log,
        },
    });
}
