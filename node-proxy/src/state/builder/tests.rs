use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::snapshot::same;
use super::super::testing::{address, member, own, service, uid, workload};
use super::*;

fn freeze(builder: &mut Builder) -> Snapshot {
    builder.freeze(Origin::Controller, "v")
}

fn holder(snapshot: &Snapshot, last: u8) -> Option<String> {
    snapshot.workload_by_address(address(last)).map(|workload| workload.name.to_string())
}

#[test]
fn a_reused_address_belongs_to_the_new_workload_and_survives_the_old_ones_removal() {
    let mut builder = Builder::new();
    builder.upsert_workload(workload("old", &[1]));
    builder.upsert_workload(workload("new", &[1]));
    assert_eq!(holder(&freeze(&mut builder), 1).as_deref(), Some("new"));
    builder.upsert_workload(workload("old", &[1]));
    assert_eq!(holder(&freeze(&mut builder), 1).as_deref(), Some("new"), "an old claim is not a new one");
    builder.remove_workload(&uid("old"));
    assert_eq!(holder(&freeze(&mut builder), 1).as_deref(), Some("new"));
    builder.remove_workload(&uid("new"));
    assert_eq!(holder(&freeze(&mut builder), 1), None);
}

#[test]
fn an_address_returns_to_who_still_claims_it() {
    let mut builder = Builder::new();
    builder.upsert_workload(workload("old", &[1]));
    builder.upsert_workload(workload("new", &[1]));
    builder.remove_workload(&uid("new"));
    assert_eq!(holder(&freeze(&mut builder), 1).as_deref(), Some("old"));
}

#[test]
fn host_network_pods_are_not_found_by_their_nodes_address() {
    let mut builder = Builder::new();
    let mut host = workload("agent", &[1]);
    host.host_network = true;
    builder.upsert_workload(host.clone());
    assert_eq!(holder(&freeze(&mut builder), 1), None);
    host.host_network = false;
    builder.upsert_workload(host.clone());
    assert_eq!(holder(&freeze(&mut builder), 1).as_deref(), Some("agent"));
    host.host_network = true;
    builder.upsert_workload(host);
    assert_eq!(holder(&freeze(&mut builder), 1), None);
}

#[test]
fn own_pods_are_found_by_pod_uid() {
    let mut builder = Builder::new();
    let mut mine = workload("mine", &[1]);
    mine.own = Some(Arc::new(own()));
    builder.upsert_workload(mine.clone());
    builder.upsert_workload(workload("theirs", &[2]));
    let snapshot = freeze(&mut builder);
    assert_eq!(snapshot.own_workloads().count(), 1);
    assert!(snapshot.own_workload_by_pod_uid("mine-uid").is_some());
    mine.own = None;
    builder.upsert_workload(mine);
    assert!(freeze(&mut builder).own_workload_by_pod_uid("mine-uid").is_none());
}

#[test]
fn only_the_endpoint_sets_of_touched_services_are_made_again() {
    let mut builder = Builder::new();
    for name in ["a", "b"] {
        let mut one = workload(name, &[]);
        one.memberships = vec![member(&format!("shop/{name}"))];
        builder.upsert_workload(one);
    }
    let before = freeze(&mut builder);
    let mut b = workload("b", &[]);
    b.memberships = vec![Membership { ready: false, ..member("shop/b") }];
    builder.upsert_workload(b);
    let after = freeze(&mut builder);
    let set = |snapshot: &Snapshot, key: &str| snapshot.endpoints(&ServiceKey(key.into())).unwrap().clone();
    assert!(Arc::ptr_eq(&set(&before, "shop/a"), &set(&after, "shop/a")));
    let endpoint = &set(&after, "shop/b").endpoints[0];
    assert!(!endpoint.workload.memberships[endpoint.membership].ready);
    assert!(set(&before, "shop/b").endpoints[0].workload.memberships[0].ready, "a snapshot never changes");
}

use super::super::model::Membership;

#[derive(Clone, Debug)]
enum Event {
    Workload { name: u8, addresses: BTreeSet<u8>, services: BTreeSet<u8>, host_network: bool, own: bool },
    RemoveWorkload(u8),
    Service { name: u8, vips: BTreeSet<u8> },
    RemoveService(u8),
    Freeze,
}

fn event() -> impl Strategy<Value = Event> {
    let few = || proptest::collection::btree_set(0u8..5, 0..3);
    prop_oneof![
        4 => (0u8..6, few(), few(), proptest::bool::weighted(0.2), any::<bool>()).prop_map(
            |(name, addresses, services, host_network, own)| Event::Workload {
                name, addresses, services, host_network, own
            }
        ),
        2 => (0u8..6).prop_map(Event::RemoveWorkload),
        2 => (0u8..5, few()).prop_map(|(name, vips)| Event::Service { name, vips }),
        1 => (0u8..5).prop_map(Event::RemoveService),
        1 => Just(Event::Freeze),
    ]
}

/// The rules, said as plainly as possible: claims are a list in the order in which they were made.
#[derive(Default)]
struct Naive {
    workloads: BTreeMap<String, Workload>,
    services: BTreeMap<String, Service>,
    address_claims: Vec<(IpAddr, String)>,
    vip_claims: Vec<(IpAddr, String)>,
}

fn claim(claims: &mut Vec<(IpAddr, String)>, name: &str, addresses: &[IpAddr]) {
    claims.retain(|(address, claimant)| claimant != name || addresses.contains(address));
    for address in addresses {
        let pair = (*address, name.to_owned());
        if !claims.contains(&pair) {
            claims.push(pair);
        }
    }
}

