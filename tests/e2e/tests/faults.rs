//! Broken parts: pods fail closed, and recover by themselves.

use culvert_cli::sandbox::files::Files;
use culvert_e2e::{Labelled, Mesh, Pod, SOON, Shared, Shop, binary, eventually, holds};
use serde_json::{Value, json};
use std::time::Duration;

static MESH: Shared = Shared::new("faults");

/// Requests all the time while `event` happens.
fn under_traffic(mesh: &Mesh, client: &Pod, seconds: u32, event: impl FnOnce()) -> Value {
    std::thread::scope(|scope| {
        let seconds = seconds.to_string();
        let requests = scope.spawn(move || {
            mesh.echo(
                client,
                &[
                    "get",
                    "http://server:8080/",
                    "--seconds",
                    &seconds,
                    "--rate",
                    "100",
                    "--connections",
                    "4",
                    "--new-connection",
                    "--timeout",
                    "5000",
                ],
            )
        });
        event();
        requests.join().expect("traffic")
    })
}

#[test]
fn controller_killed_under_traffic_costs_no_request() {
    let mesh = MESH.alone();
    let (client, _) = mesh.open(&Shop::new("controller", Labelled::Yes), "controller");
    let traffic = under_traffic(&mesh, &client, 5, || {
        mesh.component("kill", "controller");
        holds("nothing depends on it", Duration::from_secs(2), || {
            let report = mesh.send(&client, "server:9000");
            if report["ok"] == true { Ok(()) } else { Err(report.to_string()) }
        });
        mesh.component("start", "controller");
    });
    assert_eq!(traffic["ok"], traffic["requests"], "{traffic}");
    // And it is heard again.
    mesh.apply(&Shop::new("controller", Labelled::Yes).servers(2).yaml());
    eventually("news arrive again", SOON, || {
        let report = mesh.echo(&client, &["get", "http://server:8080/", "--count", "40", "--new-connection"]);
        if report["pods"].as_object().is_some_and(|pods| pods.len() == 2) {
            Ok(())
        } else {
            Err(report.to_string())
        }
    });
}

#[test]
fn ca_killed_under_traffic_costs_no_request() {
    let mesh = MESH.alone();
    let (client, _) = mesh.open(&Shop::new("authority", Labelled::Yes), "authority");
    let traffic = under_traffic(&mesh, &client, 4, || {
        mesh.component("kill", "ca");
        holds("nothing depends on it", Duration::from_secs(2), || {
            let report = mesh.send(&client, "server:9000");
            if report["ok"] == true { Ok(()) } else { Err(report.to_string()) }
        });
        mesh.component("start", "ca");
    });
    assert_eq!(traffic["ok"], traffic["requests"], "{traffic}");
}

#[test]
fn a_node_proxy_killed_under_traffic_fails_closed_and_recovers() {
    let mesh = MESH.alone();
    let (client, _) = mesh.open(&Shop::new("proxy", Labelled::Yes), "proxy");
    for node in ["node2", "node1"] {
        let recording = mesh.record("node1");
        let traffic = under_traffic(&mesh, &client, 4, || {
            let component = format!("node-proxy/{node}");
            mesh.component("kill", &component);
            let report = mesh.send(&client, "server:9000");
            assert_eq!(report["ok"], false, "{node}: closed while it is down: {report}");
            mesh.component("start", &component);
            mesh.reaches(&client, "server:9000");
        });
        let summary = recording.finish("GET / HTTP/1.1");
        assert!(summary.token_seen.is_empty(), "{node}: plaintext meanwhile: {:?}", summary.token_seen);
        let (ok, asked) = (traffic["ok"].as_u64().unwrap_or(0), traffic["requests"].as_u64().unwrap_or(0));
        assert!(ok > 0 && asked > 0, "{traffic}");
        let report =
            mesh.echo(&client, &["get", "http://server:8080/", "--count", "100", "--new-connection"]);
        assert_eq!(report["ok"], 100, "{node}: all is well afterwards: {report}");
    }
}

#[test]
fn controller_down_and_node_proxy_killed_serves_the_kept_state() {
    let mesh = MESH.alone();
    let (client, server) = mesh.open(&Shop::new("kept", Labelled::Yes), "kept");
    mesh.component("stop", "controller");
    for node in ["node1", "node2"] {
        mesh.component("crash", &format!("node-proxy/{node}"));
    }
    for target in ["server:9000".to_owned(), server.at(9000), server.at_v6(9000)] {
        mesh.reaches(&client, &target);
        let (arrived, readable) = mesh.on_the_link(&client, &target);
        assert!(arrived && !readable, "{target}: arrived {arrived}, readable {readable}");
    }
    assert_eq!(mesh.config("node1")["node"]["stale"], true, "and says that it is old");
    mesh.component("start", "controller");
    eventually("fresh again", SOON, || {
        let config = mesh.config("node1");
        if config["node"]["stale"] == false { Ok(()) } else { Err(config["node"]["stale"].to_string()) }
    });
}

