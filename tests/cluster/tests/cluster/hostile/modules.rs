//! Schedulers made by hand, as no toolchain would make them: core modules in text, wrapped into
//! components of the contract's world.
//!
//! Must never need anything but the contract's WIT files.

use std::path::Path;
use tessera_cluster::Outcome;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The parts in which one module differs from a harmless one.
#[derive(Clone, Copy)]
pub struct Module {
    /// Imports, before everything else.
    pub imports: &'static str,
    /// Pages of memory at the start.
    pub pages: u32,
    /// Body of `cabi_realloc`; `$align` and `$size` are its parameters.
    pub realloc: &'static str,
    /// Runs before the answer of `describe`.
    pub describe: &'static str,
    /// Runs before the answer of `init`.
    pub init: &'static str,
    /// Runs before the answer of `handle`.
    pub handle: &'static str,
    /// Further fields.
    pub extra: &'static str,
}

/// Takes memory from the end of what was taken before.
const HONEST_REALLOC: &str = "
    (global.set $top (i32.and
        (i32.add (global.get $top) (i32.sub (local.get $align) (i32.const 1)))
        (i32.sub (i32.const 0) (local.get $align))))
    (global.get $top)
    (global.set $top (i32.add (global.get $top) (local.get $size)))";

/// Does nothing, as it should.
pub const HARMLESS: Module = Module {
    imports: "",
    pages: 16,
    realloc: HONEST_REALLOC,
    describe: "",
    init: "",
    handle: "",
    extra: "",
};

/// Something that changes the framework's row, so that the turn can be seen from outside.
const SUPPRESS: &str =
    r#"(import "tessera:framework/driver@0.1.0" "suppress" (func $suppress (param i32)))"#;

impl Module {
    /// The module's text. Results lie at 1024 (describe), 2048 (init) and 3072 (handle); a result of
    /// zeroes is `ok`. The describing record says: writes 1, reads one version, which is 1.
    fn text(&self) -> String {
        let Self {
            imports,
            pages,
            realloc,
            describe,
            init,
            handle,
            extra,
        } = self;
        format!(
            r#"(module {imports}
  (memory (export "memory") {pages})
  (global $top (mut i32) (i32.const 65536))
  (func $realloc (export "cabi_realloc")
    (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32) {realloc})
  (func (export "tessera:framework/scheduler@0.1.0#describe") (result i32) {describe}
    (i32.store (i32.const 1024) (i32.const 1))
    (i32.store (i32.const 1028) (i32.const 1040))
    (i32.store (i32.const 1032) (i32.const 1))
    (i32.store (i32.const 1040) (i32.const 1))
    (i32.const 1024))
  (func (export "tessera:framework/scheduler@0.1.0#init")
    (param $config i32) (param $config_len i32) (result i32) {init}
    (i32.const 2048))
  (func (export "tessera:framework/scheduler@0.1.0#handle")
    (param $number i64) (param $epoch i64) (param $time i64) (param $batch i32) (param $batch_len i32)
    (result i32) {handle}
    (i32.const 3072))
  {extra})"#
        )
    }

    /// The core module with the world's description in it, not wrapped.
    pub fn core(&self) -> Outcome<Vec<u8>> {
        let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit/framework");
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_dir(&wit).map_err(|e| format!("{e:#}"))?;
        let world = resolve
            .select_world(&[package], Some("scheduler-framework"))
            .map_err(|e| format!("{e:#}"))?;
        let mut core = wat::parse_str(self.text())?;
        embed_component_metadata(&mut core, &resolve, world, StringEncoding::UTF8)
            .map_err(|e| format!("{e:#}"))?;
        Ok(core)
    }

    /// The component.
    pub fn component(&self) -> Outcome<Vec<u8>> {
        let bytes = ComponentEncoder::default()
            .module(&self.core()?)
            .and_then(|encoder| encoder.validate(true).encode())
            .map_err(|e| format!("{e:#}"))?;
        Ok(bytes)
    }
}

