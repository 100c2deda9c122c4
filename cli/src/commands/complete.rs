//! `tessera completion` and the hidden `tessera __complete`: what can stand at the end of a command line, with the
//! names of what is in the cluster.
//!
//! Invariants: an answer takes at most [`WITHIN`], and no cluster means no names and no message; nobody is asked for a
//! token. What the command line knows comes from its own definition, never from a second list. Must never change
//! anything.

use crate::Cli;
use crate::client::Client;
use crate::connection::{ConnectionArgs, TokenPlace};
use crate::contexts::ConfigFile;
use crate::error::CliError;
use crate::{Context, output};
use clap::builder::ValueRange;
use clap::{Arg, ArgAction, CommandFactory as _};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tessera_types::TaskState;

/// Longer than a shell's user waits without wondering.
const WITHIN: Duration = Duration::from_millis(300);
/// Names that one answer has at most: more are not read by anybody.
const NAMES_MAX: usize = 500;
/// Tasks that are asked for.
const TASKS_ASKED: usize = 500;
/// Hexadecimal digits of a digest: without `sha256:`, whose colon shells take for the end of a word.
const DIGITS: usize = 16;
/// How a digest begins.
const SHA256: &str = "sha256:";

/// Arguments of `tessera completion`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera completion bash > /etc/bash_completion.d/tessera\n  tessera completion zsh > ~/.zfunc/_tessera      # with fpath+=~/.zfunc before compinit\n  tessera completion fish > ~/.config/fish/completions/tessera.fish\n\nNames of frameworks, tasks, agents, roles and components come from the cluster, if it answers within 0.3 s."
)]
pub struct CompletionArgs {
    /// Which shell
    shell: Shell,
}

/// Shells that are known.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shell {
    /// GNU Bash
    Bash,
    /// Z shell
    Zsh,
    /// Fish
    Fish,
}

