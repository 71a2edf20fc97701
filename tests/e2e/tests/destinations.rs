//! Where captured connections go: Services, pods, names, addresses nobody knows, and what is outside.

use culvert_e2e::{Labelled, Mesh, Pod, SOON, Shared, Shop, eventually};
use serde_json::{Value, json};

static MESH: Shared = Shared::new("destinations");

fn open(mesh: &Mesh, name: &str) -> (Shop, Pod, Pod) {
    let shop = Shop::new(name, Labelled::Yes);
    let (client, server) = mesh.open(&shop, name);
    (shop, client, server)
}

/// Which pods answered, with how many requests each.
fn pods_that_answer(mesh: &Mesh, client: &Pod, url: &str, requests: u32) -> Vec<(String, u64)> {
    let count = requests.to_string();
    let report =
        mesh.echo(client, &["get", url, "--count", &count, "--new-connection", "--connections", "4"]);
    assert_eq!(report["ok"], requests, "{report}");
    let pods = report["pods"].as_object().expect("pods");
    pods.iter().map(|(name, count)| (name.clone(), count.as_u64().unwrap_or(0))).collect()
}

fn address(name: &str) -> String {
    format!("http://{name}:8080/")
}

#[test]
fn service_vip_pod_ip_and_names_of_both_families() {
    let mesh = MESH.beside();
    let (_, client, server) = open(&mesh, "dual");
    let service = mesh.get("service", Some("dual"), Some("server"));
    let vips: Vec<&str> =
        service["spec"]["clusterIPs"].as_array().expect("VIPs").iter().filter_map(Value::as_str).collect();
    assert_eq!(vips.len(), 2, "{service}");
    let mut targets: Vec<String> = vips
        .iter()
        .map(|vip| if vip.contains(':') { format!("[{vip}]:9000") } else { format!("{vip}:9000") })
        .collect();
    targets.extend([server.at(9000), server.at_v6(9000)]);
    targets
        .extend(["server:9000", "server.dual:9000", "server.dual.svc.cluster.local:9000"].map(str::to_owned));
    for target in targets {
        let report = mesh.echo(&client, &["tcp", "send", &target, "--data", "word"]);
        assert_eq!(report["received"], "word", "{target}: {report}");
    }
}

#[test]
fn headless_name_reaches_each_pod() {
    let mesh = MESH.beside();
    let (shop, client, _) = open(&mesh, "headless");
    mesh.apply(
        &(shop.clone().servers(2).yaml()
            + &shop.service_for("each", "server", &json!({"clusterIP": "None"}))),
    );
    mesh.settled("headless");
    let resolved = eventually("the headless name has both pods", SOON, || {
        let resolved = mesh.echo(&client, &["resolve", "each.headless.svc.cluster.local"]);
        let found = resolved["addresses"].as_array().map_or(0, Vec::len);
        if found == 4 { Ok(resolved) } else { Err(format!("{resolved}")) }
    });
    for ip in resolved["addresses"].as_array().expect("addresses").iter().filter_map(Value::as_str) {
        let target = if ip.contains(':') { format!("[{ip}]:9000") } else { format!("{ip}:9000") };
        assert_eq!(mesh.echo(&client, &["tcp", "send", &target])["ok"], true, "{target}");
    }
    let report = mesh.echo(&client, &["tcp", "send", "each:9000", "--data", "word"]);
    assert_eq!(report["received"], "word", "{report}");
}

#[test]
fn unknown_cluster_address_is_held_then_reset() {
    let mesh = MESH.beside();
    let (_, client, _) = open(&mesh, "unknown");
    // Of the pods' range, and of the Services': nobody has either.
    for target in ["10.244.2.250:9000", "10.96.250.250:9000"] {
        let report = mesh.echo(&client, &["tcp", "send", target, "--timeout", "5000"]);
        assert_eq!(report["error"], "reset", "{target}: {report}");
        let millis = report["millis"].as_f64().expect("a time");
        assert!((900.0..4000.0).contains(&millis), "{target}: held for a second, then reset: {report}");
    }
}

