//! Collection of sandboxes whose tasks are forgotten: they are kept for people to look at, but not for
//! ever.
//!
//! Invariants: a sandbox of a task on record is never removed; the oldest goes first. This file must
//! never be asked to remove anything outside the folder of tasks.

use crate::sandbox::{EXECUTOR_PREFIX, Sandboxes};
use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tessera_agent_core::TaskKey;
use tessera_types::FrameworkId;

/// Sandboxes of forgotten tasks that are kept: enough to look into the latest failures, and a bound on
/// what they take.
pub const KEPT_MAX: usize = 1_000;

/// What is kept, oldest first.
#[derive(Debug)]
pub struct Collector {
    sandboxes: Sandboxes,
    kept: VecDeque<TaskKey>,
    max: usize,
}

impl Collector {
    /// Find what earlier agents left behind.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn open(sandboxes: Sandboxes, known: &BTreeSet<TaskKey>, max: usize) -> io::Result<Self> {
        let mut found: Vec<(SystemTime, TaskKey)> = Vec::new();
        for framework in fs::read_dir(sandboxes.root())? {
            let framework = framework?;
            let Ok(id) = framework
                .file_name()
                .to_string_lossy()
                .parse::<FrameworkId>()
            else {
                continue;
            };
            for (path, key) in sandboxes_in(&framework.path(), id)? {
                if !known.contains(&key) {
                    found.push((path.metadata()?.modified()?, key));
                }
            }
        }
        found.sort();
        Ok(Self {
            sandboxes,
            kept: found.into_iter().map(|(_, key)| key).collect(),
            max,
        })
    }

    /// A task was forgotten: its sandbox may go when its time comes.
    pub fn on_forgotten(&mut self, key: TaskKey) {
        self.kept.push_back(key);
    }

    /// What has to go now.
    pub fn excess(&mut self) -> Vec<PathBuf> {
        let excess = self.kept.len().saturating_sub(self.max);
        self.kept
            .drain(..excess)
            .map(|key| self.sandboxes.task(&key))
            .collect()
    }
}

/// The folders of a framework's tasks, and of the children of its executors.
pub(crate) fn sandboxes_in(dir: &Path, framework: FrameworkId) -> io::Result<Vec<(PathBuf, TaskKey)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(executor) = name.strip_prefix(EXECUTOR_PREFIX) else {
            if let Ok(key) = TaskKey::parse(framework, &name) {
                found.push((entry.path(), key));
            }
            continue;
        };
        for life in fs::read_dir(entry.path())? {
            let life = life?;
            for child in fs::read_dir(life.path())? {
                let child = child?;
                let (life, child_name) = (life.file_name(), child.file_name());
                let (life, child_name) = (life.to_string_lossy(), child_name.to_string_lossy());
                let name = format!("{executor}/{life}/{child_name}");
                if let Ok(key) = TaskKey::parse(framework, &name) {
                    found.push((child.path(), key));
                }
            }
        }
    }
    Ok(found)
}

/// Remove directories of tasks; blocks.
pub fn remove(paths: Vec<PathBuf>) {
    for path in paths {
        let removed = fs::remove_dir_all(&path);
        // The folders of a life and of its executor go with the last child in them.
        for parent in path.ancestors().skip(1).take(2) {
            let of_executor = parent.ancestors().take(2).any(|dir| {
                let name = dir.file_name().and_then(|name| name.to_str());
                name.is_some_and(|name| name.starts_with(EXECUTOR_PREFIX))
            });
            if !of_executor || fs::remove_dir(parent).is_err() {
                break;
            }
        }
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a sandbox could not be removed");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_forgotten_ones_go_and_known_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let sandboxes = Sandboxes::open(dir.path()).unwrap();
        let key = |n: u32| TaskKey::of(FrameworkId(1), format!("t{n}").parse().unwrap());
        for n in 0..4 {
            fs::create_dir_all(sandboxes.attempt(&key(n), 1).sandbox).unwrap();
        }
        let known = BTreeSet::from([key(0)]);
        let mut collector = Collector::open(sandboxes.clone(), &known, 2).unwrap();
        let gone = collector.excess();
        assert_eq!(gone.len(), 1);
        remove(gone);
        assert!(sandboxes.task(&key(0)).exists());
        collector.on_forgotten(key(0));
        remove(collector.excess());
        let left = (0..4).filter(|&n| sandboxes.task(&key(n)).exists()).count();
        assert_eq!(left, 2);
        assert!(sandboxes.task(&key(0)).exists(), "the newest stays");
    }
}
