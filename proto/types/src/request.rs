//! What a framework says that it waits for, and on which agents.
//!
//! Invariants: requests that passed [`validate_requests`] are few, small and have names of their own; whether a
//! constraint holds follows from the agent alone, in at most text × pattern steps. This file must never decide who is
//! offered what.

use crate::limits::{
    CONSTRAINT_VALUES_MAX, CONSTRAINTS_MAX, PATTERN_BYTES_MAX, PATTERNS_MAX, RESOURCE_REQUEST_BYTES_MAX, RESOURCE_REQUEST_COUNT_MAX, RESOURCE_REQUESTS_MAX,
};
use crate::{AgentInfo, Resources, ResourcesError};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The attribute that says in which region an agent is.
pub const REGION: &str = "region";
/// The attribute that says in which zone of its region an agent is.
pub const ZONE: &str = "zone";
/// Longest id of a request.
const ID_BYTES_MAX: usize = 64;

/// What of an agent a constraint is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selector {
    /// Its host's name.
    Hostname,
    /// The attribute of this name.
    Attribute(String),
}

/// What is to be true of it. An attribute that is not there fulfils only what is negated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Predicate {
    /// It is there.
    Exists,
    /// It is not there.
    NotExists,
    /// It is this text.
    Equals(String),
    /// It is not this text.
    NotEquals(String),
    /// It is one of these texts.
    OneOf(Vec<String>),
    /// It is none of these texts.
    NoneOf(Vec<String>),
    /// All of it matches a pattern, in which `*` is any text and `?` one character.
    Matches(String),
    /// It does not match the pattern.
    NotMatches(String),
}

/// Which agents will do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Constraint {
    /// What is looked at.
    pub selector: Selector,
    /// What is to be true of it.
    pub predicate: Predicate,
}

/// So many tasks of one size wait for a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceRequest {
    /// Unique among the framework's requests.
    pub id: String,
    /// What each of them needs, on one agent.
    pub resources: Resources,
    /// How many there are.
    pub count: u32,
    /// What an agent has to fulfil, all of it.
    pub constraints: Vec<Constraint>,
    /// What may be taken back at any time will do, and nothing else.
    pub revocable: bool,
}

/// Why requests were refused: the field and the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// A field breaks a rule.
    #[error("{field}: {rule}")]
    Field {
        /// The field.
        field: &'static str,
        /// The rule.
        rule: String,
    },
    /// The resources break a rule.
    #[error("requests.resources: {0}")]
    Resources(#[from] ResourcesError),
}

fn refuse<T>(field: &'static str, rule: impl Into<String>) -> Result<T, InvalidRequest> {
    Err(InvalidRequest::Field { field, rule: rule.into() })
}

/// Check the requests of a framework, all there are.
///
/// # Errors
/// The first rule that is broken.
pub fn validate_requests(requests: &[ResourceRequest]) -> Result<(), InvalidRequest> {
    if requests.len() > RESOURCE_REQUESTS_MAX {
        return refuse("requests", format!("at most {RESOURCE_REQUESTS_MAX}; give equal ones a count"));
    }
    for (place, request) in requests.iter().enumerate() {
        request.validate()?;
        if requests.iter().take(place).any(|before| before.id == request.id) {
            return refuse("requests.id", format!("{:?} is used twice", request.id));
        }
    }
    let patterns = requests.iter().flat_map(|request| &request.constraints);
    if patterns.filter(|constraint| constraint.predicate.pattern().is_some()).count() > PATTERNS_MAX {
        return refuse("requests.constraints", format!("at most {PATTERNS_MAX} patterns in all requests together"));
    }
    Ok(())
}

impl ResourceRequest {
    fn validate(&self) -> Result<(), InvalidRequest> {
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.id.is_empty() || self.id.len() > ID_BYTES_MAX || !self.id.chars().all(named) {
            return refuse("requests.id", format!("1 to {ID_BYTES_MAX} bytes of A-Z a-z 0-9 . _ -"));
        }
        self.resources.validate()?;
        let q = self.resources.quantities;
        if q.cpus_milli == 0 && q.mem_mib == 0 {
            return refuse("requests.resources", "some cpus or mem, as every task has");
        }
        if !(1..=RESOURCE_REQUEST_COUNT_MAX).contains(&self.count) {
            return refuse("requests.count", format!("1 to {RESOURCE_REQUEST_COUNT_MAX}"));
        }
        if self.constraints.len() > CONSTRAINTS_MAX {
            return refuse("requests.constraints", format!("at most {CONSTRAINTS_MAX}"));
        }
        for constraint in &self.constraints {
            if matches!(&constraint.selector, Selector::Attribute(name) if name.is_empty()) {
                return refuse("requests.constraints.attribute", "must not be empty");
            }
            let values = constraint.predicate.texts().len();
            if values > CONSTRAINT_VALUES_MAX {
                return refuse("requests.constraints.values", format!("at most {CONSTRAINT_VALUES_MAX}"));
            }
            if constraint.predicate.pattern().is_some_and(|pattern| pattern.len() > PATTERN_BYTES_MAX) {
                return refuse("requests.constraints.values", format!("a pattern has at most {PATTERN_BYTES_MAX} bytes"));
            }
        }
        if self.text_bytes() > RESOURCE_REQUEST_BYTES_MAX {
            let rule = format!("names and values of a request take at most {RESOURCE_REQUEST_BYTES_MAX} bytes");
            return refuse("requests", rule);
        }
        Ok(())
    }

