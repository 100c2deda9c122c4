//! What people call objects: ids, names, and how those begin.
//!
//! Invariants: whatever names an object whole wins over what only begins so; a number is never cut, so that `a1`
//! is not taken for `a10`; several candidates are an error that lists them. Must never change anything.

use crate::api::{Agent, Framework, Task};
use crate::client::Client;
use crate::error::{CliError, Kind};
use crate::list::all_items;
use crate::output::clean;

/// Candidates that an error lists.
const CANDIDATES_SHOWN: usize = 8;

/// What an object is called, and what it is asked for by.
#[derive(Clone, Debug)]
struct Candidate {
    /// What requests name it by.
    id: String,
    /// What people may call it.
    names: Vec<String>,
}

/// Reads the name of a role, so that a slip is found before anybody is asked.
///
/// # Errors
/// When it cannot be one.
pub fn parse_role(text: &str) -> Result<String, String> {
    text.parse::<tessera_types::RoleName>().map(|_| text.to_owned()).map_err(|error| format!("{error}, for example eng/search"))
}

/// Whether `text` is how `name` begins, and does not end within a number.
pub fn begins(name: &str, text: &str) -> bool {
    let Some(rest) = name.strip_prefix(text) else { return false };
    let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    !(digit(text.chars().last()) && digit(rest.chars().next()))
}

/// The known word that is nearest to a mistyped one, if one is near.
pub fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    // One slip in a short word, up to three in a long one, and none in one of two letters: more is another word.
    let most = |other: &str| match word.chars().count().max(other.chars().count()) {
        0..=2 => 0,
        3..=5 => 1,
        6..=8 => 2,
        _ => 3,
    };
    let near = known.iter().map(|&other| (distance(word, other), other));
    near.filter(|(distance, other)| (1..=most(other)).contains(distance)).min().map(|(_, other)| other)
}

/// How many characters have to be put in, taken out, replaced, or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// How much of a name has to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// Its beginning, if only one begins so: for whoever looks.
    Enough,
    /// All of it, or the id: what changes something must not meet another one in a script that runs again.
    All,
}

/// The one that is meant among candidates.
fn choose(what: &str, text: &str, say: Say, candidates: &[Candidate], list: &str) -> Result<String, CliError> {
    let whole: Vec<&Candidate> =
        candidates.iter().filter(|c| c.id == text || c.names.iter().any(|name| name == text)).collect();
    let enough = say == Say::Enough || !whole.is_empty();
    let beginning = || candidates.iter().filter(|c| c.names.iter().any(|name| begins(name, text))).collect();
    let found: Vec<&Candidate> = if whole.is_empty() { beginning() } else { whole };
    let told = |c: &Candidate| match c.names.first() {
        Some(name) if *name != c.id => format!("{} ({})", clean(name), clean(&c.id)),
        _ => clean(&c.id),
    };
    match found.as_slice() {
        [one] if enough => Ok(one.id.clone()),
        [one] => Err(CliError::new(Kind::NotFound, format!("there is no {what} {text:?}"))
            .hint(format!("what changes something takes a whole name, or an id; did you mean {}?", told(one)))),
        [] => {
            let names: Vec<&str> = candidates.iter().flat_map(|c| &c.names).map(String::as_str).collect();
            let failed = CliError::new(Kind::NotFound, format!("there is no {what} {text:?}"));
            Err(match closest(text, &names) {
                Some(near) => failed.hint(format!("did you mean {}? `{list}` lists all", clean(near))),
                None => failed.hint(format!("`{list}` lists them")),
            })
        }
        several => {
            let mut names: Vec<String> = several.iter().take(CANDIDATES_SHOWN).map(|c| told(c)).collect();
            if several.len() > names.len() {
                names.push("…".to_owned());
            }
            let text = format!("{} {what}s are meant by {text:?}: {}", several.len(), names.join(", "));
            Err(CliError::new(Kind::Refused, text).hint("write more of the name, or the id"))
        }
    }
}

