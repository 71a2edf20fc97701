//! What is known of endpoints in a running mesh, beside what is made from objects.

use super::data::{Endpoint, Explanation, Layer};
use crate::ejected::Ejected;

/// Says of each endpoint whether the client's node passes it over. Of a client outside the mesh any node's word counts: it is
/// that of a Gateway's pods.
pub fn mark(explanation: &mut Explanation, ejected: &[Ejected]) {
    let carried = match explanation.handling.as_ref().map(|handling| handling.layer) {
        Some(Layer::Requests) => "requests",
        _ => "connections",
    };
    let node = explanation.client.node.as_deref();
    let relevant: Vec<&Ejected> = ejected
        .iter()
        .filter(|one| one.carried == carried && node.is_none_or(|node| node == one.node))
        .collect();
    let backends = explanation.backends.iter_mut().map(|backend| (&*backend.backend, &mut backend.endpoints));
    let mirrors = explanation.mirrors.iter_mut().map(|mirror| (&*mirror.mirror, &mut mirror.endpoints));
    for (name, endpoints) in backends.chain(mirrors) {
        let of_it = relevant.iter().filter(|one| format!("{}:{}", one.service, one.port) == name);
        of_it.for_each(|one| note(endpoints, one));
    }
}

fn note(endpoints: &mut [Endpoint], ejected: &Ejected) {
    // Of a pod with two addresses either may have been called.
    let is_it =
        |one: &Endpoint| one.workload == ejected.workload || one.address.to_string() == ejected.address;
    for endpoint in endpoints.iter_mut().filter(|one| is_it(one)) {
        endpoint.ejected = Some(ejected.clone());
    }
}
