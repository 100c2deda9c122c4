//! Writes the table of what `tessera framework new` puts into a project: the SDK and the contract, as they
//! are in this source tree.
//!
//! Must never fetch anything, nor change a file that it lists.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Folders and files of the repository that a project needs. The manifests are rewritten, as they inherit
/// from the workspace of guests.
const SOURCES: [&str; 5] = [
    "sdk/rust/src",
    "sdk/rust/Cargo.toml",
    "wit/framework",
    "frameworks/Cargo.toml",
    "frameworks/Cargo.lock",
];

fn main() -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for source in SOURCES {
        println!("cargo::rerun-if-changed=../{source}");
        collect(&root.join(source), source, &mut files)?;
    }
    files.sort();
    let mut table = String::from("&[\n");
    for (name, path) in files {
        table.push_str(&format!("    ({name:?}, include_str!({:?})),\n", path.canonicalize()?));
    }
    table.push_str("]\n");
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?;
    fs::write(Path::new(&out).join("sdk_files.rs"), table)
}

fn collect(path: &Path, name: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            collect(&entry.path(), &name, files)?;
        }
    } else {
        files.push((name.to_owned(), path.to_owned()));
    }
    Ok(())
}
