//! The command `culvert sandbox`, as a user types it.

use culvert_e2e::{Labelled, Mesh, SOON, Shared, Shop, binary, eventually, run};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

static MESH: Shared = Shared::new("cli");

const PATIENCE: Duration = Duration::from_secs(60);

fn culvert(arguments: &[&str]) -> culvert_e2e::Done {
    let mut command = Command::new(binary("culvert"));
    command.args(arguments);
    run(command, PATIENCE)
}

/// Processes of this machine whose command line names a sandbox.
fn processes_of(name: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let lines = entries.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // The test's own reaper and shells mention the name as well.
        let ours = line.contains(name)
            && line.contains("culvert")
            && !line.contains("sandbox down")
            && !line.starts_with("sh ");
        ours.then(|| format!("{pid} {line}"))
    });
    lines.collect()
}

/// Where a user's sandboxes have their control sockets.
fn place_of(name: &str) -> std::path::PathBuf {
    let user = nix::unistd::geteuid();
    let base = match std::env::var_os("XDG_RUNTIME_DIR") {
        _ if user.is_root() => "/run/culvert".into(),
        Some(runtime) => std::path::PathBuf::from(runtime).join("culvert"),
        None => std::env::temp_dir().join(format!("culvert-{user}")),
    };
    base.join(name)
}

fn nothing_left(name: &str) {
    eventually(&format!("nothing of {name} is left"), SOON, || {
        let processes = processes_of(name);
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mounted = mounts.lines().any(|line| line.contains(name));
        let directory = place_of(name);
        if processes.is_empty() && !mounted && !directory.exists() {
            Ok(())
        } else {
            Err(format!("{processes:?}, mounted {mounted}, {} {}", directory.display(), directory.exists()))
        }
    });
}

#[test]
fn several_sandboxes_live_side_by_side_and_leave_nothing() {
    let yaml = Shop::new("side", Labelled::Yes).yaml();
    let (one, two) = (Mesh::up("one", &yaml), Mesh::up("two", &yaml));
    for mesh in [&one, &two] {
        let client = mesh.pod("side", "client");
        mesh.reaches(&client, "server:9000");
    }
    one.delete(&Shop::new("side", Labelled::Yes).namespace());
    let client = two.pod("side", "client");
    assert_eq!(two.echo(&client, &["tcp", "send", "server:9000"])["ok"], true, "the other one is untouched");
    let again = one.sandbox(&["up", "--detach"]).failed();
    assert!(again.stderr.contains("running already"), "{}", again.stderr);
    for mesh in [one, two] {
        let name = mesh.name().to_owned();
        mesh.sandbox(&["down"]).ok();
        nothing_left(&name);
        let gone = mesh.sandbox(&["status"]).failed();
        assert!(gone.stderr.contains("sandbox up"), "the message names the remedy: {}", gone.stderr);
    }
}

#[test]
fn a_killed_sandbox_is_cleared_by_down_or_the_next_up() {
    for second in ["down", "up"] {
        let mesh = Mesh::up("killed", &Shop::new("killed", Labelled::Yes).yaml());
        let name = mesh.name().to_owned();
        for process in processes_of(&name) {
            let pid = process.split(' ').next().unwrap_or_default().parse().expect("a process number");
            // Some are gone by the time their turn comes.
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        eventually("it is dead", SOON, || {
            if mesh.sandbox(&["status"]).code != 0 { Ok(()) } else { Err("alive") }
        });
        if second == "up" {
            mesh.sandbox(&["up", "--detach"]).ok();
        }
        mesh.sandbox(&["down"]).ok();
        nothing_left(&name);
    }
}

#[test]
fn up_in_the_foreground_ends_with_its_process() {
    let name = format!("e2e-front-{:08x}", rand::random::<u32>());
    let mut command = Command::new(binary("culvert"));
    command.args(["sandbox", "up", "--name", &name]).stderr(std::process::Stdio::null());
    let mut up = command.spawn().expect("culvert");
    eventually("it is up", SOON, || {
        let status = culvert(&["sandbox", "status", "--name", &name]);
        if status.code == 0 { Ok(()) } else { Err(status.said()) }
    });
    up.kill().expect("kill");
    up.wait().expect("wait");
    eventually("it is gone", SOON, || {
        let status = culvert(&["sandbox", "status", "--name", &name]);
        if status.code == 0 { Err("still there") } else { Ok(()) }
    });
    culvert(&["sandbox", "down", "--name", &name]).ok();
    nothing_left(&name);
}

#[test]
fn detached_up_fails_naming_what_is_not_ready() {
    let name = format!("e2e-sick-{:08x}", rand::random::<u32>());
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("sick.yaml");
    let sick = Shop::new("sick", Labelled::Yes).yaml().replace("\"/ready\"", "\"/ready?status=503\"");
    std::fs::write(&file, sick).expect("write");
    let up = culvert(&[
        "sandbox",
        "up",
        "--detach",
        "--wait",
        "4s",
        "--name",
        &name,
        "-f",
        &file.display().to_string(),
    ])
    .failed();
    assert!(up.stderr.contains("server-") && up.stderr.contains("client-"), "{}", up.stderr);
    culvert(&["sandbox", "down", "--name", &name]).ok();
    nothing_left(&name);
}

#[test]
fn every_kind_is_taken_and_unknown_ones_are_reported_and_skipped() {
    let mesh = MESH.beside();
    let shop = Shop::new("kinds", Labelled::No);
    let more = r#"
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: kinds}
data: {key: value}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden, namespace: kinds}
stringData: {key: secret}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: skipped, namespace: kinds}
---
apiVersion: example.org/v1
kind: Surprise
metadata: {name: skipped, namespace: kinds}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: route, namespace: kinds}
spec:
  parentRefs: [{kind: Service, group: "", name: server, port: 8080}]
  rules: [{backendRefs: [{name: server, port: 8080}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: UDPRoute
metadata: {name: udp, namespace: kinds}
spec:
  parentRefs: [{kind: Service, group: "", name: server, port: 9000}]
  rules: [{backendRefs: [{name: server, port: 9000}]}]
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: grant, namespace: kinds}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}]
  to: [{group: "", kind: Service}]
