//! Plaintext connections to the pod: accepted or not, by mode.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use super::probe::{self, Probing};
use super::{Parties, connect_application, is_proxy_port, meta};
use crate::copy::{Copy, Direction};
use crate::reason::Reason;
use crate::state::model::{Enrolment, InboundMode, OwnWorkload, ProbeCheck, Workload};
use crate::telemetry::{Failure, Security, WhyPlaintext};
use crate::worker::Context;
use crate::worker::pod::PodHere;
use crate::worker::socket::CarriedSocket;

/// Where a plaintext connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// An address of this node: the kubelet, but every host-network pod of the node too.
    Node,
    HostNetwork,
    Elsewhere,
}

/// What happens to it.
#[derive(Debug, PartialEq)]
enum Verdict<'a> {
    Accept(WhyPlaintext),
    /// Only if it proves to be one of these.
    Probe(Vec<&'a ProbeCheck>),
    Refuse(Reason, &'static str),
}

fn judge<'a>(own: &'a OwnWorkload, port: u16, origin: Origin, is_proxy_port: bool) -> Verdict<'a> {
    if is_proxy_port {
        return Verdict::Refuse(Reason::ProxyPort, "the destination is a port of the proxy");
    }
    match own.enrolment {
        Enrolment::Leaving | Enrolment::NotEnrolled => return Verdict::Accept(WhyPlaintext::Leaving),
        Enrolment::Enrolled => {}
    }
    let declared: Vec<_> =
        own.probes.iter().filter(|probe| probe.port == port).map(|probe| &probe.check).collect();
    let of_port = own.settings.port_modes.iter().find(|(known, _)| *known == port).map(|(_, mode)| *mode);
    match of_port.unwrap_or(own.settings.inbound_mode) {
        InboundMode::Permissive if origin == Origin::Elsewhere => {
            Verdict::Accept(WhyPlaintext::SourceOutsideMesh)
        }
        // Most likely the kubelet's; nothing depends on it where everybody may come in.
        InboundMode::Permissive if origin == Origin::Node && !declared.is_empty() => {
            Verdict::Accept(WhyPlaintext::Probe)
        }
        InboundMode::Permissive => Verdict::Accept(WhyPlaintext::HostNetwork),
        InboundMode::Strict => {
            if origin != Origin::Node {
                Verdict::Refuse(Reason::PlaintextRefused, "the inbound mode is strict")
            } else if declared.is_empty() {
                Verdict::Refuse(
                    Reason::PlaintextRefused,
                    "the inbound mode is strict and the port has no probe",
                )
            } else {
                Verdict::Probe(declared)
            }
        }
    }
}

fn origin(context: &Context, client: IpAddr, source: Option<&Workload>) -> Origin {
    if context.node_addresses().contains(&client) {
        Origin::Node
    } else if source.is_some_and(|source| source.host_network) {
        Origin::HostNetwork
    } else {
        Origin::Elsewhere
    }
}

