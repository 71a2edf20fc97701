//! Controllers together, as golden cases: objects in, what must follow out.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use culvert_objects::types::EndpointSlice;
use culvert_objects::{Kind, Object, ObjectKey, Objects};
use serde_json::{Value, json};

use super::{Context, reconcile};
use crate::sandbox::controllers::endpoint_slices;
use crate::sandbox::store::{Change, State};

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000, 0).unwrap()
}

fn object(value: Value) -> Object {
    serde_json::from_value(value).unwrap()
}

/// A world in which controllers run until nothing is left to do.
struct World(State);

impl World {
    fn new(objects: Vec<Value>) -> Self {
        let mut world = Self(State::default());
        let node = |name: &str, zone: &str| {
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name,
                "labels": {"topology.kubernetes.io/zone": zone}}})
        };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
        let all = [node("node1", "a"), node("node2", "b"), namespace].into_iter().chain(objects);
        world.commit(all.map(|value| Change::put(object(value))).collect());
        world
    }

    fn commit(&mut self, changes: Vec<Change>) {
        self.0.commit(changes, now());
        for _ in 0..20 {
            let context = Context { now: now(), entropy: self.0.version() };
            let changes = reconcile(&self.0.objects(), &context);
            if changes.is_empty() {
                return;
            }
            self.0.commit(changes, now());
        }
        panic!("the controllers do not settle");
    }

    fn objects(&self) -> Arc<Objects> {
        self.0.objects()
    }

    fn pods(&self) -> Vec<Arc<Object>> {
        self.objects().of_kind(Kind::Pod).cloned().collect()
    }

    fn slices(&self) -> Vec<Arc<Object>> {
        self.objects().of_kind(Kind::EndpointSlice).cloned().collect()
    }

    fn set_ready(&mut self, name: &str, addresses: &[&str], ready: &str) {
        let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"phase": "Running", "podIPs": addresses,
            "conditions": [{"type": "Ready", "status": ready}]});
        self.commit(vec![Change::Status(ObjectKey::namespaced(Kind::Pod, "shop", name), status)]);
    }

    fn deployment(&self) -> Arc<Object> {
        Arc::clone(self.objects().find(Kind::Deployment, "shop", "cart").unwrap())
    }
}

fn pod(name: &str, node: &str, port: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": {"app": "cart"}},
        "spec": {"nodeName": node, "hostname": name, "subdomain": "cart",
            "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]}})
}

fn service(spec: Value) -> Value {
    let mut spec = spec;
    spec["selector"] = json!({"app": "cart"});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "cart", "namespace": "shop", "uid": "uid-svc",
        "labels": {"team": "a"}}, "spec": spec})
}

fn deployment(replicas: u32, image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "cart"}}, "template": {
            "metadata": {"labels": {"app": "cart"}, "annotations": {"note": "x"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}}})
}

