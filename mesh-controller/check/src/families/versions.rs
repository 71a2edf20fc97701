//! Kinds that do not exist, and versions that no API server serves any more.

use culvert_objects::types::GATEWAY_GROUP;

use crate::api::{self, Channel};
use crate::code::Code;
use crate::context::{Context, Document};
use crate::finding::Finding;
use crate::words::{did_you_mean, nearest};

/// Group of the Gateway API's experiments.
const EXPERIMENTAL_GROUP: &str = "gateway.networking.x-k8s.io";

/// Versions that Kubernetes has stopped serving, since when, and what it serves instead (its "Deprecated API Migration Guide").
const GONE: &[(&str, &str, &str, &str)] = &[
    ("extensions/v1beta1", "Deployment", "1.16", "apps/v1"),
    ("extensions/v1beta1", "DaemonSet", "1.16", "apps/v1"),
    ("extensions/v1beta1", "ReplicaSet", "1.16", "apps/v1"),
    ("extensions/v1beta1", "NetworkPolicy", "1.16", "networking.k8s.io/v1"),
    ("extensions/v1beta1", "Ingress", "1.22", "networking.k8s.io/v1"),
    ("apps/v1beta1", "Deployment", "1.16", "apps/v1"),
    ("apps/v1beta1", "StatefulSet", "1.16", "apps/v1"),
    ("apps/v1beta2", "Deployment", "1.16", "apps/v1"),
    ("apps/v1beta2", "DaemonSet", "1.16", "apps/v1"),
    ("apps/v1beta2", "ReplicaSet", "1.16", "apps/v1"),
    ("apps/v1beta2", "StatefulSet", "1.16", "apps/v1"),
    ("networking.k8s.io/v1beta1", "Ingress", "1.22", "networking.k8s.io/v1"),
    ("networking.k8s.io/v1beta1", "IngressClass", "1.22", "networking.k8s.io/v1"),
    ("rbac.authorization.k8s.io/v1beta1", "Role", "1.22", "rbac.authorization.k8s.io/v1"),
    ("rbac.authorization.k8s.io/v1beta1", "RoleBinding", "1.22", "rbac.authorization.k8s.io/v1"),
    ("rbac.authorization.k8s.io/v1beta1", "ClusterRole", "1.22", "rbac.authorization.k8s.io/v1"),
    ("rbac.authorization.k8s.io/v1beta1", "ClusterRoleBinding", "1.22", "rbac.authorization.k8s.io/v1"),
    ("apiextensions.k8s.io/v1beta1", "CustomResourceDefinition", "1.22", "apiextensions.k8s.io/v1"),
    ("discovery.k8s.io/v1beta1", "EndpointSlice", "1.25", "discovery.k8s.io/v1"),
    ("policy/v1beta1", "PodDisruptionBudget", "1.25", "policy/v1"),
    ("batch/v1beta1", "CronJob", "1.25", "batch/v1"),
    ("autoscaling/v2beta1", "HorizontalPodAutoscaler", "1.25", "autoscaling/v2"),
    ("autoscaling/v2beta2", "HorizontalPodAutoscaler", "1.26", "autoscaling/v2"),
];

/// Kinds that are written with the version of the core group and are of another.
const NOT_CORE: &[(&str, &str)] = &[
    ("Deployment", "apps/v1"),
    ("StatefulSet", "apps/v1"),
    ("DaemonSet", "apps/v1"),
    ("ReplicaSet", "apps/v1"),
    ("Job", "batch/v1"),
    ("CronJob", "batch/v1"),
    ("Ingress", "networking.k8s.io/v1"),
    ("NetworkPolicy", "networking.k8s.io/v1"),
    ("EndpointSlice", "discovery.k8s.io/v1"),
    ("HorizontalPodAutoscaler", "autoscaling/v2"),
    ("PodDisruptionBudget", "policy/v1"),
    ("Role", "rbac.authorization.k8s.io/v1"),
    ("RoleBinding", "rbac.authorization.k8s.io/v1"),
    ("ClusterRole", "rbac.authorization.k8s.io/v1"),
    ("ClusterRoleBinding", "rbac.authorization.k8s.io/v1"),
    ("GatewayClass", "gateway.networking.k8s.io/v1"),
    ("Gateway", "gateway.networking.k8s.io/v1"),
    ("HTTPRoute", "gateway.networking.k8s.io/v1"),
    ("GRPCRoute", "gateway.networking.k8s.io/v1"),
];

