//! The CNI plugin as a container runtime calls it: the real program, with a node proxy and an API server that say what a
//! test wants.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use culvert_api::enrolment::{KEPT_NAMESPACES, Reply, Request, recv_packet, send_packet};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};
use tempfile::TempDir;

const NETNS: &str = "/proc/self/ns/net";

/// A node, as far as the plugin sees one.
struct Host {
    directory: TempDir,
    unknown: &'static str,
}

/// What a call ended with.
#[derive(Debug)]
struct Outcome {
    succeeded: bool,
    printed: Value,
    took: Duration,
}

impl Host {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), unknown: "wait" }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the node proxy last knew.
    fn kept(self, namespace: &str, enrols: bool) -> Self {
        let kept = json!({"enrols": {namespace: enrols}});
        std::fs::write(self.path(KEPT_NAMESPACES), kept.to_string()).unwrap();
        self
    }

    /// Objects by their path in the API; all others are not there.
    fn api(self, objects: &[(&str, Value)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", listener.local_addr().unwrap())}}],
            "users": [{"name": "c", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(self.path("kubeconfig"), kubeconfig.to_string()).unwrap();
        let objects: BTreeMap<String, Value> =
            objects.iter().map(|(path, object)| ((*path).to_owned(), object.clone())).collect();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let objects = objects.clone();
                std::thread::spawn(move || answer(stream, &objects));
            }
        });
        self
    }

    /// A node proxy that gives these replies in turn, the last one again and again.
    fn proxy(&self, replies: Vec<Reply>) -> mpsc::Receiver<(Request, Option<OwnedFd>)> {
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(self.path("socket")).unwrap()).unwrap();
        rustix::net::listen(&socket, 16).unwrap();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut replies = replies.into_iter().peekable();
            while let Ok(client) = rustix::net::accept(&socket) {
                let Ok((bytes, netns)) = recv_packet(client.as_fd()) else { continue };
                let reply = match replies.peek().cloned() {
                    Some(reply) if replies.len() == 1 => reply,
                    _ => replies.next().unwrap(),
                };
                let _ = tell.send((serde_json::from_slice(&bytes).unwrap(), netns));
                send_packet(client.as_fd(), &serde_json::to_vec(&reply).unwrap(), None).unwrap();
            }
        });
        told
    }

    fn configuration(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "kube", "type": "culvert-cni",
            "enrolmentSocket": self.path("socket"), "kubeconfig": self.path("kubeconfig"),
            "stateDirectory": self.directory.path(), "node": "n1", "unknownNamespaces": self.unknown,
            "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}, {"address": "fd00::2/64"}]},
        })
    }

    fn call(&self, command: &str) -> Outcome {
        self.call_with(command, &self.configuration().to_string(), "shop")
    }

    fn call_with(&self, command: &str, input: &str, namespace: &str) -> Outcome {
        let began = Instant::now();
        let arguments =
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=cart;K8S_POD_UID=u-1");
        let mut child = Command::new(env!("CARGO_BIN_EXE_culvert-node-proxy"))
            .arg("cni")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", NETNS)
            .env("CNI_ARGS", arguments)
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let printed = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Outcome { succeeded: output.status.success(), printed, took: began.elapsed() }
    }
}

fn answer(mut stream: TcpStream, objects: &BTreeMap<String, Value>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) <= 2 {
                break;
            }
        }
        let path = first.split(' ').nth(1).unwrap_or_default();
        let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
            "message": "not found", "code": 404});
        let (status, body) = match objects.get(path) {
            Some(object) => ("200 OK", object.to_string()),
            None => ("404 Not Found", missing.to_string()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        if stream.write_all((head + &body).as_bytes()).is_err() {
            return;
        }
    }
}

fn namespace(label: Option<&str>) -> (&'static str, Value) {
    let labels = label.map_or(json!({}), |value| json!({"culvert.dev/mesh": value}));
    let metadata = json!({"name": "shop", "labels": labels});
    ("/api/v1/namespaces/shop", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))
}

fn pod(label: Option<&str>) -> (&'static str, Value) {
    let labels = label.map_or(json!({}), |value| json!({"culvert.dev/mesh": value}));
    let metadata = json!({"name": "cart", "namespace": "shop", "uid": "u-1", "labels": labels});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": []}});
    ("/api/v1/namespaces/shop/pods/cart", pod)
}

fn node(label: &str) -> (&'static str, Value) {
    let metadata = json!({"name": "n1", "labels": {"culvert.dev/mesh": label}});
    ("/api/v1/nodes/n1", json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata}))
}

fn wait() -> Reply {
    Reply::Wait { component: "culvert-ca".into(), message: "no answer".into(), remedy: "start it".into() }
}

#[track_caller]
fn starts(outcome: &Outcome) {
    assert!(outcome.succeeded, "{outcome:?}");
    assert_eq!(outcome.printed["ips"][0]["address"], "10.1.0.2/24", "the result of the plugins before");
}

#[track_caller]
fn waits(outcome: &Outcome, names: &[&str]) {
    assert!(!outcome.succeeded, "{outcome:?}");
    assert_eq!(outcome.printed["code"], 11, "try again later: {outcome:?}");
    let message = outcome.printed["msg"].as_str().unwrap();
    for name in names.iter().chain(&["pod shop/cart", "kubectl label node n1 culvert.dev/mesh=released"]) {
        assert!(message.contains(name), "{message}");
    }
    assert!(outcome.took >= Duration::from_secs(9), "it was waited for: {outcome:?}");
}

