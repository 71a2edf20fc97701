//! Certificates made to order, signed by the mesh's own root or by a stranger's.

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use std::path::PathBuf;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};

/// What is wrong with a certificate, if anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flaw {
    Nothing,
    /// Signed by a root that nobody knows.
    UnknownRoot,
    Expired,
    NotYetValid,
    /// No SPIFFE identity in it.
    NoIdentity,
    /// Two identities.
    TwoIdentities,
    /// Not for TLS clients or servers.
    OtherUsage,
    /// No certificate at all (clients only).
    NoCertificate,
}

#[derive(Args)]
pub(crate) struct CertificateArgs {
    /// The CA's `authority.json`.
    #[arg(long)]
    authority: PathBuf,
    /// spiffe://...
    #[arg(long)]
    identity: String,
    #[arg(long, value_enum, default_value_t = Flaw::Nothing)]
    flaw: Flaw,
    /// Seconds of validity from now.
    #[arg(long, default_value_t = 3600)]
    lifetime: i64,
}

/// A chain of one and its key, and the mesh's roots.
pub(crate) struct Credentials {
    leaf: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    roots: RootCertStore,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    roots: RootCertStore,
}

impl CertificateArgs {
    pub(crate) fn make(&self) -> anyhow::Result<Credentials> {
        let authority = self.authority()?;
        if self.flaw == Flaw::NoCertificate {
            return Ok(Credentials { leaf: None, roots: authority.roots });
        }
        let issuer = match self.flaw {
            Flaw::UnknownRoot => stranger()?,
            _ => authority.issuer,
        };
        let key = KeyPair::generate()?;
        let certificate = self.params()?.signed_by(&key, &issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| anyhow!(error))?;
        Ok(Credentials { leaf: Some((certificate.der().clone(), key)), roots: authority.roots })
    }

    fn params(&self) -> anyhow::Result<CertificateParams> {
        let mut params = CertificateParams::default();
        let now = OffsetDateTime::now_utc();
        params.not_before = now - Duration::minutes(5);
        params.not_after = now + Duration::seconds(self.lifetime);
        match self.flaw {
            Flaw::Expired => params.not_after = now - Duration::minutes(1),
            Flaw::NotYetValid => {
                params.not_before = now + Duration::hours(1);
                params.not_after = now + Duration::hours(2);
            }
            _ => {}
        }
        params.extended_key_usages = match self.flaw {
            Flaw::OtherUsage => vec![ExtendedKeyUsagePurpose::CodeSigning],
            _ => vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
        };
        let uri = |text: &str| anyhow::Ok(SanType::URI(text.try_into()?));
        params.subject_alt_names = match self.flaw {
            Flaw::NoIdentity => vec![SanType::DnsName("example.org".try_into()?)],
            Flaw::TwoIdentities => vec![uri(&self.identity)?, uri(&format!("{}-too", self.identity))?],
            _ => vec![uri(&self.identity)?],
        };
        Ok(params)
    }

    fn authority(&self) -> anyhow::Result<Authority> {
        let text = std::fs::read_to_string(&self.authority).context("--authority")?;
        let state: serde_json::Value = serde_json::from_str(&text)?;
        let roots = state["roots"].as_array().context("no roots")?;
        let mut store = RootCertStore::empty();
        for root in roots {
            let pem = root["certificate"].as_str().context("a root without certificate")?;
            store.add(CertificateDer::from_pem_slice(pem.as_bytes())?)?;
        }
        let active = roots.iter().find(|root| root["phase"] == "active").context("no active root")?;
        let key = KeyPair::from_pem(active["key"].as_str().context("the active root has no key")?)?;
        let pem = active["certificate"].as_str().context("no certificate")?;
        Ok(Authority { issuer: Issuer::from_ca_cert_pem(pem, key)?, roots: store })
    }
}

fn stranger() -> anyhow::Result<Issuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(Issuer::new(params, KeyPair::generate()?))
}

/// ztunnel's choice of algorithms.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
}

impl Credentials {
    /// No server name is sent and none is checked: the caller looks at the identity.
    pub(crate) fn client(self) -> anyhow::Result<Arc<ClientConfig>> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ChainOnly { roots: Arc::new(self.roots) }));
        let mut config = match self.leaf {
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }

    pub(crate) fn server(self) -> anyhow::Result<Arc<ServerConfig>> {
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots), provider()).build()?;
        let (certificate, key) = self.leaf.context("a server needs a certificate")?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate], key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Every URI in a certificate.
pub(crate) fn identities(certificate: &[CertificateDer<'_>]) -> Vec<String> {
    let Some(Ok((_, leaf))) = certificate.first().map(|der| x509_parser::parse_x509_certificate(der)) else {
        return Vec::new();
    };
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    uris.collect()
}

#[derive(Debug)]
struct ChainOnly {
    roots: Arc<RootCertStore>,
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = rustls::server::ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            provider().signature_verification_algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
