//! `culvert demo`: passes, leaves nothing, and fails when the mesh does.

use culvert_e2e::{binary, run};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

/// "Under a minute once built."
const MINUTE: Duration = Duration::from_secs(60);

fn demo(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("culvert"));
    command.args(["demo", "--requests", "1000", "--name", name]).args(arguments);
    command
}

fn name(what: &str) -> String {
    format!("e2e-demo-{what}-{:08x}", rand::random::<u32>())
}

fn is_gone(name: &str) {
    let mut status = Command::new(binary("culvert"));
    status.args(["sandbox", "status", "--name", name]);
    run(status, MINUTE).failed();
}

#[test]
fn the_demo_passes_within_a_minute_and_tears_down() {
    let name = name("json");
    let report = run(demo(&name, &["--json"]), MINUTE).ok().json();
    assert_eq!(report["ok"], true, "{report}");
    let check = |wanted: &str| {
        report["checks"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one["name"] == wanted && one["ok"] == true))
    };
    for wanted in [
        "before: anybody on the link can read it",
        "after: nobody on the link can read it",
        "after: every byte between pods is TLS 1.3",
    ] {
        assert!(check(wanted), "{wanted}: {report}");
    }
    for key in ["latency_without", "latency_with"] {
        assert!(report[key]["p99_ms"].as_f64().is_some_and(|p99| p99 > 0.0), "{key}: {report}");
    }
    let pairs = report["conversations"].as_array().cloned().unwrap_or_default();
    assert!(pairs.iter().any(|one| one["source"] == "spiffe://cluster.local/ns/shop/sa/web"), "{report}");
    is_gone(&name);
}

#[test]
fn the_demo_explains_itself_in_plain_text() {
    let name = name("text");
    let text = run(demo(&name, &[]), MINUTE).ok().stdout;
    for word in ["Who talked to whom", "without mesh", "with mesh", "All checks passed"] {
        assert!(text.contains(word), "{text}");
    }
    is_gone(&name);
}

#[test]
fn the_demo_fails_when_a_node_proxy_is_killed_under_it() {
    let name = name("killed");
    let mut command = demo(&name, &["--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("culvert demo");
    let said = BufReader::new(child.stderr.take().expect("piped"));
    for line in said.lines().map_while(Result::ok) {
        // From here on the pods are to be enrolled, and the second word to be sent.
        if line.contains("labelling") {
            let mut kill = Command::new(binary("culvert"));
            kill.args(["sandbox", "component", "kill", "node-proxy/node2", "--name", &name]);
            run(kill, MINUTE).ok();
        }
    }
    let mut output = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut output).expect("its report");
    let status = child.wait().expect("its end");
    assert!(!status.success(), "{output}");
    let report: Value = serde_json::from_str(&output).unwrap_or_default();
    assert_ne!(report["ok"], true, "{output}");
    is_gone(&name);
}

#[test]
fn the_scripts_name_what_is_missing_and_the_command() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for script in [
        "deploy/demo",
        "deploy/prerequisites.sh",
        "tests/run",
        "tests/bench/run",
        "tests/bench/test",
        ".ci/run",
    ] {
        let mut check = Command::new("bash");
        check.arg("-n").arg(root.join(script));
        run(check, MINUTE).ok();
    }
    // A machine with nothing but `id`, which says that this is an ordinary user; no compiler, no sudo.
    let bare = tempfile::tempdir().expect("a directory");
    let id = bare.path().join("id");
    std::fs::write(&id, "#!/bin/sh\necho 1000\n").expect("write");
    let mut permissions = id.metadata().expect("metadata").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    std::fs::set_permissions(&id, permissions).expect("permissions");
    let mut script = Command::new("/bin/bash");
    let prerequisites = root.join("deploy/prerequisites.sh").display().to_string();
    script.args([
        "-c",
        ". \"$0\"; PATH=$1; prerequisites tests",
        &prerequisites,
        &bare.path().display().to_string(),
    ]);
    let done = run(script, MINUTE).failed();
    for word in ["gcc", "C compiler", "nftables", "packet filter", "apt-get install"] {
        assert!(done.stderr.contains(word), "{word}: {}", done.stderr);
    }
}
