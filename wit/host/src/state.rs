//! The key-value state of one framework as its instance sees it: what is committed, and what the turn
//! has written over it.
//!
//! Invariants: `committed` changes only by [`State::commit`], [`State::load`] and [`State::take_outside`]; totals are those of
//! the state as the turn would leave it; nothing exceeds the limits of the framework's role. This
//! file must never know a guest.

use crate::limits::{LimitPassed, StateLimits};
use std::collections::BTreeMap;
use std::ops::Bound;
use tessera_types::{KeyWrite, LimitName, limits};

/// Why a write was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteRefused {
    /// The key breaks a rule.
    #[error("key: {0}")]
    Key(&'static str),
    /// A limit would be passed.
    #[error(transparent)]
    Limit(#[from] LimitPassed),
}

/// Committed state with one turn's writes over it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    limits: StateLimits,
    committed: BTreeMap<String, Vec<u8>>,
    overlay: BTreeMap<String, Option<Vec<u8>>>,
    /// Bytes of keys and values that the overlay holds.
    overlay_bytes: usize,
    /// Bytes of keys and values, with the overlay applied.
    bytes: u64,
    /// Keys, with the overlay applied.
    keys: u64,
    /// Writes from outside of the scheduler that `committed` has, counted over the framework's life.
    outside: u64,
}

fn size(key: &str, value: Option<&[u8]>) -> usize {
    key.len() + value.map_or(0, <[u8]>::len)
}

impl State {
    /// From the next write on these limits hold; what is there already stays.
    pub const fn set_limits(&mut self, limits: StateLimits) {
        self.limits = limits;
    }

    /// Take over committed entries, as they come from the master. Not bound by the limits of a turn.
    pub fn load(&mut self, entries: impl IntoIterator<Item = KeyWrite>) {
        for KeyWrite { key, value } in entries {
            self.put_committed(key, value);
        }
        self.discard();
    }

    fn put_committed(&mut self, key: String, value: Option<Vec<u8>>) {
        match value {
            Some(value) => self.committed.insert(key, value),
            None => self.committed.remove(&key),
        };
    }

    /// The state was loaded as it was after so many outside writes.
    pub const fn set_outside(&mut self, count: u64) {
        self.outside = count;
    }

    /// The outside writes that are in the state.
    #[must_use]
    pub const fn outside(&self) -> u64 {
        self.outside
    }

    /// Take over what was written from outside. What `init` has written, and no turn has committed, stays
    /// above it.
    pub fn take_outside(&mut self, count: u64, writes: &[KeyWrite]) {
        for KeyWrite { key, value } in writes {
            if !self.overlay.contains_key(key) {
                let old = self.committed.get(key).map(|old| size(key, Some(old)) as u64);
                let new = value.as_ref().map(|new| size(key, Some(new)) as u64);
                self.bytes = self.bytes - old.unwrap_or(0) + new.unwrap_or(0);
                self.keys = self.keys - u64::from(old.is_some()) + u64::from(new.is_some());
            }
            self.put_committed(key.clone(), value.clone());
        }
        self.outside = self.outside.max(count);
    }

    /// Bytes of committed keys and values.
    #[must_use]
    pub fn committed_bytes(&self) -> u64 {
        self.committed
            .iter()
            .map(|(key, value)| size(key, Some(value)) as u64)
            .sum()
    }

    /// Committed keys and values, in byte order of the keys.
    pub fn committed(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let entries = self.committed.iter();
        entries.map(|(key, value)| (key.as_str(), value.as_slice()))
    }

