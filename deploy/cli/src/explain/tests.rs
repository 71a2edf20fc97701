//! One question per kind of outcome, against a small mesh in files; what is said is golden.

use super::data::{End, Explanation, GroupKind, Parent, Verdict, WhyNot};
use super::facts::{self, Facts, Source};
use super::question::{Question, Spoken};
use super::{explanation, render};
use crate::sandbox::cluster::Cluster;
use culvert_objects::manifest;
use std::path::Path;

const MESH: &str = include_str!("testdata/mesh.yaml");

fn mesh_of(text: &str) -> Facts {
    let cluster = Cluster::new("files", 2);
    let objects = facts::files::objects(&cluster, manifest::parse(text, Path::new("mesh.yaml"))).unwrap();
    Facts::new(objects, &cluster, Source::Files)
}

struct Ask<'a> {
    from: &'a str,
    url: &'a str,
    headers: &'a [&'a str],
    spoken: Spoken,
    method: Option<http::Method>,
}

impl<'a> Ask<'a> {
    fn get(from: &'a str, url: &'a str) -> Self {
        Self { from, url, headers: &[], spoken: Spoken::Default, method: None }
    }

    fn of(&self, facts: &Facts) -> Explanation {
        let headers: Vec<String> = self.headers.iter().map(|line| (*line).to_owned()).collect();
        let from = self.from.parse().unwrap();
        let question = Question::new(from, self.method.clone(), self.url, &headers, self.spoken).unwrap();
        explanation::explain(facts, &question).unwrap()
    }

    fn explained(&self) -> Explanation {
        self.of(&mesh_of(MESH))
    }
}

fn only(explanation: &Explanation) -> &End {
    match explanation.outcomes.as_slice() {
        [only] => &only.end,
        several => panic!("{several:?}"),
    }
}

fn reason(explanation: &Explanation) -> (u16, Option<u16>, &str) {
    match only(explanation) {
        End::Answered { status, grpc_status, reason, .. } => (*status, *grpc_status, reason),
        other => panic!("{other:?}"),
    }
}

/// The text of one question.
fn golden(name: &str, explanation: &Explanation) {
    insta::with_settings!({snapshot_path => "testdata", prepend_module_to_snapshot => false}, {
        insta::assert_snapshot!(name, render::text(explanation));
    });
}

#[test]
fn weights_rewrites_and_an_invalid_backend() {
    let ask =
        Ask { headers: &["x-secret: 1", "x-kept: 2"], ..Ask::get("shop/web", "http://cart/api//a/../b?c=d") };
    let explanation = ask.explained();
    golden("split", &explanation);
    assert_eq!(explanation.rule.as_ref().unwrap().rule, "split");
    let request = explanation.backends[0].request.as_ref().unwrap();
    assert_eq!((request.path.as_str(), request.host.as_str()), ("/v2/b?c=d", "cart.internal"));
    let shares: Vec<f64> = explanation.outcomes.iter().map(|outcome| outcome.share).collect();
    assert_eq!(shares, [0.75, 0.25]);
    let End::Answered { status: 500, reason, .. } = &explanation.outcomes[1].end else { panic!() };
    assert_eq!(reason, "InvalidBackend");
}

#[test]
fn a_rule_that_matches_too_is_outranked() {
    let ask = Ask { headers: &["x-tester: yes"], ..Ask::get("shop/web", "http://cart/api") };
    let explanation = ask.explained();
    golden("outranked", &explanation);
    let verdict = |rule: &str| explanation.candidates.iter().find(|one| one.rule == rule).unwrap().verdict;
    assert_eq!(
        (verdict("split"), verdict("testers"), verdict("nobody")),
        (Verdict::Wins, Verdict::Outranked, Verdict::Mismatch)
    );
}

#[test]
fn redirects_are_answers() {
    let explanation = Ask::get("shop/web", "http://cart/old/a?b").explained();
    golden("redirect", &explanation);
    assert_eq!(
        only(&explanation),
        &End::Redirected { status: 301, location: "http://cart/new/a?b".to_owned() }
    );
}

