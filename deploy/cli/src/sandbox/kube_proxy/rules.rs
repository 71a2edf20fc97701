//! The nft rules that give Service addresses a meaning on one node, as text. Pure.
//!
//! One table, replaced as a whole: what a Service was is forgotten in the same transaction that says what it is. Open
//! connections keep the endpoint that connection tracking remembers for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use culvert_objects::types::Protocol;

use crate::sandbox::cluster::DualRange;
use crate::sandbox::network::UPLINK;
use crate::sandbox::store::DNS_SERVICE;

/// Name of the table, family `inet`.
pub const TABLE: &str = "kube_proxy";

/// How a new connection picks its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Random,
    /// The same client address goes to the same endpoint as long as the endpoints stay the same
    /// (`sessionAffinity: ClientIP`).
    ClientAddress,
}

/// Where a connection comes to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    Anywhere,
    /// From the link between the nodes; looked at first.
    Outside,
}

/// What becomes of connections without a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    Refuse,
    /// Another node has one: the client tries again, and comes to that one.
    Drop,
}

/// One virtual address and port, and where it leads on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// `namespace/name` of the Service.
    pub service: String,
    pub vip: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    pub entry: Entry,
    pub choice: Choice,
    /// Of the family of `vip`.
    pub backends: Vec<SocketAddr>,
    /// When there are no backends.
    pub without: Without,
}

/// Everything for one node as one nft transaction (`nft -f -`).
#[must_use]
pub fn render(frontends: &[Frontend], ranges: [&DualRange; 2]) -> String {
    let (v4, v6): (Vec<_>, Vec<_>) = frontends.iter().partition(|frontend| frontend.vip.is_ipv4());
    let families = [
        Family { v6: false, frontends: v4, ranges: ranges.map(|range| range.v4.to_string()) },
        Family { v6: true, frontends: v6, ranges: ranges.map(|range| range.v6.to_string()) },
    ];
    let mut text = format!("table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    for family in &families {
        family.declare(&mut text);
    }
    text.push_str(
        "\tchain refuse {\n\t\tmeta l4proto tcp reject with tcp reset\n\t\treject with icmpx port-unreachable\n\t}\n",
    );
    // Refusals come before the translation, in a filter chain: a NAT chain may not reject.
    for (hook, entries) in
        [("prerouting", &[Entry::Outside, Entry::Anywhere][..]), ("output", &[Entry::Anywhere])]
    {
        let guard: String = families.iter().map(|family| family.guard(entries)).collect();
        let translate: String = families.iter().map(|family| family.translate(entries)).collect();
        let _ = write!(
            text,
            "\tchain guard-{hook} {{\n\t\ttype filter hook {hook} priority -110\n\t\tct state != new accept\n{guard}\t}}\n\
             \tchain {hook} {{\n\t\ttype nat hook {hook} priority -100\n{translate}\t}}\n"
        );
    }
    let hairpin: String = families.iter().map(Family::hairpin).collect();
    let _ = write!(
        text,
        "\tchain postrouting {{\n\t\ttype nat hook postrouting priority 100\n{hairpin}\t}}\n}}\n"
    );
    text
}

struct Family<'a> {
    v6: bool,
    frontends: Vec<&'a Frontend>,
    /// Addresses in them lead nowhere but to Services.
    ranges: [String; 2],
}

