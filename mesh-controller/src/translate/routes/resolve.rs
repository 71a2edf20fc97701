//! Backends: what a reference leads to, and what `ResolvedRefs` says where it leads nowhere.
//!
//! A backend that cannot be resolved stays in its rule with its weight, and that share of requests answers 500
//! (`HTTPBackendRef`); that share of connections is reset. A reference into another namespace needs a ReferenceGrant only where it is followed for a Gateway;
//! for a Service parent the client could have called that Service itself (GEP-1294). So one route resolves differently
//! for its parents.

use std::fmt;
use std::sync::Arc;

use culvert_objects::types::{Protocol, SessionAffinity};
use culvert_routing::model::{Backend, Carries, Filter, Mirror, RouteKey, SessionPersistence, Target};
use culvert_routing::session::CookiePath;

use super::normalize::reader::Fault;
use super::normalize::{Draft, DraftFilter, DraftRef};
use super::policies::Policies;
use super::services::{Nature, PortFacts, Services};

/// On whose behalf references are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// A client in the mesh: any Service of any namespace.
    Mesh,
    /// A Gateway: other namespaces must grant it.
    Gateway,
}

/// The reason of `ResolvedRefs=False`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnresolvedReason {
    InvalidKind,
    RefNotPermitted,
    BackendNotFound,
    UnsupportedProtocol,
}

impl UnresolvedReason {
    pub fn as_str(self) -> &'static str {
        match self {
            UnresolvedReason::InvalidKind => "InvalidKind",
            UnresolvedReason::RefNotPermitted => "RefNotPermitted",
            UnresolvedReason::BackendNotFound => "BackendNotFound",
            UnresolvedReason::UnsupportedProtocol => "UnsupportedProtocol",
        }
    }
}

/// Where in a route a reference is written. Shown as a field of `spec`, such as `rules[0].backendRefs[1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    pub rule: usize,
    /// Of `backendRefs`; none for a mirror of the rule.
    pub backend: Option<usize>,
    /// Of the `filters` there, when it is a mirror's.
    pub mirror: Option<usize>,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rules[{}]", self.rule)?;
        if let Some(backend) = self.backend {
            write!(f, ".backendRefs[{backend}]")?;
        }
        match self.mirror {
            Some(filter) => write!(f, ".filters[{filter}].requestMirror.backendRef"),
            None => Ok(()),
        }
    }
}

/// A reference that leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    pub reason: UnresolvedReason,
    pub at: Site,
    pub message: String,
}

/// A rule with its references followed.
#[derive(Clone, Debug)]
pub struct ResolvedRule {
    pub filters: Vec<Filter>,
    pub backends: Vec<Backend>,
    pub session: Option<SessionPersistence>,
    /// Not empty: what it says and what its backends say do not go together, and the rule refuses.
    pub faults: Vec<Fault>,
}

/// Follows references.
pub struct Resolver<'a> {
    pub services: Services<'a>,
    pub policies: Arc<Policies>,
}

