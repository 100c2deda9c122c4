//! Describing tasks and reading their status.
//!
//! Owns the builder of task specs and the names of task states. Checks nothing by itself: the host
//! checks a spec when it is defined, and says which field breaks which rule.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use crate::Error;
use crate::bindings::tessera::framework::types::{
    self, ExecutorTask, File, FileContent, NativeCommand, ResourceItem, TaskBody, WasmCommand,
};
pub use crate::bindings::tessera::framework::types::{TaskState, TaskStatus};
use crate::host::specs;
use crate::resources::{Resources, milli_from_cores, plain_item};

/// What a task runs and needs. Tasks may share one.
///
/// ```
/// # use tessera_sdk::TaskSpec;
/// let spec = TaskSpec::shell("wc -w < input > words")
///     .cpus(0.5)
///     .mem_mib(32)
///     .file("input", "one two three")
///     .result_file("words");
/// assert_eq!(spec.resources().cpus_milli, 500);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSpec {
    /// As the contract has it, but for what is said of a revocable one.
    spec: Shared,
    revocable: bool,
}

/// A spec that its clones share until one of them is changed, so that many tasks of one turn define it
/// once.
#[derive(Clone, Debug)]
struct Shared {
    spec: Rc<types::TaskSpec>,
    defined: Rc<RefCell<Option<Definition>>>,
}

/// The digest that the host gave, and in which turn: a spec of an earlier turn may have been forgotten.
#[derive(Debug)]
struct Definition {
    turn: u64,
    digest: String,
}

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        self.spec == other.spec
    }
}

impl Eq for Shared {}

impl Deref for Shared {
    type Target = types::TaskSpec;

    fn deref(&self) -> &types::TaskSpec {
        &self.spec
    }
}

impl DerefMut for Shared {
    /// Whoever is about to change it gets one of its own, which nobody has defined.
    fn deref_mut(&mut self) -> &mut types::TaskSpec {
        self.defined = Rc::default();
        Rc::make_mut(&mut self.spec)
    }
}

/// CPU of a task for which nothing else is said, in thousandths of a core.
const DEFAULT_CPUS_MILLI: u64 = 100;
/// Memory of a task for which nothing else is said, in MiB.
const DEFAULT_MEM_MIB: u64 = 32;

impl TaskSpec {
    fn new(name: &str, body: TaskBody) -> Self {
        Self {
            revocable: false,
            spec: Shared {
                defined: Rc::default(),
                spec: Rc::new(types::TaskSpec {
                    name: name.to_owned(),
                    body,
                    resources: Resources {
                        cpus_milli: DEFAULT_CPUS_MILLI,
                        mem_mib: DEFAULT_MEM_MIB,
                        disk_mib: 0,
                    },
                    items: Vec::new(),
                    cpus_limit_milli: None,
                    pids_limit: None,
                    user: None,
                    env: Vec::new(),
                    files: Vec::new(),
                    result_file: None,
                    grace_ms: None,
                    restarts: 0,
                    health: None,
                    labels: Vec::new(),
                    ext: Vec::new(),
                }),
            },
        }
    }

    /// A native command run by `/bin/sh -c`, with 0.1 cpus and 32 MiB unless changed.
    pub fn shell(command: impl Into<String>) -> Self {
        Self::new(
            "shell",
            TaskBody::Native(NativeCommand::Shell(command.into())),
        )
    }

    /// A native program and its arguments, with 0.1 cpus and 32 MiB unless changed.
    pub fn argv<A: Into<String>>(argv: impl IntoIterator<Item = A>) -> Self {
        let argv = argv.into_iter().map(Into::into).collect();
        Self::new("command", TaskBody::Native(NativeCommand::Argv(argv)))
    }

    /// A `wasi:cli/command` component, by its digest (`sha256:…`), with the arguments after its
    /// name; 0.1 cpus and 32 MiB unless changed.
    pub fn wasm<A: Into<String>>(
        component: impl Into<String>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        Self::new(
            "component",
            TaskBody::Wasm(WasmCommand {
                component: component.into(),
                args,
            }),
        )
    }

