//! As much of WebSocket (RFC 6455) as echo needs: the handshake's key, and frames that are not fragmented.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};
use sha1::{Digest, Sha1};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest payload taken, in bytes.
const LONGEST: u64 = 1 << 20;

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455, 4.2.2).
pub(crate) fn accept_key(key: &str) -> String {
    const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    STANDARD.encode(Sha1::digest(format!("{key}{MAGIC}")))
}

/// The key of a handshake, if these are the headers of one.
pub(crate) fn handshake_key(headers: &HeaderMap) -> Option<&str> {
    let is = |name, word: &str| {
        let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.any(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case(word)))
    };
    if !is(header::CONNECTION, "upgrade") || !is(header::UPGRADE, "websocket") {
        return None;
    }
    headers.get(header::SEC_WEBSOCKET_KEY)?.to_str().ok()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: Opcode,
    pub(crate) payload: Vec<u8>,
}

/// The next frame; `None` when the peer closed without one.
pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut head = [0; 2];
    match from.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let bad = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    let opcode = match head[0] {
        0x81 => Opcode::Text,
        0x82 => Opcode::Binary,
        0x88 => Opcode::Close,
        0x89 => Opcode::Ping,
        0x8a => Opcode::Pong,
        _ => return Err(bad("a fragment, an extension or an unknown kind of frame")),
    };
    let length = match head[1] & 0x7f {
        126 => u64::from(from.read_u16().await?),
        127 => from.read_u64().await?,
        short => u64::from(short),
    };
    if length > LONGEST {
        return Err(bad("a frame that is too long"));
    }
    let mut mask = [0; 4];
    if head[1] & 0x80 != 0 {
        from.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; length as usize];
    from.read_exact(&mut payload).await?;
    apply(mask, &mut payload);
    Ok(Some(Frame { opcode, payload }))
}

/// Sends a frame; clients give a mask, servers do not (RFC 6455, 5.1).
pub(crate) async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    frame: &Frame,
    mask: Option<[u8; 4]>,
) -> io::Result<()> {
    let mut bytes = vec![0x80 | frame.opcode as u8];
    let masked = if mask.is_some() { 0x80 } else { 0 };
    match frame.payload.len() {
        short @ 0..=125 => bytes.push(masked | short as u8),
        medium @ 126..=0xffff => {
            bytes.push(masked | 126);
            bytes.extend((medium as u16).to_be_bytes());
        }
        long => {
            bytes.push(masked | 127);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    bytes.extend(mask.iter().flatten());
    let start = bytes.len();
    bytes.extend_from_slice(&frame.payload);
    apply(mask.unwrap_or_default(), &mut bytes[start..]);
    to.write_all(&bytes).await?;
    to.flush().await
}

fn apply(mask: [u8; 4], payload: &mut [u8]) {
    payload.iter_mut().enumerate().for_each(|(index, byte)| *byte ^= mask[index % 4]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455, 1.3.
    #[test]
    fn the_key_is_answered_as_the_standard_says() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn frames_come_out_as_they_went_in() {
        for (length, mask) in [(0, None), (5, Some([1, 2, 3, 4])), (300, None), (70_000, Some([9; 4]))] {
            let frame = Frame { opcode: Opcode::Binary, payload: (0..length).map(|n| n as u8).collect() };
            let mut bytes = Vec::new();
            write(&mut bytes, &frame, mask).await.unwrap();
            let mut rest = bytes.as_slice();
            assert_eq!(read(&mut rest).await.unwrap(), Some(frame));
            assert_eq!(read(&mut rest).await.unwrap(), None);
        }
    }
}
