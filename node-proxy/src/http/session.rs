//! Sessions on a request's way: to the backend and the endpoint that took the first request of its session, and back with what
//! the client needs to stay there.

use std::sync::Arc;
use std::time::SystemTime;

use culvert_routing::CompiledRule;
use culvert_routing::model::{Action, PathMatch, SessionPersistence};
use http::HeaderMap;
use http::header::SET_COOKIE;

use super::respond::Instead;
use super::route;
use super::serve::ClientConnection;
use crate::balance::Candidate;
use crate::reason::Reason;
use crate::session::{Request, Scope, Session, backend_name, backend_named};
use crate::state::Snapshot;
use crate::state::model::{Service, WorkloadUid};
use crate::telemetry::Failure;

/// A request whose session is kept.
pub struct Kept {
    request: Request,
    keeper: Keeper,
    matched: PathMatch,
    found: Option<Found>,
}

/// What keeps its session, and so where it may go.
enum Keeper {
    Rule(Arc<CompiledRule>),
    /// The Service that was called: no route decides.
    Service(Arc<Service>),
}

/// Where its session is at home.
struct Found {
    /// Which of those that the client shows.
    session: usize,
    /// Place of the backend in the rule.
    backend: Option<usize>,
    endpoint: Candidate,
}

impl ClientConnection {
    /// What a rule's sessions make of a request; `None` where it keeps none.
    ///
    /// # Errors
    /// `NoSessionKey`: sessions can be neither read nor begun.
    pub(super) fn session_of_rule(
        &self,
        snapshot: &Snapshot,
        rule: &Arc<CompiledRule>,
        matched: &PathMatch,
        headers: &HeaderMap,
    ) -> Result<Option<Kept>, Instead> {
        let Some(persistence) = rule.session() else { return Ok(None) };
        let keeper = Keeper::Rule(rule.clone());
        self.session(snapshot, persistence, (keeper, matched.clone()), headers).map(Some)
    }

    /// The same for a request to a Service that no route decides about.
    ///
    /// # Errors
    /// As above.
    pub(super) fn session_of_service(
        &self,
        snapshot: &Snapshot,
        service: &Arc<Service>,
        headers: &HeaderMap,
    ) -> Result<Option<Kept>, Instead> {
        let Some(persistence) = &service.session else { return Ok(None) };
        let whole = (Keeper::Service(service.clone()), PathMatch::Prefix("/".into()));
        self.session(snapshot, persistence, whole, headers).map(Some)
    }

    fn session(
        &self,
        snapshot: &Snapshot,
        persistence: &SessionPersistence,
        (keeper, matched): (Keeper, PathMatch),
        headers: &HeaderMap,
    ) -> Result<Kept, Instead> {
        let keys = &snapshot.mesh().session_keys;
        if keys.is_empty() {
            let message = "sessions are kept here, and the controller has given this node no key for them";
            return Err(Failure::new(Reason::NoSessionKey, message).into());
        }
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let request = Request::read(keeper.scope(), persistence, headers, keys, now);
        let found = request.find(|session| self.at_home(snapshot, &keeper, session));
        let found = found.map(|(session, (backend, endpoint))| Found { session, backend, endpoint });
        Ok(Kept { request, keeper, matched, found })
    }

    /// Backend and endpoint of a session, if they still serve. Weights play no part, not even 0 (GEP-1619).
    fn at_home(
        &self,
        snapshot: &Snapshot,
        keeper: &Keeper,
        session: &Session,
    ) -> Option<(Option<usize>, Candidate)> {
        let (backend, service, port) = match keeper {
            Keeper::Service(service) => (None, service.clone(), self.port),
            Keeper::Rule(rule) => {
                let Action::Forward(backends) = rule.action() else { return None };
                let backend = backend_named(backends, &session.backend)?;
                let (service, port) = route::backend_service(snapshot, &backends[backend].target).ok()?;
                (Some(backend), service, port)
            }
        };
        let workload = snapshot.workload(&WorkloadUid(session.endpoint.as_str().into()))?;
        let wanted = self.wanted(&service, port);
        let endpoints = snapshot.endpoints(&service.key);
        let endpoint = self.outbound.context.balancer.pinned(workload, endpoints, &wanted)?;
        Some((backend, endpoint))
    }
}

impl Keeper {
    fn scope(&self) -> Scope<'_> {
        match self {
            Self::Rule(rule) => Scope::Rule(rule),
            Self::Service(service) => Scope::Service(&service.key),
        }
    }

    /// What a session calls where it is at home; `backend` is its place in the rule.
    fn home(&self, backend: Option<usize>) -> Option<String> {
        match self {
            Self::Service(service) => Some(service.key.to_string()),
            Self::Rule(rule) => match rule.action() {
                Action::Forward(backends) => backend_name(backends, backend?),
                Action::Refuse(_) => None,
            },
        }
    }
}

impl Kept {
    /// The backend that the session is bound to, by its place in the rule.
    pub fn backend(&self) -> Option<usize> {
        self.found.as_ref().and_then(|found| found.backend)
    }

    /// The endpoint that the session is bound to.
    pub fn endpoint(&self) -> Option<Candidate> {
        self.found.as_ref().map(|found| found.endpoint.clone())
    }

    /// Tells the client, in the response of `endpoint`, what it has to come back with, unless it has it. `backend` is its place
    /// in the rule.
    pub fn answer(&self, backend: Option<usize>, endpoint: &WorkloadUid, headers: &mut HeaderMap) {
        let Some(home) = self.keeper.home(backend) else { return };
        let session = self.found.as_ref().map(|found| found.session);
        let field = self.request.answer(&self.matched, session, home, &endpoint.0);
        match field {
            Some((SET_COOKIE, value)) => drop(headers.append(SET_COOKIE, value)),
            Some((name, value)) => drop(headers.insert(name, value)),
            None => {}
        }
    }
}
