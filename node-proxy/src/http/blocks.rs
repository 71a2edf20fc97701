//! Where the heads of HTTP/2 requests begin and end on the wire (RFC 9113, 4.1 and 6.2; RFC 7541, 5 and 6), as far as that
//! can be seen without the tables of HPACK.

use super::head::LONGEST_TARGET;

/// Bytes of a frame's own head.
pub const FRAME_HEAD: usize = 9;
pub const DATA: u8 = 0x0;
pub const HEADERS: u8 = 0x1;
pub const PUSH_PROMISE: u8 = 0x5;
pub const CONTINUATION: u8 = 0x9;
pub const END_STREAM: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// A string of HPACK may be this long for sure: five bits are the shortest code there is (RFC 7541, appendix B).
const LONGEST_STRING: usize = LONGEST_TARGET * 5 / 8;

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Of what follows the head.
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl Frame {
    /// The head at the start of the bytes, if it is there as a whole.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let head = bytes.first_chunk::<FRAME_HEAD>()?;
        Some(Self {
            length: usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]),
            kind: head[3],
            flags: head[4],
            // The first bit is reserved and says nothing.
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff,
        })
    }

    /// Bytes with the head.
    pub fn whole(&self) -> usize {
        FRAME_HEAD + self.length
    }

    fn ends_head(&self) -> bool {
        self.flags & END_HEADERS != 0
    }
}

/// What the bytes from a HEADERS frame on are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walked {
    Partial,
    /// So many bytes belong together, in order or not: what is wrong with them is h2's to say.
    Whole(usize),
    TooLong,
}

/// Follows HEADERS and its CONTINUATIONs while they arrive, each frame once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk {
    /// Bytes of the frames seen so far.
    end: usize,
    stream: u32,
    has_ended: bool,
}

impl Walk {
    /// `bytes` begin with the HEADERS frame, and are never less than the last time.
    pub fn go_on(&mut self, bytes: &[u8], most: usize) -> Walked {
        while !self.has_ended {
            let Some(frame) = Frame::parse(bytes.get(self.end..).unwrap_or_default()) else { break };
            if self.end == 0 {
                self.stream = frame.stream;
            } else if frame.kind != CONTINUATION || frame.stream != self.stream {
                return Walked::Whole(self.end);
            }
            self.end += frame.whole();
            self.has_ended = frame.ends_head();
            if self.end > most {
                return Walked::TooLong;
            }
        }
        if !self.has_ended || bytes.len() < self.end {
            return Walked::Partial;
        }
        Walked::Whole(self.end)
    }
}

/// Whether a head names a path or an authority that may be longer than a URI can be, so that h2 would not take it for a
/// request at all. `block` is one HEADERS frame and its CONTINUATIONs.
pub fn has_endless_target(block: &[u8]) -> bool {
    has_target_over(block, LONGEST_STRING)
}

/// Whether a path or an authority is written in more bytes than that.
pub fn has_target_over(block: &[u8], most: usize) -> bool {
    if block.len() <= most {
        return false;
    }
    let fields = fields_of(block);
    let mut rest = &fields[..];
    while let Some(first) = rest.first() {
        let Some((field, after)) = Field::read(*first, rest) else { return false };
        // Static entries 1, 4 and 5: `:authority` and `:path`.
        if matches!(field.name, Some(1 | 4 | 5)) && field.value > most {
            return true;
        }
        rest = after;
    }
    false
}

/// The block without what frames it.
fn fields_of(mut block: &[u8]) -> Vec<u8> {
    let mut fields = Vec::with_capacity(block.len());
    while let Some(frame) = Frame::parse(block) {
        let Some(mut payload) = block.get(FRAME_HEAD..frame.whole()) else { break };
        if frame.kind == HEADERS {
            let padding = if frame.flags & PADDED == 0 { None } else { payload.first().copied() };
            let before = usize::from(padding.is_some()) + if frame.flags & PRIORITY == 0 { 0 } else { 5 };
            let end = payload.len().saturating_sub(padding.unwrap_or_default().into());
            payload = payload.get(before..end).unwrap_or_default();
        }
        fields.extend_from_slice(payload);
        block = &block[frame.whole()..];
    }
    fields
}

/// One representation of a field: index of its name if it has one, and length of its value as it is written.
struct Field {
    name: Option<usize>,
    value: usize,
}

