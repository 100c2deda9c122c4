//! `tessera`: the one binary that people call. It starts masters and agents, and is a thin client of
//! the REST API for everything else.
//!
//! Invariants: this file only reads the command line and hands over to one file per command; a
//! command ends with a documented exit code. Must never contain cluster logic.

mod api;
mod client;
mod commands;
mod connection;
mod contexts;
mod dry;
mod error;
mod follow;
mod leftovers;
mod list;
mod names;
mod output;
mod scheduler_log;
mod sse;
mod supervise;
mod wait;

use clap::{Parser, Subcommand};
use commands::{
    agent, audit, complete, component, context, debug, dev, doctor, events, explain, framework, man, master, offer,
    operation, operator, role, run, sim, sim_agents, task, top, version,
};
use error::{CliError, exit_codes_help};
use output::Format;
use std::process::ExitCode;

/// What stands below the list of commands.
fn help_end() -> String {
    let examples = "tessera dev\n  tessera run -- echo hello\n  tessera framework ls -o wide\n  tessera explain framework words\n  tessera doctor";
    format!("Examples:\n  {examples}\n\n{}", exit_codes_help())
}

/// Tessera runs frameworks on a pool of machines: schedulers are WebAssembly components that the
/// cluster hosts, tasks are native commands and Wasm components.
///
/// Start a cluster on this machine with `tessera dev`, then `tessera run -- echo hello`.
#[derive(Debug, Parser)]
#[command(name = "tessera", version, after_help = help_end(), max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    connection: connection::ConnectionArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(subcommand)]
    command: Command,
}

/// Flags of what is printed.
#[derive(Debug, clap::Args)]
struct OutputArgs {
    /// What to print
    #[arg(short, long, global = true, value_enum, default_value = "table", help_heading = "Output")]
    output: Format,
    /// Tables without the names of their columns
    #[arg(long, global = true, help_heading = "Output")]
    no_headers: bool,
    /// No colour; it is for terminals only anyway, unless FORCE_COLOR is set [env: NO_COLOR]
    #[arg(long, global = true, help_heading = "Output")]
    no_color: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a cluster on this machine: one master and one agent, restarted when they fall
    Dev(dev::DevArgs),
    /// Run one command on the cluster, show its output and end as it ends
    Run(run::RunArgs),
    /// Create, inspect, upgrade, configure and remove frameworks, read and replay what they did
    #[command(subcommand, after_help = "Examples:\n  tessera framework create words --component wordcount.wasm\n  tessera framework ls\n  tessera framework inspect words\n  tessera framework upgrade words new.wasm --wait")]
    Framework(framework::FrameworkCommand),
    /// List, inspect and kill tasks, and read their output
    #[command(subcommand, after_help = "Examples:\n  tessera task ls --framework words\n  tessera task inspect words/count-7\n  tessera task logs -f words count-7")]
    Task(task::TaskCommand),
    /// Add, list, inspect and fetch components
    #[command(subcommand, after_help = "Examples:\n  tessera component add wordcount.wasm\n  tessera component ls --unused\n  tessera component prune --dry-run")]
    Component(component::ComponentCommand),
    /// Run an agent, or list and inspect the agents of the cluster
    Agent(agent::AgentArgs),
    /// Show and set weights, quota and limits of roles
    #[command(subcommand, after_help = "Examples:\n  tessera role ls\n  tessera role set eng --weight 2 --guarantee cpus=16\n  tessera role limits eng/search")]
    Role(role::RoleCommand),
    /// List offers, and take them back
    #[command(subcommand, after_help = "Examples:\n  tessera offer ls --framework words\n  tessera offer rm o17")]
    Offer(offer::OfferCommand),
    /// List what is under way
    #[command(subcommand, after_help = "Examples:\n  tessera operation ls -w\n  tessera operation ls --kind drain")]
    Operation(operation::OperationCommand),
    /// Say why a role, a framework, a request or a task gets nothing
    #[command(subcommand, after_help = "Examples:\n  tessera explain framework words\n  tessera explain role eng/search\n  tessera explain task words/count-7")]
    Explain(explain::ExplainCommand),
    /// Follow what happens in the cluster
    Events(events::EventsArgs),
    /// Show who did what
    Audit(audit::AuditArgs),
    /// Agents, roles and frameworks at a glance, again and again
    Top(top::TopArgs),
    /// Find what is missing on this machine and in this cluster, with the way out
    Doctor(doctor::DoctorArgs),
    /// Gather what helps to find a fault, without tokens, state and configuration, in one file
    Debug(debug::DebugArgs),
    /// Run a master
    Master(master::MasterArgs),
    /// Make a cluster, look after its masters, save and restore its state
    #[command(subcommand, after_help = "Examples:\n  tessera operator autopilot\n  tessera operator raft list\n  tessera operator snapshot save tessera.tsr")]
    Operator(operator::OperatorCommand),
    /// Clusters by name: list them, choose one, say what holds now
    #[command(subcommand, after_help = "Examples:\n  tessera context set prod --url http://10.0.0.1:5050 --token-file ~/.tessera-prod\n  tessera context use prod\n  tessera context show")]
    Context(context::ContextCommand),
    /// Check files of settings
    #[command(subcommand, after_help = "Examples:\n  tessera config validate\n  tessera config validate --agent /etc/tessera/agent.toml")]
    Config(context::ConfigCommand),
    /// Versions of this program and of the cluster
    Version(version::VersionArgs),
    /// Write the completion of a shell to stdout
    Completion(complete::CompletionArgs),
    /// Write manual pages of all commands
    Man(man::ManArgs),
    /// What can stand at the end of a command line
    #[command(name = "__complete", hide = true)]
    Complete(complete::CompleteArgs),
    /// Try schedulers against a simulated cluster, on this machine
    Sim(sim::SimArgs),
    /// Many agents whose machines do not exist, to try a cluster at its size
    SimAgents(sim_agents::SimAgentsArgs),
}

