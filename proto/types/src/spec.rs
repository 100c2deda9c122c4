//! Task specs and launches, and the rules that both must obey.
//!
//! Invariants: a spec that passed [`validate_spec`] can be run by any agent of this version or is
//! refused by it with a terminal status; what this version does not run is refused here by name. This
//! file must never decide where or when something runs.

use crate::limits;
use crate::{Digest, ExecutorId, Resources, ResourcesError, TaskId};
use serde::{Deserialize, Serialize};

/// A command run directly on the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NativeCommand {
    /// Run by `/bin/sh -c`.
    Shell(String),
    /// Program and arguments.
    Argv(Vec<String>),
}

/// What a task runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskBody {
    /// A command in a cgroup of its own.
    Native(NativeCommand),
    /// A `wasi:cli/command` component in the tenant's worker.
    Wasm {
        /// The uploaded component.
        component: Digest,
        /// Arguments after the program name.
        args: Vec<String>,
    },
    /// A task of this framework's own executor.
    Executor(ExecutorTask),
}

/// A task that a custom executor runs. The executor is started with its first task on an agent and ends
/// with its last one; all of its tasks that live at the same time name the same component, resources and
/// configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutorTask {
    /// Which executor of the framework.
    pub executor: ExecutorId,
    /// Its component, of the world `executor-framework`.
    pub component: Digest,
    /// What the executor itself is charged for, once per agent, beside its tasks.
    pub resources: Resources,
    /// The executor's configuration.
    pub config: Vec<(String, String)>,
    /// For the executor, at most [`limits::EXECUTOR_DATA_BYTES_MAX`].
    pub data: Vec<u8>,
}

/// A file placed into the sandbox before the task starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// Relative path inside the sandbox.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// At most [`limits::FILE_BYTES_MAX`].
    pub content: Vec<u8>,
}

/// Everything about a task that many tasks may share. Named by the digest of its canonical encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// For people, at most 255 bytes.
    pub name: String,
    /// What runs.
    pub body: TaskBody,
    /// What it is charged for; `cpus` is a weight, `mem` a hard limit.
    pub resources: Resources,
    /// It may be ended at any time to make room: it runs on revocable offers, and only there.
    pub revocable: bool,
    /// Hard ceiling of CPU, in thousandths of a core.
    pub cpus_limit_milli: Option<i64>,
    /// Most processes and threads; [`limits::PIDS_DEFAULT`] when absent.
    pub pids_limit: Option<u32>,
    /// User of a native command; the agent's task user when absent.
    pub user: Option<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Files of the sandbox.
    pub files: Vec<FileSpec>,
    /// Relative path whose content becomes the data of the terminal status.
    pub result_file: Option<String>,
    /// Time between TERM and KILL; [`limits::GRACE_DEFAULT_MS`] when absent.
    pub grace_ms: Option<u64>,
    /// How often the agent itself starts the task again after a failure.
    pub restarts: u32,
    /// For people and tools.
    pub labels: Vec<(String, String)>,
}

/// One launch: a spec and what differs for this task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The task's id, never used before in its framework.
    pub task: TaskId,
    /// Which spec.
    pub spec: Digest,
    /// Appended to the arguments of an argv or Wasm command.
    pub args: Vec<String>,
    /// Added to the spec's environment, replacing equal names.
    pub env: Vec<(String, String)>,
}

/// Memory of an executor: its instance with the smallest stack and heap of a toolchain.
const EXECUTOR_MEM_MIN_MIB: i64 = 16;

/// Why a spec or a launch was refused: the field, the rule, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    /// A field breaks a rule.
    #[error("{field}: {rule}")]
    Field {
        /// The field.
        field: &'static str,
        /// The rule that it breaks.
        rule: String,
    },
    /// The resources break a rule.
    #[error("resources: {0}")]
    Resources(#[from] ResourcesError),
}

fn refuse<T>(field: &'static str, rule: impl Into<String>) -> Result<T, InvalidSpec> {
    Err(InvalidSpec::Field { field, rule: rule.into() })
}

