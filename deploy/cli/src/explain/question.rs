//! What is asked: a client, a URL, a method, headers.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use std::net::IpAddr;
use std::str::FromStr;
use thiserror::Error;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// A name as `exec` takes it: a pod, or the first pod of `deploy/NAME`.
    Pod { namespace: String, name: String },
    /// Neither pod nor node.
    Outside,
}

impl FromStr for From {
    type Err = QuestionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            None if text == "outside" => Ok(Self::Outside),
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(QuestionError::From(text.to_owned())),
        }
    }
}

/// A request that somebody would make.
#[derive(Clone, Debug)]
pub struct Question {
    pub from: From,
    pub method: Method,
    /// As it was given.
    pub url: String,
    /// Host and port as the URL has them.
    pub authority: String,
    /// Without brackets.
    pub host: String,
    pub port: u16,
    /// Path and query, as they would be sent.
    pub target: String,
    /// Without `Host`, unless one was given.
    pub headers: HeaderMap,
    pub version: Version,
}

/// What is wrong with a question.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QuestionError {
    #[error("{0:?} is no client: expected NAMESPACE/POD, NAMESPACE/deploy/NAME or outside")]
    From(String),
    #[error("{0:?} is no URL: expected http://HOST[:PORT][/PATH]")]
    Url(String),
    #[error("header {0:?}: expected NAME: VALUE")]
    Header(String),
}

/// What the protocol of the request is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1.1, unless the headers say that it is a gRPC call.
    Default,
    Http2,
    Grpc,
}

impl Question {
    /// # Errors
    /// Names the part that makes no sense, and what is expected.
    pub fn new(
        from: From,
        method: Option<Method>,
        url: &str,
        lines: &[String],
        spoken: Spoken,
    ) -> Result<Self, QuestionError> {
        let bad = || QuestionError::Url(url.to_owned());
        let rest = url.strip_prefix("http://").ok_or_else(bad)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let (host, port) = host_and_port(authority).ok_or_else(bad)?;
        let mut headers = headers(lines)?;
        let is_call = spoken == Spoken::Grpc
            || headers.get(http::header::CONTENT_TYPE).is_some_and(|kind| {
                let kind = kind.as_bytes();
                kind.len() >= GRPC.len() && kind[..GRPC.len()].eq_ignore_ascii_case(GRPC.as_bytes())
            });
        if is_call {
            headers.entry(http::header::CONTENT_TYPE).or_insert(HeaderValue::from_static(GRPC));
        }
        let target = match target {
            "" => "/".to_owned(),
            query if query.starts_with('?') => format!("/{query}"),
            target => target.to_owned(),
        };
        Ok(Self {
            from,
            method: method.unwrap_or(if is_call { Method::POST } else { Method::GET }),
            url: url.to_owned(),
            authority: authority.to_owned(),
            host: host.to_owned(),
            port,
            target,
            headers,
            version: if is_call || spoken == Spoken::Http2 { Version::HTTP_2 } else { Version::HTTP_11 },
        })
    }

    /// The address, if the URL names one instead of a name.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

const GRPC: &str = "application/grpc";

fn headers(lines: &[String]) -> Result<HeaderMap, QuestionError> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let bad = || QuestionError::Header(line.clone());
        let (name, value) = line.split_once(':').ok_or_else(bad)?;
        let name: HeaderName = name.trim().parse().map_err(|_| bad())?;
        headers.append(name, HeaderValue::from_str(value.trim()).map_err(|_| bad())?);
    }
    Ok(headers)
}

fn host_and_port(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, port.strip_prefix(':'))
        }
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port {
        None => 80,
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
    };
    (!host.is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(url: &str, headers: &[&str], spoken: Spoken) -> Result<Question, QuestionError> {
        let headers: Vec<String> = headers.iter().map(|line| (*line).to_owned()).collect();
        Question::new(From::Outside, None, url, &headers, spoken)
    }

    #[test]
    fn urls_are_taken_as_they_are_written() {
        for (url, host, port, target) in [
            ("http://cart", "cart", 80, "/"),
            ("http://cart:8080//a/../b?c=%2F", "cart", 8080, "//a/../b?c=%2F"),
            ("http://[fd00::1]:81?x", "fd00::1", 81, "/?x"),
            ("http://10.0.0.1/", "10.0.0.1", 80, "/"),
        ] {
            let question = question(url, &[], Spoken::Default).unwrap();
            assert_eq!(
                (question.host.as_str(), question.port, question.target.as_str()),
                (host, port, target)
            );
        }
        for bad in ["cart/", "https://cart/", "http://", "http://cart:0/", "http://cart:x/", "http://:80/"] {
            assert!(question(bad, &[], Spoken::Default).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_content_type_makes_a_grpc_call() {
        let by_header =
            question("http://a/s/m", &["Content-Type: application/grpc+proto"], Spoken::Default).unwrap();
        assert_eq!((by_header.version, by_header.method.as_str()), (Version::HTTP_2, "POST"));
        let by_flag = question("http://a/s/m", &[], Spoken::Grpc).unwrap();
        assert_eq!(by_flag.headers["content-type"], "application/grpc");
        assert_eq!(question("http://a/", &[], Spoken::Http2).unwrap().method, Method::GET);
        assert_eq!(question("http://a/", &[], Spoken::Default).unwrap().version, Version::HTTP_11);
    }

    #[test]
    fn clients_are_named_as_in_exec() {
        let pod = |namespace: &str, name: &str| From::Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        assert_eq!("shop/web-1".parse(), Ok(pod("shop", "web-1")));
        assert_eq!("shop/deploy/web".parse(), Ok(pod("shop", "deploy/web")));
        assert_eq!("outside".parse(), Ok(From::Outside));
        for bad in ["web", "/web", "shop/"] {
            assert!(bad.parse::<From>().is_err(), "{bad}");
        }
    }
}