    /// A task for this framework's own executor `executor`, whose component has this digest
    /// (`sha256:…`); 0.1 cpus and 32 MiB for the task, and as much for the executor, unless changed.
    pub fn executor(executor: impl Into<String>, component: impl Into<String>) -> Self {
        Self::new(
            "executor",
            TaskBody::Executor(ExecutorTask {
                executor: executor.into(),
                component: component.into(),
                resources: Resources {
                    cpus_milli: DEFAULT_CPUS_MILLI,
                    mem_mib: DEFAULT_MEM_MIB,
                    disk_mib: 0,
                },
                config: Vec::new(),
                data: Vec::new(),
            }),
        )
    }

    /// What the executor itself is charged for, once per agent; nothing for other tasks. Its memory is
    /// also what its instance may have.
    pub fn executor_resources(mut self, resources: Resources) -> Self {
        if let TaskBody::Executor(task) = &mut self.spec.body {
            task.resources = resources;
        }
        self
    }

    /// One more entry of the executor's configuration; nothing for other tasks.
    pub fn executor_config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        if let TaskBody::Executor(task) = &mut self.spec.body {
            task.config.push((key.into(), value.into()));
        }
        self
    }

    /// What the executor is to do, in whatever form it reads, at most 64 KiB; nothing for other tasks.
    pub fn data(mut self, data: impl Into<Vec<u8>>) -> Self {
        if let TaskBody::Executor(task) = &mut self.spec.body {
            task.data = data.into();
        }
        self
    }

    /// A name for people, at most 255 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.spec.name = name.into();
        self
    }

    /// CPU in cores; a weight unless [`cpus_limit`](Self::cpus_limit) is set too.
    pub fn cpus(mut self, cores: f64) -> Self {
        self.spec.resources.cpus_milli = milli_from_cores(cores);
        self
    }

    /// Hard ceiling of CPU in cores.
    pub fn cpus_limit(mut self, cores: f64) -> Self {
        self.spec.cpus_limit_milli = Some(milli_from_cores(cores));
        self
    }

    /// Memory in MiB, a hard limit.
    pub fn mem_mib(mut self, mem_mib: u64) -> Self {
        self.spec.resources.mem_mib = mem_mib;
        self
    }

    /// Disk in MiB.
    pub fn disk_mib(mut self, disk_mib: u64) -> Self {
        self.spec.resources.disk_mib = disk_mib;
        self
    }

    /// GPUs: so much of what agents name `gpus`.
    pub fn gpus(self, count: u64) -> Self {
        self.resource("gpus", count as f64)
    }

    /// So much of a resource that agents name; none of it is enforced, it is only counted.
    pub fn resource(mut self, name: impl Into<String>, amount: f64) -> Self {
        self.spec.items.push(plain_item(name, amount));
        self
    }

    /// It may be ended at any time to make room for others: it runs on revocable offers, and only there. Ask for them
    /// with a [`Request`](crate::Request) that is revocable.
    pub fn revocable(mut self) -> Self {
        self.revocable = true;
        self.spec.defined = Rc::default();
        self
    }

    /// Whether it may be ended at any time to make room for others.
    pub fn is_revocable(&self) -> bool {
        self.revocable
    }

    /// Most processes and threads at once; the agent's default (4,096) otherwise.
    pub fn pids_limit(mut self, pids: u32) -> Self {
        self.spec.pids_limit = Some(pids);
        self
    }

    /// User that a native command runs as; the agent's task user otherwise.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.spec.user = Some(user.into());
        self
    }

    /// One more environment variable.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.env.push((name.into(), value.into()));
        self
    }

    /// A file with mode 0644 placed into the sandbox, at most 64 KiB.
    pub fn file(self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.file_with_mode(path, 0o644, content)
    }

    /// A file with these permission bits placed into the sandbox, at most 64 KiB.
    pub fn file_with_mode(
        mut self,
        path: impl Into<String>,
        mode: u32,
        content: impl Into<Vec<u8>>,
    ) -> Self {
        self.spec.files.push(File {
            path: path.into(),
            mode,
            content: FileContent::Inline(content.into()),
        });
        self
    }

    /// File in the sandbox whose content, at most 256 KiB, becomes the data of the terminal status.
    pub fn result_file(mut self, path: impl Into<String>) -> Self {
        self.spec.result_file = Some(path.into());
        self
    }

    /// Time between TERM and KILL when the task is killed, in ms; 3,000 otherwise.
    pub fn grace_ms(mut self, grace_ms: u32) -> Self {
        self.spec.grace_ms = Some(grace_ms);
        self
    }

    /// How often the agent itself starts the task again after a failure.
    pub fn restarts(mut self, restarts: u32) -> Self {
        self.spec.restarts = restarts;
        self
    }

    /// One more label.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.labels.push((name.into(), value.into()));
        self
    }

    /// The resources it asks for.
    pub fn resources(&self) -> Resources {
        self.spec.resources
    }

    /// Bytes that the spec counts for in the limit of a turn, roughly: its contents and a fixed
    /// amount for each field.
    pub(crate) fn size_bytes(&self) -> usize {
        /// Room for field tags, lengths and numbers; generous.
        const OVERHEAD_BYTES: usize = 512;
        /// The same for each element of a list.
        const ELEMENT_BYTES: usize = 32;
        let spec = &self.spec;
        let pairs = |pairs: &[(String, String)]| -> usize {
            pairs
                .iter()
                .map(|(name, value)| ELEMENT_BYTES + name.len() + value.len())
                .sum()
        };
        let texts = |texts: &[String]| -> usize {
            texts.iter().map(|text| ELEMENT_BYTES + text.len()).sum()
        };
        let body = match &spec.body {
            TaskBody::Native(NativeCommand::Shell(command)) => command.len(),
            TaskBody::Native(NativeCommand::Argv(argv)) => texts(argv),
            TaskBody::Wasm(command) => command.component.len() + texts(&command.args),
            TaskBody::Image(image) => image.len(),
            TaskBody::Executor(task) => task.component.len() + task.data.len() + pairs(&task.config),
        };
        let files: usize = spec
            .files
            .iter()
            .map(|file| {
                let content = match &file.content {
                    FileContent::Inline(bytes) => bytes.len(),
                    FileContent::Digest(digest) => digest.len(),
                };
                ELEMENT_BYTES + file.path.len() + content
            })
            .sum();
        OVERHEAD_BYTES + spec.name.len() + body + files + pairs(&spec.env) + pairs(&spec.labels)
    }

    /// What it asks for beside cpus, mem and disk.
    pub(crate) fn items(&self) -> &[ResourceItem] {
        &self.spec.items
    }

    /// The executor that runs it, and what that is charged for itself.
    pub(crate) fn executor_charge(&self) -> Option<(&str, Resources)> {
        match &self.spec.body {
            TaskBody::Executor(task) => Some((&task.executor, task.resources)),
            _ => None,
        }
    }

    /// As the contract has it.
    pub(crate) fn into_contract(self) -> types::TaskSpec {
        let revocable = self.revocable;
        let mut spec = Rc::unwrap_or_clone(self.spec.spec);
        if revocable {
            revoke(&mut spec);
        }
        spec
    }

    /// The digest under which it is launched, if it or one that it was cloned from has been defined in
    /// this turn.
    pub(crate) fn digest(&self, turn: u64) -> Option<String> {
        let defined = self.spec.defined.borrow();
        defined.as_ref().filter(|defined| defined.turn == turn).map(|defined| defined.digest.clone())
    }

    /// Have the host check the spec and return the digest under which it is launched.
    pub(crate) fn define(&self, turn: u64) -> Result<String, Error> {
        let digest = if self.revocable {
            specs::define(&self.clone().into_contract())?
        } else {
            specs::define(&self.spec)?
        };
        self.spec.defined.replace(Some(Definition { turn, digest: digest.clone() }));
        Ok(digest)
    }
}

