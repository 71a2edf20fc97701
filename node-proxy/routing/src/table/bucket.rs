//! Entries that share a path: tried in order of precedence, and found by what else they ask for where they are many.

use std::collections::HashMap;

use http::{HeaderName, Method};

use super::Entry;
use crate::conditions::{Conditions, PathTest, ValueTest};
use crate::request::RequestView;
use crate::text::{parameters, with_decoded, with_header};

/// Up to here entries are tried one by one.
const FEW: usize = 8;
const NONE: u32 = u32::MAX;

/// The best entry found so far for a request.
pub(super) struct Search<'s, 'r> {
    entries: &'s [Entry],
    pub(super) request: &'s RequestView<'r>,
    best: u32,
    #[cfg(test)]
    pub(super) work: usize,
}

impl<'s, 'r> Search<'s, 'r> {
    pub(super) fn new(entries: &'s [Entry], request: &'s RequestView<'r>) -> Search<'s, 'r> {
        Search {
            entries,
            request,
            best: NONE,
            #[cfg(test)]
            work: 0,
        }
    }

    pub(super) fn found(&self) -> Option<usize> {
        if self.best == NONE { None } else { usize::try_from(self.best).ok() }
    }

    pub(super) fn is_over(&self) -> bool {
        self.best != NONE
    }

    /// Tries entries, which are in order of precedence.
    fn try_each(&mut self, ranks: &[u32]) {
        for &rank in ranks {
            if rank >= self.best {
                return;
            }
            #[cfg(test)]
            {
                self.work += 1;
            }
            if self.entries[rank as usize].conditions().accepts(self.request) {
                self.best = rank;
                return;
            }
        }
    }
}

/// Places in the table's list of entries, ascending.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Those that nothing below finds.
    ranks: Vec<u32>,
    /// The last of them, if it matches whatever comes here, so that it need not be looked at.
    certain: Option<u32>,
    split: Option<Box<Split>>,
}

/// Entries by one thing that each of them asks for: a request that does not have it need not look at them. What is found
/// here is still checked as a whole.
#[derive(Debug)]
struct Split {
    methods: Vec<(Method, Bucket)>,
    headers: HashMap<HeaderName, Values>,
    query: HashMap<Box<[u8]>, Values>,
    last_segments: HashMap<Box<str>, Bucket>,
}

type Values = HashMap<Box<[u8]>, Bucket>;

/// Something that a request either has or has not.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key<'e> {
    Method(&'e Method),
    Header(&'e HeaderName, &'e str),
    Query(&'e str, &'e str),
    LastSegment(&'e str),
}

impl Bucket {
    /// In order of precedence.
    pub(super) fn push(&mut self, rank: u32) {
        self.ranks.push(rank);
    }

    /// To be called once, when all entries are in.
    pub(super) fn finish(&mut self, entries: &[Entry]) {
        self.build(entries, &mut Vec::new());
    }

    /// `given`: the keys that led here.
    fn build<'e>(&mut self, entries: &'e [Entry], given: &mut Vec<Key<'e>>) {
        let conditions = |rank: &u32| entries[*rank as usize].conditions();
        if let Some(at) = self.ranks.iter().position(|rank| is_last(conditions(rank), given)) {
            let last = self.ranks[at];
            self.ranks.truncate(at);
            // Of a repeated query parameter also the second value leads here, so that it must be looked at.
            if conditions(&last).query.is_empty() {
                self.certain = Some(last);
            } else {
                self.ranks.push(last);
            }
        }
        if self.ranks.len() <= FEW {
            return;
        }
        let mut groups: HashMap<Key<'e>, Vec<u32>> = HashMap::new();
        let mut rest = Vec::new();
        for rank in std::mem::take(&mut self.ranks) {
            let mut open = keys(conditions(&rank)).filter(|key| !given.contains(key));
            match open.next() {
                Some(key) => groups.entry(key).or_default().push(rank),
                None => rest.push(rank),
            }
        }
        self.ranks = rest;
        if !groups.is_empty() {
            self.split = Some(Box::new(Split::new(groups, entries, given)));
        }
    }

    pub(super) fn search(&self, search: &mut Search<'_, '_>) {
        search.try_each(&self.ranks);
        if let Some(split) = &self.split {
            split.search(search);
        }
        search.best = search.best.min(self.certain.unwrap_or(NONE));
    }
}