/// A Service with a route of its own, beside the mesh of the other tests.
const API: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.120, selector: {app: cart}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: api, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: api}]
  rules:
    - filters:
        - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-copied, value: "1"}]}}
        - {type: RequestMirror, requestMirror: {backendRef: {name: canary, port: 80}, percent: 20}}
        - {type: RequestMirror, requestMirror: {backendRef: {name: missing, port: 80}}}
        - {type: CORS, cors: {allowOrigins: ["https://*.example.com"], allowMethods: [PUT], allowCredentials: true}}
        - {type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /inner}}}
      backendRefs: [{name: cart, port: 80}]
"#;

#[test]
fn mirrors_see_the_request_as_it_stands_at_their_place() {
    let facts = mesh_of(&format!("{MESH}{API}"));
    let explanation = Ask::get("shop/web", "http://api/outer").of(&facts);
    golden("mirrors", &explanation);
    let [canary, missing] = explanation.mirrors.as_slice() else { panic!("{:?}", explanation.mirrors) };
    assert_eq!((canary.mirror.as_str(), canary.share), ("shop/canary:80", 0.2));
    let sent = canary.request.as_ref().unwrap();
    assert_eq!((sent.path.as_str(), sent.headers.iter().any(|one| one.name == "x-copied")), ("/outer", true));
    assert_eq!(explanation.backends[0].request.as_ref().unwrap().path, "/inner");
    assert!(missing.why_not.as_ref().unwrap().contains("there is no Service shop/missing"));
}

#[test]
fn preflights_are_answers() {
    let facts = mesh_of(&format!("{MESH}{API}"));
    const ASKED: &str = "access-control-request-method: PUT";
    let ask = |origin: &'static [&'static str]| Ask {
        headers: origin,
        method: Some(http::Method::OPTIONS),
        ..Ask::get("shop/web", "http://api/")
    };
    let granted = ask(&["origin: https://a.example.com", ASKED]).of(&facts);
    golden("preflight", &granted);
    assert!(matches!(only(&granted), End::Preflight { status: 204, .. }));
    assert!(granted.mirrors.is_empty(), "it is not copied");
    assert_eq!(
        reason(&ask(&["origin: https://a.example", ASKED]).of(&facts)),
        (403, None, "OriginNotAllowed")
    );
}

#[test]
fn statuses_of_culverts_own() {
    let not_found = Ask::get("shop/web", "http://cart/nowhere").explained();
    golden("404", &not_found);
    assert_eq!(reason(&not_found), (404, None, "RouteNotFound"));
    let unavailable = Ask::get("shop/web", "http://cart/nobody").explained();
    golden("503", &unavailable);
    assert_eq!(reason(&unavailable), (503, None, "NoEndpoint"));
    assert_eq!(reason(&Ask::get("shop/web", "http://cart/a%zz").explained()).0, 400);
    assert_eq!(reason(&Ask::get("shop/web", "http://cart/../x").explained()).0, 400);
    let large = format!("x-large: {}", "a".repeat(70_000));
    let ask = Ask { headers: &[&large], ..Ask::get("shop/web", "http://cart/") };
    assert_eq!(reason(&ask.explained()), (431, None, "HeadersTooLarge"));
}

#[test]
fn consumer_routes_replace_producer_routes() {
    let explanation = Ask::get("audit/auditor", "http://cart.shop/nowhere").explained();
    golden("consumer", &explanation);
    assert_eq!(explanation.group.as_ref().unwrap().kind, GroupKind::Consumer);
    assert_eq!(explanation.not_applied[0].reason, WhyNot::ReplacedByConsumerRoutes);
    assert_eq!(only(&explanation), &End::Forwarded { backend: "shop/canary:80".to_owned() });
}

#[test]
fn pod_addresses_are_not_routed() {
    let facts = mesh_of(MESH);
    let pods = facts.objects.find(culvert_objects::Kind::Pod, "shop", "cart-1").unwrap();
    let address = pods.body["status"]["podIP"].as_str().unwrap().to_owned();
    let url = format!("http://{address}:8080/api");
    let explanation = Ask::get("shop/web", &url).of(&facts);
    golden("pod-address", &explanation);
    assert_eq!(explanation.not_applied[0].reason, WhyNot::PodAddressCalled);
    assert_eq!(explanation.not_applied[0].routes, ["HTTPRoute shop/cart"]);
    assert_eq!(only(&explanation), &End::Carried { to: "shop/cart-1".to_owned() });
}

