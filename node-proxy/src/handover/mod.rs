//! One node proxy takes over from another of the same node without closing a listening socket.
//!
//! The new process asks the old one over a Unix socket beside the enrolment socket. It gets every listening socket (also
//! those of the enrolment socket, of this one, and of the admin port) as it is, with the connections that wait in it, and
//! says when it serves all of them. From then on the old one takes nothing new and changes nothing: it carries what it
//! had accepted until it is told to end and its drain deadline has passed. Until then it is as if nobody had asked: a
//! new process that dies changes nothing.
//!
//! ```text
//! new                                    old
//! hello, identities?            ->       who has a certificate in force          (again every 2 s until the new one has them)
//! hello, sockets?               ->       parks its pods, pages of sockets
//! (reads pods.json, holds the sockets)
//! taken                         ->       gives up: writes no file, touches no rule, reports nothing, accepts nothing
//!                               <-       yours
//! accepts, looks after rules, reports
//! ```

mod charge;
mod connection;
mod give;
mod take;
pub mod wire;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use charge::Charge;
pub use give::{Giver, Heirs, Offer, Order};
pub use take::{Inheritance, Lost, PodSockets, Predecessor, Succession, Taking, find};

/// Makes the socket that the process in charge is asked over.
///
/// # Errors
/// When the path cannot be used.
pub fn listen(enrolment_socket: &Path) -> io::Result<OwnedFd> {
    crate::pods::bind(&socket_path(enrolment_socket))
}

/// Where the process in charge is asked, beside its enrolment socket.
pub fn socket_path(enrolment_socket: &Path) -> PathBuf {
    enrolment_socket.with_extension("handover")
}
