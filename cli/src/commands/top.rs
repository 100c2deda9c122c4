//! `tessera top`: agents, roles and frameworks at a glance, again and again.
//!
//! Invariants: rates come from two looks at the same counters; a terminal is left as it was found. Must never hold
//! anything up: each look is a few lists.

use crate::api::{Agent, Framework, Resources, Role, read_items};
use crate::client::Client;
use crate::commands::role::{amounts, percent};
use crate::error::{CliError, Kind};
use crate::follow::Patience;
use crate::list::all_items;
use crate::output::{Column, col, text};
use crate::{Context, output};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tessera_types::parse_duration;

/// Lines of each part when nothing is said.
const ROWS: usize = 10;

/// Arguments of `tessera top`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera top\n  tessera top --every 5s --rows 30\n  tessera top --once -o json\n\nWithout a terminal it is shown once."
)]
pub struct TopArgs {
    /// Show it once
    #[arg(long)]
    once: bool,
    /// Pause between two looks
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "2s")]
    every: u64,
    /// Lines of each part
    #[arg(long, value_name = "N", default_value_t = ROWS)]
    rows: usize,
}

/// One look at the cluster.
struct Look {
    at: Instant,
    agents: Vec<Agent>,
    roles: Vec<Role>,
    frameworks: Vec<Framework>,
    documents: Value,
}

