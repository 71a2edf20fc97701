//! Asking a component whether it is ready.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::net::SocketAddr;
use std::time::Duration;

use crate::admin;
use crate::sandbox::namespaces::Netns;

/// A healthy component answers within milliseconds.
const ANSWER: Duration = Duration::from_secs(2);

/// One GET, answered with status and body, both within `timeout`.
///
/// # Errors
/// What went wrong, for people.
pub async fn get(
    netns: &Netns,
    to: SocketAddr,
    path: &str,
    timeout: Duration,
) -> Result<(StatusCode, Bytes), String> {
    let exchange = async {
        let answer = request(netns, to, path, timeout).await?;
        let status = answer.status();
        let broken = |error: hyper::Error| format!("GET {path} of {to}: {error}");
        let body = answer.into_body().collect().await.map_err(broken)?.to_bytes();
        Ok((status, body))
    };
    tokio::time::timeout(timeout, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("GET {path} of {to}: no answer within {timeout:?}")))
}

/// One GET, answered within `timeout` with a body that goes on.
///
/// # Errors
/// What went wrong, for people; also when the answer is no success.
pub async fn open(netns: &Netns, to: SocketAddr, path: &str, timeout: Duration) -> Result<Incoming, String> {
    let answer = tokio::time::timeout(timeout, request(netns, to, path, timeout))
        .await
        .unwrap_or_else(|_| Err(format!("GET {path} of {to}: no answer within {timeout:?}")))?;
    match answer.status() {
        status if status.is_success() => Ok(answer.into_body()),
        status => Err(format!("GET {path} of {to}: {status}")),
    }
}

async fn request(
    netns: &Netns,
    to: SocketAddr,
    path: &str,
    timeout: Duration,
) -> Result<Response<Incoming>, String> {
    let stream = netns.connect(to, timeout).await.map_err(|error| format!("connect to {to}: {error}"))?;
    admin::request(stream, &to.to_string(), path).await
}

/// Whether the component behind that admin address is ready.
///
/// # Errors
/// Why not, in its own words where it has any.
pub async fn ready(netns: &Netns, admin: SocketAddr) -> Result<(), String> {
    match get(netns, admin, "/healthz/ready", ANSWER).await? {
        (status, _) if status.is_success() => Ok(()),
        (_, body) => Err(String::from_utf8_lossy(&body).trim().to_owned()),
    }
}
