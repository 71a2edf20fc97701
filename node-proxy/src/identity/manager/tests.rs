use std::sync::atomic::{AtomicUsize, Ordering};

use culvert_identity::testing::{LeafSpec, TestAuthority};
use parking_lot::Mutex;
use tokio_util::sync::DropGuard;

use super::super::clock::Clock;
use super::super::store::CertificateError;
use super::*;
use crate::state::{Builder, Origin, Snapshot};
use crate::telemetry::AccessLog;

const LIFE: Duration = Duration::from_secs(3600);
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// What the fake CA does with requests.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Signs,
    Refuses,
    /// Never answers.
    Sleeps,
}

struct FakeCa {
    authority: Mutex<Arc<TestAuthority>>,
    mood: Mutex<Mood>,
    clock: Clock,
    asked: Mutex<Vec<(Instant, Identity)>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

impl FakeCa {
    fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    fn asked(&self) -> usize {
        self.asked.lock().len()
    }

    async fn answer(&self, identity: &Identity) -> Result<Issued, RequestError> {
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mood = *self.mood.lock();
        if mood == Mood::Sleeps {
            std::future::pending::<()>().await;
        }
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        if mood == Mood::Refuses {
            let message = "no such pod here".to_owned();
            return Err(RequestError::Refused { code: tonic::Code::PermissionDenied, message });
        }
        let authority = self.authority.lock().clone();
        let mut spec = LeafSpec::proper(identity.uri());
        spec.not_before = self.clock.now() - Duration::from_secs(60);
        spec.not_after = self.clock.now() + LIFE;
        Ok(Issued { certificate: authority.leaf_of(&spec), roots: authority.bundle() })
    }
}

struct Fake(Arc<FakeCa>);

impl Issuer for Fake {
    fn issue(&self, identity: Identity) -> BoxFuture<'static, Result<Issued, RequestError>> {
        let ca = self.0.clone();
        ca.asked.lock().push((Instant::now(), identity.clone()));
        Box::pin(async move { ca.answer(&identity).await })
    }
}

struct Fixture {
    ca: Arc<FakeCa>,
    certificates: Certificates,
    bundle: watch::Sender<Arc<TrustBundle>>,
    snapshots: Snapshots,
    telemetry: Telemetry,
    _cancel: DropGuard,
}

fn start() -> Fixture {
    let clock = Clock::simulated();
    let authority = Arc::new(TestAuthority::new("root"));
    let (bundle, bundle_receiver) = watch::channel(Arc::new(authority.bundle()));
    let ca = Arc::new(FakeCa {
        authority: Mutex::new(authority),
        mood: Mutex::new(Mood::Signs),
        clock,
        asked: Mutex::default(),
        at_once: AtomicUsize::new(0),
        most_at_once: AtomicUsize::new(0),
    });
    let snapshots = Snapshots::new(Snapshot::empty());
    let telemetry = Telemetry::new(snapshots.clone(), AccessLog::discarded());
    let certificates = Certificates::with_clock(clock);
    let manager = CertificateManager::with_issuer(
        certificates.clone(),
        Box::new(Fake(ca.clone())),
        bundle_receiver,
        snapshots.clone(),
        telemetry.clone(),
    );
    let cancel = CancellationToken::new();
    tokio::spawn(manager.run(cancel.clone()));
    Fixture { ca, certificates, bundle, snapshots, telemetry, _cancel: cancel.drop_guard() }
}

