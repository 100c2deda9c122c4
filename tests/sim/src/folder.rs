//! A master's folder of component files on a disk that loses what was not synced.
//!
//! Invariants: without fault or mutation it behaves like a folder of a journalled file system: bytes that were
//! synced stay, names that were synced stay, of the changes of names after that a crash keeps the first few; a
//! sync that fails is not made up for by the next one. Must never decide when a fault happens.

use crate::mutation::Mutation;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tessera_master::shelf::{Folder, file_name};
use tessera_types::Digest;
use tessera_virtual::Random;

/// What a file holds.
#[derive(Clone, Debug)]
struct Content {
    bytes: Vec<u8>,
    synced: bool,
    written: SystemTime,
}

/// What the step that fails does to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failing {
    /// It is told.
    Error,
    /// It ends there.
    Crash,
}

#[derive(Debug)]
struct State {
    /// As the process sees it.
    names: BTreeMap<String, u64>,
    /// As a crash would leave it.
    stable: BTreeMap<String, u64>,
    /// Names that changed and were not synced, as they changed together.
    pending: Vec<Vec<(String, Option<u64>)>>,
    contents: BTreeMap<u64, Content>,
    last: u64,
    now: SystemTime,
    full: bool,
    /// Steps that still succeed before one fails.
    failing: Option<(u64, Failing)>,
    crashed: bool,
    /// Changes so far.
    version: u64,
    mutation: Option<Mutation>,
}

/// A handle to the folder; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct SimFolder(Arc<Mutex<State>>);

