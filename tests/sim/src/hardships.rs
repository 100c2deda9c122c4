//! What breaks beside the faults that strike all the time: whole networks and machines, for long.
//!
//! Invariants: every one is drawn from the seed and noted by name, so that the tests can see that it comes up;
//! none lasts beyond the healing. Must never break what the design says cannot break.

use crate::agent::Agent;
use crate::disk::SnapshotFault;
use crate::queue::Event;
use crate::world::World;

/// Agents that fall silent together, at least, where it is to be a mass: more than may be given up at once.
const MASS_MIN: usize = 4;
/// A clock of an agent may be off by so much, in ms.
const AGENT_CLOCK_MAX_MS: u64 = 3_600_000;
/// A leader that is told to stop waits so long for another one, in us, as the real one does.
const HAND_OVER_US: u64 = 3_000_000;
/// Boots of a copy are counted from here, so that they are not those of the other machine.
const COPY_BOOTS: u64 = 1_000;
/// A follower is cut off for so long, in us, that the others do not keep the log for it.
const BEHIND_US: (u64, u64) = (4_000_000, 9_000_000);
/// Time between two looks whether another one leads, in us.
const LOOK_US: u64 = 20_000;

impl World {
    pub(crate) fn hardship_strikes(&mut self) {
        let agent = self.rng.index(self.agents.len());
        let master = self.some_master();
        if self.agents.len() > MASS_MIN && self.rng.chance(30) {
            return self.agents_fall_silent();
        }
        match self.rng.below(16) {
            0..4 => self.one_way_is_cut(agent),
            4 => self.masters_are_away(),
            5 | 6 => self.master_stops_for_long(master),
            7 | 8 => self.master_is_told_to_stop(master),
            9..11 => self.agents_disk_fills(agent),
            11 => self.agents_clock_jumps(agent),
            12 | 13 => self.agent_is_copied(agent),
            _ => self.snapshot_is_spoilt(),
        }
    }

    /// A master gets behind for long enough to need a snapshot, and something goes wrong with that: one that is
    /// yet to join, or a follower.
    fn snapshot_is_spoilt(&mut self) {
        let fault = SnapshotFault::ALL[self.rng.index(SnapshotFault::ALL.len())];
        let until_us = self.until(BEHIND_US.0, BEHIND_US.1);
        let leader = self.leader();
        let joins = self.masters.iter().position(|master| master.number.is_none());
        let Some(slot) = joins.or_else(|| {
            let others: Vec<usize> = (0..self.masters.len()).filter(|slot| Some(*slot) != leader).collect();
            (others.len() > 1).then(|| others[self.rng.index(others.len())])
        }) else {
            return;
        };
        let line = format!("fault: master {slot} is alone until {until_us} us, and its next snapshot meets {fault:?}");
        self.journal.line(self.now_us, &line);
        self.masters[slot].snapshot_fault = Some(fault);
        if joins.is_none() {
            self.master_flaps(slot, until_us);
        }
    }

    /// A moment that is not later than the healing.
    fn until(&mut self, least_us: u64, most_us: u64) -> u64 {
        let until_us = self.now_us + self.rng.range(least_us, most_us);
        until_us.min(self.plan.heal_us.max(self.now_us))
    }

    /// An agent hears a master that does not hear it, or the other way round: one of them, or all.
    fn one_way_is_cut(&mut self, agent: usize) {
        let until_us = self.until(300_000, 8_000_000);
        let (up, all) = (self.rng.chance(50), self.rng.chance(50));
        let leader = self.leader().unwrap_or(0);
        let way = if up { "to" } else { "from" };
        let line = format!("fault: agent #{agent} is cut one way, {way} masters, all {all}, until {until_us} us");
        self.journal.line(self.now_us, &line);
        let one = "masters do not hear an agent that hears them";
        self.oracle.saw(if up { one } else { "an agent does not hear masters that hear it" });
        for master in (0..self.masters.len()).filter(|master| all || *master == leader) {
            self.net.hold((agent, master), up, until_us);
        }
    }

    /// The network between most agents and all masters fails, for longer than one is waited for.
    fn agents_fall_silent(&mut self) {
        let now_us = self.now_us;
        let until_us = self.until(4_000_000, 20_000_000);
        let count = MASS_MIN + self.rng.index(self.agents.len() + 1 - MASS_MIN);
        let first = self.rng.index(self.agents.len());
        let silent = (0..count).map(|n| (first + n) % self.agents.len());
        let masters = self.masters.len();
        let pairs = silent.flat_map(|agent| (0..masters).map(move |master| (agent, master))).collect();
        self.journal.line(now_us, &format!("fault: {count} agents fall silent together until {until_us} us"));
        self.oracle.saw("a mass of agents falls silent");
        self.net.part(&mut self.queue, now_us, &pairs, until_us);
    }

    /// All masters are switched off.
    fn masters_are_away(&mut self) {
        self.dark_until_us = self.until(4_000_000, 15_000_000);
        let line = format!("fault: all masters are away until {} us", self.dark_until_us);
        self.journal.line(self.now_us, &line);
        self.oracle.saw("all masters are away for long");
        for master in 0..self.masters.len() {
            self.master_crash(master);
        }
    }

