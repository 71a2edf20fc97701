//! The pods of this node, kept in `pods.json` of the state directory, so that a restarted node proxy finds their
//! namespaces again and goes on where the last one was.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use culvert_api::enrolment::PodRef;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::established::Connection;
use crate::handover::Charge;
use crate::intercept::NetnsId;
use crate::intercept::rules::FirewallKind;
use crate::state::model::{Interception, WorkloadUid};

const FILE: &str = "pods.json";
/// Longest list of old connections that is kept per pod.
const MOST_CONNECTIONS: usize = 10_000;

/// One pod whose namespace was handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptPod {
    pub pod: PodRef,
    pub netns_path: PathBuf,
    pub netns: NetnsId,
    pub addresses: Vec<IpAddr>,
    /// Rules may be in the namespace.
    pub capture: Option<KeptCapture>,
}

/// What was, or was about to be, in force in a pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptCapture {
    pub workload: String,
    #[serde(with = "InterceptionFields")]
    pub interception: Interception,
    pub firewall: FirewallKind,
    /// The pod was reported as enrolled.
    pub enrolled: bool,
    /// Opened before enrolment, and open when this was written.
    pub uncaptured: HashSet<Connection>,
}

impl KeptCapture {
    pub fn uid(&self) -> WorkloadUid {
        WorkloadUid(self.workload.as_str().into())
    }
}

/// How [`Interception`] is written down.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Interception")]
struct InterceptionFields {
    mark_mask: u32,
    proxy_mark: u32,
    outbound_mark: u32,
    reply_mark: u32,
    inbound_mark: u32,
    route_table: u32,
    rule_priority: u32,
    outbound_port: u16,
    inbound_port: u16,
    hbone_port: u16,
}

/// The list, in memory and on disk. The file is replaced whole, readable by its owner only.
#[derive(Debug)]
pub(super) struct KeptPods {
    path: PathBuf,
    pods: Mutex<BTreeMap<String, KeptPod>>,
    charge: Charge,
}

impl KeptPods {
    /// Reads the list. One that does not parse is put aside, because pods must be able to start.
    ///
    /// # Errors
    /// When the directory or the file cannot be used.
    pub fn load(directory: &Path, charge: Charge) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let path = directory.join(FILE);
        let pods = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Vec<KeptPod>>(&bytes) {
                Ok(pods) => pods,
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "the kept list of pods is not readable and was put aside");
                    fs::rename(&path, path.with_extension("json.unreadable"))?;
                    Vec::new()
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let pods = pods.into_iter().map(|pod| (pod.pod.uid.clone(), pod)).collect();
        Ok(Self { path, pods: Mutex::new(pods), charge })
    }

    pub fn all(&self) -> Vec<KeptPod> {
        self.pods.lock().values().cloned().collect()
    }

    /// # Errors
    /// When the list cannot be written, as with all changes; the change holds for this process all the same.
    pub fn insert(&self, pod: KeptPod) -> io::Result<()> {
        self.change(|pods| pods.insert(pod.pod.uid.clone(), pod.clone()).as_ref() != Some(&pod))
    }

    pub fn remove(&self, pod_uid: &str) -> io::Result<()> {
        self.change(|pods| pods.remove(pod_uid).is_some())
    }

    /// Sets what is in force in a pod; unknown pods are left unknown.
    pub fn set_capture(&self, pod_uid: &str, mut capture: Option<KeptCapture>) -> io::Result<()> {
        if let Some(capture) = capture.as_mut().filter(|capture| capture.uncaptured.len() > MOST_CONNECTIONS)
        {
            capture.uncaptured = capture.uncaptured.drain().take(MOST_CONNECTIONS).collect();
        }
        self.change(|pods| match pods.get_mut(pod_uid) {
            Some(pod) if pod.capture != capture => {
                pod.capture = capture;
                true
            }
            _ => false,
        })
    }

    /// `change` says whether there is anything to write.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, KeptPod>) -> bool) -> io::Result<()> {
        let mut pods = self.pods.lock();
        if change(&mut pods) { self.write(&pods.values().collect::<Vec<_>>()) } else { Ok(()) }
    }

    /// Writes what may not have been written when it changed.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn flush(&self) -> io::Result<()> {
        self.write(&self.pods.lock().values().collect::<Vec<_>>())
    }

    fn write(&self, pods: &[&KeptPod]) -> io::Result<()> {
        // The file is that of the process in charge.
        if !self.charge.is_held() {
            return Ok(());
        }
        let new = self.path.with_extension("json.new");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(pods)?)?;
        // Not synced: what it speaks of does not survive the machine either.
        fs::rename(&new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn pod(uid: &str) -> KeptPod {
        KeptPod {
            pod: PodRef { uid: uid.into(), namespace: "shop".into(), name: "cart".into() },
            netns_path: "/run/netns/cart".into(),
            netns: NetnsId { dev: 4, ino: 5 },
            addresses: vec![IpAddr::from([10, 0, 0, 1])],
            capture: None,
        }
    }

    #[test]
    fn outlives_the_process_readable_by_its_owner_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let kept = KeptPods::load(directory.path(), Charge::held()).expect("an empty list");
        kept.insert(pod("a")).expect("written");
        kept.insert(pod("b")).expect("written");
        kept.remove("a").expect("written");
        let again = KeptPods::load(directory.path(), Charge::held()).expect("the list");
        assert_eq!(again.all(), vec![pod("b")]);
        again.charge.give_up();
        again.remove("b").expect("not written");
        let third = KeptPods::load(directory.path(), Charge::awaited()).expect("the list");
        assert_eq!(third.all(), vec![pod("b")], "the file is another process's");
        let mode = fs::metadata(directory.path().join(FILE)).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_unreadable_list_is_put_aside() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join(FILE), "[{").expect("written");
        assert!(KeptPods::load(directory.path(), Charge::held()).expect("an empty list").all().is_empty());
        assert!(directory.path().join("pods.json.unreadable").exists());
    }
}
