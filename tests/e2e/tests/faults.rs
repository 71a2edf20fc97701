//! Bad input and broken parts: pods fail closed, and recover by themselves.

use culvert_e2e::{Labelled, Mesh, Pod, SOON, Session, Shared, Shop, binary, eventually, holds};
use serde_json::{Value, json};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

static MESH: Shared = Shared::new("faults");
/// Certificates that live for seconds, and node proxies that drain for seconds.
static SHORT: Shared = Shared::with(
    "short",
    &["--component-arg", "culvert-ca=--max-lifetime=14s", "--component-arg", "culvert-node-proxy=--drain=4"],
);

const PATIENCE: Duration = Duration::from_secs(30);

fn send(mesh: &Mesh, from: &Pod, target: &str) -> Value {
    mesh.echo(from, &["tcp", "send", target, "--data", "word", "--timeout", "4000"])
}

/// Sends with the link recorded: whether it arrived, and whether it was readable.
fn on_the_link(mesh: &Mesh, from: &Pod, target: &str) -> (bool, bool) {
    let token = format!("token-{:032x}", rand::random::<u128>());
    let recording = mesh.record("node1");
    let report = mesh.echo(from, &["tcp", "send", target, "--data", &token, "--timeout", "4000"]);
    (report["ok"] == true, !recording.finish(&token).token_seen.is_empty())
}

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
            let report = send(&mesh, &client, "server:9000");
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
            let report = send(&mesh, &client, "server:9000");
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
            let report = send(&mesh, &client, "server:9000");
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
        let (arrived, readable) = on_the_link(&mesh, &client, &target);
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
        let (arrived, readable) = on_the_link(&mesh, &client, target);
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
    let (arrived, readable) = on_the_link(&mesh, &client, "late:9000");
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
fn certificates_are_renewed_and_serve_until_expiry_with_the_ca_down() {
    let mesh = SHORT.alone();
    let (client, _) = mesh.open(&Shop::new("expiry", Labelled::Yes), "expiry");
    let metric = |name: &str, key: &str, value: &str| mesh.metrics("node1").sum(name, &[(key, value)]);
    let expiry = || {
        metric(
            "culvert_certificate_expiry_timestamp_seconds",
            "identity",
            "spiffe://cluster.local/ns/expiry/sa/client",
        )
    };
    let failed = || {
        let of =
            |node| mesh.metrics(node).sum("culvert_certificate_requests_total", &[("result", "failure")]);
        of("node1") + of("node2")
    };
    let first = expiry();
    eventually("renewed before it ends", Duration::from_secs(40), || {
        let report = send(&mesh, &client, "server:9000");
        assert_eq!(report["ok"], true, "{report}");
        if expiry() > first { Ok(()) } else { Err("not yet") }
    });
    let failures = failed();
    mesh.component("stop", "ca");
    // Client and server have certificates of about the same age; the sooner of the two ends the service.
    let server = mesh.metrics("node2").sum(
        "culvert_certificate_expiry_timestamp_seconds",
        &[("identity", "spiffe://cluster.local/ns/expiry/sa/server")],
    );
    let end = expiry().min(server);
    assert!(end > 0.0, "both are in the metric");
    let seconds_left =
        || end - SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64());
    eventually("no service after expiry", Duration::from_secs(40), || {
        let left = seconds_left();
        let report = send(&mesh, &client, "server:9000");
        if report["ok"] == false {
            assert!(left < 3.0, "it served until {left} s before expiry only: {report}");
            return Ok(());
        }
        Err(report.to_string())
    });
    assert!(failed() > failures, "failed renewals are counted");
    eventually("the log says so", SOON, || {
        let log = mesh.logs("node-proxy/node1") + &mesh.logs("node-proxy/node2");
        let words = ["certificate request failed", "about to expire", "certificate expired"];
        words
            .into_iter()
            .find(|words| !log.contains(words))
            .map_or(Ok(()), |words| Err(format!("not {words:?}")))
    });
    let (arrived, readable) = on_the_link(&mesh, &client, "server:9000");
    assert!(!arrived && !readable, "arrived {arrived}, readable {readable}");
    mesh.component("start", "ca");
    mesh.reaches(&client, "server:9000");
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
        let (arrived, readable) = on_the_link(&mesh, &client, &pod.at(9000));
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
fn garbage_on_every_port_of_the_proxy_is_survived() {
    let mesh = MESH.beside();
    let (client, server) = mesh.open(&Shop::new("garbage", Labelled::Yes), "garbage");
    let (stranger, _) = mesh.open(&Shop::new("garbage-out", Labelled::No), "garbage-out");
    let pids = || ["node-proxy/node1", "node-proxy/node2"].map(|name| mesh.pid_of(name));
    let before = pids();
    for port in [15001, 15006, 15008] {
        for family in [server.at(port), server.at_v6(port)] {
            let report = mesh.echo(
                &stranger,
                &["raw", &family, "--random", "4096", "--connections", "30", "--timeout", "7000"],
            );
            assert_eq!(
                report["outcomes"].get("timeout"),
                None,
                "{family}: every connection is ended: {report}"
            );
        }
        // From inside the pod itself, too.
        let own = mesh.echo(
            &server,
            &[
                "raw",
                &format!("127.0.0.1:{port}"),
                "--random",
                "4096",
                "--connections",
                "10",
                "--timeout",
                "7000",
            ],
        );
        assert_eq!(own["outcomes"].get("timeout"), None, "127.0.0.1:{port}: {own}");
    }
    assert_eq!(send(&mesh, &client, "server:9000")["ok"], true);
    assert_eq!(pids(), before, "no node proxy was lost");
}

