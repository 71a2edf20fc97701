//! What makes a set of objects wrong although each by itself is right.

use std::collections::BTreeMap;

use culvert_objects::manifest::Located;
use culvert_objects::types::{DeploymentSpec, PodSpec, RestartPolicy};
use culvert_objects::{Kind, ManifestError, ObjectKey, Objects, Scope};

use super::error;

/// Everything that is wrong with the objects together and with what they refer to.
pub fn check(objects: &Objects, written: &[Located]) -> Vec<ManifestError> {
    let world = World { objects, written: written.iter().map(|at| (at.object.key(), at)).collect() };
    let faults = |at| world.faults(at).into_iter().map(move |(field, message)| error(at, &field, message));
    written.iter().flat_map(faults).collect()
}

/// What there is and what there will be.
struct World<'a> {
    objects: &'a Objects,
    written: BTreeMap<ObjectKey, &'a Located>,
}

impl World<'_> {
    fn faults(&self, at: &Located) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        let object = &at.object;
        if self.is_leaving(&object.key()) {
            let message = "it is being deleted; apply it again when it is gone".to_owned();
            faults.push((String::new(), message));
        }
        if object.kind.scope() == Scope::Namespaced {
            faults.extend(
                self.namespace(object.namespace()).map(|fault| ("metadata.namespace".to_owned(), fault)),
            );
        }
        match object.kind {
            Kind::Pod => {
                let spec: PodSpec = object.spec().unwrap_or_default();
                faults.extend(self.pod(&spec, object.namespace(), "spec"));
            }
            Kind::Deployment => {
                let spec: DeploymentSpec = object.spec().unwrap_or_default();
                if spec.template.spec.restart_policy != RestartPolicy::Always {
                    let message = "pods of a Deployment are always restarted, expected Always or nothing";
                    faults.push(("spec.template.spec.restartPolicy".to_owned(), message.to_owned()));
                }
                faults.extend(self.pod(&spec.template.spec, object.namespace(), "spec.template.spec"));
            }
            Kind::Node if self.objects.get(&object.key()).is_none() => {
                let nodes: Vec<&str> = self.objects.of_kind(Kind::Node).map(|node| node.name()).collect();
                let message = format!("there is no such node, expected one of {}", nodes.join(", "));
                faults.push(("metadata.name".to_owned(), message));
            }
            _ => {}
        }
        faults
    }

    fn is_leaving(&self, key: &ObjectKey) -> bool {
        self.objects.get(key).is_some_and(|known| known.metadata.deletion_timestamp.is_some())
    }

    fn exists(&self, key: &ObjectKey) -> bool {
        self.written.contains_key(key) || self.objects.get(key).is_some()
    }

    fn namespace(&self, name: &str) -> Option<String> {
        let key = ObjectKey::cluster(Kind::Namespace, name);
        if !self.exists(&key) {
            return Some(format!("there is no namespace {name:?}; write one, before or after this object"));
        }
        self.is_leaving(&key).then(|| format!("namespace {name:?} is being deleted"))
    }

    fn pod(&self, spec: &PodSpec, namespace: &str, path: &str) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        let account = spec.service_account();
        let key = ObjectKey::namespaced(Kind::ServiceAccount, namespace, account);
        // Every namespace gets the account `default` by itself.
        if account != "default" && !self.exists(&key) {
            let message = format!("there is no service account {account:?} in namespace {namespace:?}");
            faults.push((format!("{path}.serviceAccountName"), message));
        }
        if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty())
            && self.objects.find(Kind::Node, "", node).is_none()
        {
            faults.push((format!("{path}.nodeName"), format!("there is no node {node:?}")));
        }
        faults
    }
}
