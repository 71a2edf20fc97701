//! The kinds that Culvert reads, with every API version of them ever served.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// Why an object is skipped rather than read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UnknownKind {
    #[error("kind {0:?} is not supported")]
    Kind(String),
    #[error("version {version:?} of {kind} is not supported; {supported} is")]
    Version { kind: Kind, version: String, supported: String },
}

macro_rules! kinds {
    ($($variant:ident $name:literal $scope:ident [$($version:literal),+];)+) => {
        /// A supported kind. Its name is unique over all the groups read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind { $($variant),+ }

        impl Kind {
            /// Every supported kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant),+];

            /// The kind as manifests spell it.
            pub fn as_str(self) -> &'static str {
                match self { $(Kind::$variant => $name),+ }
            }

            pub fn scope(self) -> Scope {
                match self { $(Kind::$variant => Scope::$scope),+ }
            }

            /// `apiVersion` values under which the kind is or was served, the newest first.
            pub fn api_versions(self) -> &'static [&'static str] {
                match self { $(Kind::$variant => &[$($version),+]),+ }
            }
        }
    };
}

kinds! {
    Namespace "Namespace" Cluster ["v1"];
    Node "Node" Cluster ["v1"];
    ServiceAccount "ServiceAccount" Namespaced ["v1"];
    ConfigMap "ConfigMap" Namespaced ["v1"];
    Secret "Secret" Namespaced ["v1"];
    Service "Service" Namespaced ["v1"];
    Deployment "Deployment" Namespaced ["apps/v1"];
    Pod "Pod" Namespaced ["v1"];
    EndpointSlice "EndpointSlice" Namespaced ["discovery.k8s.io/v1", "discovery.k8s.io/v1beta1"];
    MeshConfig "MeshConfig" Cluster ["culvert.dev/v1alpha1"];
    GatewayClass "GatewayClass" Cluster
        ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1", "gateway.networking.k8s.io/v1alpha2"];
    Gateway "Gateway" Namespaced
        ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1", "gateway.networking.k8s.io/v1alpha2"];
    ListenerSet "ListenerSet" Namespaced ["gateway.networking.k8s.io/v1"];
    XListenerSet "XListenerSet" Namespaced ["gateway.networking.x-k8s.io/v1alpha1"];
    HttpRoute "HTTPRoute" Namespaced
        ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1", "gateway.networking.k8s.io/v1alpha2"];
    GrpcRoute "GRPCRoute" Namespaced ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"];
    TlsRoute "TLSRoute" Namespaced
        ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha3", "gateway.networking.k8s.io/v1alpha2"];
    TcpRoute "TCPRoute" Namespaced ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"];
    UdpRoute "UDPRoute" Namespaced ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"];
    ReferenceGrant "ReferenceGrant" Namespaced
        ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1", "gateway.networking.k8s.io/v1alpha2"];
    ReferencePolicy "ReferencePolicy" Namespaced ["gateway.networking.k8s.io/v1alpha2"];
    BackendTlsPolicy "BackendTLSPolicy" Namespaced
        ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha3", "gateway.networking.k8s.io/v1alpha2"];
    BackendLbPolicy "BackendLBPolicy" Namespaced ["gateway.networking.k8s.io/v1alpha2"];
    XBackendTrafficPolicy "XBackendTrafficPolicy" Namespaced ["gateway.networking.x-k8s.io/v1alpha1"];
    XBackend "XBackend" Namespaced ["gateway.networking.x-k8s.io/v1alpha1"];
    XMesh "XMesh" Cluster ["gateway.networking.x-k8s.io/v1alpha1"];
}

impl Kind {
    /// The route kinds of the Gateway API.
    pub const ROUTES: &'static [Kind] =
        &[Kind::HttpRoute, Kind::GrpcRoute, Kind::TlsRoute, Kind::TcpRoute, Kind::UdpRoute];

    /// # Errors
    /// When the kind, or that version of it, is not one Culvert reads.
    pub fn of(api_version: &str, kind: &str) -> Result<Self, UnknownKind> {
        let found: Kind = kind.parse()?;
        let group = |version: &str| version.rsplit_once('/').map(|(group, _)| group.to_owned());
        if found.api_versions().contains(&api_version) {
            return Ok(found);
        }
        // The same name in a group that is not ours is another kind altogether.
        if found.api_versions().iter().all(|version| group(version) != group(api_version)) {
            return Err(UnknownKind::Kind(format!("{api_version} {kind}")));
        }
        Err(UnknownKind::Version {
            kind: found,
            version: api_version.to_owned(),
            supported: found.api_versions().join(", "),
        })
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Kind::ALL.iter().find(|kind| kind.as_str() == text);
        found.copied().ok_or_else(|| UnknownKind::Kind(text.to_owned()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_group_version_and_name() {
        assert_eq!(Kind::of("v1", "Pod"), Ok(Kind::Pod));
        assert_eq!(Kind::of("gateway.networking.k8s.io/v1beta1", "HTTPRoute"), Ok(Kind::HttpRoute));
        assert_eq!(Kind::of("gateway.networking.x-k8s.io/v1alpha1", "XMesh"), Ok(Kind::XMesh));
    }

    #[test]
    fn other_groups_versions_and_kinds_are_named() {
        assert!(matches!(Kind::of("apps/v1beta1", "Deployment"), Err(UnknownKind::Version { .. })));
        assert!(matches!(Kind::of("serving.knative.dev/v1", "Service"), Err(UnknownKind::Kind(_))));
        assert!(matches!(Kind::of("batch/v1", "Job"), Err(UnknownKind::Kind(_))));
    }
}
