//! What a master is told at its start, and the rules that it obeys.
//!
//! Invariants: a [`MasterConfig`] that passed [`MasterConfig::validate`] is safe to run: without TLS it
//! listens on loopback only, unless the operator said otherwise in so many words.

use crate::join::check_address;
use crate::members::understands;
use crate::oci::is_registry;
use tessera_telemetry::export::Collector;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tessera_wire::v1;

/// Everything that a master is told.
#[derive(Clone, Debug)]
pub struct MasterConfig {
    /// Directory of the replicated state, components and token. Made with mode 0700.
    pub data_dir: PathBuf,
    /// Where REST is served.
    pub listen: SocketAddr,
    /// Where agents connect.
    pub agent_listen: SocketAddr,
    /// What the master is called where masters are listed; the peer address if it is empty.
    pub name: String,
    /// Where other masters and agents reach it, `host:port`; where it listens if that is not given.
    pub peer_address: Option<String>,
    /// Where other masters reach its REST, `host:port`; where it listens if that is not given.
    pub rest_address: Option<String>,
    /// Peer addresses of masters of the cluster that an empty data directory is to join.
    pub join: Vec<String>,
    /// The cluster's token, for a data directory that has none yet.
    pub token_file: Option<PathBuf>,
    /// Allows listening beyond loopback although nothing is encrypted.
    pub insecure_listen: bool,
    /// Directory of `tessera-worker`, which judges uploads.
    pub bin_dir: PathBuf,
    /// How long an agent may be silent before its tasks become unreachable.
    pub agent_timeout_ms: u64,
    /// How long an agent may be silent before the schedulers it hosts are placed elsewhere.
    pub scheduler_grace_ms: u64,
    /// Registries that components may be pulled from, as `host` or `host:port`. None by default: a pull
    /// makes the master connect to where a user says.
    pub component_registries: Vec<String>,
    /// A public key (PEM, ECDSA on P-256). With one, what is pulled must be signed.
    pub component_key: Option<PathBuf>,
    /// With a key: take components as plain bytes all the same, which nobody signed.
    pub allow_unsigned_uploads: bool,
    /// How long the file of a component that the state does not name is kept.
    pub component_grace: Duration,
    /// Requests that each caller with a token may send in a second; zero is no limit.
    pub requests_per_s: u64,
    /// What is traced, and who gets it.
    pub tracing: TraceConfig,
}

/// What is traced, and who gets it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceConfig {
    /// Who takes spans; without it there are none.
    pub collector: Option<Collector>,
    /// Of a million changes that belong to no trace, so many begin one.
    pub sample_ppm: u32,
}

/// A setting that breaks a rule.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct InvalidConfig {
    /// The setting, named as its flag is.
    pub field: &'static str,
    /// The rule and the way out.
    pub rule: String,
}

/// Shortest time-out of an agent: below it, one slow disk write would look like a dead machine.
const AGENT_TIMEOUT_MIN_MS: u64 = 2_000;

/// How long files of removed components are kept when nothing is said: a day, in which a mistake is found and
/// the component added again.
pub const COMPONENT_GRACE: Duration = Duration::from_secs(24 * 3600);

/// Requests a second of one caller when nothing is said: more than a master answers on two cores, so that only what
/// runs wild is held back.
pub const REQUESTS_PER_S: u64 = 20_000;

/// Most of them: between two of them there is a nanosecond.
const REQUESTS_PER_S_MAX: u64 = 1_000_000_000;

/// Shortest such time: what is being uploaded is held, but the other masters' clocks are seconds apart.
const COMPONENT_GRACE_MIN: Duration = Duration::from_secs(1);

