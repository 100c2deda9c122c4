//! Component bytes: content-addressed files in the master's data directory.
//!
//! Owns: the folder on the real disk, and bytes on their way into it and out of it. Invariant: what is decided
//! about files is decided by [`Shelf`]; nothing here looks inside: that is done by `tessera-worker inspect` in
//! a process of its own.

use crate::shelf::{Folder, Intake, IntakeError, Outgoing, Shelf, file_name, temporary_name};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tessera_types::Digest;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// Bytes read at once.
pub const PIECE_BYTES: usize = 64 << 10;

/// Pieces of a file that are read ahead of whom it is for.
const PIECES_AHEAD: usize = 8;

/// A folder on the real disk.
#[derive(Debug)]
pub struct Dir(PathBuf);

impl Folder for Dir {
    fn names(&self) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn has(&self, name: &str) -> bool {
        self.0.join(name).is_file()
    }

    fn digest(&self, name: &str) -> io::Result<(Digest, u64)> {
        let mut file = std::fs::File::open(self.0.join(name))?;
        let (mut hash, mut length) = (Sha256::new(), 0);
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok((Digest(hash.finalize().into()), length)),
                read => {
                    hash.update(&piece[..read]);
                    length += read as u64;
                }
            }
        }
    }

    fn touch(&self, name: &str) -> io::Result<()> {
        std::fs::File::create(self.0.join(name)).map(|_| ())
    }

    fn written(&self, name: &str) -> io::Result<Option<SystemTime>> {
        match std::fs::metadata(self.0.join(name)) {
            Ok(file) => file.modified().map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.0.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        std::fs::File::open(&self.0)?.sync_all()
    }
}

/// The folder of components.
#[derive(Debug)]
pub struct ComponentStore {
    dir: PathBuf,
    uploads: AtomicU64,
    shelf: Arc<Shelf<Dir>>,
}

/// A file that is not collected as long as this is there.
#[derive(Debug)]
pub struct Held {
    shelf: Arc<Shelf<Dir>>,
    digest: Digest,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shelf.let_go(self.digest);
    }
}

/// Why bytes were not stored.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// They are not what they should be.
    #[error(transparent)]
    Bytes(#[from] IntakeError),
    /// The disk refused.
    #[error("storing the component")]
    Io(#[from] io::Error),
}

/// Bytes that arrived and are on disk, but under no digest's name yet. Removed when dropped.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    name: String,
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
    intake: Intake,
}

/// Do something with the shelf that waits for the disk.
async fn blocking<T: Send + 'static>(
    shelf: &Arc<Shelf<Dir>>,
    what: impl FnOnce(&Shelf<Dir>) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let shelf = Arc::clone(shelf);
    // It is cut off only when the process is ending.
    tokio::task::spawn_blocking(move || what(&shelf)).await.map_err(io::Error::other)?
}

