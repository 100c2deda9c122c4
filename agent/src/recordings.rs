//! Recordings of schedulers' lives: where their workers write them, and what there is of them.
//!
//! Layout: `recordings/f<framework>/e<epoch>-<life>.rec`, where the folder is a link into what its tenant's
//! workers can reach; a framework's folder belongs to the user of its
//! worker, which writes there and keeps its number of files. Invariants: a listing comes from the files
//! themselves; folders of frameworks that are gone are kept in a bounded number. This file must never
//! change a recording.

use crate::reach;
use crate::sandbox::open_beneath;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tessera_types::FrameworkId;
use tessera_wire::recording;

/// Name of the folder in the work directory.
pub const RECORDINGS_DIR: &str = "recordings";
/// Path in a question that stands for the listing; a recording is `recordings/<id>`.
pub const LISTING: &str = "recordings";
/// Folders of frameworks that are not hosted here any more: enough to look into the latest failures, and
/// a bound on what they take.
const OTHERS_KEPT: usize = 16;
/// Most bytes that are read of one recording for a listing: its limit's largest value.
const RECORDING_BYTES_MAX: u64 = 1 << 30;

/// The folders of all frameworks.
#[derive(Clone, Debug)]
pub struct Recordings {
    dir: PathBuf,
}

/// One recording as people see it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    id: String,
    epoch: u64,
    life: u64,
    bytes: u64,
    first_turn: Option<u64>,
    last_turn: Option<u64>,
    live: bool,
    stopped: bool,
}

impl Recordings {
    /// The folders below a work directory.
    #[must_use]
    pub fn new(work_dir: &Path) -> Self {
        Self {
            dir: work_dir.join(RECORDINGS_DIR),
        }
    }

    /// The folder of a framework.
    #[must_use]
    pub fn folder(&self, framework: FrameworkId) -> PathBuf {
        self.dir.join(framework.to_string())
    }

