//! `tessera dev`: a whole cluster on this machine. Supervises one master and one agent, which are
//! child processes of the same program, with time-outs that suit a single machine.
//!
//! Invariants: one `dev` per data directory; everything listens on loopback; when it ends, master and
//! agent have ended. Tasks and their helpers live on, as they do when an agent is upgraded, unless
//! `--kill-tasks` is given. Must never contain cluster logic.

use crate::api::{Agent, Task, read_items};
use crate::client::Client;
use crate::commands::logging::LoggingArgs;
use crate::commands::master::{DeliveryArgs, shutdown_on_signals};
use crate::commands::operator::{InitArgs, make_cluster};
use crate::commands::task;
use crate::connection::{agent_dir, default_dev_dir, master_dir, read_token, token_path};
use crate::error::{CliError, Kind, io_error};
use crate::supervise::{ChildSpec, supervise};
use crate::{Context, leftovers, output};
use futures::future::select_all;
use serde_json::json;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// On one machine an agent restarts within seconds, or somebody is debugging it.
const AGENT_TIMEOUT_MS: u64 = 12_000;
/// A scheduler has nowhere else to go here: no reason to hurry, none to wait either.
const SCHEDULER_GRACE_MS: u64 = 3_000;
/// How long until the cluster answers, with a slow disk and a full log.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often it is asked.
const READY_POLL: Duration = Duration::from_millis(50);
/// How long the end of all tasks is waited for: longer than their usual grace time.
const KILL_TASKS_WITHIN: Duration = Duration::from_secs(8);
/// How long the question how many tasks there are may take while stopping.
const COUNT_WITHIN: Duration = Duration::from_secs(1);

/// Names of masters, and of their directories and logs: on one machine more would only be slower.
const MASTERS: [&str; MASTERS_MAX] = ["master", "master-2", "master-3", "master-4", "master-5"];
const MASTERS_MAX: usize = 5;

/// Arguments of `tessera dev`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tessera dev\n  tessera dev --data-dir /tmp/t --port 0 --agent-port 0   # on any free ports, see /tmp/t/dev.json\n\nState is kept in the data directory: the next `tessera dev` goes on where this one stopped.\nTasks outlive it, and are found again, unless --kill-tasks is given."
)]
pub struct DevArgs {
    /// Where everything is kept [default: /var/lib/tessera/dev as root, else
    /// ~/.local/share/tessera/dev]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Port of REST on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 5050)]
    port: u16,
    /// Port for agents on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 5051)]
    agent_port: u16,
    /// How many masters, best an odd number [default: as many as there were, at first 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=MASTERS_MAX as i64))]
    masters: Option<u8>,
    /// When stopped, end all tasks, too
    #[arg(long)]
    kill_tasks: bool,
    /// Thousandths of a core that the agent offers [default: those of this machine]
    #[arg(long, value_name = "MILLI")]
    cpus_milli: Option<i64>,
    /// MiB of memory that the agent offers [default: those of this machine]
    #[arg(long, value_name = "MIB")]
    mem_mib: Option<i64>,
    /// MiB of that memory that are kept for schedulers and never offered [default: 5 %, at least 256]
    #[arg(long, value_name = "MIB")]
    scheduler_mem_mib: Option<i64>,
    #[command(flatten)]
    delivery: DeliveryArgs,
    #[command(flatten)]
    logging: LoggingArgs,
}

/// Where everything is.
struct Places {
    dir: PathBuf,
    address: String,
    agent_address: String,
    /// Ports of REST and for agents of each master.
    masters: Vec<(u16, u16)>,
    /// Cancelled once the cluster was ready.
    ready: CancellationToken,
}

/// A supervised child.
struct Child {
    pid: watch::Receiver<u32>,
    stop: CancellationToken,
    done: JoinHandle<Result<(), CliError>>,
}

