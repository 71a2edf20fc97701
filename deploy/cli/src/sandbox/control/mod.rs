//! The way into a running sandbox: a Unix socket in a private directory of the user.

mod exec;
mod logs;
pub mod place;
pub mod protocol;
mod requests;
mod server;
mod wait;
pub mod wire;

pub use server::{Served, Server};
