//! What an API server completes in a Service before it is stored: addresses, families, defaults.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use culvert_objects::types::{PortRef, ServicePort, ServiceSpec, ServiceType};
use culvert_objects::{FieldError, Kind, Object, ObjectKey, Objects};
use serde_json::{Value, json};

use crate::sandbox::cluster::DualRange;

/// First address, counted from the start of the range, that is given out unasked. Those below are for the asking.
const FIRST_DYNAMIC: u32 = 256;

/// Which addresses are taken, and by whom.
#[derive(Debug)]
pub struct Allocator {
    ranges: DualRange,
    taken: BTreeMap<IpAddr, ObjectKey>,
}

impl Allocator {
    /// With the addresses of all Services there are. What no Service has is free.
    #[must_use]
    pub fn new(objects: &Objects, ranges: DualRange) -> Self {
        let mut taken = BTreeMap::new();
        for service in objects.of_kind(Kind::Service) {
            let spec: ServiceSpec = service.spec().unwrap_or_default();
            taken.extend(spec.vips().into_iter().map(|address| (address, service.key())));
        }
        Self { ranges, taken }
    }

    /// Takes an address that a Service asks for.
    ///
    /// # Errors
    /// When it is outside the ranges or another Service has it.
    pub fn reserve(&mut self, address: IpAddr, service: &ObjectKey) -> Result<(), String> {
        if !self.ranges.contains(address) || self.is_edge(address) {
            let DualRange { v4, v6 } = self.ranges;
            return Err(format!("{address} is not a Service address, expected one of {v4} or {v6}"));
        }
        match self.taken.get(&address) {
            Some(owner) if owner != service => Err(format!("{address} is taken by {owner}")),
            _ => {
                self.taken.insert(address, service.clone());
                Ok(())
            }
        }
    }

    /// Gives out a free address. A Service gets the same one again after it was deleted, if that is still free.
    fn allocate(&mut self, family: Family, service: &ObjectKey) -> Result<IpAddr, String> {
        let size = 1_u32 << (32 - u32::from(self.ranges.v4.prefix_len())).min(16);
        let room = size - 1 - FIRST_DYNAMIC;
        let name = service.to_string();
        let start = name
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        for step in 0..room {
            let offset = FIRST_DYNAMIC + start.wrapping_add(step) % room;
            let pair = self.ranges.nth(offset);
            let address = match family {
                Family::V4 => IpAddr::V4(pair.v4),
                Family::V6 => IpAddr::V6(pair.v6),
            };
            if let Entry::Vacant(free) = self.taken.entry(address) {
                free.insert(service.clone());
                return Ok(address);
            }
        }
        Err("no free Service address is left".to_owned())
    }

