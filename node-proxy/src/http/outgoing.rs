//! A request's head as it is sent on: in the version of HTTP that the endpoint speaks.

use http::header::{CONNECTION, COOKIE, EXPECT, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Version as HttpVersion};
use http_body::Body;

use super::expect::{Gate, gate};
use super::hop;
use super::interim::callback;
use super::request_body::RequestBody;
use super::respond::Instead;
use super::serve::ClientConnection;
use super::target::{Target, path_and_query};
use crate::outbound::protocol::Version;
use crate::reason::Reason;
use crate::telemetry::Failure;

/// How the request differs from the one that came.
pub struct Outgoing {
    /// As the client wrote it; empty if it did not.
    authority: Option<HeaderValue>,
    /// Rewritten.
    pub host: Option<String>,
    /// Rewritten or brought to its normal form.
    pub path: Option<String>,
    /// The protocol it wants to switch to.
    upgrade: Option<HeaderValue>,
}

impl Outgoing {
    /// Takes away what was for the client's connection only.
    pub fn new(parts: &mut Parts, target: &Target<'_>, uri: &Uri, authority: Option<HeaderValue>) -> Self {
        let is_as_written = *target.path == *uri.path() || *target.path == *"*";
        let path = (!is_as_written).then(|| target.path.clone().into_owned());
        let upgrade = hop::strip(&mut parts.headers).filter(|_| parts.version == HttpVersion::HTTP_11);
        Self { authority, host: None, path, upgrade }
    }
}

/// Who is told of interim responses, and whose expectation is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Client,
    /// Of a mirror's answers.
    Nobody,
}

impl Outgoing {
    /// The same for a copy, as it stood at its mirror.
    pub fn copied(&self, host: Option<String>, path: Option<String>) -> Self {
        let path = path.or_else(|| self.path.clone());
        Self { authority: self.authority.clone(), host, path, upgrade: None }
    }

    /// Whether the connection is to carry another protocol.
    pub fn wants_upgrade(&self) -> bool {
        self.upgrade.is_some()
    }

    /// Makes the head what the endpoint's version of HTTP wants; says whether the body waits for the server.
    pub fn prepare(
        self,
        parts: &mut Parts,
        body: &RequestBody,
        version: Version,
        connection: &ClientConnection,
        told: Told,
    ) -> Result<Option<Gate>, Instead> {
        let client = parts.version;
        let bad = |error: &dyn std::fmt::Display| {
            Instead::Refused(Failure::new(Reason::BadRequest, format!("the request to send on: {error}")))
        };
        let authority = self.authority(connection)?;
        let path = match &self.path {
            Some(path) => path_and_query(path, parts.uri.query()).map_err(|error| bad(&error))?,
            None => parts.uri.path_and_query().cloned().unwrap_or_else(|| root(&parts.method)),
        };
        let waits = parts
            .headers
            .get(EXPECT)
            .filter(|_| told == Told::Client)
            .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        parts.headers.remove(EXPECT);
        let mut expectation = None;
        match version {
            Version::Http1 => {
                if client == HttpVersion::HTTP_2 {
                    join_cookies(&mut parts.headers);
                }
                parts.headers.insert(HOST, authority);
                parts.uri = Uri::from(path);
                parts.version = HttpVersion::HTTP_11;
                if !body.is_end_stream() && body.size_hint().exact().is_none() {
                    // Said outright, or a body of GET would be left out.
                    parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                }
                if let Some(protocol) = self.upgrade.filter(|_| body.is_end_stream()) {
                    parts.headers.insert(UPGRADE, protocol);
                    parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                }
                if waits && client == HttpVersion::HTTP_11 && !body.is_end_stream() {
                    parts.headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
                    expectation = Some(gate());
                }
            }
            Version::Http2 => {
                parts.headers.remove(HOST);
                let mut uri = http::uri::Parts::default();
                uri.scheme = Some(Scheme::HTTP);
                let authority = Authority::try_from(authority.as_bytes()).map_err(|error| bad(&error))?;
                uri.authority = Some(authority);
                uri.path_and_query = Some(path);
                parts.uri = Uri::from_parts(uri).map_err(|error| bad(&error))?;
                parts.version = HttpVersion::HTTP_2;
            }
        }
        parts.extensions.clear();
        let (gate, opener) = expectation.unzip();
        if version == Version::Http1 && client == HttpVersion::HTTP_11 && told == Told::Client {
            connection.interim.open();
            let tell = callback(connection.interim.clone(), opener);
            let mut request = Request::new(());
            hyper::ext::on_informational(&mut request, move |told| tell(told.status(), told.headers()));
            parts.extensions = std::mem::take(request.extensions_mut());
        }
        Ok(gate)
    }

    /// The host to send: rewritten, else as the client wrote it (whatever a header filter made of it), else where the
    /// client connected to.
    fn authority(&self, connection: &ClientConnection) -> Result<HeaderValue, Instead> {
        let bad = |_| Instead::Refused(Failure::new(Reason::BadRequest, "the host to send on is not one"));
        match (&self.host, &self.authority) {
            (Some(host), _) => HeaderValue::from_str(host).map_err(bad),
            (None, Some(authority)) => Ok(authority.clone()),
            (None, None) => HeaderValue::from_str(&connection.outbound.destination.to_string()).map_err(bad),
        }
    }
}

fn root(method: &Method) -> PathAndQuery {
    PathAndQuery::from_static(if *method == Method::OPTIONS { "*" } else { "/" })
}

/// HTTP/2 may split cookies into several fields; HTTP/1 has one (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let joined: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&joined.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}
