//! Component files of the masters: uploads, what others are asked to keep, what is copied, collected and
//! looked at for damage.
//!
//! Owns: the course of these things, as the real shell has it; what is decided is decided by the real
//! [`Shelf`] and its rules. Invariants: a master copies one file at a time; a request that names a component is
//! proposed when a majority of the voters keeps its file. Must never touch a file of a process that is away.

mod checks;

use crate::calls::Answer;
use crate::folder::SimFolder;
use crate::mutation::Mutation;
use crate::queue::Event;
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::Duration;
use tessera_master::shelf::{Folder, Intake, Outgoing, Shelf, file_name, temporary_name};
use tessera_master::upkeep::rules::{Spread, collect_every, may_collect, sources};
use tessera_master_core::{Reply, Request, RequestError};
use tessera_replica::MemberRole;
use tessera_types::Digest;
use tessera_virtual::Random;
use tessera_wire::v1;

/// What every component is said to have at most.
pub(crate) const SIZE_MAX: u64 = 100;
/// Time between two comparisons of files with state, in us.
const COMPARE_US: (u64, u64) = (200_000, 900_000);
/// How long the others are waited for before a command names a component, in us; shorter than in the shell, so
/// that it happens.
const SPREAD_US: u64 = 5_000_000;
/// Of 100 copies so many are cut, while things break.
const CUTS: u64 = 8;
/// Bytes of a piece of a file.
const PIECE_BYTES: usize = 7;

/// Something that goes on with a file.
#[derive(Clone, Debug)]
pub(crate) enum FileEvent {
    /// A master compares its files with its state.
    Compare { master: usize, life: u64 },
    /// The bytes of an upload are on a master's disk.
    Uploaded { upload: u64 },
    /// A node is asked to keep the file of an upload.
    Ensure { upload: u64, node: u64 },
    /// It says that it does.
    Kept { upload: u64, node: u64 },
    /// An upload has waited long enough for the others.
    GiveUp { upload: u64 },
    /// A master hears from the one whose file it copies.
    Copy { master: usize, life: u64 },
    /// The bytes of a copy are on its disk.
    Copied { master: usize, life: u64 },
}

/// A file that a master is to have.
#[derive(Debug)]
struct Job {
    digest: Digest,
    sources: VecDeque<u64>,
    /// Whose upload it is for.
    upload: Option<u64>,
    temporary: Option<String>,
}

/// A component that a user sends to a leader.
#[derive(Debug)]
pub(crate) struct Upload {
    master: usize,
    life: u64,
    call: u64,
    request: Request,
    digest: Digest,
    temporary: String,
    /// Who keeps it, once it is kept here.
    spread: Option<Spread>,
}

/// The files of one master, and what goes on with them.
pub(crate) struct Files {
    pub(crate) folder: SimFolder,
    /// While the process is there.
    shelf: Option<Shelf<SimFolder>>,
    grace: Duration,
    jobs: VecDeque<Job>,
    job: Option<Job>,
    collected_us: u64,
    temporaries: u64,
    /// What was last heard of members, while it leads, and when.
    pub(crate) heard: BTreeMap<u64, (u64, v1::MasterStatusReply)>,
    /// Files that requests under way name, by ticket.
    held: BTreeMap<u64, Digest>,
}

impl Files {
    pub(crate) fn new(grace_ms: u64, mutation: Option<Mutation>) -> Self {
        Self {
            folder: SimFolder::new(mutation),
            shelf: None,
            grace: Duration::from_millis(grace_ms),
            jobs: VecDeque::new(),
            job: None,
            collected_us: 0,
            temporaries: 0,
            heard: BTreeMap::new(),
            held: BTreeMap::new(),
        }
    }

    /// Another disk.
    pub(crate) fn put_folder(&mut self, mutation: Option<Mutation>) {
        self.folder = SimFolder::new(mutation);
    }

