//! What a worker that a guest has taken over can reach: tried by the worker's own binary, with and without
//! what holds it back.

use crate::harness::run;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

/// The error numbers of what was tried under these arguments, by what it was.
fn tried(arguments: &[&str], tries: &[String]) -> BTreeMap<String, i64> {
    let tries: Vec<&str> = tries.iter().map(String::as_str).collect();
    let said = run(&[&["probe-reach"], arguments, &tries].concat());
    assert!(said.status.success(), "{said:?}");
    let tried: Vec<Value> = serde_json::from_slice(&said.stdout).unwrap();
    let row = |row: &Value| (row["what"].as_str().unwrap().to_owned(), row["errno"].as_i64().unwrap());
    tried.iter().map(row).collect()
}

/// A machine in small: an agent's work directory with two tenants, and a secret beside it.
fn lay_out(root: &Path) {
    for folder in ["work/images", "work/tenants/0/tasks/f1/t/1/deep", "work/tenants/1/tasks/f2/t/1", "work/checkpoint"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    for file in [
        "secret",
        "work/checkpoint/0",
        "work/images/a.cwasm",
        "work/tenants/0/tasks/f1/t/1/in",
        "work/tenants/0/tasks/f1/t/1/in2",
        "work/tenants/1/tasks/f2/t/1/in",
    ] {
        std::fs::write(root.join(file), "x").unwrap();
    }
    let sandbox = root.join("work/tenants/0/tasks/f1/t/1");
    std::os::unix::fs::symlink(root.join("secret"), sandbox.join("to-secret")).unwrap();
}

#[test]
fn a_worker_reaches_what_it_was_given_and_nothing_else() {
    let machine = tempfile::tempdir().unwrap();
    lay_out(machine.path());
    let at = |path: &str| machine.path().join(path).to_str().unwrap().to_owned();
    let own = |path: &str| at(&format!("work/tenants/0/tasks/f1/t/1/{path}"));
    let other = |path: &str| at(&format!("work/tenants/1/tasks/f2/t/1/{path}"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let name = format!("tessera-{}", std::process::id());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let me = std::process::id();
    let (denied, apart) = (i64::from(libc::EACCES), i64::from(libc::EXDEV));
    let not_permitted = i64::from(libc::EPERM);
    // What is tried, and the error that it ends with under the rule; 0 where it is the worker's own business.
    let rows: Vec<(String, i64)> = vec![
        (format!("read:{}", own("in")), 0),
        (format!("append:{}", own("in")), 0),
        (format!("list:{}", own("")), 0),
        (format!("create:{}", own("new")), 0),
        (format!("mkdir:{}", own("newer")), 0),
        (format!("symlink:in,{}", own("link")), 0),
        (format!("rename:{},{}", own("in2"), own("deep/in2")), 0),
        (format!("truncate:{}", own("in")), 0),
        (format!("remove:{}", own("new")), 0),
        (format!("read:{}", at("work/images/a.cwasm")), 0),
        // Whoever knows the name of an image reads it; nobody finds the names.
        (format!("list:{}", at("work/images")), denied),
        (format!("append:{}", at("work/images/a.cwasm")), denied),
        (format!("create:{}", at("work/images/b.cwasm")), denied),
        (format!("remove:{}", at("work/images/a.cwasm")), denied),
        (format!("read:{}", at("secret")), denied),
        (format!("read:{}", own("to-secret")), denied),
        (format!("read:{}", own("../../../../../../../secret")), denied),
        (format!("read:{}", at("work/checkpoint/0")), denied),
        (format!("append:{}", at("work/checkpoint/0")), denied),
        (format!("truncate:{}", at("work/checkpoint/0")), denied),
        (format!("read:{}", other("in")), denied),
        (format!("create:{}", other("new")), denied),
        (format!("list:{}", at("work/tenants")), denied),
        (format!("rename:{},{}", other("in"), own("theirs")), denied),
        (format!("link:{},{}", at("secret"), own("secret")), apart),
        (format!("rename:{},{}", own("in"), at("out")), denied),
        ("read:/etc/passwd".to_owned(), denied),
        ("list:/".to_owned(), denied),
        (format!("read:/proc/{me}/status"), denied),
        ("read:/proc/self/environ".to_owned(), denied),
        (format!("connect:{port}"), denied),
        ("bind:0".to_owned(), denied),
        (format!("abstract:{name}"), not_permitted),
        (format!("signal:{me}"), not_permitted),
    ];
    let tries: Vec<String> = rows.iter().map(|(what, _)| what.clone()).collect();
    let (images, tenant) = (at("work/images"), at("work/tenants/0/tasks"));
    let held = tried(
        &["--own-files", "--reach", &images, "--reach-write", &tenant, "--reach-links"],
        &tries,
    );
    for (what, errno) in &rows {
        assert_eq!(held[what], *errno, "{what}");
    }
    // The same on such a machine without the rule: each of them goes well, so that it is the rule that
    // refuses.
    let machine_again = tempfile::tempdir().unwrap();
    lay_out(machine_again.path());
    let root = |tries: &[String]| -> Vec<String> {
        let (from, to) = (machine.path().to_str().unwrap(), machine_again.path().to_str().unwrap());
        tries.iter().map(|what| what.replace(from, to)).collect()
    };
    let free = tried(&[], &root(&tries));
    for (what, errno) in &free {
        // What was renamed or removed by an earlier row is another matter than being refused.
        assert!([0, i64::from(libc::ENOENT)].contains(errno), "{what}: {errno}");
    }
    let gone = free.values().filter(|errno| **errno != 0).count();
    assert!(gone <= 2, "{free:?}");
}

#[test]
fn links_are_made_only_where_they_lead_nobody_astray() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let make = |link: &str| vec![format!("symlink:/etc,{path}/{link}")];
    let own = ["--own-files", "--reach-write", path];
    let refused = tried(&own, &make("a"));
    assert!(refused.values().all(|errno| *errno == i64::from(libc::EACCES)), "{refused:?}");
    let made = tried(&[&own[..], &["--reach-links"]].concat(), &make("b"));
    assert!(made.values().all(|errno| *errno == 0), "{made:?}");
}

#[test]
fn what_cannot_be_held_back_is_said_and_ends_who_asked_for_it() {
    let said = run(&["probe-isolation", "--own-files", "--reach", "/not/there"]);
    let probe: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(probe["missing"][0]["name"], "files", "{probe}");
    let said = run(&["probe-reach", "--own-files", "--reach", "/not/there", "read:/etc/passwd"]);
    assert!(!said.status.success() && said.stdout.is_empty(), "{said:?}");
    let said = run(&["probe-reach", "--reach", "/", "read:/etc/passwd"]);
    assert!(!said.status.success() && said.stdout.is_empty(), "a path alone holds nothing back: {said:?}");
}
