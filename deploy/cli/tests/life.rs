//! A sandbox's life: up, side by side, down, killed; and what is said when it cannot be.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use common::{Sandbox, User, all_processes, eventually, pid_namespace, pod};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

const FOREVER: &str = "exec sleep 1000000";

/// Its supervisor, by the keeper in the pid file.
fn supervisor(sandbox: &Sandbox) -> i32 {
    let keeper = std::fs::read_to_string(sandbox.place().join("pid")).unwrap().trim().to_owned();
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
    children.trim().parse().unwrap()
}

fn nothing_is_left_in(namespace: &std::path::Path) -> bool {
    !all_processes().into_iter().any(|pid| pid_namespace(pid).is_some_and(|found| found == namespace))
}

#[test]
fn down_leaves_nothing() {
    let sandbox = Sandbox::up("down", User::Own, &pod("one", "node1", FOREVER, ""));
    sandbox.await_ready("one");
    let namespace = pid_namespace(supervisor(&sandbox)).unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("/run/netns/pod-") && !mounts.contains("/run/sandbox"), "mounts leak: {mounts}");
    assert!(!nothing_is_left_in(&namespace));
    sandbox.succeed(&["down"]);
    assert!(nothing_is_left_in(&namespace));
    assert!(sandbox.processes().is_empty());
    assert!(!sandbox.place().exists());
    sandbox.succeed(&["down"]);
    let output = sandbox.run(&["get", "pods"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("culvert sandbox up --name"));
}

#[test]
fn a_killed_supervisor_or_keeper_takes_everything_along() {
    for victim in ["supervisor", "keeper"] {
        let sandbox = Sandbox::up(&format!("kill-{victim}"), User::Own, &pod("one", "node1", FOREVER, ""));
        sandbox.await_ready("one");
        let supervisor = supervisor(&sandbox);
        let namespace = pid_namespace(supervisor).unwrap();
        let keeper: i32 =
            std::fs::read_to_string(sandbox.place().join("pid")).unwrap().trim().parse().unwrap();
        let pid = if victim == "keeper" { keeper } else { supervisor };
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually(|| nothing_is_left_in(&namespace), || format!("the sandbox ends with its {victim}"));
        // A keeper that was killed could not tidy up; the next `up` does.
        let file = sandbox.file("again.yaml", &pod("two", "node1", FOREVER, ""));
        let output = sandbox.run(&["up", "--detach", "--wait", "0s", "-f", &file]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("the sandbox goes on running"), "{victim}: {text}");
        sandbox.await_ready("two");
    }
}

#[test]
fn a_sandbox_in_the_foreground_ends_with_its_command() {
    for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGKILL] {
        let sandbox = Sandbox::new("front", User::Own);
        let mut up = sandbox.command(&["up", "--wait", "60s"]).stderr(Stdio::piped()).spawn().unwrap();
        eventually(|| sandbox.run(&["get", "nodes"]).status.success(), || "up".to_owned());
        let namespace = pid_namespace(supervisor(&sandbox)).unwrap();
        kill(Pid::from_raw(i32::try_from(up.id()).unwrap()), signal).unwrap();
        up.wait().unwrap();
        eventually(|| nothing_is_left_in(&namespace), || format!("nothing left after {signal}"));
        eventually(|| !sandbox.place().exists(), || format!("no directory left after {signal}"));
    }
}

#[test]
fn two_sandboxes_live_side_by_side() {
    let one = Sandbox::up("side-a", User::Own, &pod("one", "node1", FOREVER, ""));
    let two = Sandbox::up("side-b", User::Own, &pod("two", "node1", FOREVER, ""));
    // Both have the same addresses, and neither sees the other.
    assert_eq!(one.await_ready("one")["status"]["podIP"], two.await_ready("two")["status"]["podIP"]);
    assert!(one.pod("two").is_null());
    let output = one.run(&["up", "--detach"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("is running already"));
    one.succeed(&["down"]);
    two.await_ready("two");
}

#[test]
fn mistakes_are_told_before_anything_starts() {
    let sandbox = Sandbox::new("mistakes", User::Own);
    let file = sandbox
        .file("bad.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: UPPER}\nspec: {containers: 5}\n");
    let output = sandbox.run(&["up", "--detach", "-f", &file]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("bad.yaml: document 1") && text.contains("spec.containers"), "{text}");
    assert!(!sandbox.place().exists());
    assert_eq!(sandbox.run(&["up", "--nodes", "0"]).status.code(), Some(2));
    std::fs::remove_file(sandbox.directory.path().join("culvert-ca")).unwrap();
    let output = sandbox.run(&["up", "--detach"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("cargo build -p culvert-ca"));
}

#[test]
fn components_are_started_again_unless_held_down() {
    let sandbox = Sandbox::up("parts", User::Own, &pod("one", "node1", FOREVER, ""));
    let state = |name: &str| {
        let status: serde_json::Value =
            serde_json::from_str(&sandbox.succeed(&["status", "-o", "json"])).unwrap();
        let components = status["components"].as_array().cloned().unwrap_or_default();
        components.into_iter().find(|component| component["name"] == name).unwrap()
    };
    let first = state("ca")["pid"].clone();
    assert!(first.is_number());
    sandbox.succeed(&["component", "crash", "ca"]);
    eventually(
        || state("ca")["pid"].is_number() && state("ca")["pid"] != first,
        || "a new process".to_owned(),
    );
    sandbox.succeed(&["component", "stop", "node-proxy/node1"]);
    assert!(state("node-proxy/node1")["pid"].is_null());
    sandbox.succeed(&["component", "start", "node-proxy/node1"]);
    eventually(|| state("node-proxy/node1")["pid"].is_number(), || "started".to_owned());
    let output = sandbox.run(&["component", "stop", "node-proxy/node7"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no component node-proxy/node7"));
}

#[test]
fn a_log_is_followed() {
    let script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.05; done";
    let sandbox = Sandbox::up("logs", User::Own, &pod("one", "node1", script, ""));
    sandbox.await_ready("one");
    let mut follow =
        sandbox.command(&["logs", "one", "-f", "--tail", "1"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines: Vec<String> =
        BufReader::new(follow.stdout.take().unwrap()).lines().take(5).map(Result::unwrap).collect();
    follow.kill().unwrap();
    follow.wait().unwrap();
    let numbers: Vec<u64> =
        lines.iter().map(|line| line.trim_start_matches("line ").parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{lines:?}");
}
