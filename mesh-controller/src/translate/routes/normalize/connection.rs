//! The rule of a TCPRoute or TLSRoute: where connections go, and nothing else.

use culvert_objects::types::ConnectionRouteRule;
use culvert_routing::model::{Match, RouteKind, Timeouts};

use super::filters::Allowed;
use super::reader::{At, Reader};
use super::{DraftRule, backends, text};

pub fn rule(kind: RouteKind, rule: &ConnectionRouteRule, at: At<'_>, mut reader: Reader) -> DraftRule {
    reader.unknown(at, &rule.rest);
    let backends = backends(&rule.backend_refs, Allowed::Nothing, at.field("backendRefs"), &mut reader);
    DraftRule {
        name: text(rule.name.as_deref()),
        matches: vec![Match::everything(kind)],
        filters: Vec::new(),
        backends,
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
        faults: reader.faults,
    }
}
