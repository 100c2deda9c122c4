//! Which agents answer: silence of sessions, agents that are unreachable, and the brake on losing many.
//!
//! Invariants: an agent's silence counts only while this leader could have heard it: from when it began to
//! lead, and not while it stood still itself. When many go silent together, the fault is suspected on the
//! masters' side: nobody is given up at first, and then one at a time, as long as others are heard, and so for a
//! while after the brake was let go. Never are more given up within [`GIVE_UP_WINDOW_MS`] than may be silent
//! without the brake. Beats change only what the leader remembers.

use super::{Desk, Leader, Pending};
use crate::api::Output;
use crate::limits::{
    BRAKE_AGENTS_MIN, BRAKE_HOLD_MS, BRAKE_PERCENT, BRAKED_EXPIRY_EVERY_MS, GAP_EDGE_MS, GIVE_UP_WINDOW_MS, HEARD_MS,
    LIVENESS_EVERY_MS, STOOD_STILL_MS,
};
use std::collections::BTreeMap;
use tessera_types::AgentId;
use tessera_wire::v1;

/// What the leader remembers of agents that it gave up, and of itself.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    last_tick_ms: Option<u64>,
    /// When all agents were looked at.
    looked_ms: Option<u64>,
    /// Agents that were given up, and when, as far as it was lately: by whichever leader.
    expired_ms: BTreeMap<AgentId, u64>,
    /// Since when the brake is on.
    braked_ms: Option<u64>,
    /// When it was let go.
    let_go_ms: Option<u64>,
    /// When the last agent was given up.
    paced_ms: u64,
}

/// How many agents are silent, of how many.
#[derive(Clone, Copy, Debug)]
struct Silence {
    silent: usize,
    known: usize,
    /// One that is not silent was heard just now.
    others_heard: bool,
}

impl Silence {
    /// How many may be silent without the brake.
    fn most(self) -> usize {
        BRAKE_AGENTS_MIN.max(self.known * BRAKE_PERCENT / 100)
    }

    fn is_mass(self) -> bool {
        self.silent > self.most()
    }
}

impl Leader {
    /// When an agent was heard last, as far as this leader can say.
    pub(super) fn heard_ms(&self, agent: AgentId) -> Option<u64> {
        let link = self.links.get(&agent)?;
        let session = link.session.and_then(|session| self.sessions.get(&session));
        Some(session.map_or(link.since_ms, |session| session.last_beat_ms))
    }

    /// Whether this process stood still and has not looked at the time since: what it hears now may be old.
    pub(super) fn stands_still(&self, now_ms: u64) -> bool {
        let looked_ms = self.liveness.last_tick_ms.unwrap_or(now_ms);
        now_ms.saturating_sub(looked_ms) >= STOOD_STILL_MS
    }

    /// For how long an agent has not been heard.
    pub(crate) fn silent_ms(&self, agent: AgentId, now_ms: u64) -> Option<u64> {
        self.heard_ms(agent).map(|heard_ms| now_ms.saturating_sub(heard_ms))
    }

    /// Whether an agent without a session is not given up because many are silent.
    pub(crate) fn expiry_held(&self, agent: AgentId) -> bool {
        self.liveness.braked_ms.is_some()
            && self.links.get(&agent).is_some_and(|link| link.session.is_none())
    }
}

