//! Waves of faults under traffic.

use culvert_e2e::{Labelled, SOON, Shared, Shop, binary, eventually};
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

static MESH: Shared = Shared::new("waves");

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn ten_waves_of_faults_and_never_plaintext() {
    let mesh = MESH.alone();
    let name = "waves";
    let shop = Shop::new(name, Labelled::Yes).servers(3);
    let (client, _) = mesh.open(&shop, name);
    let marker = "GET /marker-of-the-waves";
    let recording = mesh.record("node1");
    let over = AtomicBool::new(false);
    let (asked, answered) = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let (mut asked, mut answered) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                let report = mesh.echo(
                    &client,
                    &[
                        "get",
                        "http://server:8080/marker-of-the-waves",
                        "--seconds",
                        "5",
                        "--rate",
                        "50",
                        "--connections",
                        "4",
                        "--new-connection",
                        "--timeout",
                        "5000",
                    ],
                );
                asked += report["requests"].as_u64().unwrap_or(0);
                answered += report["ok"].as_u64().unwrap_or(0);
            }
            (asked, answered)
        });
        for wave in 0..10 {
            for component in ["controller", "ca", "node-proxy/node2", "node-proxy/node1"] {
                mesh.component("crash", component);
                mesh.node_ready("node1");
                mesh.node_ready("node2");
            }
            let pods = mesh.pods(name, "server");
            let pod = &pods[wave % pods.len().max(1)];
            mesh.sandbox(&["delete", "pod", &pod.name, "-n", name]).ok();
            mesh.settled(name);
        }
        over.store(true, Ordering::Relaxed);
        traffic.join().expect("traffic")
    });
    let summary = recording.finish(marker);
    println!("{answered} of {asked} requests answered");
    assert!(summary.token_seen.is_empty(), "{:?}", summary.token_seen);
    assert!(answered * 10 >= asked * 8, "{answered} of {asked} requests answered");
    mesh.reaches(&client, "server:9000");
    let report = mesh.echo(&client, &["get", "http://server:8080/", "--count", "500", "--timeout", "5000"]);
    assert_eq!(report["ok"], 500, "{report}");
    let idle = mesh.metrics("node1").sum("process_open_fds", &[]);
    assert!(idle < 500.0, "{idle} descriptors");
}

/// Certificates that live for seconds, so that a root is let go of in minutes.
static ROOTS: Shared = Shared::with(
    "roots",
    &["--component-arg", "culvert-ca=--root-overlap=3s", "--component-arg", "culvert-ca=--max-lifetime=20s"],
);

#[test]
fn a_replaced_root_is_worth_nothing_when_what_it_signed_has_ended() {
    let mesh = ROOTS.alone();
    let name = "roots";
    let (client, server) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    let (stranger, _) = mesh.open(&Shop::new("roots-out", Labelled::No), "roots-out");
    let forged = |when: &str| {
        let words = ["--target", &server.at(15008), "--connect", &server.at(9000), "--timeout", "5000"];
        let report = mesh.hbone(&stranger, "spiffe://cluster.local/ns/elsewhere/sa/friend", &words);
        println!("{when}: {report}");
        report["streams"][0]["received"] == "hello"
    };
    assert!(forged("with the first root"));
    let old = std::fs::read(mesh.authority()).expect("just written");
    let mut held = mesh.echo_session(&client, &["hold", "server:9000", "--connections", "50"]);
    assert_eq!(held.next(PATIENCE)["ok"], 50);
    let ca = binary("culvert-ca").display().to_string();
    mesh.node_exec("control-plane", &[&ca, "rotate-root", "--data-dir", "/run/sandbox/ca"]).ok();
    // The CA waits for the clocks of others, a minute, besides the lifetime.
    eventually("one root is left", Duration::from_secs(180), || {
        assert_eq!(held.ask("still open", PATIENCE)["ok"], 50);
        mesh.reaches(&client, "server:9000");
        let now = std::fs::read_to_string(mesh.authority()).expect("just written");
        let roots = now.matches("BEGIN CERTIFICATE").count();
        if roots == 1 && now.as_bytes() != old { Ok(()) } else { Err(format!("{roots} roots")) }
    });
    eventually("the new root is trusted", SOON, || {
        if forged("with the new root") { Ok(()) } else { Err("refused") }
    });
    // The old root's key signs, and what the client trusts is the new one: only the server can be the one to refuse.
    let new = std::fs::read_to_string(mesh.authority()).expect("just written");
    let [mut old, new] = [String::from_utf8_lossy(&old).into_owned(), new]
        .map(|text| serde_json::from_str::<Value>(&text).expect("the CA's state"));
    let mut trusted = new["roots"][0].clone();
    trusted["phase"] = "announced".into();
    old["roots"].as_array_mut().expect("a list").push(trusted);
    let file = mesh.write("old-signs.json", &old.to_string());
    let (hbone, target, connect) = (binary("hbone").display().to_string(), server.at(15008), server.at(9000));
    let words = [&hbone, "client", "--target", &target, "--connect", &connect, "--authority", &file];
    let identity = ["--identity", "spiffe://cluster.local/ns/elsewhere/sa/friend"];
    eventually("the old one is not", SOON, || {
        let report = mesh.exec(&stranger, &[&words[..], &identity].concat()).json();
        if report["streams"][0]["status"].is_null() && report["tls"] == "ok" {
            Ok(())
        } else {
            Err(report.to_string())
        }
    });
    assert_eq!(held.ask("at the end", PATIENCE)["ok"], 50);
    held.end(PATIENCE);
}
