//! Component bytes: content-addressed files in the master's data directory.
//!
//! Invariants: a file under its digest's name is complete and has that digest: it is written under
//! another name, synced, and renamed; a file goes only after a grace in which nothing named it, written
//! down beside it so that a restart does not end it, and never while it is held. Nothing here looks
//! inside: that is done by `tessera-worker inspect` in a process of its own.

use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tessera_types::Digest;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes read at once of what the judge wrote.
const PIECE_BYTES: usize = 64 << 10;

/// The folder of components.
#[derive(Debug)]
pub struct ComponentStore {
    dir: PathBuf,
    uploads: AtomicU64,
    /// How many need a file although no state names it yet. Locked while files get and lose their names.
    held: Mutex<BTreeMap<Digest, usize>>,
}

/// A file that is not collected as long as this is there.
#[derive(Debug)]
pub struct Held {
    store: Arc<ComponentStore>,
    digest: Digest,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.store.held();
        if let Some(count) = held.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.digest);
            }
        }
    }
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
            held: Mutex::default(),
        })
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<Digest, usize>> {
        // A panic while holding the lock cannot leave the table half changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keep the file of a digest from being collected, whether it is there yet or not.
    #[must_use]
    pub fn hold(self: &Arc<Self>, digest: Digest) -> Held {
        *self.held().entry(digest).or_default() += 1;
        Held { store: Arc::clone(self), digest }
    }

    /// Whether a file is here; if it is, its grace begins again.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn claim(&self, digest: &Digest) -> io::Result<bool> {
        let _names = self.held();
        remove_if_there(&self.unnamed(digest))?;
        Ok(self.has(digest))
    }

    /// A mark beside a file that no state names: it is as old as that was first seen.
    fn unnamed(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("unnamed-{}", digest.hex()))
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

    /// Remove files of digests that are not among these, are held by nobody, and were first seen so longer
    /// ago than `grace`; which.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn collect(
        &self,
        known: &BTreeSet<Digest>,
        now: SystemTime,
        grace: Duration,
    ) -> io::Result<Vec<Digest>> {
        let mut removed = Vec::new();
        let (files, marks) = self.names()?;
        for digest in files.iter().filter(|digest| !known.contains(digest)) {
            // From here on nobody can begin to need it: whoever does takes the lock first.
            let held = self.held();
            let mark = self.unnamed(digest);
            if held.contains_key(digest) {
                remove_if_there(&mark)?;
                continue;
            }
            let since = match std::fs::metadata(&mark) {
                Ok(mark) => mark.modified()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    std::fs::File::create(&mark)?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if now.duration_since(since).is_ok_and(|age| age >= grace) {
                std::fs::remove_file(self.path(digest))?;
                remove_if_there(&mark)?;
                removed.push(*digest);
            }
        }
        for digest in marks.iter().filter(|d| known.contains(d) || !files.contains(d)) {
            let _names = self.held();
            remove_if_there(&self.unnamed(digest))?;
        }
        Ok(removed)
    }

    /// Digests of which there are files, and of which there are marks.
    fn names(&self) -> io::Result<(BTreeSet<Digest>, BTreeSet<Digest>)> {
        let (mut files, mut marks) = (BTreeSet::new(), BTreeSet::new());
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            let parse = |hex: &str| format!("sha256:{hex}").parse::<Digest>().ok();
            let file = name.strip_prefix("sha256-").and_then(|rest| rest.strip_suffix(".wasm"));
            files.extend(file.and_then(parse));
            marks.extend(name.strip_prefix("unnamed-").and_then(parse));
        }
        Ok((files, marks))
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
        {
            let _names = self.held();
            std::fs::rename(&staged.path, self.path(&staged.digest))?;
            remove_if_there(&self.unnamed(&staged.digest))?;
        }
        File::open(&self.dir).await?.sync_all().await?;
        Ok(())
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
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
    async fn files_go_after_a_grace_in_which_nothing_named_or_held_them() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Arc::new(ComponentStore::open(dir.path()).unwrap());
        let store = open();
        let keep = async |store: &ComponentStore, bytes: &[u8]| {
            let mut upload = store.begin(MOST).await.unwrap();
            upload.write(bytes).await.unwrap();
            store.keep(upload.finish(None).await.unwrap()).await.unwrap();
        };
        for bytes in [b"a", b"b", b"c", b"d"] {
            keep(&store, bytes).await;
        }
        let [a, b, c, d] = [b"a", b"b", b"c", b"d"].map(|bytes| Digest::of(bytes));
        let (grace, now) = (Duration::from_secs(60), SystemTime::now());
        let (known, later) = (BTreeSet::from([a]), now + 2 * grace);
        let none = Vec::<Digest>::new();
        // However old a file is, its grace begins when it is first seen without a name.
        assert_eq!(store.collect(&known, later, grace).unwrap(), none);
        assert_eq!(store.collect(&known, now, grace).unwrap(), none);
        // A restart does not begin it anew; being held, asked for and uploaded again does.
        let store = open();
        let held = store.hold(b);
        assert!(store.claim(&c).unwrap());
        assert!(!store.claim(&Digest::of(b"e")).unwrap());
        assert_eq!(store.collect(&known, later, grace).unwrap(), vec![d]);
        assert_eq!([a, b, c, d].map(|digest| store.has(&digest)), [true, true, true, false]);
        drop(held);
        assert_eq!(store.collect(&known, later, grace).unwrap(), vec![c]);
        keep(&store, b"b").await;
        assert_eq!(store.collect(&known, later, grace).unwrap(), none);
        // What is named again in time stays, and has a whole grace when it is not any more.
        assert_eq!(store.collect(&BTreeSet::from([a, b]), later, grace).unwrap(), none);
        assert_eq!(store.collect(&known, later, grace).unwrap(), none);
        assert_eq!(store.collect(&known, later, grace).unwrap(), vec![b]);
        let left: Vec<_> = std::fs::read_dir(dir.path().join("components")).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
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
