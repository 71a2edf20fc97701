//! NetworkPolicies that let an enrolled pod's application through and not its tunnels.

use std::collections::BTreeMap;

use culvert_api::names::HBONE_PORT;
use culvert_objects::enrolment::wanted;
use culvert_objects::{Kind, Object};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Selector, SelectorExt as _};

use super::facts::ClusterFacts;
use super::finding;
use super::report::ClusterFinding;
use crate::code::Code;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Direction::Ingress => "Ingress",
            Direction::Egress => "Egress",
        }
    }

    pub fn field(self) -> &'static str {
        match self {
            Direction::Ingress => "spec.ingress",
            Direction::Egress => "spec.egress",
        }
    }

    /// What comes of a port that is left out.
    pub fn effect(self) -> &'static str {
        match self {
            Direction::Ingress => {
                "calls from other pods of the mesh arrive on that port and do not get through"
            }
            Direction::Egress => "calls to other pods of the mesh leave for that port and do not get through",
        }
    }
}

/// What a policy's rules say of ports; None of a rule: every port.
pub type Ports<'a> = Vec<Option<&'a [NetworkPolicyPort]>>;

pub fn find(facts: &ClusterFacts) -> Vec<ClusterFinding> {
    // By policy and direction: how many pods, and one of them.
    let mut closed: BTreeMap<(String, Direction), (usize, String)> = BTreeMap::new();
    let pods = facts
        .of_kind(Kind::Pod)
        .filter(|pod| wanted(pod, facts.objects.namespace(pod.namespace()).map(AsRef::as_ref)).is_enrolled());
    for pod in pods {
        let policies: Vec<&NetworkPolicy> =
            facts.network_policies.iter().filter(|policy| selects(policy, pod)).collect();
        for direction in [Direction::Ingress, Direction::Egress] {
            // Policies add up: one that lets the tunnels through is enough. One without rules forbids all, and means it.
            let all = policies.iter().filter_map(|policy| Some((policy, ports(policy, direction)?)));
            let all: Vec<(&&NetworkPolicy, Ports<'_>)> = all.filter(|(_, ports)| !ports.is_empty()).collect();
            let open = all.iter().flat_map(|(_, ports)| ports).any(|rule| lets_tunnels(*rule));
            for (policy, _) in all.iter().filter(|_| !open) {
                let name = policy.metadata.name.clone().unwrap_or_default();
                let key = (format!("NetworkPolicy {}/{name}", pod.namespace()), direction);
                let entry = closed.entry(key).or_insert_with(|| (0, pod.name().to_owned()));
                entry.0 += 1;
            }
        }
    }
    closed.into_iter().map(|((policy, direction), (pods, one))| of(policy, direction, pods, &one)).collect()
}

fn of(policy: String, direction: Direction, pods: usize, one: &str) -> ClusterFinding {
    let which = if pods == 1 { format!("pod {one}") } else { format!("{pods} pods ({one} among them)") };
    let what = direction.effect();
    finding(
        Code::ClosedPort,
        policy,
        direction.field(),
        format!("{which} in the mesh: it allows ports and not {HBONE_PORT}/TCP, and {what}"),
        format!("add {{port: {HBONE_PORT}, protocol: TCP}} to the `ports` of a rule for the same peers"),
    )
}

fn selects(policy: &NetworkPolicy, pod: &Object) -> bool {
    if policy.metadata.namespace.as_deref().unwrap_or("default") != pod.namespace() {
        return false;
    }
    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.clone()).unwrap_or_default();
    Selector::try_from(selector).is_ok_and(|selector| selector.matches(&pod.metadata.labels))
}

/// None when the policy says nothing of that direction. By default it does of Ingress, and of Egress if it has such rules.
pub fn ports(policy: &NetworkPolicy, direction: Direction) -> Option<Ports<'_>> {
    let spec = policy.spec.as_ref()?;
    let applies = match (&spec.policy_types, direction) {
        (Some(types), direction) => types.iter().any(|of| of == direction.as_str()),
        (None, Direction::Ingress) => true,
        (None, Direction::Egress) => spec.egress.is_some(),
    };
    applies.then(|| match direction {
        Direction::Ingress => spec.ingress.iter().flatten().map(|rule| some(rule.ports.as_deref())).collect(),
        Direction::Egress => spec.egress.iter().flatten().map(|rule| some(rule.ports.as_deref())).collect(),
    })
}

/// An empty list is no list: every port.
fn some(ports: Option<&[NetworkPolicyPort]>) -> Option<&[NetworkPolicyPort]> {
    ports.filter(|ports| !ports.is_empty())
}

pub fn lets_tunnels(rule: Option<&[NetworkPolicyPort]>) -> bool {
    let Some(ports) = rule else { return true };
    ports.iter().any(|port| {
        let is_tcp = port.protocol.as_deref().unwrap_or("TCP") == "TCP";
        let covers = match (&port.port, port.end_port) {
            (None, _) => true,
            (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&i32::from(HBONE_PORT)),
            (Some(IntOrString::Int(only)), None) => *only == i32::from(HBONE_PORT),
            // Names are those of the application's ports.
            (Some(IntOrString::String(_)), _) => false,
        };
        is_tcp && covers
    })
}
