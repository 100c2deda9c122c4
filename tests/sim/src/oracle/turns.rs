//! Turns of schedulers: what was committed is what some instance made, once, in order, and under the epoch in force.
//!
//! Invariant: a state is that of the turns that were committed. Must never change the run.

use super::{Before, Made, Oracle};
use crate::disk::FaultyDisk;
use crate::model;
use std::collections::BTreeMap;
use tessera_master::node::Node;
use tessera_master_core::{FrameworkView, VersionOutcome};
use tessera_types::{Consumed, FrameworkId, Operation, TaskStatus, Turn, check_transition};
use tessera_wire::v1;

impl Oracle {
    /// An instance made a turn out of a batch.
    pub(crate) fn on_turn_made(&mut self, epoch: u64, turn: &Turn, batch: &v1::Batch) {
        let mut statuses = BTreeMap::new();
        let mut last: BTreeMap<String, u64> = BTreeMap::new();
        self.hear(turn.header.framework.0, batch);
        self.note_specs(turn);
        for event in &batch.events {
            let Some(v1::event::Event::Update(update)) = &event.event else { continue };
            let Some(status) = update.status.clone().and_then(|s| TaskStatus::try_from(s).ok()) else {
                self.violate("a batch has an update without a status".to_owned());
                continue;
            };
            if update.sequence == 0 {
                continue;
            }
            let task = status.task.to_string();
            let before = last.insert(task.clone(), update.sequence).unwrap_or(0);
            self.ensure(update.sequence > before, || {
                format!("statuses of {task} are out of order within a batch")
            });
            statuses.insert((task, update.sequence), status);
        }
        let key = (turn.header.framework.0, turn.header.number.0);
        let made = Made { epoch, turn: turn.clone(), statuses };
        let known = self.made.entry(key).or_default();
        if !known.iter().any(|other| other.turn == made.turn && other.epoch == epoch) {
            known.push(made);
        }
    }

    /// A scheduler hears its executors.
    pub(super) fn hear(&mut self, framework: u64, batch: &v1::Batch) {
        // A scheduler whose state went back says what it said once more, and is answered.
        let restored = self.is_restored();
        for event in batch.events.iter().filter(|_| !restored) {
            let Some(v1::event::Event::Message(message)) = &event.event else { continue };
            let (executor, data) = (message.executor.clone(), message.data.clone());
            let text = String::from_utf8_lossy(&data).into_owned();
            let before = self.heard.insert((framework, executor, data), batch.time_ms);
            self.ensure(before.is_none(), || {
                format!("f{framework} hears {text} of {} for the second time", message.executor)
            });
        }
    }

    /// A worker was told that a turn is committed.
    pub(crate) fn on_turn_acknowledged(&mut self, turn: &Turn, next: u64) {
        let header = turn.header;
        // What a worker hears of a turn may come after a restore that undid it.
        if self.leaving.contains(&header.framework.0) || self.is_of_before(header.epoch) {
            return;
        }
        if next == header.number.0 {
            self.ensure(!turn.changes_state(), || {
                format!("turn {} of {} changes state but took no number", header.number, header.framework)
            });
            return;
        }
        let shadow = self.frameworks.get(&header.framework.0);
        let committed = shadow.and_then(|shadow| shadow.turns.get(&header.number.0));
        let same = committed == Some(turn);
        self.ensure(same, || {
            format!(
                "an acknowledged turn is lost: {} {} of {} is not what is committed",
                header.number, header.framework, header.epoch
            )
        });
    }

    /// What a framework counted so far, and how many turns were given up with its upgrades.
    pub(crate) fn counted(&self, framework: u64) -> (u64, u64) {
        let shadow = self.frameworks.get(&framework);
        shadow.map_or((0, 0), |f| (f.last_turn - f.given_up.min(f.last_turn), f.given_up))
    }

    /// A scheduler answered with its count, which was asked for when it stood at least at this.
    pub(crate) fn on_count(&mut self, framework: u64, body: &[u8], (floor, given_up): (u64, u64)) {
        let answered = std::str::from_utf8(body).ok().and_then(|text| text.parse::<u64>().ok());
        let comparable = self.counted(framework).1 == given_up && self.frameworks.contains_key(&framework);
        self.ensure(!comparable || answered.is_some_and(|count| count >= floor), || {
            format!("the scheduler of f{framework} answers {answered:?}, and {floor} turns were committed when it was asked")
        });
    }