#[test]
fn a_pod_called_before_its_news_arrived_is_waited_for() {
    let mesh = MESH.beside();
    let (shop, client, _) = open(&mesh, "news");
    let before = mesh.metrics("node1").sum(
        "istio_tcp_connections_opened_total",
        &[("source_workload_namespace", "news"), ("connection_security_policy", "none")],
    );
    for round in 0..3 {
        let name = format!("late-{round}");
        mesh.apply(&(shop.account(&name) + &shop.pod(&name, "node2")));
        // As soon as it has an address: long before all proxies need have heard of it.
        let pod = mesh.pod("news", &name);
        mesh.reaches(&client, &pod.at(9000));
    }
    let after = mesh.metrics("node1").sum(
        "istio_tcp_connections_opened_total",
        &[("source_workload_namespace", "news"), ("connection_security_policy", "none")],
    );
    assert_eq!(after, before, "no connection to a new pod was plaintext");
}

#[test]
fn outside_the_cluster_passes_through_or_is_refused_by_registry_only() {
    let mesh = MESH.beside();
    let (shop, client, _) = open(&mesh, "outside");
    // The other node's admin port: an address of neither the pods' nor the Services' range, and of no endpoint.
    let outside = format!("{}:15000", mesh.cluster().nodes[1].address.v4);
    let connect = ["tcp", "send", &outside, "--until", "connected", "--timeout", "4000"];
    assert_eq!(mesh.echo(&client, &connect)["ok"], true);
    mesh.apply(&shop.clone().setting("outbound-policy", "registry-only").namespace());
    eventually("registry-only refuses the outside", SOON, || {
        // Capture answers the SYN; the refusal is the reset that follows.
        let report = mesh.echo(&client, &["tcp", "send", &outside, "--data", "x", "--timeout", "2000"]);
        if report["error"] == "reset" { Ok(()) } else { Err(report.to_string()) }
    });
    mesh.access_log("node1", &["OutboundPolicy", &outside]);
    assert_eq!(mesh.echo(&client, &["tcp", "send", "server:9000"])["ok"], true, "inside goes on");
}

#[test]
fn servers_that_speak_first_and_silent_ports_cost_nothing() {
    let mesh = MESH.beside();
    let (_, client, server) = open(&mesh, "first");
    for target in ["server:9001".to_owned(), server.at(9001), server.at_v6(9001)] {
        let report = mesh.echo(&client, &["tcp", "send", &target, "--until", "banner", "--timeout", "3000"]);
        assert_eq!(report["banner"], format!("220 {} ready", server.name), "{report}");
        assert!(report["millis"].as_f64().is_some_and(|millis| millis < 1500.0), "no waiting: {report}");
    }
}

#[test]
fn http_grpc_and_udp_services_work() {
    let mesh = MESH.beside();
    let (_, client, server) = open(&mesh, "protocols");
    let report = mesh.echo(&client, &["get", "http://server:8080/some/path?x=y"]);
    let answer = &report["last"];
    assert_eq!(answer["pod"], server.name.as_str(), "{report}");
    assert_eq!(answer["namespace"], "protocols");
    assert_eq!(answer["service_account"], "server");
    assert_eq!(answer["node"], "node2");
    assert_eq!(answer["protocol"], "HTTP/1.1");
    assert_eq!(answer["path"], "/some/path?x=y");
    assert_eq!(answer["headers"]["host"], json!(["server:8080"]));
    let remote = answer["remote"].as_str().expect("remote");
    let own = [format!("{}:", client.v4()), format!("[{}]:", client.v6())];
    assert!(own.iter().any(|own| remote.starts_with(own)), "the client's own address: {remote}");
    assert_eq!(
        mesh.echo(&client, &["get", "http://server:8080/", "--http2"])["last"]["protocol"],
        "HTTP/2.0"
    );
    assert_eq!(mesh.echo(&client, &["grpc", "server:9003"])["ok"], 1);
    assert_eq!(mesh.echo(&client, &["grpc", "server:9003", "--call", "stream", "--count", "20"])["ok"], 20);
    mesh.datagrams_reach(&client, "server:9002");
    assert_eq!(mesh.echo(&client, &["udp", "server:9002", "--data", "datagram"])["received"], "datagram");
}

