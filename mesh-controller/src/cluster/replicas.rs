//! Following the other replicas: each is asked for what its node proxies report, at the addresses of the controller's own
//! Service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::mesh::ReplicaHello;
use culvert_api::mesh::mesh_replicas_client::MeshReplicasClient;
use culvert_api::names::{CONTROLLER_PORT, CONTROLLER_SERVICE, CONTROLLER_SERVICE_ACCOUNT, SYSTEM_NAMESPACE};
use culvert_identity::grpc::{TokenFile, channel};
use culvert_identity::{Identity, TrustBundle, TrustDomain};
use culvert_objects::types::EndpointSlice;
use culvert_objects::{Kind, Objects};
use tokio::sync::{mpsc, watch};
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
    /// Follows whoever is there, as that changes. Ends with the source of the objects.
    pub async fn run(self) {
        let mut objects = self.hub.objects.clone();
        let mut tasks = JoinSet::new();
        let mut followed: BTreeMap<SocketAddr, AbortHandle> = BTreeMap::new();
        loop {
            let wanted = addresses(&objects.borrow_and_update());
            followed.retain(|address, task| {
                let stays = wanted.contains(address);
                if !stays {
                    task.abort();
                }
                stays
            });
            for address in wanted {
                followed.entry(address).or_insert_with(|| tasks.spawn(self.clone().follow(address)));
            }
            if objects.changed().await.is_err() {
                return;
            }
            while tasks.try_join_next().is_some() {}
        }
    }

    /// One replica, until it turns out to be this one.
    async fn follow(self, address: SocketAddr) {
        let mut said = String::new();
        loop {
            match self.listen(address).await {
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

    async fn listen(&self, address: SocketAddr) -> Result<Heard, Status> {
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
        while let Some(message) = stream.message().await? {
            if message.replica == self.replica {
                return Ok(Heard::Itself);
            }
            if !message.replica.is_empty() {
                tracing::info!(%address, replica = message.replica, "following what its node proxies report");
            }
            if !message.nodes.is_empty() && !tell(&self.hub.events, message.nodes).await {
                return Err(Status::unavailable("the controller is ending"));
            }
        }
        Ok(Heard::Other)
    }
}

/// Who was at an address.
enum Heard {
    Itself,
    /// Until its stream ended.
    Other,
}

async fn tell(events: &mpsc::Sender<Event>, reports: Vec<culvert_api::mesh::NodeReport>) -> bool {
    events.send(Event::Replica { reports }).await.is_ok()
}

/// Where replicas serve that are ready, or on their way there.
fn addresses(objects: &Objects) -> BTreeSet<SocketAddr> {
    let slices = objects.in_namespace(Kind::EndpointSlice, SYSTEM_NAMESPACE);
    let own =
        slices.filter(|slice| slice.label(EndpointSlice::SERVICE_NAME_LABEL) == Some(CONTROLLER_SERVICE));
    let read = own.filter_map(|slice| slice.root::<EndpointSlice>().ok());
    let all = read.flat_map(|slice| {
        let ports: Vec<u16> = slice.ports.iter().filter_map(|port| port.port).collect();
        let port = ports.iter().find(|port| **port == CONTROLLER_PORT).or(ports.first()).copied();
        let live =
            slice.endpoints.into_iter().filter(|endpoint| endpoint.conditions.terminating != Some(true));
        let texts = live.flat_map(|endpoint| endpoint.addresses).collect::<Vec<_>>();
        texts.into_iter().filter_map(move |text| Some(SocketAddr::new(text.parse().ok()?, port?)))
    });
    all.collect()
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
        let found: Vec<String> = addresses(&objects).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1:15010"]);
    }
}