/// Kinds that the Gateway API had and has no more, and what is there instead.
const REPLACED: &[(&str, &str)] = &[
    ("ReferencePolicy", "gateway.networking.k8s.io/v1 ReferenceGrant"),
    ("XListenerSet", "gateway.networking.k8s.io/v1 ListenerSet"),
    ("BackendLBPolicy", "gateway.networking.x-k8s.io/v1alpha1 XBackendTrafficPolicy"),
    ("BackendPolicy", "gateway.networking.k8s.io/v1 BackendTLSPolicy"),
];

pub fn find(context: &Context) -> Vec<Finding> {
    context.documents.iter().filter_map(of_document).collect()
}

fn of_document(document: &Document) -> Option<Finding> {
    let (group, version) = document.api_version.split_once('/').unwrap_or(("", &document.api_version));
    if matches!(group, GATEWAY_GROUP | EXPERIMENTAL_GROUP) {
        return of_gateway_api(document, group, version);
    }
    if let Some(api) = api::kinds().get(&document.kind).filter(|_| group.ends_with("k8s.io")) {
        let what = format!("there is no kind {} in {group}", document.kind);
        let remedy = format!("write apiVersion: {}/v1", api.group);
        return Some(document.finding(Code::UnknownKind, "apiVersion", what, remedy));
    }
    let elsewhere = NOT_CORE.iter().find(|(kind, _)| document.api_version == "v1" && *kind == document.kind);
    if let Some((kind, version)) = elsewhere {
        let what = format!("there is no kind {kind} in v1");
        return Some(document.finding(
            Code::UnknownKind,
            "apiVersion",
            what,
            format!("write apiVersion: {version}"),
        ));
    }
    let is = |of: &&(&str, &str, _, _)| of.0 == document.api_version && of.1 == document.kind;
    let (_, _, since, instead) = GONE.iter().find(is)?;
    let what = format!("{} {} is not served since Kubernetes {since}", document.api_version, document.kind);
    Some(document.finding(Code::VersionGone, "apiVersion", what, format!("write apiVersion: {instead}")))
}

fn of_gateway_api(document: &Document, group: &str, version: &str) -> Option<Finding> {
    let kind = document.kind.as_str();
    if let Some((_, instead)) = REPLACED.iter().find(|(gone, _)| *gone == kind) {
        let what = format!("the Gateway API has no {kind} any more");
        return Some(document.finding(Code::VersionGone, "kind", what, format!("write {instead}")));
    }
    let Some(api) = api::kinds().get(kind).filter(|api| api.group == group) else {
        let near = api::kinds().get_key_value(kind).map(|(name, _)| name.as_str());
        let near = near.or_else(|| nearest(kind, api::kinds().keys().map(String::as_str)));
        let what = format!("there is no kind {kind} in {group}{}", did_you_mean(near));
        let remedy = match near.and_then(|name| api::kinds().get_key_value(name)) {
            Some((name, api)) => {
                let newest = if api.versions.contains_key("v1") { "v1" } else { "v1alpha1" };
                format!("write apiVersion: {}/{newest} and kind: {name}", api.group)
            }
            None => "see the kinds of the Gateway API in its reference".to_owned(),
        };
        return Some(document.finding(Code::UnknownKind, "kind", what, remedy));
    };
    match api.versions.get(version) {
        Some(Channel::Standard) => None,
        Some(Channel::Experimental) if !api.versions.values().any(|of| *of == Channel::Standard) => None,
        Some(Channel::Experimental) => {
            let what =
                format!("only the experimental channel of the Gateway API 1.6 serves {kind} as {version}");
            Some(document.finding(Code::VersionExperimental, "apiVersion", what, instead(group, kind)))
        }
        None => {
            let what = format!("the Gateway API 1.6 does not serve {kind} as {version}");
            Some(document.finding(Code::VersionGone, "apiVersion", what, instead(group, kind)))
        }
    }
}

fn instead(group: &str, kind: &str) -> String {
    let newest =
        api::kinds().get(kind).and_then(|api| api.versions.keys().min_by_key(|version| version.len()));
    format!("write apiVersion: {group}/{}", newest.map_or("v1", String::as_str))
}
