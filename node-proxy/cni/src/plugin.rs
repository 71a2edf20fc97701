//! A call from beginning to end.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use culvert_api::enrolment::{self, KEPT_NAMESPACES, KeptNamespaces, PodRef, Reply, Request};
use culvert_api::names::{MESH_LABEL, NEVER_ENROLLED_NAMESPACES, NODE_RELEASED};
use serde_json::json;
use tokio::sync::watch;

use crate::admission::{Judgement, judge_kept, judge_live};
use crate::answer::{NotYet, PluginError, Printed};
use crate::api::{Api, ApiError};
use crate::call::{Call, Command, Configuration, Environment, PodName, VERSIONS};

/// Longest configuration that is read, bytes.
const LONGEST: u64 = 4 << 20;
/// A pod that is wanted in the mesh is waited for this long; then the runtime is told to try again.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the node proxy alone is asked, before the labels are looked at.
const PATIENCE: Duration = Duration::from_millis(200);
/// Between two attempts at the node proxy.
const AGAIN: Duration = Duration::from_millis(200);
/// For the news that a pod is gone; nobody waits for more.
const FAREWELL: Duration = Duration::from_secs(2);
/// The interface of a pod that Kubernetes knows of; further ones are not the mesh's.
const INTERFACE: &str = "eth0";

/// Serves the call that environment and standard input describe, and prints the answer.
#[must_use]
pub fn run() -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin().lock().take(LONGEST).read_to_end(&mut input);
    let environment: Environment = std::env::vars().collect();
    let version = version_of(&input);
    let printed = match read {
        Ok(_) => serve(&environment, &input),
        Err(error) => Err(PluginError::Io(format!("standard input: {error}"))),
    };
    let (text, code) = match printed {
        Ok(Printed::Nothing) => (String::new(), ExitCode::SUCCESS),
        Ok(Printed::Json(value)) => (value.to_string(), ExitCode::SUCCESS),
        Err(error) => (error.to_json(&version), ExitCode::FAILURE),
    };
    println!("{text}");
    code
}

/// For the answer; "1.0.0" where the input names none.
fn version_of(input: &[u8]) -> String {
    let read: Option<serde_json::Value> = serde_json::from_slice(input).ok();
    let version = read.as_ref().and_then(|value| value["cniVersion"].as_str());
    version.unwrap_or("1.0.0").to_owned()
}

fn serve(environment: &Environment, input: &[u8]) -> Result<Printed, PluginError> {
    let call = Call::read(environment)?;
    match call.command {
        Command::Version => {
            Ok(Printed::Json(json!({"cniVersion": version_of(input), "supportedVersions": VERSIONS})))
        }
        Command::Add => add(&call, &Configuration::read(input)?),
        // What is gone must go, whatever the configuration has become.
        Command::Del => {
            if let Ok(configuration) = Configuration::read(input) {
                delete(&call, &configuration);
            }
            Ok(Printed::Nothing)
        }
        // The state of the mesh on this node is the node proxy's to tell; a runtime that asks here would take the
        // node's network out of service, also for pods that are none of the mesh's.
        Command::Check | Command::Status | Command::Gc => Ok(Printed::Nothing),
    }
}

/// Whether the call is about a pod's own interface, and the pod may be in the mesh at all.
fn concerned(call: &Call) -> Option<&PodName> {
    let pod = call.pod.as_ref()?;
    let ours = call.interface == INTERFACE && !NEVER_ENROLLED_NAMESPACES.contains(&pod.namespace.as_str());
    ours.then_some(pod)
}

fn add(call: &Call, configuration: &Configuration) -> Result<Printed, PluginError> {
    let addresses = configuration.addresses()?;
    let result = Printed::Json(configuration.prev_result.clone().unwrap_or_default());
    let (Some(pod), Some(path)) = (concerned(call), call.netns.clone()) else { return Ok(result) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| PluginError::Io(error.to_string()))?;
    let netns = File::open(&path).map_err(|error| PluginError::Io(format!("{}: {error}", path.display())))?;
    let candidate = Candidate { pod: pod.clone(), path, addresses, configuration };
    let admitted = runtime.block_on(candidate.admitted(netns));
    // A thread may still wait for the node proxy; the process does not wait for it.
    runtime.shutdown_background();
    admitted.map(|()| result)
}

/// The node proxy notices by itself what it is not told.
fn delete(call: &Call, configuration: &Configuration) {
    if let Some(PodName { namespace, name, uid: Some(uid) }) = concerned(call) {
        let pod = PodRef { uid: uid.clone(), namespace: namespace.clone(), name: name.clone() };
        let _ = enrolment::call(&configuration.enrolment_socket, &Request::Remove { pod }, None, FAREWELL);
    }
}

/// A pod that wants to start.
struct Candidate<'a> {
    pod: PodName,
    path: PathBuf,
    addresses: Vec<std::net::IpAddr>,
    configuration: &'a Configuration,
}

/// Who is missing, as far as it is known.
#[derive(Clone, Debug)]
struct Missing {
    component: String,
    message: String,
    remedy: String,
}

