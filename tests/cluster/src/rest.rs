//! A plain REST client: it sends what it is told, once, and shows whatever comes back.
//!
//! Must never retry or interpret: tests look at single answers.

use crate::{Outcome, ensure, failure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longer than a scheduler may take to answer.
const TIMEOUT: Duration = Duration::from_secs(40);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers with lower-case names.
    pub headers: BTreeMap<String, String>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, or null.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The code of the error envelope.
    #[must_use]
    pub fn error_code(&self) -> String {
        self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// This answer if it is a success.
    ///
    /// # Errors
    /// When it is not.
    pub fn ok(self) -> Outcome<Self> {
        ensure((200..300).contains(&self.status), || {
            format!("{}: {}", self.status, self.text())
        })?;
        Ok(self)
    }
}

/// A client of one master.
#[derive(Clone, Debug)]
pub struct Rest {
    base: String,
    token: Option<String>,
    http: reqwest::Client,
}

impl Rest {
    /// Of this address, with or without a token.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(base: &str, token: Option<&str>) -> Outcome<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(TIMEOUT)
            .build()?;
        Ok(Self {
            base: base.to_owned(),
            token: token.map(str::to_owned),
            http,
        })
    }

    /// Its address.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The same with another token, or none.
    #[must_use]
    pub fn with_token(&self, token: Option<&str>) -> Self {
        Self {
            token: token.map(str::to_owned),
            ..self.clone()
        }
    }

    /// Send a request, with a body of bytes.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Outcome<Answer> {
        let method: reqwest::Method = method.parse()?;
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .body(body);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| {
                (
                    name.as_str().to_owned(),
                    value.to_str().unwrap_or_default().to_owned(),
                )
            })
            .collect();
        Ok(Answer {
            status,
            headers,
            body: response.bytes().await?.to_vec(),
        })
    }

    /// GET.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> Outcome<Answer> {
        self.send("GET", path, &[], Vec::new()).await
    }

    /// GET a document.
    ///
    /// # Errors
    /// When there is no answer, or no success, or no JSON.
    pub async fn document(&self, path: &str) -> Outcome<Value> {
        let answer = self.get(path).await?.ok()?;
        serde_json::from_slice(&answer.body)
            .map_err(|error| failure(format!("{path}: {error}: {}", answer.text())))
    }

    /// POST a document.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post(&self, path: &str, document: &Value) -> Outcome<Answer> {
        self.send(
            "POST",
            path,
            &[("content-type", "application/json")],
            document.to_string().into_bytes(),
        )
        .await
    }

    /// POST that announces so many bytes and sends none of them, as a client does that waits for
    /// leave to send a large body. The status, and the rest of the answer as text.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub async fn announce(&self, path: &str, bytes: u64) -> Outcome<(u16, String)> {
        let host = self.base.trim_start_matches("http://");
        let token = self.token.as_deref().unwrap_or_default();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\
             expect: 100-continue\r\nconnection: close\r\ncontent-length: {bytes}\r\n\r\n"
        );
        let mut stream = tokio::net::TcpStream::connect(host).await?;
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut answer)).await??;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        status
            .map(|status| (status, text.clone()))
            .ok_or_else(|| failure(format!("no status in {text:?}")))
    }

    /// The answer to GET as long as it streams, what follows this event or what is new: a response whose
    /// body is read by the caller.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn stream(&self, path: &str, after: Option<&str>) -> Outcome<reqwest::Response> {
        let mut request = self
            .http
            .get(format!("{}{path}", self.base))
            .timeout(Duration::from_secs(3_600));
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        Ok(request.send().await?.error_for_status()?)
    }
}