/// Write everything that a spec asks for as revocable items, as the contract has it.
fn revoke(spec: &mut types::TaskSpec) {
    let Resources { cpus_milli, mem_mib, disk_mib } = spec.resources;
    let whole = |name: &str, amount_milli| ResourceItem { amount_milli, ..plain_item(name, 0.0) };
    let fields = [
        whole("cpus", cpus_milli),
        whole("mem", mem_mib.saturating_mul(1000)),
        whole("disk", disk_mib.saturating_mul(1000)),
    ];
    spec.resources = Resources { cpus_milli: 0, mem_mib: 0, disk_mib: 0 };
    spec.items.extend(fields.into_iter().filter(|item| item.amount_milli > 0));
    spec.items.iter_mut().for_each(|item| item.revocable = true);
}

/// A task that waits for an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its id: 1 to 255 bytes of `A-Z a-z 0-9 . _ -`, never used before in this framework.
    pub task: String,
    /// What it runs and needs.
    pub spec: TaskSpec,
    /// Appended to the arguments of an argv or Wasm command.
    pub args: Vec<String>,
    /// Added to the environment of the spec.
    pub env: Vec<(String, String)>,
}

impl Pending {
    /// A task with nothing of its own but its id.
    pub fn new(task: impl Into<String>, spec: TaskSpec) -> Self {
        Self {
            task: task.into(),
            spec,
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// One more argument for this task only.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// One more environment variable for this task only.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
}

impl TaskState {
    /// The state as Mesos writes it, for example `TASK_RUNNING`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Staging => "TASK_STAGING",
            Self::Starting => "TASK_STARTING",
            Self::Running => "TASK_RUNNING",
            Self::Killing => "TASK_KILLING",
            Self::Finished => "TASK_FINISHED",
            Self::Failed => "TASK_FAILED",
            Self::Killed => "TASK_KILLED",
            Self::Error => "TASK_ERROR",
            Self::Dropped => "TASK_DROPPED",
            Self::Lost => "TASK_LOST",
            Self::Gone => "TASK_GONE",
            Self::GoneByOperator => "TASK_GONE_BY_OPERATOR",
            Self::Unreachable => "TASK_UNREACHABLE",
            Self::Unknown => "TASK_UNKNOWN",
        }
    }

