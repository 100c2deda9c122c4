//! What goes wrong: each fault with a beginning and an end, and plans of them that follow from a seed.
//!
//! Invariants: a fault takes its victim when it begins and lets go of the same one when it ends; when a
//! plan is over, everything runs and reaches everything.

use nix::sys::signal::Signal;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tessera_cluster::disk::Disk;
use tessera_cluster::cluster::framework;
use tessera_cluster::random::Random;
use tessera_cluster::rest::Rest;
use tessera_cluster::site::{Host, Site};
use tessera_cluster::wait::pass;
use tessera_cluster::{Outcome, failure};

/// How often a plan looks whether something is to begin or end, and a flapping link changes.
const BEAT: Duration = Duration::from_millis(200);
/// Writes per second of a slow disk: a synced write takes about a second then, and a leader hands over.
pub const SLOW_WRITES: u32 = 6;
/// And of one that is sluggish: its leader goes on, while each entry waits for a tenth of a second or two.
pub const SLUGGISH_WRITES: u32 = 30;

/// The framework whose state is written while a disk is full, so that its master notices.
const BALLAST: &str = "ballast";
/// One of its values: as large as a value may be, nearly.
const BALLAST_BYTES: usize = 250_000;
/// Who write them, so that it does not take long.
const BALLAST_WRITERS: usize = 3;
/// So many of each are more than what a database has allotted ahead on a disk that was filled.
const BALLAST_VALUES: usize = 40;
/// Full disks of a run that are noticed for sure: the log keeps what was written, and the disks are small.
const BALLAST_FAULTS_MAX: usize = 3;

/// Makes the framework that is written while a disk is full.
pub async fn prepare(site: &Site) -> Outcome {
    let leader = site.leader().await?;
    // It says what it has, and writes nothing by itself.
    framework(&site.rest(leader)?, BALLAST, "echo", &[("tick-ms", "0")]).await.map(drop)
}

/// And removes it again.
pub async fn clear(site: &Site) -> Outcome {
    let rest = site.rest(site.leader().await?)?;
    rest.send("DELETE", &format!("/v1/frameworks/{BALLAST}"), &[], Vec::new()).await?.ok().map(drop)
}

/// Writes through any master until it is enough, or the disk has room again. What becomes of it does not matter.
async fn write_ballast(masters: Vec<Rest>, writer: usize, stop: Arc<AtomicBool>) {
    let path = format!("/v1/frameworks/{BALLAST}/state/k{writer}");
    for number in 0..BALLAST_VALUES {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let value = vec![u8::try_from(number % 256).unwrap_or(0); BALLAST_BYTES];
        let _ = masters[(number + writer) % masters.len()].send("PUT", &path, &[], value).await;
    }
}

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, and started again at the end.
    KillLeader,
    KillFollower,
    KillAgent,
    /// All masters at once.
    KillMasters,
    /// SIGSTOP, and SIGCONT at the end.
    PauseLeader,
    PauseFollower,
    PauseAgent,
    /// The leader reaches nobody but clients.
    LeaderAlone,
    /// The leader and one agent reach each other and clients, and none of the others.
    LeaderWithMinority,
    /// Nobody hears the leader, and it hears all.
    LeaderMute,
    /// The leader hears nobody, and all hear it.
    LeaderDeaf,
    /// The leader's cable is in and out.
    LeaderFlaps,
    /// An agent's cable is out.
    AgentAway,
    /// No master hears an agent, and it hears all.
    AgentMute,
    /// An agent hears no master, and all hear it.
    AgentDeaf,
    /// An agent's cable is in and out.
    AgentFlaps,
    /// The leader's disk is full.
    DiskFull,
    /// The leader's disk takes about a second for each synced write.
    DiskSlow,
    /// The leader's disk takes a tenth of a second or two for it.
    DiskSluggish,
    /// A follower's disk takes about a second for it.
    FollowerDiskSlow,
}

/// All of them.
pub const ALL: [Fault; 20] = [
    Fault::KillLeader,
    Fault::KillFollower,
    Fault::KillAgent,
    Fault::KillMasters,
    Fault::PauseLeader,
    Fault::PauseFollower,
    Fault::PauseAgent,
    Fault::LeaderAlone,
    Fault::LeaderWithMinority,
    Fault::LeaderMute,
    Fault::LeaderDeaf,
    Fault::LeaderFlaps,
    Fault::AgentAway,
    Fault::AgentMute,
    Fault::AgentDeaf,
    Fault::AgentFlaps,
    Fault::DiskFull,
    Fault::DiskSlow,
    Fault::DiskSluggish,
    Fault::FollowerDiskSlow,
];

/// A fault and when it is there, in ms since the plan began.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    pub fault: Fault,
    pub at: u64,
    pub until: u64,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}-{} ms", self.fault, self.at, self.until)
    }
}

/// How long faults last, from and to, in ms.
#[derive(Clone, Copy, Debug)]
pub struct Lasts(pub u64, pub u64);

impl Lasts {
    /// One length.
    pub fn draw(self, random: &mut Random) -> u64 {
        self.0 + random.below(self.1 - self.0 + 1)
    }
}

