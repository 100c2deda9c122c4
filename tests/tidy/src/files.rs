//! Which files the rules are about. Owns the walk over the working tree and the sorting of
//! its files into kinds; reads no content.
//!
//! Build output, version control and hidden folders other than `.ci` and `.config` are left
//! out; files that are not committed yet are included on purpose.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a file is, as far as rules differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Rust of a host crate.
    HostRust,
    /// Rust of the SDK, of a framework or of a test guest.
    GuestRust,
    /// A `Cargo.toml`.
    Manifest,
    /// Scripts, contracts, documents and settings.
    Text,
    /// Everything else.
    Other,
}

/// A file of the repository.
#[derive(Debug, Clone)]
pub struct RepoFile {
    /// Path below the root, with `/`.
    pub path: String,
    /// Where it is.
    pub absolute: PathBuf,
    /// What it is.
    pub kind: FileKind,
}

const GUEST_FOLDERS: [&str; 3] = ["sdk/", "frameworks/", "tests/guests/"];
const TEXT_ENDINGS: [&str; 9] = [
    ".toml", ".md", ".wit", ".proto", ".sh", ".py", ".yml", ".json", "Makefile",
];
const TEXT_FOLDERS: [&str; 2] = ["scripts/", ".ci/"];
const HIDDEN_BUT_OURS: [&str; 2] = [".ci", ".config"];

/// The root of the clone that this crate was built from.
pub fn clone_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Whether `path` belongs to the guest side.
pub(crate) fn is_guest(path: &str) -> bool {
    GUEST_FOLDERS.iter().any(|folder| path.starts_with(folder))
}

fn kind_of(path: &str) -> FileKind {
    if path.ends_with(".rs") {
        if is_guest(path) {
            FileKind::GuestRust
        } else {
            FileKind::HostRust
        }
    } else if path.ends_with("Cargo.toml") {
        FileKind::Manifest
    } else if TEXT_FOLDERS.iter().any(|folder| path.starts_with(folder))
        || TEXT_ENDINGS.iter().any(|ending| path.ends_with(ending))
    {
        FileKind::Text
    } else {
        FileKind::Other
    }
}

/// All files below `root`, sorted by path.
///
/// # Errors
/// When a folder cannot be read.
pub fn walk(root: &Path) -> io::Result<Vec<RepoFile>> {
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if folder.is_empty() {
                name.clone()
            } else {
                format!("{folder}/{name}")
            };
            let file_type = entry.file_type()?;
            if file_type.is_dir() {
                let hidden = name.starts_with('.') && !HIDDEN_BUT_OURS.contains(&name.as_str());
                if !hidden && name != "target" {
                    folders.push(path);
                }
            } else if file_type.is_file() {
                let kind = kind_of(&path);
                files.push(RepoFile {
                    absolute: entry.path(),
                    path,
                    kind,
                });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_sorted_into_kinds() {
        let cases = [
            ("master/core/src/lib.rs", FileKind::HostRust),
            ("frameworks/run/src/lib.rs", FileKind::GuestRust),
            ("tests/guests/spin/src/lib.rs", FileKind::GuestRust),
            ("cli/Cargo.toml", FileKind::Manifest),
            ("scripts/setup", FileKind::Text),
            ("wit/framework/types.wit", FileKind::Text),
            ("Cargo.lock", FileKind::Other),
        ];
        for (path, kind) in cases {
            assert_eq!(kind_of(path), kind, "{path}");
        }
    }

    #[test]
    fn the_walk_leaves_out_build_output_and_hidden_folders() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["a/src", "target/debug", ".git", ".ci"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for file in [
            "a/src/lib.rs",
            "target/debug/x.rs",
            ".git/config",
            ".ci/run",
        ] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let paths: Vec<_> = walk(dir.path())
            .unwrap()
            .into_iter()
            .map(|file| file.path)
            .collect();
        assert_eq!(paths, [".ci/run", "a/src/lib.rs"]);
    }
}
