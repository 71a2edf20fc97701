//! Manifests: YAML or JSON text with any number of documents, from a file or a directory. All errors are collected;
//! each names file, document, field and what was expected.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use saphyr_parser::{Event, Parser};
use serde::Deserialize as _;
use serde_json::Value;
use thiserror::Error;

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
    let kind = text("kind").trim_end_matches("List");
    let Some(item) = item.as_object_mut() else { return };
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
                match std::fs::read_to_string(&file) {
                    Err(error) => manifest.unreadable(&file, &error),
                    Ok(text) => manifest.append(parse(&text, &file)),
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
    let mut entries = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    for path in entries {
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.is_dir() {
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

    fn unreadable(&mut self, file: &Path, error: &std::io::Error) {
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

fn is_json(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending == "json")
}

/// What has `items` is a list, whatever its kind, as with kubectl; a `List` may leave them out.
fn is_list(document: &serde_json::Map<String, Value>) -> bool {
    let is_kind = document.get("kind").and_then(Value::as_str) == Some("List");
    is_kind || document.get("items").is_some_and(|items| !items.is_null())
}

fn json_documents(text: &str) -> Vec<Result<Value, String>> {
    // By way of YAML's value, which refuses a key written twice; so does the API server.
    let documents = serde_json::Deserializer::from_str(text).into_iter::<serde_yaml_ng::Value>();
    let value = |document: Result<_, serde_json::Error>| {
        document.map_err(|error| format!("is not JSON: {error}")).and_then(|value| {
            serde_json::to_value(value).map_err(|error| format!("has no JSON form: {error}"))
        })
    };
    documents.map(value).collect()
}

/// Collections inside each other that the YAML library reads.
const DEEPEST: usize = 128;
/// Texts with fewer `[` and `{` cannot nest so deep that it takes long to find out.
const MOST_UNSEEN: usize = 1000;

/// What the parser says that counts nesting, where it cannot.
const TOO_DEEP: &str = "recursion limit exceeded";

/// The line on which collections are nested deeper than [`DEEPEST`], if there is one. The library that reads YAML finds out at
/// the end of the text only, and takes the square of the depth for it: a minute for 200,000 `[`.
fn too_deep(text: &str) -> Option<usize> {
    let opening = text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    if opening < MOST_UNSEEN {
        return None;
    }
    let mut depth = 0_usize;
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(event) => event,
            // It looks ahead, and counts to 255.
            Err(error) if error.info() == TOO_DEEP => return Some(error.marker().line()),
            // What is no YAML is the other library's to say.
            Err(_) => return None,
        };
        match event {
            Event::SequenceStart(..) | Event::MappingStart(..) => depth += 1,
            Event::SequenceEnd | Event::MappingEnd => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            return Some(span.start.line());
        }
    }
    None
}

/// The documents of a YAML stream. One that cannot be read does not take the others with it.
fn yaml_documents(text: &str) -> Vec<Result<Value, String>> {
    if let Some(line) = too_deep(text) {
        let message = format!(
            "has more than {DEEPEST} lists and mappings inside each other on line {line}: no object nests so deep; close what \
             was opened before, or take it away"
        );
        return vec![Err(message)];
    }
    let documents = yaml_stream(text);
    if documents.iter().all(Result::is_ok) {
        return documents;
    }
    yaml_parts(text).iter().flat_map(|part| yaml_stream(part)).collect()
}

/// Up to the first document that cannot be read: the library does not find the next one.
fn yaml_stream(text: &str) -> Vec<Result<Value, String>> {
    let mut documents = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        // By way of YAML's own value: it refuses a key written twice, which JSON's would silently merge.
        let value = serde_yaml_ng::Value::deserialize(document)
            .and_then(|mut value| value.apply_merge().map(|()| value))
            .map_err(|error| format!("is not YAML: {error}"))
            .and_then(|value| {
                serde_json::to_value(value).map_err(|error| format!("has no JSON form: {error}"))
            });
        let ends = value.is_err();
        documents.push(value);
        if ends {
            break;
        }
    }
    documents
}

/// A stream taken apart at the lines that begin with `---`, which begin a document wherever they stand (YAML 1.2.2, 9.1.2).
/// Each part is on the lines that it is on in the text.
pub fn yaml_parts(text: &str) -> Vec<String> {
    let begins = |line: &str| {
        line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
    };
    let says = |line: &str| !line.trim().is_empty() && !line.starts_with(['#', '%']);
    let mut parts: Vec<String> = Vec::new();
    let mut part = String::new();
    let mut is_some = false;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if begins(line) {
            if is_some {
                parts.push(std::mem::take(&mut part));
            }
            part = "\n".repeat(number);
            is_some = true;
        }
        is_some |= says(line);
        part.push_str(line);
    }
    if is_some {
        parts.push(part);
    }
    parts
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
mod tests {
    use super::*;

    const TEXT: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {culvert.dev/mesh: enabled}}