    /// The value that the turn sees.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        match self.overlay.get(key) {
            Some(value) => value.as_deref(),
            None => self.committed.get(key).map(Vec::as_slice),
        }
    }

    /// Write a key, or delete it.
    ///
    /// # Errors
    /// When the key breaks a rule or a limit would be passed; nothing is changed then.
    pub fn write(&mut self, key: &str, value: Option<Vec<u8>>) -> Result<(), WriteRefused> {
        if key.is_empty() {
            return Err(WriteRefused::Key("a key has at least 1 byte"));
        }
        if key.len() > limits::KEY_BYTES_MAX {
            return Err(WriteRefused::Key("a key has at most 255 bytes"));
        }
        let new_size = size(key, value.as_deref());
        if value
            .as_ref()
            .is_some_and(|value| value.len() > limits::VALUE_BYTES_MAX)
        {
            let text = format!("at most {}", limits::VALUE_BYTES_MAX);
            return Err(LimitPassed::new("state-value-bytes", text).into());
        }
        let replaced = self.overlay.get(key);
        let written = replaced.map_or(0, |old| size(key, old.as_deref()));
        let overlay_bytes = self.overlay_bytes - written + new_size;
        let allowed = self.limits;
        if overlay_bytes > allowed.turn_bytes {
            return limit(LimitName::TurnStateBytes, allowed.turn_bytes as u64);
        }
        if replaced.is_none() && self.overlay.len() >= allowed.turn_keys {
            return limit(LimitName::TurnKeys, allowed.turn_keys as u64);
        }
        let before = self.get(key).map(|old| size(key, Some(old)) as u64);
        let after = value.as_ref().map(|_| new_size as u64);
        let bytes = self.bytes - before.unwrap_or(0) + after.unwrap_or(0);
        let keys = self.keys - u64::from(before.is_some()) + u64::from(after.is_some());
        // What makes the state smaller is always allowed.
        let [bytes_name, keys_name] = allowed.names;
        if bytes > allowed.bytes && bytes > self.bytes {
            return limit(bytes_name, allowed.bytes);
        }
        if keys > allowed.keys && keys > self.keys {
            return limit(keys_name, allowed.keys);
        }
        (self.overlay_bytes, self.bytes, self.keys) = (overlay_bytes, bytes, keys);
        self.overlay.insert(key.to_owned(), value);
        Ok(())
    }

    /// Entries whose keys start with `prefix`, in byte order, after `after`: at most `count`, at most
    /// [`limits::SCAN_ENTRIES_MAX`] and at most [`limits::SCAN_BYTES_MAX`].
    #[must_use]
    pub fn scan(&self, prefix: &str, after: Option<&str>, count: u32) -> Vec<(String, Vec<u8>)> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let range = (start, Bound::Unbounded);
        let mut old = self.committed.range::<str, _>(range).peekable();
        let mut new = self.overlay.range::<str, _>(range).peekable();
        let mut found: Vec<(String, Vec<u8>)> = Vec::new();
        let mut bytes = 0;
        while found.len() < count.min(limits::SCAN_ENTRIES_MAX) as usize {
            let from_overlay = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some((a, _)), Some((b, _))) => a >= b,
            };
            let (key, value) = if from_overlay {
                let Some((key, value)) = new.next() else {
                    break;
                };
                let _ = old.next_if(|(covered, _)| *covered == key);
                (key, value.as_ref())
            } else {
                let Some((key, value)) = old.next() else {
                    break;
                };
                (key, Some(value))
            };
            if !key.starts_with(prefix) {
                break;
            }
            let Some(value) = value else { continue };
            bytes += size(key, Some(value));
            if bytes > limits::SCAN_BYTES_MAX {
                break;
            }
            found.push((key.clone(), value.clone()));
        }
        found
    }

    /// What the turn changes: writes that leave a key as it was are left out.
    #[must_use]
    pub fn writes(&self) -> Vec<KeyWrite> {
        self.overlay
            .iter()
            .filter(|(key, value)| self.committed.get(*key) != value.as_ref())
            .map(|(key, value)| KeyWrite {
                key: key.clone(),
                value: value.clone(),
            })
            .collect()
    }

    /// The turn was committed.
    pub fn commit(&mut self) {
        for (key, value) in std::mem::take(&mut self.overlay) {
            self.put_committed(key, value);
        }
        self.overlay_bytes = 0;
    }

    /// The turn is lost.
    pub fn discard(&mut self) {
        self.overlay.clear();
        self.overlay_bytes = 0;
        self.bytes = self.committed_bytes();
        self.keys = self.committed.len() as u64;
    }
}

