//! What node proxies refuse: those of this replica's streams, and those that other replicas serve.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use culvert_api::mesh as pb;
use culvert_objects::ObjectKey;

use super::{State, Stream};
use crate::hub::StreamId;
use crate::snapshot::Key;
use crate::translate::{self, FactsByUid, Statuses};

/// What the node proxies of other replicas refuse: by node and by the replica that tells it, the resource and the reason.
#[derive(Debug, Default)]
pub(super) struct RefusedElsewhere(BTreeMap<String, BTreeMap<String, BTreeMap<Key, String>>>);

impl RefusedElsewhere {
    /// Forgets nodes without a pod: nobody may be left who would take their refusals back.
    pub fn follow(&mut self, facts: &FactsByUid) {
        if !self.0.is_empty() {
            let nodes: BTreeSet<&String> = facts.values().map(|facts| &facts.workload.node).collect();
            self.0.retain(|node, _| nodes.contains(node));
        }
    }

    /// Takes what a replica tells of a node, and returns the resources of which another thing may be known now.
    fn take(&mut self, replica: &str, node: &str, report: pb::RefusalReport) -> BTreeSet<Key> {
        let mut touched = if report.complete { self.forget(node) } else { BTreeSet::new() };
        let known = self.0.entry(node.to_owned()).or_default().entry(replica.to_owned()).or_default();
        for pb::Refused { key, reason, .. } in report.refused {
            let Some(key) = key.map(Key::from) else { continue };
            touched.insert(key.clone());
            if reason.is_empty() {
                known.remove(&key);
            } else {
                known.insert(key, reason);
            }
        }
        self.0.retain(|_, replicas| {
            replicas.retain(|_, refused| !refused.is_empty());
            !replicas.is_empty()
        });
        touched
    }

    /// Returns what has been forgotten.
    fn forget(&mut self, node: &str) -> BTreeSet<Key> {
        self.0.remove(node).unwrap_or_default().into_values().flat_map(BTreeMap::into_keys).collect()
    }

    /// The nodes that refuse a resource, and why.
    fn of(&self, resource: &Key) -> impl Iterator<Item = (String, String)> {
        self.0.iter().flat_map(move |(node, replicas)| {
            let reasons = replicas.values().filter_map(move |refused| refused.get(resource));
            reasons.map(move |reason| (node.clone(), reason.clone()))
        })
    }

    fn resources(&self) -> impl Iterator<Item = &Key> {
        self.0.values().flat_map(BTreeMap::values).flat_map(BTreeMap::keys)
    }
}

/// As it goes to the other replicas; without a reason: not refused any more.
fn line(key: &Key, reason: Option<&String>) -> pb::Refused {
    let reason = reason.cloned().unwrap_or_default();
    pb::Refused { key: Some(key.into()), version: String::new(), reason }
}

impl State {
    /// A node proxy of this replica refuses a resource, or does not any more.
    pub(super) fn refused(&mut self, stream: StreamId, key: Key, reason: Option<String>) {
        let Some(stream) = self.streams.get_mut(&stream) else { return };
        match &reason {
            Some(reason) => stream.refused.insert(key.clone(), reason.clone()),
            None => stream.refused.remove(&key),
        };
        let node = stream.node.clone();
        self.tell_refusals(&node, false, vec![line(&key, reason.as_ref())]);
        self.touch_refused(&node, &key);
    }

    /// A node is served here now: what it refused elsewhere it says again here.
    pub(super) fn forget_refused_elsewhere(&mut self, node: &str) {
        let refused = self.refusals_of(node);
        self.tell_refusals(node, true, refused);
        for key in self.refused_elsewhere.forget(node) {
            self.touch_refused(node, &key);
        }
    }

