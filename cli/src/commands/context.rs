//! `tessera context` and `tessera config`: clusters by name, and files of settings.
//!
//! Must never print a token, nor open a connection.

use crate::commands::agent;
use crate::connection::{Connection, ConnectionArgs, Origin, TokenPlace, bases};
use crate::contexts::{ConfigFile, Entry, check_name};
use crate::error::{CliError, Kind};
use crate::output::{Column, col, text};
use crate::wait::YesArgs;
use crate::{Context, output};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// What to do with contexts.
#[derive(Debug, clap::Subcommand)]
pub enum ContextCommand {
    /// List the contexts; `*` is the one in force
    #[command(after_help = "Examples:\n  tessera context ls\n  tessera context ls -o name")]
    Ls,
    /// Choose the context that is meant when nothing is said
    #[command(after_help = "Examples:\n  tessera context use prod\n  tessera --context staging task ls   # once only")]
    Use {
        /// Its name
        name: String,
    },
    /// Make a context, or change what is named
    #[command(
        after_help = "Examples:\n  tessera context set prod --url http://10.0.0.1:5050,http://10.0.0.2:5050 --token-file ~/.tessera-prod --use\n  tessera context set prod --token-command pass --token-command show --token-command tessera/prod\n\nTokens do not stand in the file: it names the file or the command that has one. A token goes to the addresses of its\ncontext only, whatever --address says."
    )]
    Set(SetArgs),
    /// Remove a context
    #[command(after_help = "Example:\n  tessera context rm prod")]
    Rm {
        /// Its name
        name: String,
        #[command(flatten)]
        yes: YesArgs,
    },
    /// Say which cluster is meant now, and who said so
    #[command(after_help = "Examples:\n  tessera context show\n  tessera --context prod context show -o json")]
    Show,
}

/// Arguments of `tessera context set`.
#[derive(Debug, clap::Args)]
pub struct SetArgs {
    /// Its name
    name: String,
    /// Addresses of its masters, separated by commas; `--address` is the same here
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The file with its token, for its owner alone (mode 0600); `--token-file` is the same here
    #[arg(long, value_name = "FILE", conflicts_with = "token_command")]
    token_from: Option<PathBuf>,
    /// A command that writes its token to stdout; each further one is an argument of it
    #[arg(long, value_name = "WORD")]
    token_command: Vec<String>,
    /// Choose it, too
    #[arg(long = "use")]
    choose: bool,
}

/// What to do with files of settings.
#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Check the file of contexts, or an agent's file
    #[command(
        after_help = "Examples:\n  tessera config validate\n  tessera config validate --agent /etc/tessera/agent.toml"
    )]
    Validate {
        /// A file of contexts [default: the one that is used]
        file: Option<PathBuf>,
        /// An agent's file of settings
        #[arg(long, value_name = "FILE", conflicts_with = "file")]
        agent: Option<PathBuf>,
    },
}

const COLUMNS: [Column; 4] = [col("USED"), col("NAME"), text("ADDRESS"), text("TOKEN")];

