//! Pods that ran before the node proxy did: real processes in real control groups and network namespaces. Needs root.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use culvert_api::mesh as wire;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::controller::{FakeController, own_pod};
use crate::proxy::{Home, Proxy};

/// A pod as a container runtime leaves one: a process in a control group of the pod's, in a network namespace.
struct Pod {
    process: Child,
    groups: Vec<PathBuf>,
}

impl Pod {
    /// `group` is below the kubelet's; the namespace is the node's own without addresses.
    fn start(group: &str, addresses: &[&str]) -> Self {
        let root = format!("culvert-test-{:016x}", rand::random::<u64>());
        let groups = make_group(&Path::new(&root).join(group));
        let mut script = String::from("echo $$ > \"$0\"; ");
        for address in addresses {
            script +=
                &format!("ip addr add {address} dev lo nodad 2>/dev/null || ip addr add {address} dev lo; ");
        }
        script += "echo ready; exec sleep 600";
        let mut command = match addresses {
            [] => Command::new("sh"),
            _ => {
                let mut unshare = Command::new("unshare");
                unshare.args(["--net", "sh"]);
                unshare
            }
        };
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let command = command.args(["-ec", &script]).arg(groups[0].join("cgroup.procs"));
        let mut process = command.env("PATH", path).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "the pod's process could not join {}", groups[0].display());
        Self { process, groups }
    }

    fn netns(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.process.id()))
    }

    /// What is in force in its namespace.
    fn rules(&self) -> String {
        let netns = format!("--net={}", self.netns().display());
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let listed =
            Command::new("nsenter").args([&netns, "nft", "list", "ruleset"]).env("PATH", path).output();
        String::from_utf8(listed.unwrap().stdout).unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The kernel may take a moment to see that a group is empty.
        for group in &self.groups {
            for _ in 0..500 {
                if std::fs::remove_dir(group).is_ok() || !group.exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
}

/// Makes a control group and those above it, in a hierarchy where that is allowed: version 2, or one of version 1. The innermost
/// first.
fn make_group(group: &Path) -> Vec<PathBuf> {
    assert!(
        nix::unistd::geteuid().is_root(),
        "control groups and network namespaces are made here: run as root"
    );
    let mut refused = Vec::new();
    for hierarchy in ["", "unified", "pids", "systemd"] {
        let hierarchy = Path::new("/sys/fs/cgroup").join(hierarchy);
        let innermost = hierarchy.join(group);
        if !hierarchy.join("cgroup.procs").exists() {
            refused.push(format!("{}: no hierarchy", hierarchy.display()));
            continue;
        }
        match std::fs::create_dir_all(&innermost) {
            Ok(()) => {
                let above = innermost.ancestors().take_while(|path| *path != hierarchy);
                return above.map(Path::to_owned).collect();
            }
            Err(error) => refused.push(format!("{}: {error}", innermost.display())),
        }
    }
    panic!("no control group can be made here: {}", refused.join("; "))
}

/// A binding of a namespace, as a container runtime makes it.
struct Binding(PathBuf);

impl Binding {
    fn new(home: &Home, netns: &Path) -> Self {
        let directory = home.path("netns");
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("cni-1");
        std::fs::write(&path, "").unwrap();
        mount(Some(netns), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Self(path)
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn kept(home: &Home) -> String {
    std::fs::read_to_string(home.path("state").join("pods.json")).unwrap_or_default()
}

#[tokio::test]
async fn pods_that_ran_before_are_found_by_their_control_groups_and_believed_by_their_addresses() {
    let home = Home::new();
    home.write_bundle();
    let random = || format!("{:08x}-{:04x}", rand::random::<u32>(), rand::random::<u16>());
    let (right, systemd, wrong, own) = (random(), random(), random(), random());
    let slice = format!("kubepods-besteffort-pod{}.slice", systemd.replace('-', "_"));
    let pods = [
        Pod::start(&format!("kubepods/burstable/pod{right}/3a9f"), &["10.99.0.7/32", "fd99::7/128"]),
        Pod::start(&format!("kubepods.slice/{slice}/cri-containerd-3a9f.scope"), &["10.99.0.8/32"]),
        Pod::start(&format!("kubepods/pod{wrong}/3a9f"), &["10.99.0.9/32"]),
        Pod::start(&format!("kubepods/pod{own}/3a9f"), &[]),
    ];
    let binding = Binding::new(&home, &pods[0].netns());
    let v6 = std::net::Ipv6Addr::from([0xfd99, 0, 0, 0, 0, 0, 0, 7]).octets().to_vec();
    let address = |last: u8| vec![10, 99, 0, last];
    let enrolled: Vec<wire::Resource> = vec![
        own_pod("right", &right, vec![address(7), v6]),
        own_pod("systemd", &systemd, vec![address(8)]),
        own_pod("wrong", &wrong, vec![address(99)]),
        own_pod("own", &own, vec![address(10)]),
    ];
    let controller = FakeController::start_with(&home, enrolled).await;
    let netns_dir = home.path("netns").display().to_string();
    let arguments = ["--netns-dir", &netns_dir, "--firewall", "nft"];
    let mut proxy = Proxy::start_with(&home, &controller.url(), &arguments);
    let pods_page = "/config?only=pods";
    proxy.eventually(pods_page, 200, "does not hold the pod's address 10.99.0.99, but 10.99.0.9").await;
    proxy.eventually(pods_page, 200, "its processes are in the node's own network namespace").await;
    for round in ["installed", "its list of pods lost"] {
        // There is no CA: as far as a pod comes without a certificate.
        for uid in [&right, &systemd] {
            proxy.eventually("/config?only=connections", 200, &format!("/{uid}\"")).await;
        }
        assert!(pods.iter().take(2).all(|pod| pod.rules().contains("tproxy")), "{round}: captured");
        assert_eq!(pods[2].rules(), "", "refused and untouched");
        assert!(kept(&home).contains(&binding.0.display().to_string()), "{}", kept(&home));
        assert!(kept(&home).contains(&pods[1].netns().display().to_string()), "{}", kept(&home));
        assert!(!kept(&home).contains(&wrong) && !kept(&home).contains(&own), "{}", kept(&home));
        assert_eq!(proxy.terminate().await, Some(0), "{round}");
        std::fs::remove_file(home.path("state").join("pods.json")).unwrap();
        proxy = Proxy::start_with(&home, &controller.url(), &arguments);
        proxy.eventually(pods_page, 200, "does not hold the pod's address").await;
    }
    assert_eq!(proxy.terminate().await, Some(0));
}
