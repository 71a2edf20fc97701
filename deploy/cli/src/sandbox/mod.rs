//! A whole cluster with its mesh on one Linux machine, without Kubernetes and without root: nodes and pods are network
//! namespaces, containers are processes of the host, everything a cluster's own parts would do is done here, and
//! controller, CA and node proxies are the real ones.
//!
//! Three processes carry it: `culvert sandbox up` (the user's), the *keeper* (owns the user namespace, removes the
//! directory of the control socket at the end) and the *supervisor*, process 1 of the sandbox's PID namespace: when it
//! ends, the kernel ends everything else in it.

pub mod apply;
pub mod cluster;
pub mod components;
pub mod control;
pub mod controllers;
pub mod dns;
pub mod files;
pub mod get;
pub mod kube_proxy;
pub mod kubelet;
pub mod namespaces;
pub mod network;
pub mod services;
pub mod status;
pub mod store;
pub mod supervisor;
pub mod tokens;
pub mod wanted;
