//! Kinds that do not exist, and versions that no API server serves any more.

use culvert_objects::types::GATEWAY_GROUP;

use crate::api::{self, ApiKind, Channel};
use crate::code::Code;
use crate::context::{Context, Document};
use crate::finding::Finding;
use crate::words::{did_you_mean, nearest};

/// Group of the Gateway API's experiments.
const EXPERIMENTAL_GROUP: &str = "gateway.networking.x-k8s.io";

/// Versions that Kubernetes has stopped serving: of these kinds, since when, and what it serves instead (its "Deprecated API
/// Migration Guide"; the lifecycles in its Go module of the API). A version may be served for other kinds.
const GONE: &[(&str, &[&str], &str, &str)] = &[
    ("extensions/v1beta1", &["Deployment", "DaemonSet", "ReplicaSet"], "1.16", "apps/v1"),
    ("extensions/v1beta1", &["NetworkPolicy"], "1.16", "networking.k8s.io/v1"),
    ("extensions/v1beta1", &["Ingress"], "1.22", "networking.k8s.io/v1"),
    ("apps/v1beta1", &["Deployment", "StatefulSet", "ControllerRevision"], "1.16", "apps/v1"),
    (
        "apps/v1beta2",
        &["Deployment", "DaemonSet", "ReplicaSet", "StatefulSet", "ControllerRevision"],
        "1.16",
        "apps/v1",
    ),
    (
        "admissionregistration.k8s.io/v1beta1",
        &["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"],
        "1.22",
        "admissionregistration.k8s.io/v1",
    ),
    ("apiextensions.k8s.io/v1beta1", &["CustomResourceDefinition"], "1.22", "apiextensions.k8s.io/v1"),
    ("apiregistration.k8s.io/v1beta1", &["APIService"], "1.22", "apiregistration.k8s.io/v1"),
    ("authentication.k8s.io/v1beta1", &["TokenReview"], "1.22", "authentication.k8s.io/v1"),
    (
        "authorization.k8s.io/v1beta1",
        &[
            "LocalSubjectAccessReview",
            "SelfSubjectAccessReview",
            "SelfSubjectRulesReview",
            "SubjectAccessReview",
        ],
        "1.22",
        "authorization.k8s.io/v1",
    ),
    ("certificates.k8s.io/v1beta1", &["CertificateSigningRequest"], "1.22", "certificates.k8s.io/v1"),
    ("coordination.k8s.io/v1beta1", &["Lease"], "1.22", "coordination.k8s.io/v1"),
    ("networking.k8s.io/v1beta1", &["Ingress", "IngressClass"], "1.22", "networking.k8s.io/v1"),
    (
        "rbac.authorization.k8s.io/v1beta1",
        &["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"],
        "1.22",
        "rbac.authorization.k8s.io/v1",
    ),
    ("scheduling.k8s.io/v1beta1", &["PriorityClass"], "1.22", "scheduling.k8s.io/v1"),
    (
        "storage.k8s.io/v1beta1",
        &["CSIDriver", "CSINode", "StorageClass", "VolumeAttachment"],
        "1.22",
        "storage.k8s.io/v1",
    ),
    ("batch/v2alpha1", &["CronJob"], "1.21", "batch/v1"),
    ("batch/v1beta1", &["CronJob"], "1.25", "batch/v1"),
    ("discovery.k8s.io/v1beta1", &["EndpointSlice"], "1.25", "discovery.k8s.io/v1"),
    ("events.k8s.io/v1beta1", &["Event"], "1.25", "events.k8s.io/v1"),
    ("node.k8s.io/v1beta1", &["RuntimeClass"], "1.25", "node.k8s.io/v1"),
    ("policy/v1beta1", &["PodDisruptionBudget"], "1.25", "policy/v1"),
    ("autoscaling/v2beta1", &["HorizontalPodAutoscaler"], "1.25", "autoscaling/v2"),
    ("autoscaling/v2beta2", &["HorizontalPodAutoscaler"], "1.26", "autoscaling/v2"),
    ("storage.k8s.io/v1beta1", &["CSIStorageCapacity"], "1.27", "storage.k8s.io/v1"),
    (
        "flowcontrol.apiserver.k8s.io/v1beta1",
        &["FlowSchema", "PriorityLevelConfiguration"],
        "1.26",
        "flowcontrol.apiserver.k8s.io/v1",
    ),
    (
        "flowcontrol.apiserver.k8s.io/v1beta2",
        &["FlowSchema", "PriorityLevelConfiguration"],
        "1.29",
        "flowcontrol.apiserver.k8s.io/v1",
    ),
    (
        "flowcontrol.apiserver.k8s.io/v1beta3",
        &["FlowSchema", "PriorityLevelConfiguration"],
        "1.32",
        "flowcontrol.apiserver.k8s.io/v1",
    ),
];

