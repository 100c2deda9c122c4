//! Compiled components: made on this agent by a limited process, kept by content and engine.
//!
//! Invariants: machine code never comes from elsewhere; an image's name says which bytes it was made
//! from and by which engine and policy, so that another engine compiles anew; an image is whole when it
//! gets its name; what is compiled is looked through before, as a disk may have damaged it; one compilation runs at a time, so that it takes one core from the tasks at most, and
//! tenants take turns with it. What is compiled ahead of need never holds up what is needed: it waits behind
//! all others, and is given up for them and begun anew.

use crate::components;
use crate::in_turn::{InTurn, Turn};
use crate::worker_link::engine_tag;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tessera_types::Digest;
use tokio::process::Command;
use tokio::sync::{OnceCell, oneshot};

/// Name of the folder of images in the work directory.
pub const IMAGES_DIR: &str = "images";
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
    /// Its bytes are not what they were, and were removed: it is to be fetched again.
    #[error("component {digest} was damaged on this machine's disk")]
    Damaged {
        /// Which.
        digest: Digest,
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
    ahead: Mutex<Option<Ahead>>,
    compilations: AtomicU64,
}

/// What is being compiled ahead of need.
#[derive(Debug)]
struct Ahead {
    digest: Digest,
    /// Gives it up; none when it is needed by now.
    give_up: Option<oneshot::Sender<()>>,
}

impl Images {
    /// Open or make the folder; what a crash cut off is removed.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn open(work_dir: &Path, bin_dir: &Path) -> io::Result<Self> {
        let dir = work_dir.join(IMAGES_DIR);
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
            ahead: Mutex::new(None),
            compilations: AtomicU64::new(0),
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

    /// An image cannot be read by workers: it loses its name, and is made anew when somebody needs it.
    pub fn discard(&self, digest: &Digest) {
        let Some(image) = self.path(digest) else { return };
        if let Err(error) = remove_if_there(&image) {
            tracing::warn!(%digest, %error, "a damaged image could not be removed");
        }
    }

    async fn image_of(&self, digest: Digest) -> Result<PathBuf, CompileError> {
        let engine = self.engine().await?;
        Ok(self.dir.join(format!("{}-{engine}.cwasm", digest.hex())))
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
        let image = self.image_of(digest).await?;
        if image.is_file() {
            return Ok(image);
        }
        let place = self.turns.ask(tenant);
        self.make_way(digest);
        let turn = match place {
            Some(place) => place.turn().await,
            None => None,
        };
        let turn = turn.ok_or_else(|| too_many(digest))?;
        if image.is_file() {
            return Ok(image);
        }
        self.compile(digest, component, image, &[], turn).await
    }

    /// The same before anybody needs it: when nothing else is to be compiled.
    ///
    /// # Errors
    /// When the component is refused, or cannot be compiled now.
    pub async fn ensure_ahead(&self, digest: Digest, component: &Path) -> Result<(), CompileError> {
        let image = self.image_of(digest).await?;
        loop {
            if image.is_file() {
                return Ok(());
            }
            let place = self.turns.ask_behind().ok_or_else(|| too_many(digest))?;
            let turn = place.turn().await.ok_or_else(|| too_many(digest))?;
            let (sender, given_up) = oneshot::channel();
            let ahead = Ahead {
                digest,
                give_up: Some(sender),
            };
            *self.ahead() = Some(ahead);
            // Who asked before this was noted found nothing to give up.
            if image.is_file() || self.turns.waiting() > 0 {
                *self.ahead() = None;
                continue;
            }
            let given_up = async {
                // When it is needed by now, nobody can give it up any more.
                if given_up.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let compiled = tokio::select! {
                compiled = self.compile(digest, component, image.clone(), &["--behind"], turn) => Some(compiled),
                () = given_up => None,
            };
            *self.ahead() = None;
            if let Some(compiled) = compiled {
                return compiled.map(drop);
            }
        }
    }

    fn ahead(&self) -> MutexGuard<'_, Option<Ahead>> {
        // A panic while holding the lock cannot leave it half changed.
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody needs a component: what is compiled ahead is given up, unless it is the same.
    fn make_way(&self, digest: Digest) {
        let mut ahead = self.ahead();
        let Some(ahead) = ahead.as_mut() else { return };
        let give_up = ahead.give_up.take();
        if let Some(give_up) = give_up.filter(|_| ahead.digest != digest) {
            // It may be over by now.
            let _ = give_up.send(());
        }
    }

    /// How many components this process has compiled.
    pub fn compilations(&self) -> u64 {
        self.compilations.load(Ordering::Relaxed)
    }

    async fn compile(
        &self,
        digest: Digest,
        component: &Path,
        image: PathBuf,
        arguments: &[&str],
        _turn: Turn,
    ) -> Result<PathBuf, CompileError> {
        let failed = |text: String| CompileError::Failed { digest, text };
        let began = Instant::now();
        check(digest, component).await.map_err(|source| self.run(source))??;
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
            .args(arguments)
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
            self.compilations.fetch_add(1, Ordering::Relaxed);
            let (ahead, ms) = (!arguments.is_empty(), began.elapsed().as_millis());
            tracing::info!(%digest, ahead, ms, "a component was compiled");
            return Ok(image);
        }
        remove_if_there(&made).map_err(|source| self.run(source))?;
        match serde_json::from_slice::<Verdict>(&output.stdout) {
            Ok(Verdict { error: Some(text) }) => Err(CompileError::Unusable { digest, text }),
            Ok(Verdict { error: None }) | Err(_) => Err(failed(output.status.to_string())),
        }
    }
}