impl Command {
    /// Whether it works for itself, on several cores. All others ask, and wait for answers.
    fn is_server(&self) -> bool {
        match self {
            Self::Agent(args) => args.is_server(),
            Self::Dev(_) | Self::Master(_) | Self::Sim(_) | Self::SimAgents(_) => true,
            _ => false,
        }
    }
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
    fn is_data(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml | Format::Name)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    output::set(output::Settings::find(cli.output.output, !cli.output.no_headers, cli.output.no_color));
    let context = Context {
        connection: cli.connection,
        format: cli.output.output,
    };
    // A thread for each core costs a thin client more than its work.
    let mut builder = match cli.command.is_server() {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(&format!("cannot start the async runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(dispatch(&context, cli.command));
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

async fn dispatch(context: &Context, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Dev(args) => dev::run(context, args).await,
        Command::Master(args) => master::run(context, args).await,
        Command::Operator(command) => operator::run(context, command).await,
        Command::Agent(args) => agent::run(context, args).await,
        Command::Component(command) => component::run(context, command).await,
        Command::Framework(command) => framework::run(context, command).await,
        Command::Role(command) => role::run(context, command).await,
        Command::Offer(command) => offer::run(context, command).await,
        Command::Operation(command) => operation::run(context, command).await,
        Command::Explain(command) => explain::run(context, command).await,
        Command::Task(command) => task::run(context, command).await,
        Command::Events(args) => events::run(context, args).await,
        Command::Audit(args) => audit::run(context, args).await,
        Command::Top(args) => top::run(context, args).await,
        Command::Doctor(args) => doctor::run(context, args).await,
        Command::Debug(args) => debug::run(context, args).await,
        Command::Context(command) => context::run(context, command),
        Command::Config(command) => context::run_config(context, command),
        Command::Version(args) => version::run(context, args).await,
        Command::Completion(args) => complete::script(&args),
        Command::Man(args) => man::run(&args),
        Command::Complete(args) => complete::run(context, args).await,
        Command::Run(args) => run::run(context, args).await,
        Command::Sim(args) => sim::run(context, args).await,
        Command::SimAgents(args) => sim_agents::run(context, args).await,
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

    /// Every command has an example in its help, a group of them, too.
    #[test]
    fn every_help_has_an_example() {
        fn walk(command: &clap::Command, path: &str, missing: &mut Vec<String>) {
            if command.is_hide_set() {
                return;
            }
            let path = format!("{path} {}", command.get_name());
            let subcommands: Vec<_> = command.get_subcommands().filter(|sub| sub.get_name() != "help").collect();
            let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let shown = format!("{example}\n").split(char::is_whitespace).collect::<Vec<_>>().join(" ");
            if !shown.contains(&format!("{} ", path.trim())) {
                missing.push(path.clone());
            }
            for sub in subcommands {
                walk(sub, &path, missing);
            }
        }
        let mut missing = Vec::new();
        walk(&Cli::command(), "", &mut missing);
        assert!(missing.is_empty(), "no example in the help of: {missing:#?}");
    }

    const GOOD: &[&str] = &[
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
        "tessera framework upgrade w --component new.wasm --dry-run",
        "tessera framework create w new.wasm",
        "tessera framework rollback w 3",
        "tessera framework rollback w --version 3",
        "tessera framework release w --dry-run",
        "tessera framework state put w k v --dry-run",
        "tessera framework state rm w k --dry-run",
        "tessera component add x.wasm --dry-run",
        "tessera offer rm o1 o2 --dry-run",
        "tessera operator raft add 4 --dry-run",
        "tessera operator raft remove 2 --dry-run",
        "tessera operator raft transfer --dry-run",
        "tessera agent maintenance a1 --for 30m --dry-run",
        "tessera context set a --address http://a:1 --token-file /t",
        "tessera framework rollback w --to 3",
        "tessera framework config get w",
        "tessera framework config set w a=b c= --unset d",
        "tessera framework config set w --replace-unreachable-after never",
        "tessera framework release w",
        "tessera framework recordings w",
        "tessera framework replay w --recording e3-1 --component new.wasm --keep /tmp/x",
        "tessera run --cpus 0.5 --env A=b --timeout 3 -- sh -c exit",
        "tessera sim --scheduler a=a.wasm,role=x --scheduler b=b.wasm --agents 10000 --for 1h --seed 7 --trace t --faults 3 -o json",
        "tessera task ls -o wide --no-headers --state TASK_RUNNING,TASK_KILLING --agent a1 --role eng -w",
        "tessera task inspect words/count-7 --watch",
        "tessera task kill words/count-7 --yes --dry-run",
        "tessera role ls -o yaml",
        "tessera role inspect eng/search",
        "tessera role set eng --weight 2.5 --priority 3 --guarantee cpus=4,mem=8GiB --limit none --hold-back true --dry-run",
        "tessera role rm eng -y",
        "tessera offer ls --framework words",
        "tessera offer rm o1",
        "tessera operation ls --kind drain -w",
        "tessera explain role eng/search",
        "tessera explain framework words --request big",
        "tessera explain task words t",
        "tessera explain task words/t",
        "tessera events --kind task.,agent --framework words --after 7-0",
        "tessera audit --principal admin --last 50",
        "tessera top --once",
        "tessera doctor --machine",
        "tessera debug --list",
        "tessera debug -f out.tar.gz --config-values",
        "tessera context ls",
        "tessera context set a --url http://a:1 --token-from /t --use",
        "tessera context set a --token-command pass --token-command show",
        "tessera context use a --context b",
        "tessera config validate",
        "tessera version --client",
        "tessera completion zsh",
        "tessera framework create w --component x.wasm --dry-run",
        "tessera framework create w --component x.wasm --wait --timeout 30",
        "tessera framework rm w --yes --wait",
        "tessera agent drain a1 --dry-run",
        "tessera agent drain a1 --wait --timeout 30",
        "tessera sim-agents --count 5000 --master a:1,b:2 --task-time 30s --attribute a=b",
    ];

    const BAD: &[&str] = &[
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
        "tessera framework upgrade w a.wasm --component b.wasm",
        "tessera framework rollback w 3 --to 4",
        "tessera events --after x",
        "tessera role set a//b --weight 2",
        "tessera explain role a//b",
        "tessera role set eng --limit cpu=4",
        "tessera role limits --set timers=many",
        "tessera dev --masters 0",
        "tessera run --cpus -1 -- true",
        "tessera sim",
        "tessera sim --scheduler a.wasm,rolle=x",
        "tessera sim --scheduler a=a.wasm --agent-size cpus=many",
        "tessera run --env =x -- true",
        "tessera sim-agents",
        "tessera role set eng --weight 0",
        "tessera role set eng --guarantee cpus",
        "tessera explain",
        "tessera completion tcsh",
        "tessera task ls -o csv",
        "tessera context set",
    ];

    #[test]
    fn command_lines_are_read() {
        for good in GOOD {
            assert!(Cli::try_parse_from(good.split(' ')).is_ok(), "{good}");
        }
        for bad in BAD {
            assert!(Cli::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}