    /// The process begins.
    fn open(&mut self) -> io::Result<()> {
        self.shelf = Some(Shelf::open(self.folder.clone())?);
        Ok(())
    }

    /// The process ends.
    pub(crate) fn end(&mut self, rng: &mut Random) {
        self.folder.crash(rng);
        self.shelf = None;
        self.jobs.clear();
        self.job = None;
        self.collected_us = 0;
        self.heard.clear();
        self.held.clear();
    }

    /// A request is answered, or has nobody any more who waits for it.
    pub(crate) fn let_go(&mut self, ticket: u64) {
        if let (Some(digest), Some(shelf)) = (self.held.remove(&ticket), &self.shelf) {
            shelf.let_go(digest);
        }
    }

    /// The same for all of them.
    pub(crate) fn let_all_go(&mut self) {
        self.heard.clear();
        let tickets: Vec<u64> = self.held.keys().copied().collect();
        for ticket in tickets {
            self.let_go(ticket);
        }
    }

    fn temporary(&mut self) -> String {
        self.temporaries += 1;
        temporary_name(self.temporaries)
    }
}

/// Bytes that came are kept under the name of their digest, or are gone.
fn keep(shelf: &Shelf<SimFolder>, temporary: &str, digest: &Digest) -> io::Result<()> {
    let kept = shelf.folder().sync_file(temporary).and_then(|()| shelf.keep(temporary, digest));
    kept.or_else(|error| {
        shelf.folder().remove(temporary)?;
        Err(error)
    })
}

/// Whether bytes that come in pieces are those of a component.
fn taken(bytes: &[u8], digest: Digest) -> bool {
    let mut intake = Intake::new(SIZE_MAX);
    bytes.chunks(PIECE_BYTES).all(|piece| intake.take(piece).is_ok()) && intake.finish(Some(digest)).is_ok()
}

impl World {
    /// A master's process begins, with the files of its disk.
    pub(crate) fn files_open(&mut self, slot: usize) {
        let (now_us, life) = (self.now_us, self.masters[slot].life);
        if let Err(error) = self.shelf_time(slot).open() {
            self.journal.line(now_us, &format!("master {slot}: its files: {error}"));
            return self.master_crash(slot);
        }
        let at_us = now_us + self.rng.range(1_000, COMPARE_US.0);
        self.queue.at(at_us, Event::File(FileEvent::Compare { master: slot, life }));
    }

    /// The files of a master, which know what time it is.
    fn shelf_time(&mut self, slot: usize) -> &mut Files {
        let (now_us, master) = (self.now_us, &mut self.masters[slot]);
        // The real grace is a day: clocks that jump are none of its business.
        master.files.folder.set(now_us, master.full_until_us > now_us);
        &mut master.files
    }

    /// Do something with a master's files; nothing if its process is away, or ends while it does it.
    fn with_shelf<T>(
        &mut self,
        slot: usize,
        what: impl FnOnce(&Shelf<SimFolder>) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let files = self.shelf_time(slot);
        let done = what(files.shelf.as_ref()?);
        if files.folder.has_crashed() {
            self.journal.line(self.now_us, &format!("master {slot}: ends while it keeps a file"));
            self.master_crash(slot);
            return None;
        }
        if let Err(error) = &done {
            self.journal.line(self.now_us, &format!("master {slot}: its files: {error}"));
        }
        Some(done)
    }

    /// How long a file takes to be synced.
    fn file_synced_us(&mut self, slot: usize) -> u64 {
        let slow = self.masters[slot].slow_until_us > self.now_us;
        self.now_us + self.rng.range(100, if slow { 1_000_000 } else { 8_000 })
    }

