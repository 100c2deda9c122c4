//! Finds what was built: the binaries and the guests.
//!
//! Must never build anything.

use crate::{Outcome, failure};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Where guests stand in the target directory.
const GUESTS: &str = "guests/wasm32-wasip2/release";

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

/// The target directory as an ordinary user can use it: the one that was built, or, when it or one
/// above it is closed to others, a copy below `scene`, which is made once.
///
/// # Errors
/// When it was not built or cannot be copied.
pub fn target_for_everybody(scene: &Path) -> Outcome<PathBuf> {
    let built = bin_dir()?;
    let target = built
        .parent()
        .ok_or_else(|| failure("`tessera` stands in no directory"))?;
    let mut above = target.canonicalize()?;
    while is_open(&above) {
        if !above.pop() {
            return Ok(target.to_owned());
        }
    }
    let copy = scene.join("target");
    if !copy.exists() {
        let programs = ["tessera", "tessera-shim", "tessera-worker"].map(|name| built.join(name));
        let guests = std::fs::read_dir(target.join(GUESTS))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "wasm")
            });
        for file in programs.into_iter().chain(guests) {
            let to = copy.join(file.strip_prefix(target)?);
            std::fs::create_dir_all(to.parent().unwrap_or(&copy))?;
            std::fs::copy(&file, &to)?;
        }
    }
    Ok(copy)
}

/// Whether others may pass through a directory.
fn is_open(dir: &Path) -> bool {
    std::fs::metadata(dir).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0)
}

/// The file of a guest, by its name without `.wasm`.
///
/// # Errors
/// When it was not built.
pub fn guest(name: &str) -> Outcome<PathBuf> {
    let dir = match std::env::var_os("TESSERA_COMPONENTS") {
        Some(dir) => PathBuf::from(dir),
        None => bin_dir()?.join("..").join(GUESTS),
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
