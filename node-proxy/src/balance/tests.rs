use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::testing::{EJECTION, endpoint_set, member, service, workload};
use super::*;
use crate::state::model::Membership;

fn balancer() -> Balancer {
    Balancer::new(Arc::default(), "here".into())
}

fn wanted(service: &Arc<Service>) -> Wanted<'_> {
    Wanted {
        service,
        port: 80,
        family: Family::V4,
        client: "10.9.0.1".parse().unwrap(),
        zone: "a",
        carried: Carried::Connections,
        ejection: Some(&EJECTION),
    }
}

fn endpoints(service: &Service, count: usize) -> Arc<EndpointSet> {
    endpoint_set((0..count).map(|index| {
        let address = format!("10.{}.{}.{}", index >> 16, index >> 8 & 255, index & 255);
        Workload { memberships: vec![member(service)], ..workload(&format!("w{index}"), &address) }
    }))
}

fn name(candidate: &Candidate) -> String {
    candidate.workload.name.to_string()
}

#[test]
fn a_missing_port_and_a_missing_endpoint_are_different() {
    let db = Arc::new(service("db", &[(80, "a"), (81, "b")]));
    let set = endpoints(&db, 1);
    let pick = |port| balancer().pick(Some(&set), &Wanted { port, ..wanted(&db) }, &[]);
    let key = db.key.clone();
    assert_eq!(name(&pick(80).unwrap()), "w0");
    assert_eq!(pick(81).unwrap_err(), PickError::NoEndpoint { service: key.clone(), port: 81 });
    assert_eq!(pick(82).unwrap_err(), PickError::NoPort { service: key, port: 82 });
    assert!(matches!(balancer().pick(None, &wanted(&db), &[]), Err(PickError::NoEndpoint { .. })));
}

#[test]
fn connections_spread_over_equal_endpoints() {
    let db = Arc::new(service("db", &[(80, "a")]));
    let set = endpoints(&db, 3);
    let balancer = balancer();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for _ in 0..3000 {
        let picked = balancer.pick(Some(&set), &wanted(&db), &[]).unwrap();
        picked.load.connected(Duration::from_micros(300));
        *counts.entry(name(&picked)).or_default() += 1;
    }
    assert!(counts.values().all(|count| (800..1200).contains(count)), "{counts:?}");
}

#[test]
fn open_connections_count() {
    let db = Arc::new(service("db", &[(80, "a")]));
    let set = endpoints(&db, 2);
    let balancer = balancer();
    let mut open = Vec::new();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for _ in 0..100 {
        let picked = balancer.pick(Some(&set), &wanted(&db), &[]).unwrap();
        open.push(picked.begin());
        *counts.entry(name(&picked)).or_default() += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [50, 50]);
}

#[test]
fn what_failed_is_avoided_and_what_was_tried_is_not_tried_again() {
    let db = Arc::new(service("db", &[(80, "a")]));
    let set = endpoints(&db, 3);
    let balancer = balancer();
    let mut tried = Vec::new();
    for _ in 0..3 {
        let picked = balancer.pick(Some(&set), &wanted(&db), &tried).unwrap();
        assert!(!tried.iter().any(|tried| name(tried) == name(&picked)));
        tried.push(picked);
    }
    let exhausted = balancer.pick(Some(&set), &wanted(&db), &tried);
    assert!(matches!(exhausted, Err(PickError::Exhausted { .. })));
    tried[0].load.failed();
    tried[1].load.failed();
    for _ in 0..50 {
        assert_eq!(name(&balancer.pick(Some(&set), &wanted(&db), &[]).unwrap()), name(&tried[2]));
    }
    tried[2].load.failed();
    assert!(balancer.pick(Some(&set), &wanted(&db), &[]).is_ok(), "all failed: any is better than none");
}

