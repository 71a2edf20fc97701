//! What all findings are made from: the documents as written, the objects that they come to, what had to be assumed beside them,
//! and what the controller makes of it all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use culvert_api::names::GATEWAY_CONTROLLER;
use culvert_controller::translate::{Environment, Translation, translate};
use culvert_objects::mesh_config::LastGood;
use culvert_objects::types::{GatewayClassSpec, GatewaySpec};
use culvert_objects::{Kind, Manifest, Object, ObjectKey, Objects, Scope, manifest};
use serde_json::Value;

use crate::assume::{self, Assumptions};
use crate::code::Code;
use crate::finding::{Finding, Place};
use crate::lines::{self, Lines};
use crate::mended::mended;
use crate::plain;
use crate::references::{self, Reference};

/// A file's text.
#[derive(Clone, Debug)]
pub struct File {
    pub path: PathBuf,
    pub text: String,
}

/// What an object that is referred to and not in the files is taken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Absent {
    /// By what the files say of its namespace.
    #[default]
    Judged,
    /// The files are all there is.
    Missing,
    /// The cluster has it.
    There,
}

/// One object as written.
#[derive(Debug)]
pub struct Document {
    pub file: PathBuf,
    pub number: usize,
    within: String,
    pub api_version: String,
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    /// Of the kinds that Culvert reads.
    pub key: Option<ObjectKey>,
    pub value: Value,
    lines: Arc<Lines>,
}

pub struct Context {
    pub documents: Vec<Document>,
    /// What could be read, what was skipped, and why the rest could not.
    pub manifest: Manifest,
    /// The last document of each object.
    last: BTreeMap<ObjectKey, usize>,
    /// Objects that could be read, at least in part.
    pub written: Objects,
    /// Those of which a part could not.
    pub partly: BTreeSet<ObjectKey>,
    /// Objects that are written, also those that could not be read.
    pub keys: BTreeSet<ObjectKey>,
    pub references: Vec<Reference>,
    pub assumed: Assumptions,
    /// GatewayClasses that the files give to other implementations.
    pub foreign: BTreeSet<String>,
    /// What was written and what was assumed; classes of others are Culvert's here, so that what the API says of every
    /// implementation is judged of their Gateways, too.
    pub objects: Objects,
    pub translation: Translation,
    pub absent: Absent,
}

impl Context {
    pub fn new(files: &[File], absent: Absent) -> Self {
        let mut manifest = Manifest::default();
        let mut documents = Vec::new();
        for File { path, text } in files {
            let mut written = manifest::documents(text, path);
            if path.extension().is_none_or(|ending| ending != "json") {
                plain::apply(text, &mut written);
            }
            // Where nothing can be read, there is nothing to be found again.
            let is_text = written.iter().any(|document| document.value.is_ok());
            let lines = if is_text { lines::of(text) } else { Vec::new() };
            let lines: Vec<Arc<Lines>> = lines.into_iter().map(Arc::new).collect();
            for document in &written {
                let lines = lines.get(document.number - 1).cloned().unwrap_or_default();
                documents.extend(Document::read(path, document.clone(), lines));
            }
            manifest.append(manifest::read(written, path));
        }
        let last: BTreeMap<ObjectKey, usize> =
            documents.iter().enumerate().filter_map(|(at, of)| Some((of.key.clone()?, at))).collect();
        let keys: BTreeSet<ObjectKey> = last.keys().cloned().collect();
        let mut written: Objects = manifest.objects.iter().map(|at| at.object.clone()).collect();
        let mut partly = BTreeSet::new();
        for (key, at) in &last {
            let document = &documents[*at];
            let faults = faults(&manifest, document);
            if let Some(object) = mended(document, &faults).filter(|_| !faults.is_empty()) {
                written.insert(Arc::new(object));
                partly.insert(key.clone());
            }
        }
        let references = references::all(&documents);
        let assumed = assume::assume(&keys, &written, &references, absent);
        let mut objects = written.clone();
        assumed.objects.iter().for_each(|object| objects.insert(Arc::new(object.clone())));
        let foreign = foreign(&written);
        foreign.iter().for_each(|name| objects.insert(Arc::new(assume::class(name))));
        let translation = translate(&objects, &Environment::default(), &LastGood::default());
        Self {
            documents,
            manifest,
            last,
            written,
            partly,
            keys,
            references,
            assumed,
            foreign,
            objects,
            translation,
            absent,
        }
    }

