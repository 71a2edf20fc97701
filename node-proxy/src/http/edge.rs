//! What a Gateway tells backends of clients outside the mesh. Nothing is decided on it: anybody can write such fields, and
//! what a client wrote is passed on.

use std::net::IpAddr;

use http::header::{HeaderMap, HeaderName, HeaderValue};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Appends the client's address to `x-forwarded-for`, in one line, so that the last address of it is the one that was
/// seen; sets `x-forwarded-proto`.
pub fn introduce(headers: &mut HeaderMap, client: IpAddr) {
    let mut all: Vec<u8> = Vec::new();
    for line in headers.get_all(&FORWARDED_FOR).iter().filter(|line| !line.is_empty()) {
        all.extend_from_slice(line.as_bytes());
        all.extend_from_slice(b", ");
    }
    all.extend_from_slice(client.to_canonical().to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&all) {
        headers.insert(FORWARDED_FOR, value);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_address_is_the_one_that_was_seen() {
        for (given, client, expected) in [
            (&[][..], "10.0.0.1", "10.0.0.1"),
            (&["1.2.3.4"], "::ffff:10.0.0.1", "1.2.3.4, 10.0.0.1"),
            (&["1.2.3.4, 5.6.7.8", "", "who"], "fd00::1", "1.2.3.4, 5.6.7.8, who, fd00::1"),
        ] {
            let mut headers = HeaderMap::new();
            for line in given {
                headers.append(FORWARDED_FOR, HeaderValue::from_static(line));
            }
            headers.append(FORWARDED_PROTO, HeaderValue::from_static("https"));
            introduce(&mut headers, client.parse().unwrap());
            let lines: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
            assert_eq!(lines, [expected], "{given:?}");
            let protocols: Vec<_> = headers.get_all(FORWARDED_PROTO).iter().collect();
            assert_eq!(protocols, ["http"]);
        }
    }
}
