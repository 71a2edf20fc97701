//! Pods: what a container sees of itself, how it is started, watched and stopped.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use common::{Sandbox, User, condition, eventually, pod};
use std::io::Write;
use std::process::Stdio;

const FOREVER: &str = "trap 'exit 0' TERM; echo started; while :; do sleep 0.05; done";

#[test]
fn a_container_sees_its_pod_and_not_the_machine() {
    let manifests = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: red, file.txt: hello}
---
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: a}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  hostAliases: [{ip: 192.0.2.9, hostnames: [elsewhere]}]
  volumes:
  - {name: config, configMap: {name: settings}}
  containers:
  - name: main
    image: shell
    command: [sh, -c, 'echo \"$(COLOUR) $IP $NAME\"; exec sleep 1000']
    volumeMounts: [{name: config, mountPath: /run/config, readOnly: true}]
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
";
    let sandbox = Sandbox::up("sees", User::Own, manifests);
    let pod = sandbox.await_ready("one");
    assert_eq!(pod["status"]["podIPs"][0]["ip"], "10.244.1.2");
    assert_eq!(pod["status"]["podIPs"][1]["ip"], "fd00:10:244:1::2");
    assert_eq!(sandbox.shell("one", "hostname"), "one\n");
    let resolv = sandbox.shell("one", "cat /etc/resolv.conf");
    assert!(
        resolv.contains("search default.svc.cluster.local") && resolv.contains("nameserver 10.96.0.10"),
        "{resolv}"
    );
    let hosts = sandbox.shell("one", "cat /etc/hosts");
    assert!(hosts.contains("10.244.1.2 one\n") && hosts.contains("192.0.2.9 elsewhere\n"), "{hosts}");
    assert_eq!(
        sandbox.shell("one", "cat /run/config/file.txt; touch /run/config/x 2>/dev/null || echo read-only"),
        "helloread-only\n"
    );
    assert_eq!(
        sandbox.shell("one", "ls /run/sandbox /run/netns; ls /run/dbus 2>/dev/null; true"),
        "/run/netns:\n\n/run/sandbox:\n"
    );
    assert_eq!(
        sandbox.shell("one", "cat /proc/net/dev | grep -c :"),
        "2\n",
        "loopback and its own interface"
    );
    let machine = nix::unistd::gethostname().unwrap();
    assert_ne!(machine.to_string_lossy(), "one", "the machine's own name is untouched");
    assert_eq!(sandbox.succeed(&["logs", "one"]), "red 10.244.1.2 one\n");
}

