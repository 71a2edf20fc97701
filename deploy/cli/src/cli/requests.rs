//! `culvert sandbox logs --requests`: one line per request.

use anyhow::bail;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::Write;
use std::str::FromStr;

use super::client;
use super::output::Format;
use crate::sandbox::control::place::Place;
use crate::sandbox::control::protocol::{Request, Response};
use crate::sandbox::control::wire::Body;

/// Whose requests are shown.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub from: Option<Client>,
    pub to: Option<Service>,
}

/// `NAMESPACE/POD`, or `NAMESPACE/deploy/NAME` for all pods of a Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    namespace: String,
    name: String,
    is_deployment: bool,
}

/// `NAMESPACE/SERVICE`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service(String);

impl FromStr for Client {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (namespace, name, is_deployment) = match parts.as_slice() {
            [namespace, name] => (namespace, name, false),
            [namespace, "deploy" | "deployment" | "deployments", name] => (namespace, name, true),
            _ => return Err("expected NAMESPACE/POD or NAMESPACE/deploy/NAME".to_owned()),
        };
        Ok(Self { namespace: (*namespace).to_owned(), name: (*name).to_owned(), is_deployment })
    }
}

impl FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self(text.to_owned()))
            }
            _ => Err("expected NAMESPACE/SERVICE".to_owned()),
        }
    }
}

impl Filter {
    fn shows(&self, request: &Value) -> bool {
        let from = self
            .from
            .as_ref()
            .is_none_or(|client| client.is(text(request, "src.namespace"), text(request, "src.workload")));
        let to = self.to.as_ref().is_none_or(|Service(service)| {
            let backend = text(request, "backend");
            text(request, "dst.service") == service
                || backend.rsplit_once(':').is_some_and(|(backend, _)| backend == service)
        });
        from && to
    }
}

impl Client {
    fn is(&self, namespace: &str, pod: &str) -> bool {
        // Pods of a Deployment are named by it, the hash of their template and a suffix.
        let deployment = pod.rsplitn(3, '-').nth(2);
        let name = if self.is_deployment { deployment.unwrap_or_default() } else { pod };
        namespace == self.namespace && name == self.name
    }
}

fn text<'a>(request: &'a Value, key: &str) -> &'a str {
    request.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Shows requests that are in the logs, or with `follow` those that end from now on.
///
/// # Errors
/// When the sandbox is not there or ends.
pub async fn show(sandbox: &Place, filter: &Filter, follow: bool, format: Format) -> anyhow::Result<()> {
    let connection = client::connect(sandbox)?;
    connection.send(&Request::Requests { follow }, &[]).await?;
    while let Some(frame) = connection.receive().await? {
        match &frame.body {
            Body::Bytes(bytes) => {
                let Ok(request) = serde_json::from_slice::<Value>(bytes) else { continue };
                if let Some(missed) = request.get("missed") {
                    eprintln!("{missed} requests are not shown: they came faster than they could be told");
                    continue;
                }
                if filter.shows(&request) {
                    let line = match format {
                        Format::Table => line(&request),
                        Format::Json => request.to_string(),
                        Format::Yaml => format!("---\n{}", serde_yaml_ng::to_string(&request)?.trim_end()),
                    };
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "{line}").and_then(|()| out.flush())?;
                }
            }
            Body::Message(_) => match frame.message()? {
                Response::Failed { message } => bail!(message),
                Response::Running => eprintln!("requests that end from now on; Ctrl-C ends it"),
                _ => return Ok(()),
            },
        }
    }
    bail!("the sandbox has ended")
}

/// `14:03:05.123 200 GET cart/hello  shop/web-1 -> shop/cart:80 cart-1  HTTPRoute/shop/cart rule split  1.2ms`
fn line(request: &Value) -> String {
    let or_dash =
        |key: &str| Some(text(request, key)).filter(|text| !text.is_empty()).unwrap_or("-").to_owned();
    let time = text(request, "time");
    let clock = time.split_once('T').map_or(time, |(_, clock)| clock.trim_end_matches('Z'));
    let code = request.get("response_code").map(Value::to_string).unwrap_or_default();
    let mut line = format!("{clock} {code}");
    if let Some(grpc) = request.get("grpc_status") {
        let _ = write!(line, " grpc-status {grpc}");
    }
    let _ = write!(line, " {} {}{}", or_dash("method"), text(request, "authority"), text(request, "path"));
    let source = match text(request, "src.workload") {
        "" => text(request, "src.addr").to_owned(),
        pod => format!("{}/{pod}", text(request, "src.namespace")),
    };
    let to = match (text(request, "backend"), text(request, "dst.service")) {
        ("", "") => "-",
        ("", service) => service,
        (backend, _) => backend,
    };
    let _ = write!(line, "  {source} -> {to}");
    if !text(request, "dst.workload").is_empty() {
        let _ = write!(line, " {}", text(request, "dst.workload"));
    }
    let _ = match text(request, "route") {
        "" => write!(line, "  no route"),
        route => write!(line, "  {route} rule {}", or_dash("rule")),
    };
    if let Some(attempts) = request.get("attempts").and_then(Value::as_u64).filter(|attempts| *attempts > 1) {
        let _ = write!(line, "  {attempts} attempts");
    }
    let _ = write!(line, "  {}", or_dash("duration"));
    if !text(request, "reason").is_empty() {
        let _ = write!(line, "  {}: {}", text(request, "reason"), text(request, "error"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request() -> Value {
        json!({"time": "2026-01-01T14:03:05.123Z", "response_code": 503, "method": "GET", "authority": "cart",
            "path": "/hello", "src.namespace": "shop", "src.workload": "web-5d9f-x7k2p", "dst.service": "shop/cart",
            "backend": "shop/canary:80", "route": "HTTPRoute/shop/cart", "rule": "split", "attempts": 2,
            "duration": "1.200ms", "reason": "NoEndpoint", "error": "none is ready"})
    }

    #[test]
    fn a_line_says_who_what_where_and_why() {
        assert_eq!(
            line(&request()),
            "14:03:05.123 503 GET cart/hello  shop/web-5d9f-x7k2p -> shop/canary:80  HTTPRoute/shop/cart rule split  \
             2 attempts  1.200ms  NoEndpoint: none is ready"
        );
    }

    #[test]
    fn requests_are_chosen_by_client_and_service() {
        let filter = |from: Option<&str>, to: Option<&str>| Filter {
            from: from.map(|text| text.parse().unwrap()),
            to: to.map(|text| text.parse().unwrap()),
        };
        for (from, to, shown) in [
            (None, None, true),
            (Some("shop/web-5d9f-x7k2p"), None, true),
            (Some("shop/deploy/web"), Some("shop/cart"), true),
            (Some("shop/deploy/web"), Some("shop/canary"), true),
            (Some("shop/deploy/we"), None, false),
            (Some("audit/deploy/web"), None, false),
            (Some("shop/web"), None, false),
            (None, Some("shop/web"), false),
        ] {
            assert_eq!(filter(from, to).shows(&request()), shown, "{from:?} {to:?}");
        }
        assert!("web".parse::<Client>().is_err() && "cart".parse::<Service>().is_err());
    }
}
