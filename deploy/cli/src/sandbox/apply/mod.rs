//! Manifests become objects of the sandbox: checked against each other and against what is there, completed as an API
//! server would, and carried out all together or not at all.

mod check;
pub(crate) mod merge;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use culvert_objects::manifest::Located;
use culvert_objects::{Kind, Manifest, ManifestError, ManifestErrors, Object, ObjectKey, Objects};
use serde::{Deserialize, Serialize};

use crate::sandbox::cluster::Cluster;
use crate::sandbox::services::{self, Allocator};
use crate::sandbox::store::{Change, DNS_SERVICE, NAMESPACES, Store};

pub(crate) use merge::default_pod_spec;

/// What became of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Created,
    Configured,
    Unchanged,
    Deleted,
    /// There was nothing to delete.
    Absent,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
            Self::Absent => "not found",
        })
    }
}

/// One line of a [`Report`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub object: ObjectKey,
    pub outcome: Outcome,
}

/// What an apply or delete did, in the order of the manifests, and what it passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub entries: Vec<Entry>,
    /// Documents of kinds that are not supported, and those that a later one takes the place of, each with file,
    /// document and reason.
    pub skipped: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Entry { object, outcome } in &self.entries {
            writeln!(f, "{object} {outcome}")?;
        }
        self.skipped.iter().try_for_each(|skipped| writeln!(f, "{skipped}"))
    }
}

/// Creates or updates every object of the manifests. What the controllers derive (pods, slices) is there on return.
///
/// # Errors
/// Everything that is wrong, each with file, document and field; nothing has taken effect then.
pub fn apply(store: &Store, cluster: &Cluster, manifest: Manifest) -> Result<Report, ManifestErrors> {
    let (manifest, skipped) = last_of_each(manifest.into_result()?);
    let entries = store.transact(|objects| plan(objects, cluster, &manifest.objects))?;
    Ok(Report { entries, skipped })
}

/// Deletes every object of the manifests that exists. Pods and namespaces go gracefully, so they may still be there on
/// return.
///
/// # Errors
/// Names what cannot be deleted or read; nothing has taken effect then.
pub fn delete(store: &Store, manifest: Manifest) -> Result<Report, ManifestErrors> {
    let (manifest, skipped) = last_of_each(manifest.into_result()?);
    let entries = store.transact(|objects| {
        let errors: Vec<ManifestError> = manifest
            .objects
            .iter()
            .filter_map(|at| Some(error(at, "", protected(&at.object.key())?)))
            .collect();
        if !errors.is_empty() {
            return Err(ManifestErrors(errors));
        }
        let entries = manifest.objects.iter().map(|at| deletion(objects, at.object.key())).collect();
        let changes = manifest.objects.iter().map(|at| Change::Delete(at.object.key())).collect();
        Ok((changes, entries))
    })?;
    Ok(Report { entries, skipped })
}

/// Deletes one object by name.
///
/// # Errors
/// Says why it cannot be deleted.
pub fn delete_one(store: &Store, key: ObjectKey) -> Result<Report, String> {
    if let Some(reason) = protected(&key) {
        return Err(format!("{key}: {reason}"));
    }
    store.transact(|objects| {
        let entries = vec![deletion(objects, key.clone())];
        Ok((vec![Change::Delete(key)], Report { entries, skipped: Vec::new() }))
    })
}

fn deletion(objects: &Objects, object: ObjectKey) -> Entry {
    let outcome = if objects.get(&object).is_some() { Outcome::Deleted } else { Outcome::Absent };
    Entry { object, outcome }
}

/// Of documents of the same object the last one counts, as with `kubectl apply -f DIRECTORY`. With what is passed over.
fn last_of_each(mut manifest: Manifest) -> (Manifest, Vec<String>) {
    let mut skipped: Vec<String> = manifest.skipped.iter().map(ToString::to_string).collect();
    let mut last: BTreeMap<ObjectKey, (PathBuf, usize)> = BTreeMap::new();
    let mut kept: Vec<Located> = Vec::new();
    let mut passed_over = Vec::new();
    for at in manifest.objects.drain(..).rev() {
        let key = at.object.key();
        let place = format!("{}: document {} ({key})", at.file.display(), at.document);
        match last.get(&key) {
            Some((file, document)) => passed_over.push(format!(
                "{place}: skipped: the same object is also in {}: document {document}, and the last one counts",
                file.display()
            )),
            None => {
                last.insert(key, (at.file.clone(), at.document));
                kept.push(at);
            }
        }
    }
    kept.reverse();
    skipped.extend(passed_over.into_iter().rev());
    (Manifest { objects: kept, ..manifest }, skipped)
}

/// Why an object may not be deleted.
fn protected(key: &ObjectKey) -> Option<String> {
    match key.kind {
        Kind::Node => Some("nodes live as long as the sandbox".to_owned()),
        Kind::Namespace if NAMESPACES.contains(&key.name.as_str()) => {
            Some("this namespace is part of every cluster".to_owned())
        }
        Kind::Service if is_dns(key) => Some("this Service is the cluster's DNS".to_owned()),
        _ => None,
    }
}

fn is_dns(key: &ObjectKey) -> bool {
    key.namespace.as_deref() == Some("kube-system") && key.name == DNS_SERVICE
}

fn error(at: &Located, field: &str, message: String) -> ManifestError {
    ManifestError {
        file: at.file.clone(),
        document: at.document,
        object: Some(at.object.key()),
        field: field.to_owned(),
        message,
    }
}

/// The changes that make the objects as written, and what they will have done. Pure.
fn plan(
    objects: &Objects,
    cluster: &Cluster,
    written: &[Located],
) -> Result<(Vec<Change>, Vec<Entry>), ManifestErrors> {
    let mut errors = check::check(objects, written);
    let mut allocator = Allocator::new(objects, cluster.service_cidr);
    errors.extend(reserve(&mut allocator, written));
    let mut wanted: BTreeMap<ObjectKey, Object> = BTreeMap::new();
    let mut entries = Vec::new();
    for at in written {
        let key = at.object.key();
        let existing = objects.get(&key).map(AsRef::as_ref);
        let completed = merge::merge(&at.object, existing).and_then(|mut object| {
            if object.kind == Kind::Service {
                services::complete(&mut object, existing, &mut allocator)?;
            }
            Ok(object)
        });
        match completed {
            Ok(object) => {
                let outcome = match existing {
                    None => Outcome::Created,
                    Some(existing) if merge::same(existing, &object) => Outcome::Unchanged,
                    Some(_) => Outcome::Configured,
                };
                entries.push(Entry { object: key.clone(), outcome });
                wanted.insert(key, object);
            }
            Err(fault) => errors.push(error(at, &fault.field, fault.message)),
        }
    }
    if !errors.is_empty() {
        return Err(ManifestErrors(errors));
    }
    // Keys are ordered by kind, and kinds so that what is referred to comes first.
    Ok((wanted.into_values().map(Change::put).collect(), entries))
}

/// Addresses that are asked for by number go before those that are given out.
fn reserve(allocator: &mut Allocator, written: &[Located]) -> Vec<ManifestError> {
    let mut errors = Vec::new();
    for at in written.iter().filter(|at| at.object.kind == Kind::Service) {
        // Contradictions inside the Service are found when it is completed.
        let addresses = at.object.spec().and_then(|spec| services::requested(&spec)).unwrap_or_default();
        for address in addresses {
            if let Err(message) = allocator.reserve(address, &at.object.key()) {
                errors.push(error(at, "spec.clusterIP", message));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests;
