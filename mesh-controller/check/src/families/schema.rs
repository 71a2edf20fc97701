//! Fields and values that the schemas forbid: those of the Gateway API, and the fields of a Service and of any object's metadata,
//! which are mistyped most.

use serde_json::Value;

use crate::api::{self, Fault};
use crate::code::Code;
use crate::context::{Context, Document};
use crate::finding::Finding;
use crate::words::{did_you_mean, nearest};

const METADATA: &[&str] = &[
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];
const SERVICE: &[&str] = &[
    "allocateLoadBalancerNodePorts",
    "clusterIP",
    "clusterIPs",
    "externalIPs",
    "externalName",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "ports",
    "publishNotReadyAddresses",
    "selector",
    "sessionAffinity",
    "sessionAffinityConfig",
    "trafficDistribution",
    "type",
];
const SERVICE_PORT: &[&str] = &["appProtocol", "name", "nodePort", "port", "protocol", "targetPort"];

pub fn find(context: &Context) -> Vec<Finding> {
    context.documents.iter().flat_map(of_document).collect()
}

/// What the schema says of one document.
pub(super) fn of_document(document: &Document) -> Vec<Finding> {
    let mut findings = Vec::new();
    let group = document.api_version.split_once('/').map_or("", |(group, _)| group);
    if let Some(api) = api::kinds().get(&document.kind).filter(|api| api.group == group) {
        findings.extend(api::faults(api, &document.value).into_iter().map(|fault| told(document, fault)));
    }
    if document.key.is_some() || api::kinds().values().any(|api| api.group == group) {
        fields(document, &document.value["metadata"], "metadata", METADATA, &mut findings);
    }
    if document.api_version == "v1" && document.kind == "Service" {
        let spec = &document.value["spec"];
        fields(document, spec, "spec", SERVICE, &mut findings);
        for (index, port) in spec["ports"].as_array().into_iter().flatten().enumerate() {
            fields(document, port, &format!("spec.ports[{index}]"), SERVICE_PORT, &mut findings);
        }
    }
    findings
}

fn told(document: &Document, fault: Fault) -> Finding {
    match fault {
        Fault::Value { path, message } => {
            let remedy = "write what is expected; the API server refuses the object as it is";
            document.finding(Code::Schema, path, message, remedy)
        }
        Fault::Unknown { path, name, others } => {
            unknown(document, path, &name, &others.iter().map(String::as_str).collect::<Vec<_>>())
        }
    }
}

fn fields(document: &Document, of: &Value, at: &str, known: &[&str], findings: &mut Vec<Finding>) {
    for name in of.as_object().into_iter().flatten().map(|(name, _)| name) {
        if !known.contains(&name.as_str()) {
            findings.push(unknown(document, format!("{at}.{name}"), name, known));
        }
    }
}

fn unknown(document: &Document, path: String, name: &str, known: &[&str]) -> Finding {
    let near = nearest(name, known.iter().copied());
    let what = format!("there is no field {name} here{}", did_you_mean(near));
    let remedy = match near {
        Some(near) => format!("write {near}; kubectl refuses what nobody knows, an older one drops it"),
        None => format!("take it away; the fields here are {}", known.join(", ")),
    };
    document.finding(Code::UnknownField, path, what, remedy)
}
