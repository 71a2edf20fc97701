//! Which kinds the API server has, and in which version each is read: the newest of those it serves that Culvert knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use culvert_objects::Kind;
use kube::Client;
use kube::core::discovery::ApiResource;
use tokio::sync::watch;

use crate::client::{RequestError, within};

/// How often the API server is asked: a CRD that has come or gone is noticed within this time.
const EVERY: Duration = Duration::from_secs(5);

/// A kind in the version that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    pub kind: Kind,
    pub api_version: &'static str,
}

impl Resource {
    /// As the client wants it named.
    pub fn api(&self) -> ApiResource {
        let (group, version) = self.api_version.rsplit_once('/').unwrap_or(("", self.api_version));
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: self.api_version.to_owned(),
            kind: self.kind.as_str().to_owned(),
            plural: plural(self.kind),
        }
    }
}

/// The name of the resource, as in `httproutes`. All kinds here are regular.
pub fn plural(kind: Kind) -> String {
    let lower = kind.as_str().to_lowercase();
    match lower.as_bytes() {
        [.., b's'] | [.., b's', b'h'] => format!("{lower}es"),
        [rest @ .., b'y'] if !rest.ends_with(b"a") => format!("{}ies", &lower[..lower.len() - 1]),
        _ => format!("{lower}s"),
    }
}

/// The kinds that are there. Equal when nothing has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    versions: BTreeMap<Kind, &'static str>,
}

impl Served {
    pub fn get(&self, kind: Kind) -> Option<Resource> {
        self.versions.get(&kind).map(|api_version| Resource { kind, api_version })
    }

    pub fn iter(&self) -> impl Iterator<Item = Resource> {
        self.versions.iter().map(|(kind, api_version)| Resource { kind: *kind, api_version })
    }

    /// Of the kinds asked for, those that `has` says are served under an `apiVersion`, each in the newest such.
    fn choose(kinds: &[Kind], has: impl Fn(&str, Kind) -> bool) -> Self {
        let newest = |kind: &Kind| kind.api_versions().iter().copied().find(|version| has(version, *kind));
        Self { versions: kinds.iter().filter_map(|kind| Some((*kind, newest(kind)?))).collect() }
    }
}

/// Asks once.
///
/// # Errors
/// When the server does not answer. A group version that it names and cannot list (an aggregated API that is down) is an
/// error too: its kinds are not gone.
pub(crate) async fn ask(client: &Client, kinds: &[Kind]) -> Result<Served, RequestError> {
    let groups = within(client.list_api_groups()).await?;
    let mut known: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let wanted = |version: &str| kinds.iter().any(|kind| kind.api_versions().contains(&version));
    let versions = groups.groups.iter().flat_map(|group| &group.versions);
    let versions = versions.map(|version| version.group_version.as_str()).filter(|version| wanted(version));
    for version in versions {
        let list = match within(client.list_api_group_resources(version)).await {
            // Gone between the two requests.
            Err(error) if error.is_status(404) => continue,
            other => other?,
        };
        known.insert(version.to_owned(), list.resources.into_iter().map(|resource| resource.kind).collect());
    }
    // The core group is always there, whole.
    let has = |version: &str, kind: Kind| {
        version == "v1" || known.get(version).is_some_and(|kinds| kinds.iter().any(|of| of == kind.as_str()))
    };
    Ok(Served::choose(kinds, has))
}

/// What is served, as it changes; an error until the server has answered for the first time. Afterwards an answer that
/// does not come leaves the last one in force. Ends when nobody listens.
pub fn follow(client: Client, kinds: Arc<[Kind]>) -> watch::Receiver<Result<Served, String>> {
    let (sender, receiver) = watch::channel(Err("the API server has not answered yet".to_owned()));
    tokio::spawn(async move {
        let mut failed = false;
        loop {
            match ask(&client, &kinds).await {
                Ok(served) => {
                    failed = false;
                    sender.send_if_modified(|last| {
                        let differs = last.as_ref() != Ok(&served);
                        *last = Ok(served);
                        differs
                    });
                }
                Err(error) => {
                    let error = error.to_string();
                    if !failed {
                        tracing::warn!(error, "the API server does not say which kinds it serves");
                    }
                    failed = true;
                    sender.send_if_modified(|last| {
                        let first = last.is_err();
                        if first {
                            *last = Err(error);
                        }
                        first
                    });
                }
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = sender.closed() => return,
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_served_version_is_chosen_and_missing_kinds_are_left_out() {
        // Gateway API 1.2, standard channel.
        let served = ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];
        let has = |version: &str, kind: Kind| match kind {
            Kind::HttpRoute => served.contains(&version),
            Kind::ReferenceGrant => version == served[1],
            Kind::Pod => version == "v1",
            _ => false,
        };
        let chosen = Served::choose(Kind::ALL, has);
        let version = |kind| chosen.get(kind).map(|at| at.api_version);
        assert_eq!(version(Kind::HttpRoute), Some(served[0]));
        assert_eq!(version(Kind::ReferenceGrant), Some(served[1]));
        assert_eq!(version(Kind::Pod), Some("v1"));
        assert_eq!((version(Kind::XMesh), version(Kind::TcpRoute)), (None, None));
    }

    #[test]
    fn plurals_are_those_of_the_api() {
        let expected = [
            (Kind::XMesh, "xmeshes"),
            (Kind::GatewayClass, "gatewayclasses"),
            (Kind::Gateway, "gateways"),
            (Kind::EndpointSlice, "endpointslices"),
            (Kind::BackendTlsPolicy, "backendtlspolicies"),
            (Kind::ReferencePolicy, "referencepolicies"),
            (Kind::HttpRoute, "httproutes"),
            (Kind::MeshConfig, "meshconfigs"),
            (Kind::XListenerSet, "xlistenersets"),
        ];
        for (kind, plural) in expected {
            assert_eq!(super::plural(kind), plural);
        }
    }
}
