//! Who is who: what peers, the CA and the controller ask to be proven, and what they refuse.

use culvert_e2e::{Labelled, Mesh, Pod, SOON, Shared, Shop, binary, eventually};
use serde_json::Value;
use std::time::Duration;

/// A new root is published for three seconds before it signs; certificates live for twenty.
static MESH: Shared = Shared::with(
    "identity",
    &["--component-arg", "culvert-ca=--root-overlap=3s", "--component-arg", "culvert-ca=--max-lifetime=20s"],
);

const PATIENCE: Duration = Duration::from_secs(20);
const CA: &str = "https://10.89.0.2:15012";
const CONTROLLER: &str = "https://10.89.0.2:15010";
const BUNDLE: &str = "/run/sandbox/trust/bundle.pem";

struct Scene {
    client: Pod,
    server: Pod,
    /// Not enrolled, so what it sends is what arrives.
    stranger: Pod,
}

fn scene(mesh: &Mesh, name: &str) -> Scene {
    let (client, server) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    let outside = format!("{name}-outside");
    let (stranger, _) = mesh.open(&Shop::new(&outside, Labelled::No), &outside);
    Scene { client, server, stranger }
}

/// The CA's own key: the tests forge with it.
fn authority(mesh: &Mesh) -> String {
    let state = mesh.node_exec("control-plane", &["cat", "/run/sandbox/ca/authority.json"]).ok().stdout;
    mesh.write(&format!("authority-{:08x}.json", rand::random::<u32>()), &state)
}

/// Opens a tunnel to the server from outside the mesh's own code.
fn tunnel(mesh: &Mesh, from: &Pod, server: &Pod, authority: &str, more: &[&str]) -> Value {
    let hbone = binary("hbone").display().to_string();
    let (target, connect) = (server.at(15008), server.at(9000));
    let fixed = [&hbone, "client", "--target", &target, "--connect", &connect, "--authority", authority];
    mesh.exec(from, &[&fixed, more].concat()).ok().json()
}

const FRIEND: &str = "spiffe://cluster.local/ns/elsewhere/sa/friend";

fn refused(mesh: &Mesh, node: &str, reason: &str) -> f64 {
    mesh.metrics(node).sum("culvert_refused_total", &[("reason", reason)])
}

/// Nobody who fails to prove an identity of the trust domain gets as far as a stream; metric and access log say so.
fn assert_refused(name: &str, flaw: &[&str], words: &str) {
    let mesh = MESH.beside();
    let Scene { server, stranger, .. } = scene(&mesh, name);
    let authority = authority(&mesh);
    let good = tunnel(&mesh, &stranger, &server, &authority, &["--identity", FRIEND]);
    assert_eq!(good["streams"][0]["received"], "hello", "a good certificate gets through: {good}");
    let before = refused(&mesh, "node2", "TlsHandshake");
    let bad = tunnel(&mesh, &stranger, &server, &authority, flaw);
    let stream = &bad["streams"][0];
    assert!(stream["status"].is_null() && stream["received"].is_null(), "{flaw:?}: {bad}");
    eventually("metric and access log say why", SOON, || {
        let log = mesh.logs("node-proxy/node2");
        let said = log.lines().any(|line| {
            line.contains("\"reason\":\"TlsHandshake\"")
                && line.contains(&stranger.v4().to_string())
                && line.contains(words)
        });
        let counted = refused(&mesh, "node2", "TlsHandshake") > before;
        if said && counted { Ok(()) } else { Err(format!("said: {said}, counted: {counted}\n{log}")) }
    });
}

#[test]
fn a_client_of_another_trust_domain_is_refused() {
    let foreign = "spiffe://elsewhere.org/ns/elsewhere/sa/friend";
    assert_refused("foreign", &["--identity", foreign], "of no accepted trust domain");
}

#[test]
fn a_client_of_an_unknown_root_is_refused() {
    assert_refused("root", &["--identity", FRIEND, "--flaw", "unknown-root"], "UnknownIssuer");
}

#[test]
fn a_client_with_an_expired_certificate_is_refused() {
    assert_refused("expired", &["--identity", FRIEND, "--flaw", "expired"], "expired");
}

#[test]
fn a_client_with_a_certificate_of_the_future_is_refused() {
    assert_refused("future", &["--identity", FRIEND, "--flaw", "not-yet-valid"], "not valid yet");
}

#[test]
fn a_client_without_certificate_is_refused() {
    assert_refused("bare", &["--identity", FRIEND, "--flaw", "no-certificate"], "no certificates");
}

#[test]
fn a_client_without_spiffe_identity_is_refused() {
    assert_refused("nobody", &["--identity", FRIEND, "--flaw", "no-identity"], "invalid peer certificate");
}

