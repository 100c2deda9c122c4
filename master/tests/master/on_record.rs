//! What becomes of requests whose senders have no token, hang up, or have seen another cluster.

use crate::harness::{Master, config};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest wait for bytes of an answer; reached only when something is broken.
const DEADLINE: Duration = Duration::from_secs(20);

/// A connection on which so much of a request was sent.
async fn begun(master: &Master, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(master.config.listen).await.unwrap();
    stream.write_all(head.replace('\n', "\r\n").as_bytes()).await.unwrap();
    stream
}

/// The first bytes that come.
async fn first_bytes(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 4_096];
    let read = tokio::time::timeout(DEADLINE, stream.read(&mut bytes)).await.expect("an answer in time").unwrap();
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_counted_and_their_bodies_are_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    master.send(Method::PATCH, "/v1/limits?role=a&dry%5Frun=true", &json!({"set": {"timers": 7}})).await;
    for n in 0..300 {
        let url = format!("http://{}/v1/frameworks/f{n}", master.config.listen);
        let wrong = master.client.delete(url).bearer_auth("wrong").send().await.unwrap();
        assert_eq!(wrong.status(), 401);
    }
    let all = master.get("/v1/audit?limit=1000").await;
    let (own, refused): (Vec<&Value>, Vec<&Value>) = items(&all).iter().partition(|record| record["principal"] == "admin");
    assert_eq!(refused.iter().filter_map(|record| record["times"].as_u64()).sum::<u64>(), 300);
    // One a minute, and one when somebody reads.
    assert!(refused.len() <= 3, "{} records of strangers", refused.len());
    assert_eq!(refused[0]["operation"], "removeFramework", "{}", refused[0]);
    let said = own.iter().find(|record| record["operation"] == "setLimits").expect("what was asked with a token");
    assert_eq!((&said["dry_run"], &said["times"], &said["outcome"]), (&json!(true), &json!(1), &json!("done")), "{said}");
    // A write of a key of state, which is taken in before its route, and an upload.
    for request in ["PUT /v1/frameworks/f/state/k", "POST /v1/components", "POST /frameworks/f/x", "DELETE /nowhere"] {
        let head = format!("{request} HTTP/1.1\nhost: m\ncontent-length: 1000\n\nthe beginning");
        let answer = first_bytes(&mut begun(&master, &head).await).await;
        assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("UNAUTHENTICATED"), "{request}: {answer}");
    }
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_on_record_although_its_sender_hung_up() {
    const CHANGES: usize = 40;
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    let body = json!({"set": {"timers": 7}}).to_string();
    for n in 0..CHANGES {
        let head = format!(
            "PATCH /v1/limits?role=r{n} HTTP/1.1\nhost: m\nauthorization: Bearer {}\nx-request-id: gone-{n}\ncontent-length: {}\n\n{body}",
            master.token,
            body.len(),
        );
        let stream = begun(&master, &head).await;
        if n % 2 == 0 {
            // By then it was begun. Of one that nobody began there is nothing to be told.
            master.get("/v1/version").await;
        }
        drop(stream);
    }
    let mut made = BTreeSet::new();
    for n in 0..CHANGES {
        let limits = master.get(&format!("/v1/limits?role=r{n}")).await;
        if items(&json!({"items": limits["limits"]})).iter().any(|limit| limit["name"] == "timers" && limit["value"] == 7) {
            made.insert(format!("gone-{n}"));
        }
    }
    assert!(!made.is_empty(), "nothing was changed");
    let of = |audit: &Value| -> BTreeSet<String> {
        items(audit).iter().filter_map(|record| record["request_id"].as_str()).map(str::to_owned).collect()
    };
    let audit = master.get_until("/v1/audit?newest=true&limit=1000", |audit| made.is_subset(&of(audit))).await;
    for record in items(&audit) {
        let expected = if record["status"] == 499 { "unknown" } else { "done" };
        assert_eq!((&record["operation"], &record["outcome"]), (&json!("setLimits"), &json!(expected)), "{record}");
    }
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_seen_what_nobody_wrote_is_told_of_the_gap() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(config(dir.path())).await;
    for header in ["", "last-event-id: 999999999-3\n"] {
        let query = if header.is_empty() { "?after=999999999-3" } else { "" };
        let head = format!("GET /v1/events{query} HTTP/1.1\nhost: m\nauthorization: Bearer {}\n{header}\n", master.token);
        let mut stream = begun(&master, &head).await;
        let mut said = String::new();
        while !said.contains("event: gap") {
            said.push_str(&first_bytes(&mut stream).await);
        }
        assert!(said.contains("\"missed_after\":\"999999999-3\""), "{said}");
        // And of what comes then.
        let role = if header.is_empty() { "a" } else { "b" };
        master.send(Method::PATCH, &format!("/v1/limits?role={role}"), &json!({"set": {"timers": 7}})).await;
        while !said.contains("limits.changed") {
            said.push_str(&first_bytes(&mut stream).await);
        }
    }
    master.stop().await;
}
