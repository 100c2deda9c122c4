//! `play`: batches that somebody made up, one after the other.

use crate::harness::{WORKER, guest};
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Command, Stdio};

/// What is answered to these lines; whether it ended well, and what it said last.
fn play(component: &str, asks: &[Value]) -> (Vec<Value>, bool, String) {
    let mut child = Command::new(WORKER)
        .args(["play", "--component", guest(component).to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: String = asks.iter().map(|ask| format!("{ask}\n")).collect();
    // It may be gone before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    let output = child.wait_with_output().unwrap();
    let answers = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), output.status.success(), said)
}

fn build(config: &[(&str, &str)], state: Value) -> Value {
    json!({"build": {"config": config, "state": state, "limits": []}})
}

fn get(path: &str, id: u64) -> Value {
    let request = json!({"id": id, "method": "GET", "path": path, "query": null, "headers": [], "body": [],
        "principal": "admin", "idempotency_key": null});
    json!({"turn": {"time_ms": 1_767_225_600_000_u64 + id, "events": [{"Http": request}]}})
}

/// The body of the one answer of a turn.
fn body(answer: &Value) -> String {
    let bytes = answer["turn"]["turn"]["operations"][0]["Respond"]["answer"]["body"].as_array();
    let bytes = bytes.unwrap_or_else(|| panic!("{answer}")).iter().map(|byte| byte.as_u64().unwrap() as u8);
    String::from_utf8(bytes.collect()).unwrap()
}

#[test]
fn turns_are_committed_and_a_failure_loses_only_its_own() {
    let state = json!([{"key": "turns", "value": b"40"}]);
    let asks = [build(&[], state), get("/", 1), get("/trap", 2), build(&[], Value::Null), get("/", 3)];
    let (answers, ended, said) = play("trap", &asks);
    assert!(ended, "{said}");
    assert!(answers[0]["built"].is_object() && answers[3]["built"].is_object(), "{answers:?}");
    assert_eq!(body(&answers[1]), "{\"turns\":40,\"instance\":0}\n");
    let failed = &answers[2]["failed"];
    let message = failed["message"].as_str().unwrap();
    assert!(failed["code"] == "TRAPPED" && message.contains("src/lib.rs:") && message.contains("asked to panic"), "{failed}");
    assert_eq!(body(&answers[4]), "{\"turns\":41,\"instance\":0}\n");
    assert_eq!(answers[4]["turn"]["turn"]["header"]["number"], 2);
}

#[test]
fn what_is_no_scheduler_and_what_cannot_be_read_is_said() {
    for (component, part) in [("bad_world", "scheduler!"), ("task-exit", "`command`, not a scheduler")] {
        let (answers, _, said) = play(component, &[build(&[], json!([]))]);
        let text = answers[0]["unusable"].as_str().unwrap_or_else(|| panic!("{component}: {answers:?} {said}"));
        assert!(text.contains(part), "{component}: {text}");
    }
    let (answers, ended, _) = play("mistakes", &[build(&[], json!([]))]);
    assert!(ended && answers[0]["failed"]["message"].as_str().unwrap().contains("`mistake` is required"), "{answers:?}");
    for (ask, part) in [
        (json!({"surprise": 1}), "surprise"),
        (get("/", 1), "build one first"),
        (json!({"build": {"limits": [["no-such-limit", 1]]}}), "no-such-limit"),
    ] {
        let (answers, ended, said) = play("trap", &[ask]);
        assert!(!ended && answers.is_empty() && said.contains(part), "{said}");
    }
}
