//! Copies of requests for mirrors (`HTTPRequestMirrorFilter`, GEP-3171): sent beside the request, answered for nobody. Whatever
//! becomes of a copy, the request is neither delayed nor changed by it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_routing::filters::FilteredRequest;
use culvert_routing::model::{Mirror, Target};
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body::Body;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout, timeout_at};

use super::answer::grpc_status;
use super::copies::{CopyWatch, copy};
use super::forward::{Destination, Forwarded};
use super::outgoing::{Outgoing, Told};
use super::request_body::RequestBody;
use super::respond::Instead;
use super::route::{self, version_towards};
use super::serve::ClientConnection;
use crate::limits::RequestPermit;
use crate::reason::Reason;
use crate::state::Snapshot;
use crate::state::model::Service;
use crate::telemetry::{Failure, Mirrored, RequestRecord};

/// A request as it stands at a mirror that takes it.
pub struct Copy {
    target: Target,
    headers: HeaderMap,
    /// Rewritten before it.
    host: Option<String>,
    path: Option<String>,
}

impl Copy {
    pub fn of(mirror: &Mirror, request: &FilteredRequest<'_>) -> Self {
        // What is owned was made by a rewrite.
        let rewritten = |text: &Cow<'_, str>| match text {
            Cow::Owned(text) => Some(text.clone()),
            Cow::Borrowed(_) => None,
        };
        Self {
            target: mirror.target.clone(),
            headers: request.headers.clone(),
            host: rewritten(&request.host),
            path: rewritten(&request.path),
        }
    }
}

/// The request that is copied.
pub struct Original<'r> {
    pub parts: &'r Parts,
    /// Before anything is rewritten.
    pub outgoing: &'r Outgoing,
    pub snapshot: &'r Arc<Snapshot>,
    /// Until when its response must be complete, and how long that was.
    pub deadline: Option<(Instant, Duration)>,
}

/// A copy that is ready to go.
struct Ready {
    service: Arc<Service>,
    port: u16,
    snapshot: Arc<Snapshot>,
    parts: Parts,
    body: RequestBody,
    outgoing: Outgoing,
    deadline: Option<(Instant, Duration)>,
    /// Of the copy's body.
    watch: Option<CopyWatch>,
    record: RequestRecord,
    _permit: RequestPermit,
}

impl ClientConnection {
    /// Sets the copies of a request on their way. A request that wants to leave HTTP has none: what follows it is no request.
    pub(super) fn mirror(
        self: &Rc<Self>,
        copies: Vec<Copy>,
        original: &Original<'_>,
        body: &mut RequestBody,
        record: &RequestRecord,
    ) {
        if original.outgoing.wants_upgrade() {
            return;
        }
        for copy in copies {
            match self.ready(copy, original, body, record) {
                Ok(ready) => {
                    let (connection, cancel) = (self.clone(), self.outbound.pod.cancel.clone());
                    // Boxed, because a future is moved eight times until it is a task, and this one is large.
                    let sending = Box::pin(async move { connection.send_copy(ready).await });
                    spawn_local(async move { cancel.run_until_cancelled(sending).await });
                }
                Err(how) => self.outbound.context.shared.telemetry.mirrored(how),
            }
        }
    }

    fn ready(
        &self,
        of: Copy,
        original: &Original<'_>,
        body: &mut RequestBody,
        record: &RequestRecord,
    ) -> Result<Ready, Mirrored> {
        let (service, port) =
            route::backend_service(original.snapshot, &of.target).map_err(|_| Mirrored::Unresolved)?;
        let limits = &self.outbound.pod.pod.limits;
        let head: usize = of.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let permit = limits.spare_request(head as u64).ok_or(Mirrored::Skipped)?;
        let record = record.mirrored(service.key.clone(), port, self.meta.clone());
        let (parts, ()) = {
            let mut copied = Request::new(());
            *copied.method_mut() = original.parts.method.clone();
            *copied.uri_mut() = original.parts.uri.clone();
            *copied.version_mut() = original.parts.version;
            *copied.headers_mut() = of.headers;
            copied.into_parts()
        };
        let reader = (!body.is_end_stream()).then(|| {
            let (writer, reader) = copy(limits, body.size_hint());
            body.copy_to(writer);
            reader
        });
        Ok(Ready {
            service,
            port,
            snapshot: original.snapshot.clone(),
            parts,
            watch: reader.as_ref().map(|reader| reader.watch()),
            body: RequestBody::of_copy(reader, record.received()),
            outgoing: original.outgoing.copied(of.host, of.path),
            deadline: original.deadline,
            record,
            _permit: permit,
        })
    }

