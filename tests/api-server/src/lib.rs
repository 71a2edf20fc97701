//! A real Kubernetes API server for tests: etcd and kube-apiserver as processes on a loopback address of their own, RBAC on,
//! without kubelets or controllers. Everything is gone with the value.
//!
//! The programs are one binary that `tests/cluster/build` makes; the variable `CULVERT_KUBE` names another.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "for tests alone")]

mod pki;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, Config, discovery};
use serde::Deserialize as _;
use serde_json::Value;

/// For everything that a test waits for; the machine may be slow and busy.
pub const DEADLINE: Duration = Duration::from_secs(120);
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Range of Service addresses.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";

/// See the module.
pub struct ApiServer {
    binary: PathBuf,
    directory: tempfile::TempDir,
    address: Ipv4Addr,
    etcd: Option<Process>,
    server: Option<Process>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // A server without its etcd does not end when it is asked to.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn binary() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let built = root.join("target/cluster/bin/kubernetes");
    let path = std::env::var_os("CULVERT_KUBE").map_or(built, PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: the tests on a real API server need it; tests/cluster/build makes it, and CULVERT_KUBE may name another",
        path.display()
    );
    path
}

impl ApiServer {
    /// Starts etcd and the API server, and waits until it is ready.
    pub async fn start() -> Self {
        let binary = binary();
        // Of its own: a port that was free a moment ago may be another test's by now.
        let address = Ipv4Addr::from(0x7f02_0000 + rand::random_range(0..0x00fd_0000_u32));
        let directory = tempfile::tempdir().unwrap();
        pki::write(directory.path(), address);
        let mut server = Self { binary, directory, address, etcd: None, server: None };
        let url = |port| format!("http://{address}:{port}");
        let data = server.path("etcd");
        server.etcd = Some(server.spawn(
            "etcd",
            &[
                format!("--data-dir={}", data.display()),
                "--unsafe-no-fsync".to_owned(),
                format!("--listen-client-urls={}", url(2379)),
                format!("--advertise-client-urls={}", url(2379)),
                format!("--listen-peer-urls={}", url(2380)),
                format!("--initial-advertise-peer-urls={}", url(2380)),
                format!("--initial-cluster=default={}", url(2380)),
                "--log-level=warn".to_owned(),
            ],
        ));
        server.resume().await;
        server
    }

    /// Ends the API server; etcd stays.
    pub fn pause(&mut self) {
        self.server = None;
    }

