//! Requests to generated routes, as a user would describe them to `explain` and as the traffic client makes them.

use super::Generator;
use super::routes::ORIGINS;
use culvert_cli::explain::question::{From, Question, Spoken};
use http::Method;
use serde_json::json;
use std::net::IpAddr;

/// Who makes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// In the namespace of the Services.
    Producer,
    /// In another, which has routes of its own for some of them.
    Consumer,
    /// In a namespace that is not enrolled.
    Stranger,
}

/// Where requests go.
pub struct Addresses<'a> {
    pub namespace: &'a str,
    /// Names and addresses of the Services.
    pub services: Vec<(String, Vec<IpAddr>)>,
    /// Of a pod behind them.
    pub pod: Vec<IpAddr>,
}

/// One request.
pub struct Generated {
    pub asker: Asker,
    /// Its `x-request-id`.
    pub id: String,
    pub question: Question,
    /// The same for `culvert-echo each`.
    pub words: Vec<String>,
    pub calls_pod: bool,
    /// Made with the gRPC client, whose report is another.
    pub is_call: bool,
}

const PATHS: [&str; 20] = [
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/bc",
    "/a/b/c",
    "//a/./b",
    "/a/x/../b",
    "/b",
    "/b/c/d",
    "/bc",
    "/c",
    "/c/c",
    "/c/c",
    "/c/c",
    "/x12",
    "/%61/b",
    "/a%2fb",
    "/../up",
    "/%zz",
];
const QUERIES: [&str; 7] = ["", "", "", "?q=1", "?q=2&q=1", "?q=77", "?x=1&q=%31"];
const METHODS: [&str; 6] = ["GET", "GET", "GET", "POST", "DELETE", "HEAD"];
const HOSTS: [&str; 4] = ["example.org", "Example.ORG:81", "server.", "bad host"];
const CALLS: [&str; 5] =
    ["shop.Cart/Add", "shop.Cart/List", "shop.Bill/Add", "shop.Bill/List", "culvert.echo.v1.Echo/Unary"];

/// Not compressed, no bytes (gRPC over HTTP/2, "Length-Prefixed-Message").
const EMPTY_MESSAGE: &str = "\0\0\0\0\0";

impl Generator {
    /// The `number`th request of this asker.
    pub fn request(&mut self, number: usize, asker: Asker, from: &From, to: &Addresses<'_>) -> Generated {
        let id = format!("generated-{number}");
        let calls_pod = self.chance(if asker == Asker::Stranger { 20 } else { 4 });
        // Gateways apart, plaintext to a gRPC port is carried as bytes: the call is the server's to answer.
        let is_call = self.chance(20);
        let port = if is_call { 9003 } else { 8080 };
        let host = if calls_pod {
            let index = self.below(to.pod.len());
            literal(to.pod[index])
        } else {
            self.host(asker, to)
        };
        let mut headers = vec![format!("x-request-id: {id}")];
        for (name, percent) in [("x-v", 50), ("x-w", 20), ("x-gone", 20)] {
            if self.chance(percent) {
                headers.push(format!("{name}: {}", self.one(&["1", "2", "33"])));
            }
        }
        match is_call {
            true => {
                self.call(Begun { asker, id, from, authority: format!("{host}:{port}"), headers, calls_pod })
            }
            false => {
                self.get(Begun { asker, id, from, authority: format!("{host}:{port}"), headers, calls_pod })
            }
        }
    }

    fn host(&mut self, asker: Asker, to: &Addresses<'_>) -> String {
        let index = self.below(to.services.len());
        let (name, addresses) = &to.services[index];
        let namespace = to.namespace;
        match self.below(6) {
            0 | 1 if asker == Asker::Producer => name.clone(),
            0..=2 => format!("{name}.{namespace}"),
            3 => format!("{name}.{namespace}.svc.cluster.local"),
            _ => literal(addresses[self.below(addresses.len())]),
        }
    }

    fn get(&mut self, begun: Begun<'_>) -> Generated {
        let Begun { asker, id, from, authority, mut headers, calls_pod } = begun;
        let url = format!("http://{authority}{}{}", self.one(&PATHS), self.one(&QUERIES));
        let mut method = self.one(&METHODS).to_owned();
        let mut spoken = Spoken::Default;
        match self.below(10) {
            0..=1 => spoken = Spoken::Http2,
            2 => {
                // A gRPC call to whoever is there: Culvert's own answers are those of gRPC.
                (spoken, method) = (Spoken::Grpc, "POST".to_owned());
                headers.push("content-type: application/grpc".to_owned());
                headers.push("te: trailers".to_owned());
            }
            3 => headers.push(format!("Host: {}", self.one(&HOSTS))),
            // A page of another origin, and what its browser asks before.
            4 => headers.push(format!("origin: {}", self.one(&ORIGINS))),
            5..=6 => {
                method = "OPTIONS".to_owned();
                headers.push(format!("origin: {}", self.one(&ORIGINS)));
                headers.push(format!("access-control-request-method: {}", self.one(&["PUT", "DELETE"])));
                if self.chance(50) {
                    headers.push("access-control-request-headers: x-v".to_owned());
                }
            }
            _ => {}
        }
        let mut words = vec!["get".to_owned(), url.clone(), "--method".to_owned(), method.clone()];
        for header in &headers {
            words.extend(["--header".to_owned(), header.clone()]);
        }
        if spoken != Spoken::Default {
            words.push("--http2".to_owned());
        }
        if spoken == Spoken::Grpc {
            words.extend(["--body", EMPTY_MESSAGE].map(str::to_owned));
        }
        let method = method.parse::<Method>().expect("a method of the list");
        let question = Question::new(from.clone(), Some(method), &url, &headers, spoken);
        let question = question.expect("a request that can be asked about");
        Generated { asker, id, question, words, calls_pod, is_call: false }
    }

    fn call(&mut self, begun: Begun<'_>) -> Generated {
        let Begun { asker, id, from, authority, mut headers, calls_pod } = begun;
        let called = self.one(&CALLS);
        let (service, method) = called.split_once('/').expect("SERVICE/METHOD");
        let url = format!("http://{authority}/{called}");
        let mut words: Vec<String> =
            ["grpc", &authority, "--service", service, "--method", method].map(str::to_owned).to_vec();
        for header in &headers {
            words.extend(["--header".to_owned(), header.clone()]);
        }
        headers.push("te: trailers".to_owned());
        let question = Question::new(from.clone(), None, &url, &headers, Spoken::Grpc);
        let question = question.expect("a call that can be asked about");
        Generated { asker, id, question, words, calls_pod, is_call: true }
    }
}

impl Generated {
    /// What `culvert-echo each` reads.
    pub fn line(&self) -> String {
        json!(self.words).to_string()
    }
}

/// What requests and calls have in common.
struct Begun<'a> {
    asker: Asker,
    id: String,
    from: &'a From,
    authority: String,
    headers: Vec<String>,
    calls_pod: bool,
}

fn literal(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}
