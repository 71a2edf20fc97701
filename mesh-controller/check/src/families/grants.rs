//! References into other namespaces that the controller's pass does not follow yet: certificates.

use culvert_objects::types::{GATEWAY_GROUP, ReferenceGrantSpec};
use culvert_objects::{Kind, ObjectKey};

use crate::code::Code;
use crate::context::Context;
use crate::finding::Finding;
use crate::references::{Reference, Role};

pub fn find(context: &Context) -> Vec<Finding> {
    let elsewhere = context.references.iter().filter(|reference| {
        let own = context.documents[reference.document].namespace();
        reference.to.namespace.as_deref().is_some_and(|namespace| namespace != own)
    });
    let ungranted = elsewhere.filter_map(|reference| match (reference.role, reference.to.kind) {
        (Role::Certificate, Kind::Secret) => certificate(context, reference),
        _ => None,
    });
    ungranted.collect()
}

/// Whether a grant that is not in the files is missing, or may be in the cluster.
fn code(context: &Context, to: &ObjectKey) -> Code {
    let namespace = to.namespace.clone().unwrap_or_default();
    let is_created = context.keys.contains(&ObjectKey::cluster(Kind::Namespace, namespace));
    if is_created || context.keys.contains(to) { Code::NotGranted } else { Code::NotInFiles }
}

fn certificate(context: &Context, certificate: &Reference) -> Option<Finding> {
    let document = &context.documents[certificate.document];
    let (namespace, name) = (certificate.to.namespace.as_deref()?, certificate.to.name.as_str());
    let grants = context.written.in_namespace(Kind::ReferenceGrant, namespace);
    let permits = |spec: ReferenceGrantSpec| {
        let from = |of: &culvert_objects::types::GrantFrom| {
            of.group == GATEWAY_GROUP && of.kind == document.kind && of.namespace == document.namespace()
        };
        let to = |of: &culvert_objects::types::GrantTo| {
            of.group.is_empty()
                && of.kind == "Secret"
                && of.name.as_deref().is_none_or(|of| of.is_empty() || of == name)
        };
        spec.from.iter().any(from) && spec.to.iter().any(to)
    };
    if grants.filter_map(|object| object.spec().ok()).any(permits) {
        return None;
    }
    let what = format!(
        "no ReferenceGrant in {namespace} permits {}; the listener has no certificate",
        certificate.to
    );
    let remedy = format!(
        "in namespace {namespace} write a ReferenceGrant with from: [{{group: {GATEWAY_GROUP}, kind: {}, namespace: {}}}] and to: \
         [{{group: \"\", kind: Secret, name: {name}}}]",
        document.kind,
        document.namespace()
    );
    Some(document.finding(code(context, &certificate.to), certificate.field.clone(), what, remedy))
}
