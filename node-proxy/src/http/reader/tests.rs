use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

use super::*;

const LIMITS: ReadLimits =
    ReadLimits { head_bytes: 1024, head: Duration::from_secs(10), body_idle: Duration::from_secs(60) };

struct World {
    client: DuplexStream,
    checked: Checked<DuplexStream>,
    reading: Rc<Reading>,
}

fn world() -> World {
    let (client, server) = duplex(1 << 16);
    let reading = Rc::<Reading>::default();
    World {
        client,
        checked: Checked::new(server, reading.clone(), LIMITS, &crate::tunnel::testing::limits()),
        reading,
    }
}

/// Reads what there is now.
async fn now(checked: &mut Checked<DuplexStream>) -> String {
    let mut text = String::new();
    let mut bytes = [0; 300];
    while let Ok(read) = tokio::time::timeout(Duration::from_millis(1), checked.read(&mut bytes)).await {
        match read {
            Ok(0) => return text + "<end>",
            Ok(length) => text.push_str(std::str::from_utf8(&bytes[..length]).unwrap()),
            Err(error) => return text + "<" + &error.kind().to_string() + ">",
        }
    }
    text
}

const STAND_IN_TEXT: &str = "GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345";
const CHUNKED: &str =
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\nX-A: b\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn good_requests_pass_unchanged_however_they_are_cut() {
    let all = [GET, POST, CHUNKED, GET, POST].concat();
    for size in [1, 2, 7, 50, 1000] {
        let mut world = world();
        let mut found = String::new();
        for piece in all.as_bytes().chunks(size) {
            world.client.write_all(piece).await.unwrap();
            found.push_str(&now(&mut world.checked).await);
        }
        assert_eq!(found, all, "{size}");
        assert!(!world.reading.has_refused());
        drop(world.client);
        assert_eq!(now(&mut world.checked).await, "<end>");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_request_is_replaced_after_the_good_ones_and_nothing_follows() {
    for (bad, number) in [
        ("GET / HTTP/1.1\nHost: a\r\n\r\n".to_owned(), 3),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(2000)), 3),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
            3,
        ),
    ] {
        for size in [1, 9, 4000] {
            let mut world = world();
            let all = [GET, POST, &bad, GET].concat();
            let mut found = String::new();
            for piece in all.as_bytes().chunks(size) {
                world.client.write_all(piece).await.unwrap();
                found.push_str(&now(&mut world.checked).await);
            }
            assert_eq!(found, [GET, POST, STAND_IN_TEXT].concat(), "{size} {bad}");
            assert!(world.reading.refused(number).is_some());
            assert!(world.reading.refused(1).is_none() && world.reading.refused(2).is_none());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_chunk_is_never_handed_on_and_its_request_is_known() {
    let mut world = world();
    world.client.write_all(GET.as_bytes()).await.unwrap();
    let bad = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0x1\r\n";
    world.client.write_all(bad.as_bytes()).await.unwrap();
    let found = now(&mut world.checked).await;
    assert!(found.starts_with(GET) && found.ends_with("<invalid data>"), "{found}");
    assert!(!found.contains("0x1"), "{found}");
    assert_eq!(world.reading.refused(2), Some(BadRequest::Chunk(BadChunk::Size)));
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_refused_at_its_deadline_whatever_trickles() {
    let mut world = world();
    let start = Instant::now();
    let found = loop {
        world.client.write_all(b"X").await.unwrap();
        let found = now(&mut world.checked).await;
        if !found.is_empty() {
            break found;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    assert_eq!(found, STAND_IN_TEXT);
    assert_eq!(world.reading.refused(1), Some(BadRequest::HeadTimeout(LIMITS.head)));
    assert!((10..12).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn silence_between_requests_is_no_slow_head() {
    let mut world = world();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(100)).await;
        world.client.write_all(GET.as_bytes()).await.unwrap();
        assert_eq!(now(&mut world.checked).await, GET);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stops_is_given_up_and_one_that_goes_on_is_not() {
    let mut world = world();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n";
    world.client.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(now(&mut world.checked).await, head);
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(40)).await;
        world.client.write_all(b"x").await.unwrap();
        assert_eq!(now(&mut world.checked).await, "x");
    }
    let start = Instant::now();
    let mut byte = [0];
    let error = world.checked.read(&mut byte).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!((55..65).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(world.reading.refused(1), Some(BadRequest::BodyTimeout(LIMITS.body_idle)));
}

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn after_a_request_that_may_switch_bytes_wait_for_the_answer() {
    let mut world = world();
    world.client.write_all([UPGRADE, GET].concat().as_bytes()).await.unwrap();
    assert_eq!(now(&mut world.checked).await, UPGRADE);
    world.reading.stays(1);
    assert_eq!(now(&mut world.checked).await, GET, "they are a request after all");

    world.client.write_all([UPGRADE, "\0\x01not HTTP"].concat().as_bytes()).await.unwrap();
    assert_eq!(now(&mut world.checked).await, UPGRADE);
    world.reading.stays(2);
    assert_eq!(now(&mut world.checked).await, "", "the answer of an earlier request decides nothing");
    world.reading.switched(3);
    assert_eq!(now(&mut world.checked).await, "\0\x01not HTTP");
    world.client.write_all(b"more").await.unwrap();
    assert_eq!(now(&mut world.checked).await, "more");
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_switch_is_bounded_and_its_end_is_seen() {
    let mut world = world();
    world.client.write_all(UPGRADE.as_bytes()).await.unwrap();
    assert_eq!(now(&mut world.checked).await, UPGRADE);
    drop(world.client);
    assert_eq!(now(&mut world.checked).await, "<end>");
}
