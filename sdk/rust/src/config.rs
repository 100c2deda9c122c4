//! The framework's configuration: named texts that the operator gave at creation.
//!
//! Must never guess: a value that cannot be read is an error that names the key.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use crate::Error;

/// Names and values from the creation of the framework, or its last change of configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    values: BTreeMap<String, String>,
}

impl Config {
    /// The value of `key`, if it was given.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// The value of `key`; an error that names the key if it was not given.
    pub fn require(&self, key: &str) -> Result<&str, Error> {
        self.get(key).ok_or_else(|| Error::Config {
            key: key.to_owned(),
            rule: "is required".to_owned(),
        })
    }

    /// The value of `key` as a `T`, or `default` if it was not given. Fails when it is given and
    /// cannot be read.
    pub fn parse_or<T>(&self, key: &str, default: T) -> Result<T, Error>
    where
        T: FromStr,
        T::Err: Display,
    {
        match self.get(key) {
            None => Ok(default),
            Some(text) => text.trim().parse().map_err(|error: T::Err| Error::Config {
                key: key.to_owned(),
                rule: format!("cannot be read: {error}"),
            }),
        }
    }

    /// All names and values, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

impl From<Vec<(String, String)>> for Config {
    fn from(pairs: Vec<(String, String)>) -> Self {
        Self {
            values: pairs.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn values_are_parsed_and_errors_name_the_key() {
        let config = Config::from(vec![
            ("count".to_owned(), "12".to_owned()),
            ("bad".to_owned(), "x".to_owned()),
        ]);
        assert_eq!(config.parse_or("count", 1_u32).unwrap(), 12);
        assert_eq!(config.parse_or("absent", 7_u32).unwrap(), 7);
        assert!(
            config
                .parse_or("bad", 1_u32)
                .unwrap_err()
                .to_string()
                .contains("`bad`")
        );
        assert!(
            config
                .require("absent")
                .unwrap_err()
                .to_string()
                .contains("`absent`")
        );
    }
}
