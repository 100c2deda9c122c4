//! Requests that a master passes on under a number of its own: each is carried out once, and a repetition is
//! answered as the first was, until the master has said that it needs the answer no more.
//!
//! Owns the sessions of masters and the results in them. Invariants: a session is opened by a command, and a number
//! of a session that is not known is refused, so that a session that was forgotten applies nothing again; a result is
//! kept in the entry that made the change; a number below what is answered is refused; a session keeps at most
//! [`SESSION_NUMBERS_MAX`] results, and a master that is a member the [`SESSIONS_OF_MASTER_MAX`] newest of its
//! sessions. Must never depend on the clock.

use crate::api::RequestError;
use crate::apply::Apply;
use crate::codec::{self, LoadError};
use crate::effect::CommandResult;
use crate::limits::{SESSION_NUMBERS_MAX, SESSIONS_OF_MASTER_MAX};
use crate::rows;
use crate::state::State;
use prost::Message;
use std::collections::BTreeMap;
use tessera_wire::v1;

/// The cluster version from which on there are sessions.
pub(crate) const SINCE: u32 = 3;

/// Which request of which session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Drawn by the process of a master; it has opened it.
    pub session: u64,
    /// Never used for another request in it.
    pub number: u64,
    /// All below this are answered, or given up: they do not come again.
    pub answered_below: u64,
}

impl From<Numbered> for v1::RequestNumber {
    fn from(numbered: Numbered) -> Self {
        let Numbered { session, number, answered_below } = numbered;
        Self { session, number, answered_below }
    }
}

impl From<v1::RequestNumber> for Numbered {
    fn from(number: v1::RequestNumber) -> Self {
        let v1::RequestNumber { session, number, answered_below } = number;
        Self { session, number, answered_below }
    }
}

/// What is kept of one process of a master.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Session {
    pub(crate) node: u64,
    /// Index of the entry that opened it.
    opened: u64,
    /// The newest word of what is answered. It is in the row of a result above it: the one that brought it.
    answered_below: u64,
    pub(crate) results: BTreeMap<u64, CommandResult>,
}

impl Session {
    /// Whether as many are kept as may be, besides those that are forgotten with the next one.
    fn is_full(&self, answered_below: u64) -> bool {
        let kept = || self.results.range(answered_below..).count();
        self.results.len() >= SESSION_NUMBERS_MAX && kept() >= SESSION_NUMBERS_MAX
    }
}

impl State {
    /// What became of this request before, if it was one.
    pub(crate) fn numbered(&self, numbered: Numbered) -> Option<Result<&CommandResult, RequestError>> {
        let unknown = |why: &str| {
            let rule = format!("request {} of a master {why}; it may have been carried out", numbered.number);
            Some(Err(RequestError::Unavailable(rule)))
        };
        let Some(session) = self.sessions.get(&numbered.session) else {
            return unknown("is of a session that is not known");
        };
        if numbered.number < session.answered_below {
            return unknown("was answered or given up before");
        }
        match session.results.get(&numbered.number) {
            Some(result) => Some(Ok(result)),
            None if session.is_full(numbered.answered_below) => {
                let rule = format!("a master has at most {SESSION_NUMBERS_MAX} requests without an answer");
                Some(Err(RequestError::Limit { name: "SESSION_NUMBERS_MAX", rule }))
            }
            None => None,
        }
    }
}

