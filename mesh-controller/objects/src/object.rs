//! One object: what every kind has in common is typed, the rest is kept as written.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::kinds::{Kind, Scope};

/// What is wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// Path as in `spec.ports[0].port`.
    pub field: String,
    /// What was found and what was expected.
    pub message: String,
}

impl FieldError {
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// A Kubernetes object. Reading and writing it loses nothing: unknown fields stay in `body` and `metadata.rest`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Object {
    pub api_version: String,
    pub kind: Kind,
    #[serde(default)]
    pub metadata: Metadata,
    /// Every other top-level field (`spec`, `status`, `data`, ...) in the order written.
    #[serde(flatten)]
    pub body: Map<String, Value>,
}

/// `metadata` of an object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    #[serde(default)]
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<OwnerReference>,
    /// Fields that Culvert does not know.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// One of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerReference {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    #[serde(default)]
    pub uid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

/// Names an object among all that live at one time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey {
    pub kind: Kind,
    /// None for cluster-scoped kinds.
    pub namespace: Option<String>,
    pub name: String,
}

impl ObjectKey {
    /// Key of an object in a namespace.
    pub fn namespaced(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: Some(namespace.into()), name: name.into() }
    }

    /// Key of a cluster-scoped object.
    pub fn cluster(kind: Kind, name: impl Into<String>) -> Self {
        Self { kind, namespace: None, name: name.into() }
    }

    /// Where an object lies below an objects or statuses directory: `Kind/namespace-or-_cluster/name.json`.
    pub fn relative_path(&self) -> std::path::PathBuf {
        let namespace = self.namespace.as_deref().unwrap_or("_cluster");
        [self.kind.as_str(), namespace, &format!("{}.json", self.name)].iter().collect()
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

impl Object {
    /// An object without body, of the newest version of its kind.
    pub fn new(key: ObjectKey) -> Self {
        Self {
            api_version: key.kind.api_versions()[0].to_owned(),
            kind: key.kind,
            metadata: Metadata { name: key.name, namespace: key.namespace, ..Metadata::default() },
            body: Map::new(),
        }
    }

    pub fn key(&self) -> ObjectKey {
        let namespace = match self.kind.scope() {
            Scope::Cluster => None,
            Scope::Namespaced => Some(self.namespace().to_owned()),
        };
        ObjectKey { kind: self.kind, namespace, name: self.metadata.name.clone() }
    }

    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// `metadata.namespace`, `default` where a namespaced object has none, empty for cluster-scoped kinds.
    pub fn namespace(&self) -> &str {
        match (self.kind.scope(), &self.metadata.namespace) {
            (Scope::Cluster, _) => "",
            (Scope::Namespaced, Some(namespace)) => namespace,
            (Scope::Namespaced, None) => "default",
        }
    }

    /// `metadata.uid`, empty when unset.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.get(key).map(String::as_str)
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.get(key).map(String::as_str)
    }

    /// The owner whose `controller` is true.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.metadata.owner_references.iter().find(|owner| owner.controller == Some(true))
    }

    /// `spec` as `T`; an absent one reads as `{}`.
    ///
    /// # Errors
    /// Names the field, as in `spec.ports[0].port`.
    pub fn spec<T: DeserializeOwned>(&self) -> Result<T, FieldError> {
        self.field("spec")
    }

    /// `status` as `T`; an absent one reads as `{}`.
    ///
    /// # Errors
    /// Names the field.
    pub fn status<T: DeserializeOwned>(&self) -> Result<T, FieldError> {
        self.field("status")
    }

    /// A top-level field as `T`; an absent one reads as `{}`.
    ///
    /// # Errors
    /// Names the field.
    pub fn field<T: DeserializeOwned>(&self, name: &str) -> Result<T, FieldError> {
        match self.body.get(name) {
            Some(value) if !value.is_null() => read(value, name),
            _ => read(&Value::Object(Map::new()), name),
        }
    }

    /// The whole body as `T`, for kinds without `spec` (EndpointSlice, ConfigMap, Secret).
    ///
    /// # Errors
    /// Names the field.
    pub fn root<T: DeserializeOwned>(&self) -> Result<T, FieldError> {
        let map = self.body.iter().map(|(key, value)| (key.as_str(), value));
        let source = serde::de::value::MapDeserializer::<_, serde_json::Error>::new(map);
        serde_path_to_error::deserialize(source).map_err(|error| field_error(error, ""))
    }

    /// Replaces a top-level field.
    ///
    /// # Errors
    /// When the value has no JSON form (a map with keys that are not strings).
    pub fn set(&mut self, name: &str, value: &impl Serialize) -> serde_json::Result<()> {
        self.body.insert(name.to_owned(), serde_json::to_value(value)?);
        Ok(())
    }
}

/// Reads a value; the error has the path of the field, which starts with `prefix`.
///
/// # Errors
/// Names the field.
pub fn read<T: DeserializeOwned>(value: &Value, prefix: &str) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| field_error(error, prefix))
}

fn field_error(error: serde_path_to_error::Error<serde_json::Error>, prefix: &str) -> FieldError {
    let path = error.path().to_string();
    let message = error.into_inner().to_string();
    let field = match (prefix, path.as_str()) {
        ("", path) => path.to_owned(),
        (prefix, ".") => prefix.to_owned(),
        (prefix, path) if path.starts_with('[') => format!("{prefix}{path}"),
        (prefix, path) => format!("{prefix}.{path}"),
    };
    FieldError { field, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ServiceSpec;

    const TEXT: &str = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"cart","namespace":"shop",
        "labels":{"a":"b"},"creationTimestamp":"2024-05-06T07:08:09Z","managedFields":[{"manager":"kubectl"}]},
        "zeta":1,"spec":{"ports":[{"port":80,"unknown":[1,2]}],"clusterIP":"None"},"alpha":null}"#;

    #[test]
    fn nothing_is_lost_on_a_round_trip() {
        let object: Object = serde_json::from_str(TEXT).unwrap();
        let back = serde_json::to_value(&object).unwrap();
        assert_eq!(back, serde_json::from_str::<Value>(TEXT).unwrap());
        assert_eq!(object.body.keys().collect::<Vec<_>>(), ["zeta", "spec", "alpha"]);
    }

    #[test]
    fn a_typed_read_names_the_field() {
        let mut object: Object = serde_json::from_str(TEXT).unwrap();
        assert_eq!(object.spec::<ServiceSpec>().unwrap().ports[0].port, 80);
        object.body["spec"]["ports"][0]["port"] = "eighty".into();
        let error = object.spec::<ServiceSpec>().unwrap_err();
        assert_eq!(error.field, "spec.ports[0].port");
        assert!(error.message.contains("expected a port from 1 to 65535"), "{error}");
    }
}
