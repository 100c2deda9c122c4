//! Amounts of resources, offers of them, and how tasks are fitted into offers.
//!
//! Owns the packing used by [`Turn::place`](crate::Turn::place). All of it is integer arithmetic
//! without calls to the host, so it can be tested anywhere.

use std::collections::BTreeMap;

use crate::bindings::tessera::framework::types::ResourceItem;
pub use crate::bindings::tessera::framework::types::{Offer, Quantities as Resources};
use crate::task::TaskSpec;

/// Thousandths of a core in one core.
const MILLI: f64 = 1000.0;

/// Turn cores into thousandths of a core, rounded; what is no positive number is 0.
pub(crate) fn milli_from_cores(cores: f64) -> u64 {
    // A float to integer cast saturates and maps NaN to 0.
    (cores * MILLI).round() as u64
}

/// An amount of a resource that agents name, unreserved.
pub(crate) fn plain_item(name: impl Into<String>, amount: f64) -> ResourceItem {
    ResourceItem {
        name: name.into(),
        reservation: Vec::new(),
        volume: None,
        revocable: false,
        shared: false,
        amount_milli: milli_from_cores(amount),
    }
}

impl Resources {
    /// This much CPU (in cores) and memory (in MiB), and no disk.
    pub fn new(cpus: f64, mem_mib: u64) -> Self {
        Self {
            cpus_milli: milli_from_cores(cpus),
            mem_mib,
            disk_mib: 0,
        }
    }

    /// Whether `wanted` is not more than this in any amount.
    pub fn contains(&self, wanted: &Resources) -> bool {
        wanted.cpus_milli <= self.cpus_milli
            && wanted.mem_mib <= self.mem_mib
            && wanted.disk_mib <= self.disk_mib
    }

    /// Both together.
    pub fn plus(&self, other: &Resources) -> Resources {
        Resources {
            cpus_milli: self.cpus_milli.saturating_add(other.cpus_milli),
            mem_mib: self.mem_mib.saturating_add(other.mem_mib),
            disk_mib: self.disk_mib.saturating_add(other.disk_mib),
        }
    }

    /// What is left after taking `taken`, or nothing if it does not contain that much.
    pub fn minus(&self, taken: &Resources) -> Option<Resources> {
        Some(Resources {
            cpus_milli: self.cpus_milli.checked_sub(taken.cpus_milli)?,
            mem_mib: self.mem_mib.checked_sub(taken.mem_mib)?,
            disk_mib: self.disk_mib.checked_sub(taken.disk_mib)?,
        })
    }

    /// For people: `0.5 cpus, 32 MiB`, and the disk if there is any.
    pub fn describe(&self) -> String {
        let cores = self.cpus_milli / 1000;
        let fraction = format!("{:03}", self.cpus_milli % 1000);
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() { "" } else { "." };
        let mut text = format!("{cores}{dot}{fraction} cpus, {} MiB", self.mem_mib);
        if self.disk_mib > 0 {
            text.push_str(&format!(", {} MiB disk", self.disk_mib));
        }
        text
    }
}

impl Offer {
    /// Whether a task that needs this much, and is not revocable, fits into the offer. A revocable offer has nothing
    /// for it.
    pub fn fits(&self, wanted: &Resources) -> bool {
        self.available.contains(wanted)
    }

    /// Whether a task with this spec fits into the offer.
    pub fn fits_task(&self, spec: &TaskSpec) -> bool {
        Room::of(self).without(spec).is_some()
    }

    /// Whether it may be taken back at any time, with what runs on it: it is for revocable tasks, and only for them.
    pub fn is_revocable(&self) -> bool {
        self.items.iter().any(|item| item.revocable)
    }

    /// How much of a resource that agents name is offered, for example `gpus`.
    pub fn resource(&self, name: &str) -> f64 {
        let named = self.items.iter().filter(|item| item.name == name);
        let milli: u64 = named.map(|item| item.amount_milli).fold(0, u64::saturating_add);
        milli as f64 / MILLI
    }

    /// CPU, memory and disk of the offer, revocable or not.
    pub fn resources(&self) -> Resources {
        Room::of(self).left
    }
}

/// What a task that brings no executor needs of an offer.
#[derive(Debug)]
pub(crate) struct Needs {
    resources: Resources,
    items: Vec<ResourceItem>,
    revocable: bool,
}

