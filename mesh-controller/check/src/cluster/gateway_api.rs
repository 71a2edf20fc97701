//! Which bundle of the Gateway API is installed, and what it lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::facts::{ClusterFacts, Reading};
use super::report::ClusterFinding;
use super::{finding, list, version};
use crate::code::Code;

const GROUPS: [&str; 2] = ["gateway.networking.k8s.io", "gateway.networking.x-k8s.io"];
const BUNDLE_VERSION: &str = "gateway.networking.k8s.io/bundle-version";
const CHANNEL: &str = "gateway.networking.k8s.io/channel";
const MESH_CONFIG: &str = "meshconfigs.culvert.dev";
/// The oldest that is tried.
const OLDEST: (u32, u32) = (1, 2);
const INSTALL: &str = "install the CRDs as https://gateway-api.sigs.k8s.io/guides/ says; Culvert picks them up without a restart. \
    Version 1.6, experimental channel, has everything";

/// Names of CRDs, the kind, and what there is not without it. Several names are one thing in different bundles.
const WANTED: &[(&[&str], &str, &str)] = &[
    (&["httproutes.gateway.networking.k8s.io"], "HTTPRoute", "no routes for HTTP"),
    (&["grpcroutes.gateway.networking.k8s.io"], "GRPCRoute", "no routes for gRPC"),
    (&["gatewayclasses.gateway.networking.k8s.io"], "GatewayClass", "no Gateways"),
    (&["gateways.gateway.networking.k8s.io"], "Gateway", "no Gateways"),
    (
        &["referencegrants.gateway.networking.k8s.io"],
        "ReferenceGrant",
        "Gateways' routes reach no backends of other namespaces",
    ),
    (&["tlsroutes.gateway.networking.k8s.io"], "TLSRoute", "no routes by server name"),
    (&["tcproutes.gateway.networking.k8s.io"], "TCPRoute", "no routes for TCP"),
    (&["udproutes.gateway.networking.k8s.io"], "UDPRoute", "no routes for UDP"),
    (
        &["backendtlspolicies.gateway.networking.k8s.io"],
        "BackendTLSPolicy",
        "no TLS to backends outside the mesh",
    ),
    (
        &["listenersets.gateway.networking.k8s.io", "xlistenersets.gateway.networking.x-k8s.io"],
        "ListenerSet",
        "no listeners of others at a Gateway",
    ),
    (
        &["xbackendtrafficpolicies.gateway.networking.x-k8s.io"],
        "XBackendTrafficPolicy",
        "no budgets for retries but the default",
    ),
    (&["xmeshes.gateway.networking.x-k8s.io"], "XMesh", "no object that says what the mesh supports"),
];

/// Fields of an HTTPRoute that bundles before a version do not have, or have in the experimental channel only.
struct Fields {
    names: &'static str,
    /// The first bundle with them at all.
    from: (u32, u32),
    /// The first whose standard channel has them.
    standard_from: Option<(u32, u32)>,
}

const FIELDS: &[Fields] = &[
    Fields { names: "retry, sessionPersistence", from: (1, 2), standard_from: None },
    Fields { names: "the filter ExternalAuth", from: (1, 4), standard_from: None },
    Fields { names: "the filter CORS", from: (1, 4), standard_from: Some((1, 5)) },
    Fields {
        names: "percent and fraction of the filter RequestMirror",
        from: (1, 2),
        standard_from: Some((1, 3)),
    },
    Fields { names: "the name of a rule", from: (1, 2), standard_from: Some((1, 4)) },
];

/// What is installed, as the CRDs' annotations say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bundle {
    /// The oldest, where there are several; empty where none is said.
    pub version: String,
    /// `standard` or `experimental`.
    pub channel: String,
    /// Every `VERSION CHANNEL` that some kind is of.
    pub all: Vec<String>,
}

impl fmt::Display for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.all.join(" and "))
    }
}