impl Field {
    fn read(first: u8, bytes: &[u8]) -> Option<(Self, &[u8])> {
        let indexed = |bits| integer(bytes, bits);
        let (name, rest) = match first {
            // Indexed as a whole, and changes of the table's size.
            0x80.. => return indexed(7).map(|(_, rest)| (Self { name: None, value: 0 }, rest)),
            0x20..=0x3f => return indexed(5).map(|(_, rest)| (Self { name: None, value: 0 }, rest)),
            0x40..=0x7f => indexed(6)?,
            0x00..=0x1f => indexed(4)?,
        };
        let rest = if name == 0 { string(rest)?.1 } else { rest };
        let (value, rest) = string(rest)?;
        Some((Self { name: Some(name), value }, rest))
    }
}

/// A string's length and what follows it.
fn string(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (length, rest) = integer(bytes, 7)?;
    Some((length, rest.get(length..)?))
}

/// An integer with a prefix of so many bits (RFC 7541, 5.1).
fn integer(bytes: &[u8], prefix: u32) -> Option<(usize, &[u8])> {
    let (first, mut rest) = bytes.split_first()?;
    let most = (1usize << prefix) - 1;
    let mut value = usize::from(*first) & most;
    if value < most {
        return Some((value, rest));
    }
    for shift in [0, 7, 14, 21] {
        let (byte, after) = rest.split_first()?;
        value += usize::from(byte & 0x7f) << shift;
        rest = after;
        if byte & 0x80 == 0 {
            return Some((value, rest));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    #[test]
    fn a_head_is_found_whatever_pieces_it_comes_in() {
        let head = [
            frame(HEADERS, END_STREAM, 1, b"abc"),
            frame(CONTINUATION, 0, 1, b""),
            frame(CONTINUATION, END_HEADERS, 1, b"defg"),
        ]
        .concat();
        let all = [head.clone(), frame(HEADERS, END_HEADERS, 3, b"x")].concat();
        let mut walk = Walk::default();
        for cut in 0..head.len() {
            assert_eq!(walk.go_on(&all[..cut], 100), Walked::Partial, "{cut}");
            assert_eq!(Walk::default().go_on(&all[..cut], 100), Walked::Partial, "{cut}");
        }
        assert_eq!(walk.go_on(&all, 100), Walked::Whole(head.len()));
        assert_eq!(Walk::default().go_on(&all, head.len()), Walked::Whole(head.len()));
        assert_eq!(Walk::default().go_on(&all, head.len() - 1), Walked::TooLong);
    }

    #[test]
    fn a_length_is_too_long_before_its_bytes_have_come() {
        let head = frame(HEADERS, END_HEADERS, 1, &[0; 1000]);
        assert_eq!(Walk::default().go_on(&head[..FRAME_HEAD], 1008), Walked::TooLong);
        assert_eq!(Walk::default().go_on(&head[..FRAME_HEAD], 1009), Walked::Partial);
        let empty = frame(CONTINUATION, 0, 1, b"").repeat(200);
        let flood = [frame(HEADERS, 0, 1, b"a"), empty].concat();
        assert_eq!(Walk::default().go_on(&flood, 1000), Walked::TooLong, "empty frames count too");
    }

    #[test]
    fn what_does_not_continue_a_head_is_not_part_of_it() {
        for next in [frame(CONTINUATION, END_HEADERS, 3, b"b"), frame(DATA, 0, 1, b"b")] {
            let bytes = [frame(HEADERS, 0, 1, b"a"), next].concat();
            assert_eq!(Walk::default().go_on(&bytes, 1000), Walked::Whole(FRAME_HEAD + 1));
        }
    }

    #[test]
    fn a_target_longer_than_a_uri_is_seen_behind_padding_and_other_fields() {
        let literal = |name: u8, length: usize| {
            let mut field = vec![name, 0x7f];
            let mut rest = length - 127;
            while rest >= 128 {
                field.push(0x80 | (rest % 128) as u8);
                rest /= 128;
            }
            field.push(rest as u8);
            field.extend(std::iter::repeat_n(b'a', length));
            field
        };
        let over = LONGEST_STRING + 1;
        for (field, expected) in [
            (literal(0x44, over), true),
            (literal(0x04, over), true),
            (literal(0x01, over), true),
            (literal(0x04, LONGEST_STRING), false),
            (literal(0x50, over), false),
            (vec![0; 3], false),
        ] {
            let block = [&[0x3f, 0x01, 0x82, 0x86, 0x00, 1, b'x', 1, b'y'][..], &field, &[0; 100]].concat();
            let padded = [&[3, 0, 0, 0, 0, 7][..], &block[..10_000.min(block.len())], &[0; 3]].concat();
            let mut bytes = frame(HEADERS, PADDED | PRIORITY, 1, &padded);
            bytes.extend(frame(CONTINUATION, END_HEADERS, 1, block.get(10_000..).unwrap_or_default()));
            assert_eq!(has_endless_target(&bytes), expected, "{:?} {}", field[0], field.len());
        }
    }
}
