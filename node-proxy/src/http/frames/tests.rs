use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::http::blocks::{END_HEADERS, END_STREAM};
use crate::tunnel::testing::at_most;

const LIMITS: HeadLimits = HeadLimits { bytes: 1024, time: Duration::from_secs(10) };
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

struct World {
    client: DuplexStream,
    frames: Frames<DuplexStream>,
    reading: Rc<FrameReading>,
    workload: Arc<WorkloadLimits>,
}

fn world() -> World {
    let (client, server) = tokio::io::duplex(1 << 20);
    let workload = WorkloadLimits::new(at_most(10, 1 << 20));
    let reading = FrameReading::new(workload.clone());
    let frames = Frames::new(server, reading.clone(), LIMITS, workload.clone());
    World { client, frames, reading, workload }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

impl World {
    /// What is handed on now.
    async fn handed(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut idle = 0;
        while idle < 3 {
            let mut bytes = [0; 8192];
            match self.frames.read(&mut bytes).now_or_never() {
                Some(read) => all.extend_from_slice(&bytes[..read.unwrap()]),
                None => idle += 1,
            }
            tokio::task::yield_now().await;
        }
        all
    }

    fn stand_in(&self, stream: u32, flags: u8) -> Vec<u8> {
        self.reading.stand_in(stream, flags)
    }
}

#[tokio::test]
async fn what_is_in_order_is_handed_on_as_it_came_but_heads_whole() {
    let all = [
        HELLO.to_vec(),
        frame(HEADERS, 0, 1, b"abc"),
        frame(CONTINUATION, END_HEADERS, 1, b"def"),
        frame(DATA, 0, 1, b"body"),
        frame(HEADERS, END_HEADERS | END_STREAM, 3, b"ghi"),
        frame(6, 0, 0, b"pingping"),
    ]
    .concat();
    let head = HELLO.len() + 12..HELLO.len() + 24;
    for piece in [1, 2, 7, 1000] {
        let mut world = world();
        let (mut sent, mut handed) = (0, Vec::new());
        for piece in all.chunks(piece) {
            world.client.write_all(piece).await.unwrap();
            sent += piece.len();
            handed.extend(world.handed().await);
            assert!(handed.len() <= sent);
            assert!(!head.contains(&handed.len()), "no part of a head: {}", handed.len());
        }
        assert_eq!(handed, all, "in pieces of {piece}");
        assert!(!world.reading.over.is_cancelled());
        assert_eq!(world.workload.memory(), 4, "the body is counted until it is taken");
        drop(world.reading.receives());
        assert_eq!(world.workload.memory(), 0);
    }
}

#[tokio::test]
async fn a_head_too_long_is_replaced_and_what_is_under_way_goes_on() {
    let before = [HELLO.to_vec(), frame(HEADERS, END_HEADERS, 1, b"abc")].concat();
    let long =
        [frame(HEADERS, END_STREAM, 3, &[b'x'; 1000]), frame(CONTINUATION, 0, 3, &[b'y'; 1100])].concat();
    let rest =
        [frame(CONTINUATION, END_HEADERS, 3, &[b'z'; 50]), frame(HEADERS, END_HEADERS, 5, b"other")].concat();
    let after = [frame(DATA, END_STREAM, 1, b"body"), frame(8, 0, 0, &[0, 0, 1, 0])].concat();
    for piece in [1, 100, 1 << 20] {
        let mut world = world();
        let mut handed = Vec::new();
        for piece in [&before[..], &long, &rest, &after].concat().chunks(piece) {
            world.client.write_all(piece).await.unwrap();
            handed.extend(world.handed().await);
        }
        let expected = [&before[..], &world.stand_in(3, END_STREAM), &after].concat();
        assert_eq!(handed, expected, "in pieces of {piece}");
        assert!(world.reading.over.is_cancelled());
        assert_eq!(world.reading.why_refused(), Some(BadRequest::HeadTooLong(1024)));
        world.reading.received.clear();
        assert_eq!(world.workload.memory(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_is_refused_in_time() {
    let mut world = world();
    world.client.write_all(HELLO).await.unwrap();
    assert_eq!(world.handed().await, HELLO);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(world.handed().await, b"", "a connection without a head may be silent");
    world.client.write_all(&frame(HEADERS, 0, 1, b"abc")).await.unwrap();
    assert_eq!(world.handed().await, b"");
    for _ in 0..9 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.client.write_all(&frame(CONTINUATION, 0, 1, b"d")).await.unwrap();
        assert_eq!(world.handed().await, b"");
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.handed().await, world.stand_in(1, 0));
    assert_eq!(world.reading.why_refused(), Some(BadRequest::HeadTimeout(LIMITS.time)));
    assert!(world.reading.over.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_begins_is_given_up() {
    for bytes in [&HELLO[..10], &HELLO[..28], &[HELLO, b"\0\0\x03\x01"].concat()] {
        let mut world = world();
        world.client.write_all(bytes).await.unwrap();
        let mut all = Vec::new();
        let error = world.frames.read_to_end(&mut all).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{}", bytes.len());
        assert_eq!(world.reading.broken(), Some(BadRequest::HeadTimeout(LIMITS.time)));
    }
}

/// What was read is taken before more is: heads wait for h2 nowhere but here.
#[tokio::test]
async fn heads_come_a_few_at_a_time() {
    let mut world = world();
    let head = frame(HEADERS, END_HEADERS, 1, &[b'a'; 1000]);
    world.client.write_all(&[HELLO, &head.repeat(20)].concat()).await.unwrap();
    let mut most = 0;
    let mut handed = 0;
    while handed < HELLO.len() + 20 * head.len() {
        let mut at_once = 0;
        loop {
            let mut bytes = [0; 1024];
            match world.frames.read(&mut bytes).now_or_never() {
                Some(read) => at_once += read.unwrap(),
                None => break,
            }
        }
        handed += at_once;
        most = most.max(at_once);
    }
    assert!(most <= HEADS_AT_ONCE + 2 * head.len() + HELLO.len(), "{most}");
}