impl SimFolder {
    pub(crate) fn new(mutation: Option<Mutation>) -> Self {
        Self(Arc::new(Mutex::new(State {
            names: BTreeMap::new(),
            stable: BTreeMap::new(),
            pending: Vec::new(),
            contents: BTreeMap::new(),
            last: 0,
            now: UNIX_EPOCH,
            full: false,
            failing: None,
            crashed: false,
            version: 0,
            mutation,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What time it is, and whether there is no room.
    pub(crate) fn set(&self, now_us: u64, full: bool) {
        let mut state = self.state();
        state.now = UNIX_EPOCH + Duration::from_micros(now_us);
        state.full = full;
    }

    /// What time it is.
    pub(crate) fn now(&self) -> SystemTime {
        self.state().now
    }

    /// After so many more steps one fails.
    pub(crate) fn fail_after(&self, steps: u64, how: Failing) {
        self.state().failing = Some((steps, how));
    }

    /// Nothing fails any more.
    pub(crate) fn heal(&self) {
        self.state().failing = None;
    }

    /// Whether the process has ended in a step.
    pub(crate) fn has_crashed(&self) -> bool {
        self.state().crashed
    }

    /// Rises with each change.
    pub(crate) fn version(&self) -> u64 {
        self.state().version
    }

    /// Power loss.
    pub(crate) fn crash(&self, rng: &mut Random) {
        let mut state = self.state();
        let state = &mut *state;
        state.version += 1;
        let kept = rng.index(state.pending.len() + 1);
        for (name, content) in state.pending.drain(..).take(kept).flatten() {
            apply(&mut state.stable, name, content);
        }
        state.names = state.stable.clone();
        let named: BTreeSet<u64> = state.names.values().copied().collect();
        state.contents.retain(|id, _| named.contains(id));
        for content in state.contents.values_mut().filter(|content| !content.synced) {
            content.bytes.truncate(rng.index(content.bytes.len() + 1));
            content.synced = true;
        }
        state.failing = None;
        state.crashed = false;
    }

    /// Bytes come into a new file.
    pub(crate) fn write(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        self.state().create(name, bytes, false)
    }

    /// They are brought to stable storage.
    pub(crate) fn sync_file(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        if state.mutation == Some(Mutation::FileSyncSkipped) {
            return Ok(());
        }
        let id = state.names.get(name).copied();
        let content = id.and_then(|id| state.contents.get_mut(&id)).ok_or(io::ErrorKind::NotFound)?;
        content.synced = true;
        Ok(())
    }

    /// What is in a file.
    pub(crate) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.state();
        let content = state.names.get(name).and_then(|id| state.contents.get(id));
        Ok(content.ok_or(io::ErrorKind::NotFound)?.bytes.clone())
    }

    /// Whether the file of a digest is here, whole, and stays after a crash.
    pub(crate) fn keeps(&self, digest: &Digest) -> bool {
        let state = self.state();
        let name = file_name(digest);
        let id = state.names.get(&name).filter(|id| state.stable.get(&name) == Some(id));
        let content = id.and_then(|id| state.contents.get(id)).filter(|content| content.synced);
        content.is_some_and(|content| Digest::of(&content.bytes) == *digest)
    }

    /// A bit of a file turns over; `which` chooses it.
    pub(crate) fn flip(&self, digest: &Digest, which: u64) -> bool {
        let mut state = self.state();
        let id = state.names.get(&file_name(digest)).copied();
        let Some(content) = id.and_then(|id| state.contents.get_mut(&id)) else { return false };
        let at = usize::try_from(which / 8 % (content.bytes.len() as u64).max(1)).unwrap_or(0);
        let Some(byte) = content.bytes.get_mut(at) else { return false };
        *byte ^= 1 << (which % 8);
        state.version += 1;
        true
    }
}

fn apply(names: &mut BTreeMap<String, u64>, name: String, content: Option<u64>) {
    match content {
        Some(content) => names.insert(name, content),
        None => names.remove(&name),
    };
}

impl State {
    /// Something is done to the disk.
    fn step(&mut self) -> io::Result<()> {
        self.version += 1;
        match &mut self.failing {
            Some((0, how)) => {
                self.crashed |= *how == Failing::Crash;
                self.failing = self.failing.filter(|(_, how)| *how == Failing::Crash);
                return Err(io::Error::other("the disk fails"));
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        Ok(())
    }

    fn name(&mut self, changes: Vec<(String, Option<u64>)>) {
        for (name, content) in &changes {
            apply(&mut self.names, name.clone(), *content);
        }
        self.pending.push(changes);
    }

    fn create(&mut self, name: &str, bytes: Vec<u8>, synced: bool) -> io::Result<()> {
        self.step()?;
        if self.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.last += 1;
        let (id, written) = (self.last, self.now);
        self.contents.insert(id, Content { bytes, synced, written });
        self.name(vec![(name.to_owned(), Some(id))]);
        Ok(())
    }
}

impl Folder for SimFolder {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn has(&self, name: &str) -> bool {
        self.state().names.contains_key(name)
    }

    fn digest(&self, name: &str) -> io::Result<(Digest, u64)> {
        let bytes = self.read(name)?;
        Ok((Digest::of(&bytes), bytes.len() as u64))
    }

    fn touch(&self, name: &str) -> io::Result<()> {
        self.state().create(name, Vec::new(), true)
    }

    fn written(&self, name: &str) -> io::Result<Option<SystemTime>> {
        let state = self.state();
        let content = state.names.get(name).and_then(|id| state.contents.get(id));
        let early = state.mutation == Some(Mutation::FileCollectedEarly);
        Ok(content.map(|content| content.written).or(early.then_some(UNIX_EPOCH)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        let id = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.name(vec![(to.to_owned(), Some(id)), (from.to_owned(), None)]);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.names.contains_key(name) {
            state.step()?;
            state.name(vec![(name.to_owned(), None)]);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        let done = state.step();
        let state = &mut *state;
        if state.mutation == Some(Mutation::FileSyncSkipped) {
            return done;
        }
        let pending = std::mem::take(&mut state.pending);
        if done.is_ok() {
            for (name, content) in pending.into_iter().flatten() {
                apply(&mut state.stable, name, content);
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_master::shelf::Shelf;

    #[test]
    fn a_crash_keeps_what_was_synced_and_the_first_of_the_rest() {
        let digest = Digest::of(b"abc");
        let name = file_name(&digest);
        let make = |synced: bool, named: bool| {
            let folder = SimFolder::new(None);
            folder.write("upload-0", b"abc".to_vec()).unwrap();
            if synced {
                folder.sync_file("upload-0").unwrap();
            }
            folder.rename("upload-0", &name).unwrap();
            if named {
                folder.sync().unwrap();
            }
            folder
        };
        let kept = |synced, named| {
            let after = (0..40).map(|seed| {
                let folder = make(synced, named);
                assert_eq!(folder.keeps(&digest), synced && named);
                folder.crash(&mut Random::new(seed));
                folder.keeps(&digest)
            });
            after.filter(|kept| *kept).count()
        };
        assert_eq!(kept(true, true), 40);
        assert!((1..40).contains(&kept(true, false)));
        assert!((1..40).contains(&kept(false, true)));
    }

    #[test]
    fn a_failed_sync_is_not_made_up_for() {
        let folder = SimFolder::new(None);
        let digest = Digest::of(b"abc");
        folder.write(&file_name(&digest), b"abc".to_vec()).unwrap();
        folder.sync_file(&file_name(&digest)).unwrap();
        folder.fail_after(0, Failing::Error);
        assert!(folder.sync().is_err());
        folder.sync().unwrap();
        assert!(!folder.keeps(&digest));
        assert!(folder.flip(&digest, 9) && folder.read(&file_name(&digest)).unwrap() == b"a`c");
    }

    #[test]
    fn a_name_whose_sync_failed_is_taken_back() {
        let shelf = Shelf::open(SimFolder::new(None)).unwrap();
        let digest = Digest::of(b"abc");
        let send = |shelf: &Shelf<SimFolder>| {
            shelf.folder().write("upload-0", b"abc".to_vec())?;
            shelf.folder().sync_file("upload-0")?;
            shelf.keep("upload-0", &digest)
        };
        // Whichever step fails, nothing is said to be here that a crash could take.
        for steps in 0..6 {
            shelf.folder().fail_after(steps, Failing::Error);
            let sent = send(&shelf).is_ok();
            shelf.folder().heal();
            assert_eq!((shelf.has(&digest), shelf.claim(&digest).unwrap()), (sent, sent), "{steps}");
            assert_eq!(shelf.folder().keeps(&digest), sent, "{steps}");
        }
        send(&shelf).unwrap();
        assert!(shelf.has(&digest) && shelf.folder().keeps(&digest));
    }

    #[test]
    fn a_crash_takes_no_claim_back() {
        let (known, grace) = (BTreeSet::new(), Duration::from_secs(1));
        let digest = Digest::of(b"abc");
        for seed in 0..40 {
            let shelf = Shelf::open(SimFolder::new(None)).unwrap();
            shelf.folder().write("upload-0", b"abc".to_vec()).unwrap();
            shelf.folder().sync_file("upload-0").unwrap();
            shelf.keep("upload-0", &digest).unwrap();
            assert_eq!(shelf.collect(&known, true, UNIX_EPOCH, grace).unwrap(), []);
            shelf.folder().sync().unwrap();
            assert!(shelf.claim(&digest).unwrap());
            shelf.folder().crash(&mut Random::new(seed));
            let shelf = Shelf::open(shelf.folder().clone()).unwrap();
            assert_eq!(shelf.collect(&known, true, UNIX_EPOCH + grace * 2, grace).unwrap(), []);
            assert!(shelf.has(&digest));
        }
    }
}
