//! Hostnames of listeners and routes.

use std::fmt;
use std::sync::Arc;

use crate::model::Hostname;

/// Why a hostname of a listener or a route is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostnameError {
    #[error(
        "{hostname:?} is not a DNS name: labels of letters, digits and '-', separated by dots, 253 characters at most"
    )]
    NotAName { hostname: String },
    #[error("{hostname:?} has a wildcard that is not a whole first label: write *.example.com")]
    BadWildcard { hostname: String },
    #[error("{hostname:?} is an IP address: hostnames of routes are DNS names")]
    Address { hostname: String },
}

impl Hostname {
    /// Reads a DNS name that may start with `*.`; upper case is brought to lower case.
    pub fn parse(text: &str) -> Result<Hostname, HostnameError> {
        let hostname = || text.to_owned();
        let lower = text.to_ascii_lowercase();
        let (name, wildcard) = match lower.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (lower.as_str(), false),
        };
        if name.contains('*') {
            return Err(HostnameError::BadWildcard { hostname: hostname() });
        }
        if name.parse::<std::net::IpAddr>().is_ok() {
            return Err(HostnameError::Address { hostname: hostname() });
        }
        if !is_dns_name(name) {
            return Err(HostnameError::NotAName { hostname: hostname() });
        }
        Ok(if wildcard { Hostname::Wildcard(name.into()) } else { Hostname::Exact(name.into()) })
    }

    /// Whether requests for `host` (lower case, without port and trailing dot) are meant: the name itself, or with a
    /// wildcard any name of at least one label more.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Hostname::Exact(name) => **name == *host,
            Hostname::Wildcard(suffix) => is_below(host, suffix),
        }
    }

    /// The hostname that stands for the hosts that both match; `None` if there is none. One of the two always does.
    fn common(&self, other: &Hostname) -> Option<Hostname> {
        let (narrow, wide) = match (self, other) {
            (Hostname::Exact(name), wide) | (wide, Hostname::Exact(name)) => {
                return wide.matches(name).then(|| Hostname::Exact(Arc::clone(name)));
            }
            (Hostname::Wildcard(a), Hostname::Wildcard(b)) if a.len() >= b.len() => (a, b),
            (Hostname::Wildcard(a), Hostname::Wildcard(b)) => (b, a),
        };
        (narrow == wide || is_below(narrow, wide)).then(|| Hostname::Wildcard(Arc::clone(narrow)))
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hostname::Exact(name) => f.write_str(name),
            Hostname::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// The hostnames in effect for a route at a listener (`HTTPRouteSpec.hostnames`): `Some` of an empty list is any host,
/// `None` says that they have no host in common, so that the route is not attached. In the order of the route, each once.
pub fn intersect(listener: Option<&Hostname>, route: &[Hostname]) -> Option<Vec<Hostname>> {
    let Some(listener) = listener else {
        return Some(route.to_vec());
    };
    if route.is_empty() {
        return Some(vec![listener.clone()]);
    }
    let mut common: Vec<Hostname> = Vec::new();
    for hostname in route.iter().filter_map(|hostname| hostname.common(listener)) {
        if !common.contains(&hostname) {
            common.push(hostname);
        }
    }
    (!common.is_empty()).then_some(common)
}

fn is_below(host: &str, suffix: &str) -> bool {
    host.strip_suffix(suffix)
        .and_then(|labels| labels.strip_suffix('.'))
        .is_some_and(|labels| !labels.is_empty())
}

/// RFC 1123, as the route's schema says it.
pub(crate) fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}
