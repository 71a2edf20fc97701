//! Following the other replicas: each is asked for what its node proxies report, at the addresses of the controller's own
//! Service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert_api::mesh::ReplicaHello;
use culvert_api::mesh::mesh_replicas_client::MeshReplicasClient;
use culvert_api::names::{CONTROLLER_PORT, CONTROLLER_SERVICE, CONTROLLER_SERVICE_ACCOUNT, SYSTEM_NAMESPACE};
use culvert_identity::grpc::{TokenFile, channel};
use culvert_identity::{Identity, TrustBundle, TrustDomain};
use culvert_objects::types::EndpointSlice;
use culvert_objects::{Kind, Objects};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tonic::{Request, Status};

use crate::hub::{Event, Handle};

/// Before a replica that cannot be reached is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Largest message, in bytes: a page of reports is far below.
const LARGEST_MESSAGE: usize = 4 << 20;

/// Who follows.
#[derive(Clone)]
pub struct Follower {
    /// Name of this replica.
    pub replica: String,
    pub token: TokenFile,
    pub bundle: watch::Receiver<Arc<TrustBundle>>,
    pub trust_domain: watch::Receiver<String>,
    pub hub: Handle,
}

impl Follower {
    /// Follows whoever is there, as that changes, and tells the hub who of them cannot be heard. Ends with the source of the
    /// objects.
    pub async fn run(self) {
        let mut objects = self.hub.objects.clone();
        let changed = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let mut followed: BTreeMap<SocketAddr, Followed> = BTreeMap::new();
        let mut said = BTreeSet::new();
        loop {
            let wanted = addresses(&objects.borrow_and_update());
            followed.retain(|address, followed| {
                let stays = wanted.contains_key(address);
                if !stays {
                    followed.task.abort();
                }
                stays
            });
            for address in wanted.keys() {
                followed.entry(*address).or_insert_with(|| {
                    let hearing = Hearing { is_heard: Arc::default(), changed: changed.clone() };
                    let is_heard = hearing.is_heard.clone();
                    Followed { task: tasks.spawn(self.clone().follow(*address, hearing)), is_heard }
                });
            }
            let unheard = unheard(&wanted, &followed);
            if unheard != said {
                said.clone_from(&unheard);
                if self.hub.events.send(Event::Unfollowed { replicas: unheard }).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = objects.changed() => if changed.is_err() {
                    return;
                },
                () = changed.notified() => {}
            }
            while tasks.try_join_next().is_some() {}
        }
    }