/// Serves a captured plaintext connection until it ends. Whatever fails, the client sees a reset.
pub async fn serve(context: Rc<Context>, pod: Rc<PodHere>, socket: CarriedSocket, client: SocketAddr) {
    let Ok(destination) = socket.original_destination() else { return };
    let workload = pod.pod.workload.load_full();
    let _carrying = pod.state.carry();
    let parties = Parties {
        client,
        identity: None,
        destination,
        hbone: None,
        security: Security::Plaintext(WhyPlaintext::SourceOutsideMesh),
    };
    let mut meta = meta(&context, workload.clone(), parties);
    let telemetry = &context.shared.telemetry;
    let Some(own) = workload.own.as_deref() else {
        return telemetry.refused(meta, Reason::Local, &"the pod's own workload has no settings");
    };
    let origin = origin(&context, client.ip(), meta.source.as_deref());
    let verdict =
        judge(own, destination.port(), origin, is_proxy_port(destination.port(), &pod.pod.interception));
    let why = match verdict {
        Verdict::Accept(why) => why,
        Verdict::Refuse(reason, message) => return telemetry.refused(meta, reason, &message),
        Verdict::Probe(declared) => {
            meta.security = Security::Plaintext(WhyPlaintext::Probe);
            let probing = Probing { pod: &pod.pod, client: client.ip(), destination, declared };
            return Box::pin(probe::serve(probing, socket, meta, telemetry)).await;
        }
    };
    meta.security = Security::Plaintext(why);
    let timeouts = own.settings.timeouts;
    let application = match connect_application(&pod.pod, client.ip(), destination, timeouts.connect).await {
        Ok(application) => application,
        Err(failure) => return telemetry.refused(meta, failure.reason, &failure.message),
    };
    let record = telemetry.open(meta);
    let count = |direction, bytes| match direction {
        Direction::ToServer => record.received(bytes),
        Direction::ToClient => record.sent(bytes),
    };
    let copy = Copy::new(&pod.pod.limits, timeouts.half_closed_idle, &count);
    let result = copy.between(socket, application).await;
    record.close(result.map_err(|error| Failure::new(error.reason(), error)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbound::DEFAULT_TIMEOUTS;
    use crate::state::model::{OutboundPolicy, Probe, UdpPolicy, WorkloadSettings};
    use crate::tunnel::testing::at_most;

    fn own(mode: InboundMode, enrolment: Enrolment) -> OwnWorkload {
        OwnWorkload {
            enrolment,
            settings: WorkloadSettings {
                inbound_mode: mode,
                port_modes: vec![(81, InboundMode::Permissive), (82, InboundMode::Strict)],
                outbound_policy: OutboundPolicy::Allow,
                udp: UdpPolicy::Allow,
                exclude_outbound_ports: Vec::new(),
                exclude_outbound_cidrs: Vec::new(),
                exclude_inbound_ports: Vec::new(),
                opaque_ports: Vec::new(),
                limits: at_most(1, 1),
                timeouts: DEFAULT_TIMEOUTS,
                ejection: None,
            },
            probes: vec![Probe { port: 80, check: ProbeCheck::TcpConnect }],
        }
    }

    #[test]
    fn mode_port_and_origin_decide() {
        use Enrolment::{Enrolled, Leaving};
        use InboundMode::{Permissive, Strict};
        use Origin::{Elsewhere, HostNetwork, Node};
        let refused = |verdict: &Verdict<'_>| matches!(verdict, Verdict::Refuse(Reason::PlaintextRefused, _));
        for (mode, enrolment, port, origin, expected) in [
            (Permissive, Enrolled, 80, Elsewhere, Verdict::Accept(WhyPlaintext::SourceOutsideMesh)),
            (Permissive, Enrolled, 80, Node, Verdict::Accept(WhyPlaintext::Probe)),
            (Permissive, Enrolled, 90, Node, Verdict::Accept(WhyPlaintext::HostNetwork)),
            (Permissive, Enrolled, 80, HostNetwork, Verdict::Accept(WhyPlaintext::HostNetwork)),
            (Strict, Enrolled, 81, Elsewhere, Verdict::Accept(WhyPlaintext::SourceOutsideMesh)),
            (Strict, Leaving, 80, Elsewhere, Verdict::Accept(WhyPlaintext::Leaving)),
            (Strict, Enrolled, 80, Node, Verdict::Probe(vec![&ProbeCheck::TcpConnect])),
        ] {
            let own = own(mode, enrolment);
            assert_eq!(
                judge(&own, port, origin, false),
                expected,
                "{mode:?} {enrolment:?} {port} {origin:?}"
            );
        }
        for (mode, port, origin) in [
            (Strict, 80, Elsewhere),
            (Strict, 80, HostNetwork),
            (Strict, 90, Node),
            (Permissive, 82, Elsewhere),
            (Permissive, 82, Node),
        ] {
            let own = own(mode, Enrolled);
            let verdict = judge(&own, port, origin, false);
            assert!(refused(&verdict), "{mode:?} {port} {origin:?}: {verdict:?}");
        }
        let own = own(Permissive, Enrolled);
        assert!(matches!(judge(&own, 15008, Elsewhere, true), Verdict::Refuse(Reason::ProxyPort, _)));
    }
}
