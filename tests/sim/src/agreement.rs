//! The end of a run: everything agrees, and then nothing is written any more without a reason.
//!
//! Invariants: what is looked at is what processes hold and say; nothing is compared while things break. Must never
//! change anything.

use crate::disk::FaultyDisk;
use crate::model::OUTSIDE_PREFIX;
use crate::oracle::read_state;
use crate::world::World;
use tessera_master::node::Node;
use tessera_master_core::FrameworkView;

/// Time between two looks whether everything agrees, in us: it is much work.
const LOOK_US: u64 = 50_000;
/// For so long it is counted what a settled cluster writes, in us.
const QUIET_US: u64 = 3_000_000;
/// Entries that it may write beside those of turns: answers that came late, and a change of leader.
const ENTRIES_MAX: u64 = 12;
/// Entries of one turn: statuses or messages of executors may come before.
const ENTRIES_PER_TURN: u64 = 2;

/// When everything agreed, and how much was written until then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settled {
    pub(crate) at_us: u64,
    entries: u64,
    turns: u64,
}

impl World {
    /// Looks whether the run is over.
    pub(crate) fn is_over(&mut self) -> bool {
        let now_us = self.now_us;
        let looks = !self.faults_on && now_us >= self.next_look_us;
        if looks {
            self.next_look_us = now_us + LOOK_US;
            self.look_for_starved();
        }
        match self.settled {
            Some(settled) if now_us >= settled.at_us + QUIET_US => {
                self.is_quiet(settled);
                true
            }
            Some(_) => false,
            None if looks && self.is_converged() => {
                self.journal.line(now_us, "everything agrees");
                self.settled = Some(self.written());
                false
            }
            None if now_us > self.plan.deadline_us && self.oracle.waits_for_used_id() => {
                self.oracle.saw("a task waits whose id was used before a restore");
                true
            }
            None if now_us > self.plan.deadline_us => {
                let why = self.why_not_converged();
                self.oracle.violate(format!("nothing breaks any more, and yet {why}"));
                true
            }
            None => false,
        }
    }

    /// What was written so far, as the leader says.
    fn written(&self) -> Settled {
        let entries = self.leading().map_or(0, |node| node.status().applied.index);
        let frameworks = self.leading().map(|node| node.core().frameworks()).unwrap_or_default();
        let turns = frameworks.iter().map(|view| view.last_turn.0).sum();
        Settled { at_us: self.now_us, entries, turns }
    }

    /// Nobody wants anything any more: only schedulers whose timers fire write.
    fn is_quiet(&mut self, before: Settled) {
        let now = self.written();
        let (entries, turns) = (now.entries.saturating_sub(before.entries), now.turns.saturating_sub(before.turns));
        if entries > ENTRIES_MAX + turns * ENTRIES_PER_TURN {
            let text = format!("all is settled, and {entries} entries are written in {QUIET_US} us, of {turns} turns");
            self.oracle.violate(text);
        }
    }

    /// Whether nothing is left to do, and all say the same.
    fn is_converged(&self) -> bool {
        self.user.is_done()
            && self.leader().is_some()
            && self.oracle.unfinished(self.plan.tasks).is_none()
            && self.disagreement().is_none()
    }

    /// What masters do not agree on.
    fn masters_disagree(&self) -> Option<String> {
        let Some(leader) = self.leading() else { return Some("no master leads".to_owned()) };
        if !self.all_vote() {
            return Some(format!("not every master votes: {:?}", leader.membership().members));
        }
        let last = leader.status().applied;
        let behind = self.masters.iter().find(|master| {
            master.node.as_ref().is_none_or(|node| node.status().applied != last)
        });
        behind.map(|master| format!("master {} has not applied {last}", master.slot))
    }

    /// At the end all masters hold the same.
    pub(crate) fn compare_masters(&mut self) {
        self.compare_roles();
        let mut rows: Option<(u64, Vec<_>)> = None;
        for master in &self.masters {
            let Some(node) = &master.node else { continue };
            self.oracle.compare(node);
            let (index, found) = (node.status().applied.index, master.disk.all_rows());
            match &rows {
                Some((at, known)) if *at == index && *known != found => {
                    let slot = master.slot;
                    self.oracle.violate(format!("master {slot} has other rows than others at entry {index}"));
                }
                Some((at, _)) if *at >= index => {}
                _ => rows = Some((index, found)),
            }
        }
    }

