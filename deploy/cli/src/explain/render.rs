//! An explanation as text for people.

use std::fmt::{self, Write};

use super::data::{
    Backend, Candidate, End, Endpoint, EndpointState, Explanation, GroupKind, Header, Layer, Mirror,
    NodeProxy, NodeProxyAnswer, Parent, Retry, RetryBudget, SentRequest, Session, Transport, Verdict,
};

/// Candidates that lost are shown up to this many; `-o json` has all.
const MOST_LOSERS: usize = 40;

/// The text.
#[must_use]
pub fn text(explanation: &Explanation) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, explanation);
    text
}

fn write(out: &mut String, explanation: &Explanation) -> fmt::Result {
    head(out, explanation)?;
    for one in &explanation.not_applied {
        let routes =
            if one.routes.is_empty() { String::new() } else { format!(" [{}]", one.routes.join(", ")) };
        writeln!(out, "not applied  {:?}: {}{routes}", one.reason, one.message)?;
    }
    rules(out, explanation)?;
    session(out, explanation.session.as_ref())?;
    for backend in &explanation.backends {
        self::backend(out, backend)?;
    }
    for mirror in &explanation.mirrors {
        self::mirror(out, mirror)?;
    }
    writeln!(out, "\noutcome")?;
    for outcome in &explanation.outcomes {
        writeln!(out, "  {:>6}  {}", percent(outcome.share), end(&outcome.end))?;
    }
    match &explanation.node_proxy {
        Some(proxy) => node_proxy(out, proxy),
        None => Ok(()),
    }
}

fn node_proxy(out: &mut String, proxy: &NodeProxy) -> fmt::Result {
    writeln!(out, "\nnode proxy of {}", proxy.node)?;
    let proxy = match &proxy.answer {
        NodeProxyAnswer::InForce(in_force) => in_force,
        NodeProxyAnswer::Not { unreachable } => {
            return writeln!(out, "  could not be asked what it has in force: {unreachable}");
        }
    };
    let state = match (proxy.connected, proxy.stale) {
        (true, _) => "connected to a controller",
        (false, false) => "without a controller: later changes are not in it",
        (false, true) => "without a controller since its start: it goes on with what it has kept",
    };
    writeln!(out, "  version {} in force, {state}", proxy.version)?;
    if let Some(pod) = &proxy.pod {
        writeln!(out, "  the client's pod: {pod}")?;
    }
    for refused in &proxy.refused {
        writeln!(out, "  does not follow {refused}")?;
    }
    Ok(())
}

fn head(out: &mut String, explanation: &Explanation) -> fmt::Result {
    let Explanation { request, client, destination, .. } = explanation;
    writeln!(out, "from         {}", explanation.source)?;
    if !explanation.assumed.is_empty() {
        writeln!(out, "assumed      {}", explanation.assumed.join("; "))?;
    }
    let kind = if request.grpc { ", a gRPC call" } else { "" };
    match request.method.as_str() {
        "" => writeln!(out, "connection   {} {}", request.url, request.version)?,
        method => writeln!(out, "request      {method} {} {}{kind}", request.url, request.version)?,
    }
    if let Some(name) = &request.server_name {
        writeln!(out, "             server name: {name}")?;
    }
    for Header { name, value } in &request.headers {
        writeln!(out, "             {name}: {value}")?;
    }
    let pod = client.pod.as_deref().unwrap_or("outside the cluster");
    let node = client.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    writeln!(out, "client       {pod}{node}")?;
    match (&client.identity, &client.why_not) {
        (Some(identity), None) => writeln!(out, "             enrolled as {identity}")?,
        (_, Some(why)) if client.pod.is_some() => writeln!(out, "             not enrolled: {why}")?,
        _ => {}
    }
    let addresses: Vec<String> = destination.addresses.iter().map(ToString::to_string).collect();
    if let Some(name) = &destination.name {
        let addresses =
            if addresses.is_empty() { "outside the cluster".to_owned() } else { addresses.join(", ") };
        writeln!(out, "name         {} is {name}: {addresses}", destination.host)?;
    }
    writeln!(out, "parent       {}", parent(&explanation.parent))?;
    if let Some(handling) = &explanation.handling {
        let layer = match handling.layer {
            Layer::Requests => "request by request",
            Layer::Bytes => "as bytes",
            Layer::Refused => "refused",
        };
        writeln!(out, "handled      {layer}: {}", handling.why)?;
    }
    if let Some(group) = &explanation.group {
        let kind = match (group.kind, &group.namespace) {
            (GroupKind::Consumer, Some(namespace)) => format!("consumer routes of {namespace}"),
            (GroupKind::Consumer, None) => "consumer routes".to_owned(),
            (GroupKind::Producer, _) => "producer routes".to_owned(),
            (GroupKind::Listener, _) => "routes of the listener".to_owned(),
        };
        writeln!(out, "group        {kind}: {}", group.routes.join(", "))?;
    }
    Ok(())
}

