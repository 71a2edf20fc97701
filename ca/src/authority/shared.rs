//! Keeps the roots of a Secret, together with other replicas: each looks at what is kept, does what is due over the version
//! it has seen, and goes by what the others have done.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_identity::TrustDomain;
use culvert_identity::admin::Check;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::issuing::Issuing;
use super::keeper::{KeeperError, Timing, first_state, log};
use super::provided::Provided;
use super::secret::{Kept, SecretStore, Written};
use super::state::{NewRoot, State};

/// How often the Secret, the clock and the published bundle are looked at.
const TICK: Duration = Duration::from_secs(2);
/// Attempts at the start, while other replicas start too.
const ATTEMPTS: usize = 10;

/// Owns what this replica knows of the roots.
pub struct SharedKeeper {
    store: SecretStore,
    trust_domain: TrustDomain,
    state: State,
    timing: Timing,
    provided: Option<Provided>,
    issuing: watch::Sender<Arc<Issuing>>,
}

impl SharedKeeper {
    /// Loads the roots, or makes the first, and publishes the bundle.
    ///
    /// # Errors
    /// When what is kept is damaged or of another trust domain, or the API server does not answer.
    pub async fn start(
        store: SecretStore,
        trust_domain: &TrustDomain,
        timing: Timing,
        provided: Option<Provided>,
        now: SystemTime,
    ) -> Result<Self, KeeperError> {
        let kept = first(&store, trust_domain, provided.as_ref(), now).await?;
        let (issuing, _) = watch::channel(Arc::new(Issuing::of(&kept.state)?));
        let trust_domain = trust_domain.clone();
        let mut keeper = Self { store, trust_domain, state: kept.state, timing, provided, issuing };
        keeper.tick(now).await?;
        Ok(keeper)
    }

    /// What signs now, and as it changes.
    pub fn issuing(&self) -> watch::Receiver<Arc<Issuing>> {
        self.issuing.subscribe()
    }

    /// Looks after the roots as long as the process runs. While the API server is away, signing goes on with those in force.
    pub async fn run(mut self, check: Check) {
        let mut last_error = String::new();
        check.ready();
        loop {
            match self.tick(SystemTime::now()).await {
                Ok(()) => last_error.clear(),
                Err(error) => {
                    let error = error.to_string();
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

    /// Does what is due at `now`. Each step is kept before anybody sees it; one that another replica was quicker with is
    /// seen at the next look.
    ///
    /// # Errors
    /// When the API server does not answer, or what is kept or provided is not usable.
    pub async fn tick(&mut self, now: SystemTime) -> Result<(), KeeperError> {
        let Some(kept) = self.store.load(&self.trust_domain).await? else {
            tracing::error!("the Secret with the roots is gone; putting it back");
            self.store.create(&self.state).await?;
            return Ok(());
        };
        let published = self.store.published().await?;
        let provided = self.provided.as_ref().map(|provided| provided.read(now)).transpose();
        let next = kept.next.clone().or_else(|| provided.as_ref().ok().cloned().flatten());
        let is_public = |anchors: &[CertificateDer<'static>]| {
            published
                .as_ref()
                .is_some_and(|bundle| anchors.iter().all(|anchor| bundle.roots().contains(anchor)))
        };
        let (mut state, steps) = kept.state.due(next.as_ref(), is_public, now, self.timing.overlap)?;
        state.allow_lifetime(self.timing.max_lifetime);
        let left = kept.next.as_ref().filter(|next| !has(&state, next));
        if (state != kept.state || left.is_some() != kept.next.is_some())
            && self.store.replace(&state, left, &kept).await? == Written::Conflict
        {
            return Ok(());
        }
        steps.iter().for_each(|step| log(step, state.roots.len()));
        self.put_in_force(state)?;
        let bundle = self.issuing.borrow().bundle().clone();
        if published.as_ref() != Some(&bundle) {
            self.store.publish(&bundle).await?;
        }
        // Told last: what is in force was looked after all the same.
        provided?;
        Ok(())
    }

    fn put_in_force(&mut self, state: State) -> Result<(), KeeperError> {
        if state != self.state {
            self.issuing.send_replace(Arc::new(Issuing::of(&state)?));
            self.state = state;
        }
        Ok(())
    }
}

fn has(state: &State, root: &NewRoot) -> bool {
    state.roots.iter().any(|record| record.certificate == root.certificate)
}

/// What is kept, made if nobody has.
async fn first(
    store: &SecretStore,
    trust_domain: &TrustDomain,
    provided: Option<&Provided>,
    now: SystemTime,
) -> Result<Kept, KeeperError> {
    for _ in 0..ATTEMPTS {
        if let Some(kept) = store.load(trust_domain).await? {
            return Ok(kept);
        }
        // Made or not: what counts is what is there then.
        store.create(&first_state(trust_domain, provided, now)?).await?;
    }
    Err(KeeperError::Vanishes)
}
