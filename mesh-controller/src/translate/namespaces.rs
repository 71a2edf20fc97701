//! Namespaces to Namespace resources.

use std::collections::BTreeMap;

use culvert_api::mesh as pb;
use culvert_objects::enrolment::enrols;
use culvert_objects::{Kind, Object, Objects};

/// Every namespace, also those that are never enrolled, by name.
pub fn resources(objects: &Objects) -> BTreeMap<String, pb::Namespace> {
    let resource = |namespace: &Object| {
        let name = namespace.name().to_owned();
        (name.clone(), pb::Namespace { name, enrols: enrols(namespace) })
    };
    objects.of_kind(Kind::Namespace).map(|namespace| resource(namespace)).collect()
}
