//! Performing the core's actions. A checkpoint has been written before anything here is called.
//!
//! Invariants: nothing here blocks the loop; what takes time runs in a task of its own, which ends with
//! one input. This file must never decide whether an action is right.

use crate::components::Components;
use crate::images::{CompileError, Images};
use crate::input::Input;
use crate::native::{Attempt, task_variables};
use crate::reach::Reaches;
use crate::recordings::Recordings;
use crate::sandbox::{Sandboxes, TaskDirs, read_result};
use crate::session::Client;
use crate::tenants::Tenants;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tessera_agent_core::{ExecutorKey, IMAGE_DAMAGED, SupplyFailure, TaskKey, WorkerKey, WorkerKind};
use tessera_types::{Digest, FrameworkId, Launch, NameError, RoleName, TaskBody};
use tessera_wire::v1;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Wasm tasks that are prepared in one step; more would only wait for each other.
const WASM_STARTS_MAX: usize = 16;

/// Bytes of an executor's state in one message to its worker, far below what a link takes.
const STATE_CHUNK_BYTES: usize = 1 << 20;

/// What background steps need.
#[derive(Clone)]
pub struct Supply {
    /// Bytes of components.
    pub components: Arc<Components>,
    /// Compiled ones.
    pub images: Arc<Images>,
    /// Directories of tasks.
    pub sandboxes: Sandboxes,
    /// Folders of recordings.
    pub recordings: Recordings,
    /// Users of workers.
    pub tenants: Arc<Tenants>,
    /// What workers of each tenant can reach.
    pub reaches: Arc<Reaches>,
    /// The agent's work directory.
    pub work_dir: PathBuf,
    /// Where answers go.
    pub inputs: mpsc::Sender<Input>,
}

/// The session as background steps see it.
#[derive(Clone)]
pub struct Session {
    /// Of the bulk lane.
    pub client: Client,
    /// The agent's number.
    pub agent: u64,
    /// The session's number.
    pub session: u64,
}

/// A Wasm task to prepare.
pub struct WasmStart {
    /// Which worker.
    pub worker: WorkerKey,
    /// Which attempt of which task, and what to run.
    pub of: Attempt,
    /// With what.
    pub launch: Launch,
    /// The component.
    pub component: Digest,
    /// Where its image should be.
    pub image: Option<PathBuf>,
    /// What its role has, as far as it differs from the defaults.
    pub limits: Vec<v1::Limit>,
}

fn tenant_of(role: &str) -> Result<String, String> {
    let role: RoleName = role.parse().map_err(|error: NameError| error.to_string())?;
    Ok(role.tenant().to_owned())
}

fn failure_of(error: &CompileError) -> SupplyFailure {
    let text = error.to_string();
    match error {
        CompileError::Unusable { .. } => SupplyFailure::Unusable(text),
        CompileError::Damaged { .. } => SupplyFailure::Gone(text),
        CompileError::Run { .. } | CompileError::Failed { .. } => SupplyFailure::Retry(text),
    }
}

fn text_of(failure: SupplyFailure) -> String {
    match failure {
        SupplyFailure::Retry(text) | SupplyFailure::Gone(text) | SupplyFailure::Unusable(text) => text,
    }
}

/// There is no image for a task now: it is sent again, as if its worker had found the image damaged.
fn wasm_waits(worker: WorkerKey, of: &Attempt, message: String) -> Input {
    let state = v1::WasmTaskState {
        framework: of.key.framework.0,
        task: of.key.name(),
        attempt: of.attempt,
        state: v1::TaskState::TaskStaging.into(),
        reason: IMAGE_DAMAGED.to_owned(),
        message,
        exit_code: None,
    };
    Input::WasmEnded(worker, Box::new(state), Ok(Vec::new()))
}

fn wasm_refused(of: Attempt, message: String) -> Input {
    Input::WasmRefused {
        key: of.key,
        attempt: of.attempt,
        message,
    }
}

impl Supply {
    /// Send an answer; the loop is gone only when the agent ends.
    fn answer(&self, input: Input) -> impl Future<Output = ()> + use<> {
        let inputs = self.inputs.clone();
        async move {
            let _ = inputs.send(input).await;
        }
    }

    /// Have a component on disk.
    pub fn ensure_component(&self, digest: Digest, session: Option<Session>) {
        let supply = self.clone();
        tokio::spawn(async move {
            let result = supply.fetch(digest, session).await;
            if let Err(SupplyFailure::Retry(error)) = &result {
                tracing::warn!(%digest, error, "a component did not come; it is tried again");
            }
            supply.answer(Input::Component(digest, result)).await;
        });
    }

