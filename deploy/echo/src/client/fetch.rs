//! One HTTP request whose body is wanted, not its statistics.

use super::Succeeded;
use super::connect::{lookup_one, open};
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use std::io::Write;
use std::time::Duration;
use tokio::time::timeout;

#[derive(Args)]
pub(crate) struct FetchArgs {
    /// http://HOST[:PORT][/PATH]
    url: Uri,
    #[arg(long, default_value = "GET")]
    method: Method,
    /// Milliseconds for each step.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

/// Succeeds with a status below 400; the body is printed in any case.
pub(crate) async fn run(args: FetchArgs) -> anyhow::Result<Succeeded> {
    if args.url.scheme_str() != Some("http") {
        bail!("{}: expected http://...", args.url);
    }
    let authority = args.url.authority().context("the URL has no host")?;
    let deadline = Duration::from_millis(args.timeout);
    let target = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let stream = open(lookup_one(&target, deadline).await?, deadline).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(args.method)
        .uri(args.url.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, authority.as_str())
        .body(Full::<Bytes>::default())?;
    let response = timeout(deadline, sender.send_request(request)).await??;
    let status = response.status();
    let body = timeout(deadline, response.into_body().collect()).await??.to_bytes();
    std::io::stdout().write_all(&body)?;
    Ok(Succeeded::count(u64::from(status.as_u16() < 400)))
}
