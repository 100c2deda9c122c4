//! Connections between agents and masters, and the ways among masters.
//!
//! Invariants, which are those of a gRPC stream: within one connection and direction messages arrive in
//! order and none is missing, until the connection breaks; then what is under way is lost, and the two
//! ends learn of it at different times, or not at all before their own time-outs. Between connections
//! nothing is ordered. Messages among masters may be lost, doubled, late and out of order. Must never look
//! into a message.

use crate::queue::{Down, Event, Queue, Up};
use std::collections::{BTreeMap, BTreeSet};
use tessera_virtual::Random;

/// Names a connection for good.
pub(crate) type ConnId = u64;

/// Time after which an end that hears nothing gives a connection up, in us.
pub(crate) const SILENCE_US: u64 = 2_500_000;

/// One connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) agent: usize,
    pub(crate) agent_life: u64,
    pub(crate) master: usize,
    pub(crate) master_life: u64,
    /// Number of the session at the master.
    pub(crate) session: Option<u64>,
    /// Nothing that arrives later does.
    cut_up_us: Option<u64>,
    cut_down_us: Option<u64>,
    last_up_us: u64,
    last_down_us: u64,
    /// What is sent until then waits for it: one way is cut, and the sender's machine repeats it.
    held_up_us: u64,
    held_down_us: u64,
    pub(crate) master_open: bool,
    pub(crate) agent_open: bool,
    pub(crate) heard_us: u64,
}

/// All connections, and how bad the weather is.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    next: ConnId,
    rng: Random,
    /// Largest ordinary delay of a message, in us.
    pub(crate) delay_us: u64,
    /// Agents that cannot reach a master until then.
    parted_until_us: BTreeMap<(usize, usize), u64>,
    /// Masters whose messages do not reach another one until then.
    cut_until_us: BTreeMap<(usize, usize), u64>,
    /// Of 100 messages among masters so many are lost.
    pub(crate) loss: u64,
    /// Of 100 messages among masters so many come twice.
    pub(crate) doubles: u64,
}

impl Network {
    pub(crate) const fn new(rng: Random, delay_us: u64) -> Self {
        Self {
            conns: BTreeMap::new(),
            next: 0,
            rng,
            delay_us,
            parted_until_us: BTreeMap::new(),
            cut_until_us: BTreeMap::new(),
            loss: 0,
            doubles: 0,
        }
    }

    /// A new connection.
    pub(crate) fn connect(
        &mut self,
        now_us: u64,
        (agent, agent_life): (usize, u64),
        (master, master_life): (usize, u64),
    ) -> ConnId {
        self.next += 1;
        let conn = Conn {
            agent,
            agent_life,
            master,
            master_life,
            session: None,
            cut_up_us: None,
            cut_down_us: None,
            last_up_us: now_us,
            last_down_us: now_us,
            held_up_us: 0,
            held_down_us: 0,
            master_open: true,
            agent_open: true,
            heard_us: now_us,
        };
        self.conns.insert(self.next, conn);
        self.next
    }

    /// Whether an agent can reach a master.
    pub(crate) fn reachable(&self, now_us: u64, agent: usize, master: usize) -> bool {
        self.parted_until_us.get(&(agent, master)).is_none_or(|until| *until <= now_us)
    }

    /// Agents and masters do not reach each other for a while: what they have is cut silently.
    pub(crate) fn part(&mut self, queue: &mut Queue, now_us: u64, pairs: &BTreeSet<(usize, usize)>, until_us: u64) {
        for pair in pairs {
            self.parted_until_us.insert(*pair, until_us);
        }
        for id in self.alive() {
            if self.conns.get(&id).is_some_and(|conn| pairs.contains(&(conn.agent, conn.master))) {
                self.cut(queue, now_us, id, true);
            }
        }
    }

    /// One way between an agent and a master is cut for a while: what is sent there comes late, if anybody still
    /// waits for it. Nobody connects, as that takes both ways.
    pub(crate) fn hold(&mut self, (agent, master): (usize, usize), up: bool, until_us: u64) {
        let parted = self.parted_until_us.entry((agent, master)).or_default();
        *parted = until_us.max(*parted);
        for conn in self.conns.values_mut().filter(|conn| (conn.agent, conn.master) == (agent, master)) {
            let held_us = if up { &mut conn.held_up_us } else { &mut conn.held_down_us };
            *held_us = until_us.max(*held_us);
        }
    }

    /// What one master says does not reach another one for a while.
    pub(crate) fn cut_masters(&mut self, from: usize, to: usize, until_us: u64) {
        self.cut_until_us.insert((from, to), until_us);
    }

    /// Whether what one master says reaches another one now.
    pub(crate) fn hears(&self, now_us: u64, from: usize, to: usize) -> bool {
        self.cut_until_us.get(&(from, to)).is_none_or(|until| *until <= now_us)
    }