#[test]
fn slow_loris_in_tls_and_http2_is_ended() {
    let mesh = MESH.beside();
    let (client, server) = mesh.open(&Shop::new("loris", Labelled::Yes), "loris");
    let (stranger, _) = mesh.open(&Shop::new("loris-out", Labelled::No), "loris-out");
    // A ClientHello that never gets finished: one byte every 200 ms, for 30 s if nobody ends it.
    let hello = "16030102000100".to_owned() + &"00".repeat(150);
    let tls = mesh.echo(
        &stranger,
        &[
            "raw",
            &server.at(15008),
            "--hex",
            &hello,
            "--drip",
            "200",
            "--connections",
            "20",
            "--timeout",
            "20000",
        ],
    );
    assert_eq!(tls["outcomes"].get("timeout"), None, "{tls}");
    assert!(tls["longest_ms"].as_u64().is_some_and(|millis| millis < 15_000), "{tls}");
    // A handshake that is finished, and then silence.
    let identity = "spiffe://cluster.local/ns/elsewhere/sa/stock";
    let http2 = mesh.hbone(
        &stranger,
        identity,
        &[
            "--target",
            &server.at(15008),
            "--connect",
            &server.at(9000),
            "--act",
            "silence",
            "--timeout",
            "20000",
        ],
    );
    assert_ne!(http2["streams"][0]["ended"], "timeout", "{http2}");
    assert_eq!(send(&mesh, &client, "server:9000")["ok"], true);
}

#[test]
fn ten_thousand_connections_opened_and_dropped() {
    let mesh = MESH.alone();
    let (client, server) = mesh.open(&Shop::new("many", Labelled::Yes), "many");
    let descriptors = || ["node1", "node2"].map(|node| mesh.metrics(node).sum("process_open_fds", &[]));
    let before = descriptors();
    let report = mesh.echo(
        &client,
        &[
            "storm",
            "server:9000",
            "--total",
            "10000",
            "--parallel",
            "256",
            "--close",
            "reset",
            "--timeout",
            "20000",
        ],
    );
    assert_eq!(report["ok"], 10_000, "{report}");
    eventually("descriptors are given back", SOON, || {
        let now = descriptors();
        let back = (0..2).all(|node| now[node] <= before[node] + 10.0);
        if back { Ok(()) } else { Err(format!("{before:?} before, {now:?} now")) }
    });
    assert_eq!(send(&mesh, &client, &server.at(9000))["ok"], true);
}

#[test]
fn resets_at_every_stage_leave_nothing_behind() {
    let mesh = MESH.alone();
    let (client, server) = mesh.open(&Shop::new("resets", Labelled::Yes), "resets");
    let (stranger, _) = mesh.open(&Shop::new("resets-out", Labelled::No), "resets-out");
    let open = |node: &str| mesh.metrics(node).sum("process_open_fds", &[]);
    let before = (open("node1"), open("node2"));
    for stage in ["connected", "hello", "sent", "answered", "midstream"] {
        for (from, target) in
            [(&client, "server:9000".to_owned()), (&stranger, server.at(9000)), (&stranger, server.at(15008))]
        {
            if target.ends_with(":15008") && matches!(stage, "answered" | "midstream") {
                continue;
            }
            let report = mesh.echo(from, &["reset", &target, "--stage", stage, "--count", "100"]);
            assert!(
                report["reset"].as_u64().is_some_and(|count| count >= 95),
                "{stage} at {target}: {report}"
            );
        }
    }
    let identity = "spiffe://cluster.local/ns/elsewhere/sa/stock";
    for act in ["reset-stream", "reset-tunnel"] {
        let words = ["--target", &server.at(15008), "--connect", &server.at(9000), "--act", act];
        let report = mesh.hbone(&stranger, identity, &words);
        assert_eq!(report["streams"][0]["ended"], "reset", "{act}: {report}");
    }
    let own_reset = mesh.echo(&client, &["storm", "server:9007", "--total", "100"]);
    assert_eq!(own_reset["errors"]["reset"], 100, "the server's resets arrive as such: {own_reset}");
    eventually("descriptors are given back", SOON, || {
        let now = (open("node1"), open("node2"));
        let back = now.0 <= before.0 + 10.0 && now.1 <= before.1 + 10.0;
        if back { Ok(()) } else { Err(format!("{before:?} before, {now:?} now")) }
    });
    assert_eq!(send(&mesh, &client, "server:9000")["ok"], true);
}

