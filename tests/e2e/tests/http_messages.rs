//! What must survive a proxy of requests: every shape of message, and every way to write where it goes.

use culvert_e2e::routes::{backend, route, service_parent};
use culvert_e2e::{Labelled, Mesh, Pod, SOON, Shared, Shop, eventually};
use serde_json::{Value, json};

static MESH: Shared = Shared::new("http-messages");

/// A client and a server with a route between them, so that everything is parsed.
fn open(mesh: &Mesh, name: &str) -> Pod {
    let shop = Shop::new(name, Labelled::Yes);
    let (client, _) = mesh.open(&shop, name);
    let rules = json!([{"matches": [{"path": {"value": "/"}}], "backendRefs": [backend("server")]}]);
    mesh.apply(&route("HTTPRoute", name, "all", &service_parent(name, "server"), &rules));
    eventually("the route is in force", SOON, || {
        let report = raw(mesh, &client, "nonsense\r\n\r\n");
        if report["answer"] == "" { Ok(()) } else { Err(report.to_string()) }
    });
    client
}

fn get(mesh: &Mesh, client: &Pod, path: &str, more: &[&str]) -> Value {
    let url = format!("http://server:8080{path}");
    mesh.echo(client, &[&["get", url.as_str()], more].concat())
}

/// These bytes; the report has the start of what came back, decoded under `answer`.
fn raw(mesh: &Mesh, client: &Pod, text: &str) -> Value {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut report = mesh.echo(client, &["raw", "server:8080", "--hex", &hex, "--timeout", "3000"]);
    let answer = report["answer"].as_str().unwrap_or_default();
    let bytes: Vec<u8> = (0..answer.len() / 2)
        .filter_map(|at| u8::from_str_radix(&answer[2 * at..2 * at + 2], 16).ok())
        .collect();
    report["answer"] = json!(String::from_utf8_lossy(&bytes));
    report
}

#[test]
fn websockets_are_upgraded() {
    let mesh = MESH.beside();
    let client = open(&mesh, "websockets");
    let report = mesh.echo(&client, &["ws", "http://server:8080/ws", "--count", "50"]);
    assert_eq!(report["status"], 101, "{report}");
    assert_eq!((report["ok"].as_u64(), report["closed"].as_bool()), (Some(50), Some(true)), "{report}");
}

