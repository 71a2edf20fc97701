//! What happens inside a pod's network namespace, with the rules of `nft` and with those of `iptables`.

use culvert_e2e::{Exclusive, Labelled, Mesh, Pod, SOON, Session, Shared, Shop, eventually};
use serde_json::Value;
use std::time::Duration;

static NFT: Shared = Shared::with("nft", &["--component-arg", "culvert-node-proxy=--firewall=nft"]);
static IPTABLES: Shared =
    Shared::with("iptables", &["--component-arg", "culvert-node-proxy=--firewall=iptables"]);

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn at(self, pod: &Pod, port: u16) -> String {
        match self {
            Self::V4 => pod.at(port),
            Self::V6 => pod.at_v6(port),
        }
    }
}

fn token() -> String {
    format!("token-{:032x}", rand::random::<u128>())
}

fn send(mesh: &Mesh, from: &Pod, target: &str, token: &str) -> Value {
    mesh.echo(from, &["tcp", "send", target, "--data", token, "--timeout", "2500"])
}

/// Kills the proxy of the server's node, then that of the client's: no byte goes anywhere, in plaintext least of all.
fn closed_while_no_proxy_listens(mesh: &Exclusive<'_>, family: Family, name: &str) {
    let (client, server) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    let outside = format!("{name}-outside");
    let (stranger, other) = mesh.open(&Shop::new(&outside, Labelled::No), &outside);
    let target = family.at(&server, 9000);
    assert_eq!(send(mesh, &stranger, &target, "before")["ok"], true);

    mesh.component("kill", "node-proxy/node2");
    for (from, what) in [(&stranger, "plaintext"), (&client, "enrolled")] {
        let word = token();
        let recording = mesh.record_pod(&server);
        let report = send(mesh, from, &target, &word);
        let summary = recording.finish(&word);
        assert_eq!(report["ok"], false, "{what}: {report}");
        assert!(summary.token_seen.is_empty(), "{what}: no byte reached the pod: {:?}", summary.token_seen);
    }
    mesh.component("start", "node-proxy/node2");
    mesh.reaches(&stranger, &target);
    mesh.reaches(&client, &target);

    mesh.component("kill", "node-proxy/node1");
    for target in [family.at(&server, 9000), family.at(&other, 9000)] {
        let word = token();
        let recording = mesh.record_pod(&client);
        let report = send(mesh, &client, &target, &word);
        let summary = recording.finish(&word);
        assert_eq!(report["ok"], false, "{target}: {report}");
        let payload: u64 = summary.connections.iter().map(|one| one.sent + one.received).sum();
        assert!(
            summary.token_seen.is_empty() && payload == 0,
            "no byte left the pod: {:?}",
            summary.connections
        );
    }
    mesh.component("start", "node-proxy/node1");
    mesh.reaches(&client, &target);
}

#[test]
fn closed_while_no_proxy_listens_nft_ipv4() {
    closed_while_no_proxy_listens(&NFT.alone(), Family::V4, "closed-four");
}

#[test]
fn closed_while_no_proxy_listens_nft_ipv6() {
    closed_while_no_proxy_listens(&NFT.alone(), Family::V6, "closed-six");
}

#[test]
fn closed_while_no_proxy_listens_iptables_ipv4() {
    closed_while_no_proxy_listens(&IPTABLES.alone(), Family::V4, "closed-four");
}

#[test]
fn closed_while_no_proxy_listens_iptables_ipv6() {
    closed_while_no_proxy_listens(&IPTABLES.alone(), Family::V6, "closed-six");
}

/// Sends by Service and by pod, both families, with the link recorded.
fn captured_and_encrypted(mesh: &Mesh, name: &str) {
    let (client, server) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    for target in ["server:9000".to_owned(), server.at(9000), server.at_v6(9000)] {
        let word = token();
        let recording = mesh.record("node1");
        let report = send(mesh, &client, &target, &word);
        let summary = recording.finish(&word);
        assert_eq!(report["ok"], true, "{target}: {report}");
        assert!(summary.token_seen.is_empty(), "{target}: {:?}", summary.token_seen);
    }
}

