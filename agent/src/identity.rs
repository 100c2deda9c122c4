//! Who this agent is: the lock on its work directory, and `agent.json`.
//!
//! Invariants: one agent per work directory; the agent's number and cluster are on disk before anything
//! is done in their name; the key is made once per directory. This file must never talk to a master.

use crate::images::IMAGES_DIR;
use crate::reach::TENANTS_DIR;
use crate::recordings::RECORDINGS_DIR;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tessera_oci::record;

/// Name of the lock.
const LOCK_FILE: &str = "LOCK";
/// Name of the record.
const IDENTITY_FILE: &str = "agent.json";
/// Version of the record.
const IDENTITY_VERSION: u32 = 1;
/// Folders that tasks have no business in: specs with their environments, components, logs, sockets.
const PRIVATE_FOLDERS: [&str; 4] = ["checkpoint", "components", "frameworks", "run"];
/// Folders that workers pass through to what they know the name of. So do tasks through `tasks/`.
const PASSAGE_FOLDERS: [&str; 3] = [IMAGES_DIR, RECORDINGS_DIR, TENANTS_DIR];
/// Random bytes of a key: enough that two directories never have the same.
const KEY_BYTES: usize = 16;

/// What is kept of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    version: u32,
    /// Assigned by the masters; 0 before the first registration.
    pub agent: u64,
    /// Empty before the first registration.
    pub cluster: String,
    /// Random, made once per directory, and anew when the agent was declared gone.
    pub key: String,
    /// The key under which the control groups were made; empty when it is `key`.
    #[serde(default)]
    groups: String,
    /// Boot id and inode of the directory when it was last used: within one boot, another inode is another
    /// directory. Empty when it was written by an earlier version.
    #[serde(default)]
    place: String,
}

impl Identity {
    /// Names the agent's control groups, for as long as there is the directory.
    #[must_use]
    pub fn groups(&self) -> &str {
        if self.groups.is_empty() {
            &self.key
        } else {
            &self.groups
        }
    }
}

/// Why a work directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another agent has it.
    #[error("another agent runs in {0}; each needs a work directory of its own")]
    Locked(PathBuf),
    /// It is not the directory that it was.
    #[error(
        "{path} is a copy of an agent's work directory, and two agents must not be one; use an empty directory, \
         or, if the other one is gone for good, delete \"place\" from {IDENTITY_FILE}",
        path = .0.display()
    )]
    Copied(PathBuf),
    /// The disk refused.
    #[error("{what} in {path}", path = path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The work directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Written by a newer agent.
    #[error("{path} is of version {found}; this agent reads up to {IDENTITY_VERSION}", path = path.display())]
    Newer {
        /// The work directory.
        path: PathBuf,
        /// Version found.
        found: u32,
    },
}

/// A work directory that is this agent's.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
    identity: Identity,
    _lock: Flock<File>,
}

impl WorkDir {
    /// Lock a work directory, and read or make its identity.
    ///
    /// # Errors
    /// When another agent has it or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        let io = |what| {
            move |source| IdentityError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK_FILE))
            .map_err(io("opening the lock"))?;
        let lock =
            Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(
                |(_, error)| match error {
                    nix::Error::EWOULDBLOCK => IdentityError::Locked(path.to_owned()),
                    other => io("locking")(other.into()),
                },
            )?;
        make_folders(path).map_err(io("making folders"))?;
        let found: Option<Identity> =
            record::read(&path.join(IDENTITY_FILE)).map_err(io("reading the identity"))?;
        let place = place(path).map_err(io("finding out where it is"))?;
        let identity = match found {
            Some(newer) if newer.version > IDENTITY_VERSION => {
                return Err(IdentityError::Newer {
                    path: path.to_owned(),
                    found: newer.version,
                });
            }
            Some(copied) if is_copy(&copied.place, &place) => {
                return Err(IdentityError::Copied(path.to_owned()));
            }
            Some(identity) if identity.place == place => identity,
            Some(identity) => {
                let identity = Identity { place, ..identity };
                record::write(path, IDENTITY_FILE, &identity, true)
                    .map_err(io("writing the identity"))?;
                identity
            }
            None => {
                let key = random_key().map_err(io("making a key"))?;
                let identity = Identity {
                    version: IDENTITY_VERSION,
                    agent: 0,
                    cluster: String::new(),
                    key,
                    groups: String::new(),
                    place,
                };
                record::write(path, IDENTITY_FILE, &identity, true)
                    .map_err(io("writing the identity"))?;
                identity
            }
        };
        Ok(Self {
            path: path.to_owned(),
            identity,
            _lock: lock,
        })
    }

    /// Who the agent is.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Keep what the masters assigned.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn assign(&mut self, agent: u64, cluster: &str) -> Result<(), IdentityError> {
        if self.identity.agent == agent && self.identity.cluster == cluster {
            return Ok(());
        }
        self.keep(Identity {
            agent,
            cluster: cluster.to_owned(),
            ..self.identity.clone()
        })
    }

    /// Become another agent, because this one was declared gone. Nothing of it may run any more.
    ///
    /// # Errors
    /// When the disk refuses, or has no randomness.
    pub fn renew(&mut self) -> Result<(), IdentityError> {
        let key = random_key().map_err(|source| IdentityError::Io {
            what: "making a key",
            path: self.path.clone(),
            source,
        })?;
        self.keep(Identity {
            agent: 0,
            key,
            groups: self.identity.groups().to_owned(),
            ..self.identity.clone()
        })
    }

    fn keep(&mut self, identity: Identity) -> Result<(), IdentityError> {
        record::write(&self.path, IDENTITY_FILE, &identity, true).map_err(|source| {
            IdentityError::Io {
                what: "writing the identity",
                path: self.path.clone(),
                source,
            }
        })?;
        self.identity = identity;
        Ok(())
    }
}