impl Candidate<'_> {
    /// Returns when the pod may start.
    async fn admitted(&self, netns: File) -> Result<(), PluginError> {
        let began = tokio::time::Instant::now();
        let (tell, told) = watch::channel(self.silent());
        let mut handed = std::pin::pin!(self.handed_over(netns, tell));
        if let Ok(done) = tokio::time::timeout(PATIENCE, &mut handed).await {
            return done;
        }
        // Both go on: a pod that must wait is taken as soon as the node proxy can.
        let (judgement, unasked) = tokio::select! {
            done = &mut handed => return done,
            judged = self.judged() => judged,
        };
        if judgement == Judgement::NotWanted || self.is_released().await {
            return Ok(());
        }
        match tokio::time::timeout_at(began + DEADLINE, &mut handed).await {
            Ok(done) => done,
            Err(_) => {
                let Missing { component, message, remedy } = told.borrow().clone();
                let (pod, node) = (self.pod.to_string(), self.configuration.node.clone());
                let not_yet = NotYet { pod, node, component, message, remedy, unasked };
                Err(PluginError::NotYet(Box::new(not_yet)))
            }
        }
    }

    /// By the API server, else by what the node proxy kept, and then why not by the API server.
    async fn judged(&self) -> (Judgement, String) {
        let error = match self.judged_live().await {
            Ok(judgement) => return (judgement, String::new()),
            Err(error) => error,
        };
        let kept = kept(&self.configuration.state_directory);
        let judgement = judge_kept(&self.pod, kept.as_ref(), self.configuration.unknown_namespaces);
        let unasked = format!(
            " Its labels could not be looked at ({error}), so this is decided by what the node last knew of its namespace."
        );
        (judgement, unasked)
    }

    async fn judged_live(&self) -> Result<Judgement, ApiError> {
        let api = Api::new(&self.configuration.kubeconfig).await?;
        let (pod, namespace) = tokio::join!(api.pod(&self.pod), api.namespace(&self.pod.namespace));
        Ok(judge_live(&self.pod, pod?, namespace?.as_ref()))
    }

    /// Somebody let this node's pods go, because the mesh does not come back.
    async fn is_released(&self) -> bool {
        let Ok(api) = Api::new(&self.configuration.kubeconfig).await else { return false };
        let node = api.node(&self.configuration.node).await.ok().flatten().unwrap_or_default();
        node["metadata"]["labels"][MESH_LABEL] == NODE_RELEASED
    }

    /// Asks the node proxy until it has taken the pod or refused it. What it lacks is told meanwhile.
    async fn handed_over(&self, netns: File, tell: watch::Sender<Missing>) -> Result<(), PluginError> {
        let Some(uid) = self.uid().await else {
            // Nobody knows which pod it is: by its labels alone.
            return std::future::pending().await;
        };
        let pod = PodRef { uid, namespace: self.pod.namespace.clone(), name: self.pod.name.clone() };
        let until = Instant::now() + DEADLINE;
        loop {
            match self.ask(&pod, &netns, until).await {
                Ok(Reply::Enrolled | Reply::NotEnrolled | Reply::Removed) => return Ok(()),
                Ok(Reply::Invalid { message }) => {
                    return Err(PluginError::Refused { pod: self.pod.to_string(), message });
                }
                Ok(Reply::Wait { component, message, remedy }) => {
                    tell.send_replace(Missing { component, message, remedy });
                }
                Err(error) => {
                    let message = format!("does not answer ({error})");
                    tell.send_replace(Missing { message, ..self.silent() });
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn uid(&self) -> Option<String> {
        if let Some(uid) = &self.pod.uid {
            return Some(uid.clone());
        }
        let api = Api::new(&self.configuration.kubeconfig).await.ok()?;
        let pod = api.pod(&self.pod).await.ok()??;
        Some(pod.uid().to_owned())
    }

    async fn ask(&self, pod: &PodRef, netns: &File, until: Instant) -> std::io::Result<Reply> {
        let request = Request::Add {
            pod: pod.clone(),
            netns_path: self.path.clone(),
            addresses: self.addresses.clone(),
        };
        let (socket, netns) = (self.configuration.enrolment_socket.clone(), netns.try_clone()?);
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let ask = move || enrolment::call(&socket, &request, Some(netns.as_fd()), left);
        tokio::task::spawn_blocking(ask).await.map_err(std::io::Error::other)?
    }

    fn silent(&self) -> Missing {
        Missing {
            component: format!("the node proxy of {}", self.configuration.node),
            message: "has not answered".to_owned(),
            remedy: "see `kubectl -n culvert-system get pods -o wide` and the logs of the pod on that node"
                .to_owned(),
        }
    }
}

/// None when there is nothing readable.
fn kept(directory: &Path) -> Option<KeptNamespaces> {
    let bytes = std::fs::read(directory.join(KEPT_NAMESPACES)).ok()?;
    serde_json::from_slice(&bytes).ok()
}
