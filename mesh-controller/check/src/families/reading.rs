//! Documents that cannot be read, values that no type takes, objects that are written twice.

use std::collections::BTreeMap;

use culvert_objects::{ManifestError, ObjectKey};

use crate::code::Code;
use crate::context::{Context, Document};
use crate::finding::{Finding, Place};

pub fn find(context: &Context) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        context.manifest.errors.iter().map(|error| faulty(context, &at_its_field(error))).collect();
    findings.extend(twice(context));
    findings
}

/// A field that is missing is told as the schema tells it: at the field, not around it.
fn at_its_field(error: &ManifestError) -> ManifestError {
    let mut error = error.clone();
    let name = error.message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    if let Some(name) = name.map(str::to_owned) {
        error.field = if error.field.is_empty() { name } else { format!("{}.{name}", error.field) };
        "missing".clone_into(&mut error.message);
    }
    error
}

fn faulty(context: &Context, error: &ManifestError) -> Finding {
    let here: Vec<&Document> = (context.documents.iter())
        .filter(|of| of.file == error.file && of.number == error.document)
        .collect();
    // What is no object is none of those beside it in a list.
    let document = match (&error.object, &here[..]) {
        (None, [document]) if !is_item(&error.field) => Some(*document),
        (None, _) => None,
        (object, _) => here.iter().find(|of| of.key == *object).or(here.first()).copied(),
    };
    let is_whole = error.field.is_empty()
        || is_item(&error.field)
        || matches!(error.field.as_str(), "apiVersion" | "kind" | "items");
    let code = if is_whole { Code::Unreadable } else { Code::Schema };
    let remedy = match code {
        Code::Unreadable => {
            "correct it; nothing of this document was looked at, and kubectl apply stops here"
        }
        _ => "write what is expected; the API server refuses the object as it is",
    };
    match document {
        Some(document) => document.finding(code, error.field.clone(), error.message.clone(), remedy),
        None => Finding {
            code,
            severity: code.severity(),
            place: Place { file: error.file.clone(), document: error.document, line: line(&error.message) },
            object: error.object.as_ref().map(ToString::to_string).unwrap_or_default(),
            field: error.field.clone(),
            what: error.message.clone(),
            remedy: remedy.to_owned(),
        },
    }
}

/// `items[3]`, and not a field of an item.
fn is_item(field: &str) -> bool {
    field.starts_with("items[") && field.ends_with(']')
}

/// The line that the parser names.
fn line(message: &str) -> Option<usize> {
    let (_, rest) = message.split_once("at line ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

fn twice(context: &Context) -> Vec<Finding> {
    let mut by_key: BTreeMap<&ObjectKey, Vec<&Document>> = BTreeMap::new();
    for document in &context.documents {
        if let Some(key) = &document.key {
            by_key.entry(key).or_default().push(document);
        }
    }
    let mut findings = Vec::new();
    for documents in by_key.into_values() {
        let Some((last, before)) = documents.split_last() else { continue };
        for document in before.iter().filter(|document| document.value != last.value) {
            let Place { file, line, .. } = last.place("");
            let line = line.map(|line| format!(":{line}")).unwrap_or_default();
            let what =
                format!("it is written again in {}{line}, and only the last one counts", file.display());
            findings.push(document.finding(Code::WrittenTwice, "metadata.name", what, "keep one of them"));
        }
    }
    findings
}