"#;
    let applied = mesh.apply_any(&(shop.yaml() + more)).ok();
    for kind in ["DaemonSet", "Surprise"] {
        assert!(
            applied.said().lines().any(|line| line.contains(kind) && line.contains("skip")),
            "{}",
            applied.said()
        );
    }
    mesh.settled("kinds");
    let secret = mesh.get("secret", Some("kinds"), Some("hidden"));
    assert_eq!(secret["kind"], "Secret", "{secret}");
    // A kind of route that does not work yet is told so.
    for (kind, name, status, reason) in
        [("httproute", "route", "True", "Accepted"), ("udproute", "udp", "False", "UnsupportedValue")]
    {
        let parent = eventually("a status for the route", SOON, || {
            let route = mesh.get(kind, Some("kinds"), Some(name));
            let parent = route["status"]["parents"][0].clone();
            if parent.is_object() { Ok(parent) } else { Err(route.to_string()) }
        });
        assert_eq!(parent["controllerName"], "culvert.dev/node-proxy", "{parent}");
        let conditions = parent["conditions"].as_array().cloned().unwrap_or_default();
        let accepted = conditions.iter().find(|one| one["type"] == "Accepted").expect("Accepted");
        assert_eq!((&accepted["status"], &accepted["reason"]), (&json!(status), &json!(reason)), "{kind}");
    }
}

#[test]
fn a_schema_error_names_its_place_and_nothing_takes_effect() {
    let mesh = MESH.beside();
    let good = Shop::new("never", Labelled::No).yaml();
    let bad = "---\napiVersion: v1\nkind: Service\nmetadata: {name: bad, namespace: never}\nspec: {ports: [{port: high}]}\n";
    let file = mesh.write("mistake.yaml", &(good.clone() + bad));
    let failed = mesh.sandbox(&["apply", "-f", &file]).failed();
    for word in ["mistake.yaml", "document 7", "spec.ports[0].port", "Service"] {
        assert!(failed.stderr.contains(word), "{word}: {}", failed.stderr);
    }
    assert_ne!(
        mesh.sandbox(&["get", "namespace", "never"]).code,
        0,
        "not even the good documents took effect"
    );
    let not_yaml = mesh.write("broken.yaml", "apiVersion: v1\nkind: [\n");
    let failed = mesh.sandbox(&["apply", "-f", &not_yaml]).failed();
    assert!(failed.stderr.contains("broken.yaml"), "{}", failed.stderr);
}