impl Needs {
    /// None with an executor: it may have come with another task by the time of the next one.
    pub(crate) fn of(spec: &TaskSpec) -> Option<Self> {
        let alone = spec.executor_charge().is_none();
        alone.then(|| Self { resources: spec.resources(), items: spec.items().to_vec(), revocable: spec.is_revocable() })
    }

    /// Whether a task needs the same.
    pub(crate) fn are_of(&self, spec: &TaskSpec) -> bool {
        self.resources == spec.resources()
            && self.revocable == spec.is_revocable()
            && self.items == spec.items()
            && spec.executor_charge().is_none()
    }
}

/// What is left of an offer while tasks are fitted into it.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    left: Resources,
    items: BTreeMap<String, u64>,
    revocable: bool,
}

impl Room {
    /// All of an offer. What is reserved or shared is for nobody in this version.
    pub(crate) fn of(offer: &Offer) -> Self {
        let mut room = Self { left: offer.available, items: BTreeMap::new(), revocable: offer.is_revocable() };
        let plain = |item: &&ResourceItem| item.reservation.is_empty() && item.volume.is_none() && !item.shared;
        for item in offer.items.iter().filter(plain) {
            match item.name.as_str() {
                "cpus" => room.left.cpus_milli += item.amount_milli,
                "mem" => room.left.mem_mib += item.amount_milli / 1000,
                "disk" => room.left.disk_mib += item.amount_milli / 1000,
                _ => *room.items.entry(item.name.clone()).or_default() += item.amount_milli,
            }
        }
        room
    }

    /// What is left beside a task, if there is room for it.
    pub(crate) fn without(&self, spec: &TaskSpec) -> Option<Self> {
        if spec.is_revocable() != self.revocable {
            return None;
        }
        let mut rest = Self { left: self.left.minus(&spec.resources())?, ..self.clone() };
        for item in spec.items() {
            let own = rest.items.get_mut(&item.name)?;
            *own = own.checked_sub(item.amount_milli)?;
        }
        Some(rest)
    }

    /// What is left beside an executor, if there is room for it.
    pub(crate) fn without_executor(&self, own: &Resources) -> Option<Self> {
        Some(Self { left: self.left.minus(own)?, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::{Offer, Resources, Room, TaskSpec, milli_from_cores, plain_item};

    #[test]
    fn cores_become_milli_cores_without_surprises() {
        assert_eq!(milli_from_cores(0.1), 100);
        assert_eq!(milli_from_cores(0.0005), 1);
        assert_eq!(milli_from_cores(-3.0), 0);
        assert_eq!(milli_from_cores(f64::NAN), 0);
    }

    #[test]
    fn room_is_taken_and_never_goes_below_zero() {
        let mut offer = Offer { id: 1, agent: 1, available: Resources::new(0.5, 64), items: vec![plain_item("gpus", 1.5)] };
        let small = TaskSpec::shell("true").cpus(0.3).mem_mib(32);
        let room = Room::of(&offer).without(&small).unwrap();
        assert_eq!(room.left, Resources::new(0.2, 32));
        assert!(room.without(&small).is_none(), "0.2 cores are left");
        assert!(room.without_executor(&Resources::new(0.1, 64)).is_none());
        let gpu = small.clone().gpus(1);
        assert!(Room::of(&offer).without(&gpu).unwrap().without(&gpu.clone().cpus(0.1)).is_none(), "half a GPU is left");
        assert!(offer.fits_task(&gpu) && !offer.fits_task(&small.clone().resource("fpga", 1.0)));
        assert!(!offer.fits_task(&small.clone().revocable()), "the offer is not");
        // What the host lists of the same, revocable.
        let (cpus, mem) = (plain_item("cpus", 0.5), plain_item("mem", 64.0));
        offer.available = Resources::new(0.0, 0);
        offer.items.extend([cpus, mem]);
        offer.items.iter_mut().for_each(|item| item.revocable = true);
        assert_eq!(offer.resources(), Resources::new(0.5, 64));
        assert!(offer.is_revocable() && offer.fits_task(&gpu.clone().revocable()) && !offer.fits_task(&gpu));
        assert!(!offer.fits(&small.resources()), "who does not know of revocable offers is not misled");
        assert!((offer.resource("gpus") - 1.5).abs() < f64::EPSILON);
        assert!(offer.resource("fpga").is_sign_positive(), "none is 0, and is written like that");
    }

    #[test]
    fn amounts_read_well() {
        assert_eq!(Resources::new(0.5, 32).describe(), "0.5 cpus, 32 MiB");
        assert_eq!(Resources::new(2.0, 1024).describe(), "2 cpus, 1024 MiB");
    }
}