#[test]
fn a_peer_enrolled_since_the_kept_state_is_not_spoken_to_in_plaintext() {
    let mesh = MESH.alone();
    let (client, _) = mesh.open(&Shop::new("older", Labelled::Yes), "older");
    let peers = Shop::new("newer", Labelled::No);
    let (_, server) = mesh.open(&peers, "newer");
    let targets = ["server.newer:9000".to_owned(), server.at(9000), server.at_v6(9000)];
    mesh.reaches(&client, &targets[0]);
    mesh.component("stop", "node-proxy/node1");
    mesh.apply(&peers.clone().labelled(Labelled::Yes).namespace());
    eventually("the other node has enrolled its pod", SOON, || {
        let pod = mesh.get("pod", Some("newer"), Some(&server.name));
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is_enrolled =
            conditions.iter().any(|one| one["type"] == "culvert.dev/Enrolled" && one["status"] == "True");
        if is_enrolled { Ok(()) } else { Err(pod["status"].to_string()) }
    });
    mesh.component("stop", "controller");
    mesh.component("start", "node-proxy/node1");
    for target in &targets {
        mesh.reaches(&client, target);
        let (arrived, readable) = mesh.on_the_link(&client, target);
        assert!(arrived && !readable, "{target}: arrived {arrived}, readable {readable}");
    }
    // And one that is not enrolled is still reached.
    mesh.component("start", "controller");
    mesh.apply(&peers.namespace());
    mesh.settled("newer");
    mesh.component("stop", "controller");
    mesh.component("crash", "node-proxy/node1");
    mesh.reaches(&client, &targets[1]);
    assert_eq!(mesh.config("node1")["node"]["stale"], true);
    mesh.component("start", "controller");
}

/// A pod that starts while `component` is down waits, and says for whom; then it works; never in plaintext.
fn starts_while_down(component: &str, said_as: &str, name: &str) {
    let mesh = MESH.alone();
    let shop = Shop::new(name, Labelled::Yes);
    let (client, _) = mesh.open(&shop, name);
    mesh.component("stop", component);
    mesh.apply(&(shop.account("late") + &shop.pod("late", "node2") + &shop.service("late", &json!({}))));
    let status = || mesh.get("pod", Some(name), Some("late"))["status"].clone();
    eventually("the pod says what it waits for", SOON, || {
        let status = status();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let named = conditions.iter().any(|one| {
            one["reason"] == "WaitingForMesh"
                && one["message"].as_str().is_some_and(|said| said.contains(said_as))
        });
        if named { Ok(()) } else { Err(status.to_string()) }
    });
    holds("and waits", Duration::from_secs(2), || {
        let status = status();
        let started = status["containerStatuses"][0]["state"]["running"].is_object();
        if started { Err(status.to_string()) } else { Ok(()) }
    });
    mesh.component("start", component);
    mesh.settled(name);
    mesh.reaches(&client, "late:9000");
    let (arrived, readable) = mesh.on_the_link(&client, "late:9000");
    assert!(arrived && !readable, "arrived {arrived}, readable {readable}");
}

#[test]
fn a_pod_started_while_the_ca_is_down_waits_then_works() {
    starts_while_down("ca", "culvert-ca", "ca-down");
}

#[test]
fn a_pod_started_while_the_controller_is_down_waits_then_works() {
    starts_while_down("controller", "culvert-controller", "controller-down");
}

#[test]
fn a_pod_started_while_its_node_proxy_is_down_waits_then_works() {
    starts_while_down("node-proxy/node2", "node-proxy/node2", "proxy-down");
}

