//! Which TCPRoute or TLSRoute takes a connection: `TLSRouteSpec.hostnames`, `TCPRoute`.

use crate::hostname;

/// A route about connections. The order of routes in a list means nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub namespace: String,
    pub name: String,
    /// Seconds since the epoch.
    pub created: i64,
    /// `a.example`, `*.example`; none: whatever name is asked for, and no name too.
    pub hostnames: Vec<String>,
}

/// The place in the list of the route that takes a connection, given the server name that its TLS asks for; for TCPRoutes there is
/// none.
pub fn select(routes: &[Route], server_name: Option<&str>) -> Option<usize> {
    let mut best: Option<(usize, (u8, usize))> = None;
    for (index, route) in routes.iter().enumerate() {
        for rank in ranks(route, server_name) {
            let wins = match &best {
                None => true,
                Some((other, best_rank)) => {
                    rank > *best_rank || (rank == *best_rank && is_before(route, &routes[*other]))
                }
            };
            if wins {
                best = Some((index, rank));
            }
        }
    }
    best.map(|(index, _)| index)
}

/// An exact hostname, then the longest wildcard, then a route without hostnames.
fn ranks(route: &Route, server_name: Option<&str>) -> Vec<(u8, usize)> {
    if route.hostnames.is_empty() {
        return vec![(0, 0)];
    }
    let Some(name) = server_name else { return Vec::new() };
    let fitting = route.hostnames.iter().filter(|hostname| hostname::matches(hostname, name));
    fitting.map(|hostname| if hostname.starts_with("*.") { (1, hostname.len()) } else { (2, 0) }).collect()
}

/// "The oldest Route based on creation timestamp", then "alphabetical order by {namespace}/{name}".
fn is_before(one: &Route, other: &Route) -> bool {
    let place = |route: &Route| (route.created, format!("{}/{}", route.namespace, route.name));
    place(one) < place(other)
}
