use std::io::{Read, Write};
use std::sync::OnceLock;

use prometheus_client::metrics::counter::Counter;

use super::*;

/// The process has one log filter; tests share it.
fn log() -> LogControl {
    static CONTROL: OnceLock<LogControl> = OnceLock::new();
    CONTROL.get_or_init(|| crate::logging::control_for_tests("info")).clone()
}

fn call(server: &AdminServer, request: &str) -> String {
    let mut tcp = std::net::TcpStream::connect(server.address()).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(tcp, "{request} HTTP/1.1\r\nhost: admin\r\n\r\n").unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).unwrap();
    answer
}

fn start(readiness: &Readiness) -> AdminServer {
    let mut registry = Registry::default();
    let counter = Counter::<u64>::default();
    counter.inc();
    registry.register("culvert_tests", "Tests.", counter);
    Admin::new(readiness.clone(), Arc::new(registry), log())
        .route(Method::GET, "/config", |query| Answer::json(format!("{:?}", query.get("pod"))))
        .start("127.0.0.1:0".parse().unwrap())
        .unwrap()
}

#[test]
fn readiness_lists_what_is_missing() {
    let readiness = Readiness::default();
    let server = start(&readiness);
    assert!(call(&server, "GET /healthz/ready").starts_with("HTTP/1.1 200"));
    let (roots, objects) = (readiness.check("roots"), readiness.check("objects"));
    objects.ready();
    roots.missing("no file yet");
    let answer = call(&server, "GET /healthz/ready");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("roots: no file yet"), "{answer}");
    assert!(!answer.contains("objects"));
    roots.ready();
    assert!(readiness.is_ready());
    readiness.check("keys").satisfied();
    assert!(readiness.is_ready());
    drop(objects);
    assert!(call(&server, "GET /healthz/ready").contains("objects: has ended"));
    assert!(call(&server, "GET /healthz/live").starts_with("HTTP/1.1 200"));
}

#[test]
fn metrics_and_added_routes_are_served() {
    let server = start(&Readiness::default());
    assert!(call(&server, "GET /metrics").contains("culvert_tests_total 1"));
    assert!(call(&server, "GET /config?x=1&pod=a%2Fb+c").contains("Some(\"a/b c\")"));
    assert!(call(&server, "POST /config").starts_with("HTTP/1.1 405"));
    let unknown = call(&server, "GET /what");
    assert!(unknown.starts_with("HTTP/1.1 404") && unknown.contains("GET /config"), "{unknown}");
}

#[test]
fn a_stream_goes_on_until_the_client_leaves() {
    let server = Admin::new(Readiness::default(), Arc::new(Registry::default()), log())
        .stream("/ticks", "text/plain", |_| {
            let ticks = futures::stream::unfold(0, |tick| async move {
                sleep(Duration::from_millis(10)).await;
                Some((Bytes::from(format!("tick {tick}\n")), tick + 1))
            });
            ticks.boxed()
        })
        .start("127.0.0.1:0".parse().unwrap())
        .unwrap();
    let mut tcp = std::net::TcpStream::connect(server.address()).unwrap();
    tcp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(tcp, "GET /ticks HTTP/1.1\r\nhost: admin\r\n\r\n").unwrap();
    let mut answer = String::new();
    while !answer.contains("tick 9\n") {
        let mut bytes = [0; 1024];
        let length = tcp.read(&mut bytes).unwrap();
        assert!(length > 0, "{answer}");
        answer.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
    }
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(call(&server, "POST /ticks").starts_with("HTTP/1.1 405"));
    assert!(call(&server, "GET /what").contains("GET /ticks"));
}

#[test]
fn the_log_filter_is_read_and_set() {
    let server = start(&Readiness::default());
    assert!(call(&server, "POST /log?filter=a%3Db%3Dc").starts_with("HTTP/1.1 400"));
    assert!(call(&server, "POST /log").starts_with("HTTP/1.1 400"));
    assert!(call(&server, "POST /log?filter=debug").contains("debug"));
    assert!(call(&server, "GET /log").contains("debug"));
}

#[test]
fn a_dropped_server_ends() {
    let server = start(&Readiness::default());
    let address = server.address();
    drop(server);
    let gone = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        std::net::TcpStream::connect(address).is_err()
    });
    assert!(gone);
}
