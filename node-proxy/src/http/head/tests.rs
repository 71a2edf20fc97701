use proptest::prelude::*;

use super::*;
use smuggling::REFUSED;

#[path = "../../../tests/data_path/smuggling.rs"]
mod smuggling;

fn judged(head: &str) -> Judged {
    judge(head.as_bytes())
}

fn good(head: &str) -> Head {
    match judged(head) {
        Judged::Complete(head) => head,
        other => panic!("{other:?} for {head:?}"),
    }
}

#[test]
fn plain_heads_pass_and_say_where_their_bodies_end() {
    for (head, body, may_switch) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::None, false),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::None, false),
        ("GET / HTTP/1.0\r\n\r\n", Framing::None, false),
        ("GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n", Framing::None, false),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Framing::None, false),
        ("GET /?q={a}|b HTTP/1.1\r\nHost: a\r\n\r\n", Framing::None, false),
        ("GET / HTTP/1.1\r\nHost: a\r\nX:\r\nY: \t b \t\r\n\r\n", Framing::None, false),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", Framing::Length(5), false),
        (
            "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 5\r\nCONTENT-LENGTH: 5\r\n\r\n",
            Framing::Length(5),
            false,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", Framing::None, false),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", Framing::Chunked, false),
        ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", Framing::None, true),
        ("GET / HTTP/1.0\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", Framing::None, false),
        ("POST / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\n", Framing::Length(1), false),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", Framing::None, true),
    ] {
        let found = good(&format!("{head}GET"));
        assert_eq!((found.body, found.may_switch), (body, may_switch), "{head:?}");
        assert_eq!(found.length, head.len(), "{head:?}");
    }
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    assert!(REFUSED.len() >= 40);
    for (name, head, expected) in REFUSED {
        match judged(head) {
            Judged::Refused(bad) => assert_eq!(format!("{bad:?}"), *expected, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn so_is_what_has_too_many_fields() {
    let head = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count));
    good(&head(MOST_FIELDS - 1));
    let refused = judged(&head(MOST_FIELDS));
    assert!(matches!(refused, Judged::Refused(bad) if bad.is_size()), "{refused:?}");
}

#[test]
fn a_head_that_is_cut_is_waited_for() {
    let head = "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    for cut in 0..head.len() {
        assert_eq!(judged(&head[..cut]), Judged::Partial, "{cut}");
    }
}

proptest! {
    /// Whatever passes has one meaning: every line ends with CR LF, and there is at most one length or encoding.
    #[test]
    fn what_passes_is_plain(bytes in proptest::collection::vec(any::<u8>(), 0..200), head in 0..REFUSED.len()) {
        let mut received = REFUSED[head].1.as_bytes().to_vec();
        let place = bytes.len() % received.len();
        received.splice(place..place, bytes.iter().take(3).copied());
        if let Judged::Complete(head) = judge(&received) {
            let text = &received[..head.length];
            prop_assert!(text.ends_with(b"\r\n\r\n"));
            for (place, byte) in text.iter().enumerate() {
                prop_assert!(*byte != b'\n' || text[place - 1] == b'\r');
                prop_assert!(*byte != b'\r' || text[place + 1] == b'\n');
                prop_assert!(*byte != 0);
            }
            let lower = String::from_utf8_lossy(text).to_ascii_lowercase();
            let (encoded, measured) = (lower.contains("\r\ntransfer-encoding:"), lower.contains("\r\ncontent-length:"));
            prop_assert!(!(encoded && measured));
            prop_assert_eq!(encoded, head.body == Framing::Chunked);
        }
    }
}
