//! From facts and a question to the explanation: who asks, what the address is, who handles the connection, and then the
//! routes. Pure.

use culvert_node_proxy::balance::Family;
use culvert_node_proxy::outbound::decide::{self, Action, Known};
use culvert_node_proxy::outbound::protocol::{self, Declared, First, Treatment};
use culvert_node_proxy::outbound::routed_elsewhere;
use culvert_node_proxy::reason::Reason;
use culvert_node_proxy::state::Snapshot;
use culvert_node_proxy::state::model::{Enrolment, OwnWorkload, Service, Workload};
use culvert_objects::Object;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::data::{
    Backend, Client, Destination, End, Endpoint, Explanation, Handling, Header, Layer, NotApplied, Outcome,
    Parent, Request, WhyNot,
};
use super::endpoints::{self, Chooser};
use super::facts::{Facts, FactsError, Named, Source, says_enrolled};
use super::groups::{self, names_of};
use super::question::{Question, Speaks};
use super::requests::{self, Asked, AskedParent};
use super::uncaptured::excluded;
use super::{connections, listeners, unattached};

/// Stands for an address of the world, whose number does not matter (TEST-NET-1).
const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Explains what becomes of the request.
///
/// # Errors
/// When the client does not exist, or is not on a node.
pub fn explain(facts: &Facts, question: &Question) -> Result<Explanation, FactsError> {
    let pod = facts.client(&question.from)?;
    let mut explanation = blank(facts, question);
    let named = match question.address() {
        Some(address) => Named::Addresses { name: String::new(), addresses: vec![address] },
        None => facts.look_up(&question.host, pod.as_deref().map(Object::namespace)),
    };
    let address = match named {
        Named::Nothing => {
            explanation.parent = Parent::NoSuchName;
            let message = format!("the name {} does not exist", question.host);
            explanation.outcomes = vec![whole(End::Passed { message })];
            describe_client(&mut explanation, facts, pod.as_deref())?;
            return Ok(explanation);
        }
        Named::Outside { name } => {
            explanation.destination.name = Some(name);
            None
        }
        Named::Addresses { name, addresses } => {
            explanation.destination.name = Some(name).filter(|name| !name.is_empty());
            let address = addresses.first().copied();
            explanation.destination.addresses = addresses;
            address
        }
    };
    let to = SocketAddr::new(address.unwrap_or(SOMEWHERE), question.port);
    describe_client(&mut explanation, facts, pod.as_deref())?;
    match pod {
        Some(pod) => {
            let (snapshot, source) = facts.own_view(&pod)?;
            let call = Call { facts, question, snapshot: &snapshot, to };
            call.of_pod(&mut explanation, &source)?;
        }
        None => {
            let snapshot = facts.view_of("")?;
            let call = Call { facts, question, snapshot: &snapshot, to };
            call.of_nobody(&mut explanation, None)?;
        }
    }
    if address.is_none() {
        explanation.parent = Parent::Outside { address: None };
    }
    Ok(explanation)
}

fn blank(facts: &Facts, question: &Question) -> Explanation {
    let (source, assumed) = match &facts.source {
        Source::Sandbox(name) => (format!("sandbox {name}"), Vec::new()),
        Source::Cluster { url, assumed } => (format!("cluster {url}"), assumed.clone()),
        Source::Files => {
            let assumed = ["every pod is ready", "every pod that is to be in the mesh is enrolled"];
            ("files".to_owned(), assumed.map(str::to_owned).to_vec())
        }
    };
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| Header {
        name: name.to_string(),
        value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    Explanation {
        source,
        assumed,
        request: Request {
            method: match question.speaks {
                Speaks::Http => question.method.to_string(),
                Speaks::Tls { .. } | Speaks::Bytes => String::new(),
            },
            url: question.url.clone(),
            version: match question.first() {
                First::Http2 => "HTTP/2.0",
                First::Http1 => "HTTP/1.1",
                First::Tls => "TLS",
                First::Other | First::Server | First::Silence => "TCP",
            },
            server_name: question.server_name().map(str::to_owned),
            headers: question.headers.iter().map(header).collect(),
            grpc: culvert_routing::request::is_grpc(question.version, &question.headers),
        },
        client: Client { pod: None, node: None, identity: None, enrolled: false, why_not: None },
        destination: Destination {
            host: question.host.clone(),
            name: None,
            addresses: Vec::new(),
            port: question.port,
        },
        parent: Parent::Outside { address: None },
        handling: None,
        group: None,
        not_applied: Vec::new(),
        candidates: Vec::new(),
        rule: None,
        session: None,
        backends: Vec::new(),
        mirrors: Vec::new(),
        outcomes: Vec::new(),
        node_proxy: None,
    }
}

fn describe_client(
    explanation: &mut Explanation,
    facts: &Facts,
    pod: Option<&Object>,
) -> Result<(), FactsError> {
    let client = &mut explanation.client;
    let Some(pod) = pod else {
        client.why_not = Some("the client is outside the cluster".to_owned());
        return Ok(());
    };
    let (_, workload) = facts.own_view(pod)?;
    client.pod = Some(format!("{}/{}", pod.namespace(), pod.name()));
    client.node = Some(workload.node.to_string());
    client.identity = workload.identity.as_ref().map(ToString::to_string);
    let own = workload.own.as_ref().map(|own| own.enrolment);
    client.enrolled = own == Some(Enrolment::Enrolled) && says_enrolled(pod);
    if !client.enrolled {
        client.why_not = Some(facts.why_not_enrolled(pod));
    }
    Ok(())
}

pub(super) fn whole(end: End) -> Outcome {
    Outcome { share: 1.0, end }
}

/// One connection that somebody would open.
pub(super) struct Call<'a> {
    pub(super) facts: &'a Facts,
    pub(super) question: &'a Question,
    /// Of the client's node.
    pub(super) snapshot: &'a Snapshot,
    pub(super) to: SocketAddr,
}

