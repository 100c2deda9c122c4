//! Compiled components: made on this agent by a limited process, kept by content and engine.
//!
//! Invariants: machine code never comes from elsewhere; an image's name says which bytes it was made
//! from and by which engine and policy, so that another engine compiles anew; an image is whole when it
//! gets its name; one compilation runs at a time, so that it takes one core from the tasks at most, and
//! tenants take turns with it.

use crate::in_turn::InTurn;
use crate::worker_link::engine_tag;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tessera_types::Digest;
use tokio::process::Command;
use tokio::sync::OnceCell;

/// Wall time of one compilation; the process limits its own CPU time and memory.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(900);
/// Compilations that wait; whoever is one too many asks again later.
const WAITING_MAX: usize = 1_024;
/// The master compiled the component under the cluster's limits before it took it. A slower machine, or one
/// that is told of raised limits later, must not refuse what was accepted; a bound stands all the same.
const JUDGED_ALREADY: [&str; 2] = [
    "--limit=compile-cpu-ms=600000",
    "--limit=compile-bytes=17179869184",
];

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The component is at fault: trying again will not help.
    #[error("component {digest} cannot be used: {text}")]
    Unusable {
        /// Which.
        digest: Digest,
        /// Why.
        text: String,
    },
    /// The compiler could not be run.
    #[error("running {program}")]
    Run {
        /// The worker's binary.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The compiler ended without saying why.
    #[error("compiling component {digest}: {text}")]
    Failed {
        /// Which.
        digest: Digest,
        /// How it ended.
        text: String,
    },
}

/// What the compiler prints.
#[derive(Deserialize)]
struct Verdict {
    #[serde(default)]
    error: Option<String>,
}

/// The folder of images and the compiler.
#[derive(Debug)]
pub struct Images {
    dir: PathBuf,
    program: PathBuf,
    engine: OnceCell<String>,
    /// How the compiler is kept apart from everything else, as arguments.
    isolation: Vec<String>,
    turns: InTurn,
}

