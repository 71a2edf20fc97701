//! The server and the client against each other, as processes.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

struct Server {
    child: Child,
    ports: Vec<u16>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// One port per behaviour.
    fn start(behaviours: &[&str]) -> Self {
        let free: Vec<TcpListener> =
            behaviours.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = free.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        drop(free);
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-echo"));
        command.arg("serve").env("POD_NAME", "me").stdout(Stdio::piped());
        for (behaviour, port) in behaviours.iter().zip(&ports) {
            command.args([format!("--{behaviour}"), port.to_string()]);
        }
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("serving"), "{line}");
        Self { child, ports }
    }

    fn at(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.ports[index])
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at(0))
    }
}

fn client(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_culvert-echo")).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn requests_are_sent_as_told_and_answers_told_whole() {
    let server = Server::start(&["http"]);
    let report = client(&[
        "get",
        &server.url("/a//b/./c%2Fd?status=201&header=x-b:1&header=x-b:2"),
        "--method",
        "POST",
        "--body",
        "abc",
        "--header",
        "Host: other.example",
        "--header",
        "x-a: 1",
    ]);
    assert_eq!((&report["last_status"], &report["pods"]["me"]), (&201.into(), &1.into()), "{report}");
    assert_eq!(report["last_headers"]["x-b"], "1, 2");
    let last = &report["last"];
    assert_eq!(last["path"], "/a//b/./c%2Fd?status=201&header=x-b:1&header=x-b:2");
    assert_eq!(last["headers"]["host"], serde_json::json!(["other.example"]));
    assert_eq!((&last["method"], &last["body_bytes"]), (&"POST".into(), &3.into()));

    let http2 = client(&["get", &server.url("/"), "--http2", "--header", "Host: other.example"]);
    assert_eq!(http2["last"]["headers"]["host"], serde_json::json!(["other.example"]), "{http2}");
    assert_eq!(http2["last"]["protocol"], "HTTP/2.0");
}

#[test]
fn bodies_travel_in_chunks_with_trailers_both_ways() {
    let server = Server::start(&["http"]);
    for version in [&[][..], &["--http2"]] {
        let url = server.url("/?trailer=done");
        let mut arguments = vec!["get", &url, "--method", "POST", "--body", "abc", "--chunked", "3"];
        arguments.extend(["--trailer", "x-sum: 9", "--header", "te: trailers"]);
        arguments.extend(version);
        let report = client(&arguments);
        assert_eq!(report["last"]["body_bytes"], 9, "{report}");
        assert_eq!(report["last"]["trailers"]["x-sum"], serde_json::json!(["9"]), "{report}");
        assert_eq!(report["last_trailers"]["x-echo-trailer"], "done", "{report}");
    }
    let streamed = client(&["get", &server.url("/?chunks=3&every=100ms")]);
    assert_eq!(streamed["last"], "chunk 0\nchunk 1\nchunk 2\n");
    let (first, whole) =
        (streamed["last_first_byte_ms"].as_u64().unwrap(), streamed["last_ms"].as_u64().unwrap());
    assert!(first + 150 <= whole && whole >= 200, "{streamed}");
    let broken = client(&["get", &server.url("/?chunks=3&abort=1")]);
    assert_eq!((&broken["requests"], &broken["ok"]), (&1.into(), &0.into()), "{broken}");
}

#[test]
fn raw_bytes_show_what_comes_before_the_answer() {
    let server = Server::start(&["http", "script"]);
    let head = r"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let report = client(&["raw", &server.at(0), "--text", head, "--then", "hi"]);
    let text = report["answer_text"].as_str().unwrap();
    assert!(text.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"), "{text}");
    assert!(text.contains("\"expect\":[\"100-continue\"]") && text.contains("\"body_bytes\":2"), "{text}");
    let unread = client(&["raw", &server.at(0), "--text", &head.replace(" / ", " /?unread=1&status=417 ")]);
    assert!(unread["answer_text"].as_str().unwrap().starts_with("HTTP/1.1 417"), "{unread}");

    let told = "485454502f312e31203230302078780d0a0d0a";
    let script = client(&["raw", &server.at(1), "--text", &format!(r"GET /?hex={told} HTTP/1.1\r\n\r\n")]);
    assert_eq!(script["answer"], told);
    let received = client(&["get", &format!("http://{}/received", server.at(1))]);
    assert_eq!(received["last"]["connections"], 1, "{received}");
    assert_eq!(received["last"]["bytes"], 61, "{received}");
}

#[test]
fn messages_are_echoed_after_an_upgrade() {
    let server = Server::start(&["http"]);
    let report = client(&["ws", &server.url("/x/ws"), "--count", "3"]);
    assert_eq!(
        (&report["status"], &report["ok"], &report["closed"]),
        (&101.into(), &3.into(), &true.into()),
        "{report}"
    );
    assert_eq!(report["pod"], "me");
    let refused = client(&["ws", &server.url("/elsewhere")]);
    assert_eq!((&refused["status"], &refused["ok"]), (&200.into(), &0.into()), "{refused}");
}

#[test]
fn any_grpc_method_is_answered_and_statuses_are_told() {
    let server = Server::start(&["grpc"]);
    let report = client(&[
        "grpc",
        &server.at(0),
        "--service",
        "shop.Cart",
        "--method",
        "Add",
        "--header",
        "x-a: 1",
        "--count",
        "2",
    ]);
    assert_eq!((&report["status"], &report["pods"]["me"]), (&0.into(), &2.into()), "{report}");
    assert_eq!(
        (&report["last"]["path"], &report["last"]["headers"]["x-a"]),
        (&"/shop.Cart/Add".into(), &"1".into())
    );
    assert_eq!(report["last_headers"]["x-echo-pod"], "me");
    let failed = client(&["grpc", &server.at(0), "--code", "7"]);
    assert_eq!(
        (&failed["status"], &failed["pod"], &failed["ok"]),
        (&7.into(), &"me".into(), &0.into()),
        "{failed}"
    );
    let stream = client(&["grpc", &server.at(0), "--call", "stream", "--count", "3", "--interval", "1"]);
    assert_eq!((&stream["ok"], &stream["last"]["sequence"]), (&3.into(), &2.into()), "{stream}");
    assert_eq!(client(&["grpc", &server.at(0), "--call", "health"])["ok"], 1);
}

#[test]
fn who_greets_is_counted_in_the_clear_and_over_tls() {
    let server = Server::start(&["tls", "tcp-first", "silent"]);
    let report = client(&["greet", &server.at(0), "--tls", "a.example", "--count", "2"]);
    assert_eq!((&report["ok"], &report["pods"]["me"]), (&2.into(), &2.into()), "{report}");
    let report = client(&["greet", &server.at(0), "--tls", "-"]);
    assert_eq!(report["ok"], 1, "no server name is none: {report}");
    let report = client(&["greet", &server.at(1)]);
    assert_eq!(report["pods"]["me"], 1, "{report}");
    let report = client(&["greet", &server.at(1), "--tls", "a.example"]);
    assert_eq!(report["ok"], 0, "a banner is no TLS: {report}");
    let report = client(&["greet", &server.at(2), "--timeout", "100"]);
    assert_eq!(report["errors"]["timeout"], 1, "{report}");
}
