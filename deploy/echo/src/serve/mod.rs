//! The server: one listener per port and address family.

mod grpc;
mod http;
mod script;
mod tcp;
mod tls;
mod udp;
mod wishes;

use crate::identity::PodIdentity;
use crate::ports::{self, Behaviour, PortSpec};
use anyhow::Context;
use clap::Args;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Ports by behaviour; each may be given several times.
#[derive(Args)]
pub(crate) struct ServeArgs {
    /// HTTP/1.1 and h2c.
    #[arg(long, value_name = "PORT")]
    http: Vec<u16>,
    /// gRPC echo and grpc.health.v1.
    #[arg(long, value_name = "PORT")]
    grpc: Vec<u16>,
    /// TCP echo.
    #[arg(long, value_name = "PORT")]
    tcp: Vec<u16>,
    /// TCP echo that sends a banner first.
    #[arg(long, value_name = "PORT")]
    tcp_first: Vec<u16>,
    /// TCP echo over TLS, that sends a banner first.
    #[arg(long, value_name = "PORT")]
    tls: Vec<u16>,
    /// UDP echo.
    #[arg(long, value_name = "PORT")]
    udp: Vec<u16>,
    /// Read and throw away.
    #[arg(long, value_name = "PORT")]
    discard: Vec<u16>,
    /// Send without end.
    #[arg(long, value_name = "PORT")]
    chargen: Vec<u16>,
    /// Accept and never answer.
    #[arg(long, value_name = "PORT")]
    silent: Vec<u16>,
    /// Accept and reset.
    #[arg(long, value_name = "PORT")]
    reset: Vec<u16>,
    /// Answer with the bytes that the request's query gives in hexadecimal.
    #[arg(long, value_name = "PORT")]
    script: Vec<u16>,
    /// NAME=PORT[/UDP],...: the name decides the behaviour, as container port names do.
    #[arg(long, env = "CULVERT_ECHO_PORTS", default_value = "", value_name = "LIST")]
    ports: String,
    /// Wait so many milliseconds before listening, to look like a slow starter.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    start_delay: u64,
    /// After SIGTERM serve on for so many milliseconds: news that the pod is ending takes a moment to get around.
    #[arg(long, default_value_t = 500, value_name = "MS")]
    linger: u64,
}

