//! Session persistence (GEP-1619), of a rule or of an XBackendTrafficPolicy.

use std::fmt::Write as _;
use std::time::Duration;

use culvert_objects::types::{CookieConfig, SessionPersistence as Written};
use culvert_routing::model::{RouteKey, SessionPersistence};
use culvert_routing::session::{Carrier, CookieName, CookiePath, LONGEST_NAME, Lifetime, session_header};
use http::HeaderName;
use sha2::{Digest as _, Sha256};

use super::duration;
use super::reader::{At, Reader};

/// What is said of sessions, as long as it is not known whose they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftSession {
    by: By,
    absolute_timeout: Option<Duration>,
}

/// None of the names: one that is made of the rule's.
#[derive(Clone, Debug, PartialEq, Eq)]
enum By {
    Cookie(Option<CookieName>, Lifetime),
    Header(Option<HeaderName>),
}

pub fn read(of: &Written, at: At<'_>, reader: &mut Reader) -> DraftSession {
    reader.unknown(at, &of.rest);
    let absolute_timeout = of.absolute_timeout.as_deref().and_then(|text| {
        let read =
            duration::parse(text).map_err(|message| reader.unsupported(at.field("absoluteTimeout"), message));
        read.ok().filter(|timeout| !timeout.is_zero())
    });
    let name = of.session_name.as_deref().filter(|name| !name.is_empty());
    let by = match of.kind.as_deref() {
        Some("Header") => {
            if of.cookie_config.is_some() {
                reader.unsupported(at.field("cookieConfig"), "expected with type Cookie only");
            }
            By::Header(named(name, session_header, "a header that means nothing else", at, reader))
        }
        other => {
            if let Some(other) = other.filter(|other| *other != "Cookie") {
                let message =
                    format!("this version of Culvert does not do {other:?}, expected Cookie or Header");
                reader.unsupported(at.field("type"), message);
            }
            let expected = "a cookie (RFC 6265) that is not for TLS only";
            let name = named(name, CookieName::parse, expected, at, reader);
            let config = of.cookie_config.as_ref();
            By::Cookie(
                name,
                config.map_or(Lifetime::Session, |of| lifetime(of, at.field("cookieConfig"), reader)),
            )
        }
    };
    if matches!(by, By::Cookie(_, Lifetime::Permanent)) && absolute_timeout.is_none() {
        let message = "expected more than 0s, for cookieConfig.lifetimeType is Permanent";
        reader.unsupported(at.field("absoluteTimeout"), message);
    }
    DraftSession { by, absolute_timeout }
}

fn named<T>(
    name: Option<&str>,
    parse: fn(&str) -> Option<T>,
    expected: &str,
    at: At<'_>,
    reader: &mut Reader,
) -> Option<T> {
    let name = name?;
    let parsed = parse(name);
    if parsed.is_none() {
        let message = format!(
            "invalid value: {name:?}, expected the name of {expected}, of at most {LONGEST_NAME} bytes"
        );
        reader.unsupported(at.field("sessionName"), message);
    }
    parsed
}

fn lifetime(of: &CookieConfig, at: At<'_>, reader: &mut Reader) -> Lifetime {
    reader.unknown(at, &of.rest);
    match of.lifetime_type.as_deref() {
        None | Some("Session") => Lifetime::Session,
        Some("Permanent") => Lifetime::Permanent,
        Some(other) => {
            let message =
                format!("this version of Culvert does not do {other:?}, expected Session or Permanent");
            reader.unsupported(at.field("lifetimeType"), message);
            Lifetime::Session
        }
    }
}

impl DraftSession {
    /// As it is in force for a rule, by its name or its place in the route.
    pub fn of_rule(&self, route: &RouteKey, rule: &str, path: CookiePath) -> SessionPersistence {
        let owner = || format!("{}/{}/{}/{rule}", route.kind, route.namespace, route.name);
        self.in_force(|| made_name(&owner()), path)
    }

    /// As it is in force for calls of a Service that no route decides about: all of its paths are one session's.
    pub fn of_service(&self, namespace: &str, name: &str) -> SessionPersistence {
        self.in_force(|| made_name(&format!("Service/{namespace}/{name}")), CookiePath::Unset)
    }

    fn in_force(&self, made: impl Fn() -> String, path: CookiePath) -> SessionPersistence {
        let carrier = match &self.by {
            By::Cookie(name, lifetime) => Carrier::Cookie {
                name: name
                    .clone()
                    .or_else(|| CookieName::parse(&made()))
                    .expect("letters, digits and hyphens"),
                lifetime: *lifetime,
                path,
            },
            By::Header(name) => Carrier::Header(
                name.clone().or_else(|| session_header(&made())).expect("letters, digits and hyphens"),
            ),
        };
        SessionPersistence { carrier, absolute_timeout: self.absolute_timeout }
    }
}

/// The same for as long as what keeps the sessions is called the same (GEP-1619, Name: unique unless given).
fn made_name(owner: &str) -> String {
    let digest = Sha256::digest(owner);
    digest[..4].iter().fold("culvert-session-".to_owned(), |mut name, byte| {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}
