//! Compiled components on disk: written by the compile process, loaded by workers.
//!
//! Invariants: a file is loaded only if it is owned by this user or by root, writable for nobody else,
//! written under this engine's key and whole; everything else is refused before it reaches the
//! runtime, which trusts what it is given as native code. A file is opened before its writer gives up
//! its user, so that it belongs to the agent's, and is put in its place by the agent. This file must
//! never load what a user uploaded.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use tessera_types::Digest;
use tessera_wit_host::engine_key;
use wasmtime::Engine;
use wasmtime::component::Component;

/// First bytes of every image; the digit counts layouts.
const MAGIC: &[u8; 16] = b"tessera-image-1\n";
/// Bytes of an image: compiled code is a few times larger than a component of the largest size.
const IMAGE_BYTES_MAX: u64 = 1 << 30;

/// Why an image was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("the image cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Somebody else may have written it.
    #[error("the image {0}")]
    Untrusted(&'static str),
    /// Compiled by another engine.
    #[error("the image was compiled for {given}, this is {ours}")]
    OtherEngine {
        /// The file's key.
        given: String,
        /// This engine's key.
        ours: String,
    },
    /// Cut or changed.
    #[error("the image is damaged: {0}")]
    Damaged(&'static str),
    /// The runtime does not take it.
    #[error("the image does not load: {0}")]
    Runtime(String),
}

/// Open a file that an image can be written to: readable for the user that a worker runs as, writable
/// for nobody but this one.
///
/// # Errors
/// When it cannot be made.
pub fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_NOFOLLOW)
        .mode(0o644)
        .open(path)
}

/// Write an image to an empty file and sync it.
///
/// # Errors
/// When the component cannot be serialized or the file not be written.
pub fn write(engine: &Engine, component: &Component, source: Digest, file: &mut File) -> io::Result<()> {
    let code = component
        .serialize()
        .map_err(|error| io::Error::other(format!("{error:#}")))?;
    let key = engine_key(engine);
    let key_length = u8::try_from(key.len()).map_err(io::Error::other)?;
    file.write_all(MAGIC)?;
    file.write_all(&[key_length])?;
    file.write_all(key.as_bytes())?;
    file.write_all(&source.0)?;
    file.write_all(&Digest::of(&code).0)?;
    file.write_all(&code)?;
    file.sync_all()
}

/// Load an image and tell which component it was compiled from.
///
/// # Errors
/// When it is not one that this host's compiler wrote for this engine.
pub fn load(engine: &Engine, path: &Path) -> Result<(Component, Digest), LoadError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let metadata = file.metadata()?;
    let user = nix::unistd::geteuid().as_raw();
    if !metadata.is_file() || (metadata.uid() != user && metadata.uid() != 0) {
        return Err(LoadError::Untrusted("is owned by another user"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(LoadError::Untrusted(
            "is writable for others than its owner",
        ));
    }
    if metadata.len() > IMAGE_BYTES_MAX {
        return Err(LoadError::Untrusted("is larger than any image"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    file.take(IMAGE_BYTES_MAX).read_to_end(&mut bytes)?;
    let (key, source, code) = parse(&bytes)?;
    let ours = engine_key(engine);
    if key != ours {
        return Err(LoadError::OtherEngine {
            given: key.to_owned(),
            ours,
        });
    }
    let component = deserialize(engine, code)?;
    Ok((component, source))
}

fn parse(bytes: &[u8]) -> Result<(&str, Digest, &[u8]), LoadError> {
    let cut = || LoadError::Damaged("it is cut");
    let rest = bytes
        .strip_prefix(MAGIC)
        .ok_or(LoadError::Damaged("it does not begin as one"))?;
    let (length, rest) = rest.split_first().ok_or_else(cut)?;
    let (key, rest) = rest
        .split_at_checked(usize::from(*length))
        .ok_or_else(cut)?;
    let key = std::str::from_utf8(key).map_err(|_| LoadError::Damaged("its key is no text"))?;
    let (source, rest) = rest.split_at_checked(32).ok_or_else(cut)?;
    let (sum, code) = rest.split_at_checked(32).ok_or_else(cut)?;
    if Digest::of(code).0 != *sum {
        return Err(LoadError::Damaged("its code does not match its digest"));
    }
    let source = Digest::from_slice(source).map_err(|_| cut())?;
    Ok((key, source, code))
}

#[allow(unsafe_code)]
fn deserialize(engine: &Engine, code: &[u8]) -> Result<Component, LoadError> {
    // SAFETY: the caller has checked that the file can only have been opened for writing by this user or
    // root, which are those that start the compile process, under the same engine key, and that its
    // content is whole; the bytes are in memory and cannot change any more.
    let component = unsafe { Component::deserialize(engine, code) };
    component.map_err(|error| LoadError::Runtime(format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use tessera_wit_host::new_engine;

    /// The smallest component: a header and nothing else.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    #[test]
    fn images_round_trip_and_everything_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let engine = new_engine().unwrap();
        let component = Component::from_binary(&engine, EMPTY).unwrap();
        let source = Digest::of(EMPTY);
        write(&engine, &component, source, &mut create(&path).unwrap()).unwrap();
        assert_eq!(load(&engine, &path).unwrap().1, source);

        let good = std::fs::read(&path).unwrap();
        let mut other_key = good.clone();
        other_key[20] ^= 1;
        let mut changed = good.clone();
        *changed.last_mut().unwrap() ^= 1;
        let bare = component.serialize().unwrap();
        for (bytes, what) in [
            (other_key, "compiled for"),
            (changed, "damaged"),
            (good[..good.len() / 2].to_vec(), "damaged"),
            (good[..20].to_vec(), "cut"),
            (bare, "damaged"),
            (Vec::new(), "damaged"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = load(&engine, &path).err().unwrap().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
        std::fs::write(&path, good).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(load(&engine, &path), Err(LoadError::Untrusted(_))));
    }
}