#[test]
fn bodies_and_trailers_go_both_ways() {
    let mesh = MESH.beside();
    let client = open(&mesh, "bodies");
    for http2 in [&[][..], &["--http2"]] {
        let with = |more: &[&'static str]| [more, http2].concat();
        let report = get(&mesh, &client, "/", &with(&["--method", "POST", "--body", "hello"]));
        assert_eq!(report["last"]["body_bytes"], 5, "{report}");
        let chunked = with(&["--method", "POST", "--body", "hello", "--chunked", "30"]);
        let report = get(&mesh, &client, "/", &chunked);
        assert_eq!(report["last"]["body_bytes"], 150, "{report}");
        let report = get(
            &mesh,
            &client,
            "/",
            &with(&["--method", "POST", "--body", "x", "--chunked", "--trailer", "x-sum: 1"]),
        );
        assert_eq!(report["last"]["trailers"]["x-sum"], json!(["1"]), "{report}");
        let report = get(&mesh, &client, "/?trailer=done", &with(&["--header", "te: trailers"]));
        assert_eq!(report["last_trailers"]["x-echo-trailer"], "done", "{report}");
        let report = get(&mesh, &client, "/?chunks=5&every=200ms", http2);
        assert_eq!(report["ok"], 1, "{report}");
        let first = report["last_first_byte_ms"].as_u64().unwrap_or(u64::MAX);
        let all = report["last_ms"].as_u64().unwrap_or(0);
        assert!(first < 400 && all >= 700, "passed on as it comes: {report}");
        let report = get(&mesh, &client, "/?size=20000000", http2);
        assert_eq!(
            (report["ok"].as_u64(), report["bytes"].as_u64()),
            (Some(1), Some(20_000_000)),
            "{report}"
        );
        let report = get(&mesh, &client, "/?chunks=3&abort=1", http2);
        assert_eq!(report["ok"], 0, "a body that breaks off is not made whole: {report}");
    }
}

#[test]
fn heads_without_a_body() {
    let mesh = MESH.beside();
    let client = open(&mesh, "heads");
    for http2 in [&[][..], &["--http2"]] {
        let report = get(&mesh, &client, "/", &[&["--method", "HEAD"], http2].concat());
        assert_eq!(
            (report["last_status"].as_u64(), report["bytes"].as_u64()),
            (Some(200), Some(0)),
            "{report}"
        );
        let length =
            report["last_headers"]["content-length"].as_str().and_then(|text| text.parse::<u64>().ok());
        assert!(length > Some(50), "of the body that is not there: {report}");
        for status in ["204", "304"] {
            let report = get(&mesh, &client, &format!("/?status={status}"), http2);
            assert_eq!(report["last_status"].to_string(), status, "{report}");
            assert_eq!(report["bytes"], 0, "{report}");
        }
    }
    let two =
        "HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET /?status=418 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let report = raw(&mesh, &client, two);
    assert!(report["answer"].as_str().is_some_and(|text| text.contains("200 OK")), "{report}");
}

#[test]
fn requests_in_a_row_are_answered_in_order() {
    let mesh = MESH.beside();
    let client = open(&mesh, "pipelining");
    let one = |status: u16, delay: u16| {
        format!("GET /?status={status}&delay={delay}&size=0 HTTP/1.1\r\nHost: a\r\n\r\n")
    };
    let text = [one(201, 300), one(202, 0), one(203, 100)].concat()
        + "GET /?size=0 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    // `raw` keeps only the start: the order is read from the access log's times.
    let report = mesh.echo(&client, &["raw", "server:8080", "--hex", &hex, "--timeout", "5000"]);
    assert_eq!(report["outcomes"], json!({"closed": 1}), "{report}");
    let first = "HTTP/1.1 201".bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(report["answer"].as_str().is_some_and(|answer| answer.starts_with(&first)), "{report}");
}

#[test]
fn a_client_that_expects_100_is_told_to_go_on_or_not() {
    let mesh = MESH.beside();
    let client = open(&mesh, "expect");
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n";
    let report = raw(&mesh, &client, &format!("{head}hello"));
    let answer = report["answer"].as_str().unwrap_or_default();
    assert!(answer.contains("200 OK"), "{report}");
    let head = head.replace("POST /", "POST /?unread=1&status=403");
    let answer = raw(&mesh, &client, &head)["answer"].as_str().unwrap_or_default().to_owned();
    assert!(answer.contains(" 403 "), "the final answer without a body sent: {answer}");
    assert!(!answer.contains("100 Continue"), "{answer}");
}

#[test]
fn what_is_too_large_is_refused() {
    let mesh = MESH.beside();
    let client = open(&mesh, "large");
    let fits = format!("x-large: {}", "a".repeat(30_000));
    let report = get(&mesh, &client, "/", &["--header", &fits]);
    assert_eq!(report["last_status"], 200, "{}", report["last_error"]);
    let large = format!("x-large: {}", "a".repeat(90_000));
    for http2 in [&[][..], &["--http2"]] {
        let report = get(&mesh, &client, "/", &[&["--header", large.as_str()], http2].concat());
        assert_eq!(report["last_status"], 431, "{http2:?} {}", report["last_error"]);
    }
    let report = get(&mesh, &client, "/", &[]);
    assert_eq!(report["last_status"], 200, "{report}");
}

#[test]
fn connect_is_no_request() {
    let mesh = MESH.beside();
    let client = open(&mesh, "connect");
    let report = raw(&mesh, &client, "CONNECT server:8080 HTTP/1.1\r\nHost: server:8080\r\n\r\n");
    let answer = report["answer"].as_str().unwrap_or_default();
    assert!(answer.contains("ConnectRefused"), "{report}");
    assert!(answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 5"), "{report}");
}

#[test]
fn paths_are_normalized_before_they_are_matched() {
    let mesh = MESH.beside();
    let name = "paths";
    let client = open(&mesh, name);
    let rules = json!([
        {"matches": [{"path": {"value": "/"}}], "backendRefs": [backend("server")]},
        {"matches": [{"path": {"value": "/admin"}}], "backendRefs": []},
    ]);
    mesh.apply(&route("HTTPRoute", name, "all", &service_parent(name, "server"), &rules));
    eventually("the rule is in force", SOON, || {
        let report = get(&mesh, &client, "/admin", &[]);
        if report["last_status"] == 500 { Ok(()) } else { Err(report.to_string()) }
    });
    for path in
        ["/admin/x", "//admin", "/./admin", "/a/../admin", "/%61dmin", "/a/%2e%2e/admin", "/a/b/../../admin/"]
    {
        let report = get(&mesh, &client, path, &[]);
        assert_eq!(report["last_status"], 500, "{path} is /admin: {report}");
    }
    for (path, seen) in [
        ("/%2Fadmin", "/%2Fadmin"),
        ("/a%2F..%2Fadmin", "/a%2F..%2Fadmin"),
        ("/administrator", "/administrator"),
        ("//a///b/./c?x=//y/../z", "/a/b/c?x=//y/../z"),
        ("/%7euser", "/~user"),
    ] {
        let report = get(&mesh, &client, path, &[]);
        assert_eq!(report["last"]["path"], seen, "{path}: {report}");
    }
    for path in ["/..", "/a/../../b", "/%00", "/%zz", "/a%"] {
        let answer =
            raw(&mesh, &client, &format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        assert!(
            answer["answer"].as_str().is_some_and(|text| text.starts_with("HTTP/1.1 400")),
            "{path}: {answer}"
        );
    }
}

#[test]
fn a_host_may_be_written_in_several_ways() {
    let mesh = MESH.beside();
    let client = open(&mesh, "hosts");
    for host in ["server", "server:8080", "server.hosts.", "SERVER", "[fd00::1]:8080", "10.0.0.1"] {
        let header = format!("Host: {host}");
        let report = get(&mesh, &client, "/", &["--header", &header]);
        assert_eq!(report["last_status"], 200, "{host}: {report}");
        assert_eq!(report["last"]["headers"]["host"], json!([host]), "passed on as it is: {report}");
    }
    let report = get(&mesh, &client, "/x?y=z", &["--absolute"]);
    assert_eq!(
        (report["last_status"].as_u64(), &report["last"]["path"]),
        (Some(200), &json!("/x?y=z")),
        "{report}"
    );
    for host in ["a b", "a:b:c", "a@b", "a/b", ""] {
        let answer =
            raw(&mesh, &client, &format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert!(
            answer["answer"].as_str().is_some_and(|text| text.starts_with("HTTP/1.1 400")),
            "{host}: {answer}"
        );
    }
}

#[test]
fn a_client_that_gives_up_is_noted_as_such() {
    let mesh = MESH.beside();
    let (_, client) = mesh.open_versions("impatient");
    let url = "http://server:8080/gives-up?delay=20s";
    let report = mesh.echo(&client, &["get", url, "--timeout", "500"]);
    assert_eq!(report["errors"]["timeout"], 1, "{report}");
    let line = mesh.access_log("node1", &["ClientCancelled", "/gives-up"]);
    assert_eq!(line["response_code"], 499, "{line}");
}