fn parent(parent: &Parent) -> String {
    match parent {
        Parent::Service { service, address } => format!("Service {service} at {address}"),
        Parent::Pod { pod, address } => format!("pod {pod} at {address}"),
        Parent::Listener { gateway, listener, pods } => {
            let listener = listener.as_deref().unwrap_or("none for this host and port");
            format!("Gateway {gateway}, listener {listener}, in {}", pods.join(", "))
        }
        Parent::Unknown { address } => format!("{address}: nobody's address in the cluster's ranges"),
        Parent::Outside { address: Some(address) } => format!("{address}: outside the mesh"),
        Parent::Outside { address: None } => "outside the mesh".to_owned(),
        Parent::NoSuchName => "none: the name does not exist".to_owned(),
    }
}

fn rules(out: &mut String, explanation: &Explanation) -> fmt::Result {
    if explanation.candidates.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nrules, in order of precedence")?;
    let mut losers = 0;
    for candidate in &explanation.candidates {
        losers += usize::from(candidate.verdict != Verdict::Wins);
        if losers <= MOST_LOSERS || candidate.verdict == Verdict::Wins {
            self::candidate(out, candidate)?;
        }
    }
    if let Some(more) = losers.checked_sub(MOST_LOSERS).filter(|more| *more > 0) {
        writeln!(out, "     {more} more; -o json has them all")?;
    }
    if let Some(rule) = &explanation.rule {
        writeln!(out, "\nrule         {} of {}", rule.rule, rule.route)?;
        for filter in &rule.filters {
            writeln!(out, "filter       {filter}")?;
        }
        for (what, limit) in
            [("request", rule.request_timeout_ms), ("backendRequest", rule.backend_request_timeout_ms)]
        {
            if let Some(limit) = limit {
                writeln!(out, "timeout      {what} {limit} ms")?;
            }
        }
        if let Some(Retry { codes, attempts, backoff_ms }) = &rule.retry {
            let codes: Vec<String> = codes.iter().map(ToString::to_string).collect();
            let codes =
                if codes.is_empty() { String::new() } else { format!(", status {}", codes.join(" ")) };
            writeln!(
                out,
                "retry        {attempts} times, {backoff_ms} ms apart at least, after a lost connection or a try's timeout{codes}"
            )?;
        }
        session(out, rule.session.as_ref())?;
    }
    Ok(())
}

fn session(out: &mut String, session: Option<&Session>) -> fmt::Result {
    let Some(Session { by, name, path, absolute_timeout_ms }) = session else { return Ok(()) };
    let path = path.as_ref().map(|path| format!(" for {path}")).unwrap_or_default();
    let end = absolute_timeout_ms.map(|end| format!(", at most {end} ms")).unwrap_or_default();
    writeln!(
        out,
        "session      {by} {name}{path}{end}: a client that shows it stays at its endpoint; what follows is for others"
    )
}

fn candidate(out: &mut String, candidate: &Candidate) -> fmt::Result {
    let sign = match candidate.verdict {
        Verdict::Wins => "->",
        Verdict::Outranked | Verdict::Mismatch => "  ",
    };
    writeln!(out, "  {sign} {} rule {}: {}", candidate.route, candidate.rule, candidate.matches)?;
    match &candidate.why {
        Some(why) => writeln!(out, "       {why}"),
        None => Ok(()),
    }
}

