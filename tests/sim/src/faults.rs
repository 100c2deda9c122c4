//! What breaks, and when.
//!
//! Invariants: every fault is drawn from the seed; none happens after the healing, and the healing
//! undoes all that lasts. Must never break what the design says cannot break.

use crate::master::CrashPoint;
use crate::queue::Event;
use crate::world::World;

/// How far the master's clock may be behind: timers wait for as long as it takes to catch up.
const CLOCK_BEHIND_MAX_MS: i64 = 5_000;
/// How far it may be ahead.
const CLOCK_AHEAD_MAX_MS: i64 = 15_000;

impl World {
    pub(crate) fn fault_strikes(&mut self) {
        if !self.faults_on {
            return;
        }
        let now_us = self.now_us;
        self.queue.at(now_us + self.rng.range(self.plan.fault_us / 5, self.plan.fault_us), Event::Fault);
        let agent = self.rng.index(self.agents.len());
        match self.rng.below(17) {
            0 | 1 => {
                let points = [CrashPoint::BeforeSettle, CrashPoint::InSync, CrashPoint::BeforeSend];
                let point = points[self.rng.index(points.len())];
                self.journal.line(now_us, &format!("fault: the master will crash {point:?}"));
                self.master.crash_at = Some(point);
            }
            2 => self.master_crash(),
            3 => {
                let stop_us = self.rng.range(100_000, 5_000_000);
                self.master.paused_until_us = now_us + stop_us;
                self.journal.line(now_us, &format!("fault: the master stops for {stop_us} us"));
            }
            4 | 5 => self.agent_crash(agent),
            6 | 7 => self.worker_crash(agent),
            8 | 9 => {
                let alive = self.net.alive();
                if !alive.is_empty() {
                    let conn = alive[self.rng.index(alive.len())];
                    let silent = self.rng.chance(30);
                    self.journal.line(now_us, &format!("fault: connection {conn} breaks, silent {silent}"));
                    self.net.cut(&mut self.queue, now_us, conn, silent);
                }
            }
            10 => {
                let long = self.rng.chance(30);
                let away_us = self.rng.range(200_000, if long { 14_000_000 } else { 4_000_000 });
                self.journal.line(now_us, &format!("fault: agent #{agent} is cut off for {away_us} us"));
                self.net.partitioned_until_us.insert(agent, now_us + away_us);
                for conn in self.net.alive() {
                    if self.net.conns.get(&conn).is_some_and(|conn| conn.agent == agent) {
                        self.net.cut(&mut self.queue, now_us, conn, true);
                    }
                }
            }
            11 => {
                let jump_ms = i64::try_from(self.rng.range(0, 40_000)).unwrap_or(0) - 20_000;
                let offset_ms = self.master.wall_offset_ms + jump_ms;
                self.master.wall_offset_ms = offset_ms.clamp(-CLOCK_BEHIND_MAX_MS, CLOCK_AHEAD_MAX_MS);
                self.journal.line(now_us, &format!("fault: the master's clock jumps by {jump_ms} ms"));
            }
            12 => {
                self.net.delay_us = self.rng.range(200, 60_000);
                self.journal.line(now_us, &format!("fault: delays up to {} us", self.net.delay_us));
            }
            13 => {
                let until_us = now_us + self.rng.range(500_000, 6_000_000);
                self.journal.line(now_us, &format!("fault: agent #{agent} is slow"));
                self.agent_slow(agent, until_us);
            }
            14 => self.worker_trap(agent),
            15 => {
                self.journal.line(now_us, &format!("fault: the machine of agent #{agent} reboots"));
                self.machine_reboots(agent);
            }
            _ => {
                self.journal.line(now_us, "fault: turns are submitted twice");
                self.turns_twice = 3;
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        let now_us = self.now_us;
        self.faults_on = false;
        self.journal.line(now_us, "everything heals");
        self.master.paused_until_us = self.master.paused_until_us.min(now_us);
        self.master.crash_at = None;
        self.master.wall_offset_ms = 0;
        self.net.delay_us = 2_000;
        self.net.partitioned_until_us.clear();
        self.turns_twice = 0;
        for agent in 0..self.agents.len() {
            self.agent_slow(agent, now_us);
        }
    }
}
