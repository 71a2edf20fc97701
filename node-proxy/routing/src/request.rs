//! A request as route tables see it.

use std::sync::LazyLock;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Version};

/// What a route can ask about a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    pub method: &'a Method,
    /// As [`crate::host::Host`] gives it: lower case, without port and trailing dot. Empty if the request names none.
    pub host: &'a str,
    /// As [`crate::path::normalize`] gives it.
    pub path: &'a str,
    /// What follows `?`, as it came.
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    /// What [`is_grpc`] says.
    pub grpc: bool,
}

impl RequestView<'_> {
    /// A connection, with the server name that its TLS asks for (lower case, without trailing dot): what routes about connections
    /// are asked with.
    pub fn connection(server_name: Option<&str>) -> RequestView<'_> {
        static NO_HEADERS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);
        RequestView {
            method: &Method::CONNECT,
            host: server_name.unwrap_or_default(),
            path: "/",
            query: None,
            headers: &NO_HEADERS,
            grpc: false,
        }
    }
}

/// Whether a request is a gRPC call, which routes of kind GRPCRoute are for: HTTP/2 with the content type
/// `application/grpc`, alone or followed by `+` and a format or by parameters (gRPC over HTTP/2). Not gRPC-Web.
pub fn is_grpc(version: Version, headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some(value) = headers.get(CONTENT_TYPE) else { return false };
    let value = value.as_bytes();
    version == Version::HTTP_2
        && value.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
        && matches!(value.get(GRPC.len()), None | Some(b'+' | b';' | b' '))
}

/// Service and method of a gRPC path: two segments, neither empty.
pub(crate) fn grpc_call(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}
