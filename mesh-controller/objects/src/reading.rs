//! Reading a value of which everything that does not fit is to be told, not the first thing alone.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use crate::object::FieldError;

/// More faults than anybody reads at once.
const MOST: usize = 50;

/// What was read, and everything that was wrong with it.
pub(crate) struct Reading<T> {
    /// As far as it could be read: without the fields that are faulty.
    pub value: Option<T>,
    pub faults: Vec<FieldError>,
}

/// A field's name or an item's place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Field(String),
    Item(usize),
}

/// Reads a value; paths of faults start with `prefix`. What is faulty is told and left out, until the rest can be read.
pub(crate) fn read_all<T: DeserializeOwned>(value: &Value, prefix: &str) -> Reading<T> {
    let mut rest = value.clone();
    let mut faults = Vec::new();
    // Of lists, by their path as written: how many items before the first that is left are gone.
    let mut gone: BTreeMap<Vec<Step>, usize> = BTreeMap::new();
    let mut is_whole = true;
    let mut removed: Vec<Vec<Step>> = Vec::new();
    while faults.len() < MOST {
        let error = match serde_path_to_error::deserialize::<_, T>(&rest) {
            Ok(value) => return Reading { value: is_whole.then_some(value), faults },
            Err(error) => error,
        };
        let Some(path) = steps(error.path()) else {
            faults.push(FieldError::new(joined(prefix, &[]), error.into_inner().to_string()));
            break;
        };
        let message = error.into_inner().to_string();
        let as_written = written(&path, &gone);
        // That a field is missing which was taken away a moment ago is nobody's fault.
        let follows = removed.iter().any(|removed| match removed.split_last() {
            Some((Step::Field(name), parent)) => {
                as_written == parent && message.starts_with(&format!("missing field `{name}`"))
            }
            _ => false,
        });
        if !follows {
            faults.push(FieldError::new(joined(prefix, &as_written), message));
        }
        match remove(&mut rest, (&path, &as_written), &mut gone) {
            Removed::Field => {}
            Removed::Item => is_whole = false,
            Removed::Nothing => break,
        }
        removed.push(as_written);
    }
    Reading { value: None, faults }
}

fn steps(path: &Path) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for segment in path {
        steps.push(match segment {
            Segment::Seq { index } => Step::Item(*index),
            Segment::Map { key } => Step::Field(key.clone()),
            Segment::Enum { .. } | Segment::Unknown => return None,
        });
    }
    Some(steps)
}

enum Removed {
    Field,
    Item,
    /// The value as a whole is faulty.
    Nothing,
}

/// Takes what is at the path away, and the items before it: they are good.
fn remove(
    value: &mut Value,
    (path, written): (&[Step], &[Step]),
    gone: &mut BTreeMap<Vec<Step>, usize>,
) -> Removed {
    let Some((last, parent)) = path.split_last() else { return Removed::Nothing };
    let holder = parent.iter().try_fold(value, |value, step| match step {
        Step::Field(name) => value.get_mut(name),
        Step::Item(index) => value.get_mut(index),
    });
    match (holder, last) {
        (Some(Value::Object(fields)), Step::Field(name)) => {
            fields.remove(name).map_or(Removed::Nothing, |_| Removed::Field)
        }
        (Some(Value::Array(items)), Step::Item(index)) => {
            items.drain(..(index + 1).min(items.len()));
            *gone.entry(written[..parent.len()].to_vec()).or_default() += index + 1;
            Removed::Item
        }
        _ => Removed::Nothing,
    }
}

/// The path in the value as it was written.
fn written(path: &[Step], gone: &BTreeMap<Vec<Step>, usize>) -> Vec<Step> {
    let mut written: Vec<Step> = Vec::new();
    for step in path {
        written.push(match step {
            Step::Item(index) => Step::Item(index + gone.get(&written).copied().unwrap_or(0)),
            field @ Step::Field(_) => field.clone(),
        });
    }
    written
}

fn joined(prefix: &str, path: &[Step]) -> String {
    let mut text = prefix.to_owned();
    for step in path {
        match step {
            Step::Item(index) => text.push_str(&format!("[{index}]")),
            Step::Field(name) if text.is_empty() => text.push_str(name),
            Step::Field(name) => text.push_str(&format!(".{name}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default)]
    struct Spec {
        replicas: u32,
        name: String,
        ports: Vec<Port>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Port {
        port: u16,
        #[serde(default)]
        name: String,
    }

    fn fields(value: &Value) -> Vec<String> {
        read_all::<Spec>(value, "spec").faults.into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn every_fault_is_named_where_it_was_written() {
        let value = json!({"replicas": "three", "name": 1, "ports": [
            {"port": 80}, {"port": "x", "name": 2}, 7, {"port": 81}, {"name": "lost"}, {"port": 82, "name": []}]});
        let expected = [
            "spec.replicas",
            "spec.name",
            "spec.ports[1].port",
            "spec.ports[1].name",
            "spec.ports[2]",
            "spec.ports[4]",
            "spec.ports[5].name",
        ];
        let mut found = fields(&value);
        found.sort();
        let mut expected = expected.map(str::to_owned).to_vec();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_whole_is_read_and_what_is_not_is_read_without_its_faults() {
        let good = read_all::<Spec>(&json!({"replicas": 3}), "");
        assert_eq!((good.value.map(|spec| spec.replicas), good.faults.len()), (Some(3), 0));
        let partly = read_all::<Spec>(&json!({"replicas": 3, "name": 1}), "");
        assert_eq!((partly.value.map(|spec| spec.replicas), partly.faults.len()), (Some(3), 1));
        let list = read_all::<Spec>(&json!({"ports": [7]}), "");
        assert_eq!((list.value, list.faults.len()), (None, 1), "a list that lost items is no list to judge");
        assert_eq!(fields(&json!("text")), ["spec"]);
    }
}
