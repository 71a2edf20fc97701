use super::super::model::AccessLogFilter;
use super::super::routes::RouteGroup;
use super::super::testing::{
    address, mesh_resource, service_resource, uid, wire_mesh, wire_workload, workload_resource,
};
use super::*;

fn page(upserts: Vec<wire::Resource>) -> wire::Page {
    wire::Page { upserts, removals: Vec::new() }
}

fn removal(kind: ResourceType, name: &str) -> wire::Page {
    let key = wire::ResourceKey { r#type: kind.into(), name: name.to_owned() };
    wire::Page { upserts: Vec::new(), removals: vec![key] }
}

fn bad(name: &str) -> wire::Resource {
    let mut workload = wire_workload(name, &[1]);
    workload.service_account.clear();
    workload_resource(workload)
}

fn versions(resources: &Resources) -> Vec<(String, String)> {
    let mut all: Vec<_> = resources
        .held()
        .into_iter()
        .flat_map(|page| page.resources)
        .map(|resource| (resource.key.unwrap().name, resource.version))
        .collect();
    all.sort();
    all
}

fn freeze(resources: &mut Resources) -> Snapshot {
    resources.freeze(Origin::Controller, "v1").unwrap().0
}

#[test]
fn nothing_is_complete_without_mesh_settings() {
    let mut resources = Resources::default();
    resources.apply(page(vec![workload_resource(wire_workload("a", &[1]))]));
    assert!(resources.freeze(Origin::Controller, "v1").is_none());
    resources.apply(page(vec![mesh_resource(wire_mesh())]));
    let snapshot = freeze(&mut resources);
    assert!(snapshot.is_complete() && !snapshot.is_stale());
    assert_eq!(snapshot.version(), "v1");
    assert!(snapshot.in_cluster_ranges(address(200)));
    assert!(!snapshot.in_cluster_ranges("1.1.1.1".parse().unwrap()));
}

#[test]
fn a_refused_resource_leaves_its_last_good_version_in_force() {
    let mut resources = Resources::default();
    let good = workload_resource(wire_workload("a", &[1]));
    resources.apply(page(vec![mesh_resource(wire_mesh()), good.clone()]));
    let refused = resources.apply(page(vec![bad("a"), bad("b")]));
    assert_eq!(refused.len(), 2);
    assert!(refused[0].reason.contains("HBONE without an identity"), "{}", refused[0].reason);
    let snapshot = freeze(&mut resources);
    assert!(snapshot.workload(&uid("a")).unwrap().identity.is_some());
    assert!(snapshot.workload(&uid("b")).is_none());
    let listed: Vec<_> =
        snapshot.refused().iter().map(|one| (one.name.to_string(), one.last_good_in_force)).collect();
    assert_eq!(listed, [(uid("a").to_string(), true), (uid("b").to_string(), false)]);
    let held = versions(&resources);
    assert!(held.contains(&(uid("a").to_string(), good.version.clone())), "the good version is what is held");
    assert_eq!(resources.refused_count(), 2);

    resources.apply(page(vec![good]));
    resources.apply(removal(ResourceType::Workload, &uid("b").0));
    assert!(freeze(&mut resources).refused().is_empty());
}

#[test]
fn a_new_stream_begins_without_refusals() {
    let mut resources = Resources::default();
    resources.apply(page(vec![
        mesh_resource(wire_mesh()),
        workload_resource(wire_workload("a", &[1])),
        bad("a"),
    ]));
    assert_eq!(freeze(&mut resources).refused().len(), 1);
    resources.forget_refused();
    assert_eq!(resources.refused_count(), 0);
    // The controller that follows agrees with what is held: nothing but a mark comes.
    assert!(freeze(&mut resources).refused().is_empty());
    resources.apply(page(vec![bad("a")]));
    assert_eq!(freeze(&mut resources).refused().len(), 1);
}

#[test]
fn what_this_version_does_not_know_is_refused_by_name() {
    let mut resources = Resources::default();
    let mut unknown = workload_resource(wire_workload("a", &[1]));
    unknown.key.as_mut().unwrap().r#type = 99;
    let mut bodyless = workload_resource(wire_workload("b", &[1]));
    bodyless.body = None;
    let mut crossed = service_resource("shop", "cart", 1);
    crossed.key.as_mut().unwrap().r#type = ResourceType::Workload.into();
    let mut keyless = workload_resource(wire_workload("c", &[1]));
    keyless.key = None;
    let refused = resources.apply(page(vec![unknown, bodyless, crossed, keyless]));
    let reasons: Vec<&str> = refused.iter().map(|one| one.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "the resource type 99 is not known to this version",
            "the resource has no body that this version knows",
            "the body is not of the type that the key names",
            "the resource has no key",
        ]
    );
    assert_eq!(refused[0].key.as_ref().unwrap().name, uid("a").to_string());
}

