//! Whether a pod may start outside the mesh, by what is known of it. Pure.

use culvert_api::enrolment::KeptNamespaces;
use culvert_objects::enrolment::wanted;
use culvert_objects::{Kind, Object, ObjectKey};

use crate::call::{PodName, UnknownNamespaces};

/// What the labels say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The pod must be captured before it starts.
    Wanted,
    NotWanted,
}

/// By the objects themselves. A pod that is not there, or is another one of the same name, is judged by its namespace.
#[must_use]
pub fn judge_live(name: &PodName, pod: Option<Object>, namespace: Option<&Object>) -> Judgement {
    let is_it = |pod: &Object| name.uid.as_deref().is_none_or(|uid| uid == pod.uid());
    let pod = pod.filter(is_it).unwrap_or_else(|| {
        Object::new(ObjectKey::namespaced(Kind::Pod, name.namespace.clone(), name.name.clone()))
    });
    if wanted(&pod, namespace).is_enrolled() { Judgement::Wanted } else { Judgement::NotWanted }
}

/// By what the node proxy last knew: of the pod itself, if its node had it before, else of its namespace.
#[must_use]
pub fn judge_kept(name: &PodName, kept: Option<&KeptNamespaces>, unknown: UnknownNamespaces) -> Judgement {
    let wanted = kept.and_then(|kept| {
        let itself = name.uid.as_ref().and_then(|uid| kept.pods.get(uid));
        itself.or_else(|| kept.enrols.get(&name.namespace))
    });
    match (wanted, unknown) {
        (Some(false), _) | (None, UnknownNamespaces::Start) => Judgement::NotWanted,
        (Some(true), _) | (None, UnknownNamespaces::Wait) => Judgement::Wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn name() -> PodName {
        PodName { namespace: "shop".into(), name: "cart".into(), uid: Some("u-1".into()) }
    }

    fn object(value: serde_json::Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn namespace(label: Option<&str>) -> Object {
        let mut labels = json!({});
        if let Some(label) = label {
            labels["culvert.dev/mesh"] = label.into();
        }
        object(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}}),
        )
    }

    fn pod(uid: &str, label: Option<&str>) -> Object {
        let mut labels = json!({});
        if let Some(label) = label {
            labels["culvert.dev/mesh"] = label.into();
        }
        let metadata = json!({"name": "cart", "namespace": "shop", "uid": uid, "labels": labels});
        object(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}}))
    }

    #[test]
    fn labels_decide_and_a_namesake_does_not() {
        use Judgement::{NotWanted, Wanted};
        let live = |pod, label| judge_live(&name(), pod, Some(&namespace(label)));
        assert_eq!(live(Some(pod("u-1", None)), Some("enabled")), Wanted);
        assert_eq!(live(Some(pod("u-1", None)), None), NotWanted);
        assert_eq!(live(Some(pod("u-1", Some("enabled"))), None), Wanted);
        assert_eq!(live(Some(pod("u-1", Some("disabled"))), Some("enabled")), NotWanted);
        assert_eq!(live(Some(pod("u-0", Some("disabled"))), Some("enabled")), Wanted, "the one before it");
        assert_eq!(live(None, Some("enabled")), Wanted);
    }

    #[test]
    fn what_was_kept_decides_and_else_the_setting() {
        use Judgement::{NotWanted, Wanted};
        let kept = |enrols: &[(&str, bool)]| KeptNamespaces {
            enrols: enrols.iter().map(|(name, enrols)| ((*name).to_owned(), *enrols)).collect(),
            ..KeptNamespaces::default()
        };
        for (enrols, unknown, expected) in [
            (&[("shop", true)][..], UnknownNamespaces::Start, Wanted),
            (&[("shop", false)], UnknownNamespaces::Wait, NotWanted),
            (&[("other", false)], UnknownNamespaces::Wait, Wanted),
            (&[("other", true)], UnknownNamespaces::Start, NotWanted),
        ] {
            assert_eq!(judge_kept(&name(), Some(&kept(enrols)), unknown), expected, "{enrols:?} {unknown:?}");
        }
        assert_eq!(judge_kept(&name(), None, UnknownNamespaces::Wait), Wanted);
        for (pod, namespace, expected) in [(true, false, Wanted), (false, true, NotWanted)] {
            let mut kept = kept(&[("shop", namespace)]);
            kept.pods.insert("u-1".into(), pod);
            assert_eq!(
                judge_kept(&name(), Some(&kept), UnknownNamespaces::Wait),
                expected,
                "the pod's own label"
            );
            let other = PodName { uid: Some("u-2".into()), ..name() };
            let of_namespace = judge_kept(&other, Some(&kept), UnknownNamespaces::Wait);
            assert_ne!(of_namespace, expected, "another pod");
        }
    }
}