fn limit(name: LimitName, max: u64) -> Result<(), WriteRefused> {
    Err(LimitPassed::of(name, format!("at most {max}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(entries: &[(&str, &str)]) -> State {
        let mut state = State::default();
        state.load(entries.iter().map(|(key, value)| KeyWrite {
            key: (*key).to_owned(),
            value: Some(value.as_bytes().to_vec()),
        }));
        state
    }

    fn name(result: Result<(), WriteRefused>) -> &'static str {
        match result {
            Err(WriteRefused::Limit(limit)) => limit.name,
            Err(WriteRefused::Key(_)) => "key",
            Ok(()) => "ok",
        }
    }

    fn keys(found: &[(String, Vec<u8>)]) -> Vec<&str> {
        found.iter().map(|(key, _)| key.as_str()).collect()
    }

    #[test]
    fn a_turn_reads_what_it_wrote_and_a_lost_turn_leaves_nothing() {
        let mut state = state(&[("a", "1"), ("b", "2")]);
        let before = state.clone();
        assert_eq!(state.write("a", Some(b"x".to_vec())), Ok(()));
        assert_eq!(state.write("b", None), Ok(()));
        assert_eq!(state.write("c", Some(b"y".to_vec())), Ok(()));
        assert_eq!(state.get("a"), Some(&b"x"[..]));
        assert_eq!((state.get("b"), state.get("c")), (None, Some(&b"y"[..])));
        state.discard();
        assert_eq!(state, before);
    }

    #[test]
    fn a_commit_is_what_the_writes_say() {
        let mut first = state(&[("a", "1"), ("b", "2"), ("c", "3")]);
        assert_eq!(first.write("a", Some(b"1".to_vec())), Ok(()));
        assert_eq!(first.write("b", None), Ok(()));
        assert_eq!(first.write("nothing", None), Ok(()));
        let writes = first.writes();
        assert_eq!(
            writes,
            vec![KeyWrite {
                key: "b".into(),
                value: None
            }],
            "no change is no write"
        );
        let mut second = state(&[("a", "1"), ("b", "2"), ("c", "3")]);
        second.load(writes);
        first.commit();
        assert_eq!(first, second);
    }

    #[test]
    fn scans_merge_committed_and_written_entries() {
        let mut state = state(&[("t/1", "a"), ("t/2", "b"), ("t/4", "d"), ("u", "z")]);
        assert_eq!(state.write("t/3", Some(b"c".to_vec())), Ok(()));
        assert_eq!(state.write("t/2", None), Ok(()));
        assert_eq!(state.write("t/4", Some(b"D".to_vec())), Ok(()));
        assert_eq!(state.write("s", Some(b"s".to_vec())), Ok(()));
        assert_eq!(keys(&state.scan("t/", None, 10)), ["t/1", "t/3", "t/4"]);
        assert_eq!(keys(&state.scan("t/", Some("t/1"), 1)), ["t/3"]);
        assert_eq!(keys(&state.scan("t/", Some("a"), 1)), ["t/1"]);
        assert_eq!(keys(&state.scan("t/", Some("t/9"), 1)), Vec::<&str>::new());
        assert_eq!(keys(&state.scan("", None, 0)), Vec::<&str>::new());
        assert_eq!(state.scan("t/4", None, 9)[0].1, b"D");
    }

    #[test]
    fn what_comes_from_outside_lies_below_what_the_turn_writes() {
        let mut state = state(&[("a", "1"), ("b", "2")]);
        assert_eq!(state.write("a", Some(b"mine".to_vec())), Ok(()));
        let write = |key: &str, value: Option<&str>| KeyWrite {
            key: key.into(),
            value: value.map(|value| value.as_bytes().to_vec()),
        };
        state.take_outside(3, &[write("a", Some("theirs")), write("b", None), write("c", Some("new"))]);
        assert_eq!((state.get("a"), state.get("b")), (Some(&b"mine"[..]), None));
        assert_eq!((state.bytes, state.keys), ("amine".len() as u64 + "cnew".len() as u64, 2));
        assert_eq!(state.outside(), 3);
        assert_eq!(state.writes(), vec![write("a", Some("mine"))]);
        state.discard();
        assert_eq!(state.get("a"), Some(&b"theirs"[..]), "it stays when the turn is lost");
        let totals = (state.bytes, state.keys);
        assert_eq!(totals, ("atheirs".len() as u64 + "cnew".len() as u64, 2));
    }

    #[test]
    fn limits_are_named() {
        let mut state = State::default();
        assert_eq!(name(state.write("", None)), "key");
        assert_eq!(name(state.write(&"k".repeat(256), None)), "key");
        let big = vec![0; limits::VALUE_BYTES_MAX];
        assert_eq!(
            name(state.write("k", Some([&big[..], b"x"].concat()))),
            "state-value-bytes"
        );
        for n in 0..3 {
            assert_eq!(name(state.write(&format!("k{n}"), Some(big.clone()))), "ok");
        }
        assert_eq!(
            name(state.write("k3", Some(big.clone()))),
            "turn-state-bytes"
        );
        assert_eq!(
            name(state.write("k2", Some(big))),
            "ok",
            "writing again replaces"
        );
        state.discard();
        for n in 0..limits::TURN_KEYS_MAX {
            assert_eq!(name(state.write(&n.to_string(), Some(Vec::new()))), "ok");
        }
        assert_eq!(
            name(state.write("one more", Some(Vec::new()))),
            "turn-keys"
        );
        assert_eq!(name(state.write("0", Some(vec![1]))), "ok");
    }

    #[test]
    fn totals_are_limited_over_turns() {
        let mut state = State::default();
        let value = vec![0; limits::VALUE_BYTES_MAX];
        let mut n = 0;
        let refused = loop {
            match name(state.write(&format!("{n:05}"), Some(value.clone()))) {
                "ok" => n += 1,
                "turn-state-bytes" => state.commit(),
                other => break other,
            }
        };
        assert_eq!(refused, "state-bytes");
        assert!(state.committed_bytes() <= limits::STATE_BYTES_MAX);
        state.commit();
        assert_eq!(
            name(state.write("00000", Some(vec![1]))),
            "ok",
            "less is allowed"
        );
    }
}