impl Family<'_> {
    fn suffix(&self) -> &'static str {
        if self.v6 { "v6" } else { "v4" }
    }

    fn ip(&self) -> &'static str {
        if self.v6 { "ip6" } else { "ip" }
    }

    fn declare(&self, text: &mut String) {
        let (suffix, address) = (self.suffix(), if self.v6 { "ipv6_addr" } else { "ipv4_addr" });
        let vips: BTreeSet<String> = self.frontends.iter().map(|f| f.vip.to_string()).collect();
        set(text, &format!("set vips-{suffix}"), address, vips);
        let backends: BTreeSet<String> = self
            .frontends
            .iter()
            .flat_map(|frontend| &frontend.backends)
            .map(|backend| format!("{0} . {0}", backend.ip()))
            .collect();
        set(text, &format!("set hairpin-{suffix}"), &format!("{address} . {address}"), backends);
        let key = format!("{address} . inet_proto . inet_service : verdict");
        for entry in [Entry::Anywhere, Entry::Outside] {
            let guards = self.verdicts(entry, |_, frontend| {
                Some(match (frontend.backends.is_empty(), frontend.without) {
                    (false, _) => "accept".to_owned(),
                    (true, Without::Refuse) => "goto refuse".to_owned(),
                    (true, Without::Drop) => "drop".to_owned(),
                })
            });
            set(text, &format!("map {}", self.map("guards", entry)), &key, guards);
            let services = self.verdicts(entry, |index, frontend| {
                let served = !frontend.backends.is_empty();
                served.then(|| format!("goto {}", self.chain(index, frontend)))
            });
            set(text, &format!("map {}", self.map("services", entry)), &key, services);
            for (index, frontend) in self.frontends_by_key(entry).values() {
                self.service(text, *index, frontend);
            }
        }
    }

    fn map(&self, what: &str, entry: Entry) -> String {
        match entry {
            Entry::Anywhere => format!("{what}-{}", self.suffix()),
            Entry::Outside => format!("{what}-outside-{}", self.suffix()),
        }
    }

    /// By the key of the maps, which must not occur twice; the first Service (by the order given) has the address.
    fn frontends_by_key(&self, entry: Entry) -> BTreeMap<(IpAddr, Protocol, u16), (usize, &Frontend)> {
        let mut by_key = BTreeMap::new();
        let all = self.frontends.iter().enumerate().filter(|(_, frontend)| frontend.entry == entry);
        for (index, frontend) in all {
            by_key.entry((frontend.vip, frontend.protocol, frontend.port)).or_insert((index, *frontend));
        }
        by_key
    }

    fn verdicts(&self, entry: Entry, verdict: impl Fn(usize, &Frontend) -> Option<String>) -> Vec<String> {
        let verdict = |index: usize, f: &Frontend| {
            let verdict = verdict(index, f)?;
            Some(format!("{} . {} . {} : {verdict}", f.vip, word(f.protocol), f.port))
        };
        self.frontends_by_key(entry).values().filter_map(|(index, f)| verdict(*index, f)).collect()
    }

    /// Unique by the index, readable by the rest; at most 150 of nft's 255 characters.
    fn chain(&self, index: usize, frontend: &Frontend) -> String {
        format!(
            "s{index}-{}/{}/{}/{}",
            self.suffix(),
            frontend.service,
            word(frontend.protocol),
            frontend.port
        )
    }

    fn service(&self, text: &mut String, index: usize, frontend: &Frontend) {
        if frontend.backends.is_empty() {
            return;
        }
        let ip = self.ip();
        let pick = match frontend.choice {
            Choice::Random => "numgen random".to_owned(),
            Choice::ClientAddress => format!("jhash {ip} saddr"),
        };
        let backends: Vec<String> = frontend
            .backends
            .iter()
            .enumerate()
            .map(|(position, backend)| format!("{position} : {} . {}", backend.ip(), backend.port()))
            .collect();
        let _ = write!(
            text,
            "\tchain {chain} {{\n\t\tmeta l4proto {protocol} dnat {ip} addr . port to {pick} mod {count} map {{ {map} }}\n\t}}\n",
            chain = self.chain(index, frontend),
            protocol = word(frontend.protocol),
            count = backends.len(),
            map = backends.join(", "),
        );
    }

    /// Addresses that no Service has are dropped, not refused: while the table is replaced, a packet in the old chains
    /// finds the old sets empty, and must be sent again rather than fail.
    fn guard(&self, entries: &[Entry]) -> String {
        let (ip, suffix, [one, other]) = (self.ip(), self.suffix(), &self.ranges);
        let dns: String = self.dns().map(|(matched, _)| format!("\t\t{matched} accept\n")).collect();
        let looked_up = self.looked_up("guards", entries);
        format!(
            "{dns}{looked_up}\t\t{ip} daddr @vips-{suffix} goto refuse\n\
             \t\t{ip} daddr {{ {one}, {other} }} drop\n"
        )
    }

    /// Address, protocol and port in the maps, by where the packet came in.
    fn looked_up(&self, what: &str, entries: &[Entry]) -> String {
        let ip = self.ip();
        let one = |entry: &Entry| {
            let from = match entry {
                Entry::Anywhere => String::new(),
                Entry::Outside => format!("iifname \"{UPLINK}\" "),
            };
            format!("\t\t{from}{ip} daddr . meta l4proto . th dport vmap @{}\n", self.map(what, *entry))
        };
        entries.iter().map(one).collect()
    }

    fn translate(&self, entries: &[Entry]) -> String {
        let ip = self.ip();
        let to = |backend: &SocketAddr| format!("dnat {ip} to {backend}");
        let dns: String =
            self.dns().map(|(matched, backend)| format!("\t\t{matched} {}\n", to(&backend))).collect();
        dns + &self.looked_up("services", entries)
    }

    /// Names are looked up by single datagrams, and a lost one costs a resolver 5 s: the rules of the DNS Service name
    /// its addresses themselves, so that no packet finds an empty set while the table is replaced.
    fn dns(&self) -> impl Iterator<Item = (String, SocketAddr)> + '_ {
        let ours =
            self.frontends.iter().filter(|frontend| frontend.service == format!("kube-system/{DNS_SERVICE}"));
        ours.filter_map(|frontend| {
            let (ip, protocol) = (self.ip(), word(frontend.protocol));
            let matched = format!("{ip} daddr {} {protocol} dport {}", frontend.vip, frontend.port);
            Some((matched, *frontend.backends.first()?))
        })
    }

    /// A pod that reached itself through a Service would see its own address as the client and answer itself past
    /// connection tracking; the node stands in for it.
    fn hairpin(&self) -> String {
        let (ip, suffix) = (self.ip(), self.suffix());
        format!("\t\tct status dnat {ip} saddr . {ip} daddr @hairpin-{suffix} masquerade\n")
    }
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

