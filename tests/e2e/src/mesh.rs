//! One sandbox.

use crate::command::{Done, binary, run, run_with_input};
use crate::manifests::{Labelled, Shop};
use crate::metrics::Metrics;
use crate::recording::Recording;
use crate::session::Session;
use crate::wait::{SOON, eventually};
use culvert_api::names::{ADMIN_PORT, ENROLLED_CONDITION};
use culvert_cli::explain::facts::Facts;
use culvert_cli::sandbox::cluster::Cluster;
use culvert_cli::sandbox::files::Files;
use serde_json::Value;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use tempfile::TempDir;

const UP: Duration = Duration::from_secs(60);
/// Most calls take milliseconds; those that carry traffic for a while say so.
const CALL: Duration = Duration::from_secs(60);
const NODES: u8 = 2;

/// A running sandbox of two nodes.
pub struct Mesh {
    name: String,
    files: TempDir,
    cluster: Cluster,
    /// Ends the sandbox when this process does, however it does.
    _reaper: Child,
}

/// A pod as its status says.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub node: String,
    pub addresses: Vec<IpAddr>,
}

impl Pod {
    /// `IP:PORT` of the first address of the wanted family.
    ///
    /// # Panics
    /// Without such an address.
    pub fn at(&self, port: u16) -> String {
        format!("{}:{port}", self.v4())
    }

    pub fn v4(&self) -> IpAddr {
        *self.addresses.iter().find(|address| address.is_ipv4()).expect("an IPv4 address")
    }

    pub fn v6(&self) -> IpAddr {
        *self.addresses.iter().find(|address| address.is_ipv6()).expect("an IPv6 address")
    }

    pub fn at_v6(&self, port: u16) -> String {
        format!("[{}]:{port}", self.v6())
    }
}

impl Mesh {
    /// Brings up two nodes with these manifests and waits until every pod is ready.
    ///
    /// # Panics
    /// When that fails.
    pub fn up(area: &str, manifests: &str) -> Self {
        Self::up_with(area, manifests, &[])
    }

    /// As [`Mesh::up`], with more arguments for `sandbox up`.
    ///
    /// # Panics
    /// When that fails.
    pub fn up_with(area: &str, manifests: &str, arguments: &[&str]) -> Self {
        let name = format!("e2e-{area}-{:08x}", rand::random::<u32>());
        let files = tempfile::tempdir().expect("a directory for manifests");
        let mesh = Self { cluster: Cluster::new(&name, NODES), _reaper: reaper(&name), files, name };
        let file = mesh.write("up.yaml", manifests);
        let nodes = NODES.to_string();
        let mut words = vec!["up", "--detach", "--nodes", &nodes, "-f", &file];
        words.extend(arguments);
        mesh.sandbox_within(&words, UP).ok();
        mesh
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Where files for this sandbox can be put.
    pub fn files(&self) -> &Path {
        self.files.path()
    }

    /// Writes a file and gives its path.
    ///
    /// # Panics
    /// When that fails.
    pub fn write(&self, name: &str, content: &str) -> String {
        let path = self.files.path().join(name);
        std::fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path.display().to_string()
    }

    /// `culvert sandbox VERB --name NAME ARGUMENTS`.
    #[track_caller]
    pub fn sandbox(&self, arguments: &[&str]) -> Done {
        self.sandbox_within(arguments, CALL)
    }

    #[track_caller]
    pub fn sandbox_within(&self, arguments: &[&str], patience: Duration) -> Done {
        run(self.command(arguments), patience)
    }

    /// As [`Mesh::sandbox`], not run yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("culvert"));
        command.arg("sandbox").arg(arguments[0]).args(["--name", &self.name]).args(&arguments[1..]);
        command
    }

    #[track_caller]
    pub fn apply(&self, manifests: &str) {
        self.apply_any(manifests).ok();
    }

    /// Apply that may fail.
    #[track_caller]
    pub fn apply_any(&self, manifests: &str) -> Done {
        let file = self.write(&format!("apply-{:08x}.yaml", rand::random::<u32>()), manifests);
        self.sandbox(&["apply", "-f", &file])
    }

    #[track_caller]
    pub fn delete(&self, manifests: &str) {
        let file = self.write(&format!("delete-{:08x}.yaml", rand::random::<u32>()), manifests);
        self.sandbox(&["delete", "-f", &file]).ok();
    }

    /// Applies a shop and waits until its pods are ready and, if labelled, enrolled, and the client reaches the server.
    #[track_caller]
    pub fn open(&self, shop: &Shop, namespace: &str) -> (Pod, Pod) {
        self.apply(&shop.yaml());
        self.settled(namespace);
        let (client, server) = (self.pod(namespace, "client"), self.pod(namespace, "server"));
        // Readiness reaches the client's node a moment after it is written.
        self.reaches(&client, "server:9000");
        (client, server)
    }

