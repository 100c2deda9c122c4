//! HTTP to registries: one connection per request, each to an address that was checked.
//!
//! A client of its own rather than a ready-made one: those resolve names, follow redirects and fetch
//! tokens wherever a registry sends them, and read manifests of any length into memory.
//!
//! Invariants: whatever a registry answers, a connection goes where [`Transport::addresses`] allows and
//! nowhere else; a token is sent to the registry that it was got for only; a small document is read up to
//! its bound. Must never know what the documents mean.

use super::OciError;
use super::address::is_public;
use axum::http::header::{ACCEPT, AUTHORIZATION, HOST, LOCATION, USER_AGENT, WWW_AUTHENTICATE};
use axum::http::uri::{Authority, Scheme};
use axum::http::{HeaderValue, Request, Response, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Redirects followed for one request: registries use one, to where they store bytes.
const REDIRECTS_MAX: usize = 4;

/// Time for a connection, encryption included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Bytes of the answer that has a token: those that registries give have about 3 KiB.
const TOKEN_ANSWER_BYTES_MAX: usize = 64 << 10;

/// Bytes of one token, as far as it still fits in a header of a usual server.
const TOKEN_BYTES_MAX: usize = 16 << 10;

const AGENT: &str = concat!("tessera/", env!("CARGO_PKG_VERSION"));

/// What connects to registries.
pub struct Transport {
    /// `host` or `host:port`, as the operator listed them.
    registries: Vec<String>,
    tls: OnceLock<Arc<ClientConfig>>,
}

/// One pull from one registry: its protocol, and the token that it gave.
pub struct Session<'a> {
    transport: &'a Transport,
    registry: &'a str,
    repository: &'a str,
    plain: bool,
    token: Option<String>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Transport {
    /// A transport that may reach these registries.
    #[must_use]
    pub const fn new(registries: Vec<String>) -> Self {
        Self {
            registries,
            tls: OnceLock::new(),
        }
    }

    /// Whether the operator listed it.
    #[must_use]
    pub fn is_allowed(&self, registry: &str) -> bool {
        self.registries.iter().any(|allowed| allowed == registry)
    }

    /// Begin a pull. Plain HTTP is for registries on this machine.
    ///
    /// # Errors
    /// When the operator did not list the registry.
    pub fn session<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
        plain: bool,
    ) -> Result<Session<'a>, OciError> {
        if !self.is_allowed(registry) {
            return Err(OciError::NotAllowed(registry.to_owned()));
        }
        Ok(Session {
            transport: self,
            registry,
            repository,
            plain,
            token: None,
        })
    }

    /// The addresses of a host that may be connected to.
    async fn addresses(&self, uri: &Uri, port: u16) -> Result<Vec<SocketAddr>, OciError> {
        let unreachable = |why: String| OciError::unreachable(uri, why);
        let authority = uri
            .authority()
            .ok_or_else(|| unreachable("it names no host".into()))?;
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let found = tokio::net::lookup_host((host, port))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let listed = self.is_allowed(authority.as_str());
        let plain = uri.scheme() == Some(&Scheme::HTTP);
        let mut refused = None;
        let mut addresses = Vec::new();
        for address in found {
            if plain && !address.ip().is_loopback() {
                refused = Some(OciError::PlainBeyondLoopback(authority.to_string()));
            } else if !listed && !is_public(address.ip()) {
                refused = Some(OciError::PrivateAddress(authority.to_string()));
            } else {
                addresses.push(address);
            }
        }
        match (addresses.is_empty(), refused) {
            (false, _) => {
                addresses.truncate(ADDRESSES_MAX);
                Ok(addresses)
            }
            (true, Some(refused)) => Err(refused),
            (true, None) => Err(unreachable("the name has no address".into())),
        }
    }

    /// The system's certificates are read at the first pull that needs them: a master that pulls nothing
    /// runs without any.
    fn tls(&self) -> Result<Arc<ClientConfig>, OciError> {
        if let Some(config) = self.tls.get() {
            return Ok(config.clone());
        }
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            return Err(OciError::NoRoots);
        }
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| OciError::Tls(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(self.tls.get_or_init(|| Arc::new(config)).clone())
    }

    /// Send one request on a connection of its own.
    async fn send(
        &self,
        uri: &Uri,
        accept: &str,
        token: Option<&str>,
    ) -> Result<Response<Incoming>, OciError> {
        let unreachable = |why: String| OciError::unreachable(uri, why);
        let plain = uri.scheme() == Some(&Scheme::HTTP);
        let port = uri.port_u16().unwrap_or(if plain { 80 } else { 443 });
        let addresses = self.addresses(uri, port).await?;
        let answer = async {
            let stream = TcpStream::connect(addresses.as_slice())
                .await
                .map_err(|error| unreachable(error.to_string()))?;
            let request = request(uri, accept, token)?;
            if plain {
                return exchange(stream, request).await.map_err(unreachable);
            }
            let host = uri.host().unwrap_or_default();
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                .map_err(|error| unreachable(error.to_string()))?;
            let stream = TlsConnector::from(self.tls()?)
                .connect(name, stream)
                .await
                .map_err(|error| unreachable(error.to_string()))?;
            exchange(stream, request).await.map_err(unreachable)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, answer)
            .await
            .map_err(|_| unreachable("it did not answer in time".into()))?
    }
}

