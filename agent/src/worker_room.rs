//! Where a worker lives: its control group, how large that is, and the arguments that make its process
//! join it and leave everything else behind.
//!
//! Invariants: a group has room for a guest before that is sent; it is never smaller than what its worker
//! uses now, so that giving room back ends nobody; room that nothing needs is given back within
//! [`GIVE_BACK_AFTER`]; what a worker needs beside its guests has a name here and was measured. This file
//! must never decide what a worker hosts.

use crate::images::IMAGES_DIR;
use crate::protections::Protections;
use crate::reach::Reaches;
use crate::tenants::Tenants;
use crate::worker_link::worker_name;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tessera_agent_core::{WorkerKey, WorkerLoad};
use tessera_oci::launch::KILL_WITHIN;
use tessera_oci::{Cgroups, Identity, Limits, process};

/// What a worker takes without guests. 2 MiB were measured when nothing is said; the rest is for a full
/// queue to the agent, 32 MiB, a frame of 8 MiB each way, and what the allocator does not give back.
const WORKER_BYTES: u64 = 64 << 20;
/// What a guest takes beside what it is granted. 62 KiB were measured for an idle scheduler; the rest is
/// for its stack of 2 MiB, tables, and a turn with its operations and writes, which is there twice while it is sent.
const GUEST_BYTES: u64 = 8 << 20;
/// An image is read before it is made executable, so that the largest one is there twice for a moment.
const IMAGE_COPIES: u64 = 2;
/// Images that a worker keeps loaded, as it counts them itself.
const IMAGES_KEPT: usize = 32;
/// What stays free above what a worker uses now, when room is given back.
const SLACK_BYTES: u64 = 32 << 20;
/// Memory and CPU are given in steps of these sizes: each change of a group costs more than sending a
/// small guest.
const STEP_BYTES: u64 = 64 << 20;
const STEP_CPUS_MILLI: i64 = 100;
/// How long room that nothing needs is kept for the next guest. Limits of guests hold meanwhile too.
pub const GIVE_BACK_AFTER: Duration = Duration::from_secs(1);
/// Threads of a worker: one for each guest, and a few of its own.
const THREADS_MAX: u32 = 16_384;

/// What this machine can give to workers of their own.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    network: bool,
    files: bool,
}

impl From<&Protections> for Own {
    fn from(found: &Protections) -> Self {
        Self {
            network: found.network,
            files: found.files,
        }
    }
}

/// The groups of all workers.
pub struct Rooms {
    cgroups: Cgroups,
    tenants: Arc<Tenants>,
    reaches: Arc<Reaches>,
    own: Own,
    engine_tag: String,
    rooms: BTreeMap<WorkerKey, Room>,
}

/// What is known of one worker's size.
#[derive(Clone, Debug, Default)]
struct Room {
    load: WorkerLoad,
    /// Images that it was told to load, newest last, and their sizes.
    images: VecDeque<(PathBuf, u64)>,
    /// What its group was given; unknown when it was made elsewhere.
    given: Option<Size>,
    /// Whether somebody was told to come back and take what is too much.
    reminded: bool,
}

/// How large a group is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    bytes: u64,
    cpus_milli: i64,
}

/// What follows from a new size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Nothing.
    None,
    /// Give it now.
    Now,
    /// There is more than is needed.
    Later,
}

impl Room {
    /// What it needs, in whole steps.
    fn size(&self) -> Size {
        let bytes = self.bytes().div_ceil(STEP_BYTES).saturating_mul(STEP_BYTES);
        // The smallest share is for one that hosts nothing.
        let steps = self.load.cpus_milli.max(1).saturating_add(STEP_CPUS_MILLI - 1) / STEP_CPUS_MILLI;
        Size {
            bytes,
            cpus_milli: steps.saturating_mul(STEP_CPUS_MILLI),
        }
    }

    /// Compare what is given with what is needed.
    fn change(&self) -> Change {
        let wanted = self.size();
        match self.given {
            Some(given) if given == wanted => Change::None,
            Some(given) if given.bytes >= wanted.bytes && given.cpus_milli >= wanted.cpus_milli => {
                Change::Later
            }
            _ => Change::Now,
        }
    }

    fn bytes(&self) -> u64 {
        let images: u64 = self.images.iter().map(|(_, bytes)| bytes).sum();
        let largest = self.images.iter().map(|(_, bytes)| *bytes).max();
        let guests = self.load.guests.saturating_mul(GUEST_BYTES);
        [
            self.load.mem_bytes,
            guests,
            images,
            largest.unwrap_or(0).saturating_mul(IMAGE_COPIES - 1),
        ]
        .into_iter()
        .fold(WORKER_BYTES, u64::saturating_add)
    }
}