    /// Whether the task has ended and no other state can follow.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Finished
            | Self::Failed
            | Self::Killed
            | Self::Error
            | Self::Dropped
            | Self::Lost
            | Self::Gone
            | Self::GoneByOperator => true,
            Self::Staging
            | Self::Starting
            | Self::Running
            | Self::Killing
            | Self::Unreachable
            | Self::Unknown => false,
        }
    }
}

impl TaskStatus {
    /// Whether the task ended without its own doing: it never started, or the agent, the worker or
    /// an operator took it away. Trying again under a new id is the usual answer.
    pub fn ended_from_outside(&self) -> bool {
        match self.state {
            TaskState::Dropped
            | TaskState::Lost
            | TaskState::Gone
            | TaskState::GoneByOperator
            | TaskState::Killed => true,
            TaskState::Failed => self.reason == "WORKER_LOST",
            _ => false,
        }
    }

    /// For people: what ended the task, for example `exit code 3`.
    pub fn describe(&self) -> String {
        let mut parts = vec![self.state.name().to_owned()];
        if !self.reason.is_empty() {
            parts.push(self.reason.clone());
        }
        // A message that names the number says it all.
        let names = |number: &i32| self.message.contains(&number.to_string());
        if let Some(code) = self.exit_code.filter(|code| !names(code)) {
            parts.push(format!("exit code {code}"));
        }
        if let Some(signal) = self.signal.filter(|signal| !names(signal)) {
            parts.push(format!("signal {signal}"));
        }
        if !self.message.is_empty() {
            parts.push(self.message.clone());
        }
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::TaskSpec;

    #[test]
    fn the_size_of_a_spec_covers_its_contents() {
        let small = TaskSpec::shell("true");
        let large = TaskSpec::shell("true")
            .file("input", vec![0; 24 * 1024])
            .env("NAME", "value");
        assert!(large.size_bytes() > small.size_bytes() + 24 * 1024);
    }
}
