//! `tessera role`: weights, priorities, quota and limits of roles, and what they use.
//!
//! Must never know a limit by name: which there are, and within which bounds, is the master's to say.

use crate::api::{Amount, Limit, Limits, Role, read};
use crate::client::{Client, Request};
use crate::error::{CliError, Kind};
use crate::list::{self, List, WatchArgs};
use crate::output::{Column, col, text, wide};
use crate::wait::YesArgs;
use crate::{Context, dry, names, output};
use serde_json::{Map, Value, json};
use std::process::ExitCode;
use tessera_types::parse_milli;

/// What to do with roles.
#[derive(Debug, clap::Subcommand)]
pub enum RoleCommand {
    /// List roles: what they use, and what their fair share is
    #[command(after_help = "Examples:\n  tessera role ls\n  tessera role ls -o wide -w")]
    Ls {
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Show everything about a role
    #[command(after_help = "Examples:\n  tessera role inspect eng/search\n  tessera role inspect eng -o json")]
    Inspect {
        /// The role
        #[arg(value_parser = names::parse_role)]
        role: String,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Set weight, priority and quota of a role; what is not named stays
    #[command(
        after_help = "Examples:\n  tessera role set eng --weight 2\n  tessera role set eng --guarantee cpus=16,mem=64GiB --limit cpus=32,mem=128GiB,gpus=4\n  tessera role set eng/search --priority 5 --hold-back true\n  tessera role set eng --limit none --dry-run\n\nAmounts are cpus (cores), mem and disk (MiB, or with KiB, MiB, GiB, TiB), and whatever agents name (--resource).\nAn amount that is not named in a guarantee or quota limit is not bounded by it."
    )]
    Set(SetArgs),
    /// Put a role back to the defaults: weight 1, no quota
    #[command(after_help = "Examples:\n  tessera role rm eng/search\n  tessera role rm eng --dry-run")]
    Rm {
        /// The role
        #[arg(value_parser = names::parse_role)]
        role: String,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        yes: YesArgs,
    },
    /// Show the limits of a role or of the cluster, or set some of them
    #[command(
        after_help = "Examples:\n  tessera role limits                                    # those of the cluster\n  tessera role limits eng/search\n  tessera role limits eng --set state-bytes=128MiB --set turn-cpu-ms=2s\n  tessera role limits eng --unset state-bytes --dry-run\n\nA role has the limits of its parent where nothing is set for it. Values are numbers, with KiB, MiB, GiB,\nms, s or m if need be. What runs already gets new limits with its next turn; a Wasm task keeps those that it\nwas started with."
    )]
    Limits {
        /// The role; the whole cluster without one
        #[arg(value_parser = names::parse_role)]
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
        /// Only say what the limits would be
        #[arg(long)]
        dry_run: bool,
    },
}

/// Arguments of `tessera role set`.
#[derive(Debug, clap::Args)]
pub struct SetArgs {
    /// The role
    #[arg(value_parser = names::parse_role)]
    role: String,
    /// Its weight among its siblings: with 2 it gets twice the share of one with 1
    #[arg(long, value_name = "NUMBER", value_parser = parse_weight)]
    weight: Option<f64>,
    /// Whose guarantee is met first, and whose revocable work goes last: 0 to 1000
    #[arg(long, value_name = "NUMBER")]
    priority: Option<u16>,
    /// What it gets before others get more than theirs, or `none`
    #[arg(long, value_name = "AMOUNTS", value_parser = parse_amounts)]
    guarantee: Option<Amounts>,
    /// Its quota limit: what it never passes, with all roles below, or `none`
    #[arg(long, value_name = "AMOUNTS", value_parser = parse_amounts)]
    limit: Option<Amounts>,
    /// Offers that are smaller are not made to it, or `none`
    #[arg(long, value_name = "AMOUNTS", value_parser = parse_amounts)]
    min_offer: Option<Amounts>,
    /// Keep an agent free for a request that fits nowhere else, within the guarantee
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    hold_back: Option<bool>,
    /// Only if this version is in force, as `inspect` shows it
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
}

/// Amounts as the API takes them; none takes back what was said.
#[derive(Clone, Debug, PartialEq)]
pub struct Amounts(Option<Map<String, Value>>);

impl Amounts {
    fn document(&self) -> Value {
        self.0.clone().map_or(Value::Null, Value::Object)
    }
}

