//! Fields and values that look right, are found in articles and in other systems, and do not exist in the Gateway API: each with
//! the real way to say it.

mod ways;

use std::collections::BTreeSet;

use serde_json::Value;

use super::schema;
use crate::api;
use crate::code::Code;
use crate::context::{Context, Document};
use crate::finding::Finding;
use crate::words::nearest;

const OF_HTTP: &[&str] = &[
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
    "RequestRedirect",
    "URLRewrite",
    "CORS",
    "ExtensionRef",
    "ExternalAuth",
];
const OF_GRPC: &[&str] =
    &["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror", "ExtensionRef"];

pub fn find(context: &Context) -> Vec<Finding> {
    let mut findings = Vec::new();
    for document in context.documents.iter().filter(|of| is_of_the_api(of)) {
        let unknown = schema::of_document(document).into_iter();
        let unknown = unknown.filter(|of| of.code == Code::UnknownField).map(|of| of.field).collect();
        // What its class knows is the class's to say.
        let is_foreign = document.key.as_ref().is_some_and(|key| context.is_foreign(key));
        let mut walk = Walk { document, unknown, is_foreign, findings: &mut findings };
        walk.below(&document.value["spec"], "spec", "spec");
    }
    findings
}

fn is_of_the_api(document: &Document) -> bool {
    let group = document.api_version.split('/').next().unwrap_or_default();
    api::kinds().get(&document.kind).is_some_and(|kind| kind.group == group)
}

struct Walk<'a> {
    document: &'a Document,
    /// Paths of fields that the schema does not have.
    unknown: BTreeSet<String>,
    is_foreign: bool,
    findings: &'a mut Vec<Finding>,
}

impl Walk<'_> {
    fn tell(&mut self, field: String, what: String, way: impl Into<String>) {
        self.findings.push(self.document.finding(Code::InventedField, field, what, way));
    }

    /// `plain` is the path without the numbers of items.
    fn below(&mut self, value: &Value, path: &str, plain: &str) {
        match value {
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.below(item, &format!("{path}[{index}]"), &format!("{plain}[]"));
                }
            }
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.field(name, value, &format!("{path}.{name}"), &format!("{plain}.{name}"));
                }
            }
            _ => {}
        }
    }

    fn field(&mut self, name: &str, value: &Value, path: &str, plain: &str) {
        match self.unknown.contains(path) {
            true if name == "options" && !plain.starts_with("spec.tls.") => self.options_nowhere(value, path),
            true => {
                if let Some(way) = ways::of_field(&self.document.kind, plain) {
                    self.tell(path.to_owned(), format!("the Gateway API has no field {name} here"), way);
                }
            }
            false if name == "options" => self.options(value, path),
            false if plain.ends_with("filters[].type") => {
                if let Some(kind) = value.as_str() {
                    self.filter(kind, path);
                }
            }
            false => self.below(value, path, plain),
        }
    }

    /// Options where the API has none: what each of them asks for is said.
    fn options_nowhere(&mut self, value: &Value, path: &str) {
        let what = "the Gateway API has no field options here";
        let keys: Vec<&String> = value.as_object().into_iter().flatten().map(|(key, _)| key).collect();
        if keys.is_empty() {
            self.tell(path.to_owned(), what.to_owned(), ways::of_options_nowhere(None));
        }
        for key in keys {
            self.tell(format!("{path}.{key}"), what.to_owned(), ways::of_options_nowhere(Some(key)));
        }
    }

    /// `tls.options` exists, and its keys are each implementation's own: Culvert has none, the API itself neither.
    fn options(&mut self, value: &Value, path: &str) {
        for (key, _) in value.as_object().into_iter().flatten() {
            let is_of_api = key.split_once('/').is_some_and(|(group, _)| group.ends_with("k8s.io"));
            if self.is_foreign && !is_of_api {
                continue;
            }
            let whose =
                if is_of_api { "the Gateway API defines no option" } else { "Culvert knows no option" };
            let way = ways::of_option(key).unwrap_or("take it away");
            self.tell(format!("{path}.{key}"), format!("{whose} {key}"), way);
        }
    }

    fn filter(&mut self, kind: &str, path: &str) {
        let known = match self.document.kind.as_str() {
            "HTTPRoute" => OF_HTTP,
            "GRPCRoute" => OF_GRPC,
            _ => return,
        };
        if known.contains(&kind) {
            return;
        }
        let near = nearest(kind, known.iter().copied()).map(|near| format!("type: {near}"));
        let said = || ways::of_filter(kind).map(str::to_owned);
        let way =
            near.or_else(said).filter(|way| is_of(known, way)).unwrap_or_else(|| of_others(kind, known));
        self.tell(path.to_owned(), format!("{}s have no filter of type {kind}", self.document.kind), way);
    }
}

/// Whether a way that names a type of filter names one of these.
fn is_of(known: &[&str], way: &str) -> bool {
    let named = way.strip_prefix("type: ").map(|rest| rest.split(' ').next().unwrap_or(rest));
    named.is_none_or(|named| known.contains(&named))
}

fn of_others(kind: &str, known: &[&str]) -> String {
    let near =
        OF_HTTP.iter().copied().find(|of| *of == kind).or_else(|| nearest(kind, OF_HTTP.iter().copied()));
    let said = near.map(|near| format!("type: {near}")).or_else(|| ways::of_filter(kind).map(str::to_owned));
    match said {
        Some(said) if known.len() < OF_HTTP.len() => format!(
            "only HTTPRoutes have it ({said}): write the route as an HTTPRoute, whose path for a method of gRPC is \
             /SERVICE/METHOD"
        ),
        _ => format!("the types are {}", known.join(", ")),
    }
}
