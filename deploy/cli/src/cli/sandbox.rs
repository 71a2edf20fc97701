//! `culvert sandbox ...`.

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use super::client::{self, ask, report};
use super::exec;
use super::output::{Format, print};
use super::requests::{self, Filter};
use super::up::{UpArgs, down, up};
use crate::sandbox::cluster::OUTSIDE;
use crate::sandbox::components::{Action, ComponentName};
use crate::sandbox::control::place::Place as Sandbox;
use crate::sandbox::control::protocol::{Place, Request, Response};
use crate::sandbox::control::wire::Body;
use crate::sandbox::network::LinkState;

#[derive(Args)]
pub struct SandboxArgs {
    /// Which sandbox.
    #[arg(long, global = true, env = "CULVERT_SANDBOX", default_value = "default", value_name = "NAME")]
    name: String,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(subcommand)]
    command: SandboxCommand,
}

#[derive(Subcommand)]
enum SandboxCommand {
    /// Bring a cluster with its mesh up.
    Up(UpArgs),
    /// Create or update what the manifests say.
    Apply(FileArgs),
    /// Delete what the manifests name, or one object: delete KIND NAME.
    Delete(DeleteArgs),
    /// Show objects with the statuses written for them.
    Get(GetArgs),
    /// Run a command in a pod or on a node.
    Exec(ExecArgs),
    /// Show what a pod or a part of the mesh has logged.
    Logs(LogsArgs),
    /// Nodes, pods, enrolment, identities, health.
    Status {
        /// Which share of connections is not encrypted, and why.
        #[arg(long)]
        plaintext: bool,
    },
    /// Wait until every pod is ready and every labelled one enrolled.
    Wait {
        /// Seconds.
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        timeout: u64,
    },
    /// Cut a node off from the others, or restore it.
    Link { node: String, state: Link },
    /// Stop, start, kill, restart or upgrade ca, controller or node-proxy/NODE.
    Component { action: Action, component: ComponentName },
    /// End the sandbox; nothing of it is left.
    Down,
}

#[derive(Clone, Copy, ValueEnum)]
enum Link {
    Up,
    Down,
}

#[derive(Args)]
struct FileArgs {
    /// Files, directories, or - for standard input.
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true)]
    file: Vec<PathBuf>,
}

#[derive(Args)]
struct DeleteArgs {
    /// Files, directories, or - for standard input.
    #[arg(short, long = "file", value_name = "FILE|DIR", conflicts_with = "kind")]
    file: Vec<PathBuf>,
    #[arg(requires = "object", required_unless_present = "file")]
    kind: Option<String>,
    #[arg(value_name = "NAME")]
    object: Option<String>,
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

#[derive(Args)]
struct GetArgs {
    /// As `pods`, `service`, `deploy`.
    kind: String,
    #[arg(value_name = "NAME")]
    object: Option<String>,
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Of every namespace.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

#[derive(Args)]
struct ExecArgs {
    /// A pod's name, deploy/NAME for the first pod of a Deployment, or `outside`: neither pod nor node, where addresses of
    /// load balancers lead into the cluster.
    #[arg(required_unless_present = "node")]
    pod: Option<String>,
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[arg(short, long)]
    container: Option<String>,
    /// In the network namespace of this node (or `control-plane`, `fabric`, `outside`) instead of a pod.
    #[arg(long, conflicts_with_all = ["pod", "container"])]
    node: Option<String>,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Args)]
struct LogsArgs {
    /// A pod, or `ca`, `controller`, `node-proxy/NODE`, `supervisor`.
    #[arg(required_unless_present = "requests")]
    target: Option<String>,
    /// Requests that node proxies have logged (failures, unless MeshConfig says `all`); with --follow every request, as it
    /// ends.
    #[arg(long, conflicts_with_all = ["target", "namespace", "container", "tail"])]
    requests: bool,
    /// Requests of this client only.
    #[arg(long, requires = "requests", value_name = "NAMESPACE/POD")]
    from: Option<requests::Client>,
    /// Requests to this Service only, as it was called or as a backend.
    #[arg(long, requires = "requests", value_name = "NAMESPACE/SERVICE")]
    to: Option<requests::Service>,
    /// Of the pod.
    #[arg(short, long)]
    namespace: Option<String>,
    #[arg(short, long)]
    container: Option<String>,
    /// Go on as more is logged.
    #[arg(short, long)]
    follow: bool,
    /// The last lines only.
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
}

/// Runs it.
///
/// # Errors
/// What went wrong, where, and the remedy.
pub fn run(arguments: SandboxArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Box::pin(dispatch(arguments)))
}