    async fn send_copy(self: Rc<Self>, ready: Ready) {
        let Ready { service, port, snapshot, mut parts, body, outgoing, deadline, watch, mut record, .. } =
            ready;
        let destination = Destination {
            service: &service,
            port,
            snapshot: &snapshot,
            request_deadline: deadline,
            backend_limit: None,
            retry: None,
            pinned: RefCell::default(),
        };
        let version = version_towards(&service, port, parts.version);
        let patience = Patience { idle: self.outbound.timeouts().body_idle, watch };
        let progress = body.progress();
        let prepared = outgoing.prepare(&mut parts, &body, version, &self, Told::Nobody);
        let sent = match prepared {
            Err(Instead::Refused(failure)) => Err(failure),
            // Filters have been applied: there is no other answer.
            Err(Instead::Redirect(_) | Instead::Preflight(_)) => return,
            Ok(_) => {
                let (request, mut tried) = (Box::new(Request::from_parts(parts, body)), Vec::new());
                let sending =
                    Box::pin(self.try_endpoints(&destination, version, request, &mut record, &mut tried));
                patience.wait(sending).await.and_then(|sent| sent)
            }
        };
        let ended = match sent {
            Ok(forwarded) => drain(forwarded, &patience, &mut record).await,
            Err(failure) => Err(failure),
        };
        let ended = ended.map_err(|failure| progress.lost().unwrap_or(failure));
        let how = match &ended {
            Ok(()) => Mirrored::Complete,
            Err(failure) if failure.reason == Reason::MirrorSlow => Mirrored::Cut,
            Err(_) => Mirrored::Failed,
        };
        self.outbound.context.shared.telemetry.mirrored(how);
        if let Err(failure) = ended {
            record.fail(failure);
        }
        record.finish();
    }
}

/// How long a mirror may do nothing.
struct Patience {
    idle: Duration,
    /// While the request's body still comes, a mirror has nothing to answer.
    watch: Option<CopyWatch>,
}

impl Patience {
    /// The request's body does not come, or the mirror takes too little of it.
    async fn cut(&self) -> Failure {
        match &self.watch {
            Some(watch) => watch.failed().await,
            None => std::future::pending().await,
        }
    }

    async fn wait<T>(&self, waited: impl Future<Output = T>) -> Result<T, Failure> {
        let mut waited = pin!(waited);
        loop {
            let in_time = tokio::select! {
                biased;
                in_time = timeout(self.idle, waited.as_mut()) => in_time,
                failure = self.cut() => return Err(failure),
            };
            match in_time {
                Ok(done) => return Ok(done),
                Err(_) if self.watch.as_ref().is_some_and(CopyWatch::is_open) => {}
                Err(_) => {
                    let message = format!("the mirror did nothing for {:?}", self.idle);
                    return Err(Failure::new(Reason::IdleTimeout, message));
                }
            }
        }
    }
}

/// Takes the answer, and forgets it.
async fn drain(forwarded: Forwarded, patience: &Patience, record: &mut RequestRecord) -> Result<(), Failure> {
    let Forwarded { response, held, progress, in_flight: _in_flight, deadline, .. } = forwarded;
    let (head, mut body) = response.into_parts();
    record.answered(head.status, grpc_status(&head.headers));
    let reading = async {
        loop {
            match patience.wait(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))).await? {
                None => return Ok(()),
                Some(Ok(frame)) => {
                    record.sent(frame.data_ref().map_or(0, bytes::Bytes::len));
                    if let Some(status) = frame.trailers_ref().and_then(grpc_status) {
                        record.set_grpc_status(status);
                    }
                }
                Some(Err(error)) => {
                    let message = format!("in the middle of the mirror's response: {error}");
                    return Err(Failure::new(Reason::BackendReset, message));
                }
            }
        }
    };
    match deadline {
        None => reading.await?,
        Some(deadline) => timeout_at(deadline.at, reading).await.map_err(|_| deadline.failure())??,
    }
    if progress.has_ended() {
        held.put_back();
    }
    Ok(())
}
