//! Compares what `explain` says with what the suite expects.

use std::collections::BTreeMap;

use culvert_api::mesh as pb;
use culvert_cli::explain::data::{Backend, End, Explanation, Outcome, SentRequest};
use culvert_cli::explain::explanation;
use culvert_cli::explain::facts::Facts;
use culvert_cli::explain::question::{Question, Spoken};
use culvert_objects::Kind;
use culvert_routing::cors::{Allowed, Cors, Credentials, OriginPattern};
use http::{HeaderMap, HeaderName};
use pb::route_filter::Kind as Filter;

use crate::table::{Case, Names};

/// The service whose methods are called (`grpcecho.proto` of the suite).
const GRPC: &str = "/gateway_api_conformance.echo_basic.grpcecho.GrpcEcho/";
const CODES: [(&str, u16); 3] = [("OK", 0), ("Unimplemented", 12), ("Unavailable", 14)];

/// Whether a case comes out as the suite expects, at a Gateway or in the mesh.
pub fn judge(
    facts: &Facts,
    names: &Names,
    case: &Case,
    gateway: Option<&(String, String)>,
) -> Result<(), String> {
    let asked = Asked::new(facts, names, case, gateway);
    let spoken = if asked.grpc { Spoken::Grpc } else { Spoken::Default };
    let from = asked.from.parse().unwrap();
    let question = Question::new(from, asked.method.clone(), &asked.url, &asked.headers, spoken).unwrap();
    let explanation = explanation::explain(facts, &question).unwrap();
    let about = |problem: String| format!("{} {:?}: {problem}", asked.url, asked.headers);
    let judge = Judge { facts, names, case, asked: &asked, explanation: &explanation };
    judge.all().map_err(about)
}

/// The request.
struct Asked {
    from: String,
    url: String,
    path: String,
    method: Option<http::Method>,
    headers: Vec<String>,
    grpc: bool,
}

impl Asked {
    fn new(facts: &Facts, names: &Names, case: &Case, gateway: Option<&(String, String)>) -> Self {
        let text = |field: &str| case.text(names, &["Request", field]);
        let grpc = case.grpc || text("Protocol").is_some_and(|protocol| protocol == "grpc");
        let calls =
            [("EchoRequest", "Echo"), ("EchoTwoRequest", "EchoTwo"), ("EchoThreeRequest", "EchoThree")];
        let called = calls.iter().find(|(field, _)| case.at(&[*field]).is_some());
        let path = match called {
            Some((_, method)) => format!("{GRPC}{method}"),
            None if grpc => "/proto.EchoTestService/Echo".to_owned(),
            None => text("Path").unwrap_or_else(|| "/".to_owned()),
        };
        let mut headers = case.pairs(names, &["Request", "Headers"]);
        headers.extend(case.pairs(names, &["RequestMetadata", "Metadata"]));
        let host = text("Host").or_else(|| case.text(names, &["RequestMetadata", "Authority"]));
        let (from, authority) = match (gateway, &case.client) {
            (Some(gateway), _) => {
                headers.extend(host.clone().map(|host| ("Host".to_owned(), host)));
                ("outside".to_owned(), address(facts, gateway, host.as_deref()))
            }
            (None, client) => {
                let client = client.as_ref().unwrap_or_else(|| panic!("nobody asks {:?}", case.written));
                let host = host.unwrap_or_else(|| match case.at(&["Request", "Host"]) {
                    // The address of a pod.
                    Some(_) => format!("{}:8080", pod(facts, "echo-v2")),
                    None => "echo".to_owned(),
                });
                (format!("{}/deploy/{}", client.namespace, client.deployment), host)
            }
        };
        Self {
            from,
            url: format!("http://{authority}{path}"),
            path,
            method: text("Method").map(|method| method.parse().unwrap()),
            headers: headers.into_iter().map(|(name, value)| format!("{name}: {value}")).collect(),
            grpc,
        }
    }
}