#[test]
fn captured_and_encrypted_nft() {
    captured_and_encrypted(&NFT.beside(), "captured");
}

#[test]
fn captured_and_encrypted_iptables() {
    captured_and_encrypted(&IPTABLES.beside(), "captured");
}

/// 200 echo connections each way, a byte on each after each event.
struct Held<'a> {
    mesh: &'a Mesh,
    sessions: Vec<Session>,
}

impl Held<'_> {
    const CONNECTIONS: u64 = 200;

    fn open(&mut self, from: &Pod, target: &str) {
        let count = Self::CONNECTIONS.to_string();
        let session = self.mesh.echo_session(from, &["hold", target, "--connections", &count]);
        assert_eq!(session.next(PATIENCE)["ok"], Self::CONNECTIONS);
        self.sessions.push(session);
    }

    #[track_caller]
    fn all_alive(&mut self, event: &str) {
        for (index, session) in self.sessions.iter_mut().enumerate() {
            let report = session.ask(event, PATIENCE);
            assert_eq!(report["ok"], Self::CONNECTIONS, "direction {index} after {event}: {report}");
        }
    }
}

fn flush(mesh: &Mesh, pod: &Pod, firewall: Firewall) {
    match firewall {
        Firewall::Nft => {
            mesh.exec(pod, &["sh", "-c", "PATH=$PATH:/usr/sbin nft flush ruleset"]).ok();
        }
        Firewall::Iptables => {
            let flush = "PATH=$PATH:/usr/sbin; iptables -t mangle -F && ip6tables -t mangle -F";
            mesh.exec(pod, &["sh", "-c", flush]).ok();
        }
    }
}

#[derive(Clone, Copy)]
enum Firewall {
    Nft,
    Iptables,
}

fn connections_survive(mesh: &Exclusive<'_>, firewall: Firewall) {
    let name = "survive";
    let shop = Shop::new(name, Labelled::No);
    let (client, server) = mesh.open(&shop, name);
    let mut held = Held { mesh, sessions: Vec::new() };
    held.open(&client, "server:9000");
    held.open(&server, &client.at(9000));
    held.all_alive("opened");
    mesh.apply(&shop.clone().labelled(Labelled::Yes).namespace());
    mesh.settled(name);
    held.all_alive("labelled");
    // And as many that the proxies carry.
    held.open(&client, &server.at_v6(9000));
    held.open(&server, &client.at(9000));
    held.all_alive("captured ones opened");
    let repairs = |node: &str| mesh.metrics(node).sum("culvert_rule_repairs_total", &[]);
    let before = repairs("node1") + repairs("node2");
    flush(mesh, &client, firewall);
    flush(mesh, &server, firewall);
    // Repair follows the flush by milliseconds; a byte sent in between would leave the pod past the proxy and find no
    // connection there (docs/architecture.md, known limits), so the next one waits for it.
    eventually("the rules are repaired and counted", SOON, || {
        let now = repairs("node1") + repairs("node2");
        if now >= before + 2.0 { Ok(()) } else { Err(format!("{now} repairs")) }
    });
    held.all_alive("rules flushed and repaired");
    let word = token();
    let recording = mesh.record("node1");
    let report = send(mesh, &client, "server:9000", &word);
    assert_eq!(report["ok"], true, "{report}");
    assert!(recording.finish(&word).token_seen.is_empty(), "new connections are captured again");
    mesh.apply(&shop.namespace());
    eventually("the label's removal takes effect", SOON, || {
        let word = token();
        let recording = mesh.record("node1");
        let report = send(mesh, &client, "server:9000", &word);
        let readable = !recording.finish(&word).token_seen.is_empty();
        if readable { Ok(()) } else { Err(report.to_string()) }
    });
    held.all_alive("unlabelled");
    held.all_alive("and a little later");
}

#[test]
fn two_hundred_connections_each_way_survive_label_flush_repair_unlabel_nft() {
    connections_survive(&NFT.alone(), Firewall::Nft);
}

#[test]
fn two_hundred_connections_each_way_survive_label_flush_repair_unlabel_iptables() {
    connections_survive(&IPTABLES.alone(), Firewall::Iptables);
}