impl Session<'_> {
    /// Get what stands below the repository.
    ///
    /// # Errors
    /// When it is not there, not to be had without credentials, or the registry misbehaves.
    pub async fn get(&mut self, path: &str, accept: &str) -> Result<Response<Incoming>, OciError> {
        let scheme = if self.plain { "http" } else { "https" };
        let (registry, repository) = (self.registry, self.repository);
        let start = format!("{scheme}://{registry}/v2/{repository}/{path}");
        let start: Uri = start
            .parse()
            .map_err(|_| OciError::BadAnswer("the path is no URL".into()))?;
        let mut uri = start.clone();
        let mut asked_for_token = false;
        let mut redirects = 0;
        loop {
            // What a registry's token opens is nobody else's affair.
            let at_home = uri.authority() == start.authority() && uri.scheme() == start.scheme();
            let token = self.token.as_deref().filter(|_| at_home);
            let response = self.transport.send(&uri, accept, token).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status.is_redirection() {
                redirects += 1;
                if redirects > REDIRECTS_MAX {
                    return Err(OciError::BadAnswer("it redirects in circles".into()));
                }
                uri = self.redirected(&uri, response.headers().get(LOCATION))?;
                continue;
            }
            match status {
                StatusCode::UNAUTHORIZED if at_home && !asked_for_token => {
                    asked_for_token = true;
                    let challenge = response.headers().get(WWW_AUTHENTICATE);
                    self.token = Some(self.fetch_token(challenge).await?);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(OciError::NeedsCredentials(registry.to_owned()));
                }
                StatusCode::NOT_FOUND => {
                    return Err(OciError::NotFound(format!(
                        "{registry}/{repository}/{path}"
                    )));
                }
                _ => return Err(OciError::unreachable(&uri, format!("it answered {status}"))),
            }
        }
    }

    /// Get a small document.
    ///
    /// # Errors
    /// As [`Self::get`], and when it is longer than `most`.
    pub async fn document(
        &mut self,
        path: &str,
        accept: &str,
        most: usize,
    ) -> Result<Bytes, OciError> {
        let response = self.get(path, accept).await?;
        collect(response, most).await
    }

    /// Where a redirect leads. Unencrypted only to where the request came from.
    fn redirected(&self, from: &Uri, to: Option<&HeaderValue>) -> Result<Uri, OciError> {
        let bad = || OciError::BadAnswer("it redirects to nowhere".into());
        let to = to.and_then(|to| to.to_str().ok()).ok_or_else(bad)?;
        let next: Uri = if to.starts_with('/') && !to.starts_with("//") {
            let scheme = from.scheme_str().unwrap_or("https");
            let authority = from.authority().map_or("", Authority::as_str);
            format!("{scheme}://{authority}{to}")
                .parse()
                .map_err(|_| bad())?
        } else {
            to.parse().map_err(|_| bad())?
        };
        self.check_scheme(&next)?;
        Ok(next)
    }

    fn check_scheme(&self, uri: &Uri) -> Result<(), OciError> {
        let same = uri
            .authority()
            .is_some_and(|authority| authority.as_str() == self.registry);
        match uri.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if self.plain && same => Ok(()),
            _ => Err(OciError::BadAnswer(format!(
                "it leads to {uri}, which is not encrypted"
            ))),
        }
    }

    /// Ask for an anonymous token, as registries want it for public repositories, too.
    async fn fetch_token(&self, challenge: Option<&HeaderValue>) -> Result<String, OciError> {
        let refused = || OciError::NeedsCredentials(self.registry.to_owned());
        let challenge = challenge
            .and_then(|value| value.to_str().ok())
            .ok_or_else(refused)?;
        let realm = parameter(challenge, "realm").ok_or_else(refused)?;
        let service = parameter(challenge, "service").unwrap_or_default();
        let scope = format!("repository:{}:pull", self.repository);
        let separator = if realm.contains('?') { '&' } else { '?' };
        let uri = format!(
            "{realm}{separator}service={}&scope={}",
            escape(&service),
            escape(&scope)
        );
        let uri: Uri = uri
            .parse()
            .map_err(|_| OciError::BadAnswer("its tokens come from nowhere".into()))?;
        self.check_scheme(&uri)?;
        let response = self.transport.send(&uri, "application/json", None).await?;
        if !response.status().is_success() {
            return Err(refused());
        }
        let answer = collect(response, TOKEN_ANSWER_BYTES_MAX).await?;
        let answer: TokenAnswer = serde_json::from_slice(&answer)
            .map_err(|error| OciError::BadAnswer(format!("its token cannot be read: {error}")))?;
        let token = answer.token.or(answer.access_token).ok_or_else(refused)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(OciError::BadAnswer("its token is too long".into()));
        }
        Ok(token)
    }
}

