//! Bindings of the worlds, generated from `wit/framework` once, here.
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

/// The optional export of schedulers that carries state from an older version.
pub mod migration {
    wit_bindgen::generate!({
        inline: "package tessera:migrating; world migrating { export tessera:framework/migration@0.1.0; }",
        world: "tessera:migrating/migrating",
        path: "../../wit/framework",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "::tessera_sdk::bindings::migration",
    });
}

/// The world `executor-framework`, whose nouns and log are those of schedulers.
pub mod executor {
    wit_bindgen::generate!({
        world: "executor-framework",
        path: "../../wit/framework",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "::tessera_sdk::bindings::executor",
        additional_derives: [PartialEq, Eq],
        with: {
            "tessera:framework/types@0.1.0": crate::bindings::tessera::framework::types,
            "tessera:framework/log@0.1.0": crate::bindings::tessera::framework::log,
        },
    });
}
