//! Lists of routes in which each item may stand once, and how many matches a route has in all.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Faults, first_of, items};

/// Matches of all rules of a route together.
const MATCHES: usize = 128;

/// What tells the items of a list apart (`x-kubernetes-list-type`).
#[derive(Clone, Copy)]
enum Unique {
    /// `map` with the key `name`.
    ByName,
    /// `set`.
    Whole,
}

/// Ends of paths, without the numbers of items. A test takes them from the API's definitions.
const LISTS: &[(&str, Unique)] = &[
    (".matches[].headers", Unique::ByName),
    (".matches[].queryParams", Unique::ByName),
    ("HeaderModifier.set", Unique::ByName),
    ("HeaderModifier.add", Unique::ByName),
    ("HeaderModifier.remove", Unique::Whole),
    (".cors.allowHeaders", Unique::Whole),
    (".cors.allowMethods", Unique::Whole),
    (".cors.allowOrigins", Unique::Whole),
    (".cors.exposeHeaders", Unique::Whole),
    (".grpc.allowedHeaders", Unique::Whole),
    (".http.allowedHeaders", Unique::Whole),
    (".http.allowedResponseHeaders", Unique::Whole),
    (".retry.codes", Unique::Whole),
];

impl Faults<'_> {
    /// `plain` is the path without the numbers of items.
    pub(super) fn lists(&mut self, value: &Value, path: &str, plain: &str) {
        match value {
            Value::Array(of) => {
                if let Some((_, unique)) = LISTS.iter().find(|(end, _)| plain.ends_with(end)) {
                    self.once(of, path, *unique);
                }
                for (index, item) in of.iter().enumerate() {
                    self.lists(item, &format!("{path}[{index}]"), &format!("{plain}[]"));
                }
            }
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.lists(value, &format!("{path}.{name}"), &format!("{plain}.{name}"));
                }
            }
            _ => {}
        }
    }

    fn once(&mut self, of: &[Value], path: &str, unique: Unique) {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (index, item) in of.iter().enumerate() {
            let (key, at) = match unique {
                Unique::ByName => (&item["name"], format!("{path}[{index}].name")),
                Unique::Whole => (item, format!("{path}[{index}]")),
            };
            if key.is_null() {
                continue;
            }
            if let Some(first) = first_of(&mut seen, key.to_string(), index) {
                self.tell(at, format!("{key} stands in {path}[{first}], too"), "write it once");
            }
        }
    }

    pub(super) fn matches(&mut self, spec: &Value) {
        // A rule without matches has one, of everything.
        let of_rule = |rule: &Value| rule["matches"].as_array().map_or(1, Vec::len);
        let total: usize = items(spec, "rules").map(|(_, rule)| of_rule(rule)).sum();
        if total > MATCHES {
            let what = format!("{total} matches in all rules together, expected at most {MATCHES}");
            self.tell("spec.rules".to_owned(), what, "write several routes");
        }
    }
}
