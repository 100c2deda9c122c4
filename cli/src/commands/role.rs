//! `tessera role`: the limits of roles, and of the whole cluster.
//!
//! Must never know a limit by name: which there are, and within which bounds, is the master's to say.

use crate::api::{Limit, Limits, read};
use crate::client::Client;
use crate::error::{CliError, Kind};
use crate::{Context, output};
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// What to do with roles.
#[derive(Debug, clap::Subcommand)]
pub enum RoleCommand {
    /// Show the limits of a role or of the cluster, or set some of them
    #[command(
        after_help = "Examples:\n  tessera role limits                                    # those of the cluster\n  tessera role limits eng/search\n  tessera role limits eng --set state-bytes=128MiB --set turn-cpu-ms=2s\n  tessera role limits eng --unset state-bytes\n\nA role has the limits of its parent where nothing is set for it. Values are numbers, with KiB, MiB, GiB,\nms, s or m if need be. What runs already gets new limits with its next turn; a Wasm task keeps those that it\nwas started with."
    )]
    Limits {
        /// The role; the whole cluster without one
        role: Option<String>,
        /// Set a limit; may be repeated
        #[arg(long, value_name = "NAME=VALUE", value_parser = parse_limit)]
        set: Vec<(String, u64)>,
        /// Leave a limit to the parent role again; may be repeated
        #[arg(long, value_name = "NAME")]
        unset: Vec<String>,
        /// Only those that are set somewhere
        #[arg(long)]
        changed: bool,
    },
}

/// Reads `NAME=VALUE`.
pub fn parse_limit(text: &str) -> Result<(String, u64), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is expected")?;
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = value.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{value:?} is no number"))?;
    let factor: u64 = match unit {
        "" | "B" | "ms" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err(format!("{unit:?} is none of KiB, MiB, GiB, ms, s and m")),
    };
    let value = number
        .checked_mul(factor)
        .ok_or_else(|| format!("{value} is too large"))?;
    match name {
        "" => Err("NAME=VALUE is expected".to_owned()),
        name => Ok((name.to_owned(), value)),
    }
}

/// Run it.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn run(context: &Context, command: RoleCommand) -> Result<ExitCode, CliError> {
    let RoleCommand::Limits {
        role,
        set,
        unset,
        changed,
    } = command;
    let client = context.client()?;
    let value = if set.is_empty() && unset.is_empty() {
        ask(&client, role.as_deref()).await?
    } else {
        change(&client, role.as_deref(), set, unset).await?
    };
    if context.is_json() {
        output::json(&value)?;
    } else {
        let limits: Limits = read(&value)?;
        show(limits, changed)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(client: &Client, role: Option<&str>) -> Result<Value, CliError> {
    let request = client.get(&["v1", "limits"]);
    let request = match role {
        Some(role) => request.query("role", role),
        None => request,
    };
    client.json(request).await
}

async fn change(
    client: &Client,
    role: Option<&str>,
    set: Vec<(String, u64)>,
    unset: Vec<String>,
) -> Result<Value, CliError> {
    let mut values = Map::new();
    for (name, value) in set {
        if values.insert(name.clone(), value.into()).is_some() {
            let text = format!("--set {name} is given twice");
            return Err(CliError::new(Kind::Usage, text));
        }
    }
    let request = client
        .patch(&["v1", "limits"])
        .json(json!({"set": values, "unset": unset}))
        .repeatable();
    let request = match role {
        Some(role) => request.query("role", role),
        None => request,
    };
    client.json(request).await
}

fn show(limits: Limits, changed: bool) -> Result<(), CliError> {
    let shown = limits
        .limits
        .into_iter()
        .filter(|limit| !changed || limit.from != "default");
    let rows = shown
        .map(|limit| {
            let [value, default, min, max] = [limit.value, limit.default, limit.min, limit.max]
                .map(|value| amount(&limit, value));
            vec![
                limit.name,
                value,
                limit.from,
                default,
                format!("{min} to {max}"),
                limit.what,
            ]
        })
        .collect();
    let header = ["LIMIT", "VALUE", "FROM", "DEFAULT", "RANGE", "WHAT"];
    output::table(&header, rows, "no limit is set; all are at their defaults")
}

/// A value in the largest unit that divides it.
fn amount(limit: &Limit, value: u64) -> String {
    let units: &[(u64, &str)] = match limit.unit.as_str() {
        "bytes" => &[(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")],
        "ms" => &[(60_000, "m"), (1_000, "s"), (1, "ms")],
        _ => &[],
    };
    let unit = units
        .iter()
        .find(|(size, _)| value > 0 && value % size == 0);
    match unit {
        Some((size, unit)) => format!("{}{unit}", value / size),
        None => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{amount, parse_limit};
    use crate::api::Limit;

    #[test]
    fn values_are_read_with_units() {
        for (text, value) in [
            ("a=7", 7),
            ("a=2KiB", 2_048),
            ("a=1GiB", 1 << 30),
            ("a=3s", 3_000),
            ("a=2m", 120_000),
            ("a=5ms", 5),
        ] {
            assert_eq!(parse_limit(text), Ok(("a".into(), value)), "{text}");
        }
        for bad in [
            "a",
            "=1",
            "a=",
            "a=-1",
            "a=1.5s",
            "a=1kb",
            "a=99999999999GiB",
            "a=1 MiB",
        ] {
            assert!(parse_limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_are_shown_as_they_can_be_typed() {
        for (unit, value, text) in [
            ("bytes", 64 << 20, "64MiB"),
            ("bytes", 1_000, "1000"),
            ("bytes", 0, "0"),
            ("ms", 90_000, "90s"),
            ("ms", 120_000, "2m"),
            ("ms", 7, "7ms"),
            ("count", 2_048, "2048"),
        ] {
            let limit = Limit {
                unit: unit.into(),
                ..Limit::default()
            };
            assert_eq!(amount(&limit, value), text);
            assert_eq!(parse_limit(&format!("a={text}")), Ok(("a".into(), value)));
        }
    }
}