/// Sends with the link recorded: whether the token was readable there.
fn readable(mesh: &Mesh, from: &Pod, target: &str) -> bool {
    let word = token();
    let recording = mesh.record("node1");
    let report = send(mesh, from, target, &word);
    let seen = recording.finish(&word).token_seen;
    assert_eq!(report["ok"], true, "{target}: {report}");
    !seen.is_empty()
}

fn exclusions(mesh: &Mesh, prefix: &str) {
    let name = format!("{prefix}-ports");
    let (client, server) =
        mesh.open(&Shop::new(&name, Labelled::Yes).setting("exclude-outbound-ports", "9000"), &name);
    for target in [server.at(9000), server.at_v6(9000), "server:9000".to_owned()] {
        assert!(readable(mesh, &client, &target), "exclude-outbound-ports: {target} goes past the mesh");
    }
    let report = mesh.echo(&client, &["get", &format!("http://{}/", server.at(8080))]);
    assert_eq!(report["ok"], 1, "other ports are captured: {report}");

    let name = format!("{prefix}-cidrs");
    let (client, server) = mesh.open(&Shop::new(&name, Labelled::Yes), &name);
    let ranges = format!("{}/32,{}/128", server.v4(), server.v6());
    mesh.apply(&Shop::new(&name, Labelled::Yes).setting("exclude-outbound-cidrs", &ranges).namespace());
    for target in [server.at(9000), server.at_v6(9000)] {
        eventually(&format!("exclude-outbound-cidrs: {target} goes past the mesh"), SOON, || {
            if readable(mesh, &client, &target) { Ok(()) } else { Err("captured") }
        });
    }

    let name = format!("{prefix}-inbound");
    let shop = Shop::new(&name, Labelled::Yes)
        .setting("inbound-mode", "strict")
        .setting("exclude-inbound-ports", "9000");
    let (_, server) = mesh.open(&shop, &name);
    let outside = format!("{name}-outside");
    let (stranger, _) = mesh.open(&Shop::new(&outside, Labelled::No), &outside);
    for target in [server.at(9000), server.at_v6(9000)] {
        assert!(
            readable(mesh, &stranger, &target),
            "exclude-inbound-ports: {target} is not captured, strict or not"
        );
    }
    let refused =
        mesh.echo(&stranger, &["get", &format!("http://{}/", server.at(8080)), "--timeout", "2500"]);
    assert_eq!(refused["ok"], 0, "other ports are: {refused}");
}

#[test]
fn every_exclusion_shown_by_capture_nft() {
    exclusions(&NFT.beside(), "ex");
}

#[test]
fn every_exclusion_shown_by_capture_iptables() {
    exclusions(&IPTABLES.beside(), "ex");
}

fn udp(mesh: &Mesh, name: &str) {
    let shop = Shop::new(name, Labelled::Yes);
    let (client, server) = mesh.open(&shop, name);
    mesh.datagrams_reach(&client, "server:9002");
    for target in ["server:9002".to_owned(), server.at(9002), server.at_v6(9002)] {
        let report = mesh.echo(&client, &["udp", &target, "--data", "datagram"]);
        let received = report["received"] == "datagram";
        assert!(received, "{target}: {report}, endpoints {:?}", mesh.items("endpointslices", name));
    }
    mesh.apply(&shop.setting("udp", "deny").namespace());
    for target in [server.at(9002), server.at_v6(9002)] {
        eventually(&format!("udp=deny stops {target}"), SOON, || {
            let report = mesh.echo(&client, &["udp", &target, "--timeout", "900"]);
            if report["ok"] == false { Ok(()) } else { Err(report.to_string()) }
        });
    }
    assert_eq!(mesh.echo(&client, &["tcp", "send", &server.at(9000)])["ok"], true, "TCP goes on");
}

#[test]
fn udp_passes_or_is_denied_nft() {
    udp(&NFT.beside(), "udp");
}

#[test]
fn udp_passes_or_is_denied_iptables() {
    udp(&IPTABLES.beside(), "udp");
}

