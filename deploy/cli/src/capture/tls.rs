//! Is a byte stream TLS 1.3 and nothing else? Judged from outside, as a stranger on the link would: record by record.

use super::Tls;
use super::flows::Conversation;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const SUPPORTED_VERSIONS: u16 = 43;
const TLS13: [u8; 2] = [3, 4];
/// Payload of a protected record, at most: 2^14 and 256 for the cipher.
const MAX_RECORD: usize = 16_384 + 256;

/// Which side of the handshake a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// Why a stream is not TLS 1.3.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    #[error("byte {offset}: no TLS record")]
    NotARecord { offset: usize },
    #[error("byte {offset}: the handshake does not begin with the expected hello")]
    NoHello { offset: usize },
    #[error("the server did not choose TLS 1.3")]
    OtherVersion,
    #[error("byte {offset}: a readable handshake message after the hello")]
    ReadableHandshake { offset: usize },
    #[error("the beginning of the connection was not captured")]
    NoBeginning,
}

/// Both directions of a connection.
pub(super) fn verdict(conversation: &Conversation<'_>) -> Tls {
    if conversation.sent.is_empty() && conversation.received.is_empty() {
        return Tls::NoPayload;
    }
    let sides = [(conversation.sent, Side::Client), (conversation.received, Side::Server)];
    for (flow, side) in sides {
        if flow.is_empty() {
            // A client whose hello was never answered has said nothing readable either.
            continue;
        }
        let checked =
            flow.from_start().ok_or(TlsFault::NoBeginning).and_then(|bytes| check_stream(bytes, side));
        if let Err(fault) = checked {
            return Tls::No(format!("{side:?}: {fault}"));
        }
    }
    Tls::V13
}

/// One direction, from its first byte. A last record cut short by the end of the capture is fine.
///
/// # Errors
/// The first thing that TLS 1.3 would not have sent.
pub fn check_stream(bytes: &[u8], side: Side) -> Result<(), TlsFault> {
    let mut offset = 0;
    let mut hellos = 0;
    let mut protected = 0_usize;
    while let Some(Record { kind, body, whole }) = record_at(bytes, offset)? {
        match kind {
            HANDSHAKE if protected > 0 => return Err(TlsFault::ReadableHandshake { offset }),
            HANDSHAKE => {
                hellos += 1;
                // A retry makes two of each.
                if hellos > 2 {
                    return Err(TlsFault::ReadableHandshake { offset });
                }
                if whole {
                    check_hello(body, side, offset)?;
                }
            }
            _ if hellos == 0 => return Err(TlsFault::NoHello { offset }),
            APPLICATION_DATA => protected += 1,
            // Compatibility: one byte that means nothing. Alerts before the keys are readable.
            CHANGE_CIPHER_SPEC if body == [1] || !whole => {}
            ALERT if protected == 0 => {}
            _ => return Err(TlsFault::NotARecord { offset }),
        }
        offset += 5 + body.len();
        if !whole {
            break;
        }
    }
    Ok(())
}

/// What is there of a record.
struct Record<'a> {
    kind: u8,
    body: &'a [u8],
    whole: bool,
}

/// The record at `offset`; none at the end.
fn record_at(bytes: &[u8], offset: usize) -> Result<Option<Record<'_>>, TlsFault> {
    let rest = &bytes[offset.min(bytes.len())..];
    let [kind, major, minor, high, low, body @ ..] = rest else {
        let could_be = rest.first().is_none_or(|kind| (CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(kind));
        return if could_be { Ok(None) } else { Err(TlsFault::NotARecord { offset }) };
    };
    let length = usize::from(*high) << 8 | usize::from(*low);
    let known = (CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(kind);
    if !known || *major != 3 || !(1..=3).contains(minor) || length > MAX_RECORD {
        return Err(TlsFault::NotARecord { offset });
    }
    let whole = body.len() >= length;
    Ok(Some(Record { kind: *kind, body: &body[..length.min(body.len())], whole }))
}

fn check_hello(body: &[u8], side: Side, offset: usize) -> Result<(), TlsFault> {
    let expected = match side {
        Side::Client => CLIENT_HELLO,
        Side::Server => SERVER_HELLO,
    };
    if body.first() != Some(&expected) {
        return Err(TlsFault::NoHello { offset });
    }
    match side {
        Side::Client => Ok(()),
        Side::Server if server_version(body) == Some(TLS13) => Ok(()),
        Side::Server => Err(TlsFault::OtherVersion),
    }
}

/// The version in a ServerHello's supported_versions extension.
fn server_version(hello: &[u8]) -> Option<[u8; 2]> {
    // Type and length (4), legacy version (2), random (32), session id, cipher suite (2), compression (1), extensions.
    let session = usize::from(*hello.get(38)?);
    let mut rest = hello.get(39 + session + 2 + 1 + 2..)?;
    while let [type_high, type_low, high, low, tail @ ..] = rest {
        let length = usize::from(*high) << 8 | usize::from(*low);
        let (value, next) = tail.split_at_checked(length)?;
        if u16::from_be_bytes([*type_high, *type_low]) == SUPPORTED_VERSIONS {
            return value.try_into().ok();
        }
        rest = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&[kind, 3, 3, length[0], length[1]], body].concat()
    }

    fn server_hello(version: [u8; 2]) -> Vec<u8> {
        let mut body = vec![SERVER_HELLO, 0, 0, 0, 3, 3];
        body.extend([7; 32]);
        body.extend([2, 9, 9]); // session id
        body.extend([0x13, 1, 0]); // suite, compression
        let extensions = [&[0, 51, 0, 1, 0][..], &[0, 43, 0, 2], &version].concat();
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        record(HANDSHAKE, &body)
    }

    #[test]
    fn a_session_of_tls_1_3_passes_also_when_cut_off() {
        let stream = [
            server_hello(TLS13),
            record(CHANGE_CIPHER_SPEC, &[1]),
            record(APPLICATION_DATA, &[0; 100]),
            record(APPLICATION_DATA, &[0; 50]),
        ]
        .concat();
        for length in 0..=stream.len() {
            assert_eq!(check_stream(&stream[..length], Side::Server), Ok(()), "{length}");
        }
    }

    #[test]
    fn older_versions_and_plaintext_do_not() {
        let old = server_hello([3, 3]);
        assert_eq!(check_stream(&old, Side::Server), Err(TlsFault::OtherVersion));
        assert!(check_stream(b"GET / HTTP/1.1\r\n", Side::Client).is_err());
        assert!(check_stream(b"G", Side::Client).is_err());
        let early = record(APPLICATION_DATA, b"not yet");
        assert_eq!(check_stream(&early, Side::Client), Err(TlsFault::NoHello { offset: 0 }));
    }

    #[test]
    fn plaintext_after_the_handshake_is_seen() {
        let mut stream = [server_hello(TLS13), record(APPLICATION_DATA, &[0; 9])].concat();
        let offset = stream.len();
        stream.extend(b"plaintext");
        assert_eq!(check_stream(&stream, Side::Server), Err(TlsFault::NotARecord { offset }));
    }

    #[test]
    fn a_certificate_in_the_clear_is_seen() {
        // TLS 1.2 sends it so.
        let stream = [server_hello(TLS13), record(HANDSHAKE, &[11, 0, 0, 1, 0])].concat();
        assert!(check_stream(&stream, Side::Server).is_err());
    }
}
