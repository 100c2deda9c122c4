//! The bytes of hostile uploads.
//!
//! Must never be anything that a judge could accept.

use super::modules::{HARMLESS, Module};
use std::fmt::Write as _;
use std::path::Path;
use tessera_cluster::guests::{guest, program};
use tessera_cluster::{Outcome, failure};

/// The first bytes of every component.
const PREAMBLE: &[u8] = b"\0asm\x0d\0\x01\0";

/// Parse text.
fn text(source: impl AsRef<str>) -> Outcome<Vec<u8>> {
    Ok(wat::parse_str(source)?)
}

/// A component around one core module.
fn around(module: &str) -> Outcome<Vec<u8>> {
    text(format!("(component (core module {module}))"))
}

/// A component whose exported scheduler has these functions, none with the right type.
fn exporting(interface: &str, functions: &[&str], imports: &str) -> Outcome<Vec<u8>> {
    let exports: String = functions.iter().fold(String::new(), |mut text, name| {
        let _ = write!(text, r#"(export "{name}" (func $f))"#);
        text
    });
    text(format!(
        r#"(component {imports}
            (core module $m (func (export "f")))
            (core instance $i (instantiate $m))
            (func $f (canon lift (core func $i "f")))
            (instance $x {exports})
            (export "{interface}" (instance $x)))"#
    ))
}

/// Compiled code, as the worker writes it for agents.
fn image() -> Outcome<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    let output = std::process::Command::new(program("tessera-worker")?)
        .arg("compile")
        .arg("--in")
        .arg(guest("echo")?)
        .arg("--out")
        .arg(&image)
        .output()?;
    if !output.status.success() {
        return Err(failure(format!("{output:?}")));
    }
    Ok(std::fs::read(image)?)
}

/// The runtime's own format inside of an image.
fn compiled() -> Outcome<Vec<u8>> {
    let image = image()?;
    let magic = b"\x7fELF";
    let at = image.windows(magic.len()).position(|bytes| bytes == magic);
    let at = at.ok_or_else(|| failure("there is no compiled code in the image"))?;
    Ok(image.get(at..).unwrap_or_default().to_vec())
}

/// One function with so many locals and so many costly pieces.
fn function(locals: usize, pieces: usize, piece: impl Fn(usize) -> String) -> Outcome<Vec<u8>> {
    let locals = " i32".repeat(locals);
    let body: String = (0..pieces).map(piece).collect();
    around(&format!(
        r#"(func (export "f") (param i32) (local {locals}) {body})"#
    ))
}

/// A component that holds one that holds one, and so on.
fn components_in_each_other(depth: usize) -> Vec<u8> {
    let mut length = PREAMBLE.len();
    let mut openings = Vec::with_capacity(depth);
    for _ in 0..depth {
        let mut opening = PREAMBLE.to_vec();
        opening.push(4);
        leb128(length, &mut opening);
        length += opening.len();
        openings.push(opening);
    }
    openings.reverse();
    openings.push(PREAMBLE.to_vec());
    openings.concat()
}

/// One component with so many instances, memories or tables.
fn many(times: usize, field: &str) -> Outcome<Vec<u8>> {
    let instances = "(core instance (instantiate $m))".repeat(times);
    text(format!("(component (core module $m {field}) {instances})"))
}

/// A harmless scheduler with further core instances beside it, which start when it does.
fn beside(times: usize, field: &str) -> Outcome<Vec<u8>> {
    let scheduler = HARMLESS.component()?;
    // Sections of a component may follow in any order: these are those of another one, without its
    // eight bytes of preamble. Its indices would clash, and so it is a component of its own inside.
    let inner = many(times, field)?;
    let mut nested = scheduler;
    nested.push(4);
    leb128(inner.len(), &mut nested);
    nested.extend(&inner);
    // (instance (instantiate <component 0 or what follows the scheduler's own>))
    let components = count_components(&nested)?;
    let mut section = vec![1, 0];
    leb128(components - 1, &mut section);
    section.push(0);
    nested.push(5);
    leb128(section.len(), &mut nested);
    nested.extend(section);
    Ok(nested)
}

