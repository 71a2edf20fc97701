//! The names of the cluster, as the Kubernetes DNS specification (1.1.0) has them, from the objects. Pure.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_objects::types::{Endpoint, EndpointSlice, PodStatus, Protocol, ServiceSpec, ServiceType};
use culvert_objects::{Kind, Object, Objects};

/// Version of the specification, served as `dns-version`.
const SCHEMA: &str = "1.1.0";

/// What one name has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub v4: Vec<Ipv4Addr>,
    pub v6: Vec<Ipv6Addr>,
    pub services: Vec<SrvTarget>,
    /// Names that a reverse name points at.
    pub pointers: Vec<String>,
    /// The name this one stands for.
    pub alias: Option<String>,
    pub text: Vec<String>,
    /// The zone's own name, which has SOA and NS.
    pub apex: bool,
}

/// A target of SRV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvTarget {
    pub name: String,
    pub port: u16,
    pub weight: u16,
}

/// Where a name leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    Node(&'a Node),
    /// In the zone, but there is no such name.
    Missing,
    /// Not this zone's to know.
    Outside,
}

/// Every name of the cluster at one moment. Keys are lower case, without the final dot.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    domain: String,
    serial: u32,
    nodes: HashMap<String, Node>,
}

impl Zone {
    /// The zone of a cluster domain (`cluster.local`).
    #[must_use]
    pub fn build(objects: &Objects, domain: &str, serial: u32) -> Self {
        let mut zone = Self { domain: domain.to_lowercase(), serial, nodes: HashMap::new() };
        let domain = zone.domain.clone();
        zone.node(&domain).apex = true;
        zone.node(&format!("dns-version.{domain}")).text = vec![SCHEMA.to_owned()];
        zone.node(&format!("svc.{domain}"));
        for namespace in objects.of_kind(Kind::Namespace) {
            zone.node(&format!("{}.svc.{domain}", namespace.name()));
        }
        for service in objects.of_kind(Kind::Service) {
            zone.service(objects, service);
        }
        for pod in objects.of_kind(Kind::Pod) {
            zone.pod(pod);
        }
        zone
    }

    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    #[must_use]
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Name of the server, for SOA and NS.
    #[must_use]
    pub fn name_server(&self) -> String {
        format!("ns.dns.{}", self.domain)
    }

    /// What is known of a name.
    #[must_use]
    pub fn find(&self, key: &str) -> Found<'_> {
        if let Some(node) = self.nodes.get(key) {
            return Found::Node(node);
        }
        let inside =
            key.strip_suffix(&self.domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if inside { Found::Missing } else { Found::Outside }
    }

    /// The node of that name, and all the names above it in the zone, which thereby exist too.
    fn node(&mut self, key: &str) -> &mut Node {
        let mut above = key;
        while above.len() > self.domain.len()
            && above.ends_with(&self.domain)
            && let Some((_, rest)) = above.split_once('.')
        {
            above = rest;
            if self.nodes.contains_key(above) {
                break;
            }
            self.nodes.insert(above.to_owned(), Node::default());
        }
        self.nodes.entry(key.to_owned()).or_default()
    }

    fn service(&mut self, objects: &Objects, service: &Object) {
        let Ok(spec) = service.spec::<ServiceSpec>() else { return };
        let base = format!("{}.{}.svc.{}", service.name(), service.namespace(), self.domain);
        self.node(&base);
        if spec.kind == ServiceType::ExternalName {
            let target = spec.external_name.trim_end_matches('.').to_lowercase();
            self.node(&base).alias = Some(target).filter(|target| !target.is_empty());
        } else if spec.is_headless() {
            self.headless(objects, service, &base);
        } else {
            for address in spec.vips() {
                self.address(&base, address);
                self.pointer(address, &base);
            }
            for port in &spec.ports {
                self.port(&base, &port.name, port.protocol, port.port, &base);
            }
        }
    }

    /// A headless Service is its ready endpoints; each has a name of its own below it.
    fn headless(&mut self, objects: &Objects, service: &Object, base: &str) {
        for slice in slices(objects, service) {
            for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.conditions.is_ready()) {
                for address in addresses(endpoint) {
                    let label = endpoint.hostname.clone().unwrap_or_else(|| dashed(address));
                    let name = format!("{}.{base}", label.to_lowercase());
                    self.address(base, address);
                    self.address(&name, address);
                    self.pointer(address, &name);
                    for port in &slice.ports {
                        let number = port.port.unwrap_or_default();
                        self.port(base, &port.name, port.protocol, number, &name);
                    }
                }
            }
        }
    }

    /// `10-244-1-2.shop.pod.cluster.local`, only for pods that exist.
    fn pod(&mut self, pod: &Object) {
        let status: PodStatus = pod.status().unwrap_or_default();
        for address in status.addresses().into_iter().filter(|_| !status.is_finished()) {
            let name = format!("{}.{}.pod.{}", dashed(address), pod.namespace(), self.domain);
            self.address(&name, address);
        }
    }

    fn address(&mut self, name: &str, address: IpAddr) {
        let node = self.node(name);
        match address {
            IpAddr::V4(address) if !node.v4.contains(&address) => node.v4.push(address),
            IpAddr::V6(address) if !node.v6.contains(&address) => node.v6.push(address),
            _ => {}
        }
    }

    /// SRV of the Service itself and of the port by name.
    fn port(&mut self, base: &str, name: &str, protocol: Protocol, port: u16, target: &str) {
        let target = SrvTarget { name: target.to_owned(), port, weight: 100 };
        let protocol = match protocol {
            Protocol::Tcp => "_tcp",
            Protocol::Udp => "_udp",
            Protocol::Sctp => "_sctp",
        };
        let mut names = vec![base.to_owned()];
        if !name.is_empty() {
            names.push(format!("_{name}.{protocol}.{base}"));
        }
        for name in names {
            let services = &mut self.node(&name).services;
            if !services.contains(&target) {
                services.push(target.clone());
            }
        }
    }

    fn pointer(&mut self, address: IpAddr, target: &str) {
        let pointers = &mut self.node(&reverse(address)).pointers;
        if !pointers.iter().any(|known| known == target) {
            pointers.push(target.to_owned());
        }
    }
}

fn slices(objects: &Objects, service: &Object) -> Vec<EndpointSlice> {
    objects
        .in_namespace(Kind::EndpointSlice, service.namespace())
        .filter(|slice| slice.label(EndpointSlice::SERVICE_NAME_LABEL) == Some(service.name()))
        .filter_map(|slice| slice.root().ok())
        .collect()
}

fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> {
    endpoint.addresses.iter().filter_map(|address| address.parse().ok())
}

fn dashed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string().replace('.', "-"),
        IpAddr::V6(address) => address.segments().map(|segment| format!("{segment:x}")).join("-"),
    }
}

fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let mut name = String::new();
            for byte in address.octets().iter().rev() {
                name.push_str(&format!("{:x}.{:x}.", byte & 0xf, byte >> 4));
            }
            name + "ip6.arpa"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_addresses() {
        assert_eq!(reverse("10.96.0.10".parse().unwrap()), "10.0.96.10.in-addr.arpa");
        assert!(reverse("fd00::a".parse().unwrap()).starts_with("a.0.0.0."));
        assert_eq!(reverse("fd00::a".parse().unwrap()).len(), 72);
        assert_eq!(dashed("fd00::a".parse().unwrap()), "fd00-0-0-0-0-0-0-a");
    }
}
