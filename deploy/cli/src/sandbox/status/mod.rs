//! The sandbox at a glance: nodes, components, pods and their enrolment, how much of the traffic is encrypted, and why
//! the rest is not.

mod connections;
mod metrics;
mod pods;
mod render;

use std::convert::Infallible;
use std::time::Duration;

use culvert_objects::Kind;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sandbox::components::{ComponentState, health};
use crate::sandbox::control::Served;

pub use connections::{Connections, Plaintext, PlaintextPeers};
pub use pods::PodReport;
pub(crate) use pods::pods;

/// For the metrics of one node proxy.
const METRICS: Duration = Duration::from_secs(3);

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
        (component, samples)
    });
    let answers = join_all(asked).await;
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
    let node = state.name.strip_prefix("node-proxy/")?;
    state.pid?;
    let netns = served.network.namespace(&state.namespace)?;
    let (code, body) = health::get(netns, state.admin, "/metrics", METRICS).await.ok()?;
    let text = String::from_utf8_lossy(&body);
    code.is_success().then(|| (node.to_owned(), metrics::parse(&text)))
}
