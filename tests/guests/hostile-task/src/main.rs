//! A task that attacks its host and its neighbours, as its first argument says. It prints
//! `contained: …` when the host refused or hid what was tried, and `ESCAPED: …` when it did not;
//! then its exit code is not 0. What is expected of each attack stands in the table of the test that
//! starts it.

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::path::Path;
use std::process::exit;
use std::time::Duration;

const MIB: usize = 1 << 20;

/// Where a task could be led out of its sandbox.
const OUTSIDE: &[&str] = &[
    "..",
    "../",
    "../..",
    "../../../../../../../../etc/passwd",
    "/etc/passwd",
    "/../etc/passwd",
    "/proc/self/environ",
    "//proc/1/cmdline",
    "link/../../etc/passwd",
    "out/",
    "out/etc/passwd",
    "out/../../etc/passwd",
];

fn main() {
    let attack = std::env::args().nth(1).unwrap_or_default();
    let escaped = match attack.as_str() {
        "memory-steps" => touch_for_ever(),
        "memory-at-once" => reserve(),
        "loop" => spin(),
        "sleep" => {
            std::thread::sleep(Duration::from_secs(u64::from(u32::MAX)));
            vec!["woke up".to_owned()]
        }
        "stack" => vec![recurse(1).to_string()],
        "trap" => panic!("asked to panic"),
        "exit" => exit(42),
        "files" => files(),
        "links" => links(),
        "network" => network(),
        "fetch" => fetch(),
        "environment" => environment(),
        "stdin" => stdin(),
        "output" => output(),
        "handles" => handles(),
        "random" => {
            let bytes = wasip2::random::random::get_random_bytes(1 << 30);
            vec![format!("{} random bytes", bytes.len())]
        }
        "result-giant" => result_giant(),
        "result-link" => result_link(),
        other => vec![format!("there is no attack {other:?}")],
    };
    if escaped.is_empty() {
        println!("contained: {attack}");
        exit(0);
    }
    println!("ESCAPED: {}", escaped.join("; "));
    exit(1);
}

fn spin() -> ! {
    let mut turns: u64 = 0;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    let below = recurse(black_box(depth.wrapping_add(1)));
    below.wrapping_add(frame.iter().sum())
}

fn touch_for_ever() -> ! {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(black_box(vec![1_u8; MIB]));
    }
}

fn reserve() -> Vec<String> {
    let mut block: Vec<u8> = Vec::new();
    match block.try_reserve_exact(1_024 * MIB) {
        Ok(()) => vec!["a GiB at once".to_owned()],
        Err(_) => Vec::new(),
    }
}

fn look(path: &str, escaped: &mut Vec<String>) {
    if std::fs::read(path).is_ok() {
        escaped.push(format!("read {path}"));
    }
    if std::fs::read_dir(path).is_ok_and(|mut found| found.any(|entry| entry.is_ok())) {
        // `..` at the root of the sandbox may be the sandbox itself.
        if Path::new(path).join("agent").exists() || Path::new(path).join("etc").exists() {
            escaped.push(format!("listed {path}"));
        }
    }
    if std::fs::write(format!("{path}/escaped"), "x").is_ok() && !Path::new("escaped").exists() {
        escaped.push(format!("wrote below {path}"));
    }
}

fn files() -> Vec<String> {
    let mut escaped = Vec::new();
    for path in OUTSIDE {
        look(path, &mut escaped);
    }
    let mine = std::fs::write("mine", "x").is_ok();
    if !mine || std::fs::rename("mine", "../stolen").is_ok() || std::fs::hard_link("mine", "../x").is_ok()
    {
        escaped.push("moved a file out".to_owned());
    }
    escaped
}

/// Links that lead outside, followed in every way.
fn links() -> Vec<String> {
    let mut escaped = Vec::new();
    let targets = ["..", "../..", "/", "/etc", "../../../../../../../../"];
    for (number, target) in targets.iter().enumerate() {
        let _ = std::fs::remove_file("out");
        if wasip2_symlink(target, "out").is_err() {
            continue;
        }
        for path in [
            "out/",
            "out/.",
            "out/etc/passwd",
            "out/passwd",
            "out//etc//passwd",
            "out/../etc/passwd",
        ] {
            if std::fs::read(path).is_ok() || std::fs::metadata(path).is_ok() {
                escaped.push(format!("{number}: {path} by {target}"));
            }
        }
        if std::fs::write("out/escaped", "x").is_ok() {
            escaped.push(format!("wrote through {target}"));
        }
    }
    let _ = std::fs::remove_file("out");
    escaped
}

