//! Making a component of a core module that says which world it was made for.
//!
//! Invariants: the result is judged as any upload is; the same module gives the same bytes. This file must
//! never guess a world.

use crate::statics::{Counted, PREVIEW1};
use tessera_wit_host::Unusable;
use wasi_preview1_component_adapter_provider as adapters;
use wit_component::ComponentEncoder;

/// Make a component of a module that was counted.
///
/// # Errors
/// When it does not say what it was made for, or is not what it says.
pub fn componentize(module: &[u8], counted: &Counted) -> Result<Vec<u8>, Unusable> {
    // A program of WASI preview 1 has a world, that of its adapter, without saying so.
    let is_command = counted.imports_preview1 && counted.is_program;
    if !counted.has_component_type && !is_command {
        return Err(Unusable::NotAComponent(
            "a core module that does not say which world it was made for \
             (componentize it, for example by building for wasm32-wasip2)",
        ));
    }
    let mut encoder = ComponentEncoder::default().validate(true).module(module).map_err(fault)?;
    if counted.imports_preview1 {
        let adapter = if counted.is_program {
            adapters::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER
        } else {
            adapters::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER
        };
        encoder = encoder.adapter(PREVIEW1, adapter).map_err(fault)?;
    }
    encoder.encode().map_err(fault)
}

fn fault(error: impl std::fmt::Display) -> Unusable {
    Unusable::Invalid(format!("no component can be made of the core module: {error:#}"))
}