#[test]
fn clients_outside_the_mesh_are_not_routed() {
    let explanation = Ask::get("legacy/old", "http://cart.shop/api").explained();
    golden("not-enrolled", &explanation);
    assert_eq!(explanation.not_applied[0].reason, WhyNot::ClientNotEnrolled);
    assert!(matches!(only(&explanation), End::Passed { .. }));
    let strict = Ask::get("legacy/old", "http://safe.vault/").explained();
    let End::Refused { reason, .. } = only(&strict) else { panic!("{strict:?}") };
    assert_eq!(reason, "PlaintextRefused");
}

#[test]
fn grpc_calls_are_answered_as_such() {
    let call = |url| Ask { spoken: Spoken::Grpc, ..Ask::get("shop/web", url) };
    let unimplemented = call("http://rpc:9003/shop.Cart/Remove").explained();
    golden("unimplemented", &unimplemented);
    assert_eq!(reason(&unimplemented), (200, Some(12), "RouteNotFound"));
    let add = call("http://rpc:9003/shop.Cart/Add").explained();
    assert_eq!(only(&add), &End::Forwarded { backend: "shop/rpc:9003".to_owned() });
    let plain = Ask::get("shop/web", "http://rpc:9003/shop.Cart/Add").explained();
    assert_eq!(reason(&plain), (404, None, "RouteNotFound"));
    assert!(plain.candidates[0].why.as_ref().unwrap().contains("not a gRPC call"));
}

#[test]
fn ports_without_routes_say_why() {
    let raw = Ask::get("shop/web", "http://cart:9000/").explained();
    golden("declared-tcp", &raw);
    let reasons: Vec<WhyNot> = raw.not_applied.iter().map(|one| one.reason).collect();
    assert_eq!(reasons, [WhyNot::ConsumersOfOtherNamespace, WhyNot::OtherPort, WhyNot::NoRoutes]);
    let of_others: Vec<WhyNot> =
        Ask::get("shop/web", "http://cart/").explained().not_applied.iter().map(|one| one.reason).collect();
    assert_eq!(of_others, [WhyNot::ConsumersOfOtherNamespace]);
    let http = Ask::get("shop/web", "http://canary/").explained();
    assert_eq!(only(&http), &End::Forwarded { backend: "shop/canary:80".to_owned() });
    let no_port = Ask::get("shop/web", "http://canary:81/").explained();
    let End::Refused { reason, .. } = only(&no_port) else { panic!("{no_port:?}") };
    assert_eq!(reason, "NoServicePort");
    let unknown = Ask::get("shop/web", "http://10.244.9.9/").explained();
    let End::Refused { reason, .. } = only(&unknown) else { panic!("{unknown:?}") };
    assert_eq!(reason, "UnknownDestination");
    assert!(matches!(only(&Ask::get("shop/web", "http://www.example.com/").explained()), End::Passed { .. }));
    assert!(matches!(only(&Ask::get("shop/web", "http://nobody/").explained()), End::Passed { .. }));
}

