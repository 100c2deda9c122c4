//! What workers of a tenant can reach of the work directory: one folder for each kind of worker, with a
//! folder of each framework in it.
//!
//! Layout: `tenants/<number>/tasks/f<framework>` and `tenants/<number>/recordings/f<framework>`; everybody else
//! finds them as `tasks/f<framework>` and `recordings/f<framework>`, which are links. A framework that never had
//! anything for a worker has a folder in place of the link. Invariants: a framework's folder is in the reach
//! of its tenant only; a link and what it leads to change at once or not at all, so that whoever uses a path
//! meanwhile finds what it leads to. This file must never look into a framework's folder.

use crate::recordings::RECORDINGS_DIR;
use crate::sandbox::TASKS_DIR;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, readlink, renameat2};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tessera_agent_core::WorkerKind;
use tessera_types::FrameworkId;

/// Name of the folder of all tenants in the work directory.
pub const TENANTS_DIR: &str = "tenants";

/// The folders of one kind of worker in the work directory: of a tenant, and of everybody.
const fn folder(kind: WorkerKind) -> &'static str {
    match kind {
        WorkerKind::Schedulers => RECORDINGS_DIR,
        WorkerKind::Tasks => TASKS_DIR,
    }
}

/// Mode of a framework's folder that is made here: others pass through to tasks, and nobody to recordings.
const fn mode(kind: WorkerKind) -> u32 {
    match kind {
        WorkerKind::Schedulers => 0o700,
        WorkerKind::Tasks => 0o711,
    }
}

/// The folders of tenants in one work directory.
#[derive(Debug)]
pub struct Reaches {
    work_dir: PathBuf,
    /// Held while a framework's folder gets its place.
    placing: Mutex<()>,
}

impl Reaches {
    /// Those below a work directory.
    #[must_use]
    pub fn new(work_dir: &Path) -> Self {
        Self {
            work_dir: work_dir.to_owned(),
            placing: Mutex::new(()),
        }
    }

    /// What workers of the tenant with this number can write to, from the work directory. It is made if it is
    /// not there.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn of(&self, number: u32, kind: WorkerKind) -> io::Result<PathBuf> {
        let near = near(number, kind);
        make_passage(&self.work_dir.join(&near))?;
        Ok(near)
    }

    /// Have a framework's folder within reach of its tenant's workers.
    ///
    /// # Errors
    /// Those of the disk, and when it is another tenant's.
    pub fn place(&self, framework: FrameworkId, number: u32, kind: WorkerKind) -> io::Result<()> {
        let link = self.work_dir.join(folder(kind)).join(framework.to_string());
        let near = near(number, kind).join(framework.to_string());
        // From within the folder of everybody.
        let target = Path::new("..").join(&near);
        match readlink(&link) {
            Ok(found) if Path::new(&found) == target => return Ok(()),
            Ok(found) => {
                let text = format!("{} leads to {}, and not to {}", link.display(), found.display(), target.display());
                return Err(io::Error::other(text));
            }
            Err(Errno::ENOENT | Errno::EINVAL) => {}
            Err(error) => return Err(error.into()),
        }
        let _placing = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        self.of(number, kind)?;
        let path = self.work_dir.join(&near);
        // What tasks without a worker, or an earlier version, have there comes along.
        let exchange = || {
            symlink(&target, &path)?;
            Ok(renameat2(AT_FDCWD, &link, AT_FDCWD, &path, RenameFlags::RENAME_EXCHANGE)?)
        };
        // A link that an agent which ended meanwhile had not brought to its place.
        if path.is_symlink() {
            fs::remove_file(&path)?;
        }
        match fs::symlink_metadata(&link) {
            Ok(there) if there.is_symlink() => Ok(()),
            Ok(_) => exchange(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match DirBuilder::new().mode(mode(kind)).create(&path) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
                match symlink(&target, &link) {
                    // A native task of the framework was faster.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        fs::remove_dir(&path)?;
                        exchange()
                    }
                    made => made,
                }
            }
            Err(error) => Err(error),
        }
    }
}

