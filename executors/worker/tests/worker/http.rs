//! Components that import `wasi:http`: they are taken, and every request of theirs is denied.

use crate::harness::{Worker, get, run};
use serde_json::Value;
use tessera_wire::v1::TaskState;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

/// As far as the guests here go, `wasi:http` as it is, resources of `wasi:io` in it included.
const WIT: &str = r#"
package tessera:test;

world asking {
    import wasi:io/streams@0.2.3;
    import wasi:http/types@0.2.3;
    import wasi:http/outgoing-handler@0.2.3;
    import wasi:http/incoming-handler@0.2.3;
}
world task {
    include asking;
    export wasi:cli/run@0.2.3;
}
world scheduler {
    include asking;
    include tessera:framework/scheduler-framework@0.1.0;
}

package wasi:cli@0.2.3 {
    interface run { run: func() -> result; }
}
package wasi:io@0.2.3 {
    interface error { resource error; }
    interface streams {
        use error.{error};
        variant stream-error { last-operation-failed(error), closed }
        resource output-stream {
            blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
        }
    }
}
package wasi:http@0.2.3 {
    interface types {
        use wasi:io/streams@0.2.3.{output-stream};
        variant error-code { internal-error(option<string>), HTTP-request-denied }
        variant method { get, other(string) }
        variant header-error { invalid-syntax, forbidden, immutable }
        resource fields {
            constructor();
            set: func(name: string, value: list<list<u8>>) -> result<_, header-error>;
            has: func(name: string) -> bool;
        }
        resource outgoing-body {
            write: func() -> result<output-stream>;
        }
        resource outgoing-request {
            constructor(headers: fields);
            body: func() -> result<outgoing-body>;
            method: func() -> method;
        }
        resource request-options { constructor(); }
        resource incoming-request;
        resource response-outparam;
        resource future-incoming-response;
    }
    interface outgoing-handler {
        use types.{outgoing-request, request-options, future-incoming-response, error-code};
        handle: func(request: outgoing-request, options: option<request-options>)
            -> result<future-incoming-response, error-code>;
    }
    interface incoming-handler {
        use types.{incoming-request, response-outparam};
        handle: func(request: incoming-request, response-out: response-outparam);
    }
}
"#;

const IMPORTS: &str = r#"
    (import "wasi:http/types@0.2.3" "[constructor]fields" (func $fields (result i32)))
    (import "wasi:http/types@0.2.3" "[method]fields.set" (func $set (param i32 i32 i32 i32 i32 i32)))
    (import "wasi:http/types@0.2.3" "[method]fields.has" (func $has (param i32 i32 i32) (result i32)))
    (import "wasi:http/types@0.2.3" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
    (import "wasi:http/types@0.2.3" "[method]outgoing-request.body" (func $body (param i32 i32)))
    (import "wasi:http/types@0.2.3" "[method]outgoing-request.method" (func $method (param i32 i32)))
    (import "wasi:http/types@0.2.3" "[method]outgoing-body.write" (func $write (param i32 i32)))
    (import "wasi:http/types@0.2.3" "[constructor]request-options" (func $options (result i32)))
    (import "wasi:http/outgoing-handler@0.2.3" "handle" (func $handle (param i32 i32 i32 i32)))
    (import "wasi:http/incoming-handler@0.2.3" "handle" (func $serve (param i32 i32)))
    (import "wasi:io/streams@0.2.3" "[method]output-stream.blocking-write-and-flush"
        (func $print (param i32 i32 i32 i32)))
    (memory (export "memory") 2)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536))
    (func $is (param i32 i32) (if (i32.ne (local.get 0) (local.get 1)) (then unreachable)))
    (func $send
        (call $handle (call $request (call $fields)) (i32.const 1) (call $options) (i32.const 16))
        ;; An error, and this one.
        (call $is (i32.load8_u (i32.const 16)) (i32.const 1))
        (call $is (i32.load8_u (i32.const 20)) (i32.const 1)))
"#;

