//! The nft table that gives Service addresses a meaning on one node, as data: what it holds, not how it gets there. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_objects::types::Protocol;

use super::frontend::{Choice, Entry, Frontend, Without};

/// Address, protocol and port that a connection is made to; what it came by decides between equal ones.
type Key = (IpAddr, Protocol, u16);
/// What is matched, and for a map the verdict.
pub type Elements = BTreeMap<String, Option<String>>;
/// Rules by the name of their chain.
pub type Chains = BTreeMap<String, Vec<String>>;

/// A set or map of the table. The order is that in which elements are added where they do not fit into one transaction:
/// an address is announced (`Vips`) after it leads somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The chain of the Service, by what the connection is made to.
    Services(Entry),
    /// Whether a connection may go on to its translation.
    Guards(Entry),
    /// Pairs of equal addresses: pods that may reach themselves through a Service.
    Hairpin,
    /// Every address of a Service.
    Vips,
}

impl Purpose {
    pub const ALL: [Self; 6] = [
        Self::Services(Entry::Anywhere),
        Self::Services(Entry::Outside),
        Self::Guards(Entry::Anywhere),
        Self::Guards(Entry::Outside),
        Self::Hairpin,
        Self::Vips,
    ];
}

/// Address family of a set and of the rules that use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As rules name it.
    #[must_use]
    pub fn ip(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

/// Name of a set or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetName(pub Purpose, pub Family);

impl std::fmt::Display for SetName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let suffix = match self.1 {
            Family::V4 => "v4",
            Family::V6 => "v6",
        };
        f.write_str(match self.0 {
            Purpose::Services(Entry::Anywhere) => "services",
            Purpose::Services(Entry::Outside) => "services-outside",
            Purpose::Guards(Entry::Anywhere) => "guards",
            Purpose::Guards(Entry::Outside) => "guards-outside",
            Purpose::Hairpin => "hairpin",
            Purpose::Vips => "vips",
        })?;
        write!(f, "-{suffix}")
    }
}

/// Everything of the table that depends on Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub sets: BTreeMap<SetName, Elements>,
    /// One for each Service address and port that has endpoints.
    pub chains: Chains,
}

impl Table {
    /// An address that several frontends claim belongs to the first of them.
    #[must_use]
    pub fn new(frontends: &[Frontend]) -> Self {
        let mut table = Self::default();
        let mut owners: BTreeMap<(Entry, Key), &Frontend> = BTreeMap::new();
        for frontend in frontends {
            let key = (frontend.vip, frontend.protocol, frontend.port);
            owners.entry((frontend.entry, key)).or_insert(frontend);
            let family = Family::of(frontend.vip);
            table.element(Purpose::Vips, family, frontend.vip.to_string(), None);
            for backend in &frontend.backends {
                table.element(Purpose::Hairpin, family, format!("{0} . {0}", backend.ip()), None);
            }
        }
        owners.into_values().for_each(|frontend| table.frontend(frontend));
        table
    }

    fn element(&mut self, purpose: Purpose, family: Family, key: String, verdict: Option<String>) {
        self.sets.entry(SetName(purpose, family)).or_default().insert(key, verdict);
    }

    fn frontend(&mut self, frontend: &Frontend) {
        let family = Family::of(frontend.vip);
        let key = format!("{} . {} . {}", frontend.vip, word(frontend.protocol), frontend.port);
        let guard = match (frontend.backends.is_empty(), frontend.without) {
            (false, _) => "accept",
            (true, Without::Refuse) => "goto refuse",
            (true, Without::Drop) => "drop",
        };
        self.element(Purpose::Guards(frontend.entry), family, key.clone(), Some(guard.to_owned()));
        if !frontend.backends.is_empty() {
            let chain = chain(frontend);
            self.element(Purpose::Services(frontend.entry), family, key, Some(format!("jump {chain}")));
            self.chains.insert(chain, vec![pick(frontend, family)]);
        }
    }
}

/// Unique and readable; at most 194 of nft's 255 characters.
fn chain(frontend: &Frontend) -> String {
    format!(
        "service/{}/{}/{}/{}{}",
        frontend.service,
        word(frontend.protocol),
        frontend.port,
        // No colons in names.
        frontend.vip.to_string().replace(':', "_"),
        match frontend.entry {
            Entry::Anywhere => "",
            Entry::Outside => "/outside",
        }
    )
}

