//! The kubelet's probes of a pod, which pass under strict mode from the pod's own node.

use culvert_api::mesh as pb;
use culvert_api::mesh::probe::Check;
use culvert_objects::types::{Container, HttpGetAction, PodSpec, PortRef, Probe, Protocol, RestartPolicy};

/// Every declared probe that reaches the pod by network, each once. Exec probes do not.
pub fn of_pod(spec: &PodSpec) -> Vec<pb::Probe> {
    let sidecars = spec.init_containers.iter().filter(|at| at.restart_policy == Some(RestartPolicy::Always));
    let mut probes = Vec::new();
    for container in sidecars.chain(&spec.containers) {
        let declared = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
        for probe in declared.into_iter().flatten().filter_map(|probe| resource(probe, container)) {
            if !probes.contains(&probe) {
                probes.push(probe);
            }
        }
    }
    probes
}

fn resource(probe: &Probe, container: &Container) -> Option<pb::Probe> {
    if let Some(get) = &probe.http_get {
        // With a host of its own the probe goes somewhere else.
        return match &get.host {
            Some(host) if !host.is_empty() => None,
            _ => Some(pb::Probe { port: number(&get.port, container)?, check: Some(http_get(get)) }),
        };
    }
    if let Some(socket) = &probe.tcp_socket {
        return match &socket.host {
            Some(host) if !host.is_empty() => None,
            _ => {
                let check = Some(Check::TcpConnect(pb::TcpConnect {}));
                Some(pb::Probe { port: number(&socket.port, container)?, check })
            }
        };
    }
    let grpc = probe.grpc.as_ref()?;
    let service = grpc.service.clone().unwrap_or_default();
    Some(pb::Probe { port: grpc.port.into(), check: Some(Check::GrpcHealth(pb::GrpcHealth { service })) })
}

/// A named port is one of the same container, as for the kubelet.
fn number(port: &PortRef, container: &Container) -> Option<u32> {
    match port {
        PortRef::Number(number) => Some((*number).into()),
        PortRef::Name(name) => {
            let named = |port: &&culvert_objects::types::ContainerPort| {
                port.name.as_ref() == Some(name) && port.protocol == Protocol::Tcp
            };
            container.ports.iter().find(named).map(|port| port.container_port.into())
        }
    }
}

fn http_get(get: &HttpGetAction) -> Check {
    let header = |header: &culvert_objects::types::HttpHeader| pb::Header {
        name: header.name.clone(),
        value: header.value.clone(),
    };
    Check::HttpGet(pb::HttpGet {
        path: request_target(&get.path),
        headers: get.http_headers.iter().map(header).collect(),
        https: get.scheme == "HTTPS",
    })
}

/// The path as it appears in the kubelet's request: absolute, without fragment, with what a URL cannot hold escaped.
fn request_target(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let mut target = String::from(if path.starts_with('/') { "" } else { "/" });
    for byte in path.bytes() {
        match byte {
            b'!'..=b'~' if !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') => {
                target.push(byte.into());
            }
            byte => target.push_str(&format!("%{byte:02X}")),
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_as_the_kubelet_sends_them() {
        let cases = [
            ("", "/"),
            ("healthz", "/healthz"),
            ("/a?b=c&d", "/a?b=c&d"),
            ("/a b#c", "/a%20b"),
            ("/%41é", "/%41%C3%A9"),
        ];
        for (path, expected) in cases {
            assert_eq!(request_target(path), expected);
        }
    }
}
