use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::testing::{endpoint_set, member, service, workload};
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
        open.push(picked.load.begin());
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

#[test]
fn a_pick_takes_no_longer_with_more_endpoints() {
    let db = Arc::new(service("db", &[(80, "a")]));
    let per_pick = |count| {
        let set = endpoints(&db, count);
        let balancer = balancer();
        let pick = || balancer.pick(Some(&set), &wanted(&db), &[]).unwrap();
        pick();
        let best = (0..20).map(|_| {
            let start = Instant::now();
            for _ in 0..1000 {
                pick();
            }
            start.elapsed()
        });
        best.min().unwrap()
    };
    let (few, many) = (per_pick(10), per_pick(10_000));
    assert!(many < few * 8 + Duration::from_millis(1), "{few:?} {many:?}");
}

type Keep<'a> = &'a dyn Fn(&Workload, &Membership) -> bool;

/// The rules of Kubernetes, one endpoint at a time.
fn naive(set: &EndpointSet, service: &Service, zone: &str) -> Vec<String> {
    let members = |keep: Keep<'_>| -> Vec<String> {
        set.endpoints
            .iter()
            .filter(|endpoint| {
                let membership = &endpoint.workload.memberships[0];
                let local = !service.local_only || &*endpoint.workload.node == "here";
                local
                    && membership.ports.iter().any(|(port, _)| *port == 80)
                    && keep(&endpoint.workload, membership)
            })
            .map(|endpoint| endpoint.workload.name.to_string())
            .collect()
    };
    let ready = |m: &Membership| service.publish_not_ready_addresses || (m.ready && !m.terminating);
    let near = |w: &Workload, m: &Membership| match service.traffic_distribution.as_deref() {
        Some("PreferSameNode") => &*w.node == "here",
        Some("PreferClose") => m.zone_hints.iter().any(|hint| hint == zone),
        _ => true,
    };
    let tiers: [Keep<'_>; 4] = [
        &|w, m| ready(m) && near(w, m),
        &|_, m| ready(m),
        &|w, m| m.serving && m.terminating && near(w, m),
        &|_, m| m.serving && m.terminating,
    ];
    tiers.iter().map(|tier| members(tier)).find(|tier| !tier.is_empty()).unwrap_or_default()
}

prop_compose! {
    fn any_endpoint()(bits: [bool; 6], zone in 0..3_u8) -> (Membership, &'static str) {
        let [ready, serving, terminating, has_port, here, _] = bits;
        let membership = Membership {
            ports: if has_port { vec![(80, 8080)] } else { vec![(81, 8081)] },
            ready,
            serving,
            terminating,
            zone_hints: vec![["a", "b", "c"][zone as usize].to_owned()],
            ..member(&service("db", &[]))
        };
        (membership, if here { "here" } else { "there" })
    }
}

proptest! {
    #[test]
    fn picks_are_those_of_the_naive_rules(
        shapes in prop::collection::vec(any_endpoint(), 0..12),
        publish: bool,
        local_only: bool,
        distribution in 0..3_usize,
    ) {
        let db = Arc::new(Service {
            publish_not_ready_addresses: publish,
            local_only,
            traffic_distribution: [None, Some("PreferClose"), Some("PreferSameNode")][distribution].map(str::to_owned),
            ..service("db", &[(80, "a")])
        });
        let set = endpoint_set(shapes.into_iter().enumerate().map(|(index, (membership, node))| Workload {
            memberships: vec![membership],
            node: node.into(),
            ..workload(&format!("w{index}"), &format!("10.0.0.{index}"))
        }));
        let mut expected = naive(&set, &db, "a");
        let balancer = balancer();
        let mut tried: Vec<Candidate> = Vec::new();
        while let Ok(candidate) = balancer.pick(Some(&set), &wanted(&db), &tried) {
            tried.push(candidate);
        }
        let mut picked: Vec<_> = tried.iter().map(name).collect();
        picked.sort();
        expected.sort();
        prop_assert_eq!(picked, expected);
    }
}