/// What a plan is drawn from.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Of each fault but pauses.
    pub lasts: Lasts,
    /// Of processes that stand still.
    pub pauses: Lasts,
    /// One in so many faults comes with a companion.
    pub companions: u64,
}

/// These faults in random order, each for a while, some of them two at a time.
pub fn plan(random: &mut Random, faults: &[Fault], draw: Draw) -> Vec<Planned> {
    let mut faults = faults.to_vec();
    random.shuffle(&mut faults);
    let (mut planned, mut free) = (Vec::new(), 500);
    let mut left = faults.into_iter();
    while let Some(fault) = left.next() {
        let length = |random: &mut Random, fault: Fault| match fault.pauses() {
            true => draw.pauses.draw(random),
            false => draw.lasts.draw(random),
        };
        let mut end = free + length(random, fault);
        planned.push(Planned { fault, at: free, until: end });
        // A companion begins within it and may outlast it.
        if random.below(draw.companions) == 0
            && let Some(other) = left.next()
        {
            let at = free + random.below(end - free);
            let until = at + length(random, other);
            planned.push(Planned { fault: other, at, until });
            end = end.max(until);
        }
        free = end + 300 + random.below(700);
    }
    planned
}

/// The victim of a fault that began.
struct Begun {
    planned: Planned,
    master: usize,
    agent: usize,
    over: bool,
    /// Ends what writes while the disk is full.
    stop: Arc<AtomicBool>,
}

/// Another than this one.
fn other_than(random: &mut Random, count: usize, not: usize) -> usize {
    let step = 1 + random.below(count as u64 - 1);
    (not + usize::try_from(step).unwrap_or(1)) % count
}

fn one_of(random: &mut Random, count: usize) -> usize {
    usize::try_from(random.below(count as u64)).unwrap_or(0)
}

/// Carries out a plan. Says what ended by itself though nothing was done to its disk.
pub async fn carry_out(site: &mut Site, plan: &[Planned], random: &mut Random) -> Outcome {
    let began = Instant::now();
    let mut begun: Vec<Begun> = Vec::new();
    let mut waiting = plan.to_vec();
    let mut filled: Vec<String> = Vec::new();
    while !waiting.is_empty() || begun.iter().any(|begun| !begun.over) {
        pass(BEAT).await;
        let now = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        for begun in begun.iter_mut().filter(|begun| !begun.over) {
            match begun.planned.until <= now {
                true => {
                    begun.end(site)?;
                    begun.over = true;
                    eprintln!("  {now:>6} ms: {:?} is over", begun.planned.fault);
                }
                false => begun.go_on(site, now)?,
            }
        }
        let (due, later) = waiting.into_iter().partition(|planned| planned.at <= now);
        waiting = later;
        let due: Vec<Planned> = due;
        for planned in due {
            let one = begin(site, planned, random).await?;
            eprintln!(
                "  {now:>6} ms: {:?} of {} and {}",
                planned.fault, site.masters[one.master].name, site.agents[one.agent].name
            );
            if planned.fault == Fault::DiskFull {
                filled.push(site.masters[one.master].name.clone());
            }
            begun.push(one);
        }
        for (name, words) in site.ended()? {
            if !filled.contains(&name) {
                return Err(failure(format!("{name} ended by itself: {words}")));
            }
            eprintln!("  {now:>6} ms: {name} ended on its full disk");
        }
    }
    site.whole(&filled).await
}

async fn begin(site: &mut Site, planned: Planned, random: &mut Random) -> Outcome<Begun> {
    let leader = site.leader_now().await?;
    let leader = leader.unwrap_or_else(|| one_of(random, site.masters.len()));
    let agent = one_of(random, site.agents.len());
    let follower = other_than(random, site.masters.len(), leader);
    let master = match planned.fault {
        Fault::KillFollower | Fault::PauseFollower | Fault::FollowerDiskSlow => follower,
        _ => leader,
    };
    let stop = Arc::new(AtomicBool::new(false));
    match planned.fault {
        Fault::KillLeader | Fault::KillFollower => site.masters[master].kill_9()?,
        Fault::KillAgent => site.agents[agent].kill_9()?,
        Fault::KillMasters => site.masters.iter_mut().try_for_each(Host::kill_9)?,
        Fault::PauseLeader | Fault::PauseFollower => site.masters[master].signal(Signal::SIGSTOP)?,
        Fault::PauseAgent => site.agents[agent].signal(Signal::SIGSTOP)?,
        Fault::LeaderAlone | Fault::LeaderWithMinority | Fault::LeaderMute | Fault::LeaderDeaf => {
            set_ways(site, planned.fault, (master, agent), false)?;
        }
        Fault::LeaderFlaps => site.net.set_link(site.masters[master].machine, false)?,
        Fault::AgentAway | Fault::AgentFlaps => site.net.set_link(site.agents[agent].machine, false)?,
        Fault::AgentMute | Fault::AgentDeaf => set_agent_ways(site, planned.fault, agent, false)?,
        Fault::DiskFull => {
            if let Some(disk) = &site.masters[master].disk {
                disk.fill()?;
                static FILLED: AtomicUsize = AtomicUsize::new(0);
                if FILLED.fetch_add(1, Ordering::Relaxed) < BALLAST_FAULTS_MAX {
                    for writer in 0..BALLAST_WRITERS {
                        tokio::spawn(write_ballast(site.clients()?, writer, stop.clone()));
                    }
                }
            }
        }
        Fault::DiskSlow | Fault::FollowerDiskSlow => set_slow(site, master, Some(SLOW_WRITES))?,
        Fault::DiskSluggish => set_slow(site, master, Some(SLUGGISH_WRITES))?,
    }
    Ok(Begun { planned, master, agent, over: false, stop })
}