impl MasterConfig {
    /// Check every rule.
    ///
    /// # Errors
    /// The first one that is broken.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        for (field, address) in [("listen", self.listen), ("agent-listen", self.agent_listen)] {
            if !address.ip().is_loopback() && !self.insecure_listen {
                return Err(InvalidConfig {
                    field,
                    rule: format!(
                        "{address} is reachable by others and nothing is encrypted; listen on \
                         127.0.0.1, or pass --insecure-listen-without-tls if the network is trusted"
                    ),
                });
            }
        }
        if self.listen == self.agent_listen && self.listen.port() != 0 {
            return Err(InvalidConfig {
                field: "agent-listen",
                rule: format!("must differ from listen ({})", self.listen),
            });
        }
        for (field, listen, given) in [
            ("rest-address", self.listen, &self.rest_address),
            ("peer-address", self.agent_listen, &self.peer_address),
        ] {
            if listen.ip().is_unspecified() && given.is_none() {
                return Err(InvalidConfig {
                    field,
                    rule: format!("{listen} says not where others reach this master; name it, as HOST:PORT"),
                });
            }
            if let Some(given) = given {
                check_address(field, given).map_err(|rule| InvalidConfig { field, rule })?;
            }
        }
        if !self.join.is_empty() && self.token_file.is_none() {
            return Err(InvalidConfig {
                field: "token-file",
                rule: "a master that joins needs the cluster's token: copy admin.token of another master, and name the copy".into(),
            });
        }
        if self.agent_timeout_ms < AGENT_TIMEOUT_MIN_MS {
            return Err(InvalidConfig {
                field: "agent-timeout-ms",
                rule: format!("at least {AGENT_TIMEOUT_MIN_MS}"),
            });
        }
        for registry in &self.component_registries {
            if !is_registry(registry) {
                return Err(InvalidConfig {
                    field: "component-registry",
                    rule: format!("{registry:?} is no host or host:port, in lower case"),
                });
            }
        }
        if self.component_grace < COMPONENT_GRACE_MIN {
            return Err(InvalidConfig {
                field: "component-grace-s",
                rule: format!("at least {}", COMPONENT_GRACE_MIN.as_secs()),
            });
        }
        if self.requests_per_s > REQUESTS_PER_S_MAX {
            return Err(InvalidConfig {
                field: "requests-per-s",
                rule: format!("at most {REQUESTS_PER_S_MAX}; 0 is no limit"),
            });
        }
        if self.allow_unsigned_uploads && self.component_key.is_none() {
            return Err(InvalidConfig {
                field: "allow-unsigned-uploads",
                rule: "without --component-key nothing has to be signed; leave it out".into(),
            });
        }
        if self.scheduler_grace_ms == 0 || self.scheduler_grace_ms > self.agent_timeout_ms {
            return Err(InvalidConfig {
                field: "scheduler-grace-ms",
                rule: format!("from 1 to the agent's time-out ({})", self.agent_timeout_ms),
            });
        }
        Ok(())
    }
}

/// What a master says of itself to the others.
#[must_use]
pub fn member_info(config: &MasterConfig) -> v1::MemberInfo {
    let or = |given: &Option<String>, listen: SocketAddr| given.clone().unwrap_or(listen.to_string());
    let peer_address = or(&config.peer_address, config.agent_listen);
    v1::MemberInfo {
        name: match config.name.is_empty() {
            true => peer_address.clone(),
            false => config.name.clone(),
        },
        rest_address: or(&config.rest_address, config.listen),
        peer_address,
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
        added_at_ms: 0,
        understands: understands(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MasterConfig {
        MasterConfig {
            data_dir: "/nonexistent".into(),
            listen: ([127, 0, 0, 1], 5050).into(),
            agent_listen: ([127, 0, 0, 1], 5051).into(),
            name: String::new(),
            peer_address: None,
            rest_address: None,
            join: Vec::new(),
            token_file: None,
            insecure_listen: false,
            bin_dir: "/nonexistent".into(),
            agent_timeout_ms: 75_000,
            scheduler_grace_ms: 10_000,
            component_registries: vec!["ghcr.io".into(), "localhost:5000".into()],
            component_key: None,
            allow_unsigned_uploads: false,
            component_grace: COMPONENT_GRACE,
            requests_per_s: REQUESTS_PER_S,
            tracing: TraceConfig::default(),
        }
    }

    #[test]
    fn each_rule_names_its_setting() {
        assert!(config().validate().is_ok());
        type Edit = fn(&mut MasterConfig);
        let cases: [(&str, Edit); 12] = [
            ("requests-per-s", |c| c.requests_per_s = u64::MAX),
            ("listen", |c| c.listen = ([0, 0, 0, 0], 5050).into()),
            ("agent-listen", |c| {
                c.agent_listen = ([10, 0, 0, 1], 5051).into()
            }),
            ("agent-listen", |c| c.agent_listen = c.listen),
            ("peer-address", |c| c.peer_address = Some("nowhere".into())),
            ("rest-address", |c| c.rest_address = Some("host:0".into())),
            ("rest-address", |c| {
                c.listen = ([0, 0, 0, 0], 5050).into();
                c.insecure_listen = true;
            }),
            ("token-file", |c| c.join.push("10.0.0.1:5051".into())),
            ("agent-timeout-ms", |c| c.agent_timeout_ms = 10),
            ("scheduler-grace-ms", |c| c.scheduler_grace_ms = 100_000),
            ("component-registry", |c| {
                c.component_registries.push("https://ghcr.io".into())
            }),
            ("allow-unsigned-uploads", |c| {
                c.allow_unsigned_uploads = true
            }),
        ];
        for (field, edit) in cases {
            let mut bad = config();
            edit(&mut bad);
            assert_eq!(bad.validate().map_err(|e| e.field), Err(field));
        }
        let open = MasterConfig {
            listen: ([0, 0, 0, 0], 1).into(),
            rest_address: Some("host:1".into()),
            insecure_listen: true,
            ..config()
        };
        assert!(open.validate().is_ok());
    }
}
