//! A small disk of its own for one process: it can be filled, and made slow.
//!
//! Invariants: it is unmounted and gone when it is dropped; being slow ends with it. It is a file behind a
//! loop device, with ext4; slowness is the block layer's own (control groups, version 1), as there is no
//! `dm-delay` in many kernels. Needs root.

use crate::{Outcome, ensure, failure};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Bytes written at once when the disk is filled; the last ones go in one by one.
const PIECE: usize = 1 << 20;
/// Writes per second to devices, by control groups of version 1.
const WRITES: &str = "/sys/fs/cgroup/blkio/blkio.throttle.write_iops_device";

/// A mounted disk.
pub struct Disk {
    dir: PathBuf,
    /// `major:minor`.
    device: String,
}

impl Disk {
    /// A disk of so many MiB at an empty directory, kept in a file beside it.
    ///
    /// # Errors
    /// When there are no loop devices here, or no ext4.
    pub fn mount(dir: &Path, mib: u64) -> Outcome<Self> {
        let image = dir.with_extension("img");
        std::fs::create_dir_all(dir)?;
        std::fs::File::create(&image)?.set_len(mib << 20)?;
        let path = |path: &Path| path.display().to_string();
        run("mkfs.ext4", &["-q", "-m", "0", "-O", "^has_journal", &path(&image)])?;
        run("mount", &["-o", "loop,noatime", &path(&image), &path(dir)])?;
        let mut disk = Self { dir: dir.to_owned(), device: String::new() };
        disk.device = run("findmnt", &["-n", "-o", "MAJ:MIN", &path(dir)])?.trim().to_owned();
        std::fs::remove_dir(dir.join("lost+found"))?;
        Ok(disk)
    }

    fn filler(&self) -> PathBuf {
        self.dir.join("filler")
    }

    /// Nothing more can be written to it.
    ///
    /// # Errors
    /// When it cannot be filled.
    pub fn fill(&self) -> Outcome {
        let mut file = std::fs::File::options().create(true).append(true).open(self.filler())?;
        let bytes = vec![0; PIECE];
        let mut size = PIECE;
        while size > 0 {
            match file.write(&bytes[..size]) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => size /= 2,
                Err(error) => return Err(error.into()),
            }
        }
        // Blocks are allotted when they are written back; before that the disk only seems full.
        match file.sync_all() {
            Err(error) if error.kind() != std::io::ErrorKind::StorageFull => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// There is room again.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn free(&self) -> Outcome {
        match std::fs::remove_file(self.filler()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether this machine can slow a disk down.
    #[must_use]
    pub fn can_be_slow() -> bool {
        Path::new(WRITES).exists()
    }

    /// So many writes in a second and no more, or as many as it can.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_writes_per_second(&self, writes: Option<u32>) -> Outcome {
        std::fs::write(WRITES, format!("{} {}", self.device, writes.unwrap_or(0)))
            .map_err(|error| failure(format!("{WRITES}: {error}")))
    }
}

impl Disk {
    /// Whatever is written to it waits from now on, or goes on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_frozen(&self, frozen: bool) -> Outcome {
        let how = if frozen { "--freeze" } else { "--unfreeze" };
        run("fsfreeze", &[how, &self.dir.display().to_string()]).map(|_| ())
    }

    /// How long a small write takes until it is synced, as a log's does that grows. It blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn synced_write(&self) -> Outcome<Duration> {
        let path = self.dir.join("probe");
        let mut file = std::fs::File::options().create(true).append(true).open(&path)?;
        let began = Instant::now();
        file.write_all(&[1; 4_096])?;
        file.sync_data()?;
        let took = began.elapsed();
        std::fs::remove_file(&path)?;
        Ok(took)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that failed meanwhile leaves it so; what is not frozen refuses.
        let _ = self.set_frozen(false);
        if Self::can_be_slow() && !self.device.is_empty() {
            let _ = self.set_writes_per_second(None);
        }
        // Lazily: whoever still has a file open there must not keep it.
        if let Err(error) = run("umount", &["-l", &self.dir.display().to_string()]) {
            eprintln!("{error}");
        }
    }
}

fn run(program: &str, args: &[&str]) -> Outcome<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| failure(format!("`{program}` cannot be run: {error}")))?;
    ensure(output.status.success(), || {
        format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr))
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
