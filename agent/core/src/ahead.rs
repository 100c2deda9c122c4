//! Components that are compiled before anybody needs them here: those of schedulers which would be placed on
//! this agent if they lost theirs.
//!
//! Invariants: one is asked for at a time, so that what runs here comes first in every queue; a failure is
//! said and tried again after a growing pause, and is nobody's failure; masters that did not speak of it in
//! this session are told nothing. This file must never start a worker or an instance.

use crate::action::{Action, Now, SupplyFailure};
use crate::core::Core;
use std::collections::BTreeMap;
use tessera_types::Digest;
use tessera_types::limits::MESSAGE_BYTES_MAX;
use tessera_wire::v1;
use v1::agent_message::Message;

/// Components that one agent compiles ahead: as many as wait for its compiler at most. An image takes some
/// MiB of its disk.
const AHEAD_MAX: usize = 1_024;
/// First pause after a failure: nobody waits for it.
const RETRY_MIN_MS: u64 = 1_000;
/// Longest pause after repeated failures: each try may take a core for minutes.
const RETRY_MAX_MS: u64 = 300_000;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// To be asked for; why it failed last, if it did.
    Waiting {
        at_ms: u64,
        pause_ms: u64,
        error: String,
    },
    Compiled,
    Unusable(String),
}

impl Phase {
    const fn new(now: Now) -> Self {
        Self::Waiting {
            at_ms: now.mono_ms,
            pause_ms: RETRY_MIN_MS,
            error: String::new(),
        }
    }

    fn report(&self, digest: &Digest) -> v1::AheadComponent {
        let (state, error) = match self {
            Self::Waiting { error, .. } if error.is_empty() => (v1::AheadState::Waiting, ""),
            Self::Waiting { error, .. } | Self::Unusable(error) => (v1::AheadState::Failed, error.as_str()),
            Self::Compiled => (v1::AheadState::Compiled, ""),
        };
        v1::AheadComponent {
            component: digest.0.to_vec(),
            state: state.into(),
            error: error.chars().take(MESSAGE_BYTES_MAX / 4).collect(),
        }
    }
}

/// What is to be compiled ahead, and what became of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ahead {
    wanted: BTreeMap<Digest, Phase>,
    /// The one that was asked for and not answered.
    asked: Option<Digest>,
    /// Components that this process compiled.
    compilations: u64,
    /// The masters of this session spoke of it.
    spoken: bool,
    /// What they were told.
    told: Option<v1::CompiledAhead>,
}

impl Ahead {
    /// A new session: nothing was said in it.
    pub(crate) fn on_session(&mut self) {
        self.spoken = false;
        self.told = None;
    }

    pub(crate) fn wake_ms(&self, session: bool) -> Option<u64> {
        let due = |phase: &Phase| match phase {
            Phase::Waiting { at_ms, .. } => Some(*at_ms),
            Phase::Compiled | Phase::Unusable(_) => None,
        };
        let next = self.wanted.values().filter_map(due).min();
        next.filter(|_| session && self.asked.is_none())
    }

    fn report(&self) -> v1::CompiledAhead {
        v1::CompiledAhead {
            components: self.wanted.iter().map(|(digest, phase)| phase.report(digest)).collect(),
            compilations: self.compilations,
        }
    }
}

impl Core {
    /// The complete list of what is to be compiled ahead; none from masters that know nothing of it.
    pub(crate) fn desire_ahead(&mut self, desired: Option<v1::CompileAhead>, now: Now) {
        self.ahead.spoken = desired.is_some();
        let components = desired.unwrap_or_default().components;
        if components.len() > AHEAD_MAX {
            let left = components.len() - AHEAD_MAX;
            self.actions.push(Action::Warn(format!(
                "{left} components are not compiled ahead: at most {AHEAD_MAX} are"
            )));
        }
        let mut old = std::mem::take(&mut self.ahead.wanted);
        let digests = components.iter().take(AHEAD_MAX).filter_map(|bytes| Digest::from_slice(bytes).ok());
        self.ahead.wanted = digests
            .map(|digest| (digest, old.remove(&digest).unwrap_or_else(|| Phase::new(now))))
            .collect();
    }

    /// Ask for the next, and tell the masters what changed.
    pub(crate) fn drive_ahead(&mut self, now: Now) {
        if !self.session {
            return;
        }
        if self.ahead.asked.is_none() {
            let due = |(digest, phase): (&Digest, &Phase)| match phase {
                Phase::Waiting { at_ms, .. } if *at_ms <= now.mono_ms => Some(*digest),
                Phase::Waiting { .. } | Phase::Compiled | Phase::Unusable(_) => None,
            };
            self.ahead.asked = self.ahead.wanted.iter().find_map(due);
            self.actions.extend(self.ahead.asked.map(|digest| Action::CompileAhead { digest }));
        }
        if !self.ahead.spoken {
            return;
        }
        let report = self.ahead.report();
        if self.ahead.told.as_ref() != Some(&report) {
            self.ahead.told = Some(report.clone());
            self.send(Message::CompiledAhead(report));
        }
    }

    /// A component is compiled ahead, or is not.
    pub fn on_compiled_ahead(
        &mut self,
        digest: Digest,
        result: Result<(), SupplyFailure>,
        now: Now,
    ) -> Vec<Action> {
        self.ahead.asked = self.ahead.asked.filter(|asked| *asked != digest);
        if let Some(phase) = self.ahead.wanted.get_mut(&digest) {
            let pause_ms = match phase {
                Phase::Waiting { pause_ms, .. } => *pause_ms,
                Phase::Compiled | Phase::Unusable(_) => RETRY_MIN_MS,
            };
            *phase = match result {
                Ok(()) => Phase::Compiled,
                Err(SupplyFailure::Unusable(error)) => Phase::Unusable(error),
                Err(SupplyFailure::Retry(error) | SupplyFailure::Gone(error)) => Phase::Waiting {
                    at_ms: now.mono_ms + pause_ms,
                    pause_ms: (pause_ms * 2).min(RETRY_MAX_MS),
                    error,
                },
            };
        }
        self.finish(now)
    }

    /// So many components were compiled by this process so far, ahead or on need.
    pub fn on_compilations(&mut self, compilations: u64, now: Now) -> Vec<Action> {
        self.ahead.compilations = compilations;
        self.finish(now)
    }

    /// Components whose bytes and images are kept although nothing here uses them yet.
    pub fn kept_ahead(&self) -> impl Iterator<Item = &Digest> {
        self.ahead.wanted.keys()
    }
}