impl Call<'_> {
    fn of_pod(&self, explanation: &mut Explanation, source: &Arc<Workload>) -> Result<(), FactsError> {
        let Some(own) = source.own.as_ref().filter(|_| explanation.client.enrolled) else {
            let why = explanation.client.why_not.clone().unwrap_or_default();
            let message = format!("the client is not enrolled ({why}): its connections are not captured");
            let routes = self.routes_of_destination(&source.namespace);
            explanation.not_applied.push(NotApplied { reason: WhyNot::ClientNotEnrolled, message, routes });
            return self.of_nobody(explanation, Some(source));
        };
        if let Some(message) = excluded(&own.settings, self.to) {
            let routes = self.routes_of_destination(&source.namespace);
            explanation.not_applied.push(NotApplied { reason: WhyNot::ExcludedOutbound, message, routes });
            return self.of_nobody(explanation, Some(source));
        }
        self.captured(explanation, source, own)
    }

    /// The node proxy has the connection.
    fn captured(
        &self,
        explanation: &mut Explanation,
        source: &Arc<Workload>,
        own: &OwnWorkload,
    ) -> Result<(), FactsError> {
        let known = Known::of(self.snapshot, self.to.ip());
        explanation.parent = parent(&known, self.to);
        let facts = decide::Facts {
            destination: self.to,
            own_addresses: &source.addresses,
            interception: &self.snapshot.mesh().interception,
            policy: own.settings.outbound_policy,
        };
        match decide::decide(known, facts) {
            Action::Balance(service) => self.of_service(explanation, source, own, &service)?,
            Action::Forward(workload) => self.to_pod(explanation, source, &workload)?,
            Action::PassThrough => {
                let why = "the address is outside the mesh, and the outbound policy allows it".to_owned();
                explanation.handling = Some(Handling { layer: Layer::Bytes, why: why.clone() });
                let message = "no route applies to addresses outside the mesh".to_owned();
                let reason = WhyNot::DestinationOutsideMesh;
                explanation.not_applied.push(NotApplied { reason, message, routes: Vec::new() });
                explanation.outcomes = vec![whole(End::Passed { message: why })];
            }
            Action::Hold => {
                let message = format!(
                    "{} is in the cluster's ranges but neither a workload's nor a Service's: held for a moment, then reset",
                    self.to.ip()
                );
                refuse(explanation, Reason::UnknownDestination, message);
            }
            Action::Refuse(reason) => refuse(explanation, reason, why_refused(reason, self.to)),
        }
        Ok(())
    }

    fn of_service(
        &self,
        explanation: &mut Explanation,
        source: &Arc<Workload>,
        own: &OwnWorkload,
        service: &Arc<Service>,
    ) -> Result<(), FactsError> {
        let port = self.to.port();
        let namespace = &*source.namespace;
        let routes = self.snapshot.routes(&service.key, port);
        let group = routes.and_then(|routes| routes.for_clients_in(namespace));
        explanation.group = routes.and_then(|routes| groups::group(routes, namespace));
        let at = unattached::At { service, port, namespace };
        unattached::of_service(explanation, self.facts, self.snapshot, at);
        let declared = Declared::of_port(self.snapshot, service, port, namespace, &own.settings);
        let treatment = protocol::treat(declared, self.question.first());
        let layer = match treatment {
            Treatment::Requests(_) => Layer::Requests,
            Treatment::Bytes | Treatment::Wait => Layer::Bytes,
            Treatment::Refuse(_) => Layer::Refused,
        };
        let why = why_treated(declared, treatment).to_owned();
        explanation.handling = Some(Handling { layer, why: why.clone() });
        let chooser = Chooser { snapshot: self.snapshot, source, family: Family::of(self.to.ip()) };
        match treatment {
            Treatment::Requests(_) => {
                let parent = AskedParent::Service { group, service };
                let asked = Asked { chooser, port, parent };
                requests::explain(explanation, self.question, &asked);
            }
            Treatment::Bytes if matches!(declared, Declared::TlsRoute | Declared::TcpRoute) => {
                if let Some(group) = group {
                    connections::explain(explanation, chooser, group, self.question.server_name());
                }
            }
            Treatment::Bytes | Treatment::Wait => {
                let endpoints = endpoints::of_service(chooser, service, port);
                carried(explanation, &format!("{}:{port}", service.key), endpoints);
                listeners::behind_service(explanation, self.facts, self.question, service, port)?;
            }
            Treatment::Refuse(reason) => refuse(explanation, reason, why),
        }
        Ok(())
    }

    fn to_pod(
        &self,
        explanation: &mut Explanation,
        source: &Arc<Workload>,
        workload: &Arc<Workload>,
    ) -> Result<(), FactsError> {
        let port = self.to.port();
        let mut message = "a pod is called at its own address: routes apply to Services".to_owned();
        let mut routes = Vec::new();
        if let Some((service, service_port)) =
            routed_elsewhere(workload, port, self.snapshot, &source.namespace)
        {
            message.push_str(&format!(" (calls to {service}:{service_port} would be routed)"));
            let of_port = self.snapshot.routes(&service, service_port);
            routes = of_port.map(|routes| names_of(routes, &source.namespace)).unwrap_or_default();
        }
        explanation.not_applied.push(NotApplied { reason: WhyNot::PodAddressCalled, message, routes });
        let why = "calls to a pod's address go to that pod as they are".to_owned();
        explanation.handling = Some(Handling { layer: Layer::Bytes, why });
        let chooser = Chooser { snapshot: self.snapshot, source, family: Family::of(self.to.ip()) };
        let endpoint = endpoints::of_pod(chooser, workload, self.to);
        let name = endpoint.workload.clone();
        carried(explanation, &name, vec![endpoint]);
        listeners::behind_pod(explanation, self.facts, self.question, workload, port)
    }
}

