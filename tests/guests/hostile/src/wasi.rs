//! Attacks through WASI: files, network, environment, clocks, randomness, handles, output.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::time::{Duration, Instant};

/// The attack of this name, if it is one of these.
pub fn attack(name: &str) -> Option<String> {
    Some(match name {
        "wasi-files" => files(),
        "wasi-environment" => environment(),
        "wasi-network" => network(),
        "wasi-stdin" => stdin(),
        "wasi-sleep" => sleep(),
        "wasi-clock" => clock(),
        "wasi-random" => {
            let bytes = wasip2::random::random::get_random_bytes(1 << 30);
            format!("ESCAPED: {} random bytes", bytes.len())
        }
        "wasi-handles" => handles(),
        "wasi-print" => print(),
        "wasi-poll-nothing" => {
            wasip2::io::poll::poll(&[]);
            "ESCAPED: polled nothing".to_owned()
        }
        _ => return None,
    })
}

fn verdict(escaped: Vec<String>, what: &str) -> String {
    if escaped.is_empty() {
        format!("contained: {what}")
    } else {
        format!("ESCAPED: {}", escaped.join("; "))
    }
}

fn files() -> String {
    let mut escaped = Vec::new();
    for path in [
        "/",
        ".",
        "..",
        "/etc/passwd",
        "/proc/self/environ",
        "stdout",
        "/tmp/x",
    ] {
        if std::fs::read(path).is_ok() || std::fs::read_dir(path).is_ok() {
            escaped.push(format!("read {path}"));
        }
        if std::fs::write(path, "x").is_ok() {
            escaped.push(format!("wrote {path}"));
        }
    }
    if !wasip2::filesystem::preopens::get_directories().is_empty() {
        escaped.push("a directory is open".to_owned());
    }
    verdict(escaped, "there are no files")
}

fn environment() -> String {
    let mut found: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
    found.extend(std::env::args());
    verdict(found, "neither environment nor arguments")
}

fn network() -> String {
    let mut escaped = Vec::new();
    for address in [
        "127.0.0.1:5050",
        "169.254.169.254:80",
        "10.0.0.1:22",
        "[::1]:5051",
    ] {
        if TcpStream::connect(address).is_ok() {
            escaped.push(format!("connected to {address}"));
        }
    }
    if TcpListener::bind("127.0.0.1:0").is_ok() {
        escaped.push("listens".to_owned());
    }
    if UdpSocket::bind("127.0.0.1:0").is_ok() {
        escaped.push("has a datagram socket".to_owned());
    }
    if ("localhost", 80).to_socket_addrs().is_ok() {
        escaped.push("resolved a name".to_owned());
    }
    verdict(escaped, "no connection, no socket, no name")
}

fn stdin() -> String {
    let mut byte = [0];
    match std::io::stdin().read(&mut byte) {
        Ok(0) | Err(_) => "contained: nothing to read".to_owned(),
        Ok(_) => "ESCAPED: read from standard input".to_owned(),
    }
}

/// A century in one turn: the clock moves, nobody waits.
fn sleep() -> String {
    let century = Duration::from_secs(100 * 365 * 86_400);
    let before = Instant::now();
    std::thread::sleep(century);
    if before.elapsed() >= century {
        "contained: a century went by without waiting".to_owned()
    } else {
        "the clock did not move".to_owned()
    }
}

/// Work between two readings must not be seen by them.
fn clock() -> String {
    let first = Instant::now();
    let second = Instant::now();
    let mut work: u64 = 0;
    for step in 0..5_000_000_u64 {
        work = std::hint::black_box(work.wrapping_add(step));
    }
    let third = Instant::now();
    if second - first == third - second {
        "contained: clocks do not show how long work takes".to_owned()
    } else {
        format!("ESCAPED: {:?} against {:?}", second - first, third - second)
    }
}

fn handles() -> String {
    for count in 0..1_000_000_u64 {
        std::mem::forget(wasip2::clocks::monotonic_clock::subscribe_duration(count));
    }
    "ESCAPED: a million handles".to_owned()
}

/// Output without end, with what could take over a terminal.
fn print() -> String {
    let mut out = std::io::stdout();
    for number in 0..200_000 {
        if writeln!(out, "\u{1b}[2J\u{1b}]0;owned\u{7} line {number}").is_err() {
            return format!("refused after {number} lines");
        }
    }
    "printed".to_owned()
}