async fn dispatch(arguments: SandboxArgs) -> anyhow::Result<ExitCode> {
    let SandboxArgs { name, output, command } = arguments;
    match command {
        SandboxCommand::Up(arguments) => up(&name, arguments).await?,
        SandboxCommand::Down => down(&name).await?,
        SandboxCommand::Exec(arguments) => {
            let place = match (arguments.pod, arguments.node) {
                (Some(name), None) if name == OUTSIDE => Place::Node(name),
                (Some(name), None) => {
                    Place::Pod { namespace: arguments.namespace, name, container: arguments.container }
                }
                (_, Some(node)) => Place::Node(node),
                (None, None) => bail!("name a pod, or a node with --node"),
            };
            return exec::run(&Sandbox::of(&name)?, place, arguments.command).await;
        }
        SandboxCommand::Logs(arguments) => logs(&Sandbox::of(&name)?, arguments, output).await?,
        other => {
            let sandbox = Sandbox::of(&name)?;
            let request = request(other)?;
            let response = match request {
                Request::Wait { seconds } => {
                    let limit = std::time::Duration::from_secs(seconds + 10);
                    client::ask_within(&sandbox, &request, limit).await?
                }
                // A component may take as long to drain as it is given.
                Request::Component { .. } => {
                    client::ask_within(&sandbox, &request, std::time::Duration::from_secs(60)).await?
                }
                _ => ask(&sandbox, &request).await?,
            };
            if response != Response::Done {
                let (text, value) = report(response)?;
                print(output, &text, &value)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The request of a command that is one question and one answer.
fn request(command: SandboxCommand) -> anyhow::Result<Request> {
    Ok(match command {
        SandboxCommand::Apply(FileArgs { file }) => Request::Apply { files: client::read_manifests(&file)? },
        SandboxCommand::Delete(DeleteArgs { file, kind, object, namespace }) => match (kind, object) {
            (Some(kind), Some(name)) => Request::DeleteOne { kind, namespace: Some(namespace), name },
            _ => Request::Delete { files: client::read_manifests(&file)? },
        },
        SandboxCommand::Get(GetArgs { kind, object, namespace, all_namespaces }) => {
            Request::Get { kind, namespace: (!all_namespaces).then_some(namespace), name: object }
        }
        SandboxCommand::Status { plaintext } => Request::Status { plaintext },
        SandboxCommand::Wait { timeout } => Request::Wait { seconds: timeout },
        SandboxCommand::Link { node, state } => {
            let state = match state {
                Link::Up => LinkState::Up,
                Link::Down => LinkState::Down,
            };
            Request::Link { node, state }
        }
        SandboxCommand::Component { action, component } => {
            Request::Component { name: component.to_string(), action }
        }
        SandboxCommand::Up(_) | SandboxCommand::Down | SandboxCommand::Exec(_) | SandboxCommand::Logs(_) => {
            bail!("this command is more than one question")
        }
    })
}

async fn logs(sandbox: &Sandbox, arguments: LogsArgs, format: Format) -> anyhow::Result<()> {
    let LogsArgs { target, requests: _, from, to, namespace, container, follow, tail } = arguments;
    let Some(target) = target else {
        return requests::show(sandbox, &Filter { from, to }, follow, format).await;
    };
    if target == "supervisor" && namespace.is_none() {
        let text = std::fs::read(sandbox.log()).with_context(|| sandbox.log().display().to_string())?;
        return Ok(std::io::stdout().write_all(&text)?);
    }
    let is_component = target.parse::<ComponentName>().is_ok() && namespace.is_none();
    let place = match is_component {
        true => Place::Component(target),
        false => Place::Pod {
            namespace: namespace.unwrap_or_else(|| "default".to_owned()),
            name: target,
            container,
        },
    };
    let connection = client::connect(sandbox)?;
    connection.send(&Request::Logs { place, tail, follow }, &[]).await?;
    while let Some(frame) = connection.receive().await? {
        match &frame.body {
            Body::Bytes(bytes) => {
                let mut out = std::io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())?;
            }
            Body::Message(_) => match frame.message()? {
                Response::Failed { message } => bail!(message),
                _ => return Ok(()),
            },
        }
    }
    bail!("the sandbox has ended")
}