/// Run it.
///
/// # Errors
/// When the cluster cannot start, or a part of it cannot be kept running.
pub async fn run(context: &Context, args: DevArgs) -> Result<ExitCode, CliError> {
    let dir = args.data_dir.clone().unwrap_or_else(default_dev_dir);
    let logs = dir.join("logs");
    std::fs::create_dir_all(&logs).map_err(|error| io_error("make", &logs, &error))?;
    let dir = dir
        .canonicalize()
        .map_err(|error| io_error("find", &dir, &error))?;
    let _lock = lock(&dir)?;
    let masters = ports(args.port, args.agent_port, count_masters(&dir, args.masters)?)?;
    let (port, agent_port) = masters[0];
    let places = Places {
        address: format!("http://127.0.0.1:{port}"),
        agent_address: format!("127.0.0.1:{agent_port}"),
        masters,
        ready: CancellationToken::new(),
        dir,
    };

    let master_dir = master_dir(&places.dir);
    if !tessera_master::is_initialised(&master_dir) {
        make_cluster(InitArgs {
            data_dir: master_dir,
            name: String::new(),
            peer_address: places.agent_address.clone(),
            rest_address: format!("127.0.0.1:{port}"),
        })?;
    }
    let shutdown = shutdown_on_signals(false)?;
    let mut masters = (0..places.masters.len())
        .map(|index| Ok(spawn(master_spec(&places, index, &args)?)))
        .collect::<Result<Vec<Child>, CliError>>()?;
    let mut agent = spawn(agent_spec(&places, &args)?);
    let record = tokio::spawn(keep_record(
        places.record_path(),
        places.document(),
        masters.iter().map(|master| master.pid.clone()).collect(),
        agent.pid.clone(),
    ));

    let pids = (masters[0].pid.clone(), agent.pid.clone());
    let result = tokio::select! {
        result = serve(context, &places, [&pids.0, &pids.1], args.kill_tasks) => result,
        (ended, ..) = select_all(masters.iter_mut().map(|master| &mut master.done)) => {
            Err(gave_up(ended))
        }
        ended = &mut agent.done => Err(gave_up(ended)),
        () = shutdown.cancelled() => Ok(()),
    };
    stop(&places, masters, agent, args.kill_tasks).await;
    record.abort();
    // The next start writes it anew; a stale one would name pids of others.
    let _ = std::fs::remove_file(places.record_path());
    result.map(|()| ExitCode::SUCCESS)
}

/// Only one `dev` at a time may use a directory.
fn lock(dir: &Path) -> Result<File, CliError> {
    let path = dir.join("dev.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| io_error("open", &path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(CliError::new(Kind::Refused, format!("another `tessera dev` runs in {}", dir.display()))
                .hint("stop it, or choose another directory with --data-dir and other ports with --port and --agent-port"))
        }
        Err(TryLockError::Error(error)) => Err(io_error("lock", &path, &error)),
    }
}

/// Ports below those that the kernel gives to outgoing connections: such a connection could hold the
/// port of a master that is just being started again.
const FREE_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// How many masters there are to be: one that was a member stays one until it is removed.
fn count_masters(dir: &Path, asked: Option<u8>) -> Result<u8, CliError> {
    let known = MASTERS.iter().rposition(|name| tessera_master::is_initialised(&dir.join(name)));
    let known = known.map_or(0, |last| u8::try_from(last + 1).unwrap_or(u8::MAX));
    match asked {
        Some(asked) if asked < known => Err(CliError::new(
            Kind::Refused,
            format!("--masters {asked}: the cluster in {} has {known}", dir.display()),
        )
        .hint("start all of them, take one out with `tessera operator raft remove`, and then remove its directory")),
        Some(asked) => Ok(asked),
        None => Ok(known.max(1)),
    }
}

/// Different ports that nobody listens on, for each master: of REST, and for agents.
fn ports(port: u16, agent_port: u16, masters: u8) -> Result<Vec<(u16, u16)>, CliError> {
    // All are held until all are known, so that they differ.
    let held = (0..u16::from(masters))
        .map(|index| {
            // The next ones of both kinds by two, as the defaults stand side by side.
            let next = |port: u16| if port == 0 { 0 } else { port.saturating_add(2 * index) };
            Ok((probe(next(port), "--port")?, probe(next(agent_port), "--agent-port")?))
        })
        .collect::<Result<Vec<_>, CliError>>()?;
    held.iter().map(numbers).collect()
}

fn numbers((rest, agents): &(TcpListener, TcpListener)) -> Result<(u16, u16), CliError> {
    let number = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
    match (number(rest), number(agents)) {
        (Ok(rest), Ok(agents)) => Ok((rest, agents)),
        (Err(error), _) | (_, Err(error)) => {
            Err(CliError::failed(format!("cannot tell a port: {error}")))
        }
    }
}

