//! Tries what a worker that a guest has taken over would try, and says what became of it. For tests.
//!
//! Invariants: it tries what it is told to, and nothing else. This file must never be part of a mode that
//! serves or judges.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixStream};

/// What became of a try.
#[derive(Debug, Serialize)]
pub struct Tried {
    /// As it was asked for.
    what: String,
    /// Of the error; 0 when it went well.
    errno: i32,
}

/// Try these, each `KIND:ARGUMENT`, where two paths are separated by a comma.
///
/// # Errors
/// When there is no such kind.
pub fn run(tries: &[String]) -> Result<Vec<Tried>, String> {
    let tried = |what: &String| {
        let (kind, argument) = what.split_once(':').ok_or_else(|| format!("{what}: not KIND:ARGUMENT"))?;
        let errno = match attempt(kind, argument)? {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(-1),
        };
        Ok(Tried { what: what.clone(), errno })
    };
    tries.iter().map(tried).collect()
}

fn attempt(kind: &str, argument: &str) -> Result<io::Result<()>, String> {
    let two = || argument.split_once(',').ok_or_else(|| format!("{kind}:{argument}: not two paths"));
    let number = || argument.parse::<u16>().map_err(|_| format!("{kind}:{argument}: not a number"));
    Ok(match kind {
        "read" => File::open(argument).and_then(|mut file| io::copy(&mut file, &mut io::sink())).map(drop),
        "list" => fs::read_dir(argument).map(drop),
        "append" => OpenOptions::new().append(true).open(argument).map(drop),
        "truncate" => nix::unistd::truncate(argument, 0).map_err(io::Error::from),
        "create" => OpenOptions::new().write(true).create_new(true).open(argument).map(drop),
        "mkdir" => fs::create_dir(argument),
        "remove" => fs::remove_file(argument),
        "rename" => two().map(|(from, to)| fs::rename(from, to))?,
        "link" => two().map(|(from, to)| fs::hard_link(from, to))?,
        "symlink" => two().map(|(to, at)| symlink(to, at))?,
        "connect" => TcpStream::connect(("127.0.0.1", number()?)).map(drop),
        "bind" => TcpListener::bind(("127.0.0.1", number()?)).map(drop),
        "abstract" => SocketAddr::from_abstract_name(argument).and_then(|name| UnixStream::connect_addr(&name)).map(drop),
        // A signal that does nothing but to be allowed.
        "signal" => kill(Pid::from_raw(argument.parse().map_err(|_| format!("{argument}: no process"))?), None::<Signal>).map_err(io::Error::from),
        _ => return Err(format!("{kind}: not a kind of try")),
    })
}