    /// Have a framework's folder for the user that its worker runs as.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn prepare(
        &self,
        framework: FrameworkId,
        owner: Option<(u32, u32)>,
    ) -> io::Result<PathBuf> {
        let folder = self.folder(framework);
        let made = fs::DirBuilder::new().mode(0o700).create(&folder);
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if let Some((uid, gid)) = owner {
            chown(&folder, Some(uid), Some(gid))?;
        }
        Ok(folder)
    }

    /// Remove the folders of frameworks that are not hosted here, except for the newest ones.
    ///
    /// # Errors
    /// When the folders cannot be listed.
    pub fn collect(&self, hosted: &BTreeSet<FrameworkId>) -> io::Result<()> {
        let mut others: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let id = entry.file_name().to_string_lossy().parse::<FrameworkId>();
            if id.is_ok_and(|id| !hosted.contains(&id)) {
                let path = entry.path();
                others.push((fs::metadata(&path)?.modified()?, path));
            }
        }
        others.sort();
        let excess = others.len().saturating_sub(OTHERS_KEPT);
        for (_, path) in &others[..excess] {
            if let Err(error) = reach::remove(path) {
                tracing::warn!(path = %path.display(), %error, "recordings could not be removed");
            }
        }
        Ok(())
    }

    /// The file of a question for `recordings/<id>`.
    #[must_use]
    pub fn file_of(path: &str) -> Option<String> {
        let id = path.strip_prefix(LISTING)?.strip_prefix('/')?;
        let name = format!("{id}.rec");
        recording::parse_file_name(&name).map(|_| name)
    }

    /// All recordings of a framework as JSON, oldest first.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn listing(&self, framework: FrameworkId) -> io::Result<Vec<u8>> {
        let folder = self.folder(framework);
        let mut found = BTreeSet::new();
        match fs::read_dir(&folder) {
            Ok(entries) => {
                for entry in entries {
                    let name = entry?.file_name();
                    found.extend(name.to_str().and_then(recording::parse_file_name));
                }
            }
            // Nothing of it was recorded here.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut entries = Vec::new();
        for (epoch, life) in found {
            match look(&folder, epoch, life) {
                Ok(entry) => entries.push(entry),
                // The worker keeps its number of files, and may have removed it just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(serde_json::to_vec(&entries)?)
    }
}

fn look(folder: &Path, epoch: u64, life: u64) -> io::Result<Entry> {
    let file = open_beneath(folder, &recording::file_name(epoch, life))?;
    let bytes = file.metadata()?.len();
    let live = is_being_written(&file);
    let summary = recording::summarize(BufReader::new(file.take(RECORDING_BYTES_MAX)))?;
    Ok(Entry {
        id: format!("e{epoch}-{life}"),
        epoch,
        life,
        bytes,
        first_turn: summary.first_turn,
        last_turn: summary.last_turn,
        live,
        stopped: summary.stopped,
    })
}

/// Whether somebody has a file open for writing: then the kernel gives no lease for reading.
#[allow(unsafe_code)]
fn is_being_written(file: &File) -> bool {
    // SAFETY: takes numbers only, and the descriptor is open.
    let lease = |kind: libc::c_int| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    if lease(libc::F_RDLCK) == 0 {
        lease(libc::F_UNLCK);
        return false;
    }
    io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use tessera_wire::recording::Sealer;
    use tessera_wire::v1::{self, recording_item::Item};

    fn items(epoch: u64, life: u64) -> Vec<Item> {
        let header = v1::RecordingHeader {
            format: recording::RECORDING_FORMAT,
            epoch,
            life,
            next_turn: 5,
            ..Default::default()
        };
        let batch = |number| {
            Item::Batch(v1::Batch {
                number,
                ..Default::default()
            })
        };
        let last = v1::RecordedState {
            last: true,
            ..Default::default()
        };
        vec![Item::Header(header), Item::State(last), batch(5), batch(6)]
    }

    fn write(folder: &Path, epoch: u64, life: u64) -> File {
        let (mut sealer, mut bytes) = (Sealer::default(), Vec::new());
        for item in items(epoch, life) {
            sealer.seal(item, &mut bytes);
        }
        let mut file = File::create(folder.join(recording::file_name(epoch, life))).unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn a_listing_says_what_there_is_and_what_is_being_written() {
        let dir = tempfile::tempdir().unwrap();
        let recordings = Recordings::new(dir.path());
        fs::create_dir(&recordings.dir).unwrap();
        let id = FrameworkId(3);
        assert_eq!(recordings.listing(id).unwrap(), b"[]");
        let folder = recordings.prepare(id, None).unwrap();
        assert_eq!(recordings.prepare(id, None).unwrap(), folder);
        drop(write(&folder, 2, 10));
        let live = write(&folder, 10, 1);
        fs::write(folder.join("other"), "").unwrap();
        let list = |recordings: &Recordings| -> serde_json::Value {
            serde_json::from_slice(&recordings.listing(id).unwrap()).unwrap()
        };
        let found = list(&recordings);
        let ids: Vec<&str> = (0..2).filter_map(|n| found[n]["id"].as_str()).collect();
        assert_eq!(ids, ["e2-10", "e10-1"], "{found}");
        assert_eq!((&found[0]["live"], &found[1]["live"]), (&false.into(), &true.into()));
        assert_eq!((&found[0]["first_turn"], &found[0]["last_turn"]), (&5.into(), &6.into()));
        drop(live);
        assert_eq!(list(&recordings)[1]["live"], false);
    }

    #[test]
    fn only_recordings_are_named() {
        for (path, file) in [
            ("recordings/e3-1", Some("e3-1.rec")),
            ("recordings", None),
            ("recordings/", None),
            ("recordings/../e3-1", None),
            ("recordings/e3-1.rec", None),
            ("recordings/x", None),
            ("scheduler.log", None),
        ] {
            assert_eq!(Recordings::file_of(path).as_deref(), file, "{path}");
        }
    }

    #[test]
    fn folders_of_frameworks_that_are_gone_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let recordings = Recordings::new(dir.path());
        fs::create_dir(&recordings.dir).unwrap();
        let hosted = BTreeSet::from([FrameworkId(1)]);
        for n in 1..=20 {
            recordings.prepare(FrameworkId(n), None).unwrap();
        }
        recordings.collect(&hosted).unwrap();
        assert_eq!(
            fs::read_dir(&recordings.dir).unwrap().count(),
            OTHERS_KEPT + 1
        );
        assert!(recordings.folder(FrameworkId(1)).exists());
    }
}
