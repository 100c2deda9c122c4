//! Amounts of resources, offers of them, and how tasks are fitted into offers.
//!
//! Owns the packing used by [`Turn::place`](crate::Turn::place). All of it is integer arithmetic
//! without calls to the host, so it can be tested anywhere.

pub use crate::bindings::tessera::framework::types::{Offer, Quantities as Resources};

/// Thousandths of a core in one core.
const MILLI: f64 = 1000.0;

/// Turn cores into thousandths of a core, rounded; what is no positive number is 0.
pub(crate) fn milli_from_cores(cores: f64) -> u64 {
    // A float to integer cast saturates and maps NaN to 0.
    (cores * MILLI).round() as u64
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
    /// Whether a task of this size fits into the offer.
    pub fn fits(&self, wanted: &Resources) -> bool {
        self.available.contains(wanted)
    }
}

/// Take `wanted` from the first of `free` that holds it, and say which that was.
pub fn take_first_fit(free: &mut [Resources], wanted: &Resources) -> Option<usize> {
    for (index, left) in free.iter_mut().enumerate() {
        if let Some(rest) = left.minus(wanted) {
            *left = rest;
            return Some(index);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Resources, milli_from_cores, take_first_fit};

    #[test]
    fn cores_become_milli_cores_without_surprises() {
        assert_eq!(milli_from_cores(0.1), 100);
        assert_eq!(milli_from_cores(0.0005), 1);
        assert_eq!(milli_from_cores(-3.0), 0);
        assert_eq!(milli_from_cores(f64::NAN), 0);
    }

    #[test]
    fn first_fit_takes_and_never_goes_below_zero() {
        let mut free = [Resources::new(0.5, 64), Resources::new(4.0, 4096)];
        let wanted = Resources::new(0.3, 32);
        assert_eq!(take_first_fit(&mut free, &wanted), Some(0));
        assert_eq!(
            take_first_fit(&mut free, &wanted),
            Some(1),
            "0.2 cores are left in the first"
        );
        assert_eq!(free[0], Resources::new(0.2, 32));
        assert_eq!(take_first_fit(&mut free, &Resources::new(0.1, 8192)), None);
        assert_eq!(free[1], Resources::new(3.7, 4064));
    }

    #[test]
    fn amounts_read_well() {
        assert_eq!(Resources::new(0.5, 32).describe(), "0.5 cpus, 32 MiB");
        assert_eq!(Resources::new(2.0, 1024).describe(), "2 cpus, 1024 MiB");
    }
}
