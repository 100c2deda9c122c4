//! What `make dist` makes of the programs that tests run: archives that are the same each time, units that systemd
//! takes, and programs that work where the package puts them.
//!
//! Must never install anything on the machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tessera_cluster::cluster::Scene;
use tessera_cluster::guests::{bin_dir, guest};
use tessera_cluster::{Outcome, ensure, failure, skipped};

/// The user and group that this machine has for nobody.
const NOBODY: u32 = 65_534;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn run(command: &mut Command) -> Outcome<Output> {
    let output = command.output().map_err(|error| failure(format!("{command:?}: {error}")))?;
    let text = || format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    ensure(output.status.success(), text)?;
    Ok(output)
}

/// Archives of the programs that were built, and what is to be compared of two runs.
fn dist(into: &Path) -> Outcome<String> {
    let target = bin_dir()?.join("..").canonicalize()?;
    let mut command = Command::new(root().join("scripts/dist"));
    command.env("TESSERA_DIST_BINARIES", bin_dir()?).env("TESSERA_DIST_FAST", "1");
    run(command.env("TESSERA_DIST_DIR", into).env("CARGO_TARGET_DIR", target))?;
    Ok(std::fs::read_to_string(into.join("SHA256SUMS"))?)
}

fn files(of: &Path) -> Outcome<BTreeSet<String>> {
    let output = run(Command::new("find").current_dir(of).args([".", "-not", "-type", "d", "-printf", "%P %m %l\\n"]))?;
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// The file of `dir` whose name ends so.
fn ending(dir: &Path, end: &str) -> Outcome<PathBuf> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(end) {
            return Ok(path);
        }
    }
    Err(failure(format!("no {end} in {}", dir.display())))
}

#[tokio::test]
async fn archives_hold_what_an_installation_needs_and_are_the_same_each_time() -> Outcome {
    if guest("run").is_err() {
        return skipped("run.wasm is not built");
    }
    let scene = Scene::beside("dist").await?;
    let (one, two) = (scene.dir().join("one"), scene.dir().join("two"));
    let sums = dist(&one)?;
    ensure(sums == dist(&two)?, || format!("the archives differ: {sums}"))?;
    run(Command::new("sha256sum").current_dir(&one).args(["--check", "--strict", "SHA256SUMS"]))?;

    let (deb, tar) = (scene.dir().join("deb"), scene.dir().join("tar"));
    run(Command::new("dpkg-deb").arg("--extract").arg(ending(&one, ".deb")?).arg(&deb))?;
    std::fs::create_dir(&tar)?;
    run(Command::new("tar").arg("-xzf").arg(ending(&one, ".tar.gz")?).arg("-C").arg(&tar).arg("--strip-components=1"))?;
    let installed = files(&deb)?;
    ensure(installed == files(&tar)?, || "the package and the tarball differ".to_owned())?;
    for file in [
        "usr/bin/tessera 777 ../lib/tessera/tessera",
        "usr/lib/tessera/tessera 755 ",
        "usr/lib/tessera/tessera-worker 755 ",
        "usr/lib/tessera/tessera-shim 755 ",
        "usr/lib/tessera/tessera-simulate 755 ",
        "usr/lib/tessera/components/run.wasm 644 ",
        "etc/tessera/agent.toml 644 ",
        "usr/share/doc/tessera/docs/upgrade.md 644 ",
        "usr/share/man/man1/tessera-role-set.1.gz 644 ",
    ] {
        ensure(installed.contains(file), || format!("{file} is not there: {installed:?}"))?;
    }
    check_control(&ending(&one, ".deb")?, &installed)?;
    check_units(&scene, &deb)?;
    check_programs(&scene, &deb)?;
    scene.finish();
    Ok(())
}

