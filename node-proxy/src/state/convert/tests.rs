use super::super::testing::{uid, wire_mesh, wire_settings, wire_workload};
use super::*;

fn convert(workload: wire::Workload) -> Result<Workload> {
    Converter::default().workload(&uid("a").0, workload)
}

fn refused(change: impl FnOnce(&mut wire::Workload)) -> String {
    let mut workload = wire_workload("a", &[1]);
    change(&mut workload);
    convert(workload).unwrap_err().to_string()
}

fn settings(workload: &mut wire::Workload) -> &mut wire::WorkloadSettings {
    workload.settings.as_mut().unwrap()
}

#[test]
fn a_workload_is_taken_over_field_by_field() {
    let mut wire = wire_workload("a", &[1]);
    wire.addresses.push(std::net::Ipv6Addr::LOCALHOST.octets().to_vec());
    wire.locality = Some(wire::Locality { region: "r".to_owned(), zone: "z".to_owned() });
    wire.labels = Some(wire::WorkloadLabels { app: "cart".to_owned(), ..wire::WorkloadLabels::default() });
    wire.probes =
        vec![wire::Probe { port: 8080, check: Some(wire::probe::Check::TcpConnect(wire::TcpConnect {})) }];
    let workload = convert(wire).unwrap();
    assert_eq!(workload.identity.unwrap().uri(), "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!(workload.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
    assert_eq!((&*workload.region, &*workload.zone, workload.labels.app.as_str()), ("r", "z", "cart"));
    assert_eq!(workload.tunnel, TunnelProtocol::Hbone);
    assert_eq!(workload.memberships[0].ports, [(80, 8080)]);
    let own = workload.own.unwrap();
    assert_eq!(own.enrolment, Enrolment::Enrolled);
    assert_eq!(own.settings.timeouts.connect, Duration::from_secs(1));
    assert_eq!(own.probes, [Probe { port: 8080, check: ProbeCheck::TcpConnect }]);
}

#[test]
fn workloads_of_other_nodes_have_no_settings() {
    let mut wire = wire_workload("a", &[1]);
    wire.enrolment = wire::Enrolment::Unspecified.into();
    wire.settings = None;
    assert_eq!(convert(wire).unwrap().own, None);
}

#[test]
fn what_is_not_decided_yet_is_not_plaintext() {
    let mut wire = wire_workload("a", &[1]);
    wire.tunnel = wire::Tunnel::Unspecified.into();
    assert_eq!(convert(wire).unwrap().tunnel, TunnelProtocol::Undecided);
}

#[test]
fn an_ipv4_mapped_address_is_the_ipv4_address() {
    let mut wire = wire_workload("a", &[]);
    wire.addresses = vec!["::ffff:10.0.0.9".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec()];
    assert_eq!(convert(wire).unwrap().addresses, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
}

#[test]
fn what_makes_no_sense_is_refused_by_field() {
    let cases: [(&str, String); 13] = [
        ("HBONE without an identity", refused(|w| w.service_account = String::new())),
        ("tunnel: the value 77 is not known", refused(|w| w.tunnel = 77)),
        ("addresses: an address has 5 bytes; 4 or 16 are expected", refused(|w| w.addresses[0].push(1))),
        ("service_account: ", refused(|w| w.service_account = "No/Name".to_owned())),
        ("trust_domain: ", refused(|w| w.trust_domain = "Bad Domain".to_owned())),
        ("the resource is named ", refused(|w| w.uid = "other".to_owned())),
        ("settings: missing", refused(|w| w.settings = None)),
        ("settings.limits: missing", refused(|w| settings(w).limits = None)),
        ("settings.timeouts.connect_ms: 0 is not usable", {
            refused(|w| settings(w).timeouts.as_mut().unwrap().connect_ms = 0)
        }),
        ("settings.exclude_inbound_ports: the first port 9 is above the last 8", {
            refused(|w| settings(w).exclude_inbound_ports = vec![wire::PortRange { first: 9, last: 8 }])
        }),
        ("settings.opaque_ports: 70000 is not a port", {
            refused(|w| settings(w).opaque_ports = vec![wire::PortRange { first: 1, last: 70000 }])
        }),
        ("settings.exclude_outbound_cidrs: \"10.0.0.0/40\" is not a CIDR", {
            refused(|w| settings(w).exclude_outbound_cidrs = vec!["10.0.0.0/40".to_owned()])
        }),
        ("memberships: shop/cart is named more than once", {
            refused(|w| w.memberships = vec![w.memberships[0].clone(), w.memberships[0].clone()])
        }),
    ];
    for (expected, error) in cases {
        assert!(error.contains(expected), "expected {expected:?} in {error:?}");
    }
    assert!(
        refused(|w| w.memberships[0].ports[0].target_port = 0)
            .starts_with("memberships.ports.target_port: 0")
    );
    let enrolled = refused(|w| {
        w.tunnel = wire::Tunnel::None.into();
        w.service_account = String::new();
    });
    assert!(enrolled.starts_with("enrolment: "), "{enrolled}");
    assert!(
        refused(|w| w.probes = vec![wire::Probe { port: 1, check: None }])
            .starts_with("probes.check: missing")
    );
}

#[test]
fn mesh_settings_are_checked() {
    MeshSettings::try_from(wire_mesh()).unwrap();
    let refused = |change: fn(&mut wire::MeshSettings)| {
        let mut mesh = wire_mesh();
        change(&mut mesh);
        MeshSettings::try_from(mesh).unwrap_err().to_string()
    };
    assert!(refused(|mesh| mesh.trust_domain.clear()).starts_with("trust_domain: "));
    assert!(refused(|mesh| mesh.interception = None).starts_with("interception: missing"));
    assert!(refused(|mesh| mesh.pod_cidrs.push("x".to_owned())).starts_with("pod_cidrs: "));
    assert!(
        refused(|mesh| mesh.interception.as_mut().unwrap().reply_mark = 0x111)
            .starts_with("interception: marks")
    );
    assert!(
        refused(|mesh| mesh.interception.as_mut().unwrap().proxy_mark = 0x1539)
            .starts_with("interception: marks")
    );
    assert!(
        refused(|mesh| mesh.access_log = Some(wire::AccessLog { filter: 9, format: 0 }))
            .starts_with("access_log.filter")
    );
}

#[test]
fn a_service_is_named_by_namespace_and_name() {
    let service = wire::Service {
        name: "cart".to_owned(),
        namespace: "shop".to_owned(),
        client_ip_affinity_seconds: 60,
        internal_traffic_policy: wire::InternalTrafficPolicy::Local.into(),
        ..wire::Service::default()
    };
    let mut converter = Converter::default();
    let converted = converter.service("shop/cart", service.clone()).unwrap();
    assert!(converted.local_only);
    assert_eq!(converted.client_ip_affinity, Some(Duration::from_secs(60)));
    assert_eq!(converted.traffic_distribution, None);
    assert!(matches!(converter.service("cart", service), Err(ConversionError::OtherName { .. })));
}

#[test]
fn equal_texts_are_held_once_and_let_go() {
    let mut converter = Converter::default();
    let one = converter.workload(&uid("a").0, wire_workload("a", &[1])).unwrap();
    let other = converter.workload(&uid("b").0, wire_workload("b", &[2])).unwrap();
    assert!(Arc::ptr_eq(&one.namespace, &other.namespace) && Arc::ptr_eq(&one.labels, &other.labels));
    let settings = WorkloadSettings::try_from(wire_settings()).unwrap();
    assert_eq!(one.own.unwrap().settings, settings);
}

#[test]
fn a_workload_that_nobody_has_decided_on_is_neither_plaintext_nor_hbone() {
    let mut wire = wire_workload("a", &[1]);
    wire.tunnel = wire::Tunnel::Unspecified.into();
    assert_eq!(convert(wire).unwrap().tunnel, TunnelProtocol::Undecided);
}
