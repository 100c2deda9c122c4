//! The turn: what a scheduler can ask of the cluster while it handles events.
//!
//! Every function only enqueues. All of it, and everything written to the state, commits together
//! when the scheduler returns, or not at all; what became of it arrives as events of later turns.

use std::cell::Cell;
use std::collections::BTreeSet;

use crate::Error;
use crate::bindings::exports::tessera::framework::scheduler::TurnInfo;
use crate::bindings::tessera::framework::driver::{Filters, Operation};
use crate::bindings::tessera::framework::types::Launch;
use crate::host::{driver, timers};
use crate::request::Request;
use crate::resources::{Needs, Offer, Room};
use crate::task::{Pending, TaskSpec};

/// Customary time for which declined resources are not offered again, in ms.
pub const REFUSE_MS: u64 = 5_000;
/// Most tasks launched by one [`Turn::place`]: a launch usually comes with one or two state keys,
/// of which a turn may write 1,000.
pub const MAX_LAUNCHES_PER_PLACE: usize = 200;
/// Tasks that need different things, and find no room, before one [`Turn::place`] gives up, so that a long
/// queue of tasks that are too large costs little.
pub const MAX_MISSES_PER_PLACE: usize = 64;
/// Tasks that one [`Turn::place`] passes over, because another one that needs the same found no room, before it
/// gives up.
const MAX_PASSED_PER_PLACE: usize = 2_000;
/// Bytes of new specs per turn, as the contract says.
const MAX_SPEC_BYTES: usize = 1 << 20;
/// Bytes of one spec, as the contract says.
const MAX_ONE_SPEC_BYTES: usize = 512 * 1024;
/// New specs per turn, as the contract says.
const MAX_SPECS: usize = 256;

thread_local! {
    /// Turns that were begun here: the number of a turn is given again when it is not committed.
    static BEGUN: Cell<u64> = const { Cell::new(0) };
}

/// The turn in which events are handled.
#[derive(Debug)]
pub struct Turn {
    info: TurnInfo,
    /// Tells it from every other turn of this instance.
    key: u64,
    spec_bytes: usize,
    specs: usize,
}

/// Executors that tasks of this turn bring to an offer: each is charged once, with its first task.
/// Whether one runs there already is not known here, so that room is always left for it.
#[derive(Default)]
struct Seats(BTreeSet<(usize, String)>);

impl Seats {
    /// The first offer with room for a task and, if it is the executor's first one there, its executor.
    fn take_first_fit(&self, free: &mut [Room], spec: &TaskSpec) -> Option<usize> {
        free.iter_mut().enumerate().find_map(|(index, left)| {
            let mut rest = left.without(spec)?;
            let comes = spec.executor_charge().filter(|(name, _)| !self.0.contains(&(index, (*name).to_owned())));
            if let Some((_, own)) = comes {
                rest = rest.without_executor(&own)?;
            }
            *left = rest;
            Some(index)
        })
    }

    fn keep(&mut self, slot: Option<usize>, spec: &TaskSpec) {
        if let (Some(index), Some((executor, _))) = (slot, spec.executor_charge()) {
            self.0.insert((index, executor.to_owned()));
        }
    }
}

/// What [`Turn::place`] did.
#[derive(Debug, Default)]
pub struct Placed {
    /// Ids of the tasks that were launched.
    pub launched: Vec<String>,
    /// Ids of tasks whose spec the host refuses, with the rule that it breaks. They will never be
    /// launched.
    pub refused: Vec<(String, Error)>,
}

/// How far a placing came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// All tasks were tried.
    All,
    /// So many were launched that the rest is for another turn.
    Most,
    /// So many found no room that it was given up.
    Misses,
}

/// What placing is bounded by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Launches.
    pub(crate) most: usize,
    /// For how long offers are declined when all tasks were tried.
    pub(crate) refuse_ms: u64,
    /// The same when it was given up.
    pub(crate) refuse_missed_ms: u64,
}

impl Turn {
    pub(crate) fn new(info: TurnInfo) -> Self {
        BEGUN.set(BEGUN.get().wrapping_add(1));
        Self {
            info,
            key: BEGUN.get(),
            spec_bytes: 0,
            specs: 0,
        }
    }

    /// Specs that were sent to the host.
    #[cfg(test)]
    pub(crate) fn defined(&self) -> usize {
        self.specs
    }

    /// Counts the committed turns of the framework over all epochs.
    pub fn number(&self) -> u64 {
        self.info.number
    }

    /// Counts the placements of the framework.
    pub fn epoch(&self) -> u64 {
        self.info.epoch
    }