/// Of the Gateway's Service, and the port that the host names, if a listener has it, else that of the first.
fn address(facts: &Facts, (namespace, name): &(String, String), host: Option<&str>) -> String {
    let service = facts.objects.find(Kind::Service, namespace, &format!("{name}-culvert")).unwrap();
    let address = &service.body["status"]["loadBalancer"]["ingress"][0]["ip"];
    let address = address.as_str().unwrap_or_else(|| panic!("{name} has no address"));
    let gateway = facts.objects.find(Kind::Gateway, namespace, name).unwrap();
    let listeners = gateway.body["spec"]["listeners"].as_array().unwrap().iter();
    let ports: Vec<String> = listeners.map(|listener| listener["port"].to_string()).collect();
    let named = host.and_then(|host| host.rsplit_once(':')).map(|(_, port)| port.to_owned());
    let port = named.filter(|port| ports.contains(port)).unwrap_or_else(|| ports[0].clone());
    if port == "80" { address.to_owned() } else { format!("{address}:{port}") }
}

fn pod(facts: &Facts, deployment: &str) -> String {
    let pods = facts.objects.of_kind(Kind::Pod);
    let pod = pods.into_iter().find(|pod| pod.name().starts_with(deployment)).unwrap();
    pod.body["status"]["podIP"].as_str().unwrap().to_owned()
}

struct Judge<'a> {
    facts: &'a Facts,
    names: &'a Names,
    case: &'a Case,
    asked: &'a Asked,
    explanation: &'a Explanation,
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, found: T) -> Result<(), String> {
    if expected == found { Ok(()) } else { Err(format!("{what}: expected {expected:?}, found {found:?}")) }
}

