//! Bindings of the world `scheduler-framework`, generated from `wit/framework` once, here.
//!
//! Invariant: this is the only place of the SDK that holds generated code, and the only one with
//! `unsafe` in it. It must never be edited by hand to hold anything else.

wit_bindgen::generate!({
    world: "scheduler-framework",
    path: "../../wit/framework",
    pub_export_macro: true,
    export_macro_name: "export",
    default_bindings_module: "::tessera_sdk::bindings",
    additional_derives: [PartialEq, Eq],
});
