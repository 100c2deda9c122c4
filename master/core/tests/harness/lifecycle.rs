//! What operators ask of frameworks and limits, as scripts write it.

use super::{Cluster, Words};
use tessera_master_core::{Expected, LimitSource, Request, RoleChange, value_tag};
use tessera_types::{Amounts, Digest, LimitName, Quantities};

/// `a=1` words as pairs.
fn pairs(words: &Words<'_>) -> Vec<(String, String)> {
    words.named.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

impl Cluster {
    /// `limits prod timers=3 unset=state-keys`; `cluster` stands for the whole cluster.
    pub(super) fn set_limits(&mut self, words: &Words<'_>) {
        let name = |text: &str| -> LimitName { text.parse().expect("a limit") };
        let role = words.plain(0);
        let role = (role != "cluster").then(|| role.parse().expect("a role"));
        let unset = words.named.get("unset").copied().unwrap_or_default();
        let unset = unset.split(',').filter(|text| !text.is_empty()).map(name).collect();
        let set = words.named.iter().filter(|(key, _)| **key != "unset");
        let set = set.map(|(key, value)| (name(key), value.parse().expect("a number"))).collect();
        self.request(Request::SetLimits { role, set, unset, expected: None });
    }

    /// `role prod/web weight=2000 limit=cpus:4000,mem:100 guarantee=cpus:1 hold=true version=7`; `role prod reset=true`.
    pub(super) fn set_role(&mut self, words: &Words<'_>) {
        let number = |key: &str| words.named.get(key).map(|text| text.parse::<u32>().expect("a number"));
        let amounts = |key: &str| {
            let each = words.named.get(key)?.split(',').filter(|text| !text.is_empty());
            let each = each.map(|text| text.split_once(':').expect("kind:amount"));
            Some(Amounts(each.map(|(kind, amount)| (kind.into(), amount.parse().expect("a number"))).collect()))
        };
        let change = if words.named.contains_key("reset") {
            RoleChange::reset()
        } else {
            RoleChange {
                weight_milli: number("weight"),
                priority: number("priority"),
                guarantee: amounts("guarantee"),
                limit: amounts("limit"),
                min_offer: number("min-cpus").map(|cpus| Quantities { cpus_milli: cpus.into(), ..Quantities::ZERO }),
                hold_back: words.named.get("hold").map(|text| *text == "true"),
            }
        };
        let role = words.plain(0).parse().expect("a role");
        let expected_version = number("version").map(u64::from);
        self.request(Request::SetRole { role, change, expected_version });
    }

    /// `write web k v` writes a key from outside, `write web k` deletes it; `if=present`, `if=absent` and
    /// `same=v` are conditions; `big=1000` is a value of so many bytes. `writes web 100 k v` writes k1 to k100.
    pub(super) fn write(&mut self, verb: &str, words: &Words<'_>) {
        let framework = self.id(words.plain(0));
        let expected = match (words.named.get("if").copied(), words.named.get("same")) {
            (Some("present"), _) => Expected::Present,
            (Some("absent"), _) => Expected::Absent,
            (_, Some(value)) => Expected::Same(value_tag(value.as_bytes())),
            _ => Expected::Anything,
        };
        let value = |at: usize| match words.number("big", 0) {
            0 => words.plain.get(at).map(|value| value.as_bytes().to_vec()),
            bytes => Some(vec![b'x'; usize::try_from(bytes).expect("positive")]),
        };
        let keys: Vec<String> = match verb {
            "writes" => {
                let count: u32 = words.plain(1).parse().expect("a number");
                (1..=count).map(|n| format!("{}{n}", words.plain(2))).collect()
            }
            _ => vec![words.plain(1).into()],
        };
        let many = keys.len() > 1;
        for key in keys {
            let value = value(if many { 3 } else { 2 });
            self.request(Request::WriteState { framework, key, value, expected });
        }
        if many {
            // They are all alike.
            let reply = "reply: done\n";
            let count = self.out.matches(reply).count();
            self.out = self.out.replace(reply, "");
            self.say(&format!("{count} written"));
        }
    }

    /// `lifecycle` verbs: `upgrade`, `rollback`, `config`, `release`.
    pub(super) fn lifecycle(&mut self, verb: &str, words: &Words<'_>) {
        let framework = self.id(words.plain(0));
        let number = |name: &str| words.named.get(name).map(|n| n.parse().expect("a number"));
        let request = match verb {
            "upgrade" => {
                let component = words.plain(1);
                let known = self.components.get(component).copied();
                let component = known.unwrap_or_else(|| Digest::of(component.as_bytes()));
                Request::UpgradeFramework { framework, component }
            }
            "rollback" => Request::RollBackFramework { framework, version: number("to") },
            "release" => Request::ReleaseFramework { framework },
            _ => {
                let expected_version = number("expect");
                let mut config = pairs(words);
                config.retain(|(key, _)| key != "expect");
                Request::SetConfig { framework, config, expected_version, unreachable: None }
            }
        };
        self.request(request);
    }

    pub(super) fn show_lifecycle(&self, words: &Words<'_>) -> String {
        match words.plain(0) {
            "limits" => {
                let role = words.plain(1);
                let role = (role != "cluster").then(|| role.parse().expect("a role"));
                let limits = self.core.limits(role.as_ref()).into_iter();
                let set = limits.filter(|limit| limit.from != LimitSource::Default);
                let set = set.map(|limit| match limit.from {
                    LimitSource::Role(role) => format!("{}={} from {role}", limit.name, limit.value),
                    _ => format!("{}={} from the cluster", limit.name, limit.value),
                });
                set.collect::<Vec<_>>().join(", ")
            }
            "state" => {
                let framework = self.id(words.plain(1));
                let found = self.core.state_page(framework, None, 1000, &self.rows);
                let found = found.expect("rows can be read").into_iter().map(|write| {
                    let value = write.value.unwrap_or_default();
                    match value.len() {
                        0..=20 => format!("{}={}", write.key, String::from_utf8_lossy(&value)),
                        bytes => format!("{}=({bytes} bytes)", write.key),
                    }
                });
                found.collect::<Vec<_>>().join(" ")
            }
            _ => {
                let framework = self.id(words.plain(1));
                let Some(view) = self.core.framework(framework) else {
                    return format!("{}: is not there", words.plain(1));
                };
                let versions = view.versions.iter().map(|version| {
                    let component = self.components.iter().find(|(_, d)| **d == version.component);
                    let component = component.map_or("?", |(name, _)| name.as_str());
                    format!("{} {component} {}: {}", version.version, version.origin.name(), version.outcome)
                });
                let versions = versions.collect::<Vec<_>>().join(", ");
                let mut text = format!(
                    "{}: {}, {}, state version {}, config {} seen {}, versions [{versions}]",
                    view.name,
                    view.phase.name(),
                    view.epoch,
                    view.state_version,
                    view.config_version,
                    view.config_seen,
                );
                if view.merging {
                    text += ", merging";
                }
                if view.failing.in_a_row > 0 || !view.failing.at_ms.is_empty() {
                    let (row, window) = (view.failing.in_a_row, view.failing.at_ms.len());
                    text += &format!(", failed {row} in a row and {window} in the window");
                }
                if let Some(quarantine) = view.quarantine {
                    let failing = view.failing;
                    text += &format!(
                        ", quarantined by {}: {} limit {:?} turn {}: {}",
                        quarantine.rule, failing.reason, failing.limit, failing.turn, failing.message
                    );
                }
                text
            }
        }
    }
}
