//! What makes an object valid beyond the types of its fields: names, references between fields, ranges. All faults of
//! an object are found at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::kinds::Kind;
use crate::object::{FieldError, Object};
use crate::reading::{Reading, read_all};
use crate::types::{
    BackendTrafficPolicySpec, ConfigMap, ConnectionRouteRule, Container, DeploymentSpec, EndpointSlice,
    GatewayClassSpec, GatewaySpec, GrpcRouteRule, HttpRouteRule, NodeSpec, NodeStatus, PodSpec, PodStatus,
    Probe, ReferenceGrantSpec, RouteSpec, Secret, ServiceSpec, ServiceType, XMeshSpec,
};

/// Everything that is wrong with an object; empty when it is valid.
pub fn check(object: &Object) -> Vec<FieldError> {
    faults_of(object).all
}

/// The fields of an object that cannot be read. For objects that an API server has accepted: what they say is valid, also
/// where it is news to us.
pub fn unreadable(object: &Object) -> Vec<FieldError> {
    let Faults { mut all, unreadable } = faults_of(object);
    all.retain(|fault| unreadable.contains(&fault.field));
    all
}

fn faults_of(object: &Object) -> Faults {
    let mut faults = Faults::default();
    metadata(object, &mut faults);
    match object.kind {
        Kind::Pod => {
            if let Some(spec) = faults.read::<PodSpec>(object, "spec") {
                pod(&spec, "spec", &mut faults);
            }
            faults.read::<PodStatus>(object, "status");
        }
        Kind::Deployment => {
            if let Some(spec) = faults.read::<DeploymentSpec>(object, "spec") {
                deployment(&spec, &mut faults);
            }
        }
        Kind::Service => {
            if let Some(spec) = faults.read::<ServiceSpec>(object, "spec") {
                service(&spec, &mut faults);
            }
        }
        Kind::EndpointSlice => {
            if let Some(slice) = faults.read_root::<EndpointSlice>(object) {
                endpoint_slice(&slice, &mut faults);
            }
        }
        Kind::Node => {
            if let Some(spec) = faults.read::<NodeSpec>(object, "spec") {
                node(&spec, &mut faults);
            }
            faults.read::<NodeStatus>(object, "status");
        }
        Kind::ConfigMap => drop(faults.read_root::<ConfigMap>(object)),
        Kind::Secret => drop(faults.read_root::<Secret>(object)),
        Kind::MeshConfig => faults.all.extend(crate::mesh_config::check(object)),
        Kind::XMesh => drop(faults.read::<XMeshSpec>(object, "spec")),
        Kind::XBackendTrafficPolicy => drop(faults.read::<BackendTrafficPolicySpec>(object, "spec")),
        Kind::GatewayClass => drop(faults.read::<GatewayClassSpec>(object, "spec")),
        Kind::Gateway => drop(faults.read::<GatewaySpec>(object, "spec")),
        Kind::ReferenceGrant => drop(faults.read::<ReferenceGrantSpec>(object, "spec")),
        Kind::HttpRoute => rules::<HttpRouteRule>(object, &mut faults),
        Kind::GrpcRoute => rules::<GrpcRouteRule>(object, &mut faults),
        Kind::TlsRoute | Kind::TcpRoute => rules::<ConnectionRouteRule>(object, &mut faults),
        kind if Kind::ROUTES.contains(&kind) => drop(faults.read::<RouteSpec>(object, "spec")),
        _ => {}
    }
    faults
}

#[derive(Default)]
struct Faults {
    all: Vec<FieldError>,
    /// Fields that could not be read. What their absence makes of others is nobody's fault.
    unreadable: Vec<String>,
}

impl Faults {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        let field = field.into();
        let is_in = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let is_around = |other: &String| is_in(other, &field) || (!other.is_empty() && is_in(&field, other));
        if !self.unreadable.iter().any(is_around) {
            self.all.push(FieldError::new(field, message));
        }
    }

    /// A part of the object, as far as it can be read; an absent one reads as `{}`.
    fn read<T: DeserializeOwned>(&mut self, object: &Object, part: &str) -> Option<T> {
        let empty = Value::Object(Map::new());
        self.take(read_all(object.body.get(part).filter(|value| !value.is_null()).unwrap_or(&empty), part))
    }

    /// The whole body, for kinds without `spec`.
    fn read_root<T: DeserializeOwned>(&mut self, object: &Object) -> Option<T> {
        self.take(read_all(&Value::Object(object.body.clone()), ""))
    }

    fn take<T>(&mut self, reading: Reading<T>) -> Option<T> {
        self.unreadable.extend(reading.faults.iter().map(|fault| fault.field.clone()));
        self.all.extend(reading.faults);
        reading.value
    }

    fn name(&mut self, field: impl Into<String>, checked: Result<(), String>) {
        if let Err(message) = checked {
            self.add(field, message);
        }
    }
}

