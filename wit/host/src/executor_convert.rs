//! Between the link's messages to an executor and the contract's generated types.
//!
//! Invariants: a message that breaks a rule is an error that names the field, never a guess. This file
//! must never hold a rule that `tessera_types` could hold.

use crate::bindings::executor::tessera::framework::executor_events as ev;
use crate::bindings::tessera::framework::types as wit;
use crate::convert;
use tessera_types::{ExecutorTask, NativeCommand, Quantities, TaskBody, TaskSpec, TaskState, TaskStatus};
use tessera_wire::{WireError, v1};

/// Who the executor is, beside what each batch tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecutorName {
    /// Its framework.
    pub framework: u64,
    /// Its id in the framework.
    pub executor: String,
}

pub(crate) fn event(name: &ExecutorName, event: v1::ExecutorEvent) -> Result<ev::ExecutorEvent, WireError> {
    use v1::executor_event::Event as E;
    Ok(match event.event.ok_or_else(|| WireError::missing("event"))? {
        E::Started(started) => {
            let info = started.info.ok_or_else(|| WireError::missing("started.info"))?;
            let children = started.children.into_iter().map(child_status);
            ev::ExecutorEvent::Started((info_of(name, info), children.collect::<Result<_, _>>()?))
        }
        E::Launch(launch) => ev::ExecutorEvent::Launch(task_launch(launch)?),
        E::LaunchGroup(group) => {
            let launches = group.launches.into_iter().map(task_launch);
            ev::ExecutorEvent::LaunchGroup(launches.collect::<Result<_, _>>()?)
        }
        E::Kill(kill) => ev::ExecutorEvent::Kill(ev::TaskKill {
            task: kill.task,
            grace_ms: milliseconds(kill.grace_ms),
        }),
        E::Message(data) => ev::ExecutorEvent::Message(data),
        E::Child(child) => ev::ExecutorEvent::Child(child_status(child)?),
        E::Timer(id) => ev::ExecutorEvent::Timer(id),
        E::ShutdownMs(within) => ev::ExecutorEvent::Shutdown(milliseconds(within)),
        E::Again(_) => ev::ExecutorEvent::Again,
    })
}

/// Children that an event speaks of, and their states.
pub(crate) fn children_of(event: &v1::ExecutorEvent) -> Vec<(&str, TaskState)> {
    use v1::executor_event::Event as E;
    let children = match &event.event {
        Some(E::Started(started)) => started.children.as_slice(),
        Some(E::Child(child)) => std::slice::from_ref(child),
        _ => &[],
    };
    let state = |child: &v1::ChildStatus| TaskState::try_from(child.status.as_ref()?.state()).ok();
    children.iter().filter_map(|child| Some((child.child.as_str(), state(child)?))).collect()
}

fn milliseconds(ms: u64) -> u32 {
    u32::try_from(ms).unwrap_or(u32::MAX)
}

fn info_of(name: &ExecutorName, info: v1::ExecutorInfo) -> ev::ExecutorInfo {
    ev::ExecutorInfo {
        framework: name.framework,
        executor: name.executor.clone(),
        agent: info.agent,
        hostname: info.hostname,
        resources: quantities(info.resources.unwrap_or_default().into()),
    }
}

fn child_status(child: v1::ChildStatus) -> Result<ev::ChildStatus, WireError> {
    let status = child.status.ok_or_else(|| WireError::missing("child.status"))?;
    // What the executor knows it by, whatever it is called on the agent.
    let status = v1::TaskStatus { task: child.child.clone(), ..status };
    let status = convert::task_status(TaskStatus::try_from(status)?);
    Ok(ev::ChildStatus { child: child.child, status })
}

fn task_launch(launch: v1::ExecutorLaunch) -> Result<ev::TaskLaunch, WireError> {
    let spec = launch.spec.ok_or_else(|| WireError::missing("launch.spec"))?;
    Ok(ev::TaskLaunch {
        task: launch.task,
        spec: task_spec(TaskSpec::try_from(spec)?),
        args: launch.args,
        env: launch.env.into_iter().map(|pair| (pair.key, pair.value)).collect(),
        attempt: launch.attempt,
    })
}

fn quantities(q: Quantities) -> wit::Quantities {
    let q = q.clamped();
    wit::Quantities {
        cpus_milli: q.cpus_milli.unsigned_abs(),
        mem_mib: q.mem_mib.unsigned_abs(),
        disk_mib: q.disk_mib.unsigned_abs(),
    }
}

