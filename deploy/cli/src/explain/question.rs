//! What is asked: a client, a URL, a method, headers.

use culvert_node_proxy::outbound::protocol::First;
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

/// What a client says on its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speaks {
    Http,
    /// TLS that is the application's own, and the server name it asks for.
    Tls {
        server_name: Option<String>,
    },
    /// Neither of them.
    Bytes,
}

/// A request that somebody would make, or a connection that somebody would open.
#[derive(Clone, Debug)]
pub struct Question {
    pub from: From,
    pub speaks: Speaks,
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
    #[error("{0:?} is no URL: expected http://HOST[:PORT][/PATH], tls://HOST:PORT or tcp://HOST:PORT")]
    Url(String),
    #[error("method, headers and protocol are of requests: they do not go with {0:?}")]
    NoRequest(String),
    #[error("a server name is of TLS: it goes with tls://HOST:PORT, not with {0:?}")]
    ServerName(String),
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
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let (host, port) = host_and_port(authority).ok_or_else(bad)?;
        let port = match (scheme, port) {
            ("http", port) => port.unwrap_or(80),
            ("tls" | "tcp", Some(port)) if target.is_empty() => port,
            _ => return Err(bad()),
        };
        if scheme != "http" && (method.is_some() || !lines.is_empty() || spoken != Spoken::Default) {
            return Err(QuestionError::NoRequest(url.to_owned()));
        }
        let speaks = match scheme {
            "http" => Speaks::Http,
            "tcp" => Speaks::Bytes,
            _ => Speaks::Tls { server_name: asked_for(host) },
        };
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
            speaks,
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

    /// The same with another server name than the URL's host; none if it is empty.
    ///
    /// # Errors
    /// When it is not TLS that is spoken.
    pub fn with_server_name(self, name: &str) -> Result<Self, QuestionError> {
        match self.speaks {
            Speaks::Tls { .. } => Ok(Self { speaks: Speaks::Tls { server_name: asked_for(name) }, ..self }),
            Speaks::Http | Speaks::Bytes => Err(QuestionError::ServerName(self.url)),
        }
    }

    /// What is seen first of the connection.
    #[must_use]
    pub fn first(&self) -> First {
        match (&self.speaks, self.version) {
            (Speaks::Http, Version::HTTP_2) => First::Http2,
            (Speaks::Http, _) => First::Http1,
            (Speaks::Tls { .. }, _) => First::Tls,
            (Speaks::Bytes, _) => First::Other,
        }
    }

    /// The server name that its TLS asks for.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        match &self.speaks {
            Speaks::Tls { server_name } => server_name.as_deref(),
            Speaks::Http | Speaks::Bytes => None,
        }
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

/// Addresses are no server names (RFC 6066, 3).
fn asked_for(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    (!name.is_empty() && name.parse::<IpAddr>().is_err()).then_some(name)
}

fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
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
        None => None,
        Some(port) => Some(port.parse().ok().filter(|port| *port != 0)?),
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
        for bad in [
            "cart/",
            "https://cart/",
            "tls://cart",
            "tcp://cart:1/a",
            "udp://cart:1",
            "http://",
            "http://cart:0/",
            "http://cart:x/",
            "http://:80/",
        ] {
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
    fn connections_have_a_server_name_or_none() {
        let asked = |url: &str| question(url, &[], Spoken::Default).unwrap();
        let name = |question: &Question| question.server_name().map(str::to_owned);
        assert_eq!(name(&asked("tls://Cart.shop.:443")).as_deref(), Some("cart.shop"));
        assert_eq!(name(&asked("tls://10.0.0.1:443")), None);
        let named = asked("tls://10.0.0.1:443").with_server_name("a.example").unwrap();
        assert_eq!(name(&named).as_deref(), Some("a.example"));
        assert!(asked("tcp://cart:5432").with_server_name("a.example").is_err());
        let firsts = ["http://a", "tls://a:1", "tcp://a:1"].map(|url| asked(url).first());
        assert_eq!(firsts, [First::Http1, First::Tls, First::Other]);
        assert!(question("tcp://a:1", &["a: b"], Spoken::Default).is_err());
        assert!(question("tls://a:1", &[], Spoken::Http2).is_err());
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
