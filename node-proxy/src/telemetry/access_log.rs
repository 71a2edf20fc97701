//! One structured line per connection and per request, under ztunnel's keys. Written by a thread of its own behind a bounded queue:
//! a slow reader of the log costs lines, which are counted, and never the data path.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, SystemTime};

use culvert_identity::Identity;
use culvert_routing::CompiledRule;
use serde_json::{Map, Value};

use super::connection::{ConnectionMeta, Failure};
use super::request::{EndedRequest, Role};
use crate::state::model::{self, AccessLogFilter, AccessLogFormat, ServiceKey, Workload};

/// Lines that may wait to be written.
const QUEUE: usize = 8192;
/// How long a written line may stay in the buffer.
const FLUSH: Duration = Duration::from_millis(100);

/// A connection at its end, or at its refusal.
#[derive(Debug)]
pub(super) struct Ended<'a> {
    pub meta: &'a ConnectionMeta,
    pub sent: u64,
    pub received: u64,
    pub duration: Duration,
    pub failure: Option<&'a Failure>,
}

impl<'a> Ended<'a> {
    /// Refused before a byte was carried.
    pub fn refused(meta: &'a ConnectionMeta, failure: &'a Failure) -> Self {
        Self { meta, sent: 0, received: 0, duration: Duration::ZERO, failure: Some(failure) }
    }
}

/// For the writer.
enum Message {
    Line(String),
    /// Everything before this is to be written out; then the sender is dropped.
    Flush(std::sync::mpsc::Sender<()>),
}

