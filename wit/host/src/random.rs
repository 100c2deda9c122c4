//! Seeded randomness of a scheduler: SHA-256 of seed, stream and counter.
//!
//! Invariants: the same seed gives the same bytes in the same order, on every machine. This file must
//! never use the machine's randomness.

use tessera_types::Digest;

/// A stream of bytes that follows from a seed.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    seed: u64,
    stream: u8,
    counter: u64,
    block: [u8; 32],
    used: usize,
}

impl Random {
    /// Streams of one seed are independent of each other.
    pub(crate) const fn new(seed: u64, stream: u8) -> Self {
        Self {
            seed,
            stream,
            counter: 0,
            block: [0; 32],
            used: 32,
        }
    }

    fn byte(&mut self) -> u8 {
        if self.used == self.block.len() {
            let mut input = [0; 17];
            input[..8].copy_from_slice(&self.seed.to_le_bytes());
            input[8] = self.stream;
            input[9..].copy_from_slice(&self.counter.to_le_bytes());
            self.block = Digest::of(&input).0;
            self.counter = self.counter.wrapping_add(1);
            self.used = 0;
        }
        let byte = self.block[self.used];
        self.used += 1;
        byte
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }

    pub(crate) fn u64(&mut self) -> u64 {
        let mut word = [0; 8];
        word.fill_with(|| self.byte());
        u64::from_le_bytes(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything() {
        let (mut a, mut b) = (Random::new(7, 0), Random::new(7, 0));
        assert_eq!(a.bytes(100), b.bytes(100));
        assert_eq!(a.u64(), b.u64());
        assert_ne!(Random::new(7, 1).u64(), Random::new(7, 0).u64());
        assert_ne!(Random::new(8, 0).u64(), Random::new(7, 0).u64());
        assert_ne!(a.u64(), a.u64());
    }
}
