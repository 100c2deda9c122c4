//! Judging an upload: `tessera-worker inspect` in a limited process of its own.
//!
//! Invariants: no byte of a component is parsed in this process; one judgement runs at a time, and it
//! ends within [`INSPECT_TIMEOUT`]; whoever asks has an answer, or is told to come again, within
//! [`ANSWER_MAX`].

use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tessera_types::{EffectiveLimits, LimitName};
use tokio::process::Command;
use tokio::sync::Semaphore;

/// Wall time of one judgement; the process limits its own CPU time and memory.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(120);
/// Uploads that wait to be judged: each is a file on disk and a connection.
const WAITING_MAX: usize = 8;
/// How long one waits: an ordinary judgement takes seconds.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// When whoever is sent away may come again, in seconds.
pub const COME_AGAIN_S: u32 = 10;
/// How long the answer takes at most. Connections may be silent for longer.
pub const ANSWER_MAX: Duration = WAIT_MAX.saturating_add(INSPECT_TIMEOUT);

/// Limits that the judge enforces. Only what is set for the whole cluster counts: a component belongs to
/// no role.
const JUDGED: [LimitName; 15] = [
    LimitName::ComponentBytes,
    LimitName::ComponentFunctions,
    LimitName::FunctionBytes,
    LimitName::FunctionLocals,
    LimitName::CompileCpuMs,
    LimitName::CompileBytes,
    // Those under which a scheduler is asked what it is.
    LimitName::MemoryBytes,
    LimitName::TableElements,
    LimitName::Instances,
    LimitName::Tables,
    LimitName::Memories,
    LimitName::Handles,
    LimitName::HostcallBytes,
    LimitName::InitCpuMs,
    LimitName::InitWallMs,
];

/// Bytes of a report that are stored with a component.
const REPORT_BYTES_MAX: usize = 64 << 10;

/// What the worker found, as far as the master needs it.
#[derive(Clone, Debug, Deserialize)]
pub struct Inspection {
    /// `scheduler`, `command`, `executor` or `none`.
    pub world: String,
    /// Of a scheduler: version of the state that it writes.
    #[serde(default)]
    pub writes_state: Option<u32>,
    /// Of a scheduler: older versions that it can start from.
    #[serde(default)]
    pub reads_state: Vec<u32>,
    /// Of a scheduler: it carries older state over.
    #[serde(default)]
    pub migrates: bool,
    /// Everything, as the worker said it.
    #[serde(skip)]
    found: Map<String, Value>,
}

impl Inspection {
    /// The report that is stored with the component: what was found, and what it was made from. Lists that
    /// do not fit are left out, and named.
    #[must_use]
    pub fn report(&self, made_from: Option<&str>) -> String {
        let mut found = self.found.clone();
        // The verdict, what is stored with the component anyway, and where its bytes were for a moment.
        for known in [
            "ok",
            "error",
            "digest",
            "size_bytes",
            "world",
            "componentized",
        ] {
            found.remove(known);
        }
        if let Some(digest) = made_from {
            found.insert("componentized_from".into(), digest.into());
        }
        let mut text = Value::Object(found.clone()).to_string();
        for long in ["imports", "exports", "grants"] {
            if text.len() <= REPORT_BYTES_MAX {
                return text;
            }
            found.insert(
                long.into(),
                format!("left out: more than {REPORT_BYTES_MAX} bytes").into(),
            );
            text = Value::Object(found.clone()).to_string();
        }
        if text.len() <= REPORT_BYTES_MAX {
            text
        } else {
            String::new()
        }
    }
}

/// Why a component was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The component is at fault.
    #[error("{0}")]
    Unusable(String),
    /// Others are judged before it, and it is not its fault.
    #[error("uploads are judged one at a time, and {0}")]
    Busy(String),
    /// The judgement could not be made.
    #[error("running {program}")]
    Spawn {
        /// The worker's binary.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The judge said something that is no verdict.
    #[error("the judging process gave no verdict: {0}")]
    NoVerdict(String),
}

/// Limits as the judge is told them, as far as they differ from their defaults.
fn limit_arguments(limits: &EffectiveLimits) -> Vec<String> {
    let set = JUDGED
        .iter()
        .filter(|name| limits.get(**name) != name.row().default);
    set.map(|name| format!("--limit={name}={}", limits.get(*name)))
        .collect()
}

/// Runs one judgement at a time.
#[derive(Debug)]
pub struct Inspector {
    program: PathBuf,
    permit: Semaphore,
    /// Places of those that wait, and of the one that is judged.
    places: Semaphore,
    wait_max: Duration,
}

/// A refusal as the worker prints it.
#[derive(Deserialize)]
struct Refusal {
    error: String,
}

