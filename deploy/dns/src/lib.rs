//! The cluster's DNS, as a sandbox serves it: names of Services and pods from the objects, and answers to questions about them.
//! Pure. There is no upstream; names outside the cluster do not exist.

pub mod answer;
pub mod zone;

#[cfg(test)]
mod tests;
