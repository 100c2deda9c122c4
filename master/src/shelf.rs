//! Component files in a folder: which are here for good, which may go, and which are damaged.
//!
//! Owns every decision about these files and the order of the steps that make them safe; the folder itself is
//! behind [`Folder`], so that the simulator runs this code on a disk that fails. Invariants: a file gets its
//! digest's name only when its bytes are on stable storage, and counts only when the name is, too; what leaves
//! was found to have its digest before its last piece did; a file goes only after a grace in which nothing named
//! it, written down beside it so that a restart does not end it, and never while it is held. Must never read
//! a clock.

use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tessera_types::Digest;

/// Bytes that are read again in one look for damage: files are looked at in turn, and whoever serves must not
/// wait for the disk.
pub const SCRUB_BYTES: u64 = 64 << 20;

/// What is done to a folder. Names are plain; nothing but this process changes it.
pub trait Folder {
    /// Names of all files.
    ///
    /// # Errors
    /// Those of the disk.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Whether there is a file.
    fn has(&self, name: &str) -> bool;

    /// Digest and length of what is in a file, as it is on the disk.
    ///
    /// # Errors
    /// Those of the disk.
    fn digest(&self, name: &str) -> io::Result<(Digest, u64)>;

    /// Make an empty file.
    ///
    /// # Errors
    /// Those of the disk.
    fn touch(&self, name: &str) -> io::Result<()>;

    /// When a file was written; none if there is none.
    ///
    /// # Errors
    /// Those of the disk.
    fn written(&self, name: &str) -> io::Result<Option<SystemTime>>;

    /// Give a file another name, in place of whatever had it.
    ///
    /// # Errors
    /// Those of the disk.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Remove a file, if it is there.
    ///
    /// # Errors
    /// Those of the disk.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Bring all names to stable storage.
    ///
    /// # Errors
    /// Those of the disk.
    fn sync(&self) -> io::Result<()>;
}

/// Name of the file of a digest.
#[must_use]
pub fn file_name(digest: &Digest) -> String {
    format!("sha256-{}.wasm", digest.hex())
}

/// Name of the mark beside a file that no state names: it is as old as that was first seen.
fn mark_name(digest: &Digest) -> String {
    format!("unnamed-{}", digest.hex())
}

/// Name of what may be dropped again, and is when the process begins.
#[must_use]
pub fn temporary_name(number: u64) -> String {
    format!("upload-{number}")
}

/// Who needs which file, and which names are not on stable storage yet.
#[derive(Debug, Default)]
struct Table {
    held: BTreeMap<Digest, usize>,
    settling: BTreeMap<Digest, usize>,
    /// The file that was last looked at for damage.
    scrubbed: Option<Digest>,
}

/// One more or one less.
fn count(table: &mut BTreeMap<Digest, usize>, digest: Digest, more: bool) {
    let entry = table.entry(digest).or_default();
    *entry = if more { *entry + 1 } else { entry.saturating_sub(1) };
    if *entry == 0 {
        table.remove(&digest);
    }
}

/// The files of one master.
#[derive(Debug)]
pub struct Shelf<F> {
    folder: F,
    /// Locked while files get and lose their names.
    table: Mutex<Table>,
}