// === names ===

/// # Errors
/// When `text` is not a DNS label (RFC 1123): up to 63 of a-z, 0-9 and `-`, not at the ends.
pub fn dns_label(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = |c: Option<char>| c.is_some_and(|c| c != '-');
    if text.len() <= 63 && text.chars().all(allowed) && ends(text.chars().next()) && ends(text.chars().last())
    {
        return Ok(());
    }
    Err(format!(
        "invalid value: {text:?}, expected a DNS label (at most 63 of a-z, 0-9 and '-', which is not at an end)"
    ))
}

/// # Errors
/// When `text` is not DNS labels joined by dots, at most 253 characters.
pub fn dns_subdomain(text: &str) -> Result<(), String> {
    if text.len() <= 253 && !text.is_empty() && text.split('.').all(|label| dns_label(label).is_ok()) {
        return Ok(());
    }
    Err(format!(
        "invalid value: {text:?}, expected a DNS name in lower case (labels of a-z, 0-9 and '-', joined by '.')"
    ))
}

/// # Errors
/// When `text` is not the name of a container's port: at most 15 of a-z, 0-9 and `-`, with a letter.
pub fn port_name(text: &str) -> Result<(), String> {
    let has_letter = text.chars().any(|c| c.is_ascii_lowercase());
    if text.len() <= 15 && has_letter && !text.contains("--") && dns_label(text).is_ok() {
        return Ok(());
    }
    Err(format!(
        "invalid value: {text:?}, expected a port name (at most 15 of a-z, 0-9 and '-', with a letter)"
    ))
}

fn label_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63 && text.chars().all(allowed) && ends(text.chars().next()) && ends(text.chars().last())
}

fn qualified_key(text: &str) -> bool {
    match text.split_once('/') {
        None => label_name(text),
        Some((prefix, name)) => dns_subdomain(prefix).is_ok() && label_name(name),
    }
}

fn labels(labels: &BTreeMap<String, String>, field: &str, faults: &mut Faults) {
    for (key, value) in labels {
        if !qualified_key(key) {
            faults.add(field, format!("invalid key: {key:?}, expected [DNS-NAME/]NAME"));
        }
        if !value.is_empty() && !label_name(value) {
            let expected = "at most 63 of A-Z, a-z, 0-9, '-', '_' and '.', the latter three not at an end";
            faults.add(format!("{field}.{key}"), format!("invalid value: {value:?}, expected {expected}"));
        }
    }
}

fn metadata(object: &Object, faults: &mut Faults) {
    let name = object.name();
    if name.is_empty() {
        faults.add("metadata.name", "missing, expected the object's name");
    } else {
        let checked = match object.kind {
            Kind::Namespace => dns_label(name),
            Kind::Service => dns_label(name).and_then(|()| starts_with_letter(name)),
            _ => dns_subdomain(name),
        };
        faults.name("metadata.name", checked);
    }
    if let Some(namespace) = &object.metadata.namespace {
        faults.name("metadata.namespace", dns_label(namespace));
    }
    labels(&object.metadata.labels, "metadata.labels", faults);
    for key in object.metadata.annotations.keys().filter(|key| !qualified_key(key)) {
        faults.add("metadata.annotations", format!("invalid key: {key:?}, expected [DNS-NAME/]NAME"));
    }
}

fn starts_with_letter(name: &str) -> Result<(), String> {
    match name.chars().next() {
        Some(first) if first.is_ascii_lowercase() => Ok(()),
        _ => Err(format!("invalid value: {name:?}, expected a name that starts with a letter")),
    }
}

fn duplicates<T: Ord>(items: impl IntoIterator<Item = T>) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    let items = items.into_iter().enumerate();
    items.filter_map(|(index, item)| (!seen.insert(item)).then_some(index)).collect()
}

// === kinds ===

