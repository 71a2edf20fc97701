//! The authority as a process on loopback, asked by the real client.

#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for code outside tests")]

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use culvert_api::istio_ca::IstioCertificateRequest;
use culvert_api::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use culvert_identity::certificate_client::{CertificateClient, Issued, RequestError};
use culvert_identity::csr::CertificateRequest;
use culvert_identity::grpc::{self, TokenFile};
use culvert_identity::token::{Issuer, KubernetesClaims, ObjectRef};
use culvert_identity::{Identity, TrustBundle, bundle, tls};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::Code;
use tonic::transport::Channel;

const ISSUER: &str = "https://kubernetes.default.svc";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const TILL: &str = "spiffe://cluster.local/ns/shop/sa/till";
const CA: &str = "spiffe://cluster.local/ns/culvert-system/sa/culvert-ca";
const DEADLINE: Duration = Duration::from_secs(20);

struct World {
    directory: tempfile::TempDir,
    issuer: Issuer,
    listen: SocketAddr,
    admin: SocketAddr,
    child: Option<Child>,
}

/// On a loopback address of its own: a port that was free a moment ago may be another test's by now.
fn free_address() -> SocketAddr {
    let address = std::net::Ipv4Addr::from(0x7f01_0000 + rand::random_range(0..0x00fe_0000_u32));
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap()
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let issuer = Issuer::generate(ISSUER).unwrap();
        issuer.write_jwks(&directory.path().join("jwks.json")).unwrap();
        let mut world =
            Self { directory, issuer, listen: free_address(), admin: free_address(), child: None };
        std::fs::create_dir(world.path("objects")).unwrap();
        world.object("Node", "_cluster", "one", r#""metadata":{"name":"one","uid":"uid-one"}"#);
        world.pod("cart-0", "cart", "one");
        world.pod("till-0", "till", "two");
        world.start().await;
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn object(&self, kind: &str, namespace: &str, name: &str, body: &str) {
        let directory = self.path("objects").join(kind).join(namespace);
        std::fs::create_dir_all(&directory).unwrap();
        let json = format!(r#"{{"apiVersion":"v1","kind":"{kind}",{body}}}"#);
        std::fs::write(directory.join(".writing"), json).unwrap();
        std::fs::rename(directory.join(".writing"), directory.join(format!("{name}.json"))).unwrap();
    }

    fn pod(&self, name: &str, service_account: &str, node: &str) {
        let body = format!(
            r#""metadata":{{"name":"{name}","namespace":"shop","uid":"uid-{name}"}},
            "spec":{{"nodeName":"{node}","serviceAccountName":"{service_account}",
            "containers":[{{"name":"c","image":"culvert/echo"}}]}},"status":{{"phase":"Running"}}"#
        );
        self.object("Pod", "shop", name, &body);
    }

    /// Starts the process and waits until it is ready.
    async fn start(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        self.spawn();
        while !self.admin("/healthz/ready").await.starts_with("HTTP/1.1 200") {
            assert!(Instant::now() < deadline, "{}", self.log());
            // A port that was free a moment ago may be somebody's by now.
            if self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
                (self.listen, self.admin) = (free_address(), free_address());
                self.spawn();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn spawn(&mut self) {
        let child = Command::new(env!("CARGO_BIN_EXE_culvert-ca"))
            .arg("run")
            .args(["--token-issuer", ISSUER, "--trust-domain", "cluster.local"])
            .args(["--root-overlap", "2s", "--max-lifetime", "1h"])
            .arg("--listen")
            .arg(self.listen.to_string())
            .arg("--admin")
            .arg(self.admin.to_string())
            .arg("--objects")
            .arg(self.path("objects"))
            .arg("--data-dir")
            .arg(self.path("data"))
            .arg("--token-keys")
            .arg(self.path("jwks.json"))
            .arg("--trust-bundle-out")
            .arg(self.path("roots.pem"))
            .stderr(std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    async fn admin(&self, path: &str) -> String {
        let Ok(mut tcp) = tokio::net::TcpStream::connect(self.admin).await else { return String::new() };
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n");
        let mut answer = String::new();
        if tcp.write_all(request.as_bytes()).await.is_ok() {
            let _ = tcp.read_to_string(&mut answer).await;
        }
        answer
    }

    /// Ends the process as its supervisor would, and returns whether it ended well.
    async fn stop(&mut self) -> bool {
        let mut child = self.child.take().unwrap();
        let killed = Command::new("kill").arg(child.id().to_string()).stderr(Stdio::null()).status();
        assert!(killed.unwrap().success());
        tokio::task::spawn_blocking(move || child.wait().unwrap().success()).await.unwrap()
    }

    fn token(
        &self,
        file: &str,
        namespace: &str,
        account: &str,
        pod: Option<&str>,
        node: Option<&str>,
    ) -> TokenFile {
        let object = |name: &str| ObjectRef { name: name.to_owned(), uid: format!("uid-{name}") };
        let holder = KubernetesClaims {
            namespace: namespace.to_owned(),
            serviceaccount: object(account),
            pod: pod.map(object),
            node: node.map(object),
        };
        let token = self.issuer.issue(holder, "culvert.dev", Duration::from_secs(600)).unwrap();
        std::fs::write(self.path(file), token).unwrap();
        TokenFile::new(self.path(file))
    }

    fn node_proxy(&self, node: &str) -> TokenFile {
        self.token(
            &format!("token-{node}"),
            "culvert-system",
            "culvert-node-proxy",
            Some("proxy"),
            Some(node),
        )
    }

    async fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        bundle::watch_file(self.path("roots.pem"), DEADLINE).await.unwrap()
    }

    async fn channel(&self) -> Channel {
        let url = format!("https://{}", self.listen);
        grpc::channel(&url, CA.parse().unwrap(), self.bundle().await).unwrap()
    }

    async fn request(&self, token: TokenFile, identity: &str) -> Result<Issued, RequestError> {
        let client = CertificateClient::new(self.channel().await, token);
        client.request(&identity.parse().unwrap(), Duration::from_secs(600)).await
    }

    async fn refusal(&self, token: TokenFile, identity: &str) -> (Code, String) {
        match self.request(token, identity).await {
            Err(RequestError::Refused { code, message }) => (code, message),
            other => panic!("{other:?}\n{}", self.log()),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A byte each way over mutual TLS; whichever side fails first tells why.
async fn exchange(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> std::io::Result<(Identity, Identity)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await?;
        let mut tls = TlsAcceptor::from(server).accept(tcp).await?;
        let byte = tls.read_u8().await?;
        tls.write_u8(byte + 1).await?;
        Ok::<_, std::io::Error>(tls::peer(tls.get_ref().1).unwrap().identity)
    });
    let calling = async {
        let tcp = tokio::net::TcpStream::connect(address).await?;
        let mut tls = TlsConnector::from(client).connect(tls::no_server_name(), tcp).await?;
        let server = tls::peer(tls.get_ref().1).unwrap().identity;
        tls.write_u8(1).await?;
        assert_eq!(tls.read_u8().await?, 2);
        Ok::<_, std::io::Error>(server)
    };
    let (called, served) = tokio::join!(calling, serving);
    // A client learns of its refusal only after its side of the handshake.
    let client = served.unwrap()?;
    Ok((client, called?))
}

#[tokio::test]
async fn a_certificate_is_signed_and_used_on_both_sides() {
    let mut world = World::new().await;
    let before = SystemTime::now();
    let cart = world.request(world.node_proxy("one"), CART).await.unwrap();
    assert_eq!(cart.certificate.identity().uri(), CART);
    let lifetime = cart.certificate.not_after().duration_since(before).unwrap();
    assert!((598..=602).contains(&lifetime.as_secs()), "{lifetime:?}");
    world.pod("till-1", "till", "one");
    let till = world.request(world.node_proxy("one"), TILL).await.unwrap();

    let accepted = ["cluster.local".parse().unwrap()];
    let client = tls::client_config(&cart.certificate, &cart.roots).unwrap();
    let server = tls::server_config(&till.certificate, &till.roots, &accepted).unwrap();
    let (client_is, server_is) = exchange(client.clone(), server.clone()).await.unwrap();
    assert_eq!((client_is.uri(), server_is.uri()), (CART, TILL));

    let foreign =
        tls::server_config(&till.certificate, &till.roots, &["elsewhere".parse().unwrap()]).unwrap();
    let error = exchange(client, foreign).await.unwrap_err().to_string();
    assert!(error.contains("accepted trust domain"), "{error}");
    let anonymous = tls::grpc_client_config(&TILL.parse().unwrap(), &till.roots).unwrap();
    assert!(exchange(anonymous, server).await.is_err());

    let metrics = world.admin("/metrics").await;
    assert!(metrics.contains("culvert_ca_requests_total{result=\"granted\",reason=\"\"} 2"), "{metrics}");
    assert!(world.stop().await, "{}", world.log());
    let line = world.log().lines().find(|line| line.contains("certificate signed")).unwrap().to_owned();
    for part in
        [CART, cart.certificate.serial(), "\"caller_node\":\"one\"", "culvert-node-proxy", "\"audit\""]
    {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let world = World::new().await;
    let client = CertificateClient::new(world.channel().await, world.node_proxy("one"));
    let long = world.request(world.node_proxy("one"), CART).await.unwrap();
    let short = client.request(&CART.parse().unwrap(), Duration::from_secs(1)).await.unwrap();
    let lifetime = short.certificate.not_after().duration_since(SystemTime::now()).unwrap();
    assert!(lifetime <= Duration::from_secs(5), "clamped to the shortest: {lifetime:?}");
    let accepted = ["cluster.local".parse().unwrap()];
    let server = tls::server_config(&long.certificate, &long.roots, &accepted).unwrap();
    let config = tls::client_config(&short.certificate, &short.roots).unwrap();
    exchange(config.clone(), server.clone()).await.unwrap();
    tokio::time::sleep(lifetime + Duration::from_millis(1200)).await;
    let error = exchange(config, server).await.unwrap_err().to_string();
    assert!(error.contains("expired"), "{error}");
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_with_its_reason() {
    let world = World::new().await;
    let (code, message) = world.refusal(world.node_proxy("one"), TILL).await;
    assert!(code == Code::PermissionDenied && message.contains("NoPodOnNode"), "{message}");
    let (code, message) = world.refusal(world.node_proxy("three"), CART).await;
    assert!(code == Code::PermissionDenied && message.contains("CallerNodeUnknown"), "{message}");
    let workload = || world.token("token-cart", "shop", "cart", Some("cart-0"), Some("one"));
    let (_, message) = world.refusal(workload(), TILL).await;
    assert!(message.contains("NotANodeProxy"), "{message}");
    assert_eq!(world.request(workload(), CART).await.unwrap().certificate.identity().uri(), CART);
    let (_, message) = world.refusal(world.node_proxy("one"), "spiffe://elsewhere/ns/shop/sa/cart").await;
    assert!(message.contains("TrustDomain"), "{message}");

    std::fs::write(world.path("garbage"), "not.a.token").unwrap();
    let (code, message) = world.refusal(TokenFile::new(world.path("garbage")), CART).await;
    assert!(code == Code::Unauthenticated && message.contains("TokenInvalid"), "{message}");
    let stranger = Issuer::generate(ISSUER).unwrap();
    let claims = KubernetesClaims {
        namespace: "culvert-system".to_owned(),
        serviceaccount: ObjectRef { name: "culvert-node-proxy".to_owned(), uid: String::new() },
        pod: None,
        node: Some(ObjectRef { name: "one".to_owned(), uid: String::new() }),
    };
    let issue = |issuer: &Issuer, audience: &str| {
        let token = issuer.issue(claims.clone(), audience, Duration::from_secs(60)).unwrap();
        std::fs::write(world.path("foreign"), token).unwrap();
        TokenFile::new(world.path("foreign"))
    };
    assert_eq!(world.refusal(issue(&stranger, "culvert.dev"), CART).await.0, Code::Unauthenticated);
    let (_, message) = world.refusal(issue(&world.issuer, "istio-ca"), CART).await;
    assert!(message.contains("TokenAudience"), "{message}");
    let metrics = world.admin("/metrics").await;
    assert!(
        metrics.contains(r#"culvert_ca_requests_total{result="refused",reason="NoPodOnNode"} 1"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_request_is_checked_before_it_is_signed() {
    let world = World::new().await;
    let mut service = IstioCertificateServiceClient::new(world.channel().await);
    let csr = CertificateRequest::new(&CART.parse().unwrap()).unwrap().pem;
    let message = || IstioCertificateRequest { csr: csr.clone(), validity_duration: 60, metadata: None };
    let status = service.create_certificate(message()).await.unwrap_err();
    assert!(status.code() == Code::Unauthenticated && status.message().contains("NoToken"), "{status}");

    let mut without_csr = tonic::Request::new(IstioCertificateRequest { csr: String::new(), ..message() });
    world.node_proxy("one").authorize(&mut without_csr).unwrap();
    let status = service.create_certificate(without_csr).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("CsrInvalid"), "{status}");

    // Nothing asked for in the metadata: the caller gets its own identity, and the request names another.
    let mut own = tonic::Request::new(message());
    world.node_proxy("one").authorize(&mut own).unwrap();
    let status = service.create_certificate(own).await.unwrap_err();
    assert!(status.message().contains("CsrIdentity"), "{status}");
}

#[tokio::test]
async fn a_pod_that_comes_late_is_waited_for() {
    let world = World::new().await;
    let identity = "spiffe://cluster.local/ns/shop/sa/late";
    let (issued, ()) = tokio::join!(world.request(world.node_proxy("one"), identity), async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        world.pod("late-0", "late", "one");
    });
    assert_eq!(issued.unwrap().certificate.identity().uri(), identity);
}

#[tokio::test]
async fn the_root_is_replaced_under_running_clients() {
    let mut world = World::new().await;
    let client = CertificateClient::new(world.channel().await, world.node_proxy("one"));
    let identity: Identity = CART.parse().unwrap();
    let ask = || client.request(&identity, Duration::from_secs(600));
    let old = ask().await.unwrap();
    assert_eq!(rotate(&world.path("data")), Ok(()));
    let deadline = Instant::now() + DEADLINE;
    let new = loop {
        let issued = ask().await.unwrap();
        if issued.certificate.verify(&old.roots, SystemTime::now()).is_err() {
            break issued;
        }
        assert!(Instant::now() < deadline, "{}", world.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(new.roots.roots().len(), 2);
    let accepted = ["cluster.local".parse().unwrap()];
    for (one, two) in [(&old, &new), (&new, &old)] {
        let client = tls::client_config(&one.certificate, &new.roots).unwrap();
        let server = tls::server_config(&two.certificate, &new.roots, &accepted).unwrap();
        exchange(client, server).await.unwrap();
    }
    // New connections meet a serving certificate of the new root; a restart changes nothing.
    world.request(world.node_proxy("one"), CART).await.unwrap();
    assert!(world.stop().await, "{}", world.log());
    world.start().await;
    let again = world.request(world.node_proxy("one"), CART).await.unwrap();
    assert_eq!(again.roots, new.roots);
    assert!(again.certificate.verify(&old.roots, SystemTime::now()).is_err());
}

#[tokio::test]
async fn one_root_is_replaced_at_a_time() {
    let mut world = World::new().await;
    world.request(world.node_proxy("one"), CART).await.unwrap();
    // Nobody takes the new root up meanwhile.
    assert!(world.stop().await, "{}", world.log());
    assert_eq!(rotate(&world.path("data")), Ok(()));
    let refused = rotate(&world.path("data")).unwrap_err();
    assert!(refused.contains("being replaced already"), "{refused}");
}

/// `culvert-ca rotate-root`; what it said when it failed.
fn rotate(data: &Path) -> Result<(), String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-ca"));
    let output = command.args(["rotate-root", "--data-dir"]).arg(data).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
