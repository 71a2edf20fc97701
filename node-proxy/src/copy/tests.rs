use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::uri::Authority;
use http::{Method, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::*;
use crate::tunnel::dial::Opened;
use crate::tunnel::testing::{limits, open, serve_http2, to_application};
use crate::tunnel::window::Window;
use crate::worker::socket::CarriedSocket;

const IDLE: Duration = Duration::from_millis(300);

/// How the bytes get from one socket to the other.
#[derive(Clone, Copy, Debug)]
enum Way {
    Plain,
    Tunnel,
}

const WAYS: [Way; 2] = [Way::Plain, Way::Tunnel];

type Counts = Rc<RefCell<(u64, u64)>>;
type Ended = JoinHandle<Result<(), CopyError>>;

/// A mesh in a test: an application, and one tunnel to its proxy.
struct Mesh {
    listener: TcpListener,
    tunnel: Opened,
    limits: Arc<WorkloadLimits>,
}

/// One carried connection: what the client holds, what the application holds, and the copy between.
struct Carried {
    client: TcpStream,
    application: TcpStream,
    ended: Ended,
    counts: Counts,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (one.unwrap(), other.unwrap().0)
}

fn connect_request(to: SocketAddr) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = to.to_string().parse::<Authority>().unwrap().into();
    request
}

impl Mesh {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let limits = limits();
        let (near, far) = duplex(1 << 20);
        let to = listener.local_addr().unwrap();
        serve_http2(far, 100, Rc::default(), to_application(to, limits.clone()));
        let mut tunnel = open(near).await.unwrap();
        spawn_local(std::mem::replace(&mut tunnel.driver, Box::pin(async { Ok(()) })));
        Self { listener, tunnel, limits }
    }

    async fn connect(&self, way: Way) -> Carried {
        let (client, accepted) = pair().await;
        let accepted = CarriedSocket::new(accepted);
        let counts = Counts::default();
        let (limits, counted) = (self.limits.clone(), counts.clone());
        let to = self.listener.local_addr().unwrap();
        let (sender, window) = (self.tunnel.sender.clone(), self.tunnel.window.clone());
        let ended = spawn_local(async move {
            let count = |direction, bytes| match direction {
                Direction::ToServer => counted.borrow_mut().0 += bytes,
                Direction::ToClient => counted.borrow_mut().1 += bytes,
            };
            let copy = Copy::new(&limits, IDLE, &count);
            match way {
                Way::Plain => {
                    let server = CarriedSocket::new(TcpStream::connect(to).await.unwrap());
                    copy.between(accepted, server).await
                }
                Way::Tunnel => {
                    let request = connect_request(to);
                    let (response, send) =
                        sender.ready().await.unwrap().send_request(request, false).unwrap();
                    let recv = response.await.unwrap().into_body();
                    copy.tunnelled(accepted, Side::Client, TunnelStream::new(send, recv, window)).await
                }
            }
        });
        let application = self.listener.accept().await.unwrap().0;
        Carried { client, application, ended, counts }
    }
}

async fn each_way(test: impl AsyncFn(Carried, Way)) {
    for way in WAYS {
        LocalSet::new()
            .run_until(async {
                let mesh = Mesh::new().await;
                let limits = mesh.limits.clone();
                let carried = mesh.connect(way).await;
                tokio::time::timeout(Duration::from_secs(20), test(carried, way)).await.expect("in time");
                for _ in 0..100 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    if limits.memory() == 0 {
                        break;
                    }
                }
                assert_eq!(limits.memory(), 0, "{way:?}: every charge is given back");
            })
            .await;
    }
}

async fn read_all(socket: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    socket.read_to_end(&mut all).await.unwrap();
    all
}

async fn is_reset(socket: &mut TcpStream) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match socket.read(&mut buffer).await {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn each_side_may_close_first_and_the_other_goes_on() {
    each_way(async |mut carried, way| {
        carried.client.write_all(b"question").await.unwrap();
        carried.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut carried.application).await, b"question");
        carried.application.write_all(b"a long answer").await.unwrap();
        carried.application.shutdown().await.unwrap();
        assert_eq!(read_all(&mut carried.client).await, b"a long answer");
        carried.ended.await.unwrap().unwrap_or_else(|error| panic!("{way:?}: {error}"));
        assert_eq!(*carried.counts.borrow(), (8, 13));
    })
    .await;
    each_way(async |mut carried, _| {
        carried.application.write_all(b"banner").await.unwrap();
        carried.application.shutdown().await.unwrap();
        assert_eq!(read_all(&mut carried.client).await, b"banner");
        carried.client.write_all(b"thanks").await.unwrap();
        carried.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut carried.application).await, b"thanks");
        carried.ended.await.unwrap().unwrap();
    })
    .await;
}