fn pod(spec: &PodSpec, at: &str, faults: &mut Faults) {
    if spec.containers.is_empty() {
        faults.add(format!("{at}.containers"), "empty, expected at least one container");
    }
    for (list, containers) in [("initContainers", &spec.init_containers), ("containers", &spec.containers)] {
        for (index, container) in containers.iter().enumerate() {
            self::container(container, &format!("{at}.{list}[{index}]"), faults);
        }
    }
    let names = spec.init_containers.iter().chain(&spec.containers).map(|container| container.name.as_str());
    if !duplicates(names).is_empty() {
        faults.add(format!("{at}.containers"), "two containers have the same name");
    }
    for (field, value) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
        if let Some(value) = value {
            faults.name(format!("{at}.{field}"), dns_label(value));
        }
    }
    for (field, value) in [("nodeName", &spec.node_name), ("serviceAccountName", &spec.service_account_name)]
    {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            faults.name(format!("{at}.{field}"), dns_subdomain(value));
        }
    }
    for (index, alias) in spec.host_aliases.iter().enumerate() {
        if alias.ip.parse::<IpAddr>().is_err() {
            let message = format!("invalid value: {:?}, expected an IP address", alias.ip);
            faults.add(format!("{at}.hostAliases[{index}].ip"), message);
        }
    }
}

fn container(container: &Container, at: &str, faults: &mut Faults) {
    if container.name.is_empty() {
        faults.add(format!("{at}.name"), "missing, expected the container's name");
    } else {
        faults.name(format!("{at}.name"), dns_label(&container.name));
    }
    for (index, port) in container.ports.iter().enumerate() {
        if let Some(name) = &port.name {
            faults.name(format!("{at}.ports[{index}].name"), port_name(name));
        }
    }
    for index in duplicates(container.ports.iter().filter_map(|port| port.name.as_ref())) {
        faults.add(format!("{at}.ports[{index}].name"), "another port of the container has this name");
    }
    for (index, variable) in container.env.iter().enumerate() {
        let at = format!("{at}.env[{index}]");
        if variable.name.is_empty() || variable.name.contains('=') {
            faults.add(format!("{at}.name"), "expected a name without '='");
        }
        if let Some(from) = &variable.value_from {
            let set =
                [from.field_ref.is_some(), from.config_map_key_ref.is_some(), from.secret_key_ref.is_some()];
            if set.into_iter().filter(|set| *set).count() != 1 {
                let message = "expected exactly one of fieldRef, configMapKeyRef, secretKeyRef";
                faults.add(format!("{at}.valueFrom"), message);
            }
        }
    }
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (field, probe) in probes {
        if let Some(probe) = probe {
            self::probe(probe, &format!("{at}.{field}"), faults);
        }
    }
}

fn probe(probe: &Probe, at: &str, faults: &mut Faults) {
    let set =
        [probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.exec.is_some(), probe.grpc.is_some()];
    if set.into_iter().filter(|set| *set).count() != 1 {
        faults.add(at, "expected exactly one of httpGet, tcpSocket, exec, grpc");
    }
    if probe.exec.as_ref().is_some_and(|exec| exec.command.is_empty()) {
        faults.add(format!("{at}.exec.command"), "empty, expected a command");
    }
    if let Some(get) = &probe.http_get
        && !matches!(get.scheme.as_str(), "" | "HTTP" | "HTTPS")
    {
        let message = format!("invalid value: {:?}, expected HTTP or HTTPS", get.scheme);
        faults.add(format!("{at}.httpGet.scheme"), message);
    }
}

fn deployment(spec: &DeploymentSpec, faults: &mut Faults) {
    pod(&spec.template.spec, "spec.template.spec", faults);
    labels(&spec.template.metadata.labels, "spec.template.metadata.labels", faults);
    if spec.selector.match_labels.is_empty() && spec.selector.match_expressions.is_empty() {
        faults.add("spec.selector", "missing, expected a selector of the template's labels");
    } else if !spec.selector.matches(&spec.template.metadata.labels) {
        faults.add("spec.template.metadata.labels", "do not match spec.selector");
    }
    if !matches!(spec.strategy.kind.as_str(), "" | "RollingUpdate" | "Recreate") {
        let message = format!("invalid value: {:?}, expected RollingUpdate or Recreate", spec.strategy.kind);
        faults.add("spec.strategy.type", message);
    }
}

