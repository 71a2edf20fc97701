//! Looking again and again, beside everything else.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{Found, Places, SearchError, Sought, find};
use crate::intercept::NetnsId;

/// Between two looks, at least: one reads about every process of the node.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// What one look came to.
pub type Results = Vec<(Sought, Result<Found, SearchError>)>;

/// Looks for pods' namespaces for as long as some are missing.
pub struct Search {
    sought: watch::Sender<Vec<Sought>>,
    results: mpsc::Receiver<Results>,
    _task: AbortOnDropHandle<()>,
}

impl Search {
    /// `home` is the node's own namespace.
    pub fn start(places: Places, home: NetnsId) -> Self {
        let (sought, seeks) = watch::channel(Vec::new());
        let (tell, results) = mpsc::channel(1);
        let look = move |sought: Vec<Sought>| find(&places, &sought, home);
        Self { sought, results, _task: AbortOnDropHandle::new(tokio::spawn(run(look, seeks, tell))) }
    }

    /// Looks for these, and no longer for others.
    pub fn seek(&self, sought: Vec<Sought>) {
        self.sought.send_if_modified(|current| {
            let differs = *current != sought;
            *current = sought;
            differs
        });
    }

    /// What the next look comes to.
    pub async fn next(&mut self) -> Results {
        match self.results.recv().await {
            Some(results) => results,
            None => std::future::pending().await,
        }
    }
}

async fn run(
    look: impl Fn(Vec<Sought>) -> Results + Clone + Send + 'static,
    mut sought: watch::Receiver<Vec<Sought>>,
    tell: mpsc::Sender<Results>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        if sought.wait_for(|sought| !sought.is_empty()).await.is_err() {
            return;
        }
        let (look, now) = (look.clone(), sought.borrow_and_update().clone());
        match tokio::task::spawn_blocking(move || look(now)).await {
            Ok(results) => {
                if tell.send(results).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::error!(%error, "looking for pods' network namespaces was cut short"),
        }
        tokio::time::sleep(FIRST_PAUSE).await;
        // A pod that was not looked for yet does not wait as long as those that were.
        let rest = tokio::time::timeout(pause.saturating_sub(FIRST_PAUSE), sought.changed()).await;
        pause = if rest.is_ok() { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use culvert_api::enrolment::PodRef;

    use super::*;
    use crate::state::testing::uid;

    fn sought(name: &str) -> Sought {
        let pod = PodRef { uid: format!("{name}-uid"), namespace: "shop".into(), name: name.into() };
        Sought { workload: uid(name), pod, addresses: vec![IpAddr::from([10, 0, 0, 1])] }
    }

    #[tokio::test(start_paused = true)]
    async fn it_looks_ever_less_often_for_the_same_and_soon_for_another() {
        let looks = Arc::new(AtomicUsize::new(0));
        let counted = looks.clone();
        let look = move |sought: Vec<Sought>| {
            counted.fetch_add(1, Ordering::SeqCst);
            let missing = |sought| (sought, Err(SearchError::NoProcess { path: PathBuf::new() }));
            sought.into_iter().map(missing).collect()
        };
        let (seek, seeks) = watch::channel(Vec::new());
        let (tell, mut results) = mpsc::channel(1);
        tokio::spawn(run(look, seeks, tell));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(looks.load(Ordering::SeqCst), 0, "nobody is missing");
        let began = tokio::time::Instant::now();
        seek.send_replace(vec![sought("a")]);
        let mut at = Vec::new();
        for _ in 0..6 {
            results.recv().await.unwrap();
            at.push(began.elapsed().as_secs());
        }
        assert_eq!(at, [0, 1, 3, 7, 15, 30]);
        seek.send_replace(vec![sought("a"), sought("b")]);
        assert_eq!(results.recv().await.unwrap().len(), 2);
        assert_eq!(began.elapsed().as_secs(), 31);
        seek.send_replace(Vec::new());
        let before = looks.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(looks.load(Ordering::SeqCst), before, "nobody is missing any more");
    }
}
