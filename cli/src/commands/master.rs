//! `tessera master`: runs a master until it is told to stop.
//!
//! Must never contain rules of the cluster; and wasmtime is not linked into this binary.

use crate::Context;
use crate::commands::logging::LoggingArgs;
use crate::error::{CliError, Kind, io_error};
use crate::output;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tessera_master::{COMPONENT_GRACE, Collector, REQUESTS_PER_S, JoinError, MasterConfig, RunError, TraceConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Arguments of `tessera master`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera operator init --data-dir /var/lib/tessera/master     # once, on the first machine\n  tessera master --data-dir /var/lib/tessera/master\n  tessera master --data-dir /var/lib/tessera/master --join 10.0.0.1:5051,10.0.0.2:5051 \\\n      --token-file admin.token                                 # on every other machine\n\nThe administrator's token is admin.token in the data directory."
)]
pub struct MasterArgs {
    /// Directory of state, components and token; made if it is not there
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where REST is served
    #[arg(long, default_value = "127.0.0.1:5050", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Where agents and other masters connect
    #[arg(long, default_value = "127.0.0.1:5051", value_name = "IP:PORT")]
    agent_listen: SocketAddr,
    /// What it is called where masters are listed [default: its peer address]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    name: String,
    /// Where agents and other masters reach it [default: --agent-listen]
    #[arg(long, value_name = "HOST:PORT")]
    peer_address: Option<String>,
    /// Where other masters reach its REST [default: --listen]
    #[arg(long, value_name = "HOST:PORT")]
    rest_address: Option<String>,
    /// Peer addresses of the cluster's masters: an empty data directory joins them, any other one is as before
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    join: Vec<String>,
    /// Listen beyond loopback although nothing is encrypted
    #[arg(long)]
    insecure_listen_without_tls: bool,
    /// Directory of tessera-worker [default: that of this program]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// An agent that is silent for so long makes its tasks unreachable
    #[arg(long, default_value_t = 12_000, value_name = "MS")]
    agent_timeout_ms: u64,
    /// Schedulers of an agent that is silent for so long are placed elsewhere
    #[arg(long, default_value_t = 6_000, value_name = "MS")]
    scheduler_grace_ms: u64,
    /// Requests that each caller with a token may send in a second; 0 is no limit
    #[arg(long, default_value_t = REQUESTS_PER_S, value_name = "N")]
    requests_per_s: u64,
    #[command(flatten)]
    delivery: DeliveryArgs,
    /// Where traces go: a collector that takes OTLP over HTTP [default: nowhere]
    #[arg(long, value_name = "http://HOST:PORT")]
    otlp_endpoint: Option<Collector>,
    /// Which part of changes and launches begins a trace, if their sender began none: 0 to 1
    #[arg(long, default_value = "0", value_name = "PART", value_parser = parse_part, requires = "otlp_endpoint")]
    trace_sample: u32,
    #[command(flatten)]
    logging: LoggingArgs,
    /// Stop when standard input ends, that is when the supervisor does
    #[arg(long, hide = true)]
    supervised: bool,
}

/// Where components may come from; of masters, and of `tessera dev` for its own.
#[derive(Clone, Debug, clap::Args)]
pub struct DeliveryArgs {
    /// A registry that components may be pulled from; may be repeated
    #[arg(long = "component-registry", value_name = "HOST[:PORT]")]
    registries: Vec<String>,
    /// Public key (PEM, ECDSA on P-256) by which components have to be signed
    #[arg(long = "component-key", value_name = "FILE")]
    key: Option<PathBuf>,
    /// Take uploads of plain bytes, which nobody signed, in spite of --component-key
    #[arg(long)]
    allow_unsigned_uploads: bool,
    /// Files of components that were removed are kept for so long
    #[arg(long = "component-grace-s", default_value_t = COMPONENT_GRACE.as_secs(), value_name = "SECONDS")]
    grace_s: u64,
}

impl DeliveryArgs {
    /// The same for a child process.
    pub fn arguments(&self) -> Vec<OsString> {
        let registries = self.registries.iter();
        let mut args: Vec<OsString> = registries
            .flat_map(|registry| ["--component-registry".into(), registry.into()])
            .collect();
        if let Some(key) = &self.key {
            args.extend(["--component-key".into(), key.into()]);
        }
        if self.allow_unsigned_uploads {
            args.push("--allow-unsigned-uploads".into());
        }
        args.extend(["--component-grace-s".into(), self.grace_s.to_string().into()]);
        args
    }
}

