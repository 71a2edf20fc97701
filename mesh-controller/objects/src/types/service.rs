//! Service.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::value::{PortRef, Protocol, optional_port, port};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionAffinity {
    #[default]
    None,
    #[serde(rename = "ClientIP")]
    ClientIp,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// An address, `None` for a headless Service, or empty before it has one.
    #[serde(rename = "clusterIP", skip_serializing_if = "String::is_empty")]
    pub cluster_ip: String,
    #[serde(rename = "clusterIPs", skip_serializing_if = "Vec::is_empty")]
    pub cluster_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_families: Vec<String>,
    /// SingleStack, PreferDualStack, RequireDualStack or empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip_family_policy: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
    /// Empty: endpoints are written by somebody else.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    pub session_affinity: SessionAffinity,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// Cluster (also when empty) or Local.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub internal_traffic_policy: String,
    /// PreferSameZone, PreferSameNode, PreferClose or empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub traffic_distribution: String,
    pub publish_not_ready_addresses: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub external_name: String,
}

impl ServiceSpec {
    pub fn is_headless(&self) -> bool {
        self.kind != ServiceType::ExternalName
            && (self.cluster_ip == "None"
                || self.cluster_ips.first().is_some_and(|address| address == "None"))
    }

    /// The virtual addresses, the primary one first; none for a headless Service or one without address yet.
    pub fn vips(&self) -> Vec<IpAddr> {
        if self.kind == ServiceType::ExternalName {
            return Vec::new();
        }
        let mut vips: Vec<IpAddr> = Vec::new();
        for text in std::iter::once(&self.cluster_ip).chain(&self.cluster_ips) {
            if let Ok(address) = text.parse()
                && !vips.contains(&address)
            {
                vips.push(address);
            }
        }
        vips
    }

    /// Seconds of ClientIP affinity (three hours unless set), None without affinity.
    pub fn client_ip_affinity_seconds(&self) -> Option<u32> {
        if self.session_affinity != SessionAffinity::ClientIp {
            return None;
        }
        let config = self.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        Some(config.and_then(|client_ip| client_ip.timeout_seconds).unwrap_or(10_800))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default)]
    pub protocol: Protocol,
    #[serde(deserialize_with = "port")]
    pub port: u16,
    /// The number of `port` unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<PortRef>,
    #[serde(default, deserialize_with = "optional_port", skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    pub timeout_seconds: Option<u32>,
}
