//! An explanation as data: what `-o json` prints and what the text is written from.

use serde::Serialize;
use std::net::{IpAddr, SocketAddr};

use crate::ejected::Ejected;

/// What becomes of one request, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// `sandbox NAME`, `cluster URL` or `files`.
    pub source: String,
    /// What had to be taken for granted.
    pub assumed: Vec<String>,
    pub request: Request,
    pub client: Client,
    pub destination: Destination,
    pub parent: Parent,
    /// Absent when the mesh does not handle the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handling: Option<Handling>,
    /// The routes that decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// Why other routes, or all of them, have no say.
    pub not_applied: Vec<NotApplied>,
    /// Every match of every rule of the group, in order of precedence.
    pub candidates: Vec<Candidate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// Of the Service that was called, where no route decides; a rule has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
    /// Who may get the request; without routes the Service or pod that was called.
    pub backends: Vec<Backend>,
    /// Who gets copies of the request beside them.
    pub mirrors: Vec<Mirror>,
    /// Everything that may come of it. Shares add up to 1.
    pub outcomes: Vec<Outcome>,
    /// What the client's node proxy has in force; of a live cluster only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_proxy: Option<NodeProxy>,
}

/// What the node proxy of the client says. Everything else is made from objects: what of them it does not have yet, or has
/// refused, it does not follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeProxy {
    pub node: String,
    #[serde(flatten)]
    pub answer: NodeProxyAnswer,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum NodeProxyAnswer {
    InForce(InForce),
    /// Why it could not be asked.
    Not {
        unreachable: String,
    },
}

/// What a node proxy decides on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InForce {
    /// Of its state.
    pub version: String,
    /// Whether its stream from the controller is up.
    pub connected: bool,
    /// It goes on with what it has kept from before its last start.
    pub stale: bool,
    /// How the client's pod fares there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Resources that it does not follow, and why.
    pub refused: Vec<String>,
    /// Endpoints that its pods pass over because they fail.
    pub ejected: Vec<Ejected>,
}

/// As it was asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Request {
    /// Empty for a connection.
    pub method: String,
    pub url: String,
    /// `HTTP/1.1` or `HTTP/2.0`; of a connection `TLS` or `TCP`.
    pub version: &'static str,
    /// What the client's TLS asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    pub headers: Vec<Header>,
    pub grpc: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Header {
    pub name: String,
    pub value: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Client {
    /// `namespace/name`; absent for a client outside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    pub enrolled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Destination {
    /// As the URL has it.
    pub host: String,
    /// The cluster's name for it, when a name was looked up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub addresses: Vec<IpAddr>,
    pub port: u16,
}

/// What the destination address is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Parent {
    Service {
        service: String,
        address: SocketAddr,
    },
    Pod {
        pod: String,
        address: SocketAddr,
    },
    Listener {
        gateway: String,
        /// `namespace/gateway/listener`; absent when none has the host and port.
        #[serde(skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
        /// Any of them.
        pods: Vec<String>,
    },
    /// In the cluster's ranges, but nobody's.
    Unknown {
        address: SocketAddr,
    },
    Outside {
        address: Option<SocketAddr>,
    },
    /// The name does not exist.
    NoSuchName,
}

/// What the node proxy makes of the connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Handling {
    pub layer: Layer,
    pub why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// Each request is decided on.
    Requests,
    /// One endpoint for all bytes of the connection.
    Bytes,
    Refused,
}

/// Groups never merge: one of them decides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    pub kind: GroupKind,
    /// Of the clients, for consumer routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub routes: Vec<String>,
    /// Producer routes that the consumer routes replace.
    pub replaced: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupKind {
    Consumer,
    Producer,
    Listener,
}

/// Why routes have no say, in a word and in a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotApplied {
    pub reason: WhyNot,
    pub message: String,
    /// Those it is about.
    pub routes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum WhyNot {
    ClientNotEnrolled,
    ExcludedOutbound,
    PodAddressCalled,
    ReplacedByConsumerRoutes,
    ConsumersOfOtherNamespace,
    OtherPort,
    NoRoutes,
    NotAccepted,
    DestinationOutsideMesh,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// `HTTPRoute namespace/name`
    pub route: String,
    /// Name of the rule, else its place.
    pub rule: String,
    pub rule_index: usize,
    /// What it asks for.
    pub matches: String,
    pub verdict: Verdict,
    /// Why it does not get the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Wins,
    Outranked,
    Mismatch,
}

