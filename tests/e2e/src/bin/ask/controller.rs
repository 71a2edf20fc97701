//! A controller that has nothing new to say but one resource that no node proxy can accept.

use crate::Server;
use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use culvert_api::mesh::mesh_control_server::{MeshControl, MeshControlServer};
use culvert_api::mesh::{
    ControllerMessage, Mark, Page, ProxyMessage, Resource, ResourceKey, ResourceType, Welcome, Workload,
    controller_message, proxy_message, resource,
};
use culvert_api::names::{CONTROLLER_SERVICE_ACCOUNT, SYSTEM_NAMESPACE};
use culvert_identity::{Identity, grpc, tls};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// What no version of the contract means by a tunnel.
const NO_TUNNEL: i32 = 99;
const HEARTBEAT_SECONDS: u32 = 60;

#[derive(Args)]
pub(crate) struct ControllerArgs {
    /// The CA, and the controller's token for it.
    #[command(flatten)]
    ca: Server,
    #[arg(long)]
    listen: SocketAddr,
    /// Uid of the workload that is sent in a form that cannot be accepted.
    #[arg(long)]
    spoil: String,
}

/// Prints `{"event":"listening"}`, then what node proxies say: `applied` and `refused`, with the node's name.
/// Until stdin closes.
pub(crate) async fn run(args: ControllerArgs) -> anyhow::Result<()> {
    let identity = Identity::new(&args.ca.trust_domain, SYSTEM_NAMESPACE, CONTROLLER_SERVICE_ACCOUNT)?;
    let issued = args.ca.certificates().await?.request(&identity, Duration::from_secs(3600)).await?;
    let (_config, newest) = watch::channel(tls::grpc_server_config(&issued.certificate)?);
    let listener = TcpListener::bind(args.listen).await.context("--listen")?;
    println!("{}", json!({"event": "listening"}));
    let service = MeshControlServer::new(Controller { spoil: args.spoil });
    let serving = grpc::server().add_service(service).serve_with_incoming(grpc::incoming(listener, newest));
    let (mut stdin, mut byte) = (tokio::io::stdin(), [0]);
    tokio::select! {
        served = serving => served?,
        // Its end, or an error that is one.
        _ = stdin.read(&mut byte) => {}
    }
    Ok(())
}

struct Controller {
    spoil: String,
}

#[tonic::async_trait]
impl MeshControl for Controller {
    type FollowStream = ReceiverStream<Result<ControllerMessage, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<ProxyMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let node = node_of(&request).ok_or_else(|| Status::unauthenticated("no node in the token"))?;
        let (sender, outgoing) = mpsc::channel(8);
        let spoil = self.spoil.clone();
        tokio::spawn(talk(node, spoil, request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// Ends when the proxy goes away.
async fn talk(
    node: String,
    spoil: String,
    mut incoming: Streaming<ProxyMessage>,
    outgoing: mpsc::Sender<Result<ControllerMessage, Status>>,
) {
    while let Ok(Some(message)) = incoming.message().await {
        match message.kind {
            Some(proxy_message::Kind::Subscribe(_)) => {
                for kind in batch(&node, &spoil) {
                    if outgoing.send(Ok(ControllerMessage { kind: Some(kind) })).await.is_err() {
                        return;
                    }
                }
            }
            Some(proxy_message::Kind::Applied(applied)) => {
                println!("{}", json!({"event": "applied", "node": node, "version": applied.version}));
            }
            Some(proxy_message::Kind::Refused(refused)) => {
                let name = refused.key.map(|key| key.name);
                println!(
                    "{}",
                    json!({"event": "refused", "node": node, "name": name, "version": refused.version, "reason": refused.reason})
                );
            }
            _ => {}
        }
    }
}

fn batch(node: &str, spoil: &str) -> [controller_message::Kind; 3] {
    let workload = Workload { uid: spoil.to_owned(), tunnel: NO_TUNNEL, ..Workload::default() };
    let bad = Resource {
        key: Some(ResourceKey { r#type: ResourceType::Workload.into(), name: spoil.to_owned() }),
        version: "spoiled".to_owned(),
        body: Some(resource::Body::Workload(workload)),
    };
    let welcome = Welcome {
        node: node.to_owned(),
        controller_version: "none".to_owned(),
        heartbeat_seconds: HEARTBEAT_SECONDS,
    };
    [
        controller_message::Kind::Welcome(welcome),
        controller_message::Kind::Page(Page { upserts: vec![bad], removals: Vec::new() }),
        controller_message::Kind::Mark(Mark { sequence: 1, version: "spoiled-state".to_owned() }),
    ]
}

/// Not checked: this is no controller.
fn node_of<T>(request: &Request<T>) -> Option<String> {
    let token = grpc::bearer(request.metadata())?;
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    claims["kubernetes.io"]["node"]["name"].as_str().map(str::to_owned)
}