    /// A labelled shop with the servers `v1` and `v2` beside `server`, each of which its client reaches.
    #[track_caller]
    pub fn open_versions(&self, namespace: &str) -> (Shop, Pod) {
        let shop = Shop::new(namespace, Labelled::Yes);
        self.apply(&shop.with_versions(&["v1", "v2"]));
        self.settled(namespace);
        let client = self.pod(namespace, "client");
        for server in ["server", "v1", "v2"] {
            self.reaches(&client, &format!("{server}:9000"));
        }
        (shop, client)
    }

    /// Waits until a TCP echo answers.
    #[track_caller]
    pub fn reaches(&self, client: &Pod, target: &str) {
        self.succeeds(client, &["tcp", "send", target, "--timeout", "3000"]);
    }

    /// Waits until a UDP echo answers: kube-proxy follows the endpoints in its own time.
    #[track_caller]
    pub fn datagrams_reach(&self, client: &Pod, target: &str) {
        self.succeeds(client, &["udp", target, "--data", "datagram"]);
    }

    /// A name that is new may not be found yet: then there is no report.
    #[track_caller]
    fn succeeds(&self, client: &Pod, arguments: &[&str]) {
        let echo = echo_path();
        eventually(&format!("{} succeeds with {arguments:?}", client.name), SOON, || {
            let done = self.exec(client, &[&[echo.as_str()], arguments].concat());
            match serde_json::from_str::<Value>(&done.stdout) {
                Ok(report) if report["ok"] == true => Ok(()),
                _ => Err(done.said()),
            }
        });
    }

    /// Waits until every pod of the namespace is ready and as enrolled as its labels say.
    #[track_caller]
    pub fn settled(&self, namespace: &str) {
        eventually(&format!("pods of {namespace} are ready"), SOON, || {
            let labelled = self.get("namespace", None, Some(namespace))["metadata"]["labels"]["culvert.dev/mesh"]
                == "enabled";
            let pods = self.items("pods", namespace);
            let bad = pods.iter().find(|pod| {
                !has_condition(pod, "Ready", "True")
                    || has_condition(pod, ENROLLED_CONDITION, "True") != labelled
                    || !pod["metadata"]["deletionTimestamp"].is_null()
            });
            match bad {
                None if pods.is_empty() => Err("there are none".to_owned()),
                None => Ok(()),
                Some(pod) => Err(format!("{}: {}", pod["metadata"]["name"], pod["status"])),
            }
        });
    }

    /// One object.
    #[track_caller]
    pub fn get(&self, kind: &str, namespace: Option<&str>, name: Option<&str>) -> Value {
        let mut words = vec!["get", kind];
        words.extend(name);
        if let Some(namespace) = namespace {
            words.extend(["-n", namespace]);
        }
        words.extend(["-o", "json"]);
        self.sandbox(&words).ok().json()
    }

