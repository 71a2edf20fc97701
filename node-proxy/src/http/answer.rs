//! Answers that Culvert gives itself: which status for which reason, and how they say so.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use crate::reason::Reason;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Status codes of gRPC (grpc/grpc, doc/statuscodes.md) that Culvert gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcCode {
    Cancelled = 1,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

/// What a reason looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Face {
    pub status: StatusCode,
    pub grpc: GrpcCode,
    /// The type of error of RFC 9209, 2.3.
    pub error: &'static str,
}

/// The only place that says which reason is which status.
pub fn face(reason: Reason) -> Face {
    use GrpcCode::{
        Cancelled, DeadlineExceeded, Internal, PermissionDenied, ResourceExhausted, Unavailable,
        Unimplemented,
    };
    let (status, grpc, error) = match reason {
        Reason::RouteNotFound => (404, Unimplemented, "destination_not_found"),
        Reason::RouteUnsupported | Reason::NoBackend | Reason::InvalidBackend | Reason::NoSessionKey => {
            (500, Internal, "proxy_configuration_error")
        }
        Reason::NoEndpoint
        | Reason::NoServicePort
        | Reason::UnknownDestination
        | Reason::Tunnel
        | Reason::RetryBudget
        | Reason::RetriesExhausted => (503, Unavailable, "destination_unavailable"),
        Reason::Connect => (503, Unavailable, "connection_refused"),
        Reason::TlsHandshake => (503, Unavailable, "tls_protocol_error"),
        Reason::PeerIdentity => (503, Unavailable, "tls_certificate_error"),
        Reason::NoCertificate | Reason::Drained => (503, Unavailable, "proxy_internal_error"),
        Reason::WorkloadLimit => (503, ResourceExhausted, "connection_limit_reached"),
        Reason::OutboundPolicy | Reason::PlaintextRefused | Reason::ProxyPort => {
            (403, PermissionDenied, "destination_ip_prohibited")
        }
        Reason::BadRequest | Reason::ProtocolMismatch | Reason::BadConnect => {
            (400, Internal, "http_request_error")
        }
        Reason::HeadersTooLarge => (431, ResourceExhausted, "http_request_error"),
        Reason::RequestHeaderTimeout | Reason::RequestBodyTimeout => (408, Cancelled, "http_request_error"),
        Reason::ConnectRefused => (405, Unimplemented, "http_request_denied"),
        Reason::RequestTimeout | Reason::BackendTimeout => (504, DeadlineExceeded, "http_response_timeout"),
        Reason::IdleTimeout => (504, DeadlineExceeded, "connection_timeout"),
        Reason::BackendReset | Reason::PeerReset => (502, Unavailable, "connection_terminated"),
        Reason::BadResponse => (502, Internal, "http_protocol_error"),
        // Never sent, for nobody is there to read it; logs and metrics show it.
        Reason::ClientCancelled => (499, Cancelled, "connection_terminated"),
        Reason::MirrorSlow => (503, ResourceExhausted, "connection_write_timeout"),
        Reason::OriginNotAllowed => (403, PermissionDenied, "http_request_denied"),
        Reason::Local => (500, Internal, "proxy_internal_error"),
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Face { status, grpc, error }
}

/// What kind of client waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Http,
    /// Expects its status in `grpc-status`.
    Grpc,
}

/// The answer for a reason: plain text, or the Trailers-Only form of gRPC over HTTP/2.
pub fn refusal(reason: Reason, asked: Asked) -> Response<Bytes> {
    let face = face(reason);
    let mut response = match asked {
        Asked::Http => text(face.status, reason),
        Asked::Grpc => trailers_only(face.grpc, reason),
    };
    let status = format!("culvert; error={}; details=\"{reason}\"", face.error);
    put(response.headers_mut(), PROXY_STATUS, &status);
    response
}

