//! The status as text.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};

use super::{Connections, Status};
use crate::ejected;
use crate::sandbox::get::{Table, duration};

/// Everything.
pub fn overview(status: &Status, now: DateTime<Utc>) -> String {
    let mut text = format!("sandbox {}\n\n", status.sandbox);
    let mut nodes = Table::new(["NODE", "ADDRESSES", "ZONE", "PODS"]);
    for node in &status.nodes {
        nodes.row(vec![
            node.name.clone(),
            node.addresses.join(","),
            node.zone.clone(),
            node.pods.to_string(),
        ]);
    }
    let mut components = Table::new(["COMPONENT", "READY", "RESTARTS", "UP", "MESSAGE"]);
    for component in &status.components {
        components.row(vec![
            component.state.name.clone(),
            yes(component.ready),
            component.state.restarts.to_string(),
            component.state.since.map(|since| duration((now - since).num_seconds())).unwrap_or_default(),
            one_line(&component.message),
        ]);
    }
    let headings = ["NAMESPACE", "POD", "NODE", "READY", "MESH", "IDENTITY", "CERTIFICATE", "UNCAPTURED"];
    let mut pods = Table::new(headings);
    for pod in &status.pods {
        let left = pod.certificate_not_after.map(|end| (end - now).num_seconds());
        pods.row(vec![
            pod.namespace.clone(),
            pod.name.clone(),
            pod.node.clone(),
            yes(pod.ready),
            pod.enrolment.clone(),
            pod.identity.clone().unwrap_or_default(),
            left.map(|left| if left > 0 { duration(left) } else { "expired".to_owned() }).unwrap_or_default(),
            pod.uncaptured_connections.to_string(),
        ]);
    }
    let _ = write!(text, "{}\n{}\n", nodes.render(), components.render());
    if status.pods.is_empty() {
        text.push_str("no pods\n");
    } else {
        text.push_str(&pods.render());
    }
    if !status.ejected.is_empty() {
        let _ = write!(text, "\n{}", ejected::table(&status.ejected));
    }
    let _ = write!(text, "\n{}", traffic(&status.connections));
    text
}

/// Who talks plaintext, and why.
pub fn plaintext(status: &Status) -> String {
    let mut text = String::new();
    let mut pods = Table::new(["NAMESPACE", "POD", "MESH", "UNCAPTURED", "WHY"]);
    let open: Vec<_> = status.pods.iter().filter(|pod| pod.is_plaintext()).collect();
    for pod in &open {
        let why = match pod.uncaptured_connections {
            0 => one_line(&pod.message),
            count => format!("{count} connection(s) from before the enrolment are still open"),
        };
        pods.row(vec![
            pod.namespace.clone(),
            pod.name.clone(),
            pod.enrolment.clone(),
            pod.uncaptured_connections.to_string(),
            why,
        ]);
    }
    if open.is_empty() {
        text.push_str("every pod is enrolled\n");
    } else {
        text.push_str(&pods.render());
    }
    text.push('\n');
    let mut peers = Table::new(["REPORTED BY", "SOURCE", "DESTINATION", "CONNECTIONS", "WHY"]);
    for pair in &status.connections.peers {
        peers.row(vec![
            pair.node.clone(),
            pair.source.clone(),
            pair.destination.clone(),
            pair.connections.to_string(),
            pair.why.clone(),
        ]);
    }
    if status.connections.peers.is_empty() {
        text.push_str("no enrolled pod has had a plaintext connection\n");
    } else {
        text.push_str(&peers.render());
    }
    let _ = write!(text, "\n{}", traffic(&status.connections));
    text
}

fn traffic(connections: &Connections) -> String {
    let Some(share) = connections.share_encrypted() else {
        return "no connections of enrolled pods yet\n".to_owned();
    };
    let mut text =
        format!("{} connections of enrolled pods, {share:.1} % under mutual TLS\n", connections.total);
    for group in &connections.plaintext {
        let _ = writeln!(text, "  plaintext: {} {}, {}", group.connections, group.direction, group.why);
    }
    text
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::status::{NodeReport, PodReport};

    fn status() -> Status {
        let pod = |name: &str, enrolment: &str, uncaptured: u64| PodReport {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            node: "node1".to_owned(),
            phase: "Running".to_owned(),
            ready: true,
            enrolment: enrolment.to_owned(),
            message: "the pod has the label\nculvert.dev/mesh=disabled".to_owned(),
            identity: None,
            certificate_not_after: DateTime::from_timestamp(1000, 0),
            uncaptured_connections: uncaptured,
        };
        Status {
            sandbox: "default".to_owned(),
            nodes: vec![NodeReport {
                name: "node1".to_owned(),
                addresses: vec!["10.89.0.11".to_owned()],
                zone: "zone1".to_owned(),
                pods: 3,
            }],
            components: Vec::new(),
            pods: vec![pod("good", "Enrolled", 0), pod("old", "Enrolled", 3), pod("out", "NotEnrolled", 0)],
            ejected: Vec::new(),
            connections: Connections { total: 3, mutual_tls: 2, ..Connections::default() },
            share_encrypted: Some(66.7),
        }
    }

    #[test]
    fn the_overview_shows_every_pod() {
        let text = overview(&status(), DateTime::UNIX_EPOCH);
        assert!(
            text.contains("shop        good   node1   yes     Enrolled      -          16m           0"),
            "{text}"
        );
        assert!(text.contains("3 connections of enrolled pods, 66.7 % under mutual TLS"), "{text}");
    }

    #[test]
    fn plaintext_names_pods_and_reasons() {
        let text = plaintext(&status());
        assert!(!text.contains("good"), "{text}");
        assert!(text.contains("3 connection(s) from before the enrolment"), "{text}");
        assert!(text.contains("the pod has the label culvert.dev/mesh=disabled"), "{text}");
        assert!(text.contains("no enrolled pod has had a plaintext connection"), "{text}");
    }
}