/// Whether it has the form of an id: the letter, and a number.
fn is_id(text: &str, letter: char) -> bool {
    text.strip_prefix(letter).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

/// The framework that is meant by an id, a name, or how a name begins.
///
/// # Errors
/// When there is none or several, or the cluster cannot be reached.
pub async fn framework(client: &Client, text: &str, say: Say) -> Result<String, CliError> {
    // A path of one part: what cannot be a name is not asked for.
    if is_id(text, 'f') || text.contains(':') {
        return Ok(text.to_owned());
    }
    if !text.is_empty() && !matches!(text, "." | "..") {
        match client.json(client.get(&["v1", "frameworks", text])).await {
            Ok(_) => return Ok(text.to_owned()),
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let list = all_items(client, client.get(&["v1", "frameworks"])).await?;
    let candidates = candidates(&list, |f: Framework| Candidate { id: f.id, names: vec![f.name] })?;
    choose("framework", text, say, &candidates, "tessera framework ls")
}

/// The agent that is meant by an id, a host's name, or how that begins.
///
/// # Errors
/// When there is none or several, or the cluster cannot be reached.
pub async fn agent(client: &Client, text: &str, say: Say) -> Result<String, CliError> {
    if is_id(text, 'a') {
        return Ok(text.to_owned());
    }
    let list = all_items(client, client.get(&["v1", "agents"])).await?;
    let candidates = candidates(&list, |a: Agent| Candidate { id: a.id, names: vec![a.hostname] })?;
    choose("agent", text, say, &candidates, "tessera agent ls")
}

/// The framework and the task that are meant by `FRAMEWORK TASK` or `FRAMEWORK/TASK`.
///
/// # Errors
/// When there is none or several, or the cluster cannot be reached.
pub async fn task(client: &Client, args: &TaskArg, say: Say) -> Result<(String, String), CliError> {
    let (framework_text, text) = args.split()?;
    let framework = framework(client, framework_text, say).await?;
    match client.json(client.get(&["v1", "tasks", &framework, text])).await {
        Ok(_) => return Ok((framework, text.to_owned())),
        Err(error) if error.kind == Kind::NotFound => {}
        Err(error) => return Err(error),
    }
    let request = client.get(&["v1", "tasks"]).query("framework", &framework).query("limit", crate::commands::task::LIST_LIMIT);
    let list = all_items(client, request).await?;
    let candidates = candidates(&list, |t: Task| Candidate { id: t.task.clone(), names: vec![t.task] })?;
    let how = format!("tessera task ls --all --framework {framework}");
    Ok((framework, choose("task", text, say, &candidates, &how)?))
}

/// A task on the command line.
#[derive(Clone, Debug, clap::Args)]
pub struct TaskArg {
    /// Name or id of its framework, or FRAMEWORK/TASK
    #[arg(value_name = "FRAMEWORK")]
    pub framework: String,
    /// Its id, or how it begins
    #[arg(value_name = "TASK")]
    pub task: Option<String>,
}

impl TaskArg {
    fn split(&self) -> Result<(&str, &str), CliError> {
        let halves = match &self.task {
            Some(task) => Some((self.framework.as_str(), task.as_str())),
            None => self.framework.split_once('/'),
        };
        match halves {
            Some((framework, task)) if !framework.is_empty() && !task.is_empty() => Ok((framework, task)),
            _ => {
                let text = format!("which task of {:?}? FRAMEWORK TASK or FRAMEWORK/TASK is expected", self.framework);
                Err(CliError::new(Kind::Usage, text))
            }
        }
    }
}

fn candidates<T: serde::de::DeserializeOwned>(
    list: &serde_json::Value,
    make: impl Fn(T) -> Candidate,
) -> Result<Vec<Candidate>, CliError> {
    let items: Vec<T> = crate::api::read_items(list)?;
    Ok(items.into_iter().map(make).collect())
}

/// Of an answer: tells that the masters are older than this program.
pub fn known<T>(answer: Result<T, CliError>, route: &str) -> Result<T, CliError> {
    answer.map_err(|error| match error.kind {
        Kind::NotFound if error.message.contains("route") || error.message.contains(route) => unknown_route(route),
        _ => error,
    })
}

/// The masters are older than this program.
pub fn unknown_route(route: &str) -> CliError {
    CliError::new(Kind::Refused, format!("this cluster's masters do not know {route}"))
        .hint("they are older than this program: upgrade them, see docs/operations.md")
}

#[cfg(test)]
mod tests {
    use super::{Candidate, Say, TaskArg, begins, choose, closest, is_id};
    use crate::error::Kind;

    #[test]
    fn numbers_are_not_cut() {
        for (name, text, expected) in [
            ("words", "wo", true),
            ("words", "words", true),
            ("count-71", "count-7", false),
            ("count-71", "count-", true),
            ("a10", "a1", false),
            ("a10", "a", true),
            ("job7x", "job7", true),
            ("words", "x", false),
        ] {
            assert_eq!(begins(name, text), expected, "{name} {text}");
        }
        assert!(is_id("f1", 'f') && !is_id("f", 'f') && !is_id("foo", 'f') && !is_id("a1", 'f'));
    }

    #[test]
    fn the_one_that_is_meant_is_found() {
        let candidates: Vec<Candidate> = [("f1", "words"), ("f2", "work"), ("f3", "wo"), ("f10", "logs")]
            .map(|(id, name)| Candidate { id: id.into(), names: vec![name.into()] })
            .into();
        for (text, expected) in [
            ("words", Ok("f1")),
            ("word", Ok("f1")),
            ("wo", Ok("f3")),
            ("wor", Err((Kind::Refused, "2 frameworks are meant by \"wor\": words (f1), work (f2)"))),
            ("l", Ok("f10")),
            ("wrods", Err((Kind::NotFound, "there is no framework \"wrods\""))),
            ("", Err((Kind::Refused, "4 frameworks are meant by \"\": words (f1), work (f2), wo (f3), logs (f10)"))),
        ] {
            let found = choose("framework", text, Say::Enough, &candidates, "ls");
            match (found, expected) {
                (Ok(id), Ok(wanted)) => assert_eq!(id, wanted, "{text}"),
                (Err(error), Err((kind, message))) => assert_eq!((error.kind, error.message.as_str()), (kind, message)),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        let error = choose("framework", "wrods", Say::Enough, &candidates, "ls").unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("did you mean words? `ls` lists all"));
        for whole in ["words", "wo", "f10"] {
            assert!(choose("framework", whole, Say::All, &candidates, "ls").is_ok(), "{whole}");
        }
        let error = choose("framework", "word", Say::All, &candidates, "ls").unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (Kind::NotFound, "there is no framework \"word\""));
        assert!(error.hint.unwrap().ends_with("did you mean words (f1)?"));
    }

    #[test]
    fn slips_are_seen() {
        let known = ["address", "token_file", "token_command"];
        for (word, near) in [("nix", None), ("zz", None), ("toke", None), ("addres", Some("address"))] {
            assert_eq!(closest(word, &["x", "fx", "web", "address", "token_file"]), near, "{word}");
        }
        for (word, near) in [("adress", Some("address")), ("tokenfile", Some("token_file")), ("x", None), ("colour", None)] {
            assert_eq!(closest(word, &known), near, "{word}");
        }
    }

    #[test]
    fn tasks_are_named_in_two_ways() {
        let arg = |framework: &str, task: Option<&str>| TaskArg { framework: framework.into(), task: task.map(str::to_owned) };
        assert_eq!(arg("a", Some("b")).split().unwrap(), ("a", "b"));
        assert_eq!(arg("a/b/c", None).split().unwrap(), ("a", "b/c"));
        for bad in [arg("a", None), arg("a/", None), arg("/b", None), arg("a", Some(""))] {
            assert!(bad.split().is_err(), "{bad:?}");
        }
    }
}
