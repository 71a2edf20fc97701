//! The `culvert` command: the sandbox (a whole mesh on one machine), what it asks of a live cluster, explanations, checks, captures and the
//! demo.

pub mod admin;
pub mod capture;
pub mod check;
pub mod cli;
pub mod demo;
pub mod ejected;
pub mod explain;
pub mod live;
pub mod sandbox;
