//! A host name as a pod's resolver would look it up.

use std::net::IpAddr;

use crate::sandbox::dns::zone::{Found, Zone};

/// What a name came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// Addresses of that name of the cluster, IPv4 first.
    Addresses {
        name: String,
        addresses: Vec<IpAddr>,
    },
    /// Not the cluster's: whatever the world's DNS says.
    Outside {
        name: String,
    },
    Nothing,
}

/// `resolv.conf` of pods: below so many dots the search list comes first.
const DOTS: usize = 5;
/// Aliases of aliases that are followed.
const ALIASES: usize = 8;

/// As the resolver of a pod in that namespace does; without one the name must be whole.
pub fn look_up(zone: &Zone, host: &str, namespace: Option<&str>) -> Named {
    follow(zone, host, namespace, ALIASES)
}

fn follow(zone: &Zone, host: &str, namespace: Option<&str>, aliases: usize) -> Named {
    let host = host.to_ascii_lowercase();
    let whole = host.strip_suffix('.');
    let mut names = Vec::new();
    if let (None, Some(namespace)) = (whole, namespace) {
        let domain = zone.domain();
        names = vec![
            format!("{host}.{namespace}.svc.{domain}"),
            format!("{host}.svc.{domain}"),
            format!("{host}.{domain}"),
        ];
    }
    let itself = whole.unwrap_or(&host).to_owned();
    if host.matches('.').count() >= DOTS {
        names.insert(0, itself)
    } else {
        names.push(itself)
    }
    for name in names {
        match zone.find(&name) {
            Found::Node(node) => {
                if let Some(alias) = &node.alias {
                    let Some(left) = aliases.checked_sub(1) else { return Named::Nothing };
                    return follow(zone, &format!("{alias}."), None, left);
                }
                let v4 = node.v4.iter().copied().map(IpAddr::V4);
                let addresses: Vec<IpAddr> = v4.chain(node.v6.iter().copied().map(IpAddr::V6)).collect();
                if !addresses.is_empty() {
                    return Named::Addresses { name, addresses };
                }
            }
            Found::Missing => {}
            Found::Outside if name.contains('.') => return Named::Outside { name },
            Found::Outside => {}
        }
    }
    Named::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_objects::{Object, Objects};
    use serde_json::json;

    fn zone() -> Zone {
        let service = |name: &str, spec: serde_json::Value| -> Object {
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "shop"}, "spec": spec}))
            .unwrap()
        };
        let objects: Objects = [
            service(
                "cart",
                json!({"clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1", "fd00::1"], "ports": []}),
            ),
            service("bank", json!({"type": "ExternalName", "externalName": "bank.example"})),
        ]
        .into_iter()
        .collect();
        Zone::build(&objects, "cluster.local", 0)
    }

    #[test]
    fn names_are_searched_as_in_a_pod() {
        let cart = |name: &str| Named::Addresses {
            name: name.to_owned(),
            addresses: vec!["10.96.1.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        };
        let full = "cart.shop.svc.cluster.local";
        for (host, namespace) in
            [("cart", "shop"), ("CART", "shop"), ("cart.shop", "other"), (full, "x"), ("cart.shop.svc", "x")]
        {
            assert_eq!(look_up(&zone(), host, Some(namespace)), cart(full), "{host}");
        }
        assert_eq!(look_up(&zone(), &format!("{full}."), None), cart(full));
        assert_eq!(look_up(&zone(), "cart", Some("other")), Named::Nothing);
        let outside = |name: &str| Named::Outside { name: name.to_owned() };
        assert_eq!(look_up(&zone(), "www.example.com", Some("shop")), outside("www.example.com"));
        assert_eq!(look_up(&zone(), "bank", Some("shop")), outside("bank.example"));
    }
}
