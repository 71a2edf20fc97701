//! Frames of one interface of the network namespace this process is in.

use super::pcap::MAX_FRAME;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// Frames wait here while the disk is busy.
const BUFFER: usize = 128 << 20;

/// An open capture; frames that arrive from now on are kept by the kernel until read.
pub struct Sniffer {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Sniffer {
    /// Starts. Needs CAP_NET_RAW in the namespace.
    ///
    /// # Errors
    /// `NotFound` without such an interface, else as `socket(2)` and `bind(2)`.
    pub fn open(interface: &str) -> io::Result<Self> {
        let address = link_address(interface)?;
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
        // Refused without CAP_NET_ADMIN; then as much as the system allows.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
        }
        bind(socket.as_raw_fd(), &address)?;
        // Between socket() and bind() frames of every interface were kept.
        let mut sniffer = Self { socket, buffer: vec![0; MAX_FRAME] };
        sniffer.drain()?;
        Ok(sniffer)
    }

    fn drain(&mut self) -> io::Result<()> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next frame, or nothing after `patience`. A frame that has not left its sender's queue is seen when it does.
    ///
    /// # Errors
    /// As `recv(2)`; the interface going down is one.
    pub fn next(&mut self, patience: Duration) -> io::Result<Option<&[u8]>> {
        let patience = TimeVal::microseconds(i64::try_from(patience.as_micros()).unwrap_or(i64::MAX));
        setsockopt(&self.socket, sockopt::ReceiveTimeout, &patience)?;
        match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
            Ok(length) => Ok(Some(&self.buffer[..length])),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn link_address(interface: &str) -> io::Result<LinkAddr> {
    let mut interfaces = getifaddrs()?.filter(|found| found.interface_name == interface);
    interfaces.find_map(|found| found.address?.as_link_addr().copied()).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no interface {interface} in this namespace"),
        )
    })
}