/// A module by the name of its attack.
pub fn named(name: &str) -> Option<Module> {
    let harmless = HARMLESS;
    Some(match name {
        "realloc-unaligned" => Module {
            realloc: "(i32.const 65537)",
            ..harmless
        },
        "realloc-beyond" => Module {
            realloc: "(i32.const 0x7ffffff0)",
            ..harmless
        },
        "realloc-trap" => Module {
            realloc: "unreachable",
            ..harmless
        },
        "realloc-loop" => Module {
            realloc: "(loop $again (br $again)) unreachable",
            ..harmless
        },
        // The host is writing arguments: the guest may not call out now.
        "realloc-reenters" => Module {
            imports: r#"(import "tessera:framework/driver@0.1.0" "call-again" (func $again))"#,
            realloc: "(call $again) (i32.const 65536)",
            ..harmless
        },
        "result-discriminant" => Module {
            handle: "(i32.store8 (i32.const 3072) (i32.const 7))",
            ..harmless
        },
        "result-beyond" => Module {
            handle: "(return (i32.const 0x7ffffff0))",
            ..harmless
        },
        "result-text-beyond" => Module {
            handle: "(i32.store8 (i32.const 3072) (i32.const 1))
                (i32.store (i32.const 3076) (i32.const 16))
                (i32.store (i32.const 3080) (i32.const 0x70000000))",
            ..harmless
        },
        "result-text-giant" => Module {
            pages: 800,
            handle: "(i32.store8 (i32.const 3072) (i32.const 1))
                (i32.store (i32.const 3076) (i32.const 65536))
                (i32.store (i32.const 3080) (i32.const 0x2000000))",
            ..harmless
        },
        "result-text-invalid" => Module {
            handle: r"(i32.store (i32.const 4096) (i32.const 0xfffefdfc))
                (i32.store8 (i32.const 3072) (i32.const 1))
                (i32.store (i32.const 3076) (i32.const 4096))
                (i32.store (i32.const 3080) (i32.const 4))",
            ..harmless
        },
        // The host calls it when it has read the answer.
        "cleanup-loop" => Module {
            extra: r#"(func (export "cabi_post_tessera:framework/scheduler@0.1.0#handle") (param i32)
                (loop $again (br $again)))"#,
            ..harmless
        },
        "stack" => Module {
            handle: "(call $deeper)",
            extra: "(func $deeper (call $deeper) (call $deeper))",
            ..harmless
        },
        "stack-host-call" => Module {
            imports: r#"(import "tessera:framework/driver@0.1.0" "call-again" (func $again))"#,
            handle: "(call $deeper)",
            extra: "(func $deeper (call $again) (call $deeper) (call $again))",
            ..harmless
        },
        "table-grow" => Module {
            imports: SUPPRESS,
            handle: "(call $suppress (i32.const 4096)) (if (i32.ne (table.grow $t (ref.null func) (i32.const 50000000)) (i32.const -1))
                (then unreachable))",
            extra: "(table $t 1 funcref)",
            ..harmless
        },
        // A table is null where nobody has written. Whatever its next life finds was left by this one.
        "table-residue" => Module {
            handle: "(local $at i32)
                (loop $next
                    (if (i32.eqz (ref.is_null (table.get $t (local.get $at)))) (then unreachable))
                    (table.set $t (local.get $at) (ref.func $left))
                    (local.set $at (i32.add (local.get $at) (i32.const 1)))
                    (br_if $next (i32.lt_u (local.get $at) (table.size $t))))
                (drop (i32.div_s (i32.const 1) (i32.const 0)))",
            extra: "(table $t 50000 funcref) (elem declare func $left) (func $left)",
            ..harmless
        },
        "indirect-type" => Module {
            handle: "(call_indirect $t (type $other) (i64.const 1) (i32.const 0))",
            extra: "(type $other (func (param i64)))
                (table $t 1 funcref) (elem (i32.const 0) $plain) (func $plain)",
            ..harmless
        },
        "indirect-null" => Module {
            handle: "(call_indirect $t (type $plain) (i32.const 3))",
            extra: "(type $plain (func)) (table $t 4 funcref)",
            ..harmless
        },
        "divide" => Module {
            handle: "(drop (i32.div_s (i32.const 1) (i32.const 0)))",
            ..harmless
        },
        _ => return None,
    })
}