/// A component of this world.
fn component(world: &str, functions: &str) -> Vec<u8> {
    let mut resolve = wit_parser::Resolve::default();
    let wit = concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit/framework");
    resolve.push_dir(wit).unwrap();
    let package = resolve.push_str("http.wit", WIT).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    let mut module = wat::parse_str(format!("(module {IMPORTS} {functions})")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    let mut encoder = ComponentEncoder::default().validate(true).module(&module).unwrap();
    encoder.encode().unwrap()
}

fn task(run: &str) -> Vec<u8> {
    component(
        "task",
        &format!(r#"(func (export "wasi:cli/run@0.2.3#run") (result i32) {run} (i32.const 0))"#),
    )
}

/// A scheduler that does this in each turn, and says that its state is of version 1.
fn scheduler(handle: &str) -> Vec<u8> {
    let functions = format!(
        r#"(func (export "tessera:framework/scheduler@0.1.0#describe") (result i32)
             (i32.store (i32.const 1024) (i32.const 1))
             (i32.store (i32.const 1028) (i32.const 1040))
             (i32.store (i32.const 1032) (i32.const 1))
             (i32.store (i32.const 1040) (i32.const 1))
             (i32.const 1024))
           (func (export "tessera:framework/scheduler@0.1.0#init") (param i32 i32) (result i32)
             (i32.const 2048))
           (func (export "tessera:framework/scheduler@0.1.0#handle") (param i64 i64 i64 i32 i32) (result i32)
             {handle} (i32.const 3072))"#
    );
    component("scheduler", &functions)
}

#[test]
fn the_judge_takes_what_imports_http_and_says_that_nothing_is_granted() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    let inspect = |bytes: &[u8]| -> Value {
        std::fs::write(&input, bytes).unwrap();
        let said = run(&["inspect", "--in", input.to_str().unwrap()]);
        serde_json::from_slice(&said.stdout).unwrap()
    };
    for (bytes, world) in [(task("(call $send)"), "command"), (scheduler(""), "scheduler")] {
        let verdict = inspect(&bytes);
        assert_eq!((&verdict["ok"], &verdict["world"]), (&true.into(), &world.into()), "{verdict}");
        let grants = verdict["grants"].as_array().unwrap();
        let http: Vec<&Value> = grants
            .iter()
            .filter(|grant| grant["interface"].as_str().unwrap().starts_with("wasi:http/"))
            .collect();
        assert_eq!(http.len(), 3, "{grants:?}");
        for grant in http {
            assert_eq!((&grant["granted"], &grant["what"]), (&false.into(), &"every request is denied".into()));
        }
    }
    // What WASI does not have stays unknown, and so does a version that has not been decided.
    let named = |from: &str, to: &str| {
        let text = String::from_utf8_lossy(from.as_bytes()).into_owned();
        let mut bytes = task("(call $send)");
        for at in 0..bytes.len() - text.len() {
            if bytes[at..].starts_with(text.as_bytes()) {
                bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
            }
        }
        inspect(&bytes)
    };
    for (from, to) in [("outgoing-handler@", "outgoing-hamster@"), ("wasi:http/types@0.2.3", "wasi:http/types@0.3.3")] {
        let verdict = named(from, to);
        let error = verdict["error"].as_str().unwrap_or_default();
        assert!(error.contains("does not link") && error.contains(to), "{verdict}");
    }
}

#[test]
fn a_task_builds_requests_and_is_denied_each_of_them() {
    let worker = Worker::start();
    let (mut agent, _) = worker.connect();
    let mut ends = |name: &str, body: &str, state: TaskState| {
        let image = worker.compile_bytes(name, &task(body));
        agent.start_task(name, &image, &worker.sandbox(name), &[], 64);
        agent.task_state(name, state)
    };
    let all = r#"(local $it i32)
        (local.set $it (call $fields))
        (call $set (local.get $it) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 32))
        (call $is (i32.load8_u (i32.const 32)) (i32.const 0))
        (call $is (call $has (local.get $it) (i32.const 0) (i32.const 1)) (i32.const 0))
        (local.set $it (call $request (local.get $it)))
        (call $body (local.get $it) (i32.const 32))
        (call $is (i32.load8_u (i32.const 32)) (i32.const 0))
        (call $write (i32.load (i32.const 36)) (i32.const 48))
        (call $is (i32.load8_u (i32.const 48)) (i32.const 0))
        (call $print (i32.load (i32.const 52)) (i32.const 0) (i32.const 4096) (i32.const 64))
        (call $is (i32.load8_u (i32.const 64)) (i32.const 0))
        (call $send)"#;
    ends("all", all, TaskState::TaskFinished);
    // Nothing is kept of a request that was denied: more of them than handles that there may be.
    let many = "(local $left i32) (local.set $left (i32.const 30000))
        (loop $again (call $send)
            (local.set $left (i32.sub (local.get $left) (i32.const 1)))
            (br_if $again (local.get $left)))";
    ends("many", many, TaskState::TaskFinished);
    let end = ends("kept", "(loop $again (drop (call $fields)) (br $again))", TaskState::TaskFailed);
    assert!(end.reason == "GUEST_LIMIT" && end.message.contains("handles"), "{end:?}");
    // What cannot be answered without an untruth.
    let method = "(call $method (call $request (call $fields)) (i32.const 64))";
    let end = ends("method", method, TaskState::TaskFailed);
    let said = "[method]outgoing-request.method is not granted";
    assert!(end.reason == "TRAPPED" && end.message.contains(said), "{end:?}");
}

#[test]
fn a_scheduler_is_denied_its_requests_and_commits_its_turn() {
    let worker = Worker::start();
    let (mut agent, _) = worker.connect();
    let image = worker.compile_bytes("asks", &scheduler("(call $send)"));
    let mut instance = agent.start_instance(1, &image, &[], Vec::new());
    agent.ready(&instance);
    for _ in 0..2 {
        agent.send_batch(&mut instance, &[get(1, "/")]);
        agent.turn(&instance);
        agent.commit(&mut instance);
    }
}