/// Its fields, its configuration files, and scripts that start nothing.
fn check_control(package: &Path, installed: &BTreeSet<String>) -> Outcome {
    let field = |name: &str| -> Outcome<String> {
        let output = run(Command::new("dpkg-deb").arg("--field").arg(package).arg(name))?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    ensure(field("Version")? == env!("CARGO_PKG_VERSION"), || "another version".to_owned())?;
    let depends = field("Depends")?;
    ensure(depends.starts_with("libc6 (>= 2."), || depends.clone())?;
    for script in ["postinst", "prerm", "postrm"] {
        let output = run(Command::new("dpkg-deb").arg("--info").arg(package).arg(script))?;
        let text = String::from_utf8(output.stdout)?;
        ensure(text.starts_with("#!/bin/sh\n") && text.contains("\nset -e\n"), || format!("{script}: {text}"))?;
        let starts = ["systemctl start", "systemctl restart", "systemctl enable", "deb-systemd-invoke"];
        ensure(starts.iter().all(|verb| !text.contains(verb)), || format!("{script} starts something: {text}"))?;
    }
    let output = run(Command::new("dpkg-deb").arg("--info").arg(package).arg("conffiles"))?;
    let listed = String::from_utf8(output.stdout)?;
    let listed: BTreeSet<&str> = listed.lines().collect();
    let there: BTreeSet<String> = installed
        .iter()
        .filter_map(|file| file.split(' ').next().filter(|path| path.starts_with("etc/")))
        .map(|path| format!("/{path}"))
        .collect();
    ensure(there.iter().map(String::as_str).collect::<BTreeSet<_>>() == listed, || format!("{listed:?} are listed"))
}

/// systemd takes the units, and they say what tasks and state rely on.
fn check_units(scene: &Scene, installed: &Path) -> Outcome {
    let units = scene.dir().join("units");
    std::fs::create_dir(&units)?;
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]);
    for (unit, lines) in [
        ("tessera-master.service", &["NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=", "User=tessera"][..]),
        ("tessera-agent.service", &["KillMode=process", "Delegate=yes", "OOMPolicy=continue"][..]),
    ] {
        let text = std::fs::read_to_string(installed.join("usr/lib/systemd/system").join(unit))?;
        for line in lines.iter().chain(&["Restart=on-failure", "LimitNOFILE=1048576", "WantedBy=multi-user.target"]) {
            ensure(text.lines().any(|other| other == *line), || format!("{unit} has no {line}"))?;
        }
        let here = format!("={}", installed.join("usr/bin/tessera").display());
        let text = text.replace("=/usr/bin/tessera", &here);
        std::fs::write(units.join(unit), text)?;
        command.arg(units.join(unit));
    }
    if command.output().is_err() {
        return skipped("there is no systemd-analyze");
    }
    let output = run(&mut command)?;
    ensure(output.stderr.is_empty(), || String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The programs find each other where the package puts them, and a master works with as little as its unit leaves it.
fn check_programs(scene: &Scene, installed: &Path) -> Outcome {
    let tessera = installed.join("usr/bin/tessera");
    let output = run(Command::new(&tessera).arg("--version"))?;
    let text = String::from_utf8(output.stdout)?;
    ensure(text.contains(env!("CARGO_PKG_VERSION")), || text.clone())?;
    // What stands in the configuration is known to the agent: it gets as far as what is not there.
    let config = installed.join("etc/tessera/agent.toml");
    let mut agent = Command::new(&tessera);
    agent.arg("agent").arg("--config").arg(config).arg("--work-dir").arg(scene.dir().join("agent"));
    agent.env_remove("TESSERA_TOKEN_FILE").env_remove("TESSERA_TOKEN").env("TESSERA_CONFIG", "/nonexistent/tessera.toml");
    let output = agent.output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure(!output.status.success() && told.contains("token_file"), || format!("agent.toml: {told}"))?;
    if !nix::unistd::Uid::effective().is_root() {
        return skipped("a master without rights needs root to be made");
    }
    let data = scene.dir().join("master");
    std::fs::create_dir(&data)?;
    std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY))?;
    let bare = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]);
        command.args(["--inh-caps=-all"]).arg(&tessera).args(arguments).arg("--data-dir").arg(&data);
        command
    };
    run(&mut bare(&["operator", "init", "--peer-address", "127.0.0.1:1", "--rest-address", "127.0.0.1:2"]))?;
    // It serves until its time is over; what it says then is that it was stopped in order.
    let mut command = Command::new("timeout");
    command.args(["--signal=TERM", "4"]);
    let master = bare(&["master", "--listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0"]);
    let output = command.arg(master.get_program()).args(master.get_args()).output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure(told.contains("master serves"), || format!("the master: {told}"))
}
