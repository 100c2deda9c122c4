//! Sandboxes: the directory of one attempt of one task, its files, and reading from it safely.
//!
//! Layout: `tasks/f<framework>/<task>/<attempt>` belongs to the task; `<attempt>.state` beside it
//! belongs to the agent and the shim, and is there for native ones only: of what a short Wasm task costs, each
//! directory is a twentieth. Children of an executor stand in
//! `tasks/f<framework>/@<executor>/<life>/<child>/…`: no task's id begins with `@`. Invariants: what a task put into its sandbox never leads out of
//! it: every path is resolved by the kernel beneath the sandbox, without following links; only ordinary
//! files are read, and never more than asked for.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tessera_agent_core::{Parent, TaskKey};
use tessera_types::limits::RESULT_BYTES_MAX;
use tessera_types::{ExecutorId, FileSpec, FrameworkId, NameError, TaskBody, TaskId, TaskSpec};

/// Name of the folder of all tasks in the work directory.
pub const TASKS_DIR: &str = "tasks";
/// Beginning of the folder of an executor's children.
pub(crate) const EXECUTOR_PREFIX: char = '@';
/// Attempts of one task whose directories are kept: a task may be restarted without end, its disk not.
const ATTEMPTS_KEPT: u32 = 3;

/// End of the name of the folder of a shim's records.
const STATE_SUFFIX: &str = ".state";
/// What a task writes to its standard output and error.
const OUTPUTS: [&str; 2] = ["stdout", "stderr"];

/// Why a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{what} in the sandbox {path}", path = path.display())]
pub struct SandboxError {
    /// What was attempted.
    what: String,
    /// Where.
    path: PathBuf,
    /// Why.
    source: io::Error,
}

/// A range of a file, and the size of the whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Range {
    /// The bytes.
    pub data: Vec<u8>,
    /// Bytes of the file now.
    pub size: u64,
}

/// The directories of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskDirs {
    /// The task's own.
    pub sandbox: PathBuf,
    /// The shim's records.
    pub state: PathBuf,
}

/// The directories of all tasks.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    tasks: PathBuf,
}

impl Sandboxes {
    /// Open or make the folder.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn open(work_dir: &Path) -> io::Result<Self> {
        let tasks = work_dir.join(TASKS_DIR);
        // Others may pass through to a sandbox that is theirs, but not look around.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&tasks)?;
        Ok(Self { tasks })
    }

    /// The folder of all tasks.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.tasks
    }

    /// The folder of a task, with the folders of its attempts in it.
    #[must_use]
    pub fn task(&self, key: &TaskKey) -> PathBuf {
        let framework = self.tasks.join(key.framework.to_string());
        match &key.parent {
            None => framework.join(key.task.as_str()),
            Some(parent) => framework
                .join(format!("{EXECUTOR_PREFIX}{}", parent.executor))
                .join(parent.life.to_string())
                .join(key.task.as_str()),
        }
    }

    /// The key of what a question calls by this name: a task, or `<executor>/<child>`, which is the child
    /// of the newest life that has one.
    ///
    /// # Errors
    /// When it is no name.
    pub fn key_of(&self, framework: FrameworkId, name: &str) -> Result<TaskKey, NameError> {
        let Some((executor, child)) = name.split_once('/') else {
            return Ok(TaskKey::of(framework, name.parse()?));
        };
        let (executor, task): (ExecutorId, TaskId) = (executor.parse()?, child.parse()?);
        let lives = self
            .tasks
            .join(framework.to_string())
            .join(format!("{EXECUTOR_PREFIX}{executor}"));
        let entries = fs::read_dir(&lives).into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
        let with_child = numbers.filter(|life| {
            let child = lives.join(life.to_string()).join(task.as_str());
            child.is_dir()
        });
        let life = with_child.max().unwrap_or(0);
        Ok(TaskKey {
            framework,
            parent: Some(Parent { executor, life }),
            task,
        })
    }

    /// The directories of an attempt.
    #[must_use]
    pub fn attempt(&self, key: &TaskKey, attempt: u32) -> TaskDirs {
        let task = self.task(key);
        TaskDirs {
            sandbox: task.join(attempt.to_string()),
            state: task.join(format!("{attempt}{STATE_SUFFIX}")),
        }
    }

    /// The sandbox of the newest attempt, if there is one.
    #[must_use]
    pub fn newest(&self, key: &TaskKey) -> Option<PathBuf> {
        let attempts = fs::read_dir(self.task(key)).ok()?;
        let newest = attempts
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .max()?;
        Some(self.attempt(key, newest).sandbox)
    }

    /// Read a range of a file of the newest attempt. Output that a Wasm task has not begun to write is empty.
    ///
    /// # Errors
    /// When there is no such ordinary file, or no sandbox any more.
    pub fn read(&self, key: &TaskKey, path: &str, offset: u64, length: u32) -> io::Result<Range> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the task has no sandbox here (any more)");
        let sandbox = self.newest(key).ok_or_else(gone)?;
        match read_range(&sandbox, path, offset, length) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && OUTPUTS.contains(&path) => {
                Ok(Range { data: Vec::new(), size: 0 })
            }
            read => read,
        }
    }

    /// Make the directories of an attempt and place the spec's files. Doing it again is no error.
    ///
    /// # Errors
    /// When the disk refuses, or two files of the spec collide.
    pub fn prepare(
        &self,
        key: &TaskKey,
        attempt: u32,
        spec: &TaskSpec,
        owner: Option<(u32, u32)>,
    ) -> Result<TaskDirs, SandboxError> {
        let dirs = self.attempt(key, attempt);
        let fail = |what: &str, source| SandboxError {
            what: what.to_owned(),
            path: dirs.sandbox.clone(),
            source,
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(self.task(key))
            .map_err(|e| fail("making the directory", e))?;
        self.drop_older(key, attempt);
        // Only a shim has something to write down.
        let state = matches!(spec.body, TaskBody::Native(_)).then_some(&dirs.state);
        for dir in state.into_iter().chain([&dirs.sandbox]) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|e| fail("making the directory", e))?;
        }
        for file in &spec.files {
            place(&dirs.sandbox, file, owner)
                .map_err(|source| fail(&format!("placing the file {:?}", file.path), source))?;
        }
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&dirs.sandbox, Some(uid), Some(gid))
                .map_err(|e| fail("giving the directory to the task's user", e))?;
        }
        Ok(dirs)
    }

    /// Remove attempts that are too old to be kept. What cannot be removed goes with the task.
    fn drop_older(&self, key: &TaskKey, attempt: u32) {
        let Some(newest_gone) = attempt.checked_sub(ATTEMPTS_KEPT) else {
            return;
        };
        let Ok(entries) = fs::read_dir(self.task(key)) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_suffix(STATE_SUFFIX).unwrap_or(name).parse::<u32>().ok());
            if number.is_some_and(|number| number <= newest_gone)
                && let Err(error) = fs::remove_dir_all(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "an old attempt could not be removed");
            }
        }
    }
}