/// What it takes to start one worker; apart from the rest, so that it can be done elsewhere.
pub struct RoomMaker {
    cgroups: Cgroups,
    tenants: Arc<Tenants>,
    reaches: Arc<Reaches>,
    own: Own,
    group: String,
    key: WorkerKey,
    limits: Limits,
}

impl Rooms {
    /// No workers yet.
    #[must_use]
    pub fn new(
        cgroups: Cgroups,
        tenants: Arc<Tenants>,
        reaches: Arc<Reaches>,
        own: Own,
        engine_tag: String,
    ) -> Self {
        Self {
            cgroups,
            tenants,
            reaches,
            own,
            engine_tag,
            rooms: BTreeMap::new(),
        }
    }

    /// Tag of the present engine.
    #[must_use]
    pub fn engine_tag(&self) -> &str {
        &self.engine_tag
    }

    /// The name of a worker's control group.
    #[must_use]
    pub fn group(&self, key: &WorkerKey) -> String {
        format!("worker-{}", worker_name(key, &self.engine_tag))
    }

    /// For starting a worker.
    #[must_use]
    pub fn maker(&mut self, key: &WorkerKey) -> RoomMaker {
        let room = self.rooms.entry(key.clone()).or_default();
        room.given = None;
        let size = room.size();
        RoomMaker {
            cgroups: self.cgroups.clone(),
            tenants: Arc::clone(&self.tenants),
            reaches: Arc::clone(&self.reaches),
            own: self.own,
            group: self.group(key),
            key: key.clone(),
            limits: limits(size),
        }
    }

    /// A worker that is connected is to load this image.
    pub fn expect_image(
        &mut self,
        key: &WorkerKey,
        process: &Identity,
        path: PathBuf,
        bytes: u64,
    ) -> bool {
        let room = self.rooms.entry(key.clone()).or_default();
        room.images.retain(|(known, _)| *known != path);
        room.images.push_back((path, bytes));
        if room.images.len() > IMAGES_KEPT {
            room.images.pop_front();
        }
        self.follow(key, process)
    }

    /// A worker that is connected hosts this, or is about to.
    pub fn size(&mut self, key: &WorkerKey, process: &Identity, load: WorkerLoad) -> bool {
        self.rooms.entry(key.clone()).or_default().load = load;
        self.follow(key, process)
    }

    /// Let a group grow if it has to; true if [`Rooms::give_back`] is to be called in a while.
    fn follow(&mut self, key: &WorkerKey, process: &Identity) -> bool {
        let Some(room) = self.rooms.get_mut(key) else {
            return false;
        };
        match room.change() {
            Change::None => false,
            Change::Later => !std::mem::replace(&mut room.reminded, true),
            Change::Now => {
                let (wanted, given) = (room.size(), room.given);
                // The part that is too large now is taken back with the rest, when somebody comes back.
                let size = given.map_or(wanted, |given| Size {
                    bytes: wanted.bytes.max(given.bytes),
                    cpus_milli: wanted.cpus_milli.max(given.cpus_milli),
                });
                let later = size != wanted && !std::mem::replace(&mut room.reminded, true);
                self.apply(key, process, size);
                later
            }
        }
    }

    /// Take back from a group what its worker does not need. Without a process only the reminder is over:
    /// the next size says what is needed.
    pub fn give_back(&mut self, key: &WorkerKey, process: Option<&Identity>) {
        let Some(room) = self.rooms.get_mut(key) else {
            return;
        };
        room.reminded = false;
        let Some(process) = process else { return };
        if room.change() != Change::None {
            let size = room.size();
            self.apply(key, process, size);
        }
    }

    /// Set a group's size. What is used is not taken back; where it fails the next change tries again.
    fn apply(&mut self, key: &WorkerKey, process: &Identity, size: Size) {
        let set = self.set(key, process, size);
        if let Some(room) = self.rooms.get_mut(key) {
            room.given = set.then_some(size);
        }
    }

    fn set(&self, key: &WorkerKey, process: &Identity, size: Size) -> bool {
        if self.cgroups.unlimited_because().is_some() {
            // Without groups the process itself is limited: in writable memory of its own.
            let limited = process::limit_data(process, size.bytes);
            return limited
                .inspect_err(|error| {
                    tracing::debug!(%error, pid = process.pid, "a worker's memory is not limited");
                })
                .is_ok();
        }
        let group = self.group(key);
        let used = self.cgroups.stats(&group).map_or(0, |s| s.memory_bytes);
        let bytes = size.bytes.max(used.saturating_add(SLACK_BYTES));
        let made = self.cgroups.create(&group, &limits(Size { bytes, ..size }));
        made.inspect_err(|error| tracing::warn!(group, %error, "a worker's group keeps its size"))
            .is_ok()
    }

