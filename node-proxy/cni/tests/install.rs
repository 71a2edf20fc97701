//! The plugin stays in force whatever others do to the directory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step fails the test")]

use std::path::Path;
use std::time::Duration;

use culvert_cni::install::{
    Credentials, Directories, Entry, Installed, PluginToken, UnknownNamespaces, keep, uninstall,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

struct Node {
    directory: TempDir,
    installed: watch::Receiver<Installed>,
    token: watch::Sender<PluginToken>,
    _cancel: tokio_util::sync::DropGuard,
}

impl Node {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["net.d", "bin", "account"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        std::fs::write(directory.path().join("account/token"), "one\n").unwrap();
        std::fs::write(directory.path().join("account/ca.crt"), "roots").unwrap();
        let entry = Entry {
            enrolment_socket: "/run/culvert/enrolment.sock".into(),
            state_directory: "/var/lib/culvert".into(),
            node: "n1".into(),
            unknown_namespaces: UnknownNamespaces::Wait,
            host_conf_dir: "/etc/cni/net.d".into(),
        };
        let (installed, told) = watch::channel(Installed::Waiting);
        let cancel = CancellationToken::new();
        let (token, tokens) = watch::channel(PluginToken::NodeProxys);
        let credentials =
            Credentials::new(Some("https://10.96.0.1:443".to_owned()), directory.path().join("account"));
        tokio::spawn(keep(directories(&directory), entry, credentials, tokens, installed, cancel.clone()));
        Self { directory, installed: told, token, _cancel: cancel.drop_guard() }
    }

    fn write(&self, name: &str, plugin: &str) {
        let list = json!({"cniVersion": "1.0.0", "name": "kube", "plugins": [{"type": plugin}]});
        std::fs::write(self.configurations().join(name), list.to_string()).unwrap();
    }

    fn configurations(&self) -> std::path::PathBuf {
        self.directory.path().join("net.d")
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.configurations()).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The plugins of the first configuration, as a runtime would take it.
    fn in_force(&self) -> Option<Vec<String>> {
        let first =
            self.names().into_iter().find(|name| name.ends_with(".conflist") && !name.starts_with('.'))?;
        let list: Value =
            serde_json::from_slice(&std::fs::read(self.configurations().join(first)).ok()?).ok()?;
        let plugins = list["plugins"].as_array()?;
        Some(plugins.iter().filter_map(|plugin| Some(plugin["type"].as_str()?.to_owned())).collect())
    }

    #[track_caller]
    fn eventually_in_force(&self, expected: &[&str]) -> impl Future<Output = ()> {
        let expected: Vec<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        async move {
            eventually(|| self.in_force().as_ref() == Some(&expected)).await;
        }
    }
}

fn directories(directory: &TempDir) -> Directories {
    Directories { cni_conf_dir: directory.path().join("net.d"), cni_bin_dir: directory.path().join("bin") }
}

async fn eventually(mut is: impl FnMut() -> bool) {
    for _ in 0..600 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 30 s");
}

#[tokio::test]
async fn it_follows_the_network_that_a_runtime_would_take() {
    let node = Node::start();
    eventually(|| node.directory.path().join("bin/culvert-cni").exists()).await;
    assert_eq!(*node.installed.borrow(), Installed::Waiting, "no network yet");
    node.write("10-kube.conflist", "bridge");
    node.eventually_in_force(&["bridge", "culvert-cni"]).await;
    // The other CNI writes its file anew, as when it starts.
    node.write("10-kube.conflist", "calico");
    node.eventually_in_force(&["calico", "culvert-cni"]).await;
    // Somebody removes ours, or writes into it.
    std::fs::remove_file(node.configurations().join("00-culvert.conflist")).unwrap();
    node.eventually_in_force(&["calico", "culvert-cni"]).await;
    node.write("00-culvert.conflist", "nothing");
    node.eventually_in_force(&["calico", "culvert-cni"]).await;
    // Another network appears before it, and before us.
    node.write("00-aaa.conflist", "cilium");
    node.eventually_in_force(&["cilium", "culvert-cni"]).await;
    std::fs::remove_file(node.configurations().join("00-aaa.conflist")).unwrap();
    node.eventually_in_force(&["calico", "culvert-cni"]).await;
    let mut installed = node.installed.clone();
    installed.wait_for(|now| *now == Installed::After("10-kube.conflist".into())).await.unwrap();
    // The other network goes, as before a reboot: no pod starts past the mesh because of that.
    std::fs::remove_file(node.configurations().join("10-kube.conflist")).unwrap();
    installed.wait_for(|now| *now == Installed::Waiting).await.unwrap();
    assert_eq!(node.in_force().unwrap(), ["calico", "culvert-cni"]);
}

#[tokio::test]
async fn the_credentials_are_the_newest_and_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::start();
    node.write("10-kube.conflist", "bridge");
    let path = node.configurations().join("culvert-kubeconfig");
    let token = |path: &Path| {
        let read: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        Some(read["users"][0]["user"]["token"].as_str()?.to_owned())
    };
    eventually(|| token(&path).as_deref() == Some("one")).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::write(node.directory.path().join("account/token"), "two\n").unwrap();
    eventually(|| token(&path).as_deref() == Some("two")).await;
    // One of the plugin's own counts more, and is not given up for want of the next.
    node.token.send_replace(PluginToken::Issued("three".into()));
    eventually(|| token(&path).as_deref() == Some("three")).await;
    node.token.send_replace(PluginToken::Awaited);
    std::fs::remove_file(node.configurations().join("00-culvert.conflist")).unwrap();
    node.eventually_in_force(&["bridge", "culvert-cni"]).await;
    assert_eq!(token(&path).as_deref(), Some("three"));
}

#[tokio::test]
async fn removing_it_leaves_what_was_there_before() {
    let node = Node::start();
    node.write("10-kube.conflist", "bridge");
    node.eventually_in_force(&["bridge", "culvert-cni"]).await;
    let Node { directory, _cancel, mut installed, token: _token } = node;
    drop(_cancel);
    while installed.changed().await.is_ok() {}
    uninstall(&directories(&directory)).unwrap();
    uninstall(&directories(&directory)).unwrap();
    let names = |path: &str| std::fs::read_dir(directory.path().join(path)).unwrap().count();
    assert_eq!((names("net.d"), names("bin")), (1, 0));
}

#[tokio::test]
async fn a_directory_that_is_not_there_yet_is_waited_for() {
    let node = Node::start();
    std::fs::remove_dir_all(node.configurations()).unwrap();
    let mut installed = node.installed.clone();
    installed.wait_for(|now| matches!(now, Installed::Failed(why) if why.contains("net.d"))).await.unwrap();
    std::fs::create_dir(node.configurations()).unwrap();
    node.write("10-kube.conflist", "bridge");
    node.eventually_in_force(&["bridge", "culvert-cni"]).await;
}