    /// Bytes of the names and values in it.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let of_constraint = |constraint: &Constraint| {
            let selector = match &constraint.selector {
                Selector::Hostname => 0,
                Selector::Attribute(name) => name.len(),
            };
            selector + constraint.predicate.texts().iter().map(String::len).sum::<usize>()
        };
        let items = self.resources.items.keys().map(|key| key.name.len());
        self.id.len() + items.sum::<usize>() + self.constraints.iter().map(of_constraint).sum::<usize>()
    }

    /// Whether an agent fulfils all constraints.
    #[must_use]
    pub fn may_be_on(&self, agent: &AgentInfo) -> bool {
        self.constraints.iter().all(|constraint| constraint.holds(agent))
    }
}

impl Constraint {
    /// Whether it holds for an agent.
    #[must_use]
    pub fn holds(&self, agent: &AgentInfo) -> bool {
        self.holds_for(&agent.hostname, &agent.attributes)
    }

    /// Whether it holds for an agent with this host name and these attributes.
    #[must_use]
    pub fn holds_for(&self, hostname: &str, attributes: &[(String, String)]) -> bool {
        let own = match &self.selector {
            Selector::Hostname => Some(hostname),
            Selector::Attribute(name) => {
                attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
            }
        };
        self.predicate.holds(own)
    }
}

impl Predicate {
    /// Texts that it names.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        match self {
            Self::Exists | Self::NotExists => &[],
            Self::Equals(text) | Self::NotEquals(text) | Self::Matches(text) | Self::NotMatches(text) => {
                std::slice::from_ref(text)
            }
            Self::OneOf(texts) | Self::NoneOf(texts) => texts,
        }
    }

    fn pattern(&self) -> Option<&str> {
        match self {
            Self::Matches(pattern) | Self::NotMatches(pattern) => Some(pattern),
            _ => None,
        }
    }

    fn holds(&self, own: Option<&str>) -> bool {
        let one_of = |texts: &[String]| own.is_some_and(|own| texts.iter().any(|text| text == own));
        match self {
            Self::Exists => own.is_some(),
            Self::NotExists => own.is_none(),
            Self::Equals(text) => own == Some(text.as_str()),
            Self::NotEquals(text) => own != Some(text.as_str()),
            Self::OneOf(texts) => one_of(texts),
            Self::NoneOf(texts) => !one_of(texts),
            Self::Matches(pattern) => own.is_some_and(|own| matches_glob(pattern, own)),
            Self::NotMatches(pattern) => !own.is_some_and(|own| matches_glob(pattern, own)),
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.selector {
            Selector::Hostname => "hostname",
            Selector::Attribute(name) => name,
        };
        match &self.predicate {
            Predicate::Exists => write!(f, "{name} is set"),
            Predicate::NotExists => write!(f, "{name} is not set"),
            Predicate::Equals(text) => write!(f, "{name} is {text}"),
            Predicate::NotEquals(text) => write!(f, "{name} is not {text}"),
            Predicate::OneOf(texts) => write!(f, "{name} is one of {}", texts.join(", ")),
            Predicate::NoneOf(texts) => write!(f, "{name} is none of {}", texts.join(", ")),
            Predicate::Matches(pattern) => write!(f, "{name} matches {pattern}"),
            Predicate::NotMatches(pattern) => write!(f, "{name} does not match {pattern}"),
        }
    }
}

