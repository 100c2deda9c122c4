//! Histories in files: they come back as they were saved, and what is none is refused by its line.

use std::io::Write;
use std::process::{Command, Stdio};

use tessera_linear::{History, Recorder, Register, RegisterAnswer, RegisterCall, check};

use crate::service::{Bug, Options, run};

type Registers = History<RegisterCall, RegisterAnswer>;

fn saved(history: &Registers) -> String {
    let mut bytes = Vec::new();
    history.write(&mut bytes).expect("memory does not fail");
    String::from_utf8(bytes).expect("JSON is text")
}

#[test]
fn a_history_comes_back_as_it_was_saved() {
    let bug = Some(Bug::StaleRead);
    let history = run(Options {
        seed: 5,
        clients: 5,
        keys: 2,
        operations: 200,
        unknown: 10,
        bug,
    });
    let text = saved(&history);
    let loaded = Registers::read(text.as_bytes()).expect("what was saved");
    assert_eq!(loaded, history);
    assert_eq!(check(&Register, &loaded), check(&Register, &history));
}

#[test]
fn lines_are_as_documented() {
    let mut recorder = Recorder::default();
    let write = recorder.called(
        7,
        "a",
        RegisterCall::Write {
            value: Some("x".to_owned()),
        },
        10,
    );
    let swap = RegisterCall::Cas {
        from: None,
        to: Some("y".to_owned()),
    };
    recorder.called(8, "a", swap, 10);
    recorder.returned(write, RegisterAnswer::Done, 10);
    let refused = recorder.called(7, "a", RegisterCall::Read, 15);
    recorder.never_happened(refused);
    let read = recorder.called(7, "a", RegisterCall::Read, 20);
    recorder.returned(read, RegisterAnswer::Value { value: None }, 25);
    let history = recorder.finish().expect("operations that fit together");
    let expected = r#"{"process":7,"key":"a","call":10,"return":12,"input":{"op":"write","value":"x"},"output":{"is":"done"}}
{"process":8,"key":"a","call":11,"return":null,"input":{"op":"cas","from":null,"to":"y"},"output":null}
{"process":7,"key":"a","call":20,"return":25,"input":{"op":"read"},"output":{"is":"value","value":null}}
"#;
    assert_eq!(saved(&history), expected);
}

#[test]
fn what_is_no_history_is_refused() {
    let line = |process: u64, call: u64, returned: &str, output: &str| {
        format!(
            r#"{{"process":{process},"key":"a","call":{call},"return":{returned},"input":{{"op":"write","value":"x"}},"output":{output}}}"#
        )
    };
    let done = r#"{"is":"done"}"#;
    let good = line(1, 0, "5", done);
    let cut = &good[..good.len() - 9];
    let cases = [
        (
            format!("{good}\n\n{cut}"),
            "line 3 of the history is not an operation: EOF",
        ),
        (
            good.replace("\"call\"", "\"cal\""),
            "line 1 of the history is not an operation: unknown field",
        ),
        (
            good.replace("write", "delete"),
            "line 1 of the history is not an operation: unknown variant",
        ),
        (
            line(1, 0, "5", "null"),
            "return and output are both there, or both null",
        ),
        (
            line(1, 0, "null", done),
            "return and output are both there, or both null",
        ),
        (
            line(1, 9, "5", done),
            "process 1 called at 9 and had its answer at 5",
        ),
        (
            format!("{good}\n{}", line(1, 4, "8", done)),
            "process 1 called at 4 before",
        ),
    ];
    for (text, expected) in cases {
        let error = Registers::read(text.as_bytes())
            .expect_err(&text)
            .to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let fine = [
        format!("{good}\n{}", line(2, 4, "8", done)),
        format!("{good}\n{}", line(1, 5, "8", done)),
        format!("{}\n{}", line(1, 0, "null", "null"), line(1, 4, "8", done)),
    ];
    for text in fine {
        assert!(Registers::read(text.as_bytes()).is_ok(), "{text}");
    }
}

#[test]
fn the_command_says_by_its_exit_code_what_it_found() {
    let good = r#"{"process":1,"key":"a","call":0,"return":5,"input":{"op":"read"},"output":{"is":"value","value":null}}"#;
    let bad = good.replace("null", "\"x\"");
    let cases = [
        ("register", good, 0, "linearizable: 1 operations on 1 keys"),
        (
            "register",
            bad.as_str(),
            1,
            "not linearizable: key a, no order explains its first 1 answers",
        ),
        (
            "list",
            good,
            2,
            "/dev/stdin: line 1 of the history is not an operation",
        ),
        ("queue", good, 2, "usage: linear"),
    ];
    for (model, text, code, expected) in cases {
        let mut child = Command::new(env!("CARGO_BIN_EXE_linear"))
            .args([model, "/dev/stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        // One that refuses its arguments does not read.
        let _ = child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(text.as_bytes());
        let output = child.wait_with_output().expect("the command ends");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(code), "{model} {text}: {said}");
        assert!(said.starts_with(expected), "{model} {text}: {said}");
    }
}
