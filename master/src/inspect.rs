//! Judging an upload: `tessera-worker inspect` in a limited process of its own.
//!
//! Invariants: no byte of a component is parsed in this process; one judgement runs at a time, and it
//! ends within [`INSPECT_TIMEOUT`].

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::Semaphore;

/// Wall time of one judgement; the process limits its own CPU time and memory.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(120);

/// What the worker found, as far as the master needs it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inspection {
    /// `scheduler`, `command`, `executor` or `none`.
    pub world: String,
    /// Imported interfaces.
    #[serde(default)]
    pub imports: Vec<String>,
}

/// Why a component was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The component is at fault.
    #[error("{0}")]
    Unusable(String),
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

/// Runs one judgement at a time.
#[derive(Debug)]
pub struct Inspector {
    program: PathBuf,
    permit: Semaphore,
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
        }
    }

    /// Judge a file.
    ///
    /// # Errors
    /// When it is refused, or cannot be judged.
    pub async fn inspect(&self, file: &Path) -> Result<Inspection, InspectError> {
        let _permit = self
            .permit
            .acquire()
            .await
            .map_err(|closed| InspectError::NoVerdict(closed.to_string()))?;
        let spawned = Command::new(&self.program)
            .arg("inspect")
            .arg("--in")
            .arg(file)
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
        if let Ok(inspection) = serde_json::from_slice::<Inspection>(&output.stdout)
            && output.status.success()
        {
            return Ok(inspection);
        }
        if let Ok(refusal) = serde_json::from_slice::<Refusal>(&output.stdout) {
            return Err(InspectError::Unusable(refusal.error));
        }
        use std::os::unix::process::ExitStatusExt;
        match output.status.signal() {
            // The jail's own limits end the process by signal.
            Some(signal) => Err(InspectError::Unusable(format!(
                "judging it needed more CPU time or memory than allowed (signal {signal})"
            ))),
            None => Err(InspectError::NoVerdict(output.status.to_string())),
        }
    }
}