    /// The document of an object, None when it was assumed.
    pub fn document(&self, key: &ObjectKey) -> Option<&Document> {
        self.last.get(key).map(|at| &self.documents[*at])
    }

    /// A finding at a field of an object; None for objects that nobody wrote.
    pub fn finding(
        &self,
        code: Code,
        key: &ObjectKey,
        field: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Option<Finding> {
        Some(self.document(key)?.finding(code, field, what, remedy))
    }

    /// Whether a Gateway is of a class that the files give to another implementation.
    pub fn is_foreign(&self, gateway: &ObjectKey) -> bool {
        let object = self.written.get(gateway).filter(|_| gateway.kind == Kind::Gateway);
        let spec = object.and_then(|object| object.spec::<GatewaySpec>().ok());
        spec.is_some_and(|spec| self.foreign.contains(&spec.gateway_class_name))
    }

    /// What is not known of an object in which a field is faulty, in words; empty where all of it is known.
    pub fn unknown(&self, finding: &Finding) -> &'static str {
        let place = &finding.place;
        let document = self
            .documents
            .iter()
            .find(|of| of.file == place.file && of.number == place.document && of.title() == finding.object);
        let key = document.and_then(|of| of.key.as_ref());
        match key {
            Some(key) if self.partly.contains(key) => "; the rest of the object was judged without it",
            Some(key) if self.written.get(key).is_none() => {
                "; what else there is to say of the object, and of those that refer to it, comes when this is mended"
            }
            _ => "",
        }
    }

    /// The object, whoever made it.
    pub fn object(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }
}

/// Fields of a document that cannot be read.
fn faults<'m>(manifest: &'m Manifest, document: &Document) -> Vec<&'m str> {
    let of_document = manifest.errors.iter().filter(|error| {
        error.file == document.file && error.document == document.number && error.object == document.key
    });
    of_document.map(|error| error.field.as_str()).collect()
}

fn foreign(written: &Objects) -> BTreeSet<String> {
    let classes = written.of_kind(Kind::GatewayClass);
    let is_foreign = |class: &&Arc<Object>| {
        let spec = class.spec::<GatewayClassSpec>();
        spec.is_ok_and(|spec| spec.controller_name != GATEWAY_CONTROLLER)
    };
    classes.filter(is_foreign).map(|class| class.name().to_owned()).collect()
}

impl Document {
    fn read(file: &Path, document: manifest::Document, lines: Arc<Lines>) -> Option<Self> {
        let manifest::Document { number, within, value } = document;
        let value = value.ok().filter(Value::is_object)?;
        let text =
            |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
        let namespace = Some(text("/metadata/namespace")).filter(|namespace| !namespace.is_empty());
        let key =
            Kind::of(&api_version, &kind).ok().filter(|_| !name.is_empty()).map(|kind| match kind.scope() {
                Scope::Cluster => ObjectKey::cluster(kind, name.clone()),
                Scope::Namespaced => ObjectKey::namespaced(
                    kind,
                    namespace.clone().unwrap_or("default".to_owned()),
                    name.clone(),
                ),
            });
        Some(Self {
            file: file.to_owned(),
            number,
            within,
            api_version,
            kind,
            namespace,
            name,
            key,
            value,
            lines,
        })
    }

    /// The namespace that an object without one lands in.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    /// `KIND NAMESPACE/NAME`, as far as it is written.
    pub fn title(&self) -> String {
        match (&self.key, &self.namespace) {
            (Some(key), _) => key.to_string(),
            (None, Some(namespace)) => format!("{} {namespace}/{}", self.kind, self.name),
            (None, None) => format!("{} {}", self.kind, self.name).trim().to_owned(),
        }
    }

    pub fn place(&self, field: &str) -> Place {
        let line = self.lines.of(&format!("{}{field}", self.within));
        Place { file: self.file.clone(), document: self.number, line }
    }

    pub fn finding(
        &self,
        code: Code,
        field: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        let field = field.into();
        Finding {
            code,
            severity: code.severity(),
            place: self.place(&field),
            object: self.title(),
            field,
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}
