//! Which pods are part of the mesh: the rule, in one place.

use std::fmt;

use culvert_api::names::{MESH_DISABLED, MESH_ENABLED, MESH_LABEL, NEVER_ENROLLED_NAMESPACES, NODE_RELEASED};

use crate::kinds::Kind;
use crate::object::{Object, ObjectKey};

/// Whether a pod is wanted in the mesh, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Enrolled,
    NotEnrolled(WhyNot),
}

impl Wanted {
    pub fn is_enrolled(&self) -> bool {
        *self == Wanted::Enrolled
    }
}

/// Why a pod is not part of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// Neither the pod nor its namespace asks for it.
    NotLabelled,
    /// The pod's label opts out.
    OptedOut,
    /// The label has a value that means nothing.
    UnknownLabelValue(String),
    HostNetwork,
    SystemNamespace,
    Finished,
    /// The label of its node lets its pods go.
    NodeReleased,
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WhyNot::NotLabelled => {
                write!(f, "neither the pod nor its namespace has the label {MESH_LABEL}={MESH_ENABLED}")
            }
            WhyNot::OptedOut => write!(f, "the pod has the label {MESH_LABEL}={MESH_DISABLED}"),
            WhyNot::UnknownLabelValue(value) => {
                write!(f, "the label {MESH_LABEL} is {value:?}, expected {MESH_ENABLED} or {MESH_DISABLED}")
            }
            WhyNot::HostNetwork => f.write_str("the pod uses the host's network"),
            WhyNot::SystemNamespace => f.write_str("pods of this namespace are never enrolled"),
            WhyNot::Finished => f.write_str("the pod has finished"),
            WhyNot::NodeReleased => write!(f, "its node has the label {MESH_LABEL}={NODE_RELEASED}"),
        }
    }
}

/// The rule. The pod's own label wins over its namespace's; pods on the host's network, in system namespaces, or
/// finished are never enrolled, whatever the labels say.
pub fn wanted(pod: &Object, namespace: Option<&Object>) -> Wanted {
    if NEVER_ENROLLED_NAMESPACES.contains(&pod.namespace()) {
        return Wanted::NotEnrolled(WhyNot::SystemNamespace);
    }
    let at = |part: &str, field: &str| pod.body.get(part).and_then(|value| value.get(field));
    if at("spec", "hostNetwork").and_then(serde_json::Value::as_bool) == Some(true) {
        return Wanted::NotEnrolled(WhyNot::HostNetwork);
    }
    if matches!(at("status", "phase").and_then(serde_json::Value::as_str), Some("Succeeded" | "Failed")) {
        return Wanted::NotEnrolled(WhyNot::Finished);
    }
    let of_namespace = namespace.and_then(|namespace| namespace.label(MESH_LABEL));
    match (pod.label(MESH_LABEL), of_namespace) {
        (Some(MESH_ENABLED), _) | (None, Some(MESH_ENABLED)) => Wanted::Enrolled,
        (Some(MESH_DISABLED), _) => Wanted::NotEnrolled(WhyNot::OptedOut),
        (None, None | Some(MESH_DISABLED)) => Wanted::NotEnrolled(WhyNot::NotLabelled),
        (Some(value), _) | (None, Some(value)) => {
            Wanted::NotEnrolled(WhyNot::UnknownLabelValue(value.to_owned()))
        }
    }
}

/// Whether a namespace enrols pods that say nothing themselves.
pub fn enrols(namespace: &Object) -> bool {
    let pod = Object::new(ObjectKey::namespaced(Kind::Pod, namespace.name(), ""));
    wanted(&pod, Some(namespace)).is_enrolled()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(namespace: &str, label: Option<&str>, host_network: bool, phase: &str) -> Object {
        let labels = label.map_or(json!({}), |value| json!({"culvert.dev/mesh": value}));
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": namespace, "labels": labels},
            "spec": {"hostNetwork": host_network}, "status": {"phase": phase}}))
        .unwrap()
    }

    #[test]
    fn the_rule_as_a_table() {
        use WhyNot::*;
        let no = Wanted::NotEnrolled;
        let cases = [
            (pod("a", None, false, "Running"), None, no(NotLabelled)),
            (pod("a", None, false, "Running"), Some("enabled"), Wanted::Enrolled),
            (pod("a", None, false, ""), Some("disabled"), no(NotLabelled)),
            (pod("a", Some("disabled"), false, ""), Some("enabled"), no(OptedOut)),
            (pod("a", Some("enabled"), false, ""), None, Wanted::Enrolled),
            (pod("a", Some("enabled"), true, ""), None, no(HostNetwork)),
            (pod("a", Some("enabled"), false, "Failed"), None, no(Finished)),
            (pod("kube-system", Some("enabled"), false, ""), Some("enabled"), no(SystemNamespace)),
            (pod("a", Some("yes"), false, ""), Some("enabled"), no(UnknownLabelValue("yes".into()))),
            (pod("a", None, false, ""), Some("true"), no(UnknownLabelValue("true".into()))),
        ];
        for (pod, label, expected) in cases {
            let labels = label.map_or(json!({}), |value| json!({"culvert.dev/mesh": value}));
            let namespace: Object = serde_json::from_value(
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "labels": labels}}),
            )
            .unwrap();
            assert_eq!(wanted(&pod, Some(&namespace)), expected, "{pod:?} {label:?}");
        }
    }
}
