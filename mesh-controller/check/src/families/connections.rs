//! Routes of connections: rules that lead nowhere.

use culvert_objects::types::GATEWAY_GROUP;
use serde_json::Value;

use crate::code::Code;
use crate::context::{Context, Document};
use crate::finding::Finding;

pub fn find(context: &Context) -> Vec<Finding> {
    context.documents.iter().filter(|document| is_ours(document)).flat_map(of_route).collect()
}

fn is_ours(document: &Document) -> bool {
    let group = document.api_version.split_once('/').map_or("", |(group, _)| group);
    group == GATEWAY_GROUP && matches!(document.kind.as_str(), "TCPRoute" | "TLSRoute")
}

fn of_route(document: &Document) -> Vec<Finding> {
    let rules = document.value["spec"]["rules"].as_array().into_iter().flatten().enumerate();
    let told = rules.filter_map(|(index, rule)| {
        let backends = rule["backendRefs"].as_array().filter(|backends| !backends.is_empty())?;
        backends.iter().all(is_off).then(|| {
            let what = "the weights sum to 0: every connection of the rule is reset";
            let remedy = "give at least one backend a weight (1 unless written), or take the rule away";
            document.finding(Code::NoConnections, format!("spec.rules[{index}].backendRefs"), what, remedy)
        })
    });
    told.collect()
}

/// A weight is 1 unless written.
fn is_off(backend: &Value) -> bool {
    backend["weight"].as_u64() == Some(0)
}