fn set(text: &mut String, name: &str, kind: &str, elements: impl IntoIterator<Item = String>) {
    let _ = write!(text, "\t{name} {{\n\t\ttype {kind}\n");
    let elements: Vec<String> = elements.into_iter().collect();
    if !elements.is_empty() {
        let _ = writeln!(text, "\t\telements = {{\n\t\t\t{}\n\t\t}}", elements.join(",\n\t\t\t"));
    }
    text.push_str("\t}\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::cluster::{Cluster, load_balancer_range};

    fn frontend(service: &str, vip: &str, protocol: Protocol, backends: &[&str]) -> Frontend {
        Frontend {
            service: service.to_owned(),
            vip: vip.parse().unwrap(),
            port: 80,
            protocol,
            entry: Entry::Anywhere,
            choice: Choice::Random,
            without: Without::Refuse,
            backends: backends.iter().map(|backend| backend.parse().unwrap()).collect(),
        }
    }

    fn render_all(frontends: &[Frontend]) -> String {
        render(frontends, [&Cluster::new("test", 2).service_cidr, &load_balancer_range()])
    }

    fn example() -> String {
        let mut sticky =
            frontend("shop/cart", "fd00:10:96::1:0", Protocol::Tcp, &["[fd00:10:244:1::2]:8080"]);
        sticky.choice = Choice::ClientAddress;
        let mut outside = frontend("shop/edge", "10.90.0.10", Protocol::Tcp, &["10.244.1.2:80"]);
        outside.entry = Entry::Outside;
        let mut elsewhere = frontend("shop/edge", "10.90.0.11", Protocol::Tcp, &[]);
        (elsewhere.entry, elsewhere.without) = (Entry::Outside, Without::Drop);
        render_all(&[
            frontend("shop/cart", "10.96.1.0", Protocol::Tcp, &["10.244.1.2:8080", "10.244.2.2:8080"]),
            frontend("kube-system/kube-dns", "10.96.0.10", Protocol::Udp, &["10.89.0.2:53"]),
            frontend("shop/nobody", "10.96.1.1", Protocol::Tcp, &[]),
            sticky,
            frontend("shop/edge", "10.90.0.10", Protocol::Tcp, &["10.244.1.2:80", "10.244.2.2:80"]),
            outside,
            elsewhere,
        ])
    }

    #[test]
    fn endpoints_are_picked_and_services_without_any_refused() {
        let text = example();
        assert!(text.starts_with("table inet kube_proxy\ndelete table inet kube_proxy\n"), "{text}");
        assert!(text.contains("10.96.1.0 . tcp . 80 : goto s0-v4/shop/cart/tcp/80"), "{text}");
        assert!(
            text.contains(
                "dnat ip addr . port to numgen random mod 2 map { 0 : 10.244.1.2 . 8080, 1 : 10.244.2.2 . 8080 }"
            ),
            "{text}"
        );
        assert!(text.contains("dnat ip6 addr . port to jhash ip6 saddr mod 1"), "{text}");
        assert!(text.contains("10.96.1.1 . tcp . 80 : goto refuse"), "{text}");
        assert!(!text.contains("chain s2-v4/shop/nobody"), "{text}");
        assert!(text.contains("10.244.1.2 . 10.244.1.2"), "{text}");
        assert!(text.contains("ip daddr 10.96.0.10 udp dport 80 accept"), "{text}");
        assert!(text.contains("ip daddr 10.96.0.10 udp dport 80 dnat ip to 10.89.0.2:53"), "{text}");
    }

    #[test]
    fn what_comes_from_outside_is_looked_up_first() {
        let text = example();
        let prerouting = text.split_once("chain prerouting").unwrap().1;
        let (first, second) = prerouting.split_once("vmap @services-outside-v4").unwrap();
        assert!(first.contains("iifname \"eth0\"") && second.contains("vmap @services-v4"), "{text}");
        assert!(text.contains("10.90.0.11 . tcp . 80 : drop"), "{text}");
        assert!(text.contains("ip daddr { 10.96.0.0/16, 10.90.0.0/24 } drop"), "{text}");
        let output = text.split_once("chain output").unwrap().1;
        assert!(!output.contains("outside"), "{text}");
    }

    #[test]
    fn an_address_claimed_twice_has_one_owner() {
        let text = render_all(&[
            frontend("a/first", "10.96.1.0", Protocol::Tcp, &["10.244.1.2:1"]),
            frontend("b/second", "10.96.1.0", Protocol::Tcp, &["10.244.1.3:2"]),
        ]);
        assert_eq!(text.matches("10.96.1.0 . tcp . 80 : goto s").count(), 1, "{text}");
        assert!(text.contains("goto s0-v4/a/first"), "{text}");
    }

    /// What the text means is up to the kernel: two loads in a row, the second over the first.
    #[test]
    fn nft_accepts_it_without_root() {
        let script = "nft -f - && nft list table inet kube_proxy | grep -c 'goto refuse'";
        let once = format!("{}{}", example(), example());
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--net", "--map-root-user", "sh", "-c", script]);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = match command.stderr(std::process::Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => panic!("unshare: {error}"),
        };
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), once.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
