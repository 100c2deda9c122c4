//! What an operator does with the command line on a real cluster: contexts, roles, dry runs, doctor, debug, top,
//! completion.

use std::time::{Duration, Instant};
use tessera_cluster::cli::{json, stdout, told};
use tessera_cluster::cluster::{Cluster, PATIENCE, tessera};
use tessera_cluster::{Outcome, ensure};

/// Runs it with this environment only; exit code and everything that it said.
async fn with(env: &[(&str, String)], args: &[&str]) -> Outcome<(i32, String)> {
    let output = tessera(args, env).await?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
}

#[tokio::test]
async fn contexts_lead_to_their_cluster_and_show_no_token() -> Outcome {
    let cluster = Cluster::start("cli-context", &[]).await?;
    let dir = tempfile::tempdir()?;
    let cluster_env: std::collections::BTreeMap<&str, String> = cluster.env().into_iter().collect();
    let (address, token_file) = (&cluster_env["TESSERA_ADDRESS"], &cluster_env["TESSERA_TOKEN_FILE"]);
    let token = std::fs::read_to_string(token_file)?.trim().to_owned();
    let file = dir.path().join("config.toml");
    let env = [("TESSERA_CONFIG", file.display().to_string())];

    let set = ["context", "set", "here", "--address", address, "--token-file", token_file];
    let steps: [(&[&str], i32, &str); 13] = [
        (&set, 0, "is meant from now on"),
        (&["agent", "ls"], 0, "a1"),
        (&["context", "set", "there", "--url", "http://127.0.0.1:1", "--token-command", "echo", "--token-command", "x"], 0, "there is in"),
        (&["--context", "there", "agent", "ls"], 5, "no answer from http://127.0.0.1:1"),
        (&["context", "ls"], 0, "here"),
        (&["context", "use", "there"], 0, "is meant from now on"),
        (&["context", "show"], 0, "file of contexts"),
        (&["--context", "hree", "context", "show"], 3, "did you mean here?"),
        (&["context", "set", "third", "--url", "nonsense"], 2, "names no port"),
        (&["context", "set", "third"], 2, "--url URL"),
        (&["context", "set", "third", "--use"], 3, "there is no context"),
        (&["config", "validate"], 0, "is right: 2 contexts"),
        (&["context", "rm", "there"], 0, "is removed"),
    ];
    for (args, code, says) in steps {
        let (found, said) = with(&env, args).await?;
        ensure(found == code && said.contains(says), || format!("{args:?} ended with {found}: {said}"))?;
        ensure(!said.contains(&token), || format!("{args:?} shows the token: {said}"))?;
    }
    // A token is for the addresses of its context.
    let away = [("TESSERA_CONFIG", file.display().to_string()), ("TESSERA_ADDRESS", "http://127.0.0.1:2".to_owned())];
    let (_, said) = with(&away, &["--context", "here", "context", "show"]).await?;
    ensure(!said.contains(token_file.as_str()), || said)?;
    std::fs::write(&file, "[contexts.here]\nadress = \"x\"\n")?;
    let (code, said) = with(&env, &["agent", "ls"]).await?;
    ensure(code == 2 && said.contains("did you mean address?"), || format!("{code}: {said}"))?;
    cluster.finish().await
}

#[tokio::test]
async fn roles_are_set_shown_and_put_back() -> Outcome {
    let cluster = Cluster::start("cli-roles", &[]).await?;
    let set = ["role", "set", "eng", "--weight", "2.5", "--limit", "cpus=1.5,mem=1GiB", "--guarantee", "cpus=1"];
    let rehearsed = stdout(&cluster, &[&set[..], &["--dry-run"]].concat()).await?;
    ensure(!rehearsed.is_empty(), || "a dry run says nothing".to_owned())?;
    let untouched = json(&cluster, &["role", "inspect", "eng"]).await?;
    ensure(untouched["version"] == 0, || untouched.to_string())?;
    stdout(&cluster, &set).await?;
    let eng = json(&cluster, &["role", "inspect", "eng"]).await?;
    ensure(eng["weight"] == 2.5 && eng["limit"]["cpus"] == 1.5 && eng["limit"]["mem_mib"] == 1_024, || eng.to_string())?;
    let shown = stdout(&cluster, &["role", "inspect", "eng"]).await?;
    ensure(shown.contains("quota limit") && shown.contains("cpus=1.5,mem=1024MiB"), || shown)?;
    // What is not named stays; another version is not overwritten.
    stdout(&cluster, &["role", "set", "eng", "--priority", "7"]).await?;
    let output = cluster.tessera(&["role", "set", "eng", "--weight", "3", "--if-version", "1"]).await?;
    ensure(output.status.code() == Some(4), || told(&["if-version"], &output))?;
    let eng = json(&cluster, &["role", "inspect", "eng"]).await?;
    ensure(eng["weight"] == 2.5 && eng["priority"] == 7, || eng.to_string())?;
    let refused = cluster.tessera(&["role", "set", "eng", "--guarantee", "cpus=9"]).await?;
    ensure(refused.status.code() == Some(4), || told(&["guarantee"], &refused))?;
    stdout(&cluster, &["role", "rm", "eng"]).await?;
    let eng = json(&cluster, &["role", "inspect", "eng"]).await?;
    ensure(eng["weight"] == 1 && eng["limit"] == serde_json::json!({}), || eng.to_string())?;
    cluster.finish().await
}