pub(super) fn parent(known: &Known, to: SocketAddr) -> Parent {
    match known {
        Known::Service(service) => Parent::Service { service: service.key.to_string(), address: to },
        Known::Workload(workload) => {
            Parent::Pod { pod: format!("{}/{}", workload.namespace, workload.name), address: to }
        }
        Known::ClusterRange => Parent::Unknown { address: to },
        Known::Outside => Parent::Outside { address: Some(to) },
    }
}

/// All bytes to one endpoint.
fn carried(explanation: &mut Explanation, to: &str, endpoints: Vec<Endpoint>) {
    let end = if endpoints.iter().any(|endpoint| endpoint.used) {
        End::Carried { to: to.to_owned() }
    } else {
        let message = format!("{to} has no endpoint that may be used");
        End::Refused { reason: Reason::NoEndpoint.to_string(), message }
    };
    explanation.outcomes = vec![whole(end)];
    explanation.backends = vec![unrouted(to, endpoints)];
}

pub(super) fn unrouted(to: &str, endpoints: Vec<Endpoint>) -> Backend {
    Backend {
        backend: to.to_owned(),
        weight: None,
        share: 1.0,
        filters: Vec::new(),
        request: None,
        retry_budget: None,
        endpoints,
    }
}

fn refuse(explanation: &mut Explanation, reason: Reason, message: String) {
    explanation.handling = Some(Handling { layer: Layer::Refused, why: message.clone() });
    explanation.outcomes = vec![whole(End::Refused { reason: reason.to_string(), message })];
}

fn why_refused(reason: Reason, to: SocketAddr) -> String {
    match reason {
        Reason::NoServicePort => format!("the Service does not have port {}", to.port()),
        Reason::OutboundPolicy => format!("registry-only refuses {to}"),
        Reason::ProxyPort => format!("{to} is a port of the proxy itself"),
        other => format!("{to} is refused: {other}"),
    }
}

fn why_treated(declared: Declared, treatment: Treatment) -> &'static str {
    match (declared, treatment) {
        (Declared::Route, Treatment::Refuse(_)) => {
            "a route for requests applies to the port for this client, and this is no HTTP"
        }
        (Declared::Route, _) => "a route applies to the port for this client",
        (Declared::TlsRoute, Treatment::Refuse(_)) => {
            "a TLSRoute applies to the port for this client, and this is no TLS"
        }
        (Declared::TlsRoute, _) => "a TLSRoute applies to the port for this client",
        (Declared::TcpRoute, _) => "a TCPRoute applies to the port for this client",
        (Declared::Http, Treatment::Requests(_)) => "appProtocol or the port's name says HTTP",
        (Declared::Http, _) => "appProtocol or the port's name says HTTP, and this is none",
        (Declared::Opaque, _) => "appProtocol, the port's name or opaque-ports says that it is not HTTP",
        (Declared::Nothing, Treatment::Requests(_)) => {
            "nothing is declared, and an HTTP/2 preface makes it requests"
        }
        (Declared::Nothing, _) => "nothing is declared and no route applies: it stays bytes",
    }
}