/// Where a directory is: `<boot id>:<inode>`.
fn place(work_dir: &Path) -> io::Result<String> {
    let inode = fs::metadata(work_dir)?.ino();
    Ok(format!("{}:{inode}", tessera_oci::process::boot_id()?))
}

/// Whether a directory that was last used in one place is now a copy in another. Inodes may change with a
/// boot, so that nothing is said across one.
fn is_copy(last: &str, now: &str) -> bool {
    let boot = |place: &str| place.split_once(':').map(|(boot, _)| boot.to_owned());
    last != now && boot(last) == boot(now)
}

/// Make the folders, and close those that an earlier version left open to others. What is in the work
/// directory itself cannot be listed by others, but passed through, as workers have other users.
fn make_folders(work_dir: &Path) -> io::Result<()> {
    let private = PRIVATE_FOLDERS.iter().map(|name| (name, 0o700));
    let passages = PASSAGE_FOLDERS.iter().map(|name| (name, 0o711));
    for (name, mode) in private.chain(passages) {
        let path = work_dir.join(name);
        DirBuilder::new().recursive(true).mode(mode).create(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    let mode = fs::metadata(work_dir)?.permissions().mode();
    if nix::unistd::Uid::effective().is_root() && mode & 0o001 == 0 {
        fs::set_permissions(work_dir, fs::Permissions::from_mode(mode & 0o7777 | 0o001))?;
    }
    Ok(())
}

fn random_key() -> io::Result<String> {
    let mut bytes = [0; KEY_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_stays_and_a_second_agent_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = WorkDir::open(dir.path()).unwrap();
        assert!(matches!(
            WorkDir::open(dir.path()),
            Err(IdentityError::Locked(_))
        ));
        let key = first.identity().key.clone();
        first.assign(7, "c").unwrap();
        drop(first);
        let again = WorkDir::open(dir.path()).unwrap();
        let place = place(dir.path()).unwrap();
        assert_eq!(
            again.identity(),
            &Identity {
                version: 1,
                agent: 7,
                cluster: "c".into(),
                key,
                groups: String::new(),
                place,
            }
        );
    }

    #[test]
    fn an_agent_that_was_declared_gone_becomes_another_one_in_the_same_groups() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = WorkDir::open(dir.path()).unwrap();
        first.assign(7, "c").unwrap();
        let key = first.identity().key.clone();
        for _ in 0..2 {
            first.renew().unwrap();
            assert_ne!(first.identity().key, key);
            assert_eq!(first.identity().groups(), key);
            assert_eq!((first.identity().agent, first.identity().cluster.as_str()), (0, "c"));
        }
        let identity = first.identity().clone();
        drop(first);
        assert_eq!(WorkDir::open(dir.path()).unwrap().identity(), &identity);
    }

    #[test]
    fn folders_that_are_not_for_tasks_are_closed_to_them() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("checkpoint")).unwrap();
        fs::set_permissions(
            dir.path().join("checkpoint"),
            fs::Permissions::from_mode(0o755),
        )
        .unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let _work_dir = WorkDir::open(dir.path()).unwrap();
        let mode = |name: &str| dir.path().join(name).metadata().unwrap().permissions().mode();
        for name in PRIVATE_FOLDERS {
            assert_eq!(mode(name) & 0o777, 0o700, "{name}");
        }
        for name in PASSAGE_FOLDERS {
            assert_eq!(mode(name) & 0o777, 0o711, "{name}");
        }
        if nix::unistd::Uid::effective().is_root() {
            assert_eq!(mode("") & 0o777, 0o701);
        }
    }

    #[test]
    fn a_copy_is_refused_and_a_directory_of_another_boot_is_not() {
        let original = tempfile::tempdir().unwrap();
        drop(WorkDir::open(original.path()).unwrap());
        let copy = tempfile::tempdir().unwrap();
        let record = |dir: &Path| dir.join(IDENTITY_FILE);
        fs::copy(record(original.path()), record(copy.path())).unwrap();
        assert!(matches!(
            WorkDir::open(copy.path()),
            Err(IdentityError::Copied(_))
        ));
        let text = fs::read_to_string(record(copy.path())).unwrap();
        let boot = tessera_oci::process::boot_id().unwrap();
        fs::write(record(copy.path()), text.replace(&boot, "earlier")).unwrap();
        let again = WorkDir::open(copy.path()).unwrap();
        assert!(again.identity().place.starts_with(&boot));
    }

    #[test]
    fn a_newer_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let newer = Identity {
            version: 2,
            agent: 1,
            cluster: "c".into(),
            key: "k".into(),
            groups: String::new(),
            place: String::new(),
        };
        record::write(dir.path(), IDENTITY_FILE, &newer, false).unwrap();
        assert!(matches!(
            WorkDir::open(dir.path()),
            Err(IdentityError::Newer { found: 2, .. })
        ));
    }
}
