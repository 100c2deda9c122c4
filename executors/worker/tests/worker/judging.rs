//! What `inspect` and `compile` say of components and of everything else.

use crate::harness::{guest, run};
use serde_json::Value;

fn judge(bytes: &[u8]) -> (Option<i32>, Value) {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::write(&input, bytes).unwrap();
    let said = run(&[
        "compile",
        "--in",
        input.to_str().unwrap(),
        "--out",
        output.to_str().unwrap(),
    ]);
    let verdict: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(
        output.exists(),
        verdict["ok"] == true,
        "an image exactly when usable"
    );
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1 + usize::from(output.exists())
    );
    (said.status.code(), verdict)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(guest(name)).unwrap()
}

#[test]
fn usable_components_are_named_by_their_world() {
    let (code, verdict) = judge(&bytes("echo"));
    assert_eq!((code, &verdict["world"]), (Some(0), &"scheduler".into()));
    assert_eq!(
        (&verdict["writes_state"], &verdict["reads_state"][0]),
        (&1.into(), &1.into())
    );
    let (code, verdict) = judge(&bytes("task-exit"));
    assert_eq!((code, &verdict["world"]), (Some(0), &"command".into()));
}

#[test]
fn everything_else_is_refused_by_what_it_is() {
    let echo = bytes("echo");
    let text = |bytes: &[u8], from: &str, to: &str| -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let at: Vec<usize> = (0..bytes.len() - from.len())
            .filter(|at| bytes[*at..].starts_with(from.as_bytes()))
            .collect();
        assert!(!at.is_empty(), "{from}");
        for at in at {
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
        bytes
    };
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let input = guest("echo");
    let compiled = run(&[
        "compile",
        "--in",
        input.to_str().unwrap(),
        "--out",
        image.to_str().unwrap(),
    ]);
    assert!(compiled.status.success());
    let image = std::fs::read(image).unwrap();
    let code_at = image
        .windows(4)
        .position(|four| four == b"\x7fELF")
        .unwrap();
    for (bytes, what) in [
        (bytes("bad_world"), "neither a scheduler nor an executor nor a task"),
        (
            text(
                &echo,
                "tessera:framework/scheduler@0.1.0",
                "tessera:framework/scheduler@0.2.0",
            ),
            "0.2.0",
        ),
        (
            text(
                &echo,
                "tessera:framework/timers@0.1.0",
                "tessera:framework/tomers@0.1.0",
            ),
            "tomers",
        ),
        (echo[..echo.len() / 2].to_vec(), "not valid"),
        (b"\0asm\x01\0\0\0".to_vec(), "core module"),
        (b"(component)".to_vec(), "text"),
        (image[code_at..].to_vec(), "compiled ahead"),
        (image, "unknown"),
        (
            std::fs::read("/proc/self/exe").unwrap()[..4096].to_vec(),
            "native program",
        ),
        (Vec::new(), "empty"),
        (vec![0; (32 << 20) + 1], "more than"),
    ] {
        let (code, verdict) = judge(&bytes);
        let error = verdict["error"].as_str().unwrap_or_default();
        assert!(
            code == Some(2) && error.contains(what),
            "{what}: {code:?} {verdict}"
        );
    }
}

#[test]
fn the_key_of_the_engine_is_the_same_in_every_process() {
    let key = || String::from_utf8(run(&["engine-key"]).stdout).unwrap();
    assert_eq!(key(), key());
    let (_, verdict) = judge(&bytes("echo"));
    assert_eq!(verdict["engine"], key().trim());
}
