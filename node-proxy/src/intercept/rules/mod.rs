//! The rules that steer a pod's traffic to the proxy: a model ([`RulePlan`]), rendered for the program at hand
//! ([`Firewall`]), and the policy routing beside it. [`Rules`] keeps them in force in one pod.

mod firewall;
mod iptables;
mod model;
mod nft;
mod program;
mod routing;
mod sysctl;
#[cfg(test)]
mod tests;
mod watch;

use std::io;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

pub use firewall::{Firewall, FirewallChoice, FirewallError, FirewallKind};
pub use model::{Entry, Exclusions, RulePlan};
pub use program::ProgramError;
pub use routing::RoutingError;
pub use sysctl::SysctlError;

use super::Netns;
use firewall::Ipv6;
use routing::PolicyRouting;
use watch::RuleWatch;

/// How often the rules are read back before somebody who keeps changing them wins.
const READ_BACK_ATTEMPTS: usize = 5;

/// Why rules are not in force.
#[derive(Debug, Error)]
pub enum RuleError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Routing(#[from] RoutingError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error("cannot enter the pod's namespace: {0}")]
    Enter(#[from] io::Error),
    #[error("the rules read back are not those that were loaded: another program changes them")]
    Altered,
}

/// What [`Rules::verify`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    Intact,
    /// Somebody had changed or removed rules; they are in force again.
    Repaired,
}

/// The rules of one pod. Dropping it leaves them in force: a pod without its proxy stays closed.
pub struct Rules {
    netns: Arc<Netns>,
    firewall: Arc<Firewall>,
    routing: PolicyRouting,
    /// None where the kernel has no nf_tables: then the rules are listed each time.
    watch: Option<RuleWatch>,
    installed: Option<Installed>,
}

struct Installed {
    plan: RulePlan,
    listing: String,
    /// None when the kernel's count does not cover these rules: those of the old iptables are not in nf_tables.
    generation: Option<u32>,
}

impl Rules {
    /// Changes nothing yet. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn new(firewall: Arc<Firewall>, netns: Arc<Netns>) -> io::Result<Self> {
        let routing = PolicyRouting::new(netns.clone())?;
        let watch = RuleWatch::new(&netns).ok();
        Ok(Self { netns, firewall, routing, watch, installed: None })
    }

    /// The plan in force, None before the first [`Rules::apply`].
    pub fn plan(&self) -> Option<&RulePlan> {
        self.installed.as_ref().map(|installed| &installed.plan)
    }

    /// Puts a plan in force, in place of an earlier one of this process or another. No open connection is touched.
    ///
    /// # Errors
    /// When the plan is not in force; what was in force before may still be.
    pub async fn apply(&mut self, plan: &RulePlan) -> Result<(), RuleError> {
        sysctl::ensure(&self.netns)??;
        // First: marked packets without it would leave the pod as they are.
        self.routing.ensure(&plan.interception).await?;
        let ipv6 = self.ipv6()?;
        let before = self.generation();
        self.firewall.load(&self.netns, plan, ipv6).await?;
        let counted = self.generation() != before;
        // Again, because some settings exist only since connection tracking is in use.
        sysctl::ensure(&self.netns)??;
        for _ in 0..READ_BACK_ATTEMPTS {
            let generation = self.generation();
            let Some(listing) = self.firewall.list(&self.netns, plan, ipv6).await? else { break };
            if generation == self.generation() {
                let generation = generation.filter(|_| counted);
                self.installed = Some(Installed { plan: plan.clone(), listing, generation });
                return Ok(());
            }
        }
        Err(RuleError::Altered)
    }

    /// Checks that the plan is still in force and repairs it. Costs a few system calls while nobody changed rules in
    /// the namespace. Before the first [`Rules::apply`] there is nothing to check.
    ///
    /// # Errors
    /// When rules could not be checked or repaired.
    pub async fn verify(&mut self) -> Result<Verified, RuleError> {
        let Some(installed) = &self.installed else { return Ok(Verified::Intact) };
        let routes_added = self.routing.ensure(&installed.plan.interception).await?;
        let generation = self.generation();
        let unchanged = installed.generation.is_some() && generation == installed.generation;
        if !unchanged && !self.is_intact(installed).await? {
            let plan = installed.plan.clone();
            self.apply(&plan).await?;
            return Ok(Verified::Repaired);
        }
        if let Some(installed) = self.installed.as_mut().filter(|installed| installed.generation.is_some()) {
            installed.generation = generation;
        }
        Ok(if routes_added == 0 { Verified::Intact } else { Verified::Repaired })
    }

    /// Waits until rules of the namespace were changed by anybody; then [`Rules::verify`] is worth a call. Where the
    /// kernel cannot tell, this never ends.
    pub async fn changed(&self) {
        match &self.watch {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Removes rules and policy routing of a plan, which need not be in force.
    ///
    /// # Errors
    /// When something of it is left.
    pub async fn remove(&mut self, plan: &RulePlan) -> Result<(), RuleError> {
        self.installed = None;
        self.firewall.unload(&self.netns, self.ipv6()?).await?;
        self.routing.remove(&plan.interception).await?;
        Ok(())
    }

    /// Removes the filter rules that another firewall program loaded; the policy routing stays.
    ///
    /// # Errors
    /// When something of it is left.
    pub async fn remove_those_of(&self, other: &Firewall) -> Result<(), RuleError> {
        Ok(other.unload(&self.netns, self.ipv6()?).await?)
    }

    async fn is_intact(&self, installed: &Installed) -> Result<bool, RuleError> {
        // The common damage, a flush, is told without running a program: while the rules are missing every packet of
        // a captured connection goes astray.
        if let (FirewallKind::Nft, Some(watch)) = (self.firewall.kind(), &self.watch)
            && matches!(watch.has_table(nft::NAME), Ok(false))
        {
            return Ok(false);
        }
        let listing = self.firewall.list(&self.netns, &installed.plan, self.ipv6()?).await?;
        Ok(listing.as_ref() == Some(&installed.listing))
    }

    fn generation(&self) -> Option<u32> {
        self.watch.as_ref().and_then(|watch| watch.generation().ok())
    }

    /// The kernel knows IPv6, on or off in this namespace.
    fn ipv6(&self) -> io::Result<Ipv6> {
        let present = self.netns.run(|| Path::new("/proc/thread-self/net/if_inet6").exists())?;
        Ok(if present { Ipv6::Present } else { Ipv6::Absent })
    }
}
