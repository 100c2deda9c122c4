//! Bytes and images of components that nothing here uses any more: kept for a while, because what ended is
//! often started again, but not for ever.
//!
//! Invariants: what is used is never removed; bytes and images of a component go together, those of which the
//! use is longest ago first; a file loses its name before it goes, so that it is there or not. This file
//! must never decide what is used.

use crate::images::IMAGES_DIR;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tessera_types::Digest;

/// Path in a question that stands for what is kept here.
pub const LISTING: &str = "caches";
/// How often is looked.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);
/// What was not used for so long goes: it is fetched and compiled again in seconds when it is needed.
const UNUSED_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Both folders.
#[derive(Debug)]
pub struct Caches {
    components: PathBuf,
    images: PathBuf,
    bytes_max: u64,
}

/// What is kept of one component.
#[derive(Debug)]
struct Kept {
    files: Vec<PathBuf>,
    bytes: u64,
    used: SystemTime,
}

/// How many files, and how large they are together.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Sum {
    count: u64,
    bytes: u64,
}

/// What is shown to people.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Listing {
    components: Sum,
    images: Sum,
    /// Components that are used; none when that is not known yet.
    in_use: Option<usize>,
    bytes_max: u64,
    unused_kept_s: u64,
}

impl Caches {
    /// Those below a work directory, which together have at most so many bytes; what is used stays in any case.
    #[must_use]
    pub fn new(work_dir: &Path, bytes_max: u64) -> Self {
        Self {
            components: work_dir.join(crate::components::COMPONENTS_DIR),
            images: work_dir.join(IMAGES_DIR),
            bytes_max,
        }
    }

    fn look(&self) -> io::Result<BTreeMap<Digest, Kept>> {
        let mut kept: BTreeMap<Digest, Kept> = BTreeMap::new();
        for dir in [&self.components, &self.images] {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                let Some(digest) = digest_of(&entry.file_name().to_string_lossy()) else { continue };
                let about = match entry.metadata() {
                    Ok(about) => about,
                    // It is being removed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                let used = about.modified()?;
                let of = kept.entry(digest).or_insert(Kept { files: Vec::new(), bytes: 0, used });
                of.files.push(entry.path());
                of.bytes += about.len();
                of.used = of.used.max(used);
            }
        }
        Ok(kept)
    }

    /// What has to go. That something is used is written down as the time of its files.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn excess(
        &self,
        in_use: &BTreeSet<Digest>,
        now: SystemTime,
    ) -> io::Result<Vec<(Digest, Vec<PathBuf>)>> {
        let mut kept = self.look()?;
        let mut bytes: u64 = kept.values().map(|of| of.bytes).sum();
        for digest in in_use {
            for file in kept.remove(digest).into_iter().flat_map(|of| of.files) {
                fs::File::open(&file)?.set_modified(now)?;
            }
        }
        let mut unused: Vec<(Digest, Kept)> = kept.into_iter().collect();
        unused.sort_by_key(|(digest, of)| (of.used, *digest));
        let mut excess = Vec::new();
        for (digest, of) in unused {
            let old = now.duration_since(of.used).is_ok_and(|age| age >= UNUSED_KEPT);
            if !old && bytes <= self.bytes_max {
                break;
            }
            bytes -= of.bytes;
            excess.push((digest, of.files));
        }
        Ok(excess)
    }

    /// As JSON: how much is kept, and the bounds.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn listing(&self, in_use: Option<BTreeSet<Digest>>) -> io::Result<Vec<u8>> {
        let sum = |files: &BTreeMap<Digest, Kept>, dir: &Path| {
            let mut sum = Sum::default();
            for file in files.values().flat_map(|of| &of.files).filter(|file| file.starts_with(dir)) {
                sum.count += 1;
                // It may be removed meanwhile.
                sum.bytes += file.metadata().map_or(0, |about| about.len());
            }
            sum
        };
        let kept = self.look()?;
        let listing = Listing {
            components: sum(&kept, &self.components),
            images: sum(&kept, &self.images),
            in_use: in_use.map(|used| used.len()),
            bytes_max: self.bytes_max,
            unused_kept_s: UNUSED_KEPT.as_secs(),
        };
        Ok(serde_json::to_vec(&listing)?)
    }
}

/// Of `sha256-<digest>.wasm` and `<digest>-<engine>.cwasm`.
fn digest_of(name: &str) -> Option<Digest> {
    let hex = match name.strip_prefix("sha256-") {
        Some(rest) => rest.strip_suffix(".wasm")?,
        None => name.strip_suffix(".cwasm")?.split_once('-')?.0,
    };
    format!("sha256:{hex}").parse().ok()
}

