//! Traffic stays near where its Service asks for that, as long as that is good for it. Each node of a sandbox is a zone.

use culvert_e2e::{Labelled, Mesh, Pod, SOON, Shared, Shop, eventually};
use serde_json::{Value, json};

static MESH: Shared = Shared::new("zones");

const HTTP: u16 = 8080;

fn web(shop: &Shop, distribution: &str) -> String {
    shop.parted_service("web", &json!({"trafficDistribution": distribution}))
}

fn near(shop: &Shop, replicas: u32, serve: &[&str]) -> String {
    shop.part("web", "near", "node1", replicas, serve)
}

/// A client on the first node, and one pod behind `web` on each.
fn open(mesh: &Mesh, namespace: &str, serve: &[&str]) -> (Shop, Pod) {
    let shop = Shop::new(namespace, Labelled::Yes);
    let mut all = shop.namespace() + &shop.account("client");
    all += &shop.deployment("client", 1, Some("node1"), &[]);
    all += &near(&shop, 1, serve);
    all += &shop.part("web", "far", "node2", 1, &["--http", "8080"]);
    mesh.apply(&(all + &web(&shop, "PreferSameZone")));
    mesh.settled(namespace);
    let client = mesh.pod(namespace, "client");
    (shop, client)
}

/// Which pods answer.
fn answered_by(mesh: &Mesh, client: &Pod, path: &str) -> Result<Vec<String>, String> {
    let url = format!("http://web:{HTTP}{path}");
    let report = mesh.echo(client, &["get", &url, "--count", "40", "--new-connection"]);
    let names = report["pods"].as_object().map(|pods| pods.keys().cloned().collect::<Vec<_>>());
    match names.filter(|_| report["ok"] == 40) {
        // Named after their Deployments.
        Some(names) => Ok(names.iter().filter_map(|name| Some(name.split('-').next()?.to_owned())).collect()),
        None => Err(report.to_string()),
    }
}

#[track_caller]
fn settles_on(mesh: &Mesh, client: &Pod, path: &str, expected: &[&str]) {
    eventually(&format!("{expected:?} answer"), SOON, || match answered_by(mesh, client, path) {
        Ok(pods) if pods == expected => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn traffic_stays_in_its_zone_while_there_is_an_endpoint() {
    let mesh = MESH.beside();
    let namespace = "zone";
    let (shop, client) = open(&mesh, namespace, &["--http", "8080"]);
    settles_on(&mesh, &client, "/", &["near"]);
    // The same by node, and both without a preference.
    mesh.apply(&web(&shop, "PreferSameNode"));
    let hints = || mesh.items("endpointslices", namespace);
    let is_hinted = |slice: &Value| slice["endpoints"][0]["hints"]["forNodes"].is_array();
    eventually("the slices hint at nodes", SOON, || {
        let slices = hints();
        if slices.iter().all(is_hinted) { Ok(()) } else { Err(format!("{slices:?}")) }
    });
    settles_on(&mesh, &client, "/", &["near"]);
    mesh.apply(&web(&shop, "PreferClose"));
    settles_on(&mesh, &client, "/", &["near"]);
    // Without it all traffic goes elsewhere, and comes back with it.
    mesh.apply(&near(&shop, 0, &["--http", "8080"]));
    settles_on(&mesh, &client, "/", &["far"]);
    mesh.apply(&near(&shop, 1, &["--http", "8080"]));
    settles_on(&mesh, &client, "/", &["near"]);
}

#[test]
fn traffic_leaves_its_zone_when_the_endpoint_there_is_ejected() {
    let mesh = MESH.beside();
    let namespace = "spill";
    let (_, client) = open(&mesh, namespace, &["--script", "8080"]);
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let bad = hex("HTTP/1.1 503 Whatever\r\ncontent-length: 0\r\n\r\n");
    settles_on(&mesh, &client, &format!("/?hex={bad}&keep=1"), &["far"]);
    let body = "{\"pod\":\"near\"}";
    let good = hex(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    settles_on(&mesh, &client, &format!("/?hex={good}&keep=1"), &["near"]);
}
