//! docs/guides/first-scheduler.md, from top to bottom: its commands are run, its files written, and what it shows
//! is compared with what is printed.
//!
//! The page is read so: a block `console` has commands after `$ ` and their output; `terminal=N` is another
//! terminal, whose output is only looked at for what is shown, in that order; `eventually` repeats a command until
//! it prints what is shown; `fails` expects that it does. Other blocks are files to write (`file=`) or to find
//! (`is=`). `…` is anything in a line, and alone any lines. Nothing else of the page is interpreted.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tessera_cluster::cluster::{PATIENCE, Scene};
use tessera_cluster::guests::bin_dir;
use tessera_cluster::net::Net;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure};

/// Below the sources.
const PAGE: &str = "docs/guides/first-scheduler.md";
/// What a person is promised.
const WITHIN: Duration = Duration::from_secs(600);
/// A build of all that the SDK needs, on a busy machine.
const BUILD_PATIENCE: Duration = Duration::from_secs(400);

/// A block of the page.
struct Block<'a> {
    info: Vec<&'a str>,
    text: &'a str,
}

impl Block<'_> {
    fn has(&self, word: &str) -> bool {
        self.info.contains(&word)
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.info.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut found = Vec::new();
    let mut rest = page;
    while let Some((_, after)) = rest.split_once("\n```") {
        let (info, after) = after.split_once('\n').unwrap_or((after, ""));
        let (text, after) = after.split_once("```\n").unwrap_or((after, ""));
        found.push(Block { info: info.split_whitespace().collect(), text });
        // The next fence begins a line, too.
        rest = after;
        if let Some(at) = page.len().checked_sub(rest.len() + 1) {
            rest = &page[at..];
        }
    }
    found
}

/// Commands and the lines that each is shown to print; what stands before the first has none.
fn commands(text: &str) -> Vec<(Option<&str>, Vec<&str>)> {
    let mut found: Vec<(Option<&str>, Vec<&str>)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("$ "), found.last_mut()) {
            (Some(command), _) => found.push((Some(command), Vec::new())),
            (None, Some((_, lines))) => lines.push(line),
            (None, None) => found.push((None, vec![line])),
        }
    }
    found
}

/// Whether a line is as shown.
fn line_fits(shown: &str, line: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Whether lines are as shown, from the first to the last.
fn fits(shown: &[&str], lines: &[&str]) -> bool {
    match (shown.split_first(), lines.split_first()) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((&"…", rest)), _) => (0..=lines.len()).any(|skipped| fits(rest, &lines[skipped..])),
        (Some(_), None) => false,
        (Some((first, rest)), Some((line, lines))) => line_fits(first, line) && fits(rest, lines),
    }
}

/// A command that goes on, and how far its output was read.
struct Terminal {
    child: Child,
    output: PathBuf,
    read: usize,
}

