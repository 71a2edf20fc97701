//! A container's environment, and references to it in command and arguments.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use culvert_objects::types::{ConfigMap, Container, EnvVar, EnvVarSource, PodSpec, Secret};
use culvert_objects::{Kind, Object, Objects};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::sandbox::cluster::DualAddress;

/// Everything a container can ask about itself.
pub struct Surroundings<'a> {
    pub pod: &'a Object,
    pub spec: &'a PodSpec,
    pub objects: &'a Objects,
    pub addresses: &'a [IpAddr],
    pub host: DualAddress,
}

/// What a container asks for that is not there. Waiting may help.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    #[error("{kind} {namespace}/{name} does not exist")]
    Missing { kind: Kind, namespace: String, name: String },
    #[error("{kind} {name} has no key {key}")]
    NoKey { kind: Kind, name: String, key: String },
    #[error("env {variable}: {message}")]
    Unsupported { variable: String, message: String },
}

/// The variables of a container: `env` and `envFrom`, later ones winning.
///
/// # Errors
/// Names the variable or object at fault.
pub fn variables(
    container: &Container,
    raw: &Value,
    around: &Surroundings<'_>,
) -> Result<BTreeMap<String, String>, EnvironmentError> {
    let mut variables = BTreeMap::new();
    for source in raw["envFrom"].as_array().into_iter().flatten() {
        variables.extend(all_keys(source, around)?);
    }
    for variable in &container.env {
        if let Some(value) = value(variable, around)? {
            let value = expand(&value, &variables);
            variables.insert(variable.name.clone(), value);
        }
    }
    Ok(variables)
}

/// Replaces `$(NAME)` by the variable's value; unknown names stay, `$$` is one `$`.
#[must_use]
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match variables.get(name) {
                Some(value) => result.push_str(value),
                None => result.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result + rest
}