    pub(crate) fn file_goes_on(&mut self, event: FileEvent) {
        match event {
            FileEvent::Compare { master, life } => {
                if self.is_on(master, life, &event) {
                    self.compare_files(master);
                }
            }
            FileEvent::Uploaded { upload } => {
                if let Some((master, life)) = self.uploads.get(&upload).map(|u| (u.master, u.life)) {
                    if self.is_on(master, life, &event) {
                        self.upload_is_here(upload);
                    } else if self.masters[master].life != life {
                        self.uploads.remove(&upload);
                    }
                }
            }
            FileEvent::Ensure { upload, node } => self.asked_to_keep(upload, node, &event),
            FileEvent::Kept { upload, node } => {
                if let Some((master, life)) = self.uploads.get(&upload).map(|u| (u.master, u.life))
                    && self.is_on(master, life, &event)
                {
                    if let Some(spread) = self.uploads.get_mut(&upload).and_then(|u| u.spread.as_mut()) {
                        spread.keeps(node);
                    }
                    self.name_if_spread(upload);
                }
            }
            FileEvent::GiveUp { upload } => {
                if let Some(given_up) = self.uploads.remove(&upload) {
                    self.upload_fails(&given_up, "too few masters keep the component");
                }
            }
            FileEvent::Copy { master, life } => {
                if self.is_on(master, life, &event) {
                    self.copy_comes(master);
                }
            }
            FileEvent::Copied { master, life } => {
                if self.is_on(master, life, &event) {
                    self.copy_is_here(master);
                }
            }
        }
    }

    /// Whether this life of a master goes on; while it is stopped, the event waits.
    fn is_on(&mut self, slot: usize, life: u64, event: &FileEvent) -> bool {
        let master = &self.masters[slot];
        if master.life != life || master.node.is_none() {
            return false;
        }
        if self.now_us < master.paused_until_us {
            self.queue.at(master.paused_until_us, Event::File(event.clone()));
            return false;
        }
        true
    }

    // Uploads.

    /// A leader takes the bytes of a component, which the call brings.
    pub(crate) fn upload_begins(&mut self, slot: usize, call: u64, digest: Digest, request: Request) {
        let life = self.masters[slot].life;
        let bytes = self.user.bytes_of(&digest);
        let temporary = self.masters[slot].files.temporary();
        let Some(written) = self.with_shelf(slot, |shelf| shelf.folder().write(&temporary, bytes)) else { return };
        let upload = Upload { master: slot, life, call, request, digest, temporary, spread: None };
        if written.is_err() {
            return self.upload_fails(&upload, "the disk does not take the component");
        }
        let id = self.fresh();
        self.uploads.insert(id, upload);
        let at_us = self.file_synced_us(slot);
        self.queue.at(at_us, Event::File(FileEvent::Uploaded { upload: id }));
    }

    fn upload_fails(&mut self, upload: &Upload, why: &str) {
        let master = &self.masters[upload.master];
        if master.life != upload.life || master.node.is_none() {
            return;
        }
        let files = &master.files;
        if let Some(shelf) = files.shelf.as_ref().filter(|_| upload.spread.is_some()) {
            shelf.let_go(upload.digest);
        }
        self.journal.line(self.now_us, &format!("master {}: {why}: {}", upload.master, upload.digest));
        self.answer(upload.call, Answer::Reply(Err(RequestError::Unavailable(why.to_owned()))));
    }

    /// All bytes came: they are kept, and the others are asked to keep them.
    fn upload_is_here(&mut self, id: u64) {
        let Some(mut upload) = self.uploads.remove(&id) else { return };
        let (slot, digest) = (upload.master, upload.digest);
        let temporary = upload.temporary.clone();
        let known = self.masters[slot].node.as_ref().and_then(|node| node.core().component(&digest));
        let is_known = known.is_some();
        let kept = self.with_shelf(slot, |shelf| {
            if !is_known {
                shelf.hold(digest);
            }
            let kept = keep(shelf, &temporary, &digest);
            if kept.is_err() && !is_known {
                shelf.let_go(digest);
            }
            kept
        });
        match (kept, known) {
            (None, _) => {}
            (Some(Err(_)), _) => self.upload_fails(&upload, "the disk does not keep the component"),
            (Some(Ok(())), Some(view)) => {
                self.answer(upload.call, Answer::Reply(Ok(Reply::Component { view, created: false })));
            }
            (Some(Ok(())), None) => {
                let Some(node) = &self.masters[slot].node else { return };
                let members = node.membership().members.clone();
                let me = node.identity().node;
                let voters = members.iter().filter(|member| member.role == MemberRole::Voter);
                upload.spread = Some(Spread::new(me, voters.map(|member| member.node)));
                self.uploads.insert(id, upload);
                for node in members.iter().map(|member| member.node).filter(|node| *node != me) {
                    let at_us = self.net.soon(self.now_us);
                    self.queue.at(at_us, Event::File(FileEvent::Ensure { upload: id, node }));
                }
                self.queue.at(self.now_us + SPREAD_US, Event::File(FileEvent::GiveUp { upload: id }));
                self.name_if_spread(id);
            }
        }
    }