#[test]
fn a_directory_of_manifests_is_taken_as_kubectl_takes_it() {
    let mesh = MESH.beside();
    let directory = mesh.files().join("twice");
    std::fs::create_dir(&directory).expect("a directory");
    let namespace = |team: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: twice, labels: {{team: {team}}}}}\n")
    };
    for (name, text) in
        [("a.yaml", namespace("a")), ("b.yaml", namespace("b")), ("notes.txt", "no manifest".to_owned())]
    {
        std::fs::write(directory.join(name), text).expect("a file");
    }
    let path = directory.display().to_string();
    let done = mesh.sandbox(&["apply", "-f", &path]).ok();
    let notice = done.said();
    let line = notice.lines().find(|line| line.contains("skipped")).unwrap_or_else(|| panic!("{notice}"));
    assert!(line.contains("a.yaml: document 1") && line.contains("b.yaml: document 1"), "{line}");
    assert_eq!(
        mesh.get("namespace", None, Some("twice"))["metadata"]["labels"]["team"],
        "b",
        "the last one counts"
    );
    // What this repository ships, too.
    let examples =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples").display().to_string();
    mesh.sandbox(&["apply", "-f", &examples]).ok();
    mesh.sandbox(&["delete", "-f", &examples]).ok();
}

#[test]
fn exec_passes_streams_and_exit_codes() {
    let mesh = MESH.beside();
    let (client, _) = mesh.open(&Shop::new("exec", Labelled::No), "exec");
    let done = mesh.exec_with_input(&client, &["sh", "-c", "cat; echo out; echo err >&2; exit 7"], "in\n");
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (7, "in\nout\n", "err\n"));
    assert_eq!(mesh.exec(&client, &["sh", "-c", "kill -9 $$"]).code, 137);
    assert_eq!(mesh.exec(&client, &["no-such-program"]).code, 127);
    let missing = mesh.sandbox(&["exec", "-n", "exec", "nobody", "--", "true"]).failed();
    assert!(missing.stderr.contains("nobody"), "{}", missing.stderr);
    // The pod's own view of itself.
    assert_eq!(mesh.exec(&client, &["hostname"]).ok().stdout.trim(), client.name);
    let resolv = mesh.exec(&client, &["cat", "/etc/resolv.conf"]).ok().stdout;
    assert!(
        resolv.contains("nameserver 10.96.0.10") && resolv.contains("exec.svc.cluster.local"),
        "{resolv}"
    );
    let hosts = mesh.exec(&client, &["cat", "/etc/hosts"]).ok().stdout;
    assert!(hosts.contains(&client.v4().to_string()) && hosts.contains(&client.name), "{hosts}");
}

#[test]
fn containers_have_command_args_env_probes_and_are_restarted() {
    let mesh = MESH.beside();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tool", "namespace": "default", "labels": {"app": "tool"}},
        "spec": {"containers": [{"name": "main", "image": "any", "command": ["sh", "-c"],
            "args": ["echo \"$PLAIN $NAME $(ADDRESS) $KEY\"; echo run; sleep 1; exit 3"],
            "env": [{"name": "PLAIN", "value": "plain"},
                    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "tool", "key": "k"}}}]}]}});
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tool", "namespace": "default"}, "data": {"k": "from-config"}});
    mesh.apply(&format!("---\n{config}\n---\n{pod}\n"));
    eventually("restarted on exit", Duration::from_secs(40), || {
        let pod = mesh.get("pod", Some("default"), Some("tool"));
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0);
        if restarts >= 1 { Ok(()) } else { Err(pod["status"].to_string()) }
    });
    let log = mesh.sandbox(&["logs", "tool"]).ok().stdout;
    let address = mesh.pod("default", "tool").v4();
    assert!(log.contains(&format!("plain tool {address} from-config")), "{log}");
    mesh.sandbox(&["delete", "pod", "tool"]).ok();
}

#[test]
fn liveness_probes_restart_and_readiness_probes_gate() {
    let mesh = MESH.beside();
    let shop = Shop::new("probing", Labelled::No);
    let (client, _) = mesh.open(&shop, "probing");
    let flag = format!("{}/ok-$HOSTNAME", mesh.files().display());
    let start = format!("rm -f {flag}; touch {flag}; sleep 600");
    let test = format!("test -e {flag}");
    let container = |probe: &str| {
        json!({"name": "main", "image": "any", "command": ["sh", "-c", start],
            probe: {"exec": {"command": ["sh", "-c", test]}, "periodSeconds": 1, "failureThreshold": 1}})
    };
    for probe in ["livenessProbe", "readinessProbe"] {
        let name = probe.trim_end_matches("Probe");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "probing", "labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [container(probe)]}});
        mesh.apply(&format!("---\n{pod}\n"));
    }
    mesh.settled("probing");
    for name in ["liveness", "readiness"] {
        let pod = mesh.pod("probing", name);
        mesh.exec(&pod, &["sh", "-c", &format!("rm -f {flag}")]).ok();
    }
    eventually("the liveness probe restarts", SOON, || {
        let pod = mesh.get("pod", Some("probing"), Some("liveness"));
        if pod["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(1) {
            Ok(())
        } else {
            Err(pod["status"].to_string())
        }
    });
    eventually("the readiness probe does not, and takes the pod out", SOON, || {
        let pod = mesh.get("pod", Some("probing"), Some("readiness"));
        let ready = pod["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"));
        if ready { Err(pod["status"].to_string()) } else { Ok(()) }
    });
    drop(client);
}

