//! What earlier passes made of routes that have not changed since.
//!
//! A pass over 5,000 routes of ten rules takes hundreds of milliseconds from nothing, nearly all of it for reading and
//! compiling; an edit changes one route. Objects are immutable and shared from pass to pass, so the same object at the
//! same place, with the same Services behind its backends, comes to the same: only the work is saved, never a result.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use culvert_api::mesh as pb;
use culvert_objects::types::{ParentKind, ParentRef};
use culvert_objects::{Kind, Object, Objects};
use culvert_routing::model::{Hostname, RouteKind};
use pb::route::Parent;

use super::compile::{Compiled, compile};
use super::emit;
use super::mesh::AtServices;
use super::normalize::reader::Fault;
use super::normalize::{self, Draft, DraftRule, normalize};
use super::policies::Policies;
use super::resolve::{Resolver, Side, Unresolved};
use crate::status::DesiredStatus;

/// From one pass to the next. An empty one changes nothing but the time that the pass takes.
#[derive(Debug, Default)]
pub struct Memory {
    routes: HashMap<usize, Entry>,
    pub(super) policies: Arc<Policies>,
    /// Those of the last pass.
    objects: Objects,
}

impl Memory {
    /// Begins a pass. Returns what the passes before have left, and whether Services and policies are as they were: then a route
    /// that has not changed itself comes to something else at Services only by what other routes take.
    pub(super) fn begin(&mut self, objects: &Objects, policies: Policies) -> (Self, Surroundings) {
        let before = std::mem::take(self);
        let same_policies = *before.policies == policies;
        self.policies = if same_policies { before.policies.clone() } else { Arc::new(policies) };
        self.objects = objects.clone();
        let same = same_policies && objects.shares(Kind::Service, &before.objects);
        (before, if same { Surroundings::Same } else { Surroundings::Changed })
    }

    /// What is remembered of a route; made when it is new.
    pub(super) fn take(&mut self, object: &Arc<Object>, kind: RouteKind) -> Entry {
        // The entry holds the object, so that no other can have its address meanwhile.
        self.routes.remove(&address(object)).unwrap_or_else(|| Entry::new(object, kind))
    }

    pub(super) fn keep(&mut self, entry: Entry) {
        self.routes.insert(address(&entry.object), entry);
    }
}

/// What routes refer to, since the pass before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Surroundings {
    Same,
    Changed,
}

/// A route of which everything is said by its Services.
#[derive(Debug)]
pub(super) struct Settled {
    pub at: AtServices,
    pub status: Arc<DesiredStatus>,
}

fn address(object: &Arc<Object>) -> usize {
    Arc::as_ptr(object).addr()
}

/// One route.
#[derive(Debug)]
pub struct Entry {
    object: Arc<Object>,
    pub draft: Arc<Draft>,
    /// The Services that its backends name.
    references: Vec<(String, String)>,
    sides: HashMap<Side, Resolved>,
    emitted: HashMap<String, Emitted>,
    pub(super) settled: Option<Arc<Settled>>,
}

/// A route with its backends followed, as it is in force at parents of one side.
#[derive(Debug)]
pub struct InForce {
    pub compiled: Compiled,
    pub unresolved: Vec<Unresolved>,
    /// What stops the route as a whole.
    pub fault: Vec<Fault>,
}

#[derive(Debug)]
struct Resolved {
    /// In the order of the references.
    services: Vec<Option<Arc<Object>>>,
    policies: Arc<Policies>,
    in_force: Arc<InForce>,
}

#[derive(Debug)]
struct Emitted {
    in_force: Arc<InForce>,
    hostnames: Vec<Hostname>,
    parent: Parent,
    route: Arc<pb::Route>,
}

impl Entry {
    fn new(object: &Arc<Object>, kind: RouteKind) -> Self {
        let draft = normalize(object, kind);
        let named = draft.rules.iter().flat_map(DraftRule::references);
        let references: BTreeSet<(String, String)> = named
            .map(|to| {
                let namespace = to.namespace.as_deref().unwrap_or(&draft.key.namespace);
                (namespace.to_owned(), to.name.clone())
            })
            .collect();
        Self {
            object: object.clone(),
            draft: Arc::new(draft),
            references: references.into_iter().collect(),
            sides: HashMap::new(),
            emitted: HashMap::new(),
            settled: None,
        }
    }

    /// Whether nothing but Services is meant by its parentRefs, also where they cannot be read.
    pub(super) fn has_only_services(&self) -> bool {
        let of_service = |parent: &normalize::Parent| {
            let guess = ParentRef::guess(&parent.written);
            parent.read.as_ref().unwrap_or(&guess).parent_kind() == ParentKind::Service
        };
        self.draft.parents.iter().all(of_service)
    }

    /// The route as it is in force on a side; `of_parents` is what stops it at these parents beside what stops it everywhere.
    pub fn in_force(
        &mut self,
        objects: &Objects,
        resolver: &mut Resolver<'_>,
        side: Side,
        of_parents: Vec<Fault>,
    ) -> Arc<InForce> {
        let make = |resolver: &mut Resolver<'_>, draft: &Draft, of_parents: Vec<Fault>| {
            let fault: Vec<Fault> = draft.faults.iter().cloned().chain(of_parents).collect();
            let (rules, unresolved) = resolver.rules(draft, side);
            Arc::new(InForce { compiled: compile(draft, rules, &fault), unresolved, fault })
        };
        if !of_parents.is_empty() {
            return make(resolver, &self.draft, of_parents);
        }
        let find = |(namespace, name): &(String, String)| objects.find(Kind::Service, namespace, name);
        if let Some(known) = self.sides.get(&side) {
            let mut services = self.references.iter().zip(&known.services);
            let same = services.all(|(name, before)| match (find(name), before) {
                (Some(now), Some(before)) => Arc::ptr_eq(now, before),
                (None, None) => true,
                _ => false,
            });
            if same && Arc::ptr_eq(&known.policies, &resolver.policies) {
                return known.in_force.clone();
            }
        }
        let in_force = make(resolver, &self.draft, of_parents);
        let resolved = Resolved {
            services: self.references.iter().map(|name| find(name).cloned()).collect(),
            policies: resolver.policies.clone(),
            in_force: in_force.clone(),
        };
        self.sides.insert(side, resolved);
        in_force
    }

    /// The resource `name` of the route at a parent.
    pub fn emit(
        &mut self,
        name: &str,
        in_force: &Arc<InForce>,
        hostnames: &[Hostname],
        parent: Parent,
    ) -> Arc<pb::Route> {
        if let Some(known) = self.emitted.get(name)
            && Arc::ptr_eq(&known.in_force, in_force)
            && known.hostnames == hostnames
            && known.parent == parent
        {
            return known.route.clone();
        }
        let route = Arc::new(emit::route(in_force.compiled.route.route(), hostnames, parent.clone()));
        let emitted = Emitted {
            in_force: in_force.clone(),
            hostnames: hostnames.to_vec(),
            parent,
            route: route.clone(),
        };
        self.emitted.insert(name.to_owned(), emitted);
        route
    }
}
