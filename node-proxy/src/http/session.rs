//! Sessions on a request's way: to the backend and the endpoint that took the first request of its session, and back with what
//! the client needs to stay there.

use std::sync::Arc;
use std::time::SystemTime;

use culvert_routing::CompiledRule;
use culvert_routing::model::{Action, PathMatch};
use http::HeaderMap;
use http::header::SET_COOKIE;

use super::respond::Instead;
use super::route;
use super::serve::ClientConnection;
use crate::balance::Candidate;
use crate::reason::Reason;
use crate::session::{Request, Session, backend_name, backend_named};
use crate::state::Snapshot;
use crate::state::model::WorkloadUid;
use crate::telemetry::Failure;

/// A request of a rule that keeps sessions.
pub struct Kept {
    request: Request,
    matched: PathMatch,
    found: Option<Found>,
}

/// Where its session is at home.
struct Found {
    /// Which of those that the client shows.
    session: usize,
    /// Place of the backend in the rule.
    backend: usize,
    endpoint: Candidate,
}

impl ClientConnection {
    /// What a rule's sessions make of a request; `None` where it keeps none.
    ///
    /// # Errors
    /// `NoSessionKey`: sessions can be neither read nor begun.
    pub(super) fn session(
        &self,
        snapshot: &Snapshot,
        rule: &Arc<CompiledRule>,
        matched: &PathMatch,
        headers: &HeaderMap,
    ) -> Result<Option<Kept>, Instead> {
        let Some(persistence) = rule.session() else { return Ok(None) };
        let keys = &snapshot.mesh().session_keys;
        if keys.is_empty() {
            let message = "the rule keeps sessions, and the controller has given this node no key for them";
            return Err(Failure::new(Reason::NoSessionKey, message).into());
        }
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let request = Request::read(rule, persistence, headers, keys, now);
        let found = request.find(|session| self.at_home(snapshot, rule, session));
        let found = found.map(|(session, (backend, endpoint))| Found { session, backend, endpoint });
        Ok(Some(Kept { request, matched: matched.clone(), found }))
    }

    /// Backend and endpoint of a session, if they still serve. Weights play no part, not even 0 (GEP-1619).
    fn at_home(
        &self,
        snapshot: &Snapshot,
        rule: &CompiledRule,
        session: &Session,
    ) -> Option<(usize, Candidate)> {
        let Action::Forward(backends) = rule.action() else { return None };
        let backend = backend_named(backends, &session.backend)?;
        let (service, port) = route::backend_service(snapshot, &backends[backend].target).ok()?;
        let workload = snapshot.workload(&WorkloadUid(session.endpoint.as_str().into()))?;
        let wanted = self.wanted(&service, port);
        let endpoints = snapshot.endpoints(&service.key);
        let endpoint = self.outbound.context.balancer.pinned(workload, endpoints, &wanted)?;
        Some((backend, endpoint))
    }
}

impl Kept {
    /// The backend that the session is bound to, by its place in the rule.
    pub fn backend(&self) -> Option<usize> {
        self.found.as_ref().map(|found| found.backend)
    }

    /// The endpoint that the session is bound to.
    pub fn endpoint(&self) -> Option<Candidate> {
        self.found.as_ref().map(|found| found.endpoint.clone())
    }

    /// Tells the client, in the response of `endpoint`, what it has to come back with, unless it has it.
    pub fn answer(&self, backend: usize, endpoint: &WorkloadUid, headers: &mut HeaderMap) {
        let Action::Forward(backends) = self.request.rule().action() else { return };
        let Some(backend) = backend_name(backends, backend) else { return };
        let session = self.found.as_ref().map(|found| found.session);
        let field = self.request.answer(&self.matched, session, backend, &endpoint.0);
        match field {
            Some((SET_COOKIE, value)) => drop(headers.append(SET_COOKIE, value)),
            Some((name, value)) => drop(headers.insert(name, value)),
            None => {}
        }
    }
}
