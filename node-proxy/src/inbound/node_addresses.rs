//! The addresses of the node itself, from which the kubelet probes.

use std::collections::HashSet;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

/// Every address of every interface in the namespace of the calling thread, loopback aside; none when they cannot be
/// read, so that then nothing counts as the node.
pub fn read() -> HashSet<IpAddr> {
    let interfaces = match getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "the node's own addresses cannot be read: no probe passes under strict mode");
            return HashSet::new();
        }
    };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
        })
        .map(|address| address.to_canonical())
        .filter(|address| !address.is_loopback())
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn loopback_is_not_an_address_of_the_node() {
        assert!(super::read().iter().all(|address| !address.is_loopback()));
    }
}
