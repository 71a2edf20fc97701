//! Rules that node proxies of the past left in pods, on a node whose mesh is taken away.

use std::io;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use super::kept::{KeptCapture, KeptPod, KeptPods};
use crate::intercept::Netns;
use crate::intercept::rules::{Firewall, FirewallError, RuleError, RulePlan, Rules};

/// Why rules of a pod are left.
#[derive(Debug, Error)]
pub enum RemovalError {
    #[error("the kept list of pods: {0}")]
    Kept(io::Error),
    #[error("{pod}: cannot enter the pod's namespace: {error}")]
    Enter { pod: String, error: io::Error },
    #[error("{pod}: {error}")]
    Firewall { pod: String, error: FirewallError },
    #[error("{pod}: {error}")]
    Rules { pod: String, error: RuleError },
}

/// Removes the rules of every pod in the kept list of a state directory, and the pod from the list. Connections that were
/// captured are lost with the process that carried them. Gives the number of pods that had rules.
///
/// # Errors
/// With the first pod whose rules cannot be removed; the others are rid of theirs.
pub async fn remove_rules(state_directory: &Path) -> Result<usize, RemovalError> {
    let kept = KeptPods::load(state_directory).map_err(RemovalError::Kept)?;
    let (mut removed, mut failed) = (0, None);
    for pod in kept.all() {
        let Some(capture) = &pod.capture else { continue };
        match remove(&pod, capture).await {
            Ok(()) => {
                removed += 1;
                kept.set_capture(&pod.pod.uid, None).map_err(RemovalError::Kept)?;
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(removed), Err)
}

async fn remove(pod: &KeptPod, capture: &KeptCapture) -> Result<(), RemovalError> {
    let name = || format!("pod {}/{}", pod.pod.namespace, pod.pod.name);
    let enter = |error| RemovalError::Enter { pod: name(), error };
    // A namespace that is gone took its rules along; so did one whose place another has.
    if Netns::id_at(&pod.netns_path).map_err(enter)? != Some(pod.netns) {
        return Ok(());
    }
    let netns = Netns::open(&pod.netns_path).map_err(enter)?;
    let firewall = Firewall::detect(capture.firewall.into())
        .map_err(|error| RemovalError::Firewall { pod: name(), error })?;
    let mut rules = Rules::new(Arc::new(firewall), Arc::new(netns)).map_err(enter)?;
    let plan = RulePlan::leaving(capture.interception);
    rules.remove(&plan).await.map_err(|error| RemovalError::Rules { pod: name(), error })
}
