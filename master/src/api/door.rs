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

/// Serves for ever.
pub async fn serve(mut port: Bounded, api: Api) {
    let router = router(api.clone());
    loop {
        let (connection, address) = port.accept().await;
        let (api, router) = (api.clone(), router.clone());
        let service = service_fn(move |request| {
            let (api, router) = (api.clone(), router.clone());
            async move { Ok::<_, Infallible>(answer(api, router, request).await) }
        });
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

async fn answer(api: Api, router: Router, request: Request<Incoming>) -> Response {
    let (mut parts, body) = request.into_parts();
    if !quick::is_write(&parts) {
        return routed(router, Request::from_parts(parts, Body::new(body))).await;
    }
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return ApiError::broken_off(error).into_response(),
    };
    match quick::write(&api, &mut parts, &body).await {
        Some(done) => done,
        None => routed(router, Request::from_parts(parts, Body::from(body))).await,
    }
}

/// On the heap, so that connections which need none have no room for it.
async fn routed(router: Router, request: Request<Body>) -> Response {
    let answer = Box::pin(tower::ServiceExt::oneshot(router, request));
    answer.await.unwrap_or_else(|never: Infallible| match never {})
}
