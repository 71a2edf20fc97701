//! Routes at Gateways: which listeners a route is attached to, and the resources that come of it.
//!
//! Of the listeners that `sectionName` and `port` leave, a route is attached to those that allow its kind and its namespace and
//! have a hostname in common with it. Where none is left, the status says at which of these steps. Both kinds of routes share a
//! listener.

use std::collections::BTreeSet;
use std::sync::Arc;

use culvert_api::mesh as pb;
use culvert_api::names::GATEWAY_CONTROLLER;
use culvert_objects::Object;
use culvert_objects::types::{ParentKind, ParentRef};
use culvert_routing::hostname;
use culvert_routing::model::Hostname;

use super::attach::Refusal;
use super::memory::Entry;
use super::normalize::reader::Fault;
use super::normalize::{Draft, Parent};
use super::outcomes::{Outcome, Place};
use super::resolve::Side;
use super::status::Facts;
use super::{Pass, Said, emit, parent_faults};
use crate::status::{DesiredCondition, DesiredParent};
use crate::translate::gateways::{Gateway, Gateways, Listener};

/// A parentRef to a Gateway of ours.
struct Claim<'g> {
    index: usize,
    gateway: &'g Gateway,
    /// The listeners it is attached to, with the hostnames in effect at each.
    attached: Result<Vec<(&'g Listener, Vec<Hostname>)>, Refusal>,
    fault: Vec<Fault>,
}

/// Attaches a route to the listeners of its Gateways.
pub fn at_listeners(pass: &mut Pass<'_>, entry: &mut Entry, said: &mut Said) {
    let draft = entry.draft.clone();
    let claims: Vec<Claim<'_>> =
        (0..draft.parents.len()).filter_map(|index| claim(pass, &draft, index)).collect();
    let mut counted: BTreeSet<&str> = BTreeSet::new();
    for claim in &claims {
        // References to one Gateway may meet at one listener, so what stops one of them stops all.
        let of_gateway = claims.iter().filter(|other| std::ptr::eq(other.gateway, claim.gateway));
        let of_refs = of_gateway.flat_map(|other| other.fault.iter().cloned()).collect();
        let in_force = entry.in_force(pass.objects, &mut pass.resolver, Side::Gateway, of_refs);
        let attached = claim.attached.as_ref().map(|listeners| words(listeners)).map_err(Refusal::clone);
        let facts = Facts::new(attached, &draft, &in_force);
        let parent = DesiredParent {
            parent_ref: draft.parents[claim.index].written.clone(),
            controller_name: GATEWAY_CONTROLLER.to_owned(),
            conditions: facts.conditions(),
            resources: resources(&draft, claim),
        };
        said.insert(claim.index, parent);
        pass.outcomes.push(Arc::new(Outcome {
            draft: draft.clone(),
            parent: Some(claim.index),
            side: Side::Gateway,
            attached: claim.attached.as_ref().map(|at| place(at)).map_err(Refusal::clone),
            in_force: in_force.clone(),
        }));
        for (listener, hostnames) in claim.attached.iter().flatten() {
            let first = counted.insert(&listener.resource);
            if first && !facts.is_hopeless() {
                *pass.attached.entry(listener.resource.clone()).or_default() += 1;
            }
            if first && claim.gateway.serves(listener) {
                let parent = pb::route::Parent::Listener(listener.resource.clone());
                let key = emit::name(&draft.key, &listener.resource);
                let route = entry.emit(&key, &in_force, hostnames, parent);
                pass.routes.insert(key, route);
            }
        }
    }
}

/// None where the parent is no Gateway of ours.
fn claim<'g>(pass: &Pass<'g>, draft: &Draft, index: usize) -> Option<Claim<'g>> {
    let Parent { written, read } = &draft.parents[index];
    // One that cannot be read may be told by whose it would be.
    let guess = ParentRef::guess(written);
    let parent = read.as_ref().unwrap_or(&guess);
    if parent.parent_kind() != ParentKind::Gateway {
        return None;
    }
    let namespace = parent.namespace.as_deref().unwrap_or(&draft.key.namespace);
    let gateway = pass.gateways.find(namespace, &parent.name)?;
    let attached = match read {
        Ok(parent) => attach(pass, draft, parent, gateway),
        Err(error) => Err(Refusal::new("NoMatchingParent", error.to_string())),
    };
    Some(Claim { index, gateway, attached, fault: parent_faults(draft, index) })
}

