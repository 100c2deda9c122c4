//! `tessera sim-agents`: many agents in one process, whose machines do not exist, to try a cluster at a size
//! that one does not have.
//!
//! Invariant: never beside real agents unless that is asked for: a simulated agent says of everything that is
//! placed on it that it runs. Must never contain decisions of an agent.

use crate::Context;
use crate::api::{Agent, read_items};
use crate::client::Client;
use crate::commands::agent::DEFAULT_MASTER;
use crate::commands::framework::parse_pair;
use crate::commands::logging::LoggingArgs;
use crate::commands::master::{shutdown_on_signals, with_causes};
use crate::error::{CliError, Kind};
use std::process::ExitCode;
use tessera_agent::{RunError, SIMULATED_ATTRIBUTE, SimulatedConfig};
use tessera_types::{Quantities, parse_duration};

/// Arguments of `tessera sim-agents`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera sim-agents --count 5000 --master 127.0.0.1:5051 --token-file admin.token\n  tessera sim-agents --count 100 --name rack7 --attribute rack=r7 --task-time 30s\n  tessera sim-agents --count 1000 --beside-real-agents    # one of those hosts the schedulers\n\nEach agent has a session of its own and beats as any other. Whatever is placed on it is reported as running\nat once, and nothing is started: commands, components and sandboxes are ignored. All have the attribute\nsimulated=true, and no room for schedulers. They end with this process; with the same --name they come back\nas the same machines, started anew. `tessera agent gone ID` forgets one."
)]
pub struct SimAgentsArgs {
    /// How many agents
    #[arg(long, value_name = "N")]
    count: u32,
    /// Where masters listen for agents; several are separated by commas
    #[arg(long, value_name = "HOST:PORT", default_value = DEFAULT_MASTER)]
    master: String,
    /// What they are called, with a number each
    #[arg(long, value_name = "NAME", default_value = "sim")]
    name: String,
    /// Thousandths of a core of each
    #[arg(long, value_name = "MILLI", default_value_t = 8_000)]
    cpus_milli: i64,
    /// MiB of memory of each
    #[arg(long, value_name = "MIB", default_value_t = 32_768)]
    mem_mib: i64,
    /// MiB of disk of each
    #[arg(long, value_name = "MIB", default_value_t = 131_072)]
    disk_mib: i64,
    /// A named value that schedulers see; may be repeated
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = parse_pair)]
    attributes: Vec<(String, String)>,
    /// Tasks end by themselves after so long [default: when they are killed]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    task_time: Option<u64>,
    /// Join a cluster that has real agents: schedulers that do not look at the attribute will place tasks
    /// here, which then are said to run and do not
    #[arg(long)]
    beside_real_agents: bool,
    #[command(flatten)]
    logging: LoggingArgs,
    /// Stop when standard input ends, that is when the supervisor does
    #[arg(long, hide = true)]
    supervised: bool,
}

/// Run them.
///
/// # Errors
/// When the cluster has real agents, or cannot be reached, or refuses them.
pub async fn run(context: &Context, args: SimAgentsArgs) -> Result<ExitCode, CliError> {
    args.logging.start("tessera-sim-agents")?;
    if !args.beside_real_agents {
        refuse_real_agents(&context.client()?).await?;
    }
    let config = SimulatedConfig {
        count: args.count,
        name: args.name,
        masters: args.master,
        token: context.connection.resolve()?.token()?,
        each: Quantities {
            cpus_milli: args.cpus_milli,
            mem_mib: args.mem_mib,
            disk_mib: args.disk_mib,
        },
        attributes: args.attributes,
        task_ms: args.task_time,
    };
    let shutdown = shutdown_on_signals(args.supervised)?;
    tessera_agent::simulate(config, shutdown).await.map_err(|error| {
        let kind = match &error {
            RunError::Config(_) => Kind::Usage,
            RunError::Refused { .. } => Kind::Refused,
            _ => Kind::Failed,
        };
        CliError::new(kind, format!("the simulated agents stopped: {}", with_causes(&error)))
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn refuse_real_agents(client: &Client) -> Result<(), CliError> {
    let list = client.json(client.get(&["v1", "agents"])).await?;
    let agents = read_items::<Agent>(&list)?;
    let real = |agent: &&Agent| agent.attributes.get(SIMULATED_ATTRIBUTE).is_none_or(|value| value != "true");
    match agents.iter().find(real) {
        None => Ok(()),
        Some(agent) => {
            let text = format!(
                "this cluster has real agents, for example {} ({}): tasks that are placed on simulated ones \
                 would be said to run and would not",
                agent.id, agent.hostname
            );
            Err(CliError::new(Kind::Refused, text)
                .hint("use a cluster of its own, or say --beside-real-agents"))
        }
    }
}
