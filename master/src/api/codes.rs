//! The codes of refusals, and what each means: what clients act on.
//!
//! Invariants: every code that is ever answered stands here once; a request that was refused with a retryable code
//! may succeed later as it is.

/// A code of the envelope.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// Its name.
    pub name: &'static str,
    /// HTTP statuses that it comes with.
    pub statuses: &'static [u16],
    /// The same request may succeed later.
    pub retryable: bool,
    /// It is answered by schedulers' door only, below `/frameworks/`.
    pub door: bool,
    /// When it is answered.
    pub what: &'static str,
}

const fn code(name: &'static str, statuses: &'static [u16], retryable: bool, what: &'static str) -> Code {
    Code { name, statuses, retryable, door: false, what }
}

const fn door(name: &'static str, status: &'static [u16], retryable: bool, what: &'static str) -> Code {
    Code { name, statuses: status, retryable, door: true, what }
}

/// A field breaks a rule.
pub const INVALID_ARGUMENT: &str = "INVALID_ARGUMENT";
/// No token, or a wrong one.
pub const UNAUTHENTICATED: &str = "UNAUTHENTICATED";
/// Not allowed.
pub const PERMISSION_DENIED: &str = "PERMISSION_DENIED";
/// It does not exist.
pub const NOT_FOUND: &str = "NOT_FOUND";
/// The name is taken.
pub const ALREADY_EXISTS: &str = "ALREADY_EXISTS";
/// It collides with what is there.
pub const CONFLICT: &str = "CONFLICT";
/// `If-Match` does not hold.
pub const PRECONDITION_FAILED: &str = "PRECONDITION_FAILED";
/// The key came with another request.
pub const IDEMPOTENCY_MISMATCH: &str = "IDEMPOTENCY_MISMATCH";
/// Too many bytes.
pub const TOO_LARGE: &str = "TOO_LARGE";
/// Too many headers, or bytes of them.
pub const HEADERS_TOO_LARGE: &str = "HEADERS_TOO_LARGE";
/// Too many requests.
pub const RATE_LIMITED: &str = "RATE_LIMITED";
/// A fault of the master.
pub const INTERNAL: &str = "INTERNAL";
/// Not now.
pub const UNAVAILABLE: &str = "UNAVAILABLE";
/// Nobody leads.
pub const NO_LEADER: &str = "NO_LEADER";
/// Nobody knows whether it was carried out.
pub const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
/// This master has not joined.
pub const JOINING: &str = "JOINING";

/// All codes.
pub const CODES: &[Code] = &[
    code(INVALID_ARGUMENT, &[400, 405], false, "a field, a parameter or a header breaks a rule; the path does not take this method"),
    code(UNAUTHENTICATED, &[401], false, "no token, or a wrong one"),
    code(PERMISSION_DENIED, &[403], false, "the token does not allow it, or the operator does not: a registry that is not listed, a component that is not signed"),
    code(NOT_FOUND, &[404], false, "it does not exist"),
    code(ALREADY_EXISTS, &[409], false, "the name is taken"),
    code(CONFLICT, &[409], false, "it collides with what is there: a limit is reached, an upgrade is under way, a component is used, another version is in force"),
    code(PRECONDITION_FAILED, &[412], false, "`If-Match` or `If-None-Match` does not hold: something else is in force"),
    code(TOO_LARGE, &[413], false, "more bytes than allowed"),
    code(IDEMPOTENCY_MISMATCH, &[422], false, "the `Idempotency-Key` came with another request before"),
    code(RATE_LIMITED, &[429], true, "this principal, or this address without a token, sends more requests than this master takes; `Retry-After` and `RateLimit-Reset` say when to go on"),
    code(HEADERS_TOO_LARGE, &[431], false, "too many headers, or too many bytes of them"),
    code(INTERNAL, &[500], false, "a fault of the master; its log says more"),
    code(UNAVAILABLE, &[503], true, "not now, for example when too many uploads wait to be judged; `Retry-After` says when"),
    code(NO_LEADER, &[503], true, "no master leads now, or none could make sure in time that it does: nothing was carried out; `Retry-After` says when to try again"),
    code(OUTCOME_UNKNOWN, &[503], true, "the leader changed, could not be reached any more, or had no answer within 10 s: the request may have been carried out. Sent again under the same `Idempotency-Key` it is answered as the first time"),
    code(JOINING, &[503], true, "this master has not joined its cluster yet; the text says how far it is"),
    door("INVALID_KEY", &[400], false, "the `Idempotency-Key` is empty or too long"),
    door("IN_PROGRESS", &[409], true, "the request came again under its key while it was being answered: that one gets the answer"),
    door("TARGET_TOO_LONG", &[414], false, "method, path and query together"),
    door("KEY_REUSED", &[422], false, "the key was used for another request"),
    door("STATE_UNREADABLE", &[500], false, "the answer that is stored for the key cannot be read"),
    door("SCHEDULER_FAILED", &[502], true, "the instance that had the request failed; whether a turn happened, the scheduler's state tells"),
    door("SCHEDULER_RESTARTED", &[502], true, "the instance that had the request was built anew"),
    door("SCHEDULER_MOVED", &[502], true, "the scheduler went to another agent"),
    door("TURN_REFUSED", &[502], false, "the turn that answered broke a limit"),
    door("QUARANTINED", &[503], false, "the scheduler failed too often; `tessera framework release` lets it run again"),
    door("MIGRATING", &[503], true, "its state is being migrated"),
    door("NOT_PLACED", &[503], true, "it is just being placed"),
    door("TOO_MANY_REQUESTS_IN_FLIGHT", &[503], true, "as many requests as may wait for it already"),
    door("SCHEDULER_TIMEOUT", &[504], true, "no answer within 30 s"),
];

/// The row of a code.
pub fn find(name: &str) -> Option<&'static Code> {
    CODES.iter().find(|code| code.name == name)
}

/// Whether the same request may succeed later.
pub fn is_retryable(name: &str) -> bool {
    find(name).is_some_and(|code| code.retryable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_code_stands_once_and_is_in_the_manual() {
        let names: BTreeSet<&str> = CODES.iter().map(|code| code.name).collect();
        assert_eq!(names.len(), CODES.len());
        let manual = include_str!("../../../docs/api.md");
        for code in CODES {
            assert!(manual.contains(&format!("`{}`", code.name)), "docs/api.md does not name {}", code.name);
        }
    }

    #[test]
    fn every_code_that_the_sources_name_is_in_the_table() {
        let sources = [include_str!("error.rs"), include_str!("../../core/src/leader/http.rs"), include_str!("../../core/src/leader/results.rs")];
        for source in sources {
            let words = source.split('"').filter(|text| {
                text.len() > 5 && text.contains('_') && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
            });
            for word in words {
                assert!(find(word).is_some(), "{word}");
            }
        }
    }
}
