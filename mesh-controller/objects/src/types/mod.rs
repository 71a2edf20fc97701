//! Thin types of the fields that Culvert uses. Reading one ignores other fields; the object keeps them.

mod connection_route;
mod deployment;
mod endpoint_slice;
mod gateway;
mod grpc_route;
mod http_route;
mod node;
mod pod;
mod probe;
mod route;
mod service;
mod value;

pub use connection_route::ConnectionRouteRule;
pub use deployment::{
    DeploymentSpec, DeploymentStrategy, LabelSelector, PodTemplate, RollingUpdate, SelectorOperator,
    SelectorRequirement,
};
pub use endpoint_slice::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone, TargetRef,
};
pub use gateway::{
    AllowedRoutes, GATEWAY_GROUP, GatewayAddress, GatewayClassSpec, GatewayInfrastructure, GatewayListener,
    GatewaySpec, GrantFrom, GrantTo, ParametersRef, ReferenceGrantSpec, RouteGroupKind, RouteNamespaces,
};
pub use grpc_route::{GrpcMethodMatch, GrpcRouteMatch, GrpcRouteRule};
pub use http_route::{HttpPathMatch, HttpRouteMatch, HttpRouteRetry, HttpRouteRule, HttpRouteTimeouts};
pub use node::{NodeAddress, NodeSpec, NodeStatus};
pub use pod::{
    ConfigMapKeyRef, Container, ContainerPort, ContainerState, ContainerStateRunning,
    ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, EnvVar, EnvVarSource, FieldRef,
    HostAlias, PodIp, PodSpec, PodStatus, RestartPolicy, SecretKeyRef,
};
pub use probe::{ExecAction, GrpcAction, HttpGetAction, HttpHeader, Probe, TcpSocketAction};
pub use route::{
    BackendRef, BackendTrafficPolicySpec, BudgetDetails, CookieConfig, CorsFilter, Fraction, HeaderLine,
    HeaderModifier, MirrorRef, NamedMatch, ParentKind, ParentRef, PathModifier, PolicyTargetRef,
    RequestMirror, RequestRate, RequestRedirect, RetryConstraint, RouteFilter, RouteSpec, SessionPersistence,
    Unknown, UrlRewrite, XMeshParametersRef, XMeshSpec,
};
pub use service::{
    ClientIpConfig, ServicePort, ServiceSpec, ServiceType, SessionAffinity, SessionAffinityConfig,
};
pub use value::{Condition, ConditionStatus, ConfigMap, PortRef, Protocol, Secret};
