//! Wasm tasks: `wasi:cli/command` components with a sandbox directory, run to their end.
//!
//! Invariants: a task reaches its sandbox and its own output files, no network, no other file; its
//! memory is summed and limited; it is time-sliced, never ended for using CPU; a kill ends it within
//! an epoch, also while it sleeps. This file must never know what a task is for.

use crate::engine::Ticker;
use crate::http;
use crate::limits::{Account, LimitPassed, Limits};
use crate::store::{Failure, explain};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::AsyncWrite;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

/// Bytes that a task may write to each of stdout and stderr; what follows is dropped with a note.
pub const OUTPUT_BYTES_MAX: u64 = 64 << 20;
/// Bytes that one write may carry.
const WRITE_BYTES_MAX: usize = 64 << 10;
/// `O_NOFOLLOW` on every Linux of this project: output files must not be links out of the sandbox.
const O_NOFOLLOW: i32 = 0o400_000;

/// What a task is started with.
#[derive(Clone, Debug)]
pub struct TaskStart {
    /// The program's own name.
    pub name: String,
    /// Arguments after it.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Seen by the task as `/`; holds `stdout` and `stderr`, each once something was written to it.
    pub sandbox: PathBuf,
    /// What it may use.
    pub limits: Limits,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskEnd {
    /// By itself.
    Exited(i32),
    /// Because it was killed.
    Killed,
    /// By a trap or a limit.
    Failed(Failure),
}

thread_local! {
    /// What tells the tasks of a thread, which come one after the other, that time has passed. Only time: files are
    /// read and written on the thread itself, and there is no network.
    static CLOCK: Result<Runtime, String> = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| error.to_string());
}

#[derive(Debug, Default)]
struct KillState {
    flag: AtomicBool,
    wake: Notify,
}

/// Ends a task from another thread. Killing twice, or after the end, changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Kill(Arc<KillState>);

impl Kill {
    /// End the task.
    pub fn kill(&self) {
        self.0.flag.store(true, Ordering::SeqCst);
        self.0.wake.notify_one();
    }

    fn is_killed(&self) -> bool {
        self.0.flag.load(Ordering::SeqCst)
    }
}

struct TaskGuest {
    wasi: WasiCtx,
    table: ResourceTable,
    account: Account,
}

impl WasiView for TaskGuest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

/// Links tasks. One per engine.
pub struct TaskHost {
    linker: Linker<TaskGuest>,
    ticker: Arc<Ticker>,
}

/// A component that is linked and can be run any number of times.
#[derive(Clone)]
pub struct TaskImage {
    pre: CommandPre<TaskGuest>,
    ticker: Arc<Ticker>,
}

impl TaskHost {
    /// Make the linker.
    ///
    /// # Errors
    /// When an interface is defined twice.
    pub fn new(engine: &Engine, ticker: Arc<Ticker>) -> wasmtime::Result<Self> {
        let mut linker = Linker::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        Ok(Self { linker, ticker })
    }

    /// Link a component.
    ///
    /// # Errors
    /// [`Failure::Unusable`] when it is no command, with the import or export named.
    pub fn link(&self, component: &Component) -> Result<TaskImage, Failure> {
        let pre = http::link(&self.linker, component)
            .and_then(CommandPre::new)
            .map_err(|error| Failure::Unusable(format!("{error:#}")))?;
        Ok(TaskImage {
            pre,
            ticker: self.ticker.clone(),
        })
    }
}

