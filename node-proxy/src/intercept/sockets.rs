//! The proxy's sockets inside a pod's namespace. All but a Gateway's listeners carry the proxy's mark, so that the rules
//! leave them alone.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::{io, iter};

use rand::Rng;
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::TcpSocket;

use super::Netns;
use crate::state::model::Interception;
use crate::worker::socket::configure;

/// Connections that may wait to be accepted, per listener; `net.core.somaxconn` of the namespace caps it.
const BACKLOG: i32 = 4096;

/// The listeners of one pod: of each kind one per address family (IPv6 sockets take no IPv4). Transparent, so that
/// `local_addr` of an accepted connection is the address that the client asked for; nonblocking. Accepted connections
/// inherit the proxy's mark.
#[derive(Debug)]
pub struct Listeners {
    /// Connections that the pod's applications open.
    pub outbound: Vec<TcpListener>,
    /// Plaintext connections to the pod.
    pub inbound: Vec<TcpListener>,
    /// HBONE tunnels to the pod.
    pub hbone: Vec<TcpListener>,
}

/// Opens the listeners of a pod. A namespace without IPv6 gets IPv4 listeners only.
///
/// # Errors
/// When the namespace cannot be entered or a port is taken.
pub fn listeners(netns: &Netns, i: &Interception) -> io::Result<Listeners> {
    let marked = |domain| marked_socket(domain, i);
    // What a listener is set to, its connections are.
    let inside = |domain| {
        let socket = marked(domain)?;
        stay_inside(&socket)?;
        Ok(socket)
    };
    netns.run(|| {
        Ok(Listeners {
            outbound: listen_both(i.outbound_port, &inside)?,
            inbound: listen_both(i.inbound_port, &marked)?,
            hbone: listen_both(i.hbone_port, &marked)?,
        })
    })?
}

/// Opens one port of a Gateway in the namespace of the Gateway's pod, per address family as [`listeners`] does. These are
/// servers of the pod like any application's: without the proxy's mark, so that replies find the way that a tunnel's
/// connection came by; transparent, because the rules hand them connections from outside by TPROXY.
///
/// # Errors
/// When the namespace cannot be entered or the port is taken.
pub fn gateway_listeners(netns: &Netns, port: u16) -> io::Result<Vec<TcpListener>> {
    netns.run(|| listen_both(port, &socket))?
}

/// A socket inside the pod's namespace for a connection of the proxy to `to` (a peer, or passed-through traffic): no delay,
/// keep-alive on. Not connected.
///
/// # Errors
/// When the namespace cannot be entered or descriptors are exhausted.
pub fn outbound_socket(netns: &Netns, to: SocketAddr, i: &Interception) -> io::Result<TcpSocket> {
    let socket = netns.run(|| marked_socket(Domain::for_address(to), i))??;
    configure(&socket)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Source ports to try for a connection to the application, in this order. Clients take theirs from 32768 to 60999
/// (`net.ipv4.ip_local_port_range`), and one that a client uses towards the same port without the proxy (in plaintext, or
/// since before the pod was enrolled) must not be used again: both connections would be one to the pod's namespace.
/// First ports hardly anybody listens on; under many connections of one client those run out.
pub fn source_ports() -> impl Iterator<Item = u16> {
    const QUIET: RangeInclusive<u16> = 61_000..=u16::MAX;
    const PLENTY: RangeInclusive<u16> = 10_240..=32_767;
    let ranges = iter::repeat_n(QUIET, 3).chain(iter::repeat_n(PLENTY, 29));
    ranges.map(|range| rand::rng().random_range(range))
}

/// Whether the source port is what a socket failed for, at binding or connecting.
pub fn is_port_taken(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL))
}

/// A socket inside the pod's namespace for a connection to the application under the client's address: bound to
/// `client`, one of [`source_ports`]; no delay. No keep-alive, because an application's end cannot get lost unnoticed. Not
/// connected.
///
/// # Errors
/// As [`outbound_socket`]; one of [`is_port_taken`]; `InvalidInput` for a link-local IPv6 client, whose interface is
/// unknown.
pub fn application_socket(netns: &Netns, client: SocketAddr, i: &Interception) -> io::Result<TcpSocket> {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let socket = netns.run(|| {
        let socket = marked_socket(Domain::for_address(client), i)?;
        stay_inside(&socket)?;
        socket.set_tcp_nodelay(true)?;
        set_transparent(&socket, client)?;
        // Connections to different applications share a port, and one in TIME_WAIT is no obstacle to another.
        socket.set_reuse_address(true)?;
        socket.bind(&client.into())?;
        io::Result::Ok(socket)
    })??;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Makes a socket of an address family.
type MakeSocket<'m> = &'m dyn Fn(Domain) -> io::Result<Socket>;

fn listen_both(port: u16, make: MakeSocket<'_>) -> io::Result<Vec<TcpListener>> {
    let mut listeners = vec![listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), make)?];
    match listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), make) {
        Ok(listener) => listeners.push(listener),
        Err(error) if is_family_missing(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(listeners)
}

fn is_family_missing(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn listen(address: SocketAddr, make: MakeSocket<'_>) -> io::Result<TcpListener> {
    let at = |error: io::Error| io::Error::new(error.kind(), ListenError { address, error });
    let socket = make(Domain::for_address(address))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    set_transparent(&socket, address)?;
    // A restarted proxy finds connections of the last one in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket
        .bind(&SockAddr::from(address))
        .map_err(|error| if is_family_missing(&error) { error } else { at(error) })?;
    socket.listen(BACKLOG).map_err(at)?;
    Ok(socket.into())
}

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} in the pod: {error}")]
struct ListenError {
    address: SocketAddr,
    error: io::Error,
}

/// For connections between the proxy and an application, which never leave the pod's namespace: nothing is lost or queued there,
/// so Reno never slows down, while what the node has chosen for networks may pace what it sends by timers, as BBR does.
fn stay_inside(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_congestion(b"reno")
}

fn socket(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
}

fn marked_socket(domain: Domain, i: &Interception) -> io::Result<Socket> {
    let socket = socket(domain)?;
    socket.set_mark(i.proxy_mark)?;
    Ok(socket)
}

fn set_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}
