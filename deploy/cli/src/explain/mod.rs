//! `culvert explain`: what becomes of a request, and why, before it is made. It decides with the controller's translation and
//! the node proxy's own functions: [`facts`] makes the snapshot, [`explanation`] asks it, [`render`] writes it down.

mod connections;
pub mod data;
mod describe;
mod endpoints;
pub mod explanation;
pub mod facts;
mod groups;
mod health;
mod listeners;
mod live;
pub mod question;
pub mod render;
mod requests;
mod sent;
#[cfg(test)]
mod tests;
mod unattached;
mod uncaptured;

use anyhow::Context;
use clap::Args;
use culvert_objects::{Object, Objects};
use std::path::PathBuf;

use crate::cli::client;
use crate::cli::output::{Format, print};
use crate::ejected::Ejected;
use crate::live::{Target, TargetArgs};
use crate::sandbox::cluster::Cluster;
use crate::sandbox::control::place::Place;
use crate::sandbox::control::protocol::{Request, SourceFile};
use crate::sandbox::status::Status;
use data::{Explanation, NodeProxy, NodeProxyAnswer};
use facts::{Facts, Source};
use question::{From, Question, Spoken};

/// Nodes of a cluster that is there in files only.
const NODES: u8 = 2;

/// Say what becomes of a request: which route, rule, backend and endpoint, and why not the others.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Explain these files alone instead: files, directories, or - for standard input.
    #[arg(short, long = "file", value_name = "FILE|DIR", conflicts_with_all = ["sandbox", "kubeconfig", "context"])]
    file: Vec<PathBuf>,
    /// The client: NAMESPACE/POD, NAMESPACE/deploy/NAME, or `outside`.
    #[arg(long, value_name = "NAMESPACE/POD")]
    from: From,
    /// GET, or POST for a gRPC call, if not given.
    #[arg(long)]
    method: Option<http::Method>,
    /// NAME: VALUE
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Sent over HTTP/2 with prior knowledge.
    #[arg(long)]
    http2: bool,
    /// A gRPC call, as a content-type of application/grpc says too.
    #[arg(long)]
    grpc: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// The server name that the client's TLS asks for, if it is not the host of tls://HOST:PORT.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// http://HOST[:PORT][/PATH], or a connection: tls://HOST:PORT, tcp://HOST:PORT
    url: String,
}

/// Explains and prints.
///
/// # Errors
/// When the question makes no sense, the files are wrong, or there is no such sandbox or pod.
pub fn run(arguments: &ExplainArgs) -> anyhow::Result<()> {
    let spoken = match (arguments.grpc, arguments.http2) {
        (true, _) => Spoken::Grpc,
        (false, true) => Spoken::Http2,
        (false, false) => Spoken::Default,
    };
    let from = arguments.from.clone();
    let question = Question::new(from, arguments.method.clone(), &arguments.url, &arguments.headers, spoken)?;
    let question = match &arguments.server_name {
        Some(name) => question.with_server_name(name)?,
        None => question,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let explanation = runtime.block_on(Box::pin(explained(arguments, &question)))?;
    print(arguments.output, &render::text(&explanation), &serde_json::to_value(&explanation)?)
}

async fn explained(arguments: &ExplainArgs, question: &Question) -> anyhow::Result<Explanation> {
    if !arguments.file.is_empty() {
        let files = client::read_manifests(&arguments.file)?;
        let cluster = Cluster::new("files", NODES);
        let objects = facts::files::objects(&cluster, SourceFile::parse_all(&files))?;
        return Ok(explanation::explain(&Facts::new(objects, &cluster, Source::Files), question)?);
    }
    match arguments.target.target() {
        Target::Sandbox(name) => {
            let mut explanation = explanation::explain(&of_sandbox(&name).await?, question)?;
            let ejected = ejected_in_sandbox(&name).await?;
            health::mark(&mut explanation, &ejected);
            Ok(explanation)
        }
        Target::Cluster(cluster) => {
            let cluster = cluster.connect_or_say().await?;
            let facts = live::facts(&cluster).await?;
            let mut explanation = explanation::explain(&facts, question)?;
            explanation.node_proxy = live::node_proxy(&cluster, &facts, &explanation).await;
            if let Some(NodeProxy { answer: NodeProxyAnswer::InForce(in_force), .. }) =
                &explanation.node_proxy
            {
                let ejected = in_force.ejected.clone();
                health::mark(&mut explanation, &ejected);
            }
            Ok(explanation)
        }
    }
}

/// What a running sandbox is made of at this moment; any number of questions may be asked about it.
///
/// # Errors
/// When there is no such sandbox, or it does not answer.
pub async fn of_sandbox(name: &str) -> anyhow::Result<Facts> {
    let objects = objects_of_sandbox(name).await?;
    // Its ranges are those of every sandbox; nodes are objects.
    let cluster = Cluster::new(name, 1);
    Ok(Facts::new(objects, &cluster, Source::Sandbox(name.to_owned())))
}

/// What its node proxies pass over because it fails.
async fn ejected_in_sandbox(name: &str) -> anyhow::Result<Vec<Ejected>> {
    let place = Place::of(name)?;
    let (_, value) = client::report(client::ask(&place, &Request::Status { plaintext: false }).await?)?;
    let status: Status = serde_json::from_value(value).context("the sandbox's status")?;
    Ok(status.ejected)
}

/// The objects of a running sandbox, statuses included.
///
/// # Errors
/// As [`of_sandbox`].
pub async fn objects_of_sandbox(name: &str) -> anyhow::Result<Objects> {
    let place = Place::of(name)?;
    let (_, value) = client::report(client::ask(&place, &Request::Objects).await?)?;
    let objects: Vec<Object> = serde_json::from_value(value).context("the sandbox's objects")?;
    Ok(objects.into_iter().collect())
}
