//! The hub's state, all of it changed without waiting; shared with the admin server, which only reads.

mod events;
mod refusals;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use culvert_api::mesh as pb;
use culvert_objects::{Kind, ObjectKey};
use pb::resource::Body;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::board::Board;
use super::enrolment::{Book, Decision, Entry, Touched};
use super::listeners::Listeners;
use super::overview::Trouble;
use super::replicas::Followers;
use super::{StreamId, pod_status};
use crate::metrics::Metrics;
use crate::snapshot::{Builder, Key, Sealed, Snapshot};
use crate::status::{DesiredStatus, StatusQueue};
use crate::translate::{Facts, GatewayFacts, Statuses, Translation, Workloads};
use refusals::RefusedElsewhere;

pub struct State {
    mesh: Option<pb::MeshSettings>,
    pub(super) services: BTreeMap<String, pb::Service>,
    pub(super) listener_resources: BTreeMap<String, pb::Listener>,
    pub(super) routes: BTreeMap<String, Arc<pb::Route>>,
    namespaces: BTreeMap<String, pb::Namespace>,
    pub(super) workloads: Arc<Workloads>,
    /// Workloads as they were last put in the builder.
    told: BTreeMap<String, Told>,
    pub(super) book: Book,
    listeners: Listeners,
    followers: Followers,
    unfollowed: BTreeSet<String>,
    pub(super) streams: BTreeMap<StreamId, Stream>,
    refused_elsewhere: RefusedElsewhere,
    builder: Builder,
    pub(super) generation: u64,
    board: Board,
    gateways: BTreeMap<ObjectKey, GatewayFacts>,
    /// Of Gateways, without what proxies report.
    gateway_statuses: Statuses,
    /// Of routes that a proxy refuses, without that.
    refused_routes: Statuses,
    /// Streams that wait for the next snapshot to be published.
    waiting: Vec<oneshot::Sender<()>>,
    metrics: Metrics,
}

struct Told {
    decision: Option<Decision>,
    node: String,
    shared: bool,
}

pub(super) struct Stream {
    pub(super) node: String,
    pub(super) hello: pb::Hello,
    pub(super) opened: Instant,
    pub(super) applied: u64,
    pub(super) version: String,
    pub(super) refused: BTreeMap<Key, String>,
}

/// What is to be said about the objects of a translation. It is said after node proxies have been told: thousands of statuses take
/// milliseconds, for which no route should wait.
#[must_use = "what proxies got and what statuses say are of one translation"]
pub struct Outcomes {
    statuses: Statuses,
    gateways: BTreeMap<ObjectKey, GatewayFacts>,
    pods: Pods,
}

/// Whether pods are as in the translation before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pods {
    Same,
    Differ,
}

impl State {
    pub fn new(queue: StatusQueue, existing: Vec<ObjectKey>, metrics: Metrics) -> Self {
        Self {
            mesh: None,
            services: BTreeMap::new(),
            listener_resources: BTreeMap::new(),
            routes: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            workloads: Arc::default(),
            told: BTreeMap::new(),
            book: Book::default(),
            listeners: Listeners::default(),
            followers: Followers::default(),
            unfollowed: BTreeSet::new(),
            streams: BTreeMap::new(),
            refused_elsewhere: RefusedElsewhere::default(),
            builder: Builder::default(),
            generation: 0,
            board: Board::new(queue, existing),
            gateways: BTreeMap::new(),
            gateway_statuses: Statuses::new(),
            refused_routes: Statuses::new(),
            waiting: Vec::new(),
            metrics,
        }
    }

    /// Takes over what node proxies get of a new translation. `workloads` may be the very same as before, and cost nothing
    /// then.
    pub fn follow(&mut self, translation: Translation, workloads: Arc<Workloads>, now: Instant) -> Outcomes {
        self.follow_mesh(translation.mesh);
        self.follow_shared(translation.services, translation.listeners, translation.routes);
        self.follow_namespaces(translation.namespaces);
        let pods = match Arc::ptr_eq(&self.workloads, &workloads) {
            true => Pods::Same,
            false => Pods::Differ,
        };
        if pods == Pods::Differ {
            self.follow_workloads(workloads, now);
        }
        Outcomes { statuses: translation.statuses, gateways: translation.gateways, pods }
    }

