//! Why a rule does not match a request: what `culvert explain` prints.

use http::{HeaderName, Method};

use crate::model::{Hostname, ValueMatch};

/// The first part of a match that a request fails, in the order in which they are looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("host {actual:?} does not match {wanted}")]
    Hostname { wanted: Hostname, actual: String },
    #[error("not a gRPC call: needs HTTP/2 and content-type application/grpc")]
    NotGrpc,
    #[error("path {actual:?} is not {wanted:?}")]
    PathExact { wanted: String, actual: String },
    #[error("path {actual:?} does not start with the elements of {wanted:?}")]
    PathPrefix { wanted: String, actual: String },
    #[error("path {actual:?} does not match the regular expression {wanted:?} as a whole")]
    PathRegex { wanted: String, actual: String },
    #[error("path {actual:?} is not /service/method of a gRPC call")]
    NoGrpcCall { actual: String },
    #[error("gRPC service {actual:?} {}", unlike(wanted))]
    GrpcService { wanted: ValueMatch, actual: String },
    #[error("gRPC method {actual:?} {}", unlike(wanted))]
    GrpcMethod { wanted: ValueMatch, actual: String },
    #[error("method {actual} is not {wanted}")]
    Method { wanted: Method, actual: Method },
    #[error("no header {name}")]
    HeaderMissing { name: HeaderName },
    #[error("header {name} {actual:?} {}", unlike(wanted))]
    HeaderValue { name: HeaderName, wanted: ValueMatch, actual: String },
    #[error("no query parameter {name:?}")]
    QueryMissing { name: String },
    #[error("query parameter {name:?} {actual:?} {}", unlike(wanted))]
    QueryValue { name: String, wanted: ValueMatch, actual: String },
}

fn unlike(wanted: &ValueMatch) -> String {
    match wanted {
        ValueMatch::Exact(value) => format!("is not {value:?}"),
        ValueMatch::Regex(value) => format!("does not match the regular expression {value:?} as a whole"),
    }
}
