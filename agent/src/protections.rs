//! Which protections this machine and this agent's user can give to tasks and workers.
//!
//! Invariants: what is missing is named once in the log and in the agent's description, with the reason;
//! nothing else is left out. This file must never give a protection up that could be had.

use serde::Deserialize;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tessera_oci::Cgroups;
use tessera_wire::v1;
use tokio::process::Command;

/// How long the worker's binary may take to try.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// What can be had, and what cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protections {
    /// Workers and tasks can have users of their own.
    pub users: bool,
    /// Workers can have an empty network.
    pub network: bool,
    /// Workers can be kept to their own files.
    pub files: bool,
    /// Names and reasons of what is missing.
    pub missing: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Probe {
    missing: Vec<Missing>,
}

#[derive(Deserialize)]
struct Missing {
    name: String,
    why: String,
}

impl Protections {
    /// Find out. `uid` is a user that is set aside for workers.
    pub async fn find(worker: &Path, cgroups: &Cgroups, uid: u32) -> Self {
        let mut missing = if nix::unistd::Uid::effective().is_root() {
            probe(worker, Some(uid)).await
        } else {
            let mut missing = without_root();
            missing.extend(probe(worker, None).await);
            missing
        };
        if let Some(why) = cgroups.unlimited_because() {
            let text = format!(
                "{why}; memory is limited for each process by itself, CPU and the number of processes are not"
            );
            missing.push(("limits".to_owned(), text));
        }
        let has = |name: &str| missing.iter().all(|(known, _)| known != name);
        let found = Self {
            users: has("users"),
            network: has("network"),
            files: has("files"),
            missing: missing.clone(),
        };
        for (name, why) in &missing {
            tracing::warn!(name, why, "a protection is missing");
        }
        found
    }

    /// For the agent's description.
    #[must_use]
    pub fn to_wire(&self) -> Vec<v1::Pair> {
        let pair = |(key, value): &(String, String)| v1::Pair {
            key: key.clone(),
            value: value.clone(),
        };
        self.missing.iter().map(pair).collect()
    }
}

fn without_root() -> Vec<(String, String)> {
    let users = "the agent does not run as root: tasks and workers of all tenants have its user, and tasks can \
                 read and end each other's processes; tasks of components can make no symbolic links";
    let network = "the agent does not run as root: workers stay in the machine's network";
    [("users", users), ("network", network)]
        .map(|(name, why)| (name.to_owned(), why.to_owned()))
        .into()
}

/// Let the worker's binary try what it would be asked for: without a user to become, what needs no root.
async fn probe(worker: &Path, uid: Option<u32>) -> Vec<(String, String)> {
    let of_root = uid.map(|uid| ["--own-network".to_owned(), format!("--uid={uid}")]);
    let names: &[&str] = if uid.is_some() { &["users", "network", "files"] } else { &["files"] };
    let asked = Command::new(worker)
        .args(["probe-isolation", "--own-files"])
        .args(of_root.iter().flatten())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let failed = |why: String| {
        let why = format!("{} could not try: {why}", worker.display());
        names.iter().map(|name| ((*name).to_owned(), why.clone())).collect()
    };
    match tokio::time::timeout(PROBE_TIMEOUT, asked).await {
        Ok(Ok(output)) => match serde_json::from_slice::<Probe>(&output.stdout) {
            Ok(probe) => probe.missing.into_iter().map(|m| (m.name, m.why)).collect(),
            Err(_) => failed(output.status.to_string()),
        },
        Ok(Err(error)) => failed(error.to_string()),
        Err(_) => failed(format!("it took longer than {PROBE_TIMEOUT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn what_is_missing_is_named_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let worker = dir.path().join("worker");
        let limited = Cgroups::from_mounts("", "tessera");
        let cases: [(&str, &[&str]); 4] = [
            ("echo '{\"missing\":[]}'", &["limits"]),
            (
                "echo '{\"missing\":[{\"name\":\"network\",\"why\":\"EPERM\"}]}'",
                &["network", "limits"],
            ),
            (
                "echo '{\"missing\":[{\"name\":\"scopes\",\"why\":\"older\"}]}'",
                &["scopes", "limits"],
            ),
            ("exit 1", &["users", "network", "files", "limits"]),
        ];
        for (script, expected) in cases {
            std::fs::write(&worker, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&worker, PermissionsExt::from_mode(0o755)).unwrap();
            let found = Protections::find(&worker, &limited, 1).await;
            let names: Vec<&str> = found.missing.iter().map(|(n, _)| n.as_str()).collect();
            if nix::unistd::Uid::effective().is_root() {
                assert_eq!(names, expected, "{script}");
            } else {
                let expected: Vec<&str> = expected.iter().copied().filter(|n| !["users", "network"].contains(n)).collect();
                assert_eq!(names, [vec!["users", "network"], expected].concat(), "{script}");
            }
            assert_eq!(found.files, !names.contains(&"files"));
            assert_eq!(found.users, !names.contains(&"users"));
            assert_eq!(found.network, !names.contains(&"network"));
            assert!(found.to_wire().iter().all(|pair| !pair.value.is_empty()));
        }
    }
}
