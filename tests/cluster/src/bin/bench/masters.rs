//! Our three masters as a system under measurement: writes of a framework's state by REST.
//!
//! The client speaks HTTP/1.1 on one connection, as plainly as the others speak their protocols: a
//! general client takes more time than the masters do. Must never send what a user would not.

use crate::writes::{MEMBERS, Store, VALUE_BYTES, Writer};
use serde_json::json;
use tessera_cluster::cluster::{PATIENCE, push};
use tessera_cluster::masters::Group;
use tessera_cluster::wait::until;
use tessera_cluster::{Outcome, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// In the rows.
pub const NAME: &str = "Tessera";
/// The framework whose state is written.
const FRAMEWORK: &str = "bench";
/// Bytes of an answer's head, which is all of it.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// Three masters, and nothing else.
pub struct Masters {
    /// Them.
    pub group: Group,
}

impl Masters {
    /// Start them, with a framework whose scheduler runs nowhere.
    pub async fn start() -> Outcome<Self> {
        let group = Group::start("writes", MEMBERS).await?;
        let leader = group.leader().await?;
        let rest = group.rest(leader)?;
        until("the masters understand all commands", PATIENCE, async || {
            let view = rest.document("/v1/masters").await.map_err(|error| error.to_string())?;
            match view["cluster_version"].as_u64() >= Some(2) {
                true => Ok(()),
                false => Err(view.to_string()),
            }
        })
        .await?;
        let component = push(&rest, "echo").await?;
        let document = json!({"name": FRAMEWORK, "component": component});
        rest.post("/v1/frameworks", &document).await?.ok()?;
        Ok(Self { group })
    }

    /// All went well.
    pub fn finish(self) -> Outcome {
        self.group.finish()
    }
}

impl Store for Masters {
    type Client = Client;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn client(&self, member: usize, number: usize) -> Outcome<Client> {
        Client::connect(self.group.members[member].port, &self.group.token, number).await
    }

    fn pids(&self) -> Vec<i32> {
        self.group.members.iter().filter_map(|m| Some(m.process.as_ref()?.pid())).collect()
    }
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    /// What goes before and after a key's number in each request.
    before: String,
    after: Vec<u8>,
    answer: Vec<u8>,
}

impl Client {
    /// To a master on this machine.
    pub async fn connect(port: u16, token: &str, number: usize) -> Outcome<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let head = format!(
            " HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {token}\r\ncontent-length: {VALUE_BYTES}\r\n\r\n"
        );
        let mut after = head.into_bytes();
        after.extend_from_slice(&[b'v'; VALUE_BYTES]);
        let before = format!("PUT /v1/frameworks/{FRAMEWORK}/state/{number}/");
        Ok(Self { stream, before, after, answer: Vec::with_capacity(ANSWER_BYTES_MAX) })
    }

    async fn put(&mut self, key: usize) -> Outcome {
        let request = [format!("{}{key}", self.before).as_bytes(), &self.after].concat();
        self.stream.write_all(&request).await?;
        self.answer.clear();
        // 204 has no body.
        while !self.answer.ends_with(b"\r\n\r\n") {
            ensure(self.answer.len() < ANSWER_BYTES_MAX, || self.said())?;
            let read = self.stream.read_buf(&mut self.answer).await?;
            ensure(read > 0, || format!("the connection ended: {}", self.said()))?;
            // A refusal has one, and is no success.
            ensure(self.answer.len() < 12 || self.answer.starts_with(b"HTTP/1.1 204"), || self.said())?;
        }
        Ok(())
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.answer).into_owned()
    }
}

impl Writer for Client {
    async fn write(&mut self, key: usize) -> Outcome {
        self.put(key).await
    }
}
