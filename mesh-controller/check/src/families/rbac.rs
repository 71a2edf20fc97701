//! Verbs of roles that no API server asks for: they grant nothing, and nobody says so.

use serde_json::Value;

use crate::code::Code;
use crate::context::{Context, Document};
use crate::finding::Finding;
use crate::words::nearest;

const GROUP: &str = "rbac.authorization.k8s.io";
/// Of resources, and those that single kinds have beside them (Kubernetes, "Authorization", request verbs).
const VERBS: &[&str] = &[
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "use",
    "bind",
    "escalate",
    "impersonate",
    "approve",
    "sign",
    "attest",
    "request-serviceaccounts-token-audience",
];
/// Of paths that are no resources.
const PATH_VERBS: &[&str] = &["get", "post", "put", "patch", "delete", "head", "options"];
/// What people write instead.
const MEANT: &[(&str, &str)] = &[
    ("edit", "update and patch"),
    ("modify", "update and patch"),
    ("write", "create, update, patch and delete"),
    ("change", "update and patch"),
    ("put", "update"),
    ("post", "create"),
    ("add", "create"),
    ("apply", "get, create and patch"),
    ("replace", "update"),
    ("read", "get, list and watch"),
    ("view", "get, list and watch"),
    ("describe", "get and list"),
    ("show", "get"),
    ("remove", "delete"),
    ("destroy", "delete"),
    ("deleteall", "deletecollection"),
    ("all", "\"*\""),
    ("any", "\"*\""),
    ("admin", "\"*\""),
];

pub fn find(context: &Context) -> Vec<Finding> {
    let roles = context.documents.iter().filter(|document| {
        document.api_version.starts_with(GROUP) && matches!(document.kind.as_str(), "Role" | "ClusterRole")
    });
    roles.flat_map(of_role).collect()
}

fn of_role(document: &Document) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (rule, of) in document.value["rules"].as_array().into_iter().flatten().enumerate() {
        let known = if of["nonResourceURLs"].is_array() { PATH_VERBS } else { VERBS };
        for (index, verb) in of["verbs"].as_array().into_iter().flatten().enumerate() {
            let Some(verb) = verb.as_str().filter(|verb| *verb != "*" && !known.contains(verb)) else {
                continue;
            };
            let resources: Vec<&str> =
                of["resources"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let on =
                if resources.is_empty() { String::new() } else { format!(" on {}", resources.join(", ")) };
            let what = format!(
                "there is no verb {verb:?}: it grants nothing{on}, and the API server does not say so"
            );
            let lower = verb.to_lowercase();
            let meant = MEANT.iter().find(|(written, _)| *written == lower).map(|(_, meant)| *meant);
            let remedy = match meant.or_else(|| nearest(verb, known.iter().copied())) {
                Some(meant) => format!("write {meant}"),
                None => format!("the verbs are {}", known.join(", ")),
            };
            findings.push(document.finding(
                Code::NoSuchVerb,
                format!("rules[{rule}].verbs[{index}]"),
                what,
                remedy,
            ));
        }
    }
    findings
}
