//! Plain words that are booleans in YAML 1.1, which kubectl reads manifests as, and strings in YAML 1.2, which the library does.

use std::collections::HashMap;

use culvert_objects::manifest::Document;
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::Value;

/// As the library has it that kubectl reads YAML with. `true` and `false` are booleans in both versions.
const YES: &[&str] = &["y", "Y", "yes", "Yes", "YES", "on", "On", "ON"];
const NO: &[&str] = &["n", "N", "no", "No", "NO", "off", "Off", "OFF"];

/// What to do about a boolean in the place of a string.
pub const QUOTE: &str =
    "write it in quotes: without them true, yes, on, y and their opposites are booleans to kubectl";

/// Whether a message says that a boolean is in the place of a string.
pub fn is_unquoted(message: &str) -> bool {
    let says = |boolean: &str| {
        message == format!("{boolean}, expected a string")
            || message.starts_with(&format!("invalid type: boolean `{boolean}`, expected a string"))
    };
    says("true") || says("false")
}

/// A word where a boolean is meant, or a string without its quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PlainBoolean {
    path: Vec<Step>,
    written: String,
}

/// A field's name or an item's place.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Field(String),
    Item(usize),
}

impl PlainBoolean {
    fn is_true(&self) -> bool {
        YES.contains(&self.written.as_str())
    }

    /// Makes what is below `within` say what is meant.
    fn apply(&self, document: &mut Value, within: &[Step]) {
        let Some(path) = self.path.strip_prefix(within) else { return };
        let found = path.iter().try_fold(document, |value, step| match step {
            Step::Field(name) => value.get_mut(name),
            Step::Item(index) => value.get_mut(index),
        });
        if let Some(value) = found.filter(|value| **value == self.written) {
            *value = self.is_true().into();
        }
    }
}

/// Makes documents of a YAML text say what they say to kubectl.
pub fn apply(text: &str, documents: &mut [Document]) {
    let booleans = booleans(text);
    for document in documents {
        let Some(all) = booleans.get(document.number - 1) else { continue };
        let within = steps(&document.within);
        if let Ok(value) = &mut document.value {
            all.iter().for_each(|boolean| boolean.apply(value, &within));
        }
    }
}

/// Of a path as `items[3].items[0].`.
fn steps(within: &str) -> Vec<Step> {
    let lists = within.split('.').filter_map(|part| part.strip_suffix(']')?.split_once('['));
    let steps = lists
        .filter_map(|(name, index)| Some([Step::Field(name.to_owned()), Step::Item(index.parse().ok()?)]));
    steps.flatten().collect()
}

/// A collection that is open.
enum Open {
    Sequence {
        path: Vec<Step>,
        next: usize,
    },
    /// With the key that waits for its value.
    Mapping {
        path: Vec<Step>,
        key: Option<String>,
    },
}

/// The words in each document of a text, as far as it can be read.
fn booleans(text: &str) -> Vec<Vec<PlainBoolean>> {
    let is_word = |word: &str| YES.contains(&word) || NO.contains(&word);
    if !text.split(|c: char| !c.is_ascii_alphabetic()).any(is_word) {
        return Vec::new();
    }
    let mut documents: Vec<Vec<PlainBoolean>> = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut anchors: HashMap<usize, Vec<Step>> = HashMap::new();
    for event in Parser::new_from_str(text) {
        let Ok((event, _)) = event else { break };
        match event {
            Event::DocumentStart(_) => {
                documents.push(Vec::new());
                open.clear();
                anchors.clear();
            }
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(Open::Mapping { key: key @ None, .. }) = open.last_mut() {
                    *key = Some(text.into_owned());
                    continue;
                }
                let Some(path) = value(&mut open) else { break };
                anchors.insert(anchor, path.clone());
                if style == ScalarStyle::Plain && tag.is_none() && is_word(&text) {
                    let found = PlainBoolean { path, written: text.into_owned() };
                    documents.last_mut().into_iter().for_each(|all| all.push(found.clone()));
                }
            }
            Event::Alias(anchor) => {
                let (Some(path), Some(all)) = (value(&mut open), documents.last_mut()) else { break };
                let base = anchors.get(&anchor).cloned().unwrap_or_else(|| path.clone());
                let again = all.iter().filter_map(|of| {
                    let rest = of.path.strip_prefix(base.as_slice())?;
                    Some(PlainBoolean { path: [&path, rest].concat(), written: of.written.clone() })
                });
                let again: Vec<PlainBoolean> = again.collect();
                all.extend(again);
            }
            Event::SequenceStart(anchor, _) => {
                let Some(path) = value(&mut open) else { break };
                anchors.insert(anchor, path.clone());
                open.push(Open::Sequence { path, next: 0 });
            }
            Event::MappingStart(anchor, _) => {
                let Some(path) = value(&mut open) else { break };
                anchors.insert(anchor, path.clone());
                open.push(Open::Mapping { path, key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => drop(open.pop()),
            _ => {}
        }
    }
    documents
}

/// The path of the value that begins here; None for a key that is a collection, which no object has. What is merged into a mapping
/// is in it.
fn value(open: &mut [Open]) -> Option<Vec<Step>> {
    match open.last_mut() {
        None => Some(Vec::new()),
        Some(Open::Mapping { path, key }) => {
            let key = key.take()?;
            let own = (key != "<<").then_some(Step::Field(key));
            Some(path.iter().cloned().chain(own).collect())
        }
        Some(Open::Sequence { path, next }) => {
            *next += 1;
            Some(path.iter().cloned().chain([Step::Item(*next - 1)]).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use culvert_objects::manifest::documents;
    use serde_json::json;

    use super::*;

    fn meant(text: &str) -> Vec<Value> {
        let mut documents = documents(text, Path::new("a.yaml"));
        apply(text, &mut documents);
        documents.into_iter().map(|document| document.value.unwrap()).collect()
    }

    #[test]
    fn plain_words_are_booleans_and_others_are_not() {
        let text =
            "a: yes\nb: [\"no\", 'on', off, true]\nc: {d: N, e: !!str yes, f: yes or no}\ng: |-\n  y\n";
        assert_eq!(
            meant(text),
            [
                json!({"a": true, "b": ["no", "on", false, true], "c": {"d": false, "e": "yes", "f": "yes or no"}, "g": "y"})
            ]
        );
        assert_eq!(meant("yes: nothing\n"), [json!({"yes": "nothing"})]);
    }

    #[test]
    fn what_is_written_once_is_meant_wherever_it_is_referred_to() {
        let text = "a: 1\n---\ng: &g {h: On}\ni: *g\nj: {<<: *g, k: nothing}\nl: &l y\nm: [*l]\n";
        let expected = json!({"g": {"h": true}, "i": {"h": true}, "j": {"h": true, "k": "nothing"}, "l": true, "m": [true]});
        assert_eq!(meant(text)[1], expected);
        let list = "kind: List\nitems:\n- kind: List\n  items: [{a: off}]\n- {b: [on]}\n";
        assert_eq!(meant(list), [json!({"a": false}), json!({"b": [true]})]);
    }

    #[test]
    fn a_text_is_looked_at_as_far_as_it_can_be_read() {
        assert_eq!(booleans("a: nothing\n").len(), 0);
        assert_eq!(booleans("a: yes\n---\nb: [yes").len(), 2);
    }
}
