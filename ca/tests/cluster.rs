//! Two replicas of the real program on a real API server, with no more rights than the chart gives them: one root for
//! both, made once, replaced while they run; identities only for pods of the caller's node.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy takes helpers of integration tests for code outside tests"
)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_api_server::{ApiServer, until};
use culvert_identity::certificate_client::{CertificateClient, Issued, RequestError};
use culvert_identity::grpc::{self, TokenFile};
use culvert_identity::{Identity, TrustBundle};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const TILL: &str = "spiffe://cluster.local/ns/shop/sa/till";
const PROXY: &str = "spiffe://cluster.local/ns/culvert-system/sa/culvert-node-proxy";
const CA: &str = "spiffe://cluster.local/ns/culvert-system/sa/culvert-ca";
const HOUR: Duration = Duration::from_secs(3600);

struct Replica {
    child: Child,
    listen: SocketAddr,
    admin: SocketAddr,
    log: PathBuf,
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Replica {
    async fn spawn(server: &ApiServer, name: &str, extra: &[&str]) -> Self {
        let kubeconfig = server.kubeconfig("culvert-system", "culvert-ca").await;
        let address = std::net::Ipv4Addr::from(0x7f01_0000 + rand::random_range(0..0x00fe_0000_u32));
        let (listen, admin) = (SocketAddr::from((address, 15012)), SocketAddr::from((address, 15000)));
        let log = server.path(&format!("{name}.log"));
        let child = Command::new(env!("CARGO_BIN_EXE_culvert-ca"))
            .arg("run")
            .args(["--kubeconfig".as_ref(), kubeconfig.as_os_str()])
            .args(["--listen", &listen.to_string(), "--admin", &admin.to_string()])
            .args(["--root-overlap", "30s", "--max-lifetime", "1h"])
            .args(extra)
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, listen, admin, log }
    }

    async fn ready(&self) {
        until("the authority is ready", || async {
            let answer = self.get("/healthz/ready").await;
            if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer + &self.log()) }
        })
        .await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    async fn get(&self, path: &str) -> String {
        let Ok(mut tcp) = tokio::net::TcpStream::connect(self.admin).await else { return String::new() };
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n");
        let mut answer = String::new();
        if tcp.write_all(request.as_bytes()).await.is_ok() {
            let _ = tcp.read_to_string(&mut answer).await;
        }
        answer
    }

    async fn request(
        &self,
        roots: &TrustBundle,
        token: &Path,
        identity: &str,
    ) -> Result<Issued, RequestError> {
        let (_sender, roots) = watch::channel(Arc::new(roots.clone()));
        let channel = grpc::channel(&format!("https://{}", self.listen), CA.parse().unwrap(), roots).unwrap();
        let identity: Identity = identity.parse().unwrap();
        CertificateClient::new(channel, TokenFile::new(token)).request(&identity, HOUR).await
    }
}

async fn prepare(server: &ApiServer) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    server
        .apply(&std::fs::read_to_string(root.join("deploy/helm/culvert/files/rbac/ca.yaml")).unwrap())
        .await;
    let pod = |namespace: &str, name: &str, account: &str, node: &str| {
        format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: {namespace}}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{nodeName: {node}, serviceAccountName: {account}, containers: [{{name: c, image: i}}]}}\n---\n"
        )
    };
    let nodes =
        ["one", "two"].map(|node| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\n---\n"));
    let pods = pod("culvert-system", "proxy-one", "culvert-node-proxy", "one")
        + &pod("shop", "cart", "cart", "one")
        + &pod("shop", "till", "till", "two");
    server.apply(&(nodes.concat() + &pods)).await;
}

/// A file with the token that the kubelet would mount in a pod.
async fn token(server: &ApiServer, namespace: &str, account: &str, pod: &str) -> PathBuf {
    let object = server.get("v1", "Pod", namespace, pod).await.unwrap();
    let uid = object["metadata"]["uid"].as_str().unwrap();
    let token = server.token(namespace, account, &["culvert.dev"], Some((pod, uid))).await;
    let path = server.path(&format!("token-{pod}"));
    std::fs::write(&path, token).unwrap();
    path
}

