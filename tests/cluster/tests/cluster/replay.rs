//! What a scheduler did is run again in another process and is the same byte for byte; an altered
//! recording and a changed component are found at their turn.

use serde_json::{Value, json};
use std::path::Path;
use tessera_cluster::cluster::Cluster;
use tessera_cluster::guests::{guest, program};
use tessera_cluster::{Outcome, ensure};

/// Run the worker's replay; its exit code and what it found.
async fn replay(recording: &Path, component: &Path, flags: &[&str]) -> Outcome<(i32, Value)> {
    let output = tokio::process::Command::new(program("tessera-worker")?)
        .arg("replay")
        .arg("--recording")
        .arg(recording)
        .arg("--component")
        .arg(component)
        .args(flags)
        .output()
        .await?;
    let found = serde_json::from_slice(&output.stdout).unwrap_or(json!(null));
    Ok((output.status.code().unwrap_or(-1), found))
}

#[tokio::test]
async fn a_life_is_replayed_and_differences_are_found() -> Outcome {
    let cluster = Cluster::start("replay", &[]).await?;
    cluster
        .framework("nondet", "nondet", &[("remark", "first")])
        .await?;
    for _ in 0..6 {
        cluster.ask("/frameworks/nondet/").await?;
    }
    let list = cluster
        .tessera(&["framework", "recordings", "nondet", "-o", "json"])
        .await?;
    let list: Value = serde_json::from_slice(&list.stdout)?;
    let newest = &list["items"][0];
    ensure(
        newest["last_turn"].as_u64() >= Some(6) && newest["stopped"] == false,
        || list.to_string(),
    )?;

    let keep = cluster.dir().join("kept");
    let kept = keep.display().to_string();
    let equal = cluster
        .tessera(&[
            "framework",
            "replay",
            "nondet",
            "--keep",
            &kept,
            "-o",
            "json",
        ])
        .await?;
    let found: Value = serde_json::from_slice(&equal.stdout).unwrap_or_default();
    ensure(
        equal.status.success() && found["equal"] == true && found["turns"].as_u64() >= Some(6),
        || format!("{equal:?}"),
    )?;

    let recording = std::fs::read_dir(&keep)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "rec"))
        .ok_or("no recording was kept")?;
    let component = guest("nondet")?;
    let (code, found) = replay(&recording, &component, &[]).await?;
    ensure(code == 0 && found["equal"] == true, || {
        format!("{code}: {found}")
    })?;

    // One bit in the middle of it.
    let mut bytes = std::fs::read(&recording)?;
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    let altered = cluster.dir().join("altered.rec");
    std::fs::write(&altered, bytes)?;
    let (code, found) = replay(&altered, &component, &[]).await?;
    let divergence = &found["divergence"];
    ensure(
        code == 3
            && divergence["kind"] == "recording-altered"
            && divergence["turn"].as_u64().is_some(),
        || format!("{code}: {found}"),
    )?;

    // Another component: refused, unless it is meant; then the first turn that differs is shown.
    let changed = guest("nondet-changed")?;
    let (code, found) = replay(&recording, &changed, &[]).await?;
    ensure(code == 1, || format!("{code}: {found}"))?;
    let (code, found) = replay(&recording, &changed, &["--component-changed"]).await?;
    ensure(
        code == 3 && found["divergence"]["turn"] == 4 && found["divergence"]["kind"] == "writes",
        || format!("{code}: {found}"),
    )?;
    let file = changed.display().to_string();
    let shown = cluster
        .tessera(&["framework", "replay", "nondet", "--component", &file])
        .await?;
    let text = String::from_utf8_lossy(&shown.stdout).into_owned()
        + &String::from_utf8_lossy(&shown.stderr);
    ensure(
        shown.status.code() == Some(6)
            && text.contains("turn 4")
            && text.contains("another component was run"),
        || text.clone(),
    )?;
    cluster.finish().await
}
