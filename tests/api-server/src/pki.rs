//! Keys, certificates and kubeconfigs of a test's API server.

use std::net::Ipv4Addr;
use std::path::Path;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, SanType,
};

/// Who a kubeconfig is for.
pub enum User {
    /// The certificate of `admin.crt`.
    Admin,
    Token(String),
}

fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

/// Writes everything that the server and its administrator need.
pub fn write(directory: &Path, address: Ipv4Addr) {
    let put = |file: &str, text: String| std::fs::write(directory.join(file), text).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = name("test", None);
    let certificate = params.self_signed(&key).unwrap();
    put("ca.crt", certificate.pem());
    let issuer = Issuer::new(params, key);

    let signed = |params: CertificateParams| -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &issuer).unwrap(), key)
    };
    let mut server = CertificateParams::default();
    server.distinguished_name = name("kube-apiserver", None);
    server.subject_alt_names = vec![SanType::IpAddress(address.into())];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (certificate, key) = signed(server);
    put("apiserver.crt", certificate.pem());
    put("apiserver.key", key.serialize_pem());

    let mut admin = CertificateParams::default();
    admin.distinguished_name = name("admin", Some("system:masters"));
    admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (certificate, key) = signed(admin);
    put("admin.crt", certificate.pem());
    put("admin.key", key.serialize_pem());
    put("admin.conf", kubeconfig(directory, address, &User::Admin));

    let key = KeyPair::generate().unwrap();
    put("sa.key", key.serialize_pem());
    put("sa.pub", key.public_key_pem());
}

/// The text of a kubeconfig.
pub fn kubeconfig(directory: &Path, address: Ipv4Addr, user: &User) -> String {
    let at = |file: &str| directory.join(file).display().to_string();
    let user = match user {
        User::Admin => {
            serde_json::json!({"client-certificate": at("admin.crt"), "client-key": at("admin.key")})
        }
        User::Token(token) => serde_json::json!({"token": token}),
    };
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster":
            {"server": format!("https://{address}:6443"), "certificate-authority": at("ca.crt")}}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    })
    .to_string()
}
