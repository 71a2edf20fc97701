//! The classic pcap file: a header of 24 bytes, then 16 bytes and the frame, for every frame. Enough for every tool
//! that reads captures.

use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Little-endian, microseconds.
const MAGIC: u32 = 0xa1b2_c3d4;
const LINKTYPE_ETHERNET: u32 = 1;
/// Longest frame written or accepted, in bytes: offloads make frames of 64 KiB and a little more.
pub const MAX_FRAME: usize = 256 * 1024;

/// One frame, from the Ethernet header on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub at: SystemTime,
    pub bytes: Vec<u8>,
}

/// Writes the file's header.
///
/// # Errors
/// As the writer.
pub fn write_header(out: &mut impl Write) -> io::Result<()> {
    let snap_length = u32::try_from(MAX_FRAME).unwrap_or(u32::MAX);
    // Version 2.4; time zone and accuracy are always 0.
    for word in [MAGIC, 4 << 16 | 2, 0, 0, snap_length, LINKTYPE_ETHERNET] {
        out.write_all(&word.to_le_bytes())?;
    }
    Ok(())
}

/// Writes one frame.
///
/// # Errors
/// As the writer.
pub fn write_frame(out: &mut impl Write, at: SystemTime, bytes: &[u8]) -> io::Result<()> {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Seconds wrap in 2106, as the format does.
    let seconds = since.as_secs() as u32;
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    for word in [seconds, since.subsec_micros(), length, length] {
        out.write_all(&word.to_le_bytes())?;
    }
    out.write_all(bytes)
}

/// Reads a whole file written by this module. A last frame cut short (its writer was killed) is left out.
///
/// # Errors
/// `InvalidData` when it is no such file.
pub fn read(path: &Path) -> io::Result<Vec<Frame>> {
    parse(&std::fs::read(path)?)
}

/// As [`read`], from memory.
///
/// # Errors
/// `InvalidData` when it is no such file.
pub fn parse(mut bytes: &[u8]) -> io::Result<Vec<Frame>> {
    let invalid = |message: &str| io::Error::new(io::ErrorKind::InvalidData, message.to_owned());
    let header = read_words::<6>(&mut bytes).ok_or_else(|| invalid("shorter than a pcap header"))?;
    if header[0] != MAGIC || header[5] != LINKTYPE_ETHERNET {
        return Err(invalid("not a little-endian Ethernet pcap file"));
    }
    let mut frames = Vec::new();
    while let Some([seconds, micros, length, _]) = read_words::<4>(&mut bytes) {
        let length = length as usize;
        if length > MAX_FRAME {
            return Err(invalid("a frame longer than any frame can be"));
        }
        let Some((frame, rest)) = bytes.split_at_checked(length) else { break };
        bytes = rest;
        let since = Duration::from_secs(u64::from(seconds)) + Duration::from_micros(u64::from(micros));
        frames.push(Frame { at: UNIX_EPOCH + since, bytes: frame.to_vec() });
    }
    Ok(frames)
}

fn read_words<const N: usize>(bytes: &mut &[u8]) -> Option<[u32; N]> {
    let mut words = [0; N];
    for word in &mut words {
        let mut raw = [0; 4];
        bytes.read_exact(&mut raw).ok()?;
        *word = u32::from_le_bytes(raw);
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let at = UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
        let mut file = Vec::new();
        write_header(&mut file).unwrap();
        write_frame(&mut file, at, b"first frame").unwrap();
        write_frame(&mut file, at, b"second").unwrap();
        let frames = parse(&file).unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0], Frame { at, bytes: b"first frame".to_vec() });
        // Killed in the middle of a frame.
        assert_eq!(parse(&file[..file.len() - 2]).unwrap().len(), 1);
    }

    #[test]
    fn another_file_is_refused() {
        assert!(parse(b"").is_err());
        assert!(parse(&[7; 64]).is_err());
    }
}