#[test]
fn long_idle_connections_stay() {
    let mesh = MESH.beside();
    let (_, client, _) = open(&mesh, "idle");
    let report = mesh.echo(&client, &["tcp", "send", "server:9000", "--data", "awake", "--idle", "15000"]);
    assert_eq!(report["received"], "awake", "{report}");
}

#[test]
fn bulk_goes_both_ways() {
    let mesh = MESH.beside();
    let (_, client, _) = open(&mesh, "bulk");
    for (port, direction) in [(9000, "both"), (9004, "up"), (9005, "down")] {
        let target = format!("server:{port}");
        let report = mesh
            .echo(&client, &["bulk", &target, "--direction", direction, "--seconds", "1", "--streams", "3"]);
        assert_eq!(report["errors"], json!({}), "{report}");
        let moved =
            report["bytes_sent"].as_u64().unwrap_or(0) + report["bytes_received"].as_u64().unwrap_or(0);
        assert!(moved > 10_000_000, "{report}");
    }
    let sized = mesh.echo(&client, &["get", "http://server:8080/?size=50000000"]);
    assert_eq!(sized["bytes"], 50_000_000, "{sized}");
}

#[test]
fn connections_spread_over_endpoints() {
    let mesh = MESH.beside();
    let shop = Shop::new("spread", Labelled::Yes).servers(3);
    let (client, _) = mesh.open(&shop, "spread");
    let answered = pods_that_answer(&mesh, &client, &address("server"), 300);
    assert_eq!(answered.len(), 3, "{answered:?}");
}

#[test]
fn a_failed_connect_goes_to_another_endpoint() {
    let mesh = MESH.beside();
    let (shop, client, server) = open(&mesh, "dead");
    // No selector: endpoints by hand, one of them an address where nothing listens.
    let ports = json!([{"name": "tcp", "port": 9000, "targetPort": 9000}]);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "half", "namespace": "dead"},
        "spec": {"ports": ports}});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "half-1", "namespace": "dead", "labels": {"kubernetes.io/service-name": "half"}},
        "ports": [{"name": "tcp", "port": 9000, "protocol": "TCP"}],
        "endpoints": [{"addresses": [server.v4().to_string()], "conditions": {"ready": true}},
                      {"addresses": [mesh.cluster().control_plane.v4.to_string()], "conditions": {"ready": true}}]});
    mesh.apply(&format!("---\n{service}\n---\n{slice}\n"));
    let _ = shop;
    eventually("the Service is known", SOON, || {
        let report = mesh.echo(&client, &["tcp", "send", "half:9000", "--timeout", "3000"]);
        if report["ok"] == true { Ok(()) } else { Err(report.to_string()) }
    });
    let report = mesh.echo(&client, &["storm", "half:9000", "--total", "100", "--parallel", "4"]);
    assert_eq!(report["ok"], 100, "every connection found the living endpoint: {report}");
}

