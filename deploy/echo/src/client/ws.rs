//! A WebSocket conversation.

use super::connect::{lookup_one, open};
use super::{Succeeded, print};
use crate::websocket::{self, Frame, Opcode};
use anyhow::{Context, bail};
use base64::Engine;
use bytes::Bytes;
use clap::Args;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use std::time::Duration;
use tokio::time::{sleep, timeout};

#[derive(Args)]
pub(crate) struct WsArgs {
    /// http://HOST[:PORT]/PATH
    url: Uri,
    /// Messages, each echoed before the next is sent.
    #[arg(long, default_value_t = 1)]
    count: u32,
    #[arg(long, default_value = "hello")]
    message: String,
    /// Milliseconds between two messages.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    every: u64,
    /// NAME: VALUE
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Milliseconds for each step.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

#[derive(Serialize, Default)]
struct Report {
    /// Of the handshake; 101 when the protocol was switched.
    status: Option<u16>,
    pod: Option<String>,
    /// Messages that came back as they were sent.
    ok: u64,
    /// The server's Close came back after ours.
    closed: bool,
    error: Option<String>,
}

pub(crate) async fn run(args: WsArgs) -> anyhow::Result<Succeeded> {
    let mut report = Report::default();
    if let Err(error) = converse(&args, &mut report).await {
        report.error = Some(format!("{error:#}"));
    }
    print(&report)?;
    Ok(Succeeded::count(report.ok))
}

async fn converse(args: &WsArgs, report: &mut Report) -> anyhow::Result<()> {
    let authority = args.url.authority().context("the URL has no host")?;
    let deadline = Duration::from_millis(args.timeout);
    let target = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let stream = open(lookup_one(&target, deadline).await?, deadline).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>());
    let mut request = Request::builder()
        .uri(args.url.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, authority.as_str())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key);
    for line in &args.headers {
        let (name, value) = line.split_once(':').context("a header is NAME: VALUE")?;
        request = request.header(name.trim(), value.trim());
    }
    let response = timeout(deadline, sender.send_request(request.body(Empty::<Bytes>::new())?)).await??;
    report.status = Some(response.status().as_u16());
    let text = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    report.pod = text("x-echo-pod");
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        bail!("the server did not switch protocols");
    }
    if text("sec-websocket-accept").as_deref() != Some(websocket::accept_key(&key).as_str()) {
        bail!("Sec-WebSocket-Accept does not belong to our key");
    }
    let mut stream = TokioIo::new(timeout(deadline, hyper::upgrade::on(response)).await??);
    for index in 0..args.count {
        if index > 0 {
            sleep(Duration::from_millis(args.every)).await;
        }
        let sent = Frame { opcode: Opcode::Text, payload: args.message.clone().into_bytes() };
        websocket::write(&mut stream, &sent, Some(rand::random())).await?;
        let echoed = timeout(deadline, websocket::read(&mut stream)).await??;
        if echoed != Some(sent) {
            bail!("message {index} did not come back");
        }
        report.ok += 1;
    }
    let close = Frame { opcode: Opcode::Close, payload: Vec::new() };
    websocket::write(&mut stream, &close, Some(rand::random())).await?;
    report.closed = timeout(deadline, websocket::read(&mut stream)).await?? == Some(close);
    Ok(())
}
