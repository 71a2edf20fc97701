use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::*;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    key: String,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn root(name: &str) -> Authority {
    let key = KeyPair::generate().unwrap();
    let params = params(name);
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, key: key.serialize_pem(), issuer: Issuer::new(params, key) }
}

fn under(above: &Authority, params: CertificateParams) -> Authority {
    let key = KeyPair::generate().unwrap();
    let pem = params.signed_by(&key, &above.issuer).unwrap().pem();
    Authority { pem, key: key.serialize_pem(), issuer: Issuer::new(params, key) }
}

fn read(certificates: &str, key: &str, roots: Option<&str>) -> Result<NewRoot, String> {
    let directory = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    put(CERTIFICATE, certificates);
    put(KEY, key);
    if let Some(roots) = roots {
        put(ROOTS, roots);
    }
    Provided::new(directory.path()).read(SystemTime::now()).map_err(|error| error.to_string())
}

fn count(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

#[test]
fn a_root_is_its_own_anchor() {
    let root = root("r");
    for roots in [None, Some(root.pem.as_str())] {
        let read = read(&root.pem, &root.key, roots).unwrap();
        assert_eq!((count(&read.above.chain), count(&read.above.anchors)), (0, 1));
    }
}

#[test]
fn an_intermediate_comes_with_what_leads_to_its_root() {
    let root = root("r");
    let middle = under(&root, params("m"));
    let last = under(&middle, params("l"));
    let both = last.pem.clone() + &middle.pem;
    for (certificates, roots) in [(both.clone(), Some(root.pem.as_str())), (both + &root.pem, None)] {
        let read = read(&certificates, &last.key, roots).unwrap();
        assert_eq!((count(&read.above.chain), count(&read.above.anchors)), (2, 1));
    }
    let hole = read(&last.pem, &last.key, Some(&root.pem)).unwrap_err();
    assert!(hole.contains("tls.crt") && hole.contains("lead to a root"), "{hole}");
    assert!(read(&(last.pem.clone() + &middle.pem), &last.key, None).is_err());
}

#[test]
fn keys_are_read_as_cert_manager_writes_them() {
    let root = root("r");
    // `privateKey.encoding: PKCS1`, its default.
    for key in [include_str!("ec.sec1.pem"), include_str!("rsa.pkcs1.pem")] {
        let pair = KeyPair::from_pem(key).unwrap();
        let pem = params("r").self_signed(&pair).unwrap().pem();
        read(&pem, key, None).unwrap();
        let error = read(&root.pem, key, None).unwrap_err();
        assert!(error.contains("tls.key"), "{error}");
    }
}

#[test]
fn what_cannot_sign_is_refused_with_the_reason() {
    let root = root("r");
    let mut leaf = params("x");
    leaf.is_ca = IsCa::ExplicitNoCa;
    let mut no_sign = params("x");
    no_sign.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let mut old = params("x");
    old.not_before = (SystemTime::now() - Duration::from_secs(7200)).into();
    old.not_after = (SystemTime::now() - Duration::from_secs(3600)).into();
    for (params, expected) in [(leaf, "isCA"), (no_sign, "cert sign"), (old, "expired")] {
        let made = under(&root, params);
        let error = read(&made.pem, &made.key, Some(&root.pem)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let other = KeyPair::generate().unwrap().serialize_pem();
    assert!(read(&root.pem, &other, None).unwrap_err().contains("tls.key"));
    assert!(read("", &root.key, None).unwrap_err().contains("no certificate"));
}
