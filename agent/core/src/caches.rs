//! Which components something on this agent uses: their bytes and images stay, those of others may go.
//!
//! Invariant: what was asked for and has not come counts as used, and so does everything as long as the
//! masters have not said what is desired. This file must never know where bytes and images are.

use crate::core::Core;
use std::collections::BTreeSet;
use tessera_types::Digest;

impl Core {
    /// Components of instances, tasks and executors here, those that are compiled ahead, and those that are on
    /// their way; none as long as that is not known.
    #[must_use]
    pub fn components_in_use(&self) -> Option<BTreeSet<Digest>> {
        let mut used = self.instances.components()?;
        used.extend(self.tasks.values().filter_map(|task| task.component()));
        let described = self.tasks.values().filter_map(|task| task.executor_task());
        used.extend(described.map(|executor| executor.component));
        used.extend(self.executors.live.values().map(|executor| executor.kept.component));
        used.extend(self.supplies.on_their_way());
        used.extend(self.kept_ahead());
        Some(used)
    }

    /// The bytes and images of a component are about to go: they are asked for when they are needed again.
    pub fn on_component_removed(&mut self, digest: &Digest) {
        self.supplies.forget(digest);
    }
}