/// Whether a whole text matches a pattern of characters, `?` for any one and `*` for any number. Only the last star
/// is ever gone back to: what the ones before it took is as good as anything else that they could have taken.
fn matches_glob(pattern: &str, text: &str) -> bool {
    let (mut wanted, mut left) = (pattern.chars(), text.chars());
    let mut star = None;
    loop {
        match (wanted.next(), left.clone().next()) {
            (None, None) => return true,
            (Some('*'), _) => star = Some((wanted.clone(), left.clone())),
            (Some(wants), Some(has)) if wants == '?' || wants == has => {
                left.next();
            }
            _ => {
                // The star takes one character more.
                let Some((after, from)) = &mut star else { return false };
                if from.next().is_none() {
                    return false;
                }
                (wanted, left) = (after.clone(), from.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AgentId, Quantities};

    fn on(name: &str, predicate: Predicate) -> Constraint {
        let selector = match name {
            "hostname" => Selector::Hostname,
            name => Selector::Attribute(name.into()),
        };
        Constraint { selector, predicate }
    }

    #[test]
    fn patterns_match_whole_texts() {
        let cases = [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything", true),
            ("a*", "abc", true),
            ("a*", "ba", false),
            ("*c", "abc", true),
            ("*c", "abcd", false),
            ("a*c", "abcabc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("?", "", false),
            ("?", "ü", true),
            ("**", "x", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("rack-??", "rack-07", true),
            ("rack-??", "rack-007", false),
            ("[a]", "a", false),
        ];
        for (pattern, text, matches) in cases {
            assert_eq!(matches_glob(pattern, text), matches, "{pattern:?} {text:?}");
        }
        let (pattern, text) = (format!("{}b", "*a".repeat(60)), "a".repeat(1024));
        assert!(!matches_glob(&pattern, &text), "and it ends");
    }

    #[test]
    fn what_is_not_there_fulfils_only_what_is_negated() {
        use Predicate as P;
        let agent = AgentInfo {
            id: AgentId(1),
            hostname: "node-7".into(),
            attributes: vec![("rack".into(), "r7".into()), ("zone".into(), "a".into())],
            reachable: true,
        };
        let text = || "r7".to_owned();
        let list = || vec!["r1".to_owned(), text()];
        let cases: [(P, bool, bool, bool); 8] = [
            (P::Exists, true, true, false),
            (P::NotExists, false, false, true),
            (P::Equals(text()), true, false, false),
            (P::NotEquals(text()), false, true, true),
            (P::OneOf(list()), true, false, false),
            (P::NoneOf(list()), false, true, true),
            (P::Matches("r?".into()), true, false, false),
            (P::NotMatches("r?".into()), false, true, true),
        ];
        for (predicate, rack, zone, absent) in cases {
            for (name, holds) in [("rack", rack), ("zone", zone), ("none", absent)] {
                let constraint = on(name, predicate.clone());
                assert_eq!(constraint.holds(&agent), holds, "{constraint}");
            }
        }
        assert!(on("hostname", P::Matches("node-*".into())).holds(&agent));
        assert!(!on("hostname", P::NotExists).holds(&agent));
    }

    #[test]
    fn requests_are_few_small_and_named() {
        let good = || ResourceRequest {
            id: "big".into(),
            resources: Resources::of(Quantities { cpus_milli: 4000, mem_mib: 64, disk_mib: 0 }).with("gpus", 1000),
            count: 3,
            constraints: vec![on("zone", Predicate::Equals("a".into()))],
            revocable: false,
        };
        assert_eq!(validate_requests(&[]), Ok(()));
        assert_eq!(validate_requests(&[good()]), Ok(()));
        type Edit = fn(&mut ResourceRequest);
        let cases: [(&str, Edit); 11] = [
            ("requests.id", |r| r.id.clear()),
            ("requests.id", |r| r.id = "a b".into()),
            ("requests.count", |r| r.count = 0),
            ("requests.count", |r| r.count = RESOURCE_REQUEST_COUNT_MAX + 1),
            ("requests.resources", |r| r.resources = Resources::ZERO.with("gpus", 1000)),
            ("requests.resources", |r| r.resources.quantities.cpus_milli = -1),
            ("requests.constraints", |r| r.constraints = vec![on("a", Predicate::Exists); CONSTRAINTS_MAX + 1]),
            ("requests.constraints.attribute", |r| r.constraints = vec![on("", Predicate::Exists)]),
            ("requests.constraints.values", |r| {
                r.constraints = vec![on("a", Predicate::OneOf(vec![String::new(); CONSTRAINT_VALUES_MAX + 1]))];
            }),
            ("requests", |r| r.constraints = vec![on("a", Predicate::Equals("x".repeat(1024)))]),
            ("requests.constraints.values", |r| {
                r.constraints = vec![on("a", Predicate::NotMatches("x".repeat(PATTERN_BYTES_MAX + 1)))];
            }),
        ];
        for (field, edit) in cases {
            let mut bad = good();
            edit(&mut bad);
            let error = validate_requests(&[bad]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: ")), "{field}: {error}");
        }
        let twice = validate_requests(&[good(), good()]).unwrap_err().to_string();
        assert!(twice.contains("used twice"), "{twice}");
        let globs = |id: &str, count: usize| {
            let constraints = vec![on("a", Predicate::Matches("x*".into())); count];
            ResourceRequest { id: id.into(), constraints, ..good() }
        };
        assert_eq!(validate_requests(&[globs("a", PATTERNS_MAX - 1), globs("b", 1)]), Ok(()));
        assert!(validate_requests(&[globs("a", PATTERNS_MAX - 1), globs("b", 2)]).is_err());
        let other = |n: usize| ResourceRequest { id: format!("r{n}"), ..good() };
        let many: Vec<_> = (0..=RESOURCE_REQUESTS_MAX).map(other).collect();
        assert!(validate_requests(&many).is_err());
        assert_eq!(validate_requests(&many[1..]), Ok(()));
    }
}
