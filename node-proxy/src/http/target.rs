//! Who and what a request asks for: one host, however it is named, and one path, however it is written.

use std::borrow::Cow;

use culvert_routing::host::{Host, HostError};
use culvert_routing::path::{self, PathError};
use http::header::{HOST, HeaderMap, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use http::{Method, Version};
use thiserror::Error;

/// What a request asks for.
#[derive(Debug)]
pub struct Target<'r> {
    /// Lower case, without port and trailing dot; empty for an HTTP/1.0 request that names none.
    pub host: Cow<'r, str>,
    /// In normal form.
    pub path: Cow<'r, str>,
    pub query: Option<&'r str>,
}

/// Why it is not clear what a request asks for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadTarget {
    #[error("no host")]
    NoHost,
    #[error("several Host")]
    Hosts,
    #[error("Host is not text")]
    HostBytes,
    #[error("Host {host:?} is not the {authority:?} of the request's target")]
    HostsDiffer { host: String, authority: String },
    #[error("host: {0}")]
    Host(HostError),
    #[error("path: {0}")]
    Path(PathError),
    #[error("the scheme {0:?} is not http")]
    Scheme(String),
}

/// The host as the client wrote it, with its port: `:authority` or an absolute target before `Host`, which must then be
/// the same (RFC 9112, 3.2.2; RFC 9113, 8.3.1).
///
/// # Errors
/// When there is none (HTTP/1.0 may do without), or more than one.
pub fn authority<'r>(
    uri: &'r Uri,
    headers: &'r HeaderMap,
    version: Version,
) -> Result<Option<&'r str>, BadTarget> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().map(HeaderValue::to_str).transpose().map_err(|_| BadTarget::HostBytes)?;
    if hosts.next().is_some() {
        return Err(BadTarget::Hosts);
    }
    let authority = uri.authority().map(|authority| authority.as_str());
    match (host, authority) {
        (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority) => {
            Err(BadTarget::HostsDiffer { host: host.to_owned(), authority: authority.to_owned() })
        }
        (_, Some(authority)) => Ok(Some(authority)),
        (Some(host), None) => Ok(Some(host)),
        (None, None) if version == Version::HTTP_10 => Ok(None),
        (None, None) => Err(BadTarget::NoHost),
    }
}

impl<'r> Target<'r> {
    /// # Errors
    /// When host or path are not what the policy allows.
    pub fn new(method: &Method, uri: &'r Uri, authority: Option<&'r str>) -> Result<Self, BadTarget> {
        if let Some(scheme) = uri.scheme_str().filter(|scheme| !scheme.eq_ignore_ascii_case("http")) {
            return Err(BadTarget::Scheme(scheme.to_owned()));
        }
        let host = match authority {
            None => Cow::Borrowed(""),
            Some(authority) => Host::parse(authority).map_err(BadTarget::Host)?.into_name(),
        };
        // A URL without a path asks OPTIONS for the server as a whole (RFC 9112, 3.2.4).
        let is_server = *method == Method::OPTIONS && uri.path_and_query().is_none();
        let path = if is_server { "*" } else { uri.path() };
        let path = path::normalize(path).map_err(BadTarget::Path)?;
        Ok(Self { host, path, query: uri.query() })
    }
}

/// Path and query to send on.
///
/// # Errors
/// When they are not valid together: a rewrite made them so.
pub fn path_and_query(path: &str, query: Option<&str>) -> Result<PathAndQuery, http::uri::InvalidUri> {
    match query {
        None => PathAndQuery::try_from(path),
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(uri: &str, hosts: &[&str]) -> Result<(String, String), BadTarget> {
        let uri: Uri = uri.parse().unwrap();
        let headers: HeaderMap =
            hosts.iter().map(|host| (HOST, HeaderValue::from_str(host).unwrap())).collect();
        let authority = authority(&uri, &headers, Version::HTTP_11)?;
        let target = Target::new(&Method::GET, &uri, authority)?;
        Ok((target.host.into_owned(), target.path.into_owned()))
    }

    #[test]
    fn there_is_one_host_and_one_path() {
        for (uri, hosts, host, path) in [
            ("/a", &["web"][..], "web", "/a"),
            ("/a", &["WEB.Example.:8080"], "web.example", "/a"),
            ("http://web:80/a", &["web:80"], "web", "/a"),
            ("http://web/a", &[], "web", "/a"),
            ("http://web/a", &["WEB"], "web", "/a"),
            ("/a//b/../%63", &["[fd00::1]:80"], "[fd00::1]", "/a/c"),
            ("http://web", &["web"], "web", "/"),
        ] {
            assert_eq!(found(uri, hosts), Ok((host.to_owned(), path.to_owned())), "{uri} {hosts:?}");
        }
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        assert_eq!(found("/a", &[]), Err(BadTarget::NoHost));
        assert_eq!(found("/a", &["a", "b"]), Err(BadTarget::Hosts));
        assert_eq!(found("/a", &["a", "a"]), Err(BadTarget::Hosts));
        for (uri, host) in [("http://a/", "b"), ("http://a:80/", "a"), ("http://a/", "a.")] {
            assert!(matches!(found(uri, &[host]), Err(BadTarget::HostsDiffer { .. })), "{uri} {host}");
        }
        for host in ["", "a b", "a/b", "user@a", "a:x", "a,b", "[::1", "a:99999"] {
            assert!(
                matches!(found("/a", &[host]), Err(BadTarget::Host(_))),
                "{host:?} {:?}",
                found("/a", &[host])
            );
        }
        for path in ["/..", "/a/../../b", "/%zz", "/%00"] {
            assert!(matches!(found(path, &["a"]), Err(BadTarget::Path(_))), "{path}");
        }
        assert!(matches!(found("https://a/", &["a"]), Err(BadTarget::Scheme(_))));
    }
}
