//! TCP put together again, so that a word split over two segments is still a word.

use super::pcap::Frame;
use etherparse::{SlicedPacket, TransportSlice};
use indexmap::IndexMap;
use std::net::{IpAddr, SocketAddr};

/// One direction of a TCP connection: its bytes in order.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    /// Contiguous runs by offset from the first sequence number seen.
    runs: Vec<(i64, Vec<u8>)>,
    first: Option<u32>,
    /// Offset of the segment seen last: sequence numbers are read relative to it, so that they may wrap.
    last: i64,
    started: bool,
}

/// Both directions of a connection.
pub struct Conversation<'a> {
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// What the client sent.
    pub sent: &'a Flow,
    pub received: &'a Flow,
}

/// Every TCP flow of a capture.
#[derive(Debug, Default)]
pub struct Flows {
    flows: IndexMap<(SocketAddr, SocketAddr), Flow>,
    /// Who sent the SYN, for each pair.
    opened: IndexMap<(SocketAddr, SocketAddr), ()>,
}

static NOTHING: Flow = Flow { runs: Vec::new(), first: None, last: 0, started: false };

impl Flow {
    fn add(&mut self, sequence: u32, syn: bool, payload: &[u8]) {
        // The SYN takes a number of its own; data begins after it.
        let sequence = sequence.wrapping_add(u32::from(syn));
        let first = *self.first.get_or_insert(sequence);
        let expected = first.wrapping_add(self.last as u32);
        let offset = self.last + i64::from(sequence.wrapping_sub(expected).cast_signed());
        if syn {
            self.started = true;
        }
        if !payload.is_empty() {
            self.last = offset;
            self.insert(offset, payload);
        }
    }

    /// Keeps `runs` sorted and apart from each other; bytes already there win, as with a receiver.
    fn insert(&mut self, offset: i64, payload: &[u8]) {
        let end_of = |run: &(i64, Vec<u8>)| run.0 + run.1.len() as i64;
        if let Some(last) = self.runs.last_mut()
            && end_of(last) == offset
        {
            last.1.extend_from_slice(payload);
            return;
        }
        let mut start = offset;
        let end = offset + payload.len() as i64;
        let mut added = Vec::new();
        for run in &self.runs {
            if start < run.0 && start < end {
                added.push((
                    start,
                    payload[(start - offset) as usize..(end.min(run.0) - offset) as usize].to_vec(),
                ));
            }
            start = start.max(end_of(run).min(end.max(start)));
        }
        if start < end {
            added.push((start, payload[(start - offset) as usize..].to_vec()));
        }
        self.runs.extend(added);
        self.runs.sort_by_key(|run| run.0);
        let mut joined: Vec<(i64, Vec<u8>)> = Vec::with_capacity(self.runs.len());
        for run in self.runs.drain(..) {
            match joined.last_mut() {
                Some(last) if last.0 + last.1.len() as i64 == run.0 => last.1.extend(run.1),
                _ => joined.push(run),
            }
        }
        self.runs = joined;
    }

    /// Bytes seen.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.runs.iter().map(|run| run.1.len() as u64).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Bytes not seen between bytes that were.
    #[must_use]
    pub fn missing(&self) -> u64 {
        let gaps = self.runs.windows(2).map(|pair| pair[1].0 - (pair[0].0 + pair[0].1.len() as i64));
        gaps.map(i64::unsigned_abs).sum()
    }

    /// The stream from its first byte to the first gap; nothing when the beginning was not seen.
    #[must_use]
    pub fn from_start(&self) -> Option<&[u8]> {
        let (offset, bytes) = self.runs.first()?;
        (self.started && *offset == 0).then_some(bytes.as_slice())
    }

    fn contains(&self, token: &[u8]) -> bool {
        self.runs.iter().any(|run| contains(&run.1, token))
    }
}

impl Flows {
    /// Reads TCP over IPv4 and IPv6 out of frames; everything else is passed over.
    #[must_use]
    pub fn of(frames: &[Frame]) -> Self {
        let mut flows = Self::default();
        for frame in frames {
            if let Ok(packet) = SlicedPacket::from_ethernet(&frame.bytes) {
                flows.add(&packet);
            }
        }
        flows
    }