    /// A command names the component when enough keep its file.
    fn name_if_spread(&mut self, id: u64) {
        let early = self.mutation == Some(Mutation::FileNamedEarly);
        let enough = |upload: &Upload| upload.spread.as_ref().is_some_and(|spread| early || spread.is_enough());
        if !self.uploads.get(&id).is_some_and(enough) {
            return;
        }
        let Some(upload) = self.uploads.remove(&id) else { return };
        let slot = upload.master;
        if !self.masters[slot].leads() {
            return self.upload_fails(&upload, "it does not lead any more");
        }
        let ticket = self.request_once(slot, upload.call, upload.request);
        self.masters[slot].files.held.insert(ticket, upload.digest);
        self.settle_soon(slot);
    }

    /// A master is asked by the leader to keep a file.
    fn asked_to_keep(&mut self, id: u64, node: u64, event: &FileEvent) {
        let Some(upload) = self.uploads.get(&id) else { return };
        let (from, digest) = (upload.master, upload.digest);
        let Some(slot) = self.slot_of(node) else { return };
        let life = self.masters[slot].life;
        let (Some(source), true) = (self.masters[from].number, self.net.hears(self.now_us, from, slot)) else {
            return;
        };
        if self.is_on(slot, life, event) {
            let job = Job { digest, sources: VecDeque::from([source]), upload: Some(id), temporary: None };
            self.masters[slot].files.jobs.push_back(job);
            self.next_job(slot);
        }
    }

    // Copies.

    /// The next file that a master is to have.
    fn next_job(&mut self, slot: usize) {
        while self.masters[slot].files.job.is_none() {
            let Some(job) = self.masters[slot].files.jobs.pop_front() else { return };
            let digest = job.digest;
            self.masters[slot].files.job = Some(job);
            let Some(claimed) = self.with_shelf(slot, |shelf| {
                shelf.hold(digest);
                shelf.claim(&digest)
            }) else {
                return;
            };
            match claimed {
                Ok(true) => self.job_ends(slot, true),
                Ok(false) | Err(_) => self.next_source(slot),
            }
        }
    }

    /// Another master is asked for the file.
    fn next_source(&mut self, slot: usize) {
        let life = self.masters[slot].life;
        let left = self.masters[slot].files.job.as_ref().is_some_and(|job| !job.sources.is_empty());
        if !left {
            return self.job_ends(slot, false);
        }
        let at_us = self.net.soon(self.now_us);
        self.queue.at(at_us, Event::File(FileEvent::Copy { master: slot, life }));
    }

    fn job_ends(&mut self, slot: usize, kept: bool) {
        let Some(job) = self.masters[slot].files.job.take() else { return };
        if let Some(shelf) = &self.masters[slot].files.shelf {
            shelf.let_go(job.digest);
        }
        let to = job.upload.and_then(|id| Some((id, self.uploads.get(&id)?.master)));
        if let (true, Some((upload, to)), Some(node)) = (kept, to, self.masters[slot].number)
            && self.net.hears(self.now_us, slot, to)
        {
            let at_us = self.net.soon(self.now_us);
            self.queue.at(at_us, Event::File(FileEvent::Kept { upload, node }));
        }
    }

