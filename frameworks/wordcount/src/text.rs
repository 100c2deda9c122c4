//! Texts, words and counts: splitting a text into chunks, reading what a task counted, and the
//! form in which counts are kept.
//!
//! A word is a run of ASCII letters, in lower case; every other byte separates words. So a text may
//! be cut before or after any byte that is no letter without changing the counts. Pure; task output
//! is not trusted.

use std::collections::BTreeMap;

/// Counts by word.
pub type Counts = BTreeMap<String, u64>;

/// Why a text cannot be split.
#[derive(Debug, PartialEq, Eq)]
pub struct WordTooLong {
    /// Where the word begins, in bytes.
    pub at: usize,
}

/// Split a text into chunks of at most `limit` bytes: at a line end if there is one in the second
/// half of the chunk, at any byte that is no letter otherwise.
pub fn split(text: &[u8], limit: usize) -> Result<Vec<&[u8]>, WordTooLong> {
    let mut chunks = Vec::new();
    let mut rest = text;
    while rest.len() > limit {
        let (window, _) = rest.split_at(limit);
        let line_end = window
            .iter()
            .rposition(|byte| *byte == b'\n')
            .filter(|end| *end >= limit / 2);
        let separator = || window.iter().rposition(|byte| !byte.is_ascii_alphabetic());
        let Some(end) = line_end.or_else(separator) else {
            return Err(WordTooLong {
                at: text.len() - rest.len(),
            });
        };
        let (chunk, tail) = rest.split_at(end + 1);
        chunks.push(chunk);
        rest = tail;
    }
    if !rest.is_empty() {
        chunks.push(rest);
    }
    Ok(chunks)
}

/// How many words a text has.
pub fn count_words(text: &[u8]) -> u64 {
    let words = text
        .split(|byte| !byte.is_ascii_alphabetic())
        .filter(|word| !word.is_empty())
        .count();
    u64::try_from(words).unwrap_or(u64::MAX)
}

/// Read what a task counted: lines `<count> <word>`, blanks before the count, as `uniq -c` writes
/// them. The empty word, which `tr` makes of a separator at the start, is left out. Fails with the
/// line that is none.
pub fn parse_counts(output: &[u8]) -> Result<Counts, String> {
    let output = std::str::from_utf8(output).map_err(|error| error.to_string())?;
    let mut counts = Counts::new();
    for (index, line) in output.lines().enumerate() {
        let fault = || format!("line {} of the counts is not a count and a word", index + 1);
        let (count, word) = line
            .trim_start_matches(' ')
            .split_once(' ')
            .ok_or_else(fault)?;
        let count: u64 = count.parse().map_err(|_| fault())?;
        if word.is_empty() {
            continue;
        }
        if count == 0 || !word.bytes().all(|byte| byte.is_ascii_lowercase()) {
            return Err(fault());
        }
        add(&mut counts, word, count);
    }
    Ok(counts)
}

/// The sum of all counts.
pub fn total(counts: &Counts) -> u64 {
    counts
        .values()
        .fold(0, |sum, count| sum.saturating_add(*count))
}

/// Add `other` to `counts`.
pub fn merge(counts: &mut Counts, other: &Counts) {
    for (word, count) in other {
        add(counts, word, *count);
    }
}

fn add(counts: &mut Counts, word: &str, count: u64) {
    match counts.get_mut(word) {
        Some(sum) => *sum = sum.saturating_add(count),
        None => drop(counts.insert(word.to_owned(), count)),
    }
}

/// The form in which counts are kept: lines `<word>` or `<word> <count>`, the count left out when
/// it is 1. At most one byte longer than the text that was counted: a word of length n that comes c
/// times has c·(n+1) bytes there with its separators, and here n+1, or for c ≥ 2 n+2 and the digits
/// of c; only the last word of the text may lack its separator.
pub fn encode(counts: &Counts) -> Vec<u8> {
    let mut out = String::new();
    for (word, count) in counts {
        out.push_str(word);
        if *count != 1 {
            out.push_str(&format!(" {count}"));
        }
        out.push('\n');
    }
    out.into_bytes()
}

