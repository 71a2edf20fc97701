//! The parts of the mesh that run in a cluster, from their pods.

use culvert_api::names::SYSTEM_NAMESPACE;
use culvert_objects::types::{ConditionStatus, PodSpec, PodStatus};
use culvert_objects::{Kind, Object, Objects};
use serde::Serialize;
use serde_json::Value;

const NAME_LABEL: &str = "app.kubernetes.io/name";
const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
const VERSION_LABEL: &str = "app.kubernetes.io/version";

/// What a part does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Ca,
    Controller,
    NodeProxy,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Ca, Role::Controller, Role::NodeProxy];

    /// The value of the label `app.kubernetes.io/component`.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Ca => "ca",
            Role::Controller => "controller",
            Role::NodeProxy => "node-proxy",
        }
    }
}

/// One pod of the mesh's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Component {
    pub role: Role,
    pub pod: String,
    pub node: String,
    /// Tag of the image, else the label `app.kubernetes.io/version`; empty where neither is there.
    pub version: String,
    pub ready: bool,
    /// Why it is not ready.
    pub message: String,
    /// Being deleted.
    pub ending: bool,
}

/// Those that are there, by role and name.
pub fn components(objects: &Objects) -> Vec<Component> {
    let pods = objects.in_namespace(Kind::Pod, SYSTEM_NAMESPACE);
    let mut all: Vec<Component> = pods.filter_map(|pod| component(pod)).collect();
    all.sort_by(|a, b| (a.role, &a.pod).cmp(&(b.role, &b.pod)));
    all
}

fn component(pod: &Object) -> Option<Component> {
    let role = pod.label(COMPONENT_LABEL).filter(|_| pod.label(NAME_LABEL) == Some("culvert"))?;
    let role = Role::ALL.into_iter().find(|known| known.as_str() == role)?;
    let spec: PodSpec = pod.spec().unwrap_or_default();
    let status: PodStatus = pod.status().unwrap_or_default();
    if status.is_finished() {
        return None;
    }
    let is_ready =
        |of: &culvert_objects::types::Condition| of.kind == "Ready" && of.status == ConditionStatus::True;
    let ready = status.conditions.iter().any(is_ready);
    Some(Component {
        role,
        pod: pod.name().to_owned(),
        node: spec.node_name.unwrap_or_default(),
        version: version(pod),
        ready,
        message: if ready { String::new() } else { why(pod, &status.phase) },
        ending: pod.metadata.deletion_timestamp.is_some(),
    })
}

fn version(pod: &Object) -> String {
    let image = pod.body.get("spec").and_then(|spec| spec.get("containers")?.get(0)?.get("image")?.as_str());
    let tag = image.and_then(|image| {
        let name = image.split('@').next()?;
        name.rsplit('/').next()?.split_once(':').map(|(_, tag)| tag)
    });
    tag.or(pod.label(VERSION_LABEL)).unwrap_or_default().to_owned()
}

/// What its containers wait for, else its conditions, else its phase.
fn why(pod: &Object, phase: &str) -> String {
    let status = pod.body.get("status");
    let all = |field: &str| status.and_then(|status| status.get(field)?.as_array()).into_iter().flatten();
    let waiting = all("containerStatuses").chain(all("initContainerStatuses")).find_map(|container| {
        let waiting = container.get("state")?.get("waiting")?;
        said(waiting, "reason")
    });
    let condition = |of: &&Value| {
        matches!(of.get("type").and_then(Value::as_str), Some("Ready" | "PodScheduled"))
            && of.get("status").and_then(Value::as_str) == Some("False")
    };
    waiting
        .or_else(|| all("conditions").filter(condition).find_map(|of| said(of, "reason")))
        .unwrap_or_else(|| format!("its phase is {}", if phase.is_empty() { "unknown" } else { phase }))
}

/// A reason with its message.
fn said(value: &Value, field: &str) -> Option<String> {
    let reason = value.get(field)?.as_str()?;
    Some(match value.get("message").and_then(Value::as_str) {
        Some(message) => format!("{reason}: {message}"),
        None => reason.to_owned(),
    })
}