/// Take the names of files away at once; where they are then. A start of the agent finishes what is cut off.
pub fn unname(files: Vec<PathBuf>) -> Vec<PathBuf> {
    let unnamed = files.into_iter().filter_map(|file| {
        let name = file.file_name()?.to_string_lossy().into_owned();
        let gone = file.with_file_name(format!("{GONE_PREFIX}{name}.tmp"));
        match fs::rename(&file, &gone) {
            Ok(()) => Some(gone),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "a file that nothing needs could not be removed");
                None
            }
        }
    });
    unnamed.collect()
}

/// How files begin that are about to go.
pub const GONE_PREFIX: &str = "gone-";

/// Remove them; blocks.
pub fn remove(files: Vec<PathBuf>) {
    for file in files {
        if let Err(error) = fs::remove_file(&file) {
            tracing::warn!(file = %file.display(), %error, "a file that nothing needs could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// A component of 10 bytes with an image of 90, which were used so many days ago.
    fn put(dir: &Path, name: &str, now: SystemTime, days: u32) -> Digest {
        let digest = Digest::of(name.as_bytes());
        let files = [
            (dir.join(format!("components/sha256-{}.wasm", digest.hex())), 10),
            (dir.join(format!("images/{}-48.0-p1.cwasm", digest.hex())), 90),
        ];
        for (file, bytes) in files {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, vec![0; bytes]).unwrap();
            fs::File::open(&file).unwrap().set_modified(now - days * DAY).unwrap();
        }
        digest
    }

    #[test]
    fn what_was_not_used_for_long_and_what_is_too_much_goes_and_what_is_used_stays() {
        // Used days ago, and whether it is used now; the bytes that may be kept; what goes.
        let rows: [(&[(u32, bool)], u64, &[usize]); 7] = [
            (&[(0, false), (3, false)], 1_000, &[]),
            (&[(0, false), (7, false), (9, false)], 1_000, &[2, 1]),
            (&[(0, false), (7, true), (9, true)], 1_000, &[]),
            (&[(1, false), (3, false), (2, false)], 200, &[1]),
            (&[(1, false), (3, true), (2, false)], 200, &[2]),
            (&[(1, true), (3, true), (2, false)], 100, &[2]),
            (&[(1, true), (3, true)], 0, &[]),
        ];
        for (at, (held, bytes_max, goes)) in rows.into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let now = SystemTime::now();
            let digests: Vec<Digest> = held
                .iter()
                .enumerate()
                .map(|(n, (days, _))| put(dir.path(), &format!("c{n}"), now, *days))
                .collect();
            let used = digests.iter().zip(held).filter(|(_, (_, used))| *used);
            let used: BTreeSet<Digest> = used.map(|(digest, _)| *digest).collect();
            let caches = Caches::new(dir.path(), bytes_max);
            let excess = caches.excess(&used, now).unwrap();
            let found: Vec<Digest> = excess.iter().map(|(digest, _)| *digest).collect();
            let expected: Vec<Digest> = goes.iter().map(|at| digests[*at]).collect();
            assert_eq!(found, expected, "row {at}");
            for (_, files) in excess {
                assert_eq!(files.len(), 2, "row {at}");
                remove(unname(files));
            }
            let left = caches.look().unwrap();
            assert_eq!(left.len(), digests.len() - goes.len(), "row {at}");
            // What is used has been used now, whenever it is looked next.
            assert!(used.iter().all(|digest| left[digest].used == now), "row {at}");
        }
    }

    #[test]
    fn what_is_kept_is_told_and_other_files_are_none_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let digest = put(dir.path(), "c", SystemTime::now(), 0);
        fs::write(dir.path().join("components/fetch-0"), "half").unwrap();
        fs::write(dir.path().join("images/0-older.cwasm"), "other").unwrap();
        let caches = Caches::new(dir.path(), 5);
        let told = |used| serde_json::from_slice::<serde_json::Value>(&caches.listing(used).unwrap()).unwrap();
        let expected = serde_json::json!({
            "components": {"count": 1, "bytes": 10}, "images": {"count": 1, "bytes": 90},
            "in_use": 1, "bytes_max": 5, "unused_kept_s": 604_800,
        });
        assert_eq!(told(Some(BTreeSet::from([digest]))), expected);
        assert!(told(None)["in_use"].is_null());
        // What lost its name is gone after the next start, if not before.
        unname(caches.look().unwrap().remove(&digest).unwrap().files);
        assert!(caches.look().unwrap().is_empty());
        crate::components::Components::open(dir.path()).unwrap();
        crate::images::Images::open(dir.path(), dir.path()).unwrap();
        let left = |name: &str| fs::read_dir(dir.path().join(name)).unwrap().count();
        assert_eq!((left("components"), left("images")), (0, 1), "the image of another engine");
    }
}
