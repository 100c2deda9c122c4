//! Typed ids and names. Numbers are assigned by the replicated state and never reused; names come
//! from users and are checked on the way in, so that a value of these types is always valid.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            /// Accepts the display form, for example `a12`.
            fn from_str(text: &str) -> Result<Self, NameError> {
                text.strip_prefix($prefix)
                    .and_then(|digits| digits.parse().ok())
                    .map($name)
                    .ok_or(NameError::Number { prefix: $prefix })
            }
        }
    };
}

number_id!(
    /// An agent, assigned at its first registration; shown as `a1`.
    AgentId, "a"
);
number_id!(
    /// A framework, assigned when it is created; shown as `f1`.
    FrameworkId, "f"
);
number_id!(
    /// An offer, unique within one leader's term; shown as `o1`. Never stored.
    OfferId, "o"
);
number_id!(
    /// Counts the placements of a framework's scheduler; the fence against older instances.
    Epoch, "e"
);
number_id!(
    /// Counts the committed turns of a framework; the next turn is the last committed plus one.
    TurnNumber, "t"
);

/// Why a name or id was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A number id was not written as its prefix and decimal digits.
    #[error("an id is written as `{prefix}` followed by decimal digits")]
    Number {
        /// The letter that this kind of id starts with.
        prefix: &'static str,
    },
    /// Empty, or longer than the kind of name allows.
    #[error("a {kind} has 1 to {max} bytes, this one has {len}")]
    Length {
        /// What was being named.
        kind: &'static str,
        /// Most bytes.
        max: usize,
        /// Bytes found.
        len: usize,
    },
    /// A character outside the allowed set.
    #[error("a {kind} consists of {allowed}; found {found:?}")]
    Character {
        /// What was being named.
        kind: &'static str,
        /// The allowed set, for people.
        allowed: &'static str,
        /// The first offender.
        found: char,
    },
    /// `.`, `..`, or an empty part.
    #[error("a {kind} must not be or contain the part {part:?}")]
    Reserved {
        /// What was being named.
        kind: &'static str,
        /// The offending part.
        part: String,
    },
}

fn check(
    kind: &'static str,
    text: &str,
    max: usize,
    allowed: &'static str,
    ok: fn(char) -> bool,
) -> Result<(), NameError> {
    if text.is_empty() || text.len() > max {
        return Err(NameError::Length { kind, max, len: text.len() });
    }
    if let Some(found) = text.chars().find(|&c| !ok(c)) {
        return Err(NameError::Character { kind, allowed, found });
    }
    Ok(())
}

fn check_parts<'a>(
    kind: &'static str,
    parts: impl Iterator<Item = &'a str>,
) -> Result<(), NameError> {
    for part in parts {
        if matches!(part, "" | "." | "..") {
            return Err(NameError::Reserved { kind, part: part.to_owned() });
        }
    }
    Ok(())
}

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                $check(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                $check(&text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_name!(
    /// A framework's name for a task: 1 to 255 bytes of `A-Z a-z 0-9 . _ -`, not `.` or `..`.
    TaskId, check_task_id
);
text_name!(
    /// A framework's name, unique per tenant: 1 to 63 bytes of `a-z 0-9 -`.
    FrameworkName, check_framework_name
);
text_name!(
    /// A role: parts of `A-Z a-z 0-9 . _ -` joined by `/`, at most 255 bytes. The first part is the
    /// tenant.
    RoleName, check_role
);

text_name!(
    /// A framework's name for one of its executors: 1 to 64 bytes of `A-Z a-z 0-9 . _ -`, not `.` or `..`.
    ExecutorId, check_executor_id
);

fn check_executor_id(text: &str) -> Result<(), NameError> {
    check("executor id", text, 64, "`A-Z a-z 0-9 . _ -`", |c| {
        c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
    })?;
    check_parts("executor id", std::iter::once(text))
}

fn check_task_id(text: &str) -> Result<(), NameError> {
    check("task id", text, 255, "`A-Z a-z 0-9 . _ -`", |c| {
        c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
    })?;
    check_parts("task id", std::iter::once(text))
}

fn check_framework_name(text: &str) -> Result<(), NameError> {
    check("framework name", text, 63, "`a-z 0-9 -`", |c| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
    })
}

fn check_role(text: &str) -> Result<(), NameError> {
    check("role", text, 255, "parts of `A-Z a-z 0-9 . _ -` joined by `/`", |c| {
        c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/')
    })?;
    check_parts("role", text.split('/'))?;
    if text.starts_with('-') {
        return Err(NameError::Reserved { kind: "role", part: "-".into() });
    }
    Ok(())
}

impl RoleName {
    /// The tenant: the role's first part.
    #[must_use]
    pub fn tenant(&self) -> &str {
        self.0.split('/').next().unwrap_or(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_on_the_way_in() {
        for ok in ["a", "t-1.2_X", &"x".repeat(255)] {
            assert!(ok.parse::<TaskId>().is_ok(), "{ok}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(256)] {
            assert!(bad.parse::<TaskId>().is_err(), "{bad}");
        }
        for bad in ["/a", "a//b", "a/../b", "-a", "a/", ""] {
            assert!(bad.parse::<RoleName>().is_err(), "{bad}");
        }
        assert_eq!("eng/ml".parse::<RoleName>().map(|r| r.tenant().to_owned()), Ok("eng".into()));
    }

    #[test]
    fn number_ids_round_trip() {
        assert_eq!("a12".parse(), Ok(AgentId(12)));
        assert_eq!(AgentId(12).to_string(), "a12");
        for bad in ["12", "f12", "a", "a-1", "a18446744073709551616"] {
            assert!(bad.parse::<AgentId>().is_err(), "{bad}");
        }
    }
}
