//! EndpointSlices of Services with a selector, as Kubernetes writes them: per address family and per set of port
//! numbers, following readiness. Slices that users wrote are left alone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_objects::types::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone, PortRef,
    ServiceSpec, ServiceType, TargetRef,
};
use culvert_objects::{Kind, Object, ObjectKey, Objects, OwnerReference};
use serde_json::{Map, Value, json};

use super::hash;
use super::view::PodView;
use crate::sandbox::store::Change;

/// Label that tells these slices from those of users.
const MANAGED_BY: (&str, &str) =
    ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io");
/// Label on the slices of headless Services.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Most endpoints of one slice, as Kubernetes has it.
const MAX_ENDPOINTS: usize = 100;

/// Whether a slice differs from what the pods ask for.
#[must_use]
pub fn are_behind(objects: &Objects) -> bool {
    !reconcile(objects, &PodView::all(objects)).is_empty()
}

pub(super) fn reconcile(objects: &Objects, pods: &[PodView<'_>]) -> Vec<Change> {
    let mut wanted: BTreeMap<ObjectKey, Object> = BTreeMap::new();
    for service in objects.of_kind(Kind::Service) {
        let slices = slices(objects, service, pods).into_iter().map(|slice| (slice.key(), slice));
        wanted.extend(slices);
    }
    let mut changes: Vec<Change> = objects
        .of_kind(Kind::EndpointSlice)
        .filter(|slice| slice.label(MANAGED_BY.0) == Some(MANAGED_BY.1))
        .filter(|slice| !wanted.contains_key(&slice.key()))
        .map(|slice| Change::Remove(slice.key()))
        .collect();
    let differs = |slice: &Object| match objects.get(&slice.key()) {
        Some(known) => known.body != slice.body || known.metadata.labels != slice.metadata.labels,
        None => true,
    };
    let terminating = |namespace: &str| {
        objects.namespace(namespace).is_none_or(|found| found.metadata.deletion_timestamp.is_some())
    };
    changes.extend(
        wanted
            .into_values()
            .filter(|slice| differs(slice) && !terminating(slice.namespace()))
            .map(Change::put),
    );
    changes
}

/// The slices of one Service; none when others write them.
fn slices(objects: &Objects, service: &Object, pods: &[PodView<'_>]) -> Vec<Object> {
    let Ok(spec) = service.spec::<ServiceSpec>() else { return Vec::new() };
    if spec.selector.is_empty() || spec.kind == ServiceType::ExternalName {
        return Vec::new();
    }
    let selected: Vec<&PodView<'_>> = pods
        .iter()
        .filter(|pod| pod.object.namespace() == service.namespace() && !pod.status.is_finished())
        .filter(|pod| {
            spec.selector.iter().all(|(key, value)| pod.object.metadata.labels.get(key) == Some(value))
        })
        .collect();
    let families =
        if spec.ip_families.is_empty() { vec!["IPv4".to_owned()] } else { spec.ip_families.clone() };
    families.iter().flat_map(|family| of_family(objects, service, &spec, family, &selected)).collect()
}

fn of_family(
    objects: &Objects,
    service: &Object,
    spec: &ServiceSpec,
    family: &str,
    pods: &[&PodView<'_>],
) -> Vec<Object> {
    // Pods that give a port's name to different numbers end up in different slices.
    let mut groups: Vec<(Vec<EndpointPort>, Vec<Endpoint>)> = Vec::new();
    for pod in pods {
        let Some(endpoint) = endpoint(objects, service, spec, family, pod) else { continue };
        let ports = ports(spec, pod);
        match groups.iter_mut().find(|(known, _)| *known == ports) {
            Some((_, endpoints)) => endpoints.push(endpoint),
            None => groups.push((ports, vec![endpoint])),
        }
    }
    if groups.is_empty() {
        groups.push((Vec::new(), Vec::new()));
    }
    let mut slices = Vec::new();
    for (ports, endpoints) in groups {
        let mut chunks: Vec<&[Endpoint]> = endpoints.chunks(MAX_ENDPOINTS).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        for (number, chunk) in chunks.into_iter().enumerate() {
            slices.push(slice(service, spec, family, &ports, chunk, number));
        }
    }
    slices
}

fn slice(
    service: &Object,
    spec: &ServiceSpec,
    family: &str,
    ports: &[EndpointPort],
    endpoints: &[Endpoint],
    number: usize,
) -> Object {
    let numbers: String = ports.iter().map(|port| format!("{:?}/{:?},", port.name, port.port)).collect();
    let name = hash::letters(
        hash::fnv64([service.uid().as_bytes(), family.as_bytes(), numbers.as_bytes(), &number.to_le_bytes()]),
        5,
    );
    let key =
        ObjectKey::namespaced(Kind::EndpointSlice, service.namespace(), format!("{}-{name}", service.name()));
    let mut slice = Object::new(key);
    let labels = &mut slice.metadata.labels;
    labels.clone_from(&service.metadata.labels);
    labels.insert(EndpointSlice::SERVICE_NAME_LABEL.to_owned(), service.name().to_owned());
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    if spec.is_headless() {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    slice.metadata.rest.insert("generateName".to_owned(), format!("{}-", service.name()).into());
    slice.metadata.owner_references = vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        name: service.name().to_owned(),
        uid: service.uid().to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }];
    let body = json!({"addressType": family, "endpoints": endpoints, "ports": ports});
    slice.body = match body {
        Value::Object(body) => body,
        _ => Map::new(),
    };
    slice
}

/// The Service's ports as this pod has them. A port whose name the pod does not know is left out.
fn ports(spec: &ServiceSpec, pod: &PodView<'_>) -> Vec<EndpointPort> {
    spec.ports
        .iter()
        .filter_map(|port| {
            let number = match &port.target_port {
                None => port.port,
                Some(PortRef::Number(number)) => *number,
                Some(PortRef::Name(name)) => {
                    let mut ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
                    let found =
                        ports.find(|own| own.name.as_ref() == Some(name) && own.protocol == port.protocol)?;
                    found.container_port
                }
            };
            Some(EndpointPort {
                name: port.name.clone(),
                protocol: port.protocol,
                port: Some(number),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn endpoint(
    objects: &Objects,
    service: &Object,
    spec: &ServiceSpec,
    family: &str,
    pod: &PodView<'_>,
) -> Option<Endpoint> {
    let of_family = |address: &IpAddr| address.is_ipv6() == (family == "IPv6");
    let address = pod.status.addresses().into_iter().find(of_family)?;
    let node = pod.node()?;
    let zone = objects.find(Kind::Node, "", node).and_then(|node| node.label(ZONE)).map(str::to_owned);
    let (serving, terminating) = (pod.is_ready(), pod.is_terminating());
    let named = pod.spec.subdomain.as_deref() == Some(service.name());
    // Every zone has room for its own traffic here, so the hint is always the endpoint's own zone.
    let for_zones = zone.clone().into_iter().map(|name| ForZone { name }).collect();
    let on_node = (spec.traffic_distribution == "PreferSameNode").then(|| node.to_owned());
    let for_nodes = on_node.into_iter().map(|name| ForNode { name }).collect();
    Some(Endpoint {
        addresses: vec![address.to_string()],
        conditions: EndpointConditions {
            ready: Some(spec.publish_not_ready_addresses || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        },
        hostname: pod.spec.hostname.clone().filter(|_| named),
        node_name: Some(node.to_owned()),
        zone,
        hints: (!spec.traffic_distribution.is_empty()).then_some(EndpointHints { for_zones, for_nodes }),
        target_ref: Some(TargetRef {
            kind: "Pod".to_owned(),
            namespace: pod.object.namespace().to_owned(),
            name: pod.object.name().to_owned(),
            uid: pod.object.uid().to_owned(),
        }),
    })
}
