//! Bodies of HTTP/1 requests in chunks: where they end, and that nothing in them is read in two ways.

use thiserror::Error;

/// Bytes of one chunk's size line, with its extensions.
const LONGEST_LINE: usize = 4096;
/// Bytes of all trailer fields.
const MOST_TRAILERS: usize = 16 << 10;

/// Why a body in chunks is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadChunk {
    #[error("a chunk's size is not a hexadecimal number")]
    Size,
    #[error("a chunk's size line, or the trailer fields, are too long")]
    TooLong,
    #[error("a line of the body's framing does not end with CR LF")]
    LineEnd,
    #[error("a chunk is longer than its size says")]
    Length,
    #[error("a trailer field is malformed")]
    Trailer,
}

/// Where in a body in chunks the reader is (RFC 9112, 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    at: At,
    size: u64,
    /// Of the line, or of all trailers.
    seen: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// In the digits; how many there were.
    Size(u8),
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line.
    Line,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    End,
}

/// How far bytes of a body go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// All of them belong to the body.
    All,
    /// So many do; the body ends there.
    End(usize),
    /// So many do; then comes what must not.
    Bad(usize, BadChunk),
}

impl Default for Chunks {
    fn default() -> Self {
        Self { at: At::Size(0), size: 0, seen: 0 }
    }
}