    fn is_edge(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(self.ranges.v4.network())
            || address == IpAddr::V4(self.ranges.v4.broadcast())
            || address == IpAddr::V6(self.ranges.v6.network())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn parse(text: &str) -> Self {
        if text == "IPv6" { Self::V6 } else { Self::V4 }
    }

    fn word(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// The addresses that a Service asks for by number.
///
/// # Errors
/// When `clusterIP` and `clusterIPs` contradict each other.
pub fn requested(spec: &ServiceSpec) -> Result<Vec<IpAddr>, FieldError> {
    if let (false, Some(first)) = (spec.cluster_ip.is_empty(), spec.cluster_ips.first())
        && *first != spec.cluster_ip
    {
        let message = format!("{first:?} differs from spec.clusterIP {:?}", spec.cluster_ip);
        return Err(FieldError::new("spec.clusterIPs[0]", message));
    }
    Ok(spec.vips())
}

/// Fills in what the user left open, keeping what `existing` has. Addresses asked for must have been reserved.
///
/// # Errors
/// Names the field that contradicts another one or an address that cannot change.
pub fn complete(
    service: &mut Object,
    existing: Option<&Object>,
    allocator: &mut Allocator,
) -> Result<(), FieldError> {
    let spec: ServiceSpec = service.spec()?;
    let before: ServiceSpec = existing.map(Object::spec).transpose()?.unwrap_or_default();
    let key = service.key();
    let fields = service.body.entry("spec").or_insert_with(|| json!({}));
    default(fields, "type", "ClusterIP".into());
    default(fields, "sessionAffinity", "None".into());
    complete_ports(fields, &spec.ports);
    if spec.kind == ServiceType::ExternalName {
        return match requested(&spec)?.is_empty() && !spec.is_headless() {
            true => Ok(()),
            false => Err(FieldError::new("spec.clusterIP", "may not be set for type ExternalName")),
        };
    }
    default(fields, "internalTrafficPolicy", "Cluster".into());
    let requested = requested(&spec)?;
    let (policy, families) = families(&spec, &before, &requested)?;
    fields["ipFamilyPolicy"] = policy.into();
    fields["ipFamilies"] = families.iter().map(|family| Value::from(family.word())).collect();
    if spec.is_headless() {
        if !before.vips().is_empty() {
            return Err(immutable("None", &before));
        }
        fields["clusterIP"] = "None".into();
        fields["clusterIPs"] = json!(["None"]);
        return Ok(());
    }
    if before.is_headless() {
        return Err(immutable("an address", &before));
    }
    let addresses = addresses(&families, &requested, &before, allocator, &key)?;
    fields["clusterIP"] = addresses.first().map(ToString::to_string).into();
    fields["clusterIPs"] = addresses.iter().map(|address| Value::from(address.to_string())).collect();
    Ok(())
}

fn immutable(wanted: &str, before: &ServiceSpec) -> FieldError {
    let message =
        format!("is {wanted} but was {:?}; it cannot change while the Service exists", before.cluster_ip);
    FieldError::new("spec.clusterIP", message)
}

/// One address per family: the one asked for, else the one it has, else a free one.
fn addresses(
    families: &[Family],
    requested: &[IpAddr],
    before: &ServiceSpec,
    allocator: &mut Allocator,
    key: &ObjectKey,
) -> Result<Vec<IpAddr>, FieldError> {
    let held = before.vips();
    let of = |addresses: &[IpAddr], family: Family| {
        addresses.iter().copied().find(|address| Family::of(*address) == family)
    };
    if let Some(stray) = requested.iter().find(|address| !families.contains(&Family::of(**address))) {
        let message = format!("{stray} is of a family that spec.ipFamilies does not name");
        return Err(FieldError::new("spec.clusterIPs", message));
    }
    let mut addresses = Vec::new();
    for family in families {
        let (wanted, had) = (of(requested, *family), of(&held, *family));
        match (wanted, had) {
            (Some(wanted), Some(had)) if wanted != had => {
                return Err(immutable(&wanted.to_string(), before));
            }
            (Some(address), _) | (None, Some(address)) => addresses.push(address),
            (None, None) => addresses.push(
                allocator
                    .allocate(*family, key)
                    .map_err(|message| FieldError::new("spec.clusterIP", message))?,
            ),
        }
    }
    Ok(addresses)
}

/// Policy and families in force: as written, else from the addresses asked for, else as before, else IPv4 alone.
fn families(
    spec: &ServiceSpec,
    before: &ServiceSpec,
    requested: &[IpAddr],
) -> Result<(&'static str, Vec<Family>), FieldError> {
    let mut families: Vec<Family> = spec.ip_families.iter().map(|family| Family::parse(family)).collect();
    if families.is_empty() {
        families = requested.iter().map(|address| Family::of(*address)).collect();
    }
    let written = families.len();
    if written > 2 || (written == 2 && families[0] == families[1]) {
        return Err(FieldError::new("spec.ipFamilies", "expected at most one of each family"));
    }
    let selectorless_headless = spec.is_headless() && spec.selector.is_empty();
    let policy = match spec.ip_family_policy.as_str() {
        "SingleStack" => "SingleStack",
        "PreferDualStack" => "PreferDualStack",
        "RequireDualStack" => "RequireDualStack",
        _ if written == 2 || (selectorless_headless && written == 0) => "RequireDualStack",
        _ => "SingleStack",
    };
    if policy == "SingleStack" && written == 2 {
        let message = "SingleStack contradicts two families in spec.ipFamilies or spec.clusterIPs";
        return Err(FieldError::new("spec.ipFamilyPolicy", message));
    }
    let primary_before = before.ip_families.first().map(|family| Family::parse(family));
    let primary = families.first().copied().or(primary_before).unwrap_or(Family::V4);
    if let Some(held) = primary_before
        && held != primary
    {
        let message = format!("the first is {} but was {}; it cannot change", primary.word(), held.word());
        return Err(FieldError::new("spec.ipFamilies", message));
    }
    let families = match policy {
        "SingleStack" => vec![primary],
        _ => vec![primary, primary.other()],
    };
    Ok((policy, families))
}

fn default(fields: &mut Value, name: &str, value: Value) {
    if fields.get(name).is_none() {
        fields[name] = value;
    }
}

fn complete_ports(fields: &mut Value, ports: &[ServicePort]) {
    let Some(Value::Array(written)) = fields.get_mut("ports") else { return };
    for (written, port) in written.iter_mut().zip(ports) {
        default(written, "protocol", json!(port.protocol));
        let target = port.target_port.clone().unwrap_or(PortRef::Number(port.port));
        default(written, "targetPort", json!(target));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::cluster::Cluster;

    fn service(name: &str, spec: Value) -> Object {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "shop"}, "spec": spec}))
        .unwrap()
    }

