//! One HTTP/1.1 connection with a request under way at a time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, bail};

/// A response that takes longer has failed.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// More header fields than any server of the benchmarks sends.
const FIELDS: usize = 64;

/// Where requests go.
pub struct Target {
    pub address: SocketAddr,
    pub request: Vec<u8>,
}

impl Target {
    /// Of http://HOST:PORT/PATH.
    ///
    /// # Errors
    /// When it is no such URL, or the host has no address.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let rest = url.strip_prefix("http://").context("the URL must begin with http://")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let dialled = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let address = dialled.to_socket_addrs()?.next().with_context(|| format!("{host} has no address"))?;
        let request = format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes();
        Ok(Self { address, request })
    }
}

/// A response that was read to its end.
pub struct Response<'b> {
    pub status: u16,
    /// From the status line to the empty line.
    head: &'b [u8],
    pub body: &'b [u8],
}

impl Response<'_> {
    /// The value of a header field, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let mut parsed = httparse::Response::new(&mut fields);
        parsed.parse(self.head).ok()?;
        let field = parsed.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(field.value).ok()
    }
}

pub struct Connection {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// # Errors
    /// When nobody accepts.
    pub fn open(target: &Target) -> anyhow::Result<Self> {
        let socket = TcpStream::connect_timeout(&target.address, TIMEOUT)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { socket, buffer: vec![0; 16 << 10] })
    }

    /// # Errors
    /// When the connection ends, is silent for too long, or what comes is no complete response.
    pub fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Response<'_>> {
        self.socket.write_all(request)?;
        let mut filled = 0;
        loop {
            if filled == self.buffer.len() {
                bail!("a response is longer than {filled} bytes");
            }
            let read = self.socket.read(&mut self.buffer[filled..])?;
            if read == 0 {
                bail!("the connection was closed before the response was complete");
            }
            filled += read;
            if let Some(Extent { status, head, length }) = complete(&self.buffer[..filled])? {
                if length != filled {
                    bail!("bytes follow the response");
                }
                let (head, body) = self.buffer[..length].split_at(head);
                return Ok(Response { status, head, body });
            }
        }
    }
}

/// Of a complete response; lengths in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Extent {
    status: u16,
    head: usize,
    /// Head and body.
    length: usize,
}

/// None before all of it is there. Its body must have a `Content-Length`.
fn complete(bytes: &[u8]) -> anyhow::Result<Option<Extent>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head) = response.parse(bytes)? else { return Ok(None) };
    let status = response.code.context("a response without a status")?;
    let body = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let body: usize = match body {
        Some(field) => std::str::from_utf8(field.value)?.trim().parse()?,
        None => bail!("a response without Content-Length, status {status}"),
    };
    let length = head + body;
    Ok((bytes.len() >= length).then_some(Extent { status, head, length }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_complete_with_its_last_byte() {
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        for end in 0..response.len() {
            assert!(complete(&response[..end]).unwrap().is_none(), "{end}");
        }
        let whole = Extent { status: 200, head: response.len() - 3, length: response.len() };
        assert_eq!(complete(response).unwrap(), Some(whole));
        assert!(complete(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(complete(b"SSH-2.0\r\n").is_err());
    }

    #[test]
    fn a_field_is_found_whatever_its_case() {
        let head = b"HTTP/1.1 200 OK\r\nX-Edit: 7\r\nContent-Length: 0\r\n\r\n";
        let response = Response { status: 200, head, body: b"" };
        assert_eq!(response.header("x-edit"), Some("7"));
        assert_eq!(response.header("x-other"), None);
    }
}
