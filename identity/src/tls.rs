//! TLS configurations: one cryptographic provider, TLS 1.3 only, peers known by SPIFFE identity. Build a configuration
//! once per certificate, never per connection.

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, CommonState, DigitallySignedStruct,
    DistinguishedName, Error, OtherError, RootCertStore, ServerConfig, SignatureScheme,
};
use thiserror::Error;

use crate::certificate::{CertificateError, LeafFacts};
use crate::{Identity, TrustBundle, TrustDomain, WorkloadCertificate};

/// The only application protocol spoken over these configurations: HTTP/2.
const ALPN: &[u8] = b"h2";

/// The one cryptographic provider: AES-128-GCM first, hybrid key exchange first, TLS 1.3 only.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
            ..aws_lc_rs::default_provider()
        })
    });
    PROVIDER.clone()
}

/// Why a TLS configuration could not be built.
#[derive(Debug, Error)]
#[error("no TLS configuration: {0}")]
pub struct ConfigError(String);

impl ConfigError {
    fn from(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// For a server of HBONE: a client certificate is demanded, its chain must lead to `bundle`, it must be made for
/// clients and carry exactly one SPIFFE identity, of a trust domain in `accepted`. ALPN h2; no server name needed; no
/// session tickets.
///
/// # Errors
/// When the bundle cannot verify anything.
pub fn server_config(
    certificate: &WorkloadCertificate,
    bundle: &TrustBundle,
    accepted: &[TrustDomain],
) -> Result<Arc<ServerConfig>, ConfigError> {
    let chain = WebPkiClientVerifier::builder_with_provider(bundle.root_store(), provider())
        // Hints would only make a client choose; ours have one certificate per identity.
        .clear_root_hint_subjects()
        .build()
        .map_err(ConfigError::from)?;
    let verifier = PeerVerifier { chain, accepted: accepted.into() };
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(ConfigError::from)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate.certified_key())));
    Ok(without_sessions(config))
}

/// For a client of HBONE. The server's chain, its fitness for servers and its time are checked, **not its name**: the
/// caller compares [`peer`] with the identity it expects after the handshake, before it sends a byte. No server name
/// is sent, no session resumed. ALPN h2.
///
/// # Errors
/// When the bundle cannot verify anything.
pub fn client_config(
    certificate: &WorkloadCertificate,
    bundle: &TrustBundle,
) -> Result<Arc<ClientConfig>, ConfigError> {
    let verifier = ServerVerifier { roots: bundle.root_store(), expected: Expected::CheckedByCaller };
    let config = client_builder(verifier)?
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificate.certified_key())));
    Ok(plain_client(config))
}

/// For the servers of the control plane, whose clients prove themselves by token. ALPN h2.
///
/// # Errors
/// Never with the provider of this crate.
pub fn grpc_server_config(certificate: &WorkloadCertificate) -> Result<Arc<ServerConfig>, ConfigError> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(ConfigError::from)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate.certified_key())));
    Ok(without_sessions(config))
}

/// For clients of the control plane: the server must be exactly `expected`. No client certificate. ALPN h2.
///
/// # Errors
/// Never with the provider of this crate.
pub fn grpc_client_config(
    expected: &Identity,
    bundle: &TrustBundle,
) -> Result<Arc<ClientConfig>, ConfigError> {
    let expected = Expected::Exactly(expected.clone());
    let config =
        client_builder(ServerVerifier { roots: bundle.root_store(), expected })?.with_no_client_auth();
    Ok(plain_client(config))
}

fn client_builder(
    verifier: ServerVerifier,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, ConfigError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(ConfigError::from)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

fn plain_client(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// A resumed session would outlive the certificate it was made with.
fn without_sessions(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

/// What stands in the place of a server name, which is neither sent nor checked.
pub fn no_server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

/// Who is on the other side of a connection, after the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub identity: Identity,
    /// The end of the peer's certificate; the connection should not outlive it.
    pub not_after: SystemTime,
}

/// Why it is not known who is on the other side.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeerError {
    #[error("the peer showed no certificate")]
    NoCertificate,
    #[error("the peer's certificate is not a workload's: {0}")]
    NotAWorkload(#[from] CertificateError),
}

/// The identity the peer has proved.
///
/// # Errors
/// When it showed no certificate (also before the handshake's end), or one that names no single identity.
pub fn peer(connection: &CommonState) -> Result<Peer, PeerError> {
    let leaf = connection.peer_certificates().and_then(<[_]>::first).ok_or(PeerError::NoCertificate)?;
    let facts = LeafFacts::of(leaf)?;
    Ok(Peer { identity: facts.identity, not_after: facts.not_after })
}

/// Verifies as server and as client at once: workloads are both.
pub(crate) fn verify_both_usages(
    chain: &[CertificateDer<'static>],
    bundle: &TrustBundle,
    now: UnixTime,
) -> Result<(), Error> {
    let (leaf, intermediates) =
        chain.split_first().ok_or(Error::InvalidCertificate(TlsCertificateError::BadEncoding))?;
    verify_server_chain(&bundle.root_store(), leaf, intermediates, now)?;
    WebPkiClientVerifier::builder_with_provider(bundle.root_store(), provider())
        .build()
        .map_err(|error| Error::General(error.to_string()))?
        .verify_client_cert(leaf, intermediates, now)
        .map(|_| ())
}

fn verify_server_chain(
    roots: &RootCertStore,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), Error> {
    let algorithms = provider().signature_verification_algorithms;
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf)?,
        roots,
        intermediates,
        now,
        algorithms.all,
    )
}

fn refused(reason: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(TlsCertificateError::Other(OtherError(Arc::new(reason))))
}

/// A peer whose certificate is in order and who is not wanted all the same.
#[derive(Error)]
enum Unwanted {
    #[error("{0} is of no accepted trust domain")]
    TrustDomain(Identity),
    #[error("the server is {actual}, not {expected}")]
    OtherServer { expected: Identity, actual: Identity },
}

/// rustls shows reasons of others by their `Debug`; this keeps them readable.
impl std::fmt::Debug for Unwanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// A server's view of its clients.
#[derive(Debug)]
struct PeerVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    accepted: Box<[TrustDomain]>,
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        let identity = LeafFacts::of(leaf).map_err(refused)?.identity;
        if self.accepted.iter().any(|domain| domain.as_str() == identity.trust_domain()) {
            Ok(verified)
        } else {
            Err(refused(Unwanted::TrustDomain(identity)))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Who decides whether the server is the right one.
#[derive(Debug)]
enum Expected {
    /// The verifier, in the handshake.
    Exactly(Identity),
    /// The caller, after it: one configuration serves connections to many peers.
    CheckedByCaller,
}

/// A client's view of its server.
#[derive(Debug)]
struct ServerVerifier {
    roots: Arc<RootCertStore>,
    expected: Expected,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server_chain(&self.roots, leaf, intermediates, now)?;
        let actual = LeafFacts::of(leaf).map_err(refused)?.identity;
        match &self.expected {
            Expected::Exactly(expected) if *expected != actual => {
                Err(refused(Unwanted::OtherServer { expected: expected.clone(), actual }))
            }
            Expected::Exactly(_) | Expected::CheckedByCaller => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
