//! How much of the traffic is encrypted, and why the rest is not, from the node proxies' metrics. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::metrics::Sample;

/// Connections that the node proxies have carried since they started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connections {
    /// Opened, counted on each side that is captured.
    pub total: u64,
    /// Of those, under mutual TLS.
    pub mutual_tls: u64,
    /// The others, by direction and reason.
    pub plaintext: Vec<Plaintext>,
    /// Who talked plaintext to whom.
    pub peers: Vec<PlaintextPeers>,
}

/// Plaintext connections of one direction, for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plaintext {
    /// `inbound` or `outbound`, seen from the captured pod.
    pub direction: String,
    pub why: String,
    pub connections: u64,
}

/// Plaintext connections between two workloads, as one of them reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaintextPeers {
    pub node: String,
    /// `namespace/workload`, or `unknown`.
    pub source: String,
    pub destination: String,
    pub why: String,
    pub connections: u64,
}

impl Connections {
    /// Percent under mutual TLS; none where nothing was carried.
    #[must_use]
    pub fn share_encrypted(&self) -> Option<f64> {
        (self.total > 0).then(|| self.mutual_tls as f64 * 100.0 / self.total as f64)
    }

    /// Sums up the metrics of several nodes.
    #[must_use]
    pub fn sum(nodes: &[(String, Vec<Sample>)]) -> Self {
        let mut sum = Self::default();
        let mut reasons: BTreeMap<(String, String), u64> = BTreeMap::new();
        let mut peers: BTreeMap<(String, String, String, String), u64> = BTreeMap::new();
        for (node, samples) in nodes {
            for sample in samples {
                // Counters are whole numbers that fit.
                let count = sample.value as u64;
                match sample.name.as_str() {
                    "culvert_connections_total" => {
                        // Probes are the kubelet's: listed, but no part of what applications send.
                        if sample.label("why") != "Probe" {
                            sum.total += count;
                        }
                        if sample.label("security") == "mutual_tls" {
                            sum.mutual_tls += count;
                        } else {
                            let key = (sample.label("direction").to_owned(), sample.label("why").to_owned());
                            *reasons.entry(key).or_default() += count;
                        }
                    }
                    "istio_tcp_connections_opened_total"
                        if sample.label("connection_security_policy") == "none" =>
                    {
                        let [source, destination] =
                            ["source", "destination"].map(|end| workload(sample, end));
                        let why = why(sample).to_owned();
                        *peers.entry((node.clone(), source, destination, why)).or_default() += count;
                    }
                    _ => {}
                }
            }
        }
        let some = |count: &u64| *count > 0;
        sum.plaintext = reasons
            .into_iter()
            .filter(|(_, count)| some(count))
            .map(|((direction, why), connections)| Plaintext { direction, why, connections })
            .collect();
        sum.peers = peers
            .into_iter()
            .filter(|(_, count)| some(count))
            .map(|((node, source, destination, why), connections)| PlaintextPeers {
                node,
                source,
                destination,
                why,
                connections,
            })
            .collect();
        sum
    }
}

/// What Istio's metrics say where nothing is known.
const UNKNOWN: &str = "unknown";

fn workload(sample: &Sample, end: &str) -> String {
    let name = sample.label(&format!("{end}_workload"));
    let namespace = sample.label(&format!("{end}_workload_namespace"));
    if name.is_empty() || name == UNKNOWN {
        return UNKNOWN.to_owned();
    }
    format!("{namespace}/{name}")
}

/// The metric with the names does not carry the reason; who reports, and whether the other end is a workload, tells.
fn why(sample: &Sample) -> &'static str {
    let known = |end: &str| workload(sample, end) != UNKNOWN;
    match sample.label("reporter") {
        "source" if known("destination") => "the destination is not enrolled",
        "source" => "the destination is outside the mesh",
        _ if known("source") => "the source is not enrolled",
        _ => "the source is a node (as probes are) or outside the mesh",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::status::metrics::parse;

    #[test]
    fn shares_and_reasons_are_summed_over_nodes() {
        let node1 = "culvert_connections_total{direction=\"outbound\",security=\"mutual_tls\",why=\"\"} 8\n\
            culvert_connections_total{direction=\"outbound\",security=\"none\",why=\"DestinationNotEnrolled\"} 1\n\
            istio_tcp_connections_opened_total{reporter=\"source\",source_workload=\"a\",source_workload_namespace=\"shop\",\
            destination_workload=\"b\",destination_workload_namespace=\"bank\",connection_security_policy=\"none\"} 1\n\
            istio_tcp_connections_opened_total{reporter=\"source\",connection_security_policy=\"mutual_tls\"} 8\n";
        let node2 = "culvert_connections_total{direction=\"inbound\",security=\"none\",why=\"Probe\"} 7\n\
            culvert_connections_total{direction=\"inbound\",security=\"none\",why=\"SourceOutsideMesh\"} 1\n\
            culvert_connections_total{direction=\"inbound\",security=\"none\",why=\"Leaving\"} 0\n\
            istio_tcp_connections_opened_total{reporter=\"destination\",source_workload=\"unknown\",\
            destination_workload=\"a\",destination_workload_namespace=\"shop\",connection_security_policy=\"none\"} 1\n";
        let sum = Connections::sum(&[("node1".to_owned(), parse(node1)), ("node2".to_owned(), parse(node2))]);
        assert_eq!((sum.total, sum.mutual_tls), (10, 8));
        assert_eq!(sum.share_encrypted(), Some(80.0));
        let reasons: Vec<(&str, u64)> =
            sum.plaintext.iter().map(|p| (p.why.as_str(), p.connections)).collect();
        assert_eq!(reasons, [("Probe", 7), ("SourceOutsideMesh", 1), ("DestinationNotEnrolled", 1)]);
        assert_eq!(sum.peers[0].source, "shop/a");
        assert_eq!(sum.peers[0].why, "the destination is not enrolled");
        assert_eq!((sum.peers[1].node.as_str(), sum.peers[1].source.as_str()), ("node2", "unknown"));
        assert_eq!(Connections::default().share_encrypted(), None);
    }
}
