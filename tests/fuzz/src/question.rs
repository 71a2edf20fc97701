//! Questions to the sandbox's DNS.

use std::sync::LazyLock;

use culvert_dns::answer::{Transport, answer};
use culvert_dns::zone::Zone;
use culvert_objects::{Object, Objects};
use hickory_proto::op::{Message, MessageType};
use serde_json::json;

/// What an answer over UDP without EDNS may have at most (RFC 1035), and with it (RFC 9715).
const LARGEST: [usize; 2] = [512, 1232];

/// DNS questions: an answer is one, to that question, fits its transport, and is never given to an answer.
pub fn dns_question(bytes: &[u8]) {
    static ZONE: LazyLock<Zone> = LazyLock::new(zone);
    let asked = Message::from_vec(bytes).ok();
    let over_udp = answer(&ZONE, bytes, Transport::Udp);
    let over_tcp = answer(&ZONE, bytes, Transport::Tcp);
    assert_eq!(over_udp.is_some(), over_tcp.is_some());
    let (Some(short), Some(long)) = (over_udp, over_tcp) else {
        let is_question = asked.is_some_and(|asked| asked.metadata.message_type == MessageType::Query);
        return assert!(!is_question, "a question is not answered");
    };
    assert_eq!(bytes[2] & 0x80, 0, "an answer is answered: two servers would go on for ever");
    let offers = asked.as_ref().is_some_and(|asked| asked.edns.is_some());
    assert!(short.len() <= LARGEST[usize::from(offers)] && long.len() <= usize::from(u16::MAX));
    for reply in [&short, &long] {
        assert_eq!(reply[..2], bytes[..2], "the question's number");
        let reply = Message::from_vec(reply).expect("what is answered can be read");
        assert_eq!(reply.metadata.message_type, MessageType::Response);
        if let Some(asked) = &asked {
            assert_eq!(reply.queries, asked.queries);
        }
    }
}

/// Names with many addresses, and aliases that lead out and round in circles.
fn zone() -> Zone {
    let object = |value: serde_json::Value| serde_json::from_value::<Object>(value).expect("a valid object");
    let service = |name: &str, spec: serde_json::Value| {
        object(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}),
        )
    };
    let endpoints: Vec<_> = (1..100)
        .map(|n| json!({"addresses": [format!("10.1.0.{n}")], "hostname": format!("db-{n}")}))
        .collect();
    let objects: Objects = [
        service("cart", json!({"clusterIP": "10.2.0.1", "clusterIPs": ["10.2.0.1", "fd00::1"], "ports": [{"name": "http", "port": 80}]})),
        service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
        service("out", json!({"type": "ExternalName", "externalName": "www.example.com"})),
        service("round", json!({"type": "ExternalName", "externalName": "about.shop.svc.cluster.local"})),
        service("about", json!({"type": "ExternalName", "externalName": "round.shop.svc.cluster.local"})),
        object(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "db", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432}], "endpoints": endpoints})),
    ]
    .into_iter()
    .collect();
    Zone::build(&objects, "cluster.local", 1)
}