    pub(super) fn check_framework(
        &mut self,
        node: &Node<FaultyDisk>,
        view: &FrameworkView,
        lines: &mut Vec<String>,
    ) {
        let id = view.id.0;
        let shadow = self.frameworks.entry(id).or_default();
        let (epoch, last) = (shadow.epoch, shadow.last_turn);
        shadow.epoch = view.epoch.0;
        let held_since = view.quarantine.as_ref().map(|quarantine| quarantine.since_ms);
        let held = shadow.quarantined_ms.is_some() && shadow.quarantined_ms == held_since;
        shadow.quarantined_ms = held_since;
        if view.epoch.0 < epoch {
            return self.violate(format!("the epoch of f{id} falls from {epoch} to {}", view.epoch));
        }
        // Its state goes at once, with the last turn that it may have committed.
        if view.removing {
            return;
        }
        self.ensure(!held || view.last_turn.0 == last, || {
            format!("f{id} is quarantined and commits turn {}", view.last_turn)
        });
        let given_up = self.gave_up(view);
        // A turn of an upgrade that was given up in this very step; of one that also began in it there is
        // none.
        let undone = given_up && self.frameworks.get(&id).is_some_and(|f| f.before.is_some());
        if view.last_turn.0 != last && !undone {
            self.check_commit(node, view, epoch, lines);
        }
        self.check_version(node, view, given_up);
    }

    /// Whether an upgrade was given up since the framework was looked at.
    pub(super) fn gave_up(&self, view: &FrameworkView) -> bool {
        let Some(shadow) = self.frameworks.get(&view.id.0) else { return false };
        let new = view.versions.iter().filter(|version| version.version > shadow.version);
        let failed = new.clone().any(|version| {
            let before = view.versions.iter().find(|before| before.version + 1 == version.version);
            before.is_some_and(|before| matches!(before.outcome, VersionOutcome::Failed(_)))
        });
        shadow.version != 0 && failed
    }

    /// After an upgrade that was given up everything is as it was when it began; otherwise note how it is
    /// when one begins.
    pub(super) fn check_version(&mut self, node: &Node<FaultyDisk>, view: &FrameworkView, given_up: bool) {
        let id = view.id.0;
        if given_up {
            let state = match read_state(node, view.id).map(of_turns) {
                Ok(state) => state,
                Err(error) => return self.violate(error),
            };
            let Some(shadow) = self.frameworks.get_mut(&id) else { return };
            // An upgrade that was given up as soon as it began left nothing behind.
            let before = shadow.before.take().unwrap_or_else(|| Before {
                last_turn: shadow.last_turn,
                state: shadow.state.clone(),
                config_seen: view.config_seen,
            });
            for number in shadow.last_turn + 1..=view.last_turn.0 {
                // It was pure state, which is gone with the upgrade.
                let made = self.made.get(&(id, number)).into_iter().flatten();
                let made = made.filter(|made| is_pure(&made.turn)).next_back();
                if let Some(made) = made {
                    shadow.turns.insert(number, made.turn.clone());
                }
            }
            shadow.given_up += view.last_turn.0 - before.last_turn;
            shadow.last_turn = view.last_turn.0;
            let restored = before.state == state && before.config_seen == view.config_seen;
            shadow.state = state;
            self.ensure(restored, || {
                format!("f{id} went back to version {:?}, but not to its state", view.versions.last())
            });
        }
        let Some(shadow) = self.frameworks.get_mut(&id) else { return };
        let version = view.versions.last().map_or(0, |last| last.version);
        match &view.upgrade {
            None => shadow.before = None,
            Some(_) if shadow.version != version => {
                shadow.before = Some(Before {
                    last_turn: shadow.last_turn,
                    state: shadow.state.clone(),
                    config_seen: view.config_seen,
                });
            }
            Some(_) => {}
        }
        shadow.version = version;
    }

    /// A turn was committed.
    pub(super) fn check_commit(
        &mut self,
        node: &Node<FaultyDisk>,
        view: &FrameworkView,
        epoch: u64,
        lines: &mut Vec<String>,
    ) {
        let id = view.id.0;
        let Some(shadow) = self.frameworks.get(&id) else { return };
        let (last, given_up, version) = (shadow.last_turn, shadow.given_up, shadow.version);
        if view.last_turn.0 != last + 1 {
            let now = view.last_turn;
            return self.violate(format!("f{id} jumps from turn {last} to {now} in one step"));
        }
        let state = match read_state(node, view.id).map(of_turns) {
            Ok(state) => state,
            Err(error) => return self.violate(error),
        };
        let Some(made) = self.committed(id, view.last_turn.0, &state) else {
            let number = view.last_turn;
            return self.violate(format!(
                "the state of f{id} after turn {number} is that of no turn that was made"
            ));
        };
        lines.push(format!("master: {} of f{id} (epoch {}) is committed", view.last_turn, made.epoch));
        self.commits += 1;
        if made.epoch < epoch {
            let was = made.epoch;
            self.violate(format!("a turn of epoch {was} of f{id} committed under epoch {epoch}"));
        }
        let count = state.get(model::COUNT_KEY).cloned().unwrap_or_default();
        let expected = (view.last_turn.0 - given_up).to_string();
        self.ensure(count == expected.as_bytes(), || {
            format!("f{id} counts {count:?} turns of {expected}: one is lost or doubled")
        });
        let tried = view.upgrade.is_some() && view.versions.last().is_some_and(|v| v.version == version);
        self.ensure(!tried || is_pure(&made.turn), || {
            format!("f{id} is on trial or migrates after turn {}, which did more than write", view.last_turn)
        });
        let alone = made.turn.operations.is_empty() && made.turn.consumed.is_empty();
        self.ensure(made.turn.migration.is_none() || alone, || {
            format!("turn {} of f{id} migrates and does something else", view.last_turn)
        });
        self.note_wishes(id, &made.turn);
        self.check_units(id, &made.turn);
        self.consume(id, &made);
        if let Some(shadow) = self.frameworks.get_mut(&id) {
            shadow.last_turn = view.last_turn.0;
            shadow.state = state;
            shadow.turns.insert(view.last_turn.0, made.turn);
        }
    }

