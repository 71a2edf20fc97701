//! The listeners of a Gateway, and which of them takes a request.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use culvert_routing::model::Hostname;

use super::model::Listener;

/// All listeners of one Gateway.
#[derive(Clone, Debug, Default)]
pub struct GatewayListeners {
    /// By the name of the resource.
    all: Vec<Arc<Listener>>,
    ports: BTreeMap<u16, PortListeners>,
}

/// Equal listeners are found in equal ways.
impl PartialEq for GatewayListeners {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl GatewayListeners {
    pub fn new(mut all: Vec<Arc<Listener>>) -> Self {
        all.sort_by(|one, other| one.name.cmp(&other.name));
        let mut ports = BTreeMap::<u16, PortListeners>::new();
        for listener in &all {
            ports.entry(listener.port).or_default().add(listener);
        }
        Self { all, ports }
    }

    /// In order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.all.iter()
    }

    /// In ascending order, each once, with the name of the Gateway.
    pub fn ports(&self) -> impl Iterator<Item = (u16, &Arc<str>)> {
        let gateway = self.all.first().map(|listener| &listener.gateway);
        self.ports.keys().filter_map(move |port| Some((*port, gateway?)))
    }

    /// The listener of a port that takes requests for a host (lower case, without port and trailing dot): the most
    /// specific one, and no other even if that one has no route for the request (Gateway API, `Listener.hostname`,
    /// listener isolation).
    pub fn select(&self, port: u16, host: &str) -> Option<&Arc<Listener>> {
        self.ports.get(&port)?.select(host)
    }
}

/// The listeners of one port. The controller refuses two with the same hostname; should they come all the same, the first
/// by name counts.
#[derive(Clone, Debug, Default)]
struct PortListeners {
    exact: HashMap<Arc<str>, Arc<Listener>>,
    /// By what follows `*.`.
    wildcard: HashMap<Arc<str>, Arc<Listener>>,
    any: Option<Arc<Listener>>,
}

impl PortListeners {
    fn add(&mut self, listener: &Arc<Listener>) {
        match &listener.hostname {
            Some(Hostname::Exact(name)) => {
                self.exact.entry(name.clone()).or_insert_with(|| listener.clone());
            }
            Some(Hostname::Wildcard(suffix)) => {
                self.wildcard.entry(suffix.clone()).or_insert_with(|| listener.clone());
            }
            None => {
                self.any.get_or_insert_with(|| listener.clone());
            }
        }
    }

    fn select(&self, host: &str) -> Option<&Arc<Listener>> {
        self.exact.get(host).or_else(|| self.by_wildcard(host)).or(self.any.as_ref())
    }

    /// The wildcard with the most labels. It stands for one label or more, never for none.
    fn by_wildcard(&self, host: &str) -> Option<&Arc<Listener>> {
        if self.wildcard.is_empty() {
            return None;
        }
        let mut dots = host.match_indices('.').map(|(at, _)| at).filter(|at| *at > 0);
        dots.find_map(|at| self.wildcard.get(&host[at + 1..]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listener(name: &str, port: u16, hostname: &str) -> Arc<Listener> {
        let hostname = (!hostname.is_empty()).then(|| Hostname::parse(hostname).unwrap());
        let name = format!("edge/gate/{name}");
        Arc::new(Listener { name: name.as_str().into(), gateway: "edge/gate".into(), port, hostname })
    }

    #[test]
    fn the_most_specific_listener_of_the_port_is_taken() {
        let gateway = GatewayListeners::new(vec![
            listener("any", 80, ""),
            listener("wide", 80, "*.example.com"),
            listener("narrow", 80, "*.foo.example.com"),
            listener("exact", 80, "abc.foo.example.com"),
            listener("other-port", 8080, "*.example.com"),
        ]);
        for (port, host, expected) in [
            (80, "abc.foo.example.com", Some("exact")),
            (80, "def.foo.example.com", Some("narrow")),
            (80, "a.abc.foo.example.com", Some("narrow")),
            (80, "foo.example.com", Some("wide")),
            (80, "bar.example.com", Some("wide")),
            (80, "example.com", Some("any")),
            (80, ".example.com", Some("any")),
            (80, "anexample.com", Some("any")),
            (80, "10.0.0.1", Some("any")),
            (80, "", Some("any")),
            (8080, "bar.example.com", Some("other-port")),
            (8080, "example.com", None),
            (81, "bar.example.com", None),
        ] {
            let found = gateway.select(port, host).map(|listener| &listener.name["edge/gate/".len()..]);
            assert_eq!(found, expected, "{port} {host}");
        }
        let ports: Vec<_> = gateway.ports().map(|(port, gateway)| (port, &**gateway)).collect();
        assert_eq!(ports, [(80, "edge/gate"), (8080, "edge/gate")]);
    }

    /// As the specification says it: of all that match, an exact name, else the most labels, else the one without.
    fn naive<'l>(all: &'l [Arc<Listener>], port: u16, host: &str) -> Option<&'l Arc<Listener>> {
        let hostname = |listener: &Listener| listener.hostname.as_ref().map(ToString::to_string);
        let takes = |listener: &&Arc<Listener>| {
            let wanted = hostname(listener);
            let matches =
                wanted.is_none_or(|wanted| culvert_routing_oracle::hostname::matches(&wanted, host));
            listener.port == port && matches
        };
        let specific = |listener: &Arc<Listener>| match hostname(listener) {
            Some(name) => (true, !name.starts_with("*."), name.split('.').count()),
            None => (false, false, 0),
        };
        // Of equals the first by name.
        all.iter()
            .filter(takes)
            .min_by_key(|listener| (std::cmp::Reverse(specific(listener)), &listener.name))
    }

    fn name(labels: std::ops::Range<usize>) -> impl Strategy<Value = String> {
        proptest::collection::vec(prop_oneof!["a", "b", "ab"], labels).prop_map(|labels| labels.join("."))
    }

    proptest! {
        #[test]
        fn selects_as_the_specification_says(
            hostnames in proptest::collection::vec((prop_oneof!["", name(1..4), name(1..4).prop_map(|name| format!("*.{name}"))], 80_u16..82), 0..12),
            host in name(0..6),
            port in 80_u16..82,
        ) {
            let all: Vec<_> = hostnames
                .iter()
                .enumerate()
                .map(|(index, (hostname, port))| listener(&format!("{index:02}"), *port, hostname))
                .collect();
            let gateway = GatewayListeners::new(all.clone());
            prop_assert_eq!(gateway.select(port, &host), naive(&all, port, &host));
        }
    }
}
