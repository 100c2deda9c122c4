//! What this process can reach beside what it has open: a domain of the kernel (Landlock), entered for good.
//!
//! Invariants: what is not named cannot be reached; what this kernel cannot hold back has a name and is
//! told, never left out silently; all later threads are in the domain. It asks for no privilege. Looking
//! at names, sizes and modes of files is not held back by any kernel. This file must never widen a domain.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope, make_bitflags,
};
use std::path::PathBuf;

/// Something that a kernel can or cannot hold back.
pub struct Feature {
    /// What operators know it by.
    pub name: &'static str,
    /// What a process can do where it is missing.
    pub without: &'static str,
    /// The first kernel that has it.
    since: &'static str,
    ask: fn(Ruleset) -> Result<Ruleset, RulesetError>,
    /// What of it a worker does in directories that are its guests'. No devices, no sockets, no programs.
    own: BitFlags<AccessFs>,
}

/// Name of the feature without which there is no domain.
pub const FILES: &str = "files";

/// All that is asked for, each by name: what a later kernel has besides is not asked for before it was
/// tried.
const FEATURES: [Feature; 5] = [
    Feature {
        name: FILES,
        without: "workers can open the machine's files as any local user can",
        since: "Linux 5.19",
        // The second version is the first that lets a guest move a file between its own directories.
        ask: |ruleset| ruleset.handle_access(AccessFs::from_all(ABI::V2)),
        own: make_bitflags!(AccessFs::{
            ReadFile | ReadDir | WriteFile | RemoveFile | RemoveDir | MakeReg | MakeDir | Refer
        }),
    },
    Feature {
        name: "truncation",
        without: "workers can cut files of their own user short, wherever these are",
        since: "Linux 6.2",
        ask: |ruleset| ruleset.handle_access(AccessFs::Truncate),
        own: make_bitflags!(AccessFs::{Truncate}),
    },
    Feature {
        name: "tcp",
        without: "only the empty network and the filter of system calls keep workers from TCP",
        since: "Linux 6.7",
        ask: |ruleset| ruleset.handle_access(AccessNet::from_all(ABI::V4)),
        own: BitFlags::EMPTY,
    },
    Feature {
        name: "devices",
        without: "workers can control devices that they were started with",
        since: "Linux 6.10",
        ask: |ruleset| ruleset.handle_access(AccessFs::IoctlDev),
        own: BitFlags::EMPTY,
    },
    Feature {
        name: "scopes",
        without: "only the filter of system calls keeps workers from signals to other processes and from sockets \
                  without a path",
        since: "Linux 6.12",
        ask: |ruleset| ruleset.scope(Scope::AbstractUnixSocket | Scope::Signal),
        own: BitFlags::EMPTY,
    },
];

impl Feature {
    /// Why it is missing, for operators.
    #[must_use]
    pub fn why(&self) -> String {
        format!("this kernel's Landlock, if it has one, lacks it ({} has it): {}", self.since, self.without)
    }

    fn is_there(&self) -> bool {
        // The kernel is asked which version it has; nothing is made.
        (self.ask)(Ruleset::default().set_compatibility(CompatLevel::HardRequirement)).is_ok()
    }
}

/// What this kernel cannot hold back.
pub fn missing() -> impl Iterator<Item = &'static Feature> {
    FEATURES.iter().filter(|feature| !feature.is_there())
}

/// What stays within reach.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Reach {
    /// A file or directory; those below it can be read by who knows their names. Repeat it for more.
    #[arg(long = "reach", value_name = "PATH", requires = "own_files")]
    read: Vec<PathBuf>,
    /// A directory below which files and directories can be made, changed and removed. Repeat it for more.
    #[arg(long = "reach-write", value_name = "PATH", requires = "own_files")]
    write: Vec<PathBuf>,
    /// Symbolic links can be made there too: where the agent has another user, so that no link of a worker's
    /// leads it astray.
    #[arg(long = "reach-links", requires = "own_files")]
    links: bool,
}

impl Reach {
    /// Give up everything else, for this thread and those that it makes from now on: to be called before the
    /// first.
    ///
    /// # Errors
    /// When this kernel cannot hold files back, or a path is not there.
    pub fn enter(&self) -> Result<(), String> {
        let told = |error: RulesetError| format!("giving up files: {error}");
        let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let mut own = if self.links { AccessFs::MakeSym.into() } else { BitFlags::EMPTY };
        for feature in &FEATURES {
            if feature.is_there() {
                ruleset = (feature.ask)(ruleset).map_err(told)?;
                own |= feature.own;
            } else if feature.name == FILES {
                return Err(format!("giving up files: {}", feature.why()));
            }
        }
        let mut created = ruleset.create().map_err(told)?;
        let read = self.read.iter().map(|path| (path, BitFlags::from(AccessFs::ReadFile)));
        let write = self.write.iter().map(|path| (path, own));
        for (path, access) in read.chain(write) {
            let open = PathFd::new(path).map_err(|error| format!("giving up files: {error}"))?;
            created = created.add_rule(PathBeneath::new(open, access)).map_err(told)?;
        }
        created.restrict_self().map_err(told)?;
        Ok(())
    }
}

/// Give up everything that is not open, where the kernel can; what it cannot is logged.
///
/// # Errors
/// When a kernel that can does not.
pub fn give_up_all() -> Result<(), String> {
    for feature in missing() {
        tracing::warn!(name = feature.name, why = feature.why(), "a protection is missing");
    }
    if missing().any(|feature| feature.name == FILES) {
        return Ok(());
    }
    Reach::default().enter()
}
