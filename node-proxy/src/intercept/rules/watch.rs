//! Noticing cheaply that somebody changed the packet filter of a pod: the kernel counts changes of nf_tables per
//! namespace and announces them. `iptables` of the nf_tables kind is covered too; the old kind has no such counter.

use std::io;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket};

use crate::intercept::Netns;

/// `NFNLGRP_NFTABLES`, as a bit.
const GROUP_NFTABLES: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN`, and the answer's `NFT_MSG_NEWGEN`.
const GETGEN: u16 = (10 << 8) | 16;
const NEWGEN: u16 = (10 << 8) | 15;
const NLM_F_REQUEST: u16 = 1;
/// `NFTA_GEN_ID`.
const GEN_ID: u16 = 1;
/// `NFT_MSG_GETTABLE`, and the answer's `NFT_MSG_NEWTABLE`.
const GETTABLE: u16 = (10 << 8) | 1;
const NEWTABLE: u16 = 10 << 8;
/// `NFTA_TABLE_NAME`.
const TABLE_NAME: u16 = 1;
/// `NFPROTO_INET`, `NFPROTO_UNSPEC`.
const INET: u8 = 1;
const UNSPEC: u8 = 0;
/// Length of a netlink header with the netfilter header behind it.
const HEADERS: usize = 20;
/// Longest message that is looked at; events are only counted.
const BUFFER: usize = 4096;

/// Events taken off the socket for one report; a storm of them is reported in pieces.
const DRAINED_AT_ONCE: usize = 1000;

/// Two netlink sockets inside the pod's namespace.
pub(super) struct RuleWatch {
    events: TokioSocket,
    query: Socket,
}

impl RuleWatch {
    /// Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel has no nf_tables.
    pub(super) fn new(netns: &Netns) -> io::Result<Self> {
        let watch = netns.run(|| {
            let mut events = TokioSocket::new(NETLINK_NETFILTER)?;
            events.socket_mut().bind(&SocketAddr::new(0, GROUP_NFTABLES))?;
            let query = Socket::new(NETLINK_NETFILTER)?;
            query.set_non_blocking(true)?;
            io::Result::Ok(Self { events, query })
        })??;
        watch.generation()?;
        Ok(watch)
    }

    /// The number of changes so far, ours among them; it wraps around.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn generation(&self) -> io::Result<u32> {
        let answer = self.ask(GETGEN, UNSPEC, &[])?;
        parse_generation(&answer).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the kernel did not tell its rule generation")
        })
    }

    /// Whether an `inet` table is there, whatever it holds.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub(super) fn has_table(&self, name: &str) -> io::Result<bool> {
        let mut attribute = Vec::with_capacity(name.len() + 8);
        let length = u16::try_from(name.len() + 5).map_err(io::Error::other)?;
        attribute.extend(length.to_ne_bytes());
        attribute.extend(TABLE_NAME.to_ne_bytes());
        attribute.extend(name.as_bytes());
        attribute.resize(usize::from(length).next_multiple_of(4), 0);
        let answer = self.ask(GETTABLE, INET, &attribute)?;
        Ok(kind_of(&answer) == Some(NEWTABLE))
    }

    /// Sends one request and takes its answer, which netlink has ready when send returns.
    fn ask(&self, kind: u16, family: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
        let length = HEADERS + attributes.len();
        let mut request = vec![0_u8; HEADERS];
        request[..4].copy_from_slice(&u32::try_from(length).map_err(io::Error::other)?.to_ne_bytes());
        request[4..6].copy_from_slice(&kind.to_ne_bytes());
        request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        request[16] = family;
        request.extend(attributes);
        self.query.send(&request, 0)?;
        let mut answer = Vec::with_capacity(BUFFER);
        self.query.recv(&mut answer, 0)?;
        Ok(answer)
    }

    /// Waits until somebody, we included, changed the rules of this namespace.
    pub(super) async fn changed(&self) {
        let mut buffer = Vec::with_capacity(BUFFER);
        // An error means that events were lost: a change as well.
        let _ = self.events.recv(&mut buffer).await;
        for _ in 0..DRAINED_AT_ONCE {
            buffer.clear();
            match self.events.socket_ref().recv(&mut buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    }
}

fn kind_of(message: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?))
}

fn parse_generation(message: &[u8]) -> Option<u32> {
    if kind_of(message)? != NEWGEN {
        return None;
    }
    let length = u32::from_ne_bytes(message.get(..4)?.try_into().ok()?) as usize;
    let mut attributes = message.get(HEADERS..length.min(message.len()))?;
    loop {
        let length = u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        if kind == GEN_ID {
            return Some(u32::from_be_bytes(value.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::parse_generation;

    #[test]
    fn only_a_whole_answer_counts() {
        let mut answer = vec![0; 20];
        answer.extend([8, 0, 1, 0, 0, 0, 1, 2]);
        let length = answer.len() as u32;
        answer[..4].copy_from_slice(&length.to_ne_bytes());
        answer[4..6].copy_from_slice(&super::NEWGEN.to_ne_bytes());
        assert_eq!(parse_generation(&answer), Some(0x102));
        for cut in 0..answer.len() {
            assert_eq!(parse_generation(&answer[..cut]), None, "cut at {cut}");
        }
        answer[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        assert_eq!(parse_generation(&answer), None, "an error message");
    }
}
