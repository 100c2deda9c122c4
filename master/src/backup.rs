//! Saved snapshots: the whole state and its component files in one file.
//!
//! A file is a mark, the state in pieces, each component under its digest in pieces, and a trailer that counts
//! them. A piece is its length and its bytes; a length of zero ends a part. The state carries its own
//! checksums, components are checked by their digests.
//!
//! Invariants: a file without its trailer is damaged, and says so; a restored cluster has a new id and one
//! master; nothing is restored into a directory that belongs to a cluster. Bytes of a file never panic, and
//! never make anybody allocate more than a piece.

use crate::store::{ComponentStore, UploadError};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use tessera_replica::{
    ClusterId, Disk, DiskError, Identity, Replica, RestoreError, SnapshotError, SnapshotHeader,
    SnapshotSource, Staged, Staging,
};
use tessera_types::Digest;
use tokio::sync::mpsc;

/// First bytes of a file; the number is the version of the format.
const MARK: &[u8; 16] = b"tessera-saved-1\n";

/// Parts of a file.
const STATE: u8 = 1;
const COMPONENT: u8 = 2;
const TRAILER: u8 = 0;

/// Bytes of one piece.
const PIECE_BYTES: usize = 256 << 10;

/// Largest header of the state: as much as the replica writes.
const HEADER_BYTES_MAX: usize = tessera_replica::MAX_SNAPSHOT_HEADER_BYTES + 64;

