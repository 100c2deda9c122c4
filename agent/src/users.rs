//! Users that were looked up, remembered for a while: the machine may ask several services for each, which
//! takes longer than all the rest of a launch.
//!
//! Invariants: what is remembered is never older than [`KEPT_FOR`]; only users that exist are remembered.
//! This file must never decide who may be whom.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tessera_oci::user::{self, UserError};
use tessera_oci::TaskUser;

/// How long a change of the machine's table of users, such as another group of a user, may go unseen.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Users that are remembered: one for each framework with native tasks, and those that tasks name.
const KNOWN_MAX: usize = 4_096;

/// Users by the name or number that they were looked up by.
#[derive(Debug, Default)]
pub(crate) struct KnownUsers(Mutex<BTreeMap<String, (Instant, TaskUser)>>);

impl KnownUsers {
    /// Find a user by name or number.
    ///
    /// # Errors
    /// When a name is unknown, or the agent could not change to the user.
    pub(crate) fn resolve(&self, name: &str) -> Result<TaskUser, UserError> {
        self.resolve_at(name, Instant::now(), user::resolve)
    }

    fn resolve_at(
        &self,
        name: &str,
        now: Instant,
        look_up: impl FnOnce(&str) -> Result<TaskUser, UserError>,
    ) -> Result<TaskUser, UserError> {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, user)) = known().get(name)
            && now.saturating_duration_since(*then) < KEPT_FOR
        {
            return Ok(user.clone());
        }
        // Without the lock: a service that is slow to answer for one user holds up nobody else.
        let user = look_up(name)?;
        let mut known = known();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(name.to_owned(), (now, user.clone()));
        Ok(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_looked_up_again_after_a_while_and_an_unknown_one_always() {
        let known = KnownUsers::default();
        let own = user::current().unwrap();
        let start = Instant::now();
        let mut lookups = 0;
        for seconds in [0, 1, 59, 60, 61, 119, 120] {
            let at = start + Duration::from_secs(seconds);
            let found = known.resolve_at("someone", at, |_| {
                lookups += 1;
                Ok(own.clone())
            });
            assert_eq!(found.unwrap(), own);
        }
        assert_eq!(lookups, 3);
        let mut asked = 0;
        for _ in 0..2 {
            let refused = known.resolve_at("nobody-here", start, |name| {
                asked += 1;
                Err(UserError::Unknown(name.to_owned()))
            });
            assert!(refused.is_err());
        }
        assert_eq!(asked, 2);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let known = KnownUsers::default();
        let own = user::current().unwrap();
        for number in 0..=KNOWN_MAX {
            let found = known.resolve_at(&number.to_string(), Instant::now(), |_| Ok(own.clone()));
            assert!(found.is_ok());
        }
        assert!(known.0.lock().unwrap().len() <= KNOWN_MAX);
    }
}
