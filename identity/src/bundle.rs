//! Trust bundles: the root certificates in force, more than one while a root is being replaced.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;
use x509_parser::parse_x509_certificate;

use crate::certificate::system_time;
use crate::files::Stamp;
use crate::pem;

/// How often a watched bundle file is looked at.
const POLL: Duration = Duration::from_secs(1);
/// How often while nothing good was seen yet, when somebody is waiting.
const FIRST_POLL: Duration = Duration::from_millis(50);
/// No bundle of sane people has more; a bound on what a broken file makes us hold.
const MOST_ROOTS: usize = 64;

/// Why something is not a trust bundle.
#[derive(Debug, Error)]
pub enum BundleError {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("no certificate in it; PEM blocks of type CERTIFICATE are expected")]
    Empty,
    #[error("certificate {number} does not parse: {detail}")]
    Malformed { number: usize, detail: String },
    #[error("certificate {number} is not a certificate authority (basicConstraints), so it cannot be a root")]
    NotAuthority { number: usize },
    #[error("more than {MOST_ROOTS} certificates")]
    TooMany,
    #[error("no usable trust bundle within {waited:?}: {path}: {last}")]
    Deadline { path: PathBuf, waited: Duration, last: String },
}

/// Root certificates, and the store made from them once. Cheap to clone; equal when the same roots are in it, in
/// whatever order.
#[derive(Clone)]
pub struct TrustBundle {
    /// Sorted by content, no root twice.
    roots: Arc<[CertificateDer<'static>]>,
    store: Arc<RootCertStore>,
}

impl TrustBundle {
    /// Reads one or more PEM certificates; text around the blocks is skipped.
    ///
    /// # Errors
    /// When there is none, or one is not a certificate of an authority.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BundleError> {
        let mut roots = Vec::new();
        for (index, root) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let malformed = |error: rustls::pki_types::pem::Error| BundleError::Malformed {
                number: index + 1,
                detail: format!("{error:?}"),
            };
            roots.push(root.map_err(malformed)?);
            if roots.len() > MOST_ROOTS {
                return Err(BundleError::TooMany);
            }
        }
        Self::from_der(roots)
    }

    /// # Errors
    /// As [`TrustBundle::from_pem`].
    pub fn from_der(mut roots: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        if roots.is_empty() {
            return Err(BundleError::Empty);
        }
        let mut store = RootCertStore::empty();
        for (index, root) in roots.iter().enumerate() {
            let number = index + 1;
            let malformed = |detail: String| BundleError::Malformed { number, detail };
            let (_, parsed) = parse_x509_certificate(root).map_err(|error| malformed(error.to_string()))?;
            if !parsed.is_ca() {
                return Err(BundleError::NotAuthority { number });
            }
            store.add(root.clone()).map_err(|error| malformed(error.to_string()))?;
        }
        roots.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        roots.dedup();
        Ok(Self { roots: roots.into(), store: Arc::new(store) })
    }

    /// # Errors
    /// When the file cannot be read or is not a bundle.
    pub fn from_file(path: &Path) -> Result<Self, BundleError> {
        let pem = std::fs::read(path).map_err(|error| BundleError::Read { path: path.to_owned(), error })?;
        Self::from_pem(&pem)
    }

    pub fn root_store(&self) -> Arc<RootCertStore> {
        self.store.clone()
    }

    /// The roots, sorted by content.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// All roots, as concatenated PEM blocks; the same text for equal bundles.
    pub fn pem(&self) -> String {
        self.roots.iter().map(|root| pem::encode("CERTIFICATE", root)).collect()
    }

    /// When the first of the roots expires.
    pub fn first_expiry(&self) -> SystemTime {
        self.roots
            .iter()
            .filter_map(|root| parse_x509_certificate(root).ok())
            .map(|(_, root)| system_time(root.validity().not_after.timestamp()))
            .min()
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.roots == other.roots
    }
}

impl Eq for TrustBundle {}

impl std::fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TrustBundle({} roots)", self.roots.len())
    }
}