/// The rule that gets the request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rule {
    pub route: String,
    pub rule: String,
    pub rule_index: usize,
    /// In the order in which they are applied.
    pub filters: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_request_timeout_ms: Option<u64>,
    /// When what failed is sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// What keeps a client at its endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
}

/// Requests that show a session of it go where that is at home, whatever the weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Session {
    /// `cookie` or `header`.
    pub by: &'static str,
    pub name: String,
    /// Of a cookie; absent where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absolute_timeout_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retry {
    /// Beside lost connections and tries whose time is up.
    pub codes: Vec<u16>,
    pub attempts: u32,
    pub backoff_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backend {
    /// `namespace/name:port`; what was asked for, where that cannot be followed.
    pub backend: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Of the requests, from 0 to 1.
    pub share: f64,
    pub filters: Vec<String>,
    /// Absent where none is sent to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<SentRequest>,
    /// How much of the requests to it may be sent again, if the rule asks for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
    pub endpoints: Vec<Endpoint>,
}

/// Per node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RetryBudget {
    pub percent: u32,
    pub interval_ms: u64,
    pub min_retries: u32,
    pub min_interval_ms: u64,
}

/// Gets copies, and nobody sees its answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mirror {
    /// `namespace/name:port`; what was asked for, where that cannot be followed.
    pub mirror: String,
    /// Of the requests that reach it, from 0 to 1.
    pub share: f64,
    /// Only of requests for this backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Why nothing is copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// As the mirror sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<SentRequest>,
    pub endpoints: Vec<Endpoint>,
}

/// The request as the backend sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SentRequest {
    pub method: String,
    /// With the query.
    pub path: String,
    pub host: String,
    /// Without those of the connection. `x-request-id` and `traceparent` are made when the client sends none.
    pub headers: Vec<Header>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Endpoint {
    /// `namespace/name`, or the address of an endpoint without a pod.
    pub workload: String,
    pub node: String,
    pub address: SocketAddr,
    pub state: EndpointState,
    /// May be chosen for this request.
    pub used: bool,
    /// May be chosen when too few of the nearer ones are left, or they are overloaded.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub spill_over: bool,
    /// It fails, and the node proxy passes it over; known of a running mesh only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected: Option<Ejected>,
    pub transport: Transport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    Ready,
    NotReady,
    /// Ends, and still serves.
    Terminating,
    Gone,
}

/// How an endpoint is reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Transport {
    /// A CONNECT stream over mutual TLS; the peer must prove the identity.
    Hbone {
        to: SocketAddr,
        identity: String,
    },
    Plaintext {
        why: String,
    },
    /// Its node has not said whether it captures it: connections wait, and are not plaintext.
    Undecided,
}

/// One thing that may come of the request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Of the requests, from 0 to 1.
    pub share: f64,
    #[serde(flatten)]
    pub end: End,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum End {
    /// A request to the backend; its answer goes back.
    Forwarded {
        backend: String,
    },
    Redirected {
        status: u16,
        location: String,
    },
    /// What a browser asks before the request proper (CORS) is granted.
    Preflight {
        status: u16,
        headers: Vec<Header>,
    },
    /// Culvert answers itself.
    Answered {
        status: u16,
        /// For gRPC calls, whose HTTP status then is 200.
        #[serde(skip_serializing_if = "Option::is_none")]
        grpc_status: Option<u16>,
        reason: String,
        message: String,
    },
    /// The connection's bytes to one endpoint of the backend that its route says.
    Connected {
        backend: String,
    },
    /// The connection's bytes to one endpoint of that Service or pod, unrouted.
    Carried {
        to: String,
    },
    /// The connection is reset.
    Refused {
        reason: String,
        message: String,
    },
    /// Not the mesh's: the node's own rules and the network decide.
    Passed {
        message: String,
    },
}
