//! What operators ask of agents, and requests that come again, as scripts write it.

use super::{Cluster, Words, duration_ms};
use tessera_master_core::{Keep, Maintenance, Once, Principal, Request, UnreachablePolicy};
use tessera_types::{AgentId, Digest};

/// `replace-after=30s keep=first`.
pub(super) fn policy(words: &Words<'_>) -> UnreachablePolicy {
    UnreachablePolicy {
        replace_after_ms: words.named.get("replace-after").map(|text| duration_ms(text)),
        keep: match words.named.get("keep").copied() {
            Some("first") => Keep::First,
            _ => Keep::Last,
        },
    }
}

impl Cluster {
    /// `deactivate a1`, `activate a1`, `drain a1 10s`, `gone a1`, `maintain a1 10s 60s` or `maintain a1 never`.
    pub(super) fn upkeep(&mut self, verb: &str, words: &Words<'_>) {
        let agent: AgentId = words.plain(0).parse().expect("an agent");
        let request = match verb {
            "gone" => Request::MarkGone { agent },
            "maintain" if words.plain(1) == "never" => {
                Request::SetMaintenance { agent, maintenance: None }
            }
            "maintain" => {
                let at = |word| self.now.wall_ms + duration_ms(words.plain(word));
                let maintenance = Some(Maintenance { start_ms: at(1), end_ms: at(2) });
                Request::SetMaintenance { agent, maintenance }
            }
            "drain" => {
                let drain_ms = Some(duration_ms(words.plain(1)));
                Request::SetAgentMode { agent, deactivated: true, drain_ms }
            }
            _ => Request::SetAgentMode { agent, deactivated: verb == "deactivate", drain_ms: None },
        };
        self.request(request);
    }

    /// `remove-component sched`, and `cluster-version 2`, which it needs.
    pub(super) fn components_upkeep(&mut self, verb: &str, words: &Words<'_>) {
        let request = match verb {
            "cluster-version" => {
                Request::SetClusterVersion { version: words.plain(0).parse().expect("a version") }
            }
            _ => Request::RemoveComponent { digest: Digest::of(words.plain(0).as_bytes()) },
        };
        self.request(request);
    }

    /// `impostor n1 boot=copy`: another machine registers with the agent's work directory, and the agent's own
    /// session is left alone.
    pub(super) fn impostor(&mut self, words: &Words<'_>) {
        let own = self.agents[words.plain(0)].session;
        self.reopen(words);
        self.agents.get_mut(words.plain(0)).expect("an agent").session = own;
    }

    /// `stand-still 60s`: the process is stopped for so long, and looks at the time then.
    pub(super) fn stand_still(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
        let outputs = self.core.on_tick(self.now);
        self.process(outputs);
    }

    /// `once key1 web prod sched`: a framework is created by a request that may come again.
    pub(super) fn once(&mut self, words: &Words<'_>) {
        let said = words.plain[1..].join(" ");
        let request = match words.plain(1) {
            "remove" => Request::RemoveFramework { framework: self.id(words.plain(2)) },
            name => Request::CreateFramework {
                name: name.parse().expect("a name"),
                role: "prod".parse().expect("a role"),
                component: Digest::of(b"sched"),
                config: vec![],
                unreachable: UnreachablePolicy::default(),
            },
        };
        let once = Once { key: words.plain(0).into(), fingerprint: Digest::of(said.as_bytes()) };
        self.tickets += 1;
        let principal = Principal::administrator();
        let outputs = self.core.on_request_once(self.tickets, &principal, request, once, self.now);
        self.process(outputs);
    }
}
