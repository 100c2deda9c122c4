//! Which framework a name means, remembered, so that a write need not ask the loop for it.
//!
//! Invariant: a framework keeps its name, and its number is never used again; so what is remembered is
//! either right, or of a framework that is gone, which the core says itself. Must never answer whether a
//! framework exists.

use crate::api::framework_in;
use crate::node_handle::NodeHandle;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tessera_types::FrameworkId;

/// Names that are remembered; then all are forgotten.
const NAMES_MAX: usize = 1_024;

/// Names that were looked up.
#[derive(Default)]
pub struct Names {
    known: Mutex<HashMap<String, FrameworkId>>,
}

impl Names {
    fn all(&self) -> MutexGuard<'_, HashMap<String, FrameworkId>> {
        // A panic while holding the lock cannot leave the map half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A framework that was looked up before.
    pub fn known(&self, text: &str) -> Option<FrameworkId> {
        self.all().get(text).copied()
    }

    /// A framework by id, name, or `tenant:name`; nothing when this master knows none now.
    pub async fn find(&self, node: &NodeHandle, text: &str) -> Option<FrameworkId> {
        if let Some(known) = self.known(text) {
            return Some(known);
        }
        let asked = text.to_owned();
        let found = node.query(move |core, _| framework_in(core, &asked).ok()).await.ok()??;
        let mut known = self.all();
        if known.len() >= NAMES_MAX {
            known.clear();
        }
        known.insert(text.to_owned(), found);
        Some(found)
    }

    /// What the name meant is gone.
    pub fn forget(&self, text: &str) {
        self.all().remove(text);
    }

    /// What some name meant may be gone.
    pub fn forget_all(&self) {
        self.all().clear();
    }
}
