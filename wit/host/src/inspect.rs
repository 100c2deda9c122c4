//! What a component is: the judgement that stands before anything of it runs.
//!
//! Invariants: everything but a component that links against a world of this version is refused with
//! what it is instead; compiled code is never accepted from outside. This file must never run a guest
//! except for `describe`, which stands under limits.

use crate::executor::ExecutorHost;
use crate::limits::{LimitPassed, Limits};
use crate::scheduler::{Description, SchedulerHost};
use crate::task::TaskHost;
use wasmtime::Engine;
use wasmtime::component::Component;

/// The package of the contract.
const PACKAGE: &str = "tessera:framework/";
/// Its version that this host speaks.
pub const CONTRACT_VERSION: &str = "0.1.0";

/// Bytes of a page of linear memory.
const PAGE_BYTES: u64 = 64 << 10;

/// What a component is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// A framework's scheduler.
    Scheduler,
    /// A Wasm task.
    Command,
    /// A framework's executor.
    Executor,
    /// Nothing that is known.
    None,
}

impl World {
    /// Lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Command => "command",
            Self::Executor => "executor",
            Self::None => "none",
        }
    }
}

/// Why bytes cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Not a component by its first bytes.
    #[error("this is {0}, not a WebAssembly component")]
    NotAComponent(&'static str),
    /// A limit of components is passed.
    #[error(transparent)]
    Limit(#[from] LimitPassed),
    /// Invalid, or uses features that are off.
    #[error("the component is not valid: {0}")]
    Invalid(String),
    /// Made for another version of the contract.
    #[error(
        "{name} is of version {given}; this host speaks {CONTRACT_VERSION}: build it with the SDK of this \
         cluster's version"
    )]
    WrongVersion {
        /// The import or export.
        name: String,
        /// Its version.
        given: String,
    },
    /// Exports nothing that could be called.
    #[error(
        "exports neither tessera:framework/scheduler@{CONTRACT_VERSION} nor \
         tessera:framework/executor@{CONTRACT_VERSION} nor wasi:cli/run@0.2: \
         it is neither a scheduler nor an executor nor a task; a scheduler in Rust has \
         `tessera_sdk::scheduler!(TYPE, state_version = 1);` in its src/lib.rs and \
         `crate-type = [\"cdylib\"]` in its Cargo.toml"
    )]
    NoWorld,
    /// An import that does not exist, or has another type.
    #[error("does not link: {0}")]
    DoesNotLink(String),
    /// `describe` failed.
    #[error("does not describe itself: {0}")]
    NoDescription(String),
}

/// What was found. Usable when there is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// What it is made for.
    pub world: World,
    /// Why it cannot be used.
    pub error: Option<Unusable>,
    /// Names of what it imports.
    pub imports: Vec<String>,
    /// Names of what it exports.
    pub exports: Vec<String>,
    /// Of a scheduler.
    pub description: Option<Description>,
    /// Linear memories that it makes.
    pub memories: u32,
    /// Bytes of its largest memory at the start.
    pub initial_memory_bytes: u64,
}

impl Inspection {
    /// Nothing was found but this.
    #[must_use]
    pub const fn refused(error: Unusable) -> Self {
        Self {
            world: World::None,
            error: Some(error),
            imports: Vec::new(),
            exports: Vec::new(),
            description: None,
            memories: 0,
            initial_memory_bytes: 0,
        }
    }
}

/// Judges components.
pub struct Inspector<'a> {
    /// The engine of both hosts.
    pub engine: &'a Engine,
    /// Links schedulers.
    pub schedulers: &'a SchedulerHost,
    /// Links executors.
    pub executors: &'a ExecutorHost,
    /// Links tasks.
    pub tasks: &'a TaskHost,
    /// What a component may use while it describes itself.
    pub limits: Limits,
}

/// Judge the first bytes, without parsing.
///
/// # Errors
/// What it is instead of a component.
pub fn check_bytes(bytes: &[u8]) -> Result<(), Unusable> {
    let what = match bytes {
        [] => "an empty file",
        _ if Engine::detect_precompiled(bytes).is_some() => "code compiled ahead of time",
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => return Ok(()),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => {
            "a core module"
        }
        [0, b'a', b's', b'm', ..] => "WebAssembly of an unknown version",
        [0x7f, b'E', b'L', b'F', ..] => "a native program",
        _ if bytes.trim_ascii_start().starts_with(b"(") => "WebAssembly text",
        _ => "something unknown",
    };
    Err(Unusable::NotAComponent(what))
}

