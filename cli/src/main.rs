//! `tessera`: the one binary that people call. It starts masters and agents, and is a thin client of
//! the REST API for everything else.
//!
//! Invariants: this file only reads the command line and hands over to one file per command; a
//! command ends with a documented exit code. Must never contain cluster logic.

mod api;
mod client;
mod commands;
mod connection;
mod error;
mod follow;
mod leftovers;
mod output;
mod sse;
mod supervise;

use clap::{Parser, Subcommand};
use commands::{
    agent, component, dev, events, framework, master, operator, role, run, sim, sim_agents, task,
};
use error::{CliError, EXIT_CODES_HELP};
use output::Format;
use std::process::ExitCode;

/// Tessera runs frameworks on a pool of machines: schedulers are WebAssembly components that the
/// cluster hosts, tasks are native commands and Wasm components.
///
/// Start a cluster on this machine with `tessera dev`, then `tessera run -- echo hello`.
#[derive(Debug, Parser)]
#[command(name = "tessera", version, after_help = EXIT_CODES_HELP, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    connection: connection::ConnectionArgs,
    /// What to print
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a cluster on this machine: one master and one agent, restarted when they fall
    Dev(dev::DevArgs),
    /// Run a master
    Master(master::MasterArgs),
    /// Make a cluster, look after its masters, save and restore its state
    #[command(subcommand)]
    Operator(operator::OperatorCommand),
    /// Run an agent, or list and inspect the agents of the cluster
    Agent(agent::AgentArgs),
    /// Add, list, inspect and fetch components
    #[command(subcommand)]
    Component(component::ComponentCommand),
    /// Create, inspect, upgrade, configure and remove frameworks, read and replay what they did
    #[command(subcommand)]
    Framework(framework::FrameworkCommand),
    /// Show and set the limits of roles
    #[command(subcommand)]
    Role(role::RoleCommand),
    /// List, inspect and kill tasks, and read their output
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Follow what happens in the cluster
    Events(events::EventsArgs),
    /// Run one command on the cluster, show its output and end as it ends
    Run(run::RunArgs),
    /// Try schedulers against a simulated cluster, on this machine
    Sim(sim::SimArgs),
    /// Many agents whose machines do not exist, to try a cluster at its size
    SimAgents(sim_agents::SimAgentsArgs),
}

/// What every command is given besides its own arguments.
pub(crate) struct Context {
    connection: connection::ConnectionArgs,
    format: Format,
}

impl Context {
    /// A client of the cluster that the flags name.
    fn client(&self) -> Result<client::Client, CliError> {
        client::Client::connect(&self.connection)
    }

    /// Whether scripts read the output.
    fn is_json(&self) -> bool {
        self.format == Format::Json
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = Context {
        connection: cli.connection,
        format: cli.output,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(&format!("cannot start the async runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Dev(args) => dev::run(&context, args).await,
            Command::Master(args) => master::run(&context, args).await,
            Command::Operator(command) => operator::run(&context, command).await,
            Command::Agent(args) => agent::run(&context, args).await,
            Command::Component(command) => component::run(&context, command).await,
            Command::Framework(command) => framework::run(&context, command).await,
            Command::Role(command) => role::run(&context, command).await,
            Command::Task(command) => task::run(&context, command).await,
            Command::Events(args) => events::run(&context, args).await,
            Command::Run(args) => run::run(&context, args).await,
            Command::Sim(args) => sim::run(&context, args).await,
            Command::SimAgents(args) => sim_agents::run(&context, args).await,
        }
    });
    // Whatever still runs in the background must not hold the process.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => {
            output::note(&error.to_string());
            error.code()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn command_lines_are_read() {
        for good in [
            "tessera dev --port 0 --agent-port 0 --data-dir /tmp/x",
            "tessera dev --masters 3",
            "tessera dev --component-registry localhost:5000 --component-key k --allow-unsigned-uploads",
            "tessera master --data-dir /tmp/x --component-registry a --component-registry b:1",
            "tessera master --data-dir /tmp/x --join a:1,b:2 --token-file t --peer-address c:3",
            "tessera operator init --data-dir /tmp/x --peer-address a:1 --rest-address a:2",
            "tessera operator raft list -o json",
            "tessera operator raft add 4",
            "tessera operator raft remove 2",
            "tessera operator raft transfer",
            "tessera operator raft transfer 3",
            "tessera operator autopilot",
            "tessera operator snapshot save x.tsr",
            "tessera operator snapshot save --stale x.tsr",
            "tessera sim --scheduler a.wasm --agents 10000 --trace b.jsonl",
            "tessera operator snapshot inspect x.tsr -o json",
            "tessera operator snapshot restore x.tsr --data-dir /tmp/x",
            "tessera agent --work-dir /tmp/x --master 127.0.0.1:5051",
            "tessera agent ls",
            "tessera agent inspect a1 -o json",
            "tessera agent deactivate a1",
            "tessera agent drain a1 --deadline 30s",
            "tessera agent drain a1",
            "tessera agent gone a1",
            "tessera agent maintenance a1 --in 2h --for 30m",
            "tessera agent maintenance a1 --cancel",
            "tessera framework create w --component sha256:00 --replace-unreachable-after 5m --keep first",
            "tessera framework create w --component sha256:00 --config a=b --config c=",
            "tessera task logs -f --stderr w t",
            "tessera task ls --framework w --all",
            "tessera role limits",
            "tessera role limits eng/search --set state-bytes=64MiB --unset timers",
            "tessera component add oci://ghcr.io/a/b:v1",
            "tessera component push x.wasm",
            "tessera component inspect sha256:00",
            "tessera component ls --unused",
            "tessera component rm sha256:0011 0f3a --dry-run",
            "tessera component prune --older-than 7d --all --dry-run",
            "tessera component get sha256:00 x.wasm",
            "tessera framework upgrade w new.wasm --wait",
            "tessera framework rollback w --to 3",
            "tessera framework config get w",
            "tessera framework config set w a=b c= --unset d",
            "tessera framework config set w --replace-unreachable-after never",
            "tessera framework release w",
            "tessera framework recordings w",
            "tessera framework replay w --recording e3-1 --component new.wasm --keep /tmp/x",
            "tessera run --cpus 0.5 --env A=b --timeout 3 -- sh -c exit",
            "tessera sim --scheduler a=a.wasm,role=x --scheduler b=b.wasm --agents 10000 --for 1h --seed 7 --trace t --faults 3 -o json",
            "tessera sim-agents --count 5000 --master a:1,b:2 --task-time 30s --attribute a=b",
        ] {
            assert!(Cli::try_parse_from(good.split(' ')).is_ok(), "{good}");
        }
        for bad in [
            "tessera",
            "tessera run",
            "tessera operator init",
            "tessera operator raft remove x",
            "tessera framework create w",
            "tessera component rm",
            "tessera component prune --older-than 7",
            "tessera framework create w --component x --config novalue",
            "tessera framework create w --component x --keep last",
            "tessera framework create w --component x --replace-unreachable-after 0s",
            "tessera agent drain a1 --deadline 10",
            "tessera agent maintenance a1",
            "tessera framework config set w novalue",
            "tessera framework upgrade w",
            "tessera role limits --set timers=many",
            "tessera dev --masters 0",
            "tessera run --cpus -1 -- true",
            "tessera sim",
            "tessera sim --scheduler a.wasm,rolle=x",
            "tessera sim --scheduler a=a.wasm --agent-size cpus=many",
            "tessera run --env =x -- true",
            "tessera sim-agents",
        ] {
            assert!(Cli::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}
