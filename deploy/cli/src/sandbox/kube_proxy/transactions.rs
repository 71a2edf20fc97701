//! How a node's table gets from what it holds to what it shall hold, as texts for `nft -f -`. Pure.
//!
//! Only what differs is changed: what a Service was is forgotten in the transaction that says what it is, the others are
//! not touched, and open connections keep the endpoint that connection tracking remembers for them. Each text is small,
//! because the kernel takes no more in one transaction from users who may not enlarge their socket's buffer.

use std::fmt::Write as _;

use super::frontend::Entry;
use super::table::{Chains, Elements, Family, Purpose, SetName, Table};
use crate::sandbox::cluster::DualRange;
use crate::sandbox::network::UPLINK;

/// Name of the table, family `inet`.
pub const TABLE: &str = "kube_proxy";
/// Most bytes of text in a transaction, single statements apart. An ordinary user's limit was met at 50,000.
const MOST: usize = 12 * 1024;

/// The table with its hooks, without any Service; a former one is forgotten. Addresses in `ranges` lead nowhere but to
/// Services.
#[must_use]
pub fn frame(ranges: [&DualRange; 2]) -> String {
    let mut text = format!("table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    for family in Family::ALL {
        for purpose in Purpose::ALL {
            declare(&mut text, SetName(purpose, family));
        }
    }
    text.push_str(
        "\tchain refuse {\n\t\tmeta l4proto tcp reject with tcp reset\n\t\treject with icmpx port-unreachable\n\t}\n",
    );
    // Refusals come before the translation, in a filter chain: a NAT chain may not reject.
    for (hook, entries) in
        [("prerouting", &[Entry::Outside, Entry::Anywhere][..]), ("output", &[Entry::Anywhere])]
    {
        let guard = Family::ALL.map(|family| guard(family, entries, ranges)).concat();
        let translate = Family::ALL.map(|family| translate(family, entries)).concat();
        let _ = write!(
            text,
            "\tchain guard-{hook} {{\n\t\ttype filter hook {hook} priority -110\n\t\tct state != new accept\n{guard}\t}}\n\
             \tchain {hook} {{\n\t\ttype nat hook {hook} priority -100\n{translate}\t}}\n"
        );
    }
    let hairpin = Family::ALL.map(hairpin).concat();
    let _ = write!(
        text,
        "\tchain postrouting {{\n\t\ttype nat hook postrouting priority 100\n{hairpin}\t}}\n}}\n"
    );
    text
}

