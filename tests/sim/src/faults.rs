//! What breaks, and when.
//!
//! Invariants: every fault is drawn from the seed; none happens after the healing, and the healing
//! undoes all that lasts. Must never break what the design says cannot break.

use crate::master::{CrashPoint, Master};
use crate::mutation::Mutation;
use crate::queue::Event;
use crate::world::World;
use tessera_master_core::CLUSTER_VERSION;
use tessera_replica::MemberChange;

/// Of 100 faults so many are of those that stand in `hardships`.
const HARDSHIPS: u64 = 25;
/// So often a master that flaps is cut off, and for so long each time, in us: about as long as an election.
const FLAPS: u64 = 6;
const FLAP_US: u64 = 400_000;
/// Of 100 messages among masters so many are lost in bad weather.
const LOSS_MAX: u64 = 25;

impl World {
    pub(crate) fn fault_strikes(&mut self) {
        if !self.faults_on {
            return;
        }
        let now_us = self.now_us;
        self.queue.at(now_us + self.rng.range(self.plan.fault_us / 5, self.plan.fault_us), Event::Fault);
        if !self.plan.strikes() {
            return;
        }
        if self.rng.chance(HARDSHIPS) {
            return self.hardship_strikes();
        }
        let several = self.masters.len() > 1;
        if several && self.rng.chance(40) {
            return self.masters_suffer();
        }
        let agent = self.rng.index(self.agents.len());
        let master = self.some_master();
        match self.rng.below(21) {
            0 | 1 => {
                let points = [CrashPoint::BeforeSettle, CrashPoint::InSync, CrashPoint::BeforeSend];
                let point = points[self.rng.index(points.len())];
                self.journal.line(now_us, &format!("fault: master {master} will crash {point:?}"));
                self.masters[master].crash_at = Some(point);
            }
            2 => self.master_crash(master),
            3 => {
                let stop_us = self.rng.range(100_000, 5_000_000);
                self.masters[master].paused_until_us = now_us + stop_us;
                self.journal.line(now_us, &format!("fault: master {master} stops for {stop_us} us"));
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
                let pairs = (0..self.masters.len()).map(|master| (agent, master)).collect();
                self.net.part(&mut self.queue, now_us, &pairs, now_us + away_us);
            }
            11 => self.masters_clock_jumps(master),
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
            16 | 17 => self.files_suffer(master),
            18 | 19 => self.shims_die(agent),
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

    /// The leader as often as not, as it is the one whose failures matter most.
    pub(crate) fn some_master(&mut self) -> usize {
        match self.leader() {
            Some(leader) if self.rng.chance(50) => leader,
            _ => self.rng.index(self.masters.len()),
        }
    }

    /// Faults that only several masters have.
    fn masters_suffer(&mut self) {
        let now_us = self.now_us;
        let (count, master) = (self.masters.len(), self.some_master());
        let away_us = self.rng.range(200_000, 5_000_000);
        let until_us = now_us + away_us;
        match self.rng.below(16) {
            0 | 1 => {
                // Alone, or with a part of the agents.
                let with = self.rng.index(self.agents.len() / 2 + 1);
                let line = format!("fault: master {master} is alone with {with} agents for {away_us} us");
                self.journal.line(now_us, &line);
                for other in 0..count {
                    self.net.cut_masters(master, other, until_us);
                    self.net.cut_masters(other, master, until_us);
                }
                let apart = (with..self.agents.len()).map(|agent| (agent, master)).collect();
                self.net.part(&mut self.queue, now_us, &apart, until_us);
                let apart = (0..with).flat_map(|agent| (0..count).map(move |other| (agent, other)));
                let apart = apart.filter(|(_, other)| *other != master).collect();
                self.net.part(&mut self.queue, now_us, &apart, until_us);
            }
            2 | 3 => {
                let hears = self.rng.chance(50);
                let line = format!("fault: master {master} only hears ({hears}) or speaks for {away_us} us");
                self.journal.line(now_us, &line);
                for other in 0..count {
                    let (from, to) = if hears { (master, other) } else { (other, master) };
                    self.net.cut_masters(from, to, until_us);
                }
            }
            4 => {
                let other = self.rng.index(count);
                self.journal.line(now_us, &format!("fault: masters {master} and {other} are parted for {away_us} us"));
                self.net.cut_masters(master, other, until_us);
                self.net.cut_masters(other, master, until_us);
            }
            5 => {
                (self.net.loss, self.net.doubles) = (self.rng.below(LOSS_MAX), self.rng.below(LOSS_MAX));
                let line = format!("fault: {} of 100 messages among masters are lost", self.net.loss);
                self.journal.line(now_us, &line);
            }
            6 => {
                let Some(leader) = self.leader() else { return };
                let Some(node) = &mut self.masters[leader].node else { return };
                let Some(heir) = node.best_successor() else { return };
                let done = node.transfer_leadership(heir).is_ok();
                self.journal.line(now_us, &format!("fault: leadership is to go to node {heir}: {done}"));
                self.settle_soon(leader);
            }
            7 => {
                self.journal.line(now_us, &format!("fault: the disk of master {master} is full for {away_us} us"));
                self.masters[master].full_until_us = until_us;
            }
            8 => {
                self.journal.line(now_us, &format!("fault: the disk of master {master} is slow for {away_us} us"));
                self.masters[master].slow_until_us = until_us;
            }
            9 => self.disk_suffers(master),
            13 => {
                self.journal.line(now_us, &format!("fault: master {master} flaps"));
                for n in 0..FLAPS {
                    let (from_us, to_us) = (now_us + n * 2 * FLAP_US, now_us + (n * 2 + 1) * FLAP_US);
                    self.queue.at(from_us, Event::Flap { master, until_us: to_us });
                }
            }
            14 => {
                // A rolling upgrade, one master after the other.
                let old = |master: &&mut Master| master.understands == CLUSTER_VERSION;
                let Some(master) = self.masters.iter_mut().find(old) else { return };
                master.understands += 1;
                let slot = master.slot;
                self.journal.line(now_us, &format!("fault: master {slot} is started with a newer build"));
                self.master_crash(slot);
            }
            10 | 11 => {
                // Long enough for another one to lead when it goes on.
                let Some(leader) = self.leader() else { return };
                self.journal.line(now_us, &format!("fault: the leader, master {leader}, stops for {away_us} us"));
                self.masters[leader].paused_until_us = until_us;
            }
            _ => self.member_is_removed(master),
        }
    }

    /// A master is cut off from the others for a moment.
    pub(crate) fn master_flaps(&mut self, master: usize, until_us: u64) {
        if !self.faults_on {
            return;
        }
        for other in 0..self.masters.len() {
            self.net.cut_masters(master, other, until_us);
            self.net.cut_masters(other, master, until_us);
        }
    }

    /// A disk is lost, or damaged: only where all others are well, as nothing could be done otherwise.
    fn disk_suffers(&mut self, master: usize) {
        // Of two the other one alone is no majority.
        if !self.all_well() || self.masters.len() == 2 {
            return;
        }
        let now_us = self.now_us;
        if self.rng.chance(50) {
            self.journal.line(now_us, &format!("fault: master {master} loses its disk"));
            self.master_ends(master);
            if self.mutation == Some(Mutation::NodeReused) {
                return self.node_begins_again(master);
            }
            return self.master_loses_disk(master);
        }
        let which = self.rng.draw();
        self.master_crash(master);
        if let Some(what) = self.masters[master].disk.flip(which) {
            self.journal.line(now_us, &format!("fault: a bit of master {master} turns over in its {what}"));
            self.oracle.flipped.insert(master);
        }
    }

    fn member_is_removed(&mut self, master: usize) {
        let Some(leader) = self.leader().filter(|leader| *leader != master) else { return };
        let more = self.masters.len() > 2;
        let Some(node) = self.masters[master].number.filter(|_| more && self.all_well()) else { return };
        self.journal.line(self.now_us, &format!("fault: master {master} is removed"));
        self.change_members(leader, &MemberChange::Remove { node });
    }

    pub(crate) fn heal(&mut self) {
        let now_us = self.now_us;
        self.faults_on = false;
        self.journal.line(now_us, "everything heals");
        self.oracle.on_healed();
        self.choose_last_share();
        for master in &mut self.masters {
            master.paused_until_us = master.paused_until_us.min(now_us);
            master.full_until_us = master.full_until_us.min(now_us);
            master.slow_until_us = master.slow_until_us.min(now_us);
            master.crash_at = None;
            master.snapshot_fault = None;
            master.disk.heal();
            master.files.folder.heal();
            master.wall_offset_ms = 0;
        }
        self.net.delay_us = 2_000;
        self.net.heal();
        self.turns_twice = 0;
        for agent in 0..self.agents.len() {
            self.agents[agent].full_until_us = 0;
            self.agents[agent].wall_offset_ms = 0;
            self.agent_slow(agent, now_us);
        }
    }
}
