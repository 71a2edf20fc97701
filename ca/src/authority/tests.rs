use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_identity::csr::CertificateRequest;
use culvert_identity::{Identity, TrustBundle, TrustDomain, WorkloadCertificate};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::*;
use crate::request;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const TIMING: Timing = Timing { overlap: HOUR, max_lifetime: DAY };

struct World {
    directory: tempfile::TempDir,
    start: SystemTime,
}

impl World {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), start: SystemTime::now() }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn published(&self) -> PathBuf {
        self.directory.path().join("roots.pem")
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle::from_file(&self.published()).unwrap()
    }

    fn keeper(&self, after: Duration) -> Keeper {
        self.try_keeper("cluster.local", after).unwrap()
    }

    fn try_keeper(&self, trust_domain: &str, after: Duration) -> Result<Keeper, KeeperError> {
        let trust_domain: TrustDomain = trust_domain.parse().unwrap();
        let store = Store::open(&self.data())?;
        Keeper::start(store, &trust_domain, TIMING, None, self.published(), self.start + after)
    }
}

fn current(keeper: &Keeper) -> Arc<Issuing> {
    keeper.issuing().borrow().clone()
}

fn phases(keeper: &Keeper) -> Vec<RootPhase> {
    current(keeper).roots().iter().map(|root| root.phase).collect()
}

fn leaf(issuing: &Issuing, lifetime: Duration, now: SystemTime) -> WorkloadCertificate {
    let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let made = CertificateRequest::new(&identity).unwrap();
    let key = request::check(&made.pem).unwrap().key;
    let signed = issuing.sign(&identity, &key, lifetime, now).unwrap();
    let der = CertificateDer::from_pem_slice(signed.certificate.as_bytes()).unwrap();
    let leaf = WorkloadCertificate::new(vec![der], made.key).unwrap();
    assert_eq!((leaf.identity(), leaf.serial()), (&identity, signed.serial.as_str()));
    leaf
}

#[test]
fn a_certificate_says_what_was_granted_and_no_more() {
    use x509_parser::prelude::*;
    let world = World::new();
    let issuing = current(&world.keeper(Duration::ZERO));
    let certificate = leaf(&issuing, HOUR, world.start);
    certificate.verify(issuing.bundle(), world.start).unwrap();
    let (_, parsed) = parse_x509_certificate(&certificate.chain()[0]).unwrap();
    assert_eq!(parsed.subject().iter().count(), 0);
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical && names.value.general_names.len() == 1);
    assert!(!parsed.is_ca());
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.key_encipherment());
    let extended = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth && !extended.any);
    assert_eq!(parsed.raw_serial().len(), 16);
    let slack = world.start.duration_since(certificate.not_before()).unwrap();
    assert!(slack >= CLOCK_SLACK && slack < CLOCK_SLACK + Duration::from_secs(2));
    assert_ne!(certificate.serial(), leaf(&issuing, HOUR, world.start).serial());
}

#[test]
fn nothing_outlives_the_root() {
    let world = World::new();
    let issuing = current(&world.keeper(Duration::ZERO));
    let near_its_end = issuing.root_not_after() - HOUR;
    assert!(leaf(&issuing, DAY, near_its_end).not_after() <= issuing.root_not_after());
    let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let late = issuing.sign(&identity, &key, HOUR, issuing.root_not_after());
    assert!(matches!(late, Err(SignError::RootExpired)));
}

#[test]
fn a_restart_keeps_the_root() {
    let world = World::new();
    let before = leaf(&current(&world.keeper(Duration::ZERO)), HOUR, world.start);
    let first = world.bundle();
    let keeper = world.keeper(HOUR / 2);
    assert_eq!(world.bundle(), first);
    before.verify(current(&keeper).bundle(), world.start).unwrap();
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(world.data().join("authority.json")), 0o600);
    assert_eq!(mode(world.data()), 0o700);
    assert_eq!(mode(world.published()), 0o644);
}

/// Replaces the root; `again` may restart the keeper between steps.
fn replace_root(again: impl Fn(&World, Keeper, Duration) -> Keeper) {
    let world = World::new();
    let mut keeper = world.keeper(Duration::ZERO);
    let old = current(&keeper);
    put_next_root(&world.data(), world.start).unwrap();

    keeper.tick(world.start).unwrap();
    keeper = again(&world, keeper, Duration::ZERO);
    assert_eq!(phases(&keeper), [RootPhase::Active, RootPhase::Announced]);
    assert_eq!(world.bundle().roots().len(), 2);
    assert!(matches!(put_next_root(&world.data(), world.start), Err(StoreError::RotationUnderWay { .. })));
    let signed_by_old = leaf(&current(&keeper), DAY, world.start + HOUR / 2);
    signed_by_old.verify(old.bundle(), world.start + HOUR / 2).unwrap();

    let switched = HOUR + Duration::from_secs(1);
    keeper.tick(world.start + switched).unwrap();
    keeper = again(&world, keeper, switched);
    assert_eq!(phases(&keeper), [RootPhase::Retiring, RootPhase::Active]);
    let state = std::fs::read_to_string(world.data().join("authority.json")).unwrap();
    assert_eq!(state.matches("PRIVATE KEY").count(), 2, "one key, with a beginning and an end");
    let signed_by_new = leaf(&current(&keeper), DAY, world.start + switched);
    for certificate in [&signed_by_old, &signed_by_new] {
        certificate.verify(&world.bundle(), world.start + switched).unwrap();
    }
    assert!(signed_by_new.verify(old.bundle(), world.start + switched).is_err());

    // The last that the old root signed may have been signed just before the switch.
    keeper.tick(world.start + switched + DAY).unwrap();
    keeper = again(&world, keeper, switched + DAY);
    assert_eq!(phases(&keeper), [RootPhase::Retiring, RootPhase::Active]);
    keeper.tick(world.start + switched + DAY + CLOCK_SLACK + Duration::from_secs(2)).unwrap();
    assert_eq!(phases(&keeper), [RootPhase::Active]);
    assert_eq!(world.bundle().roots().len(), 1);
    assert_ne!(world.bundle(), *old.bundle());
    put_next_root(&world.data(), world.start).unwrap();
}