/// Refuses bytes that are not the component's, which are removed.
async fn check(digest: Digest, component: &Path) -> io::Result<Result<(), CompileError>> {
    let path = component.to_owned();
    let found = tokio::task::spawn_blocking(move || {
        let found = components::digest_of(&path)?;
        if found != digest {
            remove_if_there(&path)?;
        }
        Ok::<Digest, io::Error>(found)
    });
    let found = found.await.map_err(io::Error::other)??;
    Ok(if found == digest { Ok(()) } else { Err(CompileError::Damaged { digest }) })
}

fn too_many(digest: Digest) -> CompileError {
    let text = format!("{WAITING_MAX} others wait to be compiled");
    CompileError::Failed { digest, text }
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
    use std::sync::Arc;

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

    /// A compiler that writes down what it is asked for, and takes until there is a file `go` for `slow.wasm`.
    fn slow_worker(dir: &Path) -> Arc<Images> {
        worker(
            dir,
            "at=${0%/*}; case $1 in engine-key) echo 1;; compile) echo \"${3##*/} $*\" >> $at/asked\n\
             case $3 in *slow.wasm) while [ ! -e $at/go ]; do sleep 0.02; done;; esac; cp \"$3\" \"$5\";; esac",
        );
        for name in ["slow", "other"] {
            std::fs::write(dir.join(format!("{name}.wasm")), name).unwrap();
        }
        Arc::new(Images::open(dir, dir).unwrap())
    }

    fn asked(dir: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(dir.join("asked")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    async fn until(what: &str, seen: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !seen() {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Begin to compile `slow.wasm` ahead.
    async fn begin_ahead(dir: &Path, images: &Arc<Images>) -> tokio::task::JoinHandle<Result<(), CompileError>> {
        let (images, component) = (Arc::clone(images), dir.join("slow.wasm"));
        let ahead = tokio::spawn(async move { images.ensure_ahead(Digest::of(b"slow"), &component).await });
        until("it is begun", || asked(dir).len() == 1).await;
        ahead
    }

    #[tokio::test]
    async fn what_is_compiled_ahead_is_given_up_for_what_is_needed_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let images = slow_worker(dir.path());
        let ahead = begin_ahead(dir.path(), &images).await;
        assert!(asked(dir.path())[0].ends_with(" --behind"), "{:?}", asked(dir.path()));
        let other = images.ensure(Digest::of(b"other"), &dir.path().join("other.wasm"), "t").await;
        assert!(other.is_ok_and(|image| image.is_file()), "it did not wait");
        assert!(!asked(dir.path())[1].contains("--behind"));
        until("it is begun anew", || asked(dir.path()).len() == 3).await;
        assert!(!ahead.is_finished());
        std::fs::write(dir.path().join("go"), "").unwrap();
        ahead.await.unwrap().unwrap();
        assert_eq!(images.compilations(), 2);
        images.ensure_ahead(Digest::of(b"slow"), &dir.path().join("slow.wasm")).await.unwrap();
        assert_eq!(images.compilations(), 2, "it is there");
    }

    #[tokio::test]
    async fn what_is_compiled_ahead_and_needed_meanwhile_is_not_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let images = slow_worker(dir.path());
        let ahead = begin_ahead(dir.path(), &images).await;
        let wanted = [("slow", Digest::of(b"slow")), ("other", Digest::of(b"other"))];
        let needed = wanted.map(|(name, digest)| {
            let (images, component) = (Arc::clone(&images), dir.path().join(format!("{name}.wasm")));
            tokio::spawn(async move { images.ensure(digest, &component, "t").await })
        });
        // Both wait, the one for the same component first.
        until("both wait", || images.turns.waiting() == 2).await;
        std::fs::write(dir.path().join("go"), "").unwrap();
        ahead.await.unwrap().unwrap();
        for needed in needed {
            needed.await.unwrap().unwrap();
        }
        let names: Vec<_> = asked(dir.path()).iter().map(|line| line[..4].to_owned()).collect();
        assert_eq!(names, ["slow", "othe"]);
    }

    #[tokio::test]
    async fn damaged_bytes_are_removed_and_damaged_images_are_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        worker(dir.path(), "case $1 in engine-key) echo 1;; compile) cp \"$3\" \"$5\";; esac");
        let images = Images::open(dir.path(), dir.path()).unwrap();
        let (component, digest) = (dir.path().join("c.wasm"), Digest::of(b"code"));
        std::fs::write(&component, "c0de").unwrap();
        let error = images.ensure(digest, &component, "t").await.unwrap_err();
        assert!(matches!(error, CompileError::Damaged { .. }), "{error}");
        assert!(!component.exists() && images.compilations() == 0);
        // It was fetched again.
        std::fs::write(&component, "code").unwrap();
        let image = images.ensure(digest, &component, "t").await.unwrap();
        std::fs::write(&image, "c0de").unwrap();
        images.discard(&digest);
        assert!(!image.exists());
        images.ensure(digest, &component, "t").await.unwrap();
        assert_eq!((std::fs::read(&image).unwrap(), images.compilations()), (b"code".to_vec(), 2));
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