#[tokio::test]
async fn dry_runs_change_nothing() -> Outcome {
    let cluster = Cluster::start("cli-dry", &[]).await?;
    stdout(&cluster, &["run", "--", "true"]).await?;
    let before = json(&cluster, &["framework", "inspect", "run"]).await?;
    let component = before["component"].as_str().unwrap_or_default().to_owned();
    let guest = tessera_cluster::guests::guest("echo")?.display().to_string();
    let short: String = component.chars().skip("sha256:".len()).take(12).collect();
    for args in [
        &["framework", "create", "other", "--component", &short, "--dry-run"][..],
        &["framework", "config", "set", "run", "a=b", "--dry-run"],
        &["framework", "rm", "run", "--dry-run"],
        &["agent", "drain", "a1", "--dry-run"],
        &["agent", "deactivate", "a1", "--dry-run"],
        &["agent", "activate", "a1", "--dry-run"],
        &["agent", "end-strangers", "a1", "--dry-run"],
        &["agent", "gone", "a1", "--dry-run"],
        &["component", "rm", &short, "--dry-run"],
        &["agent", "maintenance", "a1", "--in", "1h", "--for", "30m", "--dry-run"],
        &["framework", "release", "run", "--dry-run"],
        &["framework", "state", "put", "run", "key", "value", "--dry-run"],
        &["framework", "state", "rm", "run", "key", "--dry-run"],
        &["component", "add", &guest, "--dry-run"],
        &["framework", "create", "other", &guest, "--dry-run"],
        &["framework", "upgrade", "run", "--component", &guest, "--dry-run"],
    ] {
        let said = stdout(&cluster, args).await?;
        ensure(said.contains("would"), || format!("{args:?}: {said}"))?;
    }
    for (args, code, says) in [
        (&["operator", "raft", "remove", "1", "--dry-run"][..], 4, "only voter"),
        (&["operator", "raft", "transfer", "--dry-run"], 4, "no other voter"),
        (&["offer", "rm", "o999999", "--dry-run"], 3, "o999999"),
        (&["events", "--after", "x"], 2, "7-0"),
        (&["--token-file", "/nowhere", "agent", "ls"], 2, "--token-file"),
        (&["role", "set", "a//b", "--weight", "2"], 2, "eng/search"),
        (&["role", "set", "eng", "--limit", "cpu=1"], 2, "cpus"),
    ] {
        let output = cluster.tessera(args).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure(output.status.code() == Some(code) && said.contains(says), || told(args, &output))?;
    }
    let components = json(&cluster, &["component", "ls"]).await?;
    ensure(components["items"].as_array().is_some_and(|items| items.len() == 1), || components.to_string())?;
    let keys = json(&cluster, &["framework", "state", "ls", "run", "--prefix", "key"]).await?;
    ensure(keys["items"] == serde_json::json!([]), || keys.to_string())?;
    let after = json(&cluster, &["framework", "inspect", "run"]).await?;
    ensure(after["config"] == before["config"] && after["state"] == "running", || after.to_string())?;
    let frameworks = stdout(&cluster, &["framework", "ls", "-o", "name"]).await?;
    ensure(frameworks == "f1\n", || frameworks)?;
    let agent = json(&cluster, &["agent", "inspect", "a1"]).await?;
    ensure(agent["mode"] == "active", || agent.to_string())?;
    cluster.finish().await
}

