//! Connections, one after the other, to servers that say their name first: who answers how many of them.

use super::connect::{lookup_one, open};
use super::stats::Counts;
use super::{Succeeded, print};
use crate::errors::kind_of;
use crate::session;
use clap::Args;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde::Serialize;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

#[derive(Args)]
pub(crate) struct GreetArgs {
    /// HOST:PORT
    target: String,
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Over TLS that asks for this server name; - for none.
    #[arg(long, value_name = "NAME")]
    tls: Option<String>,
    /// Milliseconds for each connection.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
}

/// `errors`: words for connections that came to nothing; `ended-on-the-way` where TLS is not that of the server.
#[derive(Serialize, Default)]
struct Report {
    count: u32,
    ok: u32,
    pods: Counts,
    errors: Counts,
}

pub(crate) async fn run(args: GreetArgs) -> anyhow::Result<Succeeded> {
    let deadline = Duration::from_millis(args.timeout);
    let tls = args.tls.as_deref().map(Tls::asking_for).transpose()?;
    let mut report = Report { count: args.count, ..Report::default() };
    for _ in 0..args.count {
        let met = timeout(deadline, greeted(&args.target, tls.as_ref(), deadline)).await;
        match met.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(Greeting::From(pod)) => {
                report.ok += 1;
                report.pods.add(pod);
            }
            Ok(Greeting::OfAnother) => report.errors.add("ended-on-the-way"),
            Err(error) => report.errors.add(kind_of(&error)),
        }
    }
    print(&report)?;
    Ok(Succeeded::count(u64::from(report.ok)))
}

enum Greeting {
    From(String),
    /// TLS was ended by somebody who spoke to the server in another session.
    OfAnother,
}

async fn greeted(target: &str, tls: Option<&Tls>, deadline: Duration) -> io::Result<Greeting> {
    let mut stream = open(lookup_one(target, deadline).await?, deadline).await?;
    let Some(tls) = tls else {
        let line = read_line(&mut stream).await?;
        stream.shutdown().await?;
        return Ok(Greeting::From(words(&line)?.0.to_owned()));
    };
    let mut stream = tls.connector.connect(tls.name.clone(), stream).await?;
    let line = read_line(&mut stream).await?;
    let own = session::name(|output, label| {
        stream.get_ref().1.export_keying_material(output, label, None).map(|_| ())
    })?;
    stream.shutdown().await?;
    let (pod, session) = words(&line)?;
    Ok(if session == own { Greeting::From(pod.to_owned()) } else { Greeting::OfAnother })
}

/// Pod and session of `220 POD ready [SESSION]`.
fn words(line: &str) -> io::Result<(&str, &str)> {
    let mut words = line.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("220"), Some(pod), Some("ready")) => Ok((pod, words.next().unwrap_or_default())),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") && line.len() < 1024 {
        line.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    fn asking_for(name: &str) -> anyhow::Result<Self> {
        let provider = session::provider();
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth();
        config.enable_sni = name != "-";
        let name = if name == "-" { "none.invalid" } else { name };
        let name = ServerName::try_from(name.to_owned())?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

/// Takes every certificate: who answers is what is asked.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
