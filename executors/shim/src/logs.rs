//! The task's standard output and standard error: pipes that the shim reads into rotated files of the
//! sandbox.
//!
//! Invariants: files are made new, never followed or overwritten, because the task may have put anything
//! in their place; a full disk drops output and counts it, and never blocks the task; the rotated files
//! are bounded in number and size. This file must never interpret what it copies.

use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, pipe2, unlinkat};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use tessera_oci::ShimSpec;

/// Bytes copied at once: what a pipe holds.
const CHUNK_BYTES: usize = 64 << 10;

/// One of the two outputs.
pub struct Output {
    name: &'static str,
    pipe: Option<File>,
    file: Option<File>,
    written: u64,
}

/// Both outputs of a task.
pub struct Logs {
    sandbox: OwnedFd,
    owner: Option<(Uid, Gid)>,
    bytes_max: u64,
    kept: u32,
    outputs: [Output; 2],
    write_ends: Option<(OwnedFd, OwnedFd)>,
    buffer: Vec<u8>,
    /// Bytes that could not be written.
    pub dropped: u64,
}

impl Logs {
    /// Make pipes and first files.
    pub fn create(spec: &ShimSpec) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let sandbox = open(&spec.sandbox, flags, Mode::empty())?;
        let (out_read, out_write) = pipe2(OFlag::O_CLOEXEC)?;
        let (err_read, err_write) = pipe2(OFlag::O_CLOEXEC)?;
        let output = |name, pipe: OwnedFd| Output {
            name,
            pipe: Some(pipe.into()),
            file: None,
            written: 0,
        };
        let mut logs = Self {
            sandbox,
            owner: spec
                .user
                .as_ref()
                .map(|user| (Uid::from_raw(user.uid), Gid::from_raw(user.gid))),
            bytes_max: spec.log_bytes_max.max(1),
            kept: spec.log_files_kept,
            outputs: [output("stdout", out_read), output("stderr", err_read)],
            write_ends: Some((out_write, err_write)),
            buffer: vec![0; CHUNK_BYTES],
            dropped: 0,
        };
        for index in 0..logs.outputs.len() {
            let name = logs.outputs[index].name;
            logs.outputs[index].file = Some(logs.make(name)?);
        }
        Ok(logs)
    }

    /// The ends that the program gets.
    pub fn write_ends(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        match &self.write_ends {
            Some((out, err)) => (out.as_fd(), err.as_fd()),
            None => (self.sandbox.as_fd(), self.sandbox.as_fd()),
        }
    }

    /// Let only the program hold them, so that their end is seen.
    pub fn close_write_ends(&mut self) {
        self.write_ends = None;
    }

    /// The pipes that are still open, with their index.
    pub fn open_pipes(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.outputs
            .iter()
            .enumerate()
            .filter_map(|(index, output)| Some((index, output.pipe.as_ref()?.as_fd())))
    }

    /// Copy once from a pipe that has something.
    pub fn copy(&mut self, index: usize) {
        let Some(pipe) = self
            .outputs
            .get_mut(index)
            .and_then(|output| output.pipe.as_mut())
        else {
            return;
        };
        match pipe.read(&mut self.buffer) {
            Ok(0) => self.outputs[index].pipe = None,
            Ok(length) => self.write(index, length),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.outputs[index].pipe = None,
        }
    }

    fn write(&mut self, index: usize, length: usize) {
        if self.outputs[index].written >= self.bytes_max {
            self.rotate(index);
        }
        let output = &mut self.outputs[index];
        let written = match &mut output.file {
            Some(file) => file.write_all(&self.buffer[..length]).is_ok(),
            None => false,
        };
        if written {
            output.written += length as u64;
        } else {
            self.dropped += length as u64;
        }
    }

    /// Move `name` to `name.1` and so on, the oldest away, and begin a new file.
    fn rotate(&mut self, index: usize) {
        let name = self.outputs[index].name;
        let old = |number: u32| {
            if number == 0 {
                name.to_owned()
            } else {
                format!("{name}.{number}")
            }
        };
        if self.kept == 0 {
            // Renaming and removing act on the entry itself and so cannot be led elsewhere.
            let _ = unlinkat(&self.sandbox, name, UnlinkatFlags::NoRemoveDir);
        }
        for number in (0..self.kept).rev() {
            let _ = renameat(
                &self.sandbox,
                old(number).as_str(),
                &self.sandbox,
                old(number + 1).as_str(),
            );
        }
        self.outputs[index].written = 0;
        self.outputs[index].file = self.make(name).ok();
    }

    fn make(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_WRONLY
            | OFlag::O_CREAT
            | OFlag::O_EXCL
            | OFlag::O_NOFOLLOW
            | OFlag::O_APPEND
            | OFlag::O_CLOEXEC;
        // Whatever the task put there gives way; a directory does not, and then output is dropped.
        match unlinkat(&self.sandbox, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::Error::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let file = openat(&self.sandbox, name, flags, Mode::from_bits_truncate(0o644))?;
        if let (Some((uid, gid)), true) = (self.owner, Uid::effective().is_root()) {
            fchown(&file, Some(uid), Some(gid))?;
        }
        Ok(file.into())
    }
}