/// A packet less, and a turn of either proxy less, for every connection that ends with its answer.
#[tokio::test]
async fn what_a_side_says_last_travels_with_its_end() {
    LocalSet::new()
        .run_until(async {
            let (mut application, accepted) = pair().await;
            application.write_all(b"answer").await.unwrap();
            application.shutdown().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            let limits = limits();
            let (near, far) = duplex(1 << 20);
            let socket = RefCell::new(Some(CarriedSocket::new(accepted)));
            serve_http2(far, 10, Rc::default(), move |request, mut respond| {
                let (socket, limits) = (socket.take().unwrap(), limits.clone());
                let send = respond.send_response(http::Response::new(()), false).unwrap();
                let stream = TunnelStream::new(send, request.into_body(), Window::new(limits.clone()));
                spawn_local(async move {
                    Copy::new(&limits, IDLE, &|_, _| {}).tunnelled(socket, Side::Server, stream).await
                });
            });
            let tunnel = open(near).await.unwrap();
            spawn_local(tunnel.driver);
            let request = connect_request("10.1.0.9:80".parse().unwrap());
            let (response, _send) =
                tunnel.sender.ready().await.unwrap().send_request(request, false).unwrap();
            let mut body = response.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "answer");
            assert!(body.is_end_stream());
        })
        .await;
}

#[tokio::test]
async fn a_reset_is_a_reset_on_the_other_side() {
    each_way(async |mut carried, way| {
        carried.client.write_all(b"x").await.unwrap();
        carried.application.read_exact(&mut [0]).await.unwrap();
        reset(carried.client);
        assert!(is_reset(&mut carried.application).await, "{way:?}");
        assert_eq!(carried.ended.await.unwrap().unwrap_err().reason(), Reason::PeerReset);
    })
    .await;
    each_way(async |mut carried, way| {
        carried.client.write_all(b"x").await.unwrap();
        carried.application.read_exact(&mut [0]).await.unwrap();
        reset(carried.application);
        assert!(is_reset(&mut carried.client).await, "{way:?}");
        assert_eq!(carried.ended.await.unwrap().unwrap_err().reason(), Reason::PeerReset);
    })
    .await;
}

#[tokio::test]
async fn a_reset_after_half_a_close_is_noticed_at_once() {
    each_way(async |mut carried, _| {
        carried.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut carried.application).await, b"");
        reset(carried.client);
        // Its end was announced already, so the reset shows when it writes.
        while carried.application.write_all(b"answer").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(carried.ended.await.unwrap().unwrap_err().reason(), Reason::PeerReset);
    })
    .await;
}

#[tokio::test]
async fn an_answer_before_a_reset_is_delivered() {
    each_way(async |mut carried, way| {
        carried.client.write_all(b"most of it unread by the application").await.unwrap();
        carried.application.read_exact(&mut [0]).await.unwrap();
        let answer = vec![7; 40_000];
        carried.application.write_all(&answer).await.unwrap();
        reset(carried.application);
        let mut received = vec![0; answer.len()];
        carried.client.read_exact(&mut received).await.unwrap_or_else(|error| panic!("{way:?}: {error}"));
        assert_eq!(received, answer);
        assert!(is_reset(&mut carried.client).await, "{way:?}");
    })
    .await;
}

#[tokio::test]
async fn a_reset_while_the_other_side_is_stalled_is_noticed() {
    each_way(async |carried, way| {
        let Carried { mut client, application, ended, .. } = carried;
        let block = vec![1; 1 << 20];
        while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), client.write(&block)).await {
            written.unwrap();
        }
        reset(client);
        let error =
            tokio::time::timeout(Duration::from_secs(5), ended).await.expect("noticed").unwrap().unwrap_err();
        assert_eq!(error.reason(), Reason::PeerReset, "{way:?}");
        drop(application);
    })
    .await;
}

