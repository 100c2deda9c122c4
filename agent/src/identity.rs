//! Who this agent is: the lock on its work directory, and `agent.json`.
//!
//! Invariants: one agent per work directory; the agent's number and cluster are on disk before anything
//! is done in their name; the key is made once per directory. This file must never talk to a master.

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tessera_oci::record;

/// Name of the lock.
const LOCK_FILE: &str = "LOCK";
/// Name of the record.
const IDENTITY_FILE: &str = "agent.json";
/// Version of the record.
const IDENTITY_VERSION: u32 = 1;
/// Folders that tasks have no business in: specs with their environments, components, logs, sockets. Only
/// `tasks/` is passed through by them.
const PRIVATE_FOLDERS: [&str; 5] = ["checkpoint", "components", "frameworks", "images", "run"];
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
    /// Random, made once per directory.
    pub key: String,
}

/// Why a work directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another agent has it.
    #[error("another agent runs in {0}; each needs a work directory of its own")]
    Locked(PathBuf),
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
        make_private(path).map_err(io("making private folders"))?;
        let found: Option<Identity> =
            record::read(&path.join(IDENTITY_FILE)).map_err(io("reading the identity"))?;
        let identity = match found {
            Some(newer) if newer.version > IDENTITY_VERSION => {
                return Err(IdentityError::Newer {
                    path: path.to_owned(),
                    found: newer.version,
                });
            }
            Some(identity) => identity,
            None => {
                let key = random_key().map_err(io("making a key"))?;
                let identity = Identity {
                    version: IDENTITY_VERSION,
                    agent: 0,
                    cluster: String::new(),
                    key,
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
        let identity = Identity {
            agent,
            cluster: cluster.to_owned(),
            ..self.identity.clone()
        };
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

/// Make the private folders, and close those that an earlier version left open to others.
fn make_private(work_dir: &Path) -> io::Result<()> {
    for name in PRIVATE_FOLDERS {
        let path = work_dir.join(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
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
        assert_eq!(
            again.identity(),
            &Identity {
                version: 1,
                agent: 7,
                cluster: "c".into(),
                key
            }
        );
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
        let _work_dir = WorkDir::open(dir.path()).unwrap();
        for name in PRIVATE_FOLDERS {
            let mode = dir
                .path()
                .join(name)
                .metadata()
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o700, "{name}");
        }
    }

    #[test]
    fn a_newer_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let newer = Identity {
            version: 2,
            agent: 1,
            cluster: "c".into(),
            key: "k".into(),
        };
        record::write(dir.path(), IDENTITY_FILE, &newer, false).unwrap();
        assert!(matches!(
            WorkDir::open(dir.path()),
            Err(IdentityError::Newer { found: 2, .. })
        ));
    }
}
