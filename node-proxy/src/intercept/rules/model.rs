//! The rules as data: one model, rendered for two programs.
//!
//! Capture is decided on the SYN and remembered in the connection-tracking mark; later packets follow the mark, so a
//! connection that is older than the rules goes on untouched. Packet marks (under the mask):
//!
//! | mark | on |
//! |---|---|
//! | proxy | the proxy's own sockets |
//! | outbound | packets of captured outbound connections, on their way over `lo` to the outbound listener |
//! | reply | the application's replies to a connection that the proxy opened under the client's address |
//! | inbound | packets of captured inbound connections |
//!
//! A connection-tracking mark has the same meaning. The policy routing (`routing`) sends the last three to `lo`.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::state::model::{Interception, PortRange, UdpPolicy, WorkloadSettings};

/// Destination port that `udp: deny` leaves open: DNS.
const DNS_PORT: u16 = 53;

/// What shall be in force in one pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulePlan {
    pub interception: Interception,
    pub entry: Entry,
}

/// Whether new connections are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Open(Exclusions),
    /// No new ones; captured connections stay captured until they end.
    Closed,
}

/// What is not captured although the pod is enrolled, and what of UDP may leave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exclusions {
    pub outbound_ports: Vec<PortRange>,
    pub outbound_cidrs: Vec<IpNet>,
    pub inbound_ports: Vec<PortRange>,
    /// Ports of a Gateway, which the proxy itself serves in the Gateway's pod. With no listener a SYN is dropped, so that
    /// clients wait for a node proxy that restarts.
    pub gateway_ports: Vec<u16>,
    /// `Deny` drops all UDP that leaves the pod, except to port 53.
    pub udp: UdpPolicy,
}

impl Exclusions {
    /// Everything is captured that can be.
    pub fn none() -> Self {
        Self {
            outbound_ports: Vec::new(),
            outbound_cidrs: Vec::new(),
            inbound_ports: Vec::new(),
            gateway_ports: Vec::new(),
            udp: UdpPolicy::Allow,
        }
    }
}

impl RulePlan {
    /// For an enrolled pod, and the ports that the proxy serves in it for a Gateway.
    pub fn capturing(
        interception: Interception,
        settings: &WorkloadSettings,
        gateway_ports: Vec<u16>,
    ) -> Self {
        let exclusions = Exclusions {
            outbound_ports: settings.exclude_outbound_ports.clone(),
            outbound_cidrs: settings.exclude_outbound_cidrs.clone(),
            inbound_ports: settings.exclude_inbound_ports.clone(),
            gateway_ports,
            udp: settings.udp,
        };
        Self { interception, entry: Entry::Open(exclusions) }
    }

    /// For a pod that leaves: only what is captured already stays captured.
    pub fn leaving(interception: Interception) -> Self {
        Self { interception, entry: Entry::Closed }
    }

    /// The rules of every chain, in order.
    pub(super) fn chains(&self) -> [(Chain, Vec<Rule>); 5] {
        let i = &self.interception;
        [
            (Chain::EnterIn, self.enter_in()),
            (Chain::EnterOut, self.enter_out()),
            (Chain::Prerouting, self.prerouting()),
            (Chain::Output, self.output()),
            (Chain::Postrouting, postrouting(i)),
        ]
    }

    fn prerouting(&self) -> Vec<Rule> {
        use Match::*;
        let i = &self.interception;
        let own = [InLoopback, PacketMark(i.proxy_mark)];
        let outbound = [InLoopback, PacketMark(i.outbound_mark)];
        let inbound = [Original, ConnectionMark(i.inbound_mark)];
        let mut rules = vec![
            // Only on the SYN: replies of a captured outbound connection also come by here, and must keep their mark.
            Rule::new(own.into_iter().chain([Syn]), Action::MarkConnection(i.reply_mark)),
            Rule::new(own, Action::Return),
            Rule::new(
                outbound.into_iter().chain([Tcp]),
                Action::Tproxy { port: i.outbound_port, mark: None },
            ),
            // nft's tproxy goes on to the next rule when nobody listens: closed, not open.
            Rule::new(outbound.into_iter().chain([Syn]), Action::Drop),
            // What follows is about packets from outside.
            Rule::new([InLoopback], Action::Return),
            // The answers of a captured outbound connection come over lo. What comes from elsewhere answers a packet that
            // got out while the rules were missing: most likely a reset, which would end the connection.
            Rule::new([Tcp, ConnectionMark(i.outbound_mark)], Action::Drop),
        ];
        rules.extend(served(i.hbone_port));
        rules.push(Rule::new([one_port(i.hbone_port)], Action::Return));
        if let Entry::Open(exclusions) = &self.entry {
            rules.extend(exclusions.gateway_ports.iter().flat_map(|port| served(*port)));
        }
        rules.extend([
            Rule::new([Syn, ToLocal], Action::Jump(Chain::EnterIn)),
            Rule::new(
                inbound.into_iter().chain([Tcp]),
                Action::Tproxy { port: i.inbound_port, mark: Some(i.inbound_mark) },
            ),
            Rule::new(inbound.into_iter().chain([Syn]), Action::Drop),
        ]);
        rules
    }