/// An answer that ends an HTTP/1 connection, because what follows cannot be trusted.
pub fn close_after(response: &mut Response<impl Sized>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

/// To HEAD a body is not sent; its length still is (RFC 9110, 9.3.2). Over HTTP/2 one would reset the stream.
pub fn leave_body(response: &mut Response<Bytes>) {
    let body = std::mem::take(response.body_mut());
    if !body.is_empty() {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
}

/// A redirect is an answer that the user asked for, not a refusal.
pub fn redirect(status: StatusCode, location: HeaderValue) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response.headers_mut().insert(LOCATION, location);
    response.headers_mut().insert(PROXY_STATUS, HeaderValue::from_static("culvert"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    response
}

/// What a browser asked before the request proper (204).
pub fn preflight(headers: HeaderMap) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    *response.headers_mut() = headers;
    response.headers_mut().insert(PROXY_STATUS, HeaderValue::from_static("culvert"));
    response
}

fn text(status: StatusCode, reason: Reason) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(format!("{reason}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn trailers_only(code: GrpcCode, reason: Reason) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response.headers_mut().insert(GRPC_STATUS, HeaderValue::from(code as u16));
    put(response.headers_mut(), GRPC_MESSAGE, reason.as_str());
    response
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // Reasons and error types are words of letters.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// What a response says in `grpc-status`, in its head or its trailers; codes that gRPC does not know count as unknown (2).
pub fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    let value = headers.get(GRPC_STATUS)?.to_str().ok();
    Some(value.and_then(|text| text.parse().ok()).filter(|code| *code <= 16).unwrap_or(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_says_what_it_is() {
        for reason in Reason::ALL {
            let response = refusal(reason, Asked::Http);
            let face = face(reason);
            assert_eq!(response.status(), face.status);
            assert!(face.status.as_u16() >= 400, "{reason}");
            let status = response.headers()["proxy-status"].to_str().unwrap();
            assert_eq!(status, format!("culvert; error={}; details=\"{reason}\"", face.error));
            let grpc = refusal(reason, Asked::Grpc);
            assert_eq!(grpc.status(), StatusCode::OK);
            assert_eq!(grpc.headers()["content-type"], "application/grpc");
            assert_eq!(grpc.headers()["grpc-message"], reason.as_str());
            assert!(grpc.body().is_empty());
        }
    }

    #[test]
    fn an_answer_to_head_has_a_length_and_no_body() {
        let mut response = refusal(Reason::RouteNotFound, Asked::Http);
        let length = response.body().len().to_string();
        leave_body(&mut response);
        assert!(response.body().is_empty());
        assert_eq!(response.headers()["content-length"], length);
    }

    /// As conformance asks (Gateway API, GEP-1426 and `HTTPRouteRule`).
    #[test]
    fn the_statuses_users_rely_on() {
        for (reason, status, grpc) in [
            (Reason::RouteNotFound, 404, 12),
            (Reason::RouteUnsupported, 500, 13),
            (Reason::NoBackend, 500, 13),
            (Reason::InvalidBackend, 500, 13),
            (Reason::NoEndpoint, 503, 14),
            (Reason::Connect, 503, 14),
            (Reason::RequestTimeout, 504, 4),
            (Reason::BackendTimeout, 504, 4),
            (Reason::BadRequest, 400, 13),
            (Reason::HeadersTooLarge, 431, 8),
        ] {
            assert_eq!(refusal(reason, Asked::Http).status(), status, "{reason}");
            let headers = refusal(reason, Asked::Grpc).headers().clone();
            assert_eq!(headers["grpc-status"], grpc.to_string(), "{reason}");
        }
    }

    #[test]
    fn a_status_nobody_knows_is_unknown() {
        for (value, expected) in [("0", 0), ("14", 14), ("17", 2), ("-1", 2), ("x", 2), ("", 2)] {
            let headers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_str(value).unwrap())]);
            assert_eq!(grpc_status(&headers), Some(expected), "{value:?}");
        }
        assert_eq!(grpc_status(&HeaderMap::new()), None);
    }
}
