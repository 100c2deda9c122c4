//! `tessera framework dev`: build a project, run it on the cluster, and again whenever a file of it is saved;
//! state and tasks stay.
//!
//! Invariants: what was not asked for is not removed: the framework stays when this ends; a version that does
//! not build, or is refused, changes nothing. Must never judge a version: the masters do.

use crate::api::{Framework, read};
use crate::client::Client;
use crate::commands::framework::parse_pair;
use crate::commands::{component, framework, framework_build};
use crate::error::{CliError, Kind, io_error};
use crate::follow::Tail;
use crate::scheduler_log::{self, Lines};
use crate::{Context, output};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How often files are looked at, and the log and the state of the framework.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Files of a project that are looked at: more is no project of a scheduler.
const FILES_MAX: usize = 20_000;
/// How long an upgrade that is replaced by a newer one may take to be given up.
const GIVE_UP_WITHIN: Duration = Duration::from_secs(30);

/// Arguments of `tessera framework dev`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera framework dev\n  tessera framework dev ~/src/hello --name hello-test --config count=3\n\nBuilds and creates the framework, or upgrades it if there is one of that name; shows its log, and what\nbecomes of each version. Ctrl-C ends this; the framework goes on."
)]
pub struct DevArgs {
    /// Directory of the project
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Name of the framework [default: that of the package]
    #[arg(long)]
    name: Option<String>,
    /// Whose share of the cluster it uses, when it is created
    #[arg(long, default_value = "default")]
    role: String,
    /// An entry of its configuration, when it is created; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    config: Vec<(String, String)>,
}

/// What was last said of the framework.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    state: String,
    why: String,
    error: String,
    tasks: String,
    /// Outcomes by version.
    versions: BTreeMap<u64, String>,
}

struct Dev<'a> {
    client: &'a Client,
    args: &'a DevArgs,
    name: String,
    /// None until the framework is there.
    tail: Option<Tail>,
    /// What of the log has come.
    lines: Lines,
    said: Said,
    /// Nothing of the log is shown up to here.
    quiet: bool,
}

/// Run it until Ctrl-C.
///
/// # Errors
/// When there is no project, or the cluster cannot be reached at the start.
pub async fn run(context: &Context, args: &DevArgs) -> Result<(), CliError> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => package_name(&args.dir)?,
    };
    let client = context.client().map_err(hinted)?;
    // Told before a build that would be for nothing.
    find(&client, &name).await.map_err(hinted)?;
    let mut dev = Dev {
        client: &client,
        args,
        name,
        tail: None,
        lines: Lines::default(),
        said: Said::default(),
        quiet: false,
    };
    tokio::select! {
        ended = dev.go_on() => ended?,
        _ = tokio::signal::ctrl_c() => {}
    }
    output::note(&match dev.tail {
        Some(_) => format!("{0} stays on the cluster; `tessera framework rm {0}` removes it with its tasks and state", dev.name),
        None => "nothing was created".to_owned(),
    });
    Ok(())
}

fn hinted(error: CliError) -> CliError {
    match error.kind {
        Kind::Unavailable | Kind::NotFound if error.hint.is_none() => {
            error.hint("start a cluster on this machine with `tessera dev`, in another terminal")
        }
        _ => error,
    }
}

fn package_name(dir: &Path) -> Result<String, CliError> {
    let path = dir.join("Cargo.toml");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| io_error("read", &path, &error).hint("`tessera framework new NAME` writes a project"))?;
    let wrong = |what: &str| CliError::new(Kind::Usage, format!("{}: {what}", path.display()));
    let manifest: toml::Table = text.parse().map_err(|error: toml::de::Error| wrong(&error.to_string()))?;
    let name = manifest.get("package").and_then(|package| package.get("name")?.as_str());
    Ok(name.ok_or_else(|| wrong("it has no package.name; say --name"))?.replace('_', "-"))
}

