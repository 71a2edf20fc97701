//! Heads of HTTP/2 requests: how large they may be, and which of them are refused.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Request};
use tokio_util::sync::CancellationToken;

use super::blocks::{END_HEADERS, END_STREAM, Frame, HEADERS};
use super::flow::Flow;
use super::head::{BadHead, MOST_FIELDS};
use super::reader::BadRequest;
use crate::limits::WorkloadLimits;

/// The most that a head may take on the wire: no more names fit in than `http::HeaderMap` takes, or h2 would answer.
const MOST_ON_THE_WIRE: usize = 128 << 10;
/// The accounted size of the largest entry of HPACK's table, to which one byte can refer, rounded up.
const LARGEST_FIELD: usize = 4200;
/// In a head that stands in for another: whose it is.
const STANDS_IN: HeaderName = HeaderName::from_static("culvert-stands-in");

/// What a client may take.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Of a head, as RFC 9113, 6.5.2 counts it.
    pub bytes: usize,
    /// From its first byte to its last.
    pub time: Duration,
}

impl HeadLimits {
    /// Most bytes of a head with its frames: twice the limit, so that most of those that are too large can still be read
    /// and named.
    pub fn on_the_wire(self) -> usize {
        (2 * self.bytes).min(MOST_ON_THE_WIRE)
    }

    /// What h2 is told, so that it never decides: more than any head can count that fits on the wire.
    pub fn for_h2(self) -> u32 {
        let most = u32::try_from(self.on_the_wire() * LARGEST_FIELD).unwrap_or(u32::MAX);
        most.min(i32::MAX.unsigned_abs())
    }
}

/// A head that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedHead {
    pub why: BadRequest,
    pub read: Read,
}

/// What is known of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Whole,
    /// Nothing: another stands in for it.
    Not,
}

/// Shared by the reader and the requests of a connection.
#[derive(Debug)]
pub struct FrameReading {
    /// What a client cannot know.
    word: String,
    refused: Cell<Option<BadRequest>>,
    /// What went wrong without a request that could be answered.
    broken: Cell<Option<BadRequest>>,
    /// Cancelled when the connection takes no more requests.
    pub over: CancellationToken,
    /// Of request bodies that h2 has and nobody has taken.
    pub received: Flow,
    bodies: Cell<usize>,
}

/// Held by a request whose body may still come.
#[derive(Debug)]
pub struct Receives(Rc<FrameReading>);

impl FrameReading {
    pub fn new(limits: Arc<WorkloadLimits>) -> Rc<Self> {
        Rc::new(Self {
            word: format!("{:032x}", rand::random::<u128>()),
            refused: Cell::default(),
            broken: Cell::default(),
            over: CancellationToken::new(),
            received: Flow::new(limits),
            bodies: Cell::default(),
        })
    }

    /// Why a request is refused for its head; takes a stand-in's word away.
    pub fn refused<B>(&self, request: &mut Request<B>, limits: HeadLimits) -> Option<RefusedHead> {
        if let Some(refused) = self.refused.get()
            && let Some(word) = request.headers_mut().remove(STANDS_IN)
            && word.as_bytes() == self.word.as_bytes()
        {
            return Some(RefusedHead { why: refused, read: Read::Not });
        }
        let (fields, bytes) = size(request);
        if bytes > limits.bytes {
            return Some(RefusedHead { why: BadRequest::HeadTooLong(limits.bytes), read: Read::Whole });
        }
        let why = BadHead::TooManyFields.into();
        (fields > MOST_FIELDS).then_some(RefusedHead { why, read: Read::Whole })
    }

    /// A head is refused on the wire: what stands in for it. No other head is taken.
    pub fn refuse(&self, head: Frame, why: BadRequest) -> Vec<u8> {
        self.refused.set(Some(why));
        self.over.cancel();
        self.stand_in(head.stream, head.flags)
    }

    /// The connection ends without an answer.
    pub fn give_up(&self, why: BadRequest) {
        self.broken.set(Some(why));
    }

    /// What ended the connection without an answer.
    pub fn broken(&self) -> Option<BadRequest> {
        self.broken.get()
    }

    #[cfg(test)]
    pub fn why_refused(&self) -> Option<BadRequest> {
        self.refused.get()
    }

