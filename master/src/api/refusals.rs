//! Requests that were refused and are counted: those of senders without a valid token, and those beyond a rate.
//!
//! Invariants: of what is counted together there is one record with the first of it, however many come; addresses that
//! are told apart are at most [`ADDRESSES_MAX`]. Must never keep anything of a request but of the first one.

use super::audit::Draft;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Addresses that are told apart until the next record is written; all others are counted as one.
pub const ADDRESSES_MAX: usize = 16;

/// In place of an address: there are too many to tell apart.
const OTHERS: &str = "others";

/// Whose requests are counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whose {
    /// Of somebody with a token. There are no more of them than tokens.
    Principal(String),
    /// Of whoever has none, at an address.
    Address(IpAddr),
    /// Of further addresses.
    Others,
}

/// What was counted since the last time.
#[derive(Debug, Default)]
pub struct Refusals {
    counted: BTreeMap<(Whose, u16), Draft>,
    addresses: usize,
}

impl Refusals {
    /// One more, which was answered with a status; of the first one there is more to say.
    pub fn count(&mut self, whose: Whose, status: u16, first: impl FnOnce() -> Draft) {
        let mut key = (whose, status);
        let new = !self.counted.contains_key(&key);
        match key.0 {
            Whose::Address(_) if new && self.addresses >= ADDRESSES_MAX => key.0 = Whose::Others,
            Whose::Address(_) if new => self.addresses += 1,
            _ => {}
        }
        if let Some(draft) = self.counted.get_mut(&key) {
            draft.times = draft.times.saturating_add(1);
            return;
        }
        let mut draft = first();
        if key.0 == Whose::Others {
            OTHERS.clone_into(&mut draft.remote);
        }
        self.counted.insert(key, draft);
    }

    /// All of it, in order of time; counting begins anew.
    pub fn take(&mut self) -> Vec<Draft> {
        self.addresses = 0;
        let mut drafts: Vec<Draft> = std::mem::take(&mut self.counted).into_values().collect();
        drafts.sort_by_key(|draft| draft.at_ms);
        drafts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::audit::draft;

    #[test]
    fn however_many_come_from_wherever_a_few_records_tell_of_them() {
        let mut refusals = Refusals::default();
        for n in 0..100_000_u32 {
            let address = IpAddr::from((n % 1_000).to_be_bytes());
            refusals.count(Whose::Address(address), 401, || draft("", u64::from(n)));
        }
        refusals.count(Whose::Principal("a".into()), 429, || draft("a", 1));
        refusals.count(Whose::Principal("a".into()), 429, || draft("a", 2));
        let all = refusals.take();
        assert_eq!(all.len(), ADDRESSES_MAX + 2);
        assert_eq!(all.iter().map(|draft| draft.times).sum::<u64>(), 100_002);
        let of = |principal: &str, remote: &str| {
            all.iter().find(|draft| draft.principal == principal && draft.remote == remote).map(|draft| (draft.at_ms, draft.times))
        };
        assert_eq!(of("a", "127.0.0.1:1"), Some((1, 2)), "the first of them");
        assert_eq!(of("", OTHERS), Some((16, 98_400)));
        assert!(refusals.take().is_empty());
    }
}
