//! Which port speaks what.

use std::fmt;
use std::str::FromStr;

/// What a port does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// HTTP/1.1 and h2c, JSON answers.
    Http,
    /// gRPC echo and health.
    Grpc,
    /// Sends back what it gets.
    Tcp,
    /// Sends a banner, then back what it gets.
    TcpFirst,
    /// The same over TLS of its own.
    Tls,
    /// Sends back each datagram.
    Udp,
    /// Reads and throws away.
    Discard,
    /// Sends as fast as it can, reads nothing.
    Chargen,
    /// Accepts and never answers.
    Silent,
    /// Accepts and resets.
    Reset,
    /// Answers with the bytes it is told, and remembers what it was sent.
    Script,
}

/// A port and what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortSpec {
    pub(crate) port: u16,
    pub(crate) behaviour: Behaviour,
}

/// `NAME=PORT[/PROTOCOL]` that makes no sense.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PortSpecError(String);

impl fmt::Display for PortSpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {:?} is not NAME=PORT or NAME=PORT/UDP", self.0)
    }
}

impl std::error::Error for PortSpecError {}

impl Behaviour {
    /// By the container port's name, as Kubernetes users write it; `http` when the name says nothing.
    fn of_name(name: &str) -> Self {
        // Longer names before their prefixes.
        const NAMES: [(&str, Behaviour); 11] = [
            ("tcp-first", Behaviour::TcpFirst),
            ("tcp", Behaviour::Tcp),
            ("tls", Behaviour::Tls),
            ("grpc", Behaviour::Grpc),
            ("udp", Behaviour::Udp),
            ("discard", Behaviour::Discard),
            ("chargen", Behaviour::Chargen),
            ("silent", Behaviour::Silent),
            ("reset", Behaviour::Reset),
            ("script", Behaviour::Script),
            ("http", Behaviour::Http),
        ];
        let known = NAMES.iter().find(|(prefix, _)| name.starts_with(prefix));
        known.map_or(Self::Http, |(_, behaviour)| *behaviour)
    }
}

impl FromStr for PortSpec {
    type Err = PortSpecError;

    fn from_str(text: &str) -> Result<Self, PortSpecError> {
        let bad = || PortSpecError(text.to_owned());
        let (name, rest) = text.trim().split_once('=').ok_or_else(bad)?;
        let (port, protocol) = rest.split_once('/').unwrap_or((rest, "TCP"));
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?;
        let behaviour = match protocol.to_ascii_uppercase().as_str() {
            "TCP" => Behaviour::of_name(name),
            "UDP" => Behaviour::Udp,
            _ => return Err(bad()),
        };
        Ok(Self { port, behaviour })
    }
}

/// The comma-separated list of CULVERT_ECHO_PORTS; SCTP ports and the like are an error, an empty list is HTTP on 8080.
pub(crate) fn parse_list(list: &str) -> Result<Vec<PortSpec>, PortSpecError> {
    list.split(',').filter(|item| !item.trim().is_empty()).map(str::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_decide_the_behaviour() {
        let specs =
            parse_list("http=8080, grpc-api=9003,tcp=9000,tcp-first=9001,dns=53/UDP,web=80,=81,tls=8443")
                .unwrap();
        let behaviours: Vec<_> = specs.iter().map(|spec| (spec.port, spec.behaviour)).collect();
        assert_eq!(
            behaviours,
            [
                (8080, Behaviour::Http),
                (9003, Behaviour::Grpc),
                (9000, Behaviour::Tcp),
                (9001, Behaviour::TcpFirst),
                (53, Behaviour::Udp),
                (80, Behaviour::Http),
                (81, Behaviour::Http),
                (8443, Behaviour::Tls),
            ]
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["8080", "http=", "http=0", "http=70000", "http=80/SCTP"] {
            assert!(bad.parse::<PortSpec>().is_err(), "{bad}");
        }
    }
}
