//! Where a session stands in requests and responses: in a cookie or in a header of its own.

use std::fmt::Write as _;
use std::time::Duration;

use culvert_routing::model::PathMatch;
use culvert_routing::session::{Carrier, CookiePath, Lifetime, SessionPersistence, cookie_path};
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Sessions of several rules may go by one name: they stand beside each other, up to so many.
pub const MOST_TOKENS: usize = 4;
const BETWEEN: char = '.';
/// Values of one name that are looked at: a client may have a cookie for each of several paths.
const MOST_VALUES: usize = 8;

/// What a client shows under the name: for each value its tokens, whatever they are worth.
pub fn shown<'h>(headers: &'h HeaderMap, carrier: &Carrier) -> Vec<Vec<&'h str>> {
    let tokens = |value: &'h str| value.split(BETWEEN).take(MOST_TOKENS).collect();
    match carrier {
        Carrier::Header(name) => {
            let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
            values.take(MOST_VALUES).map(str::trim).map(tokens).collect()
        }
        Carrier::Cookie { name, .. } => {
            let lines = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
            let cookies = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.split_once('='));
            let named = cookies.filter(|(found, _)| found.trim() == name.as_str());
            named.take(MOST_VALUES).map(|(_, value)| tokens(unquoted(value.trim()))).collect()
        }
    }
}

/// A cookie's value may stand in quotes (RFC 6265, 4.1.1).
fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

/// The field of a response that gives a client its tokens, the first of which is valid for `left`, where it has an end.
pub fn field(
    persistence: &SessionPersistence,
    matched: &PathMatch,
    tokens: &[&str],
    left: Option<Duration>,
) -> Option<(HeaderName, HeaderValue)> {
    let value = tokens.join(&BETWEEN.to_string());
    let (name, lifetime, path) = match &persistence.carrier {
        Carrier::Header(name) => return Some((name.clone(), HeaderValue::from_str(&value).ok()?)),
        Carrier::Cookie { name, lifetime, path } => (name, lifetime, path),
    };
    let mut cookie = format!("{}={value}", name.as_str());
    // Writing to a string cannot fail.
    if *path == CookiePath::Matched {
        let _ = write!(cookie, "; Path={}", cookie_path(matched));
    }
    if let (Lifetime::Permanent, Some(left)) = (lifetime, left) {
        let _ = write!(cookie, "; Max-Age={}", left.as_secs());
    }
    // Without `Secure`: inside the mesh applications speak plain HTTP, and would not send it back (GEP-1619 allows for that).
    cookie.push_str("; HttpOnly; SameSite=Strict");
    Some((SET_COOKIE, HeaderValue::from_str(&cookie).ok()?))
}

#[cfg(test)]
mod tests {
    use culvert_routing::session::{CookieName, session_header};

    use super::*;

    fn cookie(lifetime: Lifetime, path: CookiePath) -> SessionPersistence {
        let name = CookieName::parse("s").unwrap();
        SessionPersistence { carrier: Carrier::Cookie { name, lifetime, path }, absolute_timeout: None }
    }

    #[test]
    fn cookies_are_found_in_every_line_and_nothing_else_is() {
        let cases: [(&[&str], &[&[&str]]); 8] = [
            (&["s=a"], &[&["a"]]),
            (&["x=1; s=a.b; y=2"], &[&["a", "b"]]),
            (&["s=a", "s=b"], &[&["a"], &["b"]]),
            (&["s=\"a\";s=b"], &[&["a"], &["b"]]),
            (&[" s = a "], &[&["a"]]),
            (&["ss=a; S=b; s; =s"], &[]),
            (&["s=a.b.c.d.e.f"], &[&["a", "b", "c", "d"]]),
            (&["s=a=b"], &[&["a=b"]]),
        ];
        for (lines, expected) in cases {
            let lines = lines.iter().map(|line| (COOKIE, HeaderValue::from_str(line).unwrap()));
            let headers = HeaderMap::from_iter(lines);
            let carrier = cookie(Lifetime::Session, CookiePath::Matched).carrier;
            assert_eq!(shown(&headers, &carrier), expected, "{headers:?}");
        }
        let many = HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(&"s=a;".repeat(50)).unwrap())]);
        let carrier = cookie(Lifetime::Session, CookiePath::Matched).carrier;
        assert_eq!(shown(&many, &carrier).len(), MOST_VALUES);
        let header = Carrier::Header(session_header("x-s").unwrap());
        let headers =
            HeaderMap::from_iter([(session_header("x-s").unwrap(), HeaderValue::from_static("a.b"))]);
        assert_eq!(shown(&headers, &header), [["a", "b"]]);
    }

    #[test]
    fn a_response_says_how_far_and_how_long_its_cookie_goes() {
        let said = |persistence: &SessionPersistence, left| {
            let field = field(persistence, &PathMatch::Prefix("/cart/".into()), &["a", "b"], left);
            let (name, value) = field.unwrap();
            format!("{name}: {}", value.to_str().unwrap())
        };
        let minute = Some(Duration::from_secs(60));
        assert_eq!(
            said(&cookie(Lifetime::Session, CookiePath::Matched), minute),
            "set-cookie: s=a.b; Path=/cart; HttpOnly; SameSite=Strict"
        );
        assert_eq!(
            said(&cookie(Lifetime::Permanent, CookiePath::Unset), minute),
            "set-cookie: s=a.b; Max-Age=60; HttpOnly; SameSite=Strict"
        );
        let header = SessionPersistence {
            carrier: Carrier::Header(session_header("X-S").unwrap()),
            absolute_timeout: minute,
        };
        assert_eq!(said(&header, minute), "x-s: a.b");
    }
}
