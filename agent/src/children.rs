//! What an agent says of the children of a framework's executors, which no master knows: those on record
//! with their states, and those of which only the sandbox is left.
//!
//! Invariants: a list fits into one answer of the lane for files; those that have not ended come first, then
//! the newest lives. This file must never change anything.

use crate::collector::sandboxes_in;
use crate::sandbox::Sandboxes;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use tessera_agent_core::ChildSeen;
use tessera_types::{FrameworkId, TaskState};

/// Path in a question that stands for the list.
pub const LISTING: &str = "children";
/// Bytes of the children in a list: with what stands around them it fits into one answer.
const ENTRIES_BYTES_MAX: usize = 60 << 10;

/// One child.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    executor: String,
    life: u64,
    child: String,
    /// None when nothing but its sandbox is left.
    state: Option<&'static str>,
    live: bool,
}

/// All of them, or the first.
#[derive(Debug, Serialize)]
struct Listing {
    items: Vec<Entry>,
    more: bool,
}

fn entries(
    sandboxes: &Sandboxes,
    framework: FrameworkId,
    known: Vec<ChildSeen>,
) -> io::Result<Vec<Entry>> {
    let mut states: BTreeMap<(String, u64, String), Option<TaskState>> = BTreeMap::new();
    match sandboxes_in(&sandboxes.root().join(framework.to_string()), framework) {
        Ok(found) => {
            for (_, key) in found {
                if let Some(parent) = key.parent {
                    let name = (parent.executor.to_string(), parent.life, key.task.to_string());
                    states.insert(name, None);
                }
            }
        }
        // Nothing of it ran here, or the last sandbox is being removed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for ChildSeen { parent, child, state } in known {
        let name = (parent.executor.to_string(), parent.life, child.to_string());
        states.insert(name, Some(state));
    }
    let mut entries: Vec<Entry> = states
        .into_iter()
        .map(|((executor, life, child), state)| Entry {
            executor,
            life,
            child,
            state: state.map(TaskState::name),
            live: state.is_some_and(|state| !state.is_terminal()),
        })
        .collect();
    entries.sort_by_key(|entry| (!entry.live, Reverse(entry.life)));
    Ok(entries)
}

/// The list as JSON.
///
/// # Errors
/// Those of the disk.
pub fn listing(
    sandboxes: &Sandboxes,
    framework: FrameworkId,
    known: Vec<ChildSeen>,
) -> io::Result<Vec<u8>> {
    let mut listing = Listing {
        items: Vec::new(),
        more: false,
    };
    let mut bytes = 0;
    for entry in entries(sandboxes, framework, known)? {
        bytes += serde_json::to_vec(&entry)?.len() + 1;
        if bytes > ENTRIES_BYTES_MAX {
            listing.more = true;
            break;
        }
        listing.items.push(entry);
    }
    Ok(serde_json::to_vec(&listing)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use tessera_agent_core::Parent;

    fn listed(sandboxes: &Sandboxes, known: Vec<ChildSeen>) -> Value {
        let listing = listing(sandboxes, FrameworkId(1), known).unwrap();
        assert!(listing.len() <= 64 << 10, "{} bytes are more than one answer", listing.len());
        serde_json::from_slice(&listing).unwrap()
    }

    fn seen(life: u64, child: &str, state: TaskState) -> ChildSeen {
        let executor = "main".parse().unwrap();
        ChildSeen {
            parent: Parent { executor, life },
            child: child.parse().unwrap(),
            state,
        }
    }

    #[test]
    fn states_come_from_the_record_and_the_rest_from_sandboxes() {
        let dir = tempfile::tempdir().unwrap();
        let sandboxes = Sandboxes::open(dir.path()).unwrap();
        assert_eq!(listed(&sandboxes, Vec::new())["items"], serde_json::json!([]));
        for path in ["@main/1/old/1", "@main/2/c/1", "@main/2/d/1", "task/1"] {
            std::fs::create_dir_all(dir.path().join("tasks/f1").join(path)).unwrap();
        }
        let known = vec![
            seen(2, "c", TaskState::Finished),
            seen(2, "d", TaskState::Running),
        ];
        let list = listed(&sandboxes, known);
        let shown: Vec<String> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| format!("{} {} {} {}", i["life"], i["child"], i["state"], i["live"]))
            .collect();
        let expected = [
            r#"2 "d" "TASK_RUNNING" true"#,
            r#"2 "c" "TASK_FINISHED" false"#,
            r#"1 "old" null false"#,
        ];
        assert_eq!(shown, expected);
        assert_eq!(list["more"], false);
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let sandboxes = Sandboxes::open(dir.path()).unwrap();
        let known = |count: usize| -> Vec<ChildSeen> {
            let names = (0..count).map(|n| format!("{n:0>100}"));
            names.map(|name| seen(1, &name, TaskState::Running)).collect()
        };
        for (count, more) in [(300, false), (1_000, true)] {
            let list = listed(&sandboxes, known(count));
            assert_eq!(list["more"], more, "{count}");
            let items = list["items"].as_array().unwrap().len();
            assert_eq!(items == count, !more, "{items} of {count}");
        }
    }
}
