//! Asks the CA or the controller as whoever holds a token would, or stands in for the controller. Prints JSON lines.

mod controller;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use culvert_api::mesh::mesh_control_client::MeshControlClient;
use culvert_api::mesh::{
    ControllerMessage, Hello, ProxyMessage, Subscribe, controller_message, proxy_message, resource,
};
use culvert_api::names::{CA_SERVICE_ACCOUNT, CONTROLLER_SERVICE_ACCOUNT, SYSTEM_NAMESPACE};
use culvert_identity::certificate_client::CertificateClient;
use culvert_identity::grpc::{TokenFile, channel};
use culvert_identity::{Identity, TrustDomain, bundle};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::timeout;
use tonic::transport::Channel;

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A certificate: `granted`, or `refused` with the CA's words.
    Certificate {
        #[command(flatten)]
        server: Server,
        /// spiffe://...
        #[arg(long)]
        identity: String,
    },
    /// The first complete state: the `node` it is for, and the pods in it (`own`) that carry what only their own node
    /// is told; or `refused` with the controller's words.
    State {
        #[command(flatten)]
        server: Server,
    },
    /// Serves in the controller's place, with a certificate that its token gets from the CA, until stdin closes.
    Controller(controller::ControllerArgs),
}

#[derive(Args)]
struct Server {
    /// https://ADDRESS:PORT
    #[arg(long)]
    url: String,
    #[arg(long)]
    token: PathBuf,
    #[arg(long)]
    bundle: PathBuf,
    #[arg(long, default_value = "cluster.local")]
    trust_domain: TrustDomain,
}

impl Server {
    async fn channel(&self, account: &str) -> anyhow::Result<Channel> {
        let server = Identity::new(&self.trust_domain, SYSTEM_NAMESPACE, account)?;
        let bundle = bundle::watch_file(&self.bundle, PATIENCE).await?;
        Ok(channel(&self.url, server, bundle)?)
    }

    async fn certificates(&self) -> anyhow::Result<CertificateClient> {
        Ok(CertificateClient::new(self.channel(CA_SERVICE_ACCOUNT).await?, TokenFile::new(&self.token)))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let answer = match Cli::parse().command {
        Command::Certificate { server, identity } => certificate(&server, &identity).await?,
        Command::State { server } => state(&server).await?,
        Command::Controller(args) => return controller::run(args).await,
    };
    println!("{answer}");
    Ok(())
}

async fn certificate(server: &Server, identity: &str) -> anyhow::Result<Value> {
    let client =
        CertificateClient::new(server.channel(CA_SERVICE_ACCOUNT).await?, TokenFile::new(&server.token));
    Ok(match client.request(&identity.parse()?, Duration::from_secs(3600)).await {
        Ok(issued) => json!({"granted": issued.certificate.identity().uri()}),
        Err(error) => json!({"refused": error.to_string()}),
    })
}

async fn state(server: &Server) -> anyhow::Result<Value> {
    let mut client = MeshControlClient::new(server.channel(CONTROLLER_SERVICE_ACCOUNT).await?);
    let hello = Hello { proxy_version: "ask".to_owned(), instance: "ask".to_owned() };
    let introduction = [proxy_message::Kind::Hello(hello), proxy_message::Kind::Subscribe(Subscribe {})];
    let (sender, outgoing) = tokio::sync::mpsc::channel(introduction.len());
    for kind in introduction {
        sender.send(ProxyMessage { kind: Some(kind) }).await?;
    }
    let mut request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(outgoing));
    TokenFile::new(&server.token).authorize(&mut request)?;
    let mut incoming = match timeout(PATIENCE, client.follow(request)).await? {
        Ok(response) => response.into_inner(),
        Err(status) => return Ok(json!({"refused": status.message()})),
    };
    let mut answer = json!({"node": null, "own": [], "others": []});
    loop {
        let message: ControllerMessage = match timeout(PATIENCE, incoming.message()).await? {
            Ok(message) => message.context("the stream ended before the first mark")?,
            Err(status) => return Ok(json!({"refused": status.message()})),
        };
        match message.kind {
            Some(controller_message::Kind::Welcome(welcome)) => answer["node"] = json!(welcome.node),
            Some(controller_message::Kind::Page(page)) => {
                for resource in page.upserts {
                    let Some(resource::Body::Workload(workload)) = resource.body else { continue };
                    let told =
                        workload.enrolment != 0 || workload.settings.is_some() || !workload.probes.is_empty();
                    let list = if told { "own" } else { "others" };
                    let name = json!(format!("{}/{}", workload.namespace, workload.name));
                    answer[list].as_array_mut().context("a list")?.push(name);
                }
            }
            Some(controller_message::Kind::Mark(_)) => return Ok(answer),
            _ => {}
        }
    }
}
