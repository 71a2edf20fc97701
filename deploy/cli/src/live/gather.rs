//! Reading what `culvert check` and `culvert status` judge.

use std::collections::BTreeMap;

use chrono::Utc;
use culvert_api::names::SYSTEM_NAMESPACE;
use culvert_check::cluster::{
    CILIUM_CONFIG, ClusterFacts, Reading, Right, Stage, TRUST_BUNDLE, TRUST_BUNDLE_KEY, Unread,
};
use culvert_kubernetes::client::{RequestError, within};
use culvert_kubernetes::listing;
use culvert_objects::Kind;
use futures::future::join_all;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Resource;
use kube::api::{Api, ListParams, PostParams};
use kube::core::NamespaceResourceScope;
use serde::de::DeserializeOwned;

use super::target::{Cluster, refused};

const PAGE: u32 = 500;

/// What installing the chart creates: group, resource, and whether it is in the mesh's namespace.
const INSTALLED: &[(&str, &str, Place)] = &[
    ("", "namespaces", Place::Cluster),
    ("apiextensions.k8s.io", "customresourcedefinitions", Place::Cluster),
    ("rbac.authorization.k8s.io", "clusterroles", Place::Cluster),
    ("rbac.authorization.k8s.io", "clusterrolebindings", Place::Cluster),
    ("rbac.authorization.k8s.io", "roles", Place::Own),
    ("rbac.authorization.k8s.io", "rolebindings", Place::Own),
    ("apps", "daemonsets", Place::Own),
    ("apps", "deployments", Place::Own),
    ("policy", "poddisruptionbudgets", Place::Own),
    ("", "services", Place::Own),
    ("", "serviceaccounts", Place::Own),
];

#[derive(Clone, Copy)]
enum Place {
    Cluster,
    Own,
}

/// Reads the facts; what may not be read is among them.
///
/// # Errors
/// When the API server does not say which kinds it has.
pub async fn facts(cluster: &Cluster, stage: Stage, kinds: &[Kind]) -> anyhow::Result<ClusterFacts> {
    let mut facts = ClusterFacts::empty(stage, Utc::now());
    facts.server = Some(cluster.version.clone());
    let client = &cluster.client;
    let system = Api::<ConfigMap>::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let cilium = Api::<ConfigMap>::namespaced(client.clone(), CILIUM_CONFIG.0);
    let (listed, daemon_sets, policies, definitions, cilium, bundle, rights) = tokio::join!(
        listing::list(client, kinds, None),
        all::<DaemonSet>(client),
        all::<NetworkPolicy>(client),
        definitions(client),
        within(cilium.get_opt(CILIUM_CONFIG.1)),
        within(system.get_opt(TRUST_BUNDLE)),
        rights(client, stage),
    );
    let listing = listed.map_err(refused)?;
    facts.objects = listing.objects;
    for (kind, error) in listing.unlisted {
        let what = culvert_kubernetes::discovery::plural(kind);
        facts.unread.push(Unread { what, why: error.to_string() });
    }
    let mut unread = Unreadable(&mut facts.unread);
    facts.daemon_sets = unread.taken("daemonsets", daemon_sets).unwrap_or_default();
    facts.network_policies = unread.taken("networkpolicies", policies).unwrap_or_default();
    facts.definitions = match unread.taken("customresourcedefinitions", definitions) {
        Some(definitions) => Reading::There(definitions),
        None => Reading::NotRead,
    };
    facts.cilium = match unread.taken("configmaps", cilium) {
        Some(Some(map)) => Reading::There(map.data.unwrap_or_default()),
        Some(None) => Reading::Absent,
        None => Reading::NotRead,
    };
    facts.trust_bundle = match unread.taken("configmaps", bundle) {
        Some(Some(map)) => {
            Reading::There(map.data.unwrap_or_default().remove(TRUST_BUNDLE_KEY).unwrap_or_default())
        }
        Some(None) => Reading::Absent,
        None => Reading::NotRead,
    };
    facts.rights = unread.taken("selfsubjectaccessreviews", rights).unwrap_or_default();
    Ok(facts)
}

struct Unreadable<'a>(&'a mut Vec<Unread>);

impl Unreadable<'_> {
    fn taken<T>(&mut self, what: &str, read: Result<T, RequestError>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(error) => {
                let unread = Unread { what: what.to_owned(), why: error.to_string() };
                if !self.0.contains(&unread) {
                    self.0.push(unread);
                }
                None
            }
        }
    }
}

/// Of all namespaces.
async fn all<K>(client: &culvert_kubernetes::Client) -> Result<Vec<K>, RequestError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api = Api::<K>::all(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    let mut items = Vec::new();
    loop {
        let page = within(api.list(&params)).await?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(items),
        }
    }
}

/// Their annotations by name: their schemas are megabytes.
async fn definitions(
    client: &culvert_kubernetes::Client,
) -> Result<BTreeMap<String, BTreeMap<String, String>>, RequestError> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let listed = within(api.list_metadata(&ListParams::default())).await?;
    let metadata = listed.items.into_iter().map(|item| item.metadata);
    Ok(metadata.filter_map(|of| Some((of.name?, of.annotations.unwrap_or_default()))).collect())
}

async fn rights(client: &culvert_kubernetes::Client, stage: Stage) -> Result<Vec<Right>, RequestError> {
    if stage == Stage::Installed {
        return Ok(Vec::new());
    }
    let api = Api::<SelfSubjectAccessReview>::all(client.clone());
    let asked = INSTALLED.iter().map(|(group, resource, place)| {
        let attributes = ResourceAttributes {
            verb: Some("create".to_owned()),
            group: Some((*group).to_owned()),
            resource: Some((*resource).to_owned()),
            namespace: match place {
                Place::Cluster => None,
                Place::Own => Some(SYSTEM_NAMESPACE.to_owned()),
            },
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let api = &api;
        async move { within(api.create(&PostParams::default(), &review)).await }
    });
    let answers = join_all(asked).await;
    answers.into_iter().filter_map(|answer| answer.map(Right::of).transpose()).collect()
}
