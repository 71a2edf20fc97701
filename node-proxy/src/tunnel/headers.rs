//! The CONNECT request and its headers, as ztunnel writes and reads them.

use std::fmt::Write;
use std::net::SocketAddr;

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, Uri};
use thiserror::Error;

use crate::state::model::{Service, Workload};

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Why a CONNECT request names no destination.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadAuthority {
    #[error("the request is {0}, not CONNECT")]
    NotConnect(Method),
    #[error("CONNECT without an authority")]
    Missing,
    #[error("the authority {0:?} is not ADDRESS:PORT")]
    NotAnAddress(String),
}

/// The request that opens a stream to `destination` on behalf of `client`.
///
/// # Panics
/// Never: an address and a port are an authority.
pub fn connect_request(
    destination: SocketAddr,
    client: SocketAddr,
    source: &Workload,
    service: Option<&Service>,
) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = authority_uri(destination);
    let headers = request.headers_mut();
    insert(headers, BAGGAGE, &baggage(source));
    insert(headers, FORWARDED, &forwarded(client, service));
    insert(headers, TRACEPARENT, &traceparent(rand::random(), rand::random()));
    request
}

fn authority_uri(destination: SocketAddr) -> Uri {
    let text = destination.to_string();
    match text.parse::<Authority>() {
        Ok(authority) => Uri::from(authority),
        Err(_) => unreachable!("an address and a port are an authority"),
    }
}

/// Where a request wants to go.
///
/// # Errors
/// When it is not CONNECT, or names no address.
pub fn destination(request: &Request<impl Sized>) -> Result<SocketAddr, BadAuthority> {
    if request.method() != Method::CONNECT {
        return Err(BadAuthority::NotConnect(request.method().clone()));
    }
    let authority = request.uri().authority().ok_or(BadAuthority::Missing)?.as_str();
    authority.parse().map_err(|_| BadAuthority::NotAnAddress(authority.to_owned()))
}

/// The answer's headers: who answers.
pub fn response_headers(workload: &Workload) -> HeaderMap {
    let mut headers = HeaderMap::new();
    insert(&mut headers, BAGGAGE, &baggage(workload));
    headers
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if value.is_empty() {
        return;
    }
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Who a workload is, for the peer's metrics only. Unknown fields, and those that a list member cannot hold, are left
/// out.
fn baggage(workload: &Workload) -> String {
    let labels = &workload.labels;
    let kind = match labels.workload_type.as_str() {
        known @ ("deployment" | "cronjob" | "job") => known,
        _ => "pod",
    };
    let name = if labels.workload.is_empty() { &*workload.name } else { &labels.workload };
    let fields = [
        ("k8s.cluster.name", &*workload.cluster),
        ("k8s.namespace.name", &*workload.namespace),
        (&format!("k8s.{kind}.name"), name),
        ("service.name", &labels.canonical_service),
        ("service.version", &labels.canonical_revision),
        ("cloud.region", &*workload.region),
        ("cloud.availability_zone", &*workload.zone),
    ];
    let mut text = String::with_capacity(256);
    for (key, value) in fields {
        let fits =
            value.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b',' | b';' | b'=' | b'"' | b'\\'));
        if value.is_empty() || !fits {
            continue;
        }
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{key}={value}");
    }
    text
}

fn forwarded(client: SocketAddr, service: Option<&Service>) -> String {
    match service {
        Some(Service { name, namespace, .. }) => {
            format!("for=\"{client}\";host={name}.{namespace}.svc.cluster.local")
        }
        None => format!("for=\"{client}\""),
    }
}

/// A new trace, not sampled. All-zero ids are invalid.
fn traceparent(trace: u128, span: u64) -> String {
    format!("00-{:032x}-{:016x}-00", trace.max(1), span.max(1))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::balance::testing::{service, workload};
    use crate::state::model::WorkloadLabels;

    #[test]
    fn a_request_says_what_ztunnel_says() {
        let mut source = workload("web-1", "10.1.0.5");
        source.region = "r".into();
        source.labels = Arc::new(WorkloadLabels {
            workload: "web".into(),
            workload_type: "deployment".into(),
            canonical_service: "web".into(),
            canonical_revision: "v1".into(),
            ..WorkloadLabels::default()
        });
        let service = service("db", &[(5432, "tcp")]);
        let to = "[fd00::7]:8080".parse().unwrap();
        let request = connect_request(to, "10.1.0.5:41234".parse().unwrap(), &source, Some(&service));
        assert_eq!(request.method(), Method::CONNECT);
        assert_eq!(request.uri().to_string(), "[fd00::7]:8080");
        assert_eq!((request.uri().scheme(), request.uri().path_and_query()), (None, None));
        assert_eq!(
            request.headers()["baggage"],
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=ns,k8s.deployment.name=web,service.name=web,\
             service.version=v1,cloud.region=r"
        );
        assert_eq!(request.headers()["forwarded"], "for=\"10.1.0.5:41234\";host=db.ns.svc.cluster.local");
        let trace = request.headers()["traceparent"].to_str().unwrap();
        assert_eq!(trace.split('-').map(str::len).collect::<Vec<_>>(), [2, 32, 16, 2]);
        assert_eq!(destination(&request), Ok(to));
    }

    #[test]
    fn a_value_that_would_forge_another_member_is_left_out() {
        let mut source = workload("web-1", "10.1.0.5");
        source.labels = Arc::new(WorkloadLabels {
            canonical_service: "a,k8s.namespace.name=b".into(),
            ..WorkloadLabels::default()
        });
        assert_eq!(baggage(&source), "k8s.cluster.name=Kubernetes,k8s.namespace.name=ns,k8s.pod.name=web-1");
    }

    #[test]
    fn what_names_no_destination_is_refused() {
        let get = Request::get("http://10.0.0.1:80/").body(()).unwrap();
        assert_eq!(destination(&get), Err(BadAuthority::NotConnect(Method::GET)));
        for authority in ["10.0.0.1", "web:80", "10.0.0.1:99999", "user@10.0.0.1:80"] {
            let mut request = Request::new(());
            *request.method_mut() = Method::CONNECT;
            if let Ok(authority) = authority.parse::<Authority>() {
                *request.uri_mut() = Uri::from(authority);
            }
            assert!(destination(&request).is_err(), "{authority}");
        }
    }
}
