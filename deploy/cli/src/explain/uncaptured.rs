//! Connections that no node proxy takes at the client's side: of pods that are not enrolled, of clients outside, to what is
//! excluded.

use culvert_node_proxy::balance::Family;
use culvert_node_proxy::outbound::decide::Known;
use culvert_node_proxy::reason::Reason;
use culvert_node_proxy::state::model::{Enrolment, InboundMode, Workload, WorkloadSettings};
use std::net::SocketAddr;
use std::sync::Arc;

use super::data::{End, Endpoint, Explanation, Outcome, Transport};
use super::endpoints::{self, Chooser};
use super::explanation::{Call, parent, unrouted, whole};
use super::facts::FactsError;
use super::groups::names_of;
use super::listeners;

impl Call<'_> {
    /// Nobody captures the connection: the node's rules take it to an endpoint, whose own proxy may have a say.
    pub(super) fn of_nobody(
        &self,
        explanation: &mut Explanation,
        source: Option<&Arc<Workload>>,
    ) -> Result<(), FactsError> {
        if listeners::from_outside(explanation, self.facts, self.question, self.to)? {
            return Ok(());
        }
        let known = Known::of(self.snapshot, self.to.ip());
        explanation.parent = parent(&known, self.to);
        let pass = |message: &str| vec![whole(End::Passed { message: message.to_owned() })];
        match known {
            Known::Service(service) => {
                let Some(source) = source else {
                    explanation.outcomes = pass("Service addresses lead nowhere outside the cluster");
                    return Ok(());
                };
                let chooser = Chooser { snapshot: self.snapshot, source, family: Family::of(self.to.ip()) };
                let endpoints = endpoints::of_service(chooser, &service, self.to.port());
                self.uncaptured(explanation, &format!("{}:{}", service.key, self.to.port()), endpoints)?;
            }
            Known::Workload(workload) => {
                let Some(source) = source else {
                    explanation.outcomes = pass("pod addresses lead nowhere outside the cluster");
                    return Ok(());
                };
                let chooser = Chooser { snapshot: self.snapshot, source, family: Family::of(self.to.ip()) };
                let endpoint = endpoints::of_pod(chooser, &workload, self.to);
                let name = endpoint.workload.clone();
                self.uncaptured(explanation, &name, vec![endpoint])?;
            }
            Known::ClusterRange => explanation.outcomes = pass("nobody has this address"),
            Known::Outside => explanation.outcomes = pass("the address is outside the cluster"),
        }
        Ok(())
    }

    /// Plaintext from a client that is not captured: endpoints that insist on mutual TLS refuse it.
    fn uncaptured(
        &self,
        explanation: &mut Explanation,
        to: &str,
        mut endpoints: Vec<Endpoint>,
    ) -> Result<(), FactsError> {
        let mut refusing = 0;
        for endpoint in &mut endpoints {
            let is_strict = self.is_strict(endpoint)?;
            refusing += usize::from(is_strict && endpoint.used);
            let why = if is_strict { "PlaintextRefused" } else { "SourceOutsideMesh" };
            endpoint.transport = Transport::Plaintext { why: why.to_owned() };
        }
        let used = endpoints.iter().filter(|endpoint| endpoint.used).count();
        let share = |part: usize| part as f64 / used.max(1) as f64;
        if used == 0 {
            let message = format!("{to} has no endpoint that may be used");
            explanation.outcomes = vec![whole(End::Passed { message })];
        }
        if used > refusing {
            let message = format!("plaintext to an endpoint of {to}, past the mesh at the client's side");
            explanation
                .outcomes
                .push(Outcome { share: share(used - refusing), end: End::Passed { message } });
        }
        if refusing > 0 {
            let message = "the endpoint's inbound mode is strict".to_owned();
            let end = End::Refused { reason: Reason::PlaintextRefused.to_string(), message };
            explanation.outcomes.push(Outcome { share: share(refusing), end });
        }
        explanation.backends = vec![unrouted(to, endpoints)];
        Ok(())
    }

    fn is_strict(&self, endpoint: &Endpoint) -> Result<bool, FactsError> {
        let snapshot = self.facts.view_of(&endpoint.node)?;
        let workload = snapshot.workload_by_address(endpoint.address.ip());
        let own = workload.and_then(|workload| workload.own.as_ref());
        let Some(own) = own.filter(|own| own.enrolment == Enrolment::Enrolled) else { return Ok(false) };
        let port = endpoint.address.port();
        let of_port = own.settings.port_modes.iter().find(|(known, _)| *known == port).map(|(_, mode)| *mode);
        Ok(of_port.unwrap_or(own.settings.inbound_mode) == InboundMode::Strict)
    }

    /// The routes that would apply to the address if the client were captured.
    pub(super) fn routes_of_destination(&self, namespace: &str) -> Vec<String> {
        let Some(service) = self.snapshot.service_by_vip(self.to.ip()) else { return Vec::new() };
        let routes = self.snapshot.routes(&service.key, self.to.port());
        routes.map(|routes| names_of(routes, namespace)).unwrap_or_default()
    }
}

/// Whether the pod's own settings leave the connection alone.
pub fn excluded(settings: &WorkloadSettings, to: SocketAddr) -> Option<String> {
    let port = to.port();
    if settings.exclude_outbound_ports.iter().any(|range| (range.first..=range.last).contains(&port)) {
        return Some(format!("exclude-outbound-ports names port {port}: the connection is not captured"));
    }
    let range = settings.exclude_outbound_cidrs.iter().find(|range| range.contains(&to.ip()))?;
    Some(format!("exclude-outbound-cidrs names {range}: the connection is not captured"))
}
