use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};

use super::*;

const ISSUER: &str = "https://kubernetes.default.svc";
const AUDIENCE: &str = "culvert.dev";

fn object(name: &str, uid: &str) -> ObjectRef {
    ObjectRef { name: name.to_owned(), uid: uid.to_owned() }
}

fn holder() -> KubernetesClaims {
    KubernetesClaims {
        namespace: "shop".to_owned(),
        serviceaccount: object("cart", "sa-1"),
        pod: Some(object("cart-0", "pod-1")),
        node: Some(object("node-1", "node-uid-1")),
    }
}

fn claims() -> Claims {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    Claims {
        iss: ISSUER.to_owned(),
        sub: "system:serviceaccount:shop:cart".to_owned(),
        aud: Audience::One(AUDIENCE.to_owned()),
        exp: now + 600,
        iat: Some(now),
        nbf: None,
        kubernetes: holder(),
    }
}

struct World {
    _directory: tempfile::TempDir,
    path: PathBuf,
    issuer: Issuer,
    verifier: Verifier,
}

fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    let issuer = Issuer::generate(ISSUER).unwrap();
    issuer.write_jwks(&path).unwrap();
    let verifier = Verifier::open(&path, ISSUER, AUDIENCE).unwrap();
    World { _directory: directory, path, issuer, verifier }
}

#[test]
fn a_token_tells_who_its_holder_is() {
    let world = world();
    let token = world.issuer.issue(holder(), AUDIENCE, Duration::from_secs(600)).unwrap();
    let caller = world.verifier.verify(&token).unwrap();
    assert!(caller.is("shop", "cart"));
    assert_eq!(caller.pod, Some(object("cart-0", "pod-1")));
    assert_eq!(caller.node, Some(object("node-1", "node-uid-1")));
    assert!(caller.expires > SystemTime::now() + Duration::from_secs(590));
    assert_eq!(own_subject(&token), Some(("shop".to_owned(), "cart".to_owned())));
    world.verifier.verify(&world.issuer.sign(&claims()).unwrap()).unwrap();
}

#[test]
fn a_wrong_claim_is_refused() {
    let world = world();
    let with = |change: fn(&mut Claims)| {
        let mut claims = claims();
        change(&mut claims);
        world.verifier.verify(&world.issuer.sign(&claims).unwrap()).unwrap_err()
    };
    assert_eq!(with(|claims| claims.exp -= 700), TokenError::Expired);
    assert_eq!(with(|claims| claims.nbf = Some(claims.exp)), TokenError::Immature);
    assert_eq!(with(|claims| claims.iss = "https://elsewhere".to_owned()), TokenError::Issuer);
    assert_eq!(with(|claims| claims.aud = Audience::One("istio-ca".to_owned())), TokenError::Audience);
    assert_eq!(with(|claims| claims.aud = Audience::Several(Vec::new())), TokenError::Audience);
    assert_eq!(with(|claims| claims.sub = "system:serviceaccount:shop:till".to_owned()), TokenError::Subject);
}

#[test]
fn a_token_that_is_not_signed_as_it_must_be_is_refused() {
    let world = world();
    let stranger = Issuer::generate(ISSUER).unwrap();
    let foreign = stranger.issue(holder(), AUDIENCE, Duration::from_secs(600)).unwrap();
    assert_eq!(world.verifier.verify(&foreign), Err(TokenError::UnknownKey));

    let token = world.issuer.sign(&claims()).unwrap();
    let (head, _) = token.rsplit_once('.').unwrap();
    let (_, other_signature) = foreign.rsplit_once('.').unwrap();
    assert_eq!(world.verifier.verify(&format!("{head}.{other_signature}")), Err(TokenError::Signature));
    assert!(matches!(
        world.verifier.verify(&format!("{head}.")),
        Err(TokenError::Signature | TokenError::Malformed(_))
    ));

    let key = EncodingKey::from_ec_pem(world.issuer.key_pem().as_bytes()).unwrap();
    let nameless = encode(&Header::new(Algorithm::ES256), &claims(), &key).unwrap();
    assert_eq!(world.verifier.verify(&nameless), Err(TokenError::NoKeyId));

    // A key set is public: a MAC keyed with it proves nothing.
    let mut header = Header::new(Algorithm::HS256);
    header.kid = jsonwebtoken::decode_header(&token).unwrap().kid;
    let secret = EncodingKey::from_secret(world.issuer.jwks().as_bytes());
    let forged = encode(&header, &claims(), &secret).unwrap();
    assert_eq!(world.verifier.verify(&forged), Err(TokenError::Algorithm));

    for garbage in ["", ".", "..", "a.b.c", "\u{0}", &"x".repeat(100_000)] {
        assert!(matches!(world.verifier.verify(garbage), Err(TokenError::Malformed(_))), "{garbage:.20}");
    }
}

#[test]
fn changed_keys_are_taken_up_and_a_bad_file_is_not() {
    let world = world();
    let old = world.issuer.sign(&claims()).unwrap();
    std::fs::write(&world.path, "{").unwrap();
    world.verifier.verify(&old).unwrap();
    std::fs::remove_file(&world.path).unwrap();
    world.verifier.verify(&old).unwrap();
    let next = Issuer::generate(ISSUER).unwrap();
    next.write_jwks(&world.path).unwrap();
    assert_eq!(world.verifier.verify(&old), Err(TokenError::UnknownKey));
    world.verifier.verify(&next.sign(&claims()).unwrap()).unwrap();
}

#[test]
fn a_kept_key_signs_under_the_same_name() {
    let world = world();
    let again = Issuer::from_pem(ISSUER, world.issuer.key_pem()).unwrap();
    assert_eq!(again.jwks(), world.issuer.jwks());
    world.verifier.verify(&again.sign(&claims()).unwrap()).unwrap();
}

#[test]
fn a_file_without_usable_keys_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    let open = || Verifier::open(&path, ISSUER, AUDIENCE).err().map(|error| error.to_string()).unwrap();
    assert!(open().contains("jwks.json"));
    std::fs::write(&path, r#"{"keys":[]}"#).unwrap();
    assert!(open().contains("no usable key"));
    std::fs::write(&path, "[]").unwrap();
    assert!(open().contains("not a JSON Web Key Set"));
}

#[test]
fn what_is_plainly_no_token_for_us_is_found_without_asking() {
    let world = world();
    let now = SystemTime::now();
    let token = world.issuer.sign(&claims()).unwrap();
    assert_eq!(claimed(&token).unwrap().check(AUDIENCE, now), Ok(()));
    assert_eq!(claimed(&token).unwrap().check("other", now), Err(TokenError::Audience));
    assert_eq!(
        claimed(&token).unwrap().check(AUDIENCE, now + Duration::from_secs(601)),
        Err(TokenError::Expired)
    );
    for garbage in ["", "a.b.c", "a.b", "a.b.c.d", "e30.e30.e30", &"x".repeat(100_000)] {
        assert!(matches!(claimed(garbage), Err(TokenError::Malformed(_))), "{garbage:.20}");
    }
}
