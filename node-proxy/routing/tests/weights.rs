//! Shares of backends by weight.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of integration tests for code outside tests")]

use std::sync::Arc;
use std::thread;

use culvert_routing::model::{
    Action, Backend, Filter, Match, Mirror, PathMatch, Route, RouteKey, RouteKind, Rule, Share, Target,
    Timeouts,
};
use culvert_routing::weights::{Wheel, Wheels};
use culvert_routing::{CompiledRoute, MirrorPlace};
use culvert_routing_oracle::filters::copied;
use proptest::prelude::*;

/// Ten phases spread over a wheel, whose sum is at most 10,000 here.
const PHASES: [u64; 10] = [0, 1, 13, 50, 77, 99, 1_234, 5_000, 7_777, 9_999];

fn count(picks: impl IntoIterator<Item = Option<usize>>, backends: usize) -> Vec<usize> {
    let mut counts = vec![0; backends];
    picks.into_iter().for_each(|pick| counts[pick.unwrap()] += 1);
    counts
}

fn picks(wheel: &Wheel, number: usize) -> Vec<Option<usize>> {
    (0..number).map(|_| wheel.pick()).collect()
}

#[test]
fn one_percent_of_five_hundred_is_four_to_six() {
    // With the place of the backend of 1 %.
    let cases: [(&[u32], usize); 8] = [
        (&[99, 1], 1),
        (&[1, 99], 0),
        (&[990_000, 10_000], 1),
        (&[60, 39, 1], 2),
        (&[9_900, 100], 1),
        (&[9_899, 101], 1),
        (&[987, 10], 1),
        (&[300, 1, 400, 299, 10], 4),
    ];
    for (weights, canary) in cases {
        for phase in PHASES {
            let wheel = Wheel::starting_at(weights.to_vec(), phase);
            let counts = count(picks(&wheel, 500), weights.len());
            assert!((4..=6).contains(&counts[canary]), "{weights:?} from {phase}: {counts:?}");
        }
    }
}

#[test]
fn seventy_to_thirty_is_within_three_points() {
    let cases: [&[u32]; 4] = [&[70, 30], &[7, 3], &[700_000, 300_000], &[7_001, 2_999]];
    for weights in cases {
        for phase in PHASES {
            let wheel = Wheel::starting_at(weights.to_vec(), phase);
            for number in [100, 333, 500] {
                let counts = count(picks(&wheel, number), 2);
                let share = counts[0] as f64 / number as f64;
                assert!((0.67..=0.73).contains(&share), "{weights:?} from {phase}: {counts:?}");
            }
        }
    }
}

#[test]
fn threads_share_a_wheel() {
    for phase in PHASES {
        let wheel = Wheel::starting_at([99, 1], phase);
        let counts = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| picks(&wheel, 125))).collect();
            count(threads.into_iter().flat_map(|thread| thread.join().unwrap()), 2)
        });
        assert_eq!(counts, [495, 5]);
    }
}

#[test]
fn a_thousand_clients_with_one_request_each_keep_the_share() {
    let one = Wheel::new([99, 1]);
    assert_eq!(count(picks(&one, 1000), 2), [990, 10]);
    // Every worker with a wheel of its own.
    let workers: Vec<Wheel> = (0..4).map(|_| Wheel::new([99, 1])).collect();
    let counts = count((0..1000).map(|client| workers[client % 4].pick()), 2);
    assert!((3..=17).contains(&counts[1]), "{counts:?}");
}

#[test]
fn wheels_start_at_different_phases() {
    let first: Vec<Option<usize>> = (0..1000).map(|_| Wheel::new([50, 50]).pick()).collect();
    let counts = count(first, 2);
    assert!((350..=650).contains(&counts[0]), "{counts:?}");
}

#[test]
fn what_has_no_weight_is_never_chosen() {
    for phase in PHASES {
        let wheel = Wheel::starting_at([0, 3, 0, 1, 0], phase);
        assert_eq!(count(picks(&wheel, 400), 5), [0, 300, 0, 100, 0]);
    }
    assert_eq!(Wheel::new([0, 0]).pick(), None);
    assert_eq!(Wheel::new([]).pick(), None);
    assert_eq!(Wheel::new([0]).pick(), None);
    assert_eq!(Wheel::new([7]).pick(), Some(0));
}

