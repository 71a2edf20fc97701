//! What a request that was sent to an endpoint says of that endpoint. What the client has caused, or Culvert, says nothing.

use std::time::Duration;

use http::{Request, Response, StatusCode};

use super::answer::grpc_status;
use super::body::Deadline;
use super::forward::{copy, is_repeatable};
use super::request_body::RequestBody;
use crate::balance::{Candidate, InFlight};
use crate::reason::Reason;

/// Statuses of gRPC that say that the server is at fault: UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS. A deadline is the client's,
/// and resources may be exhausted for one client alone.
const FAILED_CALLS: [u8; 4] = [2, 13, 14, 15];

/// Whether a call that ends so speaks against its server.
pub fn is_failed_call(status: u8) -> bool {
    FAILED_CALLS.contains(&status)
}

/// Whether a response does: 5xx, but for those that are about the request (501, 505).
fn is_failed<B>(response: &Response<B>) -> bool {
    let status = response.status();
    match grpc_status(response.headers()) {
        Some(status) => is_failed_call(status),
        None => {
            status.is_server_error()
                && !matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED)
        }
    }
}

/// Notes a response, whose head took so long; whether it speaks for the endpoint.
pub fn of_response<B>(response: &Response<B>, took: Duration, in_flight: &mut InFlight) -> bool {
    let is_good = !is_failed(response);
    if is_good {
        in_flight.answered(took);
    } else {
        in_flight.refused();
    }
    is_good
}

/// Notes that a server that was reached sent none. `waited`: the limit, if most of it has passed while nothing but the response was waited for.
pub fn of_failure(reason: Reason, waited: Option<Deadline>, in_flight: &mut InFlight) {
    match reason {
        Reason::BackendReset | Reason::BadResponse => in_flight.unanswered(),
        Reason::BackendTimeout | Reason::RequestTimeout if waited.is_some() => in_flight.unanswered(),
        _ => {}
    }
}

/// A request is sent to an ejected endpoint as its trial: kept for another endpoint, should the trial fail, where sending it again
/// is safe.
pub fn spare(candidate: &Candidate, request: &Request<RequestBody>) -> Option<Box<Request<RequestBody>>> {
    (candidate.is_trial() && is_repeatable(request)).then(|| copy(request)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_is_at_fault_for_speaks_against_it() {
        for (status, call, failed) in [
            (200, None, false),
            (404, None, false),
            (429, None, false),
            (500, None, true),
            (501, None, false),
            (502, None, true),
            (503, None, true),
            (504, None, true),
            (505, None, false),
            (200, Some("0"), false),
            (200, Some("2"), true),
            (200, Some("4"), false),
            (200, Some("5"), false),
            (200, Some("8"), false),
            (200, Some("13"), true),
            (200, Some("14"), true),
            (200, Some("15"), true),
        ] {
            let mut response = Response::builder().status(status);
            if let Some(call) = call {
                response = response.header("grpc-status", call);
            }
            assert_eq!(is_failed(&response.body(()).unwrap()), failed, "{status} {call:?}");
        }
    }
}