fn probe(port: u16, flag: &str) -> Result<TcpListener, CliError> {
    if port == 0 {
        // Each process begins elsewhere, so that several do not run for the same port.
        let start = std::process::id().wrapping_mul(37) % FREE_PORTS.len() as u32;
        let mut candidates = FREE_PORTS
            .cycle()
            .skip(start as usize)
            .take(FREE_PORTS.len());
        return candidates
            .find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok())
            .ok_or_else(|| {
                CliError::new(
                    Kind::Unavailable,
                    format!("no port of {FREE_PORTS:?} is free"),
                )
            });
    }
    TcpListener::bind(("127.0.0.1", port)).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            CliError::new(Kind::Refused, format!("cannot listen on 127.0.0.1:{port}: the port is in use"))
                .hint(format!("`ss -ltnp 'sport = :{port}'` shows by what; choose another with {flag}, 0 takes a free one"))
        }
        _ => CliError::failed(format!("cannot listen on 127.0.0.1:{port}: {error}")),
    })
}

impl Places {
    fn record_path(&self) -> PathBuf {
        self.dir.join("dev.json")
    }

    /// The data directory of one of the masters.
    fn master_dir(&self, index: usize) -> PathBuf {
        self.dir.join(MASTERS[index])
    }

    /// REST of all masters, separated by commas.
    fn addresses(&self) -> String {
        let all = self.masters.iter().map(|(port, _)| format!("http://127.0.0.1:{port}"));
        all.collect::<Vec<_>>().join(",")
    }

    /// Where agents reach the masters, all but one of them if one is named.
    fn peers(&self, but: Option<usize>) -> String {
        let all = self.masters.iter().enumerate().filter(|(index, _)| Some(*index) != but);
        let all = all.map(|(_, (_, port))| format!("127.0.0.1:{port}"));
        all.collect::<Vec<_>>().join(",")
    }

    fn document(&self) -> serde_json::Value {
        json!({
            "address": self.address,
            "addresses": self.addresses(),
            "agent_address": self.agent_address,
            "data_dir": self.dir,
            "token_file": token_path(&self.dir),
        })
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }
}

fn master_spec(
    places: &Places,
    index: usize,
    dev: &DevArgs,
) -> Result<ChildSpec, CliError> {
    let (port, agent_port) = places.masters[index];
    let mut args: Vec<OsString> = vec![
        "master".into(),
        "--data-dir".into(),
        places.master_dir(index).into(),
        "--name".into(),
        MASTERS[index].into(),
        "--listen".into(),
        format!("127.0.0.1:{port}").into(),
        "--agent-listen".into(),
        format!("127.0.0.1:{agent_port}").into(),
        "--agent-timeout-ms".into(),
        AGENT_TIMEOUT_MS.to_string().into(),
        "--scheduler-grace-ms".into(),
        SCHEDULER_GRACE_MS.to_string().into(),
        "--supervised".into(),
    ];
    args.extend(dev.delivery.arguments());
    args.extend(dev.logging.arguments());
    if places.masters.len() > 1 {
        args.extend(["--join".into(), places.peers(Some(index)).into()]);
        args.extend(["--token-file".into(), token_path(&places.dir).into()]);
    }
    child(MASTERS[index], places, args, None)
}

fn agent_spec(places: &Places, dev: &DevArgs) -> Result<ChildSpec, CliError> {
    let mut args: Vec<OsString> = vec![
        "agent".into(),
        "--work-dir".into(),
        agent_dir(&places.dir).into(),
        "--master".into(),
        places.peers(None).into(),
        "--token-file".into(),
        token_path(&places.dir).into(),
        "--supervised".into(),
    ];
    if let Some(cpus) = dev.cpus_milli {
        args.extend(["--cpus-milli".into(), cpus.to_string().into()]);
    }
    if let Some(mem) = dev.mem_mib {
        args.extend(["--mem-mib".into(), mem.to_string().into()]);
    }
    if let Some(mem) = dev.scheduler_mem_mib {
        args.extend(["--scheduler-mem-mib".into(), mem.to_string().into()]);
    }
    args.extend(dev.logging.arguments());
    // The master makes the token at its first start.
    child("agent", places, args, Some(token_path(&places.dir)))
}

fn child(
    name: &'static str,
    places: &Places,
    args: Vec<OsString>,
    needs: Option<PathBuf>,
) -> Result<ChildSpec, CliError> {
    let program = std::env::current_exe()
        .map_err(|error| io_error("find", "/proc/self/exe".as_ref(), &error))?;
    Ok(ChildSpec {
        name,
        program,
        args,
        log: places.log(name),
        needs,
        ready: places.ready.clone(),
    })
}