#[test]
fn the_largest_weights_keep_their_shares() {
    let weights = [u32::MAX, u32::MAX, u32::MAX - 1];
    for phase in [0, 1, u64::MAX, 1 << 33] {
        let counts = count(picks(&Wheel::starting_at(weights, phase), 3_000), 3);
        assert!(counts.iter().all(|count| (997..=1003).contains(count)), "{counts:?}");
    }
}

proptest! {
    #[test]
    fn as_many_picks_as_the_weights_sum_to_are_exact(
        weights in proptest::collection::vec(0u32..40, 1..8),
        phase: u64,
        skipped in 0usize..100,
    ) {
        let wheel = Wheel::starting_at(weights.clone(), phase);
        let sum = weights.iter().sum::<u32>() as usize;
        prop_assume!(sum > 0);
        picks(&wheel, skipped);
        let counts = count(picks(&wheel, sum), weights.len());
        prop_assert_eq!(counts, weights.iter().map(|weight| *weight as usize).collect::<Vec<_>>());
    }

    /// Not only whole turns: any part of one.
    #[test]
    fn any_number_of_picks_is_within_one_of_two_shares(
        weights: [u32; 2],
        phase: u64,
        skipped in 0usize..100,
        number in 1usize..3000,
    ) {
        prop_assume!(weights != [0, 0]);
        let wheel = Wheel::starting_at(weights, phase);
        picks(&wheel, skipped);
        let counts = count(picks(&wheel, number), 2);
        let wanted = number as f64 * f64::from(weights[0]) / (f64::from(weights[0]) + f64::from(weights[1]));
        prop_assert!((counts[0] as f64 - wanted).abs() < 1.001, "{} instead of {wanted}", counts[0]);
    }

    #[test]
    fn any_number_of_picks_is_within_three_of_many_shares(
        weights in proptest::collection::vec(1u32..1_000, 3..16),
        phase: u64,
        number in 1usize..3000,
    ) {
        let counts = count(picks(&Wheel::starting_at(weights.clone(), phase), number), weights.len());
        let sum = weights.iter().sum::<u32>();
        for (count, weight) in counts.iter().zip(weights) {
            let wanted = number as f64 * f64::from(weight) / f64::from(sum);
            prop_assert!((*count as f64 - wanted).abs() < 3.0, "{count} instead of {wanted}");
        }
    }
}

fn backend(name: &str, weight: u32) -> Backend {
    let target = Target::Service { namespace: "shop".into(), name: name.into(), port: 80 };
    Backend { weight, filters: vec![], target }
}

fn route(name: &str, rule: Option<&str>, backends: Vec<Backend>) -> CompiledRoute {
    let matched = Match { path: PathMatch::Prefix("/".into()), method: None, headers: vec![], query: vec![] };
    let rule = Rule {
        name: rule.map(Into::into),
        matches: vec![matched],
        filters: vec![],
        action: Action::Forward(backends),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    };
    let key = RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: name.into() };
    CompiledRoute::compile(Route { key, created: 0, hostnames: vec![], rules: vec![rule] }).unwrap()
}

fn canary() -> Vec<Backend> {
    vec![backend("stable", 99), backend("canary", 1)]
}

#[test]
fn a_rule_goes_on_where_it_was_while_other_routes_are_edited() {
    let wheels = Wheels::default();
    let parent: Arc<str> = "HTTPRoute/shop/cart@shop/cart".into();
    let mut serving = route("cart", None, canary());
    let mut other = route("other", None, canary());
    wheels.adopt(&parent, &serving);
    wheels.adopt(&parent, &other);
    let mut canaries = 0;
    for request in 0..500 {
        canaries += serving.rules()[0].pick_backend().map_or(0, |(index, _)| index);
        if request % 5 == 0 {
            let rebuilt = route("cart", None, canary());
            wheels.adopt(&parent, &rebuilt);
            serving = rebuilt;
            other = route("other", None, vec![backend("stable", 100 + request)]);
            wheels.adopt(&parent, &other);
            wheels.forget_unused();
            assert_eq!(wheels.len(), 2);
        }
    }
    assert_eq!(canaries, 5);
    drop((serving, other));
    wheels.forget_unused();
    assert!(wheels.is_empty());
}

