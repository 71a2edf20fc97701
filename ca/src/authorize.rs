//! Who may have which identity.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_api::names::{
    CONTROLLER_SERVICE_ACCOUNT, NEVER_ENROLLED_NAMESPACES, NODE_PROXY_SERVICE_ACCOUNT, SYSTEM_NAMESPACE,
};
use culvert_identity::token::{Caller, ObjectRef};
use culvert_identity::{Identity, TrustDomain};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::placement::Placement;
use crate::refusal::Refusal;

/// A pod or node that was not seen yet is waited for this long: its token can be quicker than its object.
const PATIENCE: Duration = Duration::from_secs(2);

/// Decides by what is known of pods and nodes.
#[derive(Clone)]
pub struct Authorizer {
    trust_domain: TrustDomain,
    placement: watch::Receiver<Arc<Placement>>,
}

impl Authorizer {
    pub fn new(trust_domain: TrustDomain, placement: watch::Receiver<Arc<Placement>>) -> Self {
        Self { trust_domain, placement }
    }

    /// The identity that is granted to a caller: the one asked for, else its own. Waits up to 2 s for objects that
    /// have not arrived yet.
    ///
    /// # Errors
    /// Why the caller may not have it.
    pub async fn grant(&self, caller: &Caller, asked: Option<&Identity>) -> Result<Identity, Refusal> {
        let own = Identity::new(&self.trust_domain, &caller.namespace, &caller.service_account)?;
        let wanted = asked.unwrap_or(&own);
        if wanted.trust_domain() != self.trust_domain.as_str() {
            return Err(Refusal::TrustDomain { asked: wanted.clone(), own: self.trust_domain.clone() });
        }
        let others = (*wanted != own).then_some(wanted);
        if let Some(identity) = others {
            may_impersonate(caller, identity)?;
        }
        let mut placement = self.placement.clone();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let verdict = judge(&placement.borrow_and_update(), caller, others, SystemTime::now());
            match verdict {
                Ok(()) => return Ok(wanted.clone()),
                Err(refusal) if refusal.may_be_early() => {
                    if !matches!(timeout_at(deadline, placement.changed()).await, Ok(Ok(()))) {
                        return Err(refusal);
                    }
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }
}

/// Whether this caller may ask for somebody else's identity at all.
fn may_impersonate(caller: &Caller, identity: &Identity) -> Result<(), Refusal> {
    if !caller.is(SYSTEM_NAMESPACE, NODE_PROXY_SERVICE_ACCOUNT) {
        return Err(Refusal::NotANodeProxy(name_of(caller)));
    }
    // A stolen node proxy token must not turn into the controller or the authority that run on its node.
    if NEVER_ENROLLED_NAMESPACES.contains(&identity.namespace()) {
        return Err(Refusal::ReservedNamespace(identity.namespace().to_owned()));
    }
    Ok(())
}

/// Whether the caller is still where its token says, and whether its node runs a pod of the identity of `others`.
fn judge(
    placement: &Placement,
    caller: &Caller,
    others: Option<&Identity>,
    now: SystemTime,
) -> Result<(), Refusal> {
    let node = node_of(placement, caller, now)?;
    let Some(identity) = others else { return Ok(()) };
    let node = node.ok_or(Refusal::NoNode)?;
    if placement.runs(&node, identity.namespace(), identity.service_account(), now) {
        Ok(())
    } else {
        Err(Refusal::NoPodOnNode { identity: identity.clone(), node })
    }
}

/// The node the caller runs on, proved by its pod, or for parts of the mesh that run outside pods (sandbox, static
/// processes) by the token's node claim.
fn node_of(placement: &Placement, caller: &Caller, now: SystemTime) -> Result<Option<String>, Refusal> {
    if let Some(pod) = &caller.pod {
        if placement.pod(&pod.uid).is_some() {
            return pods_node(placement, caller, pod, now);
        }
        if !is_of_the_mesh(caller) {
            return Err(Refusal::CallerPodUnknown(format!("{}/{}", caller.namespace, pod.name)));
        }
    } else if !is_of_the_mesh(caller) {
        return Err(Refusal::Unbound(name_of(caller)));
    }
    match &caller.node {
        None => Ok(None),
        Some(node) if placement.has_node(&node.name, &node.uid) => Ok(Some(node.name.clone())),
        Some(node) => Err(Refusal::CallerNodeUnknown(node.name.clone())),
    }
}

fn pods_node(
    placement: &Placement,
    caller: &Caller,
    bound: &ObjectRef,
    now: SystemTime,
) -> Result<Option<String>, Refusal> {
    let name = format!("{}/{}", caller.namespace, bound.name);
    let Some(pod) = placement.pod(&bound.uid) else { return Err(Refusal::CallerPodUnknown(name)) };
    let same_pod = pod.namespace == caller.namespace
        && pod.name == bound.name
        && pod.service_account == caller.service_account;
    let same_node = caller.node.as_ref().is_none_or(|node| pod.node.as_deref() == Some(node.name.as_str()));
    if !same_pod || !same_node {
        return Err(Refusal::CallerPodDiffers(name));
    }
    if !pod.is_live(now) {
        return Err(Refusal::CallerPodEnded(name));
    }
    Ok(pod.node.clone())
}

fn is_of_the_mesh(caller: &Caller) -> bool {
    caller.is(SYSTEM_NAMESPACE, NODE_PROXY_SERVICE_ACCOUNT)
        || caller.is(SYSTEM_NAMESPACE, CONTROLLER_SERVICE_ACCOUNT)
}

fn name_of(caller: &Caller) -> String {
    format!("{}/{}", caller.namespace, caller.service_account)
}

#[cfg(test)]
mod tests;
