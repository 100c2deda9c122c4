//! Recordings of instances: frames that carry a chain of digests, and what a recording covers.
//!
//! Invariants: a frame whose chain does not follow from the frames before it is never taken for one of
//! the recording; reading ends without an error at a frame that was written by half, which is what a
//! worker that died leaves behind. This file must never open a file.

use crate::{frame, v1};
use prost::Message;
use std::io::{self, Read};
use tessera_types::Digest;
use v1::recording_item::Item;

/// Layout of recordings that this version writes and reads.
pub const RECORDING_FORMAT: u32 = 1;

/// Name of the file of one life, without its directory.
#[must_use]
pub fn file_name(epoch: u64, life: u64) -> String {
    format!("e{epoch}-{life}.rec")
}

/// Epoch and life of a recording's file; none when it is the name of something else.
#[must_use]
pub fn parse_file_name(name: &str) -> Option<(u64, u64)> {
    let (epoch, life) = name
        .strip_prefix('e')?
        .strip_suffix(".rec")?
        .split_once('-')?;
    let found = (epoch.parse().ok()?, life.parse().ok()?);
    (file_name(found.0, found.1) == name).then_some(found)
}

fn follow(chain: [u8; 32], item: &[u8]) -> [u8; 32] {
    Digest::of(&[&chain, item].concat()).0
}

/// Makes frames, each bound to all before it.
#[derive(Clone, Debug, Default)]
pub struct Sealer {
    chain: [u8; 32],
}

impl Sealer {
    /// Append an item as one frame.
    pub fn seal(&mut self, item: Item, buffer: &mut Vec<u8>) {
        let item = v1::RecordingItem { item: Some(item) }.encode_to_vec();
        self.chain = follow(self.chain, &item);
        let chain = self.chain.to_vec();
        frame::encode(&v1::RecordingFrame { item, chain }, buffer);
    }
}

/// What a frame came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Unsealed {
    /// An item as it was written.
    Item(Item),
    /// The frame is not as it was written; what follows cannot be trusted either.
    Altered,
}

/// Reads frames and holds their chain.
#[derive(Debug)]
pub struct Unsealer<R> {
    reader: R,
    chain: [u8; 32],
}

impl<R: Read> Unsealer<R> {
    /// Read from the beginning of a recording.
    pub const fn new(reader: R) -> Self {
        Self {
            reader,
            chain: [0; 32],
        }
    }

    /// The next item; none at the end, and at a frame that was written by half.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn next_item(&mut self) -> io::Result<Option<Unsealed>> {
        let frame = match frame::read::<v1::RecordingFrame>(&mut self.reader) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Ok(Some(Unsealed::Altered));
            }
            Err(error) => return Err(error),
        };
        self.chain = follow(self.chain, &frame.item);
        let item = v1::RecordingItem::decode(frame.item.as_slice())
            .ok()
            .and_then(|item| item.item);
        Ok(Some(match item {
            Some(item) if frame.chain == self.chain => Unsealed::Item(item),
            _ => Unsealed::Altered,
        }))
    }
}

/// What a recording covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Epoch of the instance.
    pub epoch: u64,
    /// Its life in that epoch.
    pub life: u64,
    /// Number of the first turn in it; absent when it has none.
    pub first_turn: Option<u64>,
    /// Number of the last turn in it.
    pub last_turn: Option<u64>,
    /// Recording ended before the life did, at the limit `recording-bytes`.
    pub stopped: bool,
    /// The life has ended with a failure that is in it.
    pub failed: bool,
}

/// What a recording covers, up to the first frame that is not as it was written.
///
/// # Errors
/// Those of the reader.
pub fn summarize(reader: impl Read) -> io::Result<Summary> {
    let mut items = Unsealer::new(reader);
    let mut summary = Summary::default();
    while let Some(Unsealed::Item(item)) = items.next_item()? {
        match item {
            Item::Header(header) => (summary.epoch, summary.life) = (header.epoch, header.life),
            Item::Batch(batch) => {
                summary.first_turn.get_or_insert(batch.number);
                summary.last_turn = Some(batch.number);
            }
            Item::Failure(_) => summary.failed = true,
            Item::Stopped(_) => summary.stopped = true,
            Item::State(_) | Item::Turn(_) | Item::Outcome(_) | Item::Limits(_) => {}
        }
    }
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(number: u64) -> Item {
        Item::Batch(v1::Batch {
            number,
            ..v1::Batch::default()
        })
    }

    fn recording() -> Vec<u8> {
        let header = Item::Header(v1::RecordingHeader {
            format: RECORDING_FORMAT,
            epoch: 3,
            life: 2,
            ..v1::RecordingHeader::default()
        });
        let (mut sealer, mut bytes) = (Sealer::default(), Vec::new());
        for item in [header, batch(7), Item::Turn(vec![1]), batch(8), Item::Stopped(9)] {
            sealer.seal(item, &mut bytes);
        }
        bytes
    }

    #[test]
    fn a_recording_tells_what_it_covers() {
        let whole = Summary {
            epoch: 3,
            life: 2,
            first_turn: Some(7),
            last_turn: Some(8),
            stopped: true,
            failed: false,
        };
        let bytes = recording();
        assert_eq!(summarize(bytes.as_slice()).unwrap(), whole);
        let half = summarize(&bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(half, Summary { stopped: false, ..whole }, "the last frame is cut");
    }

    #[test]
    fn whatever_is_changed_is_found_where_it_is() {
        let good = recording();
        let read = |bytes: &[u8]| {
            let mut items = Unsealer::new(bytes);
            let mut count = 0;
            loop {
                match items.next_item().unwrap() {
                    Some(Unsealed::Item(_)) => count += 1,
                    end => return (count, end),
                }
            }
        };
        assert_eq!(read(&good), (5, None));
        for at in 4..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let (count, end) = read(&bad);
            assert!(count < 5, "byte {at}");
            // A length that was made larger looks like a frame that was written by half.
            assert!(matches!(end, Some(Unsealed::Altered) | None), "byte {at}");
        }
        // A frame that is left out breaks the chain of the next one.
        let second = 4 + u32::from_le_bytes(good[..4].try_into().unwrap()) as usize;
        let third = second + 4 + u32::from_le_bytes(good[second..second + 4].try_into().unwrap()) as usize;
        let without = [&good[..second], &good[third..]].concat();
        assert_eq!(read(&without), (1, Some(Unsealed::Altered)));
    }

    #[test]
    fn files_are_named_by_epoch_and_life() {
        assert_eq!(parse_file_name(&file_name(3, 12)), Some((3, 12)));
        for other in ["e3-12", "e3-12.rec.tmp", "x3-1.rec", "e03-1.rec", "e-1.rec", "e3--1.rec"] {
            assert_eq!(parse_file_name(other), None, "{other}");
        }
    }
}