#[test]
fn services_names_slices_and_rolling_replacement() {
    let mesh = MESH.beside();
    let name = "cluster";
    let shop = Shop::new(name, Labelled::No).servers(2).pre_stop(3);
    let (client, _) = mesh.open(&shop, name);
    mesh.apply(&shop.service_for("each", "server", &json!({"clusterIP": "None"})));
    // Spread over the nodes when no node is named.
    mesh.apply(&(shop.account("spread") + &shop.deployment("spread", 4, None, &[])));
    mesh.settled(name);
    let mut nodes: Vec<String> = mesh.pods(name, "spread").into_iter().map(|pod| pod.node).collect();
    nodes.sort();
    assert_eq!(nodes, ["node1", "node1", "node2", "node2"]);
    // A, AAAA and headless names; SRV by asking the server.
    let resolve = |host: &str| {
        let report = mesh.echo(&client, &["resolve", host]);
        report["addresses"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(resolve("server"), 2, "one address of each family");
    eventually("headless: every pod", SOON, || if resolve("each") == 4 { Ok(()) } else { Err("not yet") });
    assert_eq!(resolve("no-such-name"), 0);
    let srv = mesh.echo(&client, &["srv", "_tcp._tcp.each.cluster.svc.cluster.local"]);
    assert_eq!(srv["records"].as_array().map(Vec::len), Some(4), "each pod by both families: {srv}");
    assert!(srv["records"].as_array().is_some_and(|all| all.iter().all(|one| one["port"] == 9000)), "{srv}");
    // Slices follow readiness.
    let ready = |mesh: &Mesh| {
        let slices = mesh.items("endpointslices", name);
        let of_server = slices.iter().filter(|slice| {
            slice["metadata"]["labels"]["kubernetes.io/service-name"] == "server"
                && slice["addressType"] == "IPv4"
        });
        let endpoints =
            of_server.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        endpoints.filter(|one| one["conditions"]["ready"] == true).count()
    };
    assert_eq!(ready(&mesh), 2);
    // A changed template replaces the pods without a moment without any.
    let before: Vec<String> = mesh.pods(name, "server").into_iter().map(|pod| pod.uid).collect();
    let traffic = std::thread::scope(|scope| {
        let requests = scope.spawn(|| {
            mesh.echo(
                &client,
                &[
                    "get",
                    "http://server:8080/",
                    "--seconds",
                    "8",
                    "--rate",
                    "50",
                    "--new-connection",
                    "--timeout",
                    "4000",
                ],
            )
        });
        mesh.apply(&shop.clone().server_setting("opaque-ports", "1").yaml());
        requests.join().expect("traffic")
    });
    assert_eq!(traffic["ok"], traffic["requests"], "{traffic}");
    eventually("all pods are new", SOON, || {
        let now = mesh.pods(name, "server");
        if now.len() == 2 && now.iter().all(|pod| !before.contains(&pod.uid)) {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    });
}

#[test]
fn output_as_table_json_and_yaml() {
    let mesh = MESH.beside();
    let (client, _) = mesh.open(&Shop::new("output", Labelled::Yes), "output");
    let table = mesh.sandbox(&["get", "pods", "-n", "output"]).ok().stdout;
    assert!(table.contains("NAME") && table.contains(&client.name), "{table}");
    let json: Value = mesh.sandbox(&["get", "pods", "-n", "output", "-o", "json"]).ok().json();
    assert_eq!(json["items"].as_array().map(Vec::len), Some(2));
    let yaml = mesh.sandbox(&["get", "pod", &client.name, "-n", "output", "-o", "yaml"]).ok().stdout;
    assert!(yaml.starts_with("apiVersion: v1\nkind: Pod\n"), "{yaml}");
    let status = mesh.sandbox(&["status"]).ok().stdout;
    assert!(status.contains("spiffe://cluster.local/ns/output/sa/client"), "{status}");
    let status = mesh.sandbox(&["status", "-o", "json"]).ok().json();
    assert!(status["nodes"].as_array().is_some_and(|nodes| nodes.len() == 2), "{status}");
    let plaintext = mesh.sandbox(&["status", "--plaintext"]).ok().stdout;
    assert!(plaintext.contains('%'), "{plaintext}");
    for log in ["ca", "controller", "node-proxy/node1"] {
        assert!(mesh.logs(log).contains("\"level\""), "{log}");
    }
}
