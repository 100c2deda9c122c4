//! Finds what was built: the binaries and the guests.
//!
//! Must never build anything.

use crate::{Outcome, failure};
use std::path::PathBuf;

/// The directory of `tessera` and its helpers.
///
/// # Errors
/// When it was not built.
pub fn bin_dir() -> Outcome<PathBuf> {
    let exe = std::env::current_exe()?;
    // A test binary stands one directory deeper than a program.
    exe.ancestors()
        .skip(1)
        .take(2)
        .find(|dir| dir.join("tessera").is_file())
        .map(PathBuf::from)
        .ok_or_else(|| failure("`tessera` is not built: cargo build --workspace"))
}

/// A built program.
///
/// # Errors
/// When it was not built.
pub fn program(name: &str) -> Outcome<PathBuf> {
    let path = bin_dir()?.join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(failure(format!(
            "{} is not built: cargo build --workspace",
            path.display()
        )))
    }
}

/// The file of a guest, by its name without `.wasm`.
///
/// # Errors
/// When it was not built.
pub fn guest(name: &str) -> Outcome<PathBuf> {
    let dir = match std::env::var_os("TESSERA_COMPONENTS") {
        Some(dir) => PathBuf::from(dir),
        None => bin_dir()?.join("../guests/wasm32-wasip2/release"),
    };
    // Cargo writes libraries with underscores and programs as they are called.
    let candidates =
        [name.to_owned(), name.replace('-', "_")].map(|name| dir.join(format!("{name}.wasm")));
    candidates
        .iter()
        .find(|path| path.is_file())
        .cloned()
        .ok_or_else(|| {
            failure(format!(
                "{} is not built: scripts/build-guests",
                candidates
                    .map(|path| path.display().to_string())
                    .join(" or ")
            ))
        })
}
