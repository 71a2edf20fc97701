//! Links, addresses and routes of one network namespace, by netlink.

use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkMessage};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder, RouteNextHopBuilder};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;
use tokio::task::AbortHandle;

use super::NetworkError;
use crate::sandbox::cluster::DualAddress;
use crate::sandbox::namespaces::Netns;

/// Size of the largest packet on every link, in bytes.
const MTU: u32 = 1500;
/// The kernel answers at once; longer means that the connection to it is broken.
const ANSWER: Duration = Duration::from_secs(10);

/// A netlink connection into one namespace, usable from anywhere.
pub struct Links {
    handle: Handle,
    connection: AbortHandle,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug)]
pub enum Via {
    /// Straight out of the interface of that index.
    Link(u32),
    /// To a neighbour's address behind the interface of that index.
    Gateway(DualAddress, u32),
}

impl Links {
    /// Connects. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn open(netns: &Netns) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let (connection, handle, _) = netns.run(|| {
            let _inside = runtime.enter();
            rtnetlink::new_connection()
        })??;
        Ok(Self { handle, connection: tokio::spawn(connection).abort_handle() })
    }

    /// Index of the interface of that name.
    pub async fn index(&self, name: &str) -> Result<u32, NetworkError> {
        let mut found = self.handle.link().get().match_name(name).execute();
        let link = step(format!("find the interface {name}"), found.try_next()).await?;
        link.map(|link| link.header.index).ok_or_else(|| NetworkError::Netlink {
            what: format!("find the interface {name}"),
            why: "there is none".to_owned(),
        })
    }

    pub async fn up(&self, index: u32) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        step("set a link up", self.handle.link().change(message).execute()).await
    }

    /// The loopback interface; a new namespace has it down.
    pub async fn loopback_up(&self) -> Result<u32, NetworkError> {
        let index = self.index("lo").await?;
        self.up(index).await?;
        Ok(index)
    }

    /// A bridge that learns and forwards at once.
    pub async fn add_bridge(&self, name: &str) -> Result<u32, NetworkError> {
        let message = LinkBridge::new(name).mcast_snooping(false).forward_delay(0).mtu(MTU).build();
        step(format!("add the bridge {name}"), self.handle.link().add(message).execute()).await?;
        self.index(name).await
    }

    /// A cable: `name` here, up, and `peer` in the namespace `to`. Returns the index of `name`.
    pub async fn add_cable(&self, name: &str, peer: &str, to: &Netns) -> Result<u32, NetworkError> {
        let far = far_end(peer, to);
        let message = LinkVeth::new(name, peer)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
            .mtu(MTU)
            .up()
            .build();
        step(format!("add the link {name}"), self.handle.link().add(message).execute()).await?;
        self.index(name).await
    }

    /// Plugs the interface into a bridge, or pulls it out.
    pub async fn set_bridge(&self, index: u32, bridge: Option<u32>) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index).controller(bridge.unwrap_or(0)).build();
        step("plug a link into the bridge", self.handle.link().change(message).execute()).await
    }

    /// Removes the interface; with a cable, both ends.
    pub async fn delete(&self, index: u32) -> Result<(), NetworkError> {
        step("delete a link", self.handle.link().del(index).execute()).await
    }

    /// Adds both addresses, usable at once (without looking for duplicates).
    pub async fn add_addresses(
        &self,
        index: u32,
        addresses: DualAddress,
        (v4_prefix, v6_prefix): (u8, u8),
    ) -> Result<(), NetworkError> {
        for (address, prefix) in addresses.both().into_iter().zip([v4_prefix, v6_prefix]) {
            let mut request = self.handle.address().add(index, address, prefix);
            if address.is_ipv6() {
                let flags = AddressAttribute::Flags(AddressFlags::Nodad);
                request.message_mut().attributes.push(flags);
            }
            step(format!("add the address {address}"), request.execute()).await?;
        }
        Ok(())
    }

    /// A route to one address over several neighbours by weight, in place of the one there was.
    pub async fn replace_route(
        &self,
        to: IpAddr,
        hops: &[(DualAddress, u8)],
        interface: u32,
    ) -> Result<(), NetworkError> {
        let what = format!("replace the route to {to}");
        let hop = |(gateway, weight): &(DualAddress, u8)| {
            let builder = match to {
                IpAddr::V4(_) => RouteNextHopBuilder::new_ipv4().via(gateway.v4.into()),
                IpAddr::V6(_) => RouteNextHopBuilder::new_ipv6().via(gateway.v6.into()),
            };
            let hop = builder.map(|hop| hop.interface(interface).weight(weight.saturating_sub(1)).build());
            hop.map_err(|error| NetworkError::Netlink { what: what.clone(), why: error.to_string() })
        };
        let hops: Vec<_> = hops.iter().map(hop).collect::<Result<_, _>>()?;
        if to.is_ipv6() {
            // The kernel adds to the ways of an IPv6 route that is replaced by several.
            let _ = self.delete_route(to).await;
        }
        let message = match to {
            IpAddr::V4(to) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(to, 32)
                .multipath(hops)
                .build(),
            IpAddr::V6(to) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(to, 128)
                .multipath(hops)
                .build(),
        };
        step(what.clone(), self.handle.route().add(message).replace().execute()).await
    }

    /// Removes the route to one address.
    pub async fn delete_route(&self, to: IpAddr) -> Result<(), NetworkError> {
        let message = match to {
            IpAddr::V4(to) => {
                RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(to, 32).build()
            }
            IpAddr::V6(to) => {
                RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(to, 128).build()
            }
        };
        step(format!("delete the route to {to}"), self.handle.route().del(message).execute()).await
    }

    /// Adds a route to one IPv4 and one IPv6 destination.
    pub async fn add_routes(&self, to: [(IpAddr, u8); 2], via: Via) -> Result<(), NetworkError> {
        for (destination, prefix) in to {
            let what = format!("add the route to {destination}/{prefix}");
            let message = match destination {
                IpAddr::V4(destination) => {
                    let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                        .destination_prefix(destination, prefix);
                    match via {
                        Via::Link(index) => route.output_interface(index).scope(RouteScope::Link).build(),
                        Via::Gateway(gateway, index) => {
                            route.output_interface(index).gateway(gateway.v4).build()
                        }
                    }
                }
                IpAddr::V6(destination) => {
                    let route = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                        .destination_prefix(destination, prefix);
                    match via {
                        Via::Link(index) => route.output_interface(index).build(),
                        Via::Gateway(gateway, index) => {
                            route.output_interface(index).gateway(gateway.v6).build()
                        }
                    }
                }
            };
            step(what, self.handle.route().add(message).execute()).await?;
        }
        Ok(())
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Describes the end of a cable in another namespace.
fn far_end(name: &str, netns: &Netns) -> LinkMessage {
    LinkUnspec::new_with_name(name).mtu(MTU).setns_by_fd(netns.as_fd().as_raw_fd()).build()
}

async fn step<T>(
    what: impl Into<String>,
    request: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, NetworkError> {
    let why = match tokio::time::timeout(ANSWER, request).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the kernel did not answer".to_owned(),
    };
    Err(NetworkError::Netlink { what: what.into(), why })
}