    /// The bytes of a file come from another master, or not.
    fn copy_comes(&mut self, slot: usize) {
        let Some(job) = &mut self.masters[slot].files.job else { return };
        let (digest, source) = (job.digest, job.sources.pop_front());
        let source = source.and_then(|source| self.slot_of(source)).filter(|source| {
            let both = self.net.hears(self.now_us, *source, slot) && self.net.hears(self.now_us, slot, *source);
            both && self.masters[*source].runs(self.now_us)
        });
        let bytes = source.and_then(|source| self.bytes_from(source, &digest));
        let Some(bytes) = bytes.filter(|bytes| self.takes(bytes, digest, &format!("master {slot}"))) else {
            self.next_source(slot);
            return self.next_job(slot);
        };
        let temporary = self.masters[slot].files.temporary();
        let Some(written) = self.with_shelf(slot, |shelf| shelf.folder().write(&temporary, bytes)) else { return };
        if written.is_err() {
            self.next_source(slot);
            return self.next_job(slot);
        }
        if let Some(job) = &mut self.masters[slot].files.job {
            job.temporary = Some(temporary);
        }
        let life = self.masters[slot].life;
        let at_us = self.file_synced_us(slot);
        self.queue.at(at_us, Event::File(FileEvent::Copied { master: slot, life }));
    }

    fn copy_is_here(&mut self, slot: usize) {
        let Some(job) = &mut self.masters[slot].files.job else { return };
        let (digest, temporary) = (job.digest, job.temporary.take().unwrap_or_default());
        match self.with_shelf(slot, |shelf| keep(shelf, &temporary, &digest)) {
            None => return,
            Some(Ok(())) => {
                self.journal.line(self.now_us, &format!("master {slot}: copied {digest}"));
                self.job_ends(slot, true);
            }
            Some(Err(_)) => self.next_source(slot),
        }
        self.next_job(slot);
    }

    /// What a master gives of a file to another process; a part of it when it is cut.
    pub(crate) fn bytes_from(&mut self, slot: usize, digest: &Digest) -> Option<Vec<u8>> {
        let (digest, unchecked) = (*digest, self.mutation == Some(Mutation::FileServedUnchecked));
        let heedless = self.mutation == Some(Mutation::FileDamageIgnored);
        let mut bytes = Vec::new();
        if !self.masters[slot].runs(self.now_us) {
            return None;
        }
        let served = self.with_shelf(slot, |shelf| {
            let whole = shelf.folder().read(&file_name(&digest))?;
            if unchecked {
                bytes = whole;
                return Ok(());
            }
            let mut outgoing = Outgoing::new(digest);
            for piece in whole.chunks(PIECE_BYTES) {
                bytes.extend(outgoing.piece(piece.to_vec()).unwrap_or_default());
            }
            match outgoing.finish() {
                Ok(last) => bytes.extend(last.unwrap_or_default()),
                Err(damaged) => {
                    if !heedless {
                        shelf.doubt(&digest)?;
                    }
                    return Err(io::Error::new(io::ErrorKind::InvalidData, damaged));
                }
            }
            Ok(())
        });
        served?.ok()?;
        if self.faults_on && self.rng.chance(CUTS) {
            bytes.truncate(self.rng.index(bytes.len()));
        }
        Some(bytes)
    }

    /// Whether a receiver takes bytes for those of a component.
    pub(crate) fn takes(&mut self, bytes: &[u8], digest: Digest, who: &str) -> bool {
        let unchecked = self.mutation == Some(Mutation::FileServedUnchecked);
        if !unchecked && !taken(bytes, digest) {
            return false;
        }
        if Digest::of(bytes) != digest {
            self.oracle.violate(format!("{who} is given other bytes for component {digest}"));
        }
        true
    }

    // Comparing.

