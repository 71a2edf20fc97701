//! One match of a rule as it is evaluated.

use std::sync::Arc;

use http::{HeaderName, Method};

use crate::mismatch::Mismatch;
use crate::model::{Match, PathMatch};
use crate::pattern::Pattern;
use crate::request::{RequestView, grpc_call};
use crate::text::{with_header, with_parameter};

#[derive(Debug)]
pub(crate) struct Conditions {
    pub(crate) path: PathTest,
    pub(crate) method: Option<Method>,
    pub(crate) headers: Vec<HeaderTest>,
    pub(crate) query: Vec<QueryTest>,
}

#[derive(Debug)]
pub(crate) enum PathTest {
    Exact(Arc<str>),
    /// Without its trailing slash, so `/` is empty.
    Prefix(Arc<str>),
    Regex(Pattern),
    Grpc {
        service: Option<ValueTest>,
        method: Option<ValueTest>,
    },
}

#[derive(Debug)]
pub(crate) enum ValueTest {
    Exact(Arc<str>),
    Regex(Pattern),
}

/// `entry`: its place in the list of the match, where entries that do not count are left out here.
#[derive(Debug)]
pub(crate) struct HeaderTest {
    pub(crate) name: HeaderName,
    pub(crate) value: ValueTest,
    pub(crate) entry: usize,
}

#[derive(Debug)]
pub(crate) struct QueryTest {
    pub(crate) name: Arc<str>,
    pub(crate) value: ValueTest,
    pub(crate) entry: usize,
}

/// The first part of a match that failed; an index is that of the entry in the match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    NotGrpc,
    Path,
    NoGrpcCall,
    GrpcService,
    GrpcMethod,
    Method,
    Header(usize),
    Query(usize),
}

impl ValueTest {
    pub(crate) fn accepts(&self, value: &[u8]) -> bool {
        match self {
            ValueTest::Exact(wanted) => wanted.as_bytes() == value,
            ValueTest::Regex(pattern) => pattern.is_match(value),
        }
    }
}

/// Whether `path` is `prefix` (which has no trailing slash) or something below it.
fn has_prefix(path: &str, prefix: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

impl Conditions {
    pub(crate) fn accepts(&self, request: &RequestView<'_>) -> bool {
        self.failure(request).is_none()
    }

    fn failure(&self, request: &RequestView<'_>) -> Option<Failure> {
        if let Some(failure) = self.path_failure(request) {
            return Some(failure);
        }
        if self.method.as_ref().is_some_and(|method| method != request.method) {
            return Some(Failure::Method);
        }
        for header in &self.headers {
            if !with_header(request.headers, &header.name, |value| {
                value.is_some_and(|value| header.value.accepts(value))
            }) {
                return Some(Failure::Header(header.entry));
            }
        }
        for parameter in &self.query {
            let accepts = |value: Option<&[u8]>| value.is_some_and(|value| parameter.value.accepts(value));
            if !with_parameter(request.query, parameter.name.as_bytes(), accepts) {
                return Some(Failure::Query(parameter.entry));
            }
        }
        None
    }

    fn path_failure(&self, request: &RequestView<'_>) -> Option<Failure> {
        let path = request.path;
        let fits = match &self.path {
            PathTest::Exact(wanted) => path == &**wanted,
            PathTest::Prefix(prefix) => has_prefix(path, prefix),
            PathTest::Regex(pattern) => pattern.is_match(path.as_bytes()),
            PathTest::Grpc { .. } if !request.grpc => return Some(Failure::NotGrpc),
            PathTest::Grpc { service: None, method: None } => true,
            PathTest::Grpc { service, method } => {
                let Some(call) = grpc_call(path) else { return Some(Failure::NoGrpcCall) };
                if service.as_ref().is_some_and(|service| !service.accepts(call.0.as_bytes())) {
                    return Some(Failure::GrpcService);
                }
                if method.as_ref().is_some_and(|method| !method.accepts(call.1.as_bytes())) {
                    return Some(Failure::GrpcMethod);
                }
                true
            }
        };
        (!fits).then_some(Failure::Path)
    }

    /// The first reason why a request does not match; `source` is what this was compiled from.
    pub(crate) fn mismatch(&self, source: &Match, request: &RequestView<'_>) -> Option<Mismatch> {
        Some(match self.failure(request)? {
            Failure::NotGrpc => Mismatch::NotGrpc,
            Failure::Path => path_mismatch(&source.path, request.path),
            Failure::NoGrpcCall => Mismatch::NoGrpcCall { actual: request.path.to_owned() },
            Failure::GrpcService | Failure::GrpcMethod => {
                grpc_mismatch(self.failure(request)?, source, request.path)?
            }
            Failure::Method => {
                Mismatch::Method { wanted: source.method.clone()?, actual: request.method.clone() }
            }
            Failure::Header(entry) => {
                let header = source.headers.get(entry)?;
                let (name, wanted) = (header.name.clone(), header.value.clone());
                with_header(request.headers, &header.name, |value| match value {
                    None => Mismatch::HeaderMissing { name },
                    Some(value) => Mismatch::HeaderValue { name, wanted, actual: lossy(value) },
                })
            }
            Failure::Query(entry) => {
                let parameter = source.query.get(entry)?;
                let (name, wanted) = (parameter.name.to_string(), parameter.value.clone());
                with_parameter(request.query, parameter.name.as_bytes(), |value| match value {
                    None => Mismatch::QueryMissing { name },
                    Some(value) => Mismatch::QueryValue { name, wanted, actual: lossy(value) },
                })
            }
        })
    }
}

fn path_mismatch(wanted: &PathMatch, actual: &str) -> Mismatch {
    let actual = actual.to_owned();
    match wanted {
        PathMatch::Exact(path) => Mismatch::PathExact { wanted: path.to_string(), actual },
        PathMatch::Prefix(prefix) => Mismatch::PathPrefix { wanted: prefix.to_string(), actual },
        PathMatch::Regex(regex) => Mismatch::PathRegex { wanted: regex.to_string(), actual },
        PathMatch::Grpc { .. } => Mismatch::NoGrpcCall { actual },
    }
}

fn grpc_mismatch(failure: Failure, source: &Match, path: &str) -> Option<Mismatch> {
    let PathMatch::Grpc { service, method } = &source.path else { return None };
    let call = grpc_call(path)?;
    Some(if failure == Failure::GrpcService {
        Mismatch::GrpcService { wanted: service.clone()?, actual: call.0.to_owned() }
    } else {
        Mismatch::GrpcMethod { wanted: method.clone()?, actual: call.1.to_owned() }
    })
}

fn lossy(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}
