//! Finding the network namespace of a pod that nobody handed over: it ran before the node proxy was installed, or the list of
//! pods was lost. It is looked for among the node's processes, and believed only if it holds the pod's addresses.

mod cgroups;
mod processes;
mod task;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use culvert_api::enrolment::PodRef;
use nix::ifaddrs::getifaddrs;
use thiserror::Error;

use crate::intercept::{Netns, NetnsId};
use crate::state::model::WorkloadUid;
use processes::Process;

pub(super) use task::Search;

/// Where the node's processes, and the names that its network namespaces are bound to, are seen.
#[derive(Clone, Debug)]
pub struct Places {
    /// A proc file system that shows the processes of all pods.
    pub processes: PathBuf,
    /// The directory in which the container runtime binds the namespaces it makes.
    pub namespaces: PathBuf,
}

/// A pod that is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sought {
    pub workload: WorkloadUid,
    pub pod: PodRef,
    /// Never empty.
    pub addresses: Vec<IpAddr>,
}

/// A pod's namespace.
#[derive(Debug)]
pub(super) struct Found {
    pub netns: OwnedFd,
    /// Where it can be opened again.
    pub path: PathBuf,
}

/// Why a pod's namespace is not known; it is looked for again.
#[derive(Debug, Error)]
pub(super) enum SearchError {
    #[error("{path} cannot be read: {error}")]
    Processes { path: PathBuf, error: io::Error },
    #[error(
        "no process of the pod is seen in {path}: its containers have not started, or the node proxy does not see the \
         node's processes (hostPID)"
    )]
    NoProcess { path: PathBuf },
    #[error("its processes are in the node's own network namespace")]
    NodesOwn,
    #[error("the namespace {path} cannot be entered: {error} (it takes CAP_SYS_ADMIN and CAP_SYS_PTRACE)")]
    Enter { path: PathBuf, error: io::Error },
    #[error("the namespace {path} of its process does not hold the pod's address {missing}, but {held}")]
    OtherAddresses { path: PathBuf, missing: IpAddr, held: String },
    #[error("several namespaces of its processes hold its addresses: {paths}")]
    Ambiguous { paths: String },
}

impl SearchError {
    /// Nothing is wrong, nothing is there yet.
    pub fn is_patient(&self) -> bool {
        matches!(self, Self::NoProcess { .. })
    }
}

/// Looks for several pods at once. `home` is the node's own namespace. Blocks for as long as it takes to read about every
/// process of the node.
pub(super) fn find(
    places: &Places,
    sought: &[Sought],
    home: NetnsId,
) -> Vec<(Sought, Result<Found, SearchError>)> {
    let wanted = |uid: &str| sought.iter().any(|sought| sought.pod.uid == uid);
    let processes = processes::of_pods(&places.processes, wanted);
    let bound = bound(&places.namespaces);
    let one = |sought: &Sought| match &processes {
        Ok(processes) => {
            let own = processes.get(&sought.pod.uid).map(Vec::as_slice).unwrap_or_default();
            of_pod(places, sought, own, &bound, home)
        }
        Err(error) => {
            let error = io::Error::new(error.kind(), error.to_string());
            Err(SearchError::Processes { path: places.processes.clone(), error })
        }
    };
    sought.iter().map(|sought| (sought.clone(), one(sought))).collect()
}

/// `own` are the pod's processes, the oldest first.
fn of_pod(
    places: &Places,
    sought: &Sought,
    own: &[Process],
    bound: &HashMap<NetnsId, PathBuf>,
    home: NetnsId,
) -> Result<Found, SearchError> {
    let mut namespaces: Vec<(NetnsId, PathBuf)> = Vec::new();
    let mut hidden = None;
    for process in own {
        let path = process.namespace(&places.processes);
        let id = match Netns::id_at(&path) {
            Ok(Some(id)) => id,
            // It has ended meanwhile.
            Ok(None) => continue,
            Err(error) => {
                hidden = Some(SearchError::Enter { path, error });
                continue;
            }
        };
        if !namespaces.iter().any(|(known, _)| *known == id) {
            namespaces.push((id, path));
        }
    }
    if namespaces.is_empty() {
        return Err(hidden.unwrap_or(SearchError::NoProcess { path: places.processes.clone() }));
    }
    namespaces.retain(|(id, _)| *id != home);
    let mut held = Vec::new();
    let mut refused = SearchError::NodesOwn;
    for (id, path) in namespaces {
        match holding(&path, id, &sought.addresses) {
            Ok(netns) => held.push((netns, bound.get(&id).cloned(), path)),
            Err(error) => refused = error,
        }
    }
    // A process may make itself a namespace with the pod's addresses; no runtime binds that.
    if held.len() > 1 && held.iter().filter(|(_, bound, _)| bound.is_some()).count() == 1 {
        held.retain(|(_, bound, _)| bound.is_some());
    }
    if held.len() > 1 {
        let paths: Vec<String> = held.iter().map(|(_, _, path)| path.display().to_string()).collect();
        return Err(SearchError::Ambiguous { paths: paths.join(", ") });
    }
    let (netns, bound, path) = held.pop().ok_or(refused)?;
    Ok(Found { netns: netns.into_fd(), path: bound.unwrap_or(path) })
}

/// Opens a namespace if it is still the one meant and holds all these addresses.
fn holding(path: &Path, id: NetnsId, addresses: &[IpAddr]) -> Result<Netns, SearchError> {
    let failed = |error: io::Error| SearchError::Enter { path: path.to_owned(), error };
    let netns = Netns::open(path).map_err(failed)?;
    if netns.id() != id {
        return Err(failed(io::Error::other("its process has ended, and another has its number")));
    }
    let held = netns.run(addresses_here).map_err(failed)?.map_err(failed)?;
    match addresses.iter().find(|address| !held.contains(address)) {
        None => Ok(netns),
        Some(missing) => {
            let outside = held.iter().filter(|held| !held.is_loopback());
            let outside: Vec<String> = outside.map(ToString::to_string).collect();
            let held = if outside.is_empty() { "none".to_owned() } else { outside.join(", ") };
            Err(SearchError::OtherAddresses { path: path.to_owned(), missing: *missing, held })
        }
    }
}

/// Of every interface in the namespace of the calling thread.
fn addresses_here() -> io::Result<Vec<IpAddr>> {
    let interfaces = getifaddrs()?;
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
    };
    Ok(interfaces.filter_map(address).collect())
}

/// The namespaces that are bound in a directory. None where it is not there.
fn bound(directory: &Path) -> HashMap<NetnsId, PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let bound = entries.filter_map(|entry| Some((Netns::id_at(&entry.path()).ok()??, entry.path())));
    bound.collect()
}