fn backend(out: &mut String, backend: &Backend) -> fmt::Result {
    let weight = backend.weight.map(|weight| format!(" (weight {weight})")).unwrap_or_default();
    writeln!(out, "\nbackend      {} gets {}{weight}", backend.backend, percent(backend.share))?;
    for filter in &backend.filters {
        writeln!(out, "  filter     {filter}")?;
    }
    if let Some(RetryBudget { percent, interval_ms, min_retries, min_interval_ms }) = &backend.retry_budget {
        writeln!(
            out,
            "  retries    at most {percent} % of the requests of {interval_ms} ms, and {min_retries} in {min_interval_ms} ms in any case"
        )?;
    }
    request_and_endpoints(out, backend.request.as_ref(), &backend.endpoints)
}

fn mirror(out: &mut String, mirror: &Mirror) -> fmt::Result {
    let of = mirror.backend.as_ref().map(|backend| format!(" for {backend}")).unwrap_or_default();
    let share = percent(mirror.share);
    match &mirror.why_not {
        Some(why) => writeln!(out, "\nmirror       nobody gets a copy of {share} of the requests{of}: {why}"),
        None => {
            writeln!(out, "\nmirror       {} gets a copy of {share} of the requests{of}", mirror.mirror)?;
            request_and_endpoints(out, mirror.request.as_ref(), &mirror.endpoints)
        }
    }
}

fn request_and_endpoints(
    out: &mut String,
    request: Option<&SentRequest>,
    endpoints: &[Endpoint],
) -> fmt::Result {
    if let Some(SentRequest { method, path, host, headers }) = request {
        writeln!(out, "  request    {method} {path}")?;
        writeln!(out, "             host: {host}")?;
        for Header { name, value } in headers {
            writeln!(out, "             {name}: {value}")?;
        }
    }
    if endpoints.is_empty() {
        writeln!(out, "  endpoints  none")?;
    }
    for endpoint in endpoints {
        self::endpoint(out, endpoint)?;
    }
    Ok(())
}

fn endpoint(out: &mut String, endpoint: &Endpoint) -> fmt::Result {
    let state = match endpoint.state {
        EndpointState::Ready => "ready",
        EndpointState::NotReady => "not ready",
        EndpointState::Terminating => "terminating",
        EndpointState::Gone => "terminating, not serving",
    };
    let used = match (endpoint.used, endpoint.spill_over) {
        (true, _) => "",
        (false, true) => {
            ", farther away: used when too few of the nearer ones are left, or they are overloaded"
        }
        (false, false) => ", not used",
    };
    let node = if endpoint.node.is_empty() { String::new() } else { format!(" on {}", endpoint.node) };
    writeln!(out, "  endpoint   {} {}{node}: {state}{used}", endpoint.workload, endpoint.address)?;
    if let Some(ejected) = &endpoint.ejected {
        writeln!(out, "             {}", ejected.words())?;
    }
    match &endpoint.transport {
        Transport::Hbone { to, identity } => {
            writeln!(out, "             HBONE to {to}, must prove {identity}")
        }
        Transport::Plaintext { why } => writeln!(out, "             plaintext: {why}"),
        Transport::Undecided => {
            writeln!(out, "             waits: its node has not said whether it captures the pod")
        }
    }
}

fn end(end: &End) -> String {
    match end {
        End::Forwarded { backend } => format!("goes to {backend}"),
        End::Redirected { status, location } => format!("{status} to {location}"),
        End::Preflight { status, headers } => {
            let headers: Vec<String> =
                headers.iter().map(|header| format!("{}: {}", header.name, header.value)).collect();
            format!("{status} to a preflight, {}", headers.join("; "))
        }
        End::Answered { status, grpc_status, reason, message } => {
            let grpc = grpc_status.map(|code| format!(", grpc-status {code}")).unwrap_or_default();
            format!("{status}{grpc} {reason}: {message}")
        }
        End::Connected { backend } => format!("is carried to {backend}"),
        End::Carried { to } => format!("is carried to {to}, unrouted"),
        End::Refused { reason, message } => format!("is reset, {reason}: {message}"),
        End::Passed { message } => format!("is not the mesh's: {message}"),
    }
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if (percent - percent.round()).abs() < 1e-9 {
        format!("{percent:.0} %")
    } else {
        format!("{percent:.2} %")
    }
}
