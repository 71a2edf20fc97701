//! A sandbox for a test, by the `culvert` command as a user has it. The mesh's own programs are stand-ins that do
//! nothing: these tests are about the cluster around them.

#![allow(dead_code, reason = "each file of tests uses a part of this")]

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Everything in a sandbox happens within seconds; more means that it will not.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
/// An ordinary user, for tests that root runs.
const ORDINARY: u32 = 1000;

/// Whose sandbox it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Who runs the tests.
    Own,
    /// One without privileges, also when root runs the tests.
    Ordinary,
}

pub struct Sandbox {
    pub name: String,
    pub directory: tempfile::TempDir,
    user: User,
}

impl Sandbox {
    /// Names and files of a sandbox that is not up yet.
    pub fn new(name: &str, user: User) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        populate(directory.path());
        Self { name: format!("{name}-{}", std::process::id()), directory, user }
    }

    /// Brings it up with these manifests. The stand-ins are never ready, so what is not ready is told and left running.
    pub fn up(name: &str, user: User, manifests: &str) -> Self {
        let sandbox = Self::new(name, user);
        let file = sandbox.file("up.yaml", manifests);
        let output = sandbox.run(&["up", "--detach", "--wait", "0s", "-f", &file]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("the sandbox goes on running"), "up: {text}");
        sandbox
    }

    /// `culvert sandbox VERB --name NAME ...`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.directory.path().join("culvert"));
        command.arg("sandbox").arg(arguments[0]).args(["--name", &self.name]).args(&arguments[1..]);
        command.current_dir("/").stdin(Stdio::null()).env_remove("XDG_RUNTIME_DIR");
        if self.user == User::Ordinary && nix::unistd::geteuid().is_root() {
            command.uid(ORDINARY).gid(ORDINARY).env("HOME", "/");
        }
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it prints, of a command that must succeed.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command in a pod of the default namespace prints.
    pub fn shell(&self, pod: &str, script: &str) -> String {
        self.succeed(&["exec", pod, "--", "sh", "-c", script])
    }

    /// Tries to open a TCP connection with bash: `refused` proves that packets go there and back.
    pub fn knock(&self, from: &[&str], address: &str) -> String {
        let script = format!("timeout 2 bash -c '</dev/tcp/{address}/9' 2>&1; echo code $?");
        let output = self.run(&[&["exec"], from, &["--", "sh", "-c", &script]].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    pub fn apply(&self, manifests: &str) {
        let file = self.file("apply.yaml", manifests);
        self.succeed(&["apply", "-f", &file]);
    }

    /// A pod of the default namespace; null when there is none.
    pub fn pod(&self, name: &str) -> Value {
        let output = self.run(&["get", "pod", name, "-o", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Waits until the pod is as wanted.
    pub fn await_pod(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        eventually(
            || {
                last = self.pod(name);
                wanted(&last)
            },
            || format!("pod {name}: {what}"),
        );
        last
    }

    pub fn await_ready(&self, name: &str) -> Value {
        self.await_pod(name, "ready", |pod| condition(pod, "Ready") == "True")
    }

    /// Where the control socket and the pid file are.
    pub fn place(&self) -> PathBuf {
        let uid = match self.user {
            User::Ordinary if nix::unistd::geteuid().is_root() => ORDINARY,
            _ => nix::unistd::geteuid().as_raw(),
        };
        let base = match uid {
            0 => PathBuf::from("/run/culvert"),
            uid => std::env::temp_dir().join(format!("culvert-{uid}")),
        };
        base.join(&self.name)
    }

    /// Processes of this sandbox, as the machine sees them: what it executed in a namespace of its own, and its keepers.
    pub fn processes(&self) -> Vec<i32> {
        let directory = self.directory.path().to_owned();
        all_processes()
            .into_iter()
            .filter(|pid| {
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).into_owned();
                let ours = command.contains(&self.name) || command.contains(&*directory.to_string_lossy());
                ours && command.contains("sandbox-init")
            })
            .collect()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.run(&["down"]);
    }
}

/// A bare pod in the default namespace that runs a shell script.
pub fn pod(name: &str, node: &str, script: &str, more: &str) -> String {
    let script = serde_json::to_string(script).unwrap();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: {node}\n  \
         terminationGracePeriodSeconds: 1\n{more}  containers:\n  - name: main\n    image: shell\n    \
         command: [sh, -c, {script}]\n"
    )
}

/// `status` of a condition, empty when there is none.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default()
}

pub fn eventually(mut holds: impl FnMut() -> bool, what: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "did not come about within {PATIENCE:?}: {}", what());
        std::thread::sleep(POLL);
    }
}

pub fn all_processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The PID namespace of a process, as the machine names it.
pub fn pid_namespace(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

/// Puts the program and the stand-ins there, where an ordinary user can execute them. By a process of its own: a file
/// that another test's child still has open for writing cannot be executed.
fn populate(directory: &Path) {
    let script = "cp \"$1\" culvert && for program in culvert-ca culvert-controller culvert-node-proxy culvert-echo; do
        printf '#!/bin/sh\nexec sleep 1000000\n' > $program; chmod 755 $program; done";
    let mut shell = Command::new("sh");
    shell.args(["-ec", script, "sh", env!("CARGO_BIN_EXE_culvert")]).current_dir(directory);
    assert!(shell.status().unwrap().success());
}
