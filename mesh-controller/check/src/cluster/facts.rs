//! What is known of a cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use culvert_objects::{Kind, Object, Objects};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::Deserialize as _;
use serde_json::Value;

/// Where Cilium's agents have their settings from.
pub const CILIUM_CONFIG: (&str, &str) = ("kube-system", "cilium-config");
/// Name of the ConfigMap with the roots, in the mesh's namespace.
pub const TRUST_BUNDLE: &str = "culvert-trust-bundle";
/// Its key.
pub const TRUST_BUNDLE_KEY: &str = "roots.pem";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Whether Culvert can be installed.
    BeforeInstall,
    /// Whether it is well.
    Installed,
}

/// Something that is read from the cluster as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Reading<T> {
    /// It could not be: one of [`ClusterFacts::unread`] says why.
    #[default]
    NotRead,
    Absent,
    There(T),
}

/// The answer to a SelfSubjectAccessReview.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    pub verb: String,
    pub group: String,
    /// With its subresource, as in `pods/portforward`.
    pub resource: String,
    /// Empty for cluster-scoped resources and for all namespaces.
    pub namespace: String,
    pub allowed: bool,
}

/// What could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// As in `pods`.
    pub what: String,
    /// The API server's answer.
    pub why: String,
}

/// Everything that findings are made from.
#[derive(Clone, Debug)]
pub struct ClusterFacts {
    pub stage: Stage,
    pub now: DateTime<Utc>,
    /// `gitVersion` of the API server, as `v1.36.3`.
    pub server: Option<String>,
    /// Namespaces, nodes and pods, with their statuses.
    pub objects: Objects,
    pub daemon_sets: Vec<DaemonSet>,
    /// Annotations of the CustomResourceDefinitions, by name, as `httproutes.gateway.networking.k8s.io`.
    pub definitions: Reading<BTreeMap<String, BTreeMap<String, String>>>,
    pub network_policies: Vec<NetworkPolicy>,
    pub cilium: Reading<BTreeMap<String, String>>,
    /// PEM.
    pub trust_bundle: Reading<String>,
    pub rights: Vec<Right>,
    pub unread: Vec<Unread>,
}

impl ClusterFacts {
    /// Of a cluster in which nothing is.
    pub fn empty(stage: Stage, now: DateTime<Utc>) -> Self {
        Self {
            stage,
            now,
            server: None,
            objects: Objects::default(),
            daemon_sets: Vec::new(),
            definitions: Reading::Absent,
            network_policies: Vec::new(),
            cilium: Reading::Absent,
            trust_bundle: Reading::Absent,
            rights: Vec::new(),
            unread: Vec::new(),
        }
    }

    /// Adds an object as the API server sends it; a document with nothing but `gitVersion` and the like is its version, a
    /// `Status` its answer to a request that failed.
    ///
    /// # Errors
    /// When it is none of the kinds that say anything here, or does not read.
    pub fn add(&mut self, document: Value) -> Result<(), serde_json::Error> {
        let text = |field: &str| document.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        match text("kind").as_str() {
            "" => self.server = Some(text("gitVersion")),
            "Status" => {
                let details = document.get("details").and_then(|of| of.get("kind")).and_then(Value::as_str);
                let what = details.unwrap_or_default().to_owned();
                self.unread.push(Unread { what, why: text("message") });
            }
            "DaemonSet" => self.daemon_sets.push(DaemonSet::deserialize(document)?),
            "NetworkPolicy" => self.network_policies.push(NetworkPolicy::deserialize(document)?),
            "CustomResourceDefinition" => {
                let metadata: culvert_objects::Metadata =
                    serde_json::from_value(document.get("metadata").cloned().unwrap_or_default())?;
                let known = std::mem::take(&mut self.definitions);
                let mut definitions = match known {
                    Reading::There(definitions) => definitions,
                    Reading::NotRead | Reading::Absent => BTreeMap::new(),
                };
                definitions.insert(metadata.name, metadata.annotations);
                self.definitions = Reading::There(definitions);
            }
            "SelfSubjectAccessReview" => {
                self.rights.extend(Right::of(SelfSubjectAccessReview::deserialize(document)?));
            }
            "ConfigMap" => self.add_config_map(&Object::deserialize(document)?),
            _ => self.objects.insert(Arc::new(Object::deserialize(document)?)),
        }
        Ok(())
    }

    fn add_config_map(&mut self, object: &Object) {
        let data = object.body.get("data").and_then(Value::as_object).into_iter().flatten();
        let data = data.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
        let mut data: BTreeMap<String, String> = data.collect();
        if object.name() == TRUST_BUNDLE {
            self.trust_bundle = Reading::There(data.remove(TRUST_BUNDLE_KEY).unwrap_or_default());
        } else if (object.namespace(), object.name()) == CILIUM_CONFIG {
            self.cilium = Reading::There(data);
        }
    }

    pub(crate) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        self.objects.of_kind(kind).map(AsRef::as_ref)
    }
}

impl Right {
    /// From an answer of the API server; None when it was not about a resource.
    pub fn of(review: SelfSubjectAccessReview) -> Option<Self> {
        let of = review.spec.resource_attributes?;
        let resource = of.resource.unwrap_or_default();
        Some(Self {
            verb: of.verb.unwrap_or_default(),
            group: of.group.unwrap_or_default(),
            resource: match of.subresource.filter(|sub| !sub.is_empty()) {
                Some(sub) => format!("{resource}/{sub}"),
                None => resource,
            },
            namespace: of.namespace.unwrap_or_default(),
            allowed: review.status.is_some_and(|status| status.allowed),
        })
    }
}