fn leb128(mut number: usize, into: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or(0);
        number >>= 7;
        if number == 0 {
            into.push(low);
            return;
        }
        into.push(low | 0x80);
    }
}

/// How many components the outermost component holds.
fn count_components(bytes: &[u8]) -> Outcome<usize> {
    let (mut at, mut count) = (8, 0);
    while let Some(id) = bytes.get(at) {
        let (mut size, mut shift) = (0_usize, 0);
        at += 1;
        loop {
            let byte = *bytes.get(at).ok_or_else(|| failure("a section is cut"))?;
            at += 1;
            size |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        count += usize::from(*id == 4);
        at += size;
    }
    Ok(count)
}

fn looping(part: &str) -> Module {
    const LOOP: &str = "(loop $again (br $again))";
    match part {
        "describe" => Module {
            describe: LOOP,
            ..HARMLESS
        },
        _ => Module {
            extra: "(func $begin (loop $again (br $again))) (start $begin)",
            ..HARMLESS
        },
    }
}

/// The bytes of the upload of this name.
pub fn bytes(name: &str) -> Outcome<Vec<u8>> {
    structure(name)
        .or_else(|| cost(name))
        .or_else(|| contract(name))
        .unwrap_or_else(|| Err(failure(format!("there is no upload {name}"))))
}

/// What is no component, or an invalid one.
fn structure(name: &str) -> Option<Outcome<Vec<u8>>> {
    Some(match name {
        "empty" => Ok(Vec::new()),
        "garbage" => Ok((0..4_096_u32).map(|n| (n * 7_919 >> 3) as u8).collect()),
        "script" => Ok(b"#!/bin/sh\nrm -rf /\n".to_vec()),
        "native-program" => program("tessera-shim").and_then(|path| {
            let mut bytes = std::fs::read(path)?;
            bytes.truncate(64 << 10);
            Ok(bytes)
        }),
        "compiled" => compiled(),
        "image" => image(),
        "text" => Ok(b"(component)".to_vec()),
        "core-module" => text(r#"(module (func (export "run")))"#),
        "unknown-version" => Ok(b"\0asm\x0e\0\x01\0".to_vec()),
        "truncated" => guest("echo").and_then(|path| {
            let mut bytes = std::fs::read(path)?;
            bytes.truncate(bytes.len() / 2);
            Ok(bytes)
        }),
        "damaged" => guest("echo").and_then(|path| {
            let mut bytes = std::fs::read(path)?;
            let middle = bytes.len() / 2;
            for byte in bytes.iter_mut().skip(middle).take(64) {
                *byte ^= 0x55;
            }
            Ok(bytes)
        }),
        "memory64" => around("(memory i64 1)"),
        "multi-memory" => around("(memory 1) (memory 1)"),
        "threads" => around("(memory 1 1 shared)"),
        "garbage-collection" => {
            around("(type (struct (field i32))) (func (drop (struct.new_default 0)))")
        }
        "relaxed-simd" => around(
            "(func (param v128 v128) (result v128) (i8x16.relaxed_swizzle (local.get 0) (local.get 1)))",
        ),
        "tail-call" => around("(func $f (return_call $f))"),
        "deep-types" => {
            let chain = (1..2_000).fold("(type $t0 (list u8))".to_owned(), |mut text, at| {
                let _ = write!(text, "(type $t{at} (list $t{}))", at - 1);
                text
            });
            text(format!("(component {chain})"))
        }
        "deep-components" => Ok(components_in_each_other(2_000)),
        "deeper-components" => Ok(components_in_each_other(100_000)),
        "long-name" => text(format!(
            r#"(component (import "a{}" (func)))"#,
            "-a".repeat(100_000)
        )),
        _ => return None,
    })
}

/// What would cost the judge, or the agent, dear.
fn cost(name: &str) -> Option<Outcome<Vec<u8>>> {
    Some(match name {
        "functions" => around(&"(func)".repeat(200_000)),
        "function-size" => function(1, 700_000, |_| "(drop (i32.const 1))".to_owned()),
        "loops" => function(10_000, 10_000, |at| {
            format!("(loop (br_if 0 (local.get {})))", at % 10_000)
        }),
        // Each block is left with other values in its locals.
        "blocks" => function(4_990, 40_000, |at| {
            let (one, other) = (1 + at * 7 % 4_990, 1 + at * 13 % 4_990);
            format!("(block (br_if 0 (local.get {one})) (local.set {other} (local.get 0)))")
        }),
        "br-table" => {
            let targets = " 0".repeat(400_000);
            around(&format!(
                "(func (param i32) (block (br_table {targets} (local.get 0))))"
            ))
        }
        "instances" => many(1_100, "(func)"),
        "live-instances" => beside(100, "(func)"),
        "live-memories" => beside(20, "(memory 1)"),
        "live-tables" => beside(1, &"(table 1 funcref)".repeat(70)),
        "first-memory" => beside(1, "(memory 65536)"),
        "first-table" => beside(1, "(table 9000000 funcref)"),
        "start-loop" => looping("start").component(),
        "start-trap" => Module {
            extra: "(func $begin unreachable) (start $begin)",
            ..HARMLESS
        }
        .component(),
        "describe-loop" => looping("describe").component(),
        "describe-trap" => Module {
            describe: "unreachable",
            ..HARMLESS
        }
        .component(),
        "describe-giant" => Module {
            describe: "(i32.store (i32.const 1024) (i32.const 1))
                (i32.store (i32.const 1028) (i32.const 65536))
                (i32.store (i32.const 1032) (i32.const 0x800000))
                (return (i32.const 1024))",
            pages: 900,
            ..HARMLESS
        }
        .component(),
        _ => return None,
    })
}

/// What does not fit the contract.
fn contract(name: &str) -> Option<Outcome<Vec<u8>>> {
    const OURS: &str = "tessera:framework/scheduler@0.1.0";
    const ALL: &[&str] = &["describe", "init", "handle"];
    Some(match name {
        "no-world" => guest("bad-world").and_then(|path| Ok(std::fs::read(path)?)),
        "missing-export" => exporting(OURS, &["describe", "init"], ""),
        "wrong-type" => exporting(OURS, ALL, ""),
        "wrong-version" => exporting("tessera:framework/scheduler@0.2.0", ALL, ""),
        "extra-import" => exporting(
            OURS,
            ALL,
            r#"(import "evil:host/escape@1.0.0" (instance (export "run" (func))))"#,
        ),
        "unknown-function" => exporting(
            OURS,
            ALL,
            r#"(import "tessera:framework/driver@0.1.0" (instance (export "become-root" (func))))"#,
        ),
        "newer-wasi" => exporting(
            OURS,
            ALL,
            r#"(import "wasi:sockets/tcp@0.9.0" (instance (export "listen" (func))))"#,
        ),
        "other-digest" => guest("trap").and_then(|path| Ok(std::fs::read(path)?)),
        _ => return None,
    })
}

/// The path that an upload goes to.
pub fn path(name: &str) -> String {
    let zeros = "0".repeat(64);
    match name {
        "other-digest" => format!("/v1/components?digest=sha256:{zeros}"),
        _ => "/v1/components".to_owned(),
    }
}

/// A check of the helpers above, which put bytes together by hand.
#[test]
fn hand_made_bytes_are_what_they_are_said_to_be() -> Outcome {
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).is_absolute());
    let plain = HARMLESS.component()?;
    let more = beside(3, "(memory 1)")?;
    assert_eq!(count_components(&more)?, count_components(&plain)? + 1);
    assert!(more.starts_with(&plain));
    let mut number = Vec::new();
    leb128(624_485, &mut number);
    assert_eq!(number, [0xe5, 0x8e, 0x26]);
    Ok(())
}