fn task_body(body: TaskBody) -> wit::TaskBody {
    match body {
        TaskBody::Native(NativeCommand::Shell(text)) => {
            wit::TaskBody::Native(wit::NativeCommand::Shell(text))
        }
        TaskBody::Native(NativeCommand::Argv(argv)) => {
            wit::TaskBody::Native(wit::NativeCommand::Argv(argv))
        }
        TaskBody::Wasm { component, args } => {
            wit::TaskBody::Wasm(wit::WasmCommand { component: component.to_string(), args })
        }
        TaskBody::Executor(task) => wit::TaskBody::Executor(executor_task(task)),
    }
}

fn executor_task(task: ExecutorTask) -> wit::ExecutorTask {
    wit::ExecutorTask {
        executor: task.executor.into(),
        component: task.component.to_string(),
        resources: quantities(task.resources.quantities),
        config: task.config,
        data: task.data,
    }
}

fn task_spec(spec: TaskSpec) -> wit::TaskSpec {
    let (resources, items) = convert::listed(&spec.resources, spec.revocable);
    wit::TaskSpec {
        name: spec.name,
        body: task_body(spec.body),
        resources,
        items,
        cpus_limit_milli: spec.cpus_limit_milli.map(i64::unsigned_abs),
        pids_limit: spec.pids_limit,
        user: spec.user,
        env: spec.env,
        files: spec
            .files
            .into_iter()
            .map(|file| wit::File {
                path: file.path,
                mode: file.mode,
                content: wit::FileContent::Inline(file.content),
            })
            .collect(),
        result_file: spec.result_file,
        grace_ms: spec.grace_ms.map(milliseconds),
        restarts: spec.restarts,
        health: None,
        labels: spec.labels,
        ext: Vec::new(),
    }
}

/// The state that a guest names; the same words as the cluster's.
pub(crate) const fn task_state(state: wit::TaskState) -> TaskState {
    match state {
        wit::TaskState::Staging => TaskState::Staging,
        wit::TaskState::Starting => TaskState::Starting,
        wit::TaskState::Running => TaskState::Running,
        wit::TaskState::Killing => TaskState::Killing,
        wit::TaskState::Finished => TaskState::Finished,
        wit::TaskState::Failed => TaskState::Failed,
        wit::TaskState::Killed => TaskState::Killed,
        wit::TaskState::Error => TaskState::Error,
        wit::TaskState::Dropped => TaskState::Dropped,
        wit::TaskState::Lost => TaskState::Lost,
        wit::TaskState::Gone => TaskState::Gone,
        wit::TaskState::GoneByOperator => TaskState::GoneByOperator,
        wit::TaskState::Unreachable => TaskState::Unreachable,
        wit::TaskState::Unknown => TaskState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_types::{Digest, FileSpec};

    #[test]
    fn specs_come_back_as_they_were() {
        let spec = TaskSpec {
            name: "n".into(),
            body: TaskBody::Wasm { component: Digest::of(b"x"), args: vec!["a".into()] },
            resources: Quantities { cpus_milli: 100, mem_mib: 32, disk_mib: 1 }.into(),
            revocable: false,
            cpus_limit_milli: Some(500),
            pids_limit: Some(7),
            user: None,
            env: vec![("K".into(), "v".into())],
            files: vec![FileSpec { path: "in".into(), mode: 0o644, content: b"text".to_vec() }],
            result_file: Some("out".into()),
            grace_ms: Some(10),
            restarts: 2,
            labels: vec![("l".into(), "1".into())],
        };
        let gpus = TaskSpec { resources: spec.resources.clone().with("gpus", 1500), ..spec.clone() };
        let revocable = TaskSpec { revocable: true, ..gpus.clone() };
        for spec in [spec, gpus, revocable] {
            assert_eq!(convert::task_spec(task_spec(spec.clone())), Ok(spec));
        }
    }

    #[test]
    fn a_message_without_its_parts_is_an_error_that_names_them() {
        use v1::executor_event::Event as E;
        let name = ExecutorName::default();
        for (said, field) in [
            (None, "event"),
            (Some(E::Started(v1::ExecutorStarted::default())), "started.info"),
            (Some(E::Launch(v1::ExecutorLaunch::default())), "launch.spec"),
            (Some(E::Child(v1::ChildStatus::default())), "child.status"),
        ] {
            let error = event(&name, v1::ExecutorEvent { event: said }).err();
            assert_eq!(error.map(|error| error.field), Some(field));
        }
    }
}
