//! Large bodies on their way to the leader: kept on this master's disk, so that they can be sent again.
//!
//! Invariants: all together take at most [`STAGED_BYTES_MAX`]; a body has no name in the file system, so that
//! nothing is left of it when the process ends; several readers of one do not disturb each other. Must never
//! look at what it keeps.

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tessera_types::LimitName;

/// Bytes of all bodies that are kept at once: several uploads of the largest component that a limit allows
/// would fill a small disk.
pub const STAGED_BYTES_MAX: u64 = 512 << 20;

/// Bytes read at once.
const PIECE_BYTES: usize = 256 << 10;

/// Why a body is not kept.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// No leader would take it.
    #[error("at most {0} bytes, whatever the limit component-bytes is")]
    TooLarge(u64),
    /// Others fill the room.
    #[error("large requests of {STAGED_BYTES_MAX} bytes together are on their way through this master already")]
    Full,
    /// Its sender stopped.
    #[error("the request broke off: {0}")]
    BrokeOff(axum::Error),
    /// The disk refused.
    #[error("keeping the request on disk until the leader has it: {0}")]
    Io(#[from] io::Error),
}

/// The folder of bodies, which are not to be seen in it.
pub struct Staging {
    dir: PathBuf,
    taken: AtomicU64,
    names: AtomicU64,
}

/// A body on disk. It is gone when the last reader is.
pub struct StagedBody {
    file: File,
    len: u64,
    staging: Arc<Staging>,
}

impl Staging {
    /// In a data directory.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let dir = data_dir.join("passing-on");
        // What a process left that was killed between making a file and taking its name away.
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir(&dir)?,
        }
        Ok(Self { dir, taken: AtomicU64::new(0), names: AtomicU64::new(0) })
    }

    fn file(&self) -> io::Result<File> {
        let name = self.names.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(name.to_string());
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }

    fn take(&self, bytes: u64) -> Result<(), StageError> {
        let room = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= STAGED_BYTES_MAX);
        let took = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room);
        took.map(drop).map_err(|_| StageError::Full)
    }

    /// Take a body in as it comes; one that is announced as too large is not waited for.
    ///
    /// # Errors
    /// When there is no room, or it breaks off.
    pub async fn keep(
        self: &Arc<Self>,
        announced: Option<u64>,
        body: Body,
    ) -> Result<Arc<StagedBody>, StageError> {
        let most = LimitName::ComponentBytes.row().max;
        if announced.is_some_and(|bytes| bytes > most) {
            return Err(StageError::TooLarge(most));
        }
        let mut body: BodyDataStream = body.into_data_stream();
        let file = self.file()?;
        // Whatever was taken is given back by its end.
        let mut staged = StagedBody { file, len: 0, staging: Arc::clone(self) };
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(StageError::BrokeOff)?;
            let bytes = piece.len() as u64;
            if staged.len + bytes > most {
                return Err(StageError::TooLarge(most));
            }
            self.take(bytes)?;
            let at = staged.len;
            staged.len += bytes;
            staged = tokio::task::spawn_blocking(move || {
                staged.file.write_all_at(&piece, at).map(|()| staged)
            })
            .await
            .map_err(io::Error::other)??;
        }
        Ok(Arc::new(staged))
    }
}

impl StagedBody {
    /// How long it is.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Once more from the beginning.
    pub fn read(self: &Arc<Self>) -> impl Stream<Item = io::Result<Bytes>> + use<> {
        futures::stream::try_unfold((Arc::clone(self), 0), |(body, at)| async move {
            let left = usize::try_from(body.len - at).unwrap_or(usize::MAX);
            if left == 0 {
                return Ok(None);
            }
            let (body, piece) = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; left.min(PIECE_BYTES)];
                body.file.read_exact_at(&mut piece, at).map(|()| (body, Bytes::from(piece)))
            })
            .await
            .map_err(io::Error::other)??;
            let next = at + piece.len() as u64;
            Ok(Some((piece, (body, next))))
        })
    }
}

impl Drop for StagedBody {
    fn drop(&mut self) {
        self.staging.taken.fetch_sub(self.len, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;

    async fn all(body: &Arc<StagedBody>) -> Vec<u8> {
        body.read().try_collect::<Vec<_>>().await.unwrap().concat()
    }

    #[tokio::test]
    async fn bodies_are_read_as_often_as_wanted_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("passing-on")).unwrap();
        std::fs::write(dir.path().join("passing-on/left"), "by a killed one").unwrap();
        let staging = Arc::new(Staging::open(dir.path()).unwrap());
        let bytes: Vec<u8> = (0..3 * PIECE_BYTES + 7).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let pieces = bytes.chunks(100_000).map(|piece| Ok::<_, io::Error>(Bytes::copy_from_slice(piece)));
        let pieces = futures::stream::iter(pieces.collect::<Vec<_>>());
        let body = staging.keep(None, Body::from_stream(pieces)).await.unwrap();
        assert_eq!(body.len(), bytes.len() as u64);
        assert!(all(&body).await == bytes && all(&body).await == bytes);
        assert_eq!(std::fs::read_dir(dir.path().join("passing-on")).unwrap().count(), 0);
        drop(body);
        assert_eq!(staging.taken.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_breaks_off_or_has_no_room_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Arc::new(Staging::open(dir.path()).unwrap());
        let broken = futures::stream::iter([Ok(Bytes::from_static(b"x")), Err(io::Error::other("gone"))]);
        let error = staging.keep(None, Body::from_stream(broken)).await.err();
        assert!(matches!(error, Some(StageError::BrokeOff(_))), "{error:?}");
        let most = LimitName::ComponentBytes.row().max;
        let error = staging.keep(Some(most + 1), Body::from("x")).await.err();
        assert!(matches!(error, Some(StageError::TooLarge(_))), "{error:?}");
        staging.take(STAGED_BYTES_MAX - 1).unwrap();
        let error = staging.keep(None, Body::from("xy")).await.err();
        assert!(matches!(error, Some(StageError::Full)), "{error:?}");
        assert_eq!(staging.keep(None, Body::from("x")).await.unwrap().len(), 1);
        assert_eq!(staging.taken.load(Ordering::Relaxed), STAGED_BYTES_MAX - 1);
    }
}