#[test]
fn exec_carries_streams_exit_codes_and_signals() {
    let sandbox = Sandbox::up("exec", User::Own, &pod("one", "node1", FOREVER, ""));
    sandbox.await_ready("one");
    let mut child = sandbox
        .command(&["exec", "one", "--", "sh", "-c", "cat; echo bad >&2; exit 7"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"through").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"through"[..], &b"bad\n"[..]));
    assert_eq!(sandbox.run(&["exec", "one", "--", "no-such-program"]).status.code(), Some(127));
    assert_eq!(sandbox.run(&["exec", "one", "--", "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    let output = sandbox.run(&["exec", "none", "--", "true"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("there is no pod default/none; `culvert sandbox get pods -n default`"), "{said}");

    let script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done";
    let mut child =
        sandbox.command(&["exec", "one", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!(line, "ready\ncaught\n");
}

#[test]
fn containers_are_started_again_and_finished_pods_stay_finished() {
    let init = "  initContainers:\n  - {name: first, image: shell, command: [sh, -c, echo first]}\n  \
                - {name: second, image: shell, command: [sh, -c, echo second]}\n";
    let once = format!("  restartPolicy: Never\n{init}");
    let manifests = [
        pod("crash", "node1", "echo again; exit 5", ""),
        pod("once", "node1", "exit 0", &once),
        pod("bad", "node2", "exit 3", "  restartPolicy: Never\n"),
    ]
    .concat();
    let sandbox = Sandbox::up("restart", User::Own, &manifests);
    let crash = sandbox.await_pod("crash", "started again", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
    });
    assert_eq!(crash["status"]["phase"], "Running");
    assert_eq!(crash["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 5);
    let once = sandbox.await_pod("once", "succeeded", |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(once["status"]["initContainerStatuses"][1]["state"]["terminated"]["exitCode"], 0);
    assert_eq!(sandbox.succeed(&["logs", "once", "-c", "second"]), "second\n");
    let bad = sandbox.await_pod("bad", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(bad["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
}

#[test]
fn probes_decide_readiness_and_life() {
    let manifests = "
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: shell
    command: [sh, -c, 'exec sleep 1000']
    volumeMounts: [{name: shared, mountPath: /run/shared}]
    readinessProbe: {exec: {command: [test, -e, /run/shared/ready]}, periodSeconds: 1, failureThreshold: 1}
    livenessProbe: {exec: {command: [sh, -c, 'test ! -e /run/shared/dead']}, periodSeconds: 1, failureThreshold: 1}
  volumes: [{name: shared, emptyDir: {}}]
";
    let sandbox = Sandbox::up("probes", User::Own, manifests);
    sandbox.await_pod("probed", "running", |pod| pod["status"]["phase"] == "Running");
    assert_eq!(condition(&sandbox.pod("probed"), "Ready"), "False");
    sandbox.shell("probed", "touch /run/shared/ready");
    sandbox.await_ready("probed");
    sandbox.shell("probed", "rm /run/shared/ready");
    sandbox.await_pod("probed", "not ready", |pod| condition(pod, "Ready") == "False");
    sandbox.shell("probed", "touch /run/shared/dead");
    sandbox.await_pod("probed", "killed", |pod| {
        let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["reason"];
        last.as_str().is_some_and(|reason| reason.starts_with("LivenessProbeFailed"))
    });
}

#[test]
fn a_deleted_pod_ends_properly_and_its_address_is_used_again() {
    let stubborn = "trap '' TERM; while :; do sleep 0.05; done";
    let manifests = [pod("a", "node1", FOREVER, ""), pod("b", "node1", stubborn, "")].concat();
    let sandbox = Sandbox::up("reuse", User::Own, &manifests);
    let first = sandbox.await_ready("a")["status"]["podIP"].clone();
    let second = sandbox.await_ready("b")["status"]["podIP"].clone();
    assert_ne!(first, second);
    sandbox.succeed(&["delete", "pod", "a"]);
    sandbox.succeed(&["delete", "pod", "b"]);
    sandbox.await_pod("a", "gone", |pod| pod.is_null());
    sandbox.await_pod("b", "gone although it ignores SIGTERM", |pod| pod.is_null());
    sandbox.apply(&[pod("c", "node1", FOREVER, ""), pod("d", "node1", FOREVER, "")].concat());
    let mut again =
        [sandbox.await_ready("c"), sandbox.await_ready("d")].map(|pod| pod["status"]["podIP"].to_string());
    again.sort();
    assert_eq!(again, [first.to_string().min(second.to_string()), first.to_string().max(second.to_string())]);
}

#[test]
fn a_container_is_prepared_for_its_end() {
    let manifests = "
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 5
  containers:
  - name: main
    image: shell
    command: [sh, -c, 'trap \"echo term; sleep 1; exit 0\" TERM; while :; do sleep 0.05; done']
    lifecycle: {preStop: {exec: {command: [sh, -c, 'echo before > /run/shared/out']}}}
    volumeMounts: [{name: shared, mountPath: /run/shared}]
  - name: watcher
    image: shell
    command: [sh, -c, 'trap \"\" TERM; while :; do cat /run/shared/out 2>/dev/null; sleep 0.05; done']
    volumeMounts: [{name: shared, mountPath: /run/shared}]
  volumes: [{name: shared, emptyDir: {}}]
";
    let sandbox = Sandbox::up("prestop", User::Own, manifests);
    sandbox.await_ready("one");
    sandbox.succeed(&["delete", "pod", "one"]);
    eventually(
        || sandbox.succeed(&["logs", "one", "-c", "watcher"]).contains("before"),
        || "preStop ran".to_owned(),
    );
    eventually(|| sandbox.succeed(&["logs", "one", "-c", "main"]) == "term\n", || "SIGTERM came".to_owned());
    sandbox.await_pod("one", "gone", |pod| pod.is_null());
}

#[test]
fn what_cannot_run_says_why() {
    let manifests = "
apiVersion: v1
kind: Pod
metadata: {name: image}
spec: {nodeName: node1, containers: [{name: main, image: nginx}]}
---
apiVersion: v1
kind: Pod
metadata: {name: mount}
spec:
  nodeName: node1
  volumes: [{name: v, configMap: {name: none}}]
  containers: [{name: main, image: shell, command: [sleep, '1000']}]
---
apiVersion: v1
kind: Pod
metadata: {name: waiting, labels: {culvert.dev/mesh: enabled}}
spec: {nodeName: node1, containers: [{name: main, image: shell, command: [sleep, '1000']}]}
";
    let sandbox = Sandbox::up("why", User::Own, manifests);
    sandbox.await_pod("image", "waits", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
            .as_str()
            .unwrap_or_default()
            .contains("culvert/echo")
    });
    sandbox
        .await_pod("mount", "waits", |pod| pod.to_string().contains("ConfigMap default/none does not exist"));
    sandbox.await_pod("waiting", "waits for its node proxy", |pod| {
        let text = pod.to_string();
        text.contains("WaitingForMesh") && text.contains("culvert sandbox logs node-proxy/node1")
    });
    sandbox.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: none}\n");
    sandbox.await_ready("mount");
}