    /// What masters and agents do not agree on.
    fn disagreement(&self) -> Option<String> {
        if let Some(why) = self.masters_disagree() {
            return Some(why);
        }
        let node = self.leading()?;
        let core = node.core();
        let counts = core.counts();
        let removed = self.oracle.removed();
        if self.user.removes.is_some() && removed == 0 {
            return Some("a framework is not removed yet".to_owned());
        }
        if counts.frameworks as u64 + removed != self.plan.frameworks {
            return Some(format!("there are {} frameworks", counts.frameworks));
        }
        if counts.agents_connected != self.agents.len() {
            return Some(format!("only {} agents are connected", counts.agents_connected));
        }
        if counts.tasks_live != 0 || !counts.used.is_empty() {
            return Some(format!("{} tasks live, {} used", counts.tasks_live, counts.used));
        }
        let waiting: usize = self.masters.iter().map(|master| master.https.len()).sum();
        if waiting != 0 {
            return Some(format!("{waiting} requests to schedulers are not answered"));
        }
        for view in core.frameworks() {
            let id = view.id;
            if view.upgrade.is_some() || view.merging {
                return Some(format!("an upgrade of {id} is not over"));
            }
            if view.config_seen != view.config_version {
                return Some(format!("{id} has not seen its configuration"));
            }
            if !view.ready {
                return Some(format!("the scheduler of {id} is not ready"));
            }
        }
        if let Some(why) = self.files_disagree(true) {
            return Some(why);
        }
        if self.roles_are_unsettled() {
            return Some("what is said of roles is not what is wanted in the end".to_owned());
        }
        let agents = (0..self.agents.len()).find_map(|agent| self.agent_disagrees(agent));
        agents.or_else(|| core.frameworks().iter().find_map(|view| self.copy_differs(node, view)))
    }

    /// A scheduler's copy of what users wrote is not what is committed.
    fn copy_differs(&self, node: &Node<FaultyDisk>, view: &FrameworkView) -> Option<String> {
        let (id, epoch) = (view.id.0, view.epoch.0);
        let mut committed = match read_state(node, view.id) {
            Ok(committed) => committed,
            Err(error) => return Some(error),
        };
        committed.retain(|key, _| key.starts_with(OUTSIDE_PREFIX));
        let workers = self.agents.iter().flat_map(|agent| agent.workers.values());
        match workers.filter_map(|worker| worker.outside_of(id, epoch)).next() {
            Some(copy) if copy == committed => None,
            Some(copy) => Some(format!("f{id} has {copy:?} of what users wrote, {committed:?}")),
            None => Some(format!("the scheduler of f{id} has no instance that waits")),
        }
    }

    fn why_not_converged(&mut self) -> String {
        if !self.user.is_done() {
            return "the user's requests are not all done".to_owned();
        }
        let why = self.oracle.unfinished(self.plan.tasks).or_else(|| self.disagreement());
        let mut why = why.unwrap_or_else(|| "no master leads".to_owned());
        why.push_str(&self.calls.waiting());
        let leader = self.leader();
        if let Some(node) = leader.and_then(|leader| self.masters[leader].node.as_mut()) {
            node.input(|core| {
                for framework in core.frameworks() {
                    for waiting in core.explain(framework.id) {
                        why.push_str(&format!("; {} waits with {}: {}", framework.id, waiting.what, waiting.why));
                    }
                    for request in &framework.requests {
                        let whys = core.explain_request(framework.id, &request.id).unwrap_or_default();
                        let whys: Vec<_> = whys.into_iter().map(|why| why.text).collect();
                        why.push_str(&format!("; {} waits for {}: {}", framework.id, request.id, whys.join(", ")));
                    }
                }
                Vec::new()
            });
        }
        why
    }
}
