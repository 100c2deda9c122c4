//! Scripts about a state that is saved, and restored later.

use super::{Cluster, Words};
use tessera_master_core::{Config, Request, restored};

impl Cluster {
    /// `save-state`, `restore-state` and `end-strangers a1`.
    pub(super) fn restore(&mut self, verb: &str, words: &Words<'_>) {
        match verb {
            "save-state" => self.saved = self.rows.clone(),
            "restore-state" => {
                self.rows = self.saved.clone();
                let changes = restored(&self.rows, &Config::default()).expect("the rows make a state");
                self.rows.write(changes);
                self.restart_master();
            }
            _ => {
                let agent = words.plain(0).parse().expect("an agent's id");
                self.request(Request::EndStrangers { agent });
            }
        }
    }
}