fn spawn(spec: ChildSpec) -> Child {
    let (sender, pid) = watch::channel(0);
    let stop = CancellationToken::new();
    let done = tokio::spawn(supervise(spec, sender, stop.clone()));
    Child { pid, stop, done }
}

fn gave_up(ended: Result<Result<(), CliError>, tokio::task::JoinError>) -> CliError {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) => CliError::failed("a supervisor ended before it was told to"),
        Err(error) => CliError::failed(format!("a supervisor failed: {error}")),
    }
}

/// Writes `dev.json`, for scripts, whenever a pid changes.
async fn keep_record(
    path: PathBuf,
    mut document: serde_json::Value,
    mut masters: Vec<watch::Receiver<u32>>,
    mut agent: watch::Receiver<u32>,
) {
    loop {
        let mut pids = json!({"dev": std::process::id(), "agent": *agent.borrow_and_update()});
        for (name, master) in MASTERS.iter().zip(&mut masters) {
            pids[*name] = json!(*master.borrow_and_update());
        }
        if let Some(object) = document.as_object_mut() {
            object.insert("pids".to_owned(), pids);
        }
        let new = path.with_extension("json.new");
        if let Err(error) = std::fs::write(&new, format!("{document:#}\n"))
            .and_then(|()| std::fs::rename(&new, &path))
        {
            output::note(&format!("cannot write {}: {error}", path.display()));
        }
        let changed = tokio::select! {
            (changed, ..) = select_all(masters.iter_mut().map(|master| Box::pin(master.changed()))) => changed,
            changed = agent.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Waits until the cluster is ready, says so, and then waits for ever.
async fn serve(
    context: &Context,
    places: &Places,
    pids: [&watch::Receiver<u32>; 2],
    kill_tasks: bool,
) -> Result<(), CliError> {
    let began = Instant::now();
    output::note(&format!("starting a cluster in {}", places.dir.display()));
    while let Err(error) = ready(places).await {
        if began.elapsed() > READY_WITHIN {
            return Err(CliError::new(
                Kind::Unavailable,
                format!(
                    "the cluster is not ready after {} s: {}",
                    READY_WITHIN.as_secs(),
                    error.message
                ),
            )
            .hint(format!(
                "see {} and {}",
                places.log("master").display(),
                places.log("agent").display()
            )));
        }
        tokio::time::sleep(READY_POLL).await;
    }
    places.ready.cancel();
    announce(context, places, pids, kill_tasks, began)?;
    std::future::pending().await
}

async fn ready(places: &Places) -> Result<(), CliError> {
    let client = client(places)?;
    client
        .send(client.get(&["health"]).retry_for(Duration::ZERO))
        .await?;
    let agents = client
        .json(client.get(&["v1", "agents"]).retry_for(Duration::ZERO))
        .await?;
    match read_items::<Agent>(&agents)?
        .iter()
        .any(|agent| agent.state == "connected")
    {
        true => Ok(()),
        false => Err(CliError::new(Kind::Unavailable, "no agent is connected")),
    }
}

fn client(places: &Places) -> Result<Client, CliError> {
    let address = places
        .address
        .parse()
        .map_err(|error| CliError::failed(format!("{} is no URL: {error}", places.address)))?;
    Client::new(address, read_token(&token_path(&places.dir))?)
}

fn announce(
    context: &Context,
    places: &Places,
    pids: [&watch::Receiver<u32>; 2],
    kill_tasks: bool,
    began: Instant,
) -> Result<(), CliError> {
    if context.is_data() {
        let mut document = places.document();
        if let Some(object) = document.as_object_mut() {
            object.insert("ready".to_owned(), json!(true));
        }
        return output::line(&document.to_string());
    }
    let is_default =
        places.address == crate::connection::DEFAULT_ADDRESS && places.dir == default_dev_dir();
    let flags = match is_default {
        true => String::new(),
        false => format!(
            " --address {} --token-file {}",
            places.addresses(),
            token_path(&places.dir).display()
        ),
    };
    let [master, agent] = pids;
    let stop = match kill_tasks {
        true => "Ctrl-C ends everything, tasks too (--kill-tasks)",
        false => "Ctrl-C; tasks keep running and are found again (--kill-tasks would end them)",
    };
    output::fields(&[
        ("REST", places.address.clone()),
        ("agents", places.agent_address.clone()),
        ("data", places.dir.display().to_string()),
        ("token", token_path(&places.dir).display().to_string()),
        (
            "logs",
            format!("{} and agent.log", places.log("master").display()),
        ),
        (
            "pids",
            format!(
                "dev {}, master {}, agent {}",
                std::process::id(),
                *master.borrow(),
                *agent.borrow()
            ),
        ),
        ("try", format!("tessera{flags} run -- echo hello")),
        ("stop", stop.to_owned()),
    ])?;
    output::line(&format!("ready after {} ms", began.elapsed().as_millis()))
}

/// Ends the children: the agent first, so that the master still hears its last words.
async fn stop(places: &Places, masters: Vec<Child>, agent: Child, kill_tasks: bool) {
    let tasks = if kill_tasks {
        kill_all_tasks(places).await
    } else {
        count_tasks(places).await
    };
    let mut children = vec![("agent", agent)];
    children.extend(MASTERS.into_iter().zip(masters));
    for index in 0..children.len() {
        // All masters at once, so that none waits for the others to take over.
        let now = if index == 0 { &children[..1] } else { &children[1..] };
        now.iter().for_each(|(_, child)| child.stop.cancel());
        let (name, child) = &mut children[index];
        if child.done.is_finished() {
            continue;
        }
        match (&mut child.done).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => output::note(&format!("the {name}: {error}")),
            Err(error) => output::note(&format!("the supervisor of the {name}: {error}")),
        }
    }
    if kill_tasks {
        let helpers = leftovers::end(&agent_dir(&places.dir)).await;
        output::note(&format!(
            "stopped; ended {tasks} tasks and {helpers} helper processes"
        ));
    } else {
        let hint = "`tessera dev` finds them again; `tessera dev --kill-tasks`, stopped, ends them";
        match tasks {
            0 => output::note("stopped"),
            1 => output::note(&format!("stopped; 1 task keeps running: {hint}")),
            many => output::note(&format!("stopped; {many} tasks keep running: {hint}")),
        }
    }
}

/// Tasks that have not ended; none when nobody answers in time.
async fn live_tasks(client: &Client) -> Vec<Task> {
    let request = client
        .get(&["v1", "tasks"])
        .query("limit", 1_000)
        .retry_for(COUNT_WITHIN);
    let list = tokio::time::timeout(COUNT_WITHIN * 2, client.json(request)).await;
    let items = list
        .ok()
        .and_then(Result::ok)
        .and_then(|list| read_items::<Task>(&list).ok());
    items
        .unwrap_or_default()
        .into_iter()
        .filter(|task| !task.is_terminal())
        .collect()
}

async fn count_tasks(places: &Places) -> usize {
    match client(places) {
        Ok(client) => live_tasks(&client).await.len(),
        Err(_) => 0,
    }
}

/// Asks for the end of every task and waits for it; how many there were. What remains is ended with
/// its shim.
async fn kill_all_tasks(places: &Places) -> usize {
    let Ok(client) = client(places) else { return 0 };
    let deadline = Instant::now() + KILL_TASKS_WITHIN;
    let mut asked = std::collections::BTreeSet::new();
    loop {
        let tasks = live_tasks(&client).await;
        if tasks.is_empty() || Instant::now() > deadline {
            return asked.len();
        }
        for live in tasks {
            let key = (live.framework.clone(), live.task.clone());
            // One that ended meanwhile, or a master that went away, is no obstacle: helpers are
            // ended afterwards in any case.
            if !asked.contains(&key)
                && task::kill(&client, &live.framework, &live.task, None)
                    .await
                    .is_ok()
            {
                asked.insert(key);
            }
        }
        tokio::time::sleep(READY_POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{lock, ports};
    use crate::error::Kind;
    use std::net::TcpListener;

    #[test]
    fn a_port_in_use_is_refused_with_a_way_out() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = ports(port, 0, 1).unwrap_err();
        assert_eq!(error.kind, Kind::Refused);
        assert!(
            error.to_string().contains(&port.to_string()) && error.to_string().contains("--port"),
            "{error}"
        );
        let all = ports(0, 0, 3).unwrap();
        let mut each: Vec<u16> = all.iter().flat_map(|(rest, agents)| [*rest, *agents]).collect();
        each.sort_unstable();
        each.dedup();
        assert_eq!(each.len(), 6, "{all:?}");
    }

    #[test]
    fn a_directory_has_one_dev() {
        let dir = std::env::temp_dir().join(format!("tessera-dev-lock-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let first = lock(&dir).unwrap();
        assert_eq!(lock(&dir).unwrap_err().kind, Kind::Refused);
        drop(first);
        assert!(lock(&dir).is_ok());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