impl Terminal {
    /// To all of it, as Ctrl-C does: it is a group of its own.
    fn signal(&self, signal: Signal) {
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// Ctrl-C, and its end.
    async fn end(&mut self) -> Outcome {
        self.signal(Signal::SIGINT);
        until("the terminal is free again", PATIENCE, async || match self.child.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

struct Reader {
    scene: Scene,
    net: Net,
    /// Where the first terminal is.
    dir: PathBuf,
    terminals: BTreeMap<String, Terminal>,
}

impl Reader {
    /// A shell in a network of its own, where the ports that the page uses are free and nothing can be fetched.
    fn shell(&self, script: &str) -> Outcome<Command> {
        let bin = bin_dir()?;
        let target = bin.parent().ok_or_else(|| failure("no target directory"))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = self.net.command(0, Path::new("bash"));
        command
            .args(["-c", script])
            .current_dir(&self.dir)
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("XDG_DATA_HOME", self.scene.dir())
            .env("CARGO_TARGET_DIR", target.join("guests/author"))
            .env_remove("TESSERA_TOKEN")
            .env_remove("TESSERA_TOKEN_FILE")
            .env_remove("TESSERA_ADDRESS")
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Run a command of the first terminal: whether it succeeded, and what it printed.
    fn run(&mut self, line: &str) -> Outcome<(bool, String)> {
        let place = self.scene.dir().join("cwd");
        let output = self.shell(&format!("exec 2>&1\n{line}\ncode=$?\npwd > {}\nexit $code", place.display()))?.output()?;
        self.dir = PathBuf::from(std::fs::read_to_string(&place)?.trim_end());
        Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    async fn console(&mut self, block: &Block<'_>) -> Outcome {
        for (command, shown) in commands(block.text) {
            let command = command.ok_or_else(|| failure(format!("output without a command: {shown:?}")))?;
            eprintln!("$ {command}");
            let deadline = Instant::now() + if block.has("eventually") { PATIENCE } else { Duration::ZERO };
            loop {
                let (succeeded, printed) = self.run(command)?;
                let lines: Vec<&str> = printed.lines().collect();
                let good = succeeded != block.has("fails") && fits(&shown, &lines);
                if good {
                    break;
                }
                ensure(Instant::now() < deadline, || {
                    let shown = shown.join("\n");
                    format!("$ {command}\nsucceeded: {succeeded}\nshown:\n{shown}\nprinted:\n{printed}")
                })?;
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    async fn terminal(&mut self, name: &str, block: &Block<'_>) -> Outcome {
        for (command, shown) in commands(block.text) {
            if let Some(command) = command {
                eprintln!("{name}$ {command}");
                let output = self.scene.dir().join(format!("terminal-{name}"));
                let file = std::fs::File::create(&output)?;
                let mut shell = self.shell(&format!("exec {command}"))?;
                shell.stdout(file.try_clone()?).stderr(file).process_group(0);
                let terminal = Terminal { child: shell.spawn()?, output, read: 0 };
                self.terminals.insert(name.to_owned(), terminal);
            }
            let terminal = self.terminals.get_mut(name).ok_or_else(|| failure(format!("no terminal {name}")))?;
            let shown: Vec<&str> = shown.into_iter().filter(|line| *line != "…").collect();
            let read = terminal.read;
            let output = terminal.output.clone();
            terminal.read = until(&format!("terminal {name} shows {shown:?}"), BUILD_PATIENCE, async || {
                let text = std::fs::read_to_string(&output).map_err(|error| error.to_string())?;
                let mut left = shown.iter().peekable();
                for (number, line) in text.lines().enumerate().skip(read) {
                    if left.next_if(|shown| line_fits(shown, line)).is_some() && left.peek().is_none() {
                        return Ok(number + 1);
                    }
                }
                if left.peek().is_none() { Ok(read) } else { Err(text) }
            })
            .await?;
        }
        Ok(())
    }
}

#[test]
fn outputs_are_compared_as_the_page_says() {
    for (shown, printed, as_shown) in [
        (&["a", "…", "d"][..], &["a", "b", "c", "d"][..], true),
        (&["a", "…", "d"], &["a", "d"], true),
        (&["a", "…"], &["a"], true),
        (&["a"], &["a", "b"], false),
        (&["a … c"], &["a b c"], true),
        (&["a … c"], &["a b d"], false),
        (&["a…"], &["b"], false),
        (&["…", "x…y"], &["a", "x-y"], true),
    ] {
        assert_eq!(fits(shown, printed), as_shown, "{shown:?} {printed:?}");
    }
    let found = blocks("text\n\n```console eventually\n$ a\nb\n```\n```rust is=x\nfn\n```\n");
    assert_eq!(found.len(), 2);
    assert!(found[0].has("eventually") && found[1].value("is") == Some("x") && found[1].text == "fn\n");
    assert_eq!(commands("$ a\nb\n$ c\n"), [(Some("a"), vec!["b"]), (Some("c"), vec![])]);
}

#[tokio::test]
async fn the_first_scheduler_is_written_and_run_as_the_page_says() -> Outcome {
    let scene = Scene::new("guide").await?;
    let begun = Instant::now();
    let dir = scene.dir().join("src");
    std::fs::create_dir(&dir)?;
    let mut reader = Reader { scene, net: Net::new(1)?, dir, terminals: BTreeMap::new() };
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(PAGE);
    let page = std::fs::read_to_string(page)?;
    let page = blocks(&page);
    ensure(page.len() > 10, || "the page has lost its blocks".to_owned())?;
    for block in &page {
        match (block.value("file"), block.value("is"), block.value("terminal")) {
            (Some(file), ..) => std::fs::write(reader.dir.join(file), block.text)?,
            (_, Some(file), _) => {
                let found = std::fs::read_to_string(reader.dir.join(file))?;
                ensure(found == block.text, || format!("{file} is not as the page shows it:\n{found}"))?;
            }
            (.., Some(terminal)) => reader.terminal(terminal, block).await?,
            _ if block.has("console") => reader.console(block).await?,
            _ => return Err(failure(format!("a block that nobody understands: {:?}", block.info))),
        }
    }
    let took = begun.elapsed();
    eprintln!("the page took {:.0} s", took.as_secs_f64());
    ensure(took < WITHIN, || format!("it took {took:?}"))?;
    // The last one that was opened first: `framework dev` asks the cluster of `dev`.
    while let Some((_, mut terminal)) = reader.terminals.pop_last() {
        terminal.end().await?;
    }
    reader.scene.finish();
    Ok(())
}
