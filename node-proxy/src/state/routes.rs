//! Which routes apply to which port: producers for everybody, consumers for one namespace, which they replace; and the
//! routes of listeners. What is not touched between two snapshots is shared by both.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use culvert_routing::model::Carries;
use culvert_routing::weights::Wheels;
use culvert_routing::{CompiledRoute, RouteTable};

use super::model::ServiceKey;
use super::snapshot::Map;

/// What a route is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Parent {
    Service {
        service: ServiceKey,
        /// Empty only for a route that could not be read: every port then.
        ports: Vec<u16>,
        /// The clients' namespace, for a consumer route.
        consumers: Option<Arc<str>>,
    },
    /// By the name of the listener's resource.
    Listener(Arc<str>),
}

impl Parent {
    /// As it stands in the names of resources.
    pub fn name(&self) -> &str {
        match self {
            Self::Service { service, .. } => &service.0,
            Self::Listener(listener) => listener,
        }
    }
}

/// A route at one parent.
#[derive(Clone, Debug)]
pub struct Attached {
    pub parent: Parent,
    pub route: Arc<CompiledRoute>,
}

/// A route that was refused without a version that worked before: what it asked for is not known, so that requests to
/// its parent must not be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    pub parent: Parent,
    /// What it would decide about.
    pub carries: Carries,
    pub why: Arc<str>,
}

/// All routes of one kind of client at one port, or of a listener. Groups never merge.
#[derive(Clone, Debug)]
pub enum RouteGroup {
    Table(Arc<RouteTable>),
    /// One of its routes is unusable: every request is answered 500, every connection reset.
    Unusable(Carries, Arc<str>),
}

impl RouteGroup {
    /// What its routes decide about.
    pub fn carries(&self) -> Carries {
        match self {
            Self::Table(table) => table.carries(),
            Self::Unusable(carries, _) => *carries,
        }
    }
}

/// The routes of one port of a Service.
#[derive(Clone, Debug, Default)]
pub struct ServiceRoutes {
    pub producers: Option<RouteGroup>,
    /// By the clients' namespace; few.
    pub consumers: Vec<(Arc<str>, RouteGroup)>,
}

impl ServiceRoutes {
    /// The group that decides for clients of a namespace: its consumer routes replace all producer routes (GEP-1294).
    /// `None`: no route applies to these clients.
    pub fn for_clients_in(&self, namespace: &str) -> Option<&RouteGroup> {
        let consumers = self.consumers.iter().find(|(of, _)| **of == *namespace).map(|(_, group)| group);
        consumers.or(self.producers.as_ref())
    }
}

/// The routes of a Service, by port.
#[derive(Clone, Debug, Default)]
pub struct ParentRoutes {
    ports: Vec<(u16, Arc<ServiceRoutes>)>,
    /// Of ports that are not listed.
    elsewhere: Option<Arc<ServiceRoutes>>,
}

impl ParentRoutes {
    pub fn port(&self, port: u16) -> Option<&Arc<ServiceRoutes>> {
        let listed = self.ports.iter().find(|(known, _)| *known == port).map(|(_, routes)| routes);
        listed.or(self.elsewhere.as_ref())
    }

    /// The ports that have routes of their own.
    pub fn ports(&self) -> impl Iterator<Item = (u16, &Arc<ServiceRoutes>)> {
        self.ports.iter().map(|(port, routes)| (*port, routes))
    }
}

/// What one resource contributes.
#[derive(Clone, Debug)]
enum Entry {
    Attached(Attached),
    Unusable(Unusable),
}

impl Entry {
    fn parent(&self) -> &Parent {
        match self {
            Self::Attached(attached) => &attached.parent,
            Self::Unusable(unusable) => &unusable.parent,
        }
    }

    fn carries(&self) -> Carries {
        match self {
            Self::Attached(attached) => attached.route.route().key.kind.carries(),
            Self::Unusable(unusable) => unusable.carries,
        }
    }
}

/// The mutable side: resources by name, and what has to be made again.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// By parent's name, then by the resource's name, so that the order is the same on every replica.
    entries: HashMap<Arc<str>, BTreeMap<Arc<str>, Entry>>,
    /// Parent of each resource.
    parents: HashMap<Arc<str>, Arc<str>>,
    touched: HashSet<Arc<str>>,
    wheels: Wheels,
}

impl Routes {
    pub fn attach(&mut self, name: &Arc<str>, attached: Attached) {
        self.put(name, Entry::Attached(attached));
    }

    /// Ignored while a version that works is in force.
    pub fn refuse(&mut self, name: &Arc<str>, unusable: Unusable) {
        let known = self.parents.get(name).and_then(|parent| self.entries.get(parent)?.get(name));
        if !matches!(known, Some(Entry::Attached(_))) {
            self.put(name, Entry::Unusable(unusable));
        }
    }