    async fn fetch(&self, digest: Digest, session: Option<Session>) -> Result<(), SupplyFailure> {
        if self.components.get(&digest).is_some() {
            return Ok(());
        }
        let Some(mut session) = session else {
            return Err(SupplyFailure::Retry(
                "there is no session with a master".into(),
            ));
        };
        let request = v1::FetchComponentRequest {
            digest: digest.0.to_vec(),
            agent: session.agent,
            session: session.session,
        };
        let retry = |error: String| SupplyFailure::Retry(error);
        let chunks = session
            .client
            .fetch_component(request)
            .await
            .map_err(|s| retry(s.to_string()))?;
        let kept = self.components.keep(digest, chunks.into_inner()).await;
        kept.map(drop).map_err(|error| retry(error.to_string()))
    }

    /// Have a component compiled; `anew` when the image that is there is damaged.
    pub fn ensure_image(&self, digest: Digest, engine: String, tenant: String, anew: bool) {
        let supply = self.clone();
        tokio::spawn(async move {
            if anew {
                tracing::warn!(%digest, "the image of a component was damaged on this machine's disk: it is compiled again");
                supply.images.discard(&digest);
            }
            let result = match supply.components.get(&digest) {
                None => Err(SupplyFailure::Gone("the component is gone".into())),
                Some(component) => {
                    let made = supply.images.ensure(digest, &component, &tenant).await;
                    made.map(drop).map_err(|error| failure_of(&error))
                }
            };
            match &result {
                Ok(()) | Err(SupplyFailure::Unusable(_)) => {}
                Err(SupplyFailure::Gone(error)) => {
                    tracing::warn!(%digest, error, "a component is fetched again");
                }
                Err(SupplyFailure::Retry(error)) => {
                    tracing::warn!(%digest, error, "a component was not compiled; it is tried again");
                }
            }
            supply.answer(Input::Image(digest, engine, result)).await;
        });
    }

    /// Have a component on disk and compiled before anybody needs it.
    pub fn compile_ahead(&self, digest: Digest, session: Option<Session>) {
        let supply = self.clone();
        tokio::spawn(async move {
            let result = supply.fetch_and_compile(digest, session).await;
            if let Err(SupplyFailure::Retry(error) | SupplyFailure::Gone(error) | SupplyFailure::Unusable(error)) =
                &result
            {
                tracing::warn!(%digest, error, "a component was not compiled ahead; nothing here needs it yet");
            }
            supply.answer(Input::CompiledAhead(digest, result)).await;
        });
    }

    async fn fetch_and_compile(
        &self,
        digest: Digest,
        session: Option<Session>,
    ) -> Result<(), SupplyFailure> {
        self.fetch(digest, session).await?;
        let component = self.components.get(&digest);
        let component = component.ok_or_else(|| SupplyFailure::Retry("the component is gone".into()))?;
        let compiled = self.images.ensure_ahead(digest, &component).await;
        compiled.map_err(|error| failure_of(&error))
    }

    /// The image for an order to a worker. It should be there; if not even the bytes are, the loop hears of it, and has
    /// them brought again before the next order.
    async fn image(&self, digest: Digest, tenant: &str) -> Result<String, SupplyFailure> {
        let made = match self.components.get(&digest) {
            None => Err(SupplyFailure::Gone("the component is gone".into())),
            Some(component) => {
                let made = self.images.ensure(digest, &component, tenant).await;
                made.map_err(|error| failure_of(&error))
            }
        };
        if let Err(gone @ SupplyFailure::Gone(error)) = &made {
            tracing::warn!(%digest, error, "a component is fetched again");
            self.answer(Input::Component(digest, Err(gone.clone()))).await;
        }
        made.map(|image| self.near(&image))
    }

    /// A path as workers are told it: from the work directory, which is theirs too, whoever may pass
    /// through the directories above it.
    fn near(&self, path: &Path) -> String {
        let near = path.strip_prefix(&self.work_dir).unwrap_or(path);
        near.to_string_lossy().into_owned()
    }

    /// The folder for recordings of an instance.
    async fn recordings_of(&self, instance: &v1::DesiredInstance) -> Result<String, String> {
        let role: RoleName = instance.role.parse().map_err(|e: NameError| e.to_string())?;
        let (recordings, tenants) = (self.recordings.clone(), Arc::clone(&self.tenants));
        let reaches = Arc::clone(&self.reaches);
        let framework = FrameworkId(instance.framework);
        let made = tokio::task::spawn_blocking(move || {
            let kind = WorkerKind::Schedulers;
            let owner = tenants.owner(role.tenant(), kind)?;
            reaches.place(framework, tenants.number(role.tenant())?, kind)?;
            recordings.prepare(framework, owner)
        });
        let folder = made.await.map_err(|error| error.to_string())?;
        folder
            .map(|folder| self.near(&folder))
            .map_err(|error| format!("making a folder for recordings: {error}"))
    }

