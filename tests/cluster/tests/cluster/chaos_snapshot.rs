//! A snapshot whose way is cut while it is on it.

use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{PATIENCE, push, tessera};
use tessera_cluster::site::Site;
use tessera_cluster::wait::{pass, until};
use tessera_cluster::{Outcome, ensure, skipped};

/// Values of the state, each near the largest that there may be: enough that a snapshot takes a while.
const VALUES: usize = 160;
const VALUE_BYTES: usize = 250_000;
/// The cable is pulled when so much of it has arrived.
const ARRIVED: u64 = 6 << 20;
/// How fast it is sent until then: all of it takes three seconds.
const MBIT: u32 = 100;
/// Between two looks at what has arrived.
const GLANCE: Duration = Duration::from_millis(1);

fn log(site: &Site, name: &str) -> String {
    std::fs::read_to_string(site.scene.dir().join(format!("{name}.log"))).unwrap_or_default()
}

/// Everything in a master's directory but its token.
fn empty(dir: &Path) -> Outcome {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name == "admin.token") {
            continue;
        }
        if path.is_dir() { std::fs::remove_dir_all(&path)? } else { std::fs::remove_file(&path)? }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_goes_on_where_it_was_cut() -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        return skipped("machines in network namespaces need root");
    }
    let mut site = Site::start("cut", 2, 0, &[]).await?;
    let rest = site.rest(0)?;
    let digest = push(&rest, "echo").await?;
    let document = json!({"name": "heavy", "role": "default", "component": digest, "config": {}});
    rest.post("/v1/frameworks", &document).await?.ok()?;
    for number in 0..VALUES {
        let path = format!("/v1/frameworks/heavy/state/k{number:03}");
        rest.send("PUT", &path, &[], vec![u8::try_from(number)?; VALUE_BYTES]).await?.ok()?;
    }
    // A restored cluster has no log of before, so that whoever joins it needs the whole state.
    let saved = site.scene.dir().join("saved.tsr").display().to_string();
    let env = [("TESSERA_ADDRESS", rest.base().to_owned()), ("TESSERA_TOKEN", site.token.clone())];
    let output = tessera(&["operator", "snapshot", "save", &saved], &env).await?;
    ensure(output.status.success(), || format!("{output:?}"))?;
    for master in &mut site.masters {
        master.kill_9()?;
        empty(&master.dir)?;
    }
    let data = site.masters[0].dir.display().to_string();
    let (rest_address, peer) = (site.rest_address(0), site.peer(0));
    let args = ["operator", "snapshot", "restore", &saved, "--data-dir", &data];
    let args = [args.as_slice(), &["--peer-address", &peer, "--rest-address", &rest_address]].concat();
    let output = tessera(&args, &[]).await?;
    ensure(output.status.success(), || format!("{output:?}"))?;
    site.run_master(0)?;
    site.voters(1).await?;

    // So that it is on its way for seconds, whatever the machine can do.
    let sender = site.masters[0].machine;
    site.net.set_rate(sender, Some(MBIT))?;
    site.run_master(1)?;
    let machine = site.masters[1].machine;
    let (began, before) = (Instant::now(), site.net.received(machine));
    let arrived = |site: &Site| site.net.received(machine) - before;
    while arrived(&site) < ARRIVED {
        ensure(began.elapsed() < PATIENCE, || format!("{} bytes arrived", arrived(&site)))?;
        pass(GLANCE).await;
    }
    site.net.set_link(machine, false)?;
    let cut = arrived(&site);
    until("the leader has noticed", PATIENCE, async || match log(&site, "m1") {
        log if log.contains("a snapshot is not delivered yet") => Ok(()),
        log => Err(log),
    })
    .await?;
    site.net.set_link(machine, true)?;
    site.net.set_rate(sender, None)?;
    site.voters(2).await?;
    let sent = log(&site, "m1");
    ensure(sent.contains("a snapshot goes on where it broke off"), || sent.clone())?;
    let all = arrived(&site);
    eprintln!("cut after {cut} bytes, whole after {all}");
    let whole = (VALUES * VALUE_BYTES) as u64;
    ensure(all < whole + ARRIVED, || format!("{all} bytes for a state of {whole}: it began again"))?;
    for number in [0, VALUES - 1] {
        let path = format!("/v1/frameworks/heavy/state/k{number:03}?consistency=stale");
        let answer = site.rest(1)?.get(&path).await?.ok()?;
        ensure(answer.body == vec![u8::try_from(number)?; VALUE_BYTES], || format!("value {number} differs"))?;
    }
    site.finish()
}
