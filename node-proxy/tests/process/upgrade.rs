//! One process takes over from another, and what happens when one of the two does not do its part.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use culvert_api::packet;
use nix::sys::signal::Signal;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::controller::FakeController;
use crate::proxy::{Home, Proxy};

struct Node {
    home: Home,
    controller: FakeController,
}

impl Node {
    async fn new() -> Self {
        let home = Home::new();
        home.write_bundle();
        let controller = FakeController::start(&home).await;
        Self { home, controller }
    }

    async fn proxy(&self) -> Proxy {
        let mut proxy = Proxy::start(&self.home, &self.controller.url());
        proxy.is_ready().await;
        proxy
    }

    /// Whoever starts now comes no further than to announce itself.
    fn keep_back_the_bundle(&self) -> KeptBack {
        let kept_back = KeptBack { bundle: self.home.path("bundle.pem"), aside: self.home.path("aside.pem") };
        std::fs::rename(&kept_back.bundle, &kept_back.aside).unwrap();
        kept_back
    }

    /// Says packets to the process in charge; its answers, until it hangs up.
    fn say(&self, packets: &[&str]) -> Vec<String> {
        let socket: OwnedFd =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let path = self.home.enrolment_socket().with_extension("handover");
        rustix::net::connect(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(60))).unwrap();
        for said in packets {
            packet::send(socket.as_fd(), said.as_bytes(), &[]).unwrap();
        }
        let mut answers = Vec::new();
        loop {
            match packet::recv(socket.as_fd()) {
                Ok((bytes, _)) if !bytes.is_empty() => answers.push(String::from_utf8(bytes).unwrap()),
                Ok(_) => return answers,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return answers,
                Err(error) => panic!("{error}: {answers:?}"),
            }
        }
    }
}

struct KeptBack {
    bundle: PathBuf,
    aside: PathBuf,
}

impl KeptBack {
    fn give(self) {
        std::fs::rename(self.aside, self.bundle).unwrap();
    }
}

#[tokio::test]
async fn one_takes_over_from_another_at_the_same_addresses() {
    let node = Node::new().await;
    let mut first = node.proxy().await;
    let mut second = first.start_after(&node.home, &node.controller.url());
    second.is_ready().await;
    assert_eq!(second.asks_ready(second.pid()).await, (true, String::new()));
    let (ready, why) = second.asks_ready(first.pid()).await;
    assert!(!ready && why.contains("served by"), "{why}");
    assert!(second.log().contains("took over from the last node proxy"), "{}", second.log());
    assert!(first.is_running(), "it ends when it is told to");
    let mut third = second.start_after(&node.home, &node.controller.url());
    third.is_ready().await;
    assert_eq!(first.terminate().await, Some(0));
    assert_eq!(second.terminate().await, Some(0));
    assert_eq!(third.get("/healthz/ready").await.0, 200);
    // The last one still keeps what there is.
    assert_eq!(third.terminate().await, Some(0));
    let mut fourth = Proxy::start(&node.home, "https://127.0.0.1:1");
    fourth.eventually("/config?only=workloads", 200, "shop/a/a-uid").await;
    assert!(!fourth.log().contains("took over"), "{}", fourth.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_protocol_is_refused_with_a_reason() {
    let node = Node::new().await;
    let mut proxy = node.proxy().await;
    let answers = node.say(&[r#"{"ask":"hello","protocol":9,"version":"7.0.0"}"#]);
    assert_eq!(answers.len(), 1);
    assert!(
        answers[0].contains("refused") && answers[0].contains("protocol 9 of version 7.0.0"),
        "{answers:?}"
    );
    proxy.says("protocol 9 of version 7.0.0").await;
    let hello = r#"{"ask":"hello","protocol":1,"version":"0.1.0"}"#;
    for nonsense in [&["no JSON"][..], &[hello, "{}"], &[hello, hello], &[r#"{"ask":"sockets"}"#], &[hello]] {
        let answers = node.say(nonsense);
        assert!(answers.iter().all(|answer| !answer.contains("sockets\":[")), "{nonsense:?}: {answers:?}");
    }
    proxy.is_ready().await;
    let mut next = proxy.start_after(&node.home, &node.controller.url());
    next.is_ready().await;
}

#[tokio::test]
async fn one_that_hangs_is_not_waited_for() {
    let node = Node::new().await;
    let mut hung = node.proxy().await;
    hung.signal(Signal::SIGSTOP);
    let mut next = Proxy::start(&node.home, &node.controller.url());
    next.is_ready().await;
    next.says("starting without it").await;
    hung.kill().await;
    next.is_ready().await;
}

#[tokio::test]
async fn one_that_dies_meanwhile_is_followed_as_after_a_restart() {
    let node = Node::new().await;
    let mut first = node.proxy().await;
    let kept_back = node.keep_back_the_bundle();
    let mut next = first.start_after(&node.home, &node.controller.url());
    next.says("the admin port is the last node proxy's").await;
    assert_eq!(first.get("/healthz/ready").await.0, 200, "in charge until then");
    first.kill().await;
    kept_back.give();
    next.is_ready().await;
    next.says("starting without it").await;
}

#[tokio::test]
async fn a_successor_that_dies_is_forgotten() {
    let node = Node::new().await;
    let mut first = node.proxy().await;
    let kept_back = node.keep_back_the_bundle();
    let mut dies = first.start_after(&node.home, &node.controller.url());
    dies.says("the admin port is the last node proxy's").await;
    dies.kill().await;
    kept_back.give();
    assert_eq!(first.get("/healthz/ready").await.0, 200);
    let mut next = first.start_after(&node.home, &node.controller.url());
    next.is_ready().await;
    assert_eq!(first.terminate().await, Some(0));
}

#[tokio::test]
async fn one_that_is_told_to_end_waits_for_its_successor() {
    let mut node = Node::new().await;
    node.home.drain = 120;
    let mut first = node.proxy().await;
    let kept_back = node.keep_back_the_bundle();
    let mut next = first.start_after(&node.home, &node.controller.url());
    next.says("the admin port is the last node proxy's").await;
    first.signal(Signal::SIGTERM);
    first.says("told to end").await;
    // Longer than it would wait for one that is gone.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(first.get("/healthz/ready").await.0, 200, "it serves");
    kept_back.give();
    next.is_ready().await;
    next.says("took over from the last node proxy").await;
    assert_eq!(first.ended().await, Some(0));
}