fn value(variable: &EnvVar, around: &Surroundings<'_>) -> Result<Option<String>, EnvironmentError> {
    let unsupported = |message: &str| EnvironmentError::Unsupported {
        variable: variable.name.clone(),
        message: message.to_owned(),
    };
    let source = match (&variable.value, &variable.value_from) {
        (Some(value), _) => return Ok(Some(value.clone())),
        (None, None) => return Ok(Some(String::new())),
        (None, Some(source)) => source,
    };
    match source {
        EnvVarSource { field_ref: Some(field), .. } => around
            .field(&field.field_path)
            .map(Some)
            .ok_or_else(|| unsupported(&format!("the sandbox has no field {}", field.field_path))),
        EnvVarSource { config_map_key_ref: Some(reference), .. } => {
            around.key(Kind::ConfigMap, &reference.name, &reference.key, optional(reference.optional))
        }
        EnvVarSource { secret_key_ref: Some(reference), .. } => {
            around.key(Kind::Secret, &reference.name, &reference.key, optional(reference.optional))
        }
        _ => Err(unsupported("valueFrom must be fieldRef, configMapKeyRef or secretKeyRef in the sandbox")),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    Optional,
}

fn optional(optional: bool) -> Need {
    if optional { Need::Optional } else { Need::Required }
}

fn all_keys(source: &Value, around: &Surroundings<'_>) -> Result<BTreeMap<String, String>, EnvironmentError> {
    let prefix = source["prefix"].as_str().unwrap_or_default();
    for (field, kind) in [("configMapRef", Kind::ConfigMap), ("secretRef", Kind::Secret)] {
        let Some(name) = source[field]["name"].as_str() else { continue };
        let need = optional(source[field]["optional"].as_bool() == Some(true));
        return match around.data(kind, name) {
            Ok(data) => Ok(data
                .into_iter()
                .filter_map(|(key, value)| Some((format!("{prefix}{key}"), String::from_utf8(value).ok()?)))
                .collect()),
            Err(_) if need == Need::Optional => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        };
    }
    Err(EnvironmentError::Unsupported {
        variable: "envFrom".to_owned(),
        message: "must be configMapRef or secretRef".to_owned(),
    })
}

impl Surroundings<'_> {
    /// All of a ConfigMap's or Secret's data, decoded.
    ///
    /// # Errors
    /// [`EnvironmentError::Missing`].
    pub fn data(&self, kind: Kind, name: &str) -> Result<BTreeMap<String, Vec<u8>>, EnvironmentError> {
        let missing = || EnvironmentError::Missing {
            kind,
            namespace: self.pod.namespace().to_owned(),
            name: name.to_owned(),
        };
        let object = self.objects.find(kind, self.pod.namespace(), name).ok_or_else(missing)?;
        let (text, coded) = match kind {
            Kind::Secret => object.root().map(|Secret { data, string_data, .. }| (string_data, data)),
            _ => object.root().map(|ConfigMap { data, binary_data }| (data, binary_data)),
        }
        .map_err(|_| missing())?;
        let decoded =
            coded.into_iter().filter_map(|(key, value)| Some((key, STANDARD.decode(value.trim()).ok()?)));
        Ok(decoded.chain(text.into_iter().map(|(key, value)| (key, value.into_bytes()))).collect())
    }

    fn key(&self, kind: Kind, name: &str, key: &str, need: Need) -> Result<Option<String>, EnvironmentError> {
        let found = self.data(kind, name).and_then(|mut data| {
            let no_key = || EnvironmentError::NoKey { kind, name: name.to_owned(), key: key.to_owned() };
            data.remove(key).ok_or_else(no_key)
        });
        match (found, need) {
            (Ok(value), _) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            (Err(_), Need::Optional) => Ok(None),
            (Err(error), Need::Required) => Err(error),
        }
    }

    fn field(&self, path: &str) -> Option<String> {
        let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
        if let Some(label) = keyed("metadata.labels") {
            return Some(self.pod.label(label).unwrap_or_default().to_owned());
        }
        if let Some(annotation) = keyed("metadata.annotations") {
            return Some(self.pod.annotation(annotation).unwrap_or_default().to_owned());
        }
        let list =
            |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        Some(match path {
            "metadata.name" => self.pod.name().to_owned(),
            "metadata.namespace" => self.pod.namespace().to_owned(),
            "metadata.uid" => self.pod.uid().to_owned(),
            "spec.nodeName" => self.spec.node_name.clone().unwrap_or_default(),
            "spec.serviceAccountName" => self.spec.service_account().to_owned(),
            "status.hostIP" => self.host.v4.to_string(),
            "status.hostIPs" => list(&self.host.both()),
            "status.podIP" => self.addresses.first()?.to_string(),
            "status.podIPs" => list(self.addresses),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn with<T>(env: Value, check: impl FnOnce(&Container, &Value, &Surroundings<'_>) -> T) -> T {
        let raw = json!({"name": "c", "image": "x", "env": env, "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}]});
        let container: Container = serde_json::from_value(raw.clone()).unwrap();
        let pod: Object = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "one", "namespace": "shop", "labels": {"app": "a"}}, "spec": {"containers": []}}))
        .unwrap();
        let config: Object = serde_json::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "cm", "namespace": "shop"}, "data": {"k": "v"}}))
        .unwrap();
        let secret: Object = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "s", "namespace": "shop"}, "data": {"k": "c2VjcmV0"}}))
        .unwrap();
        let objects: Objects = [config, secret].into_iter().collect();
        let spec = PodSpec::default();
        let around = Surroundings {
            pod: &pod,
            spec: &spec,
            objects: &objects,
            addresses: &[IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2))],
            host: DualAddress { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST },
        };
        check(&container, &raw, &around)
    }

    #[test]
    fn every_source_of_a_value() {
        let env = json!([
            {"name": "A", "value": "a"}, {"name": "B", "value": "$(A)-$(NO)-$$(A)"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "O", "valueFrom": {"secretKeyRef": {"name": "s", "key": "none", "optional": true}}}]);
        let variables = with(env, |container, raw, around| variables(container, raw, around).unwrap());
        let expected = [
            ("A", "a"),
            ("B", "a-$(NO)-$(A)"),
            ("IP", "10.244.1.2"),
            ("APP", "a"),
            ("C", "v"),
            ("S", "secret"),
            ("P_k", "v"),
        ];
        assert_eq!(variables, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn what_is_missing_is_named() {
        for (source, message) in [
            (json!({"configMapKeyRef": {"name": "none", "key": "k"}}), "ConfigMap shop/none does not exist"),
            (json!({"secretKeyRef": {"name": "s", "key": "x"}}), "Secret s has no key x"),
            (
                json!({"fieldRef": {"fieldPath": "status.phase"}}),
                "env X: the sandbox has no field status.phase",
            ),
        ] {
            let env = json!([{"name": "X", "valueFrom": source}]);
            let error = with(env, |container, raw, around| variables(container, raw, around).unwrap_err());
            assert_eq!(error.to_string(), message);
        }
    }
}