#[test]
fn rules_of_the_same_name_and_backends_share_a_wheel_and_others_do_not() {
    let parent: Arc<str> = "a".into();
    let wheels = Wheels::default();
    let adopted = |parent: &Arc<str>, route: CompiledRoute| {
        wheels.adopt(parent, &route);
        (Arc::clone(route.rules()[0].wheel()), route)
    };
    let (first, _first) = adopted(&parent, route("cart", Some("main"), canary()));
    let (same, _same) = adopted(&parent, route("cart", Some("main"), canary()));
    assert!(Arc::ptr_eq(&first, &same));
    let reweighted = vec![backend("stable", 98), backend("canary", 2)];
    let different = [
        adopted(&"b".into(), route("cart", Some("main"), canary())),
        adopted(&parent, route("cart", Some("second"), canary())),
        adopted(&parent, route("cart", None, canary())),
        adopted(&parent, route("cart-2", Some("main"), canary())),
        adopted(&parent, route("cart", Some("main"), reweighted)),
        adopted(&parent, route("cart", Some("main"), vec![backend("stable", 99), backend("canary-2", 1)])),
    ];
    for (wheel, _) in &different {
        assert!(!Arc::ptr_eq(&first, wheel));
    }
    assert_eq!(wheels.len(), 1 + different.len());
}

#[test]
fn a_rule_without_backends_picks_none() {
    assert!(route("cart", None, vec![]).rules()[0].pick_backend().is_none());
    assert!(route("cart", None, vec![backend("stable", 0)]).rules()[0].pick_backend().is_none());
    let route = route("cart", None, vec![backend("stable", 0), backend("canary", 2)]);
    let (index, picked) = route.rules()[0].pick_backend().unwrap();
    assert_eq!((index, picked), (1, &backend("canary", 2)));
}

fn mirrored(shares: &[(u32, u32)]) -> CompiledRoute {
    let filters = shares.iter().map(|(numerator, denominator)| {
        let share = Share::new(*numerator, *denominator).unwrap();
        Filter::Mirror(Mirror { target: backend("copies", 1).target, share })
    });
    let mut route = Route::clone(route("cart", None, canary()).route());
    route.rules[0].filters = filters.clone().collect();
    if let Action::Forward(backends) = &mut route.rules[0].action {
        backends[1].filters = filters.collect();
    }
    CompiledRoute::compile(route).unwrap()
}

proptest! {
    #[test]
    fn a_mirror_keeps_its_share_to_the_request(numerator in 0..=100_u32, more in 0..=100_u32, requests in 1..400_u64) {
        let (denominator, route) = (numerator + more.max(1), mirrored(&[(numerator, numerator + more.max(1)), (1, 1)]));
        for backend in [None, Some(1)] {
            let picks = (0..requests).filter(|_| route.rules()[0].is_mirrored(MirrorPlace { backend, filter: 0 })).count();
            let (least, most) = copied(requests, numerator.into(), denominator.into()).into_inner();
            prop_assert!((least.saturating_sub(1)..=most + 1).contains(&(picks as u64)), "{picks}");
            prop_assert!(route.rules()[0].is_mirrored(MirrorPlace { backend, filter: 1 }), "all of them");
        }
        let nowhere = MirrorPlace { backend: Some(0), filter: 0 };
        prop_assert!(!route.rules()[0].is_mirrored(nowhere), "the other backend has no mirror");
    }
}

#[test]
fn mirrors_go_on_counting_when_another_route_is_edited() {
    let (parent, wheels): (Arc<str>, _) = ("a".into(), Wheels::default());
    let place = MirrorPlace { backend: None, filter: 0 };
    let mut before = mirrored(&[(1, 100)]);
    wheels.adopt(&parent, &before);
    let mut copies = 0;
    for _ in 0..100 {
        let next = mirrored(&[(1, 100)]);
        wheels.adopt(&parent, &next);
        before = next;
        copies += u32::from(before.rules()[0].is_mirrored(place));
    }
    assert_eq!(copies, 1);
    assert_eq!(wheels.len(), 3, "the backends' and two of mirrors");
}

#[test]
fn a_share_is_at_most_all() {
    assert_eq!(Share::new(2, 1), None);
    assert_eq!(Share::new(0, 0), None);
    assert_eq!(Share::new(3, 3).map(Share::as_fraction), Some(1.0));
}
