//! A CA that signs for anybody, and can be silent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use culvert_api::istio_ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use culvert_api::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use culvert_identity::TrustBundle;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tonic::{Request, Response, Status};

pub struct Ca {
    pub address: SocketAddr,
    pub bundle: Arc<TrustBundle>,
    pub up: Arc<AtomicBool>,
}

struct Signer {
    issuer: Issuer<'static, KeyPair>,
    root: String,
    up: Arc<AtomicBool>,
}

impl Ca {
    pub async fn start() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).expect("a root").pem();
        let bundle = Arc::new(TrustBundle::from_pem(root.as_bytes()).expect("a bundle"));
        let up = Arc::new(AtomicBool::new(true));
        let signer = Signer { issuer: Issuer::new(params, key), root, up: up.clone() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder()
            .add_service(IstioCertificateServiceServer::new(signer))
            .serve_with_incoming(incoming);
        tokio::spawn(server);
        Self { address, bundle, up }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Signer {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        if !self.up.load(Ordering::Relaxed) {
            return Err(Status::unavailable("the CA of the test is down"));
        }
        let mut csr = CertificateSigningRequestParams::from_pem(&request.get_ref().csr)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let now = SystemTime::now();
        csr.params.not_before = (now - Duration::from_secs(60)).into();
        csr.params.not_after = (now + Duration::from_secs(3600)).into();
        csr.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        csr.params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = csr.signed_by(&self.issuer).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![leaf.pem(), self.root.clone()] }))
    }
}
