//! The wire contracts between Culvert's processes: the controller's stream to node proxies, the certificate RPC,
//! and the local socket over which a pod's network namespace is handed to its node proxy, with the packets of local sockets.

/// The controller's stream (`proto/mesh.proto`).
#[allow(clippy::all, missing_docs)]
pub mod mesh {
    tonic::include_proto!("culvert.mesh.v1");
}

/// The Istio certificate service (`proto/istio_ca.proto`).
#[allow(clippy::all, missing_docs)]
pub mod istio_ca {
    tonic::include_proto!("istio.v1.auth");
}

pub mod enrolment;
pub mod names;
pub mod packet;