#[test]
fn a_root_is_replaced_with_overlapping_bundles() {
    replace_root(|_, keeper, _| keeper);
}

#[test]
fn a_root_is_replaced_across_restarts() {
    replace_root(|world, keeper, after| {
        drop(keeper);
        world.keeper(after)
    });
}

#[test]
fn a_root_that_nobody_could_see_does_not_sign_yet() {
    let world = World::new();
    let mut keeper = world.keeper(Duration::ZERO);
    let before = std::fs::read(world.published()).unwrap();
    put_next_root(&world.data(), world.start).unwrap();
    keeper.tick(world.start).unwrap();
    // As if the process had died between saving and publishing, and came back an hour later.
    std::fs::write(world.published(), before).unwrap();
    drop(keeper);
    let mut keeper = world.keeper(HOUR);
    assert_eq!(phases(&keeper), [RootPhase::Active, RootPhase::Announced]);
    keeper.tick(world.start + HOUR + HOUR / 2).unwrap();
    assert_eq!(phases(&keeper), [RootPhase::Active, RootPhase::Announced]);
    keeper.tick(world.start + HOUR * 2 + Duration::from_secs(1)).unwrap();
    assert_eq!(phases(&keeper), [RootPhase::Retiring, RootPhase::Active]);
}

#[test]
fn a_next_root_waits_for_a_stopped_authority_and_is_taken_once() {
    let world = World::new();
    assert!(matches!(put_next_root(&world.data(), world.start), Err(StoreError::NoRootYet { .. })));
    drop(world.keeper(Duration::ZERO));
    put_next_root(&world.data(), world.start).unwrap();
    assert!(matches!(put_next_root(&world.data(), world.start), Err(StoreError::RotationUnderWay { .. })));
    let mut keeper = world.keeper(Duration::ZERO);
    assert_eq!(phases(&keeper), [RootPhase::Active, RootPhase::Announced]);
    assert!(!world.data().join("next-root.json").exists());
    keeper.tick(world.start).unwrap();
    assert_eq!(phases(&keeper), [RootPhase::Active, RootPhase::Announced]);
}

#[test]
fn two_authorities_do_not_share_a_directory() {
    let world = World::new();
    let _keeper = world.keeper(Duration::ZERO);
    let error = Store::open(&world.data()).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }) && error.to_string().contains("data"), "{error}");
}

#[test]
fn damage_is_named_with_its_remedy() {
    let world = World::new();
    drop(world.keeper(Duration::ZERO));
    let path = world.data().join("authority.json");
    let good = std::fs::read_to_string(&path).unwrap();
    let other_key = rcgen::KeyPair::generate().unwrap().serialize_pem().replace('\n', "\\n");
    let (from, to) =
        (good.find("-----BEGIN PRIVATE").unwrap(), good.rfind("-----END PRIVATE KEY-----").unwrap());
    let swapped = format!("{}{other_key}{}", &good[..from], &good[to + 27..]);
    for bad in [
        String::new(),
        good[..good.len() / 2].to_owned(),
        good.replace("\"version\": 1", "\"version\": 2"),
        good.replace("\"active\"", "\"announced\", \"signs_from\": 1"),
        swapped,
    ] {
        std::fs::write(&path, bad).unwrap();
        let text = world.try_keeper("cluster.local", Duration::ZERO).err().unwrap().to_string();
        assert!(text.contains("authority.json") && text.contains("Restore"), "{text}");
    }
    std::fs::write(&path, good).unwrap();
    let text = world.try_keeper("elsewhere", Duration::ZERO).err().unwrap().to_string();
    assert!(text.contains("--trust-domain cluster.local"), "{text}");
    world.keeper(Duration::ZERO);
}

#[test]
fn a_bundle_file_that_vanishes_comes_back() {
    let world = World::new();
    let mut keeper = world.keeper(Duration::ZERO);
    let bundle = world.bundle();
    std::fs::remove_file(world.published()).unwrap();
    keeper.tick(world.start).unwrap();
    assert_eq!(world.bundle(), bundle);
}
