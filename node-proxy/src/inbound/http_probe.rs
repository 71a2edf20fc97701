//! HTTP probes: which request is the declared one, and what of it reaches the application. Pure.

use std::net::SocketAddr;

use thiserror::Error;

use crate::state::model::ProbeCheck;

/// A request head longer than this many bytes is no probe.
pub const LONGEST_HEAD: usize = 16 << 10;
const MOST_HEADERS: usize = 64;
/// Passed on as they are, besides the declared ones. Anything else a sender adds is dropped.
const HARMLESS: [&str; 2] = ["user-agent", "accept"];

/// Why bytes are not the declared probe.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum NotTheProbe {
    #[error("not an HTTP/1 request: {0}")]
    NotHttp(httparse::Error),
    #[error("the request head is longer than {LONGEST_HEAD} bytes")]
    TooLong,
    #[error("{0} is not declared as a probe")]
    NotDeclared(String),
    #[error("the request has a body, or another follows it")]
    More,
}

/// The request to send to the application; `None` while the head is not complete. `received` is all that came.
///
/// # Errors
/// When it cannot become a declared probe any more.
pub fn check(
    received: &[u8],
    declared: &[&ProbeCheck],
    destination: SocketAddr,
) -> Result<Option<Vec<u8>>, NotTheProbe> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(received).map_err(NotTheProbe::NotHttp)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial if received.len() >= LONGEST_HEAD => return Err(NotTheProbe::TooLong),
        httparse::Status::Partial => return Ok(None),
    };
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let not_declared = || NotTheProbe::NotDeclared(format!("{method} {target} with these headers"));
    let wanted = declared.iter().find_map(|check| match check {
        ProbeCheck::HttpGet { path, headers, https: false } => {
            let is_it = method == "GET" && is_path(target, path) && has_all(request.headers, headers);
            is_it.then_some(headers)
        }
        _ => None,
    });
    let wanted = wanted.ok_or_else(not_declared)?;
    let has_body = |header: &httparse::Header<'_>| {
        let name = header.name.to_ascii_lowercase();
        name == "transfer-encoding" || (name == "content-length" && header.value != b"0")
    };
    if received.len() > length || request.headers.iter().any(has_body) {
        return Err(NotTheProbe::More);
    }
    Ok(Some(rewrite(target, request.headers, wanted, destination)))
}

/// The kubelet sends a declared path without a leading slash with one.
fn is_path(target: &str, declared: &str) -> bool {
    target == declared || target.strip_prefix('/') == Some(declared)
}

fn has_all(headers: &[httparse::Header<'_>], declared: &[(String, String)]) -> bool {
    declared.iter().all(|(name, value)| {
        headers
            .iter()
            .any(|header| header.name.eq_ignore_ascii_case(name) && header.value == value.as_bytes())
    })
}

/// Made anew from what was declared, so that nothing else reaches the application; asks for one answer and the end.
fn rewrite(
    target: &str,
    headers: &[httparse::Header<'_>],
    declared: &[(String, String)],
    destination: SocketAddr,
) -> Vec<u8> {
    let mut request = format!("GET {target} HTTP/1.1\r\n").into_bytes();
    let mut push = |name: &str, value: &[u8]| {
        request.extend_from_slice(name.as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
    };
    let is_declared = |name: &str| declared.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    if !is_declared("host") {
        push("Host", destination.to_string().as_bytes());
    }
    for (name, value) in declared.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("connection")) {
        push(name, value.as_bytes());
    }
    for header in headers {
        let name = header.name.to_ascii_lowercase();
        if HARMLESS.contains(&name.as_str()) && !is_declared(&name) {
            push(header.name, header.value);
        }
    }
    push("Connection", b"close");
    request.extend_from_slice(b"\r\n");
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str, headers: &[(&str, &str)]) -> ProbeCheck {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ProbeCheck::HttpGet { path: path.to_owned(), headers, https: false }
    }

    fn checked(request: &str, declared: &[ProbeCheck]) -> Result<Option<String>, NotTheProbe> {
        let declared: Vec<_> = declared.iter().collect();
        let passed = check(request.as_bytes(), &declared, "10.1.0.5:8080".parse().unwrap())?;
        Ok(passed.map(|passed| String::from_utf8(passed).unwrap()))
    }

    const HEAD: &str =
        "Host: 10.1.0.5:8080\r\nUser-Agent: kube-probe/1.35\r\nAccept: */*\r\nConnection: close\r\n\r\n";

    #[test]
    fn the_declared_get_passes_made_anew() {
        let declared = [get("/live", &[]), get("/healthz?full=1", &[("X-Probe", "yes")])];
        let request =
            format!("GET /healthz?full=1 HTTP/1.1\r\nx-probe: yes\r\nX-Admin: 1\r\nCookie: a\r\n{HEAD}");
        assert_eq!(
            checked(&request, &declared).unwrap().unwrap(),
            "GET /healthz?full=1 HTTP/1.1\r\nHost: 10.1.0.5:8080\r\nX-Probe: yes\r\nUser-Agent: kube-probe/1.35\r\n\
             Accept: */*\r\nConnection: close\r\n\r\n"
        );
        let passed = checked(&format!("GET /healthz HTTP/1.1\r\n{HEAD}"), &[get("healthz", &[])]);
        assert!(passed.unwrap().unwrap().starts_with("GET /healthz HTTP/1.1\r\n"));
    }

    #[test]
    fn nothing_else_passes() {
        let declared = [get("/healthz", &[("X-Probe", "yes")]), ProbeCheck::TcpConnect];
        for request in [
            format!("GET /healthz HTTP/1.1\r\n{HEAD}"),
            format!("GET /healthz HTTP/1.1\r\nX-Probe: no\r\n{HEAD}"),
            format!("GET /healthz/ HTTP/1.1\r\nX-Probe: yes\r\n{HEAD}"),
            format!("GET /healthz?x HTTP/1.1\r\nX-Probe: yes\r\n{HEAD}"),
            format!("GET http://evil/healthz HTTP/1.1\r\nX-Probe: yes\r\n{HEAD}"),
            format!("POST /healthz HTTP/1.1\r\nX-Probe: yes\r\n{HEAD}"),
            format!("HEAD /healthz HTTP/1.1\r\nX-Probe: yes\r\n{HEAD}"),
        ] {
            assert!(matches!(checked(&request, &declared), Err(NotTheProbe::NotDeclared(_))), "{request}");
        }
        for more in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
            let request = format!("GET /healthz HTTP/1.1\r\nX-Probe: yes\r\n{more}{HEAD}");
            assert_eq!(checked(&request, &declared), Err(NotTheProbe::More));
        }
        let pipelined = format!("GET /healthz HTTP/1.1\r\nX-Probe: yes\r\n{HEAD}GET /admin HTTP/1.1\r\n\r\n");
        assert_eq!(checked(&pipelined, &declared), Err(NotTheProbe::More));
        assert!(matches!(checked("\x16\x03\x01\x02\x00", &declared), Err(NotTheProbe::NotHttp(_))));
    }

    #[test]
    fn an_unfinished_head_is_waited_for_until_it_is_too_long() {
        let declared = [get("/healthz", &[])];
        assert_eq!(checked("GET /heal", &declared), Ok(None));
        let long = format!("GET /healthz HTTP/1.1\r\nX: {}", "y".repeat(LONGEST_HEAD));
        assert_eq!(checked(&long, &declared), Err(NotTheProbe::TooLong));
    }
}