    fn run(existing: Option<&Object>, spec: Value) -> Result<Value, String> {
        let ranges = Cluster::new("test", 1).service_cidr;
        let objects: Objects = existing.cloned().into_iter().collect();
        let mut allocator = Allocator::new(&objects, ranges);
        let mut service = service("cart", spec);
        for address in requested(&service.spec().unwrap()).map_err(|error| error.to_string())? {
            allocator.reserve(address, &service.key())?;
        }
        complete(&mut service, existing, &mut allocator).map_err(|error| error.to_string())?;
        Ok(service.body["spec"].clone())
    }

    #[test]
    fn a_plain_service_gets_one_address_and_keeps_it() {
        let first = run(None, json!({"ports": [{"port": 80}]})).unwrap();
        assert_eq!(first["ports"], json!([{"port": 80, "protocol": "TCP", "targetPort": 80}]));
        assert_eq!(first["ipFamilyPolicy"], "SingleStack");
        assert_eq!(first["clusterIPs"], json!([first["clusterIP"]]));
        assert!(first["clusterIP"].as_str().unwrap().starts_with("10.96."));
        let second = run(Some(&service("cart", first.clone())), json!({"ports": [{"port": 81}]})).unwrap();
        assert_eq!(second["clusterIP"], first["clusterIP"]);
    }

    #[test]
    fn dual_stack_has_both_families_in_the_order_asked_for() {
        let spec = run(
            None,
            json!({"ports": [{"port": 80}], "ipFamilyPolicy": "PreferDualStack",
            "ipFamilies": ["IPv6"]}),
        )
        .unwrap();
        assert_eq!(spec["ipFamilies"], json!(["IPv6", "IPv4"]));
        let addresses: Vec<IpAddr> = serde_json::from_value(spec["clusterIPs"].clone()).unwrap();
        assert!(addresses[0].is_ipv6() && addresses[1].is_ipv4());

        let single = json!({"ports": [{"port": 80}]});
        let back = run(Some(&service("cart", spec.clone())), single).unwrap();
        assert_eq!(back["clusterIPs"], json!([spec["clusterIPs"][0]]), "the second address is given back");
    }

    #[test]
    fn fixed_addresses_are_checked() {
        let with = |address: &str| json!({"ports": [{"port": 80}], "clusterIP": address});
        assert_eq!(run(None, with("10.96.7.7")).unwrap()["clusterIP"], "10.96.7.7");
        assert!(run(None, with("192.0.2.1")).unwrap_err().contains("expected one of 10.96.0.0/16"));
        let other = service("other", with("10.96.7.7"));
        assert!(run(Some(&other), with("10.96.7.7")).unwrap_err().contains("taken by Service shop/other"));
        let same = service("cart", run(None, with("10.96.7.7")).unwrap());
        assert!(run(Some(&same), with("10.96.7.8")).unwrap_err().contains("cannot change"));
        assert!(run(Some(&same), with("None")).unwrap_err().contains("cannot change"));
    }

    #[test]
    fn headless_and_external_services_have_no_address() {
        let headless = run(None, json!({"clusterIP": "None", "selector": {"app": "a"}})).unwrap();
        assert_eq!(headless["clusterIPs"], json!(["None"]));
        assert_eq!(headless["ipFamilies"], json!(["IPv4"]));
        let external = run(None, json!({"type": "ExternalName", "externalName": "example.com"})).unwrap();
        assert_eq!(external.get("clusterIP"), None);
    }

    #[test]
    fn contradictions_are_named() {
        let error = run(
            None,
            json!({"ports": [{"port": 80}], "ipFamilyPolicy": "SingleStack",
            "ipFamilies": ["IPv4", "IPv6"]}),
        )
        .unwrap_err();
        assert!(error.starts_with("spec.ipFamilyPolicy: "), "{error}");
        let error = run(
            None,
            json!({"ports": [{"port": 80}], "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.2"]}),
        )
        .unwrap_err();
        assert!(error.starts_with("spec.clusterIPs[0]: "), "{error}");
    }
}