#[test]
fn an_address_reused_at_once_by_another_identity_is_that_identity() {
    let mesh = MESH.alone();
    let name = "reuse";
    let shop = Shop::new(name, Labelled::Yes);
    let (client, server) = mesh.open(&shop, name);
    mesh.apply(&(shop.account("first") + &shop.account("second") + &shop.pod("first", "node2")));
    mesh.settled(name);
    let first = mesh.pod(name, "first");
    mesh.reaches(&client, &first.at(9000));
    // The sandbox gives out the lowest free address, so the next pod has the same one.
    let mut reused = false;
    for round in 0..5 {
        let (old, new) = if round % 2 == 0 { ("first", "second") } else { ("second", "first") };
        mesh.sandbox(&["delete", "pod", old, "-n", name]).ok();
        eventually("it is gone", SOON, || {
            if mesh.pods(name, old).is_empty() { Ok(()) } else { Err("still there") }
        });
        mesh.apply(&shop.pod(new, "node2"));
        let pod = mesh.pod(name, new);
        reused |= pod.addresses == first.addresses;
        mesh.settled(name);
        mesh.reaches(&client, &pod.at(9000));
        let report = mesh.echo(&client, &["get", &format!("http://{}/", pod.at(8080))]);
        assert_eq!(report["last"]["service_account"], new, "{report}");
        let (arrived, readable) = mesh.on_the_link(&client, &pod.at(9000));
        assert!(arrived && !readable, "round {round}: arrived {arrived}, readable {readable}");
        // What it sends is counted under its own identity, at the server's side, where it was proven.
        let seen = |who: &str| {
            let principal = format!("spiffe://cluster.local/ns/{name}/sa/{who}");
            let labels = [("reporter", "destination"), ("source_principal", principal.as_str())];
            mesh.metrics("node2").sum("istio_tcp_connections_opened_total", &labels)
        };
        let before = (seen(old), seen(new));
        mesh.reaches(&pod, &server.at(9000));
        eventually("its own identity is counted", SOON, || {
            let now = (seen(old), seen(new));
            assert!(now.0 <= before.0, "round {round}: {old}'s identity was used: {before:?}, {now:?}");
            if now.1 > before.1 { Ok(()) } else { Err(format!("{before:?}, {now:?}")) }
        });
    }
    assert!(reused, "the address was reused at least once");
}

#[test]
fn a_cut_link_heals() {
    let mesh = MESH.alone();
    let (client, server) = mesh.open(&Shop::new("cut", Labelled::Yes), "cut");
    mesh.sandbox(&["link", "node2", "down"]).ok();
    assert_eq!(mesh.send(&client, &server.at(9000))["ok"], false);
    mesh.sandbox(&["link", "node2", "up"]).ok();
    mesh.reaches(&client, &server.at(9000));
}

/// Calls the CNI plugin as a runtime does for a new pod, on a node where neither the node proxy nor the API server answers.
/// Whether the pod may start.
fn starts_with_nobody_to_ask(kept: &str, namespace: &str) -> bool {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("namespaces.json"), kept).expect("written");
    let configuration = json!({
        "cniVersion": "1.0.0", "name": "kube", "type": "culvert-cni", "enrolmentSocket": at("none.sock"),
        "kubeconfig": at("none"), "stateDirectory": directory.path(), "node": "node1", "unknownNamespaces": "wait",
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]},
    });
    std::fs::write(at("call"), configuration.to_string()).expect("written");
    let name = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=new;K8S_POD_UID=never-seen");
    let called = std::process::Command::new(binary("culvert-node-proxy"))
        .arg("cni")
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0")])
        .envs([("CNI_NETNS", "/proc/self/ns/net"), ("CNI_PATH", "/opt/cni/bin"), ("CNI_ARGS", &name)])
        .stdin(std::fs::File::open(at("call")).expect("what was written"))
        .output()
        .expect("the plugin");
    called.status.success()
}

#[test]
fn what_a_node_knows_of_namespaces_follows_their_labels_and_decides_while_nobody_can_be_asked() {
    let mesh = MESH.alone();
    let path = Files.node_state("node1").join("namespaces.json").display().to_string();
    let kept = || mesh.node_exec("node1", &["cat", &path]).ok().stdout;
    let says = |expected: Value| {
        eventually("the node keeps what the label says", SOON, || {
            let read: Value = serde_json::from_str(&kept()).map_err(|error| error.to_string())?;
            if read["enrols"]["known"] == expected { Ok(()) } else { Err(read.to_string()) }
        });
    };
    let shop = Shop::new("known", Labelled::Yes);
    mesh.apply(&shop.namespace());
    says(json!(true));
    mesh.apply(&shop.clone().labelled(Labelled::No).namespace());
    says(json!(false));
    assert!(starts_with_nobody_to_ask(&kept(), "known"), "{}", kept());
    mesh.apply(&shop.namespace());
    says(json!(true));

    mesh.component("stop", "controller");
    mesh.component("crash", "node-proxy/node1");
    mesh.node_ready("node1");
    says(json!(true));
    assert!(!starts_with_nobody_to_ask(&kept(), "known"), "{}", kept());
    mesh.component("start", "controller");
}
