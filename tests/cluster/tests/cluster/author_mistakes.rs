//! What authors get wrong first, and what they are told: each message names what it is, and the way out. No
//! cluster is needed.

use std::path::Path;
use std::process::{Command, Output};
use tessera_cluster::guests::{guest, program};
use tessera_cluster::{Outcome, ensure};

fn tessera(args: &[&str], dir: &Path) -> Outcome<Output> {
    Ok(Command::new(program("tessera")?).args(args).current_dir(dir).output()?)
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// A mistake that the guest of this name makes when it is given offers; what has to be said of it.
const MISTAKES: [(&str, bool, &[&str]); 12] = [
    ("keeps-offers", true, &["turns in a row brought offers and answered none", "turn.decline", "never answered: 1, 2, 3"]),
    ("large-value", false, &["limit state-value-bytes: at most 262144", "spread it over several keys"]),
    ("large-turn", false, &["limit turn-state-bytes: at most 1048576", "have it called again"]),
    ("many-keys", false, &["limit turn-keys: at most 1000", "have it called again"]),
    ("panics", false, &["panicked at", "src/lib.rs:", "the count was written when it began"]),
    ("empty-command", false, &["body: argv needs a program"]),
    ("bad-file", false, &["files.path: no empty parts, `.` or `..`"]),
    ("bad-id", false, &["launch.task: a task id consists of"]),
    ("too-large", true, &["would be TASK_DROPPED: it asks for 64 cpu, 32 MiB, and the offer has 4 cpu, 1024 MiB left"]),
    ("id-again", true, &["would be TASK_DROPPED: the id a was used before; task ids are used once"]),
    ("spins", false, &["limit turn-cpu-ms: 1000 ms of CPU time are used up", "do less in one turn"]),
    ("hoards", false, &["limit memory-bytes", "a cache of the state"]),
];

#[test]
fn mistakes_in_a_scheduler_are_told_with_their_way_out() -> Outcome {
    let dir = tempfile::tempdir()?;
    let component = guest("mistakes")?;
    let component = component.display().to_string();
    let offers = "[[step]]\noffers = [{ cpus = 4, mem_mib = 1024 }]\n".repeat(3);
    for (mistake, succeeds, parts) in MISTAKES {
        let script = format!("[framework]\nconfig = {{ mistake = \"{mistake}\" }}\n{offers}");
        std::fs::write(dir.path().join("script.toml"), script)?;
        let output = tessera(&["framework", "test", &component, "--script", "script.toml"], dir.path())?;
        let text = said(&output);
        ensure(output.status.success() == succeeds, || format!("{mistake}: {}: {text}", output.status))?;
        for part in parts {
            ensure(text.contains(part), || format!("{mistake}: {part:?} is not in: {text}"))?;
        }
    }
    // A configuration that is missing, and state of another form: the first instance cannot be built.
    for (framework, parts) in [
        ("", &["configuration key `mistake` is required"][..]),
        ("config = { mistake = \"other-state\" }\nstate = { count = \"many\" }\n", &["state key `count` cannot be read"]),
    ] {
        std::fs::write(dir.path().join("script.toml"), format!("[framework]\n{framework}"))?;
        let text = said(&tessera(&["framework", "test", &component, "--script", "script.toml"], dir.path())?);
        for part in parts {
            ensure(text.contains(part), || format!("{part:?} is not in: {text}"))?;
        }
    }
    Ok(())
}

#[test]
fn what_is_no_scheduler_is_called_by_its_name() -> Outcome {
    let dir = tempfile::tempdir()?;
    let module = wat::parse_str("(module (func (export \"run\")))")?;
    std::fs::write(dir.path().join("module.wasm"), module)?;
    std::fs::write(dir.path().join("text.wasm"), "(component)")?;
    std::fs::copy(guest("bad-world")?, dir.path().join("world.wasm"))?;
    std::fs::copy(guest("task-exit")?, dir.path().join("task.wasm"))?;
    let mut newer = std::fs::read(guest("echo")?)?;
    let (from, to) = (b"tessera:framework/scheduler@0.1.0", b"tessera:framework/scheduler@0.9.0");
    for at in 0..newer.len() - from.len() {
        if newer[at..].starts_with(from) {
            newer[at..at + to.len()].copy_from_slice(to);
        }
    }
    std::fs::write(dir.path().join("newer.wasm"), newer)?;
    for (file, parts) in [
        ("module.wasm", &["a core module that does not say which world", "wasm32-wasip2"][..]),
        ("text.wasm", &["WebAssembly text"]),
        ("world.wasm", &["neither a scheduler nor an executor nor a task", "tessera_sdk::scheduler!", "cdylib"]),
        ("task.wasm", &["a component of the world `command`, not a scheduler"]),
        ("newer.wasm", &["is of version 0.9.0", "speaks 0.1.0", "SDK of this cluster's version"]),
        ("/proc/self/exe", &["a native program"]),
        ("none.wasm", &["No such file"]),
    ] {
        let output = tessera(&["framework", "test", file], dir.path())?;
        let text = said(&output);
        ensure(!output.status.success(), || format!("{file}: {text}"))?;
        for part in parts {
            ensure(text.contains(part), || format!("{file}: {part:?} is not in: {text}"))?;
        }
    }
    Ok(())
}

#[test]
fn mistakes_in_scripts_and_projects_are_told() -> Outcome {
    let dir = tempfile::tempdir()?;
    let component = guest("echo")?.display().to_string();
    for (script, part) in [
        ("[[step]]\noffer = 1\n", "offer"),
        ("[[step]]\nafter = \"soon\"\n", "soon"),
        ("[framework]\nlimits = { no-such = 1 }\n", "no-such"),
        ("[[step]]\nmessages = [{ executor = \"a b\", data = \"\" }]\n", "messages"),
    ] {
        std::fs::write(dir.path().join("script.toml"), script)?;
        let output = tessera(&["framework", "test", &component, "--script", "script.toml"], dir.path())?;
        let text = said(&output);
        ensure(output.status.code() == Some(2) && text.contains(part), || format!("{script}: {text}"))?;
    }
    for (args, code, part) in [
        (&["framework", "test", "."][..], 3, "framework new"),
        (&["framework", "build", "nowhere"], 3, "framework new"),
        (&["framework", "new", "Hello"], 2, "a-z 0-9 -"),
        (&["framework", "new", "serde"], 2, "choose another"),
        (&["framework", "new", "x", "--dir", "."], 4, "--dir"),
        (&["framework", "new", "x", "--sdk-path", "/etc"], 2, "sdk/rust"),
    ] {
        let output = tessera(args, dir.path())?;
        let text = said(&output);
        ensure(output.status.code() == Some(code) && text.contains(part), || format!("{args:?}: {}: {text}", output.status))?;
    }
    Ok(())
}
