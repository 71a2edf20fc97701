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

/// A server that tells each client its address; perl because every Debian has it and shells cannot listen.
const TELLS: &str = "exec perl -MIO::Socket::IP -e '$s = IO::Socket::IP->new(Listen => 9, LocalHost => \"::\", \
    LocalPort => 8080, V6Only => 0, ReuseAddr => 1) or die; while ($c = $s->accept) { print $c $c->peerhost, \" $ENV{HOSTNAME}\"; \
    close $c }'";

const BALANCED: &str = "
apiVersion: v1
kind: Service
metadata: {name: edge}
spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, selector: {app: tells}, ports: [{port: 80, targetPort: 8080}]}
---
";

fn labelled(name: &str, node: &str) -> String {
    let plain = format!("metadata: {{name: {name}}}");
    pod(name, node, TELLS, "").replace(&plain, &format!("metadata: {{name: {name}, labels: {{app: tells}}}}"))
}

/// What the server at an address says.
fn told(sandbox: &Sandbox, from: &[&str], address: &str) -> String {
    let script = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/80; cat <&3' 2>&1");
    let output = sandbox.run(&[&["exec"], from, &["--", "sh", "-c", &script]].concat());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn load_balancers_are_reached_from_outside_and_keep_the_clients_address() {
    let manifests =
        [BALANCED, &labelled("a", "node1"), &labelled("b", "node2"), &pod("c", "node1", FOREVER, "")]
            .concat();
    let sandbox = Sandbox::up("balanced", User::Own, &manifests);
    ["a", "b", "c"].iter().for_each(|name| drop(sandbox.await_ready(name)));
    for (address, client) in [("10.90.0.10", "::ffff:10.89.0.3"), ("fd00:10:90::a", "fd00:10:89::3")] {
        let mut servers = std::collections::BTreeSet::new();
        common::eventually(
            || {
                let said = told(&sandbox, &["outside"], address);
                if let Some(server) = said.strip_prefix(&format!("{client} ")) {
                    servers.insert(server.to_owned());
                }
                servers.len() == 2
            },
            || {
                format!(
                    "{address} from outside, told by both pods: {:?}",
                    told(&sandbox, &["outside"], address)
                )
            },
        );
    }
    let inside = told(&sandbox, &["c"], "10.90.0.10");
    assert!(inside.starts_with("::ffff:10.244.1."), "a pod calls it too: {inside:?}");

    // Only those addresses, and nobody calls in.
    for address in ["10.89.0.11", "10.244.1.2", "10.96.0.10", "fd00:10:89::b"] {
        let answer = sandbox.knock(&["outside"], address);
        assert!(!answer.contains("refused"), "outside to {address}: {answer}");
    }
    let answer = sandbox.knock(&["--node", "node1"], "10.89.0.3");
    assert!(answer.contains("code 124"), "a node to outside: {answer}");

    // Without pods somebody says so at once.
    sandbox.succeed(&["delete", "pod", "a"]);
    sandbox.succeed(&["delete", "pod", "b"]);
    common::eventually(
        || told(&sandbox, &["outside"], "10.90.0.10").contains("refused"),
        || format!("nobody is there: {:?}", told(&sandbox, &["outside"], "10.90.0.10")),
    );
}