impl Apply<'_> {
    /// Keep what became of a request, and forget what is answered.
    pub(crate) fn keep_numbered(&mut self, numbered: Numbered, result: &CommandResult) {
        let Some(row) = encode(numbered.answered_below, result) else { return };
        let Some(session) = self.state.sessions.get_mut(&numbered.session) else { return };
        session.results.insert(numbered.number, result.clone());
        self.rows.put(rows::SESSIONS, key(numbered.session, numbered.number), row);
        let below = numbered.answered_below.min(numbered.number);
        session.answered_below = session.answered_below.max(below);
        while let Some(first) = session.results.first_entry() {
            if *first.key() >= session.answered_below {
                break;
            }
            self.rows.delete(rows::SESSIONS, key(numbered.session, *first.key()));
            first.remove();
        }
    }

    /// A process of a master is going to pass requests on. Sessions of masters that are gone go with this, and so do
    /// the oldest ones of this master.
    pub(crate) fn open_session(&mut self, command: &v1::OpenSession) -> Result<CommandResult, RequestError> {
        if !command.members.contains(&command.node) {
            return Err(RequestError::Invalid { field: "node", rule: "it is no member".into() });
        }
        if let Some(known) = self.state.sessions.get(&command.session) {
            return match known.node == command.node {
                true => Ok(CommandResult::Done),
                false => Err(RequestError::Invalid { field: "session", rule: "another master has it".into() }),
            };
        }
        let opened = self.state.meta.index;
        let session = Session { node: command.node, opened, ..Session::default() };
        let row = v1::SessionRow { version: codec::ROW_VERSION, node: session.node, opened };
        self.rows.put(rows::SESSIONS, command.session.to_be_bytes().to_vec(), row.encode_to_vec());
        self.state.sessions.insert(command.session, session);
        let all = self.state.sessions.iter();
        let mut own: Vec<(u64, u64)> =
            all.clone().filter(|(_, s)| s.node == command.node).map(|(id, s)| (s.opened, *id)).collect();
        own.sort_unstable();
        let surplus = own.len().saturating_sub(SESSIONS_OF_MASTER_MAX);
        // Numbers of masters only rise: one above all of these may have joined since they were listed.
        let newest = command.members.iter().max().copied().unwrap_or(0);
        let is_gone = |node: u64| node < newest && !command.members.contains(&node);
        let foreign = all.filter(|(_, session)| is_gone(session.node));
        let gone: Vec<u64> =
            own.into_iter().take(surplus).map(|(_, id)| id).chain(foreign.map(|(id, _)| *id)).collect();
        for session in gone {
            self.forget_session(session);
        }
        Ok(CommandResult::Done)
    }

    fn forget_session(&mut self, id: u64) {
        let Some(session) = self.state.sessions.remove(&id) else { return };
        self.rows.delete(rows::SESSIONS, id.to_be_bytes().to_vec());
        for number in session.results.into_keys() {
            self.rows.delete(rows::SESSIONS, key(id, number));
        }
    }
}

/// The row of a result: with the session before it, its results follow their session.
fn key(session: u64, number: u64) -> Vec<u8> {
    [session.to_be_bytes(), number.to_be_bytes()].concat()
}

fn encode(answered_below: u64, result: &CommandResult) -> Option<Vec<u8>> {
    use v1::session_result_row::Result as Kept;
    let result = match result {
        CommandResult::Done => Kept::Done(v1::Empty {}),
        CommandResult::Framework(id) => Kept::Framework(id.0),
        CommandResult::Version(version) => Kept::ComponentVersion(*version),
        CommandResult::Component { digest, created } => {
            Kept::Component(v1::AddedComponent { digest: digest.0.to_vec(), created: *created })
        }
        CommandResult::Agent(_)
        | CommandResult::Placed(_)
        | CommandResult::Turn(_)
        | CommandResult::Refused(_) => return None,
    };
    let row = v1::SessionResultRow { version: codec::ROW_VERSION, answered_below, result: Some(result) };
    Some(row.encode_to_vec())
}

fn decode(row: v1::SessionResultRow) -> Result<CommandResult, LoadError> {
    use v1::session_result_row::Result as Kept;
    Ok(match row.result.ok_or_else(|| codec::bad(rows::SESSIONS, "no result"))? {
        Kept::Done(v1::Empty {}) => CommandResult::Done,
        Kept::Framework(id) => CommandResult::Framework(tessera_types::FrameworkId(id)),
        Kept::ComponentVersion(version) => CommandResult::Version(version),
        Kept::Component(added) => CommandResult::Component {
            digest: tessera_types::Digest::from_slice(&added.digest)
                .map_err(|error| codec::bad(rows::SESSIONS, error))?,
            created: added.created,
        },
    })
}

/// Read a row: of a session, or of a result in it.
pub(crate) fn load(state: &mut State, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
    const TABLE: u8 = rows::SESSIONS;
    let bad_key = || codec::bad(TABLE, "a key of another length");
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).map_err(|_| bad_key());
    let (session, rest) = key.split_at_checked(8).ok_or_else(bad_key)?;
    let id = number(session)?;
    if rest.is_empty() {
        let row: v1::SessionRow = codec::decode(TABLE, value)?;
        codec::version(TABLE, row.version)?;
        let session = Session { node: row.node, opened: row.opened, ..Session::default() };
        state.sessions.insert(id, session);
        return Ok(());
    }
    let row: v1::SessionResultRow = codec::decode(TABLE, value)?;
    codec::version(TABLE, row.version)?;
    let number = number(rest)?;
    let below = row.answered_below.min(number);
    let session = state.sessions.get_mut(&id).ok_or_else(|| codec::bad(TABLE, "a result without its session"))?;
    session.answered_below = session.answered_below.max(below);
    session.results.insert(number, decode(row)?);
    Ok(())
}
