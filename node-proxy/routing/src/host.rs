//! The host that a request names in `Host`, `:authority` or an absolute target.

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// Host and port of an authority, without userinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host<'a> {
    name: Cow<'a, str>,
    port: Option<u16>,
}

/// Why an authority is refused with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the host is empty")]
    Empty,
    #[error("byte {byte:#04x} at {at} is not allowed in a host")]
    Forbidden { byte: u8, at: usize },
    #[error("the host has an empty label")]
    EmptyLabel,
    #[error("the host is longer than 253 characters, or one of its labels longer than 63")]
    TooLong,
    #[error("what is in brackets is not an IPv6 address")]
    BadIpv6,
    #[error("the port is not a number from 1 to 65535")]
    BadPort,
}

impl<'a> Host<'a> {
    /// Reads `name`, `name:port`, `address:port` or `[v6]:port`. The name comes out in lower case and without the
    /// trailing dot of a fully qualified name; an IPv6 address keeps its brackets. Userinfo, escapes and zone
    /// identifiers are errors, also where RFC 3986 allows them: no name that a route can match has them.
    pub fn parse(authority: &'a str) -> Result<Host<'a>, HostError> {
        if let Some(rest) = authority.strip_prefix('[') {
            let (address, port) = rest.split_once(']').ok_or(HostError::BadIpv6)?;
            address.parse::<Ipv6Addr>().map_err(|_| HostError::BadIpv6)?;
            let port = match port.strip_prefix(':') {
                Some(port) => parse_port(port)?,
                None if port.is_empty() => None,
                None => return Err(HostError::BadPort),
            };
            return Ok(Host { name: lower(&authority[..address.len() + 2]), port });
        }
        let (name, port) = match authority.split_once(':') {
            Some((name, port)) => (name, parse_port(port)?),
            None => (authority, None),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        check_name(name)?;
        Ok(Host { name: lower(name), port })
    }

    /// The name to match with, to be looked up and to be written into `Location`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn into_name(self) -> Cow<'a, str> {
        self.name
    }

    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

/// `uri-host ":" *DIGIT`: no digits is no port (RFC 9110, 4.2.3).
fn parse_port(port: &str) -> Result<Option<u16>, HostError> {
    if port.is_empty() {
        return Ok(None);
    }
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(HostError::BadPort);
    }
    match port.parse() {
        Ok(0) | Err(_) => Err(HostError::BadPort),
        Ok(port) => Ok(Some(port)),
    }
}

fn check_name(name: &str) -> Result<(), HostError> {
    if name.is_empty() {
        return Err(HostError::Empty);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if let Some((at, byte)) = name.bytes().enumerate().find(|(_, byte)| !allowed(*byte)) {
        return Err(HostError::Forbidden { byte, at });
    }
    if name.split('.').any(str::is_empty) {
        return Err(HostError::EmptyLabel);
    }
    if name.len() > 253 || name.split('.').any(|label| label.len() > 63) {
        return Err(HostError::TooLong);
    }
    Ok(())
}

fn lower(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}