async fn bundle(server: &ApiServer) -> Option<TrustBundle> {
    let map: Value = server.get("v1", "ConfigMap", "culvert-system", "culvert-trust-bundle").await?;
    TrustBundle::from_pem(map["data"]["roots.pem"].as_str()?.as_bytes()).ok()
}

fn denied(result: Result<Issued, RequestError>, word: &str) {
    let error = result.map(|issued| issued.certificate.identity().to_string()).unwrap_err().to_string();
    assert!(error.contains(word), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_a_root_sign_for_the_pods_of_a_node_and_replace_it() {
    let mut server = ApiServer::start().await;
    prepare(&server).await;
    // Both at once: one root.
    let (a, b) = (Replica::spawn(&server, "a", &[]).await, Replica::spawn(&server, "b", &[]).await);
    a.ready().await;
    b.ready().await;
    let old = bundle(&server).await.unwrap();
    assert_eq!(old.roots().len(), 1);
    let proxy = token(&server, "culvert-system", "culvert-node-proxy", "proxy-one").await;
    let till = token(&server, "shop", "till", "till").await;
    for replica in [&a, &b] {
        let issued = replica.request(&old, &proxy, CART).await.unwrap();
        assert_eq!(issued.roots, old);
        // Of the node, and no other's; the token's own.
        denied(replica.request(&old, &proxy, TILL).await, "NoPodOnNode");
        denied(replica.request(&old, &till, CART).await, "NotANodeProxy");
        replica.request(&old, &till, TILL).await.unwrap();
        replica.request(&old, &proxy, PROXY).await.unwrap();
    }
    let other = server.path("other");
    std::fs::write(&other, server.token("shop", "cart", &["istio-ca"], None).await).unwrap();
    denied(a.request(&old, &other, CART).await, "TokenAudience");

    // Replaced while both run: both are in force before the new one signs, and after.
    let rotate = || {
        Command::new(env!("CARGO_BIN_EXE_culvert-ca"))
            .arg("rotate-root")
            .arg("--kubeconfig")
            .arg(server.admin())
            .output()
    };
    let rotated = rotate().unwrap();
    assert!(rotated.status.success(), "{rotated:?}");
    let again = rotate().unwrap();
    assert!(
        !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("replaced already"),
        "{again:?}"
    );
    until("both roots are published", || async {
        match bundle(&server).await {
            Some(bundle) if bundle.roots().len() == 2 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let both = bundle(&server).await.unwrap();
    let new = TrustBundle::from_der(
        both.roots().iter().filter(|root| !old.roots().contains(root)).cloned().collect(),
    );
    let new = new.unwrap();
    for replica in [&a, &b] {
        until("the new root signs", || async {
            let issued = replica.request(&both, &proxy, CART).await.map_err(|error| error.to_string())?;
            if issued.roots != both {
                return Err("it has not taken up both yet".to_owned());
            }
            let certificate = issued.certificate;
            certificate.verify(&new, SystemTime::now()).map_err(|error| error.to_string())
        })
        .await;
        // Its own certificate too: who trusts only the new root can ask.
        until("the serving certificate is renewed", || async {
            replica.request(&new, &proxy, CART).await.map(|_| ()).map_err(|error| error.to_string())
        })
        .await;
    }

    // Without the API server signing goes on, for those whose tokens it knows.
    let proxy = token(&server, "culvert-system", "culvert-node-proxy", "proxy-one").await;
    a.request(&both, &proxy, CART).await.unwrap();
    server.pause();
    a.request(&both, &proxy, CART).await.unwrap();
    server.resume().await;

    // A pod that comes later; a Secret that is deleted is put back as it was.
    denied(a.request(&both, &proxy, TILL).await, "NoPodOnNode");
    server
        .apply(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: till-one, namespace: shop}\n\
             spec: {nodeName: one, serviceAccountName: till, containers: [{name: c, image: i}]}\n",
        )
        .await;
    until("the new pod is known", || async {
        a.request(&both, &proxy, TILL).await.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
    server.delete("v1", "Secret", "culvert-system", "culvert-ca").await;
    until("the Secret is put back", || async {
        server.get("v1", "Secret", "culvert-system", "culvert-ca").await.map(|_| ()).ok_or_else(String::new)
    })
    .await;
    let c = Replica::spawn(&server, "c", &[]).await;
    c.ready().await;
    assert_eq!(c.request(&both, &proxy, CART).await.unwrap().roots, both);
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    key: String,
}

fn authority(name: &str, above: Option<&Authority>) -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = match above {
        None => params.self_signed(&key),
        Some(above) => params.signed_by(&key, &above.issuer),
    };
    Authority { pem: certificate.unwrap().pem(), key: key.serialize_pem(), issuer: Issuer::new(params, key) }
}

/// As the kubelet replaces a mounted Secret: all files at once.
fn provide(directory: &Path, version: &str, made: &Authority, root: &Authority) {
    let at = directory.join(version);
    std::fs::create_dir(&at).unwrap();
    for (name, text) in [("tls.crt", &made.pem), ("tls.key", &made.key), ("ca.crt", &root.pem)] {
        std::fs::write(at.join(name), text).unwrap();
    }
    let (link, new) = (directory.join("current"), directory.join("new"));
    std::os::unix::fs::symlink(&at, &new).unwrap();
    std::fs::rename(new, link).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provided_intermediate_signs_is_renewed_and_gives_way_to_one_of_another_root() {
    let server = ApiServer::start().await;
    prepare(&server).await;
    let directory = server.path("provided");
    std::fs::create_dir(&directory).unwrap();
    let root = authority("root", None);
    let first = authority("first", Some(&root));
    let current = directory.join("current");
    let replica = Replica::spawn(&server, "a", &["--provided", current.to_str().unwrap()]).await;
    // Not there yet: it says so and waits.
    until("it waits", || async {
        let answer = replica.get("/healthz/ready").await;
        if answer.contains("tls.crt") { Ok(()) } else { Err(answer + &replica.log()) }
    })
    .await;
    provide(&directory, "1", &first, &root);
    replica.ready().await;
    let proxy = token(&server, "culvert-system", "culvert-node-proxy", "proxy-one").await;
    let trusted = TrustBundle::from_pem(root.pem.as_bytes()).unwrap();
    assert_eq!(bundle(&server).await.unwrap(), trusted, "the root, not the intermediate");
    let issued = replica.request(&trusted, &proxy, CART).await.unwrap();
    assert_eq!(issued.certificate.chain().len(), 2, "with the intermediate");

    // A new intermediate of the same root signs without a wait.
    let second = authority("second", Some(&root));
    provide(&directory, "2", &second, &root);
    let signer = TrustBundle::from_pem(second.pem.as_bytes()).unwrap();
    until("the renewed intermediate signs", || async {
        let issued = replica.request(&trusted, &proxy, CART).await.map_err(|error| error.to_string())?;
        if signer.roots().contains(&issued.certificate.chain()[1]) {
            Ok(())
        } else {
            Err("the first".to_owned())
        }
    })
    .await;

    // One that cannot sign is refused, and what was in force stays.
    let stranger = authority("stranger", None);
    provide(&directory, "3", &second, &stranger);
    until("the fault is logged", || async {
        if replica.log().contains("lead to a root") { Ok(()) } else { Err(replica.log()) }
    })
    .await;
    replica.request(&trusted, &proxy, CART).await.unwrap();

    // Another root: published beside the old one before it signs.
    let third = authority("third", Some(&stranger));
    provide(&directory, "4", &third, &stranger);
    until("both roots are published", || async {
        match bundle(&server).await {
            Some(bundle) if bundle.roots().len() == 2 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let next = TrustBundle::from_pem(stranger.pem.as_bytes()).unwrap();
    until("the other root signs", || async {
        let issued = replica.request(&next, &proxy, CART).await.map_err(|error| error.to_string())?;
        if issued.roots.roots().len() == 2 { Ok(()) } else { Err(format!("{:?}", issued.roots)) }
    })
    .await;
}