impl<F: Folder> Shelf<F> {
    /// Take a folder over; what a crash cut off is removed.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn open(folder: F) -> io::Result<Self> {
        for name in folder.names()?.iter().filter(|name| name.starts_with("upload-")) {
            folder.remove(name)?;
        }
        // Names that the crash left in memory alone, if the machine went on: they count from here on.
        folder.sync()?;
        Ok(Self { folder, table: Mutex::default() })
    }

    /// The folder.
    pub const fn folder(&self) -> &F {
        &self.folder
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic while holding the lock cannot leave the tables half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keep the file of a digest from being collected, whether it is there yet or not, until it is let go.
    pub fn hold(&self, digest: Digest) {
        count(&mut self.table().held, digest, true);
    }

    /// One less holds it.
    pub fn let_go(&self, digest: Digest) {
        count(&mut self.table().held, digest, false);
    }

    /// Whether the bytes of a digest are here, and stay after a crash.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        let table = self.table();
        !table.settling.contains_key(digest) && self.folder.has(&file_name(digest))
    }

    /// Whether a file is here; if it is, its grace begins again, and a crash does not take that back.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn claim(&self, digest: &Digest) -> io::Result<bool> {
        let marked = {
            let _names = self.table();
            let mark = mark_name(digest);
            let marked = self.folder.has(&mark);
            self.folder.remove(&mark)?;
            marked
        };
        if marked {
            self.folder.sync()?;
        }
        Ok(self.has(digest))
    }

    /// Give bytes that are on stable storage under another name that of their digest.
    ///
    /// # Errors
    /// Those of the disk: then it is as if nothing had come.
    pub fn keep(&self, from: &str, digest: &Digest) -> io::Result<()> {
        let name = file_name(digest);
        // A good file is not put at stake for another one like it.
        if self.has(digest) && !self.doubt(digest)? && self.claim(digest)? {
            return self.folder.remove(from);
        }
        {
            let mut table = self.table();
            self.folder.rename(from, &name)?;
            count(&mut table.settling, *digest, true);
        }
        let marked = self.folder.remove(&mark_name(digest));
        let synced = marked.and_then(|()| self.folder.sync());
        let mut table = self.table();
        count(&mut table.settling, *digest, false);
        if synced.is_err() {
            // Nobody knows whether the name is on stable storage, and asking again would not tell.
            self.folder.remove(&name)?;
        } else if !self.folder.has(&name) {
            return Err(io::Error::other("another writer of the same bytes failed"));
        }
        synced
    }

    /// Remove files of digests that are not among these, are held by nobody, and were first seen so longer
    /// ago than `grace`; which. Unless `current`, they are only marked: this master may not know yet what
    /// the others have agreed on.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn collect(
        &self,
        known: &BTreeSet<Digest>,
        current: bool,
        now: SystemTime,
        grace: Duration,
    ) -> io::Result<Vec<Digest>> {
        let mut removed = Vec::new();
        let (files, marks) = self.files()?;
        for digest in files.iter().filter(|digest| !known.contains(digest)) {
            // From here on nobody can begin to need it: whoever does takes the lock first.
            let table = self.table();
            let mark = mark_name(digest);
            if table.held.contains_key(digest) || table.settling.contains_key(digest) {
                self.folder.remove(&mark)?;
                continue;
            }
            let Some(since) = self.folder.written(&mark)? else {
                self.folder.touch(&mark)?;
                continue;
            };
            if current && now.duration_since(since).is_ok_and(|age| age >= grace) {
                self.folder.remove(&file_name(digest))?;
                self.folder.remove(&mark)?;
                removed.push(*digest);
            }
        }
        for digest in marks.iter().filter(|d| known.contains(d) || !files.contains(d)) {
            let _names = self.table();
            self.folder.remove(&mark_name(digest))?;
        }
        Ok(removed)
    }

    /// Digests of which there are files, and of which there are marks.
    fn files(&self) -> io::Result<(BTreeSet<Digest>, BTreeSet<Digest>)> {
        let (mut files, mut marks) = (BTreeSet::new(), BTreeSet::new());
        for name in self.folder.names()? {
            let parse = |hex: &str| format!("sha256:{hex}").parse::<Digest>().ok();
            let file = name.strip_prefix("sha256-").and_then(|rest| rest.strip_suffix(".wasm"));
            files.extend(file.and_then(parse));
            marks.extend(name.strip_prefix("unnamed-").and_then(parse));
        }
        Ok((files, marks))
    }

    /// Look at a file whose bytes were found to be others; it loses its name if they still are, so that it is
    /// fetched again. Whether it did.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn doubt(&self, digest: &Digest) -> io::Result<bool> {
        let name = file_name(digest);
        // Nobody puts a good one in its place meanwhile.
        let _names = self.table();
        if !self.folder.has(&name) {
            return Ok(false);
        }
        // What cannot be read is as good as lost.
        let whole = self.folder.digest(&name).is_ok_and(|(found, _)| found == *digest);
        if !whole {
            self.folder.remove(&name)?;
        }
        Ok(!whole)
    }

    /// Look for damage in the files that were not looked at for longest; those that had it lose their names.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn scrub(&self) -> io::Result<Vec<Digest>> {
        let (files, _) = self.files()?;
        let last = self.table().scrubbed;
        let after: Vec<Digest> = files.iter().filter(|d| last.is_none_or(|last| **d > last)).copied().collect();
        let before = files.iter().filter(|d| last.is_some_and(|last| **d <= last)).copied();
        let (mut read, mut damaged) = (0, Vec::new());
        for digest in after.into_iter().chain(before) {
            let whole = match self.folder.digest(&file_name(&digest)) {
                Ok((found, length)) => {
                    read += length;
                    found == digest
                }
                Err(_) => false,
            };
            self.table().scrubbed = Some(digest);
            if !whole && self.doubt(&digest)? {
                damaged.push(digest);
            }
            if read >= SCRUB_BYTES {
                break;
            }
        }
        Ok(damaged)
    }
}

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
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
}

