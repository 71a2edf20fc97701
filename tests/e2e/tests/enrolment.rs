//! Pods enter and leave the mesh while they run.

use culvert_e2e::{Labelled, Mesh, Pod, SOON, Shared, Shop, eventually, holds};
use serde_json::{Value, json};
use std::time::Duration;

static MESH: Shared = Shared::new("enrolment");

const PATIENCE: Duration = Duration::from_secs(20);

fn readable_on_the_link(mesh: &Mesh, client: &Pod, target: &str) -> bool {
    let token = format!("token-{:032x}", rand::random::<u128>());
    let recording = mesh.record("node1");
    let report = mesh.echo(client, &["tcp", "send", target, "--data", &token]);
    assert_eq!(report["received"], token.as_str(), "{report}");
    !recording.finish(&token).token_seen.is_empty()
}

#[test]
fn a_label_enrols_running_pods_and_its_removal_lets_them_go() {
    let mesh = MESH.beside();
    let shop = Shop::new("label", Labelled::No);
    let (client, server) = mesh.open(&shop, "label");
    let restarts = |mesh: &Mesh| -> Vec<Value> {
        mesh.items("pods", "label")
            .iter()
            .map(|pod| json!([pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]]))
            .collect()
    };
    let before = restarts(&mesh);
    assert!(readable_on_the_link(&mesh, &client, "server:9000"), "unlabelled");
    mesh.apply(&shop.clone().labelled(Labelled::Yes).namespace());
    mesh.settled("label");
    for target in ["server:9000".to_owned(), server.at(9000), server.at_v6(9000)] {
        assert!(!readable_on_the_link(&mesh, &client, &target), "labelled, {target}");
    }
    mesh.apply(&shop.namespace());
    mesh.settled("label");
    eventually("plaintext again", SOON, || {
        if readable_on_the_link(&mesh, &client, "server:9000") { Ok(()) } else { Err("still encrypted") }
    });
    assert_eq!(restarts(&mesh), before, "no pod was restarted or replaced");
}

#[test]
fn a_pods_own_label_wins_over_its_namespaces() {
    let mesh = MESH.beside();
    let shop = Shop::new("override", Labelled::Yes);
    let out = shop.pod("out", "node1").replace(
        "\"labels\":{\"app\":\"out\"}",
        "\"labels\":{\"app\":\"out\",\"culvert.dev/mesh\":\"disabled\"}",
    );
    let off = Shop::new("override-off", Labelled::No);
    let within = off.pod("within", "node1").replace(
        "\"labels\":{\"app\":\"within\"}",
        "\"labels\":{\"app\":\"within\",\"culvert.dev/mesh\":\"enabled\"}",
    );
    mesh.apply(
        &(shop.yaml() + &shop.account("out") + &out + &off.namespace() + &off.account("within") + &within),
    );
    let condition = |namespace: &str, app: &str| {
        let pods = mesh.items("pods", namespace);
        let pod =
            pods.iter().find(|pod| pod["metadata"]["labels"]["app"] == app).cloned().unwrap_or_default();
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().find(|one| one["type"] == "culvert.dev/Enrolled").cloned().unwrap_or_default()
    };
    eventually("the pod's label decides", SOON, || {
        let (out, within, plain) = (
            condition("override", "out"),
            condition("override-off", "within"),
            condition("override", "client"),
        );
        let good = out["status"] == "False" && within["status"] == "True" && plain["status"] == "True";
        if good { Ok(()) } else { Err(format!("{out} {within} {plain}")) }
    });
}

#[test]
fn open_connections_survive_and_are_counted_at_enrolment() {
    let mesh = MESH.beside();
    let shop = Shop::new("counted", Labelled::No);
    let (client, server) = mesh.open(&shop, "counted");
    let mut held = mesh.echo_session(&client, &["hold", &server.at(9000), "--connections", "7"]);
    assert_eq!(held.next(PATIENCE)["ok"], 7);
    mesh.apply(&shop.clone().labelled(Labelled::Yes).namespace());
    mesh.settled("counted");
    assert_eq!(held.ask("after the label", PATIENCE)["ok"], 7);
    eventually("the connections opened before are counted", SOON, || {
        let pod = mesh.get("pod", Some("counted"), Some(&client.name));
        let counted = &pod["status"]["culvert"]["uncapturedConnections"];
        if counted.as_u64() == Some(7) { Ok(()) } else { Err(pod["status"].to_string()) }
    });
    let status = mesh.sandbox(&["status"]).ok().stdout;
    assert!(status.lines().any(|line| line.contains(&client.name) && line.contains('7')), "{status}");
    held.end(PATIENCE);
    eventually("and forgotten when they end", SOON, || {
        let pod = mesh.get("pod", Some("counted"), Some(&client.name));
        let counted = &pod["status"]["culvert"]["uncapturedConnections"];
        if counted.as_u64() == Some(0) { Ok(()) } else { Err(pod["status"].to_string()) }
    });
}

