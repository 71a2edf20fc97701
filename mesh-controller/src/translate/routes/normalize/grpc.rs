//! The rules of a GRPCRoute.

use culvert_objects::types::{GrpcMethodMatch, GrpcRouteMatch, GrpcRouteRule};
use culvert_routing::model::{Match, PathMatch, RouteKind, Timeouts, ValueMatch};

use super::filters::{self, Allowed};
use super::http::{headers, typed_value};
use super::reader::{At, Reader};
use super::{DraftRule, backends, matches, session, text};

pub fn rule(rule: &GrpcRouteRule, at: At<'_>, mut reader: Reader) -> DraftRule {
    reader.unknown(at, &rule.rest);
    let of_rule = filters::read(&rule.filters, Allowed::OfCalls, at.field("filters"), &mut reader);
    let backends = backends(&rule.backend_refs, Allowed::OfCalls, at.field("backendRefs"), &mut reader);
    let matches = matches(&rule.matches, one_match, RouteKind::Grpc, at.field("matches"), &mut reader);
    let session = rule
        .session_persistence
        .as_ref()
        .map(|of| session::read(of, at.field("sessionPersistence"), &mut reader));
    DraftRule {
        name: text(rule.name.as_deref()),
        matches,
        filters: of_rule,
        backends,
        timeouts: Timeouts::default(),
        retry: None,
        session,
        faults: reader.faults,
    }
}

fn one_match(of: &GrpcRouteMatch, at: At<'_>, reader: &mut Reader) -> Match {
    reader.unknown(at, &of.rest);
    let path = of.method.as_ref().map(|method| method_match(method, at.field("method"), reader));
    let headers = headers(&of.headers, at.field("headers"), reader);
    let everything = Match::everything(RouteKind::Grpc);
    Match { path: path.unwrap_or(everything.path), headers, ..everything }
}

fn method_match(of: &GrpcMethodMatch, at: At<'_>, reader: &mut Reader) -> PathMatch {
    reader.unknown(at, &of.rest);
    let mut value = |value: Option<&String>| -> Option<ValueMatch> {
        // Empty was how the older version spelled an absent one.
        let value = value.filter(|value| !value.is_empty())?;
        typed_value(of.kind.as_deref(), value, at, reader)
    };
    let service = value(of.service.as_ref());
    let method = value(of.method.as_ref());
    if [&of.service, &of.method].iter().all(|value| value.as_deref().unwrap_or_default().is_empty()) {
        reader.unsupported(at, "names nothing, expected a service, a method or both");
    }
    PathMatch::Grpc { service, method }
}