#[test]
fn loads_survive_a_new_endpoint_set_and_the_set_is_followed() {
    let db = Arc::new(service("db", &[(80, "a")]));
    let balancer = balancer();
    let before = balancer.pick(Some(&endpoints(&db, 1)), &wanted(&db), &[]).unwrap().load;
    before.failed();
    let set = endpoints(&db, 2);
    for _ in 0..20 {
        assert_eq!(name(&balancer.pick(Some(&set), &wanted(&db), &[]).unwrap()), "w1");
    }
    balancer.maintain(&crate::state::Snapshot::empty());
    assert!(balancer.usable.borrow().is_empty());
}

#[test]
fn a_client_keeps_its_endpoint_on_every_worker() {
    let db = Arc::new(Service {
        client_ip_affinity: Some(Duration::from_secs(10800)),
        ..service("db", &[(80, "a")])
    });
    let set = endpoints(&db, 10);
    let client = |index: u8| Wanted { client: IpAddr::from([10, 9, 0, index]), ..wanted(&db) };
    let workers = [balancer(), balancer()];
    let mut homes = HashMap::new();
    for index in 0..200 {
        let picks: Vec<_> = workers
            .iter()
            .flat_map(|worker| (0..3).map(|_| name(&worker.pick(Some(&set), &client(index), &[]).unwrap())))
            .collect();
        assert!(picks.iter().all(|pick| *pick == picks[0]));
        *homes.entry(picks[0].clone()).or_insert(0) += 1;
    }
    assert!(homes.len() >= 8, "{homes:?}");
    let favourite = workers[0].pick(Some(&set), &client(0), &[]).unwrap();
    let second = workers[0].pick(Some(&set), &client(0), std::slice::from_ref(&favourite)).unwrap();
    assert_ne!(name(&favourite), name(&second));
}

/// Two that are drawn, once each, and the one that is taken.
const A_FEW: usize = 6;

fn looked_at(balancer: &Balancer) -> usize {
    balancer.usable.borrow().values().map(Usable::looked).sum()
}

#[test]
fn a_pick_looks_at_no_more_of_more_endpoints() {
    let db = Arc::new(service("db", &[(80, "a")]));
    for count in [10, 10_000] {
        let set = endpoints(&db, count);
        let balancer = balancer();
        balancer.pick(Some(&set), &wanted(&db), &[]).unwrap();
        for _ in 0..1000 {
            let before = looked_at(&balancer);
            let picked = balancer.pick(Some(&set), &wanted(&db), &[]).unwrap();
            picked.begin().connected(Duration::from_millis(1));
            let looked = looked_at(&balancer) - before;
            assert!(looked <= A_FEW, "of {count} endpoints {looked} were looked at");
        }
    }
}

/// As many as may be are ejected: what is left is found without looking for it.
#[test]
fn a_pick_looks_at_no_more_when_half_of_the_endpoints_are_ejected() {
    let db = Arc::new(service("db", &[(80, "a")]));
    let patient =
        Ejection { base: Duration::from_secs(3600), max: Duration::from_secs(3600), ..Ejection::default() };
    let wanted = Wanted { ejection: Some(&patient), ..wanted(&db) };
    let set = endpoints(&db, 1000);
    let balancer = balancer();
    for _ in 0..500 {
        balancer.pick(Some(&set), &wanted, &[]).unwrap().begin().unreached();
    }
    assert_eq!(ejected(&balancer), 500);
    balancer.pick(Some(&set), &wanted, &[]).unwrap();
    for _ in 0..1000 {
        let before = looked_at(&balancer);
        let picked = balancer.pick(Some(&set), &wanted, &[]).unwrap();
        assert!(!picked.is_ejected());
        let looked = looked_at(&balancer) - before;
        assert!(looked <= A_FEW, "{looked} were looked at");
    }
}

/// How many endpoints may not be picked now.
fn ejected(balancer: &Balancer) -> usize {
    let usable = balancer.usable.borrow();
    usable.values().map(|usable| usable.ejected_count()).max().unwrap_or_default()
}

