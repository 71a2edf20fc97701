//! Policy routing inside a pod's namespace, by netlink: packets with one of the three marks are delivered to `lo`,
//! whatever their destination. For IPv4, and for IPv6 where `lo` has it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::model::Family;
use crate::intercept::Netns;
use crate::state::model::Interception;

/// `lo` is the first device of every namespace.
const LOOPBACK: u32 = 1;
const DEADLINE: Duration = Duration::from_secs(5);

/// Speaks to the kernel over a netlink socket that belongs to the pod's namespace.
pub(super) struct PolicyRouting {
    netns: Arc<Netns>,
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for PolicyRouting {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl PolicyRouting {
    /// Must be called on a tokio runtime, which drives the socket.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub(super) fn new(netns: Arc<Netns>) -> io::Result<Self> {
        let (connection, handle, _) = netns.run(rtnetlink::new_connection)??;
        Ok(Self { netns, handle, connection: tokio::spawn(connection) })
    }

    /// Adds what is missing and says how much that was.
    ///
    /// # Errors
    /// As the kernel says, or when it does not answer.
    pub(super) async fn ensure(&self, i: &Interception) -> Result<usize, RoutingError> {
        bounded(async {
            let mut added = 0;
            for family in self.families()? {
                added += self.ensure_family(i, family).await?;
            }
            Ok(added)
        })
        .await
    }

    /// # Errors
    /// As [`PolicyRouting::ensure`].
    pub(super) async fn remove(&self, i: &Interception) -> Result<(), RoutingError> {
        bounded(async {
            for family in self.families()? {
                for present in self.rules(i, family).await? {
                    self.handle.rule().del(present).execute().await?;
                }
                if self.has_route(i, family).await? {
                    self.handle.route().del(route(i, family)).execute().await?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn ensure_family(&self, i: &Interception, family: Family) -> Result<usize, RoutingError> {
        let mut added = 0;
        if !self.has_route(i, family).await? {
            // A route needs its device up.
            self.handle.link().set(LinkUnspec::new_with_index(LOOPBACK).up().build()).execute().await?;
            self.handle.route().add(route(i, family)).replace().execute().await?;
            added += 1;
        }
        let present = self.rules(i, family).await?;
        for mark in marks(i) {
            if !present.iter().any(|rule| rule.attributes.contains(&RuleAttribute::FwMark(mark))) {
                let mut request = self.handle.rule().add();
                *request.message_mut() = rule(i, family, mark);
                request.execute().await?;
                added += 1;
            }
        }
        Ok(added)
    }

    /// The rules of ours that are there.
    async fn rules(&self, i: &Interception, family: Family) -> Result<Vec<RuleMessage>, RoutingError> {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        let all: Vec<RuleMessage> = self.handle.rule().get(version).execute().try_collect().await?;
        let wanted = marks(i).map(|mark| rule(i, family, mark));
        Ok(all
            .into_iter()
            .filter(|present| wanted.iter().any(|wanted| is_same_rule(present, wanted)))
            .collect())
    }

    async fn has_route(&self, i: &Interception, family: Family) -> Result<bool, RoutingError> {
        let wanted = route(i, family);
        let mut query = RouteMessage::default();
        query.header.address_family = wanted.header.address_family;
        let mut routes = std::pin::pin!(self.handle.route().get(query).execute());
        let mut found = false;
        // Read to the end: what is left of a dump would be taken for the next answer.
        while let Some(present) = routes.try_next().await? {
            found |= is_same_route(&present, i.route_table);
        }
        Ok(found)
    }

    /// IPv6 may be missing in the kernel, or off in this namespace; then nothing can be sent by it either.
    fn families(&self) -> Result<Vec<Family>, RoutingError> {
        let off = self.netns.run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6"))?;
        let ipv6 = matches!(off.as_deref().map(str::trim), Ok("0"));
        Ok(if ipv6 { vec![Family::V4, Family::V6] } else { vec![Family::V4] })
    }
}

/// Why policy routing is not in force.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    #[error("policy routing in the pod's namespace: {0}")]
    Refused(#[from] rtnetlink::Error),
    #[error("cannot enter the pod's namespace: {0}")]
    Enter(#[from] io::Error),
    #[error("the kernel did not answer about policy routing in {} s", DEADLINE.as_secs())]
    Late,
}

async fn bounded<T>(work: impl Future<Output = Result<T, RoutingError>>) -> Result<T, RoutingError> {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or(Err(RoutingError::Late))
}

fn marks(i: &Interception) -> [u32; 3] {
    [i.outbound_mark, i.reply_mark, i.inbound_mark]
}

fn rule(i: &Interception, family: Family, mark: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(i.rule_priority),
        RuleAttribute::FwMark(mark),
        RuleAttribute::FwMask(i.mark_mask),
        RuleAttribute::Table(i.route_table),
    ];
    rule
}

fn is_same_rule(present: &RuleMessage, wanted: &RuleMessage) -> bool {
    present.header.action == wanted.header.action
        && wanted.attributes.iter().all(|attribute| present.attributes.contains(attribute))
}

fn route(i: &Interception, family: Family) -> RouteMessage {
    match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new()
            .table_id(i.route_table)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .output_interface(LOOPBACK)
            .build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
            .table_id(i.route_table)
            .kind(RouteType::Local)
            .output_interface(LOOPBACK)
            .build(),
    }
}

fn is_same_route(present: &RouteMessage, table: u32) -> bool {
    present.header.kind == RouteType::Local
        && present.header.destination_prefix_length == 0
        && present.attributes.contains(&RouteAttribute::Table(table))
        && present.attributes.contains(&RouteAttribute::Oif(LOOPBACK))
}