/// Run it.
///
/// # Errors
/// When the file of contexts cannot be used, or there is no such context.
pub fn run(context: &Context, command: ContextCommand) -> Result<ExitCode, CliError> {
    match command {
        ContextCommand::Ls => list(context)?,
        ContextCommand::Use { name } => {
            let mut file = ConfigFile::load()?;
            file.entry(&name)?;
            file.current = Some(name.clone());
            file.save()?;
            output::note(&format!("{name} is meant from now on"));
        }
        ContextCommand::Set(args) => set(args.with(&context.connection)?)?,
        ContextCommand::Rm { name, yes } => {
            let mut file = ConfigFile::load()?;
            file.entry(&name)?;
            yes.confirm(&format!("The context {name} is removed; its cluster stays as it is."))?;
            file.contexts.remove(&name);
            if file.current.as_deref() == Some(name.as_str()) {
                file.current = None;
            }
            file.save()?;
            output::note(&format!("{name} is removed"));
        }
        ContextCommand::Show => show(context, &context.connection.resolve()?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn token_of(entry: &Entry) -> String {
    entry.token().map_or_else(String::new, |token| token.to_string())
}

fn list(context: &Context) -> Result<(), CliError> {
    let file = ConfigFile::load()?;
    // One that is named wrongly is told by commands that need it.
    let used = context.connection.resolve().ok().and_then(|found| found.context).map(|(name, _)| name);
    let used = |name: &str| used.as_deref() == Some(name);
    if context.is_data() {
        let items: Vec<Value> = file
            .contexts
            .iter()
            .map(|(name, entry)| {
                json!({"name": name, "used": used(name), "address": entry.address,
                    "token_file": entry.token_file, "token_command": entry.token_command})
            })
            .collect();
        return output::document(&json!({"file": ConfigFile::path(), "items": items}));
    }
    let rows = file.contexts.iter().map(|(name, entry)| {
        let mark = if used(name) { "*" } else { "" };
        vec![mark.to_owned(), name.clone(), entry.address.clone().unwrap_or_default(), token_of(entry)]
    });
    output::table(&COLUMNS, rows.collect(), "no contexts; `tessera context set NAME --url URL` makes one")
}

/// What two flags say that mean the same here.
fn either<T>(own: Option<T>, global: Option<T>, flags: &str) -> Result<Option<T>, CliError> {
    match (own, global) {
        (Some(_), Some(_)) => Err(CliError::new(Kind::Usage, format!("{flags} mean the same here: give one of them"))),
        (own, global) => Ok(own.or(global)),
    }
}

impl SetArgs {
    /// The flags of every command say what the context is to be, and not which cluster is asked: none is.
    fn with(mut self, global: &ConnectionArgs) -> Result<Self, CliError> {
        self.url = either(self.url, global.address.clone(), "--url and --address")?;
        self.token_from = either(self.token_from, global.token_file.clone(), "--token-from and --token-file")?;
        if self.token_from.is_some() && !self.token_command.is_empty() {
            return Err(CliError::new(Kind::Usage, "--token-file and --token-command exclude each other"));
        }
        if self.url.is_none() && self.token_from.is_none() && self.token_command.is_empty() && !self.choose {
            let text = format!("what is to be set of the context {}?", self.name);
            return Err(CliError::new(Kind::Usage, text).hint("--url URL, --token-file FILE, --token-command WORD or --use"));
        }
        Ok(self)
    }
}

fn set(args: SetArgs) -> Result<(), CliError> {
    check_name(&args.name)?;
    if let Some(url) = &args.url {
        bases(url)?;
    }
    let mut file = ConfigFile::load()?;
    if args.url.is_none() && args.token_from.is_none() && args.token_command.is_empty() {
        // Only chosen, which makes none.
        file.entry(&args.name)?;
    }
    let entry = file.contexts.entry(args.name.clone()).or_default();
    if args.url.is_some() {
        entry.address = args.url;
    }
    if let Some(path) = args.token_from {
        // The file is looked for from wherever a command is given.
        entry.token_file = Some(std::path::absolute(&path).unwrap_or(path));
        entry.token_command = None;
    }
    if !args.token_command.is_empty() {
        entry.token_command = Some(args.token_command);
        entry.token_file = None;
    }
    let first = file.contexts.len() == 1 && file.current.is_none();
    if args.choose || first {
        file.current = Some(args.name.clone());
    }
    let token = file.contexts.get(&args.name).and_then(Entry::token);
    let path = file.save()?;
    match &token {
        Some(TokenPlace::File(file)) if !file.is_file() => output::note(&format!("there is no file {} yet", file.display())),
        Some(_) => {}
        None => output::note("it has no token of its own: --token-file FILE or --token-command WORD names one"),
    }
    let used = if args.choose || first { ", and is meant from now on" } else { "" };
    output::note(&format!("{} is in {}{used}", args.name, path.display()));
    Ok(())
}

fn show(context: &Context, found: &Connection) -> Result<(), CliError> {
    let name = found.context.as_ref().map(|(name, _)| name.clone());
    let (address, address_from) = (&found.address.0, found.address.1.to_string());
    let (token, token_from) = (found.token.0.to_string(), found.token.1.to_string());
    let from = found.context.as_ref().map(|(_, origin)| origin.to_string());
    if context.is_data() {
        return output::document(&json!({
            "name": name, "context_from": from, "address": address, "address_from": address_from,
            "token": token, "token_from": token_from, "file": ConfigFile::path(),
        }));
    }
    let file = ConfigFile::path().map_or_else(|| "none".to_owned(), |path| path.display().to_string());
    let columns = [col("WHAT"), text("VALUE"), col("FROM")];
    let rows = vec![
        vec!["context".to_owned(), name.unwrap_or_else(|| "none".to_owned()), from.unwrap_or_default()],
        vec!["address".to_owned(), address.clone(), address_from],
        vec!["token".to_owned(), token, token_from],
        vec!["file".to_owned(), file, place_of_file().to_string()],
    ];
    output::table(&columns, rows, "")
}

fn place_of_file() -> Origin {
    match std::env::var_os("TESSERA_CONFIG") {
        Some(value) if !value.is_empty() => Origin::Env("TESSERA_CONFIG"),
        _ => Origin::Default,
    }
}

/// Run `tessera config`.
///
/// # Errors
/// When something in the file is wrong.
pub fn run_config(context: &Context, command: ConfigCommand) -> Result<ExitCode, CliError> {
    let ConfigCommand::Validate { file, agent } = command;
    let (path, what) = match (agent, file) {
        (Some(path), _) => {
            agent::check_file(&path)?;
            (path, "an agent's settings".to_owned())
        }
        (None, file) => {
            let path = file.or_else(ConfigFile::path).ok_or_else(|| CliError::new(Kind::Usage, "which file?"))?;
            if !path.is_file() {
                let text = format!("{} is not there", path.display());
                return Err(CliError::new(Kind::NotFound, text).hint("`tessera context set` makes one"));
            }
            let file = ConfigFile::load_from(&path)?;
            file.check().map_err(|error| CliError { message: format!("{}: {}", path.display(), error.message), ..error })?;
            (path, format!("{} contexts", file.contexts.len()))
        }
    };
    if context.is_data() {
        output::document(&json!({"name": path, "valid": true}))?;
    } else {
        output::line(&format!("{} is right: {what}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::{Kind, SetArgs};
    use crate::connection::ConnectionArgs;
    use std::path::PathBuf;

    #[test]
    fn flags_of_every_command_say_what_a_context_is_to_be() {
        type Flags = [Option<&'static str>; 2];
        // --url and --token-from, --address and --token-file, and what they come to.
        let cases: [(Flags, Flags, &[&str], Option<Flags>); 7] = [
            ([Some("a:1"), Some("/t")], [None, None], &[], Some([Some("a:1"), Some("/t")])),
            ([None, None], [Some("a:1"), Some("/t")], &[], Some([Some("a:1"), Some("/t")])),
            ([Some("a:1"), None], [None, Some("/t")], &[], Some([Some("a:1"), Some("/t")])),
            ([Some("a:1"), None], [None, None], &["pass"], Some([Some("a:1"), None])),
            ([Some("a:1"), None], [Some("b:1"), None], &[], None),
            ([None, None], [None, Some("/t")], &["pass"], None),
            ([None, None], [None, None], &[], None),
        ];
        for ([url, from], [address, token_file], command, expected) in cases {
            let args = SetArgs {
                name: "lab".into(),
                url: url.map(str::to_owned),
                token_from: from.map(PathBuf::from),
                token_command: command.iter().map(|&word| word.to_owned()).collect(),
                choose: false,
            };
            let global = ConnectionArgs { address: address.map(str::to_owned), token_file: token_file.map(PathBuf::from), context: None };
            match (args.with(&global), expected) {
                (Ok(found), Some([url, file])) => {
                    assert_eq!((found.url.as_deref(), found.token_from), (url, file.map(PathBuf::from)));
                }
                (Err(error), None) => assert_eq!(error.kind, Kind::Usage),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        }
    }
}
