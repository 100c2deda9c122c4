//! The REST port: connections, what every request has to pass, and the two ways of requests.
//!
//! Invariants: a connection ends with its client, or when the port gives it up; every request goes to the routes,
//! unless it is a write that was done on its short way, or is refused by what its head says. Must never look at more
//! than a request's head.

use super::audit::Audit;
use super::error::ApiError;
use super::rate::{Allowance, Rates};
use super::visit::{Sender, TRACE, Visit};
use super::{Api, operations_by_route, quick, router, table};
use crate::listener::Bounded;
use crate::metrics::Metrics;
use crate::trace::Tracer;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request};
use axum::response::{IntoResponse as _, Response};
use axum::serve::Listener as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// Headers of a request: browsers and proxies send some twenty.
pub const HEADERS_MAX: usize = 100;

/// Bytes of all of them together.
pub const HEADER_BYTES_MAX: usize = 32 << 10;

/// Headers that a connection reads at all; whoever sends more has no envelope for an answer, only the status.
const HEADERS_READ_MAX: usize = 256;

/// Serves for ever.
pub async fn serve(mut port: Bounded, api: Api, audit: Arc<Audit>, requests_per_s: u64) {
    let operations = operations_by_route();
    api.node.metrics.http.know(table::endpoints().into_iter().map(|endpoint| endpoint.path));
    let ways = Arc::new(Ways {
        router: router(api.clone()),
        rates: Rates::new(requests_per_s),
        operations,
        api,
        audit,
    });
    loop {
        let (connection, address) = port.accept().await;
        let ways = Arc::clone(&ways);
        let service = service_fn(move |request| answer(Arc::clone(&ways), address, request));
        // Ends with the connection.
        tokio::spawn(async move {
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http1().max_headers(HEADERS_READ_MAX);
            let served = builder.serve_connection(TokioIo::new(connection), service).await;
            if let Err(error) = served {
                tracing::trace!(%address, %error, "a client's connection ended");
            }
        });
    }
}

/// What a request may be given to; one for all connections.
pub struct Ways {
    api: Api,
    router: Router,
    rates: Rates,
    audit: Arc<Audit>,
    /// Names of operations by method and route.
    operations: HashMap<(Method, &'static str), &'static str>,
}

impl Ways {
    /// The name of what a request does.
    pub fn operation(&self, method: &Method, route: &str) -> Option<&'static str> {
        // Routes are constants, and the key is only compared.
        self.operations.iter().find(|((of, path), _)| of == method && *path == route).map(|(_, name)| *name)
    }

    /// What handlers share.
    pub const fn api(&self) -> &Api {
        &self.api
    }

    /// Where requests go on record.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Who takes spans.
    pub fn tracer(&self) -> Option<&Tracer> {
        self.api.node.tracer.as_ref()
    }

    /// What is counted of requests.
    pub fn metrics(&self) -> &Metrics {
        &self.api.node.metrics
    }

    /// What the head of a request says against it, and what is left to its sender.
    fn admit(&self, visit: &Visit, headers: &HeaderMap) -> Result<Option<Allowance>, (ApiError, Option<Allowance>)> {
        let allowance = self.rates.take(&visit.sender, visit.remote(), Instant::now());
        if let Some(allowance) = allowance
            && let Some(wait_s) = allowance.retry_after_s
        {
            let error = ApiError::rate_limited("this caller", allowance.per_s, wait_s);
            return Err((error, Some(allowance)));
        }
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if headers.len() > HEADERS_MAX || bytes > HEADER_BYTES_MAX {
            let rule = format!("a request has at most {HEADERS_MAX} headers of {HEADER_BYTES_MAX} bytes together");
            return Err((ApiError::headers_too_large(rule), allowance));
        }
        Ok(allowance)
    }
}

async fn answer(ways: Arc<Ways>, remote: SocketAddr, request: Request<Incoming>) -> Result<Response, Infallible> {
    let visit = Visit::of(&ways, &request, remote);
    // Dropped here when its caller hangs up, which the visit notes.
    let mut response = visit.answered(admitted(&ways, &visit, request)).await;
    visit.end(&mut response);
    Ok(response)
}

async fn admitted(ways: &Ways, visit: &Visit, request: Request<Incoming>) -> Response {
    let (mut parts, body) = request.into_parts();
    let allowance = match ways.admit(visit, &parts.headers) {
        Ok(allowance) => allowance,
        Err((error, allowance)) => {
            let mut response = error.into_response();
            if let Some(allowance) = allowance {
                allowance.tell(response.headers_mut());
            }
            return response;
        }
    };
    parts.extensions.insert(visit.sender.clone());
    if let Some(traced) = visit.traced
        && let Ok(header) = HeaderValue::from_str(&traced.context.header())
    {
        parts.headers.insert(TRACE, header);
    }
    // Nothing is taken in of whoever is nobody.
    let mut response = if matches!(visit.sender, Sender::Known(_)) && quick::is_write(&parts) {
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return ApiError::broken_off(error).into_response(),
        };
        if let Some(done) = quick::write(&ways.api, &mut parts, &body).await {
            return done;
        }
        routed(&ways.router, Request::from_parts(parts, Body::from(body))).await
    } else {
        routed(&ways.router, Request::from_parts(parts, Body::new(body))).await
    };
    if let Some(allowance) = allowance {
        allowance.tell(response.headers_mut());
    }
    response
}

/// On the heap, so that connections which need none have no room for it.
async fn routed(router: &Router, request: Request<Body>) -> Response {
    let answered: Result<Response, Infallible> =
        Box::pin(tower::ServiceExt::oneshot(router.clone(), request)).await;
    answered.unwrap_or_else(|never| match never {})
}