#[test]
fn removals_are_by_name_and_settings_stay() {
    let mut resources = Resources::default();
    resources.apply(page(vec![
        mesh_resource(wire_mesh()),
        service_resource("shop", "cart", 1),
        workload_resource(wire_workload("a", &[1])),
    ]));
    let before = freeze(&mut resources);
    let service = ServiceKey("shop/cart".into());
    assert_eq!(before.endpoints(&service).unwrap().endpoints.len(), 1);
    resources.apply(removal(ResourceType::Workload, &uid("a").0));
    resources.apply(removal(ResourceType::Service, "shop/cart"));
    resources.apply(removal(ResourceType::MeshSettings, "mesh"));
    resources.apply(removal(ResourceType::Service, "never/was"));
    let after = freeze(&mut resources);
    assert!(after.workload(&uid("a")).is_none() && after.service(&service).is_none());
    assert!(after.endpoints(&service).is_none());
    assert_eq!(after.mesh().access_log.filter, AccessLogFilter::Failures);
    assert_eq!(versions(&resources).len(), 1, "the settings are still held");
}

#[test]
fn what_is_held_is_paged() {
    let mut resources = Resources::default();
    let many = (0..5000).map(|number| workload_resource(wire_workload(&format!("pod-{number:05}"), &[])));
    resources.apply(page(many.collect()));
    let pages = resources.held();
    assert!(pages.len() > 1);
    assert!(pages.iter().all(|page| page.encoded_len() < 1 << 20));
    assert_eq!(pages.iter().map(|page| page.resources.len()).sum::<usize>(), 5000);
}

#[test]
fn a_kept_state_gives_contested_addresses_to_the_same_workloads() {
    let mut resources = Resources::default();
    resources.set_node("one");
    resources.apply(page(vec![
        mesh_resource(wire_mesh()),
        workload_resource(wire_workload("z-old", &[1])),
        workload_resource(wire_workload("a-new", &[1])),
    ]));
    // News of the old one must not change whose the address is, nor the order kept.
    let mut old = wire_workload("z-old", &[1]);
    old.memberships[0].terminating = true;
    resources.apply(page(vec![workload_resource(old)]));
    let (snapshot, kept) = resources.freeze(Origin::Controller, "v7").unwrap();
    let mut restored = Resources::restore(&kept);
    let (again, _) = restored.freeze(Origin::Kept, &kept.version).unwrap();
    for snapshot in [&snapshot, &again] {
        assert_eq!(&*snapshot.workload_by_address(address(1)).unwrap().name, "a-new");
    }
    assert!(again.is_stale() && again.version() == "v7" && &**again.node() == "one");
    assert_eq!(versions(&restored), versions(&resources));
}

fn route_resource(version: &str, path: &str) -> wire::Resource {
    let route = wire::Route {
        kind: wire::RouteKind::Http.into(),
        namespace: "shop".to_owned(),
        name: "canary".to_owned(),
        parent: Some(wire::route::Parent::Service(wire::ServiceParent {
            service: "shop/cart".to_owned(),
            ports: vec![80],
            consumer_namespace: String::new(),
        })),
        rules: vec![wire::RouteRule {
            matches: vec![wire::RouteMatch {
                path: Some(wire::route_match::Path::Regex(path.to_owned())),
                ..wire::RouteMatch::default()
            }],
            ..wire::RouteRule::default()
        }],
        ..wire::Route::default()
    };
    wire::Resource {
        key: Some(wire::ResourceKey { r#type: ResourceType::Route.into(), name: ROUTE.to_owned() }),
        version: version.to_owned(),
        body: Some(Body::Route(route)),
    }
}

const ROUTE: &str = "HTTPRoute/shop/canary@shop/cart";

/// What decides about requests to `shop/cart`, port 80.
fn decides(snapshot: &Snapshot) -> &'static str {
    let routes = snapshot.routes(&ServiceKey("shop/cart".into()), 80);
    match routes.and_then(|routes| routes.for_clients_in("shop")) {
        None => "nothing",
        Some(RouteGroup::Table(_)) => "a table",
        Some(RouteGroup::Unusable(..)) => "500",
    }
}

#[test]
fn a_refused_route_answers_500_also_after_a_restart_unless_a_version_of_it_worked() {
    let mut resources = Resources::default();
    resources.apply(page(vec![mesh_resource(wire_mesh())]));
    assert_eq!(decides(&freeze(&mut resources)), "nothing");
    let refused = resources.apply(page(vec![route_resource("v1", "(")]));
    assert!(refused[0].reason.contains("does not compile"), "{}", refused[0].reason);
    let (snapshot, kept) = resources.freeze(Origin::Controller, "v1").unwrap();
    assert_eq!(decides(&snapshot), "500");
    assert!(!versions(&resources).iter().any(|(name, _)| name == ROUTE), "it is not held");
    let mut restored = Resources::restore(&kept);
    assert_eq!(decides(&restored.freeze(Origin::Kept, &kept.version).unwrap().0), "500");

    resources.apply(page(vec![route_resource("v2", "/a")]));
    assert_eq!(decides(&freeze(&mut resources)), "a table");
    resources.apply(page(vec![route_resource("v3", "(")]));
    let snapshot = freeze(&mut resources);
    assert_eq!(decides(&snapshot), "a table", "the last good one");
    assert!(snapshot.refused()[0].last_good_in_force);
    resources.apply(removal(ResourceType::Route, ROUTE));
    assert_eq!(decides(&freeze(&mut resources)), "nothing");

    resources.apply(page(vec![route_resource("v4", "(")]));
    assert_eq!(decides(&freeze(&mut resources)), "500");
    // The controller of a new stream says again what it has; of this route it says nothing: it is gone.
    resources.forget_refused();
    assert_eq!(decides(&freeze(&mut resources)), "nothing");
}