#[test]
fn a_client_with_two_identities_is_refused() {
    assert_refused(
        "twofaced",
        &["--identity", FRIEND, "--flaw", "two-identities"],
        "invalid peer certificate",
    );
}

#[test]
fn a_certificate_for_another_purpose_is_refused() {
    assert_refused("purpose", &["--identity", FRIEND, "--flaw", "other-usage"], "extended key usage");
}

/// A server in the place of the real one (its node proxy is dead, and somebody in the pod took the port) that proves
/// something else than the identity the controller says the pod has.
fn assert_impostor(name: &str, identity: &str, flaw: &str, reason: &str) {
    let mesh = MESH.alone();
    let Scene { client, server, .. } = scene(&mesh, name);
    let authority = authority(&mesh);
    mesh.component("kill", "node-proxy/node2");
    let hbone = binary("hbone").display().to_string();
    let place = ["exec", "-n", &server.namespace, &server.name, "--", &hbone, "server"];
    let address = ["--listen", "0.0.0.0:15008", "--forward", "127.0.0.1:9000"];
    let proof = ["--authority", authority.as_str(), "--identity", identity, "--flaw", flaw];
    let impostor =
        culvert_e2e::Session::start(mesh.command(&[&place[..], &address[..], &proof[..]].concat()));
    assert_eq!(impostor.next(PATIENCE)["event"], "listening");
    let before = refused(&mesh, "node1", reason);
    let report =
        mesh.echo(&client, &["tcp", "send", &server.at(9000), "--data", "secret", "--timeout", "5000"]);
    assert_eq!(report["received"], "", "{report}");
    assert_eq!(report["ok"], false, "{report}");
    eventually("it is counted", SOON, || {
        let now = refused(&mesh, "node1", reason);
        if now > before { Ok(()) } else { Err(format!("{now}")) }
    });
    let words = impostor.end(PATIENCE).concat();
    assert!(!words.contains("\"event\":\"stream\""), "the impostor saw a stream: {words}");
    mesh.component("start", "node-proxy/node2");
    eventually("the real one is spoken to again", SOON, || {
        let report = mesh.echo(&client, &["tcp", "send", &server.at(9000), "--timeout", "5000"]);
        if report["ok"] == true { Ok(()) } else { Err(report.to_string()) }
    });
}

#[test]
fn a_server_with_another_identity_of_the_trust_domain_is_refused() {
    assert_impostor("impostor", FRIEND, "nothing", "PeerIdentity");
}

#[test]
fn a_server_with_an_expired_certificate_is_refused() {
    assert_impostor(
        "stale-server",
        "spiffe://cluster.local/ns/stale-server/sa/server",
        "expired",
        "TlsHandshake",
    );
}

#[test]
fn a_server_of_another_trust_domain_is_refused() {
    assert_impostor(
        "foreign-server",
        "spiffe://elsewhere.org/ns/foreign-server/sa/server",
        "nothing",
        "PeerIdentity",
    );
}

/// Asks as whoever has the token of `holder`, from any node.
fn ask(mesh: &Mesh, what: &str, url: &str, holder: &str, more: &[&str]) -> Value {
    let (ask, token) = (binary("ask").display().to_string(), format!("/run/sandbox/tokens/{holder}"));
    let fixed = [&ask, what, "--url", url, "--token", &token, "--bundle", BUNDLE];
    mesh.node_exec("node2", &[&fixed, more].concat()).ok().json()
}

#[test]
fn the_ca_signs_only_identities_that_run_on_the_tokens_node() {
    let mesh = MESH.beside();
    scene(&mesh, "signs");
    let asked =
        |holder: &str, identity: &str| ask(&mesh, "certificate", CA, holder, &["--identity", identity]);
    let (client, server) =
        ("spiffe://cluster.local/ns/signs/sa/client", "spiffe://cluster.local/ns/signs/sa/server");
    assert_eq!(asked("node-proxy-node1", client)["granted"], client);
    assert_eq!(asked("node-proxy-node2", server)["granted"], server);
    for (holder, identity, word) in [
        ("node-proxy-node1", server, "NoPodOnNode"),
        ("node-proxy-node2", client, "NoPodOnNode"),
        ("node-proxy-node1", "spiffe://cluster.local/ns/culvert-system/sa/culvert-ca", "ReservedNamespace"),
        ("node-proxy-node1", "spiffe://elsewhere.org/ns/signs/sa/client", "TrustDomain"),
        ("controller", client, "NotANodeProxy"),
    ] {
        let answer = asked(holder, identity);
        let said = answer["refused"].as_str().unwrap_or_default();
        assert!(said.contains(word), "{holder} asks for {identity}: {answer}");
    }
    let log = mesh.logs("ca");
    assert!(
        log.lines().any(|line| line.contains("NoPodOnNode") && line.contains(server)),
        "no audit line\n{log}"
    );
}