/// A Service with so many endpoints in each zone, `a` being the client's.
fn in_zones(service: &Service, counts: &[(&str, usize)]) -> Arc<EndpointSet> {
    let zones = counts.iter().flat_map(|(zone, count)| std::iter::repeat_n(*zone, *count));
    endpoint_set(zones.enumerate().map(|(index, zone)| Workload {
        memberships: vec![member(service)],
        zone: zone.into(),
        node: format!("node-of-{zone}").into(),
        ..workload(&format!("{zone}{index}"), &format!("10.0.0.{index}"))
    }))
}

fn zonal() -> Arc<Service> {
    let zonal = Some("PreferSameZone".to_owned());
    Arc::new(Service { traffic_distribution: zonal, ..service("db", &[(80, "a")]) })
}

/// The zones of so many picks.
fn zones(balancer: &Balancer, set: &Arc<EndpointSet>, wanted: &Wanted<'_>, picks: usize) -> Vec<String> {
    let pick = |_| balancer.pick(Some(set), wanted, &[]).unwrap().workload.zone.to_string();
    let mut zones: Vec<String> = (0..picks).map(pick).collect();
    zones.sort();
    zones.dedup();
    zones
}

#[test]
fn traffic_stays_in_its_zone_while_half_of_its_endpoints_are_in() {
    let db = zonal();
    let set = in_zones(&db, &[("a", 4), ("b", 4)]);
    let balancer = balancer();
    let wanted = wanted(&db);
    assert_eq!(zones(&balancer, &set, &wanted, 100), ["a"]);
    for expected in [&["a"][..], &["a"], &["a", "b"], &["b"]] {
        let near = std::iter::repeat_with(|| balancer.pick(Some(&set), &wanted, &[]).unwrap());
        let near = near.into_iter().find(|picked| &*picked.workload.zone == "a").unwrap();
        near.begin().unreached();
        assert_eq!(zones(&balancer, &set, &wanted, 300), expected);
    }
}

#[test]
fn requests_leave_their_zone_when_its_endpoints_are_overloaded_and_connections_do_not() {
    let db = zonal();
    for (carried, expected) in [(Carried::Requests, &["b"][..]), (Carried::Connections, &["a"])] {
        let set = in_zones(&db, &[("a", 2), ("b", 2)]);
        let (balancer, wanted) = (balancer(), Wanted { carried, ..wanted(&db) });
        let begin = || {
            let picked = balancer.pick(Some(&set), &wanted, &[]).unwrap();
            (picked.workload.zone.to_string(), picked.begin())
        };
        let mut open: Vec<_> = (0..32).map(|_| begin()).collect();
        assert!(open.iter().all(|(zone, _)| zone == "a"));
        assert_eq!(zones(&balancer, &set, &wanted, 100), expected);
        // A quarter of what the near ones have is enough for those beyond.
        open.extend((0..200).map(|_| begin()));
        let far = open.iter().filter(|(zone, _)| zone == "b").count();
        match carried {
            Carried::Requests => assert!((20..=70).contains(&far), "{far} of {}", open.len()),
            Carried::Connections => assert_eq!(far, 0),
        }
    }
}

#[test]
fn without_endpoints_in_its_zone_traffic_goes_to_all_others() {
    let db = zonal();
    let set = in_zones(&db, &[("b", 2), ("c", 2)]);
    assert_eq!(zones(&balancer(), &set, &wanted(&db), 100), ["b", "c"]);
}

