use std::sync::mpsc;

use parking_lot::Mutex;

use super::*;
use crate::reason::Reason;
use crate::state::testing::{service, workload};
use crate::telemetry::{Reporter, Security, WhyPlaintext};

fn meta() -> ConnectionMeta {
    let workload = |name| Some(Arc::new(workload(name, &[1])));
    ConnectionMeta {
        reporter: Reporter::Source,
        source: workload("web"),
        source_addr: "10.0.0.1:40000".parse().unwrap(),
        source_identity: "spiffe://cluster.local/ns/shop/sa/web".parse().ok(),
        destination: workload("cart"),
        destination_addr: "10.0.0.2:8080".parse().unwrap(),
        hbone_addr: Some("10.0.0.2:15008".parse().unwrap()),
        destination_identity: "spiffe://cluster.local/ns/shop/sa/cart".parse().ok(),
        service: Some(Arc::new(service("shop/cart", &[]))),
        routed: None,
        security: Security::MutualTls,
    }
}

fn ended<'a>(meta: &'a ConnectionMeta, failure: Option<&'a Failure>) -> Ended<'a> {
    Ended { meta, sent: 2000, received: 100, duration: Duration::from_micros(1500), failure }
}

fn settings(filter: AccessLogFilter) -> model::AccessLog {
    model::AccessLog { filter, format: AccessLogFormat::Json }
}

const AT: Duration = Duration::from_millis(1_709_210_096_789);

#[test]
fn a_line_has_ztunnels_keys_and_why() {
    let meta = meta();
    let line = render(AccessLogFormat::Json, fields(&ended(&meta, None), SystemTime::UNIX_EPOCH + AT));
    let expected = concat!(
        r#"{"time":"2024-02-29T12:34:56.789Z","level":"info","message":"connection complete","#,
        r#""src.addr":"10.0.0.1:40000","src.workload":"web","src.namespace":"shop","src.cluster":"c","#,
        r#""src.identity":"spiffe://cluster.local/ns/shop/sa/web","#,
        r#""dst.addr":"10.0.0.2:8080","dst.workload":"cart","dst.namespace":"shop","dst.cluster":"c","#,
        r#""dst.identity":"spiffe://cluster.local/ns/shop/sa/cart","dst.hbone_addr":"10.0.0.2:15008","#,
        r#""dst.service":"shop/cart","direction":"outbound","connection_security_policy":"mutual_tls","#,
        r#""bytes_sent":2000,"bytes_recv":100,"duration":"1.500ms"}"#,
        "\n"
    );
    assert_eq!(line, expected);
    let plain = ConnectionMeta {
        reporter: Reporter::Destination,
        source: None,
        source_identity: None,
        security: Security::Plaintext(WhyPlaintext::SourceOutsideMesh),
        ..meta
    };
    let failure = Failure::new(Reason::PlaintextRefused, "strict");
    let line = render(AccessLogFormat::Json, fields(&ended(&plain, Some(&failure)), SystemTime::now()));
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&line["connection_security_policy"], &line["why"]),
        (&"none".into(), &"SourceOutsideMesh".into())
    );
    assert_eq!((&line["reason"], &line["error"]), (&"PlaintextRefused".into(), &"strict".into()));
    assert_eq!((&line["direction"], &line["level"]), (&"inbound".into(), &"error".into()));
    assert!(line.get("src.workload").is_none());
}

#[test]
fn text_cannot_be_forged_by_what_a_peer_says() {
    let meta = meta();
    let failure = Failure::new(Reason::BadConnect, "no \"x\"\n2024 info message=\"connection complete\"");
    let line =
        render(AccessLogFormat::Text, fields(&ended(&meta, Some(&failure)), SystemTime::UNIX_EPOCH + AT));
    assert!(
        line.starts_with("2024-02-29T12:34:56.789Z error message=\"connection failed\" src.addr=\"10."),
        "{line}"
    );
    assert_eq!(line.matches('\n').count(), 1);
    assert!(line.contains(r#"error="no \"x\"\n2024"#), "{line}");
}

#[test]
fn dates_are_right() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400, "2000-02-29T00:00:00.000Z"),
        (1_735_689_599, "2024-12-31T23:59:59.000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000Z"),
    ] {
        assert_eq!(timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), expected);
    }
}

#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<u8>>>);

impl Write for Collected {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_filter_decides_what_is_logged() {
    let collected = Collected::default();
    let log = AccessLog::to_writer(collected.clone()).unwrap();
    let meta = meta();
    let failure = Failure::new(Reason::Connect, "refused");
    for (filter, failure) in [
        (AccessLogFilter::Failures, None),
        (AccessLogFilter::Failures, Some(&failure)),
        (AccessLogFilter::All, None),
        (AccessLogFilter::All, Some(&failure)),
        (AccessLogFilter::None, Some(&failure)),
    ] {
        log.write(settings(filter), &ended(&meta, failure));
    }
    log.flush(Duration::from_secs(10));
    let text = String::from_utf8(collected.0.lock().clone()).unwrap();
    let lines: Vec<bool> = text.lines().map(|line| line.contains("\"reason\":\"Connect\"")).collect();
    assert_eq!(lines, [true, false, true]);
}

/// Blocks its writer until told to go on.
struct Stuck(mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_is_stuck_costs_lines_never_time() {
    let (go_on, wait) = mpsc::channel();
    let log = AccessLog::to_writer(Stuck(wait)).unwrap();
    let meta = meta();
    let started = std::time::Instant::now();
    for _ in 0..3 * QUEUE {
        log.write(settings(AccessLogFilter::All), &ended(&meta, None));
    }
    assert!(log.dropped() > 0, "{} dropped", log.dropped());
    assert!(started.elapsed() < Duration::from_secs(30));
    drop(go_on);
}
