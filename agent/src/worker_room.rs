//! Where a worker lives: its control group, how large that is, and the arguments that make its process
//! join it and leave everything else behind.
//!
//! Invariants: a group is never smaller than what its worker uses now, so that giving room back ends
//! nobody; what a worker needs beside its guests has a name here and was measured. This file must never
//! decide what a worker hosts.

use crate::tenants::Tenants;
use crate::worker_link::worker_name;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
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
/// Threads of a worker: one for each guest, and a few of its own.
const THREADS_MAX: u32 = 16_384;

/// The groups of all workers.
pub struct Rooms {
    cgroups: Cgroups,
    tenants: Arc<Tenants>,
    own_network: bool,
    engine_tag: String,
    rooms: BTreeMap<WorkerKey, Room>,
}

/// What is known of one worker's size.
#[derive(Clone, Debug, Default)]
struct Room {
    load: WorkerLoad,
    /// Images that it was told to load, newest last, and their sizes.
    images: VecDeque<(PathBuf, u64)>,
}

impl Room {
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
    own_network: bool,
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
        own_network: bool,
        engine_tag: String,
    ) -> Self {
        Self {
            cgroups,
            tenants,
            own_network,
            engine_tag,
            rooms: BTreeMap::new(),
        }
    }

    /// Tag of the present engine.
    #[must_use]
    pub fn engine_tag(&self) -> &str {
        &self.engine_tag
    }

    fn group(&self, key: &WorkerKey) -> String {
        format!("worker-{}", worker_name(key, &self.engine_tag))
    }

    /// For starting a worker.
    #[must_use]
    pub fn maker(&self, key: &WorkerKey) -> RoomMaker {
        let room = self.rooms.get(key).cloned().unwrap_or_default();
        RoomMaker {
            cgroups: self.cgroups.clone(),
            tenants: Arc::clone(&self.tenants),
            own_network: self.own_network,
            group: self.group(key),
            key: key.clone(),
            limits: limits(&room, room.bytes()),
        }
    }

    /// A worker that is connected is to load this image.
    pub fn expect_image(&mut self, key: &WorkerKey, process: &Identity, path: PathBuf, bytes: u64) {
        let room = self.rooms.entry(key.clone()).or_default();
        let before = room.bytes();
        room.images.retain(|(known, _)| *known != path);
        room.images.push_back((path, bytes));
        if room.images.len() > IMAGES_KEPT {
            room.images.pop_front();
        }
        if room.bytes() > before {
            self.apply(key, process);
        }
    }

    /// A worker that is connected hosts this, or is about to.
    pub fn size(&mut self, key: &WorkerKey, process: &Identity, load: WorkerLoad) {
        self.rooms.entry(key.clone()).or_default().load = load;
        self.apply(key, process);
    }

    /// Set a group to what is known. What was given and is used is not taken back.
    fn apply(&self, key: &WorkerKey, process: &Identity) {
        let Some(room) = self.rooms.get(key) else {
            return;
        };
        let wanted = room.bytes();
        if self.cgroups.unlimited_because().is_some() {
            // Without groups the process itself is limited: in writable memory of its own.
            if let Err(error) = process::limit_data(process, wanted) {
                tracing::debug!(%error, pid = process.pid, "a worker's memory is not limited");
            }
            return;
        }
        let group = self.group(key);
        let used = self.cgroups.stats(&group).map_or(0, |s| s.memory_bytes);
        let bytes = wanted.max(used.saturating_add(SLACK_BYTES));
        if let Err(error) = self.cgroups.create(&group, &limits(room, bytes)) {
            tracing::warn!(group, %error, "a worker's group keeps its size");
        }
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

fn limits(room: &Room, bytes: u64) -> Limits {
    Limits {
        cpus_milli: room.load.cpus_milli.max(1),
        cpus_limit_milli: None,
        mem_mib: Some(i64::try_from(bytes.div_ceil(1 << 20)).unwrap_or(i64::MAX)),
        pids: THREADS_MAX,
    }
}

impl RoomMaker {
    /// Make the group, and say with which arguments the worker joins it and changes its user. Blocks.
    ///
    /// # Errors
    /// When the group or the tenant's number cannot be had.
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
        if self.own_network {
            arguments.push("--own-network".into());
        }
        if let Some((uid, gid)) = owner {
            arguments.extend(["--uid".into(), uid.to_string().into()]);
            arguments.extend(["--gid".into(), gid.to_string().into()]);
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
        assert!(limits(&room, u64::MAX).mem_mib.is_some_and(|mib| mib > 0));
    }
}
