//! The server name that a client's TLS asks for, read from bytes that go on unchanged: nothing is answered and nothing decrypted.
//! The reading is rustls'.

use std::fmt;
use std::sync::Arc;

use rustls::server::Acceptor;

/// Bytes of records up to the end of a ClientHello, at most. With post-quantum key shares they are about 1.7 KiB; a record of
/// its own around each byte makes them six times as many.
pub const LONGEST: usize = 16 << 10;

/// What is known of a ClientHello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// More bytes are needed.
    Partial,
    /// It is whole. The server name is in lower case, without trailing dot; `None`: it asks for none, or for an IP address,
    /// which is no server name (RFC 6066, 3).
    Whole { server_name: Option<Arc<str>> },
    /// These bytes are no ClientHello, and will never be one.
    Not(NotHello),
}

/// Why bytes are no ClientHello, or none that this version can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotHello(String);

impl fmt::Display for NotHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads a ClientHello as it arrives, over any number of records.
#[derive(Default)]
pub struct Reader {
    acceptor: Acceptor,
    taken: usize,
}

impl Reader {
    /// Judges the connection's bytes from the first on; each call is given those of the call before and more.
    pub fn read(&mut self, bytes: &[u8]) -> Read {
        let mut rest = bytes.get(self.taken..).unwrap_or_default();
        self.taken = self.taken.max(bytes.len());
        while !rest.is_empty() {
            if let Err(error) = self.acceptor.read_tls(&mut rest) {
                return Read::Not(NotHello(error.to_string()));
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(normal);
                    return Read::Whole { server_name: name };
                }
                Err((error, _alert)) => return Read::Not(NotHello(error.to_string())),
            }
        }
        Read::Partial
    }
}

fn normal(name: &str) -> Arc<str> {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase().into()
}

#[cfg(test)]
mod tests;