    /// The objects of a kind in a namespace.
    #[track_caller]
    pub fn items(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let list = self.get(kind, Some(namespace), None);
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// All running pods with the label `app=APP`.
    #[track_caller]
    pub fn pods(&self, namespace: &str, app: &str) -> Vec<Pod> {
        let pods = self.items("pods", namespace);
        let of_app = pods.iter().filter(|pod| {
            pod["metadata"]["labels"]["app"] == app && pod["metadata"]["deletionTimestamp"].is_null()
        });
        of_app.map(pod).collect()
    }

    /// The first of them.
    #[track_caller]
    pub fn pod(&self, namespace: &str, app: &str) -> Pod {
        eventually(&format!("a pod of {namespace}/{app}"), SOON, || {
            self.pods(namespace, app).into_iter().find(|pod| !pod.addresses.is_empty()).ok_or("none")
        })
    }

    /// Runs a command in a pod.
    #[track_caller]
    pub fn exec(&self, pod: &Pod, command: &[&str]) -> Done {
        self.exec_with_input(pod, command, "")
    }

    #[track_caller]
    pub fn exec_with_input(&self, pod: &Pod, command: &[&str], input: &str) -> Done {
        let words = [&["exec", "-n", &pod.namespace, &pod.name, "--"], command].concat();
        run_with_input(self.command(&words), input, Duration::from_secs(120))
    }

    /// Runs the traffic client in a pod; its JSON, whatever its exit code.
    #[track_caller]
    pub fn echo(&self, pod: &Pod, arguments: &[&str]) -> Value {
        let echo = echo_path();
        self.exec(pod, &[&[echo.as_str()], arguments].concat()).json()
    }

    /// Starts the traffic client in a pod, to be talked to.
    pub fn echo_session(&self, pod: &Pod, arguments: &[&str]) -> Session {
        let echo = echo_path();
        let words = [&["exec", "-n", &pod.namespace, &pod.name, "--", echo.as_str()], arguments].concat();
        Session::start(self.command(&words))
    }

    /// What there is at this moment, to ask any number of questions about it.
    ///
    /// # Panics
    /// When the sandbox does not answer.
    #[track_caller]
    pub fn facts(&self) -> Facts {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let facts = runtime.block_on(Box::pin(culvert_cli::explain::of_sandbox(&self.name)));
        facts.unwrap_or_else(|error| panic!("{}: {error:#}", self.name))
    }

    /// Runs the traffic client in a node's namespace.
    #[track_caller]
    pub fn node_echo(&self, node: &str, arguments: &[&str]) -> Done {
        let echo = echo_path();
        self.sandbox(&[&["exec", "--node", node, "--", echo.as_str()], arguments].concat())
    }

    /// Runs a command in a node's namespace.
    #[track_caller]
    pub fn node_exec(&self, node: &str, command: &[&str]) -> Done {
        self.sandbox(&[&["exec", "--node", node, "--"], command].concat())
    }

    /// A page of a node proxy's admin.
    #[track_caller]
    pub fn admin(&self, node: &str, path: &str) -> String {
        let address = self.cluster.node(node).expect("a node").address.v4;
        let url = format!("http://{address}:{ADMIN_PORT}{path}");
        self.node_echo(node, &["fetch", &url]).stdout
    }

    #[track_caller]
    pub fn metrics(&self, node: &str) -> Metrics {
        Metrics::parse(&self.admin(node, "/metrics"))
    }

    /// What is in force at a node proxy.
    #[track_caller]
    pub fn config(&self, node: &str) -> Value {
        let text = self.admin(node, "/config");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("/config of {node}: {error}\n{text}"))
    }

    /// Waits until a node proxy says that it is ready.
    #[track_caller]
    pub fn node_ready(&self, node: &str) {
        let address = self.cluster.node(node).expect("a node").address.v4;
        let url = format!("http://{address}:{ADMIN_PORT}/healthz/ready");
        eventually(&format!("{node} is ready"), SOON, || {
            let asked = self.node_echo(node, &["fetch", &url]);
            if asked.code == 0 { Ok(()) } else { Err(asked.said()) }
        });
    }

    /// The CA's roots and keys, as a file that `hbone` reads.
    #[track_caller]
    pub fn authority(&self) -> String {
        let path = Files.ca_data().join("authority.json").display().to_string();
        let text = self.node_exec("control-plane", &["cat", &path]).ok().stdout;
        self.write("authority.json", &text)
    }

    /// Opens a tunnel from a pod with a certificate made to order; `hbone client`'s one line.
    #[track_caller]
    pub fn hbone(&self, pod: &Pod, identity: &str, arguments: &[&str]) -> Value {
        let (hbone, authority) = (binary("hbone").display().to_string(), self.authority());
        let fixed = [hbone.as_str(), "client", "--authority", &authority, "--identity", identity];
        self.exec(pod, &[&fixed[..], arguments].concat()).json()
    }

    /// A stock far end of tunnels in a pod, with a valid certificate of that identity.
    #[track_caller]
    pub fn hbone_server(&self, pod: &Pod, identity: &str, arguments: &[&str]) -> Session {
        let (hbone, authority) = (binary("hbone").display().to_string(), self.authority());
        let fixed = [
            "exec",
            "-n",
            &pod.namespace,
            &pod.name,
            "--",
            hbone.as_str(),
            "server",
            "--authority",
            &authority,
        ];
        let words = [&fixed[..], &["--identity", identity], arguments].concat();
        let session = Session::start(self.command(&words));
        assert_eq!(session.next(Duration::from_secs(10))["event"], "listening");
        session
    }

    /// What `status` knows of a component.
    #[track_caller]
    pub fn component_state(&self, name: &str) -> Value {
        let status = self.sandbox(&["status", "-o", "json"]).ok().json();
        let all = status["components"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name}: {status}"))
    }

    /// Process number of a component, inside the sandbox.
    #[track_caller]
    pub fn pid_of(&self, name: &str) -> u64 {
        eventually(&format!("{name} runs"), SOON, || {
            let state = self.component_state(name);
            state["pid"].as_u64().ok_or_else(|| state.to_string())
        })
    }

    /// `component ACTION NAME`.
    #[track_caller]
    pub fn component(&self, action: &str, name: &str) {
        self.sandbox(&["component", action, name]).ok();
    }

    /// Log of a component or pod.
    #[track_caller]
    pub fn logs(&self, of: &str) -> String {
        self.sandbox(&["logs", of]).ok().stdout
    }

