//! What earlier passes made of routes that have not changed since.
//!
//! A pass over 5,000 routes of ten rules takes hundreds of milliseconds from nothing, nearly all of it for reading and
//! compiling; an edit changes one route. Objects are immutable and shared from pass to pass, so the same object at the
//! same place, with the same Services behind its backends, comes to the same: only the work is saved, never a result.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use culvert_api::mesh as pb;
use culvert_objects::{Kind, Object, Objects};
use culvert_routing::model::{Hostname, RouteKind};
use pb::route::Parent;

use super::compile::{Compiled, compile};
use super::emit;
use super::normalize::reader::Fault;
use super::normalize::{Draft, DraftRule, normalize};
use super::policies::Policies;
use super::resolve::{Resolver, Side, Unresolved};

/// From one pass to the next. An empty one changes nothing but the time that the pass takes.
#[derive(Debug, Default)]
pub struct Memory {
    routes: HashMap<usize, Entry>,
    pub(super) policies: Arc<Policies>,
}

impl Memory {
    /// What is remembered of a route; made when it is new.
    pub(super) fn take(&mut self, object: &Arc<Object>, kind: RouteKind) -> Entry {
        // The entry holds the object, so that no other can have its address meanwhile.
        self.routes.remove(&address(object)).unwrap_or_else(|| Entry::new(object, kind))
    }

    pub(super) fn keep(&mut self, entry: Entry) {
        self.routes.insert(address(&entry.object), entry);
    }
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
        }
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