    /// Make the sandboxes of Wasm tasks and their orders to workers: as few steps as there can be, because
    /// to wake a thread for each takes longer than what it does.
    pub fn prepare_wasm(&self, mut starts: Vec<WasmStart>) {
        while !starts.is_empty() {
            let rest = starts.split_off(starts.len().min(WASM_STARTS_MAX));
            let (supply, now) = (self.clone(), std::mem::replace(&mut starts, rest));
            let runtime = tokio::runtime::Handle::current();
            tokio::task::spawn_blocking(move || {
                for start in now {
                    match start.image.as_ref().filter(|image| image.is_file()) {
                        Some(image) => {
                            let image = supply.near(image);
                            // The loop is gone only when the agent ends.
                            let _ = supply.inputs.blocking_send(supply.wasm_input(start, image));
                        }
                        None => supply.prepare_with_image(start, &runtime),
                    }
                }
            });
        }
    }

    /// The same for one whose image is not there any more, which takes as long as it takes to compile.
    fn prepare_with_image(&self, start: WasmStart, runtime: &Handle) {
        let supply = self.clone();
        runtime.spawn(async move {
            let input = match supply.image(start.component, &start.worker.tenant).await {
                Ok(image) => {
                    let (supply, of) = (supply.clone(), start.of.clone());
                    let made = tokio::task::spawn_blocking(move || supply.wasm_input(start, image));
                    made.await
                        .unwrap_or_else(|error| wasm_refused(of, error.to_string()))
                }
                Err(SupplyFailure::Unusable(message)) => wasm_refused(start.of, message),
                Err(failure) => wasm_waits(start.worker, &start.of, text_of(failure)),
            };
            supply.answer(input).await;
        });
    }

    /// What the loop is told of a start; blocks.
    fn wasm_input(&self, start: WasmStart, image: String) -> Input {
        let (worker, of) = (start.worker.clone(), start.of.clone());
        match self.wasm_order(start, image) {
            Ok(order) => Input::WasmPrepared(worker, Box::new(order)),
            Err(message) => wasm_refused(of, message),
        }
    }

    fn wasm_order(&self, start: WasmStart, image: String) -> Result<v1::StartWasmTask, String> {
        let WasmStart {
            worker,
            of,
            launch,
            component: _,
            image: _,
            limits,
        } = start;
        let (key, spec) = (&of.key, &of.spec);
        let TaskBody::Wasm { args, .. } = &spec.body else {
            return Err("a native task has no component".into());
        };
        let mut env: BTreeMap<String, String> = task_variables(key, of.attempt).into();
        env.extend(spec.env.iter().chain(&launch.env).cloned());
        let name = if spec.name.is_empty() {
            key.task.to_string()
        } else {
            spec.name.clone()
        };
        let dirs = self.sandbox_in(&of, &worker)?;
        Ok(v1::StartWasmTask {
            framework: key.framework.0,
            task: key.name(),
            attempt: of.attempt,
            image,
            sandbox: self.near(&dirs.sandbox),
            args: args.iter().chain(&launch.args).cloned().collect(),
            env: env
                .into_iter()
                .map(|(key, value)| v1::Pair { key, value })
                .collect(),
            mem_bytes: u64::try_from(spec.resources.quantities.mem_mib).unwrap_or(0) << 20,
            name,
            limits,
        })
    }

    /// Make the sandbox of a task that a worker will run; blocks.
    fn sandbox_in(&self, of: &Attempt, worker: &WorkerKey) -> Result<TaskDirs, String> {
        // The worker's user is the task's: its sandbox is what it reaches of the disk.
        let place = || {
            let owner = self.tenants.owner(&worker.tenant, worker.kind)?;
            let number = self.tenants.number(&worker.tenant)?;
            self.reaches.place(of.key.framework, number, worker.kind)?;
            Ok(owner)
        };
        let owner = place().map_err(|error: std::io::Error| error.to_string())?;
        self.sandboxes
            .prepare(&of.key, of.attempt, &of.spec, owner)
            .map_err(|error| error.to_string())
    }

    /// Make the sandbox of a Wasm member of a task group before any member starts.
    pub fn prepare_sandbox(&self, of: Attempt, worker: WorkerKey) {
        let supply = self.clone();
        tokio::spawn(async move {
            let (key, attempt) = (of.key.clone(), of.attempt);
            let maker = supply.clone();
            let made = tokio::task::spawn_blocking(move || maker.sandbox_in(&of, &worker)).await;
            let made = made.unwrap_or_else(|error| Err(error.to_string()));
            let input = Input::Prepared {
                key,
                attempt,
                result: made.map(drop),
            };
            supply.answer(input).await;
        });
    }