fn request(
    uri: &Uri,
    accept: &str,
    token: Option<&str>,
) -> Result<Request<Empty<Bytes>>, OciError> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::get(path)
        .header(HOST, uri.authority().map_or("", Authority::as_str))
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, accept);
    if let Some(token) = token {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| OciError::BadAnswer("its token is no text".into()))?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    request
        .body(Empty::new())
        .map_err(|error| OciError::BadAnswer(error.to_string()))
}

async fn exchange<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // It ends with the body, or when whoever reads the body goes away.
    tokio::spawn(connection);
    sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())
}

async fn collect(response: Response<Incoming>, most: usize) -> Result<Bytes, OciError> {
    let body = Limited::new(response.into_body(), most).collect().await;
    body.map(http_body_util::Collected::to_bytes)
        .map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                OciError::BadAnswer(format!("a document has more than {most} bytes"))
            } else {
                OciError::BadAnswer(format!("the answer broke off: {error}"))
            }
        })
}

/// A parameter of `Bearer realm="…",service="…"`. Quoted pairs do not occur in what registries send.
fn parameter(challenge: &str, name: &str) -> Option<String> {
    let (scheme, parameters) = challenge.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut rest = parameters.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(value.to_owned());
        }
        rest = after.trim_start_matches([',', ' ']);
    }
    None
}

/// Everything but letters and digits as `%XX`.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let challenge =
            "Bearer realm=\"https://auth.x/token?a=b\",service=\"registry.x\", scope=pull,error=e";
        for (name, value) in [
            ("realm", Some("https://auth.x/token?a=b")),
            ("service", Some("registry.x")),
            ("scope", Some("pull")),
            ("error", Some("e")),
            ("missing", None),
        ] {
            assert_eq!(parameter(challenge, name).as_deref(), value, "{name}");
        }
        for bad in ["", "Basic realm=\"x\"", "Bearer", "Bearer realm=\"open"] {
            assert_eq!(parameter(bad, "realm"), None, "{bad}");
        }
        assert_eq!(escape("repository:a/b:pull"), "repository%3Aa%2Fb%3Apull");
    }

    #[test]
    fn only_listed_registries_are_pulled_from_and_redirects_stay_encrypted() {
        let transport = Transport::new(vec!["localhost:5000".into()]);
        assert!(matches!(
            transport.session("localhost", "a", false),
            Err(OciError::NotAllowed(_))
        ));
        let from: Uri = "http://localhost:5000/v2/a/blobs/x".parse().unwrap();
        let next = |plain: bool, to: &'static str| {
            let session = transport.session("localhost:5000", "a", plain).unwrap();
            session
                .redirected(&from, Some(&HeaderValue::from_static(to)))
                .map(|uri| uri.to_string())
        };
        assert_eq!(next(true, "/y").unwrap(), "http://localhost:5000/y");
        assert_eq!(
            next(true, "https://cdn.x/y?z").unwrap(),
            "https://cdn.x/y?z"
        );
        for bad in [
            "http://169.254.169.254/latest",
            "http://localhost:5001/",
            "//x/y",
            "ftp://x/",
            "",
            "x y",
        ] {
            assert!(next(true, bad).is_err(), "{bad}");
        }
        assert!(next(false, "http://localhost:5000/y").is_err());
    }

    #[tokio::test]
    async fn addresses_are_checked_after_resolving() {
        let transport = Transport::new(vec!["127.0.0.1:5000".into(), "8.8.8.8".into()]);
        let cases = [
            ("http://127.0.0.1:5000/", "ok"),
            ("https://127.0.0.1:5000/", "ok"),
            ("https://127.0.0.1:5001/", "private"),
            ("https://169.254.169.254/", "private"),
            ("https://[::ffff:10.0.0.1]/", "private"),
            // Names and other spellings of an address are judged by what they lead to.
            ("https://2130706433/", "private"),
            ("https://localhost/", "private"),
            ("http://8.8.8.8/", "plain"),
            ("https://8.8.8.8/", "ok"),
            ("https://9.9.9.9/", "ok"),
        ];
        for (uri, expected) in cases {
            let found = match transport.addresses(&uri.parse().unwrap(), 443).await {
                Ok(_) => "ok",
                Err(OciError::PrivateAddress(_)) => "private",
                Err(OciError::PlainBeyondLoopback(_)) => "plain",
                Err(_) => "other",
            };
            assert_eq!(found, expected, "{uri}");
        }
    }
}