fn attach<'g>(
    pass: &Pass<'_>,
    draft: &Draft,
    parent: &ParentRef,
    gateway: &'g Gateway,
) -> Result<Vec<(&'g Listener, Vec<Hostname>)>, Refusal> {
    let name = gateway.key();
    if let Some((_, why)) = &gateway.refused {
        return Err(Refusal::new("Pending", format!("Gateway {name} is not accepted: {why}")));
    }
    let named = named(parent, gateway)?;
    let (own, from) = (gateway.namespace(), &*draft.key.namespace);
    let allowed: Vec<&Listener> = (named.into_iter())
        .filter(|listener| {
            listener.kinds.contains(&draft.key.kind) && listener.allows(pass.objects, own, from)
        })
        .collect();
    if allowed.is_empty() {
        let message = format!(
            "no listener of Gateway {name} that is asked for allows this kind of route from namespace {from}"
        );
        return Err(Refusal::new("NotAllowedByListeners", message));
    }
    let attached: Vec<_> = allowed
        .into_iter()
        .filter_map(|listener| {
            let hostnames = hostname::intersect(listener.hostname.as_ref(), &draft.hostnames)?;
            Some((listener, hostnames))
        })
        .collect();
    if attached.is_empty() {
        let message =
            format!("no listener of Gateway {name} that allows it has a hostname in common with it");
        return Err(Refusal::new("NoMatchingListenerHostname", message));
    }
    Ok(attached)
}

/// The listeners that a parentRef leaves.
fn named<'g>(parent: &ParentRef, gateway: &'g Gateway) -> Result<Vec<&'g Listener>, Refusal> {
    let named = gateway.listeners.iter().filter(|listener| {
        parent.section_name.as_ref().is_none_or(|section| *section == listener.name)
            && parent.port.is_none_or(|port| port == listener.port)
    });
    let named: Vec<&Listener> = named.collect();
    if !named.is_empty() {
        return Ok(named);
    }
    let name = gateway.key();
    let message = match (&parent.section_name, parent.port) {
        (Some(section), Some(port)) => format!("Gateway {name} has no listener {section:?} on port {port}"),
        (Some(section), None) => format!("Gateway {name} has no listener {section:?}"),
        (None, Some(port)) => format!("Gateway {name} has no listener on port {port}"),
        (None, None) => format!("Gateway {name} has no listener"),
    };
    Err(Refusal::new("NoMatchingParent", message))
}

/// What routes of a kind that no listener of this version carries are told at their Gateways.
pub fn not_at_listeners(gateways: &Gateways, route: &Object, parents: &[Parent], said: &mut Said) {
    for (index, parent) in parents.iter().enumerate() {
        said.extend(unevaluated(gateways, parent, route).map(|told| (index, told)));
    }
}

/// No listener allows it.
fn unevaluated(gateways: &Gateways, parent: &Parent, route: &Object) -> Option<DesiredParent> {
    let read = parent.read.as_ref().ok().filter(|read| read.parent_kind() == ParentKind::Gateway)?;
    let gateway = gateways.find(read.namespace.as_deref().unwrap_or(route.namespace()), &read.name)?;
    let refusal = named(read, gateway).err().unwrap_or_else(|| {
        let message = format!(
            "no listener of Gateway {} allows a {} in this version of Culvert",
            gateway.key(),
            route.kind
        );
        Refusal::new("NotAllowedByListeners", message)
    });
    Some(DesiredParent {
        parent_ref: parent.written.clone(),
        controller_name: GATEWAY_CONTROLLER.to_owned(),
        conditions: vec![DesiredCondition::no("Accepted", refusal.reason, refusal.message)],
        resources: Vec::new(),
    })
}

fn place(attached: &[(&Listener, Vec<Hostname>)]) -> Place {
    let listeners =
        attached.iter().map(|(listener, hostnames)| (listener.resource.clone(), hostnames.clone()));
    Place::Listeners(listeners.collect())
}

fn resources(draft: &Draft, claim: &Claim<'_>) -> Vec<String> {
    let attached = claim.attached.iter().flatten().map(|(listener, _)| *listener);
    let served = attached.filter(|listener| claim.gateway.serves(listener));
    served.map(|listener| emit::name(&draft.key, &listener.resource)).collect()
}

fn words(listeners: &[(&Listener, Vec<Hostname>)]) -> String {
    let names: Vec<&str> = listeners.iter().map(|(listener, _)| listener.resource.as_str()).collect();
    let word = if names.len() == 1 { "listener" } else { "listeners" };
    format!("attached to {word} {}", names.join(", "))
}