/// Where the lines go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: Option<SyncSender<Message>>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Lines go nowhere.
    pub fn discarded() -> Self {
        Self { lines: None, dropped: Arc::default() }
    }

    /// Lines go to the standard output, by a thread that ends after the last handle is dropped.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn to_stdout() -> io::Result<Self> {
        Self::to_writer(io::stdout())
    }

    /// The same with another output.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn to_writer(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, queue) = sync_channel(QUEUE);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write_all(&queue, output))?;
        Ok(Self { lines: Some(lines), dropped: Arc::default() })
    }

    /// Waits until what was logged before is written, at most `patience`. Blocking.
    pub fn flush(&self, patience: Duration) {
        let Some(lines) = &self.lines else { return };
        let (done, written) = channel();
        if lines.try_send(Message::Flush(done)).is_ok() {
            // An answer, or the end of the writer: either way there is nothing left to wait for.
            let _ = written.recv_timeout(patience);
        }
    }

    /// Lines dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn write(&self, settings: model::AccessLog, ended: &Ended<'_>) {
        let wanted = match settings.filter {
            AccessLogFilter::None => false,
            AccessLogFilter::Failures => ended.failure.is_some(),
            AccessLogFilter::All => true,
        };
        let Some(lines) = self.lines.as_ref().filter(|_| wanted) else { return };
        self.put(lines, render(settings.format, fields(ended, SystemTime::now())));
    }

    pub(super) fn write_request(&self, settings: model::AccessLog, ended: &EndedRequest<'_>) {
        let wanted = match settings.filter {
            AccessLogFilter::None => false,
            AccessLogFilter::Failures => ended.has_failed(),
            AccessLogFilter::All => true,
        };
        let Some(lines) = self.lines.as_ref().filter(|_| wanted) else { return };
        self.put(lines, render(settings.format, request_fields(ended, SystemTime::now())));
    }

    fn put(&self, lines: &SyncSender<Message>, line: String) {
        if let Err(TrySendError::Full(_)) = lines.try_send(Message::Line(line)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes until the last sender is gone; an output that fails is left alone, the lines are lost.
fn write_all(queue: &Receiver<Message>, output: impl Write) {
    let mut output = BufWriter::with_capacity(64 * 1024, output);
    let mut unflushed = false;
    loop {
        let message = if unflushed {
            queue.recv_timeout(FLUSH)
        } else {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match message {
            Ok(Message::Line(line)) => {
                let _ = output.write_all(line.as_bytes());
                unflushed = true;
            }
            Ok(Message::Flush(done)) => {
                let _ = output.flush();
                unflushed = false;
                drop(done);
            }
            Err(RecvTimeoutError::Timeout) => {
                let _ = output.flush();
                unflushed = false;
            }
            Err(RecvTimeoutError::Disconnected) => {
                let _ = output.flush();
                return;
            }
        }
    }
}

fn render(format: AccessLogFormat, fields: Map<String, Value>) -> String {
    match format {
        AccessLogFormat::Json => {
            let mut line = Value::Object(fields).to_string();
            line.push('\n');
            line
        }
        AccessLogFormat::Text => text(&fields),
    }
}

/// The fields in the order in which they are written; what is not known is left out.
fn fields(ended: &Ended<'_>, now: SystemTime) -> Map<String, Value> {
    let meta = ended.meta;
    let mut fields = Fields(Map::new());
    fields.put("time", timestamp(now));
    fields.put("level", if ended.failure.is_some() { "error" } else { "info" });
    fields.put("message", if ended.failure.is_some() { "connection failed" } else { "connection complete" });
    let routed = meta.routed.as_deref();
    let dialled = routed.map(|routed| &routed.service);
    let service = dialled.or(meta.service.as_ref().map(|service| &service.key));
    fields.ends(meta, meta.source_addr, service.map(ToString::to_string));
    fields.maybe("server_name", routed.and_then(|routed| routed.server_name.as_deref()));
    fields.routed(
        routed.and_then(|routed| routed.rule.as_deref()),
        routed.and_then(|routed| routed.backend.as_ref()),
    );
    fields.put("bytes_sent", ended.sent);
    fields.put("bytes_recv", ended.received);
    fields.put("duration", format!("{:.3}ms", ended.duration.as_secs_f64() * 1000.0));
    fields.maybe("reason", ended.failure.map(|failure| failure.reason.as_str()));
    fields.maybe("error", ended.failure.map(|failure| failure.message.as_str()));
    fields.0
}

/// The same for a request.
fn request_fields(ended: &EndedRequest<'_>, now: SystemTime) -> Map<String, Value> {
    let (head, routed) = (ended.head, ended.routed);
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut fields = Fields(Map::new());
    fields.put("time", timestamp(now));
    fields.put("level", if ended.has_failed() { "error" } else { "info" });
    fields.put("message", if ended.has_failed() { "request failed" } else { "request complete" });
    let service = head.service.as_ref().or(routed.backend.as_ref().map(|(service, _)| service));
    fields.ends(ended.meta, head.source_addr, service.map(ToString::to_string));
    fields.put("request_id", text(&head.request_id));
    fields.put("traceparent", text(&head.traceparent));
    fields.put("method", head.method.as_str());
    fields.put("path", head.uri.path_and_query().map_or("", |path| path.as_str()));
    fields.maybe("authority", head.authority.as_ref().map(text));
    fields.put("protocol", format!("{:?}", head.version));
    fields.maybe("listener", routed.listener.as_deref());
    fields.routed(routed.rule.as_deref(), routed.backend.as_ref());
    fields.maybe("mirror", (ended.role == Role::Mirrored).then_some(true));
    fields.put("attempts", routed.attempts);
    fields.put("response_code", ended.status.as_u16());
    fields.maybe("grpc_status", ended.grpc_status);
    fields.put("bytes_sent", ended.sent);
    fields.put("bytes_recv", ended.received);
    fields.put("duration", format!("{:.3}ms", ended.duration.as_secs_f64() * 1000.0));
    fields.maybe("reason", ended.failure.map(|failure| failure.reason.as_str()));
    fields.maybe("error", ended.failure.map(|failure| failure.message.as_str()));
    fields.0
}

/// A request as one line of JSON.
pub(super) fn request_line(ended: &EndedRequest<'_>) -> String {
    render(AccessLogFormat::Json, request_fields(ended, SystemTime::now()))
}

struct Fields(Map<String, Value>);

impl Fields {
    /// Who speaks with whom, and how protected.
    fn ends(&mut self, meta: &ConnectionMeta, source_addr: SocketAddr, service: Option<String>) {
        self.peer("src", source_addr, meta.source.as_deref(), meta.source_identity.as_ref());
        self.peer(
            "dst",
            meta.destination_addr,
            meta.destination.as_deref(),
            meta.destination_identity.as_ref(),
        );
        self.maybe("dst.hbone_addr", meta.hbone_addr.map(|address| address.to_string()));
        self.maybe("dst.service", service);
        self.put("direction", meta.direction().as_str());
        self.put("connection_security_policy", meta.security.as_str());
        self.maybe("why", meta.security.why());
    }

    /// Which rule, and to whom by weight.
    fn routed(&mut self, rule: Option<&CompiledRule>, backend: Option<&(ServiceKey, u16)>) {
        self.maybe("route", rule.map(|rule| format!("{}/{}", rule.key().kind, rule.full_name())));
        self.maybe("rule", rule.map(CompiledRule::label));
        self.maybe("backend", backend.map(|(service, port)| format!("{service}:{port}")));
    }

    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    fn maybe(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    fn peer(
        &mut self,
        end: &str,
        address: SocketAddr,
        workload: Option<&Workload>,
        identity: Option<&Identity>,
    ) {
        self.put(&format!("{end}.addr"), address.to_string());
        self.maybe(&format!("{end}.workload"), workload.map(|workload| workload.name.as_ref()));
        self.maybe(&format!("{end}.namespace"), workload.map(|workload| workload.namespace.as_ref()));
        self.maybe(&format!("{end}.cluster"), workload.map(|workload| workload.cluster.as_ref()));
        self.maybe(&format!("{end}.identity"), identity.map(Identity::uri));
    }
}

/// `time level message key=value ...`; text is quoted as in JSON, so that no peer can forge a field or a line.
fn text(fields: &Map<String, Value>) -> String {
    let mut line = String::new();
    for (key, value) in fields {
        let separator = if line.is_empty() { "" } else { " " };
        let _ = match (key.as_str(), value) {
            ("time" | "level", Value::String(plain)) => write!(line, "{separator}{plain}"),
            _ => write!(line, "{separator}{key}={value}"),
        };
    }
    line.push('\n');
    line
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Year, month and day of a number of days since 1970-01-01, by counting 400-year eras of 146,097 days from a year
/// that begins in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests;
