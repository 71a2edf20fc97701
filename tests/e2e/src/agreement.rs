//! Whether what happened is one of the things that `culvert explain` said may happen.

use crate::generate::Generated;
use culvert_cli::explain::data::{Backend, End, Explanation, Layer, SentRequest};
use serde_json::Value;
use std::collections::BTreeMap;

/// Headers that generated requests and filters have; others are the client program's and the proxies' own.
const HEADERS: [&str; 5] = ["x-v", "x-w", "x-gone", "x-added", "x-request-id"];

/// What came of a request, read from the client's report.
#[derive(Clone, Debug, Default)]
pub struct Happened {
    /// HTTP; the gRPC client does not tell.
    pub status: Option<u64>,
    pub grpc_status: Option<u64>,
    /// Of an answer of Culvert's own.
    pub reason: Option<String>,
    pub location: Option<String>,
    /// Of an answer to a preflight: `access-control-` fields that are there.
    allowed: BTreeMap<String, String>,
    pub pod: Option<String>,
    /// As the backend saw it; a backend that was asked without a body to answer says nothing of them.
    path: Option<String>,
    host: Option<String>,
    headers: Option<Value>,
    /// Of the client: there was no answer.
    pub is_error: bool,
}

impl Happened {
    /// From a report of `culvert-echo get` or `culvert-echo grpc`.
    pub fn read(report: &Value, is_call: bool) -> Self {
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let answered = &report["last_headers"];
        let said = answered["proxy-status"].as_str();
        let last = &report["last"];
        let (status, grpc_status) = match is_call {
            true => (None, report["status"].as_u64()),
            false => {
                let grpc = answered["grpc-status"].as_str().and_then(|status| status.parse().ok());
                (report["last_status"].as_u64(), grpc)
            }
        };
        Self {
            status,
            grpc_status,
            reason: said
                .and_then(|said| said.split("details=\"").nth(1)?.split('"').next().map(str::to_owned)),
            location: text(&answered["location"]),
            allowed: answered
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(name, _)| name.starts_with("access-control-"))
                .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
                .collect(),
            pod: text(&last["pod"]).or_else(|| text(&answered["x-echo-pod"])),
            path: text(&last["path"]),
            host: last["headers"]["host"].get(0).and_then(text),
            headers: last["headers"].is_object().then(|| last["headers"].clone()),
            is_error: status.is_none() && grpc_status.is_none(),
        }
    }

    /// Whether this is one of the outcomes explained.
    ///
    /// # Errors
    /// Why each of them is another.
    pub fn is_explained(&self, explanation: &Explanation, sent: &Generated) -> Result<(), String> {
        let mut why = Vec::new();
        for outcome in explanation.outcomes.iter().filter(|outcome| outcome.share > 0.0) {
            match self.is(&outcome.end, explanation, sent) {
                Ok(()) => return Ok(()),
                Err(reason) => why.push(format!("{:?}: {reason}", outcome.end)),
            }
        }
        Err(why.join("\n"))
    }

    fn is(&self, end: &End, explanation: &Explanation, sent: &Generated) -> Result<(), String> {
        match end {
            End::Forwarded { backend } => {
                let mut why = Err("no such backend".to_owned());
                for backend in explanation.backends.iter().filter(|one| one.backend == *backend) {
                    let request = backend.request.as_ref().ok_or("no request explained")?;
                    why = self.came_from(backend).and_then(|()| self.shows(request));
                    if why.is_ok() {
                        break;
                    }
                }
                why
            }
            End::Redirected { status, location } => {
                self.has_status(u64::from(*status), None)?;
                same("location", self.location.as_deref(), Some(location))
            }
            End::Preflight { status, headers } => {
                self.has_status(u64::from(*status), None)?;
                let explained = headers.iter().filter(|header| header.name.starts_with("access-control-"));
                let explained: BTreeMap<String, String> =
                    explained.map(|header| (header.name.clone(), header.value.clone())).collect();
                same("what it allows", Some(&self.allowed), Some(&explained))
            }
            End::Answered { status, grpc_status, reason, .. } => {
                self.has_status(u64::from(*status), grpc_status.map(u64::from))?;
                same("reason", self.reason.as_deref(), Some(reason))
            }
            End::Carried { .. } => {
                let why = explanation.backends.iter().map(|backend| self.came_from(backend));
                why.reduce(Result::or).unwrap_or(Err("no endpoint".to_owned()))?;
                self.shows_unchanged(sent)
            }
            End::Connected { backend } => {
                let named = explanation.backends.iter().filter(|one| one.backend == *backend);
                let why = named.map(|backend| self.came_from(backend));
                why.reduce(Result::or).unwrap_or(Err("no such backend".to_owned()))?;
                self.shows_unchanged(sent)
            }
            End::Refused { .. } if self.is_error => Ok(()),
            End::Refused { .. } => Err("there was an answer".to_owned()),
            End::Passed { .. } => {
                let mut endpoints = explanation.backends.iter().flat_map(|backend| &backend.endpoints);
                match endpoints.any(|endpoint| endpoint.used) {
                    true => {
                        let why = explanation.backends.iter().map(|backend| self.came_from(backend));
                        why.reduce(Result::or).unwrap_or(Ok(()))?;
                        self.shows_unchanged(sent)
                    }
                    false if self.is_error => Ok(()),
                    false => Err("there was an answer".to_owned()),
                }
            }
        }
    }

    fn has_status(&self, status: u64, grpc_status: Option<u64>) -> Result<(), String> {
        match self.status {
            Some(seen) => same("status", Some(seen), Some(status))?,
            None if self.is_error => return Err("there was no answer".to_owned()),
            None => {}
        }
        match grpc_status {
            Some(_) => same("grpc-status", self.grpc_status, grpc_status),
            None => Ok(()),
        }
    }

    /// The answer is that of an endpoint that may be chosen.
    fn came_from(&self, backend: &Backend) -> Result<(), String> {
        same("reason", self.reason.as_deref(), None)?;
        let pod = self.pod.as_deref().ok_or("nobody answered")?;
        let names =
            backend.endpoints.iter().filter(|endpoint| endpoint.used).map(|endpoint| &endpoint.workload);
        let is_one = names.clone().any(|name| name.split('/').next_back() == Some(pod));
        if is_one {
            Ok(())
        } else {
            Err(format!("{pod} answered, not one of {:?}", names.collect::<Vec<_>>()))
        }
    }

    fn shows(&self, request: &SentRequest) -> Result<(), String> {
        if let Some(path) = &self.path {
            same("path", Some(path.as_str()), Some(request.path.as_str()))?;
        }
        if let Some(host) = &self.host {
            same("host", Some(host.as_str()), Some(request.host.as_str()))?;
        }
        let header = |name: &str| {
            let values = request.headers.iter().filter(|header| header.name == name);
            values.map(|header| header.value.clone()).collect::<Vec<_>>().join(", ")
        };
        self.shows_headers(header)
    }

    /// As the client sent it.
    fn shows_unchanged(&self, sent: &Generated) -> Result<(), String> {
        let question = &sent.question;
        if let Some(path) = &self.path {
            same("path", Some(path.as_str()), Some(question.target.as_str()))?;
        }
        self.shows_headers(|name| {
            let values = question.headers.get_all(name).iter();
            values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect::<Vec<_>>().join(", ")
        })
    }

    fn shows_headers(&self, expected: impl Fn(&str) -> String) -> Result<(), String> {
        let Some(headers) = &self.headers else { return Ok(()) };
        for name in HEADERS {
            let seen = match &headers[name] {
                Value::Array(values) => {
                    values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
                }
                Value::String(value) => value.clone(),
                _ => String::new(),
            };
            same(name, Some(seen), Some(expected(name)))?;
        }
        Ok(())
    }
}