impl Images {
    /// Open or make the folder; what a crash cut off is removed.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn open(work_dir: &Path, bin_dir: &Path) -> io::Result<Self> {
        let dir = work_dir.join("images");
        std::fs::create_dir_all(&dir)?;
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            if path
                .extension()
                .is_none_or(|extension| extension != "cwasm")
            {
                std::fs::remove_file(path)?;
            }
        }
        let program = bin_dir.join("tessera-worker");
        Ok(Self {
            dir,
            program,
            engine: OnceCell::new(),
            isolation: Vec::new(),
            turns: InTurn::new(WAITING_MAX),
        })
    }

    /// Compile in an empty network and as a user of nobody else's, where this machine can give them.
    pub fn isolate(&mut self, own_network: bool, uid: Option<u32>) {
        if own_network {
            self.isolation.push("--own-network".to_owned());
        }
        if let Some(uid) = uid {
            self.isolation.push(format!("--uid={uid}"));
        }
    }

    /// The engine and policy that images are made for.
    ///
    /// # Errors
    /// When the worker cannot be run.
    pub async fn engine(&self) -> Result<&str, CompileError> {
        let key = self.engine.get_or_try_init(|| async {
            let output = self
                .command()
                .arg("engine-key")
                .output()
                .await
                .map_err(|s| self.run(s))?;
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            // It becomes part of file names.
            let plain: String = text
                .chars()
                .map(|c| {
                    if c.is_ascii_alphanumeric() || c == '.' {
                        c
                    } else {
                        '-'
                    }
                })
                .collect();
            if !output.status.success() || plain.is_empty() || plain.len() > 128 {
                let source = io::Error::other(format!("engine-key: {}", output.status));
                return Err(self.run(source));
            }
            Ok(plain)
        });
        key.await.map(String::as_str)
    }

    /// Where the image of a component is, once the engine is known.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> Option<PathBuf> {
        let engine = self.engine.get()?;
        Some(self.dir.join(format!("{}-{engine}.cwasm", digest.hex())))
    }

    /// Remove images for engines of which none of these tags is.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn forget_engines_but(&self, tags: &BTreeSet<String>) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let engine = stem.and_then(|stem| stem.split_once('-')).map(|(_, e)| e);
            if !engine.is_some_and(|engine| tags.contains(&engine_tag(engine))) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn run(&self, source: io::Error) -> CompileError {
        CompileError::Run {
            program: self.program.clone(),
            source,
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// The image of a component; compiled in the tenant's turn if this engine has not done so before.
    ///
    /// # Errors
    /// When the component is refused, or cannot be compiled now.
    pub async fn ensure(
        &self,
        digest: Digest,
        component: &Path,
        tenant: &str,
    ) -> Result<PathBuf, CompileError> {
        let image = self
            .dir
            .join(format!("{}-{}.cwasm", digest.hex(), self.engine().await?));
        if image.is_file() {
            return Ok(image);
        }
        let failed = |text: String| CompileError::Failed { digest, text };
        let turn = self.turns.get(tenant).await;
        let _turn = turn.ok_or_else(|| failed(format!("{WAITING_MAX} others wait to be compiled")))?;
        if image.is_file() {
            return Ok(image);
        }
        // A compiler that an earlier agent left behind may still write to the file of this name.
        let made = image.with_extension("tmp");
        remove_if_there(&made).map_err(|source| self.run(source))?;
        let mut command = self.command();
        command
            .arg("compile")
            .arg("--in")
            .arg(component)
            .arg("--out")
            .arg(&made)
            .args(JUDGED_ALREADY)
            .args(&self.isolation);
        let output = tokio::time::timeout(COMPILE_TIMEOUT, command.output())
            .await
            .map_err(|_| failed(format!("it took longer than {COMPILE_TIMEOUT:?}")))?
            .map_err(|source| self.run(source))?;
        if output.status.success() && made.is_file() {
            // Workers of all users load it, whatever this process lets others read of new files.
            std::fs::set_permissions(&made, Permissions::from_mode(0o644))
                .and_then(|()| std::fs::rename(&made, &image))
                .map_err(|source| self.run(source))?;
            return Ok(image);
        }
        remove_if_there(&made).map_err(|source| self.run(source))?;
        match serde_json::from_slice::<Verdict>(&output.stdout) {
            Ok(Verdict { error: Some(text) }) => Err(CompileError::Unusable { digest, text }),
            Ok(Verdict { error: None }) | Err(_) => Err(failed(output.status.to_string())),
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(dir: &Path, script: &str) {
        let path = dir.join("tessera-worker");
        std::fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }

    #[tokio::test]
    async fn an_image_is_made_once_per_engine() {
        let dir = tempfile::tempdir().unwrap();
        worker(
            dir.path(),
            "case $1 in engine-key) echo '48.0.8 policy/1';;\n\
             compile) echo \"$*\" >> \"${0%/*}/asked\"; cp \"$3\" \"$5\";; esac",
        );
        let component = dir.path().join("c.wasm");
        std::fs::write(&component, "code").unwrap();
        let mut images = Images::open(dir.path(), dir.path()).unwrap();
        images.isolate(true, Some(7));
        let digest = Digest::of(b"code");
        let image = images.ensure(digest, &component, "t").await.unwrap();
        assert_eq!(images.ensure(digest, &component, "t").await.unwrap(), image);
        let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap();
        assert_eq!(asked.lines().count(), 1, "{asked}");
        assert!(asked.ends_with(" --own-network --uid=7\n"), "{asked}");
        let name = image.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.ends_with("-48.0.8-policy-1.cwasm"), "{name}");
        assert_eq!(images.path(&digest), Some(image.clone()));
        assert_eq!(image.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        let older = dir.path().join("images/0-older.cwasm");
        std::fs::write(&older, "").unwrap();
        let tags = |engine: &str| BTreeSet::from([engine_tag("48.0.8-policy-1"), engine_tag(engine)]);
        images.forget_engines_but(&tags("older")).unwrap();
        assert!(older.exists());
        images.forget_engines_but(&tags("newer")).unwrap();
        assert!(!older.exists() && image.exists());
    }

    #[tokio::test]
    async fn a_refusal_is_told_apart_from_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let component = dir.path().join("c.wasm");
        std::fs::write(&component, "code").unwrap();
        let digest = Digest::of(b"code");
        let refusing = "case $1 in engine-key) echo 1;; compile) echo '{\"ok\":false,\"error\":\"bad\"}'; exit 1;; esac";
        worker(dir.path(), refusing);
        let images = Images::open(dir.path(), dir.path()).unwrap();
        let error = images.ensure(digest, &component, "t").await.unwrap_err();
        assert!(matches!(error, CompileError::Unusable { .. }), "{error}");
        worker(
            dir.path(),
            "case $1 in engine-key) echo 1;; compile) kill -9 $$;; esac",
        );
        let error = images.ensure(digest, &component, "t").await.unwrap_err();
        assert!(matches!(error, CompileError::Failed { .. }), "{error}");
        worker(
            dir.path(),
            "case $1 in engine-key) echo 1;; compile) echo half > \"$5\"; exit 1;; esac",
        );
        images.ensure(digest, &component, "t").await.unwrap_err();
        let left = std::fs::read_dir(dir.path().join("images")).unwrap();
        assert_eq!(left.count(), 0, "what is not whole has no name and does not stay");
    }
}
