//! The findings, one file per family; each is a pure function of the context.

mod attachment;
mod backends;
mod cel;
mod connections;
mod foreign;
mod gateways;
mod grants;
mod hidden;
mod instead;
mod labels;
mod missing;
mod not_done;
mod policies;
mod preflights;
mod rbac;
mod reading;
mod schema;
mod scope;
mod time;
mod versions;

use std::collections::BTreeSet;

use culvert_controller::translate::outcomes::object_kind;
use culvert_objects::ObjectKey;
use culvert_routing::model::RouteKey;

use crate::code::Code;
use crate::context::Context;
use crate::finding::Finding;
use crate::references::Role;

/// Everything that is found, in no order. What is said twice of a field is said once, by the family that knows more.
pub fn find(context: &Context) -> Vec<Finding> {
    let of_text = [reading::find, versions::find, schema::find, cel::find, instead::find];
    let mut findings: Vec<Finding> = of_text.iter().flat_map(|find| find(context)).collect();
    once(&mut findings);
    drop_shadowed(&mut findings, &[Code::InventedField], &[Code::UnknownField, Code::Schema]);
    drop_shadowed(&mut findings, &[Code::UnknownField], &[Code::Schema]);
    let of_meaning = [
        missing::find,
        attachment::find,
        backends::find,
        connections::find,
        gateways::find,
        grants::find,
        hidden::find,
        labels::find,
        not_done::find,
        policies::find,
        preflights::find,
        scope::find,
        time::find,
        foreign::find,
        rbac::find,
    ];
    findings.extend(of_meaning.iter().flat_map(|find| find(context)));
    once(&mut findings);
    let of_text = [Code::InventedField, Code::UnknownField, Code::Schema, Code::Missing, Code::Unusable];
    drop_shadowed(&mut findings, &of_text, &[Code::NotDone, Code::Listener]);
    findings.retain(|finding| finding.code != Code::NotDone || !is_of_others(context, finding));
    // A rule or a policy that is refused for what it says is refused for that.
    drop_shadowed(
        &mut findings,
        &[Code::InventedField, Code::UnknownField, Code::Schema],
        &[Code::NoBackend, Code::PolicyRefused],
    );
    findings
}

/// What Culvert does not do is nothing to a route whose parents are all served by others.
fn is_of_others(context: &Context, finding: &Finding) -> bool {
    let documents = context.documents.iter().enumerate();
    let mut own =
        documents.filter(|(_, of)| of.title() == finding.object && of.number == finding.place.document);
    let Some((index, _)) = own.next() else { return false };
    let mut parents =
        context.references.iter().filter(|of| of.document == index && of.role == Role::Parent).peekable();
    parents.peek().is_some() && parents.all(|parent| context.is_foreign(&parent.to))
}

/// A value that several of types, schema, rules and controller do not take is told once, by the first of them.
fn once(findings: &mut Vec<Finding>) {
    let mut told = BTreeSet::new();
    findings.retain(|finding| {
        let at = (finding.place.clone(), finding.object.clone(), finding.field.clone());
        finding.code != Code::Schema || told.insert(at)
    });
}

/// Drops findings of `losers` at, in or around a field of which one of `winners` tells.
fn drop_shadowed(findings: &mut Vec<Finding>, winners: &[Code], losers: &[Code]) {
    let told: Vec<(Finding, Code)> = findings
        .iter()
        .filter(|finding| winners.contains(&finding.code))
        .map(|finding| (finding.clone(), finding.code))
        .collect();
    findings.retain(|finding| {
        let is_shadowed = |(by, code): &(Finding, Code)| {
            *code != finding.code
                && by.object == finding.object
                && by.place.document == finding.place.document
                && by.place.file == finding.place.file
                && (is_in(&by.field, &finding.field) || is_in(&finding.field, &by.field))
        };
        !losers.contains(&finding.code) || !told.iter().any(is_shadowed)
    });
}

/// Whether a field is another one, or inside of it.
fn is_in(inner: &str, outer: &str) -> bool {
    inner
        .strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || outer.is_empty() || rest.starts_with(['.', '[']))
}

/// The object of a route.
fn object_of(route: &RouteKey) -> ObjectKey {
    ObjectKey::namespaced(object_kind(route.kind), &*route.namespace, &*route.name)
}

/// Names, joined by commas.
fn list<T: std::fmt::Display>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}
