//! The same mesh for an ordinary user: no root, no capability, only user namespaces.

use culvert_e2e::{Labelled, SOON, Shop, binary, eventually, run};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const UP: Duration = Duration::from_secs(60);
/// Debian's `nobody`.
const NOBODY: &str = "65534";

/// `culvert` as somebody without rights: as is when the tests run so, else by way of `setpriv`.
struct Ordinary {
    home: tempfile::TempDir,
    name: String,
}

impl Ordinary {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o777)).expect("permissions");
        // The programs may lie below a directory that only root may enter.
        for program in ["culvert", "culvert-ca", "culvert-controller", "culvert-node-proxy", "culvert-echo"] {
            std::fs::copy(binary(program), home.path().join(program)).expect("copy");
        }
        Self { home, name: format!("e2e-user-{:08x}", rand::random::<u32>()) }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.culvert();
        command.arg("sandbox").arg(arguments[0]).args(["--name", &self.name]).args(&arguments[1..]);
        command
    }

    fn culvert(&self) -> Command {
        let culvert = self.home.path().join("culvert");
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args([
                "--reuid",
                NOBODY,
                "--regid",
                NOBODY,
                "--clear-groups",
                "--bounding-set",
                "-all",
                "--inh-caps",
                "-all",
                "--",
            ]);
            command.arg(culvert);
            command
        } else {
            Command::new(culvert)
        };
        // As a login shell of an ordinary user has it.
        command
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.home.path())
            .env_remove("XDG_RUNTIME_DIR");
        command.env("TMPDIR", self.home.path()).current_dir(self.home.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> culvert_e2e::Done {
        run(self.command(arguments), UP)
    }

    fn echo(&self, pod: &str, arguments: &[&str]) -> Value {
        // By its name, though the user's PATH does not lead to it.
        self.run(&[&["exec", "-n", "shop", pod, "--", "culvert-echo"], arguments].concat()).json()
    }
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        let _ = self.command(&["down"]).status();
    }
}

#[test]
fn a_mesh_of_an_ordinary_user_encrypts() {
    let user = Ordinary::new();
    let file = user.home.path().join("shop.yaml");
    std::fs::write(&file, Shop::new("shop", Labelled::Yes).yaml()).expect("write");
    user.run(&["up", "--detach", "-f", &file.display().to_string()]).ok();
    let pods = user.run(&["get", "pods", "-n", "shop", "-o", "json"]).ok().json();
    let name = |app: &str| {
        let items = pods["items"].as_array().cloned().unwrap_or_default();
        let pod = items.into_iter().find(|pod| pod["metadata"]["labels"]["app"] == app);
        pod.and_then(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).expect("a pod")
    };
    let recording = user.home.path().join("link.pcap").display().to_string();
    let culvert = user.home.path().join("culvert").display().to_string();
    let session = culvert_e2e::Session::start(user.command(&[
        "exec",
        "--node",
        "node1",
        "--",
        &culvert,
        "capture",
        "--interface",
        "eth0",
        "--write",
        &recording,
    ]));
    assert_eq!(session.next(UP)["event"], "capturing");
    let client = name("client");
    for (target, until) in [("server:9000", "echo"), ("server.shop.svc.cluster.local:9001", "banner")] {
        // Readiness reaches the client's node a moment after it is written.
        eventually(target, SOON, || {
            let words = ["tcp", "send", target, "--data", "unprivileged-word", "--until", until];
            let report = user.echo(&client, &words);
            if report["received"] == "unprivileged-word" { Ok(()) } else { Err(report.to_string()) }
        });
    }
    session.end(UP);
    let frames = culvert_cli::capture::pcap::read(Path::new(&recording)).expect("the recording");
    let summary = culvert_cli::capture::Summary::of(&frames, "unprivileged-word");
    assert!(summary.frames > 0 && summary.token_seen.is_empty(), "{summary:?}");
    let status = user.run(&["status"]).ok().stdout;
    assert!(status.contains("Enrolled"), "{status}");
    user.run(&["down"]).ok();
    assert_ne!(user.run(&["status"]).code, 0);
}

#[test]
fn the_demo_passes_for_an_ordinary_user() {
    let user = Ordinary::new();
    let mut demo = user.culvert();
    demo.args(["demo", "--json", "--requests", "500", "--name", &user.name]);
    let report = run(demo, UP).ok().json();
    assert_eq!(report["ok"], true, "{report}");
}