const BASH: &str = r#"# Completion of tessera for bash.
_tessera() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("${line%%$'\t'*}")
    done < <(tessera __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o bashdefault -o default -F _tessera tessera
"#;

const ZSH: &str = r#"#compdef tessera
# Completion of tessera for zsh.
_tessera() {
    local line value
    local -a items
    while IFS= read -r line; do
        value=${line%%$'\t'*}
        if [[ $line == *$'\t'* ]]; then
            items+=("${value//:/\\:}:${line#*$'\t'}")
        else
            items+=("${value//:/\\:}")
        fi
    done < <(tessera __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)
    if (( ${#items} )); then
        _describe tessera items
    else
        _files
    fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _tessera "$@"
else
    compdef _tessera tessera
fi
"#;

const FISH: &str = r#"# Completion of tessera for fish.
function __tessera_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found (tessera __complete -- $words[2..-1] "$current" 2>/dev/null)
    # Files are names where nothing else is.
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path $current
    end
end
complete -c tessera -f -k -a '(__tessera_complete)'
"#;

/// Write the completion of a shell.
///
/// # Errors
/// When stdout cannot be written to.
pub fn script(args: &CompletionArgs) -> Result<ExitCode, CliError> {
    let text = match args.shell {
        Shell::Bash => BASH,
        Shell::Zsh => ZSH,
        Shell::Fish => FISH,
    };
    output::write(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Arguments of the hidden command that shells call.
#[derive(Debug, clap::Args)]
pub struct CompleteArgs {
    /// The words behind the program's name, the last one unfinished
    #[arg(last = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// What can stand in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Frameworks,
    Tasks,
    Agents,
    Roles,
    Components,
    Contexts,
    Offers,
    Masters,
    /// Of the history of a framework.
    Versions,
    /// Of a framework's state.
    Keys,
    /// Of a framework's configuration.
    Settings,
}

/// A word, and what it is.
type Candidate = (String, String);

/// What was read of a command line, and what comes next.
#[derive(Debug, Default)]
struct Position {
    /// Subcommands, options, and values that are known beforehand.
    known: Vec<Candidate>,
    /// What has to be asked for.
    names: Option<Names>,
    /// Stands before every candidate: `--framework=`.
    before: String,
    /// The unfinished word, as far as it is compared.
    current: String,
    /// It is the value of an option.
    is_option: bool,
    /// Values of arguments by their ids.
    values: BTreeMap<String, String>,
}

/// Write what can stand at the end.
///
/// # Errors
/// When stdout cannot be written to.
pub async fn run(_context: &Context, args: CompleteArgs) -> Result<ExitCode, CliError> {
    let words = joined(&args.words);
    let position = read_line(&words);
    // Bash puts what is said in the place of its own last word only.
    let glued = match (words.last(), args.words.last()) {
        (Some(whole), Some(last)) if is_sign(last) => whole.len(),
        (Some(whole), Some(last)) => whole.len().saturating_sub(last.len()),
        _ => 0,
    };
    let mut candidates = position.known.clone();
    if let Some(names) = position.names {
        let asked = tokio::time::timeout(WITHIN, ask(names, &position)).await;
        candidates.extend(asked.ok().and_then(Result::ok).unwrap_or_default());
    }
    let mut lines: Vec<String> = candidates
        .into_iter()
        .filter(|(word, _)| word.starts_with(&position.current))
        .map(|(word, what)| (output::clean(&word), output::clean(&what)))
        // A shell would take it apart.
        .filter(|(word, _)| !word.contains(char::is_whitespace))
        .take(NAMES_MAX)
        .map(|(word, what)| {
            let word = format!("{}{word}", position.before);
            let word = word.get(glued..).unwrap_or_default();
            if what.is_empty() { word.to_owned() } else { format!("{word}\t{what}") }
        })
        .collect();
    lines.sort_unstable();
    lines.dedup();
    if !lines.is_empty() {
        output::line(&lines.join("\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn is_sign(word: &str) -> bool {
    matches!(word, "=" | ":")
}

/// Bash gives `--a=b` and `http://h:1` as several words.
fn joined(words: &[String]) -> Vec<String> {
    let mut joined: Vec<String> = Vec::new();
    let mut glue = false;
    for word in words {
        let sign = is_sign(word);
        match joined.last_mut() {
            Some(last) if (sign || glue) && !last.is_empty() => last.push_str(word),
            _ => joined.push(word.clone()),
        }
        glue = sign;
    }
    joined
}

/// Follows the words through the definition of the command line.
fn read_line(words: &[String]) -> Position {
    let mut root = Cli::command();
    root.build();
    let mut command = &root;
    let mut path: Vec<&str> = Vec::new();
    let mut position = Position::default();
    let (mut pending, mut behind, mut placed) = (None::<&Arg>, false, 0_usize);
    let (current, before) = words.split_last().map_or((String::new(), &[][..]), |(last, rest)| (last.clone(), rest));
    for word in before {
        if let Some(arg) = pending.take() {
            position.values.insert(arg.get_id().to_string(), word.clone());
        } else if behind {
            placed += 1;
        } else if word == "--" {
            behind = true;
        } else if let Some((arg, value)) = option_of(command, word) {
            match value {
                Some(value) => drop(position.values.insert(arg.get_id().to_string(), value)),
                None if takes_value(arg) => pending = Some(arg),
                None => {}
            }
        } else if word.starts_with('-') {
            // An option that is not known has no value, as far as can be said.
        } else if let Some(sub) = command.find_subcommand(word).filter(|_| placed == 0) {
            command = sub;
            path.push(sub.get_name());
        } else {
            if let Some(arg) = command.get_positionals().nth(placed) {
                position.values.insert(arg.get_id().to_string(), word.clone());
            }
            placed += 1;
        }
    }
    position.current = current;
    if let Some(arg) = pending {
        position.is_option = true;
        position.expect(arg, &path);
    } else if behind {
        // What stands behind `--` is another program's.
    } else if let Some((name, value)) = position.current.clone().split_once('=').filter(|(name, _)| name.starts_with("--")) {
        if let Some((arg, _)) = option_of(command, name) {
            position.before = format!("{name}=");
            position.current = value.to_owned();
            position.is_option = true;
            position.expect(arg, &path);
        }
    } else if position.current.starts_with('-') {
        position.known = options(command);
    } else {
        if placed == 0 {
            position.known = subcommands(command);
        }
        let positionals: Vec<&Arg> = command.get_positionals().collect();
        // The last one may be repeated.
        let many = |arg: &&&Arg| arg.get_num_args().is_some_and(|range| range.max_values() > 1);
        if let Some(arg) = positionals.get(placed).or(positionals.last().filter(many)) {
            position.expect(arg, &path);
        }
    }
    position
}

impl Position {
    /// A value of this argument stands here.
    fn expect(&mut self, arg: &Arg, path: &[&str]) {
        let possible = arg.get_possible_values();
        self.known.extend(possible.iter().filter(|value| !value.is_hide_set()).map(|value| {
            (value.get_name().to_owned(), value.get_help().map(ToString::to_string).unwrap_or_default())
        }));
        let id = arg.get_id().as_str();
        if arg.get_value_delimiter() == Some(',')
            && let Some((before, last)) = self.current.clone().rsplit_once(',')
        {
            self.before = format!("{}{before},", self.before);
            self.current = last.to_owned();
        }
        if id == "state" && path == ["task", "ls"] {
            self.known.extend(TaskState::ALL.iter().map(|state| (state.name().to_owned(), String::new())));
        }
        let name = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
        self.names = match (id, name) {
            ("framework", _) | (_, "FRAMEWORK") if self.current.contains('/') && path.first() != Some(&"framework") => {
                Some(Names::Tasks)
            }
            ("framework", _) | (_, "FRAMEWORK") => Some(Names::Frameworks),
            ("task", _) | (_, "TASK") => Some(Names::Tasks),
            ("agent", _) | (_, "AGENT") => Some(Names::Agents),
            ("role", _) | (_, "ROLE") => Some(Names::Roles),
            ("digest" | "digests" | "component" | "positional", _) => {
                // It is shown with it and taken with it.
                if let Some(rest) = self.current.strip_prefix(SHA256) {
                    self.before = format!("{}{SHA256}", self.before);
                    self.current = rest.to_owned();
                }
                Some(Names::Components)
            }
            ("number" | "to", _) if path == ["framework", "rollback"] => Some(Names::Versions),
            ("key" | "keys", _) if path.starts_with(&["framework", "state"]) => Some(Names::Keys),
            ("values" | "unset", _) if path == ["framework", "config", "set"] => {
                // The value of a key is nobody's to say.
                Some(Names::Settings).filter(|_| !self.current.contains('='))
            }
            ("context", _) => Some(Names::Contexts),
            ("offers", _) => Some(Names::Offers),
            ("node", _) => Some(Names::Masters),
            ("name", _) if path.first() == Some(&"context") => Some(Names::Contexts),
            _ => None,
        };
    }
}

fn takes_value(arg: &Arg) -> bool {
    let optional = arg.get_num_args().is_some_and(|range| range == ValueRange::new(0..=1));
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) && !optional
}

/// The option that a word is, with the value that it has in itself.
fn option_of<'a>(command: &'a clap::Command, word: &str) -> Option<(&'a Arg, Option<String>)> {
    if let Some(long) = word.strip_prefix("--").filter(|long| !long.is_empty()) {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (long, None),
        };
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(name))?;
        return Some((arg, value));
    }
    let mut letters = word.strip_prefix('-')?.chars();
    let letter = letters.next()?;
    let arg = command.get_arguments().find(|arg| arg.get_short() == Some(letter))?;
    let rest: String = letters.collect();
    Some((arg, (takes_value(arg) && !rest.is_empty()).then_some(rest)))
}

fn first_line(text: Option<&clap::builder::StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

fn options(command: &clap::Command) -> Vec<Candidate> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    shown.filter_map(|arg| Some((format!("--{}", arg.get_long()?), first_line(arg.get_help())))).collect()
}

fn subcommands(command: &clap::Command) -> Vec<Candidate> {
    let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    shown.map(|sub| (sub.get_name().to_owned(), first_line(sub.get_about()))).collect()
}

/// Ask the cluster, once and without patience.
async fn ask(names: Names, position: &Position) -> Result<Vec<Candidate>, CliError> {
    if names == Names::Contexts {
        let file = ConfigFile::load()?;
        let all = file.contexts.into_iter();
        return Ok(all.map(|(name, entry)| (name, entry.address.unwrap_or_default())).collect());
    }
    let value = |name: &str| position.values.get(name).cloned();
    let args = ConnectionArgs {
        address: value("address"),
        token_file: value("token_file").map(PathBuf::from),
        context: value("context"),
    };
    // A command for a token may ask its user something.
    if matches!(args.resolve()?.token.0, TokenPlace::Command(_)) {
        return Ok(Vec::new());
    }
    let client = Client::connect(&args)?;
    let framework = value("framework");
    let below = |last: &str| framework.as_deref().map(|framework| client.get(&["v1", "frameworks", framework, last]));
    let quick = |request: crate::client::Request| request.retry_for(Duration::ZERO).within(WITHIN);
    let slashed = position.current.split_once('/').map(|(framework, _)| framework.to_owned());
    let request = match names {
        Names::Frameworks => client.get(&["v1", "frameworks"]),
        Names::Agents => client.get(&["v1", "agents"]),
        Names::Roles => client.get(&["v1", "roles"]),
        Names::Components => client.get(&["v1", "components"]),
        Names::Offers => client.get(&["v1", "offers"]),
        Names::Masters => client.get(&["v1", "masters"]),
        Names::Versions => match &framework {
            Some(framework) => client.get(&["v1", "frameworks", framework]),
            None => return Ok(Vec::new()),
        },
        Names::Keys => match below("state") {
            Some(request) => request.query("limit", NAMES_MAX),
            None => return Ok(Vec::new()),
        },
        Names::Settings => match below("config") {
            Some(request) => request,
            None => return Ok(Vec::new()),
        },
        Names::Contexts => return Ok(Vec::new()),
        Names::Tasks => match value("framework").or_else(|| slashed.clone()) {
            Some(framework) => client.get(&["v1", "tasks"]).query("limit", TASKS_ASKED).query("framework", framework),
            None => return Ok(Vec::new()),
        },
    };
    let list = client.json(quick(request)).await?;
    if names == Names::Settings {
        let keys = list.get("config").and_then(Value::as_object).into_iter().flatten();
        let sign = if position.is_option { "" } else { "=" };
        return Ok(keys.map(|(key, value)| (format!("{key}{sign}"), value.as_str().unwrap_or_default().to_owned())).collect());
    }
    let items = list.get("items").or_else(|| list.get("versions")).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let prefix = slashed.filter(|_| names == Names::Tasks && value("framework").is_none());
    Ok(items.iter().filter_map(|item| candidate(names, item, prefix.as_deref())).collect())
}

fn candidate(names: Names, item: &Value, prefix: Option<&str>) -> Option<Candidate> {
    let text = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (word, what) = match names {
        Names::Frameworks => (text("name"), format!("{} {}", text("id"), text("state"))),
        Names::Agents => (text("id"), format!("{} {}", text("hostname"), text("state"))),
        Names::Roles => (text("role"), String::new()),
        Names::Components => {
            let digest = text("digest");
            (digest.strip_prefix(SHA256)?.chars().take(DIGITS).collect(), text("world"))
        }
        Names::Tasks => {
            let task = text("task");
            (prefix.map_or_else(|| task.clone(), |framework| format!("{framework}/{task}")), text("state"))
        }
        Names::Offers => (text("id"), text("agent")),
        Names::Masters => (item.get("node")?.to_string(), text("name")),
        Names::Versions => (item.get("version")?.to_string(), format!("{} {}", text("how"), text("outcome"))),
        Names::Keys => (text("key"), String::new()),
        Names::Contexts | Names::Settings => return None,
    };
    (!word.is_empty()).then_some((word, what))
}

#[cfg(test)]
mod tests {
    use super::{Names, candidate, joined, read_line};
    use serde_json::json;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_can_follow_is_known_from_the_command_line_itself() {
        for (line, word, names) in [
            ("ta", Some("task"), None),
            ("task ", Some("inspect"), None),
            ("task inspect ", None, Some(Names::Frameworks)),
            ("task inspect words ", None, Some(Names::Tasks)),
            ("task inspect words/", None, Some(Names::Tasks)),
            ("task ls --framework ", None, Some(Names::Frameworks)),
            ("task ls --framework=wo", None, Some(Names::Frameworks)),
            ("task ls -o ", Some("yaml"), None),
            ("task ls --output=y", Some("yaml"), None),
            ("-o json task ls --a", Some("--agent"), None),
            ("task ls --agent ", None, Some(Names::Agents)),
            ("agent drain ", None, Some(Names::Agents)),
            ("role set ", None, Some(Names::Roles)),
            ("component rm ", None, Some(Names::Components)),
            ("component rm 0f3a ", None, Some(Names::Components)),
            ("framework create w --component ", None, Some(Names::Components)),
            ("framework upgrade ", None, Some(Names::Frameworks)),
            ("framework config set ", None, Some(Names::Frameworks)),
            ("context use ", None, Some(Names::Contexts)),
            ("--context ", None, Some(Names::Contexts)),
            ("explain task words ", None, Some(Names::Tasks)),
            ("run -- tes", None, None),
            ("operator raft transfer ", None, Some(Names::Masters)),
            ("completion ", Some("fish"), None),
            ("task ls --state TASK_R", Some("TASK_RUNNING"), None),
            ("task ls --state TASK_RUNNING,TASK_K", Some("TASK_KILLING"), None),
            ("component inspect sha256:0f", None, Some(Names::Components)),
            ("framework upgrade words ", None, Some(Names::Components)),
            ("framework rollback words ", None, Some(Names::Versions)),
            ("framework rollback words --to ", None, Some(Names::Versions)),
            ("framework state get words ", None, Some(Names::Keys)),
            ("framework state rm words a ", None, Some(Names::Keys)),
            ("framework config set words ", None, Some(Names::Settings)),
            ("framework config set words a=", None, None),
            ("offer rm ", None, Some(Names::Offers)),
        ] {
            let position = read_line(&words(line));
            assert_eq!(position.names, names, "{line}");
            if let Some(word) = word {
                let found = position.known.iter().any(|(known, _)| known == word && known.starts_with(&position.current));
                assert!(found, "{line}: {:?}", position.known);
            }
        }
        assert_eq!(read_line(&words("--address h:1 task inspect words ")).values["address"], "h:1");
        for (line, before, current) in [
            ("task ls --framework=wo", "--framework=", "wo"),
            ("component inspect sha256:0f", "sha256:", "0f"),
            ("framework create w --component=sha256:0f", "--component=sha256:", "0f"),
            ("task ls --state=TASK_LOST,TASK_K", "--state=TASK_LOST,", "TASK_K"),
        ] {
            let position = read_line(&words(line));
            assert_eq!((position.before.as_str(), position.current.as_str()), (before, current), "{line}");
        }
    }

    #[test]
    fn words_that_a_shell_took_apart_are_put_together() {
        assert_eq!(joined(&words("task --address http : //h : 1 ls ")), ["task", "--address", "http://h:1", "ls", ""]);
        assert_eq!(joined(&words("task ls --framework = wo")), ["task", "ls", "--framework=wo"]);
    }

    #[test]
    fn objects_are_offered_by_what_names_them() {
        for (names, item, prefix, word) in [
            (Names::Frameworks, json!({"id": "f1", "name": "words", "state": "running"}), None, "words"),
            (Names::Components, json!({"digest": format!("sha256:{}", "0f".repeat(32))}), None, "0f0f0f0f0f0f0f0f"),
            (Names::Tasks, json!({"task": "t"}), Some("words"), "words/t"),
            (Names::Masters, json!({"node": 2, "name": "m"}), None, "2"),
            (Names::Versions, json!({"version": 3, "how": "upgraded"}), None, "3"),
            (Names::Keys, json!({"key": "jobs/1", "bytes": 2}), None, "jobs/1"),
        ] {
            assert_eq!(candidate(names, &item, prefix).unwrap().0, word);
        }
    }
}