    /// Wants the statuses that say what was followed.
    pub fn say(&mut self, outcomes: Outcomes) {
        if outcomes.pods == Pods::Differ {
            self.say_of_pods();
        }
        let mut wanted = outcomes.statuses;
        self.gateways = outcomes.gateways;
        let of_gateway = |key: &ObjectKey| Some((key.clone(), wanted.get(key)?.clone()));
        self.gateway_statuses = self.gateways.keys().filter_map(of_gateway).collect();
        wanted.extend(self.gateway_statuses());
        self.refused_routes = self.add_refusals(&mut wanted);
        self.board.replace(wanted, |kind| kind != Kind::Pod);
    }

    fn follow_workloads(&mut self, workloads: Arc<Workloads>, now: Instant) {
        self.book.follow(&workloads.facts, now);
        let before = std::mem::replace(&mut self.workloads, workloads);
        for uid in before.facts.keys().filter(|uid| !self.workloads.facts.contains_key(*uid)) {
            withdraw(&mut self.builder, uid, self.told.remove(uid));
        }
        let differs = |(uid, facts): (&String, &Arc<Facts>)| {
            let told = self.told.get(uid).map(|told| told.decision);
            let decided = self.book.get(uid).map(|entry| entry.decision());
            let known =
                before.facts.get(uid).is_some_and(|before| Arc::ptr_eq(before, facts) || before == facts);
            (!known || told != Some(decided)).then(|| uid.clone())
        };
        let touched: Touched = self.workloads.facts.iter().filter_map(differs).collect();
        touched.iter().for_each(|uid| self.tell(uid));
        self.listeners.follow(&self.workloads.facts);
        self.refused_elsewhere.follow(&self.workloads.facts);
    }

    fn say_of_pods(&mut self) {
        let mut wanted = self.workloads.statuses.clone();
        for (uid, entry) in self.book.iter() {
            if let Some(status) = self.pod_key(uid).and_then(|key| wanted.get_mut(key)) {
                pod_status::add_enrolment(Arc::make_mut(status), entry);
            }
        }
        self.board.replace(wanted, |kind| kind == Kind::Pod);
    }

    fn follow_shared(
        &mut self,
        services: BTreeMap<String, pb::Service>,
        listeners: BTreeMap<String, pb::Listener>,
        routes: BTreeMap<String, Arc<pb::Route>>,
    ) {
        let builder = &mut self.builder;
        let listener = |of: &pb::Listener| Body::Listener(of.clone());
        let route = |of: &Arc<pb::Route>| Body::Route((**of).clone());
        // Most routes are the very ones of the pass before.
        let same = |a: &Arc<pb::Route>, b: &Arc<pb::Route>| Arc::ptr_eq(a, b) || a == b;
        share(builder, &mut self.services, services, Key::service, pb::Service::eq, |of| {
            Body::Service(of.clone())
        });
        share(builder, &mut self.listener_resources, listeners, Key::listener, pb::Listener::eq, listener);
        share(builder, &mut self.routes, routes, Key::route, same, route);
    }

    fn follow_namespaces(&mut self, namespaces: BTreeMap<String, pb::Namespace>) {
        let body = |of: &pb::Namespace| Body::Namespace(of.clone());
        share(&mut self.builder, &mut self.namespaces, namespaces, Key::namespace, pb::Namespace::eq, body);
    }

    /// With what proxies report.
    fn gateway_statuses(&self) -> Statuses {
        let complete = |(key, status): (&ObjectKey, &Arc<DesiredStatus>)| {
            let mut status = status.clone();
            if let Some(facts) = self.gateways.get(key) {
                facts.complete(Arc::make_mut(&mut status), |listener| self.listeners.of(listener));
            }
            (key.clone(), status)
        };
        self.gateway_statuses.iter().map(complete).collect()
    }

    fn follow_mesh(&mut self, mesh: pb::MeshSettings) {
        if self.mesh.as_ref() != Some(&mesh) {
            let key = Key::mesh();
            let sealed = Sealed::new(key.clone(), Body::MeshSettings(mesh.clone()));
            self.builder.share(&key, Some(Arc::new(sealed)));
            self.mesh = Some(mesh);
        }
    }

    /// Takes over other session keys.
    pub fn follow_session_keys(&mut self, session_keys: Vec<pb::SessionKey>) {
        if let Some(mesh) = self.mesh.clone() {
            self.follow_mesh(pb::MeshSettings { session_keys, ..mesh });
        }
    }