/// The only directory that the task has been given.
fn sandbox() -> Option<wasip2::filesystem::types::Descriptor> {
    let opened = wasip2::filesystem::preopens::get_directories();
    opened.into_iter().next().map(|(directory, _)| directory)
}

fn wasip2_symlink(target: &str, name: &str) -> Result<(), String> {
    let sandbox = sandbox().ok_or("no directory")?;
    sandbox
        .symlink_at(target, name)
        .map_err(|error| error.to_string())
}

fn network() -> Vec<String> {
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
    if TcpListener::bind("0.0.0.0:0").is_ok() || UdpSocket::bind("127.0.0.1:0").is_ok() {
        escaped.push("has a socket".to_owned());
    }
    if ("localhost", 80).to_socket_addrs().is_ok() {
        escaped.push("resolved a name".to_owned());
    }
    escaped
}

/// Nothing of the host's environment, only what the task was given.
/// Ask for pages by `wasi:http`.
fn fetch() -> Vec<String> {
    use wasip2::http::outgoing_handler::handle;
    use wasip2::http::types::{ErrorCode, Fields, OutgoingRequest, Scheme};
    let mut escaped = Vec::new();
    for authority in ["127.0.0.1:5050", "169.254.169.254", "example.org"] {
        let request = OutgoingRequest::new(Fields::new());
        let made = [
            request.set_scheme(Some(&Scheme::Http)),
            request.set_authority(Some(authority)),
            request.set_path_with_query(Some("/v1/agents")),
        ];
        if made.iter().any(Result::is_err) {
            println!("no request to {authority}");
        }
        match handle(request, None) {
            Err(ErrorCode::HttpRequestDenied) => println!("denied: {authority}"),
            Err(other) => escaped.push(format!("{authority}: {other:?}, and not denied")),
            Ok(_) => escaped.push(format!("asked {authority}")),
        }
    }
    escaped
}

fn environment() -> Vec<String> {
    let own = |name: &str| name.starts_with("TESSERA_") || name.starts_with("SPAWN_");
    let names = std::env::vars().map(|(name, _)| name);
    let foreign = names.filter(|name| !own(name) && name != "PWD" && name != "HOME");
    let secret = std::env::vars().filter(|(name, _)| name.contains("TOKEN"));
    foreign.chain(secret.map(|(name, _)| name)).collect()
}

fn stdin() -> Vec<String> {
    let mut byte = [0];
    match std::io::stdin().read(&mut byte) {
        Ok(0) | Err(_) => Vec::new(),
        Ok(_) => vec!["read from standard input".to_owned()],
    }
}

/// More than is kept; all of it is taken.
fn output() -> Vec<String> {
    let block = vec![b'o'; 64 << 10];
    let mut out = std::io::stderr();
    for _ in 0..1_100 {
        if out.write_all(&block).is_err() {
            break;
        }
    }
    Vec::new()
}

fn handles() -> Vec<String> {
    let mut held = Vec::new();
    for count in 0..100_000 {
        match std::fs::File::options().append(true).create(true).open("held") {
            Ok(file) => held.push(file),
            Err(_) => return Vec::new(),
        }
        black_box(count);
    }
    vec![format!("{} open files", held.len())]
}

fn result_giant() -> Vec<String> {
    match std::fs::write("result", vec![b'r'; 8 * MIB]) {
        Ok(()) => Vec::new(),
        Err(error) => vec![error.to_string()],
    }
}

/// The result file, and the output, become links to what the host can read and the task cannot.
fn result_link() -> Vec<String> {
    let up = "../../../../../../../../../../etc/passwd";
    let _ = std::fs::remove_file("result");
    let _ = wasip2_symlink(up, "result");
    let _ = wasip2_symlink(up, "link");
    let _ = std::fs::remove_file("stderr");
    let _ = wasip2_symlink(up, "stderr");
    Vec::new()
}
