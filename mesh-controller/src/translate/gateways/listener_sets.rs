//! ListenerSets: this version serves none, and says so to those that ask for a Gateway of Culvert's.

use culvert_objects::types::{GATEWAY_GROUP, ParentRef};
use culvert_objects::{Kind, Objects, read};

use super::{Gateway, Gateways};
use crate::status::{DesiredCondition, DesiredStatus};
use crate::translate::Statuses;

/// Puts what each ListenerSet is told in `statuses`.
pub fn refuse(objects: &Objects, gateways: &Gateways, statuses: &mut Statuses) {
    for object in [Kind::ListenerSet, Kind::XListenerSet].iter().flat_map(|kind| objects.of_kind(*kind)) {
        let parent = object.body.get("spec").and_then(|spec| spec.get("parentRef"));
        let Some(Ok(parent)) = parent.map(|parent| read::<ParentRef>(parent, "spec.parentRef")) else {
            continue;
        };
        let is_gateway = parent.kind.as_deref().is_none_or(|kind| kind == Kind::Gateway.as_str())
            && parent.group.as_deref().is_none_or(|group| group == GATEWAY_GROUP);
        let namespace = parent.namespace.as_deref().unwrap_or(object.namespace());
        let Some(gateway) = gateways.find(namespace, &parent.name).filter(|_| is_gateway) else { continue };
        let (reason, message) = why(gateway);
        let status = DesiredStatus::of(object)
            .with_condition(DesiredCondition::no("Accepted", reason, message.clone()))
            .with_condition(DesiredCondition::no("Programmed", reason, message));
        statuses.insert(object.key(), status.into());
    }
}

fn why(gateway: &Gateway) -> (&'static str, String) {
    let key = gateway.key();
    match gateway.allows_listener_sets {
        false => ("NotAllowed", format!("spec.allowedListeners of Gateway {key} allows no ListenerSets")),
        true => ("Invalid", "this version of Culvert does not serve listeners of ListenerSets".to_owned()),
    }
}