    /// A worker is gone for good: its group is not needed.
    pub fn remove(&mut self, key: &WorkerKey) {
        self.rooms.remove(key);
        let (cgroups, group) = (self.cgroups.clone(), self.group(key));
        tokio::task::spawn_blocking(move || {
            let ended = cgroups.files(&group).map(|files| files.kill_all(KILL_WITHIN));
            if let Err(error) = cgroups.remove(&group) {
                tracing::debug!(group, ?ended, %error, "a worker's group is left behind");
            }
        });
    }
}

fn limits(size: Size) -> Limits {
    Limits {
        cpus_milli: size.cpus_milli,
        cpus_limit_milli: None,
        mem_mib: Some(i64::try_from(size.bytes.div_ceil(1 << 20)).unwrap_or(i64::MAX)),
        pids: THREADS_MAX,
    }
}

impl RoomMaker {
    /// Make the group and the folders of its guests, and say with which arguments the worker joins the one, is
    /// kept to the others and changes its user. Blocks.
    ///
    /// # Errors
    /// When the group, the tenant's number or its folders cannot be had.
    pub fn make(&self) -> std::io::Result<Vec<OsString>> {
        let mut arguments: Vec<OsString> = Vec::new();
        let owner = self.tenants.owner(&self.key.tenant, self.key.kind)?;
        let group = self
            .cgroups
            .create(&self.group, &self.limits)
            .map_err(std::io::Error::other)?;
        for procs in group.procs {
            arguments.extend(["--group".into(), procs.into_os_string()]);
        }
        if self.own.network {
            arguments.push("--own-network".into());
        }
        if self.own.files {
            // Paths from the work directory, which is the worker's too.
            let number = self.tenants.number(&self.key.tenant)?;
            let reach = self.reaches.of(number, self.key.kind)?;
            arguments.extend(["--own-files".into(), "--reach".into(), IMAGES_DIR.into()]);
            arguments.extend(["--reach-write".into(), reach.into_os_string()]);
        }
        if let Some((uid, gid)) = owner {
            arguments.extend(["--uid".into(), uid.to_string().into()]);
            arguments.extend(["--gid".into(), gid.to_string().into()]);
            if self.own.files {
                // No link of a worker's leads astray who may do more: its folders are the agent's.
                arguments.push("--reach-links".into());
            }
        }
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_has_what_guests_and_images_take() {
        let mut room = Room::default();
        assert_eq!(room.bytes(), WORKER_BYTES);
        room.load.guests = 2;
        room.load.mem_bytes = 100;
        assert_eq!(room.bytes(), WORKER_BYTES + 2 * GUEST_BYTES + 100);
        room.images.push_back(("a".into(), 7));
        room.images.push_back(("b".into(), 5));
        assert_eq!(room.bytes(), WORKER_BYTES + 2 * GUEST_BYTES + 100 + 12 + 7);
        room.load.mem_bytes = u64::MAX;
        assert_eq!(room.bytes(), u64::MAX);
        assert!(limits(room.size()).mem_mib.is_some_and(|mib| mib > 0));
    }

    #[test]
    fn a_room_grows_at_once_and_shrinks_later() {
        let mut room = Room::default();
        let load = |guests: u64, cpus_milli| WorkerLoad {
            guests,
            mem_bytes: guests * (16 << 20),
            cpus_milli,
        };
        let steps = |bytes: u64, cpus_milli| Size {
            bytes: bytes * STEP_BYTES,
            cpus_milli,
        };
        // A row: what is hosted, what it takes, and what follows when it was given what came before.
        for (guests, cpus, size, change) in [
            (0, 0, steps(1, 100), Change::Now),
            (1, 100, steps(2, 100), Change::Now),
            (2, 100, steps(2, 100), Change::None),
            (2, 101, steps(2, 200), Change::Now),
            (1, 100, steps(2, 100), Change::Later),
            (0, 0, steps(1, 100), Change::Later),
            (9, 100, steps(5, 100), Change::Now),
        ] {
            room.load = load(guests, cpus);
            assert_eq!(room.size(), size, "{guests} guests, {cpus}");
            assert_eq!(room.change(), change, "{guests} guests, {cpus}");
            if change == Change::Now {
                room.given = Some(size);
            }
        }
    }
}
