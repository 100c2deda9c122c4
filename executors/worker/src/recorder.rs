//! Writes the recording of one instance's life, as far as its limit goes.
//!
//! Invariants: everything that an instance was given is in the file before the instance gets it; a
//! recording never ends a turn: what cannot be written is left out, and the file says from where on; no
//! more files are kept than the limit allows. This file must never read a recording's content.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use tessera_types::{EffectiveLimits, LimitName};
use tessera_wire::recording::{self, Sealer};
use tessera_wire::v1;
use tessera_wit_host::{Failure, State};
use v1::recording_item::Item;

/// Bytes of keys and values in one frame of the state, unless one value has more.
const STATE_CHUNK_BYTES: usize = 64 << 10;
/// Bytes kept back for the frame that says that recording has stopped.
const STOPPED_BYTES: u64 = 128;

/// Bytes of the buffer that are kept between turns.
const BUFFER_BYTES_KEPT: usize = 16 << 10;

struct Open {
    file: File,
    sealer: Sealer,
    /// Frames that are not written yet.
    buffer: Vec<u8>,
    /// Bytes that are written.
    written: u64,
    max: u64,
    /// Number of the turn that is being recorded.
    turn: u64,
}

/// The recording of one life; records nothing once its limit is reached.
#[derive(Default)]
pub struct Recorder(Option<Open>);

impl Recorder {
    /// Begin the recording of a life, and make room for it among the older ones. The state is what the
    /// instance is about to be built from. The header's life is found here.
    #[must_use]
    pub fn begin(
        directory: &Path,
        header: v1::RecordingHeader,
        state: &State,
        limits: &EffectiveLimits,
    ) -> Self {
        let max = limits.get(LimitName::RecordingBytes);
        if max == 0 || directory.as_os_str().is_empty() {
            return Self::default();
        }
        let framework = header.framework;
        match Open::create(directory, header, limits) {
            Ok(open) => {
                let mut recorder = Self(Some(open));
                recorder.state(state);
                recorder.flush();
                recorder
            }
            Err(error) => {
                tracing::warn!(framework, %error, "this life cannot be recorded");
                Self::default()
            }
        }
    }

    fn state(&mut self, state: &State) {
        let mut chunk = v1::RecordedState::default();
        let mut bytes = 0;
        for (key, value) in state.committed() {
            bytes += key.len() + value.len();
            chunk.entries.push(v1::KeyWrite {
                key: key.to_owned(),
                value: Some(value.to_vec()),
            });
            if bytes >= STATE_CHUNK_BYTES {
                bytes = 0;
                self.push(Item::State(std::mem::take(&mut chunk)));
                // What is over the limit does not pile up in memory.
                self.flush();
            }
        }
        chunk.last = true;
        self.push(Item::State(chunk));
    }

    /// The guest is about to get this.
    pub fn batch(&mut self, batch: &v1::Batch) {
        if let Some(open) = &mut self.0 {
            open.turn = batch.number;
            self.push(Item::Batch(batch.clone()));
            self.flush();
        }
    }

    /// The guest gave this turn, encoded.
    pub fn turn(&mut self, turn: Vec<u8>) {
        self.push(Item::Turn(turn));
    }

    /// The guest gave no turn, or no instance.
    pub fn failure(&mut self, failure: &Failure) {
        self.push(Item::Failure(v1::RecordedFailure {
            reason: failure.code().to_owned(),
            limit: failure.limit().to_owned(),
            message: failure.to_string(),
        }));
        self.flush();
    }

    /// What became of the turn.
    pub fn outcome(&mut self, number: u64, outcome: v1::TurnOutcome) {
        let outcome = Some(outcome);
        self.push(Item::Outcome(v1::RecordedOutcome { number, outcome }));
        self.flush();
    }

    /// These limits hold from here on.
    pub fn limits(&mut self, limits: Vec<v1::Limit>) {
        self.push(Item::Limits(v1::RecordedLimits { limits }));
    }

