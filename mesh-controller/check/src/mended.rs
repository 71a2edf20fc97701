//! Objects with faults, without the parts that these are in, where it is known that nothing else depends on those: the rest of
//! them is judged, and what refers to them.
//!
//! The controller reads no object with a fault in it. What is found of the rest holds when the fault is mended.

use culvert_objects::{Kind, Object, manifest};
use serde_json::{Value, json};

use crate::context::Document;

/// None where more than the faulty part might depend on it.
pub fn mended(document: &Document, faults: &[&str]) -> Option<Object> {
    let kind = document.key.as_ref()?.kind;
    let mut value = document.value.clone();
    for fault in faults {
        if let Some(field) =
            ["labels", "annotations"].into_iter().find(|of| is_in(fault, &format!("metadata.{of}")))
        {
            value["metadata"].as_object_mut()?.remove(field);
            continue;
        }
        match kind {
            Kind::HttpRoute | Kind::GrpcRoute => {
                let index = index(fault, "spec.rules[")?;
                *value["spec"]["rules"].get_mut(index)? = nothing(kind, index);
            }
            Kind::Service => of_service(&mut value["spec"], fault)?,
            _ => return None,
        }
    }
    let read = manifest::Document { number: document.number, within: String::new(), value: Ok(value) };
    let read = manifest::read(vec![read], &document.file);
    read.objects.into_iter().next().filter(|_| read.errors.is_empty()).map(|at| at.object)
}

/// A rule that takes nothing that another one could take.
fn nothing(kind: Kind, index: usize) -> Value {
    match kind {
        Kind::GrpcRoute => {
            json!({"matches": [{"method": {"service": "culvert.check.Unread", "method": format!("Rule{index}")}}]})
        }
        _ => {
            json!({"matches": [{"path": {"type": "Exact", "value": format!("/culvert-check/unread/{index}")}}]})
        }
    }
}

/// No route depends on these fields; of the pods' ports it is asked whether two are the same.
fn of_service(spec: &mut Value, fault: &str) -> Option<()> {
    if is_in(fault, "spec.selector") {
        spec.as_object_mut()?.remove("selector");
        return Some(());
    }
    let index = index(fault, "spec.ports[")?;
    let port = spec["ports"].get_mut(index)?.as_object_mut()?;
    match fault.split_once("].")?.1 {
        "targetPort" => drop(port.insert("targetPort".to_owned(), format!("unread-{index}").into())),
        "nodePort" => drop(port.remove("nodePort")),
        _ => return None,
    }
    Some(())
}

fn index(fault: &str, list: &str) -> Option<usize> {
    fault.strip_prefix(list)?.split_once(']')?.0.parse().ok()
}

fn is_in(field: &str, outer: &str) -> bool {
    field.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}
