//! HTTPRoutes, GRPCRoutes, TLSRoutes and TCPRoutes, of every version ever served, to one shape: the only code that knows the kinds apart.
//!
//! What the API server would have filled in is filled in here: no rules is one for every request (HTTPRoute), no matches
//! is everything, no weight is 1, no path is the prefix `/`, no type is `Exact` or `PathPrefix`, no status is 302.
//!
//! A rule with anything that this version does not do, a field it does not know among them, is not left out and not read
//! as if that were not there. It answers 500 and keeps of its matches what could be read: what could not be read could only
//! have narrowed them, so they cover at least every request that the rule was meant for.
//!
//! That costs answers: a rule whose path cannot be read takes whatever no more precise rule takes, also from a catch-all of a
//! younger route. The other ways are worse. Without the match, requests that were to be redirected or refused reach whatever
//! rule comes next; with it before all others, one line would end the traffic of every route at the Service. A place
//! by what could be read is where the author sees it, and the status says why.

mod connection;
mod cors;
pub mod duration;
mod filters;
mod grpc;
mod http;
pub mod reader;
pub mod session;

use std::sync::Arc;

use culvert_objects::types::{BackendRef, ConnectionRouteRule, GrpcRouteRule, HttpRouteRule, ParentRef};
use culvert_objects::{FieldError, Object, read};
use culvert_routing::model::{Carries, Filter, Hostname, Match, Retry, RouteKey, RouteKind, Share, Timeouts};
use serde_json::Value;

use filters::Allowed;
use reader::{At, Fault, Reader, UNKNOWN_FIELD};
use session::DraftSession;

/// Largest weight (schema).
const MOST_WEIGHT: u32 = 1_000_000;

/// A route with its parents and backends not looked up yet.
#[derive(Clone, Debug)]
pub struct Draft {
    pub key: RouteKey,
    /// Seconds since the epoch.
    pub created: i64,
    pub parents: Vec<Parent>,
    /// Empty: any.
    pub hostnames: Vec<Hostname>,
    pub rules: Vec<DraftRule>,
    /// Of the route as a whole: no rule of it can be honoured.
    pub faults: Vec<Fault>,
}

/// One of `spec.parentRefs`.
#[derive(Clone, Debug)]
pub struct Parent {
    /// As written: its status echoes it.
    pub written: Value,
    pub read: Result<ParentRef, FieldError>,
}

/// One of `spec.rules`.
#[derive(Clone, Debug)]
pub struct DraftRule {
    pub name: Option<Arc<str>>,
    pub matches: Vec<Match>,
    pub filters: Vec<DraftFilter>,
    pub backends: Vec<DraftBackend>,
    pub timeouts: Timeouts,
    pub retry: Option<Retry>,
    pub session: Option<DraftSession>,
    /// Not empty: the rule refuses.
    pub faults: Vec<Fault>,
}

/// One of `rules[].backendRefs`, with the defaults filled in.
#[derive(Clone, Debug)]
pub struct DraftBackend {
    pub to: DraftRef,
    pub weight: u32,
    pub filters: Vec<DraftFilter>,
}

/// One of `filters` of a rule or of a backend.
#[derive(Clone, Debug)]
pub enum DraftFilter {
    Ready(Filter),
    Mirror(DraftMirror),
}

/// A filter that copies requests.
#[derive(Clone, Debug)]
pub struct DraftMirror {
    pub to: DraftRef,
    pub share: Share,
    /// Its place among the filters as written.
    pub index: usize,
}

/// A reference to a backend, with the defaults filled in.
#[derive(Clone, Debug)]
pub struct DraftRef {
    pub group: String,
    pub kind: String,
    /// None: the route's.
    pub namespace: Option<String>,
    pub name: String,
    pub port: Option<u16>,
}

impl DraftRef {
    fn new(
        group: Option<&str>,
        kind: Option<&str>,
        namespace: Option<&str>,
        name: &str,
        port: Option<u16>,
    ) -> Self {
        Self {
            group: group.unwrap_or_default().to_owned(),
            kind: kind.unwrap_or("Service").to_owned(),
            namespace: namespace.filter(|namespace| !namespace.is_empty()).map(str::to_owned),
            name: name.to_owned(),
            port,
        }
    }
}

impl DraftRule {
    /// Every backend that the rule names, mirrors among them.
    pub fn references(&self) -> impl Iterator<Item = &DraftRef> {
        let of_backends = self.backends.iter().flat_map(|backend| &backend.filters);
        let mirrors = self.filters.iter().chain(of_backends).filter_map(|filter| match filter {
            DraftFilter::Ready(_) => None,
            DraftFilter::Mirror(mirror) => Some(&mirror.to),
        });
        self.backends.iter().map(|backend| &backend.to).chain(mirrors)
    }
}

/// One shape for a route of any kind.
pub fn normalize(route: &Object, kind: RouteKind) -> Draft {
    let key = RouteKey { kind, namespace: route.namespace().into(), name: route.name().into() };
    let mut draft = Draft {
        key,
        created: created(route),
        parents: parents(route),
        hostnames: Vec::new(),
        rules: Vec::new(),
        faults: Vec::new(),
    };
    let mut rules: &[Value] = &[];
    let spec = route.body.get("spec").and_then(Value::as_object);
    for (field, value) in spec.into_iter().flatten() {
        let at = At::Root("spec");
        let at = at.field(field);
        match (field.as_str(), value) {
            ("parentRefs", _) => {}
            ("rules", Value::Array(written)) => rules = written,
            ("hostnames", value) if kind.carries() != Carries::Bytes => draft.read_hostnames(value, at),
            // What it is without the field.
            ("useDefaultGateways", Value::String(none)) if none == "None" => {}
            ("rules", _) => draft.faults.push(Fault::unsupported(at, "expected a list of rules")),
            _ => draft.faults.push(Fault::unsupported(at, UNKNOWN_FIELD)),
        }
    }
    draft.read_rules(rules);
    draft
}