impl ComponentStore {
    /// Open or make the folder; uploads that were cut off by a crash are removed.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let dir = data_dir.join("components");
        std::fs::create_dir_all(&dir)?;
        let shelf = Arc::new(Shelf::open(Dir(dir.clone()))?);
        Ok(Self { dir, uploads: AtomicU64::new(0), shelf })
    }

    /// Keep the file of a digest from being collected, whether it is there yet or not.
    #[must_use]
    pub fn hold(&self, digest: Digest) -> Held {
        self.shelf.hold(digest);
        Held { shelf: Arc::clone(&self.shelf), digest }
    }

    /// See [`Shelf::claim`].
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn claim(&self, digest: Digest) -> io::Result<bool> {
        blocking(&self.shelf, move |shelf| shelf.claim(&digest)).await
    }

    /// Where the bytes of a digest are, or would be.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(file_name(digest))
    }

    /// Whether the bytes of a digest are here, complete and synced.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.shelf.has(digest)
    }

    /// See [`Shelf::collect`].
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn collect(
        &self,
        known: BTreeSet<Digest>,
        current: bool,
        now: SystemTime,
        grace: Duration,
    ) -> io::Result<Vec<Digest>> {
        blocking(&self.shelf, move |shelf| shelf.collect(&known, current, now, grace)).await
    }

    /// See [`Shelf::scrub`].
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn scrub(&self) -> io::Result<Vec<Digest>> {
        blocking(&self.shelf, Shelf::scrub).await
    }

    /// The size of a file, and its bytes as they are read; the last of them come only if all are what they should
    /// be. A file that is damaged loses its name.
    ///
    /// # Errors
    /// When it is not here.
    pub async fn send(&self, digest: Digest) -> io::Result<(u64, mpsc::Receiver<io::Result<Vec<u8>>>)> {
        let mut file = File::open(self.path(&digest)).await?;
        let size = file.metadata().await?.len();
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let shelf = Arc::clone(&self.shelf);
        // Ends with the file, or with whom it is for.
        tokio::spawn(async move {
            let mut outgoing = Outgoing::new(digest);
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let ready = match file.read(&mut piece).await {
                    Ok(0) => break,
                    Ok(read) => {
                        piece.truncate(read);
                        Ok(outgoing.piece(piece))
                    }
                    Err(error) => Err(error),
                };
                let failed = ready.is_err();
                if let Some(ready) = ready.transpose()
                    && (sender.send(ready).await.is_err() || failed)
                {
                    return;
                }
            }
            let last = match outgoing.finish() {
                Ok(last) => last.map(Ok),
                Err(damaged) => {
                    let found = blocking(&shelf, move |shelf| shelf.doubt(&digest)).await;
                    tracing::warn!(%damaged, removed = found.unwrap_or(false), "a component file");
                    Some(Err(io::Error::new(io::ErrorKind::InvalidData, damaged)))
                }
            };
            if let Some(last) = last {
                // Whoever went away asks again.
                let _ = sender.send(last).await;
            }
        });
        Ok((size, pieces))
    }

    /// Pass the bytes of a file on, waiting for the disk; the last of them only if all are what they should be.
    ///
    /// # Errors
    /// When it is not here or is damaged, or those of who takes them.
    pub fn read(&self, digest: &Digest, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut file = std::fs::File::open(self.path(digest))?;
        let mut outgoing = Outgoing::new(*digest);
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let read = file.read(&mut piece)?;
            if read == 0 {
                break;
            }
            piece.truncate(read);
            if let Some(piece) = outgoing.piece(piece) {
                take(&piece)?;
            }
        }
        match outgoing.finish() {
            Ok(last) => last.map_or(Ok(()), |last| take(&last)),
            Err(damaged) => {
                self.shelf.doubt(digest)?;
                Err(io::Error::new(io::ErrorKind::InvalidData, damaged))
            }
        }
    }

    /// A name for something that may be dropped again, and is when the process begins.
    fn temporary(&self) -> String {
        temporary_name(self.uploads.fetch_add(1, Ordering::Relaxed))
    }

    /// Begin an upload of at most `most` bytes.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn begin(&self, most: u64) -> Result<Upload, UploadError> {
        let name = self.temporary();
        let path = self.dir.join(&name);
        let file = File::create(&path).await?;
        let staged = Staged { path, name, digest: Digest([0; 32]), size: 0 };
        Ok(Upload { file, staged, intake: Intake::new(most) })
    }

    /// A path beside a staged file for what its judge may write.
    #[must_use]
    pub fn beside(&self) -> Beside {
        Beside { path: self.dir.join(self.temporary()) }
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
        Ok(blocking(&self.shelf, move |shelf| shelf.keep(&staged.name, &staged.digest)).await?)
    }
}

/// A file that is written without waiting for anybody, by who restores a directory that nobody uses yet.
#[derive(Debug)]
pub struct PlainFile {
    name: String,
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
        let name = self.temporary();
        let file = std::fs::File::create(self.dir.join(&name))?;
        Ok(PlainFile { name, file })
    }

    /// Give it the name of the digest that its bytes were found to have.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn keep_plain(&self, plain: PlainFile, digest: &Digest) -> io::Result<()> {
        plain.file.sync_all()?;
        self.shelf.keep(&plain.name, digest)
    }
}

