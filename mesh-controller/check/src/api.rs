//! What the Gateway API has: kinds, the versions that are served of each, fields and the values that they take.
//!
//! `data/gateway-api.json` is made of the definitions of the API's own module (`tests/api.rs`). It says nothing of what
//! Culvert does with a field: that is the controller's to say.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

/// One kind.
#[derive(Debug, Deserialize)]
pub struct ApiKind {
    pub group: String,
    /// By version, the channel that serves it.
    pub versions: BTreeMap<String, Channel>,
    /// Of `v1`, or of the only version.
    pub schema: Schema,
    /// Of versions that differ from that.
    #[serde(default)]
    pub schemas: BTreeMap<String, Schema>,
}

impl ApiKind {
    /// What holds of an object of a version; of one that is not served, what holds of the newest.
    fn schema_of(&self, api_version: &str) -> &Schema {
        let version = api_version.rsplit('/').next().unwrap_or_default();
        self.schemas.get(version).unwrap_or(&self.schema)
    }
}

/// Which set of definitions a version is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    Standard,
    Experimental,
}

/// A structural schema, without words.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Schema {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "enum")]
    choices: Vec<Value>,
    minimum: Option<i64>,
    maximum: Option<i64>,
    min_length: Option<usize>,
    max_length: Option<usize>,
    min_items: Option<usize>,
    max_items: Option<usize>,
    max_properties: Option<usize>,
    pattern: Option<Pattern>,
    required: Vec<String>,
    properties: BTreeMap<String, Schema>,
    items: Option<Box<Schema>>,
    additional_properties: Option<Box<Schema>>,
}

#[derive(Debug, Deserialize)]
#[serde(from = "String")]
struct Pattern {
    source: String,
    compiled: OnceLock<Option<Regex>>,
}

impl From<String> for Pattern {
    fn from(source: String) -> Self {
        Self { source, compiled: OnceLock::new() }
    }
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A field that is not in the schema.
    Unknown { path: String, name: String, others: Vec<String> },
    /// A value of the wrong type, or out of its range.
    Value { path: String, message: String },
}

/// Every kind of the API, by name.
pub fn kinds() -> &'static BTreeMap<String, ApiKind> {
    static KINDS: OnceLock<BTreeMap<String, ApiKind>> = OnceLock::new();
    KINDS.get_or_init(|| {
        serde_json::from_str(include_str!("../data/gateway-api.json")).expect("a test reads this file")
    })
}

/// Everything in an object that its schema forbids.
pub fn faults(kind: &ApiKind, object: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    let body = object.as_object().into_iter().flatten();
    let body =
        body.filter(|(name, _)| !matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
    let body = body.map(|(name, value)| (name.clone(), value.clone())).collect();
    let schema = kind.schema_of(object["apiVersion"].as_str().unwrap_or_default());
    schema.check(&Value::Object(body), "", &mut faults);
    faults
}

impl Schema {
    fn check(&self, value: &Value, path: &str, faults: &mut Vec<Fault>) {
        if let Err(expected) = self.fits(value) {
            let message = format!("{}, expected {expected}", shown(value));
            return faults.push(Fault::Value { path: path.to_owned(), message });
        }
        match value {
            Value::Object(fields) => self.fields(fields, path, faults),
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let Some(schema) = &self.items {
                        schema.check(item, &format!("{path}[{index}]"), faults);
                    }
                }
            }
            _ => {}
        }
    }

    fn fields(&self, fields: &serde_json::Map<String, Value>, path: &str, faults: &mut Vec<Fault>) {
        let at = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let is_there = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
        for name in self.required.iter().filter(|name| !is_there(name)) {
            faults.push(Fault::Value { path: at(name), message: "missing".to_owned() });
        }
        // An explicit null is an absent field.
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            match self.properties.get(name).or(self.additional_properties.as_deref()) {
                Some(schema) => schema.check(value, &at(name), faults),
                None if self.properties.is_empty() => {}
                None => {
                    let others = self.properties.keys().cloned().collect();
                    faults.push(Fault::Unknown { path: at(name), name: name.clone(), others });
                }
            }
        }
    }

    /// # Errors
    /// What is expected instead.
    fn fits(&self, value: &Value) -> Result<(), String> {
        let has_type = match self.kind.as_str() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "boolean" => value.is_boolean(),
            "number" => value.is_number(),
            _ => true,
        };
        if !has_type {
            let article = if self.kind.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" };
            return Err(format!("{article} {}", self.kind));
        }
        if !self.choices.is_empty() && !self.choices.contains(value) {
            let choices: Vec<String> = self.choices.iter().map(shown).collect();
            return Err(format!("one of {}", choices.join(", ")));
        }
        match value {
            Value::Number(number) => self.fits_number(number.as_i64()),
            Value::String(text) => self.fits_text(text),
            Value::Array(items) => within(items.len(), self.min_items, self.max_items, "items"),
            Value::Object(fields) => within(fields.len(), None, self.max_properties, "entries"),
            _ => Ok(()),
        }
    }

    fn fits_number(&self, number: Option<i64>) -> Result<(), String> {
        let Some(number) = number else { return Ok(()) };
        let fits = self.minimum.is_none_or(|least| number >= least)
            && self.maximum.is_none_or(|most| number <= most);
        match (fits, self.minimum, self.maximum) {
            (true, ..) => Ok(()),
            (false, Some(least), Some(most)) => Err(format!("a number from {least} to {most}")),
            (false, Some(least), None) => Err(format!("at least {least}")),
            (false, None, most) => Err(format!("at most {}", most.unwrap_or(i64::MAX))),
        }
    }

    fn fits_text(&self, text: &str) -> Result<(), String> {
        within(text.chars().count(), self.min_length, self.max_length, "characters")?;
        let Some(pattern) = &self.pattern else { return Ok(()) };
        let regex = pattern.compiled.get_or_init(|| Regex::new(&pattern.source).ok());
        match regex.as_ref().is_none_or(|regex| regex.is_match(text)) {
            true => Ok(()),
            false => Err(format!("what matches {}", pattern.source)),
        }
    }
}

fn within(count: usize, least: Option<usize>, most: Option<usize>, of: &str) -> Result<(), String> {
    match (least, most) {
        (Some(least), _) if count < least => Err(format!("at least {least} {of}")),
        (_, Some(most)) if count > most => Err(format!("at most {most} {of}")),
        _ => Ok(()),
    }
}

/// A value as in YAML, not too long.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(items) => format!("a list of {}", items.len()),
        other => {
            let text = other.to_string();
            match text.char_indices().nth(60) {
                Some((end, _)) => format!("{}...", &text[..end]),
                None => text,
            }
        }
    }
}
