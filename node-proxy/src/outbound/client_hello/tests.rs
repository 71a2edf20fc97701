use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

/// The first bytes of a client of TLS 1.3 with post-quantum key shares.
fn hello(name: &str, sni: bool) -> Vec<u8> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let mut config = ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = sni;
    config.alpn_protocols = vec![vec![b'a'; 100]];
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same handshake message in records of so many bytes each.
fn in_records_of(hello: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in hello[5..].chunks(size) {
        bytes.extend_from_slice(&[0x16, 0x03, 0x01]);
        bytes.extend_from_slice(&u16::try_from(part.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

fn whole(name: &str) -> Read {
    Read::Whole { server_name: Some(name.into()) }
}

fn read(bytes: &[u8]) -> Read {
    Reader::default().read(bytes)
}

#[test]
fn the_server_name_is_read_in_lower_case() {
    let bytes = hello("Cart.Shop.example", true);
    assert!(bytes.len() > 1536, "no post-quantum key share: {} bytes", bytes.len());
    assert_eq!(read(&bytes), whole("cart.shop.example"));
    let none = Read::Whole { server_name: None };
    assert_eq!(read(&hello("cart.shop.example", false)), none);
    assert_eq!(read(&hello("10.0.0.1", true)), none);
}

#[test]
fn it_is_read_byte_by_byte_and_over_several_records() {
    let hello = hello("cart.shop.example", true);
    for size in [1, 7, 100, 1000, 16_000] {
        let bytes = in_records_of(&hello, size);
        assert!(bytes.len() <= LONGEST, "{size}: {}", bytes.len());
        assert_eq!(read(&bytes), whole("cart.shop.example"), "records of {size}");
        let mut reader = Reader::default();
        for end in 0..bytes.len() {
            assert_eq!(reader.read(&bytes[..end]), Read::Partial, "records of {size}, {end} bytes");
        }
        assert_eq!(reader.read(&bytes), whole("cart.shop.example"), "records of {size}");
    }
}

#[test]
fn what_is_no_client_hello_is_told_at_once() {
    let mut reply = hello("cart.shop.example", true);
    // A ServerHello.
    reply[5] = 2;
    let mut long = hello("cart.shop.example", true);
    // A message of 16 MiB.
    long[6] = 0xff;
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"SSH-2.0-x\r\n",
        b"\x16\x03\x01\x00\x00",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x17\x03\x03\x00\x01\x00",
        &reply,
        &long,
    ] {
        assert!(matches!(read(bytes), Read::Not(_)), "{bytes:?}: {:?}", read(bytes));
    }
}