#[test]
fn an_enrolled_pod_starts_when_the_node_proxy_has_it() {
    let host = Host::new();
    let asked = host.proxy(vec![wait(), wait(), Reply::Enrolled]);
    starts(&host.api(&[namespace(Some("enabled")), pod(None)]).call("ADD"));
    let all: Vec<_> = asked.try_iter().collect();
    assert_eq!(all.len(), 3);
    for (request, netns) in all {
        let Request::Add { pod, netns_path, addresses } = request else { panic!("{request:?}") };
        assert_eq!((pod.uid.as_str(), pod.namespace.as_str(), pod.name.as_str()), ("u-1", "shop", "cart"));
        assert_eq!(netns_path, Path::new(NETNS));
        assert_eq!(addresses.len(), 2);
        let came = std::fs::File::from(netns.expect("the namespace comes along")).metadata().unwrap();
        assert_eq!(came.ino(), std::fs::metadata(NETNS).unwrap().ino());
    }
}

#[test]
fn a_pod_that_is_not_wanted_starts_without_the_mesh() {
    for (objects, what) in [
        (vec![namespace(None), pod(None)], "nothing is labelled"),
        (vec![namespace(Some("enabled")), pod(Some("disabled"))], "the pod opts out"),
    ] {
        let host = Host::new().api(&objects);
        starts(&host.call("ADD"));
        let _asked = host.proxy(vec![wait()]);
        let outcome = host.call("ADD");
        assert!(outcome.succeeded, "{what}, and the node proxy has no news of it: {outcome:?}");
    }
}

#[test]
fn a_pod_that_is_wanted_waits_and_the_message_names_who_is_missing() {
    let down = Host::new().api(&[namespace(Some("enabled")), pod(None)]);
    let blocked = Host::new().api(&[namespace(None), pod(Some("enabled"))]);
    let _asked = blocked.proxy(vec![wait()]);
    std::thread::scope(|scope| {
        scope.spawn(|| waits(&down.call("ADD"), &["node proxy of n1", "does not answer", "kubectl"]));
        scope.spawn(|| waits(&blocked.call("ADD"), &["culvert-ca", "no answer", "start it"]));
    });
}

#[test]
fn without_an_api_server_the_last_snapshot_decides_and_then_the_setting() {
    let without = |unknown| Host { unknown, ..Host::new() };
    starts(&without("wait").kept("shop", false).call("ADD"));
    starts(&without("start").call("ADD"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            waits(&without("start").kept("shop", true).call("ADD"), &["labels could not be looked at"])
        });
        scope.spawn(|| {
            waits(&without("wait").kept("other", false).call("ADD"), &["labels could not be looked at"])
        });
    });
}

#[test]
fn a_released_node_starts_its_pods() {
    let host = Host::new().api(&[namespace(Some("enabled")), pod(None), node("released")]);
    starts(&host.call("ADD"));
}

#[test]
fn a_refusal_is_told_at_once() {
    let host = Host::new();
    let _asked = host.proxy(vec![Reply::Invalid { message: "not a namespace".into() }]);
    let outcome = host.call("ADD");
    assert_eq!((outcome.succeeded, &outcome.printed["code"]), (false, &json!(100)), "{outcome:?}");
    assert!(outcome.printed["msg"].as_str().unwrap().contains("not a namespace"), "{outcome:?}");
}

#[test]
fn pods_of_system_namespaces_are_nobodys_business() {
    let host = Host::new();
    let asked = host.proxy(vec![wait()]);
    let outcome = host.call_with("ADD", &host.configuration().to_string(), "kube-system");
    starts(&outcome);
    assert!(asked.try_recv().is_err());
}

#[test]
fn the_end_of_a_pod_is_told_and_never_fails() {
    let host = Host::new();
    assert!(host.call("DEL").succeeded, "nobody is there");
    assert!(host.call_with("DEL", "{", "shop").succeeded, "not even a configuration");
    let asked = host.proxy(vec![Reply::Removed]);
    assert!(host.call("DEL").succeeded);
    assert!(host.call("DEL").succeeded, "twice");
    let all: Vec<_> = asked.try_iter().collect();
    assert_eq!(all.len(), 2);
    assert!(all.iter().all(|(request, _)| matches!(request, Request::Remove { pod } if pod.uid == "u-1")));
}

#[test]
fn rubbish_is_answered_as_the_specification_has_it() {
    let host = Host::new();
    for (input, code) in [
        ("", 6),
        ("{", 6),
        ("{}", 6),
        ("[1]", 6),
        (
            r#"{"cniVersion":"9.0.0","enrolmentSocket":"/s","kubeconfig":"/k","stateDirectory":"/d","node":"n"}"#,
            1,
        ),
        (
            r#"{"cniVersion":"1.0.0","enrolmentSocket":"/s","kubeconfig":"/k","stateDirectory":"/d","node":"n"}"#,
            7,
        ),
    ] {
        let outcome = host.call_with("ADD", input, "shop");
        assert_eq!(
            (outcome.succeeded, &outcome.printed["code"]),
            (false, &json!(code)),
            "{input}: {outcome:?}"
        );
    }
    let outcome = host.call("SING");
    assert_eq!((outcome.succeeded, &outcome.printed["code"]), (false, &json!(4)), "{outcome:?}");
    let version = host.call("VERSION");
    assert!(
        version.succeeded
            && version.printed["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0"))
    );
    for command in ["CHECK", "STATUS", "GC"] {
        assert!(host.call(command).succeeded, "{command}");
    }
}

#[test]
fn the_program_under_the_plugins_name_is_the_plugin() {
    let host = Host::new();
    let plugin = host.path("culvert-cni");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_culvert-node-proxy"), &plugin).unwrap();
    let mut child = Command::new(plugin)
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut printed = String::new();
    child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert!(child.wait().unwrap().success() && printed.contains("supportedVersions"), "{printed}");
}
