//! Manifests: YAML or JSON text with any number of documents, from a file or a directory. All errors are collected;
//! each names file, document, field and what was expected.

mod text;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

pub use text::yaml_parts;
use text::{json_documents, yaml_documents};

use crate::encoding;
use crate::kinds::{Kind, Scope, UnknownKind};
use crate::object::{FieldError, Object, ObjectKey};
use crate::reading::{Reading, read_all};
use crate::schema;

/// Something in a manifest that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    pub file: PathBuf,
    /// Counted from 1; 0 when the file as a whole cannot be read.
    pub document: usize,
    /// The object, where so much could be made out.
    pub object: Option<ObjectKey>,
    /// Path of the field, empty when the document is not an object at all; as `items[3]` for what is no object in a list.
    pub field: String,
    /// What was found and what was expected.
    pub message: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.document > 0 {
            write!(f, ": document {}", self.document)?;
        }
        if let Some(object) = &self.object {
            write!(f, " ({object})")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ManifestError {}

/// Every error of a load.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ManifestErrors(pub Vec<ManifestError>);

/// A document of a kind or version that Culvert does not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub file: PathBuf,
    /// Counted from 1.
    pub document: usize,
    /// `metadata.name` as written, empty if there is none.
    pub name: String,
    pub reason: UnknownKind,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, document, name, reason } = self;
        write!(f, "{}: document {document} ({name}): skipped: {reason}", file.display())
    }
}

/// An object and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    pub object: Object,
    pub file: PathBuf,
    /// Counted from 1.
    pub document: usize,
}

/// What was read: the valid objects in the order written, what was skipped, and everything that is wrong.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    pub objects: Vec<Located>,
    pub skipped: Vec<Skipped>,
    pub errors: Vec<ManifestError>,
}

/// One document as written; those of a `List` are documents of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Counted from 1.
    pub number: usize,
    /// What the paths of its fields start with inside the document: empty, or as `items[3].` in a `List`.
    pub within: String,
    /// Without a value: the text is none, and why.
    pub value: Result<Value, FieldError>,
}

/// Reads text with any number of documents; `file` is only for messages (and JSON by the ending `.json`).
pub fn parse(text: &str, file: &Path) -> Manifest {
    read(documents(text, file), file)
}

/// Makes of the documents of a file what they come to.
pub fn read(documents: Vec<Document>, file: &Path) -> Manifest {
    let mut manifest = Manifest::default();
    documents.into_iter().for_each(|document| manifest.document(document, file));
    manifest
}

/// The documents of a text, as written.
pub fn documents(text: &str, file: &Path) -> Vec<Document> {
    let written = if is_json(file) { json_documents(text) } else { yaml_documents(text) };
    let mut documents = Vec::new();
    for (index, value) in written.into_iter().enumerate() {
        let value = value.map_err(|message| FieldError::new("", message));
        flatten(Document { number: index + 1, within: String::new(), value }, &mut documents);
    }
    documents
}

fn flatten(document: Document, all: &mut Vec<Document>) {
    let Document { number, within, value } = document;
    match value {
        Ok(Value::Object(mut list)) if is_list(&list) => match list.remove("items") {
            Some(Value::Array(items)) => {
                for (index, mut item) in items.into_iter().enumerate() {
                    let within = format!("{within}items[{index}].");
                    complete(&mut item, &list);
                    flatten(Document { number, within, value: Ok(item) }, all);
                }
            }
            None | Some(Value::Null) => {}
            Some(_) => {
                let value = Err(FieldError::new("items", "expected a list of objects"));
                all.push(Document { number, within, value });
            }
        },
        value => all.push(Document { number, within, value }),
    }
}

/// An item that says neither kind nor version has those of its list, as with kubectl.
fn complete(item: &mut Value, list: &serde_json::Map<String, Value>) {
    let text = |field: &str| list.get(field).and_then(Value::as_str).unwrap_or_default();
    let (Some(kind), Some(item)) = (text("kind").strip_suffix("List"), item.as_object_mut()) else { return };
    if !kind.is_empty() && !item.contains_key("kind") && !item.contains_key("apiVersion") {
        item.insert("kind".to_owned(), kind.into());
        item.insert("apiVersion".to_owned(), text("apiVersion").into());
    }
}

/// Reads a file, or every `*.yaml`, `*.yml` and `*.json` below a directory in the order of their paths.
pub fn load(path: &Path) -> Manifest {
    let mut manifest = Manifest::default();
    let files = if path.is_dir() { files_below(path) } else { Ok(vec![path.to_owned()]) };
    match files {
        Err(error) => manifest.unreadable(path, &error),
        Ok(files) => {
            for file in files {
                match std::fs::read(&file) {
                    Err(error) => manifest.unreadable(&file, &error),
                    Ok(bytes) => match encoding::text(bytes) {
                        Err(error) => manifest.unreadable(&file, &error),
                        Ok(text) => manifest.append(parse(&text, &file)),
                    },
                }
            }
        }
    }
    manifest
}

/// Whether a file of a directory is a manifest: its ending says so and its name does not start with a dot.
pub fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let ending = path.extension().and_then(|ending| ending.to_str());
    !hidden && matches!(ending, Some("yaml" | "yml" | "json"))
}

