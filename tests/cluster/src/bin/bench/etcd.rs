//! Three members of etcd as Debian ships it, and as much of its gRPC as a put and a status take.
//!
//! Must never change how etcd syncs or elects: all settings are its defaults.

use crate::writes::{MEMBERS, Store, VALUE_BYTES, Writer};
use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use tessera_cluster::cluster::{PATIENCE, free_port};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, failure};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// As many clients share a connection in the project's own benchmark, which is faster than one each.
const CLIENTS_PER_CONNECTION: usize = 10;
/// In the rows.
pub const NAME: &str = "etcd 3.4 (Debian)";

/// Why it cannot be measured here.
pub fn missing() -> Option<String> {
    let status = Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match status.is_ok_and(|status| status.success()) {
        true => None,
        false => Some("not installed: `apt-get install etcd-server`".to_owned()),
    }
}

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// What nothing is read of.
#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

/// `etcdserverpb.StatusResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
    #[prost(uint64, tag = "5")]
    raft_index: u64,
}

/// Members of one cluster; they end with this.
pub struct Etcd {
    ports: Vec<u16>,
    peers: Vec<u16>,
    children: Vec<Option<Child>>,
    dir: tempfile::TempDir,
    /// Connections that clients share, by member and number.
    channels: Mutex<BTreeMap<(usize, usize), Channel>>,
}

impl Etcd {
    /// Start a cluster with default settings.
    pub async fn start() -> Outcome<Self> {
        let dir = tempfile::Builder::new().prefix("tsr-etcd-").tempdir()?;
        let (mut ports, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..MEMBERS {
            ports.push(free_port()?);
            peers.push(free_port()?);
        }
        let mut started = Self { ports, peers, children: Vec::new(), dir, channels: Mutex::default() };
        for member in 0..MEMBERS {
            started.children.push(None);
            started.run(member)?;
        }
        started.leader().await?;
        Ok(started)
    }

    /// Start a member that does not run.
    pub fn run(&mut self, member: usize) -> Outcome {
        let peer = |at: usize| format!("http://127.0.0.1:{}", self.peers[at]);
        let all: Vec<String> = (0..MEMBERS).map(|at| format!("m{at}={}", peer(at))).collect();
        let client = format!("http://127.0.0.1:{}", self.ports[member]);
        let home = self.dir.path().join(format!("m{member}"));
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join(format!("m{member}.log")))?;
        let child = Command::new("etcd")
            .args(["--name", &format!("m{member}"), "--data-dir", &home.display().to_string()])
            .args(["--listen-peer-urls", &peer(member), "--initial-advertise-peer-urls", &peer(member)])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"])
            .args(["--logger", "zap", "--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.children[member] = Some(child);
        Ok(())
    }

    /// Wait until all members follow one leader, and have what it has; which it is.
    pub async fn leader(&self) -> Outcome<usize> {
        until("etcd has a leader", PATIENCE, async || {
            let mut said = Vec::new();
            for port in &self.ports {
                let mut client = Client::connect(*port, 0).map_err(|error| error.to_string())?;
                said.push(client.status().await.map_err(|error| error.to_string())?);
            }
            let leader = said[0].leader;
            let id = |status: &StatusResponse| status.header.as_ref().map_or(0, |header| header.member_id);
            let newest = said.iter().map(|status| status.raft_index).max();
            let even = said.iter().all(|status| status.leader == leader && Some(status.raft_index) == newest);
            let found = said.iter().position(|status| leader != 0 && id(status) == leader);
            found.filter(|_| even).ok_or_else(|| format!("{said:?}"))
        })
        .await
    }

    /// The process of a member.
    pub fn child(&mut self, member: usize) -> Option<&mut Child> {
        self.children[member].as_mut()
    }

    /// A client of a member.
    pub fn client_of(&self, member: usize, number: usize) -> Outcome<Client> {
        Client::connect(self.ports[member], number)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Store for Etcd {
    type Client = Client;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn client(&self, member: usize, number: usize) -> Outcome<Client> {
        let at = (member, number / MEMBERS / CLIENTS_PER_CONNECTION);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match channels.get(&at) {
            Some(channel) => channel.clone(),
            None => {
                let channel = channel_to(self.ports[member])?;
                channels.insert(at, channel.clone());
                channel
            }
        };
        Ok(Client { grpc: Grpc::new(channel), number })
    }

    fn pids(&self) -> Vec<i32> {
        self.children.iter().flatten().filter_map(|child| i32::try_from(child.id()).ok()).collect()
    }
}

fn channel_to(port: u16) -> Outcome<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.tcp_nodelay(true);
    Ok(endpoint.connect_lazy())
}

/// A client, with a connection of its own or a share of one.
pub struct Client {
    grpc: Grpc<Channel>,
    number: usize,
}

impl Client {
    fn connect(port: u16, number: usize) -> Outcome<Self> {
        Ok(Self { grpc: Grpc::new(channel_to(port)?), number })
    }

    async fn call<Q, A>(&mut self, path: &'static str, request: Q) -> Outcome<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.grpc.ready().await.map_err(|error| failure(error.to_string()))?;
        let path = PathAndQuery::from_static(path);
        let answer = self.grpc.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default());
        Ok(answer.await?.into_inner())
    }

    async fn status(&mut self) -> Outcome<StatusResponse> {
        self.call("/etcdserverpb.Maintenance/Status", Empty {}).await
    }

    /// Put one of its keys.
    pub async fn put(&mut self, key: usize) -> Outcome {
        let key = format!("bench/{}/{key}", self.number).into_bytes();
        let request = PutRequest { key, value: vec![b'v'; VALUE_BYTES] };
        let _: Empty = self.call("/etcdserverpb.KV/Put", request).await?;
        Ok(())
    }
}

impl Writer for Client {
    async fn write(&mut self, key: usize) -> Outcome {
        self.put(key).await
    }
}