/// Places one file. Nothing of the task runs yet, and every part of the path was checked, so that plain
/// paths cannot be led astray.
fn place(sandbox: &Path, file: &FileSpec, owner: Option<(u32, u32)>) -> io::Result<()> {
    let path = sandbox.join(&file.path);
    let mut made = sandbox.to_owned();
    let parts: Vec<&str> = file.path.split('/').collect();
    for part in &parts[..parts.len().saturating_sub(1)] {
        made.push(part);
        match fs::create_dir(&made) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Also one that is there: it may have been made before it was known whose it is.
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::lchown(&made, Some(uid), Some(gid))?;
        }
    }
    let mut open = File::create(&path)?;
    open.write_all(&file.content)?;
    open.set_permissions(fs::Permissions::from_mode(file.mode))?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::fchown(&open, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// Opens an ordinary file beneath a directory; links are not followed, and a FIFO does not block.
pub(crate) fn open_beneath(dir: &Path, path: &str) -> io::Result<File> {
    let root = File::open(dir)?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .mode(Mode::empty())
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let opened: OwnedFd = loop {
        match openat2(root.as_fd(), path, how) {
            Ok(opened) => break opened,
            // A directory was renamed meanwhile; the kernel asks to be asked again.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(Errno::ELOOP | Errno::EXDEV) => {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "the path leads through a link or out of the sandbox",
                ));
            }
            Err(error) => return Err(error.into()),
        }
    };
    let file = File::from(opened);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not an ordinary file",
        ));
    }
    Ok(file)
}