/// The framework of this name, if there is one.
async fn find(client: &Client, name: &str) -> Result<Option<Framework>, CliError> {
    match client.json(client.get(&["v1", "frameworks", name])).await {
        Ok(value) => read(&value).map(Some),
        Err(error) if error.status == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Dev<'_> {
    async fn go_on(&mut self) -> Result<(), CliError> {
        let mut built = None;
        loop {
            let now = files(&self.args.dir)?;
            // What is still being saved is built when it stays as it is.
            if built.as_ref() != Some(&now) {
                tokio::time::sleep(LOOK_EVERY).await;
                if files(&self.args.dir)? != now {
                    continue;
                }
                if let Err(error) = self.bring().await {
                    output::note(&error.to_string());
                    output::note("nothing was changed on the cluster; waiting for the next save");
                }
                built = Some(now);
            }
            if let Err(error) = self.look().await {
                self.say_error(&error);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn say_error(&mut self, error: &CliError) {
        let text = error.to_string();
        if self.said.error != text {
            output::note(&text);
            self.said.error = text;
        }
    }

    /// Build, and create or upgrade the framework.
    async fn bring(&mut self) -> Result<(), CliError> {
        let begun = Instant::now();
        let file = framework_build::build(&self.args.dir).await?;
        let digest = component::resolve(self.client, &file.display().to_string()).await?;
        let told = format!("built in {:.1} s", begun.elapsed().as_secs_f64());
        let Some(found) = find(self.client, &self.name).await? else {
            let config: BTreeMap<_, _> = self.args.config.iter().cloned().collect();
            let document = json!({"name": self.name, "role": self.args.role, "component": digest, "config": config});
            framework::create(self.client, document).await?;
            self.tail = Some(self.log());
            return output::line(&format!("{told}; {} is created", self.name));
        };
        if self.tail.is_none() {
            // One that was there before: its old log is not news.
            self.tail = Some(self.log());
            self.quiet = true;
        }
        if found.component == digest {
            return output::line(&format!("{told}; {} runs this component already", self.name));
        }
        if found.upgrade.as_ref().is_some_and(|upgrade| !upgrade.is_null()) {
            self.give_up().await?;
        }
        let request = self.client.post(&["v1", "frameworks", &self.name, "upgrade"]).json(json!({"component": digest}));
        let value = self.client.json(request).await?;
        let version = value.get("version").and_then(Value::as_u64).unwrap_or_default();
        output::line(&format!("{told}; {} is being upgraded to version {version}", self.name))
    }

    fn log(&self) -> Tail {
        Tail::new(&["v1", "frameworks", &self.name, "log"])
    }

    /// An upgrade that is not final makes room for the next one.
    async fn give_up(&self) -> Result<(), CliError> {
        let request = self.client.post(&["v1", "frameworks", &self.name, "rollback"]).json(json!({}));
        self.client.json(request).await?;
        output::line("the version on trial is given up for the new one")?;
        let deadline = Instant::now() + GIVE_UP_WITHIN;
        while Instant::now() < deadline {
            let found = find(self.client, &self.name).await?;
            if found.is_none_or(|found| found.upgrade.is_none_or(|upgrade| upgrade.is_null())) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Err(CliError::failed("the version on trial is not given up yet; save again to try once more"))
    }

    /// Show what is new.
    async fn look(&mut self) -> Result<(), CliError> {
        let Some(tail) = &mut self.tail else { return Ok(()) };
        loop {
            let chunk = tail.next(self.client).await?;
            if chunk.is_empty() {
                break;
            }
            if self.quiet {
                continue;
            }
            let lines = self.lines.push(&chunk);
            lines.iter().filter_map(|line| scheduler_log::sentence(line, false)).try_for_each(|line| output::line(&line))?;
        }
        self.quiet = false;
        let Some(found) = find(self.client, &self.name).await? else {
            return Err(CliError::new(Kind::NotFound, format!("{} was removed; save a file to create it anew", self.name)));
        };
        let now = said(&found);
        for line in news(&self.name, &self.said, &now) {
            output::line(&line)?;
        }
        self.said = now;
        Ok(())
    }
}

fn said(found: &Framework) -> Said {
    let tasks = found.tasks.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>();
    Said {
        state: found.state.clone(),
        why: found.why.join("; "),
        error: found.last_error.clone().unwrap_or_default(),
        tasks: tasks.join(", "),
        versions: found.versions.iter().map(|v| (v.version, v.outcome.clone())).collect(),
    }
}

/// What has changed, in words.
fn news(name: &str, before: &Said, now: &Said) -> Vec<String> {
    let mut lines = Vec::new();
    // Of what was before this began, only what is in force is news.
    let first = if before.versions.is_empty() { now.versions.keys().last().copied().unwrap_or(0) } else { 0 };
    for (version, outcome) in now.versions.range(first..) {
        if before.versions.get(version) == Some(outcome) || outcome == "replaced" {
            continue;
        }
        let more = match outcome.as_str() {
            "trial" => ", until its first turn that does something",
            failed if failed.starts_with("failed") => "; component and state of before are back",
            _ => "",
        };
        lines.push(format!("version {version} is {outcome}{more}"));
    }
    if now.state != before.state {
        lines.push(format!("{name} is {}", now.state));
    }
    if now.error != before.error && !now.error.is_empty() {
        lines.push(format!("last error: {}", now.error));
        if now.error.contains("panicked at") {
            lines.push("the turn is undone, and the scheduler rebuilt from its state".to_owned());
        }
    }
    if now.state == "quarantined" && before.state != now.state {
        lines.push(format!("it failed too often: mend it and save, or `tessera framework release {name}`"));
    }
    if now.why != before.why && !now.why.is_empty() {
        lines.push(format!("why: {}", now.why));
    }
    if now.tasks != before.tasks && !now.tasks.is_empty() {
        lines.push(format!("tasks: {}", now.tasks));
    }
    lines.into_iter().map(|line| format!("-- {}", output::clean(&line))).collect()
}

/// Files of a project with their times and sizes; what builds write is left out.
fn files(dir: &Path) -> Result<BTreeMap<PathBuf, (Option<SystemTime>, u64)>, CliError> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            // Gone since its parent was read.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !found.is_empty() => continue,
            Err(error) => return Err(io_error("read", &dir, &error)),
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') || name == "target" || name == "Cargo.lock" {
                continue;
            }
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                open.push(entry.path());
            } else if found.len() < FILES_MAX {
                found.insert(entry.path(), (meta.modified().ok(), meta.len()));
            } else {
                let text = format!("{} has more than {FILES_MAX} files", dir.display());
                return Err(CliError::new(Kind::Usage, text).hint("name the directory of the project"));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_files_are_noticed_and_built_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("src/lib.rs", "a");
        write("Cargo.toml", "[package]\nname = \"hello_world\"\n");
        let before = files(dir.path()).unwrap();
        assert_eq!(before.len(), 2);
        for ignored in ["target/x", ".git/x", "Cargo.lock"] {
            write(ignored, "x");
        }
        assert_eq!(files(dir.path()).unwrap(), before);
        write("src/lib.rs", "ab");
        assert_ne!(files(dir.path()).unwrap(), before);
        assert_eq!(package_name(dir.path()).unwrap(), "hello-world");
        assert!(files(&dir.path().join("none")).is_err() && package_name(&dir.path().join("none")).is_err());
    }

    #[test]
    fn only_what_changes_is_told() {
        let framework = |state: &str, outcome: &str, error: Option<&str>| Framework {
            state: state.into(),
            last_error: error.map(str::to_owned),
            versions: vec![crate::api::Version { version: 2, outcome: outcome.into(), ..Default::default() }],
            ..Framework::default()
        };
        let first = said(&framework("trial", "trial", None));
        let told = news("x", &Said::default(), &first);
        assert_eq!(told, ["-- version 2 is trial, until its first turn that does something", "-- x is trial"]);
        assert!(news("x", &first, &first).is_empty());
        let failed = said(&framework("running", "failed: boom", Some("panicked at src/lib.rs:3:5: boom")));
        let told = news("x", &first, &failed).join("\n");
        for part in ["failed: boom; component and state of before are back", "x is running", "src/lib.rs:3:5", "undone"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(news("x", &first, &said(&framework("quarantined", "trial", None)))[1].contains("release x"));
    }
}
