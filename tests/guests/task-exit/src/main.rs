//! A task that ends as its first argument says: with that exit code, or by a panic for `trap`.
//! Before that it prints its arguments to stdout and its environment to stderr, and with `sleep`
//! and a number of ms as further arguments it waits.
//!
//! WASI 0.2 knows success and failure only: every code but 0 arrives at the host as 1.

use std::time::Duration;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    println!("args: {}", args.get(1..).unwrap_or_default().join(" "));
    for (name, value) in std::env::vars() {
        eprintln!("{name}={value}");
    }
    if args.get(2).is_some_and(|verb| verb == "sleep") {
        let millis = args.get(3).and_then(|text| text.parse().ok()).unwrap_or(0);
        std::thread::sleep(Duration::from_millis(millis));
    }
    match args.get(1).map(String::as_str) {
        Some("trap") => panic!("asked to panic"),
        Some(code) => std::process::exit(code.parse().unwrap_or(64)),
        None => {}
    }
}