#[test]
fn an_annotation_that_does_not_parse_is_a_condition_and_the_last_good_one_stays() {
    let mesh = MESH.beside();
    let name = "annotation";
    let shop = Shop::new(name, Labelled::Yes);
    let (_, server) = mesh.open(&shop.clone().setting("inbound-mode", "strict"), name);
    let (stranger, _) = mesh.open(&Shop::new("annotation-out", Labelled::No), "annotation-out");
    assert_eq!(send(&mesh, &stranger, &server.at(9000))["ok"], false);
    mesh.apply(&shop.clone().setting("inbound-mode", "strickt").namespace());
    let condition = eventually("a condition names it", SOON, || {
        let namespace = mesh.get("namespace", None, Some(name));
        let conditions = namespace["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .into_iter()
            .find(|one| one["type"] == "culvert.dev/Settings" && one["status"] == "False")
            .ok_or_else(|| namespace["status"].to_string())
    });
    let message = condition["message"].as_str().unwrap_or_default();
    for word in ["culvert.dev/inbound-mode", "strickt", "permissive", "strict"] {
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(send(&mesh, &stranger, &server.at(9000))["ok"], false, "the last good value holds");
    mesh.apply(&shop.setting("inbound-mode", "permissive").namespace());
    mesh.reaches(&stranger, &server.at(9000));
}

#[test]
fn descriptors_exhausted_and_recovered() {
    let mesh = MESH.alone();
    let (client, server) = mesh.open(&Shop::new("exhausted", Labelled::Yes), "exhausted");
    let (neighbour, _) = mesh.open(&Shop::new("exhausted-too", Labelled::Yes), "exhausted-too");
    let pid = mesh.pid_of("node-proxy/node1").to_string();
    // Only the soft limit: it can be put back without privileges.
    let limit = |soft: u64| {
        mesh.node_exec("node1", &["prlimit", "--pid", &pid, &format!("--nofile={soft}:")]).ok();
    };
    let metric = |name: &str| mesh.metrics("node1").sum(name, &[]);
    let (open, most) = (metric("process_open_fds"), metric("process_max_fds"));
    limit(open as u64 + 60);
    let words = ["hold", &server.at(9000), "--connections", "300", "--timeout", "3000"];
    let held = mesh.echo_session(&client, &words);
    let report = held.next(PATIENCE);
    assert!(report["failed"].as_u64().is_some_and(|failed| failed > 0), "it did run out: {report}");
    assert!(report["ok"].as_u64().is_some_and(|ok| ok > 0), "what there was is used: {report}");
    drop(held);
    mesh.reaches(&client, "server:9000");
    mesh.reaches(&neighbour, "server:9000");
    limit(most as u64);
    let held = mesh.echo_session(&client, &words);
    assert_eq!(held.next(PATIENCE)["ok"], 300, "all of them fit again");
    assert_eq!(mesh.pid_of("node-proxy/node1").to_string(), pid, "the same process");
    held.end(PATIENCE);
}

fn terminate(mesh: &Mesh, component: &str) -> u64 {
    let pid = mesh.pid_of(component);
    mesh.node_exec("node1", &["kill", "-TERM", &pid.to_string()]).ok();
    pid
}

#[test]
fn sigterm_lets_open_connections_end_first() {
    let mesh = MESH.alone();
    let (client, _) = mesh.open(&Shop::new("sigterm", Labelled::Yes), "sigterm");
    let mut held = mesh.echo_session(&client, &["hold", "server:9000", "--connections", "5"]);
    assert_eq!(held.next(PATIENCE)["ok"], 5);
    let pid = terminate(&mesh, "node-proxy/node1");
    holds("open connections go on while it drains", Duration::from_secs(2), || {
        let report = held.ask("draining", PATIENCE);
        if report["ok"] == 5 { Ok(()) } else { Err(report.to_string()) }
    });
    held.end(PATIENCE);
    // Its deadline would be 25 s.
    eventually(
        "it ends when the last connection does, and its successor serves",
        Duration::from_secs(10),
        || {
            if mesh.pid_of("node-proxy/node1") == pid { Err("still the old one") } else { Ok(()) }
        },
    );
    mesh.reaches(&client, "server:9000");
}

#[test]
fn sigterm_drains_within_a_deadline() {
    let mesh = SHORT.alone();
    let (client, _) = mesh.open(&Shop::new("deadline", Labelled::Yes), "deadline");
    let mut held = mesh.echo_session(&client, &["hold", "server:9000", "--connections", "5"]);
    assert_eq!(held.next(PATIENCE)["ok"], 5);
    let began = Instant::now();
    let pid = terminate(&mesh, "node-proxy/node1");
    assert_eq!(held.ask("draining", PATIENCE)["ok"], 5);
    eventually("it does not wait for ever", Duration::from_secs(12), || {
        if mesh.pid_of("node-proxy/node1") == pid { Err("still the old one") } else { Ok(()) }
    });
    assert!(began.elapsed() > Duration::from_secs(3), "it did wait: {:?}", began.elapsed());
    let report = held.ask("after the deadline", PATIENCE);
    assert_eq!((&report["ok"], &report["failed"]), (&0.into(), &5.into()), "{report}");
    mesh.reaches(&client, "server:9000");
}

/// A controller that sends one workload in a form that no node proxy accepts, in the place of the real one.
fn odd_controller(mesh: &Mesh, spoil: &str) -> Session {
    let ask = binary("ask").display().to_string();
    let place = ["exec", "--node", "control-plane", "--", &ask, "controller", "--listen", "10.89.0.2:15010"];
    let ca = ["--url", "https://10.89.0.2:15012", "--token", "/run/sandbox/tokens/controller"];
    let more = ["--bundle", "/run/sandbox/trust/bundle.pem", "--spoil", spoil];
    let session = Session::start(mesh.command(&[&place[..], &ca, &more].concat()));
    assert_eq!(session.next(PATIENCE)["event"], "listening");
    session
}

#[test]
fn a_resource_that_cannot_be_accepted_is_refused_by_name_and_the_last_good_one_stays() {
    let mesh = MESH.alone();
    let name = "spoiled";
    let (client, server) = mesh.open(&Shop::new(name, Labelled::Yes), name);
    let known = mesh.config("node1")["workloads"].as_array().cloned().unwrap_or_default();
    let of_server = known.iter().find(|one| one["name"] == server.name.as_str() && one["namespace"] == name);
    let uid = of_server.and_then(|one| one["uid"].as_str()).expect("node1 knows the server").to_owned();
    mesh.component("stop", "controller");
    let odd = odd_controller(&mesh, &uid);
    let (mut refused, mut applied) = (Vec::new(), Vec::new());
    while refused.len() < 2 || applied.len() < 2 {
        let line = odd.next(PATIENCE);
        if line["event"] == "refused" {
            assert_eq!(
                (&line["name"], &line["version"]),
                (&uid.as_str().into(), &"spoiled".into()),
                "{line}"
            );
            assert!(
                line["reason"].as_str().is_some_and(|why| why.contains("tunnel") && why.contains("99")),
                "{line}"
            );
            refused.push(line["node"].to_string());
        } else {
            assert_eq!(line["version"], "spoiled-state", "the rest of the batch is in force: {line}");
            applied.push(line["node"].to_string());
        }
    }
    for node in ["node1", "node2"] {
        let config = mesh.config(node);
        let listed = config["refused"].as_array().cloned().unwrap_or_default();
        assert!(
            listed.len() == 1 && listed[0]["name"] == uid.as_str() && listed[0]["last_good_in_force"] == true,
            "{node}: {listed:?}"
        );
        assert_eq!(mesh.metrics(node).sum("culvert_refused_resources", &[]), 1.0, "{node}");
    }
    for target in [server.at(9000), "server:9000".to_owned()] {
        let (arrived, readable) = on_the_link(&mesh, &client, &target);
        assert!(arrived && !readable, "{target}: arrived {arrived}, readable {readable}");
    }
    odd.end(PATIENCE);
    mesh.component("start", "controller");
    eventually("nothing is refused any more", SOON, || {
        let refused = mesh.metrics("node1").sum("culvert_refused_resources", &[]);
        if refused == 0.0 { Ok(()) } else { Err(format!("{refused}")) }
    });
    mesh.reaches(&client, &server.at(9000));
}

#[test]
fn a_cut_link_heals() {
    let mesh = MESH.alone();
    let (client, server) = mesh.open(&Shop::new("cut", Labelled::Yes), "cut");
    mesh.sandbox(&["link", "node2", "down"]).ok();
    assert_eq!(send(&mesh, &client, &server.at(9000))["ok"], false);
    mesh.sandbox(&["link", "node2", "up"]).ok();
    mesh.reaches(&client, &server.at(9000));
}
