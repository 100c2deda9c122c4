//! Users of tasks: names and numbers resolved on the agent, so that the shim needs no name service.
//!
//! This file must never change the identity of a process.

use nix::unistd::{Gid, Uid, User};
use serde::{Deserialize, Serialize};
use std::ffi::CString;

/// Whom a task runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskUser {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login name, or the number when there is none.
    pub name: String,
}

/// Why a user was refused.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Nobody has this name.
    #[error("this machine has no user {0:?}")]
    Unknown(String),
    /// The agent may not change to it.
    #[error("user {0:?}: the agent does not run as root and cannot change its user")]
    NotAllowed(String),
    /// The user database could not be read.
    #[error("looking up user {name:?}: {source}")]
    Lookup {
        /// Who was looked up.
        name: String,
        /// What the system said.
        source: nix::Error,
    },
}

/// Find a user by name or number. A number needs no entry in the user database.
///
/// # Errors
/// When a name is unknown, or the agent could not change to the user.
pub fn resolve(name: &str) -> Result<TaskUser, UserError> {
    let lookup = |source| UserError::Lookup {
        name: name.to_owned(),
        source,
    };
    let number = name.parse::<u32>().ok();
    let found = match number {
        Some(uid) => User::from_uid(Uid::from_raw(uid)).map_err(lookup)?,
        None => User::from_name(name).map_err(lookup)?,
    };
    let user = match (found, number) {
        (Some(user), _) => from_entry(user).map_err(lookup)?,
        (None, Some(uid)) => TaskUser {
            uid,
            gid: uid,
            groups: vec![uid],
            home: "/".into(),
            name: name.to_owned(),
        },
        (None, None) => return Err(UserError::Unknown(name.to_owned())),
    };
    if !Uid::effective().is_root() && user.uid != Uid::effective().as_raw() {
        return Err(UserError::NotAllowed(name.to_owned()));
    }
    Ok(user)
}

/// The user that this process runs as.
///
/// # Errors
/// When the user database could not be read.
pub fn current() -> Result<TaskUser, UserError> {
    resolve(&Uid::effective().as_raw().to_string())
}

fn from_entry(user: User) -> Result<TaskUser, nix::Error> {
    let name = CString::new(user.name.clone()).map_err(|_| nix::Error::EINVAL)?;
    let groups = nix::unistd::getgrouplist(&name, user.gid)?;
    Ok(TaskUser {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
        home: user.dir.to_string_lossy().into_owned(),
        name: user.name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let own = current().unwrap();
        assert_eq!(own.uid, Uid::effective().as_raw());
        assert!(matches!(
            resolve("no-such-user-here"),
            Err(UserError::Unknown(_))
        ));
        if Uid::effective().is_root() {
            let nobody = resolve("nobody").unwrap();
            assert_eq!(resolve(&nobody.uid.to_string()).unwrap(), nobody);
            assert_eq!(resolve("61234").unwrap().gid, 61234);
        } else {
            assert!(matches!(resolve("0"), Err(UserError::NotAllowed(_))));
        }
    }
}