/// Every manifest below a directory, sorted; directories whose names start with a dot are left out. A directory that can be
/// reached on several ways, by links, is read once.
///
/// # Errors
/// When a directory cannot be listed.
pub fn files_below(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    below(directory, &mut BTreeSet::new(), &mut files)?;
    Ok(files)
}

fn below(directory: &Path, seen: &mut BTreeSet<PathBuf>, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !seen.insert(directory.canonicalize()?) {
        return Ok(());
    }
    let mut entries = std::fs::read_dir(directory)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // Only of a link has the kernel to be asked where it leads.
        let is_directory =
            |kind: std::fs::FileType| if kind.is_symlink() { path.is_dir() } else { kind.is_dir() };
        if !hidden && entry.file_type().is_ok_and(is_directory) {
            below(&path, seen, files)?;
        } else if is_manifest(&path) {
            files.push(path);
        }
    }
    Ok(())
}

impl Manifest {
    /// # Errors
    /// With every error found, if there is one.
    pub fn into_result(self) -> Result<Manifest, ManifestErrors> {
        if self.errors.is_empty() { Ok(self) } else { Err(ManifestErrors(self.errors)) }
    }

    /// Adds what another load read.
    pub fn append(&mut self, other: Manifest) {
        self.objects.extend(other.objects);
        self.skipped.extend(other.skipped);
        self.errors.extend(other.errors);
    }

    fn unreadable(&mut self, file: &Path, error: &dyn fmt::Display) {
        self.errors.push(ManifestError {
            file: file.to_owned(),
            document: 0,
            object: None,
            field: String::new(),
            message: format!("cannot be read: {error}"),
        });
    }

    fn document(&mut self, document: Document, file: &Path) {
        let fault = |error: FieldError| ManifestError {
            file: file.to_owned(),
            document: document.number,
            object: None,
            field: error.field,
            message: error.message,
        };
        match document.value {
            Err(error) => self.errors.push(fault(error)),
            Ok(Value::Null) => {}
            Ok(value @ Value::Object(_)) => self.object(value, file, document.number),
            Ok(_) => {
                let item = document.within.trim_end_matches('.');
                let error = FieldError::new(item, "expected an object with apiVersion and kind");
                self.errors.push(fault(error));
            }
        }
    }

    fn object(&mut self, mut value: Value, file: &Path, number: usize) {
        let mut fault = |object: Option<ObjectKey>, field: &str, message: String| {
            let file = file.to_owned();
            self.errors.push(ManifestError {
                file,
                document: number,
                object,
                field: field.to_owned(),
                message,
            });
        };
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        for (field, text) in [("apiVersion", &api_version), ("kind", &kind)] {
            if text.is_empty() {
                fault(None, field, "missing, expected a string".to_owned());
            }
        }
        if api_version.is_empty() || kind.is_empty() {
            return;
        }
        let kind = match Kind::of(&api_version, &kind) {
            Ok(kind) => kind,
            Err(reason) => {
                let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
                let skipped =
                    Skipped { file: file.to_owned(), document: number, name: name.to_owned(), reason };
                return self.skipped.push(skipped);
            }
        };
        drop_nulls(&mut value);
        drop_empty_namespace(&mut value);
        let part = |field: &str| value.pointer(&format!("/metadata/{field}")).and_then(Value::as_str);
        let key = part("name").map(|name| match kind.scope() {
            Scope::Cluster => ObjectKey::cluster(kind, name),
            Scope::Namespaced => ObjectKey::namespaced(kind, part("namespace").unwrap_or("default"), name),
        });
        let Reading { value: object, faults } = read_all::<Object>(&value, "");
        let faulty: Vec<String> = faults.iter().map(|fault| fault.field.clone()).collect();
        faults.into_iter().for_each(|error| fault(key.clone(), &error.field, error.message));
        let Some(mut object) = object else { return };
        // As the API server does: objects without a namespace land in `default`, cluster-scoped ones in none.
        object.metadata.namespace = object.key().namespace;
        let mut found = schema::check(&object);
        // What cannot be read was left out of the object, and is not missing.
        found.retain(|error| !faulty.contains(&error.field));
        if found.is_empty() && faulty.is_empty() {
            self.objects.push(Located { object, file: file.to_owned(), document: number });
        }
        found.into_iter().for_each(|error| fault(key.clone(), &error.field, error.message));
    }
}

/// As kubectl does: none is the namespace that is asked for on the command line.
fn drop_empty_namespace(object: &mut Value) {
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
    if let Some(metadata) = metadata.filter(|metadata| metadata.get("namespace") == Some(&Value::from(""))) {
        metadata.remove("namespace");
    }
}

fn is_json(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending == "json")
}

/// What has `items` is a list, whatever its kind, as with kubectl; a `List` may leave them out.
fn is_list(document: &serde_json::Map<String, Value>) -> bool {
    let is_kind = document.get("kind").and_then(Value::as_str) == Some("List");
    is_kind || document.get("items").is_some_and(|items| !items.is_null())
}

/// Takes out explicit nulls: to the API server they are absent fields.
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