/// Pieces made ahead of who reads them.
const PIECES_AHEAD: usize = 8;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file or the disk refused.
    #[error("reading or writing: {0}")]
    Io(#[from] io::Error),
    /// It is no saved snapshot, or of another version.
    #[error("the file is no saved snapshot of this version: it begins otherwise; use one that `tessera operator snapshot save` wrote")]
    NotOne,
    /// It ends too early, or says what it cannot.
    #[error("the file is damaged: {0}; use another one")]
    Damaged(&'static str),
    /// A component is not what its name says.
    #[error("the file is damaged: the bytes of component {0} are not what its name says; use another one")]
    WrongComponent(Digest),
    /// The state is damaged.
    #[error("the file is damaged: {0}; use another one")]
    State(#[from] SnapshotError),
    /// The directory cannot take it.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The new state cannot be written.
    #[error("preparing the data directory: {0}")]
    Disk(#[from] DiskError),
    /// A component cannot be stored.
    #[error("storing a component: {0}")]
    Component(#[from] UploadError),
}

/// What a file holds.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The cluster that it was saved from.
    pub cluster: ClusterId,
    /// The last entry of its log that is in it.
    pub term: u64,
    /// See `term`.
    pub index: u64,
    /// Rows of the state.
    pub rows: u64,
    /// Bytes of the state.
    pub state_bytes: u64,
    /// Masters that the cluster had.
    pub masters: usize,
    /// Component files and their sizes.
    pub components: BTreeMap<Digest, u64>,
}

/// The pieces of a file, made on another thread.
pub fn stream(
    source: SnapshotSource,
    components: Vec<Digest>,
    store: Arc<ComponentStore>,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut out = Out { sender };
        if let Err(error) = out.write(source, &components, &store) {
            // A reader that is gone has broken off the file by itself.
            let _ = out.sender.blocking_send(Err(error));
        }
    });
    pieces
}

struct Out {
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Out {
    fn send(&self, bytes: Vec<u8>) -> io::Result<()> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.sender.blocking_send(Ok(bytes.into())).map_err(gone)
    }

    fn piece(&self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.send([&length.to_le_bytes(), bytes].concat())
    }

    fn write(
        &mut self,
        mut source: SnapshotSource,
        components: &[Digest],
        store: &ComponentStore,
    ) -> io::Result<()> {
        self.send([MARK.as_slice(), &[STATE]].concat())?;
        while let Some(chunk) = source.next_chunk().map_err(io::Error::other)? {
            self.piece(&chunk.bytes)?;
        }
        self.piece(&[])?;
        for digest in components {
            self.send([&[COMPONENT], digest.0.as_slice()].concat())?;
            store.read(digest, |piece| self.piece(piece))?;
            self.piece(&[])?;
        }
        let count = u32::try_from(components.len()).unwrap_or(u32::MAX);
        self.send([&[TRAILER], count.to_le_bytes().as_slice()].concat())
    }
}

/// Reads a file part by part.
struct In<R> {
    from: R,
}

impl<R: Read> In<R> {
    fn exact<const N: usize>(&mut self) -> Result<[u8; N], BackupError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        self.from.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::Damaged("it ends too early"),
            _ => error.into(),
        })
    }

    /// The next piece; empty at the end of a part.
    fn piece(&mut self) -> Result<Vec<u8>, BackupError> {
        let length = u32::from_le_bytes(self.exact()?) as usize;
        if length > PIECE_BYTES {
            return Err(BackupError::Damaged("a piece is longer than pieces are"));
        }
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the state into what `begin` makes of its header.
    fn state(
        &mut self,
        begin: impl FnOnce(SnapshotHeader) -> Result<Staging, BackupError>,
    ) -> Result<Staged, BackupError> {
        let mut head = Vec::new();
        let header = loop {
            if let Some((header, _)) = SnapshotHeader::decode(&head)? {
                break header;
            }
            let piece = self.piece()?;
            if piece.is_empty() || head.len() > HEADER_BYTES_MAX {
                return Err(BackupError::Damaged("the state has no header"));
            }
            head.extend_from_slice(&piece);
        };
        let mut staging = begin(header)?;
        staging.write(0, &head)?;
        loop {
            let piece = self.piece()?;
            if piece.is_empty() {
                return staging.finish().map_err(|(error, _)| error.into());
            }
            staging.write(staging.offset(), &piece)?;
        }
    }

    /// Reads everything; components go to `keep` piece by piece, and to its end with no bytes.
    fn all(
        &mut self,
        begin: impl FnOnce(SnapshotHeader) -> Result<Staging, BackupError>,
        mut keep: impl FnMut(Digest, &[u8]) -> Result<(), BackupError>,
    ) -> Result<(Staged, Summary), BackupError> {
        match self.exact() {
            Ok(mark) if mark == *MARK => {}
            Ok(_) | Err(BackupError::Damaged(_)) => return Err(BackupError::NotOne),
            Err(error) => return Err(error),
        }
        if self.exact()? != [STATE] {
            return Err(BackupError::Damaged("the state does not come first"));
        }
        let staged = self.state(begin)?;
        let mut components = BTreeMap::new();
        loop {
            match self.exact()? {
                [COMPONENT] => {
                    let digest = Digest(self.exact()?);
                    let bytes = self.component(digest, &mut keep)?;
                    components.insert(digest, bytes);
                }
                [TRAILER] => break,
                _ => return Err(BackupError::Damaged("a part is of no known kind")),
            }
        }
        let count = u32::from_le_bytes(self.exact()?) as usize;
        if count != components.len() {
            return Err(BackupError::Damaged("it has fewer components than it says"));
        }
        if self.from.read(&mut [0])? != 0 {
            return Err(BackupError::Damaged("something follows its end"));
        }
        let header = staged.header();
        let summary = Summary {
            cluster: header.cluster,
            term: header.position.term,
            index: header.position.index,
            rows: staged.rows,
            state_bytes: staged.bytes,
            masters: header.membership().members.len(),
            components,
        };
        Ok((staged, summary))
    }

    fn component(
        &mut self,
        digest: Digest,
        keep: &mut impl FnMut(Digest, &[u8]) -> Result<(), BackupError>,
    ) -> Result<u64, BackupError> {
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        loop {
            let piece = self.piece()?;
            hash.update(&piece);
            bytes += piece.len() as u64;
            if piece.is_empty() {
                break;
            }
            keep(digest, &piece)?;
        }
        if Digest(hash.finalize().into()) != digest {
            return Err(BackupError::WrongComponent(digest));
        }
        keep(digest, &[])?;
        Ok(bytes)
    }
}

fn open(path: &Path) -> Result<In<BufReader<File>>, BackupError> {
    let from = BufReader::with_capacity(PIECE_BYTES, File::open(path)?);
    Ok(In { from })
}

/// Check a whole file and say what it holds.
///
/// # Errors
/// When it is damaged, or cannot be read.
pub fn inspect(path: &Path) -> Result<Summary, BackupError> {
    let begin = |header| Ok(Staging::only_check(header));
    Ok(open(path)?.all(begin, |_, _| Ok(()))?.1)
}

