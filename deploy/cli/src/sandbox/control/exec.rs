//! Running a command in a pod or on a node with the client's own streams.

use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;

use super::protocol::{Place, Request, Response};
use super::server::Served;
use super::wire::Connection;
use crate::sandbox::namespaces::Entry;
use crate::sandbox::supervisor::process::{Process, Streams};

/// What to run where.
pub struct Exec {
    pub place: Place,
    pub command: Vec<String>,
    /// Added to the container's, or all of it on a node.
    pub environment: Vec<(String, String)>,
    /// Working directory on a node.
    pub directory: Option<PathBuf>,
}

/// Runs it until it ends or the client goes away, which kills it.
pub async fn run(served: &Served, connection: &Connection, exec: Exec, streams: Vec<OwnedFd>) -> Response {
    let entry = match entry(served, exec) {
        Ok(entry) => entry,
        Err(message) => return Response::failed(message),
    };
    let Ok([stdin, stdout, stderr]) = <[OwnedFd; 3]>::try_from(streams) else {
        return Response::failed("exec needs three streams from its client");
    };
    let streams = Streams { stdin: Stdio::from(stdin), stdout: stdout.into(), stderr: stderr.into() };
    let mut process = match Process::spawn(&entry, streams) {
        Ok(process) => process,
        Err(error) => return Response::failed(format!("the command cannot be started: {error}")),
    };
    if connection.send(&Response::Running, &[]).await.is_err() {
        return Response::failed("the client is gone");
    }
    loop {
        tokio::select! {
            exit = process.wait() => return match exit {
                Ok(exit) => Response::Exited { code: exit.shell_code() },
                Err(error) => Response::failed(format!("the command cannot be waited for: {error}")),
            },
            frame = connection.receive() => match frame {
                Ok(Some(frame)) => {
                    if let Ok(Request::Signal { number }) = frame.message()
                        && let Ok(signal) = Signal::try_from(number)
                    {
                        process.signal_group(signal);
                    }
                }
                // Dropping the process kills it.
                Ok(None) | Err(_) => return Response::failed("the client is gone"),
            }
        }
    }
}

fn entry(served: &Served, exec: Exec) -> Result<Entry, String> {
    let Exec { place, command, environment, directory } = exec;
    if command.is_empty() {
        return Err("no command is given; write it after `--`".to_owned());
    }
    match place {
        Place::Pod { namespace, name, container } => {
            let pod = served.pod(&namespace, &name)?;
            let mut entry = pod.entry(container.as_deref(), command)?;
            entry.environment.extend(environment);
            Ok(entry)
        }
        Place::Node(name) => {
            let netns = served.network.namespace(&name).ok_or_else(|| {
                let nodes =
                    served.cluster.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
                format!("there is no node {name}; there are: {nodes}, control-plane, fabric, outside")
            })?;
            Ok(Entry {
                netns: Some(netns.path().to_owned()),
                hostname: None,
                mounts: Vec::new(),
                directory: directory.filter(|directory| directory.is_dir()),
                environment: environment.into_iter().collect::<BTreeMap<_, _>>(),
                command,
            })
        }
        Place::Component(name) => {
            Err(format!("{name} is a process, not a place; run the command on its node"))
        }
    }
}