/// Kinds that Kubernetes has no more in any version: since when, and what there is instead.
const REMOVED: &[(&str, &[&str], &str, &str)] = &[(
    "PodSecurityPolicy",
    &["policy/v1beta1", "extensions/v1beta1"],
    "1.25",
    "label the namespace with pod-security.kubernetes.io/enforce (Pod Security Admission), or ask an admission webhook",
)];

/// Kinds that are written with the version of the core group, or with a group alone, and where they are.
const ELSEWHERE: &[(&str, &str)] = &[
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
    if let Some(finding) = mistaken(document, group) {
        return Some(finding);
    }
    let (written, kind) = (document.api_version.as_str(), document.kind.as_str());
    let removed = REMOVED.iter().find(|(gone, versions, ..)| *gone == kind && versions.contains(&written));
    if let Some((_, _, since, instead)) = removed {
        let what = format!("Kubernetes has no {kind} since {since}, in no version");
        return Some(document.finding(Code::VersionGone, "kind", what, *instead));
    }
    let (_, _, since, instead) =
        GONE.iter().find(|(version, kinds, ..)| *version == written && kinds.contains(&kind))?;
    let what = format!("{written} {kind} is not served since Kubernetes {since}");
    Some(document.finding(Code::VersionGone, "apiVersion", what, format!("write apiVersion: {instead}")))
}

/// A kind that is not of the group that is written, or no group at all.
fn mistaken(document: &Document, group: &str) -> Option<Finding> {
    let (written, kind) = (document.api_version.as_str(), document.kind.as_str());
    let is_without_version = !written.is_empty() && group.is_empty() && !is_version(written);
    let is_core = group.is_empty() && !written.is_empty();
    let of_api = api::kinds().get(kind);
    let of_api = of_api.filter(|api| is_core || group.ends_with("k8s.io") || is_nearly(group, &api.group));
    let right = match of_api {
        Some(api) => format!("{}/{}", api.group, newest(api)),
        // There is no such group: its kinds are written without one.
        None if group == "core" => "v1".to_owned(),
        None if is_core => ELSEWHERE.iter().find(|(of, _)| *of == kind)?.1.to_owned(),
        None => return None,
    };
    let why = match is_without_version {
        true => {
            format!("{written:?} is no apiVersion: a group and a version are, or a version of the core group")
        }
        false => format!("there is no kind {kind} in {}", if group.is_empty() { written } else { group }),
    };
    Some(document.finding(Code::UnknownKind, "apiVersion", why, format!("write apiVersion: {right}")))
}

/// `v1`, `v1beta2`.
fn is_version(text: &str) -> bool {
    text.strip_prefix('v').is_some_and(|rest| rest.starts_with(|of: char| of.is_ascii_digit()))
}

/// Whether a group is a slip of the Gateway API's: other words of it, or nearly the same.
fn is_nearly(written: &str, group: &str) -> bool {
    const WORDS: [&str; 6] = ["gateway", "networking", "k8s", "x-k8s", "kubernetes", "io"];
    let mut labels = written.split('.');
    let is_of_words = written.contains("gateway") && labels.all(|label| WORDS.contains(&label));
    is_of_words || nearest(written, [group]).is_some()
}

/// The version to write: stable where there is one.
fn newest(api: &ApiKind) -> &str {
    api.versions.keys().min_by_key(|version| version.len()).map_or("v1", String::as_str)
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
        let meant = did_you_mean(near.filter(|name| *name != kind));
        let what = format!("there is no kind {kind} in {group}{meant}");
        let remedy = match near.and_then(|name| api::kinds().get_key_value(name)) {
            Some((name, api)) if name == kind => format!("write apiVersion: {}/{}", api.group, newest(api)),
            Some((name, api)) => {
                format!("write apiVersion: {}/{} and kind: {name}", api.group, newest(api))
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
    format!("write apiVersion: {group}/{}", api::kinds().get(kind).map_or("v1", newest))
}
