//! What the API server's rules between fields forbid (`x-kubernetes-validations` of the definitions, `x-kubernetes-list-type`):
//! those of a Gateway, a ListenerSet and a BackendTLSPolicy, and what a route may say once only. Other rules of routes are the
//! controller's to tell, for a proxy would not take such a rule either.

mod lists;
mod policy;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use culvert_objects::types::GATEWAY_GROUP;
use regex::Regex;
use serde_json::Value;

use crate::code::Code;
use crate::context::{Context, Document};
use crate::finding::Finding;

/// Keys of labels and annotations.
static KEY: LazyLock<Regex> = LazyLock::new(|| {
    let key = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]$";
    Regex::new(key).expect("a constant that a test compiles")
});
static HOSTNAME: LazyLock<Regex> = LazyLock::new(|| {
    let name = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
    Regex::new(name).expect("a constant that a test compiles")
});
/// Bytes of the prefix of a key, and fewer.
const PREFIX: usize = 253;

pub fn find(context: &Context) -> Vec<Finding> {
    let in_group = |document: &&Document| {
        document.api_version.split_once('/').is_some_and(|(group, _)| group == GATEWAY_GROUP)
    };
    let mut findings = Vec::new();
    for document in context.documents.iter().filter(in_group) {
        let spec = &document.value["spec"];
        let mut faults = Faults { document, findings: &mut findings };
        match document.kind.as_str() {
            "Gateway" => {
                faults.listeners(spec);
                faults.addresses(spec);
                faults.infrastructure(spec);
                faults.ports_of_tls(spec);
            }
            "ListenerSet" => faults.listeners(spec),
            "BackendTLSPolicy" => faults.policy(spec),
            "HTTPRoute" | "GRPCRoute" => {
                faults.lists(spec, "spec", "spec");
                faults.matches(spec);
            }
            _ => {}
        }
    }
    findings
}

struct Faults<'a> {
    document: &'a Document,
    findings: &'a mut Vec<Finding>,
}

fn items<'v>(of: &'v Value, field: &str) -> impl Iterator<Item = (usize, &'v Value)> {
    of[field].as_array().into_iter().flatten().enumerate()
}

fn text<'v>(of: &'v Value, field: &str) -> Option<&'v str> {
    of[field].as_str()
}

impl Faults<'_> {
    fn tell(&mut self, field: String, what: impl Into<String>, remedy: &str) {
        let remedy = format!("{remedy}; the API server refuses the object as it is");
        self.findings.push(self.document.finding(Code::Schema, field, what, remedy));
    }

    fn listeners(&mut self, spec: &Value) {
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        let mut places: BTreeMap<(String, &str, Option<&str>), usize> = BTreeMap::new();
        for (index, listener) in items(spec, "listeners") {
            let at = format!("spec.listeners[{index}]");
            let (protocol, hostname) =
                (text(listener, "protocol").unwrap_or_default(), text(listener, "hostname"));
            if let Some(name) = text(listener, "name")
                && let Some(first) = first_of(&mut names, name, index)
            {
                let what = format!("{name:?} is the name of spec.listeners[{first}], too");
                self.tell(format!("{at}.name"), what, "give each listener a name of its own");
            }
            // A ListenerSet's may leave the port open.
            if !listener["port"].is_null() {
                let place = (listener["port"].to_string(), protocol, hostname);
                if let Some(first) = first_of(&mut places, place, index) {
                    let what = format!("port, protocol and hostname are those of spec.listeners[{first}]");
                    self.tell(at.clone(), what, "change one of the three, or take one listener away");
                }
            }
            if matches!(protocol, "TCP" | "UDP") && hostname.is_some_and(|name| !name.is_empty()) {
                let what = format!("{protocol} knows no hostnames");
                self.tell(format!("{at}.hostname"), what, "take it away");
            }
            self.tls(listener, protocol, &format!("{at}.tls"));
        }
    }

    fn tls(&mut self, listener: &Value, protocol: &str, at: &str) {
        let tls = listener.get("tls").filter(|tls| !tls.is_null());
        let Some(tls) = tls else {
            if protocol == "TLS" {
                let remedy = "write tls with mode: Terminate and certificateRefs, or mode: Passthrough";
                self.tell(at.to_owned(), "missing, for protocol TLS", remedy);
            }
            return;
        };
        // The schema's default.
        let mode = text(tls, "mode").unwrap_or("Terminate");
        match protocol {
            "HTTP" | "TCP" | "UDP" => {
                let what = format!("there is no TLS in protocol {protocol}");
                self.tell(at.to_owned(), what, "take it away, or write protocol HTTPS or TLS");
            }
            "HTTPS" if !matches!(mode, "" | "Terminate") => {
                let what = format!("{mode:?}, expected Terminate for protocol HTTPS");
                self.tell(format!("{at}.mode"), what, "write Terminate, or protocol TLS");
            }
            "TLS" if mode.is_empty() => {
                self.tell(format!("{at}.mode"), "empty, for protocol TLS", "write Terminate or Passthrough");
            }
            _ => {}
        }
        let is_empty = |field: &str| match &tls[field] {
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => true,
        };
        if mode == "Terminate" && is_empty("certificateRefs") && is_empty("options") {
            let what = "missing, for mode Terminate (the default)";
            self.tell(format!("{at}.certificateRefs"), what, "name the Secret with the certificate");
        }
    }

    fn addresses(&mut self, spec: &Value) {
        let mut values: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (index, address) in items(spec, "addresses") {
            let at = format!("spec.addresses[{index}].value");
            let Some(value) = text(address, "value") else { continue };
            let kind = text(address, "type").unwrap_or("IPAddress");
            if kind == "Hostname" && !HOSTNAME.is_match(value) {
                self.tell(at.clone(), format!("{value:?} is no hostname"), "write a DNS name in lower case");
            }
            if !matches!(kind, "IPAddress" | "Hostname") {
                continue;
            }
            if let Some(first) = first_of(&mut values, (kind, value), index) {
                let what = format!("{value} is spec.addresses[{first}], too");
                self.tell(at, what, "write each address once");
            }
        }
    }

    fn infrastructure(&mut self, spec: &Value) {
        for field in ["labels", "annotations"] {
            for (key, _) in spec["infrastructure"][field].as_object().into_iter().flatten() {
                let prefix = key.split('/').next().unwrap_or_default();
                if !KEY.is_match(key) || prefix.len() >= PREFIX {
                    let what = format!("{key:?} is no key of {field}");
                    let remedy = "write a name of up to 63 letters, digits, -, _ and ., perhaps after a DNS name and /";
                    self.tell(format!("spec.infrastructure.{field}"), what, remedy);
                }
            }
        }
    }

    fn ports_of_tls(&mut self, spec: &Value) {
        let mut ports: BTreeMap<String, usize> = BTreeMap::new();
        for (index, of) in items(&spec["tls"]["frontend"], "perPort") {
            if let Some(first) = first_of(&mut ports, of["port"].to_string(), index) {
                let what = format!("port {} is that of perPort[{first}], too", of["port"]);
                self.tell(format!("spec.tls.frontend.perPort[{index}].port"), what, "write each port once");
            }
        }
    }
}

/// Where the same was before; where it is not the first.
fn first_of<K: Ord>(seen: &mut BTreeMap<K, usize>, key: K, index: usize) -> Option<usize> {
    let first = *seen.entry(key).or_insert(index);
    (first != index).then_some(first)
}