    /// Files that the state of a master names and it has not got.
    fn missing(&self, slot: usize) -> Vec<Digest> {
        let master = &self.masters[slot];
        let (Some(node), Some(shelf)) = (&master.node, &master.files.shelf) else { return Vec::new() };
        let known = node.core().components().into_iter().map(|view| view.digest);
        known.filter(|digest| !shelf.has(digest)).collect()
    }

    /// How many files a master says that it misses.
    pub(crate) fn says_missing(&self, slot: usize) -> u64 {
        let honest = self.mutation != Some(Mutation::LearnerWithoutFiles);
        if honest { self.missing(slot).len() as u64 } else { 0 }
    }

    fn compare_files(&mut self, slot: usize) {
        let (now_us, life) = (self.now_us, self.masters[slot].life);
        let at_us = now_us + self.rng.range(COMPARE_US.0, COMPARE_US.1);
        self.queue.at(at_us, Event::File(FileEvent::Compare { master: slot, life }));
        let Some(node) = &self.masters[slot].node else { return };
        let (me, leader) = (node.identity().node, node.leader());
        let members: Vec<u64> = node.membership().members.iter().map(|member| member.node).collect();
        let from = sources(me, leader, members);
        let files = &self.masters[slot].files;
        let asked: BTreeSet<Digest> = files.jobs.iter().chain(&files.job).map(|job| job.digest).collect();
        for digest in self.missing(slot).into_iter().filter(|digest| !asked.contains(digest)) {
            let job = Job { digest, sources: from.iter().copied().collect(), upload: None, temporary: None };
            self.masters[slot].files.jobs.push_back(job);
        }
        self.next_job(slot);
        let files = &self.masters[slot].files;
        let every_us = u64::try_from(collect_every(files.grace).as_micros()).unwrap_or(u64::MAX);
        if files.shelf.is_some() && now_us >= files.collected_us + every_us {
            self.masters[slot].files.collected_us = now_us;
            self.collect_files(slot);
        }
    }

    /// What the leader of a master has applied, if it can be asked.
    fn leader_applied(&self, slot: usize) -> Option<u64> {
        let other = match self.masters[slot].leads() {
            // It asks the others whether it still does.
            true => (self.leader() == Some(slot)).then_some(slot)?,
            false => self.leader_known_to(slot)?,
        };
        let reached = self.net.hears(self.now_us, slot, other) && self.net.hears(self.now_us, other, slot);
        let node = self.masters[other].node.as_ref();
        let node = node.filter(|_| reached && self.masters[other].runs(self.now_us))?;
        Some(node.status().applied.index)
    }

    fn collect_files(&mut self, slot: usize) {
        let early = self.mutation == Some(Mutation::FileCollectedEarly);
        let leader_applied = self.leader_applied(slot);
        let Some(node) = &self.masters[slot].node else { return };
        let mut known: BTreeSet<Digest> = node.core().components().into_iter().map(|view| view.digest).collect();
        let named = known.clone();
        let current = early || may_collect(leader_applied, node.status().applied.index);
        if self.mutation == Some(Mutation::FileCollectedInUse) {
            known.pop_first();
        }
        let (now, grace) = (self.shelf_time(slot).folder.now(), self.masters[slot].files.grace);
        let Some(removed) = self.with_shelf(slot, |shelf| shelf.collect(&known, current, now, grace)) else { return };
        for digest in removed.unwrap_or_default() {
            self.journal.line(self.now_us, &format!("master {slot}: removes the file of {digest}"));
            if named.contains(&digest) {
                self.oracle.violate(format!("master {slot} removes the file of {digest}, which its state names"));
            }
        }
        if self.mutation != Some(Mutation::FileDamageIgnored)
            && let Some(Ok(damaged)) = self.with_shelf(slot, Shelf::scrub)
        {
            for digest in damaged {
                self.journal.line(self.now_us, &format!("master {slot}: the file of {digest} is damaged"));
            }
        }
    }
}