    /// Records what is on a node's link to the others.
    pub fn record(&self, node: &str) -> Recording {
        self.record_in(&["--node", node, "--"])
    }

    /// Records what is on a pod's own interface.
    pub fn record_pod(&self, pod: &Pod) -> Recording {
        self.record_in(&["-n", &pod.namespace, &pod.name, "--"])
    }

    /// Waits for an access log line of a node proxy that has all of these words.
    #[track_caller]
    pub fn access_log(&self, node: &str, words: &[&str]) -> Value {
        self.access_log_of_one(&[node], words)
    }

    /// As [`Mesh::access_log`], where either of several node proxies may be the first to notice.
    #[track_caller]
    pub fn access_log_of_one(&self, nodes: &[&str], words: &[&str]) -> Value {
        eventually(&format!("one of {nodes:?} logs {words:?}"), SOON, || {
            let line = nodes.iter().find_map(|node| {
                let log = self.logs(&format!("node-proxy/{node}"));
                let line = log.lines().rfind(|line| words.iter().all(|word| line.contains(word)));
                line.and_then(|line| serde_json::from_str(line).ok())
            });
            line.ok_or("no such line")
        })
    }

    fn record_in(&self, place: &[&str]) -> Recording {
        let path = self.files.path().join(format!("capture-{:08x}.pcap", rand::random::<u32>()));
        let culvert = binary("culvert").display().to_string();
        let target = path.display().to_string();
        let capture = [culvert.as_str(), "capture", "--interface", "eth0", "--write", &target];
        let words = [&["exec"], place, &capture].concat();
        Recording::start(Session::start(self.command(&words)), path)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let mut down = self.command(&["down"]);
        // The reaper tries again.
        let _ = down.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// A sandbox shared by the tests of one file.
pub struct Shared {
    mesh: OnceLock<Mesh>,
    lock: RwLock<()>,
    area: &'static str,
    arguments: &'static [&'static str],
}

/// The sandbox for one test alone.
pub struct Exclusive<'a> {
    mesh: &'a Mesh,
    _lock: RwLockWriteGuard<'a, ()>,
}

/// The sandbox beside other tests.
pub struct Beside<'a> {
    mesh: &'a Mesh,
    _lock: RwLockReadGuard<'a, ()>,
}

impl Shared {
    pub const fn new(area: &'static str) -> Self {
        Self::with(area, &[])
    }

    /// With more arguments for `sandbox up`.
    pub const fn with(area: &'static str, arguments: &'static [&'static str]) -> Self {
        Self { mesh: OnceLock::new(), lock: RwLock::new(()), area, arguments }
    }

    /// For tests that leave the sandbox's own parts alone.
    pub fn beside(&self) -> Beside<'_> {
        let lock = self.lock.read().unwrap_or_else(PoisonError::into_inner);
        Beside { mesh: self.mesh(), _lock: lock }
    }

    /// For tests that stop components, or measure.
    pub fn alone(&self) -> Exclusive<'_> {
        let lock = self.lock.write().unwrap_or_else(PoisonError::into_inner);
        Exclusive { mesh: self.mesh(), _lock: lock }
    }

    fn mesh(&self) -> &Mesh {
        let mesh = self.mesh.get_or_init(|| Mesh::up_with(self.area, "", self.arguments));
        // What a failed test stopped must not fail the next one.
        for component in ["ca", "controller", "node-proxy/node1", "node-proxy/node2"] {
            mesh.component("start", component);
        }
        mesh
    }
}

impl std::ops::Deref for Exclusive<'_> {
    type Target = Mesh;
    fn deref(&self) -> &Mesh {
        self.mesh
    }
}

impl std::ops::Deref for Beside<'_> {
    type Target = Mesh;
    fn deref(&self) -> &Mesh {
        self.mesh
    }
}

fn pod(value: &Value) -> Pod {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ips = value["status"]["podIPs"].as_array();
    Pod {
        name: text(&value["metadata"]["name"]),
        namespace: text(&value["metadata"]["namespace"]),
        uid: text(&value["metadata"]["uid"]),
        node: text(&value["spec"]["nodeName"]),
        addresses: ips.into_iter().flatten().filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect(),
    }
}

fn has_condition(object: &Value, kind: &str, status: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == kind && one["status"] == status))
}

fn echo_path() -> String {
    binary("culvert-echo").display().to_string()
}

/// Waits for the end of this process (its end of the pipe closes) and takes the sandbox down.
fn reaper(name: &str) -> Child {
    let culvert = binary("culvert").display().to_string();
    let mut command = Command::new("sh");
    command.args(["-c", "cat; exec \"$0\" sandbox down --name \"$1\"", &culvert, name]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // Not in our process group: an interrupted terminal must not take the reaper along.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().unwrap_or_else(|error| panic!("sh: {error}"))
}