/// Run it.
///
/// # Errors
/// When the master cannot start or has to stop.
pub async fn run(context: &Context, args: MasterArgs) -> Result<ExitCode, CliError> {
    args.logging.start("tessera-master")?;
    allow_descriptors();
    // Only a master that joins is given a token; others have theirs, whatever the environment says.
    let token_file = context.connection.token_file().filter(|_| !args.join.is_empty());
    let config = MasterConfig {
        data_dir: args.data_dir,
        listen: args.listen,
        agent_listen: args.agent_listen,
        name: args.name,
        peer_address: args.peer_address,
        rest_address: args.rest_address,
        join: args.join,
        token_file,
        insecure_listen: args.insecure_listen_without_tls,
        bin_dir: bin_dir(args.bin_dir)?,
        agent_timeout_ms: args.agent_timeout_ms,
        scheduler_grace_ms: args.scheduler_grace_ms,
        component_registries: args.delivery.registries,
        component_key: args.delivery.key,
        allow_unsigned_uploads: args.delivery.allow_unsigned_uploads,
        component_grace: Duration::from_secs(args.delivery.grace_s),
        requests_per_s: args.requests_per_s,
        tracing: TraceConfig { collector: args.otlp_endpoint, sample_ppm: args.trace_sample },
    };
    let shutdown = shutdown_on_signals(args.supervised)?;
    match tessera_master::run(config, shutdown).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(CliError::new(
            kind(&error),
            format!("the master stopped: {}", with_causes(&error)),
        )),
    }
}

/// A part as millionths: a decimal of at most six places.
fn parse_part(text: &str) -> Result<u32, String> {
    let rule = || "a decimal from 0 to 1 with at most six places, for example 0.01".to_owned();
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(places) || places.len() > 6 {
        return Err(rule());
    }
    let ppm = format!("{whole}{places:0<6}").parse().map_err(|_| rule())?;
    if ppm <= 1_000_000 { Ok(ppm) } else { Err(rule()) }
}

/// Every agent's connection takes a descriptor; take as many as the system allows.
fn allow_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        output::note(&format!("the limit of open files stays as it is: {error}"));
    }
}

/// Which kind of failure a master's end is.
pub fn kind(error: &RunError) -> Kind {
    match error {
        RunError::Config(_) | RunError::Key(_) => Kind::Usage,
        RunError::InUse { .. } | RunError::NoCluster { .. } | RunError::Bootstrap(_) | RunError::Backup(_) => Kind::Refused,
        RunError::Join(JoinError::Refused { .. }) => Kind::Refused,
        RunError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            Kind::Refused
        }
        _ => Kind::Failed,
    }
}

/// An error and what caused it, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Many errors repeat their cause in their own text.
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The directory of the helper binaries: they stand beside this one.
///
/// # Errors
/// When this program cannot be found.
pub fn bin_dir(given: Option<PathBuf>) -> Result<PathBuf, CliError> {
    if let Some(dir) = given {
        return Ok(dir);
    }
    let exe = std::env::current_exe()
        .map_err(|error| io_error("find", "/proc/self/exe".as_ref(), &error))?;
    match exe.parent() {
        Some(dir) => Ok(dir.to_owned()),
        None => Err(CliError::failed(format!(
            "{} is in no directory",
            exe.display()
        ))),
    }
}

/// A token that is cancelled by INT, TERM, and the end of stdin if that is a supervisor's.
///
/// # Errors
/// When signals cannot be waited for.
pub fn shutdown_on_signals(supervised: bool) -> Result<CancellationToken, CliError> {
    let shutdown = CancellationToken::new();
    let about =
        |error: std::io::Error| CliError::failed(format!("cannot wait for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(about)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(about)?;
    let cancel = shutdown.clone();
    // Ends with the process: there is nobody to join it.
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancel.cancel();
    });
    if supervised {
        let cancel = shutdown.clone();
        // A thread of its own: a blocked read of stdin cannot be cancelled.
        std::thread::spawn(move || {
            // Whatever comes, and however it ends: the supervisor writes nothing.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            cancel.cancel();
        });
    }
    Ok(shutdown)
}

#[cfg(test)]
mod tests {
    use super::parse_part;

    #[test]
    fn parts_are_read_exactly() {
        for (text, ppm) in [("0", 0), ("1", 1_000_000), ("1.0", 1_000_000), ("0.01", 10_000), ("0.000001", 1)] {
            assert_eq!(parse_part(text), Ok(ppm), "{text}");
        }
        for bad in ["", ".5", "1.1", "-1", "0.0000001", "1e-3", "half", "99999999999"] {
            assert!(parse_part(bad).is_err(), "{bad}");
        }
    }
}