/// Bytes on their way in, counted and hashed as they come.
#[derive(Clone, Debug)]
pub struct Intake {
    hash: Sha256,
    size: u64,
    most: u64,
}

impl Intake {
    /// Of at most so many bytes.
    #[must_use]
    pub fn new(most: u64) -> Self {
        Self { hash: Sha256::new(), size: 0, most }
    }

    /// A piece came.
    ///
    /// # Errors
    /// When the whole becomes too long.
    pub fn take(&mut self, piece: &[u8]) -> Result<(), IntakeError> {
        self.size += piece.len() as u64;
        if self.size > self.most {
            return Err(IntakeError::TooLarge { most: self.most });
        }
        self.hash.update(piece);
        Ok(())
    }

    /// That was all: digest and size.
    ///
    /// # Errors
    /// When nothing came, or it is not what was named.
    pub fn finish(self, named: Option<Digest>) -> Result<(Digest, u64), IntakeError> {
        if self.size == 0 {
            return Err(IntakeError::Empty);
        }
        let found = Digest(self.hash.finalize().into());
        match named {
            Some(named) if named != found => Err(IntakeError::WrongDigest { named, found }),
            _ => Ok((found, self.size)),
        }
    }
}

/// A file on its way out turned out to be damaged; its last piece stays here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the file of component {0} is damaged here; it is fetched from another master, or upload it again")]
pub struct Damaged(pub Digest);

/// Bytes on their way out. The last piece leaves only when all of them have the digest, so that nobody ever has
/// the whole of a damaged file.
#[derive(Clone, Debug)]
pub struct Outgoing {
    digest: Digest,
    hash: Sha256,
    last: Option<Vec<u8>>,
}

impl Outgoing {
    /// Of the file of a digest.
    #[must_use]
    pub fn new(digest: Digest) -> Self {
        Self { digest, hash: Sha256::new(), last: None }
    }

    /// A piece was read: the one that may leave now.
    pub fn piece(&mut self, bytes: Vec<u8>) -> Option<Vec<u8>> {
        self.hash.update(&bytes);
        self.last.replace(bytes)
    }

    /// That was all: the last piece.
    ///
    /// # Errors
    /// When the bytes are others than they should be.
    pub fn finish(self) -> Result<Option<Vec<u8>>, Damaged> {
        let whole = Digest(self.hash.finalize().into()) == self.digest;
        if whole { Ok(self.last) } else { Err(Damaged(self.digest)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_piece_of_a_damaged_file_stays() {
        for (bytes, whole) in [(["ab", "c"], true), (["ab", "d"], false), (["", "abc"], true), (["a", "b"], false)] {
            let mut outgoing = Outgoing::new(Digest::of(b"abc"));
            let mut out: Vec<u8> = Vec::new();
            for piece in bytes {
                out.extend(outgoing.piece(piece.as_bytes().to_vec()).unwrap_or_default());
            }
            assert_eq!(out, bytes[0].as_bytes());
            let last = outgoing.finish();
            assert_eq!(last.is_ok(), whole, "{bytes:?}");
            assert_eq!(last.ok().flatten(), whole.then(|| bytes[1].as_bytes().to_vec()));
        }
    }
}
