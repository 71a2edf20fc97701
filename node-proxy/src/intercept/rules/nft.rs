//! The rules as an `nft -f` script: one `inet` table for both families, replaced in one transaction.

use std::fmt::Write;

use ipnet::IpNet;

use super::model::{Action, Chain, Match, Rule, RulePlan};

/// The only table that is ours, of family `inet`.
pub(super) const NAME: &str = "culvert";

/// Puts the plan in place of whatever the table holds. Old and new rules swap between two packets.
pub(super) fn render(plan: &RulePlan) -> String {
    let mask = plan.interception.mark_mask;
    let mut script = render_removal();
    let _ = writeln!(script, "table inet {NAME} {{");
    for (chain, rules) in plan.chains() {
        let _ = writeln!(script, "  chain {} {{", name(chain));
        if let Some(hook) = hook(chain) {
            let _ = writeln!(script, "    {hook}; policy accept;");
        }
        for rule in &rules {
            let _ = writeln!(script, "    {}", render_rule(rule, mask));
        }
        script.push_str("  }\n");
    }
    script.push_str("}\n");
    script
}

/// Removes the table; it need not exist.
pub(super) fn render_removal() -> String {
    format!("table inet {NAME}\ndelete table inet {NAME}\n")
}

/// Rules in a listing of the table.
pub(super) fn count_rules(listing: &str) -> usize {
    listing.lines().map(str::trim).filter(|line| is_rule(line)).count()
}

fn is_rule(line: &str) -> bool {
    !(line.is_empty() || line.ends_with('{') || line == "}" || line.starts_with("type "))
}

fn name(chain: Chain) -> &'static str {
    match chain {
        Chain::Prerouting => "prerouting",
        Chain::Output => "output",
        Chain::Postrouting => "postrouting",
        Chain::EnterIn => "enter_in",
        Chain::EnterOut => "enter_out",
    }
}

fn hook(chain: Chain) -> Option<&'static str> {
    match chain {
        Chain::Prerouting => Some("type filter hook prerouting priority mangle"),
        // `route`: a changed mark is routed again.
        Chain::Output => Some("type route hook output priority mangle"),
        Chain::Postrouting => Some("type filter hook postrouting priority mangle"),
        Chain::EnterIn | Chain::EnterOut => None,
    }
}

fn render_rule(rule: &Rule, mask: u32) -> String {
    let mut words: Vec<String> = rule.matches.iter().map(|what| render_match(what, mask)).collect();
    words.push(render_action(&rule.action, mask));
    words.join(" ")
}

fn render_match(what: &Match, mask: u32) -> String {
    match what {
        // By index, which is 1 in every namespace: names are copied and compared for every packet.
        Match::InLoopback => "iif lo".into(),
        Match::OutLoopback => "oif lo".into(),
        Match::OutOther => "oif != lo".into(),
        Match::Tcp => "meta l4proto tcp".into(),
        Match::Syn => "tcp flags & (fin | syn | rst | ack) == syn".into(),
        Match::TcpPort(ports) if ports.first == ports.last => format!("tcp dport {}", ports.first),
        Match::TcpPort(ports) => format!("tcp dport {}-{}", ports.first, ports.last),
        Match::UdpNotToPort(port) => format!("udp dport != {port}"),
        Match::To(IpNet::V4(net)) => format!("ip daddr {net}"),
        Match::To(IpNet::V6(net)) => format!("ip6 daddr {net}"),
        Match::ToLocal => "fib daddr type local".into(),
        Match::PacketMark(mark) => format!("meta mark & {mask:#x} == {mark:#x}"),
        Match::ConnectionMark(mark) => format!("ct mark & {mask:#x} == {mark:#x}"),
        Match::Original => "ct direction original".into(),
        Match::Reply => "ct direction reply".into(),
        Match::Untracked => "ct state invalid,untracked".into(),
    }
}

fn render_action(action: &Action, mask: u32) -> String {
    let rest = !mask;
    match action {
        Action::Return => "return".into(),
        Action::Drop => "drop".into(),
        Action::MarkPacket(mark) => format!("meta mark set meta mark & {rest:#x} | {mark:#x}"),
        Action::MarkConnection(mark) => format!("ct mark set ct mark & {rest:#x} | {mark:#x}"),
        Action::Jump(chain) => format!("jump {}", name(*chain)),
        Action::Tproxy { port, mark: None } => format!("tproxy to :{port} accept"),
        Action::Tproxy { port, mark: Some(mark) } => {
            format!("meta mark set meta mark & {rest:#x} | {mark:#x} tproxy to :{port} accept")
        }
    }
}