impl TaskImage {
    /// Run to the end, on the calling thread. `begun` is called when there was room for its instance, before
    /// its program runs.
    #[must_use]
    pub fn run(&self, start: &TaskStart, kill: &Kill, begun: impl FnOnce()) -> TaskEnd {
        let store = match self.store(start, kill) {
            Ok(store) => store,
            Err(error) => return TaskEnd::Failed(Failure::Unusable(format!("{error:#}"))),
        };
        CLOCK.with(|clock| {
            let runtime = match clock {
                Ok(runtime) => runtime,
                Err(error) => return TaskEnd::Failed(Failure::Unusable(error.clone())),
            };
            let _running = self.ticker.run();
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = kill.0.wake.notified() => TaskEnd::Killed,
                    end = self.call(store, &start.limits, kill, begun) => end,
                }
            })
        })
    }

    fn store(&self, start: &TaskStart, kill: &Kill) -> wasmtime::Result<Store<TaskGuest>> {
        let mut builder = WasiCtxBuilder::new();
        builder
            .allow_blocking_current_thread(true)
            .stdout(Output::to(start.sandbox.join("stdout")))
            .stderr(Output::to(start.sandbox.join("stderr")))
            .arg(&start.name)
            .args(&start.args)
            .envs(&start.env)
            .max_random_size(start.limits.random_bytes)
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .preopened_dir(&start.sandbox, "/", FsPerms::ReadWrite)?;
        let mut table = ResourceTable::new();
        // What a task holds one handle of may be two things here: a pollable, and what it waits for.
        table.set_max_capacity(start.limits.handles.saturating_mul(2));
        let account = Account::new(start.limits);
        let mut store = Store::new(
            self.pre.engine(),
            TaskGuest {
                wasi: builder.build(),
                table,
                account,
            },
        );
        store.limiter(|guest| &mut guest.account);
        store.set_hostcall_fuel(start.limits.hostcall_bytes);
        store.set_max_component_handles(start.limits.handles);
        store.set_epoch_deadline(1);
        let kill = kill.clone();
        store.epoch_deadline_callback(move |_| {
            if kill.is_killed() {
                return Err(wasmtime::Error::msg("killed"));
            }
            Ok(UpdateDeadline::Yield(1))
        });
        Ok(store)
    }

    async fn call(
        &self,
        mut store: Store<TaskGuest>,
        limits: &Limits,
        kill: &Kill,
        begun: impl FnOnce(),
    ) -> TaskEnd {
        let ended = match self.pre.instantiate_async(&mut store).await {
            Ok(command) => {
                begun();
                command.wasi_cli_run().call_run(&mut store).await
            }
            Err(error) => Err(error),
        };
        match ended {
            Ok(Ok(())) => TaskEnd::Exited(0),
            Ok(Err(())) => TaskEnd::Exited(1),
            Err(_) if kill.is_killed() => TaskEnd::Killed,
            Err(error) => match error.downcast_ref::<I32Exit>() {
                Some(exit) => TaskEnd::Exited(exit.0),
                None => {
                    let refused = store.data_mut().account.take_refused();
                    TaskEnd::Failed(explain(&error, refused, limits))
                }
            },
        }
    }
}

/// Whether a failure is for want of memory.
#[must_use]
pub fn is_memory_limit(failure: &Failure) -> bool {
    matches!(failure, Failure::Limit(LimitPassed { name: "memory-bytes", .. }))
}

#[derive(Debug)]
struct OutputFile {
    path: PathBuf,
    /// Opened by the first write: most tasks say nothing, and a file costs more than such a task.
    open: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    file: std::fs::File,
    written: u64,
    cut: bool,
}

/// An output file of bounded size. The task never waits for it and never hears that it is full.
#[derive(Clone, Debug)]
struct Output(Arc<Mutex<OutputFile>>);

impl Output {
    fn to(path: PathBuf) -> Self {
        Self(Arc::new(Mutex::new(OutputFile { path, open: None })))
    }

    fn file(&self) -> MutexGuard<'_, OutputFile> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OutputFile {
    fn append(&mut self, bytes: &[u8], max: u64) -> std::io::Result<()> {
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(OpenFile::open(&self.path)?),
        };
        open.append(bytes, max)
    }
}

impl OpenFile {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o644)
            .custom_flags(O_NOFOLLOW)
            .open(path)?;
        let written = file.metadata()?.len();
        Ok(Self { file, written, cut: false })
    }

    fn append(&mut self, bytes: &[u8], max: u64) -> std::io::Result<()> {
        let room = usize::try_from(max.saturating_sub(self.written)).unwrap_or(usize::MAX);
        let kept = &bytes[..bytes.len().min(room)];
        self.file.write_all(kept)?;
        self.written += kept.len() as u64;
        if kept.len() < bytes.len() && !self.cut {
            self.cut = true;
            self.file
                .write_all(b"\n[output over the limit is dropped]\n")?;
        }
        Ok(())
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Asked for by WASI 0.3 only, which is not linked.
        Box::new(tokio::io::sink())
    }
}

#[async_trait::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        self.file()
            .append(&bytes, OUTPUT_BYTES_MAX)
            .map_err(|error| StreamError::LastOperationFailed(error.into()))
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_with_one_note() {
        let dir = std::env::temp_dir().join(format!("tessera-output-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("stdout");
        let output = Output::to(path.clone());
        assert!(!path.exists(), "who writes nothing has no file");
        for _ in 0..3 {
            output.file().append(b"123456", 10).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "1234561234\n[output over the limit is dropped]\n");
        let link = dir.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let refused = Output::to(link).file().append(b"x", 10);
        assert!(refused.is_err(), "links are not followed");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