impl Naive {
    fn apply(&mut self, event: &Event, builder: &mut Builder) {
        match event {
            Event::Workload { name, addresses, services, host_network, own: mine } => {
                let name = format!("w{name}");
                let mut one = workload(&name, &addresses.iter().copied().collect::<Vec<_>>());
                one.host_network = *host_network;
                one.memberships =
                    services.iter().map(|service| member(&format!("shop/s{service}"))).collect();
                one.own = mine.then(|| Arc::new(own()));
                let indexed = if *host_network { Vec::new() } else { one.addresses.clone() };
                claim(&mut self.address_claims, &name, &indexed);
                self.workloads.insert(name, one.clone());
                builder.upsert_workload(one);
            }
            Event::RemoveWorkload(name) => {
                let name = format!("w{name}");
                claim(&mut self.address_claims, &name, &[]);
                self.workloads.remove(&name);
                builder.remove_workload(&uid(&name));
            }
            Event::Service { name, vips } => {
                let key = format!("shop/s{name}");
                let one = service(&key, &vips.iter().copied().collect::<Vec<_>>());
                claim(&mut self.vip_claims, &key, &one.vips);
                self.services.insert(key, one.clone());
                builder.upsert_service(one);
            }
            Event::RemoveService(name) => {
                let key = format!("shop/s{name}");
                claim(&mut self.vip_claims, &key, &[]);
                self.services.remove(&key);
                builder.remove_service(&ServiceKey(key.into()));
            }
            Event::Freeze => {
                freeze(builder);
            }
        }
    }

    fn check(&self, snapshot: &Snapshot) {
        for last in 0..5u8 {
            let last_claim = |claims: &[(IpAddr, String)]| {
                claims
                    .iter()
                    .rev()
                    .find(|(claimed, _)| *claimed == address(last))
                    .map(|(_, name)| name.clone())
            };
            assert_eq!(holder(snapshot, last), last_claim(&self.address_claims));
            let vip = snapshot.service_by_vip(address(last)).map(|service| service.key.to_string());
            assert_eq!(vip, last_claim(&self.vip_claims));
        }
        let workloads: BTreeMap<String, Workload> =
            snapshot.workloads().map(|one| (one.name.to_string(), (**one).clone())).collect();
        assert_eq!(workloads, self.workloads);
        for workload in snapshot.workloads() {
            let mine = snapshot.own_workload_by_pod_uid(workload.uid.pod_uid());
            assert_eq!(mine, workload.own.is_some().then_some(workload));
        }
        let services: BTreeMap<String, Service> =
            snapshot.services().map(|one| (one.key.to_string(), (**one).clone())).collect();
        assert_eq!(services, self.services);
        for key in (0..5).map(|name| format!("shop/s{name}")) {
            let expected: BTreeSet<(String, usize)> = self
                .workloads
                .values()
                .flat_map(|one| {
                    one.memberships
                        .iter()
                        .enumerate()
                        .filter(|(_, membership)| *membership.service.0 == *key)
                        .map(|(index, _)| (one.name.to_string(), index))
                })
                .collect();
            let set = snapshot.endpoints(&ServiceKey(key.as_str().into()));
            let found: BTreeSet<(String, usize)> = set
                .iter()
                .flat_map(|set| &set.endpoints)
                .inspect(|endpoint| {
                    assert_eq!(Some(&endpoint.workload), snapshot.workload(&endpoint.workload.uid))
                })
                .map(|endpoint| (endpoint.workload.name.to_string(), endpoint.membership))
                .collect();
            assert_eq!(found, expected);
            assert_eq!(set.map_or(0, |set| set.endpoints.len()), expected.len());
        }
    }
}

proptest! {
    #[test]
    fn any_history_gives_what_the_rules_say(events in proptest::collection::vec(event(), 0..60)) {
        let (mut naive, mut builder) = (Naive::default(), Builder::new());
        for event in &events {
            naive.apply(event, &mut builder);
        }
        naive.check(&freeze(&mut builder));
    }

    #[test]
    fn a_history_without_contested_addresses_gives_the_same_as_building_from_scratch(
        events in proptest::collection::vec(event(), 0..60)
    ) {
        let (mut naive, mut builder) = (Naive::default(), Builder::new());
        let apart = |event: &Event| match event.clone() {
            Event::Workload { name, services, host_network, own, .. } =>
                Event::Workload { name, addresses: BTreeSet::from([name]), services, host_network, own },
            Event::Service { name, .. } => Event::Service { name, vips: BTreeSet::from([name]) },
            other => other,
        };
        for event in events.iter().map(apart) {
            naive.apply(&event, &mut builder);
        }
        let grown = freeze(&mut builder);
        let mut scratch = Builder::new();
        naive.workloads.values().cloned().for_each(|one| { scratch.upsert_workload(one); });
        naive.services.values().cloned().for_each(|one| { scratch.upsert_service(one); });
        let scratch = freeze(&mut scratch);
        prop_assert!(same(&grown.workloads, &scratch.workloads));
        prop_assert!(same(&grown.addresses, &scratch.addresses));
        prop_assert!(same(&grown.own, &scratch.own));
        prop_assert!(same(&grown.services, &scratch.services));
        prop_assert!(same(&grown.vips, &scratch.vips));
        prop_assert!(same(&grown.populations, &scratch.populations));
        prop_assert_eq!(grown.endpoints.size(), scratch.endpoints.size());
    }
}