    fn enter_in(&self) -> Vec<Rule> {
        let Entry::Open(exclusions) = &self.entry else { return Vec::new() };
        let excluded = exclusions.inbound_ports.iter().map(|&ports| Match::TcpPort(ports));
        let mut rules: Vec<Rule> = excluded.map(|port| Rule::new([port], Action::Return)).collect();
        rules.extend(capture(self.interception.inbound_mark));
        rules
    }

    fn enter_out(&self) -> Vec<Rule> {
        let Entry::Open(exclusions) = &self.entry else { return Vec::new() };
        let addresses =
            never_captured().into_iter().chain(exclusions.outbound_cidrs.iter().map(IpNet::trunc));
        let ports = exclusions.outbound_ports.iter().map(|&ports| Match::TcpPort(ports));
        let excluded = addresses.map(Match::To).chain(ports);
        let mut rules: Vec<Rule> = excluded.map(|what| Rule::new([what], Action::Return)).collect();
        rules.extend(capture(self.interception.outbound_mark));
        rules
    }

    fn output(&self) -> Vec<Rule> {
        use Match::*;
        let i = &self.interception;
        let reply = [ConnectionMark(i.reply_mark), Reply];
        let mut rules = vec![
            Rule::new([PacketMark(i.proxy_mark)], Action::Return),
            Rule::new(reply, Action::MarkPacket(i.reply_mark)),
            Rule::new(reply, Action::Return),
            // Also the pod's own addresses: they are reached over lo.
            Rule::new([OutLoopback], Action::Return),
        ];
        if matches!(&self.entry, Entry::Open(exclusions) if exclusions.udp == UdpPolicy::Deny) {
            rules.push(Rule::new([UdpNotToPort(DNS_PORT)], Action::Drop));
        }
        rules.extend([
            Rule::new([Syn], Action::Jump(Chain::EnterOut)),
            Rule::new([Tcp, Original, ConnectionMark(i.outbound_mark)], Action::MarkPacket(i.outbound_mark)),
        ]);
        rules
    }
}

fn one_port(port: u16) -> Match {
    Match::TcpPort(PortRange { first: port, last: port })
}

/// New connections from outside to a port that the proxy listens on: to the listener that they would reach anyway; with
/// none a SYN is dropped, so that clients wait for a node proxy that restarts instead of being refused.
fn served(port: u16) -> [Rule; 2] {
    use Match::{Syn, ToLocal};
    // In this order: whether an address is local takes a look into the routes, too much for every packet.
    let new = [one_port(port), Syn, ToLocal];
    [Rule::new(new, Action::Tproxy { port, mark: None }), Rule::new(new, Action::Drop)]
}

/// What the rules steer to `lo` must not leave by another interface when somebody removed the policy routing.
fn postrouting(i: &Interception) -> Vec<Rule> {
    use Match::*;
    vec![
        Rule::new([OutOther, Tcp, PacketMark(i.outbound_mark)], Action::Drop),
        Rule::new([OutOther, Tcp, PacketMark(i.reply_mark)], Action::Drop),
    ]
}

/// Marks the connection. A SYN without connection tracking could not be marked and would pass: it is dropped.
fn capture(mark: u32) -> [Rule; 2] {
    [Rule::new([Match::Untracked], Action::Drop), Rule::new([], Action::MarkConnection(mark))]
}

/// Destinations on the pod's own link or machine, where no peer of the mesh can be.
fn never_captured() -> [IpNet; 6] {
    let v4 = |a, b, c, d, length| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length));
    let v6 =
        |first, length| IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), length));
    [
        v4(127, 0, 0, 0, 8),
        v4(169, 254, 0, 0, 16),
        v4(224, 0, 0, 0, 4),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
        v6(0xfe80, 10),
        v6(0xff00, 8),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    Prerouting,
    Output,
    Postrouting,
    EnterIn,
    EnterOut,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub matches: Vec<Match>,
    pub action: Action,
}

impl Rule {
    fn new(matches: impl IntoIterator<Item = Match>, action: Action) -> Self {
        Self { matches: matches.into_iter().collect(), action }
    }
}

/// All of a rule's matches must hold. Marks are compared under the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    InLoopback,
    OutLoopback,
    OutOther,
    Tcp,
    /// A TCP packet that opens a connection.
    Syn,
    TcpPort(PortRange),
    /// UDP to any other port.
    UdpNotToPort(u16),
    To(IpNet),
    /// To an address of this namespace.
    ToLocal,
    PacketMark(u32),
    ConnectionMark(u32),
    /// From the side that opened the connection.
    Original,
    Reply,
    /// Connection tracking does not know what to do with it.
    Untracked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Return,
    Drop,
    MarkPacket(u32),
    MarkConnection(u32),
    Jump(Chain),
    /// To the listener on a local port, the address asked for kept.
    Tproxy {
        port: u16,
        mark: Option<u32>,
    },
}