    /// When the copies of a message between two masters arrive; none if it is lost.
    pub(crate) fn between(&mut self, now_us: u64, from: usize, to: usize) -> Vec<u64> {
        if !self.hears(now_us, from, to) || self.rng.chance(self.loss) {
            return Vec::new();
        }
        let copies = 1 + u64::from(self.rng.chance(self.doubles));
        (0..copies).map(|_| now_us + self.delay()).collect()
    }

    /// When a message that is not lost arrives.
    pub(crate) fn soon(&mut self, now_us: u64) -> u64 {
        now_us + self.delay()
    }

    /// The weather is good again.
    pub(crate) fn heal(&mut self) {
        self.parted_until_us.clear();
        self.cut_until_us.clear();
        (self.loss, self.doubles) = (0, 0);
    }

    fn delay(&mut self) -> u64 {
        // Now and then a message takes far longer than others.
        let most = if self.rng.chance(3) { self.delay_us * 20 } else { self.delay_us };
        self.rng.range(50, most.max(51))
    }

    /// Send towards the master. Beats have a lane of their own and keep no order with the rest.
    pub(crate) fn up(&mut self, queue: &mut Queue, now_us: u64, id: ConnId, message: Up) {
        let delay_us = self.delay();
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.agent_open) else { return };
        let mut at_us = now_us.max(conn.held_up_us) + delay_us;
        if !matches!(message, Up::Beat) {
            at_us = at_us.max(conn.last_up_us + 1);
            conn.last_up_us = at_us;
        }
        if conn.cut_up_us.is_none_or(|cut| at_us < cut) {
            queue.at(at_us, Event::ToMaster { conn: id, message });
        }
    }

    /// Send towards the agent.
    pub(crate) fn down(&mut self, queue: &mut Queue, now_us: u64, id: ConnId, message: Down) {
        let delay_us = self.delay();
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.master_open) else { return };
        let mut at_us = now_us.max(conn.held_down_us) + delay_us;
        if !matches!(message, Down::Beat) {
            at_us = at_us.max(conn.last_down_us + 1);
            conn.last_down_us = at_us;
        }
        if conn.cut_down_us.is_none_or(|cut| at_us < cut) {
            queue.at(at_us, Event::ToAgent { conn: id, message });
        }
    }

    /// Whether something that arrives now still arrives.
    pub(crate) fn arrives_up(&self, now_us: u64, id: ConnId) -> bool {
        let open = |conn: &Conn| conn.master_open && conn.cut_up_us.is_none_or(|cut| now_us < cut);
        self.conns.get(&id).is_some_and(open)
    }

    /// The same for the agent's end.
    pub(crate) fn arrives_down(&self, now_us: u64, id: ConnId) -> bool {
        let open = |conn: &Conn| conn.agent_open && conn.cut_down_us.is_none_or(|cut| now_us < cut);
        self.conns.get(&id).is_some_and(open)
    }

    /// Break a connection. With `silent` neither end is told.
    pub(crate) fn cut(&mut self, queue: &mut Queue, now_us: u64, id: ConnId, silent: bool) {
        let (up, down) = (self.rng.range(0, 40_000), self.rng.range(0, 40_000));
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let up_us = *conn.cut_up_us.get_or_insert(now_us + up);
        let down_us = *conn.cut_down_us.get_or_insert(now_us + down);
        if !silent {
            queue.at(up_us + 1, Event::MasterSideGone { conn: id });
            queue.at(down_us + 1, Event::AgentSideGone { conn: id });
        }
    }

    /// The master's end is closed on purpose, after everything sent before.
    pub(crate) fn close_by_master(&mut self, queue: &mut Queue, now_us: u64, id: ConnId) {
        let delay_us = self.delay();
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.master_open = false;
        let at_us = (now_us.max(conn.held_down_us) + delay_us).max(conn.last_down_us + 1);
        if conn.cut_down_us.is_none_or(|cut| at_us < cut) {
            queue.at(at_us, Event::AgentSideGone { conn: id });
        }
    }

    /// The agent's end is closed: what it sent before still arrives, unless the line is cut.
    pub(crate) fn close_by_agent(&mut self, queue: &mut Queue, now_us: u64, id: ConnId) {
        let delay_us = self.delay();
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.agent_open = false;
        let at_us = (now_us.max(conn.held_up_us) + delay_us).max(conn.last_up_us + 1);
        if conn.cut_up_us.is_none_or(|cut| at_us < cut) {
            queue.at(at_us, Event::MasterSideGone { conn: id });
        }
    }

    /// Connections that are open at both ends and not cut.
    pub(crate) fn alive(&self) -> Vec<ConnId> {
        let alive = self.conns.iter().filter(|(_, conn)| {
            conn.master_open && conn.agent_open && conn.cut_up_us.is_none() && conn.cut_down_us.is_none()
        });
        alive.map(|(id, _)| *id).collect()
    }

    /// Drop what nobody refers to any more.
    pub(crate) fn sweep(&mut self) {
        self.conns.retain(|_, conn| conn.master_open || conn.agent_open);
    }
}
