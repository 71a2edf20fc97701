//! One word per way a connection can fail, for the client's counts.

use std::error::Error;
use std::io;

/// Sorts an error by the first I/O error in its chain.
pub(crate) fn kind_of(error: &(dyn Error + 'static)) -> &'static str {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return kind_of_io(error);
        }
        if error.downcast_ref::<tokio::time::error::Elapsed>().is_some() {
            return "timeout";
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && (error.is_incomplete_message() || error.is_closed() || error.is_canceled())
            && error.source().is_none()
        {
            return "closed";
        }
        current = error.source();
    }
    "other"
}

fn kind_of_io(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused => "refused",
        Kind::ConnectionReset | Kind::ConnectionAborted => "reset",
        Kind::TimedOut => "timeout",
        Kind::UnexpectedEof | Kind::BrokenPipe | Kind::WriteZero => "closed",
        Kind::HostUnreachable | Kind::NetworkUnreachable => "unreachable",
        Kind::AddrNotAvailable | Kind::AddrInUse => "no-local-address",
        Kind::InvalidData => "wrong-bytes",
        Kind::NotFound => "resolve",
        _ => "io",
    }
}
