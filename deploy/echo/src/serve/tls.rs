//! A port that speaks TLS with a certificate of the pod's own, which nobody has signed.

use crate::identity::PodIdentity;
use crate::session;
use anyhow::Context;
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// A new key and certificate, for as long as this process lives.
///
/// # Errors
/// When no key can be made.
pub(crate) fn acceptor(identity: &PodIdentity) -> anyhow::Result<TlsAcceptor> {
    let made = rcgen::generate_simple_self_signed(vec![identity.pod.clone()]).context("a certificate")?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(session::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Speaks first: one line naming the pod and the session, as its own end has it; then sends back what it gets.
pub(crate) async fn banner(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    identity: Arc<PodIdentity>,
) -> io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let session = session::name(|output, label| {
        stream.get_ref().1.export_keying_material(output, label, None).map(|_| ())
    })?;
    stream.write_all(format!("220 {} ready {session}\r\n", identity.pod).as_bytes()).await?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            read => stream.write_all(&buffer[..read]).await?,
        }
    }
}