const CONNECTIONS: &str = r#"
---
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: shop}
spec: {clusterIP: 10.96.0.120, selector: {app: cart}, ports: [{name: sql, port: 5432, targetPort: 8080}, {name: tls, port: 5433, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: ledger, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: ledger, port: 5432}]
  rules: [{backendRefs: [{name: ledger, port: 5432, weight: 2}, {name: empty, port: 80}, {name: gone, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: wide, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: ledger, port: 5433}]
  hostnames: ["*.shop.example"]
  rules: [{backendRefs: [{name: ledger, port: 5433}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: exact, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: ledger, port: 5433}]
  hostnames: [pay.shop.example]
  rules: [{backendRefs: [{name: ledger, port: 5433, weight: 0}]}]
"#;

#[test]
fn connections_are_explained_as_requests_are() {
    let facts = mesh_of(&format!("{MESH}{CONNECTIONS}"));
    let asked = |url: &str, name: &str| {
        let question = Question::new("shop/web".parse().unwrap(), None, url, &[], Spoken::Default).unwrap();
        let question = if name.is_empty() { question } else { question.with_server_name(name).unwrap() };
        explanation::explain(&facts, &question).unwrap()
    };
    let refused = |explanation: &Explanation| match only(explanation) {
        End::Refused { reason, .. } => reason.clone(),
        other => panic!("{other:?}"),
    };
    let shared = asked("tcp://ledger:5432", "");
    golden("tcp", &shared);
    let shares: Vec<f64> = shared.outcomes.iter().map(|outcome| outcome.share).collect();
    assert_eq!(shares, [0.5, 0.25, 0.25]);
    // Whatever is spoken.
    assert_eq!(asked("http://ledger:5432/", "").outcomes, shared.outcomes);
    assert_eq!(asked("tls://ledger:5432", "a.example").outcomes, shared.outcomes);

    let wide = asked("tls://ledger:5433", "a.b.shop.example");
    golden("tls", &wide);
    assert_eq!(only(&wide), &End::Connected { backend: "shop/ledger:5433".to_owned() });
    assert_eq!(refused(&asked("tls://ledger:5433", "pay.shop.example")), "NoBackend");
    assert_eq!(refused(&asked("tls://ledger:5433", "")), "RouteNotFound");
    assert_eq!(refused(&asked("tcp://ledger:5433", "")), "ProtocolMismatch");
    assert_eq!(refused(&asked("http://ledger:5433/", "")), "ProtocolMismatch");
    // Where requests are routed, nothing else passes.
    assert_eq!(refused(&asked("tls://cart:80", "a.example")), "ProtocolMismatch");
}

#[test]
fn gateways_are_asked_by_host() {
    let host = |host: &'static str| match host {
        "" => Ask::get("outside", "http://10.90.0.10/"),
        _ => Ask { headers: &["Host: shop.example.com"], ..Ask::get("outside", "http://10.90.0.10/") },
    };
    let explanation = host("shop").explained();
    // The pod's name ends with hashes.
    let mut named = explanation.clone();
    if let Parent::Listener { pods, .. } = &mut named.parent {
        assert!(pods[0].starts_with("shop/edge-culvert-"), "{pods:?}");
        *pods = vec!["POD".to_owned()];
    }
    golden("gateway", &named);
    assert_eq!(explanation.group.as_ref().unwrap().kind, GroupKind::Listener);
    assert_eq!(only(&explanation), &End::Forwarded { backend: "shop/cart:80".to_owned() });
    let unrouted = host("").explained();
    assert_eq!(reason(&unrouted), (404, None, "RouteNotFound"));
    let Parent::Listener { listener: Some(listener), .. } = &unrouted.parent else { panic!("{unrouted:?}") };
    assert_eq!(listener, "shop/edge/any");
    let pod = Ask { headers: &["Host: shop.example.com"], ..Ask::get("shop/web", "http://edge-culvert/") }
        .explained();
    assert!(
        matches!(&pod.parent, Parent::Listener { listener: Some(listener), .. } if listener == "shop/edge/api")
    );
    assert_eq!(only(&pod), &End::Forwarded { backend: "shop/cart:80".to_owned() });
    let closed = Ask::get("outside", "http://10.90.0.10:81/").explained();
    assert!(matches!(only(&closed), End::Passed { .. }), "{closed:?}");
}

#[test]
fn the_examples_of_the_manual_are_explained() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples");
    let text: Vec<String> = ["shop-enrolled.yaml", "shop.yaml", "canary.yaml"]
        .iter()
        .map(|name| std::fs::read_to_string(examples.join(name)).unwrap())
        .collect();
    // The enrolled namespace takes the place of the plain one.
    let shop = text[1].split_once("---").unwrap().1;
    let facts = mesh_of(&format!("{}\n---\n{shop}\n---\n{}", text[0], text[2]));
    let everybody = Ask::get("shop/deploy/web", "http://cart/").of(&facts);
    assert_eq!(everybody.rule.as_ref().unwrap().rule, "everybody");
    assert_eq!(everybody.outcomes.iter().map(|one| one.share).collect::<Vec<_>>(), [0.9, 0.1]);
    let tester =
        Ask { headers: &["x-tester: yes"], ..Ask::get("shop/deploy/web", "http://cart/") }.of(&facts);
    assert_eq!(only(&tester), &End::Forwarded { backend: "shop/cart-canary:80".to_owned() });
}
