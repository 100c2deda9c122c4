//! Judges a saved history once more: `linear register FILE` or `linear list FILE`. Ends with 0 if it is
//! linearizable, 1 if it is not, and 2 if that cannot be told.

use std::fs::File;
use std::io::BufReader;
use std::process::ExitCode;

use serde::de::DeserializeOwned;
use tessera_linear::{AppendList, History, HistoryError, Model, Register, Verdict, check};

const USAGE: &str = "usage: linear register|list FILE, where FILE has one operation a line";

fn judge<M>(model: &M, path: &str) -> Result<ExitCode, HistoryError>
where
    M: Model<Input: DeserializeOwned, Output: DeserializeOwned>,
{
    let history = History::read(BufReader::new(File::open(path)?))?;
    let verdict = check(model, &history);
    println!("{verdict}");
    Ok(match verdict {
        Verdict::Linearizable { .. } => ExitCode::SUCCESS,
        Verdict::Violated(_) => ExitCode::from(1),
        Verdict::Unknown { .. } => ExitCode::from(2),
    })
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let judged = match words[..] {
        ["register", path] => judge(&Register, path).map_err(|error| format!("{path}: {error}")),
        ["list", path] => judge(&AppendList, path).map_err(|error| format!("{path}: {error}")),
        _ => Err(USAGE.to_owned()),
    };
    judged.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}