/// Check a spec.
///
/// # Errors
/// The first rule that is broken.
pub fn validate_spec(spec: &TaskSpec) -> Result<(), InvalidSpec> {
    if spec.name.len() > 255 {
        return refuse("name", "at most 255 bytes");
    }
    validate_body(&spec.body)?;
    spec.resources.validate()?;
    if spec.resources.quantities.cpus_milli == 0 && spec.resources.quantities.mem_mib == 0 {
        return refuse("resources", "a task needs some cpus or mem, or it could be launched without end");
    }
    if spec.cpus_limit_milli.is_some_and(|limit| limit < spec.resources.quantities.cpus_milli.max(10)) {
        return refuse("cpus-limit", "at least the cpus of the task, and at least 0.01");
    }
    if spec.pids_limit == Some(0) {
        return refuse("pids-limit", "at least 1");
    }
    if let Some(user) = &spec.user {
        if user.is_empty() || user.len() > 32 || user.contains(['/', ':', '\0']) {
            return refuse("user", "a user name or number of 1 to 32 bytes");
        }
        if !matches!(spec.body, TaskBody::Native(_)) {
            return refuse("user", "only native commands have a user");
        }
    }
    if let TaskBody::Executor(task) = &spec.body {
        validate_executor(task, spec)?;
    }
    validate_env(&spec.env)?;
    if spec.files.len() > limits::FILES_MAX {
        return refuse("files", format!("at most {}", limits::FILES_MAX));
    }
    for file in &spec.files {
        validate_path("files.path", &file.path)?;
        if file.content.len() > limits::FILE_BYTES_MAX {
            return refuse("files.content", format!("at most {} bytes inline", limits::FILE_BYTES_MAX));
        }
        if file.mode > 0o777 {
            return refuse("files.mode", "permission bits only, at most 0o777");
        }
    }
    if let Some(path) = &spec.result_file {
        validate_path("result-file", path)?;
    }
    if spec.grace_ms.is_some_and(|grace| grace > limits::GRACE_MAX_MS) {
        return refuse("grace-ms", format!("at most {}", limits::GRACE_MAX_MS));
    }
    if spec.labels.len() > 64 || spec.labels.iter().any(|(k, v)| k.is_empty() || k.len() + v.len() > 1024) {
        return refuse("labels", "at most 64, each of at most 1024 bytes");
    }
    Ok(())
}

fn validate_body(body: &TaskBody) -> Result<(), InvalidSpec> {
    let words: &[String] = match body {
        TaskBody::Native(NativeCommand::Shell(text)) if text.is_empty() => {
            return refuse("body", "a shell command must not be empty");
        }
        TaskBody::Native(NativeCommand::Shell(text)) => std::slice::from_ref(text),
        TaskBody::Native(NativeCommand::Argv(argv)) if argv.first().is_none_or(String::is_empty) => {
            return refuse("body", "argv needs a program");
        }
        TaskBody::Native(NativeCommand::Argv(argv)) => argv,
        TaskBody::Wasm { args, .. } => args,
        TaskBody::Executor(_) => &[],
    };
    validate_words("body", words)
}

fn validate_executor(task: &ExecutorTask, spec: &TaskSpec) -> Result<(), InvalidSpec> {
    if task.data.len() > limits::EXECUTOR_DATA_BYTES_MAX {
        return refuse("body.data", format!("at most {} bytes", limits::EXECUTOR_DATA_BYTES_MAX));
    }
    let bytes: usize = task.config.iter().map(|(key, value)| key.len() + value.len()).sum();
    if task.config.len() > limits::CONFIG_ENTRIES_MAX || bytes > limits::CONFIG_BYTES_MAX {
        let (entries, bytes) = (limits::CONFIG_ENTRIES_MAX, limits::CONFIG_BYTES_MAX);
        return refuse("body.config", format!("at most {entries} entries and {bytes} bytes"));
    }
    task.resources.validate()?;
    if !task.resources.items.is_empty() {
        return refuse("body.resources", "an executor itself has cpus, mem and disk; its tasks have the rest");
    }
    if task.resources.quantities.mem_mib < EXECUTOR_MEM_MIN_MIB {
        return refuse("body.resources", format!("an executor needs at least {EXECUTOR_MEM_MIN_MIB} MiB of mem"));
    }
    if spec.restarts > 0 {
        return refuse("restarts", "the executor decides what is started again; give 0");
    }
    if !spec.files.is_empty() || spec.result_file.is_some() {
        return refuse("files", "an executor's task has no sandbox; put it into the executor's data");
    }
    Ok(())
}

fn validate_words(field: &'static str, words: &[String]) -> Result<(), InvalidSpec> {
    if words.len() > 1_000 || words.iter().map(String::len).sum::<usize>() > 128 << 10 {
        return refuse(field, "at most 1,000 words and 128 KiB");
    }
    if words.iter().any(|word| word.contains('\0')) {
        return refuse(field, "must not contain NUL");
    }
    Ok(())
}

fn validate_env(env: &[(String, String)]) -> Result<(), InvalidSpec> {
    if env.len() > limits::ENV_MAX {
        return refuse("env", format!("at most {} variables", limits::ENV_MAX));
    }
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return refuse("env", "names are not empty and have no `=`; neither part has NUL");
        }
        if name.len() + value.len() > 32 << 10 {
            return refuse("env", "at most 32 KiB per variable");
        }
    }
    Ok(())
}

fn validate_path(field: &'static str, path: &str) -> Result<(), InvalidSpec> {
    if path.is_empty() || path.len() > 255 || path.starts_with('/') || path.contains('\0') {
        return refuse(field, "a relative path of 1 to 255 bytes");
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return refuse(field, "no empty parts, `.` or `..`");
    }
    Ok(())
}