    /// Whether it wants offers.
    pub(super) fn note_wishes(&mut self, id: u64, turn: &Turn) {
        let Some(shadow) = self.frameworks.get_mut(&id) else { return };
        for operation in &turn.operations {
            match operation {
                Operation::Suppress => shadow.suppressed = Some(turn.header.number.0),
                Operation::Revive => shadow.suppressed = None,
                _ => {}
            }
        }
    }

    /// The turn under this number that leads from the last state to this one.
    pub(super) fn committed(&self, id: u64, number: u64, state: &BTreeMap<String, Vec<u8>>) -> Option<Made> {
        let shadow = self.frameworks.get(&id)?;
        let leads_here = |made: &&Made| {
            let mut after = shadow.state.clone();
            for write in &made.turn.writes {
                match &write.value {
                    Some(value) => after.insert(write.key.clone(), value.clone()),
                    None => after.remove(&write.key),
                };
            }
            after == *state
        };
        // A relabelled turn is found under its own number.
        let under = self.made.get(&(id, number)).into_iter().flatten().rev().find(leads_here);
        let any = || self.made.range((id, 0)..=(id, u64::MAX)).flat_map(|(_, made)| made);
        under.or_else(|| any().find(leads_here)).cloned()
    }

    pub(super) fn consume(&mut self, id: u64, made: &Made) {
        for consumed in &made.turn.consumed {
            if let Consumed::Config { version } = consumed
                && let Some(shadow) = self.frameworks.get_mut(&id)
            {
                let before = std::mem::replace(&mut shadow.config_seen, *version);
                self.ensure(*version > before, || {
                    format!("f{id} saw configuration {version} after {before}")
                });
            }
            let Consumed::Update { task, sequence } = consumed else { continue };
            let task = task.to_string();
            let Some(status) = made.statuses.get(&(task.clone(), *sequence)) else {
                self.violate(format!("f{id} consumed an update of {task} that it never got"));
                continue;
            };
            let Some(shadow) = self.frameworks.get_mut(&id) else { continue };
            let before = shadow.consumed.insert(task.clone(), (*sequence, status.state));
            let mut again = false;
            if status.state.is_terminal() {
                let end = (status.state, status.reason);
                again = shadow.ended.insert(task.clone(), end).is_some();
            }
            self.ensure(!again, || format!("the end of f{id}/{task} was consumed twice"));
            let Some((last, state)) = before else { continue };
            self.ensure(*sequence > last, || {
                format!("f{id} consumed status {sequence} of {task} after {last}")
            });
            // Non-terminal ones in between may be left out, but never turned round.
            let legal = check_transition(state, status.state).is_ok();
            self.ensure(legal, || format!("f{id} heard that {task} went from {state} to {}", status.state));
        }
    }

    /// After the last fault: everything that was launched ended once, and everybody knows.
    pub(crate) fn unfinished(&self, tasks: u64) -> Option<String> {
        for (id, shadow) in &self.frameworks {
            if !model::is_done(tasks, &shadow.state) {
                return Some(format!("f{id} has not got all its tasks done"));
            }
        }
        for (name, state) in &self.tasks {
            let consumed = self.frameworks.get(&name.0).and_then(|f| f.ended.get(&name.1));
            if consumed.is_none() {
                return Some(format!("the end of f{}/{} ({state}) is not consumed", name.0, name.1));
            }
        }
        self.alive.keys().next().map(|name| format!("f{}/{} still runs", name.0, name.1))
    }
}

/// Whether a turn did nothing but write state.
pub(super) fn is_pure(turn: &Turn) -> bool {
    turn.consumed.is_empty() && turn.operations.iter().all(|operation| !operation.changes_state())
}

/// All keys and values of a framework.
pub(crate) fn read_state(
    node: &Node<FaultyDisk>,
    framework: FrameworkId,
) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let rows = node.rows();
    let mut state = BTreeMap::new();
    loop {
        let after = state.last_key_value().map(|(key, _): (&String, &Vec<u8>)| key.clone());
        let page = node
            .core()
            .state_page(framework, after.as_deref(), 500, &rows)
            .map_err(|error| format!("the state cannot be read: {error}"))?;
        if page.is_empty() {
            return Ok(state);
        }
        state.extend(page.into_iter().filter_map(|write| Some((write.key, write.value?))));
    }
}

/// The state without what users write, which no turn explains.
pub(super) fn of_turns(mut state: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    state.retain(|key, _| !key.starts_with(model::OUTSIDE_PREFIX));
    state
}
