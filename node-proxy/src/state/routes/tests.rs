use culvert_routing::model::{
    Action, Backend, Match, PathMatch, Route, RouteKey, RouteKind, Rule, Target, Timeouts,
};
use http::{HeaderMap, Method};

use super::super::builder::Builder;
use super::super::snapshot::{Origin, Snapshot};
use super::*;

fn route(name: &str, weight: u32) -> Arc<CompiledRoute> {
    let target = |name: &str| Target::Service { namespace: "shop".into(), name: name.into(), port: 80 };
    let backend = |name: &str, weight| Backend { weight, filters: Vec::new(), target: target(name) };
    let route = Route {
        key: RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: name.into() },
        created: 0,
        hostnames: Vec::new(),
        rules: vec![Rule {
            name: None,
            matches: vec![Match {
                path: PathMatch::Prefix("/".into()),
                method: None,
                headers: Vec::new(),
                query: Vec::new(),
            }],
            filters: Vec::new(),
            action: Action::Forward(vec![backend("a", weight), backend("b", 1)]),
            timeouts: Timeouts::default(),
            retry: None,
            session: None,
        }],
    };
    Arc::new(CompiledRoute::compile(route).unwrap())
}

fn at(service: &str, ports: &[u16], consumers: Option<&str>) -> Parent {
    Parent::Service {
        service: ServiceKey(service.into()),
        ports: ports.to_vec(),
        consumers: consumers.map(Into::into),
    }
}

fn attach(builder: &mut Builder, name: &str, parent: Parent) {
    let attached = Attached { parent, route: route(name, 9) };
    builder.upsert_route(&name.into(), attached);
}

fn freeze(builder: &mut Builder) -> Snapshot {
    builder.freeze(Origin::Controller, "v")
}

/// The name of the route that decides, or why none can.
fn decides(snapshot: &Snapshot, service: &str, port: u16, namespace: &str) -> Option<String> {
    let routes = snapshot.routes(&ServiceKey(service.into()), port)?;
    Some(match routes.for_clients_in(namespace)? {
        RouteGroup::Unusable(_, why) => why.to_string(),
        RouteGroup::Table(table) => {
            let view = culvert_routing::RequestView {
                method: &Method::GET,
                host: "",
                path: "/",
                query: None,
                headers: &HeaderMap::new(),
                grpc: false,
            };
            table.select(&view).unwrap().rule.key().name.to_string()
        }
    })
}

#[test]
fn consumers_replace_producers_for_their_namespace_and_port_only() {
    let mut builder = Builder::new();
    attach(&mut builder, "producer", at("shop/cart", &[80, 81], None));
    attach(&mut builder, "consumer", at("shop/cart", &[80], Some("audit")));
    let snapshot = freeze(&mut builder);
    for (port, namespace, expected) in [
        (80, "shop", Some("producer")),
        (80, "audit", Some("consumer")),
        (81, "audit", Some("producer")),
        (82, "shop", None),
    ] {
        assert_eq!(
            decides(&snapshot, "shop/cart", port, namespace).as_deref(),
            expected,
            "{port} {namespace}"
        );
    }
    assert_eq!(decides(&snapshot, "shop/web", 80, "shop"), None);
    builder.remove_route("producer");
    let snapshot = freeze(&mut builder);
    assert_eq!(decides(&snapshot, "shop/cart", 80, "shop"), None, "no route applies: passed through");
    assert_eq!(decides(&snapshot, "shop/cart", 80, "audit").as_deref(), Some("consumer"));
}

#[test]
fn a_route_that_cannot_be_used_stops_its_group_and_no_other() {
    let mut builder = Builder::new();
    attach(&mut builder, "good", at("shop/cart", &[80], None));
    attach(&mut builder, "consumer", at("shop/cart", &[80], Some("audit")));
    let unusable = |parent| Unusable { parent, carries: Carries::Requests, why: "broken".into() };
    builder.refuse_route(&"bad".into(), unusable(at("shop/cart", &[80], None)));
    let snapshot = freeze(&mut builder);
    assert_eq!(decides(&snapshot, "shop/cart", 80, "shop").as_deref(), Some("broken"));
    assert_eq!(decides(&snapshot, "shop/cart", 80, "audit").as_deref(), Some("consumer"));
    // Of which not even the ports could be read.
    builder.refuse_route(&"bad".into(), unusable(at("shop/cart", &[], None)));
    let snapshot = freeze(&mut builder);
    for port in [80, 443] {
        assert_eq!(decides(&snapshot, "shop/cart", port, "shop").as_deref(), Some("broken"), "{port}");
    }
    builder.forget_refused_routes();
    assert_eq!(decides(&freeze(&mut builder), "shop/cart", 80, "shop").as_deref(), Some("good"));
    // One that worked stays in force.
    builder.refuse_route(&"good".into(), unusable(at("shop/cart", &[80], None)));
    assert_eq!(decides(&freeze(&mut builder), "shop/cart", 80, "shop").as_deref(), Some("good"));
}

#[test]
fn only_parents_that_were_touched_are_made_again_and_shares_go_on() {
    let mut builder = Builder::new();
    attach(&mut builder, "one", at("shop/cart", &[80], None));
    attach(&mut builder, "two", at("shop/web", &[80], None));
    let before = freeze(&mut builder);
    let wheel = |snapshot: &Snapshot| {
        let routes = snapshot.routes(&ServiceKey("shop/cart".into()), 80).unwrap().clone();
        match routes.producers.clone() {
            Some(RouteGroup::Table(table)) => table.candidates().next().unwrap().rule().wheel().clone(),
            other => panic!("{other:?}"),
        }
    };
    let first = wheel(&before);
    attach(&mut builder, "one", at("shop/cart", &[80], None));
    let after = freeze(&mut builder);
    let of = |snapshot: &Snapshot, key: &str| snapshot.routes(&ServiceKey(key.into()), 80).unwrap().clone();
    assert!(Arc::ptr_eq(&of(&before, "shop/web"), &of(&after, "shop/web")));
    assert!(!Arc::ptr_eq(&of(&before, "shop/cart"), &of(&after, "shop/cart")));
    assert!(Arc::ptr_eq(&first, &wheel(&after)), "the count goes on");
    let changed = Attached { parent: at("shop/cart", &[80], None), route: route("one", 8) };
    builder.upsert_route(&"one".into(), changed);
    assert!(!Arc::ptr_eq(&first, &wheel(&freeze(&mut builder))), "other weights are another choice");
}

#[test]
fn listeners_have_routes_of_their_own() {
    let mut builder = Builder::new();
    attach(&mut builder, "north", Parent::Listener("edge/gw/web".into()));
    let snapshot = freeze(&mut builder);
    assert!(matches!(snapshot.listener_routes("edge/gw/web"), Some(RouteGroup::Table(_))));
    assert!(snapshot.listener_routes("edge/gw/other").is_none());
    builder.remove_route("north");
    assert!(freeze(&mut builder).listener_routes("edge/gw/web").is_none());
}
