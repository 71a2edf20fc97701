//! One DNS message in, one out: pure, and safe against anything a stranger may send.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::zone::{Found, Node, SrvTarget, Zone};

/// Seconds that a client may keep an answer. As short as cluster DNS usually has it: endpoints change.
const TTL: u32 = 5;
/// Largest answer in bytes over UDP whatever the client offers, so that it is never fragmented (RFC 9715).
const MAX_UDP: u16 = 1232;
/// Largest answer in bytes over UDP to a client that offers nothing (RFC 1035).
const DEFAULT_UDP: u16 = 512;
/// Aliases followed inside the zone before giving up; two ExternalName Services may point at each other.
const MAX_ALIASES: usize = 8;
/// Length of a message header in bytes.
const HEADER: usize = 12;

/// How the question came, which decides how long the answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Answers that do not fit are cut and marked, and the client asks again over TCP.
    Udp,
    /// Up to 64 KiB.
    Tcp,
}

/// Answers one message. `None` when there is nothing to say: not a question, or too short to name itself.
#[must_use]
pub fn answer(zone: &Zone, request: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let message = match Message::from_vec(request) {
        Ok(message) => message,
        Err(_) => return malformed(request),
    };
    if message.metadata.message_type != MessageType::Query {
        return None;
    }
    let response = respond(zone, &message);
    let limit = match transport {
        Transport::Tcp => usize::from(u16::MAX),
        Transport::Udp => {
            let offered = message.edns.as_ref().map_or(DEFAULT_UDP, Edns::max_payload);
            usize::from(offered.clamp(DEFAULT_UDP, MAX_UDP))
        }
    };
    encode(response, limit)
}

/// A header-only `FORMERR` for what does not parse, so that a broken client learns of it at once.
fn malformed(request: &[u8]) -> Option<Vec<u8>> {
    let [high, low, flags, ..] = *request else { return None };
    let is_response = flags & 0x80 != 0;
    if request.len() < HEADER || is_response {
        return None;
    }
    let id = u16::from_be_bytes([high, low]);
    encode(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr), usize::from(DEFAULT_UDP))
}

fn encode(mut response: Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = response.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    // Additional records are a courtesy; without them the answer may fit whole.
    response.additionals.clear();
    let bytes = response.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    response.truncate().to_vec().ok()
}

fn respond(zone: &Zone, request: &Message) -> Message {
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.metadata.message_type = MessageType::Response;
    response.add_queries(request.queries.iter().cloned());
    if let Some(offered) = &request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP);
        response.set_edns(edns);
        if offered.version() > 0 {
            response.metadata.response_code = ResponseCode::BADVERS;
            return response;
        }
    }
    let [query] = request.queries.as_slice() else {
        response.metadata.response_code = ResponseCode::FormErr;
        return response;
    };
    if request.metadata.op_code != OpCode::Query {
        response.metadata.response_code = ResponseCode::NotImp;
        return response;
    }
    let transfer = matches!(query.query_type, RecordType::AXFR | RecordType::IXFR);
    if transfer || !matches!(query.query_class, DNSClass::IN | DNSClass::ANY) {
        response.metadata.response_code = ResponseCode::Refused;
        return response;
    }
    resolve(zone, query, &mut response);
    response
}