impl Inspector<'_> {
    /// Judge bytes, and give the component when it can be used. `before_run` is called between
    /// compiling and `describe`.
    pub fn inspect(
        &self,
        bytes: &[u8],
        before_run: impl FnOnce(),
    ) -> (Inspection, Option<Component>) {
        if let Err(error) = check_bytes(bytes) {
            return (Inspection::refused(error), None);
        }
        let component = match Component::from_binary(self.engine, bytes) {
            Ok(component) => component,
            Err(error) => {
                let error = Unusable::Invalid(format!("{error:#}"));
                return (Inspection::refused(error), None);
            }
        };
        let names = component.component_type();
        let mut found = Inspection::refused(Unusable::NoWorld);
        found.imports = names
            .imports(self.engine)
            .map(|(name, _)| name.to_owned())
            .collect();
        found.exports = names
            .exports(self.engine)
            .map(|(name, _)| name.to_owned())
            .collect();
        if let Some(required) = component.resources_required() {
            found.memories = required.num_memories;
            found.initial_memory_bytes = required
                .max_initial_memory_size
                .unwrap_or(0)
                .saturating_mul(PAGE_BYTES);
        }
        found.world = world(&found.exports);
        before_run();
        found.error = self.judge(&component, &mut found).err();
        let usable = found.error.is_none();
        (found, usable.then_some(component))
    }

    fn judge(&self, component: &Component, found: &mut Inspection) -> Result<(), Unusable> {
        for name in found.imports.iter().chain(&found.exports) {
            check_version(name)?;
        }
        match found.world {
            World::None => Err(Unusable::NoWorld),
            World::Executor => match self.executors.link(component) {
                Ok(_) => Ok(()),
                Err(failure) => Err(Unusable::DoesNotLink(failure.to_string())),
            },
            World::Command => match self.tasks.link(component) {
                Ok(_) => Ok(()),
                Err(failure) => Err(Unusable::DoesNotLink(failure.to_string())),
            },
            World::Scheduler => {
                let image = self
                    .schedulers
                    .link(component)
                    .map_err(|failure| Unusable::DoesNotLink(failure.to_string()))?;
                let described = image
                    .describe(self.limits)
                    .map_err(|failure| Unusable::NoDescription(failure.to_string()))?;
                found.description = Some(described);
                Ok(())
            }
        }
    }
}

fn world(exports: &[String]) -> World {
    let has = |prefix: &str| exports.iter().any(|name| name.starts_with(prefix));
    if has("tessera:framework/scheduler@") {
        World::Scheduler
    } else if has("tessera:framework/executor@") {
        World::Executor
    } else if has("wasi:cli/run@0.2.") {
        World::Command
    } else {
        World::None
    }
}

fn check_version(name: &str) -> Result<(), Unusable> {
    let Some(rest) = name.strip_prefix(PACKAGE) else {
        return Ok(());
    };
    match rest.split_once('@') {
        Some((_, CONTRACT_VERSION)) => Ok(()),
        Some((_, given)) => Err(Unusable::WrongVersion {
            name: name.to_owned(),
            given: given.to_owned(),
        }),
        None => Err(Unusable::WrongVersion {
            name: name.to_owned(),
            given: "none".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_component_is_called_by_its_name() {
        for (bytes, what) in [
            (&b""[..], "empty"),
            (b"\0asm\x01\0\0\0", "core module"),
            (b"\0asm\x02\0\0\0", "unknown version"),
            (b"\x7fELF\x02\x01\x01\0", "native program"),
            (b" \n(component)", "text"),
            (b"garbage", "unknown"),
            (b"\0as", "unknown"),
        ] {
            let error = check_bytes(bytes).unwrap_err().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
        assert_eq!(check_bytes(b"\0asm\x0d\0\x01\0"), Ok(()));
    }

    #[test]
    fn worlds_are_told_by_their_exports() {
        let of = |name: &str| world(&[name.to_owned()]);
        assert_eq!(of("tessera:framework/scheduler@0.2.0"), World::Scheduler);
        assert_eq!(of("tessera:framework/executor@0.1.0"), World::Executor);
        assert_eq!(of("wasi:cli/run@0.2.3"), World::Command);
        assert_eq!(of("wasi:cli/run@0.3.0"), World::None);
    }

    #[test]
    fn another_version_is_refused_with_both_named() {
        assert_eq!(check_version("tessera:framework/log@0.1.0"), Ok(()));
        assert_eq!(check_version("wasi:io/poll@0.2.3"), Ok(()));
        let text = check_version("tessera:framework/log@0.2.0")
            .unwrap_err()
            .to_string();
        assert!(text.contains("0.2.0") && text.contains("0.1.0"), "{text}");
    }
}