impl Judge<'_> {
    fn all(&self) -> Result<(), String> {
        if !self.case.shares.is_empty() {
            return self.shares();
        }
        let outcomes = self.explanation.outcomes.iter().filter(|outcome| outcome.share > 0.0);
        let outcomes: Vec<&Outcome> = outcomes.collect();
        if outcomes.is_empty() {
            return Err("nothing comes of it".to_owned());
        }
        outcomes.into_iter().try_for_each(|outcome| self.one(&outcome.end))
    }

    fn text(&self, path: &[&str]) -> Option<String> {
        self.case.text(self.names, path)
    }

    fn one(&self, end: &End) -> Result<(), String> {
        let mut statuses = self.case.list(self.names, &["Response", "StatusCodes"]);
        statuses.extend(self.text(&["Response", "StatusCode"]).filter(|status| status != "0"));
        if statuses.is_empty() {
            statuses.push("200".to_owned());
        }
        let code = self.text(&["Response", "Code"]).unwrap_or_else(|| "OK".to_owned());
        let code = CODES.iter().find(|(name, _)| *name == code).unwrap_or_else(|| panic!("{code}")).1;
        let status = match end {
            End::Answered { grpc_status: Some(found), .. } if self.asked.grpc => {
                return expect("gRPC status", code, *found);
            }
            End::Answered { status, .. } => *status,
            End::Redirected { status, location } => {
                self.redirect(location)?;
                *status
            }
            End::Preflight { status, headers: answered } => {
                let mut headers = Headers::default();
                answered.iter().for_each(|header| headers.add(&header.name, &header.value));
                self.answered(&headers)?;
                *status
            }
            End::Forwarded { .. } if self.is_too_late() => 504,
            End::Forwarded { .. } | End::Connected { .. } | End::Carried { .. } => 200,
            End::Refused { .. } | End::Passed { .. } => return Err(format!("{end:?}")),
        };
        if !statuses.contains(&status.to_string()) {
            return Err(format!("expected one of {statuses:?}, found {end:?}"));
        }
        if self.asked.grpc {
            expect("gRPC status", code, 0)?;
        }
        if status == 200 { self.backend() } else { Ok(()) }
    }

    /// The suite's backends wait as long as the query says.
    fn is_too_late(&self) -> bool {
        let Some(rule) = &self.explanation.rule else { return false };
        let limits = [rule.request_timeout_ms, rule.backend_request_timeout_ms];
        self.asked.path.contains("delay=1s") && limits.iter().flatten().any(|limit| *limit < 1000)
    }

    fn redirect(&self, location: &str) -> Result<(), String> {
        let Some(_) = self.case.at(&["RedirectRequest"]) else { return Ok(()) };
        let expected = |field: &str| self.text(&["RedirectRequest", field]);
        let (scheme, rest) = location.split_once("://").unwrap();
        let (authority, path) =
            rest.split_once('/').map_or((rest, String::new()), |(a, b)| (a, format!("/{b}")));
        let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
        expect("scheme", expected("Scheme").as_deref().unwrap_or("http"), scheme)?;
        expect("path", expected("Path").unwrap_or_else(|| self.asked.path.clone()), path)?;
        if let Some(expected) = expected("Host") {
            expect("host", expected.as_str(), host)?;
        }
        match expected("Port") {
            Some(expected) => expect("port", expected.as_str(), port),
            None if port.is_empty()
                || (scheme, port) == ("http", "80")
                || (scheme, port) == ("https", "443") =>
            {
                Ok(())
            }
            None => Err(format!("port {port}")),
        }
    }

    fn backend(&self) -> Result<(), String> {
        let backends = self.explanation.backends.iter().filter(|backend| backend.share > 0.0);
        for backend in backends {
            self.endpoints(backend)?;
            if let Some(request) = &backend.request {
                self.request(request)?;
            }
        }
        self.response()
    }

    /// The pods that may answer.
    fn endpoints(&self, backend: &Backend) -> Result<(), String> {
        let used: Vec<&str> = (backend.endpoints.iter().filter(|endpoint| endpoint.used))
            .map(|endpoint| endpoint.workload.as_str())
            .collect();
        let (pod, namespace) = (self.text(&["Backend"]), self.text(&["Namespace"]));
        let is_expected = |workload: &&str| {
            // Endpoints of slices written by hand are no pods.
            let Some((of, name)) = workload.split_once('/') else { return true };
            pod.as_ref().is_none_or(|pod| name.starts_with(pod.as_str()))
                && namespace.as_ref().is_none_or(|namespace| of == namespace)
        };
        match used.iter().all(is_expected) && !used.is_empty() {
            true => Ok(()),
            false => Err(format!("expected pods {namespace:?}/{pod:?}, found {used:?}")),
        }
    }

    fn request(&self, found: &SentRequest) -> Result<(), String> {
        let expected = |field: &str| {
            let nested = self.text(&["ExpectedRequest", "Request", field]);
            nested.or_else(|| self.text(&["ExpectedRequest", field]))
        };
        if !self.asked.grpc {
            expect("path", expected("Path").unwrap_or_else(|| self.asked.path.clone()), found.path.clone())?;
            let method = expected("Method").or_else(|| self.text(&["Request", "Method"]));
            expect("method", method.as_deref().unwrap_or("GET"), found.method.as_str())?;
        }
        if let Some(host) = expected("Host") {
            expect("host", host, found.host.clone())?;
        }
        let mut headers = Headers::default();
        for header in &found.headers {
            headers.add(&header.name, &header.value);
        }
        let mut wanted = self.case.pairs(self.names, &["ExpectedRequest", "Request", "Headers"]);
        wanted.extend(self.case.pairs(self.names, &["ExpectedRequest", "Headers"]));
        let absent = self.case.list(self.names, &["ExpectedRequest", "AbsentHeaders"]);
        headers.judge("request", &wanted, &absent)
    }

    /// What the filters make of the headers that the backend is told to answer with.
    fn response(&self) -> Result<(), String> {
        let mut headers = Headers::default();
        for (name, value) in self.case.pairs(self.names, &["BackendSetResponseHeaders"]) {
            headers.add(&name, &value);
        }
        let filters = self.filters();
        for filter in &filters {
            match filter {
                Filter::ResponseHeaders(edit) => headers.edit(edit),
                Filter::Cors(cors) => self.apply_cors(cors, &mut headers),
                _ => {}
            }
        }
        self.answered(&headers)
    }

    /// The code of the data path does it; what the suite expects is compared with what comes of it.
    fn apply_cors(&self, wire: &pb::Cors, headers: &mut Headers) {
        let list =
            |texts: &[String]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<HeaderName>>();
        let cors = Cors {
            origins: match wire.origins.as_slice() {
                [any] if any == "*" => Allowed::Any,
                these => {
                    Allowed::These(these.iter().map(|text| OriginPattern::parse(text).unwrap()).collect())
                }
            },
            methods: Allowed::Any,
            headers: Allowed::Any,
            exposed: Allowed::These(list(&wire.exposed)),
            credentials: if wire.credentials { Credentials::Allowed } else { Credentials::Omitted },
            max_age: wire.max_age_seconds,
        };
        let sent = self.case.pairs(self.names, &["Request", "Headers"]);
        let origin = sent.iter().find(|(name, _)| name.eq_ignore_ascii_case("origin"));
        let mut answered = HeaderMap::new();
        cors.apply(origin.map(|(_, value)| value.parse().unwrap()).as_ref(), &mut answered);
        answered.iter().for_each(|(name, value)| headers.add(name.as_str(), value.to_str().unwrap()));
    }

    fn answered(&self, headers: &Headers) -> Result<(), String> {
        let wanted = self.case.pairs(self.names, &["Response", "Headers"]);
        let absent = self.case.list(self.names, &["Response", "AbsentHeaders"]);
        for (name, _) in self.case.pairs(self.names, &["Response", "ValidHeaderValues"]) {
            let valid = self.case.list(self.names, &["Response", "ValidHeaderValues", &name]);
            let found = headers.0.get(&name.to_ascii_lowercase()).map(|values| values.join(", "));
            if !found.as_ref().is_some_and(|found| valid.contains(found)) {
                return Err(format!("{name}: expected one of {valid:?}, found {found:?}"));
            }
        }
        headers.judge("response", &wanted, &absent)
    }

    fn filters(&self) -> Vec<Filter> {
        let Some(chosen) = &self.explanation.rule else { return Vec::new() };
        let named = |route: &&std::sync::Arc<pb::Route>| {
            chosen.route.ends_with(&format!(" {}/{}", route.namespace, route.name))
        };
        let route = self.facts.translation.routes.values().find(named).unwrap();
        let rule = &route.rules[chosen.rule_index];
        let of_backends = rule.backends.iter().flat_map(|backend| &backend.filters);
        of_backends.chain(&rule.filters).filter_map(|filter| filter.kind.clone()).collect()
    }

    fn shares(&self) -> Result<(), String> {
        for (pods, expected) in &self.case.shares {
            let backends = self.explanation.backends.iter();
            let of = backends.filter(|backend| {
                let name = backend.backend.split(['/', ':']).nth(1).unwrap_or_default();
                name.starts_with(pods.as_str())
            });
            let found: f64 = of.map(|backend| backend.share).sum();
            if (found - expected).abs() > 1e-9 {
                return Err(format!("{pods}: expected {expected}, found {found}"));
            }
        }
        Ok(())
    }
}

/// Values by lower-case name.
#[derive(Default)]
struct Headers(BTreeMap<String, Vec<String>>);

impl Headers {
    fn add(&mut self, name: &str, value: &str) {
        self.0.entry(name.to_ascii_lowercase()).or_default().push(value.to_owned());
    }

    fn edit(&mut self, edit: &pb::HeaderEdit) {
        for header in &edit.set {
            self.0.remove(&header.name.to_ascii_lowercase());
            self.add(&header.name, &header.value);
        }
        edit.add.iter().for_each(|header| self.add(&header.name, &header.value));
        for name in &edit.remove {
            self.0.remove(&name.to_ascii_lowercase());
        }
    }

    fn judge(&self, whose: &str, wanted: &[(String, String)], absent: &[String]) -> Result<(), String> {
        for (name, value) in wanted {
            let found = self.0.get(&name.to_ascii_lowercase()).map(|values| values.join(","));
            expect(&format!("{whose} header {name}"), Some(value), found.as_ref())?;
        }
        match absent.iter().find(|name| self.0.contains_key(&name.to_ascii_lowercase())) {
            Some(name) => Err(format!("{whose} header {name} is there")),
            None => Ok(()),
        }
    }
}
