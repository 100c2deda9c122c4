//! Writes through any of three members on loopback, each synced: ours beside etcd and ZooKeeper.
//!
//! Invariants: every client has one write under way, and writes small values
//! under keys of its own; what is counted was acknowledged within the window; each system has the machine
//! to itself while it is measured. Must never turn off a check or a sync of anybody.

use crate::etcd::{self, Etcd};
use crate::machine::quantile;
use crate::masters::{self, Masters};
use crate::report::{Report, Row, Target};
use crate::zookeeper::{self, Zookeeper};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tessera_cluster::wait::pass;
use tessera_cluster::{Outcome, failure, procfs};

/// Clients at once.
const CLIENTS: [usize; 3] = [1, 64, 256];
/// Bytes of a value.
pub const VALUE_BYTES: usize = 256;
/// Keys of each client, written in turn.
pub const KEYS_EACH: usize = 16;
/// Members of each system.
pub const MEMBERS: usize = 3;
/// Before the window.
const WARM_UP: Duration = Duration::from_secs(1);

/// A system under measurement.
pub trait Store {
    /// A client of it.
    type Client: Writer;
    /// What it is called in the rows.
    fn name(&self) -> &'static str;
    /// A client of one member.
    async fn client(&self, member: usize, number: usize) -> Outcome<Self::Client>;
    /// Its processes.
    fn pids(&self) -> Vec<i32>;
}

/// A client with one write under way.
pub trait Writer: Send + 'static {
    /// Write one of its keys; done when it is acknowledged.
    fn write(&mut self, key: usize) -> impl Future<Output = Outcome> + Send;
}

/// What one window showed.
pub struct Rate {
    /// Acknowledged writes per second.
    pub per_second: f64,
    /// Median time of a write.
    pub p50_ms: f64,
    /// 99 % of writes took less.
    pub p99_ms: f64,
    /// CPU time of its processes per write.
    pub server_us: f64,
    /// CPU time of the clients per write.
    pub client_us: f64,
}

/// Phases of a measurement.
const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

async fn load(mut client: impl Writer, phase: Arc<AtomicU8>) -> Outcome<Vec<f64>> {
    let mut times = Vec::new();
    let mut key = 0;
    loop {
        let counts = match phase.load(Ordering::Relaxed) {
            OVER => return Ok(times),
            phase => phase == COUNTING,
        };
        let began = Instant::now();
        client.write(key % KEYS_EACH).await?;
        key += 1;
        // What ends after the window is not in it.
        if counts && phase.load(Ordering::Relaxed) == COUNTING {
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
}

/// So many clients of a system for so long.
async fn rate<S: Store>(store: &S, clients: usize, window: Duration) -> Outcome<Rate> {
    let phase = Arc::new(AtomicU8::new(WARMING));
    let mut tasks = Vec::with_capacity(clients);
    for number in 0..clients {
        let client = store.client(number % MEMBERS, number).await?;
        tasks.push(tokio::spawn(load(client, phase.clone())));
    }
    pass(WARM_UP).await;
    let cpu = || -> u64 { store.pids().into_iter().map(procfs::cpu_us).sum() };
    let me = i32::try_from(std::process::id())?;
    let (servers, ours) = (cpu(), procfs::cpu_us(me));
    let began = Instant::now();
    phase.store(COUNTING, Ordering::Relaxed);
    pass(window).await;
    phase.store(OVER, Ordering::Relaxed);
    let took = began.elapsed().as_secs_f64();
    let (servers, ours) = (cpu() - servers, procfs::cpu_us(me) - ours);
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.map_err(|error| failure(error.to_string()))??);
    }
    let count = times.len().max(1) as f64;
    Ok(Rate {
        per_second: times.len() as f64 / took,
        p50_ms: quantile(&mut times, 0.5),
        p99_ms: quantile(&mut times, 0.99),
        server_us: servers as f64 / count,
        client_us: ours as f64 / count,
    })
}

/// All windows of one system.
async fn rates<S: Store>(store: &S, window: Duration) -> Outcome<Vec<Rate>> {
    let mut rates = Vec::new();
    for clients in CLIENTS {
        eprintln!("bench: writes, {}, {clients} clients", store.name());
        let found = rate(store, clients, window).await?;
        let Rate { per_second, p99_ms, server_us, client_us, .. } = &found;
        eprintln!("bench: {per_second:.0} /s, p99 {p99_ms:.1} ms, CPU per write {server_us:.0} + {client_us:.0} µs");
        rates.push(found);
    }
    Ok(rates)
}

/// What the others do, to be compared with.
struct Peer {
    name: &'static str,
    rates: Result<Vec<Rate>, String>,
}

/// Measure all three, one after the other.
pub async fn measure(report: &mut Report, window: Duration) -> Outcome {
    let masters = Masters::start().await?;
    let ours = rates(&masters, window).await;
    masters.finish()?;
    let ours = ours?;
    let mut peers = Vec::new();
    let rates_of_etcd = match etcd::missing() {
        Some(missing) => Err(missing),
        None => {
            let etcd = Etcd::start().await?;
            Ok(rates(&etcd, window).await?)
        }
    };
    peers.push(Peer { name: etcd::NAME, rates: rates_of_etcd });
    let rates_of_zookeeper = match zookeeper::missing() {
        Some(missing) => Err(missing),
        None => {
            let zookeeper = Zookeeper::start().await?;
            Ok(rates(&zookeeper, window).await?)
        }
    };
    peers.push(Peer { name: zookeeper::NAME, rates: rates_of_zookeeper });
    for (at, clients) in CLIENTS.into_iter().enumerate() {
        rows(report, clients, at, &ours, &peers);
    }
    Ok(())
}

fn rows(report: &mut Report, clients: usize, at: usize, ours: &[Rate], peers: &[Peer]) {
    let found = |pick: fn(&Rate) -> f64| peers.iter().filter_map(move |p| Some(pick(p.rates.as_ref().ok()?.get(at)?)));
    let best_rate = found(|rate| rate.per_second).fold(0.0, f64::max);
    let best_p99 = found(|rate| rate.p99_ms).fold(f64::INFINITY, f64::min);
    let what = match clients {
        1 => "1 client".to_owned(),
        many => format!("{many} clients"),
    };
    let add = |report: &mut Report, name: &str, rate: &Rate, targets: bool| {
        let per_second = Row::new(format!("writes of 256 bytes, 3 members, {what}, {name}"), rate.per_second, "/s");
        let p99 = Row::new(format!("{name}, {what}, p99"), rate.p99_ms, "ms");
        report.add(match targets && best_rate > 0.0 {
            true => per_second.target(Target::AtLeast(best_rate)),
            false => per_second,
        });
        report.add(Row::new(format!("{name}, {what}, p50"), rate.p50_ms, "ms"));
        report.add(match targets && best_p99.is_finite() {
            true => p99.target(Target::AtMost(best_p99)),
            false => p99,
        });
        report.add(Row::new(format!("{name}, {what}, CPU of all members per write"), rate.server_us, "µs"));
        report.add(Row::new(format!("{name}, {what}, CPU of the clients per write"), rate.client_us, "µs"));
    };
    if let Some(rate) = ours.get(at) {
        add(report, masters::NAME, rate, true);
    }
    for peer in peers {
        match &peer.rates {
            Ok(rates) => {
                if let Some(rate) = rates.get(at) {
                    add(report, peer.name, rate, false);
                }
            }
            Err(missing) if at == 0 => {
                report.add(Row::missing(format!("writes of 256 bytes, 3 members, {}", peer.name), missing));
            }
            Err(_) => {}
        }
    }
}
