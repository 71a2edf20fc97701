//! Whatever a client sends, every answer is Culvert's: nothing passes the reader that hyper would answer itself.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Checked, ReadLimits, Reading};

const HEAD: usize = 128 << 10;

/// What comes back to a client that sends these bytes and no more.
async fn answers(bytes: &[u8]) -> String {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let limits =
        ReadLimits { head_bytes: HEAD, head: Duration::from_secs(1), body_idle: Duration::from_secs(1) };
    let io = Checked::new(server, Rc::<Reading>::default(), limits, &crate::tunnel::testing::limits());
    let service = service_fn(|_| async {
        let mut response = Response::new(Full::<Bytes>::default());
        response.headers_mut().insert("ours", http::HeaderValue::from_static("yes"));
        response.headers_mut().insert("connection", http::HeaderValue::from_static("close"));
        Ok::<_, Infallible>(response)
    });
    let serving = http1::Builder::new()
        .header_read_timeout(None)
        .max_header_size(2 * HEAD)
        .max_buf_size(4 * HEAD)
        .serve_connection(TokioIo::new(io), service);
    client.write_all(bytes).await.unwrap();
    client.shutdown().await.unwrap();
    // How it ends is not asked here.
    let _ = serving.await;
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    answer
}

fn check(bytes: &[u8]) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let answer = runtime.block_on(answers(bytes));
    let told = answer.matches("HTTP/1.").count() - answer.matches(" 100 Continue").count();
    assert_eq!(told, answer.matches("ours: yes").count(), "{:?}: {answer}", String::from_utf8_lossy(bytes));
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        "/[!-~]{0,20}",
        "http://[!-~]{0,20}",
        "http://(a|\\[::1\\]|a@b|\\[|%|a:b)(:[0-9]{0,6})?(/[!-~]{0,5})?",
        "[!-~]{1,10}",
    ]
}

fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        "[!-~]{1,8}:[ -~]{0,8}",
        "(Host|Content-Length|Transfer-Encoding|Connection|Upgrade|Expect|TE):[ ]?(a|0|3|chunked|close|upgrade|100-continue|x, y)?",
    ]
}

proptest! {
    #[test]
    fn hyper_answers_nothing_by_itself(
        method in "(GET|POST|HEAD|OPTIONS|CONNECT|[!-~]{1,8})",
        target in target(),
        version in "1\\.[01]",
        fields in proptest::collection::vec(field(), 0..5),
        body in "[ -~]{0,8}",
    ) {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        check(format!("{method} {target} HTTP/{version}\r\nHost: a\r\n{fields}\r\n{body}").as_bytes());
        check(format!("{method} {target} HTTP/{version}\r\n{fields}\r\n{body}").as_bytes());
    }
}

#[test]
fn sizes_at_the_limits_of_hyper_are_judged_before() {
    for path in [65_533, 65_534, 65_535, 100_000] {
        check(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(path)).as_bytes());
    }
    for value in [HEAD - 60, HEAD - 40, HEAD - 30, HEAD, 2 * HEAD + 1] {
        check(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(value)).as_bytes());
    }
    for fields in [99, 100, 101, 1000] {
        check(format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(fields)).as_bytes());
        check(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(fields)).as_bytes());
    }
}

#[test]
fn a_target_of_connect_that_is_no_uri_is_judged_before() {
    for target in ["http:///", "http://", "[", "a:b:c", "a@", "%", ":"] {
        check(format!("CONNECT {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    }
}
