//! Where the sandbox's own files are, inside it: a private tmpfs that goes with the sandbox.

use std::path::PathBuf;

/// Paths inside the sandbox's mount namespace. The same in every sandbox.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files;

impl Files {
    /// Everything below is in here.
    #[must_use]
    pub fn root(self) -> PathBuf {
        PathBuf::from("/run/sandbox")
    }
    /// Objects for CA and controller (`--objects`).
    #[must_use]
    pub fn objects(self) -> PathBuf {
        self.root().join("objects")
    }
    /// Statuses written by the controller (`--statuses`).
    #[must_use]
    pub fn statuses(self) -> PathBuf {
        self.root().join("statuses")
    }
    /// Objects that the controller wants made (`--wanted`).
    #[must_use]
    pub fn wanted(self) -> PathBuf {
        self.root().join("wanted")
    }
    /// Public keys of the service account tokens (`--token-keys`).
    #[must_use]
    pub fn token_keys(self) -> PathBuf {
        self.root().join("tokens/keys.json")
    }
    /// The token of the component or node proxy (`controller`, `node-proxy-node1`).
    #[must_use]
    pub fn token(self, component: &str) -> PathBuf {
        self.root().join("tokens").join(component)
    }
    /// The CA's data (`--data-dir`).
    #[must_use]
    pub fn ca_data(self) -> PathBuf {
        self.root().join("ca")
    }
    /// The keys of sessions, kept by the controller (`--session-keys`).
    #[must_use]
    pub fn session_keys(self) -> PathBuf {
        self.root().join("session-keys.json")
    }
    /// The CA's roots, written by it.
    #[must_use]
    pub fn trust_bundle(self) -> PathBuf {
        self.root().join("trust/bundle.pem")
    }
    /// What a node proxy keeps (`--state-dir`).
    #[must_use]
    pub fn node_state(self, node: &str) -> PathBuf {
        self.root().join("nodes").join(node).join("state")
    }
    /// Where a node proxy learns of pods (`--enrolment-socket`).
    #[must_use]
    pub fn enrolment_socket(self, node: &str) -> PathBuf {
        self.root().join("nodes").join(node).join("enrolment.sock")
    }
    /// Logs of a component: `controller`, `ca`, `node-proxy-NODE`.
    #[must_use]
    pub fn component_log(self, component: &str) -> PathBuf {
        self.root().join("logs").join(format!("{component}.log"))
    }
    /// What belongs to one pod: its `/etc` files, volumes and logs.
    #[must_use]
    pub fn pod(self, uid: &str) -> PathBuf {
        self.root().join("pods").join(uid)
    }
    /// Log of one container.
    #[must_use]
    pub fn container_log(self, pod_uid: &str, container: &str) -> PathBuf {
        self.pod(pod_uid).join("logs").join(format!("{container}.log"))
    }
}
