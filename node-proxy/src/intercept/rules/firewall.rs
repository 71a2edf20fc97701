//! The program that loads the rules: `nft`, or `iptables-restore` with its IPv6 twin.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::iptables;
use super::model::{Family, RulePlan};
use super::nft;
use super::program::{self, ProgramError};
use crate::intercept::Netns;

/// Rule programs that run at once on this node, when many pods are enrolled together.
const PROGRAMS_AT_ONCE: usize = 4;

/// Setting `--firewall`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FirewallChoice {
    /// nft when it is installed, else iptables.
    #[default]
    Auto,
    Nft,
    Iptables,
}

/// What loads the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirewallKind {
    Nft,
    Iptables,
}

impl From<FirewallKind> for FirewallChoice {
    fn from(kind: FirewallKind) -> Self {
        match kind {
            FirewallKind::Nft => Self::Nft,
            FirewallKind::Iptables => Self::Iptables,
        }
    }
}

/// No program to load rules with.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FirewallError {
    #[error("neither nft nor iptables-restore is installed: install the package nftables (or iptables)")]
    None,
    #[error("{program} is not installed: install the package {package}, or choose another --firewall")]
    Missing { program: &'static str, package: &'static str },
}

/// Loads, lists and removes the rules of one pod at a time.
#[derive(Debug)]
pub struct Firewall {
    programs: Programs,
    turns: Semaphore,
}

#[derive(Debug)]
enum Programs {
    Nft { nft: PathBuf },
    Iptables { v4: Tools, v6: Tools },
}

#[derive(Debug)]
struct Tools {
    restore: PathBuf,
    save: PathBuf,
}

/// Whether the namespace has IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ipv6 {
    Present,
    Absent,
}

impl Firewall {
    /// Finds the programs on `PATH` and in the directories for system programs.
    ///
    /// # Errors
    /// Names what to install.
    pub fn detect(choice: FirewallChoice) -> Result<Self, FirewallError> {
        let programs = match choice {
            FirewallChoice::Nft => find_nft()?,
            FirewallChoice::Iptables => find_iptables()?,
            FirewallChoice::Auto => {
                find_nft().or_else(|_| find_iptables()).map_err(|_| FirewallError::None)?
            }
        };
        Ok(Self { programs, turns: Semaphore::new(PROGRAMS_AT_ONCE) })
    }

    pub fn kind(&self) -> FirewallKind {
        match self.programs {
            Programs::Nft { .. } => FirewallKind::Nft,
            Programs::Iptables { .. } => FirewallKind::Iptables,
        }
    }

    /// Puts a plan in force, in place of what was there of ours.
    pub(super) async fn load(&self, netns: &Netns, plan: &RulePlan, ipv6: Ipv6) -> Result<(), ProgramError> {
        let _turn = self.turns.acquire().await;
        match &self.programs {
            Programs::Nft { nft } => load_nft(netns, nft, &nft::render(plan)).await,
            Programs::Iptables { v4, v6 } => {
                for (tools, family) in families(v4, v6, ipv6) {
                    let present = tools.saved(netns).await?;
                    tools.restore(netns, &iptables::render(plan, family, &present)).await?;
                }
                Ok(())
            }
        }
    }

    /// Our rules as the kernel has them, in a form that only serves to be compared. None when they are not those of
    /// the plan, by number.
    pub(super) async fn list(
        &self,
        netns: &Netns,
        plan: &RulePlan,
        ipv6: Ipv6,
    ) -> Result<Option<String>, ProgramError> {
        let _turn = self.turns.acquire().await;
        match &self.programs {
            Programs::Nft { nft } => {
                let arguments = ["list", "table", "inet", nft::NAME];
                let listing = match program::run(netns, nft, &arguments, "").await {
                    Ok(listing) => listing,
                    // There is no such table.
                    Err(ProgramError::Failed { .. }) => return Ok(None),
                    Err(error) => return Err(error),
                };
                let wanted: usize = plan.chains().iter().map(|(_, rules)| rules.len()).sum();
                Ok((nft::count_rules(&listing) == wanted).then_some(listing))
            }
            Programs::Iptables { v4, v6 } => {
                let mut listing = String::new();
                for (tools, family) in families(v4, v6, ipv6) {
                    let own = iptables::own_lines(&tools.saved(netns).await?);
                    if own.lines().count() != iptables::count_lines(plan, family) {
                        return Ok(None);
                    }
                    listing.push_str(&own);
                }
                Ok(Some(listing))
            }
        }
    }

    /// Removes our rules; they need not exist.
    pub(super) async fn unload(&self, netns: &Netns, ipv6: Ipv6) -> Result<(), ProgramError> {
        let _turn = self.turns.acquire().await;
        match &self.programs {
            Programs::Nft { nft } => load_nft(netns, nft, &nft::render_removal()).await,
            Programs::Iptables { v4, v6 } => {
                for (tools, _) in families(v4, v6, ipv6) {
                    let present = tools.saved(netns).await?;
                    tools.restore(netns, &iptables::render_removal(&present)).await?;
                }
                Ok(())
            }
        }
    }
}

impl Tools {
    async fn saved(&self, netns: &Netns) -> Result<String, ProgramError> {
        program::run(netns, &self.save, &["-t", "mangle"], "").await
    }

    async fn restore(&self, netns: &Netns, script: &str) -> Result<(), ProgramError> {
        // -w: another program may hold the lock of the old iptables for a moment.
        program::run(netns, &self.restore, &["--noflush", "-w", "3"], script).await.map(drop)
    }
}

async fn load_nft(netns: &Netns, nft: &Path, script: &str) -> Result<(), ProgramError> {
    program::run(netns, nft, &["-f", "-"], script).await.map(drop)
}

fn families<'a>(v4: &'a Tools, v6: &'a Tools, ipv6: Ipv6) -> impl Iterator<Item = (&'a Tools, Family)> {
    let v6 = (ipv6 == Ipv6::Present).then_some((v6, Family::V6));
    [(v4, Family::V4)].into_iter().chain(v6)
}

fn find_nft() -> Result<Programs, FirewallError> {
    Ok(Programs::Nft { nft: find("nft", "nftables")? })
}

fn find_iptables() -> Result<Programs, FirewallError> {
    let tools =
        |restore, save| Ok(Tools { restore: find(restore, "iptables")?, save: find(save, "iptables")? });
    Ok(Programs::Iptables {
        v4: tools("iptables-restore", "iptables-save")?,
        v6: tools("ip6tables-restore", "ip6tables-save")?,
    })
}

fn find(program: &'static str, package: &'static str) -> Result<PathBuf, FirewallError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Ordinary users do not have the directories for system programs on their path.
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or(FirewallError::Missing { program, package })
}
