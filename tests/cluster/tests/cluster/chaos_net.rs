//! Three or five masters and three agents on machines of their own, under a workload that never pauses: processes are
//! killed and paused, the network is cut in every way, disks are full or slow, one at a time and two at a
//! time. Then the books are balanced.
//!
//! `TESSERA_SEED` repeats a run: seed, plan and history are printed and kept. `make chaos` runs it for longer.

use crate::chaos_books::balance;
use crate::chaos_faults::{ALL, Draw, Fault, Lasts, Planned, carry_out, clear, plan, prepare};
use crate::chaos_load::Load;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tessera_cluster::disk::Disk;
use tessera_cluster::random::Random;
use tessera_cluster::site::Site;
use tessera_cluster::{Outcome, ensure, skipped};

const MASTERS: usize = 3;
const AGENTS: usize = 3;
/// Small machines: tasks are spread over all of them.
pub const AGENT_FLAGS: [&str; 6] = ["--cpus-milli", "2000", "--mem-mib", "2048", "--worker-idle-s", "2"];

/// Masters that bear the loss of two.
const FIVE: usize = 5;
/// And by how much of all that can happen: what, changes from run to run.
const FIVE_FAULTS: usize = 8;

/// How long faults last in the short form, but for one pause.
const SHORT: Draw = Draw { lasts: Lasts(800, 3_000), pauses: Lasts(500, 3_000), companions: 3 };
/// The same, more often two at a time, as five masters bear that.
const SHORT_OF_FIVE: Draw = Draw { companions: 2, ..SHORT };
/// And in the long form, where agents are given up and schedulers move.
const LONG: Draw = Draw { lasts: Lasts(500, 15_000), pauses: PAUSES, companions: 3 };
/// A process stands still for so long.
const PAUSES: Lasts = Lasts(500, 30_000);
/// The one long pause of the short form, beside everything else.
const LONG_PAUSE: Lasts = Lasts(10_000, 30_000);
/// Faults of a round of the long form: a round's tasks have to fit into one page.
const LONG_FAULTS: usize = 7;

/// A number of the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seed() -> u64 {
    number("TESSERA_SEED").unwrap_or_else(|| {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        time.map_or(1, |time| u64::from(time.subsec_nanos()))
    })
}

/// Where histories are kept: a directory that was asked for, or the scene's, which goes when all went well.
fn kept(site: &Site) -> Outcome<PathBuf> {
    match std::env::var_os("TESSERA_CHAOS_DIR") {
        None => Ok(site.scene.dir().to_owned()),
        Some(dir) => {
            std::fs::create_dir_all(&dir)?;
            Ok(dir.into())
        }
    }
}

/// One load, one plan, one balance; in the short form with somebody who stands still most of the time.
async fn round(site: &mut Site, number: usize, seed: u64, faults: &[Fault], draw: Draw, still: Option<Fault>) -> Outcome {
    let began = Instant::now();
    let mut random = Random::new(seed.wrapping_add(number as u64));
    let ran = site.scene.open_file(&format!("ran-{number}"))?;
    let mut load = Load::start(site.clients()?, number, &ran, random.next()).await?;
    let mut planned = plan(&mut random, faults, draw);
    if let Some(fault) = still {
        let at = random.below(5_000);
        planned.push(Planned { fault, at, until: at + LONG_PAUSE.draw(&mut random) });
    }
    let words: Vec<String> = planned.iter().map(ToString::to_string).collect();
    eprintln!("round {number} of seed {seed}: {}", words.join(", "));
    carry_out(site, &planned, &mut random).await?;
    let history = kept(site)?.join(format!("history-{seed}-{number}.jsonl"));
    let balance = balance(site, &mut load, &history).await?;
    eprintln!("round {number}: {} ({:.0} s)", balance.text, began.elapsed().as_secs_f64());
    load.remove().await
}

/// Which faults this machine can make.
fn possible(site: &Site) -> Vec<Fault> {
    let disks = site.masters.iter().all(|master| master.disk.is_some());
    let slow = disks && Disk::can_be_slow();
    let possible = |fault: &Fault| (disks || !fault.fills()) && (slow || !fault.slows());
    for fault in ALL.iter().filter(|fault| !possible(fault)) {
        eprintln!("{fault:?} is left out: no loop devices, or no control groups that limit writes");
    }
    ALL.into_iter().filter(possible).collect()
}

fn said(seed: u64, test: &str) {
    eprintln!(
        "seed {seed}; again with: TESSERA_SEED={seed} cargo test -p tessera-cluster --test cluster {test} -- --include-ignored --nocapture"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_what_happens_to_masters_and_agents() -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        return skipped("machines in network namespaces need root");
    }
    let seed = seed();
    said(seed, "nobody_notices_what_happens_to_masters");
    let mut site = Site::start("net", MASTERS, AGENTS, &AGENT_FLAGS).await?;
    let faults = possible(&site);
    prepare(&site).await?;
    round(&mut site, 0, seed, &faults, SHORT, Some(Fault::PauseAgent)).await?;
    clear(&site).await?;
    site.idle().await?;
    site.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_what_happens_to_two_of_five_masters() -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        return skipped("machines in network namespaces need root");
    }
    let seed = seed();
    said(seed, "two_of_five");
    let mut site = Site::start("five", FIVE, AGENTS, &AGENT_FLAGS).await?;
    let mut faults = possible(&site);
    prepare(&site).await?;
    Random::new(seed).shuffle(&mut faults);
    faults.truncate(FIVE_FAULTS);
    let still = if seed.is_multiple_of(2) { Fault::PauseLeader } else { Fault::PauseFollower };
    round(&mut site, 0, seed, &faults, SHORT_OF_FIVE, Some(still)).await?;
    clear(&site).await?;
    site.idle().await?;
    site.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "as long as one likes: make chaos MINUTES=10 SEED=…"]
async fn rounds_of_faults_for_as_long_as_asked() -> Outcome {
    let seed = seed();
    said(seed, "rounds_of_faults");
    let minutes = number("TESSERA_CHAOS_MINUTES").unwrap_or(10);
    let masters = number("TESSERA_CHAOS_MASTERS").unwrap_or(MASTERS as u64);
    ensure((3..=9).contains(&masters), || "3 to 9 masters".to_owned())?;
    let mut site = Site::start("net", usize::try_from(masters)?, AGENTS, &AGENT_FLAGS).await?;
    let mut faults = possible(&site);
    prepare(&site).await?;
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let mut number = 0;
    while Instant::now() < end {
        let mut random = Random::new(seed ^ number as u64);
        random.shuffle(&mut faults);
        let some = &faults[..LONG_FAULTS.min(faults.len())];
        round(&mut site, number, seed, some, LONG, None).await?;
        number += 1;
    }
    clear(&site).await?;
    site.idle().await?;
    site.finish()?;
    eprintln!("{number} rounds of seed {seed} in {minutes} minutes: all books balanced");
    Ok(())
}

