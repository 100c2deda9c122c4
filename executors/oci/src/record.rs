//! What agent and shim say to each other through files of a task's state directory, and how those
//! files are written: a reader sees a whole record or none.
//!
//! The state directory belongs to the agent's user and is not writable for the task:
//! `spec.json` (agent), `shim.json` (shim, the claim on the launch), `exit.json` (shim, at the end).
//! This file must never hold anything that depends on a live process.

use crate::group::GroupFiles;
use crate::process::Identity;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The agent's order.
pub const SPEC_FILE: &str = "spec.json";
/// The shim's claim on the launch.
pub const SHIM_FILE: &str = "shim.json";
/// How the task ended.
pub const EXIT_FILE: &str = "exit.json";
/// Most bytes of one record: a spec's command, environment and arguments stay well below.
const RECORD_BYTES_MAX: u64 = 8 << 20;

/// Bytes of an output file before it is rotated.
pub const LOG_BYTES_MAX: u64 = 10 << 20;
/// Rotated output files that are kept beside the current one.
pub const LOG_FILES_KEPT: u32 = 2;

/// What the shim is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimSpec {
    /// Program and arguments; the program is looked up in the environment's PATH.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory; output files are made in it.
    pub sandbox: PathBuf,
    /// Whom to run as; the shim's own user when absent.
    pub user: Option<crate::user::TaskUser>,
    /// The task's group.
    pub group: GroupFiles,
    /// Writable memory that each of the task's processes may have for itself, where there is no group to
    /// limit them together.
    #[serde(default)]
    pub data_bytes: Option<u64>,
    /// Where the shim itself goes, out of the agent's own group.
    pub shim_group: Vec<PathBuf>,
    /// Bytes of an output file before it is rotated.
    pub log_bytes_max: u64,
    /// Rotated output files that are kept.
    pub log_files_kept: u32,
}

/// The claim: whoever creates this file runs the task, everybody else gives way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// The shim; `None` when the agent claimed the launch in order to cancel it.
    pub shim: Option<Identity>,
}

/// What the shim writes to its standard output, once, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartReport {
    /// The program runs.
    Running {
        /// The program's process.
        pid: i32,
        /// Time from the shim's first instruction until the program was executed.
        exec_us: u64,
    },
    /// The program could not be executed; an exit record says the same.
    Failed {
        /// What was attempted and what the system said.
        message: String,
    },
    /// Another shim has this launch, or the agent cancelled it.
    Taken,
}

/// How a task ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code, when the program exited by itself.
    pub code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// Why it was never executed.
    pub failure: Option<String>,
    /// Whether the kernel killed something of the task for using too much memory.
    pub oom: bool,
    /// CPU time in user mode of the whole tree.
    pub user_us: u64,
    /// CPU time in the kernel of the whole tree.
    pub system_us: u64,
    /// Largest resident size of any process of the task.
    pub max_rss_kib: u64,
    /// When the shim began, since the Unix epoch.
    pub began_ms: u64,
    /// When the program ended, since the Unix epoch.
    pub ended_ms: u64,
    /// Bytes of output that could not be written.
    pub dropped_bytes: u64,
    /// Time from the shim's first instruction until the program was executed.
    #[serde(default)]
    pub exec_us: u64,
}

/// Read a record; `None` when it is not there.
///
/// # Errors
/// When it cannot be read, is too large or is not a record.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Most records are read in one step.
    let mut bytes = Vec::with_capacity(4_096);
    file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: {error}", path.display()),
        )
    })
}

fn write_temporary<T: Serialize>(
    directory: &Path,
    name: &str,
    record: &T,
    sync: bool,
) -> io::Result<PathBuf> {
    let path = directory.join(format!(".{name}.{}", std::process::id()));
    let bytes = serde_json::to_vec(record)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(&bytes)?;
    if sync {
        file.sync_all()?;
    }
    Ok(path)
}

/// Write a record, replacing an older one. With `sync` it survives a power cut.
///
/// # Errors
/// When the directory is gone or full.
pub fn write<T: Serialize>(directory: &Path, name: &str, record: &T, sync: bool) -> io::Result<()> {
    let temporary = write_temporary(directory, name, record, sync)?;
    fs::rename(&temporary, directory.join(name))?;
    if sync {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Claim a launch: create the shim's record unless somebody else has. Not synced, because a claim
/// means nothing after a power cut.
///
/// # Errors
/// When the directory is gone or full.
pub fn claim(directory: &Path, record: &ShimRecord) -> io::Result<bool> {
    let temporary = write_temporary(directory, SHIM_FILE, record, false)?;
    let linked = fs::hard_link(&temporary, directory.join(SHIM_FILE));
    fs::remove_file(&temporary)?;
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_is_claimed_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SHIM_FILE);
        assert_eq!(read::<ShimRecord>(&path).unwrap(), None);
        assert!(claim(directory.path(), &ShimRecord { shim: None }).unwrap());
        let other = ShimRecord {
            shim: Some(Identity {
                boot: "b".into(),
                pid: 1,
                start_ticks: 2,
            }),
        };
        assert!(!claim(directory.path(), &other).unwrap());
        assert_eq!(read(&path).unwrap(), Some(ShimRecord { shim: None }));
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn records_round_trip_and_damage_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let record = ExitRecord {
            code: Some(3),
            ended_ms: 7,
            ..ExitRecord::default()
        };
        write(directory.path(), EXIT_FILE, &record, true).unwrap();
        let path = directory.path().join(EXIT_FILE);
        assert_eq!(read(&path).unwrap(), Some(record));
        fs::write(&path, b"{").unwrap();
        assert!(read::<ExitRecord>(&path).is_err());
    }
}
