//! The network between nodes and pods, set up as root and by an ordinary user.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use common::{Sandbox, User, pod};

const FOREVER: &str = "exec sleep 1000000";

fn everybody_reaches_everybody(sandbox: &Sandbox) {
    for name in ["a", "b", "c"] {
        sandbox.await_ready(name);
    }
    // a and b are on node1, c on node2. `refused` means that the packet arrived and the answer came back.
    for target in
        ["10.244.1.3", "fd00:10:244:1::3", "10.244.2.2", "fd00:10:244:2::2", "10.89.0.12", "fd00:10:89::c"]
    {
        let answer = sandbox.knock(&["a"], target);
        assert!(answer.contains("refused"), "pod a to {target}: {answer}");
    }
    for target in ["10.244.1.2", "fd00:10:244:1::2", "10.89.0.2", "fd00:10:89::2", "10.244.2.2"] {
        let answer = sandbox.knock(&["--node", "node1"], target);
        assert!(answer.contains("refused"), "node1 to {target}: {answer}");
    }
}

fn manifests() -> String {
    [pod("a", "node1", FOREVER, ""), pod("b", "node1", FOREVER, ""), pod("c", "node2", FOREVER, "")].concat()
}

#[test]
fn pods_and_nodes_reach_each_other() {
    everybody_reaches_everybody(&Sandbox::up("net", User::Own, &manifests()));
}

#[test]
fn pods_and_nodes_reach_each_other_without_root() {
    let sandbox = Sandbox::up("net-user", User::Ordinary, &manifests());
    everybody_reaches_everybody(&sandbox);
    assert_eq!(sandbox.shell("a", "cat /etc/hostname >/dev/null; hostname; id -u"), "a\n0\n");
}

#[test]
fn a_cut_link_loses_packets_until_it_is_restored() {
    let sandbox = Sandbox::up("link", User::Own, &manifests());
    sandbox.await_ready("a");
    sandbox.await_ready("c");
    sandbox.succeed(&["link", "node2", "down"]);
    let answer = sandbox.knock(&["a"], "10.244.2.2");
    assert!(answer.contains("code 124"), "timeout was expected: {answer}");
    sandbox.succeed(&["link", "node2", "up"]);
    common::eventually(
        || sandbox.knock(&["a"], "10.244.2.2").contains("refused"),
        || "link restored".to_owned(),
    );
    let output = sandbox.run(&["link", "node9", "up"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no node node9"));
}
