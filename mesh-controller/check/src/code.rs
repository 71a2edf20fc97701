//! The closed list of what can be found. A code is never given to another finding; `docs/check.md` has a section for each.

use std::fmt;

use serde::{Serialize, Serializer};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It will not work as it is written.
    Error,
    /// It will be taken, and do something else than its author probably means.
    Warning,
    /// It depends on what is not in the files, or is worth knowing.
    Notice,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Notice => "notice",
        })
    }
}

macro_rules! codes {
    ($($variant:ident $code:literal $severity:ident $title:literal;)+) => {
        /// What was found.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $($variant),+ }

        impl Code {
            /// Every code, in the order of their numbers.
            pub const ALL: &'static [Code] = &[$(Code::$variant),+];

            /// As users write and search it.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $code),+ }
            }

            pub fn severity(self) -> Severity {
                match self { $(Code::$variant => Severity::$severity),+ }
            }

            /// Whether it is found in a cluster, rather than in manifests.
            pub fn is_of_cluster(self) -> bool {
                self >= Code::OldKernel
            }

            /// The finding in a few words.
            pub fn title(self) -> &'static str {
                match self { $(Code::$variant => $title),+ }
            }
        }
    };
}

codes! {
    // What is written.
    Unreadable "CV101" Error "a document that cannot be read";
    Schema "CV102" Error "a value that the schema forbids";
    UnknownField "CV103" Error "a field that does not exist";
    InventedField "CV104" Error "something the API does not have, said another way";
    UnknownKind "CV105" Error "a kind that does not exist";
    VersionGone "CV106" Error "a version that is no longer served";
    VersionExperimental "CV107" Warning "a version of the experimental channel only";
    WrittenTwice "CV108" Warning "an object that is written twice";
    // What is referred to.
    Missing "CV201" Error "an object that does not exist";
    ProbablyMissing "CV202" Warning "an object that probably does not exist";
    NotInFiles "CV203" Notice "an object that is not in the files";
    NotGranted "CV204" Error "a reference into another namespace that nobody grants";
    Unusable "CV205" Error "a backend that cannot be called";
    // Routes and their parents.
    NoParent "CV301" Error "a parent that takes no such route";
    NamespaceNotAllowed "CV302" Error "a Gateway that takes no routes of this namespace";
    NoHostname "CV303" Error "a Gateway without a hostname in common";
    Conflicted "CV304" Error "a route whose ports other routes take";
    HostnamesIgnored "CV305" Warning "hostnames at a Service";
    Unused "CV306" Warning "a route that nobody uses";
    ReplacesProducer "CV307" Warning "a consumer route that replaces the producer's";
    UnroutedPort "CV308" Notice "a port around the route";
    NotHttp "CV309" Warning "a route at a port that carries no HTTP";
    Listener "CV310" Error "a Gateway or listener that cannot be served";
    ForeignClass "CV311" Notice "a Gateway of another implementation";
    UnusedListener "CV312" Notice "a listener without routes";
    PolicyRefused "CV313" Error "a policy that is not accepted";
    // Matches, backends, time.
    Hidden "CV401" Warning "a match that never wins";
    Impossible "CV402" Warning "a match that nothing matches";
    NoBackend "CV403" Error "a rule that answers 500";
    RetryWithoutTimeout "CV404" Notice "a retry without a timeout";
    NoConnections "CV405" Error "a rule that resets connections";
    PreflightMissed "CV406" Warning "a filter CORS that no preflight reaches";
    // What Culvert makes of it, and what others would.
    NotDone "CV501" Error "something this version of Culvert does not do";
    Ingress "CV502" Notice "an Ingress";
    ForeignAnnotation "CV503" Warning "an annotation of another implementation";
    NoSuchVerb "CV504" Warning "an RBAC verb that does not exist";
    ClosedToMesh "CV505" Error "a NetworkPolicy that keeps the mesh out";
    // Of a cluster: its nodes and their network.
    OldKernel "CV601" Error "a kernel that is too old";
    NoMigration "CV602" Notice "a kernel that does not hand connections over";
    NotLinux "CV603" Notice "a node without Linux";
    OldKubernetes "CV604" Error "a Kubernetes that is too old";
    NoServiceRanges "CV605" Notice "ranges of Service addresses that the API server does not tell";
    ContainerRuntime "CV606" Warning "a container runtime that was never tried";
    UnknownCni "CV607" Warning "no network plugin that is known";
    CiliumSocketLb "CV608" Error "Cilium chooses endpoints before the mesh sees the Service";
    CiliumExclusive "CV609" Error "Cilium removes the mesh's network plugin";
    ClosedPort "CV610" Error "a NetworkPolicy that leaves out port 15008";
    // Of a cluster: the Gateway API.
    NoGatewayApi "CV621" Warning "no Gateway API";
    OldBundle "CV622" Error "a bundle of the Gateway API that is too old";
    BundleLacks "CV623" Notice "what the bundle of the Gateway API lacks";
    MixedBundles "CV624" Warning "kinds of different bundles";
    NoMeshConfig "CV625" Warning "no kind MeshConfig";
    // The mesh in a cluster.
    NotInstalled "CV701" Error "no Culvert in the cluster";
    NotReady "CV702" Error "a part of the mesh that is not ready";
    NoNodeProxy "CV703" Error "a node without a node proxy";
    Skew "CV704" Warning "parts of different versions";
    NotCaptured "CV705" Error "a pod that should be enrolled and is not";
    NodeReleased "CV706" Warning "a node that is released";
    LabelValue "CV707" Warning "a label whose value means nothing";
    NoRoot "CV708" Error "no root that is valid";
    RootEnds "CV709" Warning "a root that ends soon";
    OtherMesh "CV721" Error "a workload of two meshes";
    // Asking a cluster.
    NoRight "CV801" Error "a right that is missing";
    Unasked "CV802" Warning "something that could not be looked at";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