fn service(spec: &ServiceSpec, faults: &mut Faults) {
    if spec.kind == ServiceType::ExternalName {
        faults.name("spec.externalName", dns_subdomain(spec.external_name.trim_end_matches('.')));
    } else if spec.ports.is_empty() && !spec.is_headless() {
        faults.add("spec.ports", "empty, expected at least one port");
    }
    for (index, port) in spec.ports.iter().enumerate() {
        let at = format!("spec.ports[{index}].name");
        if !port.name.is_empty() {
            faults.name(at, dns_label(&port.name));
        } else if spec.ports.len() > 1 {
            faults.add(at, "missing, expected a name on each of several ports");
        }
    }
    for index in duplicates(spec.ports.iter().map(|port| (port.port, port.protocol))) {
        faults.add(format!("spec.ports[{index}].port"), "another port has this number and protocol");
    }
    let named = spec.ports.iter().filter(|port| !port.name.is_empty());
    if !duplicates(named.map(|port| &port.name)).is_empty() {
        faults.add("spec.ports", "two ports have the same name");
    }
    let addresses =
        spec.cluster_ips.iter().enumerate().map(|(n, text)| (format!("spec.clusterIPs[{n}]"), text));
    for (field, text) in addresses.chain([("spec.clusterIP".to_owned(), &spec.cluster_ip)]) {
        if !text.is_empty() && text != "None" && text.parse::<IpAddr>().is_err() {
            faults.add(field, format!("invalid value: {text:?}, expected an IP address or None"));
        }
    }
    let choices = [
        (
            "ipFamilyPolicy",
            &spec.ip_family_policy,
            &["SingleStack", "PreferDualStack", "RequireDualStack"][..],
        ),
        ("internalTrafficPolicy", &spec.internal_traffic_policy, &["Cluster", "Local"][..]),
        (
            "trafficDistribution",
            &spec.traffic_distribution,
            &["PreferSameZone", "PreferSameNode", "PreferClose"][..],
        ),
    ];
    for (field, value, allowed) in choices {
        if !value.is_empty() && !allowed.contains(&value.as_str()) {
            let expected = allowed.join(", ");
            faults.add(
                format!("spec.{field}"),
                format!("invalid value: {value:?}, expected one of {expected}"),
            );
        }
    }
    for (index, family) in spec.ip_families.iter().enumerate() {
        if !matches!(family.as_str(), "IPv4" | "IPv6") {
            let message = format!("invalid value: {family:?}, expected IPv4 or IPv6");
            faults.add(format!("spec.ipFamilies[{index}]"), message);
        }
    }
    if let Some(0 | 86_401..) = spec.client_ip_affinity_seconds() {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        faults.add(field, "expected 1 to 86400 seconds");
    }
}

/// The types of a route's fields only. What its values mean, and fields that nobody knows, are for the route's status.
fn rules<T: DeserializeOwned>(route: &Object, faults: &mut Faults) {
    let Some(spec) = faults.read::<RouteSpec>(route, "spec") else { return };
    for (index, rule) in spec.rules.iter().enumerate() {
        faults.take(read_all::<T>(rule, &format!("spec.rules[{index}]")));
    }
}

fn endpoint_slice(slice: &EndpointSlice, faults: &mut Faults) {
    let right_family: fn(&str) -> bool = match slice.address_type.as_str() {
        "IPv4" => |text| text.parse::<std::net::Ipv4Addr>().is_ok(),
        "IPv6" => |text| text.parse::<std::net::Ipv6Addr>().is_ok(),
        "FQDN" => |text| dns_subdomain(text).is_ok(),
        other => {
            faults.add("addressType", format!("invalid value: {other:?}, expected IPv4, IPv6 or FQDN"));
            return;
        }
    };
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        if endpoint.addresses.is_empty() {
            faults.add(format!("endpoints[{index}].addresses"), "empty, expected an address");
        }
        for (n, address) in
            endpoint.addresses.iter().enumerate().filter(|(_, address)| !right_family(address))
        {
            let message =
                format!("invalid value: {address:?}, expected an address of type {}", slice.address_type);
            faults.add(format!("endpoints[{index}].addresses[{n}]"), message);
        }
    }
}

fn node(spec: &NodeSpec, faults: &mut Faults) {
    let ranges = spec.pod_cidrs.iter().enumerate().map(|(n, text)| (format!("spec.podCIDRs[{n}]"), text));
    for (field, text) in ranges.chain([("spec.podCIDR".to_owned(), &spec.pod_cidr)]) {
        if !text.is_empty() && text.parse::<ipnet::IpNet>().is_err() {
            faults.add(field, format!("invalid value: {text:?}, expected an address range as 10.0.0.0/16"));
        }
    }
}

#[cfg(test)]
mod tests;
