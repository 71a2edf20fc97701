//! The sockets of the cluster's DNS: UDP and TCP, each step with a deadline, connections bounded.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_dns::answer::{Transport, answer};
use culvert_dns::zone::Zone;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::sandbox::cluster::{CONTROL_PLANE, Cluster, DualAddress};
use crate::sandbox::namespaces::Netns;
use crate::sandbox::store::Store;

/// Domain of every name.
pub const DOMAIN: &str = "cluster.local";
const PORT: u16 = 53;
/// How long changes are gathered before names follow.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Largest question in bytes that is read over UDP; real ones have tens.
const MAX_QUESTION: usize = 4096;
/// TCP connections at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// For the next question on a TCP connection, and for taking an answer.
const IDLE: Duration = Duration::from_secs(10);
/// After a failed accept or receive, so that a persistent failure does not spin.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Sockets on every address of the server.
#[derive(Debug)]
pub struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Binds port 53 of the control plane's addresses, in its namespace. Inside a runtime.
    ///
    /// # Errors
    /// When the namespace is not there or an address is taken.
    pub fn bind(cluster: &Cluster) -> io::Result<Self> {
        let address = cluster.control_plane;
        let (udp, tcp) = Netns::named(CONTROL_PLANE)?.run(|| bind(address, PORT))??;
        Self::from_std(udp, tcp)
    }

    fn from_std(udp: Vec<std::net::UdpSocket>, tcp: Vec<std::net::TcpListener>) -> io::Result<Self> {
        Ok(Self {
            udp: udp.into_iter().map(UdpSocket::from_std).collect::<io::Result<_>>()?,
            tcp: tcp.into_iter().map(TcpListener::from_std).collect::<io::Result<_>>()?,
        })
    }
}

fn bind(
    address: DualAddress,
    port: u16,
) -> io::Result<(Vec<std::net::UdpSocket>, Vec<std::net::TcpListener>)> {
    let (mut udp, mut tcp) = (Vec::new(), Vec::new());
    for address in address.both() {
        let address = SocketAddr::new(address, port);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
        let socket = std::net::UdpSocket::bind(address).map_err(named)?;
        socket.set_nonblocking(true)?;
        let listener = std::net::TcpListener::bind(address).map_err(named)?;
        listener.set_nonblocking(true)?;
        udp.push(socket);
        tcp.push(listener);
    }
    Ok((udp, tcp))
}

/// Answers questions about the store's objects until cancelled.
pub async fn serve(sockets: Sockets, store: Store, cancel: CancellationToken) {
    let zone = watch::Sender::new(Arc::new(Zone::build(&store.objects(), DOMAIN, 0)));
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = JoinSet::new();
    for socket in sockets.udp {
        tasks.spawn(serve_udp(socket, zone.subscribe()));
    }
    for listener in sockets.tcp {
        tasks.spawn(serve_tcp(listener, zone.subscribe(), Arc::clone(&connections)));
    }
    tokio::select! {
        () = cancel.cancelled() => {}
        () = follow(store, &zone) => {}
    }
}

async fn follow(store: Store, zone: &watch::Sender<Arc<Zone>>) {
    let mut changed = store.changed();
    loop {
        let version = *changed.borrow_and_update();
        // Wraps, as zone serials do (RFC 1982).
        zone.send_replace(Arc::new(Zone::build(&store.objects(), DOMAIN, version as u32)));
        if changed.changed().await.is_err() {
            return;
        }
        sleep(DEBOUNCE).await;
    }
}

async fn serve_udp(socket: UdpSocket, zone: watch::Receiver<Arc<Zone>>) {
    let mut question = vec![0; MAX_QUESTION];
    loop {
        match socket.recv_from(&mut question).await {
            Ok((length, from)) => {
                let now = Arc::clone(&zone.borrow());
                if let Some(reply) = answer(&now, &question[..length], Transport::Udp)
                    && let Err(error) = socket.send_to(&reply, from).await
                {
                    debug!(%error, %from, "a DNS answer was not sent");
                }
            }
            // An earlier answer bounced (ICMP); nothing is wrong with the socket.
            Err(error) => {
                debug!(%error, "no DNS question received");
                sleep(BACK_OFF).await;
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: watch::Receiver<Arc<Zone>>, limit: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&limit).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let zone = zone.clone();
                connections.spawn(async move {
                    // The client went away or was too slow; either way the connection is over.
                    let _ = serve_connection(stream, zone).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "no DNS connection accepted");
                sleep(BACK_OFF).await;
            }
        }
    }
}

async fn serve_connection(mut stream: TcpStream, zone: watch::Receiver<Arc<Zone>>) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut question = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut question)).await??;
        let now = Arc::clone(&zone.borrow());
        let Some(reply) = answer(&now, &question, Transport::Tcp) else { return Ok(()) };
        let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
        let mut message = length.to_be_bytes().to_vec();
        message.extend(reply);
        timeout(IDLE, stream.write_all(&message)).await??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use hickory_proto::op::{Message, Query};
    use hickory_proto::rr::{Name, RecordType};

    fn question() -> Vec<u8> {
        let mut message = Message::query();
        let name = Name::from_ascii("kube-dns.kube-system.svc.cluster.local.").unwrap();
        message.add_query(Query::query(name, RecordType::A));
        message.to_vec().unwrap()
    }

    #[tokio::test]
    async fn both_transports_answer_and_rubbish_does_not_stop_them() {
        let store = Store::new(&Cluster::new("test", 1));
        let localhost = DualAddress { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST };
        // Port 0 gives every socket a port of its own.
        let (udp, tcp) = bind(localhost, 0).unwrap();
        let (udp_at, tcp_at) = (udp[0].local_addr().unwrap(), tcp[0].local_addr().unwrap());
        let sockets = Sockets::from_std(udp, tcp).unwrap();
        let cancel = CancellationToken::new();
        let server = tokio::spawn(serve(sockets, store, cancel.clone()));

        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"rubbish", udp_at).await.unwrap();
        client.send_to(&question(), udp_at).await.unwrap();
        let mut reply = vec![0; 512];
        let length = timeout(IDLE, client.recv(&mut reply)).await.unwrap().unwrap();
        assert_eq!(Message::from_vec(&reply[..length]).unwrap().answers.len(), 1);

        let mut stream = TcpStream::connect(tcp_at).await.unwrap();
        for _ in 0..2 {
            let question = question();
            stream.write_u16(question.len() as u16).await.unwrap();
            stream.write_all(&question).await.unwrap();
            let length = timeout(IDLE, stream.read_u16()).await.unwrap().unwrap();
            let mut reply = vec![0; usize::from(length)];
            stream.read_exact(&mut reply).await.unwrap();
            assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 1);
        }
        cancel.cancel();
        server.await.unwrap();
    }
}
