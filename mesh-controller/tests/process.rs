//! The real binary: waits for its CA and says so, then serves over TLS with its own certificate, writes statuses, follows
//! the directory, and ends on SIGTERM.

// Helpers outside test functions are tests too.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_api::istio_ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use culvert_api::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use culvert_api::mesh::controller_message::Kind as Out;
use culvert_api::mesh::mesh_control_client::MeshControlClient;
use culvert_api::mesh::proxy_message::Kind as In;
use culvert_api::mesh::{self as pb, ProxyMessage};
use culvert_identity::grpc::{self, bearer, put_bearer};
use culvert_identity::token::{Issuer, KubernetesClaims, ObjectRef};
use culvert_identity::{TrustBundle, WorkloadCertificate, bundle, tls};
use rcgen::{CertificateParams, CertificateSigningRequestParams, IsCa, KeyPair, SanType};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

const ISSUER: &str = "https://kubernetes.default.svc";
const CONTROLLER: &str = "spiffe://cluster.local/ns/culvert-system/sa/culvert-controller";
const CA: &str = "spiffe://cluster.local/ns/culvert-system/sa/culvert-ca";

/// Signs whatever comes with any token.
struct Ca {
    issuer: rcgen::Issuer<'static, KeyPair>,
    root: rcgen::Certificate,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        Self { issuer: rcgen::Issuer::new(params, key), root }
    }

    fn own(&self) -> WorkloadCertificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(CA.try_into().unwrap())];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        WorkloadCertificate::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }
}

struct Signer(Arc<Ca>);

#[tonic::async_trait]
impl IstioCertificateService for Signer {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        bearer(request.metadata()).ok_or_else(|| Status::unauthenticated("no token"))?;
        let mut asked = CertificateSigningRequestParams::from_pem(&request.get_ref().csr).unwrap();
        asked.params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let now = std::time::SystemTime::now();
        asked.params.not_before = now.into();
        asked.params.not_after = (now + Duration::from_secs(3600)).into();
        let certificate = asked.signed_by(&self.0.issuer).unwrap();
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![certificate.pem(), self.0.root.pem()] }))
    }
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// On a loopback address of its own: a port that was free a moment ago may be another test's by now.
fn free_address() -> SocketAddr {
    let address = std::net::Ipv4Addr::from(0x7f01_0000 + rand::random_range(0..0x00fe_0000_u32));
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap()
}

fn get(address: SocketAddr, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(address) else { return String::new() };
    let mut answer = String::new();
    let _ = stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
    let _ = stream.read_to_string(&mut answer);
    answer
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn token(issuer: &Issuer, account: &str) -> String {
    let holder = KubernetesClaims {
        namespace: "culvert-system".into(),
        serviceaccount: ObjectRef { name: account.into(), uid: "s".into() },
        pod: None,
        node: Some(ObjectRef { name: "one".into(), uid: String::new() }),
    };
    issuer.issue(holder, "culvert.dev", Duration::from_secs(600)).unwrap()
}

fn write_objects(at: &Path, mesh: &str) {
    let text = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: one}}\n---\n\
         apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{culvert.dev/mesh: {mesh}}}}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: cart, namespace: shop, uid: u}}\n\
         spec: {{nodeName: one, containers: [{{name: c}}]}}\nstatus: {{podIP: 10.1.0.1}}\n"
    );
    std::fs::write(at.join(".new"), text).unwrap();
    std::fs::rename(at.join(".new"), at.join("all.yaml")).unwrap();
}