    /// Whether anything is being recorded.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.0.is_some()
    }

    fn push(&mut self, item: Item) {
        let Some(open) = &mut self.0 else { return };
        if !open.push(item) {
            self.flush();
            self.0 = None;
        }
    }

    fn flush(&mut self) {
        let Some(open) = &mut self.0 else { return };
        if let Err(error) = open.flush() {
            tracing::warn!(%error, "a recording ends early");
            self.0 = None;
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Open {
    fn create(
        directory: &Path,
        mut header: v1::RecordingHeader,
        limits: &EffectiveLimits,
    ) -> io::Result<Self> {
        let mut known = recordings(directory)?;
        known.sort_unstable();
        let kept = limits.size(LimitName::Recordings).saturating_sub(1);
        for (epoch, life) in &known[..known.len().saturating_sub(kept)] {
            std::fs::remove_file(directory.join(recording::file_name(*epoch, *life)))?;
        }
        let lives = known.iter().filter(|(epoch, _)| *epoch == header.epoch);
        header.life = lives.map(|(_, life)| *life).max().unwrap_or(0) + 1;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(directory.join(recording::file_name(header.epoch, header.life)))?;
        let (mut sealer, mut buffer) = (Sealer::default(), Vec::new());
        let turn = header.next_turn;
        sealer.seal(Item::Header(header), &mut buffer);
        Ok(Self {
            file,
            sealer,
            buffer,
            written: 0,
            max: limits.get(LimitName::RecordingBytes),
            turn,
        })
    }

    /// False when the limit is reached: then the last frame has been made.
    fn push(&mut self, item: Item) -> bool {
        let (length, sealer) = (self.buffer.len(), self.sealer.clone());
        self.sealer.seal(item, &mut self.buffer);
        if self.written + self.buffer.len() as u64 + STOPPED_BYTES <= self.max {
            return true;
        }
        self.buffer.truncate(length);
        self.sealer = sealer;
        self.sealer.seal(Item::Stopped(self.turn), &mut self.buffer);
        false
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        // One large turn does not keep its room for the rest of a life.
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        Ok(())
    }
}

/// Epoch and life of every recording in a directory.
fn recordings(directory: &Path) -> io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(recording::parse_file_name));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_types::KeyWrite;
    use tessera_wire::recording::{Summary, Unsealed, Unsealer, summarize};

    fn state(keys: usize, bytes: usize) -> State {
        let mut state = State::default();
        state.load((0..keys).map(|key| KeyWrite {
            key: format!("{key:05}"),
            value: Some(vec![1; bytes]),
        }));
        state
    }

    fn limits(bytes: u64, recordings: u64) -> EffectiveLimits {
        let mut limits = EffectiveLimits::default();
        limits.put(LimitName::RecordingBytes, bytes);
        limits.put(LimitName::Recordings, recordings);
        limits
    }

    fn header(epoch: u64) -> v1::RecordingHeader {
        v1::RecordingHeader {
            format: recording::RECORDING_FORMAT,
            epoch,
            next_turn: 1,
            ..v1::RecordingHeader::default()
        }
    }

    fn batch(number: u64) -> v1::Batch {
        v1::Batch {
            number,
            ..v1::Batch::default()
        }
    }

    fn summary(directory: &Path, name: &str) -> Summary {
        summarize(File::open(directory.join(name)).unwrap()).unwrap()
    }

    #[test]
    fn a_recording_stops_at_its_limit_and_says_where() {
        let directory = tempfile::tempdir().unwrap();
        for (life, max, turns, stopped) in [(1, 1_000, 5, false), (2, 1_000, 100, true), (3, 1 << 20, 100, false)] {
            let limits = limits(max, 64);
            let mut recorder = Recorder::begin(directory.path(), header(1), &State::default(), &limits);
            for number in 1..=turns {
                recorder.batch(&batch(number));
                recorder.turn(vec![0; 10]);
            }
            assert_eq!(recorder.is_open(), !stopped);
            drop(recorder);
            let path = directory.path().join(format!("e1-{life}.rec"));
            assert!(std::fs::metadata(&path).unwrap().len() <= max);
            let mut items = Unsealer::new(File::open(path).unwrap());
            let mut last = None;
            while let Some(item) = items.next_item().unwrap() {
                last = Some(item);
            }
            let says = matches!(last, Some(Unsealed::Item(Item::Stopped(turn))) if turn > 1 && turn < turns);
            assert_eq!(says, stopped, "{last:?}");
        }
        let none = Recorder::begin(directory.path(), header(1), &State::default(), &limits(0, 64));
        assert!(!none.is_open());
    }

    #[test]
    fn state_is_cut_into_frames_and_one_that_is_too_large_stops_the_recording() {
        let directory = tempfile::tempdir().unwrap();
        let large = state(100, 10 << 10);
        for (name, max, stopped) in [("e1-1.rec", 2 << 20, false), ("e1-2.rec", 500 << 10, true)] {
            drop(Recorder::begin(directory.path(), header(1), &large, &limits(max, 64)));
            let mut items = Unsealer::new(File::open(directory.path().join(name)).unwrap());
            let (mut keys, mut complete) = (0, false);
            while let Some(item) = items.next_item().unwrap() {
                if let Unsealed::Item(Item::State(chunk)) = item {
                    keys += chunk.entries.len();
                    complete = chunk.last;
                }
            }
            assert_eq!((complete, keys == 100), (!stopped, !stopped));
            assert_eq!(summary(directory.path(), name).stopped, stopped);
        }
    }

    #[test]
    fn the_oldest_recordings_are_deleted_and_lives_go_on_counting() {
        let directory = tempfile::tempdir().unwrap();
        let limits = limits(1 << 20, 2);
        for epoch in [1, 1, 2, 1, 10] {
            drop(Recorder::begin(directory.path(), header(epoch), &State::default(), &limits));
        }
        let mut left = recordings(directory.path()).unwrap();
        left.sort_unstable();
        assert_eq!(left, [(2, 1), (10, 1)]);
        let lost = Recorder::begin(&directory.path().join("none"), header(1), &State::default(), &limits);
        assert!(!lost.is_open(), "a directory that is not there ends nothing");
    }
}
