//! Routes: objects to resources and statuses, in one pass, so that the two cannot disagree.
//!
//! [`normalize`] brings the kinds to one shape, [`resolve`] follows their backends, [`attach`] their parents, [`compile`]
//! compiles what came of it with the crate that proxies use, and [`emit`] writes it down. A route's [`status`] is made
//! from the same values.

mod attach;
mod compile;
mod emit;
mod gateway;
mod memory;
mod mesh;
mod normalize;
pub mod outcomes;
mod policies;
mod resolve;
mod services;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_api::mesh as pb;
use culvert_objects::{Kind, Object, Objects};
use culvert_routing::model::{Carries, RouteKind};

use super::Statuses;
use super::gateways::{Attached, Gateways};
use crate::status::{DesiredParent, DesiredStatus};
use attach::{Refusal, Taken};
use memory::{Entry, Settled, Surroundings};
use normalize::Draft;
use normalize::reader::{At, Fault, UNKNOWN_FIELD};
use outcomes::Outcome;
use policies::Policies;
use resolve::{Resolver, Side};
use services::Services;

pub use emit::{object, session as session_message};
pub use memory::Memory;
pub use normalize::{duration, reader, session};
pub use policies::Sessions;
pub use status::add_refusals;

/// Route resources by name.
pub type Routes = BTreeMap<String, Arc<pb::Route>>;

/// Entries of `status.parents` by the index of their parentRef.
type Said = BTreeMap<usize, DesiredParent>;

/// Translates every route, and says in statuses what became of each.
pub fn translate(
    objects: &Objects,
    gateways: &Gateways,
    sessions: Sessions,
    memory: &mut Memory,
    statuses: &mut Statuses,
) -> (Routes, Attached, Vec<Arc<Outcome>>) {
    let (mut before, surroundings) = memory.begin(objects, Policies::of(objects, sessions));
    let mut pass = Pass {
        objects,
        gateways,
        resolver: Resolver { services: Services::new(objects), policies: memory.policies.clone() },
        taken: Taken::default(),
        attached: Attached::new(),
        routes: Routes::new(),
        outcomes: Vec::new(),
    };
    // In their order of precedence: what a GRPCRoute takes is known when the HTTPRoutes come, and of one kind what the older does.
    for kind in RouteKind::ALL {
        let mut of_kind: Vec<&Arc<Object>> = objects.of_kind(emit::object_kind(kind)).collect();
        of_kind.sort_by_key(|object| normalize::created(object));
        for object in of_kind {
            let mut entry = before.take(object, kind);
            if surroundings == Surroundings::Changed {
                entry.settled = None;
            }
            if let Some(status) = translate_one(&mut pass, &mut entry, object) {
                statuses.insert(object.key(), status);
            }
            memory.keep(entry);
        }
    }
    for object in objects.of_kind(Kind::UdpRoute) {
        let parents = normalize::parents(object);
        let mut said: Said = (parents.iter().enumerate())
            .filter_map(|(index, parent)| Some((index, mesh::unevaluated(parent, object)?)))
            .collect();
        gateway::not_at_listeners(gateways, object, &parents, &mut said);
        statuses.extend(status(object, said).map(|status| (object.key(), status)));
    }
    (pass.routes, pass.attached, pass.outcomes)
}

/// One route; what is said of it, if anything is.
fn translate_one(pass: &mut Pass<'_>, entry: &mut Entry, object: &Object) -> Option<Arc<DesiredStatus>> {
    if let Some(settled) = &entry.settled
        && settled.at.is_left_the_same(&pass.taken, &entry.draft)
    {
        settled.at.put(pass, &entry.draft);
        return Some(settled.status.clone());
    }
    let at = mesh::at_services(pass, entry);
    at.put(pass, &entry.draft);
    let mut said = at.said().clone();
    match entry.draft.key.kind.carries() {
        Carries::Requests => gateway::at_listeners(pass, entry, &mut said),
        Carries::Tls | Carries::Bytes => {
            gateway::not_at_listeners(pass.gateways, object, &entry.draft.parents, &mut said);
        }
    }
    if said.is_empty() {
        nowhere(pass, entry);
    }
    let status = status(object, said);
    let settled = status.clone().filter(|_| entry.has_only_services());
    entry.settled = settled.map(|status| Arc::new(Settled { at, status }));
    status
}

/// A route without a parent of ours: nobody is told anything of it, but what is wrong with it can be said.
fn nowhere(pass: &mut Pass<'_>, entry: &mut Entry) {
    let in_force = entry.in_force(pass.objects, &mut pass.resolver, Side::Mesh, Vec::new());
    let attached = Err(Refusal::new("NoMatchingParent", "no parent of it is Culvert's"));
    let draft = entry.draft.clone();
    pass.outcomes.push(Arc::new(Outcome { draft, parent: None, side: Side::Mesh, attached, in_force }));
}

/// What one pass over all routes knows.
struct Pass<'a> {
    objects: &'a Objects,
    gateways: &'a Gateways,
    resolver: Resolver<'a>,
    taken: Taken,
    attached: Attached,
    routes: Routes,
    outcomes: Vec<Arc<Outcome>>,
}

fn status(object: &Object, said: Said) -> Option<Arc<DesiredStatus>> {
    if said.is_empty() {
        return None;
    }
    Some(Arc::new(DesiredStatus::of(object).with_parents(said.into_values().collect())))
}

/// What stops a route at a parent whose reference has fields that nobody knows: they might have narrowed it.
fn parent_faults(draft: &Draft, index: usize) -> Vec<Fault> {
    let Some(Ok(parent)) = draft.parents.get(index).map(|parent| &parent.read) else { return Vec::new() };
    let at = At::Root("spec");
    let at = at.field("parentRefs");
    let at = at.item(index);
    parent.rest.keys().map(|field| Fault::unsupported(at.field(field), UNKNOWN_FIELD)).collect()
}
