//! What the two processes say: JSON packets of [`culvert_api::packet`], one descriptor per [`Label`].
//!
//! `hello`, `welcome` and `refused` stay as they are in every version of the protocol.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use culvert_api::packet::{MAX_DESCRIPTORS, MAX_PACKET};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockRef, Type};
use thiserror::Error;

use crate::intercept::NetnsId;
use crate::pods::LONGEST_UID;

/// Version of the protocol. Another one is refused.
pub const PROTOCOL: u32 = 1;
/// Room that one packet leaves for the braces around its entries.
const FRAME: usize = 256;
/// Most packets of one answer: a node with many more pods than it may have.
pub const MOST_PAGES: usize = 1024;

/// What the new process asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// First. `version` is the program's.
    Hello { protocol: u32, version: String },
    /// Whose certificates are in force.
    Identities,
    /// The listening sockets.
    Sockets,
    /// They are held, and will be served when the answer is `yours`.
    Taken,
}

/// What the old process answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "snake_case")]
pub enum Tell {
    Welcome {
        version: String,
    },
    /// `more` pages follow.
    Identities {
        identities: Vec<String>,
        more: bool,
    },
    /// As many descriptors come along, in this order.
    Sockets {
        sockets: Vec<Label>,
        more: bool,
    },
    /// The old process has given up.
    Yours,
    /// Nothing is handed over, and the old process goes on.
    Refused {
        reason: String,
    },
}

/// What one of a pod's listening sockets is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Outbound,
    Inbound,
    Hbone,
    Gateway,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    V4,
    V6,
}

/// What a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum Label {
    /// A listening socket in a pod. `workload` is the pod's uid in the mesh.
    Pod { workload: String, netns: NetnsId, kind: Kind, family: Family, port: u16 },
    /// The enrolment socket.
    Enrolment,
    /// The socket that this is asked over.
    HandOver,
    /// The admin port.
    Admin { address: SocketAddr },
}

/// Why a packet, or what came with it, is not used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    #[error("a packet that does not parse: {0}")]
    Parse(String),
    #[error("{descriptors} descriptors for {labels} sockets")]
    Count { labels: usize, descriptors: usize },
    #[error("a descriptor is not the socket that it is said to be: {0:?}")]
    NotThat(Label),
    #[error("the uid of a workload is too long")]
    Uid,
    #[error("too many pages")]
    Pages,
}

/// A packet of either side.
///
/// # Errors
/// When it is none.
pub fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(bytes).map_err(|error| WireError::Parse(error.to_string()))
}

/// Joins labels and descriptors of one page; every descriptor is looked at.
///
/// # Errors
/// When one is not what its label says; all of the page's are closed then.
pub fn join(labels: Vec<Label>, descriptors: Vec<OwnedFd>) -> Result<Vec<(Label, OwnedFd)>, WireError> {
    if labels.len() != descriptors.len() {
        return Err(WireError::Count { labels: labels.len(), descriptors: descriptors.len() });
    }
    let joined: Vec<_> = labels.into_iter().zip(descriptors).collect();
    for (label, descriptor) in &joined {
        check(label, descriptor.as_fd())?;
    }
    Ok(joined)
}

fn check(label: &Label, descriptor: BorrowedFd<'_>) -> Result<(), WireError> {
    let socket = SockRef::from(&descriptor);
    let listens = socket.is_listener().unwrap_or(false);
    let domain = socket.domain().ok();
    let kind = socket.r#type().ok();
    let address = socket.local_addr().ok();
    let internet = address.as_ref().and_then(socket2::SockAddr::as_socket);
    let is_that = match label {
        Label::Pod { workload, family, port, .. } => {
            if workload.len() > LONGEST_WORKLOAD {
                return Err(WireError::Uid);
            }
            let wanted = match family {
                Family::V4 => Domain::IPV4,
                Family::V6 => Domain::IPV6,
            };
            domain == Some(wanted)
                && kind == Some(Type::STREAM)
                && internet.is_some_and(|address| address.port() == *port)
        }
        Label::Enrolment | Label::HandOver => domain == Some(Domain::UNIX) && kind == Some(Type::SEQPACKET),
        Label::Admin { address } => kind == Some(Type::STREAM) && internet == Some(*address),
    };
    if listens && is_that { Ok(()) } else { Err(WireError::NotThat(label.clone())) }
}

/// Cluster, network, kind, namespace and name go before the pod's uid.
const LONGEST_WORKLOAD: usize = 6 * LONGEST_UID;

