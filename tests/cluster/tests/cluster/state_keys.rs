//! Users read and write keys of a framework's state: by `tessera`, by REST through any master, and under a scheduler
//! that runs.

use serde_json::json;
use tessera_cluster::cluster::{Cluster, PATIENCE, push};
use tessera_cluster::masters::Group;
use tessera_cluster::rest::{Answer, Rest};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure};

const NAME: &str = "kept";

/// The masters understand commands of this version.
async fn understand(rest: &Rest) -> Outcome {
    until("the masters understand all commands", PATIENCE, async || {
        let view = rest.document("/v1/masters").await.map_err(|error| error.to_string())?;
        match view["cluster_version"].as_u64() >= Some(2) {
            true => Ok(()),
            false => Err(view.to_string()),
        }
    })
    .await
}

/// What the scheduler says of a key.
async fn says(cluster: &Cluster, key: &str) -> Outcome<String> {
    Ok(cluster.ask(&format!("/frameworks/{NAME}/state/{key}")).await?.ok()?.text())
}

async fn state(cluster: &Cluster, args: &[&str], code: i32) -> Outcome<String> {
    let output = cluster.tessera(&[&["framework", "state"], args].concat()).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure(output.status.code() == Some(code), || {
        format!("{args:?}: {:?}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr))
    })?;
    Ok(text)
}

#[tokio::test]
async fn a_running_scheduler_has_what_users_write() -> Outcome {
    let cluster = Cluster::start("state-keys", &[]).await?;
    understand(&cluster.rest).await?;
    cluster.framework(NAME, "echo", &[]).await?;
    ensure(says(&cluster, "a").await? == "nothing", || "there is a value".to_owned())?;
    state(&cluster, &["put", NAME, "a", "one"], 0).await?;
    ensure(says(&cluster, "a").await? == "one", || "the scheduler has another value".to_owned())?;
    ensure(state(&cluster, &["get", NAME, "a"], 0).await? == "one", || "another value".to_owned())?;
    state(&cluster, &["put", NAME, "a", "two", "--if-absent"], 4).await?;
    let listed = state(&cluster, &["ls", NAME, "--prefix", "a"], 0).await?;
    let tag = listed.lines().last().and_then(|line| line.split_whitespace().last()).unwrap_or_default();
    state(&cluster, &["put", NAME, "a", "two", "--if-tag", tag], 0).await?;
    state(&cluster, &["put", NAME, "a", "three", "--if-tag", tag], 4).await?;
    state(&cluster, &["put", NAME, "b/c", "four"], 0).await?;
    state(&cluster, &["rm", NAME, "a", "never-there"], 0).await?;
    state(&cluster, &["get", NAME, "a"], 3).await?;
    ensure(says(&cluster, "a").await? == "nothing", || "it is still there".to_owned())?;
    ensure(says(&cluster, "b/c").await? == "four", || "it is not there".to_owned())?;
    let changes = cluster.ask(&format!("/frameworks/{NAME}/changes")).await?.text();
    let told: Vec<&str> = changes.split(' ').collect();
    ensure(told.contains(&"a") && told.contains(&"b/c"), || format!("it was told of {changes}"))?;
    cluster.finish().await
}

async fn put(rest: &Rest, key: &str, headers: &[(&str, &str)], value: &[u8]) -> Outcome<Answer> {
    let path = format!("/v1/frameworks/{NAME}/state/{key}");
    rest.send("PUT", &path, headers, value.to_vec()).await
}

#[tokio::test]
async fn any_master_takes_writes_and_refuses_those_that_do_not_hold() -> Outcome {
    let group = Group::start("state-any", 3).await?;
    let leader = group.leader().await?;
    understand(&group.rest(leader)?).await?;
    framework_of(&group.rest(leader)?).await?;
    for member in 0..3 {
        let rest = group.rest(member)?;
        let key = format!("key-{member}");
        let value = vec![u8::try_from(member)?; 256];
        let answer = put(&rest, &key, &[("if-none-match", "*")], &value).await?;
        let tag = answer.headers.get("etag").cloned().unwrap_or_default();
        ensure(answer.status == 204 && !tag.is_empty(), || answer.text())?;
        for other in 0..3 {
            let path = format!("/v1/frameworks/{NAME}/state/{key}");
            let read = group.rest(other)?.get(&path).await?.ok()?;
            ensure(read.body == value && read.headers.get("etag") == Some(&tag), || read.text())?;
        }
        let long = "k".repeat(256);
        for (key, headers, value, status) in [
            (key.as_str(), vec![("if-none-match", "*")], 1, 412),
            (key.as_str(), vec![("if-match", "\"00000000000000000000000000000000\"")], 1, 412),
            (key.as_str(), vec![("if-match", "x")], 1, 400),
            (key.as_str(), vec![("if-match", tag.as_str())], 1, 204),
            (long.as_str(), vec![], 1, 400),
            ("large", vec![], 262_145, 413),
            ("large", vec![], 262_144, 204),
            ("percent%20encoded", vec![], 1, 204),
        ] {
            let answer = put(&rest, key, &headers, &vec![b'x'; value]).await?;
            ensure(answer.status == status, || format!("{key} {headers:?} {value}: {} {}", answer.status, answer.text()))?;
        }
        let once = [("idempotency-key", "the-same"), ("if-none-match", "*")];
        let again = put(&rest, "once", &once, b"1").await?;
        ensure(again.status == 204, || again.text())?;
        let stranger = put(&rest.with_token(None), "key", &[], b"1").await?;
        ensure(stranger.status == 401, || stranger.text())?;
        let nobody = rest.send("PUT", "/v1/frameworks/nobody/state/a", &[], vec![1]).await?;
        ensure(nobody.status == 404, || nobody.text())?;
        let listed = rest.document(&format!("/v1/frameworks/{NAME}/state?prefix=key-&limit=1")).await?;
        ensure(listed["items"][0]["key"] == "key-0", || listed.to_string())?;
        ensure(listed["next"] == "key-0" || member == 0, || listed.to_string())?;
    }
    for member in (0..3).filter(|member| *member != leader) {
        let metrics = group.rest(member)?.get("/metrics").await?.text();
        let passed_on = metrics.lines().find_map(|line| line.strip_prefix("tessera_state_writes_passed_on_total "));
        ensure(passed_on.is_some_and(|count| count != "0"), || format!("writes went another way: {metrics}"))?;
    }
    let rest = group.rest(0)?;
    let space = rest.get(&format!("/v1/frameworks/{NAME}/state/percent%20encoded")).await?;
    ensure(space.status == 200, || space.text())?;
    group.finish()
}

/// A framework whose scheduler runs nowhere.
async fn framework_of(rest: &Rest) -> Outcome {
    let component = push(rest, "echo").await?;
    let document = json!({"name": NAME, "component": component});
    rest.post("/v1/frameworks", &document).await?.ok()?;
    Ok(())
}
