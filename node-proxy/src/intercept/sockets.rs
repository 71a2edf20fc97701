//! The proxy's sockets inside a pod's namespace. All carry the proxy's mark, so that the rules leave them alone.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::TcpSocket;

use super::Netns;
use crate::state::model::Interception;

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
    netns.run(|| {
        Ok(Listeners {
            outbound: listen_both(i.outbound_port, i)?,
            inbound: listen_both(i.inbound_port, i)?,
            hbone: listen_both(i.hbone_port, i)?,
        })
    })?
}

/// A socket inside the pod's namespace for a connection of the proxy to `to` (a peer, or passed-through traffic). Not
/// connected.
///
/// # Errors
/// When the namespace cannot be entered or descriptors are exhausted.
pub fn outbound_socket(netns: &Netns, to: SocketAddr, i: &Interception) -> io::Result<TcpSocket> {
    let socket = netns.run(|| marked_socket(Domain::for_address(to), i))??;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// A socket inside the pod's namespace for a connection to the application under the client's address: bound to
/// (`client`, a port chosen at connect). Not connected.
///
/// # Errors
/// As [`outbound_socket`]; `InvalidInput` for a link-local IPv6 client, whose interface is unknown.
pub fn application_socket(netns: &Netns, client: IpAddr, i: &Interception) -> io::Result<TcpSocket> {
    let client = SocketAddr::new(client.to_canonical(), 0);
    let socket = netns.run(|| {
        let socket = marked_socket(Domain::for_address(client), i)?;
        set_transparent(&socket, client)?;
        match client {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
        // Lets connections to different applications share a port: without it one client address gets 28,000 at most.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&client.into())?;
        io::Result::Ok(socket)
    })??;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

fn listen_both(port: u16, i: &Interception) -> io::Result<Vec<TcpListener>> {
    let mut listeners = vec![listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), i)?];
    match listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), i) {
        Ok(listener) => listeners.push(listener),
        Err(error) if is_family_missing(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(listeners)
}

fn is_family_missing(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn listen(address: SocketAddr, i: &Interception) -> io::Result<TcpListener> {
    let at = |error: io::Error| io::Error::new(error.kind(), ListenError { address, error });
    let socket = marked_socket(Domain::for_address(address), i)?;
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

fn marked_socket(domain: Domain, i: &Interception) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_mark(i.proxy_mark)?;
    Ok(socket)
}

fn set_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}
