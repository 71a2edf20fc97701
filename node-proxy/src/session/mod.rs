//! Session persistence (GEP-1619): which session a request belongs to, and what its response says of it. Pure but for the nonces
//! of what is sealed; nothing is remembered here, so that any node proxy of the mesh goes on where another began.

mod carrier;
mod keys;
mod token;

use std::sync::Arc;
use std::time::Duration;

use culvert_routing::CompiledRule;
use culvert_routing::model::{Backend, PathMatch, SessionPersistence, Target};
use http::{HeaderMap, HeaderName, HeaderValue};

pub use carrier::MOST_TOKENS;
pub use keys::{BadKeys, SealedBy, SessionKeys};
pub use token::Session;

use crate::state::model::ServiceKey;

/// Tokens shorter than any session's are not kept for other rules.
const SHORTEST: usize = 64;

/// A request of a rule or a Service that keeps sessions.
#[derive(Debug)]
pub struct Request {
    keys: Arc<SessionKeys>,
    persistence: SessionPersistence,
    scope: Vec<u8>,
    /// Seconds since the epoch.
    now: u64,
    /// The sessions of this scope that the client shows and that go on, in its order.
    pub live: Vec<(Session, SealedBy)>,
    /// Tokens that may be those of other scopes, beside which the one of this scope stands.
    others: Vec<String>,
}

impl Request {
    /// Reads what the client shows; scope and `persistence` are those of the rule or Service.
    pub fn read(
        scope: Scope<'_>,
        persistence: &SessionPersistence,
        headers: &HeaderMap,
        keys: &Arc<SessionKeys>,
        now: u64,
    ) -> Self {
        let (mut live, mut others) = (Vec::new(), Vec::new());
        let scope = scope.text();
        for (index, tokens) in carrier::shown(headers, &persistence.carrier).into_iter().enumerate() {
            for token in tokens {
                match Session::open(keys, &scope, token) {
                    Some((session, by)) => {
                        live.extend(goes_on(&session, persistence, now).then_some((session, by)))
                    }
                    // What the response says takes the place of the first: the cookie whose path is the longest.
                    None if index == 0 && may_be_token(token) => others.push(token.to_owned()),
                    None => {}
                }
            }
        }
        others.truncate(MOST_TOKENS - 1);
        let (keys, persistence) = (keys.clone(), persistence.clone());
        Self { keys, persistence, scope, now, live, others }
    }

    /// The first session that has a home, by its place in [`Request::live`].
    pub fn find<H>(&self, home: impl Fn(&Session) -> Option<H>) -> Option<(usize, H)> {
        let sessions = self.live.iter().enumerate();
        sessions.filter_map(|(index, (session, _))| Some((index, home(session)?))).next()
    }

    /// The field of the response, after `endpoint` has answered for `backend`; `kept` is the session of [`Request::live`]
    /// that led there. `None`: the client has what it needs.
    pub fn answer(
        &self,
        matched: &PathMatch,
        kept: Option<usize>,
        backend: String,
        endpoint: &str,
    ) -> Option<(HeaderName, HeaderValue)> {
        let kept = kept.and_then(|index| self.live.get(index));
        let same = kept.filter(|(session, _)| session.endpoint == endpoint && session.backend == backend);
        let session = match same {
            Some((_, SealedBy::Current)) => return None,
            Some((session, SealedBy::Another)) => session.clone(),
            None => Session { began: self.now, backend, endpoint: endpoint.to_owned() },
        };
        let left = self.persistence.absolute_timeout.map(|timeout| {
            let end = session.began.saturating_add(timeout.as_secs().max(1));
            Duration::from_secs(end.saturating_sub(self.now))
        });
        let token = session.seal(&self.keys, &self.scope)?;
        let tokens: Vec<&str> = std::iter::once(&token).chain(&self.others).map(String::as_str).collect();
        carrier::field(&self.persistence, matched, &tokens, left)
    }
}

/// A session that began in the future began on a node whose clock is ahead.
fn goes_on(session: &Session, persistence: &SessionPersistence, now: u64) -> bool {
    let age = Duration::from_secs(now.saturating_sub(session.began));
    persistence.absolute_timeout.is_none_or(|timeout| age < timeout)
}

fn may_be_token(text: &str) -> bool {
    (SHORTEST..=keys::LONGEST).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// What keeps sessions. They are not shared (GEP-1619): what one has sealed does not open for another.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    Rule(&'a CompiledRule),
    /// Of calls without a route, whatever the port.
    Service(&'a ServiceKey),
}

impl Scope<'_> {
    /// A rule's name outlives other edits.
    fn text(self) -> Vec<u8> {
        match self {
            Self::Rule(rule) => {
                let key = rule.key();
                format!("{:?}/{}/{}/{}", key.kind, key.namespace, key.name, rule.label()).into_bytes()
            }
            Self::Service(key) => format!("Service/{key}").into_bytes(),
        }
    }
}

/// What a backend is called in sessions, as long as its rule has it: its Service and port, and which of several such.
pub fn backend_name(backends: &[Backend], index: usize) -> Option<String> {
    let Target::Service { namespace, name, port } = &backends.get(index)?.target else { return None };
    let same = backends[..index].iter().filter(|other| other.target == backends[index].target).count();
    Some(match same {
        0 => format!("{namespace}/{name}:{port}"),
        _ => format!("{namespace}/{name}:{port}#{same}"),
    })
}

/// The backend that a session names.
pub fn backend_named(backends: &[Backend], name: &str) -> Option<usize> {
    (0..backends.len()).find(|index| backend_name(backends, *index).as_deref() == Some(name))
}

#[cfg(test)]
mod tests;