impl ServeArgs {
    fn specs(&self) -> anyhow::Result<Vec<PortSpec>> {
        let mut specs = ports::parse_list(&self.ports)?;
        let flags = [
            (&self.http, Behaviour::Http),
            (&self.grpc, Behaviour::Grpc),
            (&self.tcp, Behaviour::Tcp),
            (&self.tcp_first, Behaviour::TcpFirst),
            (&self.tls, Behaviour::Tls),
            (&self.udp, Behaviour::Udp),
            (&self.discard, Behaviour::Discard),
            (&self.chargen, Behaviour::Chargen),
            (&self.silent, Behaviour::Silent),
            (&self.reset, Behaviour::Reset),
            (&self.script, Behaviour::Script),
        ];
        for (given, behaviour) in flags {
            for port in given {
                let udp = behaviour == Behaviour::Udp;
                // A flag wins over the list for the same port.
                specs.retain(|spec| spec.port != *port || (spec.behaviour == Behaviour::Udp) != udp);
                specs.push(PortSpec { port: *port, behaviour });
            }
        }
        if specs.is_empty() {
            specs.push(PortSpec { port: 8080, behaviour: Behaviour::Http });
        }
        Ok(specs)
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When a port cannot be bound in either family.
pub(crate) async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let identity = Arc::new(PodIdentity::from_env());
    let specs = args.specs()?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::time::sleep(Duration::from_millis(args.start_delay)).await;
    // All of them before any is served: an answer to a readiness probe speaks for every port.
    let mut bound = Vec::new();
    for spec in &specs {
        bound.extend(bind(*spec).with_context(|| format!("port {}", spec.port))?);
    }
    for bound in bound {
        start(bound, &identity)?;
    }
    let ports: Vec<_> = specs.iter().map(|spec| format!("{}/{:?}", spec.port, spec.behaviour)).collect();
    println!("serving {}", ports.join(" "));
    tokio::select! {
        _ = terminate.recv() => tokio::time::sleep(Duration::from_millis(args.linger)).await,
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}

/// See [`wait`].
#[derive(Args)]
pub(crate) struct WaitArgs {
    /// Goes on for so many milliseconds after SIGTERM.
    #[arg(long, default_value_t = 5000, value_name = "MS")]
    linger: u64,
}

/// Does nothing until SIGTERM, and then for a while longer.
///
/// # Errors
/// When signals cannot be watched.
pub(crate) async fn wait(args: WaitArgs) -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    terminate.recv().await;
    tokio::time::sleep(Duration::from_millis(args.linger)).await;
    Ok(())
}

/// A socket that takes connections or datagrams, which nobody answers yet.
struct Bound {
    socket: Socket,
    behaviour: Behaviour,
    /// One memory for both families of a port.
    received: Arc<Mutex<script::Received>>,
}

fn bind(spec: PortSpec) -> io::Result<Vec<Bound>> {
    let addresses: [SocketAddr; 2] =
        [(Ipv4Addr::UNSPECIFIED, spec.port).into(), (Ipv6Addr::UNSPECIFIED, spec.port).into()];
    let received = Arc::default();
    let mut all = Vec::new();
    for address in addresses {
        match bound(address, spec.behaviour) {
            Ok(socket) => {
                all.push(Bound { socket, behaviour: spec.behaviour, received: Arc::clone(&received) });
            }
            // A machine without IPv6 serves IPv4 alone.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
    if all.is_empty() { Err(io::Error::from(io::ErrorKind::AddrNotAvailable)) } else { Ok(all) }
}

fn start(bound: Bound, identity: &Arc<PodIdentity>) -> io::Result<()> {
    let (identity, received) = (Arc::clone(identity), bound.received);
    if bound.behaviour == Behaviour::Udp {
        tokio::spawn(udp::echo(UdpSocket::from_std(bound.socket.into())?));
        return Ok(());
    }
    let listener = TcpListener::from_std(bound.socket.into())?;
    match bound.behaviour {
        Behaviour::Http => tokio::spawn(http::serve(listener, identity)),
        Behaviour::Grpc => tokio::spawn(grpc::serve(listener, identity)),
        Behaviour::Tcp => tokio::spawn(each(listener, tcp::echo)),
        Behaviour::TcpFirst => tokio::spawn(each(listener, move |s| tcp::banner(s, Arc::clone(&identity)))),
        Behaviour::Tls => {
            let acceptor = tls::acceptor(&identity).map_err(io::Error::other)?;
            tokio::spawn(each(listener, move |s| tls::banner(s, acceptor.clone(), Arc::clone(&identity))))
        }
        Behaviour::Discard => tokio::spawn(each(listener, tcp::discard)),
        Behaviour::Chargen => tokio::spawn(each(listener, tcp::chargen)),
        Behaviour::Silent => tokio::spawn(each(listener, tcp::silent)),
        Behaviour::Reset => tokio::spawn(each(listener, tcp::reset)),
        Behaviour::Script => {
            tokio::spawn(each(listener, move |stream| script::serve(stream, Arc::clone(&received))))
        }
        Behaviour::Udp => unreachable!("started above"),
    };
    Ok(())
}

fn bound(address: SocketAddr, behaviour: Behaviour) -> io::Result<Socket> {
    let (kind, protocol) = match behaviour {
        Behaviour::Udp => (Type::DGRAM, Protocol::UDP),
        _ => (Type::STREAM, Protocol::TCP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(4096)?;
    }
    Ok(socket)
}

/// Accepts for ever and hands every connection to `handle`, each on a task of its own.
async fn each<F, R>(listener: TcpListener, handle: F)
where
    F: Fn(TcpStream) -> R,
    R: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        let stream = accept(&listener).await;
        let connection = handle(stream);
        tokio::spawn(async move {
            // How a client's connection ends is the client's business.
            let _ = connection.await;
        });
    }
}

/// The next connection. Without descriptors it waits for one to become free instead of spinning.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Only latency would suffer.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
