//! gRPC over our TLS: clients that insist on one SPIFFE identity, servers that shake hands out of the way of others,
//! bearer tokens.

mod client;
mod server;

use std::io;
use std::path::{Path, PathBuf};

use tonic::metadata::{AsciiMetadataValue, MetadataMap};

pub use client::{ChannelError, channel};
pub use server::{Connection, incoming, server};

/// The metadata key of bearer tokens.
const AUTHORIZATION: &str = "authorization";
const BEARER: &str = "Bearer ";
/// No token file is longer.
const LONGEST_TOKEN_FILE: u64 = 64 * 1024;

/// A file with a service account token, renewed by somebody else; read anew for each use.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
}

impl TokenFile {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The token in force now.
    ///
    /// # Errors
    /// When the file cannot be read or holds no token; the path is in the message.
    pub fn read(&self) -> io::Result<String> {
        use std::io::Read;
        let mut text = String::new();
        let read = std::fs::File::open(&self.path)
            .and_then(|file| file.take(LONGEST_TOKEN_FILE).read_to_string(&mut text));
        let token = text.trim();
        match read {
            Ok(_) if token.is_empty() => Err(crate::files::about(
                &self.path,
                &io::Error::new(io::ErrorKind::InvalidData, "no token in it"),
            )),
            Ok(_) => Ok(token.to_owned()),
            Err(error) => Err(crate::files::about(&self.path, &error)),
        }
    }

    /// Puts the token in force now on a request.
    ///
    /// # Errors
    /// As [`TokenFile::read`].
    pub fn authorize<T>(&self, request: &mut tonic::Request<T>) -> io::Result<()> {
        put_bearer(request.metadata_mut(), &self.read()?)
            .map_err(|error| crate::files::about(&self.path, &error))
    }
}

/// Puts a token on a request.
///
/// # Errors
/// `InvalidData` when it has characters that a header cannot carry.
pub fn put_bearer(metadata: &mut MetadataMap, token: &str) -> io::Result<()> {
    let mut value = AsciiMetadataValue::try_from(format!("{BEARER}{token}"))
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a token"))?;
    value.set_sensitive(true);
    metadata.insert(AUTHORIZATION, value);
    Ok(())
}

/// The token on a request, if it carries exactly one.
pub fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let mut values = metadata.get_all(AUTHORIZATION).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    let text = value.to_str().ok()?;
    // The scheme's case does not matter (RFC 9110, 11.1).
    let (scheme, token) = text.split_at_checked(BEARER.len())?;
    (scheme.eq_ignore_ascii_case(BEARER) && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests;
