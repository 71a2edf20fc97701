//! A tunnel from outside the mesh's own code.

use crate::certificates::{CertificateArgs, identities};
use anyhow::Context;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use h2::client::SendRequest;
use http::{Method, Request, Uri};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What is done with the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Act {
    /// Sends the data, half-closes, reads until the end.
    Exchange,
    /// Sends the data, then resets the stream.
    ResetStream,
    /// Sends the data, then resets the TCP connection under the tunnel.
    ResetTunnel,
    /// After the TLS handshake says nothing more, until the peer ends it.
    Silence,
    /// Asks with GET instead of CONNECT.
    Get,
}

#[derive(Args)]
pub(crate) struct ClientArgs {
    /// Address of the tunnel's far end.
    #[arg(long)]
    target: SocketAddr,
    /// `:authority` of the CONNECT.
    #[arg(long)]
    connect: String,
    #[command(flatten)]
    certificate: CertificateArgs,
    #[arg(long, value_enum, default_value_t = Act::Exchange)]
    act: Act,
    #[arg(long, default_value = "hello")]
    data: String,
    /// Streams one after the other in the same tunnel.
    #[arg(long, default_value_t = 1)]
    streams: u32,
    /// Milliseconds for each step.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

/// Prints one JSON line: `tls`, `peer`, `alpn`, then per stream `status`, `received`, and how it `ended`.
pub(crate) async fn run(args: ClientArgs) -> anyhow::Result<()> {
    let deadline = Duration::from_millis(args.timeout);
    let started = Instant::now();
    let mut report = json!({"tls": "ok", "peer": null, "alpn": null, "streams": []});
    if let Err(error) = talk(&args, deadline, &mut report).await {
        report["error"] = json!(format!("{error:#}"));
    }
    report["millis"] = json!(u64::try_from(started.elapsed().as_millis())?);
    println!("{report}");
    Ok(())
}

async fn talk(args: &ClientArgs, deadline: Duration, report: &mut Value) -> anyhow::Result<()> {
    let connector = TlsConnector::from(args.certificate.make()?.client()?);
    let tcp = timeout(deadline, TcpStream::connect(args.target)).await.context("connect")??;
    tcp.set_nodelay(true)?;
    let name = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
    let mut tls = match timeout(deadline, connector.connect(name, tcp)).await.context("handshake")? {
        Ok(tls) => tls,
        Err(error) => {
            report["tls"] = json!(error.to_string());
            return Ok(());
        }
    };
    let (_, session) = tls.get_ref();
    report["peer"] = json!(session.peer_certificates().map(identities).unwrap_or_default());
    report["alpn"] = json!(session.alpn_protocol().map(|alpn| String::from_utf8_lossy(alpn).into_owned()));
    if args.act == Act::Silence {
        report["streams"] = json!([{"ended": read_out(&mut tls, deadline).await}]);
        return Ok(());
    }
    if args.act == Act::ResetTunnel {
        socket2::SockRef::from(tls.get_ref().0).set_linger(Some(Duration::ZERO))?;
    }
    let handshake = h2::client::Builder::new()
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size((1 << 20) - 1)
        .enable_push(false)
        .handshake::<_, Bytes>(tls);
    let (sender, connection) = timeout(deadline, handshake).await.context("HTTP/2")??;
    let driver = tokio::spawn(connection);
    // In TLS 1.3 a client learns only now that its certificate was refused.
    let mut streams = Vec::new();
    for _ in 0..args.streams {
        let outcome = timeout(deadline, stream(args, sender.clone())).await;
        let ended = outcome.unwrap_or_else(|_| json!({"ended": "timeout"}));
        let failed = ended.get("status").is_none();
        streams.push(ended);
        if failed {
            break;
        }
    }
    report["streams"] = json!(streams);
    drop(sender);
    if args.act == Act::ResetTunnel {
        driver.abort();
        let _ = driver.await;
        return Ok(());
    }
    if let Ok(Ok(Err(error))) = timeout(Duration::from_millis(500), driver).await {
        report["tunnel"] = json!(error.to_string());
    }
    Ok(())
}

async fn stream(args: &ClientArgs, sender: SendRequest<Bytes>) -> Value {
    let mut report = json!({});
    match converse(args, sender, &mut report).await {
        Ok(how) => report["ended"] = json!(how),
        Err(error) => report["ended"] = json!(error.to_string()),
    }
    report
}

async fn converse(
    args: &ClientArgs,
    sender: SendRequest<Bytes>,
    report: &mut Value,
) -> anyhow::Result<&'static str> {
    let mut sender = sender.ready().await?;
    let method = if args.act == Act::Get { Method::GET } else { Method::CONNECT };
    let uri: Uri = match args.act {
        Act::Get => format!("https://{}/", args.connect).parse()?,
        _ => args.connect.parse()?,
    };
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("baggage", "k8s.namespace.name=elsewhere,service.name=stock")
        .header("forwarded", "for=\"192.0.2.1:1234\"")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
    let (response, mut body) = sender.send_request(request.body(())?, false)?;
    let response = response.await?;
    report["status"] = json!(response.status().as_u16());
    if !response.status().is_success() {
        return Ok("refused");
    }
    body.send_data(Bytes::from(args.data.clone()), args.act == Act::Exchange)?;
    let mut incoming = response.into_body();
    let mut received = Vec::new();
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk?;
        incoming.flow_control().release_capacity(chunk.len())?;
        received.extend_from_slice(&chunk);
        report["received"] = json!(String::from_utf8_lossy(&received));
        match args.act {
            Act::ResetStream => {
                body.send_reset(h2::Reason::CANCEL);
                return Ok("reset");
            }
            Act::ResetTunnel => return Ok("reset"),
            Act::Exchange | Act::Silence | Act::Get => {}
        }
    }
    Ok("closed")
}

async fn read_out(tls: &mut TlsStream<TcpStream>, deadline: Duration) -> &'static str {
    let mut buffer = [0; 4096];
    loop {
        match timeout(deadline, tls.read(&mut buffer)).await {
            Err(_) => return "timeout",
            Ok(Ok(0)) => return "closed",
            // The peer's HTTP/2 settings.
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return "reset",
        }
    }
}
