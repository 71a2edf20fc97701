//! Ejection as clients see it, in paused time, and against a naive model.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::{Instant, advance};

use super::testing::{EJECTION, endpoint_set, member, service, workload};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn service_of(count: usize) -> (Arc<Service>, Arc<EndpointSet>) {
    let db = Arc::new(service("db", &[(80, "a")]));
    let set = endpoint_set((0..count).map(|index| Workload {
        memberships: vec![member(&db)],
        ..workload(&format!("w{index}"), &format!("10.0.0.{index}"))
    }));
    (db, set)
}

fn wanted(service: &Arc<Service>) -> Wanted<'_> {
    Wanted {
        service,
        port: 80,
        family: Family::V4,
        client: "10.9.0.1".parse().unwrap(),
        zone: "a",
        carried: Carried::Requests,
        ejection: Some(&EJECTION),
    }
}

/// A client that picks, and what its endpoints do.
struct World {
    service: Arc<Service>,
    set: Arc<EndpointSet>,
    balancer: Balancer,
}

impl World {
    fn of(count: usize) -> Self {
        let (service, set) = service_of(count);
        Self { service, set, balancer: Balancer::new(Arc::default(), "here".into()) }
    }

    fn wanted(&self) -> Wanted<'_> {
        wanted(&self.service)
    }

    fn pick(&self) -> Candidate {
        self.balancer.pick(Some(&self.set), &self.wanted(), &[]).unwrap()
    }

    /// Sends requests, of which the endpoints of these names answer 503. How many failed.
    fn requests(&self, count: usize, bad: &[&str]) -> usize {
        let request = |_: &usize| {
            let picked = self.pick();
            let fails = bad.contains(&&*picked.workload.name);
            let mut in_flight = picked.begin();
            if fails {
                in_flight.refused();
            } else {
                in_flight.answered(Duration::from_millis(1));
            }
            in_flight.completed();
            fails
        };
        (0..count).filter(request).count()
    }

    fn ejected(&self) -> Vec<Ejected> {
        let snapshot = crate::state::Snapshot::empty();
        let groups = self.balancer.endpoints.ejected(&snapshot);
        assert!(groups.is_empty(), "nothing of what a snapshot does not have");
        self.balancer.endpoints.all_ejected()
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_three_that_fails_is_tried_once_per_back_off() {
    let world = World::of(3);
    let failed = world.requests(1000, &["w0"]);
    assert_eq!(failed, 5, "and no more");
    assert_eq!(world.ejected().len(), 1);
    // With what is added at random, trials are between one and one and a half back-offs apart.
    let (mut failed, mut trials) = (0, Vec::new());
    for half_second in 0..200 {
        advance(SECOND / 2).await;
        let now = world.requests(100, &["w0"]);
        assert!(now <= 1, "one at a time");
        failed += now;
        if now == 1 {
            trials.push(half_second as f64 / 2.0);
        }
    }
    assert!((5..=7).contains(&failed), "1, 2, 4, 8, 16, 32 and 60 seconds: {trials:?}");
    assert!(failed * 1000 < 200 * 100, "far below 1 %");
}

#[tokio::test(start_paused = true)]
async fn at_few_requests_the_second_failure_is_the_last_once_half_a_second_is_over() {
    let world = World::of(3);
    let mut failed = Vec::new();
    for tenth in 0..1000 {
        if world.requests(1, &["w0"]) == 1 {
            failed.push(tenth);
        }
        if !world.ejected().is_empty() {
            break;
        }
        advance(SECOND / 10).await;
    }
    let last = failed.pop().unwrap();
    assert!(!failed.is_empty() && failed.len() < 5, "{failed:?} {last}");
    assert!(failed.iter().all(|tenth| *tenth < failed[0] + 5), "{failed:?} {last}");
}

#[tokio::test(start_paused = true)]
async fn failures_that_are_far_apart_do_not_add_up_over_what_goes_well() {
    let world = World::of(3);
    for _ in 0..50 {
        world.requests(1, &["w0", "w1", "w2"]);
        advance(SECOND / 4).await;
        world.requests(30, &[]);
        advance(SECOND / 4).await;
    }
    assert!(world.ejected().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_answers_again_is_back_after_its_trial() {
    let world = World::of(3);
    world.requests(100, &["w1"]);
    assert_eq!(world.ejected().len(), 1);
    world.requests(100, &[]);
    assert_eq!(world.ejected().len(), 1, "before its time");
    advance(2 * SECOND).await;
    let trial = world.pick();
    assert!(trial.is_trial() && &*trial.workload.name == "w1");
    let mut in_flight = trial.begin();
    assert!((0..20).all(|_| &*world.pick().workload.name != "w1"), "a single one");
    in_flight.answered(Duration::from_millis(1));
    drop(in_flight);
    assert!(world.ejected().is_empty());
    assert!((0..100).any(|_| &*world.pick().workload.name == "w1"));
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_the_client_gives_up_decides_nothing() {
    let world = World::of(2);
    world.requests(100, &["w0"]);
    advance(2 * SECOND).await;
    drop(world.pick().begin());
    let next = world.pick();
    assert!(next.is_trial(), "another at once");
    next.begin().answered(Duration::from_millis(1));
    assert!(world.ejected().is_empty());
}

#[tokio::test(start_paused = true)]
async fn at_most_half_are_out_and_all_that_fail_are_used() {
    for (count, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (10, 5)] {
        let world = World::of(count);
        let names: Vec<String> = (0..count).map(|index| format!("w{index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(world.requests(500, &names), 500, "traffic goes on");
        assert_eq!(world.ejected().len(), most, "of {count}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_service_is_not_all_ejected() {
    let mut world = World::of(6);
    world.requests(500, &["w0", "w1", "w2"]);
    assert_eq!(world.ejected().len(), 3);
    world.set = endpoint_set(world.set.endpoints[..4].iter().map(|one| (*one.workload).clone()));
    world.pick();
    assert_eq!(world.ejected().len(), 2, "of four that are left");
    world.set = endpoint_set(world.set.endpoints[..1].iter().map(|one| (*one.workload).clone()));
    assert_eq!(&*world.pick().workload.name, "w0");
    assert!(world.ejected().is_empty());
}

#[tokio::test(start_paused = true)]
async fn health_survives_updates_and_goes_with_the_endpoint() {
    let mut world = World::of(4);
    world.requests(100, &["w0"]);
    let all: Vec<Workload> = world.set.endpoints.iter().map(|one| (*one.workload).clone()).collect();
    // Another version of the same endpoints, one of them not ready for a while.
    let mut changed = all.clone();
    changed[0].memberships[0].ready = false;
    for set in [all.clone(), changed, all.clone()] {
        world.set = endpoint_set(set);
        assert!((0..50).all(|_| &*world.pick().workload.name != "w0"));
        assert_eq!(world.ejected().len(), 1);
    }
    world.set = endpoint_set(all[1..].to_vec());
    world.pick();
    assert!(world.ejected().is_empty());
    world.set = endpoint_set(all);
    assert!((0..100).any(|_| &*world.pick().workload.name == "w0"), "it is another one now");
}

#[tokio::test(start_paused = true)]
async fn a_flapping_endpoint_is_out_for_longer_each_time() {
    let world = World::of(3);
    let mut failed = 0;
    // In turn one second each, for two minutes.
    for second in 0..120 {
        let bad: &[&str] = if second % 2 == 0 { &["w2"] } else { &[] };
        for _ in 0..10 {
            failed += world.requests(100, bad);
            advance(SECOND / 10).await;
        }
    }
    assert!(failed <= 120, "of 120,000 requests {failed}");
}

#[tokio::test(start_paused = true)]
async fn connections_are_judged_by_connecting_and_by_what_they_carry() {
    let (db, set) = service_of(2);
    let balancer = Balancer::new(Arc::default(), "here".into());
    let wanted = Wanted { carried: Carried::Connections, ..wanted(&db) };
    let named = |name: &str| loop {
        let picked = balancer.pick(Some(&set), &wanted, &[]).unwrap();
        if &*picked.workload.name == name {
            break picked;
        }
    };
    // One refused connection is enough, and the first that is made ends it.
    named("w0").begin().unreached();
    assert!(named("w1").health.is_some() && balancer.endpoints.all_ejected().len() == 1);
    advance(2 * SECOND).await;
    named("w0").begin().connected(Duration::from_millis(1));
    assert!(balancer.endpoints.all_ejected().is_empty());
    // Connections that are made and reset count on, and one that carries something ends that.
    let reset = || {
        let mut in_flight = named("w0").begin();
        in_flight.connected(Duration::from_millis(1));
        in_flight.broken();
    };
    (0..4).for_each(|_| reset());
    let mut good = named("w0").begin();
    good.connected(Duration::from_millis(1));
    good.completed();
    drop(good);
    (0..4).for_each(|_| reset());
    assert!(balancer.endpoints.all_ejected().is_empty());
    reset();
    assert_eq!(balancer.endpoints.all_ejected().len(), 1);
    // Back by a connection that was made, and out again by the first that is reset.
    advance(4 * SECOND).await;
    reset();
    let out = balancer.endpoints.all_ejected();
    assert_eq!((out.len(), out[0].times), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn what_broke_after_a_long_good_time_is_one_failure() {
    let world = World::of(2);
    for _ in 0..20 {
        let picked = world.pick();
        let mut in_flight = picked.begin();
        in_flight.answered(Duration::from_millis(1));
        advance(11 * SECOND).await;
        in_flight.broken();
    }
    assert!(world.ejected().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_wants_no_ejection_gets_every_endpoint() {
    let world = World::of(2);
    world.requests(100, &["w0"]);
    let wanted = Wanted { ejection: None, ..world.wanted() };
    let pick = |_| world.balancer.pick(Some(&world.set), &wanted, &[]).unwrap();
    assert!((0..100).map(pick).any(|picked| &*picked.workload.name == "w0" && !picked.is_ejected()));
}

#[tokio::test(start_paused = true)]
async fn clients_of_an_ejected_endpoint_move_and_come_back() {
    let (db, set) = service_of(4);
    let db = Arc::new(Service { client_ip_affinity: Some(SECOND), ..(*db).clone() });
    let balancer = Balancer::new(Arc::default(), "here".into());
    let pick = |client: u8| {
        let wanted = Wanted { client: IpAddr::from([10, 9, 0, client]), ..wanted(&db) };
        balancer.pick(Some(&set), &wanted, &[]).unwrap()
    };
    let homes: Vec<String> = (0..50).map(|client| pick(client).workload.name.to_string()).collect();
    let mine = |client: u8| homes[usize::from(client)] == homes[0];
    (0..5).for_each(|_| pick(0).begin().refused());
    for client in 0..50 {
        let now = pick(client).workload.name.to_string();
        assert_eq!(now == homes[usize::from(client)], !mine(client), "only its own clients move");
        assert_eq!(now, pick(client).workload.name.to_string(), "to one place each");
    }
    advance(2 * SECOND).await;
    let stranger = (0..50).find(|client| !mine(*client)).unwrap();
    assert!(!pick(stranger).is_trial(), "the trial is for those that belong there");
    let trial = pick(0);
    assert!(trial.is_trial());
    trial.begin().answered(Duration::from_millis(1));
    assert!((0..50).all(|client| pick(client).workload.name.to_string() == homes[usize::from(client)]));
}

/// What is done in one step.
#[derive(Clone, Copy, Debug)]
enum Op {
    Wait(u64),
    Begin,
    /// Which of those under way, counted from the oldest, and how it ends: 0 well, 1 badly, 2 nobody knows.
    End(usize, u8),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => (0..3000_u64).prop_map(Op::Wait),
        3 => Just(Op::Begin),
        3 => (0..4_usize, 0..6_u8).prop_map(|(which, how)| Op::End(which, [0, 1, 1, 1, 1, 2][usize::from(how)])),
    ]
}

/// One endpoint, as plainly as it can be said.
#[derive(Clone, Debug, Default)]
struct Naive {
    in_a_row: u32,
    /// When the first of those failed.
    failing_since: Duration,
    times: u32,
    back_at: Duration,
    /// Since when, and until when.
    out: Option<(Duration, Duration)>,
}

impl Naive {
    fn may_have_been(&self, ms: u64) -> std::ops::RangeInclusive<Duration> {
        Duration::from_millis(ms)..=Duration::from_millis(ms + ms / 2)
    }

    /// How long it must be out, in milliseconds; counts the time.
    fn counted(&mut self) -> u64 {
        let ms = (1000_u64 << self.times.min(10)).min(60_000);
        self.times += 1;
        ms
    }
}

struct Model {
    all: BTreeMap<String, Naive>,
    world: World,
    started: Instant,
}

impl Model {
    /// Reads how long the endpoint is out for, which is partly random, and checks it.
    fn out(&mut self, name: &str, since: Duration) {
        let now = self.started.elapsed();
        let found = self.world.ejected().into_iter().find(|one| &*one.workload.name == name);
        let found = found.unwrap_or_else(|| panic!("{name} is not out"));
        let naive = self.all.get_mut(name).unwrap();
        let ms = naive.counted();
        assert!(
            naive.may_have_been(ms).contains(&found.trial_in),
            "{name}: {:?}, not {ms} ms",
            found.trial_in
        );
        naive.out = Some((since, now + found.trial_in));
    }

    fn end(&mut self, name: &str, began: Duration, is_trial: bool, how: u8) {
        let now = self.started.elapsed();
        let most = self.all.len() / 2;
        let out = self.all.values().filter(|one| one.out.is_some()).count();
        let naive = self.all.get_mut(name).unwrap();
        let concerned = naive.out.filter(|(since, _)| *since <= began);
        match how {
            0 => {
                naive.in_a_row = 0;
                if concerned.is_some() {
                    naive.out = None;
                    naive.back_at = now;
                }
            }
            1 => {
                naive.in_a_row += 1;
                if naive.in_a_row == 1 {
                    naive.failing_since = now;
                }
                let for_long = now - naive.failing_since >= SECOND / 2;
                let is_enough = naive.in_a_row >= if for_long { 2 } else { 5 };
                match (is_trial, concerned) {
                    (true, Some((since, _))) => self.out(name, since),
                    (false, _) if is_enough && naive.out.is_none() && out < most => {
                        let forgiven = (now - naive.back_at).as_secs() / 10;
                        naive.times = naive.times.saturating_sub(u32::try_from(forgiven).unwrap());
                        self.out(name, now);
                    }
                    _ => {}
                }
            }
            _ => {
                if let (true, Some((since, _))) = (is_trial, concerned) {
                    naive.out = Some((since, now));
                }
            }
        }
    }
}

async fn follows_the_model(count: usize, ops: Vec<Op>) {
    let names = (0..count).map(|index| (format!("w{index}"), Naive::default()));
    let mut model = Model { all: names.collect(), world: World::of(count), started: Instant::now() };
    let mut open = Vec::new();
    for op in ops {
        let now = model.started.elapsed();
        match op {
            Op::Wait(ms) => advance(Duration::from_millis(ms)).await,
            Op::Begin => {
                let picked = model.world.pick();
                let name = picked.workload.name.to_string();
                let is_due = |one: &Naive| one.out.is_some_and(|(_, until)| until <= now);
                let any_due = model.all.values().any(is_due);
                let naive = model.all.get_mut(&name).unwrap();
                assert_eq!(picked.is_trial(), any_due, "{name}: {naive:?} at {now:?}");
                assert_eq!(naive.out.is_some(), any_due, "{name}: {naive:?} at {now:?}");
                if let Some((_, until)) = &mut naive.out {
                    assert!(*until <= now);
                    *until = now + 10 * SECOND;
                }
                open.push((name, picked.begin(), now, picked.is_trial()));
            }
            Op::End(which, how) if !open.is_empty() => {
                let (name, mut in_flight, began, is_trial) = open.remove(which % open.len());
                match how {
                    0 => in_flight.answered(Duration::from_millis(1)),
                    1 => in_flight.refused(),
                    _ => {}
                }
                drop(in_flight);
                model.end(&name, began, is_trial, how);
            }
            Op::End(..) => {}
        }
        let out = model.all.values().filter(|one| one.out.is_some()).count();
        assert_eq!(model.world.ejected().len(), out);
        assert!(out <= count / 2);
    }
}

proptest! {
    #[test]
    fn endpoints_leave_and_come_back_as_the_naive_model_says(
        count in 1..6_usize,
        ops in prop::collection::vec(any_op(), 0..400),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(follows_the_model(count, ops));
    }
}
