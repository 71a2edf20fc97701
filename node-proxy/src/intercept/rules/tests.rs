//! Golden renderings: `testdata/*`, written anew with `CULVERT_REGENERATE=1` and then reviewed by eye.

use std::path::Path;

use super::iptables;
use super::model::{Entry, Exclusions, Family, RulePlan};
use super::nft;
use crate::state::model::{Interception, PortRange, UdpPolicy};

const INTERCEPTION: Interception = Interception {
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

fn plans() -> [(&'static str, RulePlan); 4] {
    let port = |first, last| PortRange { first, last };
    let net = |text: &str| text.parse().expect("a network");
    let excluding = Exclusions {
        outbound_ports: vec![port(25, 25), port(6000, 6100)],
        outbound_cidrs: vec![net("10.1.2.3/8"), net("0.0.0.0/0"), net("fd00:1::/32"), net("::/0")],
        inbound_ports: vec![port(9100, 9100), port(1, 65535)],
        gateway_ports: Vec::new(),
        udp: UdpPolicy::Deny,
    };
    let of_gateway = Exclusions { gateway_ports: vec![80, 8080], ..Exclusions::none() };
    let other_marks = Interception {
        mark_mask: 0xff00_0000,
        proxy_mark: 0x0100_0000,
        outbound_mark: 0x0200_0000,
        reply_mark: 0x0300_0000,
        inbound_mark: 0x0400_0000,
        route_table: 1000,
        outbound_port: 1,
        inbound_port: 2,
        hbone_port: 3,
        ..INTERCEPTION
    };
    [
        ("capturing", RulePlan { interception: INTERCEPTION, entry: Entry::Open(Exclusions::none()) }),
        ("excluding", RulePlan { interception: other_marks, entry: Entry::Open(excluding) }),
        ("gateway", RulePlan { interception: INTERCEPTION, entry: Entry::Open(of_gateway) }),
        ("leaving", RulePlan::leaving(INTERCEPTION)),
    ]
}

fn assert_golden(name: &str, rendered: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/intercept/rules/testdata").join(name);
    if std::env::var_os("CULVERT_REGENERATE").is_some() {
        std::fs::write(&path, rendered).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file is there");
    assert_eq!(rendered, golden, "{name}: review the change, then run with CULVERT_REGENERATE=1");
}

#[test]
fn renders_for_nft_as_reviewed() {
    for (name, plan) in plans() {
        assert_golden(&format!("{name}.nft"), &nft::render(&plan));
    }
    assert_golden("removal.nft", &nft::render_removal());
}

#[test]
fn renders_for_iptables_as_reviewed() {
    for (name, plan) in plans() {
        assert_golden(&format!("{name}.iptables"), &iptables::render(&plan, Family::V4, ""));
        assert_golden(&format!("{name}.ip6tables"), &iptables::render(&plan, Family::V6, ""));
    }
    assert_golden("removal.iptables", &iptables::render_removal(""));
}

#[test]
fn jumps_of_iptables_are_put_right_once() {
    let (_, plan) = &plans()[0];
    let present = "\
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -j CULVERT_PREROUTING
-A OUTPUT -j CULVERT_OUTPUT
-A OUTPUT -p tcp -j CULVERT_OUTPUT_OF_SOMEBODY
-A OUTPUT -j CULVERT_OUTPUT
COMMIT
";
    let script = iptables::render(plan, Family::V4, present);
    let jumps: Vec<&str> =
        script.lines().filter(|line| line.contains("ING -j CULVERT_") || line.contains(" OUTPUT ")).collect();
    let expected = [
        "-D OUTPUT -j CULVERT_OUTPUT",
        "-D OUTPUT -j CULVERT_OUTPUT",
        "-I OUTPUT -j CULVERT_OUTPUT",
        "-I POSTROUTING -j CULVERT_POSTROUTING",
    ];
    assert_eq!(jumps, expected);
}

#[test]
fn a_listing_is_counted_as_it_was_rendered() {
    for (name, plan) in plans() {
        let rules: usize = plan.chains().iter().map(|(_, rules)| rules.len()).sum();
        let listing = nft::render(&plan)
            .lines()
            .skip(2)
            .collect::<Vec<_>>()
            .join("\n")
            .replace("; policy accept;", ";");
        assert_eq!(nft::count_rules(&listing), rules, "{name}");
        for family in [Family::V4, Family::V6] {
            let rendered = iptables::render(&plan, family, "").replace("-I ", "-A ");
            let own = iptables::own_lines(&rendered).lines().count();
            assert_eq!(own, iptables::count_lines(&plan, family), "{name}");
        }
    }
}