impl Resolver<'_> {
    /// Every rule, and every reference that leads nowhere.
    pub fn rules(&mut self, draft: &Draft, side: Side) -> (Vec<ResolvedRule>, Vec<Unresolved>) {
        let (mut problems, route) = (Vec::new(), &draft.key);
        let mut rules = Vec::with_capacity(draft.rules.len());
        for (rule, of) in draft.rules.iter().enumerate() {
            let mut backends = Vec::with_capacity(of.backends.len());
            let of_rule = Site { rule, backend: None, mirror: None };
            let filters = self.filters(route, &of.filters, side, of_rule, &mut problems);
            for (index, backend) in of.backends.iter().enumerate() {
                let at = Site { backend: Some(index), ..of_rule };
                let target = self.target(route, &backend.to, side, at, &mut problems);
                let filters = self.filters(route, &backend.filters, side, at, &mut problems);
                backends.push(Backend { weight: backend.weight, filters, target });
            }
            let (session, faults) = self.session(draft, rule, &backends);
            rules.push(ResolvedRule { filters, backends, session, faults });
        }
        (rules, problems)
    }

    /// What holds of the sessions of a rule: what it says itself, else what a policy says of one of its backends, the first that
    /// has one, for all of them (GEP-1619, Traffic Splitting). Connections have none.
    fn session(
        &mut self,
        draft: &Draft,
        index: usize,
        backends: &[Backend],
    ) -> (Option<SessionPersistence>, Vec<Fault>) {
        if draft.key.kind.carries() != Carries::Requests {
            return (None, Vec::new());
        }
        let rule = &draft.rules[index];
        let label = rule.name.as_deref().map_or_else(|| index.to_string(), str::to_owned);
        let services = || {
            backends.iter().filter_map(|backend| match &backend.target {
                Target::Service { namespace, name, .. } => Some((namespace, name)),
                Target::Invalid(_) => None,
            })
        };
        let Some(session) = &rule.session else {
            let mut policies =
                services().filter_map(|(namespace, name)| self.policies.sessions.of(namespace, name));
            let session = policies.next().map(|of| of.of_rule(&draft.key, &label, CookiePath::Unset));
            return (session, Vec::new());
        };
        let mut faults = Vec::new();
        for (namespace, name) in services() {
            let affinity = self.services.find(namespace, name).map(|service| service.affinity);
            if affinity == Some(SessionAffinity::ClientIp) {
                let message = format!(
                    "Service {namespace}/{name} has sessionAffinity ClientIP, which does not go together with it: remove one \
                     of the two"
                );
                let at = format!("spec.rules[{index}].sessionPersistence");
                faults.push(Fault::unsupported(at, message));
            }
        }
        (Some(session.of_rule(&draft.key, &label, CookiePath::Matched)), faults)
    }

    /// A mirror that leads nowhere stays where it is, and copies nothing (`HTTPRequestMirrorFilter`).
    fn filters(
        &mut self,
        route: &RouteKey,
        drafts: &[DraftFilter],
        side: Side,
        at: Site,
        problems: &mut Vec<Unresolved>,
    ) -> Vec<Filter> {
        let mut filters = Vec::with_capacity(drafts.len());
        for draft in drafts {
            filters.push(match draft {
                DraftFilter::Ready(filter) => filter.clone(),
                DraftFilter::Mirror(mirror) => {
                    let at = Site { mirror: Some(mirror.index), ..at };
                    let target = self.target(route, &mirror.to, side, at, problems);
                    Filter::Mirror(Mirror { target, share: mirror.share })
                }
            });
        }
        filters
    }

    fn target(
        &mut self,
        route: &RouteKey,
        to: &DraftRef,
        side: Side,
        at: Site,
        problems: &mut Vec<Unresolved>,
    ) -> Target {
        self.follow(route, to, side).unwrap_or_else(|(reason, message)| {
            problems.push(Unresolved { reason, at, message: message.clone() });
            Target::Invalid(message.into())
        })
    }

    fn follow(
        &mut self,
        route: &RouteKey,
        to: &DraftRef,
        side: Side,
    ) -> Result<Target, (UnresolvedReason, String)> {
        use UnresolvedReason::{BackendNotFound, InvalidKind, RefNotPermitted};
        if !to.group.is_empty() || to.kind != "Service" {
            let (kind, group) = (&to.kind, &to.group);
            return Err((
                InvalidKind,
                format!("{kind} of group {group:?}, expected a Service of the core group"),
            ));
        }
        let namespace = to.namespace.as_deref().unwrap_or(&route.namespace);
        let (name, written) = (&to.name, format!("Service {namespace}/{}", to.name));
        let elsewhere = *namespace != *route.namespace;
        if side == Side::Gateway && elsewhere && !self.policies.grants.allow(route, namespace, name) {
            return Err((RefNotPermitted, format!("no ReferenceGrant in {namespace} permits {written}")));
        }
        let Some(service) = self.services.find(namespace, name) else {
            return Err((BackendNotFound, format!("there is no {written}")));
        };
        if service.nature == Nature::ExternalName {
            // It would let whoever writes a Service point the mesh at any address (CVE-2021-25740).
            return Err((
                InvalidKind,
                format!("{written} is an ExternalName, expected a Service with endpoints"),
            ));
        }
        let Some(port) = to.port else {
            return Err((
                BackendNotFound,
                format!("no port is given for {written}, expected one of its ports"),
            ));
        };
        let of_number = || service.ports.iter().filter(|at| at.number == port);
        match of_number().find(|at| at.protocol == Protocol::Tcp).or_else(|| of_number().next()) {
            None => Err((BackendNotFound, format!("{written} has no port {port}"))),
            Some(found) => {
                let carries = route.kind.carries();
                let tls = || self.policies.tls.of_port(namespace, name, &found.name);
                // Whoever speaks TLS through a TLSRoute does what such a policy asks for.
                match unfit(found, carries).or_else(|| tls().filter(|_| carries != Carries::Tls)) {
                    Some(what) => Err((
                        UnresolvedReason::UnsupportedProtocol,
                        format!("port {port} of {written} is {what}, expected {}", expected(carries)),
                    )),
                    None => {
                        Ok(Target::Service { namespace: namespace.into(), name: name.as_str().into(), port })
                    }
                }
            }
        }
    }
}

/// Why a port cannot be a backend: its transport, or an `appProtocol` that contradicts what the route carries; for requests also
/// one that asks for TLS, which this version does not do towards backends (GEP-1911). An unknown one declares nothing.
fn unfit(port: &PortFacts, carries: Carries) -> Option<String> {
    match port.protocol {
        Protocol::Udp => Some("UDP".to_owned()),
        Protocol::Sctp => Some("SCTP".to_owned()),
        Protocol::Tcp => port.cannot_take(carries).map(|declared| format!("declared as {declared}")),
    }
}

fn expected(carries: Carries) -> &'static str {
    match carries {
        Carries::Requests => "a port of plain HTTP",
        Carries::Tls => "a port of TLS",
        Carries::Bytes => "a TCP port that no policy asks TLS for",
    }
}
