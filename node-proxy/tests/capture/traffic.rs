//! Applications, peers and a stand-in for the proxy's data path.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use culvert_node_proxy::intercept::{Netns, application_socket, listeners, source_ports};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::world::{INTERCEPTION, World};

/// Long enough for two namespaces on one machine.
const SOON: Duration = Duration::from_secs(10);
/// How long nothing has to happen.
pub const NEVER: Duration = Duration::from_millis(400);

/// An echo server that first says what it saw: the client's address. Counts the connections it saw.
pub struct Server {
    pub accepted: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub fn start(netns: &Netns, at: SocketAddr) -> Self {
        let listener = netns.run(|| std::net::TcpListener::bind(at)).expect("entering").expect("bind");
        listener.set_nonblocking(true).expect("nonblocking");
        Self::over(vec![listener])
    }

    /// On listeners that do not block.
    pub fn over(listeners: Vec<std::net::TcpListener>) -> Self {
        let accepted = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for listener in listeners {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let count = accepted.clone();
            tasks.spawn(async move {
                let mut connections = JoinSet::new();
                loop {
                    let (stream, client) = listener.accept().await.expect("accept");
                    count.fetch_add(1, Ordering::Relaxed);
                    connections.spawn(echo(stream, format!("client {}\n", client.ip())));
                }
            });
        }
        Self { accepted, _tasks: tasks }
    }

    pub fn count(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

async fn echo(mut stream: TcpStream, greeting: String) {
    let (mut read, mut write) = stream.split();
    if write.write_all(greeting.as_bytes()).await.is_ok() {
        let _ = tokio::io::copy(&mut read, &mut write).await;
    }
}

/// What the node proxy would do, without tunnels: outbound connections are answered here with where they were going;
/// inbound ones are carried to the application under the client's address.
pub struct Proxy {
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub fn start(world: &World) -> Self {
        let listeners = listeners(&world.pod, &INTERCEPTION).expect("the proxy's listeners");
        let mut tasks = JoinSet::new();
        for listener in listeners.outbound {
            let listener = TcpListener::from_std(listener).expect("a listener");
            tasks.spawn(async move {
                let mut connections = JoinSet::new();
                loop {
                    let (stream, client) = listener.accept().await.expect("accept");
                    let asked = stream.local_addr().expect("an address");
                    connections.spawn(echo(stream, format!("outbound {asked} from {}\n", client.ip())));
                }
            });
        }
        for listener in listeners.inbound {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let pod = world.pod.clone();
            tasks.spawn(async move {
                let mut connections = JoinSet::new();
                loop {
                    let (stream, client) = listener.accept().await.expect("accept");
                    connections.spawn(carry_inbound(pod.clone(), stream, client));
                }
            });
        }
        for listener in listeners.hbone {
            let listener = TcpListener::from_std(listener).expect("a listener");
            tasks.spawn(async move {
                let mut connections = JoinSet::new();
                loop {
                    let (stream, client) = listener.accept().await.expect("accept");
                    connections.spawn(echo(stream, format!("hbone from {}\n", client.ip())));
                }
            });
        }
        Self { _tasks: tasks }
    }
}

async fn carry_inbound(pod: Arc<Netns>, mut stream: TcpStream, client: SocketAddr) {
    let asked = stream.local_addr().expect("an address");
    stream.write_all(format!("inbound {asked} ").as_bytes()).await.expect("the client is there");
    let open = |port| application_socket(&pod, SocketAddr::new(client.ip(), port), &INTERCEPTION).ok();
    let socket = source_ports().find_map(open).expect("a socket for the application");
    match timeout(SOON, socket.connect(asked)).await {
        Ok(Ok(mut application)) => {
            let _ = copy_bidirectional(&mut stream, &mut application).await;
        }
        failed => eprintln!("the application at {asked} cannot be reached: {failed:?}"),
    }
}

/// A client's connection and what it was greeted with.
pub struct Connection {
    stream: TcpStream,
    pub greeting: String,
}

impl Connection {
    pub async fn open(netns: &Netns, to: SocketAddr) -> io::Result<Self> {
        Self::open_within(netns, to, SOON).await
    }

    pub async fn open_within(netns: &Netns, to: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = timeout(patience, connect(netns, to)?).await.map_err(|_| io::ErrorKind::TimedOut)??;
        Self::greeted_within(stream, patience).await
    }

    /// Waits for the greeting on a connection that is open.
    pub async fn greeted(stream: TcpStream) -> io::Result<Self> {
        Self::greeted_within(stream, SOON).await
    }

    async fn greeted_within(stream: TcpStream, patience: Duration) -> io::Result<Self> {
        let mut connection = Self { stream, greeting: String::new() };
        let greeting = async {
            loop {
                match connection.stream.read_u8().await? {
                    b'\n' => return io::Result::Ok(()),
                    byte => connection.greeting.push(char::from(byte)),
                }
            }
        };
        timeout(patience, greeting).await.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok(connection)
    }

    /// Exchanges bytes: the connection is alive.
    pub async fn check(&mut self, what: &str) {
        let exchange = async {
            self.stream.write_all(b"ping").await?;
            let mut answer = [0; 4];
            self.stream.read_exact(&mut answer).await?;
            io::Result::Ok(answer)
        };
        let answer = timeout(SOON, exchange).await;
        assert!(
            matches!(answer, Ok(Ok(answer)) if &answer == b"ping"),
            "{what}: {answer:?} ({})",
            self.greeting
        );
    }
}

pub fn connect(
    netns: &Netns,
    to: SocketAddr,
) -> io::Result<impl Future<Output = io::Result<TcpStream>> + use<>> {
    let socket =
        netns.run(|| Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), None))??;
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    Ok(socket.connect(to))
}

/// Asserts that a connection is not made.
pub async fn assert_closed(netns: &Netns, to: SocketAddr, what: &str) {
    let opened = Connection::open_within(netns, to, NEVER).await;
    assert!(opened.is_err(), "{what}: greeted with {:?}", opened.map(|connection| connection.greeting));
}
