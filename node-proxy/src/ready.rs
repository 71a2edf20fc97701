//! `culvert-node-proxy ready`: asks the admin port whether the process of this name is ready. Two processes of a node share its
//! address, one after the other, so the answer of the other one must not count.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

/// For each step; probes have their own deadline.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const LONGEST: u64 = 64 << 10;

/// Flags of `culvert-node-proxy ready`.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Address of the admin port, as `run` has it
    #[arg(long, default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Which process is asked, as `run` has it
    #[arg(long, env = "CULVERT_INSTANCE")]
    pub instance: String,
}

/// # Errors
/// When it is not ready; the reason is the process's own.
pub fn ask(flags: &Flags) -> anyhow::Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if !flags.instance.bytes().all(is_plain) {
        bail!("--instance {:?}: letters, digits, `-`, `.` and `_` only", flags.instance);
    }
    let at = || format!("admin port {}", flags.admin);
    let mut stream = TcpStream::connect_timeout(&flags.admin, PATIENCE).with_context(at)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let path = format!("/healthz/ready?instance={}", flags.instance);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", flags.admin)?;
    let mut answer = String::new();
    stream.take(LONGEST).read_to_string(&mut answer).with_context(at)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => bail!("{}", body.trim()),
    }
}