    /// Send an executor and its state to its worker.
    pub fn start_executor(
        &self,
        start: v1::StartExecutor,
        state: Vec<v1::KeyWrite>,
        component: Digest,
        link: mpsc::Sender<v1::ToWorker>,
    ) -> JoinHandle<()> {
        let supply = self.clone();
        let key = start.key.clone().unwrap_or_default();
        tokio::spawn(async move {
            let Err(error) = supply.pass_executor(start, state, component, link).await else {
                return;
            };
            let (framework, executor) = (key.framework, key.executor);
            tracing::warn!(framework, executor, error, "an executor was not started");
            if let Ok(executor) = executor.parse() {
                let key = ExecutorKey {
                    framework: FrameworkId(framework),
                    executor,
                };
                let input = Input::ExecutorNotStarted(key, error);
                supply.answer(input).await;
            }
        })
    }

    async fn pass_executor(
        &self,
        mut start: v1::StartExecutor,
        state: Vec<v1::KeyWrite>,
        component: Digest,
        link: mpsc::Sender<v1::ToWorker>,
    ) -> Result<(), String> {
        let image = self.image(component, &tenant_of(&start.role)?).await;
        start.image = image.map_err(text_of)?;
        let mut state = state.into_iter().peekable();
        loop {
            let mut bytes = 0;
            while let Some(write) = state.next_if(|_| bytes < STATE_CHUNK_BYTES) {
                bytes += write.key.len() + write.value.as_ref().map_or(0, Vec::len);
                start.state.push(write);
            }
            start.more_state = state.peek().is_some();
            let (more, key) = (start.more_state, start.key.clone());
            let rest = v1::StartExecutor {
                key,
                ..v1::StartExecutor::default()
            };
            let message = v1::to_worker::Message::StartExecutor(std::mem::replace(&mut start, rest));
            let message = v1::ToWorker {
                message: Some(message),
            };
            let sent = link.send(message).await;
            sent.map_err(|_| "the worker is gone".to_owned())?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Read the result file of a Wasm task that ended.
    pub fn read_wasm_result(
        &self,
        worker: WorkerKey,
        state: v1::WasmTaskState,
        key: &TaskKey,
        path: String,
    ) {
        let supply = self.clone();
        let sandbox = self.sandboxes.attempt(key, state.attempt).sandbox;
        tokio::spawn(async move {
            let read = tokio::task::spawn_blocking(move || read_result(&sandbox, &path)).await;
            let data = read.unwrap_or_else(|error| Err(error.to_string()));
            supply
                .answer(Input::WasmEnded(worker, Box::new(state), data))
                .await;
        });
    }

    /// Announce an instance to its worker and pass its state on.
    pub fn start_instance(
        &self,
        instance: v1::DesiredInstance,
        session: Option<Session>,
        link: mpsc::Sender<v1::ToWorker>,
    ) -> JoinHandle<()> {
        let supply = self.clone();
        let key = v1::InstanceKey {
            framework: instance.framework,
            epoch: instance.epoch,
        };
        tokio::spawn(async move {
            if let Err(error) = supply.pass_state(key, instance, session, link).await {
                tracing::warn!(
                    framework = key.framework,
                    epoch = key.epoch,
                    error,
                    "an instance got no state"
                );
                supply.answer(Input::StateFailed(key)).await;
            }
        })
    }

    async fn pass_state(
        &self,
        key: v1::InstanceKey,
        instance: v1::DesiredInstance,
        session: Option<Session>,
        link: mpsc::Sender<v1::ToWorker>,
    ) -> Result<(), String> {
        let Session {
            mut client,
            agent,
            session,
        } = session.ok_or("there is no session with a master")?;
        let digest = Digest::from_slice(&instance.component).map_err(|error| error.to_string())?;
        let image = self.image(digest, &tenant_of(&instance.role)?).await.map_err(text_of)?;
        let recordings = self.recordings_of(&instance).await?;
        let send = async |message| {
            let message = v1::ToWorker {
                message: Some(message),
            };
            link.send(message)
                .await
                .map_err(|_| "the worker is gone".to_owned())
        };
        let start = v1::StartInstance {
            instance: Some(instance),
            image,
            recordings,
        };
        send(v1::to_worker::Message::StartInstance(start)).await?;
        let request = v1::FetchStateRequest {
            agent,
            session,
            framework: key.framework,
            epoch: key.epoch,
        };
        let mut chunks = client
            .fetch_state(request)
            .await
            .map_err(|status| status.to_string())?
            .into_inner();
        loop {
            let chunk = chunks
                .message()
                .await
                .map_err(|status| status.to_string())?;
            let chunk = chunk.ok_or("the state ended before its last part")?;
            let last = chunk.next_turn.is_some();
            let state = v1::InstanceState {
                key: Some(key),
                chunk: Some(chunk),
            };
            send(v1::to_worker::Message::InstanceState(state)).await?;
            if last {
                return Ok(());
            }
        }
    }
}
