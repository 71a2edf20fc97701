//! Sends a request again when an attempt failed: as often as its rule says, with its pauses, to another endpoint where there
//! is one, as long as the budget of the backend and the time of the request last. Nothing waits for room in a budget.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use culvert_routing::retry::{Outcome, Retry};
use http::Request;
use http_body::Body;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::forward::{Destination, Forwarded};
use super::replay::Kept;
use super::request_body::RequestBody;
use super::serve::ClientConnection;
use crate::outbound::protocol::Version;
use crate::reason::Reason;
use crate::telemetry::{Failure, RequestRecord, Retried};

/// What is read of a response that is not passed on, so that its connection can be used again.
const MOST_DRAINED: usize = 64 << 10;
const DRAIN: Duration = Duration::from_secs(1);

impl ClientConnection {
    pub(super) async fn send_with_retries(
        &self,
        destination: &Destination<'_>,
        version: Version,
        request: Box<Request<RequestBody>>,
        retry: &Retry,
        record: &mut RequestRecord,
    ) -> Result<Forwarded, Failure> {
        let (head, body) = (*request).into_parts();
        let kept = Kept::new(body, &self.outbound.pod.pod.limits);
        let telemetry = &self.outbound.context.shared.telemetry;
        let budget = self.outbound.context.balancer.budget(destination.service);
        budget.asked(Instant::now());
        let (mut tried, mut retries) = (Vec::new(), 0);
        loop {
            let request = Box::new(Request::from_parts(head.clone(), kept.attempt()));
            let sent = self.try_endpoints(destination, version, request, record, &mut tried).await;
            if !retry.wants(outcome(&sent), retries) {
                return sent.map_err(|failure| last(failure, retries));
            }
            if !kept.can_be_sent_again() {
                telemetry.retried(Retried::Body);
                return sent;
            }
            let pause = retry.pause(retries, rand::random());
            let now = Instant::now();
            if destination.request_deadline.is_some_and(|(end, _)| now + pause >= end) {
                telemetry.retried(Retried::Deadline);
                return sent;
            }
            if !budget.take(now) {
                telemetry.retried(Retried::OverBudget);
                let message = format!("the retry budget is used up, and the request failed: {}", told(&sent));
                return Err(Failure::new(Reason::RetryBudget, message));
            }
            telemetry.retried(Retried::Sent);
            if let Ok(forwarded) = sent {
                discard(forwarded);
            }
            sleep(pause).await;
            retries += 1;
        }
    }
}

/// Whoever may try again elsewhere is to know: after retries a lost connection is 503, as one that was refused is (GEP-1731).
fn last(failure: Failure, retries: u32) -> Failure {
    match failure.reason {
        Reason::BackendReset | Reason::PeerReset if retries > 0 => {
            Failure::new(Reason::RetriesExhausted, format!("sent {} times; at last: {failure}", retries + 1))
        }
        _ => failure,
    }
}

fn outcome(sent: &Result<Forwarded, Failure>) -> Outcome {
    let failure = match sent {
        Ok(forwarded) => return Outcome::Response(forwarded.response.status()),
        Err(failure) => failure,
    };
    match failure.reason {
        Reason::Connect
        | Reason::TlsHandshake
        | Reason::Tunnel
        | Reason::PeerReset
        | Reason::BackendReset
        | Reason::BackendTimeout => Outcome::Lost,
        _ => Outcome::Final,
    }
}

fn told(sent: &Result<Forwarded, Failure>) -> String {
    match sent {
        Ok(forwarded) => format!("status {}", forwarded.response.status().as_u16()),
        Err(failure) => failure.to_string(),
    }
}

/// Reads a response to its end where that is near, for the sake of its connection.
pub(super) fn discard(forwarded: Forwarded) {
    let Forwarded { response, held, progress, in_flight, .. } = forwarded;
    let mut body = response.into_body();
    spawn_local(async move {
        let _in_flight = in_flight;
        let reading = async {
            let mut read = 0;
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                read += frame.ok()?.data_ref().map_or(0, bytes::Bytes::len);
                if read > MOST_DRAINED {
                    return None;
                }
            }
            Some(())
        };
        if let Ok(Some(())) = timeout(DRAIN, reading).await
            && progress.has_ended()
        {
            held.put_back();
        }
    });
}
