//! `HTTPRouteSpec.hostnames`, `Listener.hostname`.

/// A hostname without wildcard matches itself; `*.example` matches every name that ends in `.example` with at least one
/// label in front.
pub fn matches(hostname: &str, host: &str) -> bool {
    if !hostname.starts_with("*.") {
        return hostname == host;
    }
    let wanted: Vec<&str> = hostname.split('.').skip(1).collect();
    let actual: Vec<&str> = host.split('.').collect();
    if actual.len() <= wanted.len() || actual[0].is_empty() {
        return false;
    }
    let mut at = actual.len();
    for label in wanted.iter().rev() {
        at -= 1;
        if actual[at] != *label {
            return false;
        }
    }
    true
}

/// The hostnames of a route that are in effect at a listener, `None` if it is not attached there.
pub fn intersection(listener: Option<&str>, route: &[String]) -> Option<Vec<String>> {
    let Some(listener) = listener else {
        return Some(route.to_vec());
    };
    if route.is_empty() {
        return Some(vec![listener.to_owned()]);
    }
    let mut common: Vec<String> = Vec::new();
    for hostname in route {
        let narrower = match (listener.starts_with("*."), hostname.starts_with("*.")) {
            (false, false) => (listener == hostname).then(|| hostname.clone()),
            (true, false) => matches(listener, hostname).then(|| hostname.clone()),
            (false, true) => matches(hostname, listener).then(|| listener.to_owned()),
            // Whatever is below one of the two and below the other.
            (true, true) if listener == hostname => Some(hostname.clone()),
            (true, true) if matches(listener, &hostname[2..]) => Some(hostname.clone()),
            (true, true) => matches(hostname, &listener[2..]).then(|| listener.to_owned()),
        };
        if let Some(narrower) = narrower
            && !common.contains(&narrower)
        {
            common.push(narrower);
        }
    }
    if common.is_empty() { None } else { Some(common) }
}