    /// Time of the turn, in ms since the Unix epoch.
    pub fn time_ms(&self) -> u64 {
        self.info.time_ms
    }

    /// Launch waiting tasks on offers, first fit in the order given, and decline what is not used
    /// for `refuse_ms`.
    ///
    /// `pending` is only advanced as far as there may be room, so it can build specs lazily. Tasks
    /// that are neither launched nor refused keep waiting. When a limit of the turn ends the work
    /// early, the offers left over are given back without a filter and come again at once.
    pub fn place(
        &mut self,
        offers: Vec<Offer>,
        pending: impl IntoIterator<Item = Pending>,
        refuse_ms: u64,
    ) -> Result<Placed, Error> {
        let bounds = Bounds { most: MAX_LAUNCHES_PER_PLACE, refuse_ms, refuse_missed_ms: refuse_ms };
        Ok(self.place_some(offers, pending, bounds)?.0)
    }

    /// The same within bounds, and how far it came.
    pub(crate) fn place_some(
        &mut self,
        offers: Vec<Offer>,
        pending: impl IntoIterator<Item = Pending>,
        bounds: Bounds,
    ) -> Result<(Placed, Reached), Error> {
        let mut free: Vec<Room> = offers.iter().map(Room::of).collect();
        let mut operations: Vec<Vec<Operation>> = offers.iter().map(|_| Vec::new()).collect();
        let mut placed = Placed::default();
        let mut seats = Seats::default();
        // What found no room finds none later: what is free only gets less.
        let mut missed: Vec<Needs> = Vec::new();
        let (mut misses, mut passed) = (0, 0);
        let mut reached = Reached::All;
        for task in pending {
            if placed.launched.len() >= bounds.most || !self.has_room_for(&task.spec) {
                reached = Reached::Most;
                break;
            }
            if missed.iter().any(|needs| needs.are_of(&task.spec)) {
                passed += 1;
                if passed >= MAX_PASSED_PER_PLACE {
                    reached = Reached::Misses;
                    break;
                }
                continue;
            }
            let mut rest = free.clone();
            let slot = seats.take_first_fit(&mut rest, &task.spec);
            let Some(list) = slot.and_then(|index| operations.get_mut(index)) else {
                misses += 1;
                if misses >= MAX_MISSES_PER_PLACE || free.is_empty() {
                    reached = Reached::Misses;
                    break;
                }
                missed.extend(Needs::of(&task.spec));
                continue;
            };
            match self.define(&task.spec) {
                Ok(spec) => {
                    list.push(Operation::Launch(Launch {
                        task: task.task.clone(),
                        spec,
                        args: task.args,
                        env: task.env,
                    }));
                    placed.launched.push(task.task);
                    free = rest;
                    seats.keep(slot, &task.spec);
                }
                Err(Error::Limit(_)) if self.specs > 0 => {
                    reached = Reached::Most;
                    break;
                }
                // The instance has defined all the specs that it may: a rebuilt one can go on.
                Err(error @ Error::Limit(_)) if task.spec.size_bytes() <= MAX_ONE_SPEC_BYTES => {
                    return Err(error);
                }
                Err(error) => placed.refused.push((task.task, error)),
            }
        }
        let refuse_ms = match reached {
            Reached::All => bounds.refuse_ms,
            Reached::Most => 0,
            Reached::Misses => bounds.refuse_missed_ms,
        };
        self.answer(&offers, operations, refuse_ms)?;
        Ok((placed, reached))
    }

    /// Accept the offers that have operations, and decline the others.
    fn answer(
        &mut self,
        offers: &[Offer],
        operations: Vec<Vec<Operation>>,
        refuse_ms: u64,
    ) -> Result<(), Error> {
        let filters = Filters { refuse_ms };
        let mut unused = Vec::new();
        for (offer, operations) in offers.iter().zip(operations) {
            if operations.is_empty() {
                unused.push(offer.id);
            } else {
                driver::accept(&[offer.id], &operations, filters, None)?;
            }
        }
        if !unused.is_empty() {
            driver::decline(&unused, filters)?;
        }
        Ok(())
    }

    fn has_room_for(&self, spec: &TaskSpec) -> bool {
        // A spec that is too large for any turn goes to the host, which says so.
        self.specs == 0
            || spec.digest(self.key).is_some()
            || (self.specs < MAX_SPECS
                && self.spec_bytes.saturating_add(spec.size_bytes()) <= MAX_SPEC_BYTES)
    }

    fn define(&mut self, spec: &TaskSpec) -> Result<String, Error> {
        if let Some(digest) = spec.digest(self.key) {
            return Ok(digest);
        }
        let digest = spec.define(self.key)?;
        self.specs = self.specs.saturating_add(1);
        self.spec_bytes = self.spec_bytes.saturating_add(spec.size_bytes());
        Ok(digest)
    }