#[test]
fn every_payload_between_enrolled_pods_is_tls_1_3() {
    let mesh = NFT.alone();
    let name = "payload";
    let shop = Shop::new(name, Labelled::Yes);
    let recording = mesh.record("node1");
    let (client, server) = mesh.open(&shop, name);
    for target in ["server:9000".to_owned(), server.at(9000), server.at_v6(9000)] {
        assert_eq!(send(&mesh, &client, &target, "x")["ok"], true);
    }
    assert_eq!(mesh.echo(&client, &["get", "http://server:8080/", "--count", "50"])["ok"], 50);
    let summary = recording.finish("");
    let addresses = [&client.addresses[..], &server.addresses[..]].concat();
    let spoken: Vec<_> = summary.between(&addresses).filter(|one| one.sent + one.received > 0).collect();
    assert!(!spoken.is_empty());
    for one in spoken {
        assert_eq!(
            (one.server.port(), &one.tls, one.missing),
            (15008, &culvert_cli::capture::Tls::V13, 0),
            "{one:?}"
        );
    }
}

fn mesh_config(spec: &str) -> String {
    format!(
        "---\napiVersion: culvert.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec: {spec}\n"
    )
}

#[test]
fn settings_of_the_mesh_config_hold_for_every_namespace() {
    let mesh = NFT.alone();
    let name = "mesh-wide";
    let (client, server) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    let outside = format!("{name}-outside");
    let (stranger, _) = mesh.open(&Shop::new(&outside, Labelled::No), &outside);
    assert!(!readable(&mesh, &client, &server.at(9000)));
    mesh.apply(&mesh_config(
        r#"{excludeOutboundPorts: "9000", inboundMode: strict, inboundModePorts: "9000=permissive"}"#,
    ));
    eventually("the excluded port goes past the mesh", SOON, || {
        if readable(&mesh, &client, &server.at(9000)) { Ok(()) } else { Err("captured") }
    });
    eventually("the mesh is strict", SOON, || {
        let report = mesh
            .echo(&stranger, &["tcp", "send", &server.at(9001), "--until", "banner", "--timeout", "2500"]);
        if report["ok"] == false { Ok(()) } else { Err(report.to_string()) }
    });
    // What one namespace says for itself wins.
    mesh.apply(
        &Shop::new(name, Labelled::Yes)
            .setting("exclude-outbound-ports", "")
            .setting("inbound-mode", "permissive")
            .namespace(),
    );
    eventually("the namespace's own settings win", SOON, || {
        let banner = mesh
            .echo(&stranger, &["tcp", "send", &server.at(9001), "--until", "banner", "--timeout", "2500"]);
        if banner["ok"] == true && !readable(&mesh, &client, &server.at(9000)) {
            Ok(())
        } else {
            Err(banner.to_string())
        }
    });
    mesh.apply(&mesh_config("{}"));
}

#[test]
fn captured_connections_take_no_port_of_uncaptured_ones() {
    const MANY: u64 = 3000;
    let mesh = NFT.alone();
    let name = "ports";
    let shop = Shop::new(name, Labelled::No);
    let (client, server) = mesh.open(&shop, name);
    let count = MANY.to_string();
    // By the Service: towards the pod's own address the kernel would hand out ports in one sequence to both.
    let vip = mesh.get("service", Some(name), Some("server"))["spec"]["clusterIP"]
        .as_str()
        .expect("a VIP")
        .to_owned();
    let mut old = mesh.echo_session(&client, &["hold", &format!("{vip}:9000"), "--connections", &count]);
    assert_eq!(old.next(PATIENCE)["ok"], MANY);
    mesh.apply(&shop.labelled(Labelled::Yes).namespace());
    mesh.settled(name);
    let mut new = mesh.echo_session(&client, &["hold", &server.at(9000), "--connections", &count]);
    assert_eq!(new.next(PATIENCE)["ok"], MANY);
    assert_eq!(old.ask("beside captured ones", PATIENCE)["ok"], MANY);
    assert_eq!(new.ask("and those", PATIENCE)["ok"], MANY);
}
