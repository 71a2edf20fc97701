//! The rules for `iptables-restore` and `ip6tables-restore`: own chains in the mangle table, jumped to from the built-in
//! ones, replaced in one transaction per family. Rules of others in the table are left alone (`--noflush`).

use std::fmt::Write;

use ipnet::IpNet;

use super::model::{Action, Chain, Family, Match, Rule, RulePlan};

/// What all our chains begin with.
const PREFIX: &str = "CULVERT_";

/// Puts the plan in place of whatever our chains hold. `present` is `iptables-save -t mangle` of the same family: the
/// jumps that are missing or doubled in it are put right.
pub(super) fn render(plan: &RulePlan, family: Family, present: &str) -> String {
    let mut script = declare_chains();
    for (chain, rules) in plan.chains() {
        for rule in rules.iter().filter(|rule| belongs(rule, family)) {
            let _ = writeln!(script, "-A {}{}", name(chain), render_rule(rule, plan.interception.mark_mask));
        }
        let Some(jump) = jump_from(chain) else { continue };
        let count = count_jumps(present, &jump);
        if count != 1 {
            delete_jumps(&mut script, &jump, count);
            // First of all: rules of others must not let packets past ours.
            let _ = writeln!(script, "-I {jump}");
        }
    }
    script.push_str("COMMIT\n");
    script
}

/// Removes jumps and chains; they need not exist. `present` as for [`render`].
pub(super) fn render_removal(present: &str) -> String {
    let mut script = declare_chains();
    for jump in CHAINS.into_iter().filter_map(jump_from) {
        delete_jumps(&mut script, &jump, count_jumps(present, &jump));
    }
    for chain in CHAINS {
        let _ = writeln!(script, "-X {}", name(chain));
    }
    script.push_str("COMMIT\n");
    script
}

/// What of `iptables-save -t mangle` is ours.
pub(super) fn own_lines(saved: &str) -> String {
    saved.lines().filter(|line| line.starts_with("-A ") && line.contains(PREFIX)).fold(
        String::new(),
        |mut own, line| {
            own.push_str(line);
            own.push('\n');
            own
        },
    )
}

/// Lines that [`own_lines`] has when the plan is in force.
pub(super) fn count_lines(plan: &RulePlan, family: Family) -> usize {
    let rules = plan.chains().into_iter().flat_map(|(_, rules)| rules);
    rules.filter(|rule| belongs(rule, family)).count() + CHAINS.into_iter().filter_map(jump_from).count()
}

const CHAINS: [Chain; 5] =
    [Chain::Prerouting, Chain::Output, Chain::Postrouting, Chain::EnterIn, Chain::EnterOut];

/// Declaring a chain makes it, or empties it when it exists.
fn declare_chains() -> String {
    let mut script = String::from("*mangle\n");
    for chain in CHAINS {
        let _ = writeln!(script, ":{} - [0:0]", name(chain));
    }
    script
}

fn count_jumps(present: &str, jump: &str) -> usize {
    present.lines().filter(|line| line.strip_prefix("-A ") == Some(jump)).count()
}

fn delete_jumps(script: &mut String, jump: &str, count: usize) {
    for _ in 0..count {
        let _ = writeln!(script, "-D {jump}");
    }
}

fn name(chain: Chain) -> String {
    let name = match chain {
        Chain::Prerouting => "PREROUTING",
        Chain::Output => "OUTPUT",
        Chain::Postrouting => "POSTROUTING",
        Chain::EnterIn => "ENTER_IN",
        Chain::EnterOut => "ENTER_OUT",
    };
    format!("{PREFIX}{name}")
}

fn jump_from(chain: Chain) -> Option<String> {
    let builtin = match chain {
        Chain::Prerouting => "PREROUTING",
        Chain::Output => "OUTPUT",
        Chain::Postrouting => "POSTROUTING",
        Chain::EnterIn | Chain::EnterOut => return None,
    };
    Some(format!("{builtin} -j {}", name(chain)))
}

fn belongs(rule: &Rule, family: Family) -> bool {
    rule.matches.iter().all(|what| match what {
        Match::To(IpNet::V4(_)) => family == Family::V4,
        Match::To(IpNet::V6(_)) => family == Family::V6,
        _ => true,
    })
}

fn render_rule(rule: &Rule, mask: u32) -> String {
    let mut line = String::new();
    if rule.matches.iter().any(|what| matches!(what, Match::Tcp | Match::Syn | Match::TcpPort(_))) {
        line.push_str(" -p tcp");
    }
    for what in &rule.matches {
        line.push_str(&render_match(what, mask));
    }
    line + " " + &render_action(&rule.action, mask)
}

fn render_match(what: &Match, mask: u32) -> String {
    match what {
        Match::InLoopback => " -i lo".into(),
        Match::OutLoopback => " -o lo".into(),
        Match::OutOther => " ! -o lo".into(),
        Match::Tcp => String::new(),
        Match::Syn => " -m tcp --tcp-flags FIN,SYN,RST,ACK SYN".into(),
        Match::TcpPort(ports) if ports.first == ports.last => format!(" -m tcp --dport {}", ports.first),
        Match::TcpPort(ports) => format!(" -m tcp --dport {}:{}", ports.first, ports.last),
        Match::UdpNotToPort(port) => format!(" -p udp -m udp ! --dport {port}"),
        Match::To(net) => format!(" -d {net}"),
        Match::ToLocal => " -m addrtype --dst-type LOCAL".into(),
        Match::PacketMark(mark) => format!(" -m mark --mark {mark:#x}/{mask:#x}"),
        Match::ConnectionMark(mark) => format!(" -m connmark --mark {mark:#x}/{mask:#x}"),
        Match::Original => " -m conntrack --ctdir ORIGINAL".into(),
        Match::Reply => " -m conntrack --ctdir REPLY".into(),
        Match::Untracked => " -m conntrack --ctstate INVALID,UNTRACKED".into(),
    }
}

fn render_action(action: &Action, mask: u32) -> String {
    match action {
        Action::Return => "-j RETURN".into(),
        Action::Drop => "-j DROP".into(),
        Action::MarkPacket(mark) => format!("-j MARK --set-xmark {mark:#x}/{mask:#x}"),
        Action::MarkConnection(mark) => format!("-j CONNMARK --set-xmark {mark:#x}/{mask:#x}"),
        Action::Jump(chain) => format!("-j {}", name(*chain)),
        // Drops by itself when nobody listens.
        Action::Tproxy { port, mark } => {
            let mark = mark.map_or("0x0/0x0".into(), |mark| format!("{mark:#x}/{mask:#x}"));
            format!("-j TPROXY --on-port {port} --tproxy-mark {mark}")
        }
    }
}
