//! A request as a client sends it, judged as the node proxy judges it before any rule is asked.

use culvert_node_proxy::http::head::{Judged, judge};
use culvert_node_proxy::http::target::{self, Target};
use culvert_node_proxy::reason::Reason;
use culvert_node_proxy::telemetry::Failure;
use culvert_routing::request::is_grpc;
use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};

use super::question::Question;

/// Bytes of a request's head that the node proxy takes.
const LARGEST_HEAD: usize = 64 << 10;

/// A request as it is sent, checked as the node proxy checks it.
pub struct Sent {
    pub method: Method,
    pub uri: Uri,
    pub authority: String,
    pub headers: HeaderMap,
    pub version: Version,
}

/// Why no rule is asked.
pub struct Unfit {
    pub reason: Reason,
    pub message: String,
}

impl From<Failure> for Unfit {
    fn from(failure: Failure) -> Self {
        Self { reason: failure.reason, message: failure.message }
    }
}

impl Sent {
    /// # Errors
    /// What the node proxy would refuse it for.
    pub fn new(question: &Question) -> Result<Self, Unfit> {
        let bad = |message: String| Unfit { reason: Reason::BadRequest, message };
        let authority = match question.headers.get(header::HOST) {
            Some(host) => host.to_str().map_err(|_| bad("Host is not text".to_owned()))?.to_owned(),
            None => question.authority.clone(),
        };
        let mut headers = question.headers.clone();
        headers.remove(header::HOST);
        let uri = if question.version == Version::HTTP_2 {
            format!("http://{authority}{}", question.target)
        } else {
            check_head(question, &authority)?;
            headers.insert(
                header::HOST,
                HeaderValue::from_str(&authority).map_err(|error| bad(error.to_string()))?,
            );
            question.target.clone()
        };
        let uri: Uri = uri.parse().map_err(|error| bad(format!("target {:?}: {error}", question.target)))?;
        if question.method == Method::CONNECT {
            let message = "requests are routed here; CONNECT is none".to_owned();
            return Err(Unfit { reason: Reason::ConnectRefused, message });
        }
        Ok(Self { method: question.method.clone(), uri, authority, headers, version: question.version })
    }

    pub fn target(&self) -> Result<Target<'_>, Unfit> {
        let bad = |error: target::BadTarget| Unfit { reason: Reason::BadRequest, message: error.to_string() };
        let authority = target::authority(&self.uri, &self.headers, self.version).map_err(bad)?;
        Target::new(&self.method, &self.uri, authority).map_err(bad)
    }

    pub fn is_call(&self) -> bool {
        is_grpc(self.version, &self.headers)
    }
}

/// HTTP/1 is judged on its bytes.
fn check_head(question: &Question, authority: &str) -> Result<(), Unfit> {
    let mut head =
        format!("{} {} HTTP/1.1\r\nHost: {authority}\r\n", question.method, question.target).into_bytes();
    for (name, value) in question.headers.iter().filter(|(name, _)| *name != header::HOST) {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    match judge(&head) {
        _ if head.len() > LARGEST_HEAD => {
            let message = format!("the head has {} bytes, more than {LARGEST_HEAD}", head.len());
            Err(Unfit { reason: Reason::HeadersTooLarge, message })
        }
        Judged::Refused(bad) if bad.is_size() => {
            Err(Unfit { reason: Reason::HeadersTooLarge, message: bad.to_string() })
        }
        Judged::Refused(bad) => Err(Unfit { reason: Reason::BadRequest, message: bad.to_string() }),
        Judged::Partial | Judged::Complete(_) => Ok(()),
    }
}