---
# nothing here
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
---
apiVersion: v1
kind: Pod
metadata: {name: a, creationTimestamp: null}
spec: {containers: [{name: c, image: culvert/echo, ports: [{containerPort: 80}]}]}
status: {}
";

    #[test]
    fn documents_become_objects_or_are_skipped() {
        let manifest = parse(TEXT, Path::new("shop.yaml")).into_result().unwrap();
        let keys: Vec<String> = manifest.objects.iter().map(|at| at.object.key().to_string()).collect();
        assert_eq!(keys, ["Namespace shop", "Pod default/a"]);
        assert_eq!(manifest.objects[1].document, 4);
        assert_eq!(
            manifest.skipped[0].to_string(),
            "shop.yaml: document 3 (once): skipped: kind \"Job\" is not supported"
        );
    }

    #[test]
    fn every_error_names_file_document_field_and_expectation() {
        let text = TEXT.replace("containerPort: 80", "containerPort: 0").replace("name: shop", "name: SHOP");
        let errors = parse(&text, Path::new("shop.yaml")).into_result().unwrap_err();
        let lines: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 2, "{lines:#?}");
        assert!(lines[0].starts_with("shop.yaml: document 1 (Namespace SHOP): metadata.name: invalid value"));
        assert_eq!(
            lines[1],
            "shop.yaml: document 4 (Pod default/a): spec.containers[0].ports[0].containerPort: \
             invalid value: integer `0`, expected a port from 1 to 65535"
        );
    }

    #[test]
    fn lists_json_and_duplicate_keys() {
        let list = r#"{"kind":"List","apiVersion":"v1","items":[{"apiVersion":"v1","kind":"ServiceAccount",
            "metadata":{"name":"a"}}]} {"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"data":{"k":1}}"#;
        let manifest = parse(list, Path::new("x.json"));
        assert_eq!(manifest.objects.len(), 1);
        assert_eq!(manifest.errors[0].field, "data.k");
        let twice = parse("apiVersion: v1\nkind: Node\nkind: Pod\n", Path::new("x.yaml"));
        assert!(twice.errors[0].message.contains("duplicate"), "{}", twice.errors[0]);
    }

    #[test]
    fn what_has_items_is_a_list_and_they_may_leave_out_what_it_says() {
        let item = "{metadata: {name: a}}";
        let kinds = |text: &str| -> Vec<String> {
            let read = parse(text, Path::new("x.yaml")).into_result().unwrap();
            read.objects.iter().map(|at| at.object.key().to_string()).collect()
        };
        let list = format!("apiVersion: v1\nkind: NamespaceList\nitems: [{item}]\n");
        assert_eq!(kinds(&list), ["Namespace a"]);
        assert_eq!(kinds(&list.replace(&format!("[{item}]"), "[]")), [""; 0]);
        let other = list.replace(item, "{apiVersion: v1, kind: Node, metadata: {name: a}}");
        assert_eq!(kinds(&other), ["Node a"]);
        let wrong = parse("apiVersion: v1\nkind: List\nitems: [5]\n", Path::new("x.yaml"));
        assert_eq!(wrong.errors[0].field, "items[0]");
    }

    #[test]
    fn a_document_that_cannot_be_read_does_not_take_the_others_with_it() {
        let node = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
        for wrong in ["kind: A\nkind: B\n", "a: *nobody\n", "a: [1\n", "a: 'b\n", "a: b: c\n"] {
            let text = format!("# first\n---\n{}---\n{wrong}--- # next\n{}", node("a"), node("b"));
            let manifest = parse(&text, Path::new("x.yaml"));
            let names: Vec<(&str, usize)> =
                manifest.objects.iter().map(|at| (at.object.name(), at.document)).collect();
            assert_eq!(names, [("a", 1), ("b", 3)], "{wrong}");
            assert_eq!(manifest.errors.len(), 1, "{wrong}");
            assert_eq!(manifest.errors[0].document, 2, "{wrong}");
        }
        // Lines are those of the text.
        let manifest = parse(&format!("{}---\nkind: A\nkind: B\n", node("a")), Path::new("x.yaml"));
        assert!(manifest.errors[0].message.contains("line 5"), "{}", manifest.errors[0]);
    }

    #[test]
    fn a_key_of_json_is_written_once() {
        let text = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"a","name":"b"}}"#;
        let manifest = parse(text, Path::new("x.json"));
        assert!(manifest.errors[0].message.contains("duplicate"), "{}", manifest.errors[0]);
        assert_eq!(parse(&text.replace(r#","name":"b""#, ""), Path::new("x.json")).objects.len(), 1);
    }

    /// Without a bound this takes minutes.
    #[test]
    fn what_nests_too_deep_is_refused_before_it_is_read() {
        let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
        let many = |text: &str| text.repeat(200_000);
        for deep in
            [many("["), format!("a:\n  - {}", many("{a: ")), format!("{namespace}---\nx: {}", many("[{a: "))]
        {
            let manifest = parse(&deep, Path::new("deep.yaml"));
            let said = manifest.errors[0].to_string();
            assert!(said.starts_with("deep.yaml: document 1: has more than 128 lists"), "{said}");
        }
        // Much, and not deep.
        let wide = format!("{namespace}spec: [{}[]]\n# {}\n", many("[], "), many("["));
        assert_eq!(parse(&wide, Path::new("wide.yaml")).errors, []);
    }

    #[test]
    fn a_directory_is_read_in_order_without_hidden_files() {
        let directory = tempfile::tempdir().unwrap();
        let node = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
        for (path, name) in [("b.yaml", "b"), ("a/z.yml", "z"), (".hidden.yaml", "h"), ("note.txt", "t")] {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, node(name)).unwrap();
        }
        let manifest = load(directory.path()).into_result().unwrap();
        let names: Vec<&str> = manifest.objects.iter().map(|at| at.object.name()).collect();
        assert_eq!(names, ["z", "b"]);
        assert!(load(Path::new("does/not/exist.yaml")).into_result().is_err());
        // A link to itself, and a second way to what is there.
        std::os::unix::fs::symlink(directory.path(), directory.path().join("again")).unwrap();
        std::os::unix::fs::symlink(directory.path().join("a"), directory.path().join("c")).unwrap();
        assert_eq!(load(directory.path()).into_result().unwrap().objects.len(), 2);
    }
}
