//! Names of a workload for metrics and logs.

use culvert_api::mesh as pb;
use culvert_objects::Object;

const APP: &str = "app";
const APP_NAME: &str = "app.kubernetes.io/name";
const VERSION: &str = "version";
const APP_VERSION: &str = "app.kubernetes.io/version";
const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
const TEMPLATE_HASH: &str = "pod-template-hash";

/// The labels of a pod's workload.
pub fn of_pod(pod: &Object) -> pb::WorkloadLabels {
    let (workload, workload_type) = owner(pod);
    let first = |keys: &[&str]| keys.iter().find_map(|key| pod.label(key)).map(str::to_owned);
    pb::WorkloadLabels {
        app: first(&[APP, APP_NAME]).unwrap_or_default(),
        version: first(&[VERSION, APP_VERSION]).unwrap_or_default(),
        canonical_service: first(&[CANONICAL_NAME, APP_NAME, APP]).unwrap_or_else(|| workload.clone()),
        canonical_revision: first(&[CANONICAL_REVISION, APP_VERSION, VERSION])
            .unwrap_or_else(|| "latest".to_owned()),
        workload,
        workload_type,
    }
}

/// The Deployment that made a pod. There is a ReplicaSet between the two: its name is the Deployment's with the template hash,
/// which is also a label of the pod.
pub fn deployment(pod: &Object) -> Option<&str> {
    let owner = pod.controller().filter(|owner| owner.kind == "ReplicaSet")?;
    owner.name.strip_suffix(pod.label(TEMPLATE_HASH)?)?.strip_suffix('-')
}

/// Name and kind (lower case) of what made the pod; a ReplicaSet of a Deployment stands for the Deployment.
fn owner(pod: &Object) -> (String, String) {
    let Some(owner) = pod.controller() else { return (pod.name().to_owned(), "pod".to_owned()) };
    match deployment(pod) {
        Some(deployment) => (deployment.to_owned(), "deployment".to_owned()),
        None => (owner.name.clone(), owner.kind.to_ascii_lowercase()),
    }
}
