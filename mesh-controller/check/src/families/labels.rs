//! Values of the mesh's label that mean nothing, on namespaces, nodes and pods, whoever makes them.

use culvert_api::names::MESH_LABEL;
use serde_json::Value;

use super::policies::template;
use crate::cluster::mesh::means_nothing;
use crate::code::Code;
use crate::context::{Context, Document};
use crate::finding::Finding;

pub fn find(context: &Context) -> Vec<Finding> {
    context.documents.iter().filter_map(of_document).collect()
}

fn of_document(document: &Document) -> Option<Finding> {
    let at = match document.kind.as_str() {
        "Namespace" | "Node" if document.api_version == "v1" => "/metadata",
        kind => template(kind)?,
    };
    // A value that is no text is told by its type.
    let value = document.value.pointer(at)?["labels"].get(MESH_LABEL).and_then(Value::as_str)?;
    let (what, remedy) = means_nothing(&document.kind, value)?;
    let field = format!("{}.labels.{MESH_LABEL}", at.trim_start_matches('/').replace('/', "."));
    Some(document.finding(Code::LabelValue, field, what, remedy))
}
