//! Verbs of scripts about components that agents compile ahead.

use super::{Cluster, Words};
use tessera_master_core::AheadState;
use tessera_types::Digest;
use tessera_wire::v1::{self, agent_message::Message as In};

impl Cluster {
    /// What a component is called in the script.
    pub(super) fn component_name(&self, digest: &Digest) -> &str {
        let known = self.components.iter().find(|(_, known)| *known == digest);
        known.map_or("?", |(name, _)| name)
    }

    /// `compiled n1 sched=compiled other=failed`
    pub(super) fn compiled(&mut self, words: &Words<'_>) {
        let component = |(name, state): (&&str, &&str)| v1::AheadComponent {
            component: self.components[*name].0.to_vec(),
            state: match *state {
                "waiting" => v1::AheadState::Waiting,
                "compiled" => v1::AheadState::Compiled,
                "failed" => v1::AheadState::Failed,
                other => panic!("no such state: {other}"),
            }
            .into(),
            error: if *state == "failed" { "no room".into() } else { String::new() },
        };
        let components = words.named.iter().map(component).collect();
        let said = v1::CompiledAhead { components, compilations: 7 };
        self.from_agent(words.plain(0), In::CompiledAhead(said));
    }

    pub(super) fn show_standby(&self, framework: &str) -> String {
        let view = self.core.framework(self.id(framework));
        match view.and_then(|view| view.standby) {
            Some(standby) => format!("{framework}: standby {} {}", standby.agent, shown(&standby.state)),
            None => format!("{framework}: no standby"),
        }
    }

    pub(super) fn show_ahead(&self, agent: &str) -> String {
        let id = agent.parse().expect("an agent");
        let view = self.core.agent(id).expect("a known agent");
        let ahead = view.ahead.iter();
        let ahead = ahead.map(|(digest, state)| format!(" {} {}", self.component_name(digest), shown(state)));
        let (ahead, compilations) = (ahead.collect::<String>(), view.compilations);
        format!("{agent}: stands by for {},{ahead}; compiled {compilations:?}", view.standby_for)
    }
}

fn shown(state: &AheadState) -> String {
    match state {
        AheadState::Failed(error) => format!("failed ({error})"),
        other => other.name().to_owned(),
    }
}
