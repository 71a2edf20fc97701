//! The status of a cluster's mesh as text.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};

use super::{NamespaceStatus, NodeStatus, Status};
use crate::ejected;
use crate::sandbox::get::{Table, duration};

/// Everything.
pub fn text(status: &Status, now: DateTime<Utc>) -> String {
    let mut text = format!("cluster {}, Kubernetes {}\n\n", status.cluster, status.kubernetes);
    if status.components.is_empty() {
        text.push_str("Culvert is not installed: there is none of its pods in culvert-system\n");
    } else {
        text.push_str(&components(status));
    }
    let _ = write!(text, "\n{}\n{}", nodes(&status.nodes, now), namespaces(&status.namespaces));
    let _ = writeln!(text, "{} pods in namespaces outside the mesh", status.pods_outside);
    let proxies = status.nodes.iter().filter_map(|node| node.proxy.as_ref());
    let ejected: Vec<_> = proxies.flat_map(|proxy| proxy.ejected.iter().cloned()).collect();
    if !ejected.is_empty() {
        let _ = write!(text, "\n{}", ejected::table(&ejected));
    }
    if !status.refused_routes.is_empty() {
        let mut table = Table::new(["ROUTE", "PARENT", "CONDITION", "REASON", "MESSAGE"]);
        for of in &status.refused_routes {
            let cells = [&of.route, &of.parent, &of.condition, &of.reason, &of.message];
            table.row(cells.map(Clone::clone).to_vec());
        }
        let _ = write!(text, "\n{}", table.render());
    }
    text.push('\n');
    for root in &status.roots {
        let _ = writeln!(text, "root {}: ends in {}", root.subject, left(root.not_after, now));
    }
    for unknown in &status.unknown {
        let _ = writeln!(text, "not known: {unknown}");
    }
    text
}

fn components(status: &Status) -> String {
    let mut table = Table::new(["COMPONENT", "POD", "NODE", "VERSION", "READY", "MESSAGE"]);
    for part in &status.components {
        let state = match (part.ending, part.ready) {
            (true, _) => "ending",
            (false, true) => "yes",
            (false, false) => "no",
        };
        table.row(vec![
            part.role.as_str().to_owned(),
            part.pod.clone(),
            part.node.clone(),
            part.version.clone(),
            state.to_owned(),
            part.message.clone(),
        ]);
    }
    table.render()
}

fn nodes(nodes: &[NodeStatus], now: DateTime<Utc>) -> String {
    let headings =
        ["NODE", "KERNEL", "NODE PROXY", "VERSION", "CONTROLLER", "ENROLLED", "CERTIFICATES END IN"];
    let mut table = Table::new(headings);
    let mut more = String::new();
    for node in nodes {
        let proxy = node.proxy.as_ref();
        let released = if node.released { ", released" } else { "" };
        let controller = proxy.map(|proxy| match (proxy.connected, proxy.stale) {
            (true, _) => "connected",
            (false, true) => "away, since before its start",
            (false, false) => "away",
        });
        let end = proxy.and_then(|proxy| proxy.first_end).map(|end| left(end, now));
        table.row(vec![
            node.name.clone(),
            node.kernel.clone(),
            format!("{}{released}", node.node_proxy),
            proxy.map(|proxy| proxy.version.clone()).unwrap_or_default(),
            controller.unwrap_or_default().to_owned(),
            node.enrolled.to_string(),
            end.unwrap_or_default(),
        ]);
        for refused in proxy.iter().flat_map(|proxy| &proxy.refused) {
            let _ = writeln!(more, "refused by the node proxy of {}: {refused}", node.name);
        }
        for failing in proxy.iter().flat_map(|proxy| &proxy.failing) {
            let _ = writeln!(more, "no certificate on {}: {failing}", node.name);
        }
    }
    table.render() + &more
}

fn namespaces(namespaces: &[NamespaceStatus]) -> String {
    if namespaces.is_empty() {
        return "no namespace is in the mesh: kubectl label namespace NAME culvert.dev/mesh=enabled\n"
            .to_owned();
    }
    let mut table = Table::new(["NAMESPACE", "LABEL", "ENROLLED", "WAITING", "LEAVING", "OUTSIDE"]);
    let mut more = String::new();
    for namespace in namespaces {
        let counts = [namespace.enrolled, namespace.waiting, namespace.leaving, namespace.outside];
        let names = [namespace.name.clone(), namespace.label.clone()].into_iter();
        table.row(names.chain(counts.map(|count| count.to_string())).collect());
        for reason in &namespace.reasons {
            let which = match reason.pods {
                1 => format!("pod {}", reason.pod),
                pods => format!("{pods} pods, {} among them", reason.pod),
            };
            let _ = writeln!(more, "waiting in {}: {} ({which})", namespace.name, reason.why);
        }
    }
    table.render() + &more
}

fn left(end: DateTime<Utc>, now: DateTime<Utc>) -> String {
    match (end - now).num_seconds() {
        seconds if seconds > 0 => duration(seconds),
        _ => "ended".to_owned(),
    }
}
