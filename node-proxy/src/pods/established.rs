//! The TCP connections that were open in a pod's namespace before it was enrolled: they go on uncaptured.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::intercept::Netns;
use crate::intercept::rules::Exclusions;
use crate::state::model::PortRange;

/// One end of a TCP connection. The inode tells it from a later one with the same addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Connection {
    local: SocketAddr,
    remote: SocketAddr,
    inode: u64,
}

/// States of `/proc/net/tcp`.
const ESTABLISHED: &str = "01";
const CLOSE_WAIT: &str = "08";
const LISTEN: &str = "0A";

/// Connections of the namespace that can still carry data, without those inside the pod and those that are excluded
/// from capture anyway.
///
/// # Errors
/// When the namespace cannot be entered or its `/proc/net/tcp` not be read.
pub(super) fn open_connections(netns: &Netns, exclusions: &Exclusions) -> io::Result<HashSet<Connection>> {
    let (v4, v6) = netns.run(|| {
        let v4 = std::fs::read_to_string("/proc/thread-self/net/tcp")?;
        // Missing where the kernel has no IPv6.
        let v6 = std::fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default();
        io::Result::Ok((v4, v6))
    })??;
    Ok(select(v4.lines().chain(v6.lines()), exclusions))
}

fn select<'a>(lines: impl Iterator<Item = &'a str>, exclusions: &Exclusions) -> HashSet<Connection> {
    let mut listening = HashSet::new();
    let mut open = Vec::new();
    for (connection, state) in lines.filter_map(parse) {
        match state {
            LISTEN => drop(listening.insert(connection.local.port())),
            ESTABLISHED | CLOSE_WAIT => open.push(connection),
            _ => {}
        }
    }
    open.retain(|connection| {
        let (local, remote) = (connection.local, connection.remote);
        let inside = local.ip().is_loopback() || remote.ip().is_loopback() || local.ip() == remote.ip();
        let excluded = if listening.contains(&local.port()) {
            contains(&exclusions.inbound_ports, local.port())
                || exclusions.gateway_ports.contains(&local.port())
        } else {
            contains(&exclusions.outbound_ports, remote.port())
                || exclusions.outbound_cidrs.iter().any(|net| net.contains(&remote.ip()))
        };
        !inside && !excluded
    });
    open.into_iter().collect()
}

fn contains(ranges: &[PortRange], port: u16) -> bool {
    ranges.iter().any(|range| (range.first..=range.last).contains(&port))
}

/// One line: `sl local remote state queues timer retransmits uid timeout inode ...`.
fn parse(line: &str) -> Option<(Connection, &str)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, remote) = (parse_address(words.next()?)?, parse_address(words.next()?)?);
    let state = words.next()?;
    let inode = words.nth(5)?.parse().ok()?;
    Some((Connection { local, remote, inode }, state))
}

/// The address as 32-bit words in the machine's byte order, in hexadecimal.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word =
        |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(at)?);
            }
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::model::UdpPolicy;

    fn exclusions() -> Exclusions {
        Exclusions {
            outbound_ports: vec![],
            outbound_cidrs: vec![],
            inbound_ports: vec![],
            gateway_ports: vec![],
            udp: UdpPolicy::Allow,
        }
    }

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0 100 0 0 10 0
   1: 0100090A:1F90 0200090A:C001 01 00000000:00000000 00:00000000 00000000     0        0 101 1 0 20 4 30 10 -1
   2: 0100090A:C002 0200090A:2328 08 00000000:00000000 00:00000000 00000000     0        0 102 1 0 20 4 30 10 -1
   3: 0100007F:C003 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 103 1 0 20 4 30 10 -1
   4: 0100090A:C004 0100090A:1F90 01 00000000:00000000 00:00000000 00000000     0        0 104 1 0 20 4 30 10 -1
   5: 0100090A:C005 0200090A:2328 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1
   6: garbage";
    const TCP6: &str = "\
   0: 0000000000000000FFFF00000100090A:1F90 0000000000000000FFFF00000200090A:C006 01 00000000:00000000 00:00000000 00000000     0        0 105 1 0 20 4 30 10 -1
   1: 000009FD000000000000000001000000:C007 000009FD000000000000000002000000:0050 01 00000000:00000000 00:00000000 00000000     0        0 106 1 0 20 4 30 10 -1";

    #[cfg(target_endian = "little")]
    #[test]
    fn counts_what_leaves_the_pod_and_can_carry_data() {
        let lines = || TCP.lines().chain(TCP6.lines());
        let mut found: Vec<_> = select(lines(), &exclusions())
            .into_iter()
            .map(|open| (open.inode, open.local.to_string(), open.remote.to_string()))
            .collect();
        found.sort();
        let expected = [
            (101, "10.9.0.1:8080", "10.9.0.2:49153"),
            (102, "10.9.0.1:49154", "10.9.0.2:9000"),
            (105, "10.9.0.1:8080", "10.9.0.2:49158"),
            (106, "[fd09::1]:49159", "[fd09::2]:80"),
        ];
        assert_eq!(found, expected.map(|(inode, local, remote)| (inode, local.into(), remote.into())));

        let mut excluded = exclusions();
        excluded.inbound_ports = vec![PortRange { first: 8000, last: 8100 }];
        excluded.outbound_ports = vec![PortRange { first: 9000, last: 9000 }];
        excluded.outbound_cidrs = vec!["fd09::/16".parse().expect("a network")];
        assert!(select(lines(), &excluded).is_empty());
    }
}