    /// One replica, until it turns out to be this one.
    async fn follow(self, address: SocketAddr, hearing: Hearing) {
        let mut said = String::new();
        loop {
            let listened = self.listen(address, &hearing).await;
            // This one need not be followed.
            hearing.set(matches!(listened, Ok(Heard::Itself)));
            match listened {
                Ok(Heard::Itself) => return,
                Ok(Heard::Other) => said.clear(),
                Err(error) => {
                    if error.message() != said {
                        tracing::warn!(%address, error = error.message(), "another replica cannot be followed; trying again");
                        error.message().clone_into(&mut said);
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn listen(&self, address: SocketAddr, hearing: &Hearing) -> Result<Heard, Status> {
        let internal = |error: String| Status::internal(error);
        let domain: TrustDomain = {
            let domain = self.trust_domain.borrow().clone();
            domain.parse().map_err(|error| internal(format!("{error}")))?
        };
        let peer = Identity::new(&domain, SYSTEM_NAMESPACE, CONTROLLER_SERVICE_ACCOUNT)
            .map_err(|error| internal(error.to_string()))?;
        let channel = channel(&format!("https://{address}"), peer, self.bundle.clone())
            .map_err(|error| internal(error.to_string()))?;
        let mut request = Request::new(ReplicaHello { replica: self.replica.clone() });
        self.token.authorize(&mut request).map_err(|error| internal(error.to_string()))?;
        let client = MeshReplicasClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
        let mut stream = { client }.reports(request).await?.into_inner();
        let mut replica = String::new();
        while let Some(message) = stream.message().await? {
            if message.replica == self.replica {
                return Ok(Heard::Itself);
            }
            if !message.replica.is_empty() {
                tracing::info!(%address, replica = message.replica, "following what its node proxies report");
                replica = message.replica;
                hearing.set(true);
            }
            if !message.nodes.is_empty() {
                let event = Event::Replica { replica: replica.clone(), reports: message.nodes };
                let ending = |_| Status::unavailable("the controller is ending");
                self.hub.events.send(event).await.map_err(ending)?;
            }
        }
        Ok(Heard::Other)
    }
}

/// One address that is followed.
struct Followed {
    task: AbortHandle,
    is_heard: Arc<AtomicBool>,
}

/// Whether what is said at an address arrives; whoever wants to know is told when that changes.
struct Hearing {
    is_heard: Arc<AtomicBool>,
    changed: Arc<Notify>,
}

impl Hearing {
    fn set(&self, is_heard: bool) {
        if self.is_heard.swap(is_heard, Ordering::Relaxed) != is_heard {
            self.changed.notify_one();
        }
    }
}

/// The replicas of which nothing is heard at any of their addresses: with two address families there are several.
fn unheard(
    wanted: &BTreeMap<SocketAddr, String>,
    followed: &BTreeMap<SocketAddr, Followed>,
) -> BTreeSet<String> {
    let is_heard = |address: &SocketAddr| {
        followed.get(address).is_some_and(|followed| followed.is_heard.load(Ordering::Relaxed))
    };
    let heard: BTreeSet<&String> =
        wanted.iter().filter(|(address, _)| is_heard(address)).map(|(_, replica)| replica).collect();
    wanted.values().filter(|replica| !heard.contains(replica)).cloned().collect()
}

/// Who was at an address.
enum Heard {
    Itself,
    /// Until its stream ended.
    Other,
}

/// Where replicas serve that are ready, or on their way there, and the name of the pod that does.
fn addresses(objects: &Objects) -> BTreeMap<SocketAddr, String> {
    let slices = objects.in_namespace(Kind::EndpointSlice, SYSTEM_NAMESPACE);
    let own =
        slices.filter(|slice| slice.label(EndpointSlice::SERVICE_NAME_LABEL) == Some(CONTROLLER_SERVICE));
    let mut all = BTreeMap::new();
    for slice in own.filter_map(|slice| slice.root::<EndpointSlice>().ok()) {
        let ports: Vec<u16> = slice.ports.iter().filter_map(|port| port.port).collect();
        let port = ports.iter().find(|port| **port == CONTROLLER_PORT).or(ports.first());
        let Some(port) = port.copied() else { continue };
        for endpoint in slice.endpoints.iter().filter(|endpoint| !endpoint.conditions.is_terminating()) {
            let pod = endpoint.target_ref.as_ref().map(|target| target.name.clone());
            for address in endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
                all.insert(
                    SocketAddr::new(address, port),
                    pod.clone().unwrap_or_else(|| address.to_string()),
                );
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_found_by_the_controllers_service() {
        let slice = |name: &str, service: &str, address: &str, terminating: bool| {
            format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {{name: {name}, namespace: culvert-system, labels: {{kubernetes.io/service-name: {service}}}}}\n\
                 ports: [{{name: stream, port: 15010, protocol: TCP}}]\n\
                 endpoints: [{{addresses: [{address}], conditions: {{ready: false, terminating: {terminating}}}}}]\n---\n"
            )
        };
        let text = slice("a", "culvert-controller", "10.0.0.1", false)
            + &slice("b", "culvert-controller", "10.0.0.2", true)
            + &slice("c", "culvert-ca", "10.0.0.3", false);
        let read =
            culvert_objects::manifest::parse(&text, std::path::Path::new("s.yaml")).into_result().unwrap();
        let objects: Objects = read.objects.into_iter().map(|at| at.object).collect();
        let found: Vec<String> = addresses(&objects).keys().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1:15010"]);
    }

    #[tokio::test]
    async fn a_replica_is_heard_at_one_of_its_addresses_or_not_at_all() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (v4, v6, other) = (at("10.0.0.1:15010"), at("[fd00::1]:15010"), at("10.0.0.2:15010"));
        let wanted = BTreeMap::from([(v4, "a".to_owned()), (v6, "a".to_owned()), (other, "b".to_owned())]);
        let names = |of: &[&str]| of.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
        let mut tasks = JoinSet::new();
        let mut followed: BTreeMap<SocketAddr, Followed> = BTreeMap::new();
        assert_eq!(unheard(&wanted, &followed), names(&["a", "b"]));
        for address in [v4, v6, other] {
            let task = tasks.spawn(std::future::pending::<()>());
            followed.insert(address, Followed { task, is_heard: Arc::default() });
        }
        assert_eq!(unheard(&wanted, &followed), names(&["a", "b"]));
        followed[&v6].is_heard.store(true, Ordering::Relaxed);
        assert_eq!(unheard(&wanted, &followed), names(&["b"]));
        followed[&other].is_heard.store(true, Ordering::Relaxed);
        assert_eq!(unheard(&wanted, &followed), names(&[]));
    }
}
