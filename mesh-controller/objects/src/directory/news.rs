//! What the kernel says has changed below a directory, kept until somebody looks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::manifest::is_manifest;

/// A file that was renamed to its place is whole; another may be about to follow it.
const AFTER_RENAMES: Duration = Duration::from_millis(5);
/// Whoever writes into a file, or removes it, may be about to write more.
const AFTER_WRITES: Duration = Duration::from_millis(50);
/// A directory that never rests is looked at this often all the same.
const LONGEST: Duration = Duration::from_millis(500);
/// More files than that are not listed one by one.
const MOST_FILES: usize = 10_000;

/// Where to look for what has changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    Everywhere,
    /// Only at these files, each renamed to its place.
    At(BTreeSet<PathBuf>),
}

impl Default for Look {
    fn default() -> Self {
        Self::At(BTreeSet::new())
    }
}

impl Look {
    fn add(&mut self, event: &notify::Result<Event>) {
        match (Change::of(event), &mut *self) {
            (Change::Renamed(path), Self::At(files)) if files.len() < MOST_FILES => {
                files.insert(path);
            }
            (Change::Nothing, _) => {}
            _ => *self = Self::Everywhere,
        }
    }

    fn is_nowhere(&self) -> bool {
        matches!(self, Self::At(files) if files.is_empty())
    }
}

/// What one event means for who reads manifests.
enum Change {
    Nothing,
    /// A manifest came to its place by a rename.
    Renamed(PathBuf),
    Unknown,
}

impl Change {
    fn of(event: &notify::Result<Event>) -> Self {
        // An overflow, or worse.
        let Ok(event) = event else { return Self::Unknown };
        let is_draft = !event.paths.is_empty() && event.paths.iter().all(|path| is_hidden(path));
        match event.kind {
            // Both halves of a rename have events of their own.
            EventKind::Access(_) | EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => Self::Nothing,
            // A hidden link that others lead through, as in the volume of a ConfigMap.
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) if is_draft => Self::Unknown,
            _ if is_draft => Self::Nothing,
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => match event.paths.as_slice() {
                [path] if is_manifest(path) => Self::Renamed(path.clone()),
                _ => Self::Unknown,
            },
            _ => Self::Unknown,
        }
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Follows a directory while it lives.
pub struct News {
    shared: Arc<Shared>,
    /// None where the kernel had no watch to give: then there is no news.
    watcher: Option<RecommendedWatcher>,
}

#[derive(Default)]
struct Shared {
    look: Mutex<Look>,
    added: Notify,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Look> {
        self.look.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl News {
    pub fn of(directory: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        let told = shared.clone();
        let on_event = move |event: notify::Result<Event>| {
            let mut look = told.lock();
            look.add(&event);
            if !look.is_nowhere() {
                told.added.notify_one();
            }
        };
        let watch = || {
            let mut watcher = notify::recommended_watcher(on_event)?;
            watcher.watch(directory, RecursiveMode::Recursive)?;
            notify::Result::Ok(watcher)
        };
        let watcher = watch().map_err(|error| tracing::warn!(%error, "changes are found by rescanning only"));
        Self { shared, watcher: watcher.ok() }
    }

    /// Whether the kernel tells of changes.
    pub fn is_told(&self) -> bool {
        self.watcher.is_some()
    }

    /// Returns when something has changed and come to rest.
    pub async fn next(&self) -> Look {
        self.shared.added.notified().await;
        let latest = Instant::now() + LONGEST;
        while Instant::now() < latest {
            let quiet = match *self.shared.lock() {
                Look::At(_) => AFTER_RENAMES,
                Look::Everywhere => AFTER_WRITES,
            };
            if tokio::time::timeout(quiet, self.shared.added.notified()).await.is_err() {
                break;
            }
        }
        std::mem::take(&mut *self.shared.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn after(directory: &Path, change: impl FnOnce()) -> Look {
        let news = News::of(directory);
        change();
        tokio::time::timeout(Duration::from_secs(10), news.next()).await.expect("news")
    }

    fn at(files: &[PathBuf]) -> Look {
        Look::At(files.iter().cloned().collect())
    }

    #[tokio::test]
    async fn only_whole_files_are_looked_at_alone() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let put = |name: &str| {
            let hidden = root.join(format!(".{name}"));
            std::fs::write(&hidden, "").unwrap();
            std::fs::rename(&hidden, root.join(name)).unwrap();
        };
        let (a, b) = (root.join("a.yaml"), root.join("b.json"));
        let both = after(root, || ["a.yaml", "b.json"].into_iter().for_each(put)).await;
        assert_eq!(both, at(&[a.clone(), b.clone()]));
        let mut written = vec![
            after(root, || std::fs::write(&a, "x").unwrap()).await,
            after(root, || {
                put("a.yaml");
                std::fs::remove_file(&b).unwrap();
            })
            .await,
            after(root, || std::fs::create_dir(root.join("sub")).unwrap()).await,
            after(root, || std::fs::rename(root.join("sub"), root.join("other")).unwrap()).await,
            after(root, || std::fs::rename(&a, root.join(".a")).unwrap()).await,
        ];
        // As a ConfigMap's volume is renewed.
        std::os::unix::fs::symlink("one", root.join("..new")).unwrap();
        written.push(after(root, || std::fs::rename(root.join("..new"), root.join("..data")).unwrap()).await);
        assert!(written.iter().all(|look| *look == Look::Everywhere), "{written:?}");
    }

    #[tokio::test]
    async fn a_draft_is_no_news() {
        let directory = tempfile::tempdir().unwrap();
        let news = News::of(directory.path());
        std::fs::write(directory.path().join(".draft"), "x").unwrap();
        std::fs::write(directory.path().join("end.yaml"), "x").unwrap();
        tokio::time::timeout(Duration::from_secs(10), news.next()).await.expect("news");
        std::fs::write(directory.path().join(".draft"), "y").unwrap();
        std::fs::rename(directory.path().join("end.yaml"), directory.path().join("e.yaml")).unwrap();
        let look = tokio::time::timeout(Duration::from_secs(10), news.next()).await.expect("news");
        assert_eq!(look, Look::Everywhere, "the old name is gone");
    }
}
