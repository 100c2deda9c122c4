//! Component files: what must hold of them, and what happens to them.
//!
//! Invariant: who lost a file to a fault that nobody can prevent counts as if it had it until it has it again. Must never
//! mend anything.

use crate::folder::Failing;
use crate::world::World;
use std::collections::BTreeSet;
use tessera_master::shelf::{Folder, file_name};
use tessera_replica::MemberRole;
use tessera_types::Digest;

/// Steps of a folder before the one that fails.
const STEPS_MAX: u64 = 4;
/// After so long a learner has heard of a component, in us.
const NAMED_LONG_US: u64 = 8_000_000;

impl World {
    /// Every majority of the voters has one that keeps the file of every component that is named; who lost a
    /// file to a fault that nobody can prevent counts as if it had it until it has it again.
    pub(crate) fn check_files(&mut self, slot: usize) {
        let Some(node) = &self.masters[slot].node else { return };
        let members = &node.membership().members;
        let voters = members.iter().filter(|member| member.role == MemberRole::Voter);
        // Looking at all files is much work, and between changes nothing is to be found.
        let versions: u64 = self.masters.iter().map(|master| master.files.folder.version()).sum();
        let looked = (node.core().counts().components, versions, members.len() * 100 + voters.clone().count());
        if std::mem::replace(&mut self.files_looked, looked) == looked {
            return;
        }
        let voters: Vec<u64> = voters.map(|member| member.node).collect();
        self.check_new_voters(slot);
        let Some(node) = &self.masters[slot].node else { return };
        let slots: Vec<usize> = voters.iter().filter_map(|node| self.slot_of(*node)).collect();
        let named: Vec<Digest> = node.core().components().into_iter().map(|view| view.digest).collect();
        let keeps = |slot: &usize, digest: &Digest| self.masters[*slot].files.folder.keeps(digest);
        self.damaged.retain(|(slot, digest)| !keeps(slot, digest));
        self.named_since.retain(|digest, _| named.contains(digest));
        for digest in named {
            self.named_since.entry(digest).or_insert(self.now_us);
            let since = self.named_since.get(&digest).copied().unwrap_or(self.now_us);
            // What is named in the moment in which a learner becomes a voter is yet to be copied to it.
            let new = |slot: usize| {
                let at_us = self.masters[slot].number.and_then(|node| self.new_voters.get(&node));
                at_us.is_some_and(|at_us| at_us.abs_diff(since) < NAMED_LONG_US)
            };
            let lacks = |slot: &&usize| {
                !keeps(slot, &digest) && !self.damaged.contains(&(**slot, digest)) && !new(**slot)
            };
            let without: Vec<usize> = slots.iter().filter(lacks).copied().collect();
            if without.len() > voters.len() / 2 {
                let text = format!("component {digest} is named, and masters {without:?} have no file of it");
                return self.oracle.violate(text);
            }
        }
    }

    /// A learner that became a voter has the files of all that was named for long.
    fn check_new_voters(&mut self, slot: usize) {
        let Some(node) = &self.masters[slot].node else { return };
        let members = &node.membership().members;
        let (voters, learners): (Vec<_>, Vec<_>) = members.iter().partition(|m| m.role == MemberRole::Voter);
        let learned = std::mem::replace(&mut self.learners, learners.into_iter().map(|m| m.node).collect());
        let new: Vec<u64> = voters.into_iter().map(|m| m.node).filter(|node| learned.contains(node)).collect();
        for number in new {
            self.new_voters.insert(number, self.now_us);
            let Some(slot) = self.slot_of(number) else { continue };
            let master = &self.masters[slot];
            let since = |digest: &Digest| self.named_since.get(digest).copied().unwrap_or(self.now_us);
            let old = |digest: &&Digest| since(digest) + NAMED_LONG_US < self.now_us;
            let named = master.node.as_ref().map(|node| node.core().components()).unwrap_or_default();
            let named: Vec<Digest> = named.into_iter().map(|view| view.digest).collect();
            let lacks = |digest: &&Digest| {
                !master.files.folder.keeps(digest) && !self.damaged.contains(&(slot, **digest))
            };
            if let Some(digest) = named.iter().filter(old).find(lacks) {
                let text = format!("master {slot} votes as node {number}, and has no file of {digest}");
                return self.oracle.violate(text);
            }
        }
    }

    /// Whether every master has every file that is named, whole.
    pub(crate) fn files_even(&self) -> bool {
        self.files_disagree(false).is_none()
    }

    /// What is wrong with the files of some master. In the end nobody keeps what nobody names.
    pub(crate) fn files_disagree(&self, over: bool) -> Option<String> {
        let named: BTreeSet<Digest> =
            self.leading()?.core().components().into_iter().map(|view| view.digest).collect();
        self.masters.iter().find_map(|master| {
            let (slot, folder) = (master.slot, &master.files.folder);
            if let Some(digest) = named.iter().find(|digest| !folder.keeps(digest)) {
                return Some(format!("master {slot} has no file of component {digest}"));
            }
            let wanted: BTreeSet<String> = named.iter().map(file_name).collect();
            let names = folder.names().unwrap_or_default();
            let more = names.into_iter().find(|name| over && !wanted.contains(name));
            more.map(|name| format!("master {slot} keeps {name}, which nothing names"))
        })
    }

    // Faults.

    /// Something happens to the component files of a master.
    pub(crate) fn files_suffer(&mut self, slot: usize) {
        let now_us = self.now_us;
        match self.rng.below(4) {
            0 | 1 => {
                let how = if self.rng.chance(60) { Failing::Crash } else { Failing::Error };
                let steps = self.rng.below(STEPS_MAX);
                self.journal.line(now_us, &format!("fault: files of master {slot}: {how:?} after {steps} steps"));
                self.masters[slot].files.folder.fail_after(steps, how);
            }
            _ => {
                if !self.all_well() {
                    return;
                }
                let named = self.leading().map(|node| node.core().components()).unwrap_or_default();
                if named.is_empty() {
                    return;
                }
                let digest = named[self.rng.index(named.len())].digest;
                let which = self.rng.draw();
                if self.masters[slot].files.folder.flip(&digest, which) {
                    self.journal.line(now_us, &format!("fault: a bit of {digest} turns over at master {slot}"));
                    self.damaged.insert((slot, digest));
                    if self.masters.len() == 1 {
                        // There is no other copy: whoever has it sends it again.
                        self.user.sends_again(digest);
                    }
                }
            }
        }
    }
}