/// The rules of Kubernetes, one endpoint at a time: every endpoint that may be used, and how near it is.
fn naive(set: &EndpointSet, service: &Service, zone: &str) -> Vec<(u8, String)> {
    let all: Vec<(&Workload, &Membership)> = set
        .endpoints
        .iter()
        .map(|endpoint| (&*endpoint.workload, &endpoint.workload.memberships[0]))
        .collect();
    let candidates: Vec<_> = all
        .into_iter()
        .filter(|(workload, _)| !service.local_only || &*workload.node == "here")
        .filter(|(_, membership)| membership.ports.iter().any(|(port, _)| *port == 80))
        .collect();
    let is_ready = |m: &Membership| service.publish_not_ready_addresses || (m.ready && !m.terminating);
    let mut used: Vec<_> = candidates.iter().filter(|(_, m)| is_ready(m)).collect();
    if used.is_empty() {
        used = candidates.iter().filter(|(_, m)| m.serving && m.terminating).collect();
    }
    let all_hint_nodes = used.iter().all(|(_, m)| !m.node_hints.is_empty());
    let all_hint_zones = used.iter().all(|(_, m)| !m.zone_hints.is_empty());
    let rank = |workload: &Workload, membership: &Membership| {
        let on_node = if membership.node_hints.is_empty() {
            &*workload.node == "here"
        } else {
            membership.node_hints.contains(&"here".to_owned())
        };
        let in_zone = if membership.zone_hints.is_empty() {
            &*workload.zone == zone
        } else {
            membership.zone_hints.contains(&zone.to_owned())
        };
        match service.traffic_distribution.as_deref() {
            Some("PreferSameNode") if on_node => 0,
            Some(_) if in_zone => 1,
            Some(_) => 2,
            None if all_hint_nodes && on_node => 0,
            None if all_hint_zones && in_zone => 1,
            None => 2,
        }
    };
    used.iter()
        .map(|(workload, membership)| (rank(workload, membership), workload.name.to_string()))
        .collect()
}

prop_compose! {
    fn any_endpoint()(bits: [bool; 5], zones in (0..3_usize, 0..4_usize), hinted_node in 0..3_usize)
        -> (Membership, &'static str, &'static str) {
        const ZONES: [&str; 3] = ["a", "b", "c"];
        let [ready, serving, terminating, has_port, here] = bits;
        let membership = Membership {
            ports: if has_port { vec![(80, 8080)] } else { vec![(81, 8081)] },
            ready,
            serving,
            terminating,
            zone_hints: ZONES.get(zones.1).map(|zone| (*zone).to_owned()).into_iter().collect(),
            node_hints: ["here", "there"].get(hinted_node).map(|node| (*node).to_owned()).into_iter().collect(),
            ..member(&service("db", &[]))
        };
        (membership, if here { "here" } else { "there" }, ZONES[zones.0])
    }
}

proptest! {
    #[test]
    fn picks_are_those_of_the_naive_rules(
        shapes in prop::collection::vec(any_endpoint(), 0..12),
        publish: bool,
        local_only: bool,
        distribution in 0..4_usize,
    ) {
        const WORDS: [Option<&str>; 4] =
            [None, Some("PreferClose"), Some("PreferSameZone"), Some("PreferSameNode")];
        let db = Arc::new(Service {
            publish_not_ready_addresses: publish,
            local_only,
            traffic_distribution: WORDS[distribution].map(str::to_owned),
            ..service("db", &[(80, "a")])
        });
        let set = endpoint_set(shapes.into_iter().enumerate().map(|(index, (membership, node, zone))| Workload {
            memberships: vec![membership],
            node: node.into(),
            zone: zone.into(),
            ..workload(&format!("w{index}"), &format!("10.0.0.{index}"))
        }));
        let mut expected = naive(&set, &db, "a");
        let balancer = balancer();
        let mut tried: Vec<Candidate> = Vec::new();
        while let Ok(candidate) = balancer.pick(Some(&set), &wanted(&db), &tried) {
            tried.push(candidate);
        }
        // Those that are nearer are all picked before any that is not.
        let rank = |name: &String| expected.iter().find(|(_, one)| one == name).map(|(rank, _)| *rank);
        let names: Vec<String> = tried.iter().map(name).collect();
        let ranks: Vec<Option<u8>> = names.iter().map(rank).collect();
        prop_assert!(ranks.is_sorted() && ranks.iter().all(Option::is_some), "{:?} of {:?}", names, expected);
        let mut picked: Vec<_> = names.iter().map(|name| (rank(name).unwrap_or(9), name.clone())).collect();
        picked.sort();
        expected.sort();
        prop_assert_eq!(picked, expected);
    }
}
