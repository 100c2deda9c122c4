//! Three members of ZooKeeper as Debian ships it, and a client that speaks just enough of its protocol.
//!
//! Must never change how ZooKeeper syncs: `forceSync` is on by default and stays.

use crate::writes::{KEYS_EACH, MEMBERS, Store, VALUE_BYTES, Writer};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tessera_cluster::cluster::{PATIENCE, free_port};
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure, failure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// In the rows.
pub const NAME: &str = "ZooKeeper 3.8 (Debian)";
/// What Debian's package installs.
const JAR: &str = "/usr/share/java/zookeeper.jar";
/// A session without a word for so long is given up; clients write all the time.
const SESSION_MS: i32 = 20_000;
/// Numbers of requests in the protocol.
const CREATE: i32 = 1;
const SET_DATA: i32 = 5;
/// A node of that name is there.
const EXISTS: i32 = -110;
/// Bytes of an answer.
const ANSWER_BYTES_MAX: i32 = 1 << 20;

/// Why it cannot be measured here.
pub fn missing() -> Option<String> {
    let java = Command::new("java").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match (Path::new(JAR).is_file(), java.is_ok_and(|status| status.success())) {
        (true, true) => None,
        _ => Some("not installed: `apt-get install zookeeper`".to_owned()),
    }
}

/// Members of one ensemble; they end with this.
pub struct Zookeeper {
    ports: Vec<u16>,
    children: Vec<Child>,
    dir: tempfile::TempDir,
}

impl Zookeeper {
    /// Start an ensemble with default settings.
    pub async fn start() -> Outcome<Self> {
        let dir = tempfile::Builder::new().prefix("tsr-zk-").tempdir()?;
        let mut ports = Vec::new();
        let mut servers = String::new();
        for number in 1..=MEMBERS {
            ports.push(free_port()?);
            let _ = writeln!(servers, "server.{number}=127.0.0.1:{}:{}", free_port()?, free_port()?);
        }
        let mut started = Self { ports, children: Vec::new(), dir };
        for number in 1..=MEMBERS {
            let child = started.member(number, &servers)?;
            started.children.push(child);
        }
        for member in 0..MEMBERS {
            until("ZooKeeper answers", PATIENCE, async || {
                Client::connect(started.ports[member], 0).await.map(|_| ()).map_err(|error| error.to_string())
            })
            .await?;
        }
        Ok(started)
    }

    fn member(&self, number: usize, servers: &str) -> Outcome<Child> {
        let home: PathBuf = self.dir.path().join(number.to_string());
        std::fs::create_dir(&home)?;
        std::fs::write(home.join("myid"), number.to_string())?;
        let config = format!(
            "tickTime=2000\ninitLimit=10\nsyncLimit=5\nmaxClientCnxns=0\nadmin.enableServer=false\n\
             dataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\n{servers}",
            home.display(),
            self.ports[number - 1]
        );
        let file = home.join("zoo.cfg");
        std::fs::write(&file, config)?;
        let log = std::fs::File::create(home.join("log"))?;
        let child = Command::new("java")
            .args(["-cp", &format!("/etc/zookeeper/conf:{JAR}"), "-Dzookeeper.root.logger=WARN,CONSOLE"])
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(child)
    }
}

impl Drop for Zookeeper {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Store for Zookeeper {
    type Client = Client;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn client(&self, member: usize, number: usize) -> Outcome<Client> {
        let mut client = Client::connect(self.ports[member], number).await?;
        for key in 0..KEYS_EACH {
            client.create(key).await?;
        }
        Ok(client)
    }

    fn pids(&self) -> Vec<i32> {
        self.children.iter().filter_map(|child| i32::try_from(child.id()).ok()).collect()
    }
}

/// One session.
pub struct Client {
    /// Buffered, so that an answer is read with one call, as the others' are.
    stream: BufReader<TcpStream>,
    number: usize,
    xid: i32,
}

/// Strings and bytes have their length before them.
fn put_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(bytes);
}

impl Client {
    async fn connect(port: u16, number: usize) -> Outcome<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let mut client = Self { stream: BufReader::new(stream), number, xid: 0 };
        let mut hello = Vec::new();
        hello.extend_from_slice(&0_i32.to_be_bytes()); // protocol
        hello.extend_from_slice(&0_i64.to_be_bytes()); // last seen
        hello.extend_from_slice(&SESSION_MS.to_be_bytes());
        hello.extend_from_slice(&0_i64.to_be_bytes()); // a new session
        put_bytes(&mut hello, &[0; 16]);
        hello.push(0); // not read-only
        client.send(&hello).await?;
        let answer = client.receive().await?;
        let session = answer.get(8..16).map(<[u8]>::to_vec).unwrap_or_default();
        ensure(session.iter().any(|byte| *byte != 0), || "no session".to_owned())?;
        Ok(client)
    }

    async fn send(&mut self, body: &[u8]) -> Outcome {
        let mut frame = Vec::with_capacity(body.len() + 4);
        put_bytes(&mut frame, body);
        Ok(self.stream.write_all(&frame).await?)
    }

    async fn receive(&mut self) -> Outcome<Vec<u8>> {
        let length = self.stream.read_i32().await?;
        ensure((0..ANSWER_BYTES_MAX).contains(&length), || format!("an answer of {length} bytes"))?;
        let mut body = vec![0; usize::try_from(length)?];
        self.stream.read_exact(&mut body).await?;
        Ok(body)
    }

    /// Send a request; the error of its answer, 0 for none.
    async fn call(&mut self, kind: i32, body: &[u8]) -> Outcome<i32> {
        self.xid += 1;
        let mut request = Vec::with_capacity(body.len() + 8);
        request.extend_from_slice(&self.xid.to_be_bytes());
        request.extend_from_slice(&kind.to_be_bytes());
        request.extend_from_slice(body);
        self.send(&request).await?;
        let answer = self.receive().await?;
        let number = |at: usize| {
            let bytes = answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(i32::from_be_bytes).ok_or_else(|| failure("a short answer"))
        };
        ensure(number(0)? == self.xid, || "the answer to something else".to_owned())?;
        number(12)
    }

    fn path(&self, key: usize) -> String {
        format!("/bench-{}-{key}", self.number)
    }

    async fn create(&mut self, key: usize) -> Outcome {
        let mut body = Vec::new();
        put_bytes(&mut body, self.path(key).as_bytes());
        put_bytes(&mut body, &[b'v'; VALUE_BYTES]);
        body.extend_from_slice(&1_i32.to_be_bytes()); // one rule: anybody may do anything
        body.extend_from_slice(&31_i32.to_be_bytes());
        put_bytes(&mut body, b"world");
        put_bytes(&mut body, b"anyone");
        body.extend_from_slice(&0_i32.to_be_bytes()); // persistent
        let error = self.call(CREATE, &body).await?;
        ensure(matches!(error, 0 | EXISTS), || format!("create was answered {error}"))
    }
}

impl Writer for Client {
    async fn write(&mut self, key: usize) -> Outcome {
        let mut body = Vec::with_capacity(VALUE_BYTES + 64);
        put_bytes(&mut body, self.path(key).as_bytes());
        put_bytes(&mut body, &[b'v'; VALUE_BYTES]);
        body.extend_from_slice(&(-1_i32).to_be_bytes()); // whatever its version is
        let error = self.call(SET_DATA, &body).await?;
        ensure(error == 0, || format!("setData was answered {error}"))
    }
}