fn declare(text: &mut String, name: SetName) {
    let address = match name.1 {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    let (what, kind) = match name.0 {
        Purpose::Services(_) | Purpose::Guards(_) => {
            ("map", format!("{address} . inet_proto . inet_service : verdict"))
        }
        Purpose::Hairpin => ("set", format!("{address} . {address}")),
        Purpose::Vips => ("set", address.to_owned()),
    };
    let _ = writeln!(text, "\t{what} {name} {{\n\t\ttype {kind}\n\t}}");
}

/// Addresses that no Service has are dropped, not refused: the Service may be about to be known, and a packet that is
/// sent again does not fail.
fn guard(family: Family, entries: &[Entry], [one, other]: [&DualRange; 2]) -> String {
    let ip = family.ip();
    let (one, other) = match family {
        Family::V4 => (one.v4.to_string(), other.v4.to_string()),
        Family::V6 => (one.v6.to_string(), other.v6.to_string()),
    };
    format!(
        "{}\t\t{ip} daddr @{} goto refuse\n\t\t{ip} daddr {{ {one}, {other} }} drop\n",
        looked_up(Purpose::Guards, family, entries),
        SetName(Purpose::Vips, family),
    )
}

/// A packet that meets a change finds no endpoint, and must be sent again rather than leave as it is.
fn translate(family: Family, entries: &[Entry]) -> String {
    let looked_up = looked_up(Purpose::Services, family, entries);
    format!("{looked_up}\t\t{} daddr @{} drop\n", family.ip(), SetName(Purpose::Vips, family))
}

/// Address, protocol and port in the maps, by where the packet came in.
fn looked_up(purpose: fn(Entry) -> Purpose, family: Family, entries: &[Entry]) -> String {
    let ip = family.ip();
    let one = |entry: &Entry| {
        let from = match entry {
            Entry::Anywhere => String::new(),
            Entry::Outside => format!("iifname \"{UPLINK}\" "),
        };
        format!("\t\t{from}{ip} daddr . meta l4proto . th dport vmap @{}\n", SetName(purpose(*entry), family))
    };
    entries.iter().map(one).collect()
}

/// A pod that reached itself through a Service would see its own address as the client and answer itself past connection
/// tracking; the node stands in for it.
fn hairpin(family: Family) -> String {
    let (ip, set) = (family.ip(), SetName(Purpose::Hairpin, family));
    format!("\t\tct status dnat {ip} saddr . {ip} daddr @{set} masquerade\n")
}

/// Transactions that lead from one content to another, in their order. Chains come before the elements that lead to
/// them and go after them; where everything between fits into one transaction, it happens at once.
#[must_use]
pub fn changes(from: &Table, to: &Table) -> Vec<String> {
    let none = Elements::new();
    let mut between: Vec<String> = changed_chains(&from.chains, &to.chains).collect();
    for (name, wanted) in &to.sets {
        between.extend(added(*name, from.sets.get(name).unwrap_or(&none), wanted));
    }
    for (name, known) in from.sets.iter().rev() {
        between.extend(removed(*name, known, to.sets.get(name).unwrap_or(&none)));
    }
    let mut transactions = packed(new_chains(&from.chains, &to.chains));
    transactions.extend(packed(between.into_iter()));
    transactions.extend(packed(old_chains(&from.chains, &to.chains)));
    transactions
}

fn new_chains<'a>(from: &'a Chains, to: &'a Chains) -> impl Iterator<Item = String> + 'a {
    let new = to.iter().filter(|(name, _)| !from.contains_key(*name));
    new.map(|(name, rules)| format!("add chain inet {TABLE} {name}\n") + &filled(name, rules))
}

fn changed_chains<'a>(from: &'a Chains, to: &'a Chains) -> impl Iterator<Item = String> + 'a {
    let changed = to.iter().filter(|(name, rules)| from.get(*name).is_some_and(|old| old != *rules));
    changed.map(|(name, rules)| format!("flush chain inet {TABLE} {name}\n") + &filled(name, rules))
}

fn filled(name: &str, rules: &[String]) -> String {
    rules.iter().map(|rule| format!("add rule inet {TABLE} {name} {rule}\n")).collect()
}

fn old_chains<'a>(from: &'a Chains, to: &'a Chains) -> impl Iterator<Item = String> + 'a {
    let old = from.keys().filter(|name| !to.contains_key(*name));
    old.map(|name| format!("delete chain inet {TABLE} {name}\n"))
}

/// Elements that are new or have another verdict; the change of a verdict is one statement, which nothing divides.
fn added<'a>(name: SetName, known: &'a Elements, wanted: &'a Elements) -> impl Iterator<Item = String> + 'a {
    let changed = wanted.iter().filter(|(key, verdict)| known.get(*key) != Some(*verdict));
    changed.map(move |(key, verdict)| {
        let before = known.get(key).map(|verdict| element("delete", name, key, verdict.as_deref()));
        before.unwrap_or_default() + &element("add", name, key, verdict.as_deref())
    })
}

fn removed<'a>(
    name: SetName,
    known: &'a Elements,
    wanted: &'a Elements,
) -> impl Iterator<Item = String> + 'a {
    let gone = known.iter().filter(|(key, _)| !wanted.contains_key(*key));
    gone.map(move |(key, verdict)| element("delete", name, key, verdict.as_deref()))
}

fn element(verb: &str, set: SetName, key: &str, verdict: Option<&str>) -> String {
    let verdict = verdict.map(|verdict| format!(" : {verdict}")).unwrap_or_default();
    format!("{verb} element inet {TABLE} {set} {{ {key}{verdict} }}\n")
}

