//! Runs the golden scripts of `tests/scripts` against the core: commands in, effects out as text.
//!
//! Every block of a script is commands, `----`, and what came of them, ending with the whole-state check
//! and a comparison of the memory with one rebuilt from the rows. `TESSERA_UPDATE_SCRIPTS=1` rewrites
//! what is expected. Must never reach into the core's internals.

mod harness;

use harness::Cluster;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn scripts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scripts");
    let mut found: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the scripts are there")
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    found.sort();
    assert!(found.len() >= 5, "scripts are missing: {found:?}");
    found
}

/// Runs a script and returns it with what came of each block.
fn run(text: &str) -> String {
    let mut cluster = Cluster::new();
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    let mut block = Vec::new();
    while let Some(line) = lines.next() {
        if line == "----" {
            while lines.peek().is_some_and(|line| !line.is_empty()) {
                lines.next();
            }
            let result = block.drain(..).map(|line: String| cluster.command(&line)).collect::<String>();
            let _ = write!(out, "----\n{result}{}", cluster.verdict());
        } else {
            let _ = writeln!(out, "{line}");
            if !line.is_empty() && !line.starts_with('#') {
                block.push(line.to_owned());
            }
        }
    }
    assert!(block.is_empty(), "commands after the last ----: {block:?}");
    out
}

#[test]
fn golden_scripts() {
    let update = std::env::var_os("TESSERA_UPDATE_SCRIPTS").is_some();
    let mut failed = Vec::new();
    for path in scripts() {
        let expected = std::fs::read_to_string(&path).expect("a script can be read");
        let found = run(&expected);
        if update {
            std::fs::write(&path, &found).expect("a script can be written");
        } else if found != expected {
            failed.push(difference(&path, &expected, &found));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_wrong_script_fails() {
    let script = "agent a1 cpus=4 mem=1024\n----\na1 <- nothing\ncheck: ok\n";
    assert_ne!(run(script), script);
}

fn difference(path: &Path, expected: &str, found: &str) -> String {
    let mut text = format!("{}:\n", path.display());
    let (mut a, mut b) = (expected.lines(), found.lines());
    let mut number = 0;
    loop {
        number += 1;
        match (a.next(), b.next()) {
            (None, None) => return text,
            (a, b) if a == b => {}
            (a, b) => {
                let _ = writeln!(text, "{number}: - {}\n{number}: + {}", a.unwrap_or(""), b.unwrap_or(""));
            }
        }
    }
}