#[test]
fn leaving_drains_captured_connections() {
    let mesh = MESH.beside();
    let shop = Shop::new("leaving", Labelled::Yes);
    let (client, _) = mesh.open(&shop, "leaving");
    let mut held = mesh.echo_session(&client, &["hold", "server:9000", "--connections", "20"]);
    assert_eq!(held.next(PATIENCE)["ok"], 20);
    mesh.apply(&shop.labelled(Labelled::No).namespace());
    eventually("new connections are no longer captured", SOON, || {
        if readable_on_the_link(&mesh, &client, "server:9000") { Ok(()) } else { Err("captured") }
    });
    for round in 0..3 {
        assert_eq!(held.ask(&format!("round {round}"), PATIENCE)["ok"], 20, "captured ones go on");
    }
    held.end(PATIENCE);
    // Only now can the rules and listeners go; what is left answers as if there had never been a mesh.
    mesh.settled("leaving");
    assert_eq!(mesh.echo(&client, &["tcp", "send", "server:9000"])["ok"], true);
}

#[test]
fn connections_to_a_pod_that_ends_are_cut_at_its_drain_deadline_and_not_before() {
    let mesh = MESH.beside();
    for (name, deadline, left) in [("ending", "10m", 5), ("ending-soon", "1ms", 0)] {
        let shop = Shop::new(name, Labelled::Yes).setting("drain-timeout", deadline).pre_stop(30);
        mesh.apply(&shop.yaml());
        mesh.settled(name);
        let (client, server) = (mesh.pod(name, "client"), mesh.pod(name, "server"));
        mesh.reaches(&client, "server:9000");
        let mut held = mesh.echo_session(&client, &["hold", "server:9000", "--connections", "5"]);
        assert_eq!(held.next(PATIENCE)["ok"], 5);
        mesh.sandbox(&["delete", "pod", &server.name, "-n", name]).ok();
        eventually("the pod is ending", SOON, || {
            let slices = mesh.items("endpointslices", name);
            let mut endpoints =
                slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
            let is_ending = endpoints.any(|one| one["conditions"]["terminating"] == true);
            if is_ending { Ok(()) } else { Err(json!(slices).to_string()) }
        });
        if left == 0 {
            mesh.access_log("node2", &["Drained", "inbound", &server.name]);
        }
        assert_eq!(held.ask("after", PATIENCE)["ok"], left, "{deadline}");
        held.end(PATIENCE);
    }
}

#[test]
fn a_restarted_node_proxy_finds_its_pods_again() {
    let mesh = MESH.alone();
    let (client, server) = mesh.open(&Shop::new("restart", Labelled::Yes), "restart");
    for node in ["node1", "node2"] {
        mesh.component("crash", &format!("node-proxy/{node}"));
    }
    for target in ["server:9000".to_owned(), server.at(9000), server.at_v6(9000)] {
        eventually("traffic flows again", SOON, || {
            let report = mesh.echo(&client, &["tcp", "send", &target, "--timeout", "5000"]);
            if report["ok"] == true { Ok(()) } else { Err(report.to_string()) }
        });
        assert!(!readable_on_the_link(&mesh, &client, &target), "and is encrypted: {target}");
    }
    mesh.settled("restart");
}

#[test]
fn scaling_and_deleting_pods_is_followed() {
    let mesh = MESH.beside();
    let name = "scale";
    let shop = Shop::new(name, Labelled::Yes);
    let (client, _) = mesh.open(&shop, name);
    mesh.apply(&shop.clone().servers(3).yaml());
    mesh.settled(name);
    let answering = |expected: usize| {
        eventually(&format!("{expected} pods answer"), SOON, || {
            let report =
                mesh.echo(&client, &["get", "http://server:8080/", "--count", "60", "--new-connection"]);
            let pods = report["pods"].as_object().map_or(0, serde_json::Map::len);
            if report["ok"] == 60 && pods == expected { Ok(()) } else { Err(report.to_string()) }
        });
    };
    answering(3);
    mesh.apply(&shop.clone().servers(1).yaml());
    answering(1);
    let pod = mesh.pod(name, "server");
    mesh.sandbox(&["delete", "pod", &pod.name, "-n", name]).ok();
    eventually("another pod took its place", SOON, || {
        let pods = mesh.pods(name, "server");
        if pods.len() == 1 && pods[0].uid != pod.uid { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    mesh.settled(name);
    answering(1);
}

#[test]
fn peers_are_told_hbone_only_after_the_pod_is_enrolled() {
    let mesh = MESH.alone();
    let name = "order";
    let shop = Shop::new(name, Labelled::No);
    let (client, _) = mesh.open(&shop, name);
    // The server's node proxy is down: its pods cannot become enrolled, so nobody may speak HBONE to them.
    mesh.component("stop", "node-proxy/node2");
    mesh.apply(&shop.clone().labelled(Labelled::Yes).namespace());
    holds("the server is reached as before", Duration::from_secs(3), || {
        let report = mesh.echo(&client, &["tcp", "send", "server:9000", "--timeout", "3000"]);
        if report["ok"] == true { Ok(()) } else { Err(report.to_string()) }
    });
    mesh.component("start", "node-proxy/node2");
    mesh.settled(name);
    eventually("then it is encrypted", SOON, || {
        if readable_on_the_link(&mesh, &client, "server:9000") { Err("plaintext") } else { Ok(()) }
    });
}