/// Statements put together, `MOST` bytes at a time.
fn packed(statements: impl Iterator<Item = String>) -> Vec<String> {
    let mut packed: Vec<String> = Vec::new();
    for statement in statements {
        match packed.last_mut() {
            Some(last) if last.len() + statement.len() <= MOST => last.push_str(&statement),
            _ => packed.push(statement),
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rand::rngs::StdRng;
    use rand::seq::IteratorRandom;
    use rand::{Rng, SeedableRng};
    use serde_json::Value;

    use super::super::frontend::tests::frontend;
    use super::super::frontend::{Choice, Frontend, Without};
    use super::*;
    use crate::sandbox::cluster::{Cluster, load_balancer_range};

    fn example_frame() -> String {
        frame([&Cluster::new("test", 2).service_cidr, &load_balancer_range()])
    }

    /// What the kernel holds after the transactions, in the order given, as a user who may not enlarge buffers: the
    /// capabilities of a user namespace do not count for that.
    fn loaded(transactions: &[String]) -> Value {
        let directory = tempfile::tempdir().unwrap();
        for (number, transaction) in transactions.iter().enumerate() {
            std::fs::write(directory.path().join(format!("{number:05}")), transaction).unwrap();
        }
        let script = "for each in *; do nft -f $each || exit 1; done; nft -j list table inet kube_proxy";
        let mut command = Command::new("unshare");
        command.args(["--user", "--net", "--map-root-user", "sh", "-c", script]).current_dir(&directory);
        let output = command.output().expect("unshare (Debian package util-linux)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut listed: Value = serde_json::from_slice(&output.stdout).expect("nft prints JSON");
        forget_order(&mut listed);
        listed
    }

    /// Handles tell the history of a table, and so does the order of what has none.
    fn forget_order(value: &mut Value) {
        match value {
            Value::Array(all) => {
                all.iter_mut().for_each(forget_order);
                all.sort_by_key(Value::to_string);
            }
            Value::Object(fields) => {
                fields.remove("handle");
                fields.values_mut().for_each(forget_order);
            }
            _ => {}
        }
    }

    fn count(listed: &Value, what: &str) -> usize {
        listed["nftables"].as_array().unwrap().iter().filter(|one| one.get(what).is_some()).count()
    }

    #[test]
    fn an_ordinary_user_has_a_thousand_services() {
        let frontends: Vec<Frontend> = (0..1000)
            .flat_map(|number: u16| {
                let [high, low] = number.to_be_bytes();
                let name = format!("namespace-{high}/a-service-with-a-long-name-{number}");
                [
                    frontend(&name, &format!("10.96.{high}.{low}"), &["10.244.1.2:8080", "10.244.2.2:8080"]),
                    frontend(&name, &format!("fd00:10:96::{number:x}"), &["[fd00:10:244:1::2]:8080"]),
                ]
            })
            .collect();
        let table = Table::new(&frontends);
        let listed = loaded(&[vec![example_frame()], changes(&Table::default(), &table)].concat());
        let ours = count(&loaded(&[example_frame()]), "chain");
        assert_eq!(count(&listed, "chain") - ours, 2000);
        let emptied =
            [vec![example_frame()], changes(&Table::default(), &table), changes(&table, &Table::default())];
        assert_eq!(loaded(&emptied.concat()), loaded(&[example_frame()]));
    }

    /// Frontends as a cluster may have them at one moment.
    fn some(random: &mut StdRng) -> Vec<Frontend> {
        let mut one = |number: u16| {
            let v4 = random.random_bool(0.5);
            let (vip, pods): (_, &[&str]) = if v4 {
                (format!("10.96.1.{number}"), &["10.244.1.2:80", "10.244.1.3:80", "10.244.2.2:81"])
            } else {
                (format!("fd00:10:96::{number}"), &["[fd00:10:244:1::2]:80", "[fd00:10:244:2::2]:81"])
            };
            let chosen = random.random_range(0..=pods.len());
            let pods = pods.iter().copied().choose_multiple(random, chosen);
            let mut frontend = frontend(&format!("shop/s{}", number % 3), &vip, &pods);
            frontend.entry = if random.random_bool(0.3) { Entry::Outside } else { Entry::Anywhere };
            frontend.choice = if random.random_bool(0.3) { Choice::ClientAddress } else { Choice::Random };
            frontend.without = if random.random_bool(0.3) { Without::Drop } else { Without::Refuse };
            frontend
        };
        (0..12).map(|_| one(0)).collect::<Vec<_>>().into_iter().chain((1..6).map(one)).collect()
    }

    /// The oracle is the kernel: changing a table makes what loading it anew makes.
    #[test]
    fn changes_lead_to_what_loading_anew_leads_to() {
        for seed in 0..12 {
            let random = &mut StdRng::seed_from_u64(seed);
            let steps: Vec<Table> = (0..6).map(|_| Table::new(&some(random))).collect();
            let mut transactions = vec![example_frame()];
            let mut known = Table::default();
            for step in steps {
                transactions.extend(changes(&known, &step));
                known = step;
            }
            let anew = [vec![example_frame()], changes(&Table::default(), &known)].concat();
            assert_eq!(loaded(&transactions), loaded(&anew), "seed {seed}");
        }
    }

    #[test]
    fn what_is_the_same_is_not_touched() {
        let cart = frontend("shop/cart", "10.96.1.0", &["10.244.1.2:80"]);
        let before = Table::new(&[cart.clone(), frontend("shop/web", "10.96.1.1", &["10.244.1.3:80"])]);
        let after = Table::new(&[cart, frontend("shop/web", "10.96.1.1", &["10.244.1.4:80"])]);
        assert_eq!(changes(&before, &before), Vec::<String>::new());
        let changes = changes(&before, &after);
        assert_eq!(changes.len(), 1, "at once: {changes:?}");
        assert!(!changes[0].contains("cart"), "{changes:?}");
    }

    #[test]
    fn the_change_of_a_verdict_is_never_divided() {
        let many = |pods: &[&str]| {
            Table::new(
                &(0..200).map(|n| frontend("shop/a", &format!("10.96.1.{n}"), pods)).collect::<Vec<_>>(),
            )
        };
        let changes = changes(&many(&["10.244.1.2:80"]), &many(&[]));
        assert!(changes.len() > 2, "{}", changes.len());
        for transaction in &changes {
            for deleted in transaction
                .lines()
                .filter(|line| line.starts_with("delete element") && line.contains("guards"))
            {
                let key = deleted.split_once("{ ").unwrap().1.split_once(" :").unwrap().0;
                let added = format!("{{ {key} : goto refuse }}");
                assert!(transaction.contains(&added), "{key}");
            }
        }
    }
}