impl Inspector {
    /// An inspector that uses the worker of this directory.
    #[must_use]
    pub fn new(bin_dir: &Path) -> Self {
        Self {
            program: bin_dir.join("tessera-worker"),
            permit: Semaphore::const_new(1),
            places: Semaphore::const_new(1 + WAITING_MAX),
            wait_max: WAIT_MAX,
        }
    }

    /// Judge a file under the limits of the cluster. If it is a core module that can be made into a
    /// component, that is written to `made`, and judged.
    ///
    /// # Errors
    /// When it is refused, or cannot be judged.
    pub async fn inspect(
        &self,
        file: &Path,
        made: &Path,
        limits: &EffectiveLimits,
    ) -> Result<Inspection, InspectError> {
        let Ok(_place) = self.places.try_acquire() else {
            return Err(InspectError::Busy(format!("{WAITING_MAX} others wait")));
        };
        let _permit = tokio::time::timeout(self.wait_max, self.permit.acquire())
            .await
            .map_err(|_| InspectError::Busy(format!("others took longer than {:?}", self.wait_max)))?
            .map_err(|closed| InspectError::NoVerdict(closed.to_string()))?;
        let spawned = Command::new(&self.program)
            .arg("inspect")
            .arg("--in")
            .arg(file)
            .arg("--out")
            .arg(made)
            .args(limit_arguments(limits))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(INSPECT_TIMEOUT, spawned)
            .await
            .map_err(|_| InspectError::Unusable("judging it took too long".into()))?
            .map_err(|source| InspectError::Spawn {
                program: self.program.clone(),
                source,
            })?;
        if output.status.success()
            && let Ok(found) = serde_json::from_slice::<Map<String, Value>>(&output.stdout)
            && let Ok(mut inspection) = Inspection::deserialize(Value::Object(found.clone()))
        {
            inspection.found = found;
            return Ok(inspection);
        }
        if let Ok(refusal) = serde_json::from_slice::<Refusal>(&output.stdout) {
            return Err(InspectError::Unusable(refusal.error));
        }
        use std::os::unix::process::ExitStatusExt;
        match output.status.signal() {
            // The jail's own limits end the process by signal.
            Some(signal) => Err(InspectError::Unusable(format!(
                "limits compile-cpu-ms and compile-bytes: judging it needed more CPU time or memory than they allow (signal {signal})"
            ))),
            None => Err(InspectError::NoVerdict(output.status.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reports_keep_what_was_found_and_stay_small() {
        let read = |value: Value| {
            let Value::Object(found) = value else {
                panic!("an object")
            };
            let mut inspection = Inspection::deserialize(Value::Object(found.clone())).unwrap();
            inspection.found = found;
            inspection
        };
        let small = read(
            json!({"ok": true, "world": "scheduler", "writes_state": 2, "imports": ["a"], "functions": 7}),
        );
        assert_eq!(small.writes_state, Some(2));
        let report: Value = serde_json::from_str(&small.report(Some("sha256:0"))).unwrap();
        let expected = json!({"writes_state": 2, "imports": ["a"], "functions": 7, "componentized_from": "sha256:0"});
        assert_eq!(report, expected);
        let names: Vec<String> = (0..10_000).map(|n| format!("interface-{n}")).collect();
        let large = read(json!({"world": "command", "imports": names, "functions": 7}));
        let report: Value = serde_json::from_str(&large.report(None)).unwrap();
        assert_eq!(report["functions"], 7);
        assert!(
            report["imports"].as_str().unwrap().starts_with("left out"),
            "{report}"
        );
    }

    #[tokio::test]
    async fn uploads_wait_for_each_other_within_bounds_and_are_sent_away_beyond() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let judge = dir.path().join("tessera-worker");
        std::fs::write(&judge, "#!/bin/sh\necho '{\"world\":\"command\"}'").unwrap();
        std::fs::set_permissions(&judge, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut inspector = Inspector::new(dir.path());
        inspector.wait_max = Duration::from_millis(200);
        let limits = EffectiveLimits::default();
        let ask = || inspector.inspect(Path::new("in"), Path::new("out"), &limits);
        // Somebody's upload takes as long as it may.
        let judged = inspector.permit.acquire().await.unwrap();
        let mut waiting: Vec<_> = (0..=WAITING_MAX).map(|_| Box::pin(ask())).collect();
        for wait in &mut waiting {
            assert!(tokio::time::timeout(Duration::ZERO, wait).await.is_err(), "it waits");
        }
        let busy = |answer: Result<Inspection, InspectError>| match answer {
            Err(InspectError::Busy(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(busy(ask().await), "8 others wait");
        // One gives up, and leaves its place to another.
        drop(waiting.pop());
        let mut last = Box::pin(ask());
        assert!(tokio::time::timeout(Duration::ZERO, &mut last).await.is_err());
        for wait in waiting.into_iter().chain([last]) {
            assert_eq!(busy(wait.await), "others took longer than 200ms");
        }
        drop(judged);
        assert_eq!(ask().await.unwrap().world, "command");
    }
}
