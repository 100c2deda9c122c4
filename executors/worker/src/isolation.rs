//! What keeps a worker or a compiler apart from the machine and from others: its control group, its
//! files, its network, its user. The agent says which of these this machine can give.
//!
//! Invariants: the group is joined before memory is taken that should count there; everything is done
//! before the first thread and before the first byte of a peer is read, and what is asked for and cannot
//! be had ends the process. This file must never leave a part out silently.

use crate::jail;
use crate::reach::{self, Reach};
use nix::sched::{CloneFlags, unshare};
use serde::Serialize;
use std::path::PathBuf;

/// What is asked for.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Isolation {
    /// `cgroup.procs` of a control group to join; once per hierarchy.
    #[arg(long = "group", value_name = "FILE")]
    groups: Vec<PathBuf>,
    /// Have an empty network of its own; needs root.
    #[arg(long)]
    own_network: bool,
    /// User to become; needs root.
    #[arg(long)]
    uid: Option<u32>,
    /// Group to become; that of `--uid` by number when absent.
    #[arg(long)]
    gid: Option<u32>,
    /// Open no file but those that are open already and those below `--reach` and `--reach-write`; no TCP, no
    /// sockets without a path and no signals to others either. Needs Landlock.
    #[arg(long)]
    own_files: bool,
    #[command(flatten)]
    reach: Reach,
}

/// A protection that this machine or this user cannot give.
#[derive(Debug, Serialize)]
pub struct Missing {
    name: &'static str,
    why: String,
}

/// The answer of a probe.
#[derive(Debug, Serialize)]
pub struct Probe {
    missing: Vec<Missing>,
}

impl Isolation {
    /// Join the control group: the first thing that a worker does.
    ///
    /// # Errors
    /// When a hierarchy refuses.
    pub fn join_group(&self) -> Result<(), String> {
        for path in &self.groups {
            std::fs::write(path, "0")
                .map_err(|error| format!("joining the group {}: {error}", path.display()))?;
        }
        Ok(())
    }

    /// Leave the machine's files and network, the user that this process was started as, and the system calls
    /// that a guest's host never makes, for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<(), String> {
        self.leave()?;
        // Last: the calls of the others are among those that it refuses. It takes no privilege, so that every
        // worker has it.
        jail::give_up_calls().map_err(|error| error.to_string())
    }

    /// Leave files, network and user only.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn leave(&self) -> Result<(), String> {
        // First: who may pass through to the paths is the user that started this process.
        if self.own_files {
            self.reach.enter()?;
        }
        if self.own_network {
            leave_network().map_err(|error| format!("leaving the network: {error}"))?;
        }
        if let Some(uid) = self.uid {
            jail::become_user(uid, self.gid.unwrap_or(uid))
                .map_err(|error| format!("becoming user {uid}: {error}"))?;
        }
        Ok(())
    }

    /// Try what is asked for, one by one, and say what cannot be had.
    #[must_use]
    pub fn probe(&self) -> Probe {
        let mut missing = Vec::new();
        if self.own_network
            && let Err(error) = leave_network()
        {
            let why = format!("an own network: {error}");
            missing.push(Missing { name: "network", why });
        }
        if let Some(uid) = self.uid
            && let Err(error) = jail::become_user(uid, self.gid.unwrap_or(uid))
        {
            let why = format!("user {uid}: {error}");
            missing.push(Missing { name: "users", why });
        }
        if self.own_files {
            let of = |feature: &reach::Feature| Missing { name: feature.name, why: feature.why() };
            missing.extend(reach::missing().map(of));
            if missing.iter().all(|missing| missing.name != reach::FILES)
                && let Err(why) = self.reach.enter()
            {
                missing.push(Missing { name: reach::FILES, why });
            }
        }
        Probe { missing }
    }
}

/// A new network has nothing in it, not even a loopback interface that is up.
fn leave_network() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)
}