#[tokio::test]
async fn a_cluster_is_looked_at() -> Outcome {
    let cluster = Cluster::start("cli-looks", &[]).await?;
    stdout(&cluster, &["run", "--", "true"]).await?;
    let version = json(&cluster, &["version"]).await?;
    ensure(version["cluster"]["cluster_version"].as_u64().is_some_and(|version| version > 0), || version.to_string())?;
    let doctor = json(&cluster, &["doctor", "--cluster"]).await?;
    let level = |name: &str| {
        let items = doctor["items"].as_array().cloned().unwrap_or_default();
        items.iter().find(|item| item["name"] == name).map(|item| item["level"].clone()).unwrap_or_default()
    };
    for name in ["reachable", "leader", "agents", "frameworks", "clock", "versions"] {
        ensure(level(name) == "ok", || format!("{name}: {doctor}"))?;
    }
    let away = cluster.tessera(&["--address", "http://127.0.0.1:1", "doctor", "--cluster"]).await?;
    let said = String::from_utf8_lossy(&away.stdout).into_owned();
    ensure(away.status.code() == Some(1) && said.contains("way out"), || said)?;
    let top = stdout(&cluster, &["top"]).await?;
    ensure(top.contains("1 of 1 agents connected") && top.contains("AGENT") && top.contains("FRAMEWORK"), || top)?;
    let explained = stdout(&cluster, &["explain", "framework", "run"]).await?;
    ensure(!explained.trim().is_empty(), || "nothing is explained".to_owned())?;
    for args in [&["offer", "ls"][..], &["operation", "ls"]] {
        let list = json(&cluster, args).await?;
        ensure(list["items"].is_array(), || list.to_string())?;
    }
    let audit = json(&cluster, &["audit"]).await?;
    ensure(audit["items"].as_array().is_some_and(|items| !items.is_empty()), || audit.to_string())?;
    let task = stdout(&cluster, &["task", "inspect", "run/run-1"]).await?;
    ensure(task.contains("SINCE") && task.contains("TASK_RUNNING"), || task)?;
    cluster.finish().await
}

#[tokio::test]
async fn a_bundle_has_no_secrets() -> Outcome {
    let cluster = Cluster::start("cli-debug", &[]).await?;
    let digest = cluster.push("echo").await?;
    stdout(&cluster, &["framework", "create", "e", "--component", &digest, "--config", "key=very-secret-value"]).await?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("b.tar.gz").display().to_string();
    let listed = stdout(&cluster, &["debug", "--list", "-o", "name"]).await?;
    ensure(listed.lines().any(|line| line == "masters.json"), || listed.clone())?;
    stdout(&cluster, &["debug", "-f", &file, "--logs"]).await?;
    let unpacked = std::process::Command::new("tar").args(["xzf", &file, "-C"]).arg(dir.path()).status()?;
    ensure(unpacked.success(), || "tar does not read it".to_owned())?;
    let token = std::fs::read_to_string(&cluster.env()[1].1)?.trim().to_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.path().join("tessera-debug"))? {
        let path = entry?.path();
        found.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        let text = std::fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        ensure(!text.contains(&token) && !text.contains("very-secret-value"), || format!("{} has a secret", path.display()))?;
    }
    let failed: Vec<&String> = found.iter().filter(|name| name.ends_with(".failed")).collect();
    ensure(failed.is_empty(), || format!("{failed:?}"))?;
    let missing: Vec<&str> = listed.lines().filter(|name| !name.contains('/') && !found.iter().any(|have| have == name)).collect();
    ensure(missing.is_empty(), || format!("{missing:?} of {found:?}"))?;
    let again = cluster.tessera(&["debug", "-f", &file]).await?;
    ensure(again.status.code() == Some(1), || told(&["a file that is there"], &again))?;
    cluster.finish().await
}

#[tokio::test]
async fn shells_are_told_live_names_in_time() -> Outcome {
    let cluster = Cluster::start("cli-shells", &[]).await?;
    stdout(&cluster, &["run", "--", "true"]).await?;
    for (words, expected) in [
        (&["framework", "inspect", "r"][..], "run\t"),
        (&["task", "inspect", "run", ""], "run-1\t"),
        (&["task", "logs", "run/"], "run/run-1\t"),
        (&["agent", "drain", ""], "a1\t"),
        (&["role", "inspect", ""], "default"),
        (&["component", "inspect", ""], "\tscheduler"),
        (&["task", "ls", "--framework", ""], "run\t"),
        (&["fram"], "framework\t"),
    ] {
        // A cluster on a busy machine does not always answer within the 0.3 s that a shell waits.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let out = stdout(&cluster, &[&["__complete", "--"], words].concat()).await?;
            if out.contains(expected) {
                break;
            }
            ensure(Instant::now() < deadline, || format!("{words:?}: {out:?}"))?;
        }
    }
    // Nobody answers there, and nobody is told.
    let env = [("TESSERA_ADDRESS", "http://127.0.0.1:1".to_owned()), ("TESSERA_TOKEN", "x".to_owned())];
    let begin = Instant::now();
    let output = tessera(&["__complete", "--", "framework", "inspect", ""], &env).await?;
    ensure(output.status.success() && output.stderr.is_empty(), || told(&["__complete"], &output))?;
    ensure(begin.elapsed() < Duration::from_secs(5), || format!("{:?}", begin.elapsed()))?;
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&cluster, &["completion", shell]).await?;
        ensure(script.contains("__complete"), || script)?;
    }
    let dir = tempfile::tempdir()?;
    let script = dir.path().join("tessera.bash");
    std::fs::write(&script, stdout(&cluster, &["completion", "bash"]).await?)?;
    let checked = std::process::Command::new("bash").arg("-n").arg(&script).status()?;
    ensure(checked.success(), || "bash does not read it".to_owned())?;
    cluster.finish().await
}