    /// Starts the API server again, and waits until it is ready.
    pub async fn resume(&mut self) {
        let at = |name: &str| self.path(name).display().to_string();
        let arguments = [
            format!("--etcd-servers=http://{}:2379", self.address),
            // An address of the loopback network is refused here; nothing connects to it.
            "--advertise-address=10.123.0.1".to_owned(),
            format!("--bind-address={}", self.address),
            "--secure-port=6443".to_owned(),
            format!("--tls-cert-file={}", at("apiserver.crt")),
            format!("--tls-private-key-file={}", at("apiserver.key")),
            format!("--client-ca-file={}", at("ca.crt")),
            format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            format!("--service-account-issuer={ISSUER}"),
            format!("--service-account-signing-key-file={}", at("sa.key")),
            format!("--service-account-key-file={}", at("sa.pub")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--profiling=false".to_owned(),
        ];
        self.server = Some(self.spawn("kube-apiserver", &arguments));
        let client = self.client().await;
        let ready = || async {
            client
                .request_text(http::Request::get("/readyz").body(Vec::new()).unwrap())
                .await
                .is_ok_and(|text| text == "ok")
        };
        let deadline = Instant::now() + DEADLINE;
        while !ready().await {
            assert!(Instant::now() < deadline, "the API server does not become ready:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn spawn(&self, program: &str, arguments: &[String]) -> Process {
        let log =
            std::fs::File::options().create(true).append(true).open(self.path(&format!("{program}.log")));
        let log = log.unwrap();
        let child = Command::new(&self.binary)
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Process(child.unwrap_or_else(|error| panic!("{}: {error}", self.binary.display())))
    }

    /// A file of this server's directory, which goes with it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The end of what the API server has logged.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.path("kube-apiserver.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// A client that may do everything.
    pub async fn client(&self) -> Client {
        client(&self.path("admin.conf")).await
    }

    /// A kubeconfig that may do everything.
    pub fn admin(&self) -> PathBuf {
        self.path("admin.conf")
    }

    /// A kubeconfig for a service account, which is made if it is missing. It may do what RBAC allows it.
    pub async fn kubeconfig(&self, namespace: &str, service_account: &str) -> PathBuf {
        let token = self.token(namespace, service_account, &[], None).await;
        let path = self.path(&format!("{namespace}-{service_account}.conf"));
        std::fs::write(&path, pki::kubeconfig(self.directory.path(), self.address, &pki::User::Token(token)))
            .unwrap();
        path
    }

    /// A token of a service account, which is made if it is missing; bound to a pod (name and uid) as those that the kubelet
    /// mounts.
    pub async fn token(
        &self,
        namespace: &str,
        service_account: &str,
        audiences: &[&str],
        pod: Option<(&str, &str)>,
    ) -> String {
        let client = self.client().await;
        self.apply(&format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {service_account}, namespace: {namespace}}}\n"
        ))
        .await;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace);
        let bound = pod.map(|(name, uid)| BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
        });
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: audiences.iter().map(|audience| (*audience).to_owned()).collect(),
                bound_object_ref: bound,
                expiration_seconds: Some(3600),
            },
            ..TokenRequest::default()
        };
        let answer = accounts.create_token_request(service_account, &PostParams::default(), &request).await;
        answer.unwrap().status.unwrap().token
    }

    /// Server-side apply of manifests, as the owner of every field. Namespaces that do not exist are made.
    pub async fn apply(&self, manifests: &str) {
        let client = self.client().await;
        for document in serde_yaml_ng::Deserializer::from_str(manifests) {
            let value = Value::deserialize(document).unwrap();
            if !value.is_null() {
                let object: DynamicObject = serde_json::from_value(value).unwrap();
                let api = self.api(&client, &object).await;
                let name = object.metadata.name.clone().unwrap();
                let params = PatchParams::apply("test").force();
                let applied = api.patch(&name, &params, &Patch::Apply(&object)).await;
                if let Err(error) = applied {
                    panic!("{name}: {error}");
                }
            }
        }
    }

    async fn api(&self, client: &Client, object: &DynamicObject) -> Api<DynamicObject> {
        let types = object.types.clone().unwrap();
        let (group, version) = types.api_version.rsplit_once('/').unwrap_or(("", &types.api_version));
        let kind = GroupVersionKind::gvk(group, version, &types.kind);
        let deadline = Instant::now() + DEADLINE;
        let (resource, capabilities) = loop {
            match discovery::pinned_kind(client, &kind).await {
                Ok(found) => break found,
                // A CRD that was applied a moment ago.
                Err(error) => assert!(Instant::now() < deadline, "{kind:?}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        if capabilities.scope == discovery::Scope::Cluster {
            return Api::all_with(client.clone(), &resource);
        }
        let namespace = object.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
        if namespaces.get_opt(&namespace).await.unwrap().is_none() {
            let made = serde_json::from_value(serde_json::json!({"metadata": {"name": namespace}})).unwrap();
            // Another test of the process may be quicker.
            let _ = namespaces.create(&PostParams::default(), &made).await;
        }
        Api::namespaced_with(client.clone(), &namespace, &resource)
    }

    /// One object as the API server has it now; None if there is none.
    pub async fn get(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let api = self.named(api_version, kind, namespace).await;
        api.get_opt(name).await.unwrap().map(|object| serde_json::to_value(object).unwrap())
    }

    /// Deletes an object without grace period.
    pub async fn delete(&self, api_version: &str, kind: &str, namespace: &str, name: &str) {
        let api = self.named(api_version, kind, namespace).await;
        let params = kube::api::DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
        let _ = api.delete(name, &params).await.unwrap();
    }

    /// Replaces the status of an object by what a merge patch says.
    pub async fn set_status(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
        status: Value,
    ) {
        let api = self.named(api_version, kind, namespace).await;
        let patch = Patch::Merge(serde_json::json!({"status": status}));
        api.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// The objects of a kind, in a namespace (empty for cluster-scoped kinds).
    pub async fn named(&self, api_version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
        let client = self.client().await;
        let object: DynamicObject = serde_json::from_value(serde_json::json!({
            "apiVersion": api_version, "kind": kind, "metadata": {"namespace": namespace, "name": "any"}}))
        .unwrap();
        self.api(&client, &object).await
    }

    /// Installs the CRDs of the Gateway API: `version` as `v1.6.1`, `channel` `standard` or `experimental`.
    pub async fn install_gateway_api(&self, version: &str, channel: &str) {
        let directory = gateway_api(version).join("config/crd").join(channel);
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            // The policy that guards against mixing bundles is of no use to a test that replaces them.
            if text.contains("kind: CustomResourceDefinition") {
                self.apply(&text).await;
            }
        }
    }

    /// Installs Culvert's own CRDs.
    pub async fn install_culvert(&self) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let text =
            std::fs::read_to_string(root.join("deploy/helm/culvert/files/crds/meshconfigs.yaml")).unwrap();
        self.apply(&text).await;
    }
}

/// The directory of a version of the Gateway API's Go module; the `go` tool fetches it.
pub fn gateway_api(version: &str) -> PathBuf {
    let module = format!("sigs.k8s.io/gateway-api@{version}");
    let elsewhere = tempfile::tempdir().unwrap();
    let output =
        Command::new("go").args(["mod", "download", "-json", &module]).current_dir(elsewhere.path()).output();
    let output =
        output.unwrap_or_else(|error| panic!("the go tool fetches {module}, and does not run: {error}"));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let found = answer["Dir"].as_str();
    let problem = String::from_utf8_lossy(&output.stderr);
    PathBuf::from(found.unwrap_or_else(|| panic!("{module} cannot be fetched: {}{problem}", answer["Error"])))
}

/// A client by a kubeconfig.
pub async fn client(kubeconfig: &Path) -> Client {
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// Waits for a condition to come true, long enough for a slow and busy machine.
pub async fn until<F: Future<Output = Result<(), String>>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match holds().await {
            Ok(()) => return,
            Err(seen) => assert!(Instant::now() < deadline, "{what}: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