    /// A stream has ended. While one node proxy replaces the other there is a second one of the same node.
    pub(super) fn forget_refused(&mut self, node: &str, refused: &BTreeMap<Key, String>) {
        let reason = |key: &Key| self.refusals(key).remove(node);
        let lines = refused.keys().map(|key| line(key, reason(key).as_ref())).collect();
        self.tell_refusals(node, false, lines);
        for key in refused.keys() {
            self.touch_refused(node, key);
        }
    }

    /// What another replica tells of a node that it serves.
    pub(super) fn refused_elsewhere(&mut self, replica: &str, node: &str, report: pb::RefusalReport) {
        for key in self.refused_elsewhere.take(replica, node, report) {
            self.touch_refused(node, &key);
        }
    }

    fn tell_refusals(&mut self, node: &str, complete: bool, refused: Vec<pb::Refused>) {
        let refusals = Some(pb::RefusalReport { complete, refused });
        self.followers.tell(&pb::NodeReport { node: node.to_owned(), refusals, ..Default::default() });
    }

    /// After a node's refusal of a resource may have changed: what is said of that.
    fn touch_refused(&mut self, node: &str, key: &Key) {
        if let Some(uid) = key.workload_uid() {
            let reason = self.refusals(key).remove(node);
            if self.book.refused(node, uid, reason) {
                self.touch(uid);
            }
        }
        if let Some(route) = key.route_name() {
            self.touch_route(route);
        }
    }

    /// What the node proxies of this replica refuse, for one that begins to follow it.
    pub(super) fn standing_refusals(&self) -> Vec<pb::NodeReport> {
        let refusing = self.streams.values().filter(|stream| !stream.refused.is_empty());
        let nodes: BTreeSet<&String> = refusing.map(|stream| &stream.node).collect();
        let report = |node: &String| {
            let refusals = Some(pb::RefusalReport { complete: true, refused: self.refusals_of(node) });
            pb::NodeReport { node: node.clone(), refusals, ..Default::default() }
        };
        nodes.into_iter().map(report).collect()
    }

    /// Everything that a node's proxies refuse here.
    fn refusals_of(&self, node: &str) -> Vec<pb::Refused> {
        let streams = self.streams.values().filter(|stream| stream.node == node);
        let refused: BTreeMap<&Key, &String> = streams.flat_map(|stream| &stream.refused).collect();
        refused.into_iter().map(|(key, reason)| line(key, Some(reason))).collect()
    }

    /// The nodes whose proxies refuse a resource, and why.
    fn refusals(&self, resource: &Key) -> BTreeMap<String, String> {
        let of = |stream: &Stream| Some((stream.node.clone(), stream.refused.get(resource)?.clone()));
        self.refused_elsewhere.of(resource).chain(self.streams.values().filter_map(of)).collect()
    }

    /// Adds what proxies refuse of routes, and returns the statuses without that.
    pub(super) fn add_refusals(&self, wanted: &mut Statuses) -> Statuses {
        let here = self.streams.values().flat_map(|stream| stream.refused.keys());
        let refused = self.refused_elsewhere.resources().chain(here).filter_map(Key::route_name);
        let routes: BTreeSet<ObjectKey> = refused.filter_map(translate::route_object).collect();
        let mut without = Statuses::new();
        for route in routes {
            if let Some(status) = wanted.get_mut(&route) {
                without.insert(route, status.clone());
                translate::add_route_refusals(Arc::make_mut(status), |resource| {
                    self.refusals(&Key::route(resource))
                });
            }
        }
        without
    }

    /// Puts the status of the route behind a resource in the queue as it is now.
    fn touch_route(&mut self, resource: &str) {
        let Some(key) = translate::route_object(resource) else { return };
        let without = self.refused_routes.remove(&key).or_else(|| self.board.wanted(&key).cloned());
        let Some(without) = without else { return };
        let mut status = without.clone();
        translate::add_route_refusals(Arc::make_mut(&mut status), |resource| {
            self.refusals(&Key::route(resource))
        });
        if status != without {
            self.refused_routes.insert(key.clone(), without);
        }
        self.board.put(&key, Some(status));
    }
}