/// What the node proxy logged of the request, against what was explained of it: route, rule, reason and backend.
///
/// # Errors
/// What differs.
pub fn is_logged(line: Option<&Value>, explanation: &Explanation, happened: &Happened) -> Result<(), String> {
    let is_request = explanation.handling.as_ref().is_some_and(|handling| handling.layer == Layer::Requests);
    let Some(line) = line else {
        return if is_request { Err("no line in the log".to_owned()) } else { Ok(()) };
    };
    if !is_request {
        return Err("logged as a request, explained as none".to_owned());
    }
    let rule = explanation.rule.as_ref();
    let route = rule.map(|rule| rule.route.replacen(' ', "/", 1));
    same("route", line["route"].as_str(), route.as_deref())?;
    same("rule", line["rule"].as_str(), rule.map(|rule| rule.rule.as_str()))?;
    same("reason", line["reason"].as_str(), happened.reason.as_deref())?;
    if let Some(status) = happened.status {
        same("response_code", line["response_code"].as_u64(), Some(status))?;
    }
    let preflight = explanation.outcomes.iter().any(|outcome| matches!(outcome.end, End::Preflight { .. }));
    let is_own = happened.reason.is_some() || happened.location.is_some() || preflight;
    match (line["backend"].as_str(), !is_own) {
        (Some(backend), _) if explanation.backends.iter().any(|one| one.backend == backend) => Ok(()),
        (None, false) => Ok(()),
        (backend, _) => Err(format!("backend {backend:?} was not explained")),
    }
}

fn same<T: PartialEq + std::fmt::Debug>(
    what: &str,
    seen: Option<T>,
    explained: Option<T>,
) -> Result<(), String> {
    if seen == explained { Ok(()) } else { Err(format!("{what} is {seen:?}, explained {explained:?}")) }
}