fn pick(frontend: &Frontend, family: Family) -> String {
    let ip = family.ip();
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
    format!(
        "meta l4proto {protocol} dnat {ip} addr . port to {pick} mod {count} map {{ {map} }}",
        protocol = word(frontend.protocol),
        count = backends.len(),
        map = backends.join(", "),
    )
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

#[cfg(test)]
mod tests {
    use super::super::frontend::tests::frontend;
    use super::*;

    fn elements(table: &Table, purpose: Purpose, family: Family) -> Vec<String> {
        let elements = table.sets.get(&SetName(purpose, family)).into_iter().flatten();
        elements.map(|(key, verdict)| format!("{key} : {}", verdict.as_deref().unwrap_or("-"))).collect()
    }

    #[test]
    fn endpoints_are_picked_and_services_without_any_refused() {
        let mut sticky = frontend("shop/cart", "fd00:10:96::1:0", &["[fd00:10:244:1::2]:8080"]);
        sticky.choice = Choice::ClientAddress;
        let table = Table::new(&[
            frontend("shop/cart", "10.96.1.0", &["10.244.1.2:8080", "10.244.2.2:8080"]),
            frontend("shop/nobody", "10.96.1.1", &[]),
            sticky,
        ]);
        let (services, guards) = (Purpose::Services(Entry::Anywhere), Purpose::Guards(Entry::Anywhere));
        assert_eq!(
            elements(&table, services, Family::V4),
            ["10.96.1.0 . tcp . 80 : jump service/shop/cart/tcp/80/10.96.1.0"]
        );
        assert_eq!(
            elements(&table, guards, Family::V4),
            ["10.96.1.0 . tcp . 80 : accept", "10.96.1.1 . tcp . 80 : goto refuse"]
        );
        assert_eq!(elements(&table, Purpose::Vips, Family::V4), ["10.96.1.0 : -", "10.96.1.1 : -"]);
        assert_eq!(
            elements(&table, Purpose::Hairpin, Family::V6),
            ["fd00:10:244:1::2 . fd00:10:244:1::2 : -"]
        );
        assert_eq!(
            table.chains["service/shop/cart/tcp/80/10.96.1.0"],
            [
                "meta l4proto tcp dnat ip addr . port to numgen random mod 2 map { 0 : 10.244.1.2 . 8080, 1 : 10.244.2.2 . 8080 }"
            ]
        );
        let sticky = &table.chains["service/shop/cart/tcp/80/fd00_10_96__1_0"][0];
        assert!(sticky.contains("dnat ip6 addr . port to jhash ip6 saddr mod 1"), "{sticky}");
        assert_eq!(table.chains.len(), 2);
    }

    #[test]
    fn what_comes_from_outside_has_maps_of_its_own() {
        let mut outside = frontend("shop/edge", "10.90.0.10", &["10.244.1.2:80"]);
        outside.entry = Entry::Outside;
        let mut elsewhere = frontend("shop/edge", "10.90.0.11", &[]);
        (elsewhere.entry, elsewhere.without) = (Entry::Outside, Without::Drop);
        let both = frontend("shop/edge", "10.90.0.10", &["10.244.1.2:80", "10.244.2.2:80"]);
        let table = Table::new(&[both, outside, elsewhere]);
        assert_eq!(
            elements(&table, Purpose::Services(Entry::Outside), Family::V4),
            ["10.90.0.10 . tcp . 80 : jump service/shop/edge/tcp/80/10.90.0.10/outside"]
        );
        assert_eq!(
            elements(&table, Purpose::Guards(Entry::Outside), Family::V4),
            ["10.90.0.10 . tcp . 80 : accept", "10.90.0.11 . tcp . 80 : drop"]
        );
        assert_eq!(table.chains.len(), 2, "{:?}", table.chains);
    }

    #[test]
    fn an_address_claimed_twice_has_one_owner() {
        let table = Table::new(&[
            frontend("b/first", "10.96.1.0", &["10.244.1.2:1"]),
            frontend("a/second", "10.96.1.0", &["10.244.1.3:2"]),
        ]);
        assert_eq!(table.chains.keys().collect::<Vec<_>>(), ["service/b/first/tcp/80/10.96.1.0"]);
    }
}
