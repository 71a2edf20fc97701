//! The `culvert` command: the sandbox (a whole mesh on one machine), explanations, checks, captures and the demo.

pub mod capture;
pub mod check;
pub mod cli;
pub mod demo;
pub mod explain;
pub mod sandbox;