/// Follows a bundle file: waits at most `wait` for the first good content, then looks once a second. A file that is
/// missing or bad later leaves the last good bundle in force and is logged once per version. Ends when every receiver
/// is gone. Receivers are woken only when the roots differ.
///
/// # Errors
/// When nothing good was there in time; the message names the file and what was wrong with it.
pub async fn watch_file(
    path: impl Into<PathBuf>,
    wait: Duration,
) -> Result<watch::Receiver<Arc<TrustBundle>>, BundleError> {
    let path = path.into();
    let deadline = Instant::now() + wait;
    let first = loop {
        match TrustBundle::from_file(&path) {
            Ok(bundle) => break bundle,
            Err(error) if Instant::now() >= deadline => {
                return Err(BundleError::Deadline { path, waited: wait, last: error.to_string() });
            }
            Err(_) => tokio::time::sleep(FIRST_POLL).await,
        }
    };
    // A file replaced between the read above and this look is read again: no stamp is kept from before.
    let (sender, receiver) = watch::channel(Arc::new(first));
    tokio::spawn(follow(path, sender));
    Ok(receiver)
}

async fn follow(path: PathBuf, sender: watch::Sender<Arc<TrustBundle>>) {
    let mut seen: Option<Result<Stamp, io::ErrorKind>> = None;
    loop {
        let stamp = Stamp::of(&path).map_err(|error| error.kind());
        if seen != Some(stamp) {
            seen = Some(stamp);
            match TrustBundle::from_file(&path) {
                Ok(bundle) => publish(&path, &sender, bundle),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "trust bundle kept as it was: its file is not usable");
                }
            }
        }
        tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

fn publish(path: &Path, sender: &watch::Sender<Arc<TrustBundle>>, bundle: TrustBundle) {
    let changed = sender.send_if_modified(|current| {
        let differs = **current != bundle;
        if differs {
            *current = Arc::new(bundle.clone());
        }
        differs
    });
    if changed {
        tracing::info!(path = %path.display(), roots = bundle.roots.len(), "trust bundle changed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestAuthority;

    #[test]
    fn bundles_are_equal_by_content_not_by_order() {
        let (a, b) = (TestAuthority::new("a"), TestAuthority::new("b"));
        let one = TrustBundle::from_pem(format!("{}{}", a.pem(), b.pem()).as_bytes()).unwrap();
        let two =
            TrustBundle::from_pem(format!("# roots\n{}{}{}", b.pem(), a.pem(), b.pem()).as_bytes()).unwrap();
        assert_eq!(one, two);
        assert_eq!(one.pem(), two.pem());
        assert_ne!(one, TrustBundle::from_pem(a.pem().as_bytes()).unwrap());
        assert_eq!(one, TrustBundle::from_pem(one.pem().as_bytes()).unwrap());
    }

    #[test]
    fn what_is_not_a_bundle_is_refused() {
        let authority = TestAuthority::new("a");
        let leaf = authority.leaf("spiffe://cluster.local/ns/a/sa/b");
        assert!(matches!(TrustBundle::from_pem(b""), Err(BundleError::Empty)));
        assert!(matches!(TrustBundle::from_pem(b"garbage"), Err(BundleError::Empty)));
        assert!(matches!(
            TrustBundle::from_der(vec![CertificateDer::from(vec![1, 2, 3])]),
            Err(BundleError::Malformed { number: 1, .. })
        ));
        assert!(matches!(
            TrustBundle::from_der(vec![leaf.chain()[0].clone()]),
            Err(BundleError::NotAuthority { number: 1 })
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watched_file_keeps_its_last_good_bundle() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("roots.pem");
        let (a, b) = (TestAuthority::new("a"), TestAuthority::new("b"));
        let late = path.clone();
        let pem = a.pem();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            std::fs::write(&late, pem).unwrap();
        });
        let mut bundle = watch_file(&path, Duration::from_secs(10)).await.unwrap();
        let first = bundle.borrow_and_update().clone();
        assert_eq!(*first, TrustBundle::from_pem(a.pem().as_bytes()).unwrap());

        std::fs::write(&path, "nothing good").unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        std::fs::remove_file(&path).unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!bundle.has_changed().unwrap());

        std::fs::write(&path, format!("{}{}", a.pem(), b.pem())).unwrap();
        tokio::time::timeout(Duration::from_secs(3), bundle.changed()).await.unwrap().unwrap();
        assert_eq!(bundle.borrow().roots().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_never_comes_is_an_error_that_names_it() {
        let error = watch_file("/nonexistent/roots.pem", Duration::from_secs(2)).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/roots.pem"), "{error}");
    }
}
