//! The REST port: connections, and the two ways of their requests.
//!
//! Invariants: a connection ends with its client, or when the port gives it up; every request goes to the routes,
//! unless it is a write that was done on its short way. Must never look at more than a request's head.

use super::error::ApiError;
use super::{Api, quick, router};
use crate::listener::Bounded;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::{IntoResponse as _, Response};
use axum::serve::Listener as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::sync::Arc;

/// Serves for ever.
pub async fn serve(mut port: Bounded, api: Api) {
    let ways = Arc::new(Ways { router: router(api.clone()), api });
    loop {
        let (connection, address) = port.accept().await;
        let ways = Arc::clone(&ways);
        let service = service_fn(move |request| answer(Arc::clone(&ways), request));
        // Ends with the connection.
        tokio::spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            let served = builder.serve_connection(TokioIo::new(connection), service).await;
            if let Err(error) = served {
                tracing::trace!(%address, %error, "a client's connection ended");
            }
        });
    }
}

/// What a request may be given to; one for all connections.
struct Ways {
    api: Api,
    router: Router,
}

async fn answer(ways: Arc<Ways>, request: Request<Incoming>) -> Result<Response, Infallible> {
    let (mut parts, body) = request.into_parts();
    if !quick::is_write(&parts) {
        return routed(&ways.router, Request::from_parts(parts, Body::new(body))).await;
    }
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Ok(ApiError::broken_off(error).into_response()),
    };
    match quick::write(&ways.api, &mut parts, &body).await {
        Some(done) => Ok(done),
        None => routed(&ways.router, Request::from_parts(parts, Body::from(body))).await,
    }
}

/// On the heap, so that connections which need none have no room for it.
async fn routed(router: &Router, request: Request<Body>) -> Result<Response, Infallible> {
    Box::pin(tower::ServiceExt::oneshot(router.clone(), request)).await
}