/// Cuts entries into pages that fit one packet. At least one page, which may be empty.
pub fn pages<T: Serialize>(entries: impl IntoIterator<Item = T>) -> Vec<Vec<T>> {
    let mut pages = Vec::new();
    let (mut page, mut size) = (Vec::new(), FRAME);
    for entry in entries {
        let length = serde_json::to_vec(&entry).map_or(0, |bytes| bytes.len() + 1);
        if page.len() == MAX_DESCRIPTORS || size + length > MAX_PACKET {
            pages.push(std::mem::take(&mut page));
            size = FRAME;
        }
        size += length;
        page.push(entry);
    }
    pages.push(page);
    pages
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use proptest::prelude::*;

    use super::*;

    fn label(kind: Kind, port: u16) -> Label {
        let netns = NetnsId { dev: u64::MAX, ino: u64::MAX };
        Label::Pod { workload: "w".repeat(200), netns, kind, family: Family::V4, port }
    }

    #[test]
    fn messages_are_said_in_one_way() {
        let hello = Ask::Hello { protocol: 1, version: "0.1.0".into() };
        assert_eq!(
            serde_json::to_string(&hello).unwrap(),
            r#"{"ask":"hello","protocol":1,"version":"0.1.0"}"#
        );
        let refused = Tell::Refused { reason: "no".into() };
        assert_eq!(serde_json::to_string(&refused).unwrap(), r#"{"tell":"refused","reason":"no"}"#);
        // A later version may add to what it says first.
        let later = br#"{"ask":"hello","protocol":9,"version":"7","mood":"good"}"#;
        assert_eq!(parse(later), Ok(Ask::Hello { protocol: 9, version: "7".into() }));
    }

    #[test]
    fn a_page_fits_a_packet_and_nothing_is_lost() {
        for count in [0, 1, MAX_DESCRIPTORS, MAX_DESCRIPTORS + 1, 1500] {
            let labels: Vec<Label> = (0..count).map(|port| label(Kind::Hbone, port as u16)).collect();
            let cut = pages(labels.clone());
            assert!(!cut.is_empty());
            for page in &cut {
                assert!(page.len() <= MAX_DESCRIPTORS);
                let tell = Tell::Sockets { sockets: page.clone(), more: true };
                assert!(serde_json::to_vec(&tell).unwrap().len() <= MAX_PACKET);
            }
            assert_eq!(cut.concat(), labels);
        }
    }

    #[test]
    fn a_descriptor_must_be_what_its_label_says() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let of = |listener: &TcpListener| OwnedFd::from(listener.try_clone().unwrap());
        assert!(join(vec![label(Kind::Inbound, port)], vec![of(&listener)]).is_ok());
        let connected = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp_port = udp.local_addr().unwrap().port();
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        for (label, descriptor) in [
            (label(Kind::Inbound, port.wrapping_add(1)), of(&listener)),
            (Label::Enrolment, of(&listener)),
            (label(Kind::Inbound, connected.local_addr().unwrap().port()), connected.into()),
            (label(Kind::Inbound, udp_port), udp.into()),
            (label(Kind::Inbound, port), file),
            (Label::Admin { address: "127.0.0.2:1".parse().unwrap() }, of(&listener)),
        ] {
            let refused = join(vec![label.clone()], vec![descriptor]).unwrap_err();
            assert_eq!(refused, WireError::NotThat(label));
        }
        let none = join(vec![label(Kind::Inbound, port)], Vec::new()).unwrap_err();
        assert_eq!(none, WireError::Count { labels: 1, descriptors: 0 });
    }

    fn labels() -> impl Strategy<Value = Label> {
        prop_oneof![
            Just(Label::Enrolment),
            Just(Label::HandOver),
            // Without a scope: that is not said.
            any::<(std::net::IpAddr, u16)>().prop_map(|at| Label::Admin { address: at.into() }),
            ("[ -~]{0,300}", any::<[u64; 2]>(), any::<u16>(), 0..4_usize, any::<bool>()).prop_map(
                |(workload, [dev, ino], port, kind, v4)| Label::Pod {
                    workload,
                    netns: NetnsId { dev, ino },
                    kind: [Kind::Outbound, Kind::Inbound, Kind::Hbone, Kind::Gateway][kind],
                    family: if v4 { Family::V4 } else { Family::V6 },
                    port,
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse::<Ask>(&bytes);
            let _ = parse::<Tell>(&bytes);
        }

        #[test]
        fn damaged_packets_are_read_or_refused(
            sockets in proptest::collection::vec(labels(), 0..20),
            at in any::<proptest::sample::Index>(),
            to in any::<u8>(),
        ) {
            let mut bytes = serde_json::to_vec(&Tell::Sockets { sockets, more: false }).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(Tell::Sockets { sockets, .. }) = parse(&bytes) {
                // Without descriptors nothing is believed.
                prop_assert!(sockets.is_empty() || join(sockets, Vec::new()).is_err());
            }
        }

        #[test]
        fn what_is_said_is_what_is_heard(sockets in proptest::collection::vec(labels(), 0..200)) {
            for page in pages(sockets) {
                let tell = Tell::Sockets { sockets: page, more: true };
                let bytes = serde_json::to_vec(&tell).unwrap();
                prop_assert!(bytes.len() <= MAX_PACKET);
                prop_assert_eq!(parse::<Tell>(&bytes).unwrap(), tell);
            }
        }
    }
}