#[test]
fn the_controller_tells_a_node_about_itself_by_its_token() {
    let mesh = MESH.beside();
    let Scene { client, server, .. } = scene(&mesh, "tells");
    for (holder, node, own, other) in [
        ("node-proxy-node1", "node1", &client.name, &server.name),
        ("node-proxy-node2", "node2", &server.name, &client.name),
    ] {
        // Asked from node2 both times: the token decides, not the place.
        let told = ask(&mesh, "state", CONTROLLER, holder, &[]);
        assert_eq!(told["node"], node);
        let has = |list: &str, pod: &str| {
            let name = Value::from(format!("tells/{pod}"));
            told[list].as_array().is_some_and(|all| all.contains(&name))
        };
        assert!(has("own", own) && !has("others", own), "{told}");
        assert!(has("others", other) && !has("own", other), "{told}");
    }
    let refused = ask(&mesh, "state", CONTROLLER, "controller", &[]);
    assert!(refused["refused"].as_str().is_some_and(|said| said.contains("service account")), "{refused}");
}

/// Number of the roots in each phase.
fn phases(mesh: &Mesh) -> Vec<String> {
    let text = mesh.node_exec("control-plane", &["cat", "/run/sandbox/ca/authority.json"]).ok().stdout;
    let state: Value = serde_json::from_str(&text).unwrap_or_default();
    let all = state["roots"].as_array().cloned().unwrap_or_default();
    all.iter().filter_map(|root| root["phase"].as_str().map(str::to_owned)).collect()
}

/// Signs with the root that was active first, and trusts that one and the one active now.
fn old_signs_all_trusted(mesh: &Mesh, old: &str, new: &str) -> String {
    let [mut old, new] = [old, new].map(|path| -> Value {
        let text = std::fs::read_to_string(path).expect("written by this test");
        serde_json::from_str(&text).expect("copied from the CA")
    });
    let trusted = new["roots"].as_array().into_iter().flatten().filter(|root| root["phase"] == "active");
    for root in trusted {
        let mut root = root.clone();
        root["phase"] = "announced".into();
        old["roots"].as_array_mut().expect("a list").push(root);
    }
    mesh.write("old-signs.json", &old.to_string())
}

/// Generation of every certificate in force, both nodes together.
fn generations(mesh: &Mesh) -> Vec<(String, u64)> {
    let all = ["node1", "node2"].map(|node| {
        let config = mesh.config(node);
        let certificates = config["certificates"].as_array().cloned().unwrap_or_default();
        certificates
            .into_iter()
            .map(|one| (one["identity"].to_string(), one["generation"].as_u64().unwrap_or(0)))
    });
    all.into_iter().flatten().collect()
}

#[test]
fn a_new_root_is_taken_up_under_traffic_without_a_lost_connection() {
    let mesh = MESH.alone();
    let Scene { client, server, stranger } = scene(&mesh, "rotation");
    let old = authority(&mesh);
    assert_eq!(phases(&mesh), ["active"]);
    let mut held = mesh.echo_session(&client, &["hold", "server:9000", "--connections", "50"]);
    assert_eq!(held.next(PATIENCE)["ok"], 50);
    let mut traffic = |when: &str| {
        assert_eq!(held.ask("still open", PATIENCE)["ok"], 50, "held connections, {when}");
        let storm = ["storm", "server:9000", "--total", "50", "--parallel", "4", "--close", "reset"];
        let report = mesh.echo(&client, &storm);
        assert_eq!(report["ok"], 50, "new connections, {when}: {report}");
    };
    let ca = binary("culvert-ca").display().to_string();
    mesh.node_exec("control-plane", &[&ca, "rotate-root", "--data-dir", "/run/sandbox/ca"]).ok();
    eventually("the new root is announced beside the old one", SOON, || {
        traffic("while it is announced");
        let phases = phases(&mesh);
        if phases == ["active", "announced"] { Ok(()) } else { Err(format!("{phases:?}")) }
    });
    eventually("the new root signs", SOON, || {
        traffic("until the new one signs");
        let phases = phases(&mesh);
        if phases == ["retiring", "active"] { Ok(()) } else { Err(format!("{phases:?}")) }
    });
    let signed_before = generations(&mesh);
    eventually("every certificate is signed by it", Duration::from_secs(40), || {
        traffic("until everybody has a certificate of the new one");
        let now = generations(&mesh);
        if now.iter().all(|one| !signed_before.contains(one)) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    // Until everything the old one signed has ended, either is trusted.
    let new = authority(&mesh);
    for authority in [old_signs_all_trusted(&mesh, &old, &new), new] {
        let report = tunnel(&mesh, &stranger, &server, &authority, &["--identity", FRIEND]);
        assert_eq!(report["streams"][0]["received"], "hello", "{report}");
    }
    traffic("at the end");
    held.end(PATIENCE);
}
