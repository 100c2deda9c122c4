//! Random numbers that follow from the seed of a simulation.
//!
//! Invariant: what one part draws does not depend on what others drew before. Must never take anything from the
//! surroundings.

use tessera_types::Digest;
use tessera_virtual::Random;

/// A generator of its own for everything that these parts name together.
pub(crate) fn random_of(seed: u64, parts: &[&str]) -> Random {
    let mut bytes = seed.to_be_bytes().to_vec();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    let digest = Digest::of(&bytes).0;
    Random::new(digest.first_chunk::<8>().map_or(seed, |first| u64::from_be_bytes(*first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_draw_for_themselves() {
        let draw = |seed, parts: &[&str]| random_of(seed, parts).draw();
        assert_eq!(draw(1, &["a", "b"]), draw(1, &["a", "b"]));
        assert_ne!(draw(1, &["a", "b"]), draw(2, &["a", "b"]));
        assert_ne!(draw(1, &["a", "b"]), draw(1, &["ab", ""]));
    }
}