    /// Launch tasks together on offers of one agent: all or none, and when one of them ends in any
    /// other way than by finishing, the others are killed. What is left over is declined for
    /// `refuse_ms`.
    pub fn launch_group(
        &mut self,
        offers: &[Offer],
        tasks: impl IntoIterator<Item = Pending>,
        refuse_ms: u64,
    ) -> Result<(), Error> {
        let launches = tasks.into_iter().map(|task| {
            Ok(Launch {
                spec: self.define(&task.spec)?,
                task: task.task,
                args: task.args,
                env: task.env,
            })
        });
        let launches = launches.collect::<Result<Vec<_>, Error>>()?;
        let ids: Vec<u64> = offers.iter().map(|offer| offer.id).collect();
        let group = [Operation::LaunchGroup(launches)];
        Ok(driver::accept(&ids, &group, Filters { refuse_ms }, None)?)
    }

    /// A gang: everything that is launched inside is launched, on all of its agents, or nothing is.
    /// Gangs do not nest.
    pub fn gang<T>(
        &mut self,
        inside: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        driver::begin_group()?;
        let done = inside(self);
        driver::end_group()?;
        done
    }

    /// Send bytes to an executor, at most 64 KiB; they arrive at most once.
    pub fn send(&mut self, agent: u64, executor: &str, data: &[u8]) -> Result<(), Error> {
        Ok(driver::send(agent, executor, data)?)
    }

    /// End an executor; all of its tasks are killed.
    pub fn shutdown_executor(&mut self, agent: u64, executor: &str) -> Result<(), Error> {
        Ok(driver::shutdown_executor(agent, executor)?)
    }

    /// Launch one task on an offer; what it leaves over is declined for `refuse_ms`.
    pub fn launch(&mut self, offer: &Offer, task: Pending, refuse_ms: u64) -> Result<(), Error> {
        let spec = self.define(&task.spec)?;
        let launch = Operation::Launch(Launch {
            task: task.task,
            spec,
            args: task.args,
            env: task.env,
        });
        driver::accept(&[offer.id], &[launch], Filters { refuse_ms }, None)?;
        Ok(())
    }

    /// Give offers back; they are not made again for `refuse_ms` unless more becomes free there.
    pub fn decline(&mut self, offers: &[Offer], refuse_ms: u64) -> Result<(), Error> {
        let ids: Vec<u64> = offers.iter().map(|offer| offer.id).collect();
        Ok(driver::decline(&ids, Filters { refuse_ms })?)
    }

    /// Forget all decline filters and, if suppressed, receive offers again.
    pub fn revive(&mut self) -> Result<(), Error> {
        Ok(driver::revive()?)
    }

    /// Receive no offers until [`revive`](Self::revive). Survives restarts.
    pub fn suppress(&mut self) -> Result<(), Error> {
        Ok(driver::suppress()?)
    }

    /// Say what is waited for, instead of what was said before; survives restarts. Only what these requests need is
    /// offered then, and only of agents that will do; without any, whole agents are offered. Say it again when it changes:
    /// requests are not counted down by launches.
    pub fn request(&mut self, requests: impl IntoIterator<Item = Request>) -> Result<(), Error> {
        let requests: Vec<_> = requests.into_iter().map(Request::into_contract).collect();
        Ok(driver::request(&requests)?)
    }

    /// End a task, with this time between TERM and KILL or the spec's. Answered by updates.
    pub fn kill(&mut self, task: &str, grace_ms: Option<u32>) -> Result<(), Error> {
        Ok(driver::kill(task, grace_ms)?)
    }

    /// Ask for the state of tasks, or of all of them with an empty list. Answered by updates.
    pub fn reconcile(&mut self, tasks: &[String]) -> Result<(), Error> {
        Ok(driver::reconcile(tasks)?)
    }

    /// Be called again at once after this turn commits, with [`Event::Again`](crate::Event::Again).
    pub fn call_again(&mut self) {
        driver::call_again();
    }

    /// Fire [`Event::Timer`](crate::Event::Timer) after this time (at least 10 ms). Setting an id
    /// again replaces the timer. Timers are durable.
    pub fn set_timer(&mut self, id: &str, after_ms: u64) -> Result<(), Error> {
        Ok(timers::set(id, after_ms)?)
    }

    /// Forget a timer; no error if there is none.
    pub fn cancel_timer(&mut self, id: &str) -> Result<(), Error> {
        Ok(timers::cancel(id)?)
    }
}