impl Chunks {
    /// Goes on with the bytes that follow.
    pub fn take(&mut self, bytes: &[u8]) -> Taken {
        let mut position = 0;
        while position < bytes.len() {
            if self.at == At::Data {
                let left = bytes.len() - position;
                let step = usize::try_from(self.size).unwrap_or(usize::MAX).min(left);
                self.size -= step as u64;
                position += step;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            match self.step(bytes[position]) {
                Ok(next) => self.at = next,
                Err(bad) => return Taken::Bad(position, bad),
            }
            position += 1;
            if self.at == At::End {
                return Taken::End(position);
            }
        }
        Taken::All
    }

    fn step(&mut self, byte: u8) -> Result<At, BadChunk> {
        self.seen += 1;
        match self.at {
            At::Size(digits) => self.size_byte(digits, byte),
            At::Extension => match byte {
                b'\r' => Ok(At::SizeLf),
                _ if self.seen > LONGEST_LINE => Err(BadChunk::TooLong),
                b'\t' | b' '..=b'~' => Ok(At::Extension),
                _ => Err(BadChunk::LineEnd),
            },
            At::SizeLf => {
                self.seen = 0;
                expect(byte, b'\n', if self.size == 0 { At::Line } else { At::Data }, BadChunk::LineEnd)
            }
            At::DataCr => expect(byte, b'\r', At::DataLf, BadChunk::Length),
            At::DataLf => {
                self.seen = 0;
                expect(byte, b'\n', At::Size(0), BadChunk::LineEnd)
            }
            _ if self.seen > MOST_TRAILERS => Err(BadChunk::TooLong),
            At::Line if byte == b'\r' => Ok(At::EndLf),
            At::Line if is_token(byte) => Ok(At::TrailerName),
            At::Line => Err(BadChunk::Trailer),
            At::TrailerName if byte == b':' => Ok(At::TrailerValue),
            At::TrailerName if is_token(byte) => Ok(At::TrailerName),
            At::TrailerName => Err(BadChunk::Trailer),
            At::TrailerValue => match byte {
                b'\r' => Ok(At::TrailerLf),
                b'\t' | b' '..=b'~' | 0x80.. => Ok(At::TrailerValue),
                b'\n' => Err(BadChunk::LineEnd),
                _ => Err(BadChunk::Trailer),
            },
            At::TrailerLf => expect(byte, b'\n', At::Line, BadChunk::LineEnd),
            At::EndLf => expect(byte, b'\n', At::End, BadChunk::LineEnd),
            // Never asked: data is taken in one go, and nothing follows the end.
            At::Data | At::End => Err(BadChunk::Length),
        }
    }

    /// Up to fifteen digits: sixteen could overflow what the next reader counts with.
    fn size_byte(&mut self, digits: u8, byte: u8) -> Result<At, BadChunk> {
        if digits == 0 {
            self.size = 0;
        }
        match (byte as char).to_digit(16) {
            Some(_) if digits >= 15 => Err(BadChunk::Size),
            Some(digit) => {
                self.size = self.size * 16 + u64::from(digit);
                Ok(At::Size(digits + 1))
            }
            None => match byte {
                b'\r' if digits > 0 => Ok(At::SizeLf),
                b';' if digits > 0 => Ok(At::Extension),
                b'\n' if digits > 0 => Err(BadChunk::LineEnd),
                _ => Err(BadChunk::Size),
            },
        }
    }
}

fn expect(byte: u8, expected: u8, next: At, bad: BadChunk) -> Result<At, BadChunk> {
    if byte == expected { Ok(next) } else { Err(bad) }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(body: &[u8]) -> Taken {
        Chunks::default().take(body)
    }

    #[test]
    fn a_body_ends_where_it_says_however_it_is_cut() {
        for body in [
            &b"0\r\n\r\n"[..],
            b"3\r\nabc\r\n0\r\n\r\n",
            b"00A\r\n0123456789\r\n0;last\r\n\r\n",
            b"1;name=\"v\"\r\n\n\r\n0\r\nX-A: b\r\nX-C:\r\n\r\n",
        ] {
            let whole = [body, b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(taken(&whole), Taken::End(body.len()), "{:?}", String::from_utf8_lossy(body));
            for cut in 0..body.len() {
                let mut chunks = Chunks::default();
                assert_eq!(chunks.take(&whole[..cut]), Taken::All);
                assert_eq!(chunks.take(&whole[cut..]), Taken::End(body.len() - cut), "{cut}");
            }
        }
    }

    #[test]
    fn what_could_be_read_otherwise_is_refused() {
        for (body, position, bad) in [
            (&b"\r\n"[..], 0, BadChunk::Size),
            (b"x\r\n", 0, BadChunk::Size),
            (b"0x3\r\nabc", 1, BadChunk::Size),
            (b"+3\r\nabc", 0, BadChunk::Size),
            (b"3 \r\nabc", 1, BadChunk::Size),
            (b" 3\r\nabc", 0, BadChunk::Size),
            (b"1000000000000000\r\n", 15, BadChunk::Size),
            (b"3\nabc", 1, BadChunk::LineEnd),
            (b"3\rabc", 2, BadChunk::LineEnd),
            (b"3;a\nb\r\nabc", 3, BadChunk::LineEnd),
            (b"3;a\rb\r\nabc", 4, BadChunk::LineEnd),
            (b"3\r\nabcd\r\n", 6, BadChunk::Length),
            (b"3\r\nabc\n0", 6, BadChunk::Length),
            (b"3\r\nabc\rX", 7, BadChunk::LineEnd),
            (b"0\r\n\n", 3, BadChunk::Trailer),
            (b"0\r\n X: y\r\n\r\n", 3, BadChunk::Trailer),
            (b"0\r\nX : y\r\n\r\n", 4, BadChunk::Trailer),
            (b"0\r\nX: y\n\r\n", 7, BadChunk::LineEnd),
            (b"0\r\nX: \0\r\n", 6, BadChunk::Trailer),
            (b"0\r\n\rX", 4, BadChunk::LineEnd),
        ] {
            assert_eq!(taken(body), Taken::Bad(position, bad), "{:?}", String::from_utf8_lossy(body));
        }
        let long = [b"1;".to_vec(), vec![b'a'; LONGEST_LINE], b"\r\n".to_vec()].concat();
        assert!(matches!(taken(&long), Taken::Bad(_, BadChunk::TooLong)));
        let many = [b"0\r\n".to_vec(), b"X: y\r\n".repeat(4000)].concat();
        assert!(matches!(taken(&many), Taken::Bad(_, BadChunk::TooLong)));
    }
}
