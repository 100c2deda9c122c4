//! Lists by pages: how many items a page has, and where the next one begins.
//!
//! Invariants: a cursor is opaque to clients, says which list it is of, and stays right when what it names is gone.
//! One request asks the loop for small pieces, so that nobody waits for a long list, and gives up looking after a
//! bounded number of them: a page may be short, and only one without `next` is the last.

use super::error::ApiError;
use crate::node_handle::NodeHandle;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::Serialize;
use tessera_master_core::{Budget, Core, Piece, Rows, RowsError};

/// Items of one page at most.
pub const PAGE_MAX: usize = 1_000;

/// Items that one question to the loop finds: it holds others up for about a millisecond.
const PIECE_ITEMS: usize = 250;

/// Rows that one question looks at.
const PIECE_LOOKS: usize = 5_000;

/// Questions of one request: a filter that takes nothing looks at half a million rows and comes back with a cursor.
const PIECES_MAX: usize = 100;

/// Bytes of a cursor: a digest in hex, or a task's id and numbers.
const CURSOR_BYTES_MAX: usize = 1_024;

/// A list, and the log index that it is true at.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{T}List")]
pub struct List<T> {
    /// Index of the last applied entry when the list was begun.
    pub index: u64,
    /// The items.
    pub items: Vec<T>,
    /// What `after` has to be for the items that follow; absent when there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<T> List<T> {
    /// All there is.
    pub const fn whole(index: u64, items: Vec<T>) -> Self {
        Self { index, items, next: None }
    }
}

/// How many items a request wants: what it says, or as many as there may be.
pub fn limit(asked: Option<usize>) -> Result<usize, ApiError> {
    match asked {
        None => Ok(PAGE_MAX),
        Some(limit) if (1..=PAGE_MAX).contains(&limit) => Ok(limit),
        Some(_) => Err(ApiError::invalid("limit", format!("1 to {PAGE_MAX}"))),
    }
}

/// The same for lists that were given as a whole before there were pages: they still are, where nothing is said.
pub fn limit_or_all(asked: Option<usize>, after: Option<&str>) -> Result<usize, ApiError> {
    match (asked, after) {
        (None, None) => Ok(usize::MAX),
        _ => limit(asked),
    }
}

/// A place of a list, as a cursor says it.
pub trait Place: Sized {
    /// One letter, which tells the cursors of lists apart, and the place.
    fn write(&self) -> String;
    /// The reverse.
    fn read(text: &str) -> Option<Self>;
}

/// The cursor of a place.
pub fn cursor<P: Place>(place: &P) -> String {
    URL_SAFE_NO_PAD.encode(place.write())
}

/// The place of a cursor.
pub fn place<P: Place>(after: Option<&str>) -> Result<Option<P>, ApiError> {
    let Some(after) = after else { return Ok(None) };
    let bytes = if after.len() > CURSOR_BYTES_MAX { None } else { URL_SAFE_NO_PAD.decode(after).ok() };
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.and_then(|text| P::read(&text)).map(Some).ok_or_else(|| {
        ApiError::invalid("after", "no cursor of this list").hint("leave it out for the first page; `next` of each page is `after` of the following one")
    })
}

/// Gathers a page: asks for pieces until it is full or the list ends.
pub async fn gather<T, P>(
    node: &NodeHandle,
    after: Option<&str>,
    limit: usize,
    ask: impl Fn(&mut Core, &dyn Rows, Option<P>, Budget) -> Result<Piece<T, P>, RowsError> + Clone + Send + Sync + 'static,
) -> Result<List<T>, ApiError>
where
    T: Send + 'static,
    P: Place + Send + 'static,
{
    let mut from: Option<P> = place(after)?;
    let mut list = List { index: 0, items: Vec::new(), next: None };
    // A list that is wanted as a whole is given as a whole: those are bounded otherwise.
    let pieces = if limit == usize::MAX { usize::MAX } else { PIECES_MAX };
    for n in 0..pieces {
        let ask = ask.clone();
        let find = (limit - list.items.len()).min(PIECE_ITEMS);
        let (index, piece) = node
            .query_status(move |core, rows, status| {
                let budget = Budget { find, look: PIECE_LOOKS };
                (status.applied.index, ask(core, rows, from, budget))
            })
            .await?;
        let piece = piece?;
        if n == 0 {
            list.index = index;
        }
        list.items.extend(piece.found);
        list.next = piece.next.as_ref().map(cursor);
        from = piece.next;
        if from.is_none() || list.items.len() >= limit {
            break;
        }
    }
    Ok(list)
}

/// Places that are one number or one word, with the letter of their list.
macro_rules! plain_places {
    ($($(#[$doc:meta])* $name:ident($letter:literal, $of:ty);)+) => {
        $(
            $(#[$doc])*
            pub struct $name(pub $of);

            impl Place for $name {
                fn write(&self) -> String {
                    format!("{}{}", $letter, self.0)
                }

                fn read(text: &str) -> Option<Self> {
                    text.strip_prefix($letter)?.parse().ok().map(Self)
                }
            }
        )+
    };
}

plain_places! {
    /// After this agent.
    AgentPlace('a', tessera_types::AgentId);
    /// After this component.
    ComponentPlace('c', tessera_types::Digest);
    /// After this framework.
    FrameworkPlace('f', tessera_types::FrameworkId);
    /// After this offer.
    OfferPlace('o', u64);
    /// After this role.
    RolePlace('r', String);
    /// After this record of the audit.
    RecordPlace('u', u64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_types::AgentId;

    #[test]
    fn cursors_are_read_as_they_are_written_and_only_by_their_list() {
        let text = cursor(&AgentPlace(AgentId(7)));
        let found: Option<AgentPlace> = place(Some(&text)).unwrap();
        assert_eq!(found.map(|place| place.0), Some(AgentId(7)));
        assert!(place::<FrameworkPlace>(Some(&text)).is_err());
        assert!(place::<AgentPlace>(None).unwrap().is_none());
        for bad in ["", "%", "YQ", "x".repeat(CURSOR_BYTES_MAX + 1).as_str()] {
            assert!(place::<AgentPlace>(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn pages_have_a_bound() {
        for (asked, found) in [(None, Some(PAGE_MAX)), (Some(1), Some(1)), (Some(0), None), (Some(PAGE_MAX + 1), None)] {
            assert_eq!(limit(asked).ok(), found, "{asked:?}");
        }
        assert_eq!(limit_or_all(None, None).unwrap(), usize::MAX);
        assert_eq!(limit_or_all(None, Some("x")).unwrap(), PAGE_MAX);
    }
}
