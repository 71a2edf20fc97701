use culvert_objects::{Object, Objects};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use serde_json::{Value, json};

use crate::answer::{Transport, answer};
use crate::zone::Zone;

fn object(kind: &str, version: &str, name: &str, rest: Value) -> Object {
    let mut value =
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}});
    for (field, part) in rest.as_object().unwrap() {
        match field.as_str() {
            "labels" => value["metadata"]["labels"] = part.clone(),
            _ => value[field] = part.clone(),
        }
    }
    serde_json::from_value(value).unwrap()
}

fn endpoint(address: &str, ready: bool, hostname: Option<&str>) -> Value {
    json!({"addresses": [address], "conditions": {"ready": ready}, "hostname": hostname})
}

fn zone() -> Zone {
    let slice = |name: &str, family: &str, endpoints: Value| {
        let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
        object(
            "EndpointSlice",
            "discovery.k8s.io/v1",
            name,
            json!({"addressType": family, "ports": ports,
            "endpoints": endpoints, "labels": {"kubernetes.io/service-name": "db"}}),
        )
    };
    let many: Vec<Value> = (0..100).map(|n| endpoint(&format!("10.244.9.{n}"), true, None)).collect();
    let mut crowd = slice("crowd-1", "IPv4", json!(many));
    crowd.metadata.labels.insert("kubernetes.io/service-name".to_owned(), "crowd".to_owned());
    let service = |name: &str, spec: Value| object("Service", "v1", name, json!({"spec": spec}));
    let objects: Objects = [
        object("Namespace", "v1", "shop", json!({})),
        service(
            "cart",
            json!({"clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1", "fd00:10:96::1:1"],
            "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        ),
        service("single", json!({"clusterIP": "10.96.1.2", "ports": [{"port": 80}]})),
        service("db", json!({"clusterIP": "None", "selector": {"app": "db"}})),
        service("crowd", json!({"clusterIP": "None", "selector": {"app": "crowd"}})),
        service("outside", json!({"type": "ExternalName", "externalName": "example.com"})),
        service("alias", json!({"type": "ExternalName", "externalName": "cart.shop.svc.cluster.local."})),
        service("loop", json!({"type": "ExternalName", "externalName": "loop.shop.svc.cluster.local"})),
        slice(
            "db-1",
            "IPv4",
            json!([
                endpoint("10.244.1.5", true, Some("db-0")),
                endpoint("10.244.2.5", false, Some("db-1")),
                endpoint("10.244.2.6", true, None)
            ]),
        ),
        slice("db-2", "IPv6", json!([endpoint("fd00::5", true, Some("db-0"))])),
        crowd,
        object("Pod", "v1", "p", json!({"status": {"podIP": "10.244.1.5"}})),
    ]
    .into_iter()
    .collect();
    Zone::build(&objects, "cluster.local", 7)
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn send(message: &Message, transport: Transport) -> Message {
    Message::from_vec(&answer(&zone(), &message.to_vec().unwrap(), transport).unwrap()).unwrap()
}

fn ask(name: &str, kind: RecordType) -> Message {
    let request = query(name, kind);
    let response = send(&request, Transport::Tcp);
    assert_eq!(response.metadata.id, request.metadata.id);
    assert_eq!(response.metadata.message_type, MessageType::Response);
    assert_eq!(response.queries, request.queries);
    response
}

fn data(message: &Message) -> Vec<String> {
    let mut data: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
    data.sort();
    data
}

#[test]
fn services_have_the_addresses_of_their_families() {
    assert_eq!(data(&ask("cart.shop.svc.cluster.local.", RecordType::A)), ["10.96.1.1"]);
    assert_eq!(data(&ask("CART.Shop.svc.cluster.LOCAL.", RecordType::AAAA)), ["fd00:10:96::1:1"]);
    let mixed = ask("CaRt.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(
        mixed.answers[0].name.to_ascii(),
        "CaRt.shop.svc.cluster.local.",
        "the client's spelling is kept"
    );
    assert!(mixed.metadata.authoritative);
}

#[test]
fn a_name_without_such_records_exists_and_any_other_does_not() {
    let no_data = ask("single.shop.svc.cluster.local.", RecordType::AAAA);
    assert_eq!(no_data.metadata.response_code, ResponseCode::NoError);
    assert!(no_data.answers.is_empty() && matches!(no_data.authorities[0].data, RData::SOA(_)));
    for between in [
        "shop.svc.cluster.local.",
        "svc.cluster.local.",
        "cluster.local.",
        "_tcp.cart.shop.svc.cluster.local.",
    ] {
        assert_eq!(ask(between, RecordType::A).metadata.response_code, ResponseCode::NoError, "{between}");
    }
    for missing in
        ["no.shop.svc.cluster.local.", "cart.no.svc.cluster.local.", "x.cart.shop.svc.cluster.local."]
    {
        let response = ask(missing, RecordType::A);
        assert_eq!(response.metadata.response_code, ResponseCode::NXDomain, "{missing}");
        assert!(matches!(response.authorities[0].data, RData::SOA(_)));
    }
    for outside in ["example.com.", "cart.", "mycluster.local.", ".", "1.1.1.1.in-addr.arpa."] {
        let response = ask(outside, RecordType::A);
        assert_eq!(response.metadata.response_code, ResponseCode::NXDomain, "{outside}");
        assert!(!response.metadata.authoritative);
    }
}

#[test]
fn headless_services_are_their_ready_endpoints() {
    let all = ask("db.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(data(&all), ["10.244.1.5", "10.244.2.6"]);
    assert_eq!(data(&ask("db.shop.svc.cluster.local.", RecordType::AAAA)), ["fd00::5"]);
    assert_eq!(data(&ask("db-0.db.shop.svc.cluster.local.", RecordType::A)), ["10.244.1.5"]);
    assert_eq!(data(&ask("10-244-2-6.db.shop.svc.cluster.local.", RecordType::A)), ["10.244.2.6"]);
    let gone = ask("db-1.db.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain, "not ready");
}

#[test]
fn ports_have_srv_records_with_the_targets_addresses_beside_them() {
    let service = ask("_http._tcp.cart.shop.svc.cluster.local.", RecordType::SRV);
    assert_eq!(data(&service), ["0 100 80 cart.shop.svc.cluster.local."]);
    assert_eq!(service.additionals.len(), 2);
    assert_eq!(data(&ask("_dns._udp.cart.shop.svc.cluster.local.", RecordType::SRV)).len(), 1);
    let endpoints = ask("_http._tcp.db.shop.svc.cluster.local.", RecordType::SRV);
    let names =
        ["0 100 8080 10-244-2-6.db.shop.svc.cluster.local.", "0 100 8080 db-0.db.shop.svc.cluster.local."];
    assert_eq!(data(&endpoints), names);
}

#[test]
fn aliases_are_followed_inside_the_cluster_only() {
    assert_eq!(data(&ask("outside.shop.svc.cluster.local.", RecordType::A)), ["example.com."]);
    let inside = data(&ask("alias.shop.svc.cluster.local.", RecordType::A));
    assert_eq!(inside, ["10.96.1.1", "cart.shop.svc.cluster.local."]);
    assert_eq!(data(&ask("alias.shop.svc.cluster.local.", RecordType::CNAME)).len(), 1);
    let endless = ask("loop.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(endless.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn addresses_have_names() {
    assert_eq!(data(&ask("1.1.96.10.in-addr.arpa.", RecordType::PTR)), ["cart.shop.svc.cluster.local."]);
    assert_eq!(data(&ask("5.1.244.10.in-addr.arpa.", RecordType::PTR)), ["db-0.db.shop.svc.cluster.local."]);
    assert_eq!(data(&ask("10-244-1-5.shop.pod.cluster.local.", RecordType::A)), ["10.244.1.5"]);
    assert_eq!(data(&ask("dns-version.cluster.local.", RecordType::TXT)), ["1.1.0"]);
    assert_eq!(data(&ask("cluster.local.", RecordType::NS)), ["ns.dns.cluster.local."]);
}

#[test]
fn long_answers_are_cut_over_udp_unless_the_client_can_take_them() {
    let request = query("crowd.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(send(&request, Transport::Tcp).answers.len(), 100);
    let cut = send(&request, Transport::Udp);
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let bytes = answer(&zone(), &request.to_vec().unwrap(), Transport::Udp).unwrap();
    assert!(bytes.len() <= 512);

    let mut offering = query("db.shop.svc.cluster.local.", RecordType::SRV);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    offering.set_edns(edns);
    let response = send(&offering, Transport::Udp);
    assert!(!response.metadata.truncation && response.edns.is_some());
}

#[test]
fn what_is_not_a_plain_question_is_refused_politely() {
    let code = |message: &Message| send(message, Transport::Udp).metadata.response_code;
    let name = "cart.shop.svc.cluster.local.";
    let mut update = query(name, RecordType::A);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&update), ResponseCode::NotImp);
    let mut chaos = query(name, RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), ResponseCode::Refused);
    assert_eq!(code(&query("cluster.local.", RecordType::AXFR)), ResponseCode::Refused);
    let mut two = query(name, RecordType::A);
    two.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::AAAA));
    assert_eq!(code(&two), ResponseCode::FormErr);
    let mut future = query(name, RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    future.set_edns(edns);
    // 16 means BADVERS here and BADSIG elsewhere.
    assert_eq!(u16::from(code(&future)), 16);
}

#[test]
fn rubbish_never_stops_the_server() {
    let zone = zone();
    let good = query("cart.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    for length in 0..good.len() {
        let _ = answer(&zone, &good[..length], Transport::Udp);
    }
    // Every single-byte corruption, and a linear congruential stream of bytes.
    for position in 0..good.len() {
        for value in 0..=255 {
            let mut bad = good.clone();
            bad[position] = value;
            let _ = answer(&zone, &bad, Transport::Udp);
        }
    }
    let mut state = 1_u64;
    for length in 0..2000 {
        let bytes: Vec<u8> = (0..length % 300)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        let _ = answer(&zone, &bytes, Transport::Tcp);
    }
    assert_eq!(answer(&zone, &[], Transport::Udp), None);
    let mut response = query("cart.shop.svc.cluster.local.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    assert_eq!(answer(&zone, &response.to_vec().unwrap(), Transport::Udp), None, "never answer an answer");
}
