//! Listeners of one Gateway that exclude each other (`Gateway.spec.listeners`, "distinct listeners").
//!
//! On one port either all listeners speak HTTP, or all HTTPS and TLS, or there is one of TCP; those that differ in nothing
//! but their name exclude each other by hostname. There is no winner: all of them are refused. UDP shares no port with TCP.

use super::listener::{Listener, Protocol};

/// Marks the listeners that conflict.
pub fn mark(listeners: &mut [Listener]) {
    for index in 0..listeners.len() {
        let this = &listeners[index];
        let others =
            listeners.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, other)| other);
        let conflict = others.filter(|other| other.port == this.port).find_map(|other| conflict(this, other));
        listeners[index].conflict = conflict;
    }
}

fn conflict(this: &Listener, other: &Listener) -> Option<(&'static str, String)> {
    // What protocol it is nobody knows; it is refused for that.
    if this.protocol == Protocol::Other || other.protocol == Protocol::Other {
        return None;
    }
    let is_udp = |listener: &Listener| listener.protocol == Protocol::Udp;
    if is_udp(this) != is_udp(other) {
        return None;
    }
    if this.protocol != other.protocol {
        let message = format!("listener {:?} has port {} for another protocol", other.name, this.port);
        return Some(("ProtocolConflict", message));
    }
    let by_port = matches!(this.protocol, Protocol::Tcp | Protocol::Udp);
    let same = by_port || this.hostname == other.hostname;
    let message = || format!("listener {:?} has the same port {} and hostname", other.name, this.port);
    same.then(|| ("HostnameConflict", message()))
}