fn near(number: u32, kind: WorkerKind) -> PathBuf {
    Path::new(TENANTS_DIR).join(number.to_string()).join(folder(kind))
}

/// Others may pass through to what is theirs, but not look around.
fn make_passage(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o711).create(path)
}

/// The folder that a framework's folder really is.
fn target_of(path: &Path) -> Option<PathBuf> {
    Some(path.parent()?.join(fs::read_link(path).ok()?))
}

/// Remove a framework's folder, and the link that leads to it.
///
/// # Errors
/// Those of the disk.
pub fn remove(path: &Path) -> io::Result<()> {
    let Some(target) = target_of(path) else {
        // A folder of an earlier version.
        return fs::remove_dir_all(path);
    };
    // The link goes first: without it the folder is found again, while a link to nothing is in the way.
    fs::remove_file(path)?;
    fs::remove_dir_all(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use WorkerKind::{Schedulers, Tasks};

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_frameworks_folder_is_within_reach_of_its_tenant_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path();
        let reaches = Reaches::new(work);
        fs::create_dir(work.join("tasks")).unwrap();
        assert_eq!(reaches.of(3, Tasks).unwrap(), Path::new("tenants/3/tasks"));
        // What was there when the folder got its place: nothing, a folder, what an agent that ended left.
        fs::create_dir_all(work.join("tasks/f2/t/1")).unwrap();
        fs::write(work.join("tasks/f2/t/1/a"), "old").unwrap();
        fs::create_dir_all(work.join("tasks/f3/t/1")).unwrap();
        fs::write(work.join("tasks/f3/t/1/a"), "old").unwrap();
        symlink("../tenants/3/tasks/f3", work.join("tenants/3/tasks/f3")).unwrap();
        fs::create_dir(work.join("tenants/3/tasks/f4")).unwrap();
        for id in 1..=4 {
            for _ in 0..2 {
                reaches.place(FrameworkId(id), 3, Tasks).unwrap();
            }
            let link = work.join(format!("tasks/f{id}"));
            assert!(link.is_symlink() && link.is_dir(), "f{id}");
            let real = work.join(format!("tenants/3/tasks/f{id}"));
            assert!(!real.is_symlink() && real.is_dir(), "f{id}");
        }
        for id in 2..=3 {
            assert_eq!(text(&work.join(format!("tasks/f{id}/t/1/a"))), "old");
            assert_eq!(text(&work.join(format!("tenants/3/tasks/f{id}/t/1/a"))), "old");
        }
        let other = reaches.place(FrameworkId(1), 4, Tasks).unwrap_err();
        assert!(other.to_string().contains("tenants/3"), "{other}");
    }

    #[test]
    fn a_folder_is_removed_with_its_link_and_nothing_that_others_put_in_its_place_is() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path();
        let reaches = Reaches::new(work);
        fs::create_dir_all(work.join("recordings/f2")).unwrap();
        reaches.place(FrameworkId(1), 0, Schedulers).unwrap();
        let (link, real) = (work.join("recordings/f1"), work.join("tenants/0/recordings/f1"));
        fs::write(real.join("e1-1.rec"), "").unwrap();
        remove(&link).unwrap();
        assert!(!link.is_symlink() && !real.exists());
        remove(&work.join("recordings/f2")).unwrap();
        assert!(!work.join("recordings/f2").exists());
        // A worker with the agent's own user could have put a link in place of the folder.
        reaches.place(FrameworkId(1), 0, Schedulers).unwrap();
        fs::create_dir(work.join("dear")).unwrap();
        fs::remove_dir(&real).unwrap();
        symlink(work.join("dear"), &real).unwrap();
        assert!(remove(&link).is_err() || !real.exists());
        assert!(work.join("dear").exists());
    }
}
