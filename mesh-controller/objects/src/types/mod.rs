//! Thin types of the fields that Culvert uses. Reading one ignores other fields; the object keeps them.

mod deployment;
mod endpoint_slice;
mod node;
mod pod;
mod probe;
mod route;
mod service;
mod value;

pub use deployment::{
    DeploymentSpec, DeploymentStrategy, LabelSelector, PodTemplate, RollingUpdate, SelectorOperator,
    SelectorRequirement,
};
pub use endpoint_slice::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForZone, TargetRef,
};
pub use node::{NodeAddress, NodeSpec, NodeStatus};
pub use pod::{
    ConfigMapKeyRef, Container, ContainerPort, ContainerState, ContainerStateRunning,
    ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, EnvVar, EnvVarSource, FieldRef,
    HostAlias, PodIp, PodSpec, PodStatus, RestartPolicy, SecretKeyRef,
};
pub use probe::{ExecAction, GrpcAction, HttpGetAction, HttpHeader, Probe, TcpSocketAction};
pub use route::{ParentRef, RouteSpec, XMeshParametersRef, XMeshSpec};
pub use service::{
    ClientIpConfig, ServicePort, ServiceSpec, ServiceType, SessionAffinity, SessionAffinityConfig,
};
pub use value::{Condition, ConditionStatus, ConfigMap, PortRef, Protocol, Secret};
