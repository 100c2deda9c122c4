//! The cluster version: it only rises, and a build that does not understand it stops.

use super::*;
use crate::{CLUSTER_VERSION, Config, Core, LoadError};

/// Applies one change of the version; whether this build goes on, and what the rows say then.
fn set(core: &mut Core, rows: &mut MemRows, index: u64, version: u32) -> Result<u32, ApplyError> {
    let command = v1::Command {
        command: Some(C::SetClusterVersion(v1::SetClusterVersion { version })),
        ..v1::Command::default()
    };
    let entry = v1::CommandBatch { version: BATCH_VERSION, time_ms: 1, commands: vec![command] };
    let applied = core.apply(index, 1, &entry.encode_to_vec(), rows)?;
    rows.write(applied.rows);
    Ok(core.cluster_version())
}

#[test]
fn a_version_only_rises_and_stops_builds_that_do_not_understand_it() {
    let next = CLUSTER_VERSION + 1;
    let newer = Config { understands: next, ..Config::default() };
    let mut rows = MemRows::default();
    let mut core = Core::load(&rows, newer.clone()).unwrap();
    assert_eq!(core.cluster_version(), 0);
    for (index, (version, then)) in [(1, 1), (next, next), (1, next), (next, next)].into_iter().enumerate() {
        assert_eq!(set(&mut core, &mut rows, index as u64 + 1, version).unwrap(), then);
    }
    assert!(Core::load(&rows, newer).is_ok());
    // The build before it: neither from the rows nor by the entry.
    let refused = |error: &LoadError| {
        matches!(error, LoadError::NewerCluster { found, understands: CLUSTER_VERSION } if *found == next)
    };
    assert!(refused(&Core::load(&rows, Config::default()).unwrap_err()));
    let mut rows = MemRows::default();
    let mut core = Core::load(&rows, Config::default()).unwrap();
    assert_eq!(set(&mut core, &mut rows, 1, 1).unwrap(), 1);
    let error = set(&mut core, &mut rows, 2, next).unwrap_err();
    assert!(matches!(&error, ApplyError::Row(error) if refused(error)), "{error}");
}
