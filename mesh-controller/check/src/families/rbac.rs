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

/// Of constrained impersonation (KEP-5284).
const IMPERSONATION: [&str; 2] = ["impersonate:", "impersonate-on:"];
/// Groups with a dot that are Kubernetes' own or known here; all others may have verbs of their own.
const KNOWN: [&str; 2] = ["k8s.io", "culvert.dev"];

pub fn find(context: &Context) -> Vec<Finding> {
    let roles = context.documents.iter().filter(|document| {
        document.api_version.starts_with(GROUP) && matches!(document.kind.as_str(), "Role" | "ClusterRole")
    });
    roles.flat_map(of_role).collect()
}

fn of_role(document: &Document) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (rule, of) in document.value["rules"].as_array().into_iter().flatten().enumerate() {
        let at = format!("rules[{rule}].verbs");
        let Some(verbs) = of["verbs"].as_array().filter(|verbs| !verbs.is_empty()) else {
            findings.push(no_list(document, at, &of["verbs"]));
            continue;
        };
        for (index, verb) in verbs.iter().enumerate() {
            let at = format!("{at}[{index}]");
            match verb.as_str() {
                Some(verb) => findings.extend(of_verb(document, of, verb, at)),
                None => findings.push(no_list(document, at, verb)),
            }
        }
    }
    findings
}

/// What the API server refuses: verbs are a list of strings.
fn no_list(document: &Document, at: String, found: &Value) -> Finding {
    let expected = if at.ends_with(']') { "a string" } else { "a list of verbs, as [get, list]" };
    let found = if found.is_null() { "missing".to_owned() } else { found.to_string() };
    let remedy = "write what is expected; the API server refuses the object as it is";
    document.finding(Code::Schema, at, format!("{found}, expected {expected}"), remedy)
}

fn of_verb(document: &Document, rule: &Value, verb: &str, at: String) -> Option<Finding> {
    let known = if rule["nonResourceURLs"].is_array() { PATH_VERBS } else { VERBS };
    let is_known =
        verb == "*" || known.contains(&verb) || IMPERSONATION.iter().any(|of| verb.starts_with(of));
    if is_known {
        return None;
    }
    let texts = |field: &str| -> Vec<&str> {
        rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let (groups, resources) = (texts("apiGroups"), texts("resources"));
    let lower = verb.to_lowercase();
    let meant = MEANT.iter().find(|(written, _)| *written == lower).map(|(_, meant)| *meant);
    let meant = meant.or_else(|| nearest(verb, known.iter().copied()));
    let own = !groups.is_empty() && groups.iter().all(|group| is_foreign(group));
    if own && meant.is_none() {
        return None;
    }
    let on = if resources.is_empty() { String::new() } else { format!(" on {}", resources.join(", ")) };
    let what = match own {
        true => format!(
            "Kubernetes has no verb {verb:?}: unless something of {} asks for it itself, it grants nothing{on}",
            groups.join(", ")
        ),
        false => {
            format!("there is no verb {verb:?}: it grants nothing{on}, and the API server does not say so")
        }
    };
    let remedy = match meant {
        Some(meant) => format!("write {meant}"),
        None => format!("the verbs are {}", known.join(", ")),
    };
    Some(document.finding(Code::NoSuchVerb, at, what, remedy))
}

fn is_foreign(group: &str) -> bool {
    let is_below = |of: &str| group == of || group.ends_with(&format!(".{of}"));
    group.contains('.') && !KNOWN.iter().any(|of| is_below(of))
}