/// Make a cluster of one master from a file, on an empty disk beside an empty folder of components.
///
/// # Errors
/// When the file is damaged, or the disk belongs to a cluster.
pub fn restore<D: Disk>(
    path: &Path,
    disk: &mut D,
    store: &ComponentStore,
    identity: Identity,
    attributes: Vec<u8>,
) -> Result<Summary, BackupError> {
    let mut open_file = None;
    let keep = |digest, piece: &[u8]| {
        if open_file.is_none() {
            open_file = Some(store.begin_plain()?);
        }
        if let Some(file) = &mut open_file {
            file.write(piece)?;
        }
        if piece.is_empty()
            && let Some(file) = open_file.take()
        {
            store.keep_plain(file, &digest)?;
        }
        Ok(())
    };
    let begin = |header| Ok(Replica::begin_restore(disk, header)?);
    let (staged, summary) = open(path)?.all(begin, keep)?;
    Replica::finish_restore(disk, identity, attributes, &staged)?;
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_replica::{DiskBatch, Durability, MemDisk, ReplicaConfig, RowChange};

    const OLD: Identity = Identity { cluster: ClusterId([7; 16]), node: 1 };
    const NEW: Identity = Identity { cluster: ClusterId([8; 16]), node: 1 };
    const ROWS: u32 = 60;

    /// Bytes of a component, and their digest.
    fn component(length: usize) -> (Vec<u8>, Digest) {
        let bytes = vec![length as u8; length];
        let digest = Digest(Sha256::digest(&bytes).into());
        (bytes, digest)
    }

    /// A small saved snapshot.
    async fn saved(dir: &Path) -> Vec<u8> {
        let mut disk = MemDisk::new();
        Replica::bootstrap(&mut disk, OLD, b"one".to_vec()).unwrap();
        let rows = (0..ROWS).map(|number| RowChange::Put {
            table: 3,
            key: number.to_be_bytes().to_vec(),
            value: vec![number as u8; 20],
        });
        let rows = rows.collect();
        disk.write(DiskBatch { rows, ..DiskBatch::default() }, Durability::Synced).unwrap();
        let source = Replica::open(ReplicaConfig::new(OLD), disk).unwrap().snapshot().unwrap();
        let store = Arc::new(ComponentStore::open(dir).unwrap());
        let mut components = Vec::new();
        for length in [500, 3] {
            let (bytes, digest) = component(length);
            let mut file = store.begin_plain().unwrap();
            file.write(&bytes).unwrap();
            store.keep_plain(file, &digest).unwrap();
            components.push(digest);
        }
        let mut pieces = stream(source, components, store);
        let mut file = Vec::new();
        while let Some(piece) = pieces.recv().await {
            file.extend_from_slice(&piece.unwrap());
        }
        file
    }

    /// Refused in words that say what to do.
    fn assert_refused<T: std::fmt::Debug>(result: Result<T, BackupError>, context: &str) {
        let text = result.expect_err(context).to_string();
        let says = ["use another one", "use one that", "use the newer build"];
        assert!(says.iter().any(|says| text.contains(says)), "{context}: {text}");
    }

    #[tokio::test]
    async fn a_file_that_is_cut_or_changed_anywhere_is_refused_and_nothing_is_taken_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let sound = saved(&dir.path().join("old")).await;
        let path = dir.path().join("saved");
        std::fs::write(&path, &sound).unwrap();
        let summary = inspect(&path).unwrap();
        assert_eq!((summary.rows, summary.components.len()), (u64::from(ROWS), 2));
        let changed = |at: usize| {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << (at % 8);
            bytes
        };
        for at in 0..sound.len() {
            for (what, bytes) in [("cut", sound[..at].to_vec()), ("changed", changed(at))] {
                std::fs::write(&path, bytes).unwrap();
                assert_refused(inspect(&path), &format!("{what} at {at} of {}", sound.len()));
            }
        }
        std::fs::write(&path, [&sound[..], b"x"].concat()).unwrap();
        assert_refused(inspect(&path), "a byte more");

        // One disk for all: whatever a file that was refused has left there is in nobody's way.
        let mut disk = MemDisk::new();
        let store = ComponentStore::open(&dir.path().join("new")).unwrap();
        for place in 0..64 {
            let at = sound.len() * place / 64;
            for (what, bytes) in [("cut", sound[..at].to_vec()), ("changed", changed(at))] {
                std::fs::write(&path, bytes).unwrap();
                let restored = restore(&path, &mut disk, &store, NEW, Vec::new());
                assert_refused(restored, &format!("{what} at {at} of {}", sound.len()));
                assert_eq!(Replica::identity(&disk).unwrap(), None, "{what} at {at}");
            }
        }
        std::fs::write(&path, &sound).unwrap();
        restore(&path, &mut disk, &store, NEW, Vec::new()).unwrap();
        assert!(store.has(&component(500).1) && store.has(&component(3).1));
        let replica = Replica::open(ReplicaConfig::new(NEW), disk).unwrap();
        let rows = replica.rows().scan(3, &[], None, 1_000).unwrap();
        assert_eq!(rows.len(), ROWS as usize);
        let mut disk = MemDisk::new();
        let same = restore(&path, &mut disk, &store, OLD, Vec::new());
        assert!(matches!(same, Err(BackupError::Restore(RestoreError::SameCluster(_)))), "{same:?}");
    }
}