    pub fn remove(&mut self, name: &str) {
        let Some((name, parent)) = self.parents.remove_entry(name) else { return };
        if let Some(entries) = self.entries.get_mut(&parent) {
            entries.remove(&name);
            if entries.is_empty() {
                self.entries.remove(&parent);
            }
        }
        self.touched.insert(parent);
    }

    /// Forgets the unusable ones: a new stream names those that still are.
    pub fn forget_unusable(&mut self) {
        let unusable: Vec<Arc<str>> = self
            .entries
            .values()
            .flatten()
            .filter(|(_, entry)| matches!(entry, Entry::Unusable(_)))
            .map(|(name, _)| name.clone())
            .collect();
        for name in unusable {
            self.remove(&name);
        }
    }

    fn put(&mut self, name: &Arc<str>, entry: Entry) {
        let parent: Arc<str> = entry.parent().name().into();
        if let Entry::Attached(attached) = &entry {
            // Before the version that it replaces goes: choices by weight go on where they were.
            self.wheels.adopt(&parent, &attached.route);
        }
        self.remove(name);
        self.entries.entry(parent.clone()).or_default().insert(name.clone(), entry);
        self.parents.insert(name.clone(), parent.clone());
        self.touched.insert(parent);
    }

    /// Brings the snapshot's maps up to date; only parents that were touched are made again.
    pub fn freeze(
        &mut self,
        services: &mut Map<ServiceKey, Arc<ParentRoutes>>,
        listeners: &mut Map<Arc<str>, RouteGroup>,
    ) {
        if self.touched.is_empty() {
            return;
        }
        self.wheels.forget_unused();
        for parent in std::mem::take(&mut self.touched) {
            let entries: Vec<Entry> =
                self.entries.get(&parent).map(|all| all.values().cloned().collect()).unwrap_or_default();
            let (of_listener, of_service): (Vec<_>, Vec<_>) =
                entries.into_iter().partition(|entry| matches!(entry.parent(), Parent::Listener(_)));
            match self.group(of_listener.iter()) {
                Some(group) => listeners.insert_mut(parent.clone(), group),
                None => {
                    listeners.remove_mut(&parent);
                }
            }
            let key = ServiceKey(parent);
            if of_service.is_empty() {
                services.remove_mut(&key);
            } else {
                services.insert_mut(key, Arc::new(self.of_service(&of_service)));
            }
        }
    }

    fn of_service(&self, entries: &[Entry]) -> ParentRoutes {
        let mut ports: Vec<u16> = entries.iter().flat_map(listed_ports).copied().collect();
        ports.sort_unstable();
        ports.dedup();
        let everywhere: Vec<&Entry> = entries.iter().filter(|entry| listed_ports(entry).is_empty()).collect();
        let elsewhere = (!everywhere.is_empty()).then(|| Arc::new(self.of_port(&everywhere)));
        let ports = ports
            .into_iter()
            .map(|port| {
                let at = |entry: &&Entry| {
                    let listed = listed_ports(entry);
                    listed.is_empty() || listed.contains(&port)
                };
                let here: Vec<&Entry> = entries.iter().filter(at).collect();
                (port, Arc::new(self.of_port(&here)))
            })
            .collect();
        ParentRoutes { ports, elsewhere }
    }

    fn of_port(&self, entries: &[&Entry]) -> ServiceRoutes {
        let mut namespaces: Vec<&Arc<str>> = entries.iter().filter_map(|entry| consumers(entry)).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        let of = |namespace: Option<&Arc<str>>| {
            self.group(entries.iter().copied().filter(|entry| consumers(entry) == namespace))
        };
        ServiceRoutes {
            producers: of(None),
            consumers: namespaces
                .into_iter()
                .filter_map(|namespace| Some((namespace.clone(), of(Some(namespace))?)))
                .collect(),
        }
    }

    /// `None` when there are no routes at all. Of several sorts the most specific counts alone, as the table has it too.
    fn group<'e>(&self, entries: impl Iterator<Item = &'e Entry> + Clone) -> Option<RouteGroup> {
        let carries = entries.clone().map(Entry::carries).min()?;
        let mut routes = Vec::new();
        for entry in entries.filter(|entry| entry.carries() == carries) {
            match entry {
                Entry::Unusable(unusable) => {
                    return Some(RouteGroup::Unusable(carries, unusable.why.clone()));
                }
                Entry::Attached(attached) => routes.push(attached.route.clone()),
            }
        }
        (!routes.is_empty()).then(|| RouteGroup::Table(Arc::new(RouteTable::new(routes))))
    }
}

fn listed_ports(entry: &Entry) -> &[u16] {
    match entry.parent() {
        Parent::Service { ports, .. } => ports,
        Parent::Listener(_) => &[],
    }
}

fn consumers(entry: &Entry) -> Option<&Arc<str>> {
    match entry.parent() {
        Parent::Service { consumers, .. } => consumers.as_ref(),
        Parent::Listener(_) => None,
    }
}

#[cfg(test)]
mod tests;