    /// Puts a workload in the builder as it is now: whole to its own node, the public part of it to everybody once it has
    /// an address.
    fn tell(&mut self, uid: &str) {
        let Some(facts) = self.workloads.facts.get(uid) else { return };
        let decision = self.book.get(uid).map(|entry| entry.decision());
        let key = Key::workload(uid);
        let node = facts.workload.node.clone();
        let shared = !facts.workload.addresses.is_empty();
        let before = self.told.get(uid);
        if let Some(before) = before.filter(|before| before.node != node) {
            self.builder.give(&before.node, &key, None);
        }
        if before.is_some_and(|before| before.shared) && !shared {
            self.builder.share(&key, None);
        }
        let mut workload = facts.workload.clone();
        if let Some(decision) = decision {
            workload.tunnel = decision.tunnel.into();
            workload.enrolment = decision.enrolment.into();
            let own = Sealed::new(key.clone(), Body::Workload(workload.clone()));
            self.builder.give(&node, &key, Some(Arc::new(own)));
        }
        if shared {
            workload.enrolment = pb::Enrolment::Unspecified.into();
            workload.settings = None;
            workload.probes.clear();
            self.builder.share(&key, Some(Arc::new(Sealed::new(key.clone(), Body::Workload(workload)))));
        }
        self.told.insert(uid.to_owned(), Told { decision, node, shared });
    }

    /// After a change of a pod's entry: what is told of it, if that is another thing now, and its status.
    fn touch(&mut self, uid: &str) {
        let Some(entry) = self.book.get(uid) else { return };
        if self.told.get(uid).is_some_and(|told| told.decision != Some(entry.decision())) {
            self.tell(uid);
        }
        let Some(entry) = self.book.get(uid) else { return };
        if let Some((key, status)) =
            self.pod_key(uid).and_then(|key| self.workloads.statuses.get_key_value(key))
        {
            let mut status = status.clone();
            pod_status::add_enrolment(Arc::make_mut(&mut status), entry);
            self.board.put(key, Some(status));
        }
    }

    /// Decides who has left, and makes the next snapshot if anything has changed.
    pub fn publish(&mut self, now: Instant) -> Option<Snapshot> {
        self.followers.forget_closed();
        let own = self.streams.values().map(|stream| stream.applied).min();
        // What the proxies of other replicas have applied is not known here: they get the whole time.
        let applied = if self.followers.is_empty() { own } else { Some(0) };
        for uid in self.book.progress(applied, now) {
            self.touch(&uid);
        }
        self.metrics.missing(&self.book.missing());
        let snapshot = self.builder.publish()?;
        self.generation = snapshot.generation;
        self.book.published(snapshot.generation);
        Some(snapshot)
    }

    /// Pods that are wanted in the mesh and not in it, and what their condition says of that.
    pub(super) fn troubles(&self) -> Vec<Trouble> {
        let trouble = |(uid, entry): (&String, &Entry)| {
            let missing = entry.missing()?;
            let status = self.workloads.statuses.get(self.pod_key(uid)?)?;
            let message = pod_status::condition(entry).message;
            Some(Trouble { pod: status.key.clone(), uid: status.uid.clone(), missing, message })
        };
        self.book.iter().filter_map(trouble).collect()
    }

    fn pod_key(&self, uid: &str) -> Option<&ObjectKey> {
        self.workloads.facts.get(uid)?.pod.as_ref().map(|pod| &pod.key)
    }

    /// The streams that waited for what has been published now.
    pub fn take_waiting(&mut self) -> Vec<oneshot::Sender<()>> {
        std::mem::take(&mut self.waiting)
    }

    /// When [`State::publish`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.book.deadline()
    }
}

/// Puts the resources of one type that every node sees in the builder, where they differ from those before.
fn share<T>(
    builder: &mut Builder,
    current: &mut BTreeMap<String, T>,
    next: BTreeMap<String, T>,
    key: fn(&str) -> Key,
    same: fn(&T, &T) -> bool,
    body: fn(&T) -> Body,
) {
    for name in current.keys().filter(|name| !next.contains_key(*name)) {
        builder.share(&key(name), None);
    }
    for (name, resource) in &next {
        if !current.get(name).is_some_and(|before| same(before, resource)) {
            let key = key(name);
            builder.share(&key, Some(Arc::new(Sealed::new(key.clone(), body(resource)))));
        }
    }
    *current = next;
}

fn withdraw(builder: &mut Builder, uid: &str, told: Option<Told>) {
    let Some(told) = told else { return };
    let key = Key::workload(uid);
    if told.decision.is_some() {
        builder.give(&told.node, &key, None);
    }
    if told.shared {
        builder.share(&key, None);
    }
}
