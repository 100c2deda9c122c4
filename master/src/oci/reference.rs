//! `oci://host[:port]/repository[:tag][@sha256:…]`: what a component is pulled by.
//!
//! Invariants: a [`Reference`] has a host, a repository of the distribution specification's grammar, and
//! a tag or a digest. Must never open a connection.

use std::fmt;
use std::str::FromStr;
use tessera_types::Digest;

/// How every reference begins.
const SCHEME: &str = "oci://";

/// Longest reference: a host of 255, a repository of 255, a tag of 128 and a digest.
const REFERENCE_BYTES_MAX: usize = 768;

/// Longest name of a repository, as registries bound it.
const REPOSITORY_BYTES_MAX: usize = 255;

/// Longest tag of the specification.
const TAG_BYTES_MAX: usize = 128;

/// Which version of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// Whatever the tag names now.
    Tag(String),
    /// Exactly this manifest.
    Digest(Digest),
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

/// An artifact in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host, and port if it is not that of the protocol.
    pub registry: String,
    /// Path within the registry.
    pub repository: String,
    /// Which one.
    pub version: Version,
}

/// A reference that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no oci://HOST/REPOSITORY:TAG or oci://HOST/REPOSITORY@sha256:…: {rule}")]
pub struct ReferenceError {
    text: String,
    rule: &'static str,
}

impl Reference {
    /// The same artifact, by its digest.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self {
            version: Version::Digest(digest),
            ..self.clone()
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            registry,
            repository,
            version,
        } = self;
        let between = match version {
            Version::Tag(_) => ':',
            Version::Digest(_) => '@',
        };
        write!(f, "{SCHEME}{registry}/{repository}{between}{version}")
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|rule| ReferenceError {
            // What is too long is not worth repeating.
            text: text.chars().take(REFERENCE_BYTES_MAX).collect(),
            rule,
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.len() > REFERENCE_BYTES_MAX {
        return Err("it is too long");
    }
    let rest = text.strip_prefix(SCHEME).ok_or("it begins with oci://")?;
    let (registry, path) = rest
        .split_once('/')
        .ok_or("a repository follows the host")?;
    if !is_registry(registry) {
        return Err("the host is a name or an address, with a port if need be");
    }
    let (named, digest) = match path.split_once('@') {
        Some((named, digest)) => {
            let digest = digest
                .parse()
                .map_err(|_| "the digest is sha256: and 64 hexadecimal digits")?;
            (named, Some(Version::Digest(digest)))
        }
        None => (path, None),
    };
    let (repository, tag) = match named.split_once(':') {
        Some((repository, tag)) if is_tag(tag) => (repository, Some(Version::Tag(tag.to_owned()))),
        Some(_) => {
            return Err("the tag has at most 128 of A-Z a-z 0-9 _ . - and begins with none of . -");
        }
        None => (named, None),
    };
    if !is_repository(repository) {
        return Err("the repository has parts of a-z 0-9 . _ - with / between");
    }
    let version = digest.or(tag).ok_or("it names a tag or a digest")?;
    Ok(Reference {
        registry: registry.to_owned(),
        repository: repository.to_owned(),
        version,
    })
}

/// Whether a text is `host` or `host:port`, as it stands in a URL.
#[must_use]
pub fn is_registry(text: &str) -> bool {
    let host_end = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
                return port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
            }
            _ => return false,
        },
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, port) = text.split_at(host_end);
    let named = !host.is_empty()
        && host.len() <= 255
        && host
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-')
        && !host.starts_with(['.', '-'])
        && !host.ends_with(['.', '-']);
    named && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=TAG_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
        && text.bytes().next().is_some_and(word)
}

fn is_repository(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |part: &str| {
        part.bytes()
            .all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'))
            && part.bytes().next().is_some_and(plain)
            && part.bytes().next_back().is_some_and(plain)
    };
    text.len() <= REPOSITORY_BYTES_MAX && text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_ones_are_read_and_written() {
        let digest = Digest::of(b"x");
        for text in [
            "oci://ghcr.io/a/b:v1".to_owned(),
            "oci://127.0.0.1:5000/demo:latest".to_owned(),
            "oci://[::1]:5000/demo:1.0_x-y".to_owned(),
            format!("oci://localhost:5000/a.b/c-d@{digest}"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), text);
        }
        let both: Reference = format!("oci://h/a:t@{digest}").parse().unwrap();
        assert_eq!(
            both.to_string(),
            format!("oci://h/a@{digest}"),
            "a digest says more than a tag"
        );
        let tagged: Reference = "oci://h/a:t".parse().unwrap();
        assert_eq!(
            tagged.pinned(digest).to_string(),
            format!("oci://h/a@{digest}")
        );
    }

    #[test]
    fn bad_ones_are_refused() {
        let long = format!("oci://h/{}:t", "a".repeat(300));
        for text in [
            "",
            "ghcr.io/a:b",
            "https://ghcr.io/a:b",
            "oci://",
            "oci://h",
            "oci:///a:t",
            "oci://h/a",
            "oci://h/:t",
            "oci://h/a:",
            "oci://h/a:.t",
            "oci://h/A:t",
            "oci://h/a//b:t",
            "oci://h/../b:t",
            "oci://h/a@sha256:1",
            "oci://h/a@md5:1",
            "oci://user@h/a:t",
            "oci://h:0/a:t",
            "oci://h:x/a:t",
            "oci://h:99999/a:t",
            "oci://h /a:t",
            "oci://[::1/a:t",
            "oci://h/a?x:t",
            "oci://h/a#x:t",
            "oci://h/a\r\nb:t",
            long.as_str(),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