    /// Bytes that were received count until they are taken, at the latest until nobody receives.
    pub fn receives(self: &Rc<Self>) -> Receives {
        self.bodies.set(self.bodies.get() + 1);
        Receives(self.clone())
    }

    /// The stand-in for a head on that stream.
    pub fn stand_in(&self, stream: u32, flags: u8) -> Vec<u8> {
        // Indexed: GET, http, `/`; then literals that leave the tables alone: `:authority`, and the word.
        let mut fields = vec![0x82, 0x86, 0x84, 0x01, 7];
        fields.extend_from_slice(b"refused");
        fields.push(0x10);
        for text in [STANDS_IN.as_str(), &self.word] {
            // Both are shorter than 127 bytes.
            fields.push(text.len() as u8);
            fields.extend_from_slice(text.as_bytes());
        }
        let mut frame = vec![0, 0, fields.len() as u8, HEADERS, END_HEADERS | (flags & END_STREAM)];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(&fields);
        frame
    }
}

impl Receives {
    /// Some of the body was taken.
    pub fn took(&self, bytes: usize) {
        self.0.received.sent(bytes);
    }
}

impl Drop for Receives {
    fn drop(&mut self) {
        self.0.bodies.set(self.0.bodies.get().saturating_sub(1));
        if self.0.bodies.get() == 0 {
            self.0.received.clear();
        }
    }
}

/// Fields of a request's head, and its size as RFC 9113, 6.5.2 counts it. Cookies may come in many crumbs (8.2.3) and are one
/// field all the same.
pub fn size<B>(request: &Request<B>) -> (usize, usize) {
    let (headers, uri) = (request.headers(), request.uri());
    let of_fields: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    let pseudo = request.method().as_str().len() + path + authority + 4 * 32 + 33;
    let crumbs = headers.get_all(http::header::COOKIE).iter().count();
    (headers.len() - crumbs.saturating_sub(1), of_fields + pseudo)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 1024, time: Duration::from_secs(10) };

    #[test]
    fn only_who_knows_the_word_stands_in() {
        let reading = FrameReading::new(crate::tunnel::testing::limits());
        let request = |word: &str| Request::get("/").header(STANDS_IN, word).body(()).unwrap();
        assert_eq!(reading.refused(&mut request("x"), LIMITS), None);
        reading.refused.set(Some(BadRequest::HeadTooLong(1)));
        assert_eq!(reading.refused(&mut request("x"), LIMITS), None);
        let word = reading.word.clone();
        assert_eq!(
            reading.refused(&mut request(&word), LIMITS),
            Some(RefusedHead { why: BadRequest::HeadTooLong(1), read: Read::Not })
        );
    }

    #[test]
    fn heads_are_judged_by_size_and_number_of_fields() {
        let reading = FrameReading::new(crate::tunnel::testing::limits());
        let fields = |number: usize, name: &str, length: usize| {
            let mut request = Request::get("http://a/").body(()).unwrap();
            for index in 0..number {
                let name: HeaderName =
                    if name == "cookie" { name.parse() } else { format!("{name}{index}").parse() }.unwrap();
                request.headers_mut().append(name, "v".repeat(length).parse().unwrap());
            }
            request
        };
        let limits = HeadLimits { bytes: 8000, ..LIMITS };
        for (mut request, expected) in [
            (fields(100, "x", 1), None),
            (fields(101, "x", 1), Some(BadHead::TooManyFields.into())),
            (fields(150, "cookie", 1), None),
            (fields(1, "x", 7750), None),
            (fields(1, "x", 7900), Some(BadRequest::HeadTooLong(8000))),
        ] {
            let refused = reading.refused(&mut request, limits).map(|refused| refused.why);
            assert_eq!(refused, expected, "{}", request.headers().len());
        }
    }

    #[test]
    fn h2_never_decides() {
        for bytes in [1 << 10, 64 << 10, 128 << 10] {
            let limits = HeadLimits { bytes, ..LIMITS };
            assert!(limits.on_the_wire() >= bytes);
            assert!(
                limits.for_h2() as usize >= limits.on_the_wire() * 4130,
                "each byte may be a whole entry of the table"
            );
        }
    }
}
