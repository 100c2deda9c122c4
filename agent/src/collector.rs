//! Collection of sandboxes whose tasks are forgotten: they are kept for people to look at, but not for
//! ever.
//!
//! Invariants: a sandbox of a task on record is never removed; the oldest goes first. This file must
//! never be asked to remove anything outside the folder of tasks.

use crate::sandbox::Sandboxes;
use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::path::PathBuf;
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
            for task in fs::read_dir(framework.path())? {
                let task = task?;
                let Ok(name) = task.file_name().to_string_lossy().parse() else {
                    continue;
                };
                let key = TaskKey {
                    framework: id,
                    task: name,
                };
                if !known.contains(&key) {
                    found.push((task.metadata()?.modified()?, key));
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

/// Remove directories of tasks; blocks.
pub fn remove(paths: Vec<PathBuf>) {
    for path in paths {
        match fs::remove_dir_all(&path) {
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
        let key = |n: u32| TaskKey {
            framework: FrameworkId(1),
            task: format!("t{n}").parse().unwrap(),
        };
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