/// Read a range of a file beneath a directory.
///
/// # Errors
/// When there is no such ordinary file.
pub fn read_range(dir: &Path, path: &str, offset: u64, length: u32) -> io::Result<Range> {
    let file = open_beneath(dir, path)?;
    let size = file.metadata()?.len();
    let mut data = vec![0; length as usize];
    let mut filled = 0;
    while filled < data.len() {
        match file.read_at(&mut data[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    data.truncate(filled);
    Ok(Range { data, size })
}

/// Read a task's result file: its content, or what is wrong with it.
pub fn read_result(sandbox: &Path, path: &str) -> Result<Vec<u8>, String> {
    let file =
        open_beneath(sandbox, path).map_err(|error| format!("result file {path:?}: {error}"))?;
    let mut data = Vec::new();
    file.take(RESULT_BYTES_MAX as u64 + 1)
        .read_to_end(&mut data)
        .map_err(|error| format!("result file {path:?}: {error}"))?;
    if data.len() > RESULT_BYTES_MAX {
        return Err(format!(
            "result file {path:?}: more than {RESULT_BYTES_MAX} bytes"
        ));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tessera_types::{NativeCommand, Quantities};

    fn key() -> TaskKey {
        TaskKey::of(FrameworkId(1), "t".parse().unwrap())
    }

    fn spec(files: &[(&str, u32, &[u8])]) -> TaskSpec {
        TaskSpec {
            name: String::new(),
            body: TaskBody::Native(NativeCommand::Shell("true".into())),
            resources: Quantities { cpus_milli: 1, mem_mib: 1, disk_mib: 0 }.into(),
            revocable: false,
            cpus_limit_milli: None,
            pids_limit: None,
            user: None,
            env: vec![],
            files: files
                .iter()
                .map(|(path, mode, content)| FileSpec {
                    path: (*path).into(),
                    mode: *mode,
                    content: content.to_vec(),
                })
                .collect(),
            result_file: None,
            grace_ms: None,
            restarts: 0,
            labels: vec![],
        }
    }

    #[test]
    fn files_are_placed_and_read_in_ranges() {
        let dir = tempfile::tempdir().unwrap();
        let sandboxes = Sandboxes::open(dir.path()).unwrap();
        let spec = spec(&[
            ("a/b/c", 0o640, b"hello world"),
            ("run.sh", 0o755, b"#!/bin/sh\n"),
        ]);
        for attempt in [1, 2, 2, 10] {
            sandboxes.prepare(&key(), attempt, &spec, None).unwrap();
        }
        let sandbox = sandboxes.newest(&key()).unwrap();
        assert!(sandbox.ends_with("tasks/f1/t/10"));
        let range = read_range(&sandbox, "a/b/c", 6, 100).unwrap();
        assert_eq!(
            range,
            Range {
                data: b"world".to_vec(),
                size: 11
            }
        );
        assert_eq!(read_range(&sandbox, "a/b/c", 99, 5).unwrap().data, b"");
        let read = |path| sandboxes.read(&key(), path, 0, 100);
        assert_eq!(read("a/b/c").unwrap().size, 11);
        assert_eq!(read("stderr").unwrap(), Range { data: vec![], size: 0 }, "not begun");
        assert!(read("missing").is_err());
        let mode = sandbox
            .join("run.sh")
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn a_task_that_is_restarted_without_end_keeps_its_last_attempts_only() {
        let dir = tempfile::tempdir().unwrap();
        let sandboxes = Sandboxes::open(dir.path()).unwrap();
        for attempt in 1..=10 {
            let dirs = sandboxes
                .prepare(&key(), attempt, &spec(&[]), None)
                .unwrap();
            symlink(dir.path(), dirs.sandbox.join("link")).unwrap();
        }
        let kept = |of: fn(TaskDirs) -> PathBuf| -> Vec<u32> {
            let exists = |attempt: &u32| of(sandboxes.attempt(&key(), *attempt)).exists();
            (1..=10).filter(exists).collect()
        };
        assert_eq!(kept(|dirs| dirs.sandbox), [8, 9, 10]);
        assert_eq!(kept(|dirs| dirs.state), [8, 9, 10]);
    }

    #[test]
    fn nothing_outside_the_sandbox_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = dir.path().join("sandbox");
        fs::create_dir(&sandbox).unwrap();
        fs::create_dir(sandbox.join("folder")).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        symlink(dir.path().join("secret"), sandbox.join("link")).unwrap();
        symlink("..", sandbox.join("up")).unwrap();
        nix::unistd::mkfifo(&sandbox.join("fifo"), Mode::S_IRWXU).unwrap();
        for path in [
            "../secret",
            "/etc/passwd",
            "link",
            "up/secret",
            "fifo",
            "folder",
            "",
            "missing",
            "folder/../../secret",
        ] {
            assert!(read_range(&sandbox, path, 0, 10).is_err(), "{path:?}");
            assert!(read_result(&sandbox, path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_result_is_read_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("fits"), vec![1; RESULT_BYTES_MAX]).unwrap();
        fs::write(dir.path().join("large"), vec![1; RESULT_BYTES_MAX + 1]).unwrap();
        assert_eq!(
            read_result(dir.path(), "fits").map(|data| data.len()),
            Ok(RESULT_BYTES_MAX)
        );
        assert!(
            read_result(dir.path(), "large")
                .unwrap_err()
                .contains("more than")
        );
    }

    #[test]
    fn files_that_collide_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let sandboxes = Sandboxes::open(dir.path()).unwrap();
        let error = sandboxes
            .prepare(
                &key(),
                1,
                &spec(&[("a", 0o644, b""), ("a/b", 0o644, b"")]),
                None,
            )
            .unwrap_err();
        assert!(error.to_string().contains("a/b"), "{error}");
    }
}
