//! What a component asks of WASI, and what guests of its world are given.
//!
//! Invariants: everything that a component imports beside the contract is in the list once. The list tells
//! what the linkers of `tessera_wit_host` do; it grants nothing itself.

use serde::Serialize;
use tessera_wit_host::World;

/// An interface that a component asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grant {
    /// Its name, with version.
    pub interface: String,
    /// Whether the guest gets anything by it.
    pub granted: bool,
    /// What it gets, or why nothing.
    pub what: &'static str,
}

/// What interfaces give: their prefix, then for schedulers and executors, then for tasks.
const TABLE: &[(&str, (bool, &str), (bool, &str))] = &[
    ("wasi:clocks/", (true, "the time of the turn"), (true, "the machine's clocks")),
    ("wasi:random/", (true, "seeded randomness, the same in a replay"), (true, "the machine's randomness")),
    ("wasi:io/", (true, "streams and polling"), (true, "streams and polling")),
    ("wasi:cli/stdout", (true, "lines of the log"), (true, "the file stdout of the sandbox")),
    ("wasi:cli/stderr", (true, "lines of the log"), (true, "the file stderr of the sandbox")),
    ("wasi:cli/exit", (true, "ends the instance"), (true, "ends the task")),
    ("wasi:cli/environment", (false, "it is empty"), (true, "arguments and environment of the task")),
    ("wasi:cli/stdin", (false, "it is empty"), (false, "it is empty")),
    ("wasi:cli/terminal-", (false, "there is none"), (false, "there is none")),
    ("wasi:filesystem/", (false, "there are no directories"), (true, "the sandbox")),
    ("wasi:sockets/", (false, "there is no network"), (false, "there is no network")),
    ("wasi:http/", (false, "every request is denied"), (false, "every request is denied")),
];

/// The list for a component of this world.
#[must_use]
pub fn grants(world: World, imports: &[String]) -> Vec<Grant> {
    let asked = imports.iter().filter(|name| !name.starts_with("tessera:framework/"));
    let grant = |name: &String| {
        let row = TABLE.iter().find(|(prefix, ..)| name.starts_with(prefix));
        let (granted, what) = match (row, world) {
            (Some((_, guest, _)), World::Scheduler | World::Executor) => *guest,
            (Some((_, _, task)), World::Command) => *task,
            (Some(_), World::None) => (false, "the component has no world"),
            (None, _) => (false, "it is not known"),
        };
        Grant { interface: name.clone(), granted, what }
    };
    asked.map(grant).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_depends_on_the_world() {
        let imports: Vec<String> = [
            "tessera:framework/log@0.1.0",
            "wasi:filesystem/types@0.2.3",
            "wasi:sockets/tcp@0.2.3",
            "wasi:http/outgoing-handler@0.2.3",
            "wasi:nonsense/nothing@0.2.3",
        ]
        .map(str::to_owned)
        .to_vec();
        let granted = |world| grants(world, &imports).iter().map(|grant| grant.granted).collect::<Vec<_>>();
        assert_eq!(granted(World::Scheduler), [false; 4]);
        assert_eq!(granted(World::Executor), [false; 4]);
        assert_eq!(granted(World::Command), [true, false, false, false]);
        let said = |at: usize| grants(World::Command, &imports)[at].what;
        assert_eq!((said(2), said(3)), ("every request is denied", "it is not known"));
    }
}