/// In seconds since the epoch; 0 where nothing says.
pub fn created(route: &Object) -> i64 {
    route.metadata.creation_timestamp.map_or(0, |created| created.timestamp())
}

/// The parents of a route of any kind.
pub fn parents(route: &Object) -> Vec<Parent> {
    let written = route.body.get("spec").and_then(|spec| spec.get("parentRefs")).and_then(Value::as_array);
    let parent = |(index, written): (usize, &Value)| Parent {
        written: written.clone(),
        read: read(written, &format!("spec.parentRefs[{index}]")),
    };
    written.into_iter().flatten().enumerate().map(parent).collect()
}

impl Draft {
    fn read_hostnames(&mut self, written: &Value, at: At<'_>) {
        let names: Vec<String> = match read(written, "spec.hostnames") {
            Ok(names) => names,
            Err(error) => return self.faults.push(Fault::unsupported(error.field, error.message)),
        };
        for (index, name) in names.iter().enumerate() {
            match Hostname::parse(name) {
                Ok(name) => self.hostnames.push(name),
                Err(error) => self.faults.push(Fault::unsupported(at.item(index), error.to_string())),
            }
        }
    }

    fn read_rules(&mut self, written: &[Value]) {
        let default = Value::Object(serde_json::Map::new());
        let written = match (self.key.kind, written) {
            (RouteKind::Http, []) => std::slice::from_ref(&default),
            // It asks for something that is not known, so its calls must not be answered as if they matched nothing.
            (RouteKind::Grpc, []) if !self.faults.is_empty() => std::slice::from_ref(&default),
            (RouteKind::Grpc, written) | (RouteKind::Http, written) => written,
            // Exactly one (schema); which of several is meant nobody says.
            (RouteKind::Tls | RouteKind::Tcp, written) => {
                if written.len() != 1 {
                    let found =
                        format!("{} rules, expected one: a {} has one rule", written.len(), self.key.kind);
                    self.faults.push(Fault::unsupported("spec.rules", found));
                }
                written.first().map_or(std::slice::from_ref(&default), std::slice::from_ref)
            }
        };
        let rules = written.iter().enumerate();
        self.rules = rules.map(|(index, rule)| read_rule(self.key.kind, rule, index)).collect();
    }
}

fn read_rule(kind: RouteKind, written: &Value, index: usize) -> DraftRule {
    let at = At::Root("spec");
    let at = at.field("rules");
    let at = at.item(index);
    let prefix = || format!("spec.rules[{index}]");
    let rule = match kind {
        RouteKind::Http => {
            read::<HttpRouteRule>(written, &prefix()).map(|rule| http::rule(&rule, at, Reader::default()))
        }
        RouteKind::Grpc => {
            read::<GrpcRouteRule>(written, &prefix()).map(|rule| grpc::rule(&rule, at, Reader::default()))
        }
        RouteKind::Tls | RouteKind::Tcp => read::<ConnectionRouteRule>(written, &prefix())
            .map(|rule| connection::rule(kind, &rule, at, Reader::default())),
    };
    rule.unwrap_or_else(|error| unreadable(kind, error))
}

/// A rule of which nothing is known.
fn unreadable(kind: RouteKind, error: FieldError) -> DraftRule {
    DraftRule {
        name: None,
        matches: vec![Match::everything(kind)],
        filters: Vec::new(),
        backends: Vec::new(),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
        faults: vec![Fault::unsupported(error.field, error.message)],
    }
}

/// The matches of a rule, as its kind reads them; without any it is for everything.
fn matches<T>(
    written: &[T],
    read: fn(&T, At<'_>, &mut Reader) -> Match,
    kind: RouteKind,
    at: At<'_>,
    reader: &mut Reader,
) -> Vec<Match> {
    if written.is_empty() {
        return vec![Match::everything(kind)];
    }
    let written = written.iter().enumerate();
    written.map(|(index, of)| read(of, at.item(index), reader)).collect()
}

fn text(text: Option<&str>) -> Option<Arc<str>> {
    text.map(Arc::from)
}

fn backends(refs: &[BackendRef], allowed: Allowed, at: At<'_>, reader: &mut Reader) -> Vec<DraftBackend> {
    let mut read = Vec::with_capacity(refs.len());
    for (index, backend) in refs.iter().enumerate() {
        let at = at.item(index);
        reader.unknown(at, &backend.rest);
        let weight = backend.weight.unwrap_or(1);
        if weight > MOST_WEIGHT {
            reader.unsupported(at.field("weight"), format!("{weight}, expected at most {MOST_WEIGHT}"));
        }
        read.push(DraftBackend {
            to: DraftRef::new(
                backend.group.as_deref(),
                backend.kind.as_deref(),
                backend.namespace.as_deref(),
                &backend.name,
                backend.port,
            ),
            weight,
            filters: filters::read(&backend.filters, allowed, at.field("filters"), reader),
        });
    }
    read
}