/// Check what a launch overrides, on its own and against its spec.
///
/// # Errors
/// The first rule that is broken.
pub fn validate_launch(launch: &Launch, spec: &TaskSpec) -> Result<(), InvalidSpec> {
    let bytes = launch.args.iter().map(String::len).sum::<usize>()
        + launch.env.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
    if bytes > limits::LAUNCH_BYTES_MAX {
        return refuse("launch", format!("args and env take at most {} bytes; put more into the spec", limits::LAUNCH_BYTES_MAX));
    }
    validate_words("launch.args", &launch.args)?;
    validate_env(&launch.env)?;
    if !launch.args.is_empty() && matches!(spec.body, TaskBody::Native(NativeCommand::Shell(_))) {
        return refuse("launch.args", "a shell command takes no arguments; use env");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quantities;

    fn spec() -> TaskSpec {
        TaskSpec {
            name: "t".into(),
            body: TaskBody::Native(NativeCommand::Shell("true".into())),
            resources: Quantities { cpus_milli: 100, mem_mib: 32, disk_mib: 0 }.into(),
            revocable: false,
            cpus_limit_milli: None,
            pids_limit: None,
            user: None,
            env: vec![],
            files: vec![],
            result_file: None,
            grace_ms: None,
            restarts: 0,
            labels: vec![],
        }
    }

    #[test]
    fn each_rule_refuses_and_names_its_field() {
        let wasm = || TaskBody::Wasm { component: Digest::of(b""), args: vec![] };
        let file = |path: &str| FileSpec { path: path.into(), mode: 0o644, content: vec![] };
        let executor = || ExecutorTask {
            executor: "e".parse().unwrap(),
            component: Digest::of(b""),
            resources: Quantities { cpus_milli: 10, mem_mib: 16, disk_mib: 0 }.into(),
            config: vec![],
            data: vec![],
        };
        type Edit = Box<dyn Fn(&mut TaskSpec)>;
        let cases: Vec<(&str, Edit)> = vec![
            ("name", Box::new(|s| s.name = "x".repeat(256))),
            ("body", Box::new(|s| s.body = TaskBody::Native(NativeCommand::Shell(String::new())))),
            ("body", Box::new(|s| s.body = TaskBody::Native(NativeCommand::Argv(vec![])))),
            ("body", Box::new(|s| s.body = TaskBody::Native(NativeCommand::Argv(vec!["a\0".into()])))),
            ("resources", Box::new(|s| s.resources.quantities.cpus_milli = -1)),
            ("resources", Box::new(|s| s.resources = Resources::ZERO)),
            ("resources", Box::new(|s| s.resources = Resources::ZERO.with("gpus", 1000))),
            ("resources", Box::new(|s| s.resources = s.resources.clone().with("mem", 1000))),
            ("cpus-limit", Box::new(|s| s.cpus_limit_milli = Some(99))),
            ("pids-limit", Box::new(|s| s.pids_limit = Some(0))),
            ("user", Box::new(|s| s.user = Some("a/b".into()))),
            ("user", Box::new(move |s| { s.body = wasm(); s.user = Some("x".into()); })),
            ("env", Box::new(|s| s.env = vec![("a=b".into(), String::new())])),
            ("files.path", Box::new(move |s| s.files = vec![file("../x")])),
            ("files.path", Box::new(move |s| s.files = vec![file("/etc/x")])),
            ("files.mode", Box::new(move |s| { s.files = vec![file("x")]; s.files[0].mode = 0o4755; })),
            ("files.content", Box::new(move |s| { s.files = vec![file("x")]; s.files[0].content = vec![0; limits::FILE_BYTES_MAX + 1]; })),
            ("result-file", Box::new(|s| s.result_file = Some("a//b".into()))),
            ("grace-ms", Box::new(|s| s.grace_ms = Some(limits::GRACE_MAX_MS + 1))),
            ("body.data", Box::new(move |s| s.body = TaskBody::Executor(ExecutorTask { data: vec![0; limits::EXECUTOR_DATA_BYTES_MAX + 1], ..executor() }))),
            ("body.resources", Box::new(move |s| s.body = TaskBody::Executor(ExecutorTask { resources: Resources::ZERO, ..executor() }))),
            ("body.resources", Box::new(move |s| s.body = TaskBody::Executor(ExecutorTask { resources: executor().resources.with("gpus", 1000), ..executor() }))),
            ("restarts", Box::new(move |s| { s.body = TaskBody::Executor(executor()); s.restarts = 1; })),
            ("files", Box::new(move |s| { s.body = TaskBody::Executor(executor()); s.result_file = Some("r".into()); })),
            ("labels", Box::new(|s| s.labels = vec![(String::new(), String::new())])),
        ];
        assert_eq!(validate_spec(&spec()), Ok(()));
        for (field, edit) in cases {
            let mut bad = spec();
            edit(&mut bad);
            let error = validate_spec(&bad).unwrap_err().to_string();
            assert!(error.starts_with(field), "{field}: {error}");
        }
    }

    #[test]
    fn a_launch_stays_small() {
        let mut launch = Launch {
            task: "t".parse().unwrap(),
            spec: Digest::of(b""),
            args: vec![],
            env: vec![("A".into(), "x".repeat(1000))],
        };
        assert_eq!(validate_launch(&launch, &spec()), Ok(()));
        launch.env.push(("B".into(), "x".repeat(100)));
        assert!(validate_launch(&launch, &spec()).is_err());
        launch.env.clear();
        launch.args.push("x".into());
        assert!(validate_launch(&launch, &spec()).is_err(), "shell commands take no args");
    }
}
