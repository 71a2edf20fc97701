//! Fields that are for one connection only (RFC 9110, 7.6.1), and what else must not cross a proxy.

use http::header::{
    CONNECTION, CONTENT_LENGTH, Entry, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Removes what was for the connection that the message came on. Of `TE` the word `trailers` stays: it says what the
/// client can take, and the proxy passes trailers on. Returns the protocol that the message wants to switch to, or agrees
/// to: `Upgrade` named in `Connection`. Never `h2c`, which would be a second protocol inside a routed connection.
pub fn strip(headers: &mut HeaderMap) -> Option<HeaderValue> {
    // Most requests have none of them, and looking at the names is cheaper than looking each of them up.
    if !headers.keys().any(is_of_connection) {
        return None;
    }
    let upgrade = headers.remove(UPGRADE);
    let te = headers.remove(TE);
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(HTTP2_SETTINGS);
    headers.remove(TRANSFER_ENCODING);
    let mut wants_upgrade = false;
    for named in take_all(headers, CONNECTION) {
        wants_upgrade |= strip_named(headers, &named);
    }
    if te.is_some_and(|te| has_word(&te, "trailers")) {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    upgrade.filter(|protocol| wants_upgrade && !has_word(protocol, "h2c"))
}

fn is_of_connection(name: &HeaderName) -> bool {
    [CONNECTION, UPGRADE, TE, TRANSFER_ENCODING, KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS].contains(name)
}

/// All lines of a field; without any, nothing is allocated.
fn take_all(headers: &mut HeaderMap, name: HeaderName) -> Vec<HeaderValue> {
    match headers.entry(name) {
        Entry::Occupied(lines) => lines.remove_entry_mult().1.collect(),
        Entry::Vacant(_) => Vec::new(),
    }
}

/// Removes the fields that `Connection` names; says whether it names `Upgrade`.
fn strip_named(headers: &mut HeaderMap, named: &HeaderValue) -> bool {
    let mut wants_upgrade = false;
    for name in words(named) {
        if name.eq_ignore_ascii_case("upgrade") {
            wants_upgrade = true;
        } else if !name.eq_ignore_ascii_case("close") && !name.eq_ignore_ascii_case("keep-alive") {
            // What the message is about, and where it ends, is for everybody.
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) if name != HOST && name != CONTENT_LENGTH && name != TE => {
                    headers.remove(name);
                }
                _ => {}
            }
        }
    }
    wants_upgrade
}

fn words(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty())
}

fn has_word(value: &HeaderValue, wanted: &str) -> bool {
    words(value).any(|word| word.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(wanted))
}

/// Removes from trailers what may only stand in a head: framing, routing, and what the connection needs (RFC 9110, 6.5.1).
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip(trailers);
    for name in [HOST, CONTENT_LENGTH, TE, TRAILER, PROXY_AUTHENTICATE] {
        trailers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn fields_of_the_connection_stay_behind() {
        for (before, after, upgrade) in [
            (&[("connection", "close"), ("accept", "a")][..], &[("accept", "a")][..], None),
            (&[("connection", "x-a, X-B"), ("x-a", "1"), ("x-b", "2"), ("x-c", "3")], &[("x-c", "3")], None),
            (&[("connection", "x-a"), ("connection", "x-b"), ("x-a", "1"), ("x-b", "2")], &[], None),
            (&[("keep-alive", "5"), ("proxy-connection", "x"), ("transfer-encoding", "chunked")], &[], None),
            (&[("te", "trailers, gzip;q=0.5")], &[("te", "trailers")], None),
            (&[("te", "gzip"), ("connection", "te")], &[], None),
            (&[("te", "trailers"), ("connection", "te")], &[("te", "trailers")], None),
            (
                &[("connection", "host, content-length"), ("host", "a"), ("content-length", "3")],
                &[("host", "a"), ("content-length", "3")],
                None,
            ),
            (&[("connection", "Upgrade"), ("upgrade", "websocket")], &[], Some("websocket")),
            (&[("upgrade", "websocket")], &[], None),
            (
                &[("connection", "upgrade, http2-settings"), ("upgrade", "h2c"), ("http2-settings", "AA")],
                &[],
                None,
            ),
            (&[("connection", "keep-alive, upgrade"), ("upgrade", "foo, h2c")], &[], None),
        ] {
            let mut stripped = headers(before);
            let found = strip(&mut stripped);
            assert_eq!(stripped, headers(after), "{before:?}");
            assert_eq!(found.as_ref().map(|value| value.to_str().unwrap()), upgrade, "{before:?}");
        }
    }

    #[test]
    fn trailers_cannot_change_what_the_head_said() {
        let mut trailers = headers(&[
            ("grpc-status", "0"),
            ("content-length", "5"),
            ("host", "b"),
            ("transfer-encoding", "x"),
            ("te", "trailers"),
        ]);
        strip_trailers(&mut trailers);
        assert_eq!(trailers, headers(&[("grpc-status", "0")]));
    }
}