const GATEWAY: &str = include_str!("mesh/gateway.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn the_process_waits_serves_follows_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("objects")).unwrap();
    write_objects(&at("objects"), "disabled");
    let issuer = Issuer::generate(ISSUER).unwrap();
    issuer.write_jwks(&at("keys.json")).unwrap();
    std::fs::write(at("token"), token(&issuer, "culvert-controller")).unwrap();
    let ca = Arc::new(Ca::new());
    std::fs::write(at("roots.pem"), ca.root.pem()).unwrap();
    let (listen, admin, ca_address) = (free_address(), free_address(), free_address());

    let mut process = Process(
        Command::new(env!("CARGO_BIN_EXE_culvert-controller"))
            .arg("run")
            .args(["--objects".as_ref(), at("objects").as_os_str()])
            .args(["--statuses".as_ref(), at("statuses").as_os_str()])
            .args(["--wanted".as_ref(), at("wanted").as_os_str()])
            .args(["--token-keys".as_ref(), at("keys.json").as_os_str()])
            .args(["--token".as_ref(), at("token").as_os_str()])
            .args(["--trust-bundle".as_ref(), at("roots.pem").as_os_str()])
            .args(["--listen", &listen.to_string(), "--admin", &admin.to_string()])
            .args(["--token-issuer", ISSUER, "--ca", &format!("https://{ca_address}")])
            .args(["--pod-cidr", "10.1.0.0/16", "--service-cidr", "10.2.0.0/16"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    until("waits for the CA and says so", || {
        let ready = get(admin, "/healthz/ready");
        ready.contains("503") && ready.contains("no certificate from the CA")
    })
    .await;
    let status = at("statuses").join("Pod/shop/cart.json");
    let says = |text: &str| std::fs::read_to_string(&status).unwrap_or_default().contains(text);
    until("writes statuses without the CA", || says("\"NotEnrolled\"")).await;

    let (_config, config) = watch::channel(tls::grpc_server_config(&ca.own()).unwrap());
    let incoming = grpc::incoming(tokio::net::TcpListener::bind(ca_address).await.unwrap(), config);
    let service = IstioCertificateServiceServer::new(Signer(ca.clone()));
    tokio::spawn(grpc::server().add_service(service).serve_with_incoming(incoming));
    until("becomes ready", || get(admin, "/healthz/ready").contains("200 OK")).await;

    let roots: watch::Receiver<Arc<TrustBundle>> =
        bundle::watch_file(at("roots.pem"), Duration::from_secs(1)).await.unwrap();
    let channel = grpc::channel(&format!("https://{listen}"), CONTROLLER.parse().unwrap(), roots).unwrap();
    let (to, outgoing) = mpsc::channel(8);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    put_bearer(request.metadata_mut(), &token(&issuer, "culvert-node-proxy")).unwrap();
    for kind in [In::Hello(pb::Hello::default()), In::Subscribe(pb::Subscribe {})] {
        to.send(ProxyMessage { kind: Some(kind) }).await.unwrap();
    }
    let mut stream = MeshControlClient::new(channel).follow(request).await.unwrap().into_inner();
    write_objects(&at("objects"), "enabled");
    let mut seen = Vec::new();
    let enrolled = loop {
        let message = tokio::time::timeout(Duration::from_secs(10), stream.message()).await.unwrap().unwrap();
        let message = format!("{:?}", message.unwrap().kind.unwrap_or(Out::Heartbeat(Default::default())));
        let found = message.contains("enrolment: Enrolled");
        seen.push(message);
        if found || seen.len() > 20 {
            break found;
        }
    };
    assert!(enrolled, "{seen:#?}");
    until("the status follows", || says("\"Waiting\"")).await;
    let wanted = at("wanted").join("Deployment/shop/edge-culvert.json");
    assert!(!wanted.exists());
    std::fs::write(at("objects").join("edge.yaml"), GATEWAY).unwrap();
    until("a Gateway's Deployment is wanted", || wanted.exists()).await;
    std::fs::remove_file(at("objects").join("edge.yaml")).unwrap();
    until("it is wanted no more", || !wanted.exists()).await;
    assert!(get(admin, "/config").contains("Pod/shop/cart/u"));
    assert!(get(admin, "/metrics").contains("culvert_controller_streams 1"), "{}", get(admin, "/metrics"));

    let ended = Command::new("kill").args(["-TERM", &process.0.id().to_string()]).status().unwrap();
    assert!(ended.success());
    let deadline = Instant::now() + Duration::from_secs(10);
    let code = loop {
        match process.0.try_wait().unwrap() {
            Some(code) => break code,
            None => assert!(Instant::now() < deadline, "did not end"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(code.success(), "{code}");
}
