//! TLS between two applications: which library speaks it, and how they find that nobody in between has ended it.

use crate::hex;
use rustls::crypto::CryptoProvider;
use std::io;
use std::sync::Arc;

/// The cryptography of both ends.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    rustls::crypto::aws_lc_rs::default_provider().into()
}

/// What only the two ends of one session know (RFC 8446, 7.5), in hexadecimal: equal at both ends, or there are two sessions.
///
/// # Errors
/// When the session has no keys yet.
pub(crate) fn name(
    export: impl FnOnce(&mut [u8; 16], &[u8]) -> Result<(), rustls::Error>,
) -> io::Result<String> {
    let mut name = [0; 16];
    export(&mut name, b"EXPERIMENTAL culvert-echo session").map_err(io::Error::other)?;
    Ok(hex::encode(&name))
}