#[test]
fn endpoints_not_ready_or_terminating_are_avoided() {
    let mesh = MESH.beside();
    let name = "ready";
    let shop = Shop::new(name, Labelled::Yes).servers(2);
    let (client, _) = mesh.open(&shop, name);
    // Requests all the time, while a pod goes away and comes back, and another one never gets ready.
    let sick =
        shop.deployment("server", 3, Some("node2"), &[]).replace("\"/ready\"", "\"/ready?status=503\"");
    let sick = sick.replace("\"name\":\"server\",\"namespace\"", "\"name\":\"sick\",\"namespace\"");
    mesh.apply(&sick);
    let traffic = std::thread::scope(|scope| {
        let requests = scope.spawn(|| {
            mesh.echo(
                &client,
                &[
                    "get",
                    &address("server"),
                    "--seconds",
                    "6",
                    "--rate",
                    "100",
                    "--connections",
                    "4",
                    "--new-connection",
                ],
            )
        });
        let doomed = mesh.pods(name, "server").into_iter().find(|pod| !pod.name.starts_with("sick"));
        let doomed = doomed.expect("a server").name;
        mesh.sandbox(&["delete", "pod", &doomed, "-n", name]).ok();
        requests.join().expect("traffic")
    });
    assert_eq!(traffic["errors"], json!({}), "{traffic}");
    assert_eq!(traffic["ok"], traffic["requests"], "{traffic}");
    let pods = traffic["pods"].as_object().expect("pods");
    assert!(pods.keys().all(|pod| !pod.starts_with("sick")), "{traffic}");
}

#[test]
fn client_ip_affinity_keeps_the_endpoint() {
    let mesh = MESH.beside();
    let shop = Shop::new("sticky", Labelled::Yes).servers(3);
    let (client, _) = mesh.open(&shop, "sticky");
    mesh.apply(&shop.service("server", &json!({"sessionAffinity": "ClientIP"})));
    eventually("one client, one endpoint", SOON, || {
        let answered = pods_that_answer(&mesh, &client, &address("server"), 60);
        if answered.len() == 1 { Ok(()) } else { Err(format!("{answered:?}")) }
    });
}

#[test]
fn internal_traffic_policy_local_stays_on_the_node() {
    let mesh = MESH.beside();
    let (shop, client, _) = open(&mesh, "local");
    let near = shop.account("near") + &shop.deployment("near", 1, Some("node1"), &[]);
    let far = shop
        .deployment("near", 1, Some("node2"), &[])
        .replace("\"name\":\"near\",\"namespace\"", "\"name\":\"far\",\"namespace\"");
    mesh.apply(
        &(near
            + &far.replace("{\"app\":\"near\"}", "{\"app\":\"near\",\"far\":\"yes\"}")
            + &shop.service("near", &json!({"internalTrafficPolicy": "Local"}))),
    );
    mesh.settled("local");
    mesh.reaches(&client, "near:9000");
    eventually("only the near endpoint answers", SOON, || {
        let answered = pods_that_answer(&mesh, &client, &address("near"), 40);
        match answered.as_slice() {
            [(name, _)] if name.starts_with("near") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // Without an endpoint on the node there is none.
    mesh.sandbox(&["delete", "deployment", "near", "-n", "local"]).ok();
    eventually("no endpoint is left on the node", SOON, || {
        let report = mesh.echo(&client, &["tcp", "send", "near:9000", "--timeout", "2000"]);
        if report["ok"] == false { Ok(()) } else { Err(report.to_string()) }
    });
}

#[test]
fn enrolled_pods_reach_unenrolled_ones_and_back_in_plaintext() {
    let mesh = MESH.beside();
    let (_, client, server) = open(&mesh, "inside");
    let (stranger, other) = mesh.open(&Shop::new("unenrolled", Labelled::No), "unenrolled");
    mesh.reaches(&client, "server.unenrolled:9000");
    mesh.reaches(&client, &other.at_v6(9000));
    mesh.reaches(&stranger, "server.inside:9000");
    mesh.reaches(&stranger, &server.at(9000));
}

#[test]
fn a_pod_reaches_itself_and_its_loopback_without_the_proxy() {
    let mesh = MESH.beside();
    let (_, _, server) = open(&mesh, "own");
    for target in [server.at(9000), server.at_v6(9000), "127.0.0.1:9000".to_owned(), "[::1]:9000".to_owned()]
    {
        let report = mesh.echo(&server, &["tcp", "send", &target]);
        assert_eq!(report["ok"], true, "{target}: {report}");
    }
    // By the Service it may be any endpoint, itself included.
    assert_eq!(mesh.echo(&server, &["tcp", "send", "server:9000"])["ok"], true);
}
