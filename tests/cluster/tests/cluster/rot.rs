//! A disk of an agent that damages what is kept of components: who needs it waits until it is there again, and does
//! not fail.

use serde_json::json;
use std::path::{Path, PathBuf};
use tessera_cluster::cluster::{Cluster, PATIENCE};
use tessera_cluster::guests::guest;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure};

/// The one file in a folder of the agent.
fn only(cluster: &Cluster, folder: &str) -> Outcome<PathBuf> {
    let entries = std::fs::read_dir(cluster.agent_dir().join(folder))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Outcome<_>>()?;
    match (files.pop(), files.is_empty()) {
        (Some(file), true) => Ok(file),
        (file, _) => Err(failure(format!("{folder}: {file:?} {files:?}"))),
    }
}

/// Turns a bit over in the middle of a file.
fn damage(path: &Path) -> Outcome {
    let mut bytes = std::fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(std::fs::write(path, bytes)?)
}

/// A scheduler of another tenant, whose worker has loaded nothing yet; when it runs, none of it has failed for good.
async fn runs(cluster: &Cluster, tenant: &str, digest: &str) -> Outcome {
    let document = json!({"name": "fw", "role": tenant, "component": digest, "config": {}});
    cluster.rest.post("/v1/frameworks", &document).await?.ok()?;
    until(&format!("the scheduler of {tenant} runs"), PATIENCE, async || {
        let path = format!("/v1/frameworks/{tenant}:fw");
        let found = cluster.rest.document(&path).await.map_err(|error| error.to_string())?;
        match found["state"] == "running" && found["epoch"] == 1 {
            true => Ok(()),
            false => Err(found.to_string()),
        }
    })
    .await
}

#[tokio::test]
async fn what_an_agents_disk_damages_is_had_again() -> Outcome {
    let cluster = Cluster::start("rotten", &[]).await?;
    let digest = cluster.push("echo").await?;
    runs(&cluster, "first", &digest).await?;

    damage(&only(&cluster, "images")?)?;
    runs(&cluster, "second", &digest).await?;

    std::fs::remove_file(only(&cluster, "images")?)?;
    damage(&only(&cluster, "components")?)?;
    runs(&cluster, "third", &digest).await?;
    let found = std::fs::read(only(&cluster, "components")?)?;
    ensure(found == std::fs::read(guest("echo")?)?, || "the bytes are damaged still".to_owned())?;

    let log = std::fs::read_to_string(cluster.agent_dir().join("../logs/agent.log"))?;
    for said in ["the image of a component was damaged", "was damaged on this machine's disk", "fetched again"] {
        ensure(log.contains(said), || format!("{said:?} is not in\n{log}"))?;
    }
    cluster.finish().await
}