    fn add(&mut self, packet: &SlicedPacket<'_>) {
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return };
        let Some((source, destination)) = addresses(packet) else { return };
        let from = SocketAddr::new(source, tcp.source_port());
        let to = SocketAddr::new(destination, tcp.destination_port());
        if tcp.syn() && !tcp.ack() {
            self.opened.insert((from, to), ());
        }
        self.flows.entry((from, to)).or_default().add(tcp.sequence_number(), tcp.syn(), tcp.payload());
    }

    /// Every connection once.
    #[must_use]
    pub fn conversations(&self) -> Vec<Conversation<'_>> {
        let mut found = Vec::new();
        for ((from, to), flow) in &self.flows {
            let back = self.flows.get(&(*to, *from));
            let opened_here = self.opened.contains_key(&(*from, *to));
            let opened_there = self.opened.contains_key(&(*to, *from));
            // Without a SYN the lower port is taken for the server's.
            let is_client = opened_here || (!opened_there && from.port() > to.port());
            if is_client {
                let received = back.unwrap_or(&NOTHING);
                found.push(Conversation { client: *from, server: *to, sent: flow, received });
            } else if back.is_none() {
                found.push(Conversation { client: *to, server: *from, sent: &NOTHING, received: flow });
            }
        }
        found
    }

    /// Where the token can be read: in a TCP stream, or inside a single frame of anything.
    #[must_use]
    pub fn find(&self, frames: &[Frame], token: &[u8]) -> Vec<String> {
        if token.is_empty() {
            return Vec::new();
        }
        let streams = self.flows.iter().filter(|(_, flow)| flow.contains(token));
        let mut seen: Vec<String> = streams.map(|((from, to), _)| format!("{from} > {to}")).collect();
        let is_tcp = |frame: &Frame| {
            SlicedPacket::from_ethernet(&frame.bytes)
                .is_ok_and(|packet| matches!(packet.transport, Some(TransportSlice::Tcp(_))))
        };
        let other =
            frames.iter().enumerate().filter(|(_, frame)| contains(&frame.bytes, token) && !is_tcp(frame));
        seen.extend(other.map(|(index, _)| format!("frame {}", index + 1)));
        seen
    }
}

fn addresses(packet: &SlicedPacket<'_>) -> Option<(IpAddr, IpAddr)> {
    match packet.net.as_ref()? {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header();
            Some((header.source_addr().into(), header.destination_addr().into()))
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let header = ip.header();
            Some((header.source_addr().into(), header.destination_addr().into()))
        }
        etherparse::NetSlice::Arp(_) => None,
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use std::time::UNIX_EPOCH;

    const A: [u8; 4] = [10, 0, 0, 1];
    const B: [u8; 4] = [10, 0, 0, 2];

    fn segment(from: ([u8; 4], u16), to: ([u8; 4], u16), sequence: u32, syn: bool, payload: &[u8]) -> Frame {
        let mut builder =
            PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4(from.0, to.0, 64).tcp(from.1, to.1, sequence, 1000);
        if syn {
            builder = builder.syn();
        }
        let mut bytes = Vec::new();
        builder.write(&mut bytes, payload).unwrap();
        Frame { at: UNIX_EPOCH, bytes }
    }

    #[test]
    fn a_token_split_over_segments_out_of_order_and_repeated_is_found() {
        let start = u32::MAX - 3; // numbers wrap in the middle
        let (client, server) = ((A, 40000), (B, 80));
        let at = |n: u32| start.wrapping_add(1 + n);
        let frames = [
            segment(client, server, start, true, b""),
            segment(client, server, at(0), false, b"xxTO"),
            segment(client, server, at(6), false, b"Nyy"),
            segment(client, server, at(2), false, b"TOKE"),
            segment(client, server, at(0), false, b"xxTO"),
        ];
        let flows = Flows::of(&frames);
        assert_eq!(flows.find(&frames, b"TOKEN"), ["10.0.0.1:40000 > 10.0.0.2:80"]);
        assert!(flows.find(&frames, b"TOKENS").is_empty());
        let conversation = &flows.conversations()[0];
        assert_eq!(conversation.sent.from_start(), Some(&b"xxTOKENyy"[..]));
        assert_eq!(conversation.sent.missing(), 0);
    }

    #[test]
    fn a_gap_is_counted_and_ends_the_stream() {
        let (client, server) = ((A, 40000), (B, 80));
        let frames = [
            segment(client, server, 99, true, b""),
            segment(client, server, 100, false, b"one"),
            segment(client, server, 110, false, b"two"),
        ];
        let flows = Flows::of(&frames);
        let conversation = &flows.conversations()[0];
        assert_eq!(conversation.sent.from_start(), Some(&b"one"[..]));
        assert_eq!((conversation.sent.len(), conversation.sent.missing()), (6, 7));
    }

    #[test]
    fn a_token_in_udp_is_found() {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4(A, B, 64).udp(5, 6);
        builder.write(&mut bytes, b"a TOKEN").unwrap();
        let frames = [Frame { at: UNIX_EPOCH, bytes }];
        assert_eq!(Flows::of(&frames).find(&frames, b"TOKEN"), ["frame 1"]);
    }

    #[test]
    fn the_sender_of_the_syn_is_the_client_whatever_its_port() {
        let (client, server) = ((A, 80), (B, 40000));
        let frames = [
            segment(client, server, 1, true, b""),
            segment(server, client, 7, false, b"hello"),
            segment(client, server, 2, false, b"hi"),
        ];
        let flows = Flows::of(&frames);
        let conversations = flows.conversations();
        assert_eq!(conversations.len(), 1);
        assert_eq!(conversations[0].client.port(), 80);
        assert_eq!((conversations[0].sent.len(), conversations[0].received.len()), (2, 5));
    }
}