#[tokio::test]
async fn silence_after_half_a_close_ends_the_connection_and_traffic_does_not() {
    each_way(async |mut carried, way| {
        carried.client.shutdown().await.unwrap();
        for _ in 0..4 {
            tokio::time::sleep(IDLE / 2).await;
            carried.application.write_all(b".").await.unwrap();
        }
        let mut received = [0; 4];
        carried.client.read_exact(&mut received).await.unwrap();
        assert!(!carried.ended.is_finished(), "{way:?}");
        let error = carried.ended.await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Reason::IdleTimeout, "{way:?}");
        assert!(is_reset(&mut carried.client).await, "{way:?}");
    })
    .await;
}

#[tokio::test]
async fn dropping_the_copy_resets_both_sides() {
    each_way(async |mut carried, way| {
        carried.client.write_all(b"x").await.unwrap();
        carried.application.read_exact(&mut [0]).await.unwrap();
        carried.ended.abort();
        assert!(is_reset(&mut carried.client).await, "{way:?}");
        assert!(is_reset(&mut carried.application).await, "{way:?}");
    })
    .await;
}

#[tokio::test]
async fn bulk_arrives_whole_in_both_directions_at_once() {
    const SIZE: usize = 24 << 20;
    each_way(async |carried, way| {
        let Carried { client, application, ended, counts } = carried;
        let data: Vec<u8> = (0..SIZE).map(|index| (index * 7 + index / 251) as u8).collect();
        let data = Arc::new(data);
        let exchange = |socket: TcpStream| {
            let data = data.clone();
            async move {
                let (mut read, mut write) = socket.into_split();
                let send = async {
                    write.write_all(&data).await.unwrap();
                    write.shutdown().await.unwrap();
                };
                let mut received = Vec::with_capacity(SIZE);
                let receive = async { read.read_to_end(&mut received).await.unwrap() };
                tokio::join!(send, receive);
                received == *data
            }
        };
        let (one, other) = tokio::join!(exchange(client), exchange(application));
        assert!(one && other, "{way:?}");
        ended.await.unwrap().unwrap();
        assert_eq!(*counts.borrow(), (SIZE as u64, SIZE as u64));
    })
    .await;
}

#[tokio::test]
async fn ten_stalled_readers_do_not_delay_an_eleventh_connection_of_the_tunnel() {
    LocalSet::new()
        .run_until(async {
            let mesh = Mesh::new().await;
            let mut stalled = Vec::new();
            for _ in 0..10 {
                let mut carried = mesh.connect(Way::Tunnel).await;
                let block = vec![1; 1 << 20];
                let patience = Duration::from_millis(100);
                while let Ok(written) = tokio::time::timeout(patience, carried.client.write(&block)).await {
                    written.unwrap();
                }
                stalled.push(carried);
            }
            let mut eleventh = mesh.connect(Way::Tunnel).await;
            let start = std::time::Instant::now();
            let sent = vec![2; 4 << 20];
            let mut received = vec![0; sent.len()];
            let exchange = async {
                tokio::join!(eleventh.client.write_all(&sent), eleventh.application.read_exact(&mut received))
            };
            let (written, read) =
                tokio::time::timeout(Duration::from_secs(10), exchange).await.expect("not stuck");
            written.unwrap();
            read.unwrap();
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
            assert!(mesh.limits.memory() > 0, "what waits for stalled readers is charged");
        })
        .await;
}

#[tokio::test]
async fn a_workload_over_its_budget_goes_on_slowly() {
    for way in WAYS {
        LocalSet::new()
            .run_until(async {
                let mesh = Mesh::new().await;
                let _charge = mesh.limits.charge(1 << 30);
                let mut carried = mesh.connect(way).await;
                let sent = vec![3; 16 << 10];
                let mut received = vec![0; sent.len()];
                let exchange = async {
                    tokio::join!(
                        carried.client.write_all(&sent),
                        carried.application.read_exact(&mut received)
                    )
                };
                let (written, read) =
                    tokio::time::timeout(Duration::from_secs(10), exchange).await.expect("it does go on");
                written.unwrap();
                read.unwrap();
                assert_eq!(received, sent, "{way:?}");
            })
            .await;
    }
}

/// Held for as long as a connection is open, so a bound that breaks is memory per connection.
#[tokio::test]
async fn a_copy_is_small() {
    let limits = limits();
    let count = |_, _| {};
    let copy = Copy::new(&limits, IDLE, &count);
    let socket = || async { CarriedSocket::new(pair().await.0) };
    let plain = size_of_val(&copy.between(socket().await, socket().await));
    assert!(plain <= 2560, "{plain}");
}
