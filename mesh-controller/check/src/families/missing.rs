//! Objects that are referred to and not in the files.

use std::collections::BTreeMap;

use culvert_objects::Kind;

use crate::assume::Gone;
use crate::code::{Code, Severity};
use crate::context::Context;
use crate::finding::Finding;
use crate::references::Reference;

pub fn find(context: &Context) -> Vec<Finding> {
    let mut findings = Vec::new();
    for gone in &context.assumed.gone {
        let mut by_document: BTreeMap<usize, Vec<&Reference>> = BTreeMap::new();
        for reference in gone.references.iter().map(|index| &context.references[*index]) {
            by_document.entry(reference.document).or_default().push(reference);
        }
        findings.extend(by_document.into_values().filter_map(|references| told(context, gone, &references)));
    }
    findings
}

/// Once for each object that refers to it, where it matters most.
fn told(context: &Context, gone: &Gone, references: &[&Reference]) -> Option<Finding> {
    let worst = references.iter().find(|of| of.matters()).or(references.first())?;
    let document = &context.documents[worst.document];
    let more = match references.len() {
        1 => String::new(),
        count => format!(" ({count} references)"),
    };
    let (key, namespace) = (&gone.key, gone.key.namespace.as_deref().unwrap_or_default());
    let sure = match gone.code {
        Code::Missing
            if context.keys.contains(&culvert_objects::ObjectKey::cluster(Kind::Namespace, namespace)) =>
        {
            format!("the files create namespace {namespace}, and there is no {key} in them{more}")
        }
        Code::Missing => format!("there is no {key}{more}"),
        Code::ProbablyMissing if gone.near.is_none() => {
            format!(
                "the files have other objects of kind {} in namespace {namespace}, and no {key}{more}",
                key.kind
            )
        }
        _ => format!("{key} is not in the files{more}; the rest was checked as if the cluster had it"),
    };
    let near = gone.near.as_ref().map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    let what = format!("{sure}{near}; {}", worst.consequence());
    let remedy = match (&gone.near, key.kind, gone.code) {
        (Some(near), ..) if near.namespace != key.namespace => {
            format!("write namespace: {}", near.namespace.as_deref().unwrap_or_default())
        }
        (Some(near), ..) => {
            format!("write name: {}, or check with the file that has {}", near.name, key.name)
        }
        (None, Kind::GatewayClass, _) => {
            "check with the file that has it; Culvert's own class is culvert".to_owned()
        }
        (None, _, Code::Missing) => {
            "create it, or refer to one that exists (--absent there: the cluster has it)".to_owned()
        }
        (None, Kind::Gateway, _) if document.namespace() != namespace => format!(
            "make sure that it exists and that its listener's allowedRoutes takes routes of namespace {}",
            document.namespace()
        ),
        (None, ..) => "make sure that it exists, or check with the file that has it".to_owned(),
    };
    let finding = document.finding(gone.code, worst.field.clone(), what, remedy);
    Some(if worst.matters() { finding } else { finding.as_bad_as(Severity::Notice) })
}
