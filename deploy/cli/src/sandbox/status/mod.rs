//! The sandbox at a glance: nodes, components, pods and their enrolment, how much of the traffic is encrypted, and why
//! the rest is not.

mod connections;
mod metrics;
mod pods;
mod render;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use culvert_objects::Kind;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ejected::{self, Ejected};
use crate::sandbox::components::{ComponentState, health};
use crate::sandbox::control::Served;

pub use connections::{Connections, Plaintext, PlaintextPeers};
pub use pods::PodReport;
pub(crate) use pods::pods;

/// For one answer of a node proxy.
const ANSWER: Duration = Duration::from_secs(3);

/// What is shown to people; programs get everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Overview,
    /// Only who talks plaintext, and why.
    Plaintext,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub sandbox: String,
    pub nodes: Vec<NodeReport>,
    pub components: Vec<ComponentReport>,
    pub pods: Vec<PodReport>,
    /// Endpoints that are passed over because they fail, by node.
    pub ejected: Vec<Ejected>,
    pub connections: Connections,
    /// Percent of the connections under mutual TLS; none where nothing was carried.
    pub share_encrypted: Option<f64>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    pub name: String,
    pub addresses: Vec<String>,
    pub zone: String,
    pub pods: usize,
}

/// One process of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComponentReport {
    #[serde(flatten)]
    pub state: ComponentState,
    pub ready: bool,
    /// Why it is not ready.
    pub message: String,
}

/// Asks everybody and reports, for people and for programs.
///
/// # Errors
/// None: what cannot be asked is reported as such.
pub async fn status(served: &Served, view: View) -> Result<(String, Value), Infallible> {
    let status = collect(served).await;
    let now = chrono::Utc::now();
    let text = match view {
        View::Overview => render::overview(&status, now),
        View::Plaintext => render::plaintext(&status),
    };
    // Every key is a string, so there always is a JSON form.
    Ok((text, serde_json::to_value(&status).unwrap_or_default()))
}

async fn collect(served: &Served) -> Status {
    let states = served.components.states();
    let asked = states.into_iter().map(|state| async move {
        let component = component(served, state).await;
        let samples = samples(served, &component.state).await;
        let ejected = ejected(served, &component.state).await;
        ((component, samples), ejected)
    });
    let (answers, ejected): (Vec<_>, Vec<_>) = join_all(asked).await.into_iter().unzip();
    let (components, samples): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
    let nodes: Vec<_> = samples.into_iter().flatten().collect();
    let connections = Connections::sum(&nodes);
    let objects = served.store.objects();
    let statuses = served.store.statuses();
    let pods = pods(&objects, &statuses.borrow());
    let nodes = served.cluster.nodes.iter().map(|node| {
        let object = objects.find(Kind::Node, "", &node.name);
        let zone = object.and_then(|object| object.label("topology.kubernetes.io/zone"));
        NodeReport {
            name: node.name.clone(),
            addresses: node.address.both().iter().map(ToString::to_string).collect(),
            zone: zone.unwrap_or_default().to_owned(),
            pods: pods.iter().filter(|pod| pod.node == node.name).count(),
        }
    });
    Status {
        sandbox: served.cluster.name.clone(),
        nodes: nodes.collect(),
        components,
        share_encrypted: connections.share_encrypted(),
        pods,
        ejected: ejected.into_iter().flatten().collect(),
        connections,
    }
}

async fn component(served: &Served, state: ComponentState) -> ComponentReport {
    let answer = match (state.pid, served.network.namespace(&state.namespace)) {
        (None, _) if state.held_down => Err("stopped on request".to_owned()),
        (None, _) => Err("not running".to_owned()),
        (_, None) => Err(format!("there is no namespace {}", state.namespace)),
        (_, Some(netns)) => health::ready(netns, state.admin).await,
    };
    ComponentReport { ready: answer.is_ok(), message: answer.err().unwrap_or_default(), state }
}

/// The metrics of a node proxy, under its node's name.
async fn samples(served: &Served, state: &ComponentState) -> Option<(String, Vec<metrics::Sample>)> {
    let (node, body) = asked(served, state, "/metrics").await?;
    Some((node, metrics::parse(&String::from_utf8_lossy(&body))))
}

/// The endpoints that the pods of a node pass over.
async fn ejected(served: &Served, state: &ComponentState) -> Vec<Ejected> {
    let answer = asked(served, state, "/config?only=ejected").await;
    let read = answer.and_then(|(node, body)| Some(ejected::of(&node, &serde_json::from_slice(&body).ok()?)));
    read.unwrap_or_default()
}

/// A page of a node proxy's admin port, under its node's name.
async fn asked(served: &Served, state: &ComponentState, path: &str) -> Option<(String, Bytes)> {
    let node = state.name.strip_prefix("node-proxy/")?;
    state.pid?;
    let netns = served.network.namespace(&state.namespace)?;
    let (code, body) = health::get(netns, state.admin, path, ANSWER).await.ok()?;
    code.is_success().then(|| (node.to_owned(), body))
}