/// Read what [`encode`] wrote; nothing if it is not that.
pub fn decode(bytes: &[u8]) -> Option<Counts> {
    let mut counts = Counts::new();
    for line in std::str::from_utf8(bytes).ok()?.lines() {
        let (word, count) = match line.split_once(' ') {
            Some((word, count)) => (word, count.parse().ok()?),
            None => (line, 1),
        };
        add(&mut counts, word, count);
    }
    Some(counts)
}

/// A number that tells texts apart (FNV-1a, 64 bits); not a protection against intent.
pub fn fingerprint(text: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    text.iter().fold(OFFSET, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests {
    use super::{
        Counts, WordTooLong, count_words, decode, encode, fingerprint, merge, parse_counts, split,
        total,
    };

    fn naive(text: &[u8]) -> Counts {
        let mut counts = Counts::new();
        let lower = text.to_ascii_lowercase();
        for word in lower
            .split(|byte| !byte.is_ascii_lowercase())
            .filter(|word| !word.is_empty())
        {
            *counts
                .entry(String::from_utf8(word.to_vec()).unwrap())
                .or_default() += 1;
        }
        counts
    }

    /// A text of many short and long lines, by a fixed generator.
    fn sample(bytes: usize) -> Vec<u8> {
        let mut seed: u32 = 7;
        (0..bytes)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                match seed >> 24 {
                    0..=5 => b'\n',
                    6..=60 => b' ',
                    61..=70 => 0xc3,
                    other => b'a' + (other % 26) as u8,
                }
            })
            .collect()
    }

    #[test]
    fn chunks_are_whole_and_counting_them_is_counting_the_text() {
        let text = sample(200_000);
        for limit in [64, 1_000, 24 * 1024] {
            let chunks = split(&text, limit).unwrap();
            assert_eq!(chunks.concat(), text);
            assert!(
                chunks
                    .iter()
                    .all(|chunk| !chunk.is_empty() && chunk.len() <= limit)
            );
            let mut merged = Counts::new();
            for chunk in &chunks {
                merge(&mut merged, &naive(chunk));
            }
            assert_eq!(merged, naive(&text), "limit {limit}");
            let words: u64 = chunks.iter().map(|chunk| count_words(chunk)).sum();
            assert_eq!(words, total(&merged));
        }
    }

    #[test]
    fn chunks_end_at_line_ends_where_they_can() {
        assert_eq!(
            split(b"one two\nthree\n", 10).unwrap(),
            [&b"one two\n"[..], b"three\n"]
        );
        assert_eq!(
            split(b"a\nb c d e f g", 10).unwrap(),
            [&b"a\nb c d e "[..], b"f g"]
        );
        assert_eq!(split(b"ab cdefghijklmn", 10), Err(WordTooLong { at: 3 }));
        assert_eq!(split(b"", 10).unwrap(), Vec::<&[u8]>::new());
    }

    #[test]
    fn output_of_tasks_is_read_and_checked() {
        let counts = parse_counts(b"      3 \n      2 the\n     10 cat\n").unwrap();
        assert_eq!(counts.get("the"), Some(&2));
        assert_eq!(total(&counts), 12, "the empty word is left out");
        for bad in [
            &b"the 2\n"[..],
            b"2the\n",
            b"0 the\n",
            b"2 The\n",
            b"-1 the\n",
            b"1 a b\n",
            b"\n",
            b"\xff 1\n",
        ] {
            assert!(parse_counts(bad).is_err(), "{bad:?}");
        }
        assert!(parse_counts(b"").unwrap().is_empty());
    }

    #[test]
    fn kept_counts_are_read_back_and_not_longer_than_the_text() {
        let text = sample(24 * 1024);
        let counts = naive(&text);
        let kept = encode(&counts);
        assert!(kept.len() <= text.len());
        assert_eq!(decode(&kept), Some(counts));
        let few = naive(b"a a b");
        assert_eq!(encode(&few), b"a 2\nb\n");
        let pairs = naive(b"a a b b c c d d e e\n");
        assert!(encode(&pairs).len() <= 20, "the worst case");
        assert_eq!(decode(b"a x\n"), None);
    }

    #[test]
    fn fingerprints_are_those_of_fnv_1a() {
        assert_eq!(fingerprint(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
