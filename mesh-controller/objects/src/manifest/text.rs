//! From text to the documents in it.

use saphyr_parser::{Event, Parser};
use serde::Deserialize as _;
use serde_json::Value;

pub(super) fn json_documents(text: &str) -> Vec<Result<Value, String>> {
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
pub(super) fn yaml_documents(text: &str) -> Vec<Result<Value, String>> {
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
