//! Names and numbers that every part of Culvert agrees on.

/// Label on a namespace or pod: [`MESH_ENABLED`] enrols, [`MESH_DISABLED`] (pod only) opts out.
pub const MESH_LABEL: &str = "culvert.dev/mesh";
/// Value of [`MESH_LABEL`] that enrols.
pub const MESH_ENABLED: &str = "enabled";
/// Value of [`MESH_LABEL`] that opts a pod out.
pub const MESH_DISABLED: &str = "disabled";
/// Value of [`MESH_LABEL`] on a Node: its pods leave the mesh, and new ones start outside of it, also when the mesh is not
/// there.
pub const NODE_RELEASED: &str = "released";
/// Namespaces that are never enrolled.
pub const NEVER_ENROLLED_NAMESPACES: [&str; 2] = ["kube-system", SYSTEM_NAMESPACE];
/// The mesh's own namespace.
pub const SYSTEM_NAMESPACE: &str = "culvert-system";
/// Service account of the node proxies: it may ask the CA for identities of pods on its node.
pub const NODE_PROXY_SERVICE_ACCOUNT: &str = "culvert-node-proxy";
/// Service account whose tokens the node proxies' CNI plugins ask the API server with.
pub const CNI_SERVICE_ACCOUNT: &str = "culvert-cni";
/// Service account of the controller.
pub const CONTROLLER_SERVICE_ACCOUNT: &str = "culvert-controller";
/// The Service of the controller, in the mesh's namespace; its replicas find each other by it.
pub const CONTROLLER_SERVICE: &str = "culvert-controller";
/// Service account of the CA.
pub const CA_SERVICE_ACCOUNT: &str = "culvert-ca";
/// Audience of the tokens that the controller and the CA accept.
pub const TOKEN_AUDIENCE: &str = "culvert.dev";
/// Pod condition that says whether the pod is captured.
pub const ENROLLED_CONDITION: &str = "culvert.dev/Enrolled";
/// Pod label that shows what [`ENROLLED_CONDITION`] says: `true`, or in lower case why not; absent where nobody wants the pod.
pub const ENROLLED_LABEL: &str = "culvert.dev/enrolled";
/// `controllerName` of the GatewayClasses whose Gateways Culvert serves.
pub const GATEWAY_CONTROLLER: &str = "culvert.dev/gateway-controller";
/// Label on everything that is made for a Gateway: its name, or what stands for one that is too long for a label.
pub const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
/// Prefix of the setting annotations on namespaces and pods.
pub const ANNOTATION_PREFIX: &str = "culvert.dev/";

/// Destination port of HBONE tunnels.
pub const HBONE_PORT: u16 = 15008;
/// Where captured outbound connections arrive.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where captured plaintext inbound connections arrive.
pub const INBOUND_PORT: u16 = 15006;
/// Port of the controller's stream.
pub const CONTROLLER_PORT: u16 = 15010;
/// Port of the CA.
pub const CA_PORT: u16 = 15012;
/// Default admin port of node proxy, controller and CA.
pub const ADMIN_PORT: u16 = 15000;