fn cart() -> Identity {
    CART.parse().unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

async fn after(duration: Duration) {
    tokio::time::sleep(duration).await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_requested_when_it_is_wanted_and_only_once() {
    let fixture = start();
    assert!(fixture.certificates.current(&cart()).is_none());
    let identity = cart();
    let _lease = fixture.certificates.keep(&identity);
    let (one, other) = tokio::join!(
        fixture.certificates.acquire(&identity, soon()),
        fixture.certificates.acquire(&identity, soon()),
    );
    let one = one.unwrap();
    assert!(Arc::ptr_eq(&one, &other.unwrap()));
    assert_eq!((one.identity.clone(), one.generation), (cart(), 1));
    assert_eq!(fixture.ca.asked(), 1);
    assert!(Arc::ptr_eq(&one, &fixture.certificates.current(&cart()).unwrap()));
}

#[tokio::test(start_paused = true)]
async fn it_is_renewed_between_half_and_seven_tenths_of_its_life() {
    let fixture = start();
    let _lease = fixture.certificates.keep(&cart());
    fixture.certificates.acquire(&cart(), soon()).await.unwrap();
    after(LIFE.mul_f64(0.49)).await;
    assert_eq!(fixture.ca.asked(), 1);
    after(LIFE.mul_f64(0.22)).await;
    assert_eq!(fixture.ca.asked(), 2);
    assert_eq!(fixture.certificates.current(&cart()).unwrap().generation, 2);
}

#[tokio::test(start_paused = true)]
async fn with_the_ca_away_it_serves_until_it_expires_and_comes_back_with_it() {
    let fixture = start();
    let _lease = fixture.certificates.keep(&cart());
    let first = fixture.certificates.acquire(&cart(), soon()).await.unwrap();
    fixture.ca.set(Mood::Refuses);
    after(LIFE - Duration::from_secs(60)).await;
    assert!(Arc::ptr_eq(&first, &fixture.certificates.current(&cart()).unwrap()));
    let status = fixture.certificates.statuses().remove(0);
    assert!(status.failures > 5);
    assert!(status.last_error.unwrap().contains("no such pod here"));
    let text = fixture.telemetry.scrape().unwrap();
    let failures =
        text.lines().find(|line| line.contains("certificate_requests_total{result=\"failure\"}")).unwrap();
    assert!(failures.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 5.0, "{failures}");
    after(Duration::from_secs(120)).await;
    assert!(fixture.certificates.current(&cart()).is_none(), "an expired certificate is not served");
    fixture.ca.set(Mood::Signs);
    after(Duration::from_secs(40)).await;
    assert!(fixture.certificates.current(&cart()).is_some());
}

#[tokio::test(start_paused = true)]
async fn failures_back_off_each_identity_for_itself_and_urgency_does_not_wait() {
    let fixture = start();
    fixture.ca.set(Mood::Refuses);
    let _lease = fixture.certificates.keep(&cart());
    after(Duration::from_secs(60)).await;
    let asked = fixture.ca.asked.lock().clone();
    assert!((6..=12).contains(&asked.len()), "{} requests in a minute", asked.len());
    let gaps: Vec<Duration> = asked.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(gaps[0] >= Duration::from_millis(400) && gaps[0] < Duration::from_secs(1), "{gaps:?}");
    assert!(gaps.last().unwrap() > &Duration::from_secs(8), "{gaps:?}");
    let started = Instant::now();
    let error =
        fixture.certificates.acquire(&cart(), Instant::now() + Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(started.elapsed(), Duration::from_secs(1));
    assert!(matches!(error, CertificateError::Failed { .. }), "{error}");
    assert_eq!(fixture.ca.asked(), asked.len() + 1, "asked at once for who waits");
    fixture.ca.set(Mood::Signs);
    let other: Identity = "spiffe://cluster.local/ns/shop/sa/till".parse().unwrap();
    fixture.certificates.acquire(&other, soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn at_most_eight_requests_run_and_who_waits_goes_first() {
    let fixture = start();
    let identity = |number: usize| -> Identity {
        format!("spiffe://cluster.local/ns/shop/sa/a{number}").parse().unwrap()
    };
    let leases: Vec<_> = (0..40).map(|number| fixture.certificates.keep(&identity(number))).collect();
    after(Duration::from_millis(10)).await;
    let urgent: Identity = "spiffe://cluster.local/ns/shop/sa/urgent".parse().unwrap();
    fixture.certificates.acquire(&urgent, soon()).await.unwrap();
    assert!(fixture.ca.asked() <= 24, "the urgent one did not wait for the queue");
    after(Duration::from_secs(2)).await;
    assert!(leases.iter().all(|lease| fixture.certificates.current(lease.identity()).is_some()));
    assert_eq!(fixture.ca.most_at_once.load(Ordering::SeqCst), 8);
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_never_answers_is_given_up() {
    let fixture = start();
    fixture.ca.set(Mood::Sleeps);
    let _lease = fixture.certificates.keep(&cart());
    after(LONGEST_REQUEST + Duration::from_secs(2)).await;
    assert!(fixture.ca.asked() >= 2);
    assert!(fixture.certificates.statuses()[0].last_error.as_ref().unwrap().contains("no answer within"));
}

#[tokio::test(start_paused = true)]
async fn it_is_forgotten_after_the_last_lease() {
    let fixture = start();
    let first = fixture.certificates.keep(&cart());
    let second = fixture.certificates.keep(&cart());
    fixture.certificates.acquire(&cart(), soon()).await.unwrap();
    drop(first);
    after(Duration::from_secs(60)).await;
    assert!(fixture.certificates.current(&cart()).is_some());
    drop(second);
    after(Duration::from_secs(2)).await;
    let third = fixture.certificates.keep(&cart());
    after(Duration::from_secs(60)).await;
    assert!(fixture.certificates.current(&cart()).is_some(), "a successor came in time");
    drop(third);
    after(LINGER + Duration::from_secs(1)).await;
    assert!(fixture.certificates.current(&cart()).is_none());
    assert!(fixture.certificates.statuses().is_empty());
    assert_eq!(fixture.ca.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_bundle_means_new_configurations_around_the_same_certificate() {
    let fixture = start();
    let _lease = fixture.certificates.keep(&cart());
    let before = fixture.certificates.acquire(&cart(), soon()).await.unwrap();
    let mut changed = fixture.certificates.changed();
    changed.mark_unchanged();
    let second = TestAuthority::new("second");
    let old = fixture.ca.authority.lock().pem();
    let both = TrustBundle::from_pem(format!("{old}{}", second.pem()).as_bytes()).unwrap();
    fixture.bundle.send_replace(Arc::new(both));
    changed.changed().await.unwrap();
    let after_overlap = fixture.certificates.current(&cart()).unwrap();
    assert_eq!(after_overlap.roots_generation, before.roots_generation + 1);
    assert!(after_overlap.generation > before.generation && after_overlap.not_after == before.not_after);
    assert!(!Arc::ptr_eq(&before.server, &after_overlap.server));
    after(Duration::from_secs(5)).await;
    assert_eq!(fixture.ca.asked(), 1, "no new certificate for that");

    // The old root goes: the certificate leads nowhere, a new one is asked for at once.
    *fixture.ca.authority.lock() = Arc::new(second);
    let only_new = fixture.ca.authority.lock().bundle();
    fixture.bundle.send_replace(Arc::new(only_new));
    after(Duration::from_secs(5)).await;
    assert_eq!(fixture.ca.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn new_trust_domain_aliases_are_accepted_at_once() {
    let fixture = start();
    let _lease = fixture.certificates.keep(&cart());
    let before = fixture.certificates.acquire(&cart(), soon()).await.unwrap();
    let mut mesh = (**fixture.snapshots.load().mesh()).clone();
    mesh.trust_domain_aliases = vec!["old.example".parse().unwrap()];
    let mut builder = Builder::new();
    builder.set_mesh(mesh);
    fixture.snapshots.publish(builder.freeze(Origin::Controller, "v2"));
    after(Duration::from_secs(1)).await;
    let after_change = fixture.certificates.current(&cart()).unwrap();
    assert!(!Arc::ptr_eq(&before.server, &after_change.server));
    assert_eq!(after_change.roots_generation, before.roots_generation);
    fixture.snapshots.publish(builder.freeze(Origin::Controller, "v3"));
    after(Duration::from_secs(1)).await;
    assert!(Arc::ptr_eq(&after_change, &fixture.certificates.current(&cart()).unwrap()), "nothing changed");
}