/// Run it.
///
/// # Errors
/// When the cluster refuses or cannot be reached.
pub async fn run(context: &Context, args: TopArgs) -> Result<ExitCode, CliError> {
    let client = context.client()?;
    let terminal = std::io::stdout().is_terminal();
    let once = args.once || !terminal;
    let mut patience = Patience::default();
    let mut before: Option<Look> = None;
    loop {
        if let Some(look) = patience.judge(take(&client).await)? {
            if context.is_data() {
                output::document_of_many(&look.documents)?;
            } else {
                let page = page(&look, before.as_ref(), args.rows).join("\n");
                let clear = if once { "" } else { "\x1b[H\x1b[2J" };
                output::write(format!("{clear}{page}\n").as_bytes())?;
            }
            before = Some(look);
        }
        if once {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(Duration::from_millis(args.every.max(200))).await;
    }
}

async fn take(client: &Client) -> Result<Look, CliError> {
    let agents = all_items(client, client.get(&["v1", "agents"])).await?;
    let frameworks = all_items(client, client.get(&["v1", "frameworks"])).await?;
    // Older masters have no roles to show.
    let roles = match all_items(client, client.get(&["v1", "roles"])).await {
        Err(error) if error.kind == Kind::NotFound => json!({"items": []}),
        roles => roles?,
    };
    Ok(Look {
        at: Instant::now(),
        agents: read_items(&agents)?,
        roles: read_items(&roles)?,
        frameworks: read_items(&frameworks)?,
        documents: json!({"at_ms": output::now_ms(), "agents": agents["items"], "roles": roles["items"],
            "frameworks": frameworks["items"]}),
    })
}

const AGENTS: [Column; 7] =
    [col("AGENT"), text("HOST"), col("STATE"), col("CPUS"), col("MEM"), col("OFFERED"), col("TASKS")];
const ROLES: [Column; 6] = [text("ROLE"), col("WEIGHT"), col("SHARE"), col("FAIR"), text("USED"), col("FRAMEWORKS")];
const FRAMEWORKS: [Column; 6] = [text("FRAMEWORK"), text("ROLE"), col("STATE"), col("TASKS"), col("TURNS/S"), col("DATA")];

/// The whole page.
fn page(look: &Look, before: Option<&Look>, rows: usize) -> Vec<String> {
    let mut lines = vec![summary(look)];
    part(&mut lines, &AGENTS, agents(look), rows);
    part(&mut lines, &ROLES, roles(look), rows);
    part(&mut lines, &FRAMEWORKS, frameworks(look, before), rows);
    lines
}

fn part(lines: &mut Vec<String>, columns: &[Column], mut rows: Vec<Vec<String>>, most: usize) {
    if rows.is_empty() {
        return;
    }
    let more = rows.len().saturating_sub(most);
    rows.truncate(most);
    lines.push(String::new());
    lines.extend(output::table_lines(columns, rows));
    if more > 0 {
        lines.push(format!("… and {more} more"));
    }
}

fn summary(look: &Look) -> String {
    let connected = look.agents.iter().filter(|agent| agent.state == "connected").count();
    let sum = |of: fn(&Agent) -> &Resources| {
        look.agents.iter().fold((0_i64, 0_i64), |(cpus, mem), agent| {
            (cpus.saturating_add(of(agent).cpus_milli), mem.saturating_add(of(agent).mem_mib))
        })
    };
    let (total, used) = (sum(|agent| &agent.total), sum(|agent| &agent.used));
    let tasks: u64 = look.agents.iter().map(|agent| agent.tasks).sum();
    let bad = look.frameworks.iter().filter(|framework| framework.quarantine.is_some()).count();
    let bad = if bad == 0 { String::new() } else { format!(", {bad} quarantined") };
    format!(
        "{connected} of {} agents connected, cpus {} ({}), mem {} MiB ({}), {tasks} tasks, {} frameworks{bad}",
        look.agents.len(),
        output::cpus(total.0),
        part_of(used.0, total.0),
        total.1,
        part_of(used.1, total.1),
        look.frameworks.len(),
    )
}

/// How much of all is used, in whole per cent.
fn part_of(used: i64, total: i64) -> String {
    match total {
        0 => "-".to_owned(),
        total => format!("{}%", used.saturating_mul(100) / total),
    }
}

/// The fullest first.
fn agents(look: &Look) -> Vec<Vec<String>> {
    let mut agents: Vec<&Agent> = look.agents.iter().collect();
    agents.sort_by_key(|agent| (agent.state == "connected", std::cmp::Reverse(agent.used.cpus_milli), agent.id.clone()));
    let row = |agent: &&Agent| {
        let offered = agent.offered.cpus_milli;
        vec![
            agent.id.clone(),
            agent.hostname.clone(),
            agent.state.clone(),
            format!("{} of {}", part_of(agent.used.cpus_milli, agent.total.cpus_milli), output::cpus(agent.total.cpus_milli)),
            format!("{} of {}", part_of(agent.used.mem_mib, agent.total.mem_mib), agent.total.mem_mib),
            part_of(offered, agent.total.cpus_milli),
            agent.tasks.to_string(),
        ]
    };
    agents.iter().map(row).collect()
}

/// The largest share first.
fn roles(look: &Look) -> Vec<Vec<String>> {
    let mut roles: Vec<&Role> = look.roles.iter().collect();
    roles.sort_by_key(|role| (std::cmp::Reverse(role.share_ppm), role.role.clone()));
    let row = |role: &&Role| {
        let frameworks = match &role.frameworks {
            Value::Array(items) => items.len().to_string(),
            other => other.to_string(),
        };
        let (share, fair) = (percent(role.share_ppm), percent(role.fair_share_ppm));
        vec![role.role.clone(), role.weight.to_string(), share, fair, amounts(&role.used), frameworks]
    };
    roles.iter().map(row).collect()
}

/// The busiest first.
fn frameworks(look: &Look, before: Option<&Look>) -> Vec<Vec<String>> {
    let earlier: BTreeMap<&str, u64> = before
        .map(|before| before.frameworks.iter().map(|framework| (framework.id.as_str(), framework.turns)).collect())
        .unwrap_or_default();
    let seconds = before.map_or(0.0, |before| look.at.duration_since(before.at).as_secs_f64());
    let turns = |framework: &Framework| {
        let earlier = earlier.get(framework.id.as_str())?;
        Some(framework.turns.saturating_sub(*earlier))
    };
    let mut frameworks: Vec<&Framework> = look.frameworks.iter().collect();
    frameworks.sort_by_key(|framework| (std::cmp::Reverse(turns(framework)), framework.name.clone()));
    let row = |framework: &&Framework| {
        let rate = turns(framework).filter(|_| seconds > 0.0).map(|turns| format!("{:.1}", turns as f64 / seconds));
        let live = framework.tasks.iter().filter(|(state, _)| !crate::api::is_terminal(state)).map(|(_, count)| count);
        vec![
            framework.name.clone(),
            framework.role.clone(),
            framework.state.clone(),
            live.sum::<u64>().to_string(),
            rate.unwrap_or_default(),
            output::bytes(framework.state_bytes),
        ]
    };
    frameworks.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::{Look, page};
    use crate::api::read_items;
    use serde_json::{Value, json};
    use std::time::{Duration, Instant};

    fn look(at: Instant, turns: u64) -> Look {
        let list = |items: Value| json!({ "items": items });
        let total = json!({"cpus_milli": 4_000, "mem_mib": 1_000});
        let used = json!({"cpus_milli": 1_000, "mem_mib": 500});
        Look {
            at,
            agents: read_items(&list(json!([
                {"id": "a1", "hostname": "h1", "state": "connected", "total": total, "used": used, "tasks": 3},
                {"id": "a2", "hostname": "h2", "state": "unreachable", "total": total}])))
            .unwrap(),
            roles: read_items(&list(json!([
                {"role": "eng", "weight": 2, "share_ppm": 250_000, "fair_share_ppm": 666_666, "used": {"cpus": 1}, "frameworks": 1}])))
            .unwrap(),
            frameworks: read_items(&list(json!([
                {"id": "f1", "name": "words", "role": "eng", "state": "running", "turns": turns, "tasks": {"TASK_RUNNING": 3, "TASK_FINISHED": 9}},
                {"id": "f2", "name": "x", "role": "eng", "state": "quarantined", "quarantine": {"rule": "r"}}])))
            .unwrap(),
            documents: Value::Null,
        }
    }

    #[test]
    fn a_page_shows_use_shares_and_rates() {
        let begin = Instant::now();
        let before = look(begin, 100);
        let now = look(begin + Duration::from_secs(2), 130);
        let text = page(&now, Some(&before), 1).join("\n");
        for part in [
            "1 of 2 agents connected, cpus 8 (12%), mem 2000 MiB (25%), 3 tasks, 2 frameworks, 1 quarantined",
            "a2     h2    unreachable  0% of 4",
            "… and 1 more",
            "eng   2       25.0%  66.6%  cpus=1  1",
            "words      eng   running  3      15.0     0 B",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(page(&before, None, 9).join("\n").contains("words      eng   running      3      -"));
    }
}
