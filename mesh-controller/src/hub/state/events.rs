//! What streams, replicas and the writer of statuses tell the hub, taken into its state.

use std::collections::BTreeMap;

use culvert_api::mesh as pb;
use tokio::time::Instant;

use super::{State, Stream};
use crate::hub::enrolment::Sight;
use crate::hub::replicas;
use crate::hub::{Event, StreamId};

impl State {
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Opened { stream, node, hello } => self.opened(stream, node, hello),
            Event::HoldsHbone { uids, published } => {
                for uid in uids.iter().filter(|uid| self.book.was_enrolled(uid)).collect::<Vec<_>>() {
                    self.touch(uid);
                }
                self.waiting.push(published);
            }
            Event::Applied { stream, generation } => {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.applied = stream.applied.max(generation);
                }
            }
            Event::Report { node, report } => {
                self.reported(&node, report.clone());
                let told = pb::NodeReport { node, enrolment: Some(report), ..Default::default() };
                self.followers.tell(&told);
            }
            Event::Listeners { node, report } => {
                self.listeners_reported(&node, report.clone());
                let told = pb::NodeReport { node, listeners: Some(report), ..Default::default() };
                self.followers.tell(&told);
            }
            Event::Replica { replica, reports } => {
                reports.into_iter().for_each(|report| self.heard(&replica, report));
            }
            Event::Unfollowed { replicas } => {
                self.metrics.unfollowed(replicas.len());
                self.unfollowed = replicas;
                self.look();
            }
            Event::Follower { reports } => {
                let nodes = self.streams.values().map(|stream| stream.node.clone()).collect();
                let mut standing =
                    replicas::standing(&nodes, &self.book, &self.listeners, &self.workloads.facts);
                standing.extend(self.standing_refusals());
                self.followers.add(reports, standing);
            }
            Event::Refused { stream, key, reason } => self.refused(stream, key, reason),
            Event::Heartbeat { stream, version } => {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.version = version;
                }
            }
            Event::Rewrite { existing } => self.board.rewrite(existing),
            Event::Closed { stream } => self.closed(stream),
        }
    }

    fn opened(&mut self, stream: StreamId, node: String, hello: pb::Hello) {
        self.metrics.stream_opened();
        let opened = Stream {
            node: node.clone(),
            hello,
            opened: Instant::now(),
            applied: 0,
            version: String::new(),
            refused: BTreeMap::new(),
        };
        self.streams.insert(stream, opened);
        self.look();
        self.forget_refused_elsewhere(&node);
    }

    fn closed(&mut self, stream: StreamId) {
        let Some(closed) = self.streams.remove(&stream) else { return };
        self.metrics.stream_closed();
        self.look();
        self.forget_refused(&closed.node, &closed.refused);
    }

    /// What a node proxy has told another replica.
    fn heard(&mut self, replica: &str, report: pb::NodeReport) {
        let pb::NodeReport { node, enrolment, listeners, refusals } = report;
        if let Some(report) = enrolment {
            self.reported(&node, report);
        }
        if let Some(report) = listeners {
            self.listeners_reported(&node, report);
        }
        if let Some(report) = refusals {
            self.refused_elsewhere(replica, &node, report);
        }
    }

    /// After a change of whose reports are heard.
    fn look(&mut self) {
        let here = self.streams.values().map(|stream| stream.node.clone()).collect();
        let sight = Sight { is_partial: !self.unfollowed.is_empty(), here };
        for uid in self.book.see(sight, Instant::now()) {
            self.touch(&uid);
        }
    }

    fn reported(&mut self, node: &str, report: pb::EnrolmentReport) {
        let (touched, ignored) = self.book.report(node, report);
        (0..ignored).for_each(|_| self.metrics.report_ignored());
        touched.iter().for_each(|uid| self.touch(uid));
    }

    fn listeners_reported(&mut self, node: &str, report: pb::ListenerReport) {
        let (differs, ignored) = self.listeners.report(node, report, &self.workloads.facts);
        (0..ignored).for_each(|_| self.metrics.report_ignored());
        if differs {
            for (key, status) in self.gateway_statuses() {
                self.board.put(&key, Some(status));
            }
        }
    }
}
