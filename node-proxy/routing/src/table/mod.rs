//! All rules of a parent, found by request.

mod bucket;
mod index;
#[cfg(test)]
mod tests;
mod tree;

use std::sync::Arc;

use self::bucket::Search;
use self::index::HostIndex;

use crate::compile::{CompiledRoute, CompiledRule};
use crate::conditions::Conditions;
use crate::mismatch::Mismatch;
use crate::model::{Carries, Hostname, Match};
use crate::precedence::{Criterion, Precedence};
use crate::request::RequestView;

/// The rules of all routes attached to one (Service port, group) or to one listener.
#[derive(Debug)]
pub struct RouteTable {
    carries: Carries,
    /// In order of precedence.
    entries: Vec<Entry>,
    index: HostIndex,
}

/// One match of one rule under one hostname.
#[derive(Debug)]
struct Entry {
    precedence: Precedence,
    hostname: Option<Hostname>,
    rule: Arc<CompiledRule>,
    matched: usize,
}

/// The rule that wins, and the match of it that did.
#[derive(Clone, Copy, Debug)]
pub struct Selected<'t> {
    pub rule: &'t Arc<CompiledRule>,
    pub matched: &'t Match,
}

/// One match of one rule, in its place among all of the table.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'t> {
    entry: &'t Entry,
}

impl RouteTable {
    /// Of routes of several sorts those of the most specific one count, and the others not at all (GEP-1294).
    pub fn new(routes: Vec<Arc<CompiledRoute>>) -> RouteTable {
        let sort = |route: &Arc<CompiledRoute>| route.route().key.kind.carries();
        let carries = routes.iter().map(sort).min().unwrap_or(Carries::Requests);
        let routes = routes.iter().filter(|route| sort(route) == carries);
        let mut entries: Vec<Entry> = routes.flat_map(|route| entries_of(route)).collect();
        entries.sort_by(|a, b| a.precedence.cmp(&b.precedence));
        let index = HostIndex::new(&entries);
        RouteTable { carries, entries, index }
    }

    /// What its rules decide about.
    pub fn carries(&self) -> Carries {
        self.carries
    }

    /// The rule for a request; `None`: no rule matches, which is answered with 404. Allocates nothing, unless a regular
    /// expression is asked about a value that is put together from more than 4 KiB.
    pub fn select<'t>(&'t self, request: &RequestView<'_>) -> Option<Selected<'t>> {
        let mut search = Search::new(&self.entries, request);
        self.index.search(&mut search);
        let entry = &self.entries[search.found()?];
        Some(Selected { rule: &entry.rule, matched: entry.source() })
    }

    /// Every match of every rule in order of precedence: the first one that fits a request is what `select` finds.
    pub fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> {
        self.entries.iter().map(|entry| Candidate { entry })
    }
}

fn entries_of(route: &CompiledRoute) -> Vec<Entry> {
    let mut hostnames: Vec<Option<&Hostname>> = route.route().hostnames.iter().map(Some).collect();
    if hostnames.is_empty() {
        hostnames.push(None);
    }
    let mut entries = Vec::new();
    for hostname in hostnames {
        for rule in route.rules() {
            for (matched, conditions) in rule.conditions().iter().enumerate() {
                let place = (rule.index(), matched);
                let created = route.route().created;
                let precedence =
                    Precedence::new(hostname, rule.key(), rule.full_name(), created, place, conditions);
                entries.push(Entry {
                    precedence,
                    hostname: hostname.cloned(),
                    rule: Arc::clone(rule),
                    matched,
                });
            }
        }
    }
    entries
}

impl Entry {
    fn source(&self) -> &Match {
        &self.rule.matches()[self.matched]
    }

    fn conditions(&self) -> &Conditions {
        &self.rule.conditions()[self.matched]
    }
}

impl<'t> Candidate<'t> {
    pub fn rule(&self) -> &'t Arc<CompiledRule> {
        &self.entry.rule
    }

    pub fn matched(&self) -> &'t Match {
        self.entry.source()
    }

    /// The hostname it stands under; `None`: any host.
    pub fn hostname(&self) -> Option<&'t Hostname> {
        self.entry.hostname.as_ref()
    }

    pub fn precedence(&self) -> &'t Precedence {
        &self.entry.precedence
    }

    /// Whether it matches, else the first reason why not.
    pub fn check(&self, request: &RequestView<'_>) -> Result<(), Mismatch> {
        if let Some(hostname) = self.hostname().filter(|hostname| !hostname.matches(request.host)) {
            return Err(Mismatch::Hostname { wanted: hostname.clone(), actual: request.host.to_owned() });
        }
        self.entry.conditions().mismatch(self.matched(), request).map_or(Ok(()), Err)
    }

    /// Why `winner` goes before this one for requests that both match.
    pub fn outranked_by(&self, winner: &Candidate<'_>) -> Option<Criterion> {
        self.entry.precedence.decided_by(&winner.entry.precedence)
    }
}