    fn master_stops_for_long(&mut self, master: usize) {
        let until_us = self.until(5_000_000, 30_000_000);
        self.journal.line(self.now_us, &format!("fault: master {master} stops until {until_us} us"));
        self.oracle.saw("a master stands still for long");
        self.masters[master].paused_until_us = until_us;
    }

    /// Somebody stops a master in order: a leader has another one lead first.
    fn master_is_told_to_stop(&mut self, master: usize) {
        let life = self.masters[master].life;
        let Some(node) = &mut self.masters[master].node else { return };
        let led = node.core().is_leader();
        let heir = node.best_successor().filter(|_| led);
        let handed = heir.is_some_and(|heir| node.transfer_leadership(heir).is_ok());
        self.journal.line(self.now_us, &format!("fault: master {master} is told to stop, and hands over {handed}"));
        self.oracle.saw(if handed { "a leader is told to stop, and hands over" } else { "a master is told to stop" });
        self.settle_soon(master);
        let until_us = self.now_us + if handed { HAND_OVER_US } else { 0 };
        self.queue.at(self.now_us, Event::StopsInOrder { master, life, until_us });
    }

    /// It has handed over, or waited for long enough: all that it wrote stays.
    pub(crate) fn stops_in_order(&mut self, slot: usize, life: u64, until_us: u64) {
        let now_us = self.now_us;
        let master = &mut self.masters[slot];
        let Some(node) = master.node.as_ref().filter(|_| master.life == life) else { return };
        let own = master.number;
        let handed = node.leader().is_some_and(|leader| Some(leader) != own);
        if now_us < master.paused_until_us || (!handed && now_us < until_us) {
            return self.queue.at(now_us + LOOK_US, Event::StopsInOrder { master: slot, life, until_us });
        }
        let writes = master.disk.writes();
        if master.disk.sync_to(writes).is_err() {
            return self.master_crash(slot);
        }
        self.journal.line(now_us, &format!("master {slot}: ends in order"));
        if self.master_ends(slot) {
            let back_us = now_us + self.masters[slot].rng.range(50_000, 3_000_000);
            self.queue.at(back_us, Event::MasterStart { master: slot });
        }
    }

    fn agents_disk_fills(&mut self, agent: usize) {
        let until_us = self.until(100_000, 5_000_000);
        self.journal.line(self.now_us, &format!("fault: the disk of agent #{agent} is full until {until_us} us"));
        self.agents[agent].full_until_us = until_us;
    }

    /// Somebody takes the work directory of an agent to another machine: once, while nothing is in it.
    fn agent_is_copied(&mut self, index: usize) {
        let copied = self.agents.iter().any(|agent| agent.is_copy);
        if copied || !self.agents[index].is_empty() {
            return;
        }
        let (copy, number) = (self.agents.len(), COPY_BOOTS + self.fresh());
        let rng = self.rng.fork(number);
        let agent = self.agents[index].copied(number, rng);
        let line = format!("fault: agent #{copy} begins with a copy of the directory of agent #{index}");
        self.journal.line(self.now_us, &line);
        self.oracle.saw("a work directory is copied");
        self.agents.push(agent);
        self.queue.at(self.now_us + 100_000, Event::AgentStart { agent: copy });
    }

    /// What an agent is told that has the work directory of another machine, or whose own was taken: the
    /// directory is emptied, and nothing runs there any more.
    pub(crate) fn agent_begins_anew(&mut self, index: usize) {
        self.journal.line(self.now_us, &format!("agent #{index}: its directory is emptied"));
        if !self.agents.iter().any(|agent| agent.is_copy) {
            return self.oracle.violate(format!("agent #{index} is taken for a copy, and nobody copied it"));
        }
        if self.agents[index].runs_something() {
            self.note_copies(index);
        }
        self.oracle.saw("an agent with the directory of another one begins anew");
        self.machine_reboots(index);
        let key = self.fresh();
        self.agents[index].empty(key);
        self.oracle.forget_generations(index);
    }

    /// An agent is registered, or refused for good. If another machine speaks for it as well, what that one runs is
    /// lost to the cluster.
    pub(crate) fn note_copies(&mut self, index: usize) {
        let number = self.agent_number(index);
        let same = |(other, agent): &(usize, &Agent)| *other != index && agent.number() == number;
        if self.agents.iter().enumerate().any(|pair| same(&pair))
            && let Some(number) = number
        {
            self.oracle.on_two_machines(number);
        }
    }

    fn agents_clock_jumps(&mut self, agent: usize) {
        let ahead = self.rng.chance(50);
        let by_ms = i64::try_from(self.rng.range(0, AGENT_CLOCK_MAX_MS)).unwrap_or(0);
        let offset_ms = if ahead { by_ms } else { -by_ms };
        self.journal.line(self.now_us, &format!("fault: the clock of agent #{agent} is off by {offset_ms} ms"));
        self.oracle.saw("an agent's clock jumps");
        self.agents[agent].wall_offset_ms = offset_ms;
    }
}
