//! Component bytes: content-addressed files in the master's data directory.
//!
//! Invariants: a file under its digest's name is complete and has that digest: it is written under
//! another name, synced, and renamed. Nothing here looks inside: that is done by `tessera-worker
//! inspect` in a process of its own.

use sha2::{Digest as _, Sha256};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use tessera_types::{Digest, limits::COMPONENT_BYTES_MAX};
use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt;

/// The folder of components.
#[derive(Debug)]
pub struct ComponentStore {
    dir: PathBuf,
    uploads: AtomicU64,
}

/// Why bytes were not stored.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// Longer than allowed.
    #[error("a component has at most {COMPONENT_BYTES_MAX} bytes")]
    TooLarge,
    /// Nothing was sent.
    #[error("the body is empty; send the bytes of a component")]
    Empty,
    /// Not the digest that the caller named.
    #[error("the bytes have the digest {found}, not {named}")]
    WrongDigest {
        /// What the caller named.
        named: Digest,
        /// What was found.
        found: Digest,
    },
    /// The disk refused.
    #[error("storing the component")]
    Io(#[from] io::Error),
}

/// Bytes that arrived and are on disk, but under no digest's name yet. Removed when dropped.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    /// Digest of the bytes.
    pub digest: Digest,
    /// How many.
    pub size: u64,
}

impl Staged {
    /// Where the bytes are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Already renamed away, or to be removed: either way nothing is left behind.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Takes bytes piece by piece.
#[derive(Debug)]
pub struct Upload {
    file: File,
    staged: Staged,
    hash: Sha256,
}

impl ComponentStore {
    /// Open or make the folder; uploads that were cut off by a crash are removed.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let dir = data_dir.join("components");
        std::fs::create_dir_all(&dir)?;
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("upload-") {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self {
            dir,
            uploads: AtomicU64::new(0),
        })
    }

    /// Where the bytes of a digest are, or would be.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("sha256-{}.wasm", digest.hex()))
    }

    /// Begin an upload.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn begin(&self) -> Result<Upload, UploadError> {
        let number = self.uploads.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("upload-{number}"));
        let file = File::create(&path).await?;
        let staged = Staged {
            path,
            digest: Digest([0; 32]),
            size: 0,
        };
        Ok(Upload {
            file,
            staged,
            hash: Sha256::new(),
        })
    }

    /// Give staged bytes their name.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn keep(&self, staged: Staged) -> Result<(), UploadError> {
        fs::rename(&staged.path, self.path(&staged.digest)).await?;
        File::open(&self.dir).await?.sync_all().await?;
        Ok(())
    }
}

impl Upload {
    /// Take a piece.
    ///
    /// # Errors
    /// When the whole becomes too long, or the disk refuses.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), UploadError> {
        self.staged.size += piece.len() as u64;
        if self.staged.size > COMPONENT_BYTES_MAX {
            return Err(UploadError::TooLarge);
        }
        self.hash.update(piece);
        self.file.write_all(piece).await?;
        Ok(())
    }

    /// All pieces have arrived.
    ///
    /// # Errors
    /// When there were none, the digest is not the one named, or the disk refuses.
    pub async fn finish(mut self, named: Option<Digest>) -> Result<Staged, UploadError> {
        if self.staged.size == 0 {
            return Err(UploadError::Empty);
        }
        self.file.sync_all().await?;
        self.staged.digest = Digest(self.hash.finalize().into());
        let found = self.staged.digest;
        match named {
            Some(named) if named != found => Err(UploadError::WrongDigest { named, found }),
            _ => Ok(self.staged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_found_by_digest_and_failures_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = ComponentStore::open(dir.path()).unwrap();
        let mut upload = store.begin().await.unwrap();
        upload.write(b"ab").await.unwrap();
        upload.write(b"c").await.unwrap();
        let staged = upload.finish(Some(Digest::of(b"abc"))).await.unwrap();
        store.keep(staged).await.unwrap();
        assert_eq!(
            std::fs::read(store.path(&Digest::of(b"abc"))).unwrap(),
            b"abc"
        );

        let mut upload = store.begin().await.unwrap();
        upload.write(b"x").await.unwrap();
        let error = upload.finish(Some(Digest::of(b"y"))).await.unwrap_err();
        assert!(matches!(error, UploadError::WrongDigest { .. }));
        let empty = store.begin().await.unwrap().finish(None).await.unwrap_err();
        assert!(matches!(empty, UploadError::Empty));
        let mut large = store.begin().await.unwrap();
        let piece = vec![0; usize::try_from(COMPONENT_BYTES_MAX).unwrap()];
        large.write(&piece).await.unwrap();
        assert!(matches!(
            large.write(b"1").await,
            Err(UploadError::TooLarge)
        ));
        drop(large);
        assert_eq!(
            std::fs::read_dir(dir.path().join("components"))
                .unwrap()
                .count(),
            1
        );
    }
}
