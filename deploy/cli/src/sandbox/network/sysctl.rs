//! Kernel settings of a network namespace.

use std::fs;
use std::io;

use super::NetworkError;
use crate::sandbox::namespaces::Netns;

/// A node routes between its pods and the link, and accepts what arrives by another interface than the answer takes.
pub const NODE: &[(&str, &str)] = &[
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/forwarding", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/ping_group_range", "0 0"),
];

/// Connections, not hosts, are spread over several ways to one address.
pub const OUTSIDE: &[(&str, &str)] =
    &[("net/ipv4/fib_multipath_hash_policy", "1"), ("net/ipv6/fib_multipath_hash_policy", "1")];

/// A pod is an end, not a router.
pub const POD: &[(&str, &str)] = &[
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/ping_group_range", "0 0"),
];

/// Writes settings inside a namespace.
///
/// # Errors
/// Names the first setting that could not be written.
pub fn write(netns: &Netns, settings: &[(&str, &str)]) -> Result<(), NetworkError> {
    let written = netns.run(|| {
        settings.iter().try_for_each(|(name, value)| {
            fs::write(format!("/proc/sys/{name}"), value).map_err(|cause| ((*name).to_owned(), cause))
        })
    });
    let fail = |name: String, cause: io::Error| NetworkError::Sysctl { name, cause };
    written
        .map_err(|cause| fail("of the namespace".to_owned(), cause))?
        .map_err(|(name, cause)| fail(name, cause))
}
