//! Component bytes on this agent: content-addressed files, fetched from the master.
//!
//! Invariants: a file under its digest's name is complete and has that digest; bytes that do not match
//! are never given a name. Nothing here looks inside a component.

use crate::caches::GONE_PREFIX;
use sha2::{Digest as _, Sha256};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use tessera_types::{Digest, LimitName};
use tessera_wire::v1;
use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt;
use tokio_stream::{Stream, StreamExt};

/// Name of the folder of components in the work directory.
pub const COMPONENTS_DIR: &str = "components";

/// Most bytes of a component that any operator can allow; the master holds what this one does.
const COMPONENT_BYTES_MAX: u64 = LimitName::ComponentBytes.row().max;

/// Why a component could not be had. All of these may pass; the agent tries again.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The master did not send it.
    #[error("fetching component {digest}: {status}")]
    Master {
        /// Which.
        digest: Digest,
        /// What the master said.
        status: Box<tonic::Status>,
    },
    /// What came is something else.
    #[error("fetching component {digest}: what came has the digest {found}")]
    Damaged {
        /// What was asked for.
        digest: Digest,
        /// What came.
        found: Digest,
    },
    /// More came than a component may have.
    #[error("fetching component {0}: more than {COMPONENT_BYTES_MAX} bytes came")]
    TooLarge(Digest),
    /// The disk refused.
    #[error("storing component {digest}")]
    Disk {
        /// Which.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
}

/// The digest of a file; blocks.
///
/// # Errors
/// When it cannot be read.
pub fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    io::copy(&mut std::fs::File::open(path)?, &mut hash)?;
    Ok(Digest(hash.finalize().into()))
}

/// The folder of components.
#[derive(Debug)]
pub struct Components {
    dir: PathBuf,
    fetches: AtomicU64,
}

impl Components {
    /// Open or make the folder; fetches and removals that a crash cut off are finished by removing them.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn open(work_dir: &Path) -> io::Result<Self> {
        let dir = work_dir.join(COMPONENTS_DIR);
        std::fs::create_dir_all(&dir)?;
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("fetch-") || name.starts_with(GONE_PREFIX) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self {
            dir,
            fetches: AtomicU64::new(0),
        })
    }

    /// Where a component is, if it is here.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.path(digest);
        path.is_file().then_some(path)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("sha256-{}.wasm", digest.hex()))
    }

    /// Keep the chunks of a component that the master sends.
    ///
    /// # Errors
    /// When they do not arrive, are not what was asked for, or cannot be stored.
    pub async fn keep(
        &self,
        digest: Digest,
        chunks: impl Stream<Item = Result<v1::Chunk, tonic::Status>>,
    ) -> Result<PathBuf, FetchError> {
        let number = self.fetches.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(format!("fetch-{number}"));
        let kept = self.keep_as(digest, &temporary, chunks).await;
        if kept.is_err() {
            // What is left would be removed at the next start anyway.
            let _ = fs::remove_file(&temporary).await;
        }
        kept
    }

    async fn keep_as(
        &self,
        digest: Digest,
        temporary: &Path,
        chunks: impl Stream<Item = Result<v1::Chunk, tonic::Status>>,
    ) -> Result<PathBuf, FetchError> {
        let disk = |source| FetchError::Disk { digest, source };
        let mut file = File::create(temporary).await.map_err(disk)?;
        let mut hash = Sha256::new();
        let mut size = 0;
        let mut chunks = std::pin::pin!(chunks);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|status| FetchError::Master {
                digest,
                status: Box::new(status),
            })?;
            size += chunk.data.len() as u64;
            if size > COMPONENT_BYTES_MAX {
                return Err(FetchError::TooLarge(digest));
            }
            hash.update(&chunk.data);
            file.write_all(&chunk.data).await.map_err(disk)?;
        }
        let found = Digest(hash.finalize().into());
        if found != digest {
            return Err(FetchError::Damaged { digest, found });
        }
        file.sync_all().await.map_err(disk)?;
        let path = self.path(&digest);
        fs::rename(temporary, &path).await.map_err(disk)?;
        let dir = File::open(&self.dir).await.map_err(disk)?;
        dir.sync_all().await.map_err(disk)?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(parts: &[&[u8]]) -> impl Stream<Item = Result<v1::Chunk, tonic::Status>> {
        let parts: Vec<_> = parts
            .iter()
            .map(|data| {
                Ok(v1::Chunk {
                    data: data.to_vec(),
                })
            })
            .collect();
        tokio_stream::iter(parts)
    }

    #[tokio::test]
    async fn only_what_matches_its_digest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let components = Components::open(dir.path()).unwrap();
        let digest = Digest::of(b"abc");
        assert_eq!(components.get(&digest), None);
        let damaged = components.keep(digest, chunks(&[b"ab", b"d"])).await;
        assert!(matches!(damaged, Err(FetchError::Damaged { .. })));
        let broken = tokio_stream::iter([Err(tonic::Status::unavailable("gone"))]);
        assert!(matches!(
            components.keep(digest, broken).await,
            Err(FetchError::Master { .. })
        ));
        assert_eq!(
            std::fs::read_dir(dir.path().join("components"))
                .unwrap()
                .count(),
            0
        );
        let path = components
            .keep(digest, chunks(&[b"ab", b"c"]))
            .await
            .unwrap();
        assert_eq!(components.get(&digest), Some(path.clone()));
        assert_eq!(std::fs::read(path).unwrap(), b"abc");
    }
}
