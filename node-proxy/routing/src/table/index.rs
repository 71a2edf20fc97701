//! Where to look for the entries that a request can match, most preferred first.

use std::collections::HashMap;
use std::sync::Arc;

use super::Entry;
use super::bucket::{Bucket, Search};
use super::tree::Tree;
use crate::conditions::{PathTest, ValueTest};
use crate::model::Hostname;
use crate::request::grpc_call;

/// A Service has only the host *any*.
#[derive(Debug, Default)]
pub(super) struct HostIndex {
    exact: HashMap<Arc<str>, PathIndex>,
    /// By suffix.
    wildcards: HashMap<Arc<str>, PathIndex>,
    any: PathIndex,
}

/// The entries under one hostname.
#[derive(Debug, Default)]
struct PathIndex {
    grpc: GrpcIndex,
    exact: HashMap<Arc<str>, Bucket>,
    tree: Tree,
}

#[derive(Debug, Default)]
struct GrpcIndex {
    exact: HashMap<Arc<str>, MethodIndex>,
    regex: MethodIndex,
    any: MethodIndex,
}

#[derive(Debug, Default)]
struct MethodIndex {
    exact: HashMap<Arc<str>, Bucket>,
    regex: Bucket,
    any: Bucket,
}

impl HostIndex {
    pub(super) fn new(entries: &[Entry]) -> HostIndex {
        let mut index = HostIndex::default();
        for (rank, entry) in (0..).zip(entries) {
            let paths = match &entry.hostname {
                Some(Hostname::Exact(name)) => index.exact.entry(Arc::clone(name)).or_default(),
                Some(Hostname::Wildcard(suffix)) => index.wildcards.entry(Arc::clone(suffix)).or_default(),
                None => &mut index.any,
            };
            paths.bucket(entry).push(rank);
        }
        let paths = index.exact.values_mut().chain(index.wildcards.values_mut()).chain([&mut index.any]);
        paths.for_each(|paths| paths.finish(entries));
        index
    }

    /// The most specific hostname first; a less specific one has its turn if no rule matches there.
    pub(super) fn search(&self, search: &mut Search<'_, '_>) {
        let host = search.request.host;
        if let Some(paths) = self.exact.get(host) {
            paths.search(search);
        }
        if !self.wildcards.is_empty() {
            let suffixes =
                host.match_indices('.').filter(|(dot, _)| *dot > 0).map(|(dot, _)| &host[dot + 1..]);
            for paths in suffixes.filter_map(|suffix| self.wildcards.get(suffix)) {
                if search.is_over() {
                    return;
                }
                paths.search(search);
            }
        }
        if !search.is_over() {
            self.any.search(search);
        }
    }
}

impl PathIndex {
    fn bucket(&mut self, entry: &Entry) -> &mut Bucket {
        match &entry.conditions().path {
            PathTest::Exact(path) => self.exact.entry(Arc::clone(path)).or_default(),
            PathTest::Prefix(prefix) => self.tree.prefixes(prefix),
            PathTest::Regex(pattern) => self.tree.regexes(pattern.first_segments()),
            PathTest::Grpc { service, method } => {
                let methods = match service {
                    Some(ValueTest::Exact(service)) => {
                        self.grpc.exact.entry(Arc::clone(service)).or_default()
                    }
                    Some(ValueTest::Regex(_)) => &mut self.grpc.regex,
                    None => &mut self.grpc.any,
                };
                match method {
                    Some(ValueTest::Exact(method)) => methods.exact.entry(Arc::clone(method)).or_default(),
                    Some(ValueTest::Regex(_)) => &mut methods.regex,
                    None => &mut methods.any,
                }
            }
        }
    }

    fn finish(&mut self, entries: &[Entry]) {
        self.exact.values_mut().for_each(|bucket| bucket.finish(entries));
        self.tree.finish(entries);
        let services = self.grpc.exact.values_mut().chain([&mut self.grpc.regex, &mut self.grpc.any]);
        for methods in services {
            let buckets = methods.exact.values_mut().chain([&mut methods.regex, &mut methods.any]);
            buckets.for_each(|bucket| bucket.finish(entries));
        }
    }

    fn search(&self, search: &mut Search<'_, '_>) {
        if search.request.grpc {
            self.grpc.search(search);
        }
        if !search.is_over()
            && let Some(bucket) = self.exact.get(search.request.path)
        {
            bucket.search(search);
        }
        if !search.is_over() {
            self.tree.search(search);
        }
    }
}

impl GrpcIndex {
    fn search(&self, search: &mut Search<'_, '_>) {
        let Some((service, method)) = grpc_call(search.request.path) else {
            self.any.any.search(search);
            return;
        };
        let services = [self.exact.get(service), Some(&self.regex), Some(&self.any)];
        for methods in services.into_iter().flatten() {
            let buckets = [methods.exact.get(method), Some(&methods.regex), Some(&methods.any)];
            for bucket in buckets.into_iter().flatten() {
                bucket.search(search);
                if search.is_over() {
                    return;
                }
            }
        }
    }
}