/// Fills in answers, following aliases inside the zone; a name or type that is not there gets the zone's SOA.
fn resolve(zone: &Zone, query: &Query, response: &mut Message) {
    response.metadata.authoritative = true;
    let mut owner = query.name.clone();
    for _ in 0..MAX_ALIASES {
        let (node, records) = match zone.find(&key(&owner)) {
            Found::Outside => {
                // The end of a chain that leaves the cluster: the alias itself is the answer. There is no upstream
                // to ask for the rest.
                if response.answers.is_empty() {
                    response.metadata.response_code = ResponseCode::NXDomain;
                    response.metadata.authoritative = false;
                }
                return;
            }
            Found::Missing => {
                response.metadata.response_code = ResponseCode::NXDomain;
                add_soa(zone, response);
                return;
            }
            Found::Node(node) => (node, records(zone, &owner, node, query.query_type)),
        };
        let alias = node.alias.as_deref().and_then(name);
        match (records.is_empty(), alias) {
            (true, Some(target)) => {
                response.add_answer(record(&owner, RData::CNAME(CNAME(target.clone()))));
                if query.query_type == RecordType::CNAME {
                    return;
                }
                owner = target;
            }
            (true, None) => {
                add_soa(zone, response);
                return;
            }
            (false, _) => {
                if matches!(query.query_type, RecordType::SRV | RecordType::ANY) {
                    add_targets(zone, &node.services, response);
                }
                response.add_answers(records);
                return;
            }
        }
    }
    response.metadata.response_code = ResponseCode::ServFail;
}

/// The records of one node that a question of `kind` asks for. An alias is not among them.
fn records(zone: &Zone, owner: &Name, node: &Node, kind: RecordType) -> Vec<Record> {
    let wants = |this: RecordType| kind == this || kind == RecordType::ANY;
    let mut data = Vec::new();
    if wants(RecordType::A) {
        data.extend(node.v4.iter().map(|address| RData::A(A::from(*address))));
    }
    if wants(RecordType::AAAA) {
        data.extend(node.v6.iter().map(|address| RData::AAAA(AAAA::from(*address))));
    }
    if wants(RecordType::SRV) {
        data.extend(node.services.iter().filter_map(srv));
    }
    if wants(RecordType::PTR) {
        data.extend(node.pointers.iter().filter_map(|target| Some(RData::PTR(PTR(name(target)?)))));
    }
    if wants(RecordType::TXT) && !node.text.is_empty() {
        data.push(RData::TXT(TXT::new(node.text.clone())));
    }
    if node.apex {
        if wants(RecordType::SOA) {
            data.extend(soa(zone));
        }
        if wants(RecordType::NS) {
            data.extend(name(&zone.name_server()).map(|server| RData::NS(NS(server))));
        }
    }
    data.into_iter().map(|data| record(owner, data)).collect()
}

fn srv(target: &SrvTarget) -> Option<RData> {
    Some(RData::SRV(SRV::new(0, target.weight, target.port, name(&target.name)?)))
}

/// The addresses of SRV targets, which spares clients a second round.
fn add_targets(zone: &Zone, targets: &[SrvTarget], response: &mut Message) {
    let mut done = std::collections::BTreeSet::new();
    for target in targets.iter().filter(|target| done.insert(&target.name)) {
        if let (Some(owner), Found::Node(node)) = (name(&target.name), zone.find(&target.name)) {
            response.add_additionals(records(zone, &owner, node, RecordType::A));
            response.add_additionals(records(zone, &owner, node, RecordType::AAAA));
        }
    }
}

fn add_soa(zone: &Zone, response: &mut Message) {
    if let (Some(owner), Some(data)) = (name(zone.domain()), soa(zone)) {
        response.add_authority(record(&owner, data));
    }
}

fn soa(zone: &Zone) -> Option<RData> {
    let server = name(&zone.name_server())?;
    let mailbox = name(&format!("hostmaster.{}", zone.domain()))?;
    Some(RData::SOA(SOA::new(server, mailbox, zone.serial(), 7200, 1800, 86_400, TTL)))
}

fn record(owner: &Name, data: RData) -> Record {
    Record::from_rdata(owner.clone(), TTL, data)
}

/// A name as the zone keeps it: lower case, without the final dot.
fn key(name: &Name) -> String {
    let mut key = name.to_lowercase().to_ascii();
    if key.ends_with('.') {
        key.pop();
    }
    key
}

/// A zone name as the wire has it. `None` when it is not a legal name, which a user may well write in `externalName`.
fn name(key: &str) -> Option<Name> {
    let mut name = Name::from_ascii(key).ok()?;
    name.set_fqdn(true);
    Some(name)
}