impl Desk<'_> {
    /// A sign of life that came at a time of the monotonic clock.
    pub(crate) fn beat(&mut self, session: u64, at_ms: u64) {
        if let Some(record) = self.leader.sessions.get_mut(&session) {
            record.last_beat_ms = record.last_beat_ms.max(at_ms);
        }
    }

    pub(super) fn tick_liveness(&mut self) {
        self.forgive_standstill();
        let every_ms = match self.gives_up_slowly() {
            true => BRAKED_EXPIRY_EVERY_MS,
            false => LIVENESS_EVERY_MS,
        };
        let looked_ms = self.leader.liveness.looked_ms;
        if looked_ms.is_none() {
            self.recall_given_up();
        }
        if looked_ms.is_some_and(|looked_ms| self.now.mono_ms < looked_ms + every_ms) {
            return;
        }
        self.leader.liveness.looked_ms = Some(self.now.mono_ms);
        self.close_silent();
        self.close_those_that_knew_more();
        let silence = self.silence();
        self.brake(silence);
        self.expire(silence);
    }

    /// While this process stood still it could hear nobody. Beats are noted beside the loop: if some came
    /// meanwhile, it was only the loop that waited, for its disk.
    fn forgive_standstill(&mut self) {
        let now_ms = self.now.mono_ms;
        let last_ms = self.leader.liveness.last_tick_ms.replace(now_ms).unwrap_or(now_ms);
        let gap_ms = now_ms.saturating_sub(last_ms);
        if gap_ms < STOOD_STILL_MS {
            return;
        }
        let (from_ms, to_ms) = (last_ms + GAP_EDGE_MS, now_ms.saturating_sub(GAP_EDGE_MS));
        let mut sessions = self.leader.sessions.values();
        if sessions.any(|s| (from_ms..to_ms).contains(&s.last_beat_ms)) {
            return;
        }
        for session in self.leader.sessions.values_mut() {
            session.last_beat_ms = (session.last_beat_ms + gap_ms).min(now_ms);
        }
        for link in self.leader.links.values_mut() {
            link.since_ms = (link.since_ms + gap_ms).min(now_ms);
        }
        // It would look as if they had been heard just now.
        self.leader.rivals.clear();
        let text = format!("this master stood still for {gap_ms} ms; that does not count as silence of agents");
        self.leader.out.push(Output::Report { text });
    }

    fn close_silent(&mut self) {
        let now_ms = self.now.mono_ms;
        let max_ms = self.config.session_silence_ms;
        let sessions = self.leader.sessions.iter();
        let silent: Vec<u64> = sessions
            .filter(|(_, session)| now_ms.saturating_sub(session.last_beat_ms) > max_ms)
            .map(|(session, _)| *session)
            .collect();
        for session in silent {
            self.close(session, "the agent was silent for too long");
        }
    }

    /// Those that the leader before this one gave up lately count as if this one had.
    fn recall_given_up(&mut self) {
        let (time_ms, now_ms) = (self.time_ms(), self.now.mono_ms);
        for (agent, row) in &self.state.agents {
            let Some(at_ms) = row.unreachable_ms else { continue };
            let ago_ms = time_ms.saturating_sub(at_ms);
            if ago_ms <= self.config.agent_timeout_ms {
                self.leader.liveness.expired_ms.insert(*agent, now_ms.saturating_sub(ago_ms));
            }
        }
    }

    /// Whether agents are given up one at a time: under the brake, and after it for as long as those that were given
    /// up under it count.
    fn gives_up_slowly(&self) -> bool {
        let liveness = &self.leader.liveness;
        let lately = |let_go_ms: u64| self.now.mono_ms <= let_go_ms + self.config.agent_timeout_ms;
        liveness.braked_ms.is_some() || liveness.let_go_ms.is_some_and(lately)
    }

    /// How many of the agents that are not given up are on the way to it, counted with those that were
    /// lately.
    fn silence(&mut self) -> Silence {
        let now_ms = self.now.mono_ms;
        let window_ms = self.config.agent_timeout_ms;
        let Leader { liveness, links, .. } = &mut *self.leader;
        let proposed = |agent: &AgentId| links.get(agent).is_some_and(|link| link.unreachable_proposed);
        liveness.expired_ms.retain(|agent, at_ms| *at_ms + window_ms >= now_ms || proposed(agent));
        let mut silence = Silence { silent: 0, known: 0, others_heard: false };
        for (agent, row) in &self.state.agents {
            let Some(silent_ms) = self.leader.silent_ms(*agent, now_ms) else { continue };
            if row.unreachable_ms.is_some() {
                let lately = self.leader.liveness.expired_ms.contains_key(agent);
                silence.known += usize::from(lately);
                silence.silent += usize::from(lately);
                continue;
            }
            silence.known += 1;
            // Half of the time: those that fell silent with the first are counted before it is given up.
            silence.silent += usize::from(silent_ms > window_ms / 2);
            silence.others_heard |= silent_ms <= HEARD_MS;
        }
        silence
    }

    fn brake(&mut self, silence: Silence) {
        let braked = self.leader.liveness.braked_ms.is_some();
        if silence.is_mass() == braked {
            return;
        }
        self.leader.liveness.braked_ms = (!braked).then_some(self.now.mono_ms);
        self.leader.liveness.let_go_ms = braked.then_some(self.now.mono_ms);
        let Silence { silent, known, .. } = silence;
        let text = if braked {
            format!("{silent} of {known} agents are silent; they are given up as usual again")
        } else {
            format!("{silent} of {known} agents went silent together: the masters' network is suspected, they are not given up for now")
        };
        self.leader.out.push(Output::Report { text });
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let command = v1::HoldExpiry { held: !braked, silent: count(silent), known: count(known) };
        if known > 0 {
            self.propose("", v1::command::Command::HoldExpiry(command), Pending::Nobody);
        }
    }

    /// How many agents may be given up now.
    fn may_give_up(&self, silence: Silence) -> usize {
        let now_ms = self.now.mono_ms;
        let liveness = &self.leader.liveness;
        // What is not committed yet may be in one entry with what comes now.
        let proposed = |agent: &AgentId| self.leader.links.get(agent).is_some_and(|link| link.unreachable_proposed);
        let under_way = liveness.expired_ms.keys().filter(|agent| proposed(agent)).count();
        let just_now = |(agent, at_ms): &(&AgentId, &u64)| **at_ms + GIVE_UP_WINDOW_MS > now_ms && !proposed(agent);
        let just_now = liveness.expired_ms.iter().filter(just_now).count();
        let room = silence.most().saturating_sub(under_way + just_now);
        if !self.gives_up_slowly() {
            return room;
        }
        let held = liveness.braked_ms.is_some_and(|since_ms| now_ms < since_ms + BRAKE_HOLD_MS);
        let paced = under_way == 0 && now_ms >= liveness.paced_ms + BRAKED_EXPIRY_EVERY_MS;
        room.min(usize::from(!held && paced && silence.others_heard))
    }

    /// Give up agents that were silent for too long, as many as may be now.
    fn expire(&mut self, silence: Silence) {
        let may = self.may_give_up(silence);
        let links = self.leader.links.iter();
        let lost = links.filter(|(agent, link)| {
            link.session.is_none()
                && !link.unreachable_proposed
                && self.now.mono_ms.saturating_sub(link.since_ms) > self.config.agent_timeout_ms
                && self.state.agents.get(agent).is_some_and(|row| row.unreachable_ms.is_none())
        });
        let lost: Vec<AgentId> = lost.take(may).map(|(agent, _)| *agent).collect();
        for agent in lost {
            if let Some(link) = self.leader.links.get_mut(&agent) {
                link.unreachable_proposed = true;
            }
            self.note_given_up(agent);
            let command = v1::MarkUnreachable { agent: agent.0 };
            let command = v1::command::Command::MarkUnreachable(command);
            self.propose("", command, Pending::Unreachable { agent });
        }
    }

    fn note_given_up(&mut self, agent: AgentId) {
        self.leader.liveness.expired_ms.insert(agent, self.now.mono_ms);
        self.leader.liveness.paced_ms = self.now.mono_ms;
    }

    /// Whether an agent is given up is decided: it was `committed`, or the log did not take it.
    pub(super) fn give_up_decided(&mut self, agent: AgentId, committed: bool) {
        if let Some(link) = self.leader.links.get_mut(&agent) {
            link.unreachable_proposed = false;
        }
        match committed {
            true => self.note_given_up(agent),
            false => {
                self.leader.liveness.expired_ms.remove(&agent);
            }
        }
    }
}