impl Split {
    fn new<'e>(groups: HashMap<Key<'e>, Vec<u32>>, entries: &'e [Entry], given: &mut Vec<Key<'e>>) -> Split {
        let mut split = Split {
            methods: Vec::new(),
            headers: HashMap::new(),
            query: HashMap::new(),
            last_segments: HashMap::new(),
        };
        for (key, ranks) in groups {
            let mut bucket = Bucket { ranks, certain: None, split: None };
            given.push(key);
            bucket.build(entries, given);
            given.pop();
            match key {
                Key::Method(method) => split.methods.push((method.clone(), bucket)),
                Key::Header(name, value) => {
                    split.headers.entry(name.clone()).or_default().insert(value.as_bytes().into(), bucket);
                }
                Key::Query(name, value) => {
                    let values = split.query.entry(name.as_bytes().into()).or_default();
                    values.insert(value.as_bytes().into(), bucket);
                }
                Key::LastSegment(segment) => {
                    split.last_segments.insert(segment.into(), bucket);
                }
            }
        }
        split
    }

    fn search(&self, search: &mut Search<'_, '_>) {
        let request = search.request;
        for (method, bucket) in &self.methods {
            if method == request.method {
                bucket.search(search);
            }
        }
        self.search_headers(search);
        self.search_query(search);
        if !self.last_segments.is_empty()
            && let Some((_, last)) = request.path.rsplit_once('/')
            && let Some(bucket) = self.last_segments.get(last)
        {
            bucket.search(search);
        }
    }

    /// By the names asked for or by those of the request, whichever are fewer.
    fn search_headers(&self, search: &mut Search<'_, '_>) {
        let headers = search.request.headers;
        let mut look = |name: &HeaderName, values: &Values| {
            #[cfg(test)]
            {
                search.work += 1;
            }
            if let Some(bucket) = with_header(headers, name, |value| values.get(value?)) {
                bucket.search(search);
            }
        };
        if self.headers.len() <= headers.keys_len() {
            self.headers.iter().for_each(|(name, values)| look(name, values));
            return;
        }
        for name in headers.keys() {
            if let Some(values) = self.headers.get(name) {
                look(name, values);
            }
        }
    }

    /// A repeated parameter is looked up with each of its values; that only the first counts is found out by the check.
    fn search_query(&self, search: &mut Search<'_, '_>) {
        if self.query.is_empty() {
            return;
        }
        for (name, value) in parameters(search.request.query) {
            let Some(values) = with_decoded(name, |name| self.query.get(name)) else { continue };
            if let Some(bucket) = with_decoded(value, |value| values.get(value)) {
                bucket.search(search);
            }
        }
    }
}

fn keys(conditions: &Conditions) -> impl Iterator<Item = Key<'_>> {
    let last_segment = match &conditions.path {
        PathTest::Regex(pattern) => pattern.last_segment().map(Key::LastSegment),
        _ => None,
    };
    let headers = conditions.headers.iter().filter_map(|header| match &header.value {
        ValueTest::Exact(value) => Some(Key::Header(&header.name, value)),
        ValueTest::Regex(_) => None,
    });
    let query = conditions.query.iter().filter_map(|parameter| match &parameter.value {
        ValueTest::Exact(value) => Some(Key::Query(&parameter.name, value)),
        ValueTest::Regex(_) => None,
    });
    conditions.method.iter().map(Key::Method).chain(headers).chain(query).chain(last_segment)
}

/// Whether an entry asks for nothing but the path and the keys that led to its bucket, which the entries after it ask for
/// too: those never have their turn.
fn is_last(conditions: &Conditions, given: &[Key<'_>]) -> bool {
    let is_exact = |value: &Option<ValueTest>| !matches!(value, Some(ValueTest::Regex(_)));
    let path = match &conditions.path {
        PathTest::Exact(_) | PathTest::Prefix(_) => true,
        PathTest::Regex(_) => false,
        PathTest::Grpc { service, method } => is_exact(service) && is_exact(method),
    };
    let asked = usize::from(conditions.method.is_some()) + conditions.headers.len() + conditions.query.len();
    path && keys(conditions).count() == asked && keys(conditions).all(|key| given.contains(&key))
}