#[test]
fn a_slice_says_everything_about_its_endpoints() {
    let mut world = World::new(vec![
        service(json!({"clusterIP": "10.96.1.1", "ports":
            [{"name": "web", "port": 80, "targetPort": "http", "appProtocol": "http"}]})),
        pod("one", "node1", 8080),
        pod("two", "node2", 8080),
    ]);
    world.set_ready("one", &["10.244.1.2", "fd00::2"], "True");
    world.set_ready("two", &["10.244.2.2"], "False");
    let [slice] = world.slices().try_into().unwrap();
    assert_eq!(slice.metadata.labels.len(), 3);
    assert_eq!(slice.label("kubernetes.io/service-name"), Some("cart"));
    assert_eq!(slice.label("team"), Some("a"));
    assert_eq!(slice.controller().unwrap().uid, "uid-svc");
    let endpoint = |name: &str, address: &str, ready: bool, node: &str, zone: &str| {
        json!({"addresses": [address], "conditions": {"ready": ready, "serving": ready, "terminating": false},
            "hostname": name, "nodeName": node, "zone": zone,
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": name, "uid": format!("uid-{name}")}})
    };
    assert_eq!(
        Value::Object(slice.body.clone()),
        json!({
            "addressType": "IPv4",
            "endpoints": [
                endpoint("one", "10.244.1.2", true, "node1", "a"),
                endpoint("two", "10.244.2.2", false, "node2", "b"),
            ],
            "ports": [{"name": "web", "protocol": "TCP", "port": 8080, "appProtocol": "http"}],
        })
    );
}

/// Address type, endpoints with their readiness, port numbers.
type Slice = (String, Vec<(String, bool)>, Vec<Option<u16>>);

fn endpoints(world: &World) -> Vec<Slice> {
    let mut all: Vec<_> = world
        .slices()
        .iter()
        .map(|object| {
            let slice: EndpointSlice = object.root().unwrap();
            let endpoints = slice.endpoints.iter();
            let endpoints = endpoints.map(|e| (e.addresses[0].clone(), e.conditions.is_ready())).collect();
            (slice.address_type, endpoints, slice.ports.iter().map(|port| port.port).collect())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn families_ports_and_terminating_pods_are_told_apart() {
    let mut world = World::new(vec![
        service(json!({"clusterIP": "None", "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"port": 80, "targetPort": "http"}]})),
        pod("one", "node1", 8080),
        pod("two", "node2", 9090),
    ]);
    world.set_ready("one", &["10.244.1.2", "fd00::1:2"], "True");
    world.set_ready("two", &["10.244.2.2"], "True");
    let of = |address: &str, ready: bool| vec![(address.to_owned(), ready)];
    let both = [
        ("IPv4".to_owned(), of("10.244.1.2", true), vec![Some(8080)]),
        ("IPv4".to_owned(), of("10.244.2.2", true), vec![Some(9090)]),
        ("IPv6".to_owned(), of("fd00::1:2", true), vec![Some(8080)]),
    ];
    assert_eq!(endpoints(&world), both);
    assert!(world.slices().iter().all(|slice| slice.label("service.kubernetes.io/headless") == Some("")));

    let two = ObjectKey::namespaced(Kind::Pod, "shop", "two");
    world.commit(vec![Change::Delete(two.clone())]);
    assert_eq!(endpoints(&world)[1].1, of("10.244.2.2", false), "terminating, still serving");
    world.commit(vec![Change::Remove(two)]);
    assert_eq!(endpoints(&world).len(), 2);
}

#[test]
fn pods_that_are_not_ready_are_published_on_request() {
    let mut world = World::new(vec![
        service(json!({"clusterIP": "None", "publishNotReadyAddresses": true})),
        pod("one", "node1", 8080),
    ]);
    world.set_ready("one", &["10.244.1.2"], "False");
    let expected = ("IPv4".to_owned(), vec![("10.244.1.2".to_owned(), true)], Vec::new());
    assert_eq!(endpoints(&world), [expected]);
}

#[test]
fn slices_of_users_stay_and_ours_go_with_their_service() {
    let own = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "mine", "namespace": "shop", "labels": {"kubernetes.io/service-name": "cart"}},
        "endpoints": [{"addresses": ["192.0.2.1"]}]});
    let mut world =
        World::new(vec![service(json!({"clusterIP": "10.96.1.1", "ports": [{"port": 80}]})), own]);
    assert_eq!(world.slices().len(), 2);
    world.commit(vec![Change::Delete(ObjectKey::namespaced(Kind::Service, "shop", "cart"))]);
    let names: Vec<String> = world.slices().iter().map(|slice| slice.name().to_owned()).collect();
    assert_eq!(names, ["mine"]);
}

#[test]
fn more_endpoints_than_fit_make_more_slices() {
    let mut objects = vec![service(json!({"clusterIP": "10.96.1.1", "ports": [{"port": 80}]}))];
    for n in 0..150 {
        let mut pod = pod(&format!("p{n}"), "node1", 80);
        pod["status"] = json!({"phase": "Running", "podIPs": [{"ip": format!("10.244.1.{n}")}]});
        objects.push(pod);
    }
    let world = World::new(objects);
    let counts: usize = endpoints(&world).iter().map(|(_, endpoints, _)| endpoints.len()).sum();
    assert_eq!((world.slices().len(), counts), (2, 150));
}

#[test]
fn pods_of_a_deployment_look_like_kubernetes() {
    let world = World::new(vec![deployment(2, "culvert/echo")]);
    let pods = world.pods();
    assert_eq!(pods.len(), 2);
    let hash = pods[0].label("pod-template-hash").unwrap().to_owned();
    for pod in &pods {
        let owner = pod.controller().unwrap();
        assert_eq!(
            (owner.kind.as_str(), owner.name.as_str()),
            ("ReplicaSet", format!("cart-{hash}").as_str())
        );
        let suffix = pod.name().strip_prefix(&format!("cart-{hash}-")).unwrap();
        assert_eq!(suffix.len(), 5);
        assert_eq!((pod.label("app"), pod.annotation("note")), (Some("cart"), Some("x")));
        assert_eq!(pod.body["spec"]["serviceAccountName"], "default");
        assert_eq!(pod.body["status"]["conditions"][0]["type"], "PodScheduled");
    }
    assert_ne!(pods[0].name(), pods[1].name());
    assert_ne!(pods[0].body["spec"]["nodeName"], pods[1].body["spec"]["nodeName"]);
}

#[test]
fn scaling_and_conditions_follow() {
    let mut world = World::new(vec![deployment(3, "culvert/echo")]);
    let names: Vec<String> = world.pods().iter().map(|pod| pod.name().to_owned()).collect();
    for (n, name) in names.iter().enumerate() {
        world.set_ready(name, &[&format!("10.244.1.{n}")], if n == 0 { "False" } else { "True" });
    }
    let status = world.deployment().body["status"].clone();
    assert_eq!((&status["readyReplicas"], &status["unavailableReplicas"]), (&json!(2), &json!(1)));
    assert_eq!(status["conditions"][0]["status"], "False");

    world.commit(vec![Change::put(object(deployment(1, "culvert/echo")))]);
    let leaving: Vec<bool> =
        world.pods().iter().map(|pod| pod.metadata.deletion_timestamp.is_some()).collect();
    assert_eq!(leaving.iter().filter(|leaving| **leaving).count(), 2);
    assert!(leaving[0], "the one that is not ready goes first");
    let status = world.deployment().body["status"].clone();
    assert_eq!((&status["observedGeneration"], &status["replicas"]), (&json!(2), &json!(1)));
    assert_eq!(status["conditions"][0]["status"], "True");
}

#[test]
fn a_pod_that_failed_or_was_deleted_is_replaced() {
    let mut world = World::new(vec![deployment(1, "culvert/echo")]);
    let first = world.pods()[0].key();
    world.commit(vec![Change::Status(first.clone(), json!({"phase": "Failed"}))]);
    assert_eq!(world.pods().len(), 2, "the failed one is being deleted, another is there");
    world.commit(vec![Change::Remove(first.clone())]);
    let second = world.pods()[0].key();
    assert_ne!(first, second);
    world.commit(vec![Change::Delete(second.clone()), Change::Remove(second.clone())]);
    assert_eq!(world.pods().len(), 1);
    assert_ne!(world.pods()[0].key(), second);
}

#[test]
fn a_deleted_deployment_takes_its_pods_along() {
    let mut world = World::new(vec![deployment(2, "culvert/echo"), pod("alone", "node1", 80)]);
    world.commit(vec![Change::Delete(world.deployment().key())]);
    for pod in world.pods() {
        assert_eq!(pod.metadata.deletion_timestamp.is_some(), pod.name() != "alone", "{}", pod.name());
    }
}

#[test]
fn time_alone_makes_a_pod_available() {
    let mut spec = deployment(1, "culvert/echo");
    spec["spec"]["minReadySeconds"] = json!(10);
    let mut world = World::new(vec![spec]);
    let since = now() - chrono::Duration::seconds(5);
    let status = json!({"phase": "Running", "podIPs": [{"ip": "10.244.1.2"}],
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}]});
    world.commit(vec![Change::Status(world.pods()[0].key(), status)]);
    assert_eq!(world.deployment().body["status"]["availableReplicas"], 0);
    let later = Context { now: now() + chrono::Duration::seconds(5), entropy: 0 };
    let changes = reconcile(&world.objects(), &later);
    let [Change::Status(_, status)] = changes.as_slice() else { panic!("{changes:?}") };
    assert_eq!(status["availableReplicas"], 1);
    assert_eq!(super::wake_after(&world.objects()), std::time::Duration::from_secs(1));
}

#[test]
fn slices_are_behind_until_they_say_what_the_pods_say() {
    let mut world = World::new(vec![
        service(json!({"clusterIP": "10.96.1.1", "ports": [{"port": 80}]})),
        pod("one", "node1", 80),
    ]);
    world.set_ready("one", &["10.244.1.2"], "True");
    assert!(!endpoint_slices::are_behind(&world.objects()));
    let status = json!({"phase": "Running", "podIPs": [{"ip": "10.244.1.2"}],
        "conditions": [{"type": "Ready", "status": "False"}]});
    let change = Change::Status(ObjectKey::namespaced(Kind::Pod, "shop", "one"), status);
    world.0.commit(vec![change], now());
    assert!(endpoint_slices::are_behind(&world.objects()));
}
