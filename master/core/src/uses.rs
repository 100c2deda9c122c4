//! Who uses which component.
//!
//! Invariant: what is named here is what would miss the component: versions in force, on trial or to be
//! gone back to, specs of live tasks, and executors. Must never count what is only history.

use crate::Core;
use crate::commands::version_before;
use crate::state::{Framework, State};
use std::collections::BTreeMap;
use std::fmt;
use tessera_types::{AgentId, Digest, ExecutorId, FrameworkId, RoleName, TaskBody};

/// What a component is to a framework.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UsedAs {
    /// The version in force.
    Current,
    /// The version on trial, or migrating.
    Next,
    /// The version that a rollback goes back to.
    Previous,
    /// A spec of its tasks; of so many that have not ended.
    Spec {
        /// How many.
        tasks: usize,
    },
    /// An executor that lives.
    Executor {
        /// Which.
        executor: ExecutorId,
        /// Where.
        agent: AgentId,
    },
}

impl UsedAs {
    /// The name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Next => "next",
            Self::Previous => "previous",
            Self::Spec { .. } => "spec",
            Self::Executor { .. } => "executor",
        }
    }
}

/// One use of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentUse {
    /// Whose.
    pub framework: FrameworkId,
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: RoleName,
    /// What for.
    pub used_as: UsedAs,
}

impl fmt::Display for ComponentUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "framework {} ({}): ", self.name, self.framework)?;
        match &self.used_as {
            UsedAs::Current => f.write_str("the version in force"),
            UsedAs::Next => f.write_str("the version on trial"),
            UsedAs::Previous => f.write_str("the version that a rollback goes back to"),
            UsedAs::Spec { tasks: 1 } => f.write_str("1 live task"),
            UsedAs::Spec { tasks } => write!(f, "{tasks} live tasks"),
            UsedAs::Executor { executor, agent } => write!(f, "executor {executor} on {agent}"),
        }
    }
}

/// The versions of a framework that need their component.
fn versions(framework: &Framework) -> Vec<(Digest, UsedAs)> {
    let (now, back) = match &framework.upgrade {
        Some(upgrade) => {
            let mut old = framework.versions.iter();
            (UsedAs::Next, old.find(|old| old.version == upgrade.from_version))
        }
        None => (UsedAs::Current, version_before(framework)),
    };
    let back = back.map(|old| (old.component, UsedAs::Previous));
    std::iter::once((framework.component, now)).chain(back).collect()
}

/// Live tasks by the component that their specs name.
fn specs(framework: &Framework) -> Vec<(Digest, UsedAs)> {
    let mut tasks: BTreeMap<Digest, usize> = BTreeMap::new();
    // One without a task is dropped with the next turn: whoever needs it sends it again.
    for spec in framework.specs.values().filter(|spec| spec.uses > 0) {
        let component = match &spec.spec.body {
            TaskBody::Native(_) => continue,
            TaskBody::Wasm { component, .. } => *component,
            TaskBody::Executor(task) => task.component,
        };
        *tasks.entry(component).or_default() += spec.uses;
    }
    tasks.into_iter().map(|(digest, tasks)| (digest, UsedAs::Spec { tasks })).collect()
}

/// Every use there is, in order of frameworks.
fn all(state: &State) -> impl Iterator<Item = (Digest, FrameworkId, UsedAs)> {
    let frameworks = state.frameworks.iter().flat_map(|(id, framework)| {
        let uses = versions(framework).into_iter().chain(specs(framework));
        uses.map(|(digest, used_as)| (digest, *id, used_as))
    });
    let executors = state.agents.iter().flat_map(|(agent, row)| {
        row.executors.iter().map(|((framework, executor), lives)| {
            let used_as = UsedAs::Executor { executor: executor.clone(), agent: *agent };
            (lives.component, *framework, used_as)
        })
    });
    frameworks.chain(executors)
}

impl State {
    /// Who uses a component.
    pub(crate) fn component_uses(&self, digest: &Digest) -> Vec<ComponentUse> {
        let uses = all(self).filter(|(used, ..)| used == digest);
        uses.filter_map(|(_, framework, used_as)| self.component_use(framework, used_as)).collect()
    }

    fn component_use(&self, id: FrameworkId, used_as: UsedAs) -> Option<ComponentUse> {
        let framework = self.frameworks.get(&id)?;
        let (name, role) = (framework.name.to_string(), framework.role.clone());
        Some(ComponentUse { framework: id, name, role, used_as })
    }
}

impl Core {
    /// Who uses each component; one that nobody uses is not in it.
    #[must_use]
    pub fn component_uses(&self) -> BTreeMap<Digest, Vec<ComponentUse>> {
        let mut found: BTreeMap<Digest, Vec<ComponentUse>> = BTreeMap::new();
        for (digest, framework, used_as) in all(&self.state) {
            found.entry(digest).or_default().extend(self.state.component_use(framework, used_as));
        }
        found
    }

    /// Who uses one component.
    #[must_use]
    pub fn uses_of_component(&self, digest: &Digest) -> Vec<ComponentUse> {
        self.state.component_uses(digest)
    }
}
