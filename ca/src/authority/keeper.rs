//! Keeps the roots in a data directory: makes the first one, replaces the active one in steps that survive a restart,
//! publishes the bundle to a file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{fs, io};

use culvert_identity::admin::Check;
use culvert_identity::files::{self, Readers};
use culvert_identity::{TrustBundle, TrustDomain};
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tokio::sync::watch;

use super::issuing::Issuing;
use super::provided::{Provided, ProvidedError};
use super::secret::SecretError;
use super::state::{NewRoot, RootError, State, Step};
use super::store::{Store, StoreError};

/// How often the data directory, the clock and the published bundle are looked at.
const TICK: Duration = Duration::from_millis(500);

/// What the replacement of a root depends on.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a new root is published before it signs. Longer than it takes for the bundle to reach everybody.
    pub overlap: Duration,
    /// The longest lifetime of a certificate.
    pub max_lifetime: Duration,
}

/// Why the roots could not be kept.
#[derive(Debug, Error)]
pub enum KeeperError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("the Secret with the roots vanishes as often as it is made; something deletes it")]
    Vanishes,
    #[error("the provided root: {0}")]
    Provided(#[from] ProvidedError),
    #[error("publishing the trust bundle: {0}")]
    Publish(#[from] io::Error),
}

/// Owns the data directory and everything that changes in it.
pub struct Keeper {
    store: Store,
    state: State,
    timing: Timing,
    provided: Option<Provided>,
    published: PathBuf,
    issuing: watch::Sender<Arc<Issuing>>,
}

impl Keeper {
    /// Loads the roots, or makes the first, and publishes the bundle to the file `published`.
    ///
    /// # Errors
    /// When what is kept is damaged or of another trust domain, or nothing can be written.
    pub fn start(
        store: Store,
        trust_domain: &TrustDomain,
        timing: Timing,
        provided: Option<Provided>,
        published: PathBuf,
        now: SystemTime,
    ) -> Result<Self, KeeperError> {
        let state = match store.load(trust_domain)? {
            Some(state) => state,
            None => first_state(trust_domain, provided.as_ref(), now)?,
        };
        let (issuing, _) = watch::channel(Arc::new(Issuing::of(&state)?));
        let mut keeper = Self { store, state, timing, provided, published, issuing };
        let mut wanted = keeper.state.clone();
        wanted.allow_lifetime(timing.max_lifetime);
        // Saved in any case: the first root must be on disk before it is published or signs.
        keeper.store.save(&wanted)?;
        keeper.state = wanted;
        keeper.tick(now)?;
        Ok(keeper)
    }

    /// What signs now, and as it changes.
    pub fn issuing(&self) -> watch::Receiver<Arc<Issuing>> {
        self.issuing.subscribe()
    }

    /// Looks after the roots as long as the process runs.
    pub async fn run(mut self, check: Check) {
        let mut last_error = String::new();
        loop {
            match self.tick(SystemTime::now()) {
                Ok(()) => {
                    last_error.clear();
                    check.ready();
                }
                Err(error) => {
                    let error = error.to_string();
                    check.missing(error.as_str());
                    if error != last_error {
                        tracing::error!(
                            error,
                            "the roots cannot be looked after; signing goes on with those in force"
                        );
                        last_error = error;
                    }
                }
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Does what is due at `now`. Each step is on disk before anybody sees it; a step that fails is tried again.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn tick(&mut self, now: SystemTime) -> Result<(), KeeperError> {
        let put_down = self.store.next()?;
        let provided = self.provided.as_ref().map(|provided| provided.read(now)).transpose();
        let next = put_down.clone().or_else(|| provided.as_ref().ok().cloned().flatten());
        let is_public = |anchors: &[CertificateDer<'static>]| {
            let published = TrustBundle::from_file(&self.published);
            published.is_ok_and(|bundle| anchors.iter().all(|anchor| bundle.roots().contains(anchor)))
        };
        let (state, steps) = self.state.due(next.as_ref(), is_public, now, self.timing.overlap)?;
        if state != self.state {
            let issuing = Issuing::of(&state)?;
            self.store.save(&state)?;
            self.state = state;
            self.issuing.send_replace(Arc::new(issuing));
        }
        steps.iter().for_each(|step| log(step, self.state.roots.len()));
        self.publish()?;
        // Not before it is in the state on disk, or a crash in between would lose it.
        if put_down
            .is_some_and(|next| self.state.roots.iter().any(|root| root.certificate == next.certificate))
        {
            self.store.remove_next()?;
        }
        // Told last: what is in force was looked after all the same.
        provided?;
        Ok(())
    }

    /// Writes the bundle unless the file holds it already.
    fn publish(&self) -> io::Result<()> {
        let issuing = self.issuing.borrow().clone();
        match fs::read(&self.published) {
            Ok(content) if content == issuing.bundle_pem().as_bytes() => Ok(()),
            _ => files::replace(&self.published, issuing.bundle_pem().as_bytes(), Readers::Everybody),
        }
    }
}

/// The provided root, else one that is made.
pub(super) fn first_state(
    trust_domain: &TrustDomain,
    provided: Option<&Provided>,
    now: SystemTime,
) -> Result<State, KeeperError> {
    let root = match provided {
        Some(provided) => provided.read(now)?,
        None => {
            tracing::info!(%trust_domain, "first start here: making a root");
            NewRoot::generate(trust_domain, now)?
        }
    };
    Ok(State::new(trust_domain.clone(), root))
}

pub(super) fn log(step: &Step, roots: usize) {
    match step {
        Step::Announced { signs_from } => {
            let seconds = super::seconds(*signs_from);
            tracing::info!(roots, signs_from = seconds, "next root announced");
        }
        Step::Activated => tracing::info!(roots, "next root signs now; the one before is retiring"),
        Step::Retired => tracing::info!(roots, "a retired root has left the bundle"),
    }
}
