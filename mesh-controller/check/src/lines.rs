//! On which line each field of a YAML (or JSON) text is.

use std::collections::HashMap;

use culvert_objects::manifest::yaml_parts;
use saphyr_parser::{Event, Parser};

/// Lines of one document, by the path of the field; the empty path is the document's first line.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    known: HashMap<String, usize>,
}

impl Lines {
    /// The line of a field, or of the innermost field around it that is written.
    pub fn of(&self, path: &str) -> Option<usize> {
        let mut path = path;
        loop {
            if let Some(line) = self.known.get(path) {
                return Some(*line);
            }
            if path.is_empty() {
                return None;
            }
            path = path.rfind(['.', '[']).map_or("", |end| &path[..end]);
        }
    }
}

/// A collection that is open.
enum Open {
    Sequence {
        path: String,
        next: usize,
    },
    /// With the key that waits for its value.
    Mapping {
        path: String,
        key: Option<String>,
    },
}

/// The lines of each document of a text, as far as it can be read.
pub fn of(text: &str) -> Vec<Lines> {
    if let Ok(documents) = of_stream(text) {
        return documents;
    }
    // Documents as `culvert_objects::manifest` tells them apart then.
    let one = |part: &String| match of_stream(part) {
        Ok(documents) | Err(documents) if !documents.is_empty() => documents,
        _ => vec![Lines::default()],
    };
    yaml_parts(text).iter().flat_map(one).collect()
}

/// # Errors
/// With the lines up to where the text cannot be read.
fn of_stream(text: &str) -> Result<Vec<Lines>, Vec<Lines>> {
    let mut documents: Vec<Lines> = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let Ok((event, span)) = event else { return Err(documents) };
        let line = span.start.line();
        match event {
            Event::DocumentStart(_) => {
                documents.push(Lines::default());
                open.clear();
            }
            Event::Scalar(text, ..) => {
                if let Some(Open::Mapping { path, key: key @ None }) = open.last_mut() {
                    let path = joined(path, &text);
                    if let Some(document) = documents.last_mut() {
                        document.known.entry(path.clone()).or_insert(line);
                    }
                    *key = Some(path);
                } else {
                    value(&mut open, &mut documents, line);
                }
            }
            Event::Alias(_) => drop(value(&mut open, &mut documents, line)),
            Event::SequenceStart(..) => {
                let path = value(&mut open, &mut documents, line);
                open.push(Open::Sequence { path, next: 0 });
            }
            Event::MappingStart(..) => {
                let path = value(&mut open, &mut documents, line);
                open.push(Open::Mapping { path, key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => drop(open.pop()),
            _ => {}
        }
    }
    Ok(documents)
}

/// The path of the value that begins here.
fn value(open: &mut [Open], documents: &mut [Lines], line: usize) -> String {
    let path = match open.last_mut() {
        None => String::new(),
        // A key that is no text has no path; what is below it is found by what is around it.
        Some(Open::Mapping { path, key }) => key.take().unwrap_or_else(|| path.clone()),
        Some(Open::Sequence { path, next }) => {
            *next += 1;
            format!("{path}[{}]", *next - 1)
        }
    };
    if let Some(document) = documents.last_mut() {
        document.known.entry(path.clone()).or_insert(line);
    }
    path
}

fn joined(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_path_or_by_what_is_around_them() {
        let text = "# a comment\nkind: A\nspec:\n  list:\n  - {x: 1, y: 2}\n  - x: 3\n    z: [a,\n      b]\n---\n\nkind: B\n";
        let lines = of(text);
        let first = |path: &str| lines[0].of(path);
        assert_eq!(lines.len(), 2);
        assert_eq!([first("kind"), first("spec"), first("spec.list")], [Some(2), Some(3), Some(4)]);
        assert_eq!([first("spec.list[0].y"), first("spec.list[1].x")], [Some(5), Some(6)]);
        assert_eq!([first("spec.list[1].z[1]"), first("spec.list[1].none.at[7]")], [Some(8), Some(6)]);
        assert_eq!([first("metadata.name"), lines[1].of("kind")], [Some(2), Some(11)]);
        assert!(of("{\n \"a\": {\"b\": 1}\n}")[0].of("a.b") == Some(2));
        assert!(of("a: [\n").len() == 1);
    }
}
