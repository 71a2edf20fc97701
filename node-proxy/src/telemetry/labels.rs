//! The label values of Istio's TCP metrics. Built from shared parts, so that building and comparing copies no text.

use std::fmt;
use std::sync::Arc;

use culvert_identity::Identity;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::connection::{ConnectionMeta, Reporter};
use super::spec::TCP_LABELS;
use crate::reason::Reason;
use crate::state::model::{ServiceKey, Workload, WorkloadLabels};

/// What Istio writes where a value is not known.
const UNKNOWN: &str = "unknown";
/// The suffix of Service names in Kubernetes.
const SERVICE_SUFFIX: &str = "svc.cluster.local";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TcpLabels {
    pub reporter: Reporter,
    pub source: Peer,
    pub destination: Peer,
    pub service: Option<ServiceKey>,
    /// `None` is written `-`.
    pub failure: Option<Reason>,
    pub security: &'static str,
}

/// One end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    pub workload: Option<Labelled>,
    pub principal: Option<Identity>,
}

/// The workloads that share a series: same namespace, same labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Labelled {
    pub namespace: Arc<str>,
    pub labels: Arc<WorkloadLabels>,
    pub cluster: Arc<str>,
}

impl Peer {
    fn new(workload: Option<&Arc<Workload>>, principal: Option<&Identity>) -> Self {
        let workload = workload.map(|workload| Labelled {
            namespace: workload.namespace.clone(),
            labels: workload.labels.clone(),
            cluster: workload.cluster.clone(),
        });
        Self { workload, principal: principal.cloned() }
    }

    /// Workload, canonical service, canonical revision, namespace, principal, app, version, cluster: in the order in
    /// which they are written.
    fn values(&self) -> [&str; 8] {
        let principal = self.principal.as_ref().map_or("", Identity::uri);
        let Some(workload) = &self.workload else {
            let namespace = self.principal.as_ref().map_or("", Identity::namespace);
            return ["", "", "", namespace, principal, "", "", ""];
        };
        let labels = &workload.labels;
        [
            &labels.workload,
            &labels.canonical_service,
            &labels.canonical_revision,
            &workload.namespace,
            principal,
            &labels.app,
            &labels.version,
            &workload.cluster,
        ]
    }
}

impl TcpLabels {
    pub fn new(meta: &ConnectionMeta, failure: Option<Reason>) -> Self {
        Self {
            reporter: meta.reporter,
            source: Peer::new(meta.source.as_ref(), meta.source_identity.as_ref()),
            destination: Peer::new(meta.destination.as_ref(), meta.destination_identity.as_ref()),
            service: meta
                .service
                .as_ref()
                .map(|service| service.key.clone())
                .or_else(|| guessed_service(meta)),
            failure,
            security: meta.security.as_str(),
        }
    }

    /// The end that this node runs.
    pub fn own(&self) -> &Peer {
        match self.reporter {
            Reporter::Source => &self.source,
            Reporter::Destination => &self.destination,
        }
    }

    /// The other end.
    pub fn other(&self) -> &Peer {
        match self.reporter {
            Reporter::Source => &self.destination,
            Reporter::Destination => &self.source,
        }
    }

    fn response_flags(&self) -> &'static str {
        self.failure.map_or("-", Reason::as_str)
    }
}

/// A server's node is not told which Service the client dialled: if exactly one leads to the port, it is that one.
fn guessed_service(meta: &ConnectionMeta) -> Option<ServiceKey> {
    let destination = meta.destination.as_ref().filter(|_| meta.reporter == Reporter::Destination)?;
    let port = meta.destination_addr.port();
    let mut leading = destination
        .memberships
        .iter()
        .filter(|membership| membership.ports.iter().any(|(_, target)| *target == port));
    match (leading.next(), leading.next()) {
        (Some(only), None) => Some(only.service.clone()),
        _ => None,
    }
}

fn or_unknown(value: &str) -> &str {
    if value.is_empty() { UNKNOWN } else { value }
}

impl EncodeLabelSet for TcpLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        self.encode_as(self.reporter(), "tcp", encoder)
    }
}

impl TcpLabels {
    pub fn reporter(&self) -> &'static str {
        match self.reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        }
    }

    pub fn encode_as(
        &self,
        reporter: &str,
        protocol: &str,
        encoder: &mut LabelSetEncoder<'_>,
    ) -> Result<(), fmt::Error> {
        let (namespace, name) =
            self.service.as_ref().and_then(|key| key.0.split_once('/')).unwrap_or_default();
        let host =
            if name.is_empty() { String::new() } else { format!("{name}.{namespace}.{SERVICE_SUFFIX}") };
        let values = [reporter]
            .into_iter()
            .chain(self.source.values())
            .chain([host.as_str(), namespace, name])
            .chain(self.destination.values())
            .chain([protocol, self.response_flags(), self.security]);
        for (label, value) in TCP_LABELS.iter().zip(values) {
            (*label, or_unknown(value)).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}
