//! A pod and a peer, each in a network namespace, joined by a link.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use culvert_node_proxy::intercept::Netns;
use culvert_node_proxy::intercept::rules::{Entry, Exclusions, Firewall, FirewallChoice, RulePlan, Rules};
use culvert_node_proxy::state::model::{Interception, UdpPolicy};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

pub const INTERCEPTION: Interception = Interception {
    mark_mask: 0xfff,
    proxy_mark: 0x539,
    outbound_mark: 0x111,
    reply_mark: 0x112,
    inbound_mark: 0x113,
    route_table: 100,
    rule_priority: 32764,
    outbound_port: 15001,
    inbound_port: 15006,
    hbone_port: 15008,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    pub firewall: FirewallChoice,
    pub family: Family,
}

impl Setup {
    pub const ALL: &[Setup] = &[
        Setup { firewall: FirewallChoice::Nft, family: Family::V4 },
        Setup { firewall: FirewallChoice::Nft, family: Family::V6 },
        Setup { firewall: FirewallChoice::Iptables, family: Family::V4 },
        Setup { firewall: FirewallChoice::Iptables, family: Family::V6 },
    ];
    /// The life of a pod does not depend on the combination.
    pub const FOR_LIVES: &[Setup] = &[
        Setup { firewall: FirewallChoice::Nft, family: Family::V4 },
        Setup { firewall: FirewallChoice::Iptables, family: Family::V6 },
    ];
}

impl std::fmt::Display for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}/{:?}", self.firewall, self.family)
    }
}

/// `pod` is what gets captured; `peer` is the rest of the world, and the pod's default route.
pub struct World {
    pub setup: Setup,
    pub pod: Arc<Netns>,
    pub peer: Arc<Netns>,
    pub pod_ip: IpAddr,
    pub peer_ip: IpAddr,
    /// Routed to the peer, but nobody's address there.
    pub vip: IpAddr,
    pub rules: Rules,
}

impl World {
    pub async fn new(setup: Setup) -> Self {
        let (pod, peer) = (Arc::new(new_netns()), Arc::new(new_netns()));
        link(&pod, &peer);
        let firewall = Arc::new(Firewall::detect(setup.firewall).expect("the firewall program is installed"));
        let rules = Rules::new(firewall, pod.clone()).expect("the pod's namespace can be entered");
        let [pod_ip, peer_ip, vip] = match setup.family {
            Family::V4 => ["10.9.0.1", "10.9.0.2", "10.96.0.1"],
            Family::V6 => ["fd09::1", "fd09::2", "fd96::1"],
        }
        .map(|address| address.parse().expect("an address"));
        Self { setup, pod, peer, pod_ip, peer_ip, vip, rules }
    }

    pub fn plan(&self) -> RulePlan {
        RulePlan { interception: INTERCEPTION, entry: Entry::Open(exclusions()) }
    }

    pub fn pod_at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pod_ip, port)
    }

    pub fn peer_at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.peer_ip, port)
    }

    pub fn loopback_at(&self, port: u16) -> SocketAddr {
        let loopback: [IpAddr; 2] = ["127.0.0.1".parse().expect("v4"), "::1".parse().expect("v6")];
        SocketAddr::new(loopback[usize::from(self.setup.family == Family::V6)], port)
    }

    /// Removes the rules the way an administrator's or another program's `flush` would.
    pub fn flush(&self) {
        match self.setup.firewall {
            FirewallChoice::Iptables => {
                for program in ["iptables", "ip6tables"] {
                    sh(&self.pod, &format!("{program} -t mangle -F && {program} -t mangle -X"));
                }
            }
            _ => sh(&self.pod, "nft flush ruleset"),
        }
    }
}

pub fn exclusions() -> Exclusions {
    Exclusions {
        outbound_ports: vec![],
        outbound_cidrs: vec![],
        inbound_ports: vec![],
        gateway_ports: vec![],
        udp: UdpPolicy::Allow,
    }
}

/// Runs a shell line inside a namespace.
pub fn sh(netns: &Netns, line: &str) {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let run = || Command::new("sh").args(["-ec", line]).env("PATH", path).output();
    let output = netns.run(run).expect("entering").expect("sh runs");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Leaves the namespaces of whoever started the tests; as an ordinary user by way of a user namespace.
pub fn enter_own_namespaces() {
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if !user.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).expect(
        "namespaces can be made: run as root, or allow user namespaces (sysctl user.max_user_namespaces, \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
    );
    if !user.is_root() {
        std::fs::write("/proc/self/setgroups", "deny").expect("setgroups");
        std::fs::write("/proc/self/uid_map", format!("0 {user} 1")).expect("uid_map");
        std::fs::write("/proc/self/gid_map", format!("0 {group} 1")).expect("gid_map");
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("a mount namespace of our own");
    assert!(Path::new("/proc/thread-self/ns/net").exists(), "/proc is mounted");
    sh(&Netns::home().expect("home"), "ip link set lo up");
}

pub fn new_netns() -> Netns {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").expect("its descriptor"))
    });
    Netns::from_fd(made.join().expect("the thread ends")).expect("it can be entered")
}

fn link(pod: &Netns, peer: &Netns) {
    // `ip` moves a device to the namespace of a process: one that stands in the peer's.
    let mut stand_in =
        peer.run(|| Command::new("sleep").arg("60").spawn()).expect("entering").expect("sleep runs");
    sh(
        pod,
        &format!(
            "ip link set lo up; ip link add eth0 type veth peer name eth0 netns {}; ip link set eth0 up; \
             ip addr add 10.9.0.1/24 dev eth0; ip addr add fd09::1/64 dev eth0 nodad; \
             echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter",
            stand_in.id()
        ),
    );
    sh(
        peer,
        "ip link set lo up; ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0; \
         ip addr add fd09::2/64 dev eth0 nodad; ip addr add 169.254.7.7/16 dev eth0",
    );
    sh(
        pod,
        "ip route add default via 10.9.0.2; ip -6 route add default via fd09::2; \
         ip route add 169.254.0.0/16 dev eth0",
    );
    stand_in.kill().expect("sleep is there");
    stand_in.wait().expect("sleep ends");
}