impl Begun {
    /// While it lasts.
    fn go_on(&self, site: &mut Site, now: u64) -> Outcome {
        let machine = match self.planned.fault {
            Fault::LeaderFlaps => site.masters[self.master].machine,
            Fault::AgentFlaps => site.agents[self.agent].machine,
            _ => return Ok(()),
        };
        // In and out, each for about two beats.
        let beats = (now - self.planned.at) / u64::try_from(BEAT.as_millis()).unwrap_or(1);
        site.net.set_link(machine, beats % 4 >= 2)
    }

    fn end(&self, site: &mut Site) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let (master, agent) = (self.master, self.agent);
        match self.planned.fault {
            Fault::KillLeader | Fault::KillFollower => match site.masters[master].process {
                // It was a victim twice, and the other one's end came first.
                Some(_) => Ok(()),
                None => site.run_master(master),
            },
            // One that is to stay away for longer is back earlier.
            Fault::KillMasters => (0..site.masters.len()).try_for_each(|master| match site.masters[master].process {
                Some(_) => Ok(()),
                None => site.run_master(master),
            }),
            Fault::KillAgent => match site.agents[agent].process {
                Some(_) => Ok(()),
                None => site.run_agent(agent),
            },
            Fault::PauseLeader | Fault::PauseFollower => site.masters[master].signal(Signal::SIGCONT),
            Fault::PauseAgent => site.agents[agent].signal(Signal::SIGCONT),
            Fault::LeaderAlone | Fault::LeaderWithMinority | Fault::LeaderMute | Fault::LeaderDeaf => {
                set_ways(site, self.planned.fault, (master, agent), true)
            }
            Fault::LeaderFlaps => site.net.set_link(site.masters[master].machine, true),
            Fault::AgentAway | Fault::AgentFlaps => site.net.set_link(site.agents[agent].machine, true),
            Fault::AgentMute | Fault::AgentDeaf => set_agent_ways(site, self.planned.fault, agent, true),
            Fault::DiskFull => {
                if let Some(disk) = &site.masters[master].disk {
                    disk.free()?;
                }
                match site.masters[master].process {
                    Some(_) => Ok(()),
                    None => site.run_master(master),
                }
            }
            Fault::DiskSlow | Fault::DiskSluggish | Fault::FollowerDiskSlow => set_slow(site, master, None),
        }
    }
}

/// Opens or closes the ways that a partition is made of.
fn set_ways(site: &mut Site, fault: Fault, (master, agent): (usize, usize), open: bool) -> Outcome {
    let this = site.masters[master].machine;
    let with = site.agents[agent].machine;
    let hosts = site.masters.iter().chain(&site.agents);
    let others: Vec<usize> = hosts.map(|host| host.machine).filter(|machine| *machine != this).collect();
    for other in others {
        let minority = fault == Fault::LeaderWithMinority;
        if minority && other == with {
            continue;
        }
        if fault != Fault::LeaderDeaf {
            site.net.set_way(this, other, open)?;
        }
        if fault != Fault::LeaderMute {
            site.net.set_way(other, this, open)?;
        }
        if minority {
            site.net.set_way(with, other, open)?;
            site.net.set_way(other, with, open)?;
        }
    }
    Ok(())
}

/// Opens or closes one way between an agent and all masters.
fn set_agent_ways(site: &mut Site, fault: Fault, agent: usize, open: bool) -> Outcome {
    let agent = site.agents[agent].machine;
    let masters: Vec<usize> = site.masters.iter().map(|master| master.machine).collect();
    masters.into_iter().try_for_each(|master| match fault {
        Fault::AgentMute => site.net.set_way(agent, master, open),
        _ => site.net.set_way(master, agent, open),
    })
}

impl Fault {
    /// A process stands still.
    fn pauses(self) -> bool {
        matches!(self, Self::PauseLeader | Self::PauseFollower | Self::PauseAgent)
    }

    /// It needs disks that can be filled.
    pub fn fills(self) -> bool {
        self == Self::DiskFull
    }

    /// It needs disks that can be made slow.
    pub fn slows(self) -> bool {
        matches!(self, Self::DiskSlow | Self::DiskSluggish | Self::FollowerDiskSlow)
    }
}

fn set_slow(site: &Site, master: usize, writes: Option<u32>) -> Outcome {
    match &site.masters[master].disk {
        Some(disk) if Disk::can_be_slow() => disk.set_writes_per_second(writes),
        _ => Ok(()),
    }
}
