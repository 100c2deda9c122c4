//! What the system says of this process, under the names that Prometheus's own clients use.
//!
//! Invariants: what cannot be read is left out. Must never be called where work is done.

use crate::{BUILD, Name, Page, Value};
use std::time::Instant;

/// Ticks of CPU time in a second: fixed by Linux's interface to programs.
const TICKS_PER_SECOND: u64 = 100;
/// Bytes of a page of memory as `/proc` counts them, on the machines that there are packages for.
const PAGE_BYTES: u64 = 4_096;

/// This process.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    started: Instant,
}

impl Process {
    /// One that starts now.
    #[must_use]
    pub fn started() -> Self {
        Self { started: Instant::now() }
    }

    /// Writes what is known of it.
    pub fn write(&self, page: &mut Page) {
        page.whole(Name::BuildInfo, &[BUILD.version, BUILD.commit, BUILD.rustc], 1);
        let uptime = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        page.set(Name::Uptime, &[], Value::Micro(uptime));
        if let Some(ticks) = cpu_ticks() {
            page.set(Name::ProcessCpu, &[], Value::Micro(ticks.saturating_mul(1_000_000 / TICKS_PER_SECOND)));
        }
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        if let Some(pages) = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()) {
            page.whole(Name::ProcessMemory, &[], pages.saturating_mul(PAGE_BYTES));
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            page.whole(Name::ProcessFds, &[], open.count() as u64);
        }
    }
}

fn cpu_ticks() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name may hold blanks; what follows it does not.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user.saturating_add(system))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Who;

    #[test]
    fn this_process_has_memory_descriptors_and_time() {
        let mut page = Page::new(Who::Agent);
        Process::started().write(&mut page);
        let families = crate::parse(&page.finish()).unwrap();
        for name in [Name::BuildInfo, Name::Uptime, Name::ProcessCpu, Name::ProcessMemory, Name::ProcessFds] {
            let family = families.iter().find(|family| family.name == name.row().name).unwrap();
            assert_eq!(family.samples.len(), 1, "{}", family.name);
        }
    }
}
