//! Requests without a key of their user: the master that passes one on gives it a number, and repeats it under that.
//!
//! Invariants: a request has its number or its key over all its attempts; only the process that gave the number repeats
//! it, and when that ends, nobody knows what became of the request. Must never decide what is asked.

use crate::calls::{Answer, Ask};
use crate::mutation::Mutation;
use crate::world::World;
use tessera_master_core::{Known, Numbers, Once, Request, RequestError};
use tessera_types::Digest;

/// Of 100 writes of state and changes of configurations so many have no key.
const WITHOUT_KEY: u64 = 50;

/// A number that a master gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    slot: usize,
    life: u64,
}

/// Who is to repeat a request.
pub(crate) enum Way {
    /// Any master: it has a key.
    Any,
    /// The master at this slot, which gave its number.
    Home(usize),
    /// Nobody: that process has ended.
    Nowhere,
}

/// The session of a process: no two have the same.
pub(crate) fn numbers(slot: usize, life: u64) -> Numbers {
    let slot = u64::try_from(slot).unwrap_or(u64::MAX);
    Numbers::new(((slot + 1) << 32) | life)
}

impl World {
    /// Whether a request that is made now has no key.
    pub(crate) fn is_without_key(&mut self, ask: &Ask) -> bool {
        // Others are steps of the user's, who waits for their answer.
        let often = matches!(ask, Ask::Change(Request::WriteState { .. } | Request::SetConfig { .. }));
        often && self.rng.chance(WITHOUT_KEY)
    }

    /// A master is about to pass a request on that has no key.
    pub(crate) fn give_number(&mut self, slot: usize, id: u64) {
        let wants = |call: &&mut crate::calls::Call| call.without_key && call.known.is_none();
        let master = &mut self.masters[slot];
        let Some(call) = self.calls.get_mut(id).filter(wants) else { return };
        let Some(numbered) = master.numbers.give() else {
            // It has a key then; the next one may find the session open.
            call.without_key = false;
            return self.open_session(slot);
        };
        call.known = Some(Known::Number(numbered));
        call.home = Some(Home { slot, life: master.life });
        if self.mutation == Some(Mutation::AnsweredTooSoon) {
            master.numbers.answered(numbered.number);
        }
    }

    /// How the leader knows a request again: what comes to it without a number has a key from then on.
    pub(crate) fn known(&mut self, id: u64, fingerprint: Digest) -> Known {
        let Some(call) = self.calls.get_mut(id) else {
            return Known::Key(Once { key: String::new(), fingerprint });
        };
        if let Some(known) = &call.known {
            return known.clone();
        }
        call.without_key = false;
        Known::Key(Once { key: call.key.clone(), fingerprint })
    }

    fn open_session(&mut self, slot: usize) {
        let (session, node) = (self.masters[slot].numbers.session(), self.masters[slot].number);
        let own = |request: &Request| matches!(request, Request::OpenSession { session: asked, .. } if *asked == session);
        let Some(node) = node.filter(|_| !self.calls.asks(own)) else { return };
        let forgets = self.mutation == Some(Mutation::SessionsForgotten);
        let members = self.masters.iter().filter(|master| !forgets || master.slot == slot);
        let members = members.filter_map(|master| master.number).collect();
        self.ask(Ask::Change(Request::OpenSession { node, session, members }), None);
    }

    /// The cluster knows a session.
    pub(crate) fn session_opened(&mut self, session: u64) {
        for master in self.masters.iter_mut().filter(|master| master.numbers.session() == session) {
            master.numbers.opened();
        }
    }

    /// Who is to repeat a request. One that nobody repeats is given up.
    pub(crate) fn way_of(&mut self, id: u64) -> Way {
        let Some(call) = self.calls.get_mut(id) else { return Way::Nowhere };
        let Some(home) = call.home else { return Way::Any };
        let master = &mut self.masters[home.slot];
        if master.life != home.life || master.node.is_none() {
            call.answer = Some(Answer::NoLeader);
            return Way::Nowhere;
        }
        if self.mutation == Some(Mutation::NumberedAnew) {
            call.known = master.numbers.give().map(Known::Number).or(call.known.take());
        }
        Way::Home(home.slot)
    }

    /// A request that a master still repeats is known, or was never carried out: nobody says that it cannot tell.
    pub(crate) fn look_for_forgotten(&mut self, id: u64, answer: &Answer) {
        let Answer::Reply(Err(RequestError::Unavailable(why))) = answer else { return };
        let Some(call) = self.calls.get_mut(id).filter(|call| call.answer.is_none()) else { return };
        let Some(home) = call.home else { return };
        let master = &self.masters[home.slot];
        if master.life == home.life && master.node.is_some() && why.contains("of a master") {
            self.oracle.violate(format!("a master is told of what it still asks for: {why}"));
        }
    }

    /// A request does not come again.
    pub(crate) fn number_answered(&mut self, id: u64) {
        let Some(call) = self.calls.get_mut(id) else { return };
        let (Some(home), Some(Known::Number(numbered))) = (call.home, &call.known) else { return };
        let master = &mut self.masters[home.slot];
        if master.life == home.life {
            master.numbers.answered(numbered.number);
        }
    }
}