/// None without any kind of the Gateway API, or where CRDs could not be read.
pub fn bundle(facts: &ClusterFacts) -> Option<Bundle> {
    let definitions = definitions(facts)?;
    let said =
        |annotations: &BTreeMap<String, String>, key: &str| annotations.get(key).cloned().unwrap_or_default();
    let versions = definitions.iter().filter(|(name, _)| is_of_gateway_api(name));
    let versions: BTreeSet<(String, String)> =
        versions.map(|(_, at)| (said(at, BUNDLE_VERSION), said(at, CHANNEL))).collect();
    let oldest = versions.iter().min_by_key(|(of, _)| version::numbers(of))?;
    let name = |(version, channel): &(String, String)| match version.as_str() {
        "" => "a version that is not said".to_owned(),
        version => format!("{version} {channel}").trim().to_owned(),
    };
    Some(Bundle {
        version: oldest.0.clone(),
        channel: oldest.1.clone(),
        all: versions.iter().map(name).collect(),
    })
}

fn definitions(facts: &ClusterFacts) -> Option<&BTreeMap<String, BTreeMap<String, String>>> {
    static NONE: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    match &facts.definitions {
        Reading::NotRead => None,
        Reading::Absent => Some(&NONE),
        Reading::There(definitions) => Some(definitions),
    }
}

fn is_of_gateway_api(name: &str) -> bool {
    name.split_once('.').is_some_and(|(_, group)| GROUPS.contains(&group))
}

pub fn find(facts: &ClusterFacts) -> Vec<ClusterFinding> {
    let Some(definitions) = definitions(facts) else { return Vec::new() };
    let mut all = Vec::new();
    match bundle(facts) {
        None => all.push(finding(
            Code::NoGatewayApi,
            "",
            "",
            "there are no kinds of the Gateway API: pods are enrolled and their connections encrypted, and there are no routes",
            INSTALL,
        )),
        Some(bundle) => all.extend(of_bundle(&bundle, definitions)),
    }
    let installed = facts.stage == super::Stage::Installed;
    if installed && !definitions.contains_key(MESH_CONFIG) {
        all.push(finding(
            Code::NoMeshConfig,
            format!("CustomResourceDefinition {MESH_CONFIG}"),
            "",
            "there is no kind MeshConfig: the mesh has its defaults, and only annotations on namespaces and pods change them",
            "kubectl apply -f deploy/crds/meshconfigs.yaml",
        ));
    }
    all
}

fn of_bundle(
    bundle: &Bundle,
    definitions: &BTreeMap<String, BTreeMap<String, String>>,
) -> Vec<ClusterFinding> {
    let mut all = Vec::new();
    let numbers = version::numbers(&bundle.version);
    if numbers.is_some_and(|numbers| numbers < OLDEST) {
        all.push(finding(
            Code::OldBundle,
            "",
            "",
            format!("the Gateway API is {bundle}; Culvert is tried with 1.2 and later, and GRPCRoute, weights and statuses of older ones differ"),
            INSTALL,
        ));
    }
    if bundle.all.len() > 1 {
        let others = |name: &&String| {
            let version = definitions.get(*name).and_then(|at| at.get(BUNDLE_VERSION));
            is_of_gateway_api(name) && version == Some(&bundle.version)
        };
        all.push(finding(
            Code::MixedBundles,
            "",
            "",
            format!(
                "the kinds of the Gateway API are of different bundles, {bundle}; of {} {}: {}",
                bundle.version,
                bundle.channel,
                list(definitions.keys().filter(others))
            ),
            "install one bundle whole; kinds that it no longer has can be deleted when they have no objects",
        ));
    }
    let lacking =
        WANTED.iter().filter(|(names, ..)| !names.iter().any(|name| definitions.contains_key(*name)));
    let mut lacking: Vec<String> = lacking.map(|(_, kind, without)| format!("{kind} ({without})")).collect();
    let fields = numbers.map(|numbers| fields_lacking(numbers, &bundle.channel)).unwrap_or_default();
    if !fields.is_empty() {
        lacking.push(format!("of HTTPRoute {}", list(fields)));
    }
    if !lacking.is_empty() {
        all.push(finding(
            Code::BundleLacks,
            "",
            "",
            format!("the Gateway API is {bundle}, which lacks {}", lacking.join(", ")),
            INSTALL,
        ));
    }
    all
}

fn fields_lacking(numbers: (u32, u32), channel: &str) -> Vec<&'static str> {
    let is_standard = channel == "standard";
    let lacks = |fields: &&Fields| {
        numbers < fields.from || (is_standard && fields.standard_from.is_none_or(|from| numbers < from))
    };
    FIELDS.iter().filter(lacks).map(|fields| fields.names).collect()
}
