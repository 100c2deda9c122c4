//! Component bytes: content-addressed files in the master's data directory.
//!
//! Invariants: a file under its digest's name is complete and has that digest: it is written under
//! another name, synced, and renamed. Nothing here looks inside: that is done by `tessera-worker
//! inspect` in a process of its own.

use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tessera_types::Digest;
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes read at once of what the judge wrote.
const PIECE_BYTES: usize = 64 << 10;

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
    #[error("limit component-bytes: at most {most}")]
    TooLarge {
        /// What is allowed.
        most: u64,
    },
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

/// A file that another process may write. Removed when dropped.
#[derive(Debug)]
pub struct Beside {
    path: PathBuf,
}

impl Beside {
    /// Where it is to be written.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It was taken, or never written: either way nothing is left behind.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Takes bytes piece by piece.
#[derive(Debug)]
pub struct Upload {
    file: File,
    staged: Staged,
    hash: Sha256,
    most: u64,
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

    /// Whether the bytes of a digest are here, complete and synced.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Remove files of digests that are not among these and were written longer ago than `grace`; how many.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn remove_unknown(
        &self,
        known: &BTreeSet<Digest>,
        now: SystemTime,
        grace: Duration,
    ) -> io::Result<usize> {
        let names: BTreeSet<PathBuf> = known.iter().map(|digest| self.path(digest)).collect();
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let ours = entry.file_name().to_string_lossy().starts_with("sha256-");
            if !ours || names.contains(&entry.path()) {
                continue;
            }
            let written = entry.metadata()?.modified()?;
            if now.duration_since(written).is_ok_and(|age| age >= grace) {
                std::fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// A path for something that may be dropped again, and is when the process ends.
    fn temporary(&self) -> PathBuf {
        let number = self.uploads.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("upload-{number}"))
    }

    /// Begin an upload of at most `most` bytes.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn begin(&self, most: u64) -> Result<Upload, UploadError> {
        let path = self.temporary();
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
            most,
        })
    }

    /// A path beside a staged file for what its judge may write.
    #[must_use]
    pub fn beside(&self) -> Beside {
        Beside {
            path: self.temporary(),
        }
    }

    /// Take what the judge wrote, if it wrote anything.
    ///
    /// # Errors
    /// When it is longer than `most`, or the disk refuses.
    pub async fn take(&self, written: Beside, most: u64) -> Result<Option<Staged>, UploadError> {
        let mut source = match File::open(&written.path).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut upload = self.begin(most).await?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match source.read(&mut piece).await? {
                0 => return upload.finish(None).await.map(Some),
                read => upload.write(&piece[..read]).await?,
            }
        }
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

/// A file that is written without waiting for anybody, by who restores a directory that nobody uses yet.
#[derive(Debug)]
pub struct PlainFile {
    path: PathBuf,
    file: std::fs::File,
}

impl PlainFile {
    /// Take a piece.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        io::Write::write_all(&mut self.file, piece)
    }
}

impl ComponentStore {
    /// Begin a file whose digest is checked elsewhere.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn begin_plain(&self) -> io::Result<PlainFile> {
        let path = self.temporary();
        let file = std::fs::File::create(&path)?;
        Ok(PlainFile { path, file })
    }

    /// Give it the name of the digest that its bytes were found to have.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn keep_plain(&self, plain: PlainFile, digest: &Digest) -> io::Result<()> {
        plain.file.sync_all()?;
        std::fs::rename(&plain.path, self.path(digest))?;
        std::fs::File::open(&self.dir)?.sync_all()
    }
}

impl Upload {
    /// Take a piece.
    ///
    /// # Errors
    /// When the whole becomes too long, or the disk refuses.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), UploadError> {
        self.staged.size += piece.len() as u64;
        if self.staged.size > self.most {
            return Err(UploadError::TooLarge { most: self.most });
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

    const MOST: u64 = 5;

    #[tokio::test]
    async fn files_that_nothing_names_go_after_their_grace() {
        let dir = tempfile::tempdir().unwrap();
        let store = ComponentStore::open(dir.path()).unwrap();
        for bytes in [b"a", b"b"] {
            let mut upload = store.begin(MOST).await.unwrap();
            upload.write(bytes).await.unwrap();
            store.keep(upload.finish(None).await.unwrap()).await.unwrap();
        }
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let (grace, now) = (Duration::from_secs(60), SystemTime::now());
        let known = BTreeSet::from([a]);
        assert_eq!(store.remove_unknown(&known, now, grace).unwrap(), 0);
        assert_eq!(store.remove_unknown(&known, now + 2 * grace, grace).unwrap(), 1);
        assert_eq!((store.has(&a), store.has(&b)), (true, false));
    }

    #[tokio::test]
    async fn bytes_are_found_by_digest_and_failures_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = ComponentStore::open(dir.path()).unwrap();
        let mut upload = store.begin(MOST).await.unwrap();
        upload.write(b"ab").await.unwrap();
        upload.write(b"c").await.unwrap();
        let staged = upload.finish(Some(Digest::of(b"abc"))).await.unwrap();
        store.keep(staged).await.unwrap();
        assert_eq!(
            std::fs::read(store.path(&Digest::of(b"abc"))).unwrap(),
            b"abc"
        );

        let mut upload = store.begin(MOST).await.unwrap();
        upload.write(b"x").await.unwrap();
        let error = upload.finish(Some(Digest::of(b"y"))).await.unwrap_err();
        assert!(matches!(error, UploadError::WrongDigest { .. }));
        let empty = store
            .begin(MOST)
            .await
            .unwrap()
            .finish(None)
            .await
            .unwrap_err();
        assert!(matches!(empty, UploadError::Empty));
        let mut large = store.begin(MOST).await.unwrap();
        large.write(b"12345").await.unwrap();
        assert!(matches!(
            large.write(b"6").await,
            Err(UploadError::TooLarge { most: MOST })
        ));
        drop(large);

        let unwritten = store.beside();
        assert!(store.take(unwritten, MOST).await.unwrap().is_none());
        let written = store.beside();
        std::fs::write(written.path(), b"made").unwrap();
        let taken = store.take(written, MOST).await.unwrap().unwrap();
        assert_eq!((taken.digest, taken.size), (Digest::of(b"made"), 4));
        drop(taken);
        assert_eq!(
            std::fs::read_dir(dir.path().join("components"))
                .unwrap()
                .count(),
            1
        );
    }
}
