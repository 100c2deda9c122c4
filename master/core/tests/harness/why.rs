//! Why somebody gets nothing: `why role eng`, `why framework web`, `why request web big`.

use super::{Cluster, Words};

impl Cluster {
    pub(super) fn why(&mut self, words: &Words<'_>) {
        let (what, name) = (words.plain(0), words.plain(1));
        let reasons = match what {
            "role" => self.core.explain_role(&name.parse().expect("a role")),
            "framework" => self.core.explain_framework(self.id(name)),
            "request" => self.core.explain_request(self.id(name), words.plain(2)),
            other => panic!("nothing to explain: {other}"),
        };
        let Some(reasons) = reasons else { return self.say("there is none") };
        for reason in reasons {
            self.say(&format!("{} on {}: {}", reason.code, reason.agents, reason.text));
        }
    }
}