/// A decimal with at most three places, in thousandths.
fn milli(text: &str) -> Result<i64, String> {
    parse_milli(text).ok_or_else(|| format!("{text:?} is no number of at most three decimal places"))
}

/// Thousandths as a number of JSON: exact, because no more than three places are written.
fn decimal(milli: i64) -> Value {
    if milli % 1_000 == 0 { Value::from(milli / 1_000) } else { Value::from(milli as f64 / 1_000.0) }
}

/// Reads a weight.
fn parse_weight(text: &str) -> Result<f64, String> {
    match milli(text)? {
        milli @ 1..=1_000_000_000 => Ok(milli as f64 / 1_000.0),
        _ => Err("a weight is 0.001 to 1000000".to_owned()),
    }
}

/// Reads `cpus=4,mem=8GiB,gpus=2`, or `none`.
fn parse_amounts(text: &str) -> Result<Amounts, String> {
    if text == "none" {
        return Ok(Amounts(None));
    }
    let mut map = Map::new();
    for part in text.split(',') {
        let (name, amount) = part.split_once('=').ok_or("NAME=AMOUNT,… or `none` is expected")?;
        let (key, value) = match name {
            "" => return Err("NAME=AMOUNT,… or `none` is expected".to_owned()),
            "cpu" | "core" | "cores" => return Err(format!("there is no {name}: cpus is meant?")),
            "memory" | "ram" => return Err(format!("there is no {name}: mem is meant?")),
            "mem" | "mem_mib" => ("mem_mib", Value::from(mebibytes(amount)?)),
            "disk" | "disk_mib" => ("disk_mib", Value::from(mebibytes(amount)?)),
            other => (other, decimal(milli(amount)?)),
        };
        if map.insert(key.to_owned(), value).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    Ok(Amounts(Some(map)))
}

/// Reads MiB, or an amount with its unit that makes whole MiB.
fn mebibytes(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no amount of memory"))?;
    let factor = match unit {
        "" | "MiB" => 1,
        "GiB" => 1 << 10,
        "TiB" => 1 << 20,
        "KiB" if number % 1_024 == 0 => return Ok(number / 1_024),
        "KiB" => return Err(format!("{text} is not a whole number of MiB")),
        _ => return Err(format!("{unit:?} is none of KiB, MiB, GiB and TiB")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("{text} is too large"))
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

const COLUMNS: [Column; 12] = [
    col("ROLE"),
    col("WEIGHT"),
    wide("PRIORITY"),
    col("SHARE"),
    col("FAIR"),
    wide("DOMINANT"),
    text("USED"),
    wide("OFFERED"),
    wide("REVOCABLE"),
    text("GUARANTEE"),
    text("LIMIT"),
    col("FRAMEWORKS"),
];

/// Run it.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn run(context: &Context, command: RoleCommand) -> Result<ExitCode, CliError> {
    let client = context.client()?;
    match command {
        RoleCommand::Ls { watch } => {
            let request = client.get(&["v1", "roles"]);
            let list = List { columns: &COLUMNS, row: &row, keep: &|_| true, empty: "no role is used or set" };
            names::known(list::show(context, &client, request, &list, watch).await, "/v1/roles")?;
        }
        RoleCommand::Inspect { role, watch } => {
            let request = client.get(&path(&role));
            let shown = list::show_one(context, &client, request, watch, async |value| inspect(&read(value)?)).await;
            names::known(shown, "/v1/roles")?;
        }
        RoleCommand::Set(args) => set(context, &client, args).await?,
        RoleCommand::Rm { role, dry_run, yes } => {
            let request = client.delete(&path(&role));
            if dry_run {
                dry::rehearse(context, &client, request).await?;
                return Ok(ExitCode::SUCCESS);
            }
            yes.confirm(&format!("Weight, priority and quota of {role} go back to the defaults."))?;
            let response = names::known(client.send(request).await, "/v1/roles")?;
            let body = client.body(response).await?;
            let value = serde_json::from_slice(&body).unwrap_or_else(|_| json!({ "role": role }));
            if context.is_data() {
                output::document(&value)?;
            } else {
                output::line(&format!("{} is at the defaults", output::clean(&role)))?;
            }
        }
        RoleCommand::Limits { role, set, unset, changed, dry_run } => {
            let value = if set.is_empty() && unset.is_empty() {
                ask(&client, role.as_deref()).await?
            } else {
                let request = change(&client, role.as_deref(), set, unset)?;
                if dry_run {
                    dry::rehearse(context, &client, request).await?;
                    return Ok(ExitCode::SUCCESS);
                }
                client.json(request).await?
            };
            if context.is_data() {
                output::document(&value)?;
            } else {
                let limits: Limits = read(&value)?;
                show(limits, changed)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A role has several parts, each a part of the path.
fn path(role: &str) -> Vec<&str> {
    ["v1", "roles"].into_iter().chain(role.split('/')).collect()
}

async fn set(context: &Context, client: &Client, args: SetArgs) -> Result<(), CliError> {
    let document = change_of(&args);
    if document.as_object().is_none_or(Map::is_empty) {
        let text = "nothing to set: name --weight, --priority, --guarantee, --limit, --min-offer or --hold-back";
        return Err(CliError::new(Kind::Usage, text));
    }
    let mut request: Request = client.put(&path(&args.role)).json(document);
    if let Some(version) = args.if_version {
        request = request.header("if-match", format!("\"{version}\""));
    }
    if args.dry_run {
        return dry::rehearse(context, client, request).await;
    }
    let value = names::known(client.json(request).await, "/v1/roles")?;
    if context.is_data() {
        return output::document(&value);
    }
    inspect(&read(&value)?)
}

/// What is named, as the API takes it.
fn change_of(args: &SetArgs) -> Value {
    let mut change = Map::new();
    if let Some(weight) = args.weight {
        change.insert("weight".to_owned(), json!(weight));
    }
    if let Some(priority) = args.priority {
        change.insert("priority".to_owned(), json!(priority));
    }
    let amounts = [("guarantee", &args.guarantee), ("limit", &args.limit), ("min_offer", &args.min_offer)];
    for (name, amounts) in amounts {
        if let Some(amounts) = amounts {
            change.insert(name.to_owned(), amounts.document());
        }
    }
    if let Some(hold_back) = args.hold_back {
        change.insert("hold_back".to_owned(), json!(hold_back));
    }
    Value::Object(change)
}

/// Parts of a million as per cent.
pub fn percent(ppm: u64) -> String {
    format!("{}.{}%", ppm / 10_000, ppm % 10_000 / 1_000)
}

pub fn amounts(amounts: &std::collections::BTreeMap<String, Amount>) -> String {
    let named = amounts.iter().filter(|(_, amount)| !amount.is_zero());
    let told: Vec<String> = named
        .map(|(name, amount)| match name.as_str() {
            "mem_mib" | "mem" => format!("mem={amount}MiB"),
            "disk_mib" | "disk" => format!("disk={amount}MiB"),
            name => format!("{name}={amount}"),
        })
        .collect();
    told.join(",")
}

fn row(value: &Value, _now: u64) -> Result<Vec<String>, CliError> {
    let r: Role = read(value)?;
    Ok(vec![
        r.role,
        r.weight.to_string(),
        r.priority.to_string(),
        percent(r.share_ppm),
        percent(r.fair_share_ppm),
        r.dominant.unwrap_or_default(),
        amounts(&r.used),
        amounts(&r.offered),
        amounts(&r.revocable),
        amounts(&r.guarantee),
        amounts(&r.limit),
        count(&r.frameworks),
    ])
}

/// How many: a number, or as many as are listed.
fn count(value: &Value) -> String {
    match value {
        Value::Array(items) => items.len().to_string(),
        Value::Null => "0".to_owned(),
        other => other.to_string(),
    }
}

/// A list of names, or their number.
fn listed(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let name = |item: &Value| item.as_str().map_or_else(|| output::name(item).unwrap_or_default(), str::to_owned);
            items.iter().map(name).collect::<Vec<_>>().join(", ")
        }
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn inspect(r: &Role) -> Result<(), CliError> {
    let dominant = r.dominant.as_ref().map_or_else(String::new, |kind| format!(" (of {kind})"));
    output::fields(&[
        ("role", r.role.clone()),
        ("weight", r.weight.to_string()),
        ("priority", r.priority.to_string()),
        ("guarantee", amounts(&r.guarantee)),
        ("quota limit", amounts(&r.limit)),
        ("smallest offer", amounts(&r.min_offer)),
        ("hold back", if r.hold_back { "yes" } else { "no" }.to_owned()),
        ("share", format!("{}{dominant}, fair would be {}", percent(r.share_ppm), percent(r.fair_share_ppm))),
        ("used", amounts(&r.used)),
        ("offered", amounts(&r.offered)),
        ("revocable", amounts(&r.revocable)),
        ("frameworks", listed(&r.frameworks)),
        ("children", listed(&r.children)),
        ("version", r.version.to_string()),
    ])
}

async fn ask(client: &Client, role: Option<&str>) -> Result<Value, CliError> {
    let request = client.get(&["v1", "limits"]);
    let request = match role {
        Some(role) => request.query("role", role),
        None => request,
    };
    client.json(request).await
}

fn change(
    client: &Client,
    role: Option<&str>,
    set: Vec<(String, u64)>,
    unset: Vec<String>,
) -> Result<Request, CliError> {
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
    Ok(match role {
        Some(role) => request.query("role", role),
        None => request,
    })
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
    let columns = [col("LIMIT"), col("VALUE"), col("FROM"), wide("DEFAULT"), wide("RANGE"), text("WHAT")];
    output::table(&columns, rows, "no limit is set; all are at their defaults")
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
    use super::{amount, amounts, change_of, mebibytes, milli, parse_amounts, parse_limit, parse_weight, percent};
    use crate::Cli;
    use crate::api::{Limit, Role, read};
    use crate::commands::role::RoleCommand;
    use clap::Parser as _;
    use serde_json::json;

    #[test]
    fn amounts_are_exact() {
        for (text, expected) in [("4", 4_000), ("4.5", 4_500), ("0.001", 1), ("10.25", 10_250)] {
            assert_eq!(milli(text), Ok(expected), "{text}");
        }
        for bad in ["", ".5", "1.", "1.2345", "-1", "x", "1e3", "99999999999999999999"] {
            assert!(milli(bad).is_err(), "{bad}");
        }
        for (text, expected) in [("64", 64), ("8GiB", 8_192), ("1TiB", 1 << 20), ("2048KiB", 2)] {
            assert_eq!(mebibytes(text), Ok(expected), "{text}");
        }
        for bad in ["", "GiB", "1GB", "1KiB", "1.5GiB"] {
            assert!(mebibytes(bad).is_err(), "{bad}");
        }
        for (text, expected) in [
            ("cpus=4.5,mem=1GiB,gpus=2", json!({"cpus": 4.5, "mem_mib": 1024, "gpus": 2})),
            ("disk=0", json!({"disk_mib": 0})),
            ("none", json!(null)),
        ] {
            assert_eq!(parse_amounts(text).unwrap().document(), expected, "{text}");
        }
        for bad in ["", "cpus", "=1", "cpus=1,cpus=2", "mem=1,mem_mib=2", "cpus=1,"] {
            assert!(parse_amounts(bad).is_err(), "{bad}");
        }
        assert!(parse_weight("2.5").is_ok() && parse_weight("0").is_err() && parse_weight("1000001").is_err());
        assert_eq!([percent(0), percent(123_456), percent(1_000_000)].join(" "), "0.0% 12.3% 100.0%");
    }

    #[test]
    fn only_what_is_named_is_changed() {
        for (line, expected) in [
            ("--weight 2.5", json!({"weight": 2.5})),
            ("--limit none --hold-back", json!({"limit": null, "hold_back": true})),
            ("--hold-back false --priority 3", json!({"hold_back": false, "priority": 3})),
            ("--guarantee cpus=1 --if-version 3", json!({"guarantee": {"cpus": 1}})),
        ] {
            let words = "tessera role set eng".split(' ').chain(line.split(' '));
            let cli = Cli::try_parse_from(words).unwrap();
            let crate::Command::Role(RoleCommand::Set(args)) = cli.command else { panic!("{line}") };
            assert_eq!(change_of(&args), expected, "{line}");
        }
    }

    #[test]
    fn amounts_are_shown_as_they_can_be_typed() {
        let role: Role = read(&json!({"used": {"cpus": 4.5, "mem_mib": 64, "disk_mib": 0, "gpus": "2"}})).unwrap();
        assert_eq!(amounts(&role.used), "cpus=4.5,gpus=2,mem=64MiB");
        assert!(parse_amounts(&amounts(&role.used)).is_ok());
    }

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