impl Upload {
    /// Take a piece.
    ///
    /// # Errors
    /// When the whole becomes too long, or the disk refuses.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), UploadError> {
        self.intake.take(piece)?;
        self.file.write_all(piece).await?;
        Ok(())
    }

    /// All pieces have arrived.
    ///
    /// # Errors
    /// When there were none, the digest is not the one named, or the disk refuses.
    pub async fn finish(self, named: Option<Digest>) -> Result<Staged, UploadError> {
        let mut staged = self.staged;
        (staged.digest, staged.size) = self.intake.finish(named)?;
        self.file.sync_all().await?;
        Ok(staged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 5;

    #[tokio::test]
    async fn files_go_after_a_grace_in_which_nothing_named_or_held_them() {
        let dir = tempfile::tempdir().unwrap();
        let open = || ComponentStore::open(dir.path()).unwrap();
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
        let collect = async |store: &ComponentStore, known: &BTreeSet<Digest>, now| {
            store.collect(known.clone(), true, now, grace).await.unwrap()
        };
        let none = Vec::<Digest>::new();
        // However old a file is, its grace begins when it is first seen without a name.
        assert_eq!(collect(&store, &known, later).await, none);
        assert_eq!(collect(&store, &known, now).await, none);
        // A restart does not begin it anew; being held, asked for and uploaded again does.
        let store = open();
        let held = store.hold(b);
        assert!(store.claim(c).await.unwrap());
        assert!(!store.claim(Digest::of(b"e")).await.unwrap());
        assert_eq!(collect(&store, &known, later).await, vec![d]);
        assert_eq!([a, b, c, d].map(|digest| store.has(&digest)), [true, true, true, false]);
        drop(held);
        assert_eq!(collect(&store, &known, later).await, vec![c]);
        keep(&store, b"b").await;
        assert_eq!(collect(&store, &known, later).await, none);
        // Who is behind the others removes nothing.
        assert_eq!(store.collect(known.clone(), false, later, grace).await.unwrap(), none);
        // What is named again in time stays, and has a whole grace when it is not any more.
        assert_eq!(collect(&store, &BTreeSet::from([a, b]), later).await, none);
        assert_eq!(collect(&store, &known, later).await, none);
        assert_eq!(collect(&store, &known, later).await, vec![b]);
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
        assert!(matches!(error, UploadError::Bytes(IntakeError::WrongDigest { .. })));
        let empty = store
            .begin(MOST)
            .await
            .unwrap()
            .finish(None)
            .await
            .unwrap_err();
        assert!(matches!(empty, UploadError::Bytes(IntakeError::Empty)));
        let mut large = store.begin(MOST).await.unwrap();
        large.write(b"12345").await.unwrap();
        assert!(matches!(
            large.write(b"6").await,
            Err(UploadError::Bytes(IntakeError::TooLarge { most: MOST }))
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

    #[tokio::test]
    async fn damaged_files_are_found_and_lose_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let store = ComponentStore::open(dir.path()).unwrap();
        let bytes = vec![7; PIECE_BYTES + 1];
        let keep = async || {
            let mut upload = store.begin(1 << 20).await.unwrap();
            upload.write(&bytes).await.unwrap();
            let staged = upload.finish(None).await.unwrap();
            let digest = staged.digest;
            store.keep(staged).await.unwrap();
            digest
        };
        let digest = keep().await;
        let receive = async || {
            let (size, mut pieces) = store.send(digest).await.unwrap();
            let (mut received, mut failed) = (Vec::new(), None);
            while let Some(piece) = pieces.recv().await {
                match piece {
                    Ok(piece) => received.extend(piece),
                    Err(error) => failed = Some(error.to_string()),
                }
            }
            (size, received, failed)
        };
        let damage = || std::fs::write(store.path(&digest), vec![8; bytes.len()]).unwrap();
        let size = bytes.len() as u64;
        assert_eq!(receive().await, (size, bytes.clone(), None));
        assert_eq!(store.scrub().await.unwrap(), []);

        damage();
        let (announced, received, failed) = receive().await;
        assert!(announced == size && received.len() < bytes.len());
        assert!(failed.unwrap().contains("is damaged here"));
        assert!(!store.has(&digest));

        keep().await;
        let mut read = Vec::new();
        store.read(&digest, |piece| Ok(read.extend_from_slice(piece))).unwrap();
        assert_eq!(read, bytes);
        damage();
        assert!(store.read(&digest, |_| Ok(())).is_err() && !store.has(&digest));

        keep().await;
        damage();
        assert_eq!(store.scrub().await.unwrap(), [digest]);
        assert!(!store.has(&digest));
    }
}
